# SPDX-License-Identifier: Apache-2.0
"""The kernel path under phalad: passthrough without a socket, with and without those who set it up.

    client ─ n0 ─ steer ══ TLS, byte for byte ══ steer ─ tunnel ─ CVM          manager, workers: may be gone
"""
import contextlib, os, select, signal

from lab import tls
from lab.lab import DOMAIN, GUEST, wait_until, wg
from rows import LIMIT, Failed, Topic, accept, equal, expect, listening, passthrough_pair, read_exactly, standard_pair, together


def setup(lab):
    lab.ready(Gateway={"Nic": "n0"})


topic = Topic("kernel", setup)


def count(lab, reason):
    """How often steer has counted it."""
    return sum(row["count"] for row in lab.json("map", "dump", "reasons") if row["reason"] == reason)


def spliced(lab):
    return count(lab, "spliced")


def relayed(lab):
    return sum(worker["counters"].get("routed-passthrough", 0) for worker in lab.workers())


def paths(lab, what):
    """How many connections @what made on each path: (kernel, relay)."""
    before = spliced(lab), relayed(lab)
    what()
    return spliced(lab) - before[0], relayed(lab) - before[1]


def is_alive(client, cvm):
    for one, other in ((client, cvm), (cvm, client)):
        one.sendall(b"x" * 1000)
        equal(len(read_exactly(other, 1000)), 1000, "bytes that still come through")


def is_over(sock):
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def flows(lab):
    return lab.json("flow", "list")["flows"]


def port_of(flow):
    return int(str(flow["client"]).rpartition(":")[2])


def is_kernels(lab, client):
    mine = client.getsockname()[1]
    return any(port_of(flow) == mine and flow["state"] == "spliced" for flow in flows(lab))


def let_go(lab, client, cvm):
    """Ends a connection that is relayed; until the worker has done so too, it counts against limits."""
    name = "%s:%d" % client.getsockname()
    client.close()
    cvm.close()
    wait_until(lambda: all(row["client"] != name for row in lab.json("flow", "list")["relays"]), 5, f"the end of {name}")


def kernel_pair(lab, label, name, port):
    """A pair whose connection is the kernel's. A hello that comes after the deferral is a worker's, which in a slow guest it
    may, so there are a few tries."""
    for _ in range(5):
        client, cvm = passthrough_pair(lab, label, name, port)
        if is_kernels(lab, client):
            return client, cvm
        let_go(lab, client, cvm)
    raise Failed("not one connection of five was the kernel's")


def unaided(lab, label, name, port):
    """A connection while no worker runs. Returns False if it is a worker's all the same, as it may be for kernel_pair()."""
    hello = tls.records(tls.client_hello(tls.sni(f"{label}.{DOMAIN}")))
    late = lambda: count(lab, "declined-accepted") + (count(lab, "declined-unanswered") if GUEST else 0)
    before = late()
    with listening(lab, name, port) as listener, lab.connect() as client:
        arrived = lambda: select.select([listener], [], [], 0)[0]
        client.sendall(hello)
        wait_until(lambda: arrived() or late() > before, 10, "a connection at the CVM")
        if not arrived():
            return False
        with accept(listener) as cvm:
            equal(read_exactly(cvm, len(hello)), hello, "the hello at the CVM")
            expect(is_kernels(lab, client), "it is the kernel's")
    return True


@topic.row("a passthrough connection is the kernel's, a standard one is a worker's, one over IPv6 is relayed")
def _(lab):
    def passthrough(family=4):
        for sock in passthrough_pair(lab, "alpha1-7701s", "alpha1", 7701, family):
            sock.close()

    def standard():
        client, cvm = standard_pair(lab, "alpha1-7702", "alpha1", 7702)
        client.sock.close()
        cvm.close()
    expect(any(paths(lab, passthrough) == (1, 0) for _ in range(5)), "IPv4 is the kernel's")
    equal(paths(lab, lambda: passthrough(6)), (0, 1), "IPv6")
    equal(paths(lab, standard), (0, 0), "standard")


