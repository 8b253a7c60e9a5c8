# SPDX-License-Identifier: Apache-2.0
"""Readers that stop, connections that idle, descriptors that run out."""
import contextlib, re, select, time
from pathlib import Path

from lab import tls
from lab.lab import DOMAIN, SLOW, wait_until
from rows import LIMIT, Topic, counted, equal, expect, passthrough_pair, read_exactly, standard_pair

IDLE = 2.0 * max(1.5 if SLOW > 1 else 1, SLOW / 2)       # no row is to be away for longer, between two bytes


def setup(lab):
    lab.ready(Gateway={"IdleTimeout": f"{IDLE * 1000:.0f}ms", "Workers": 1})


topic = Topic("slow", setup)


@contextlib.contextmanager
def patience(lab):
    """Connections that are made meanwhile are not ended for being idle: readers stop for as long as a busy machine takes."""
    lab.ctl("app", "set", "alpha", "--idle-timeout", "1h")
    try:
        yield
    finally:
        lab.ctl("app", "set", "alpha", "--idle-timeout", "default")


def memory(lab):
    """Resident bytes of all workers."""
    pids = [pid for role, pid in lab.processes().items() if role.startswith("worker")]
    return sum(int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10 for pid in pids)


def fill(lab, sender, most):
    """Sends until nothing is taken any more. Returns how many bytes of the pattern went out."""
    sender.settimeout(0)
    sent = 0
    while sent < most:
        _, ready, _ = select.select([], [sender], [], 0.5 * max(1, SLOW / 3))
        if not ready:
            return sent
        sent += sender.send(bytes(65536))
    expect(False, f"{most} bytes were taken for a reader that stopped")


@topic.row("passthrough, a CVM that stops reading: bounded memory, then all arrives", side="cvm")
@topic.row("passthrough, a client that stops reading: bounded memory, then all arrives", side="client")
def _(lab, side):
    before = memory(lab)
    with patience(lab):
        client, cvm = passthrough_pair(lab, "alpha1-7400s", "alpha1", 7400)
    sender, reader = (client, cvm) if side == "cvm" else (cvm, client)
    with client, cvm:
        sent = fill(lab, sender, 64 << 20)
        grown = memory(lab) - before
        expect(grown < 4 << 20, f"the worker grew by {grown >> 10} KiB for {sent >> 10} KiB in flight")
        # It goes on where it was.
        reader.settimeout(LIMIT)
        equal(len(read_exactly(reader, sent)), sent, "bytes that arrive")
        sender.settimeout(LIMIT)
        sender.sendall(b"the end")
        sender.shutdown(1)
        equal(tls.drain(reader), (b"the end", "FIN"), "after it")


@topic.row("standard, a CVM that stops reading: bounded memory, then all arrives", side="cvm")
@topic.row("standard, a client that stops reading: bounded memory, then all arrives", side="client")
def _(lab, side):
    with patience(lab):
        client, cvm = standard_pair(lab, "alpha1-7401", "alpha1", 7401)
    before = memory(lab)
    with client, cvm:
        if side == "client":
            sent = fill(lab, cvm, 64 << 20)
        else:
            sent = 0
            client.sock.settimeout(0.5 * max(1, SLOW / 3))
            with contextlib.suppress(TimeoutError):
                while sent < 64 << 20:
                    sent += client.ssl.write(bytes(16384))
                    record = client.outgoing.read()
                    while record:
                        record = record[client.sock.send(record):]
            expect(record, "64 MiB were taken for a reader that stopped")
        grown = memory(lab) - before
        expect(grown < 4 << 20, f"the worker grew by {grown >> 10} KiB for {sent >> 10} KiB in flight")
        client.sock.settimeout(LIMIT)
        cvm.settimeout(LIMIT)
        if side == "client":
            equal(len(client.recv_exactly(sent)), sent, "bytes that arrive")
        else:
            got = len(read_exactly(cvm, sent - 16384))
            client.sock.sendall(record)
            equal(got + len(read_exactly(cvm, 16384)), sent, "bytes that arrive")


@topic.row("forty stopped readers of each kind cost bounded memory", seconds=120)
def _(lab):
    before = memory(lab)
    with patience(lab):
        pairs = [passthrough_pair(lab, "alpha1-7402s", "alpha1", 7402) for _ in range(40)]
    for client, _ in pairs:
        client.settimeout(0)
        try:
            for _ in range(64):
                client.send(bytes(65536))
        except BlockingIOError:
            pass
    wait_until(lambda: True, 1, "")
    grown = memory(lab) - before
    for pair in pairs:
        for sock in pair:
            tls.reset(sock)
    expect(grown < 24 << 20, f"the worker grew by {grown >> 10} KiB")


@topic.row("a connection without a byte either way ends with the idle time-out, passthrough", label="alpha1-7403s",
           port=7403)
@topic.row("a connection without a byte either way ends with the idle time-out, standard", label="alpha1-7404",
           port=7404)
def _(lab, label, port):
    pair = passthrough_pair if label.endswith("s") else standard_pair
    start = time.monotonic()            # before the last byte, from which the idle time counts
    client, cvm = pair(lab, label, "alpha1", port)
    with client, cvm, counted(lab, "idle"):
        _, ended = tls.drain(cvm)
        took = time.monotonic() - start
        expect(ended in ("FIN", "RST") and IDLE * 0.95 < took < IDLE * 2 + max(3, SLOW), f"{ended} after {took:.1f} s")
        _, ended = tls.drain(client.sock if port == 7404 else client)
        expect(ended in ("FIN", "RST"), "the client's end too")


def kept(lab):
    """A byte each IDLE / 6 for longer than twice IDLE. Returns False if the row itself was away for nearly as long as that."""
    last = time.monotonic()
    client, cvm = passthrough_pair(lab, "alpha1-7405s", "alpha1", 7405)
    with client, cvm:
        for _ in range(16):
            time.sleep(IDLE / 6)        # what is tested is time that passes
            got, begun = b"", time.monotonic()
            with contextlib.suppress(ConnectionError):
                cvm.sendall(b".")
                got = client.recv(10)
            if time.monotonic() - last > 0.8 * IDLE:
                return False
            equal(got, b".", "still there")
            last = begun
    return True


@topic.row("a byte now and then, in one direction only, keeps a connection")
def _(lab):
    expect(any(kept(lab) for _ in range(3)), "three times out of three nothing was sent for too long")


@topic.row("half closed and idle ends too")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7406s", "alpha1", 7406)
    with client, cvm, counted(lab, "idle"):
        client.shutdown(1)
        equal(tls.drain(cvm), (b"", "FIN"), "at the CVM")
        expect(tls.drain(client)[1] in ("FIN", "RST"), "ended")
