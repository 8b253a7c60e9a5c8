# SPDX-License-Identifier: Apache-2.0
"""From a whole hello to a CVM's answer, and the ways on when there is none."""
import socket, time

from field import CHROMIUM, GUEST, PORT, RAW, GATEWAY, SLOW, echo, equal, expect, hello, mac_of, receive, row, wait_until
from rawtcp import ACK, CWR, ECE, MASK, PSH, RST, SYN, Client, Segment, Wire, build

rows = []
FAKE = "10.64.0.66"             # a CVM whose packets a test makes
HELLO = hello("app1-s.phala.test")


class FakeCvm:
    """Packets from and to an address that no kernel has, behind cvm2's device."""
    def __init__(self, place, address=FAKE):
        self.place, self.address, ns = place, address, place.cvms[1].ns
        place.lead(address, place.cvms[1])
        self.wire = Wire(ns, "t0", None if place.wireguard else mac_of(place.gateway, place.tunnel))

    def next(self, timeout=1.5, want=lambda segment: True):
        deadline = time.monotonic() + timeout * SLOW
        while (left := deadline - time.monotonic()) > 0:
            got = self.wire.receive(left)
            if got and got[0][9] == 6:
                segment = Segment(*got)
                if segment.to == self.address and want(segment):
                    return segment
        return None

    def syn(self, timeout=1.5):
        return self.next(timeout, lambda segment: segment.flags & SYN)

    def answer(self, segment, flags, seq=0, ack=None, options=b"", data=b"", **more):
        ack = (segment.seq + 1) & MASK if ack is None else ack
        self.wire.send(build(self.address, segment.source, segment.dport, segment.sport, seq, ack, flags, data, options, **more))


def fake(place):
    place.register([("app1", "fake", FAKE)])
    return FakeCvm(place)


def bound(place):
    """A raw client, without timestamps, spliced to a fake CVM. Returns (client, cvm, the SYN it saw)."""
    cvm = fake(place)
    client = place.raw(times=False)
    client.send_at(0, HELLO)
    client.sent(len(HELLO))
    syn = cvm.syn()
    expect(syn, "no SYN")
    cvm.answer(syn, SYN | ACK, 1000, options=b"\2\4\x05\x64")
    expect(cvm.next(), "no hello")
    return client, cvm, syn


@row(rows, "the SYN has the client's own options, and numbers of the gateway's")
def mirrored(place):
    cvm = fake(place)
    for options in (dict(), dict(times=False), dict(sack=False), dict(scale=None), dict(scale=0), dict(scale=14), dict(mss=536),
                    dict(mss=1000), dict(ecn=True), dict(times=False, sack=False, scale=None)):
        place.gateway.sysctl("net.ipv4.tcp_ecn", 2)
        client = place.raw(**options)
        client.window = 1000
        client.send_at(0, HELLO)
        syn = cvm.syn()
        expect(syn, f"{options}: no SYN")
        equal(syn.flags, SYN | (ECE | CWR if options.get("ecn") else 0), f"{options}: flags")
        equal(syn.mss, min(options.get("mss", 1460), place.mtu - 40), f"{options}: MSS")
        equal(bool(syn.times), options.get("times", True), f"{options}: timestamps")
        equal(syn.sack_ok, options.get("sack", True), f"{options}: SACK")
        equal(syn.scale, options.get("scale", 7), f"{options}: scale")
        equal(syn.window, min(65535, 1000 << (syn.scale or 0)), f"{options}: window")
        equal(syn.data, b"", f"{options}: payload")
        equal(syn.tos & 3, 0, f"{options}: ECN bits of the SYN")
        expect(syn.seq != client.isn and syn.sport != client.sport, "the client's own numbers")
        if syn.times:
            equal(syn.times[1], 0, "TSecr of the SYN")
        client.reset()


