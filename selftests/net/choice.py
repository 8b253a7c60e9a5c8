# SPDX-License-Identifier: Apache-2.0
"""Which instance a connection goes to, and what draining and removing do.

    client ── phalad ──┬── alpha1   app alpha
                       ├── alpha2   app alpha
                       └── beta1    app beta
"""
import contextlib, os, select, socket, time

from lab import tls
from lab.lab import DOMAIN, SLOW, wait_until, wg
from rows import LIMIT, Topic, accept, counted, equal, expect, listening, passthrough_pair, standard_pair


def setup(lab):
    # No rest for addresses here: these rows remove and add again.
    lab.ready(Gateway={"AddressQuarantine": "0", "HelloTimeout": "60s"})


topic = Topic("choice", setup)


def spread(lab, label, port, count):
    """Makes so many connections. Returns how many each instance got."""
    hello = tls.records(tls.client_hello(tls.sni(f"{label}.{DOMAIN}")))
    got = dict.fromkeys(lab.cvms, 0)
    with contextlib.ExitStack() as stack:
        listeners = {stack.enter_context(listening(lab, name, port)): name for name in lab.cvms}
        for at in range(0, count, 50):
            clients = [stack.enter_context(lab.connect()) for _ in range(min(50, count - at))]
            for client in clients:
                client.sendall(hello)
            for _ in clients:
                ready, _, _ = select.select(list(listeners), [], [], LIMIT)
                expect(ready, f"a connection arrives ({sum(got.values())} did)")
                ready[0].accept()[0].close()
                got[listeners[ready[0]]] += 1
    return got


@topic.row("400 connections to an app: both instances, evenly (chi-square), and no other app's", seconds=90)
def _(lab):
    got = spread(lab, "alpha-7300s", 7300, 400)
    equal(got["beta1"], 0, "connections of the other app")
    chi_square = sum((got[name] - 200) ** 2 / 200 for name in ("alpha1", "alpha2"))
    expect(chi_square < 19.5, f"{got}: chi-square {chi_square:.1f}; chance exceeds 19.5 once in 100000")


@topic.row("40 connections to an instance: all to it")
def _(lab):
    equal(spread(lab, "alpha2-7301s", 7301, 40), {"alpha1": 0, "alpha2": 40, "beta1": 0}, "connections")


@topic.row("a draining instance gets nothing new and keeps what it has; undone, it gets its share")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7302s", "alpha1", 7302)
    with client, cvm:
        lab.ctl("cvm", "drain", "alpha1")
        equal(spread(lab, "alpha-7303s", 7303, 40), {"alpha1": 0, "alpha2": 40, "beta1": 0}, "connections")
        client.sendall(b"still here")
        equal(cvm.recv(100), b"still here", "the old connection")
        lab.ctl("cvm", "drain", "--undo", "alpha1")
        expect(spread(lab, "alpha-7304s", 7304, 40)["alpha1"] > 0, "alpha1 gets some again")     # misses once in 2^40


def over(sock):
    """Has the peer ended this connection already, as far as this machine's kernel knows?"""
    sock.settimeout(0)
    try:
        while sock.recv(65536):         # session tickets, perhaps
            pass
        return True
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


@topic.row("removal ends the instance's connections in both modes before it is acknowledged, and nobody else's")
def _(lab):
    pairs = [passthrough_pair(lab, "alpha1-7305s", "alpha1", 7305) for _ in range(4)]
    pairs += [(client.sock, cvm) for client, cvm in (standard_pair(lab, "alpha-7306", "alpha1", 7306)
                                                     for _ in range(4))]
    other, other_cvm = passthrough_pair(lab, "alpha2-7307s", "alpha2", 7307)
    try:
        with counted(lab, "instance-removed", 8):
            lab.ctl("cvm", "remove", "alpha1")
            equal([over(client) for client, _ in pairs], [True] * 8, "ended")
        wait_until(lambda: all(over(cvm) for _, cvm in pairs), 5, "the CVM's ends are ended too")
        other.sendall(b"me not")
        equal(other_cvm.recv(100), b"me not", "another instance's connection")
        equal(spread(lab, "alpha-7308s", 7308, 20), {"alpha1": 0, "alpha2": 20, "beta1": 0}, "new connections")
    finally:
        lab.broken = True
        lab.cvms["alpha1"].down()
        lab.cvms["alpha1"].register()
        lab.cvms["alpha1"].up()
        lab.wait_healthy()
        lab.broken = False
        for pair in [*pairs, (other, other_cvm)]:
            for sock in pair:
                sock.close()


