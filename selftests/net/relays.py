# SPDX-License-Identifier: Apache-2.0
"""What workers carry, as phalactl shows it: whose it is, how much, and why it is not the kernel's.

    client ── n0: steer ── worker ── CVM          the worker's ledger: RunDir/worker-N
"""
import os, signal, subprocess

from lab import tls
from lab.lab import DOMAIN, SLOW, wait_until
from kernel import let_go
from passthrough import GSS_REQUEST
from rows import Failed, Topic, accept, equal, expect, listening, passthrough_pair, read_exactly, standard_pair


def setup(lab):
    lab.ready(Gateway={"Nic": "n0"})


topic = Topic("relays", setup)


def relays(lab, *words):
    return lab.json("flow", "list", *words)["relays"]


def name_of(sock):
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def row_of(lab, client):
    return next((row for row in relays(lab) if row["client"] == client), None)


def with_cookies(lab):
    lab.gateway.sysctl("net.ipv4.tcp_syncookies", 2)
    try:
        return passthrough_pair(lab, "alpha1-8001s", "alpha1", 8001)
    finally:
        lab.gateway.sysctl("net.ipv4.tcp_syncookies", 1)


def over_ipv6(lab):
    return passthrough_pair(lab, "alpha1-8002s", "alpha1", 8002, 6)


def long_hello(lab):
    """One that comes after the deferral is declined for that, so there are a few tries, as in kernel_pair()."""
    for _ in range(5):
        client, cvm = passthrough_pair(lab, "alpha1-8003s", "alpha1", 8003, pad=9000)
        if wait_until(lambda: row_of(lab, name_of(client)), 3, "its row")["reason"] != "declined-accepted":
            return client, cvm
        let_go(lab, client, cvm)
    raise Failed("not one hello of five came before the end of the deferral")


def after_gss(lab):
    """PostgreSQL asks for GSS, is declined, and speaks TLS at once (sslnegotiation=direct)."""
    hello = tls.records(tls.client_hello(tls.sni(f"alpha1-8005s.{DOMAIN}")))
    with listening(lab, "alpha1", 8005) as listener:
        client = lab.connect()
        client.sendall(GSS_REQUEST)
        equal(read_exactly(client, 1), b"N", "GSS")
        client.sendall(hello)
        cvm = accept(listener)
    equal(read_exactly(cvm, len(hello)), hello, "the hello at the CVM")
    return client, cvm


def standard(lab):
    client, cvm = standard_pair(lab, "alpha1-8004", "alpha1", 8004)
    return client.sock, cvm


@topic.row("SYN cookies", make=with_cookies, label="alpha1-8001s", reason="declined-accepted")
@topic.row("IPv6", make=over_ipv6, label="alpha1-8002s", reason="declined-ipv6")
@topic.row("a hello that is too long for steer", make=long_hello, label="alpha1-8003s", reason="declined-long")
@topic.row("PostgreSQL that asked for GSS before its hello", make=after_gss, label="alpha1-8005s", reason="postgres")
@topic.row("standard mode", make=standard, label="alpha1-8004", reason="routed-standard", mode="standard")
def _(lab, make, label, reason, mode="passthrough"):
    client, cvm = make(lab)
    name = name_of(client)
    with client, cvm:
        before = wait_until(lambda: row_of(lab, name), 3, "its row")
        equal({key: before[key] for key in ("name", "app", "instance", "state", "path", "mode", "reason", "flow")},
              {"name": f"{label}.{DOMAIN}", "app": "alpha", "instance": "alpha1", "state": "relaying", "path": "relay", "mode": mode,
               "reason": reason, "flow": None}, "its row")
        cvm.sendall(bytes(7000))
        while mode == "passthrough" and len(read_exactly(client, 7000)) < 7000:
            pass
        if mode == "passthrough":
            client.sendall(bytes(3000))
            equal(len(read_exactly(cvm, 3000)), 3000, "bytes at the CVM")
        after = wait_until(lambda: (row := row_of(lab, name))["bytes_from_cvm"] >= 7000 and row, 3, "7000 bytes from the CVM")
        equal((after["bytes_from_client"] - before["bytes_from_client"], after["bytes_from_cvm"]),
              (3000 if mode == "passthrough" else 0, 7000), "bytes each way")
        shown = lab.json("flow", "show", name)
        equal((shown["client"], shown["reason"], shown["worker"]), (name, reason, after["worker"]), "flow show")
        expect(f"reason       {reason}" in lab.ctl("flow", "show", name).stdout, "flow show, in words")
        expect(name in lab.ctl("flow", "list").stdout, "flow list, in words")
        equal((len(relays(lab, "--app", "alpha")), relays(lab, "--app", "beta"), len(relays(lab, "--instance", "alpha1"))),
              (1, [], 1), "flow list of an app, of another, of an instance")
        said = [lab.ctl("flow", "list", *words).stderr for words in (("--app", "alpha"), ("--app", "alpha1"), ("--instance", "alfa1"))]
        equal(said, ["", "phalactl: there is no app alpha1\n", "phalactl: there is no instance alfa1\n"], "what is said of ids that nobody has")
    wait_until(lambda: not row_of(lab, name), 5, "the row's end")