@row(rows, "one SYN for each of 500 connections")
def one_each(place):
    cvm, before = fake(place), place.stand.reasons()
    for _ in range(500):
        client = place.raw()
        client.send_at(0, HELLO)
        client.send_at(0, HELLO[:50])           # a part of it again, at once
        client.reset()
    syns = []
    while segment := cvm.syn(0.3):
        syns.append((segment.source, segment.sport))
    # Each client's second packet repeats the start of its hello, which asks for the SYN again; much later, for a worker.
    late = place.stand.since(before).get("declined-unanswered", 0) if GUEST else 0
    expect(len(set(syns)) == 500 and 1000 - late <= len(syns) <= 1000, f"{len(syns)} SYNs from {len(set(syns))} ports, {late} late")


@row(rows, "a hello without a handshake, or with wrong numbers, calls nobody")
def blind(place):
    cvm, before = fake(place), place.stand.reasons()
    client = Client(place.wire, RAW, GATEWAY, PORT, sport=61000)
    client.send(HELLO, flags=ACK | PSH)
    client = place.raw()
    for delta in (1, -1, 1000, 1 << 31):
        client.send(HELLO, flags=ACK | PSH, ack=(client.ack + delta) & MASK)
    for delta in (-1000, 1 << 20, 1 << 31):
        client.send(HELLO, flags=ACK | PSH, seq=(client.isn + 1 + delta) & MASK)
    equal(cvm.next(0.5), None, "what a CVM got")
    equal([flow for flow in place.stand.flows() if flow["client"] == f"{RAW}:{client.sport}"], [], "flows")
    expect(not place.stand.since(before).get("spliced"), "spliced")
    client.send_at(0, HELLO)
    expect(cvm.next(), "the right one does")
    client.reset()


@row(rows, "a hello that is lost on its way to the CVM: the client's own echoes nothing but what the CVM has sent")
def lost_hello(place):
    cvm, client = fake(place), place.raw()
    until = time.monotonic() + 0.05             # so that the gateway's clock is not where it was at its SYN-ACK
    wait_until(lambda: time.monotonic() > until, 1, "time")
    client.send_at(0, HELLO)
    syn = cvm.syn()
    cvm.answer(syn, SYN | ACK, 5000, options=b"\2\4\x05\x64\4\2\x08\x0a\0\0\x30\x39" + bytes(4))
    equal(cvm.next().times[1], 12345, "echo of the hello")
    client.send_at(0, HELLO)
    again = cvm.next()
    equal((again.data, again.times[1]), (HELLO, 12345), "hello and echo, sent again")
    client.reset()


def answer_and_check(place, cvm, client, stream, options, synack_options, times):
    """A fake CVM's handshake; every number of every packet is checked."""
    syn = cvm.syn()
    expect(syn, "no SYN")
    cvm.answer(syn, SYN | ACK, seq=5000, options=synack_options, window=30000)
    data = b""
    while len(data) < len(stream):
        segment = cvm.next()
        expect(segment, f"no hello: {len(data)} bytes of it")
        equal(segment.seq, (syn.seq + 1 + len(data)) & MASK, "sequence number of the hello")
        equal(segment.ack, 5001, "acknowledgement of the SYN-ACK")
        equal(bool(segment.times), times, "timestamps")
        if times:
            equal(segment.times[1], 777, "TSecr")
        data += segment.data
    equal(data, stream, "the hello")
    return syn


