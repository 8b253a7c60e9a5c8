# SPDX-License-Identifier: Apache-2.0
"""How flows end, and what does not end them."""
import random, socket, struct, time

from binding import HELLO, bound, fake
from field import RAW, SLOW, equal, expect, hello, receive, row, wait_until
from rawtcp import ACK, FIN, MASK, PSH, RST, SYN, build

rows = []
TIMES = b"\1\1\x08\x0a"


def spliced(place, **options):
    """A raw client whose flow is spliced to cvm1's echo."""
    client = place.raw(**options)
    client.send_at(0, HELLO)
    client.sent(len(HELLO))
    equal(client.read(len(HELLO)), HELLO, "what came back")
    return client


def state_of(place, client):
    flow = place.flow_of(client.sport, RAW)
    return (flow["state"], flow["reason"]) if flow else None


def is_alive(place, client, what):
    """Does the connection still carry bytes both ways?"""
    before = len(client.stream)
    client.send(b"alive?", flags=ACK | PSH)
    client.sent(6)
    equal(client.read(before + 6)[before:], b"alive?", what)
    equal(state_of(place, client), ("spliced", "-"), what)


@row(rows, "FIN by the client, then by the CVM")
def client_first(place):
    client = spliced(place)
    client.send(flags=FIN | ACK)
    client.sent(1)
    client.read(1 << 20, 2)
    expect(client.finished, "no FIN from the CVM")
    wait_until(lambda: state_of(place, client) == ("ended", "closed"), 2, "the flow's end")


@row(rows, "half-close: the other direction goes on")
def half_close(place):
    with place.connect() as sock:
        sock.sendall(HELLO)
        receive(sock, len(HELLO))
        sock.sendall(b"x" * 50000)
        sock.shutdown(socket.SHUT_WR)
        equal(len(receive(sock, 50000)), 50000, "bytes after the FIN")
        equal(sock.recv(1), b"", "end")


@row(rows, "FIN by the CVM first; the last acknowledgement lost and sent again")
def cvm_first(place):
    cvm = fake(place)
    client = place.raw()
    client.send_at(0, HELLO)
    client.sent(len(HELLO))
    syn = cvm.syn()
    times = TIMES + struct.pack("!II", 5, 0)
    cvm.answer(syn, SYN | ACK, 1000, options=b"\2\4\x05\x64\4\2" + times[2:])
    cvm.next()
    ack = (syn.seq + 1 + len(HELLO)) & MASK
    cvm.answer(syn, FIN | ACK, 1001, ack, options=times)
    fin = client.next(want=lambda segment: segment.flags & FIN)
    expect(fin, "no FIN at the client")
    client.ack = (fin.seq + 1) & MASK
    client.send(flags=FIN | ACK)
    client.sent(1)
    cvm.next(want=lambda segment: segment.flags & FIN)
    cvm.answer(syn, ACK, 1002, (ack + 1) & MASK, options=times)
    wait_until(lambda: state_of(place, client) == ("ended", "closed"), 2, "end")
    # A straggler is still translated
    cvm.answer(syn, FIN | ACK, 1001, (ack + 1) & MASK, options=times)
    expect(client.next(want=lambda segment: segment.flags & FIN), "the repeated FIN")


@row(rows, "RST by the client; the slot is free after its rest", 30)
def client_reset(place):
    client = spliced(place)
    client.reset()
    wait_until(lambda: state_of(place, client) == ("ended", "client-reset"), 2, "end")
    wait_until(lambda: state_of(place, client) is None, 10, "the slot free")


@row(rows, "RST by the CVM")
def cvm_reset(place):
    client, cvm, syn = bound(place)
    cvm.answer(syn, RST | ACK, 1001, (syn.seq + 1 + len(HELLO)) & MASK)
    reset = client.next(want=lambda segment: segment.flags & RST)
    equal((reset.seq, reset.ack), ((client.gateway_isn + 1) & MASK, (client.isn + 1 + len(HELLO)) & MASK), "the reset's numbers")
    equal(state_of(place, client), ("ended", "cvm-reset"), "flow")


@row(rows, "blind packets into a live flow: no effect", 60)
def blind(place):
    client = spliced(place)
    is_alive(place, client, "before")
    for flags in (RST, RST | ACK, FIN | ACK, SYN, SYN | ACK):
        for _ in range(40):
            delta = random.randrange(1 << 17, 1 << 32)
            client.send(flags=flags, seq=(client.seq + delta) & MASK, ack=random.getrandbits(32), options=b"")
        is_alive(place, client, f"after {flags}")
    # In the window, but not where the CVM expects it: challenged, and alive
    for delta in (1, 100, 20000):
        client.send(flags=RST, seq=(client.seq + delta) & MASK, options=b"")
        is_alive(place, client, f"after a reset {delta} too far")
    # The very SYN that began it, late
    client.send(flags=SYN, seq=client.isn, options=b"\2\4\x05\xb4")
    is_alive(place, client, "after its own SYN")
    client.reset()


