# SPDX-License-Identifier: Apache-2.0
"""Manager and workers killed, phalad replaced, workers that hang: under transfers and a connection storm."""
import contextlib, itertools, os, signal, socket, sys, threading, time

from lab import tls
from lab.lab import DOMAIN, GATEWAY, GATEWAY6, SLOW, wait_until
from rows import Topic, equal, expect
import arena as the_arena

topic = Topic("deaths", the_arena.setup)
STANDARD = "alpha1-8080"

LISTEN_FDS = """
import os, sys
for at, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(at + 1))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Asker:
    """Standard connections one after the other. Each is answered, or ends: how long that took is kept."""
    def __init__(self, lab):
        self.lab, self.stop, self.answered, self.turned_away, self.longest = lab, False, 0, 0, 0.0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stop:
            begun = time.monotonic()
            try:
                with self.lab.tls(STANDARD) as client:
                    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    if client.recv_all().endswith(b"alpha1\n"):
                        self.answered += 1
                    else:
                        self.turned_away += 1
            except OSError:
                self.turned_away += 1
            self.longest = max(self.longest, time.monotonic() - begun)

    def finish(self):
        self.stop = True
        self.thread.join(60 * SLOW)
        expect(not self.thread.is_alive(), "a standard connection hangs")


def others(lab):
    return {role: pid for role, pid in lab.processes().items() if role != "holder"}


def storm(arena):
    """A crowd that goes on until its input ends: by the kernel path, if it takes them. Some of it is long."""
    return arena.crowd(10**7, "--at-once", arena.at_once(300), "--gap", int(1000 * SLOW), "--largest",
                       arena.scaled(8 << 20, 8 << 20, 1 << 18))


def survived(arena, crowd, hosts, before):
    """All that the kernel path carried came through. One that came late, and so went by a worker, may die with it."""
    report = crowd.finish()
    since = arena.since(before)
    arena.note(f"counted: {since}")
    relayed = since.get("accepted", 0) - since.get("routed-standard", 0)
    arena.all_intact(report, hosts, allowed=max(0, relayed))
    expect(report["opened"] > arena.scaled(200, 200, 50), f"it was a storm: {report['opened']} connections")
    expect(since.get("spliced", 0) >= arena.scaled(0.98, 0.98, 0.5) * report["opened"], "they went by the kernel path")
    arena.clear()
    arena.tables_empty()


@topic.row("kill -9 of manager, each worker, and all of them, again and again: nothing in the kernel is lost", seconds=90)
def _(arena):
    lab = arena.lab
    hosts, before = arena.hosts(), arena.counters()
    crowd, asker = storm(arena), Asker(lab)
    victims = itertools.cycle([["manager"], ["worker 0"], ["worker 1"], ["manager", "worker 0", "worker 1"]])
    kills = 0
    for roles in itertools.islice(victims, arena.scaled(8, 80, 4)):
        now = others(lab)
        for role in roles:
            os.kill(now[role], signal.SIGKILL)
            kills += 1
        wait_until(lambda: all(others(lab).get(role, now[role]) != now[role] for role in roles), 10, f"{roles} are back")
        wait_until(lambda: lab.ctl("status", check=False).returncode == 0, 10, "phalactl is answered")
    asker.finish()
    arena.note(f"{kills} killed; standard connections: {asker.answered} answered, {asker.turned_away} turned away, the longest "
               f"took {asker.longest:.1f} s")
    expect(asker.answered > asker.turned_away, "standard connections wait for a worker")
    survived(arena, crowd, hosts, before)


@contextlib.contextmanager
def held_sockets(lab):
    """phalad's listening sockets, as systemd would hold them. Gives a function that starts phalad with them."""
    lab.stop()
    sockets = [lab.gateway.socket(), lab.gateway.socket(socket.AF_INET6)]
    for sock, address in zip(sockets, (GATEWAY, GATEWAY6)):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, 443))
        sock.listen(512)
    held = [os.dup2(sock.fileno(), 100 + i) for i, sock in enumerate(sockets)]
    launcher = [sys.executable, "-c", LISTEN_FDS, ",".join(map(str, held))]
    try:
        yield sockets[0], lambda: lab.start(launcher, pass_fds=held, Gateway=the_arena.GATEWAY_SECTION)
    finally:
        if lab.phalad.poll() is None:
            lab.stop()
        for fd in held:
            os.close(fd)
        for sock in sockets:
            sock.close()
        lab.start(Gateway=the_arena.GATEWAY_SECTION)
        lab.wait_healthy()


