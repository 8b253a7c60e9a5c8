# SPDX-License-Identifier: Apache-2.0
"""Bytes through spliced flows: intact, both ways, whatever the options, over good lines and bad ones."""
import itertools, os, socket, threading, time

from field import CLIENT, GUEST, SLOW, Failed, echo, equal, expect, hello, many, receive, row, wait_until

rows = []
HELLO = hello("app1-s.phala.test")
OPTIONS = ("tcp_timestamps", "tcp_sack", "tcp_window_scaling")
MIB = 1 << 20


def begin(place, timeout=60, **connect):
    """A connection that has had its hello back."""
    sock = place.connect(timeout=timeout, **connect)
    sock.sendall(HELLO)
    receive(sock, len(HELLO))
    return sock


def through(sock, size):
    """Sends @size bytes to an echo while it reads them back, half-closes, and reads to the end."""
    stream, got = os.urandom(size), []

    def read():
        try:
            data = receive(sock, len(stream))
            got.append((data, sock.recv(1)))
        except OSError as error:
            got.append((b"", error))
    reader = threading.Thread(target=read)
    reader.start()
    sock.sendall(stream)
    sock.shutdown(socket.SHUT_WR)
    reader.join()
    data, end = got[0]
    equal(end, b"", f"end, after {len(data)} of {len(stream)} bytes")
    expect(data == stream, f"{len(data)} bytes came back, which differ from the {len(stream)} that were sent")


def make_bad(place, line):
    place.lose(line, (place.client, "c0"), (place.cvms[0].ns, "t0"))


def transfer(place, size, timeout=60, line=None, **connect):
    """
    A connection's whole life. The line gets bad once the flow is spliced: over a bad one from the start, a lost SYN-ACK
    ends the deferral, and what then comes is a worker's.
    """
    with begin(place, timeout, **connect) as sock:
        if line:
            make_bad(place, line)
        through(sock, size)


@row(rows, "a megabyte each way")
def plain(place):
    before = place.stand.reasons()
    transfer(place, MIB)
    counted = lambda: [place.stand.since(before).get(reason) for reason in ("spliced", "closed")]
    wait_until(lambda: counted() == [1, 1], 2, "one spliced and one closed")