@topic.row("psql")
def _(lab):
    lab.names("beta1-5432s")
    child = lab.client.start(["psql", f"host=beta1-5432s.{DOMAIN} port=443 sslmode=require user=postgres dbname=postgres",
                              "-Atc", f"select pg_sleep({3 * SLOW})"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mine = lambda: [row for row in relays(lab, "--instance", "beta1") if row["bytes_from_cvm"] > 500]
    try:
        row, = wait_until(mine, 20, "psql's connection")
        equal(child.wait(30 * SLOW), 0, "psql's exit status")
    finally:
        child.kill()
        child.wait()
    equal((row["name"], row["state"], row["path"], row["reason"]), (f"beta1-5432s.{DOMAIN}", "relaying", "relay", "postgres"), "its row")
    wait_until(lambda: not mine(), 10, "none when it is over")


@topic.row("before there is a name, and refused")
def _(lab):
    with lab.connect() as sock:
        sock.sendall(b"\x16\x03\x01")
        row = wait_until(lambda: row_of(lab, name_of(sock)), 10, "its row")
        equal((row["state"], row["name"], row["app"], row["reason"]), ("hello", None, None, None), "its row")


@topic.row("the manager stopped: still shown; a worker killed: its connections are not")
def _(lab):
    client, cvm = over_ipv6(lab)
    manager = lab.processes()["manager"]
    with client, cvm:
        os.kill(manager, signal.SIGSTOP)
        try:
            row = wait_until(lambda: row_of(lab, name_of(client)), 3, "its row")
        finally:
            os.kill(manager, signal.SIGCONT)
        role = f"worker {row['worker']}"
        killed = lab.processes()[role]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: lab.processes().get(role, killed) != killed, 5, "it is back")
        wait_until(lambda: not row_of(lab, name_of(client)), 5, "nothing is shown of it")


@topic.row("many connections: each has its row, and in the end none")
def _(lab):
    pairs = [over_ipv6(lab) for _ in range(60)]
    wait_until(lambda: {row["client"] for row in relays(lab)} == {name_of(client) for client, _ in pairs}, 5, "all rows")
    equal(len(relays(lab, "--count", "7")), 7, "flow list --count")
    for client, cvm in pairs:
        client.close()
        cvm.close()
    wait_until(lambda: not relays(lab), 5, "none")


@topic.row("without a Nic: that is the reason")
def _(lab):
    lab.stop()
    lab.ctl("detach")           # what is attached stays with the device
    lab.start(Gateway={"Nic": None})
    for cvm in lab.cvms.values():
        cvm.handshake()
    lab.wait_healthy()
    client, cvm = passthrough_pair(lab, "alpha1-8009s", "alpha1", 8009)
    with client, cvm:
        equal(row_of(lab, name_of(client))["reason"], "no-nic", "reason")
    setup(lab)