@row(rows, "numbers, windows and SACK edges, each way, unequal scales")
def numbers(place):
    cvm = fake(place)
    for scale, cvm_scale in ((7, 2), (2, 9), (0, 14), (14, 0), (7, None), (None, None)):
        client = place.raw(scale=scale)
        client.window = 2000
        client.send_at(0, HELLO)
        client.sent(len(HELLO))
        times = b"\1\1\x08\x0a" + (777).to_bytes(4, "big") + (0).to_bytes(4, "big")
        scaling = b"" if cvm_scale is None or scale is None else b"\1\3\3" + bytes([cvm_scale])
        syn = answer_and_check(place, cvm, client, HELLO, {}, b"\2\4\x05\x64\4\2" + times[2:] + scaling, True)
        seq, ack = 5001, (syn.seq + 1 + len(HELLO)) & MASK
        gateway_scale = client.synack.scale or 0
        # From the CVM: data, a window, and a SACK of what the client sent
        edges = b"".join(((ack + n) & MASK).to_bytes(4, "big") for n in (100, 200))
        cvm.answer(syn, ACK | PSH, seq, ack, times[:4] + (800).to_bytes(4, "big") + (syn.times[0]).to_bytes(4, "big") +
                   b"\1\1\5\x0a" + edges, b"from the CVM", window=500)
        got = client.next(want=lambda segment: segment.data)
        expect(got, "nothing came")
        equal((got.data, got.seq, got.ack), (b"from the CVM", (client.gateway_isn + 1) & MASK, client.seq), "data, seq, ack")
        equal(got.edges, tuple((client.seq + n) & MASK for n in (100, 200)), "SACK edges")
        equal(got.times[1], client.inbox[0].times[1] if False else got.times[1], "TSecr")
        effective = 0 if scaling == b"" else cvm_scale
        equal(got.window, min(65535, (500 << effective) >> gateway_scale) if scale is not None else 500, f"window {scale} {cvm_scale}")
        equal(got.ttl, 63, "TTL")
        # From the client: a window, and a SACK of what the CVM sent; D-SACK and an odd place for the options
        edges = b"".join(((client.gateway_isn + 1 + n) & MASK).to_bytes(4, "big") for n in (1000, 1100, 2000, 2100))
        own = (client.clock + 50000).to_bytes(4, "big") if client.clock < MASK - 50000 else b"\0\0\0\1"
        options = b"\1\5\x12" + edges + b"\x08\x0a" + own + (got.times[0]).to_bytes(4, "big")
        client.send(b"from the client", flags=ACK | PSH, ack=(client.gateway_isn + 1 + 12) & MASK, options=options, window=300)
        while (sent := cvm.next()) and not sent.data:
            pass
        expect(sent, "nothing came through")
        equal((sent.data, sent.seq, sent.ack), (b"from the client", ack, 5001 + 12), "data, seq, ack")
        equal(sent.edges, tuple(5001 + n for n in (1000, 1100, 2000, 2100)), "SACK edges")
        equal(sent.times[1], 800, "TSecr")
        wanted = 300 if scaling or scale is None else min(65535, 300 << scale)
        equal(sent.window, wanted, f"window towards the CVM {scale} {cvm_scale}")
        client.reset()


@row(rows, "a CVM that remembers an older connection: reset, and the SYN again")
def time_wait(place):
    cvm = fake(place)
    client = place.raw()
    client.send_at(0, HELLO)
    syn = cvm.syn()
    cvm.answer(syn, ACK, seq=123456, ack=(syn.seq - 5000) & MASK)
    reset, again = cvm.next(), cvm.next()
    equal((reset.flags & RST, reset.seq), (RST, (syn.seq - 5000) & MASK), "the reset")
    equal((again.flags, again.seq, again.sport), (SYN, syn.seq, syn.sport), "the SYN")
    client.reset()


@row(rows, "an instance without timestamps: reset, and the next one; at last a worker", 30)
def no_timestamps(place):
    cvm, before = fake(place), place.stand.reasons()
    client = place.raw()
    client.send_at(0, HELLO)
    syn = cvm.syn()
    cvm.answer(syn, SYN | ACK, seq=99, options=b"\2\4\x05\x64")
    reset = cvm.next()
    equal((reset.flags & RST, reset.seq), (RST, (syn.seq + 1) & MASK), "the reset")
    client.send_at(0, HELLO)                    # as it would after its time-out
    client.sent(len(HELLO))
    equal(client.read(5), b"RELAY" + HELLO, "what a worker got")
    counted = place.stand.since(before)
    equal((counted.get("cvm-no-timestamps"), counted.get("declined-unanswered")), (1, 1), f"counted {counted}")
    client.reset()