@row(rows, "blind packets from the CVM's end into a live flow: no effect", 60)
def blind_cvm(place):
    """Who knows addresses and ports, but no numbers."""
    client, cvm, syn = bound(place)
    seq, ack = 1001, (syn.seq + 1 + len(HELLO)) & MASK

    def goes_on(what):
        nonlocal seq, ack
        cvm.answer(syn, ACK | PSH, seq, ack, data=b"down")
        seq += 4
        got = client.next(want=lambda segment: segment.data == b"down")
        equal(got and got.seq, client.ack, f"towards the client {what}")
        client.ack = (client.ack + 4) & MASK
        client.send(b"up", flags=ACK | PSH)
        client.sent(2)
        got = cvm.next(want=lambda segment: segment.data == b"up")
        equal(got and got.seq, ack, f"towards the CVM {what}")
        ack = (ack + 2) & MASK
        equal(state_of(place, client), ("spliced", "-"), what)
    goes_on("before")
    client.inbox.clear()
    for flags in (RST, RST | ACK, FIN | ACK, SYN, SYN | ACK):
        for _ in range(40):
            cvm.answer(syn, flags, (seq + random.randrange(1 << 17, (1 << 32) - (1 << 17))) & MASK, random.getrandbits(32))
        goes_on(f"after {flags}")
    # What is passed on is as far from what the client expects as it was, which its own stack sees. The kernel's SYN-ACK may
    # come again.
    near = [segment for segment in client.inbox if segment.flags & (RST | FIN | SYN) and segment.seq != client.gateway_isn and
            (segment.seq - client.ack + (1 << 16)) & MASK < 1 << 17]
    equal(near, [], "what the client could take for the CVM's")
    # In the client's window, but not the next number: challenged there (RFC 5961, section 3.2), and alive here
    for delta in (1, 100, 20000):
        cvm.answer(syn, RST, seq + delta, 0)
        goes_on(f"after a reset {delta} too far")
    client.reset()


@row(rows, "a forged reset that hits: alive again when its sender goes on", 30)
def forged(place):
    client, cvm, syn = bound(place)
    client.send(flags=RST, seq=(client.isn + 1 + len(HELLO)) & MASK)
    wait_until(lambda: state_of(place, client) == ("ended", "client-reset"), 2, "the end by the reset")
    until = time.monotonic() + 7 * SLOW
    while time.monotonic() < until and state_of(place, client) != ("spliced", "client-reset"):
        client.send(b"on", flags=ACK | PSH, ack=(client.gateway_isn + 1) & MASK)
        expect(cvm.next(want=lambda segment: segment.data == b"on"), "not passed on")
        time.sleep(0.1)
    equal(state_of(place, client)[0], "spliced", "while its sender went on")


@row(rows, "a reset that its sender's older packets come behind, much later: over all the same", 60)
def overtaken(place):
    for by_cvm in (False, True):
        client, cvm, syn = bound(place)
        up, down = (syn.seq + 1 + len(HELLO)) & MASK, 1001
        cvm.answer(syn, ACK | PSH, down, up, data=b"down")
        expect(client.next(want=lambda segment: segment.data), "nothing came down")
        client.send(b"up", flags=ACK | PSH)
        expect(cvm.next(want=lambda segment: segment.data), "nothing went up")
        if by_cvm:
            cvm.answer(syn, RST, down + 4)
        else:
            client.send(flags=RST, seq=(client.seq + 2) & MASK)
        wait_until(lambda: state_of(place, client) == ("ended", "cvm-reset" if by_cvm else "client-reset"), 2, "the end")
        # The data doubled on the way, and the acknowledgement of all that had come before
        until = time.monotonic() + 2 * SLOW
        while time.monotonic() < until:
            if by_cvm:
                cvm.answer(syn, ACK | PSH, down, up, data=b"down")
                cvm.answer(syn, ACK, down + 4, (up + 2) & MASK)
            else:
                client.send(b"up", flags=ACK | PSH)
                client.send(seq=(client.seq + 2) & MASK, ack=(client.ack + 4) & MASK)
            time.sleep(0.1)
        wait_until(lambda: state_of(place, client) is None, 10, "the slot free")