@topic.row("a megabyte each way, and its flow in phalactl")
def _(lab):
    client, cvm = kernel_pair(lab, "alpha1-7703s", "alpha1", 7703)
    data = os.urandom(1 << 20)
    with client, cvm:
        for one, other in ((client, cvm), (cvm, client)):
            one.settimeout(LIMIT)
            got = together(lambda: one.sendall(data), lambda: read_exactly(other, len(data)))[1]
            expect(got == data, "what arrived is what was sent")
        port = client.getsockname()[1]
        mine = [flow for flow in flows(lab) if str(flow["client"]).endswith(f":{port}")]
        equal(len(mine), 1, "flows of this client")
        equal((mine[0]["app"], mine[0]["instance"]), ("alpha", "alpha1"), "whose it is")


@topic.row("manager and workers stopped: running connections go on, new ones succeed", seconds=60)
def _(lab):
    client, cvm = kernel_pair(lab, "alpha1-7704s", "alpha1", 7704)
    stopped = [pid for role, pid in lab.processes().items() if role != "holder"]
    with client, cvm:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            is_alive(client, cvm)
            made = 0
            for _ in range(7):          # two may be late
                made += made < 5 and unaided(lab, "alpha1-7705s", "alpha1", 7705)
            equal(made, 5, "new connections")
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        is_alive(client, cvm)


@topic.row("kill -9 of manager and workers: running connections go on, new ones succeed at once")
def _(lab):
    client, cvm = kernel_pair(lab, "alpha1-7706s", "alpha1", 7706)
    before = {role: pid for role, pid in lab.processes().items() if role != "holder"}
    with client, cvm:
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for sock in kernel_pair(lab, "alpha1-7707s", "alpha1", 7707):
            sock.close()
        is_alive(client, cvm)
        wait_until(lambda: all(lab.processes().get(role, pid) != pid for role, pid in before.items()), 5,
                   "all are back")
        lab.wait_healthy()
        is_alive(client, cvm)


@topic.row("workers that cannot start: silent clients do not stay in the accept queue, passthrough goes on", only="native",
           seconds=60)
def _(lab):
    silent, logged = [], len(lab.log.read_text())

    def waiting():
        lines = lab.gateway.run(["ss", "-Hltn", "sport", "=", "443"]).stdout.splitlines()
        return sum(int(line.split()[1]) for line in lines)
    try:
        with lab.without_user():
            for role, pid in lab.processes().items():
                if role.startswith("worker"):
                    os.kill(pid, signal.SIGKILL)
            silent = [lab.connect() for _ in range(200)]
            wait_until(lambda: waiting() == len(silent), 8, "they wait")
            wait_until(lambda: not waiting(), 20, "none waits any more")
            for sock in passthrough_pair(lab, "alpha1-7714s", "alpha1", 7714):       # there is nobody but the kernel
                sock.close()
    finally:
        for sock in silent:
            sock.close()
    wait_until(lambda: "a worker runs" in lab.log.read_text()[logged:], 5, "a worker")
    standard = standard_pair(lab, "alpha1-7715", "alpha1", 7715)
    standard[0].sock.close()
    standard[1].close()


@topic.row("phalad stopped and started again: running connections go on, and the new one adopts them")
def _(lab):
    client, cvm = kernel_pair(lab, "alpha1-7708s", "alpha1", 7708)
    with client, cvm:
        lab.stop()
        is_alive(client, cvm)
        lab.start(Gateway={"Nic": "n0"})
        for one in lab.cvms.values():
            one.handshake()
        lab.wait_healthy()
        is_alive(client, cvm)
        port = client.getsockname()[1]
        equal(sum(str(flow["client"]).endswith(f":{port}") for flow in flows(lab)), 1, "flows of this client")


