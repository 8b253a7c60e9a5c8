# SPDX-License-Identifier: Apache-2.0
"""Hellos in pieces. The client never retransmits: what arrives did so at once."""
import random, socket, struct

from field import CHROMIUM, GUEST, RAW, SLOW, STANDARD, equal, expect, hello, many, receive, row, wait_until

rows = []


def send_pieces(place, stream, cuts, order, wanted, **options):
    client = place.raw(**options)
    pieces = client.pieces(stream, *cuts)
    for i in order:
        client.send_at(*pieces[i])
    client.sent(len(stream))
    got = client.read(len(wanted), 2)
    if got != wanted:
        equal(got, wanted, f"cut at {cuts}, in the order {order}: {client.inbox}: what came back")
    client.reset()


@row(rows, "every split in two, in order, passthrough", 120, stream=CHROMIUM, order=[0, 1], wanted=CHROMIUM)
@row(rows, "every split in two, the wrong way round, passthrough", 120, stream=CHROMIUM, order=[1, 0], wanted=CHROMIUM)
@row(rows, "every split in two, in order, standard", 120, stream=STANDARD, order=[0, 1], wanted=b"RELAY" + STANDARD)
@row(rows, "every split in two, the wrong way round, standard", 120, stream=STANDARD, order=[1, 0], wanted=b"RELAY" + STANDARD)
def every_split(place, stream, order, wanted):
    for cut in range(1, len(stream), 29 if GUEST else 1):
        send_pieces(place, stream, [cut], order, wanted)


@row(rows, "three and four pieces in any order", 60)
def shuffled(place):
    for _ in range(many(300)):
        stream, wanted = random.choice(((CHROMIUM, CHROMIUM), (STANDARD, b"RELAY" + STANDARD)))
        count = random.choice((3, 4))
        order = list(range(count))
        random.shuffle(order)
        send_pieces(place, stream, sorted(random.sample(range(1, len(stream)), count - 1)), order, wanted)


@row(rows, "pieces that overlap and repeat")
def overlapping(place):
    for stream, wanted in ((CHROMIUM, CHROMIUM), (STANDARD, b"RELAY" + STANDARD)):
        for _ in range(many(100)):
            client, at = place.raw(), 0
            spans = []
            while at < len(stream):
                start, at = max(0, at - random.randrange(200)), min(len(stream), at + random.randrange(200, 900))
                spans.append((start, at))
            spans += random.sample(spans, 1)[:len(spans) > 1]
            last = spans[-1]
            body = spans[:-1]
            random.shuffle(body)
            for start, end in [*body, last]:
                client.send_at(start, stream[start:end])
            client.sent(len(stream))
            equal(client.read(len(wanted)), wanted, f"pieces {body}, {last}")
            client.reset()


@row(rows, "4 KiB in one super-packet, in three packets, and as a kernel sends them", size=4096 + 5)
@row(rows, "8 KiB likewise: the most", size=8192)
def long_ones(place, size):
    stream = hello("app1-s.phala.test", size)
    equal(len(stream), size, "bytes of the hello and its record's header")
    for cuts, order in (([], [0]), ([1368, 2736], [0, 1, 2]), ([1368, 2736], [2, 1, 0])):
        send_pieces(place, stream, cuts, order, stream)
    with place.connect() as sock:
        sock.sendall(stream)
        got = b""
        while len(got) < len(stream):
            got += sock.recv(65536)
        equal(got, stream, "what came back")


@row(rows, "longer than 8 KiB: a worker's, with its reason")
def too_long(place):
    before = place.stand.reasons()
    stream = hello("app1-s.phala.test", 8193)
    with place.connect() as sock:
        sock.sendall(stream)
        equal(sock.recv(5), b"RELAY", "who answered")
    expect(place.stand.since(before).get("declined-long"), f"counted: {place.stand.since(before)}")


LONG = hello("app1-s.phala.test", 3000) + bytes(9000)


@row(rows, "a later piece that makes it too long: a worker has all of it at once", stream=LONG, cuts=[1000], order=[0, 1],
     reason="declined-long")