@row(rows, "a reset that overtakes the data before it: both are passed on")
def overtakes(place):
    client, cvm, syn = bound(place)
    client.send(flags=RST, seq=(client.seq + 100) & MASK)
    expect(cvm.next(want=lambda segment: segment.flags & RST), "the reset is not passed on")
    equal(state_of(place, client), ("spliced", "-"), "before its place")
    client.send(b"x" * 100, flags=ACK | PSH)
    expect(cvm.next(want=lambda segment: segment.data), "the data is not passed on")
    equal(state_of(place, client), ("spliced", "-"), "until there is silence")
    client, cvm, syn = bound(place)
    ack = (syn.seq + 1 + len(HELLO)) & MASK
    cvm.answer(syn, RST, 1101)
    expect(client.next(want=lambda segment: segment.flags & RST), "the CVM's reset is not passed on")
    equal(state_of(place, client), ("spliced", "-"), "before its place")
    cvm.answer(syn, ACK | PSH, 1001, ack, data=b"x" * 100)
    expect(client.next(want=lambda segment: segment.data), "the CVM's data is not passed on")
    equal(state_of(place, client), ("spliced", "-"), "until there is silence")


@row(rows, "a client that uses its port again at once", 30)
def port_again(place):
    for _ in range(20):
        with place.connect(source=20000) as sock:
            stream = hello("app1-s.phala.test") + b"x" * 1000
            sock.sendall(stream)
            equal(receive(sock, len(stream)), stream, "what came back")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client = spliced(place)
    client.send(flags=FIN | ACK)
    client.sent(1)
    client.read(1 << 20, 1)
    again = spliced(place, sport=client.sport)
    is_alive(place, again, "the second")
    again.reset()


@row(rows, "idle: both ends are told")
def idle(place):
    place.stand("limit", 0, int(1000 * SLOW), 3)
    before = place.stand.reasons()
    client = spliced(place)
    equal(place.stand("idle"), ["0"], "ended too early")
    wait_until(lambda: place.stand("idle") == ["1"], 4, "end")
    expect(client.next(want=lambda segment: segment.flags & RST), "the client was not told")
    wait_until(lambda: not place.cvms[0].ns.run(["ss", "-Htn", "state", "established"]).stdout, 2, "no connection at the CVM")
    equal(place.stand.since(before).get("idle"), 1, "counted")


@row(rows, "a time-out longer than the machine is up: nothing is idle")
def idle_never(place):
    place.stand("limit", 0, 2**31 - 1, 3)       # 24 days
    client = spliced(place)
    equal(place.stand("idle"), ["0"], "ended")
    is_alive(place, client, "afterwards")
    client.reset()


@row(rows, "idle, and nobody to tell: told when they speak", 60)
def idle_alone(place):
    place.stand("limit", 0, 1, 3)
    client = spliced(place)
    wait_until(lambda: state_of(place, client) == ("killed", "idle"), 30, "end")
    client.send(b"late", flags=ACK | PSH)
    reset = client.next(want=lambda segment: segment.flags & RST)
    equal(reset.seq, client.ack, "the reset's number")


@row(rows, "keepalive packets keep a flow", 40)
def keepalive(place):
    idle = 2 * SLOW
    place.stand("limit", 0, int(1000 * idle), 3)
    client = spliced(place)
    until = time.monotonic() + 2 * idle
    while time.monotonic() < until:
        client.send(seq=(client.seq - 1) & MASK)
        expect(client.next(1, lambda segment: not segment.data), "no answer to a keepalive")
        equal(place.stand("idle"), ["0"], "ended as idle")
        time.sleep(0.3 * idle)                  # a kernel answers two a second (tcp_invalid_ratelimit)
    is_alive(place, client, "after keepalives alone")
    client.reset()


@row(rows, "an instance removed: RST at both ends at once", 30)
def removed(place):
    socks = []
    for _ in range(10):
        socks.append(place.connect())
        socks[-1].sendall(HELLO)
        receive(socks[-1], len(HELLO))
    established = lambda: place.cvms[0].ns.run(["ss", "-Htn", "state", "established"]).stdout.splitlines()
    before = len(established())
    equal(place.stand("remove", "cvm1"), ["10"], "flows that ended")
    place.registered = []
    for sock in socks:
        try:
            equal(sock.recv(1), None, "end of the client's connection")
        except ConnectionResetError:
            pass
        sock.close()
    wait_until(lambda: len(established()) <= before - 10, 2, "the CVM's connections gone")


def reset_at_once(place):
    """A raw client whose CVM resets the connection right after the hello. Returns (client, cvm)."""
    client, cvm, syn = bound(place)
    cvm.answer(syn, RST | ACK, 1001, (syn.seq + 1 + len(HELLO)) & MASK)
    expect(client.next(want=lambda segment: segment.flags & RST), "no reset")
    return client, cvm