def options_row(side, option, line):
    @row(rows, f"a megabyte each way, the {side} without {option}, {line or 'good'} line", 120)
    def without(place):
        ns = place.client if side == "client" else place.cvms[0].ns
        place.client.sysctl("net.ipv4.tcp_rmem", "4096 131072 1500000")
        place.cvms[0].ns.sysctl("net.ipv4.tcp_rmem", "4096 131072 33554432")
        ns.sysctl(f"net.ipv4.{option}", 0)
        before = place.stand.reasons()
        if side == "CVM" and option == "tcp_timestamps":
            with place.connect() as sock:
                sock.sendall(HELLO)
                equal(receive(sock, 5), b"RELAY", "who answered")
            equal(place.stand.since(before).get("cvm-no-timestamps"), 1, "counted")
            return
        # Without SACK a lossy line is slow: each hole costs a round trip, and many a time-out
        transfer(place, MIB if not line or option != "tcp_sack" else MIB // 4, 100, line)
        equal(place.stand.since(before).get("spliced"), 1, "spliced")


for line in (None, "one"):
    for side in ("client", "CVM"):
        for option in OPTIONS:
            options_row(side, option, line)


COMBINATIONS = [set(some) for count in range(4) for some in itertools.combinations(OPTIONS, count)]


def set_options(place, lacks):
    """@lacks: what the client is without, and what the CVM."""
    for ns, lacking in zip((place.client, place.cvms[0].ns), lacks):
        for option in OPTIONS:
            ns.sysctl(f"net.ipv4.{option}", int(option not in lacking))


def matrix_row(line, size, seconds):
    """
    Each of the 64 ways in which client and CVM lack options. Without the CVM's timestamps the client's must not go there.
    One after the other they agree on theirs, over a good line, and then all carry their bytes at once: one without SACK
    waits most of the time.
    """
    @row(rows, f"every combination of options that either end lacks, {line or 'good'} line", seconds)
    def every(place):
        place.client.sysctl("net.ipv4.tcp_rmem", "4096 131072 1500000")         # scales that are not the same
        place.cvms[0].ns.sysctl("net.ipv4.tcp_rmem", "4096 131072 33554432")
        begun, wrong = [], []
        for lacks in itertools.product(COMBINATIONS, COMBINATIONS):
            set_options(place, lacks)
            before = place.stand.reasons()
            if "tcp_timestamps" in lacks[1] - lacks[0]:
                with place.connect() as sock:
                    sock.sendall(HELLO)
                    equal(receive(sock, 5), b"RELAY", f"{lacks}: who answered")
                continue
            begun.append((lacks, begin(place, seconds)))
            equal(place.stand.since(before).get("spliced"), 1, f"{lacks}: spliced")
        if line:
            make_bad(place, line)

        def carry(lacks, sock):
            with sock:
                try:
                    through(sock, size)
                except (OSError, Failed) as error:
                    wrong.append(f"{lacks}: {error}")
        threads = [threading.Thread(target=carry, args=pair) for pair in begun]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        equal(wrong, [], "what went wrong")
        equal(len(begun), 48, "transfers")


matrix_row(None, MIB, 120)
matrix_row("one", MIB // 16 if GUEST else MIB, 240)


@row(rows, "MSS from 536 up, of the client and of the CVM's tunnel", 60)
def segments(place):
    for mss in (536, 537, 700, 1000, 1219, 1220, 1379, 1380, 1460):
        transfer(place, MIB, options=((socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss),))
    for mtu in (576, 900, 1280, place.mtu):
        place.cvms[0].ns.ip(f"link set t0 mtu {mtu}\n")
        transfer(place, MIB)


def ecn_row(line):
    @row(rows, f"ECN asked for and taken, or not, by either end, {line or 'good'} line", 60)
    def ecn(place):
        for client, gateway, cvm in itertools.product((0, 1), (0, 2), (0, 1, 2)):
            for ns, value in zip((place.client, place.gateway, place.cvms[0].ns), (client, gateway, cvm)):
                ns.sysctl("net.ipv4.tcp_ecn", value)
            before = place.stand.reasons()
            try:
                transfer(place, MIB if not line else MIB // 4, line=line)
            finally:
                place.mend()
            equal(place.stand.since(before).get("spliced"), 1, f"client {client}, gateway {gateway}, CVM {cvm}: spliced")


ecn_row(None)
ecn_row("one")


@row(rows, "many at once over a line that loses and doubles", 120)
def bad_line(place):
    errors, before = [], place.stand.reasons()
    place.relay = echo
    place.lose("bad", (place.client, "c0"), (place.cvms[0].ns, "t0"))

    def one(size):
        try:
            transfer(place, size, 100)
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=one, args=(size,)) for size in [1, 100, 5000, 20000, 200000] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    expect(place.stand.since(before).get("spliced", 0) >= 20, f"counted {place.stand.since(before)}")


@row(rows, "MSS 536, ECN")
def mss_and_ecn(place):
    transfer(place, MIB, options=((socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536),))
    for ns in (place.client, place.cvms[0].ns):
        ns.sysctl("net.ipv4.tcp_ecn", 1)
    transfer(place, MIB)
    place.cvms[0].ns.sysctl("net.ipv4.tcp_ecn", 0)
    transfer(place, MIB)


@row(rows, "a reader that stops, then goes on", 60)
def stopped(place):
    place.client.sysctl("net.ipv4.tcp_rmem", "4096 65536 262144")
    with place.connect(timeout=30) as sock:
        sock.sendall(HELLO)
        receive(sock, len(HELLO))
        total = 4 * MIB
        sender = threading.Thread(target=lambda: sock.sendall(bytes(total)))
        sender.start()
        time.sleep(3)
        start = time.monotonic()
        equal(len(receive(sock, total)), total, "bytes")
        took = time.monotonic() - start
        sender.join()
        # As fast as without a gateway: a window that was wrong by its scale took seconds
        expect(took < 1.0 * SLOW, f"recovered in {took:.2f} s")


@row(rows, "a thousand short connections, and nothing is left", 90)
def thousand(place):
    before, each, errors = place.stand.reasons(), many(125), []
    place.relay = echo                          # for those that a worker has, as it may in a guest

    def some():
        try:
            for _ in range(each):
                transfer(place, 300, 20)
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    # In a guest some may be late, or wait for a CVM for too long, or lose an end and close by silence.
    least, silence = (8 * each * 9 / 10, 170 / SLOW) if GUEST else (8 * each, 0)
    counted = lambda: [place.stand.since(before).get(reason, 0) for reason in ("spliced", "closed")]
    wait_until(lambda: counted()[0] == counted()[1], max(2, silence), "all that were spliced are closed")
    expect(least <= counted()[0] <= 8 * each, f"{counted()[0]} of {8 * each} were spliced")
    wait_until(lambda: not place.stand.flows(), max(12, silence), "the table empty")
    equal([one for one in place.requests() if f" {CLIENT}:" in one], [], "request socks")