def connected(place, name, seconds=1.0, count=20):
    """All are connected within twice the time, and all but one of ten within it: a busy machine's clients ask late."""
    late = 0
    for _ in range(count):
        start = time.monotonic()
        with place.connect() as sock:
            stream = hello(name)
            sock.sendall(stream)
            equal(receive(sock, len(stream)), stream, "what came back")
            took = time.monotonic() - start
            expect(took < 2 * seconds * SLOW, f"connected after {took:.2f} s")
            late += took > seconds * SLOW
    expect(late <= count // 10, f"{late} of {count} connected after {seconds * SLOW:.0f} s")


def connected_to_pair(place, name, failure):
    """
    All by the kernel path, though one of the two is no good, for which @failure is counted. In a guest the healthy one may
    have the first turn, and answer when it is over: then the other one is the last, and a worker has the connection.
    """
    place.relay, before, count = echo, place.stand.reasons(), 20
    connected(place, name, count=count)
    counted = place.stand.since(before)
    unanswered = counted.get("declined-unanswered", 0)
    equal(counted.get("spliced", 0) + unanswered, count, f"spliced, or left to a worker: {counted}")
    expect(unanswered <= (count // 10 if GUEST else 0), f"left to a worker: {counted}")
    expect(counted.get(failure), f"none had the other one first: {counted}")


@row(rows, "an instance that refuses, beside a healthy one", 60)
def refusing(place):
    place.register([("pair", "cvm1", 0), ("pair", "cvm2", 1)])
    listener = place.cvms[0].serve(9443, lambda c: place.cvms[0].echo(c))
    try:
        connected_to_pair(place, "pair-9443s.phala.test", "cvm-refused")
    finally:
        listener.close()


@row(rows, "an instance that is silent, beside a healthy one", 60)
def silent(place):
    place.register([("pair", "cvm1", 0), ("pair", "silent", FAKE)])
    FakeCvm(place)
    connected_to_pair(place, "pair-s.phala.test", "cvm-timeout")


@row(rows, "an instance that is unreachable, beside a healthy one", 60)
def unreachable(place):
    cvm = place.cvms[1]
    cvm.ns.ip("route replace unreachable 10.64.0.67\n")
    cvm.ns.sysctl("net.ipv4.ip_forward", 1)
    cvm.ns.sysctl("net.ipv4.icmp_ratelimit", 0)
    place.lead("10.64.0.67", cvm)
    place.register([("pair", "cvm1", 0), ("pair", "unreachable", "10.64.0.67")])
    try:
        connected_to_pair(place, "pair-s.phala.test", "cvm-unreachable")
    finally:
        cvm.ns.sysctl("net.ipv4.ip_forward", 0)


@row(rows, "nobody answers: a worker has it, all of it", 30)
def nobody(place):
    place.register([("app1", "a", FAKE), ("app1", "b", "10.64.0.68")])
    FakeCvm(place)
    FakeCvm(place, "10.64.0.68")
    before, start = place.stand.reasons(), time.monotonic()
    with place.connect(timeout=20) as sock:
        sock.sendall(CHROMIUM)
        equal(receive(sock, 5 + len(CHROMIUM)), b"RELAY" + CHROMIUM, "what came back")
    counted = place.stand.since(before)
    expect(counted.get("cvm-timeout", 0) >= 2, f"counted {counted}")
    equal(counted.get("declined-unanswered"), 1, f"counted {counted}")
    expect(time.monotonic() - start < 8 * SLOW, f"after {time.monotonic() - start:.1f} s")


@row(rows, "evenly over two instances, and by instance-id")
def even(place):
    place.register([("pair", "cvm1", 0), ("pair", "cvm2", 1)])
    before = [cvm.accepted for cvm in place.cvms]
    connected(place, "pair-s.phala.test", count=200)
    counts = [cvm.accepted - was for cvm, was in zip(place.cvms, before)]
    expect(sum(counts) == 200 and min(counts) > 60, f"connections {counts}")
    connected(place, "cvm2-s.phala.test", count=5)
    equal(place.cvms[1].accepted - before[1], counts[1] + 5, "connections by instance-id")


@row(rows, "the request sock is freed, and nothing is said of it")
def freed(place):
    client = place.raw()
    client.send_at(0, HELLO)
    client.sent(len(HELLO))
    equal(client.read(len(HELLO)), HELLO, "what came back")
    wait_until(lambda: not [line for line in place.requests() if str(client.sport) in line], 2, "request sock")
    equal([segment for segment in client.inbox if segment.flags & RST], [], "resets")
    client.reset()


def accepted(place):
    return place.stand.reasons().get("declined-accepted", 0)


@row(rows, "SYN cookies: a worker has it, and the reason is counted, if it is a hello, or the first byte of one")
def cookies(place):
    place.gateway.sysctl("net.ipv4.tcp_syncookies", 2)
    try:
        for first, rest, hellos in ((HELLO, b"", 1), (HELLO[:1], HELLO[1:], 1), (HELLO[:5], HELLO[5:], 1), (b"GET / HTTP/1.1\r\n\r\n", b"", 0),
                                    (b"G", b"ET / HTTP/1.1\r\n\r\n", 0)):
            before, client = accepted(place), place.raw()
            # Else the hello may come at the same time as the handshake's end, and be lost: a raw client sends it once.
            wait_until(lambda: place.established(client.sport), 2, "its socket")
            client.send_at(0, first)
            if rest:
                client.send_at(len(first), rest)
            client.sent(len(first + rest))
            equal(client.read(5)[:5], b"RELAY", "who answered")
            equal(accepted(place) - before, hellos, f"hellos counted of {first[:10]}, {rest[:10]}")
            client.reset()
    finally:
        place.gateway.sysctl("net.ipv4.tcp_syncookies", 1)


@row(rows, "a socket whose handshake is not over, of Fast Open: a worker has it, and the reason is counted")
def half_open(place):
    place.gateway.sysctl("net.ipv4.tcp_fastopen", 0x202)        # without cookies
    place.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    try:
        before, client = accepted(place), place.raw(fast_open=True)
        client.send_at(0, HELLO)
        client.sent(len(HELLO))
        equal(client.read(5 + len(HELLO))[:5 + len(HELLO)], b"RELAY" + HELLO, "who answered, and what it got")
        equal(accepted(place) - before, 1, "hellos counted")
        client.reset()
    finally:
        place.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 0)
        place.gateway.sysctl("net.ipv4.tcp_fastopen", 1)


@row(rows, "a hello after the deferral: a worker has it, and the reason is counted")
def late(place):
    before = accepted(place)
    with place.connect() as sock:
        wait_until(lambda: place.established(sock.getsockname()[1]), 6, "its socket")
        sock.sendall(HELLO)
        equal(receive(sock, 5 + len(HELLO)), b"RELAY" + HELLO, "who answered, and what it got")
    equal(accepted(place) - before, 1, "hellos counted")


@row(rows, "the app's limit of flows")
def limit(place):
    place.stand("limit", 2, 3600000, 3)
    before, socks = place.stand.reasons(), []
    for wanted in (HELLO, HELLO, b"RELAY" + HELLO):
        socks.append(place.connect())
        socks[-1].sendall(HELLO)
        equal(receive(socks[-1], len(wanted)), wanted, "who answered")
    equal(place.stand.since(before).get("declined-limit"), 1, "declined")
    for sock in socks:
        sock.close()


@row(rows, "names that are not there, other modes, other domains: a worker has them")
def not_ours(place):
    before = place.stand.reasons()
    for name in ("nobody-s.phala.test", "app1.phala.test", "app1-g.phala.test", "app1-s.phala.example", "app1-s.x.phala.test"):
        with place.connect() as sock:
            sock.sendall(hello(name))
            equal(receive(sock, 5), b"RELAY", f"who answered {name}")
    expect(not place.stand.since(before).get("spliced"), "spliced")