@topic.row("removal also ends a connection whose client sends as fast as it can, and one whose reader stopped")
def _(lab):
    busy, busy_cvm = passthrough_pair(lab, "beta1-7309s", "beta1", 7309)
    stuck, stuck_cvm = passthrough_pair(lab, "beta1-7310s", "beta1", 7310)
    with busy, busy_cvm, stuck, stuck_cvm:
        stuck.settimeout(0)
        busy.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                stuck.send(bytes(65536))
        remover = lab.gateway.start([lab.build / "phalactl", "--config", lab.conf, "cvm", "remove", "beta1"])
        try:
            while remover.poll() is None:
                with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    busy.send(bytes(4096))
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    busy_cvm.settimeout(0)
                    busy_cvm.recv(65536)
            equal(remover.returncode, 0, "cvm remove")
            expect(over(busy) and over(stuck), "both are ended")
        finally:
            lab.cvms["beta1"].down()
            lab.cvms["beta1"].register()
            lab.cvms["beta1"].up()
            lab.wait_healthy()


@topic.row("an instance that is registered again keeps its address, with a new key too")
def _(lab):
    cvm = lab.cvms["alpha2"]
    address = cvm.address
    client, old = passthrough_pair(lab, "alpha2-7314s", "alpha2", 7314)
    terminated, its_old = standard_pair(lab, "alpha2-7315", "alpha2", 7315)
    other, other_cvm = passthrough_pair(lab, "alpha1-7316s", "alpha1", 7316)
    with client, old, terminated.sock, its_old, other, other_cvm:
        cvm.register()
        client.sendall(b"still here")
        equal(old.recv(100), b"still here", "a connection, after the same key again")
        cvm.down()
        cvm.key = wg("genkey")
        cvm.register()
        wait_until(lambda: over(client) and over(terminated.sock), 5, "connections to who had the old key end")
        other.sendall(b"me not")
        equal(other_cvm.recv(100), b"me not", "another instance's connection")
        for sock in (old, its_old):         # they have not heard of the end: a FIN would be repeated far into later rows
            tls.reset(sock)
    equal(cvm.address, address, "address")
    cvm.up()
    lab.wait_healthy()
    expect(spread(lab, "alpha2-7311s", 7311, 3)["alpha2"] == 3, "it is reached by its new key")


@topic.row("a key made by phalactl works as well, and is printed once", only="wireguard")
def _(lab):
    cvm = lab.cvms["alpha2"]
    cvm.down()
    cvm.register(generate_key=True)
    text = cvm.conf.read_text()
    expect("PrivateKey" in text, "the configuration holds the key")
    key = next(line.split("=", 1)[1].strip() for line in text.splitlines() if line.startswith("PrivateKey"))
    equal(lab.json("cvm", "show", "alpha2")["public_key"], wg("pubkey", key), "public key in the registry")
    expect(key not in lab.ctl("cvm", "show", "alpha2").stdout + lab.log.read_text(), "it is not shown again")
    cvm.up()
    lab.wait_healthy()
    expect(spread(lab, "alpha2-7312s", 7312, 3)["alpha2"] == 3, "it is reached")
    cvm.down()
    cvm.register()
    cvm.up()
    lab.wait_healthy()