@row(rows, "the same, its pieces the wrong way round", stream=LONG, cuts=[1000, 2000, 3000], order=[2, 1, 3, 0], reason="declined-long")
@row(rows, "the same, in small packets", stream=LONG, cuts=range(1000, 10000, 1400), order=[1, 6, 0, 5, 4, 3, 2, 7],
     reason="declined-long")
@row(rows, "too many packets: a worker has all of it at once", stream=CHROMIUM, cuts=range(50, 1500, 50), order=range(30),
     reason="declined-pieces")
@row(rows, "too many gaps: a worker has all of it at once", stream=CHROMIUM, cuts=range(100, 1800, 100),
     order=[*range(17, 0, -2), *range(16, -1, -2)], reason="declined-pieces")
def given_up(place, stream, cuts, order, reason):
    def relay(connection):
        connection.settimeout(2 * SLOW)
        connection.sendall(b"RELAY" + receive(connection, len(stream)))
    place.relay = relay
    before = place.stand.reasons()
    send_pieces(place, stream, cuts, order, b"RELAY" + stream)
    equal(place.stand.since(before).get(reason), 1, f"counted: {place.stand.since(before)}")


SO_MEMINFO = 55                 # the first word is the memory of what is to be read (include/uapi/linux/sock_diag.h)


@row(rows, "a worker's hello that became one packet is as large in the kernel's books as it is", order=[0, 1])
@row(rows, "the same, its pieces the wrong way round", order=[1, 0])
def accounted(place, order):
    told = []

    def relay(connection):
        connection.settimeout(2 * SLOW)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(STANDARD))
        seen = connection.recv(len(STANDARD), socket.MSG_PEEK | socket.MSG_WAITALL)
        told.append((struct.unpack("9I", connection.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[0], len(seen)))
        connection.sendall(b"RELAY" + receive(connection, len(STANDARD)))
    place.relay = relay
    send_pieces(place, STANDARD, [len(STANDARD) - 10], order, b"RELAY" + STANDARD)
    expect(told[0][0] > told[0][1] == len(STANDARD), f"truesize and bytes: {told}")


@row(rows, "early data in the packet of the hello, and behind it")
def early_data(place):
    stream, early = hello("app1-s.phala.test"), b"e" * 1000
    client = place.raw()
    client.send_at(0, stream + early[:100])
    client.send_at(len(stream) + 100, early[100:])
    client.sent(len(stream) + len(early))
    equal(client.read(len(stream + early)), stream + early, "what came back")
    client.reset()


@row(rows, "more early data than fits: a worker has it")
def much_early_data(place):
    stream = hello("app1-s.phala.test") + bytes(9000)
    client = place.raw()
    client.send_at(0, stream)
    client.sent(len(stream))
    equal(client.read(5)[:5], b"RELAY", "who answered")
    client.reset()


@row(rows, "a piece with a wrong checksum spoils nothing")
def damaged(place):
    client = place.raw()
    client.send_at(0, CHROMIUM[:700])
    client.send_at(600, b"X" * 900, damage=True)
    client.send_at(700, CHROMIUM[700:], damage=True)
    for offset, data in client.pieces(CHROMIUM, 700):
        client.send_at(offset, data)
    client.sent(len(CHROMIUM))
    equal(client.read(len(CHROMIUM)), CHROMIUM, "what came back")
    client.reset()


@row(rows, "two packets of one hello at the same time")
def at_once(place):
    """As near as a test gets: the pieces of many connections go out back to back."""
    clients = []
    for _ in range(64):
        clients.append(place.raw())
    for part in (1, 0):
        for client in clients:
            client.send_at(*client.pieces(CHROMIUM, 1000)[part])
    expect(len({client.sport for client in clients}) == 64, "ports")
    spliced = lambda: sum(flow["client"].startswith(RAW) and flow["state"] == "spliced" for flow in place.stand.flows())
    wait_until(lambda: spliced() == 64, 2, "64 spliced flows")
    for client in clients:
        client.reset()