@row(rows, "ended, its instance removed and the address another's: stragglers reach nobody")
def ended_and_removed(place):
    client, cvm = reset_at_once(place)
    equal(state_of(place, client), ("ended", "cvm-reset"), "flow")
    place.register([("app2", "other", cvm.address)])
    while cvm.next(0.1):
        pass
    client.send(b"for app1", flags=ACK | PSH, ack=(client.gateway_isn + 1) & MASK)
    equal(cvm.next(0.5), None, "what the other instance got")
    expect(client.next(want=lambda segment: segment.flags & RST), "the client was not told")


@row(rows, "reset by the CVM at once, and the client uses its port again at once")
def port_again_at_once(place):
    client, cvm = reset_at_once(place)
    # In the window that the request sock of the first one has
    again = place.raw(times=False, sport=client.sport, isn=(client.isn + 1000) & MASK)
    again.send_at(0, HELLO)
    expect(cvm.syn(), "the second connection is not steered")
    again.reset()


@row(rows, "killed by the operator")
def killed(place):
    with place.connect() as sock:
        sock.sendall(HELLO)
        receive(sock, len(HELLO))
        expect(int(place.stand("kill")[0]) >= 1, "none was there")
        try:
            equal(sock.recv(1), None, "end of the client's connection")
        except ConnectionResetError:
            pass


@row(rows, "a packet from a CVM to a flow of its own that is over: RST")
def stray(place):
    client, cvm, syn = bound(place)
    place.stand("kill")
    expect(cvm.next(2, lambda segment: segment.flags & RST), "told when it ends")
    before = place.stand.reasons()
    cvm.wire.send(build(cvm.address, syn.source, 443, syn.sport, 111, 222, ACK, b"x"))
    reset = cvm.next()
    equal((reset.flags, reset.seq), (RST, 222), "the answer")
    cvm.wire.send(build(cvm.address, syn.source, 443, syn.sport, 111, 222, RST, b""))
    equal(cvm.next(0.3), None, "the answer to a reset")
    equal(place.stand.since(before).get("stray"), 2, "counted")
    cvm.wire.send(build(cvm.address, syn.source, 444, syn.sport, 111, 222, ACK, b"x"))
    equal(cvm.next(0.3), None, "the answer to another port of its")
    equal(place.stand.since(before).get("stray"), 2, "counted")


@row(rows, "a CVM that has not heard of the end, and speaks long after: RST", 30)
def never_heard(place):
    client, cvm, syn = bound(place)
    client.reset()
    wait_until(lambda: state_of(place, client) is None, 15, "the slot free")
    while cvm.next(0.1):
        pass
    cvm.answer(syn, ACK | PSH, 1001, 222, data=b"x")
    reset = cvm.next()
    expect(reset, "no answer")
    equal((reset.flags, reset.seq), (RST, 222), "the answer")
    place.register([("app2", "other", cvm.address)])
    while cvm.next(0.1):
        pass
    cvm.answer(syn, ACK | PSH, 1001, 222, data=b"x")
    equal(cvm.next(0.5), None, "the answer to another instance")


@row(rows, "a packet from a CVM to where it has nothing: silence, whether another CVM's flow is there or not")
def silence(place):
    cvm, before = fake(place), place.stand.reasons()
    place.register([("app1", "cvm1", 0)])
    client = spliced(place)
    slot = int(place.flow_of(client.sport, RAW)["slot"])
    source, port = socket.inet_ntoa(struct.pack("!I", 0x0a000002 + slot // 32768)), 32768 + slot % 32768
    for to, sport, dport in (("10.0.0.3", 443, 40000), (source, 443, port), (source, 8443, port), (source, 443, port ^ 1)):
        for flags in (SYN, ACK, SYN | ACK, FIN | ACK, 0):
            cvm.wire.send(build(cvm.address, to, sport, dport, 111, 222, flags, b"x"))
    equal(cvm.next(0.5), None, "an answer")
    is_alive(place, client, "the other CVM's flow")
    equal(place.stand.since(before).get("stray"), None, "counted as strays")


@row(rows, "programs replaced 100 times under a transfer", 60)
def replaced(place):
    import threading
    with place.connect(timeout=30) as sock:
        sock.sendall(HELLO)
        receive(sock, len(HELLO))
        total, got = 64 << 20, []
        sender = threading.Thread(target=lambda: sock.sendall(bytes(total)))
        reader = threading.Thread(target=lambda: got.append(len(receive(sock, total))))
        sender.start()
        reader.start()
        count = 0
        while reader.is_alive() and count < 100:
            place.stand("reload")
            count += 1
        sender.join()
        reader.join()
        equal(got, [total], f"bytes back, programs replaced {count} times")
    connect = place.connect()
    connect.sendall(HELLO)
    equal(receive(connect, len(HELLO)), HELLO, "a new connection")
    connect.close()