@topic.row("phalad upgraded, again and again, its sockets held: running and new connections go on, and none is lost",
           seconds=90)
def _(arena):
    lab = arena.lab
    with held_sockets(lab) as (_, start):
        start()
        lab.wait_healthy()
        hosts, before = arena.hosts(), arena.counters()
        crowd = storm(arena)
        for _ in range(arena.scaled(10, 100, 1)):
            equal(lab.stop(), 0, "exit status")
            start()
        lab.wait_healthy()
        survived(arena, crowd, hosts, before)


@topic.row("phalad killed with its holder, again and again: running connections go on, the next one adopts them", seconds=60)
def _(arena):
    lab = arena.lab
    hosts, before = arena.hosts(), arena.counters()
    count = arena.at_once(300)
    crowd = arena.crowd(count, "--at-once", count, "--stalls", 1000, "--stall", int(arena.scaled(6, 60, 3) * SLOW))

    def begun():
        """Those that a worker has, in a guest, will die with it."""
        since = arena.since(before)
        return since.get("spliced", 0) + since.get("accepted", 0) == count and since
    since = wait_until(begun, 10, "all of them are connected")
    long = [flow for flow in arena.flows() if flow["state"] == "spliced"]
    expect(len(long) > count // 15, f"{len(long)} have come to a stop")
    expect(since["spliced"] >= arena.scaled(1, 1, 0.5) * count, f"by the kernel path: {since}")
    for _ in range(arena.scaled(3, 20, 1)):
        lab.stop(signal.SIGKILL)
        wait_until(lambda: not lab.processes(), 5, "no process is left")
        lab.start(Gateway=the_arena.GATEWAY_SECTION)
    arena.all_intact(crowd.finish_when_done(), hosts, allowed=since.get("accepted", 0))
    arena.clear()
    lab.wait_healthy()
    arena.tables_empty()


def try_standard(lab, label, cuts=(), pad=300):
    """Returns "RST" or "FIN" if it ends at once, or the socket if it waits."""
    sock = lab.connect()
    hello = tls.records(tls.client_hello(tls.sni(f"{label}.{DOMAIN}"), pad=pad))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for a, b in zip((0, *cuts), (*cuts, len(hello))):
        sock.sendall(hello[a:b])
    sock.settimeout(0.1 * SLOW)
    _, ended = tls.drain(sock)
    if ended != "open":
        sock.close()
        return ended
    return sock


@topic.row("workers that hang, and an accept queue that fills: standard connections are turned away at once, the kernel's go on",
           only="native", seconds=60)
def _(arena):
    lab, waiting = arena.lab, []
    with held_sockets(lab) as (listener, start):
        start()
        lab.wait_healthy()
        hosts, before = arena.hosts(), arena.counters()
        # The holder has made the queue long; here it is to fill soon. It is the same socket.
        listener.listen(64)
        stopped = [pid for role, pid in others(lab).items() if role.startswith("worker")]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            def turned_away():
                ends = try_standard(lab, STANDARD)
                if not isinstance(ends, str):
                    waiting.append(ends)
                    return False
                equal(ends, "RST", "how it was turned away")
                return True
            wait_until(turned_away, 30, "a standard connection is turned away")
            arena.note(f"{len(waiting)} wait")
            expect(40 <= len(waiting) < 64, f"{len(waiting)} waited before")
            equal(try_standard(lab, STANDARD, cuts=(100,)), "RST", "how one in two packets was turned away")
            equal(try_standard(lab, STANDARD, pad=6000), "RST", "how a long one was turned away")
            crowd = arena.crowd(300, "--at-once", 20)
            report = crowd.finish_when_done()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        arena.all_intact(report, hosts)
        since = arena.since(before)
        equal((since.get("turned-away"), since.get("spliced")), (3, 300), f"counted {since}")
        for sock in waiting:            # a worker has them now, and answers
            sock.settimeout(10 * SLOW)
            expect(sock.recv(1) == b"\x16", "who waited is served")
            sock.close()
        listener.listen(65535)
        arena.clear()
        arena.tables_empty(now=True)