@topic.row("flow kill: reset at both ends, and nobody else's")
def _(lab):
    pairs = [kernel_pair(lab, "alpha1-7709s", "alpha1", 7709) for _ in range(2)]
    port = pairs[0][0].getsockname()[1]
    flow = next(flow for flow in flows(lab) if str(flow["client"]).endswith(f":{port}"))
    lab.ctl("flow", "kill", str(flow["flow"]))
    expect(is_over(pairs[0][0]) and is_over(pairs[0][1]), "both ends are over")
    is_alive(*pairs[1])
    equal(lab.ctl("flow", "kill", str(flow["flow"]), check=False).returncode, 1, "once more")
    for sock in pairs[1]:
        sock.close()


@topic.row("cvm remove: its flows are reset before it is acknowledged, nobody else's")
def _(lab):
    client, cvm = kernel_pair(lab, "beta1-7710s", "beta1", 7710)
    other = kernel_pair(lab, "alpha1-7711s", "alpha1", 7711)
    try:
        lab.ctl("cvm", "remove", "beta1")
        expect(is_over(client), "the client's end is over")
        is_alive(*other)
    finally:
        lab.broken = True
        lab.cvms["beta1"].down()
        lab.cvms["beta1"].register()
        lab.cvms["beta1"].up()
        lab.wait_healthy()
        lab.broken = False
        for sock in (client, cvm, *other):
            sock.close()


@topic.row("cvm add with another key: flows to the old one are reset, nobody else's")
def _(lab):
    client, cvm = kernel_pair(lab, "beta1-7738s", "beta1", 7738)
    other = kernel_pair(lab, "alpha1-7739s", "alpha1", 7739)
    lab.cvms["beta1"].register()
    is_alive(client, cvm)
    lab.cvms["beta1"].down()
    lab.cvms["beta1"].key = wg("genkey")
    lab.cvms["beta1"].register()
    expect(is_over(client), "the client's end is over")
    is_alive(*other)
    tls.reset(cvm)                          # it has not heard of the end
    lab.cvms["beta1"].up()
    lab.wait_healthy()
    for sock in (client, *other, *kernel_pair(lab, "beta1-7738s", "beta1", 7738)):
        sock.close()


@topic.row("a NIC that goes and comes back: steered again")
def _(lab):
    lab.gateway.ip("link del n0\n")
    said = lab.json("route", f"alpha1-7712s.{DOMAIN}")
    equal((said["path"], lab.json("status")["kernel"]["open"]), ("relay", False), "what route and status say without it")
    lab.connect_client()

    def one():
        for sock in passthrough_pair(lab, "alpha1-7712s", "alpha1", 7712):
            sock.close()

    def again():                        # until phalad has seen the device, connections are relayed
        return paths(lab, one) == (1, 0)
    wait_until(again, 10, "the kernel path is back")


@topic.row("every random split of a hello in two, and an instance that refuses beside one that does not")
def _(lab):
    hello = tls.records(tls.client_hello(tls.sni(f"alpha-7713s.{DOMAIN}")))
    with listening(lab, "alpha2", 7713) as listener:
        for cut in range(1, len(hello), 37):
            with lab.connect() as client:
                client.sendall(hello[:cut])
                client.sendall(hello[cut:])
                with accept(listener) as cvm:
                    equal(read_exactly(cvm, len(hello)), hello, f"the hello, cut at {cut}")


@topic.row("the tunnel's device is down: status says why the kernel path is closed, and it is open again", only="external")
def _(lab):
    lab.gateway.ip(f"link set {lab.tunnel} down\n")
    try:
        kernel = lab.json("status")["kernel"]
        equal((kernel["open"], kernel["text"]), (False, "the tunnel's device is down"), "kernel path")
    finally:
        lab.gateway.ip(f"link set {lab.tunnel} up\nroute replace 10.0.0.0/8 dev {lab.tunnel}\n")
    equal(lab.json("status")["kernel"]["open"], True, "kernel path, with the device up")
    for end in kernel_pair(lab, "alpha1-7720s", "alpha1", 7720):
        end.close()
