# SPDX-License-Identifier: Apache-2.0
"""Limits of flows, by app and by client: never one too many, and nothing counted that is over."""
import contextlib, socket, struct, threading, time

from binding import FAKE, HELLO, FakeCvm, bound
from ends import spliced, state_of
from field import GUEST, equal, expect, hello, receive, row, wait_until
from rawtcp import ACK, MASK, PSH, RST

rows = []


def counted(place):
    """(clients, flows of clients, flows of instances) that limits count."""
    return tuple(int(word) for word in place.stand("counted")[0].split())[:3]


def expect_counted(place, wanted, what):
    """What could not be given back at once, its lock being another's, is when its slot is free: after its rest and a sweep."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: counted(place) == wanted, 8, what)
    equal(counted(place), wanted, what)


def hellos_counted(place):
    return int(place.stand("counted")[0].split()[3])


def limit(place, app=0, source=0, idle_ms=3600000):
    place.stand("limit", app, idle_ms, 3, source)


def who_answers(place, stream=HELLO, **connect):
    """A connection, and whether the kernel has it."""
    sock = place.connect(**connect)
    sock.sendall(stream)
    answer = receive(sock, len(stream))
    expect(answer == stream or answer.startswith(b"RELAY"), f"answer {answer[:20]}")
    return sock, answer == stream


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def declined(place, before, count):
    """All of so many for the limit. Returns how many were late: in a guest after the deferral, or with a CVM that was."""
    since = place.stand.since(before)
    over = since.get("declined-limit", 0)
    late = since.get("declined-accepted", 0) + since.get("declined-unanswered", 0) if GUEST else 0
    expect(over and over + late == count, f"{over} for the limit and {late} late are all of {count}")
    return late


def at_once(place, count, stream=HELLO):
    """So many connections at the same time. Returns their sockets, and how many the kernel has."""
    got, start = [], threading.Barrier(count)

    def one():
        start.wait()
        got.append(who_answers(place, stream, timeout=20))
    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(len(got), count, "connections that were answered")
    return [sock for sock, _ in got], sum(kernel for _, kernel in got)


@row(rows, "an app's limit, by many at once over two instances and by their names", 60)
def app_at_once(place):
    place.register([("pair", "cvm1", 0), ("pair", "cvm2", 1)])
    limit(place, app=10)
    for name in ("pair-s.phala.test", "cvm1-s.phala.test"):
        before = place.stand.reasons()
        socks, kernel = at_once(place, 40, hello(name))
        expect(0 < kernel <= 10, f"{kernel} of 40 in the kernel")
        declined(place, before, 40 - kernel)
        expect_counted(place, (0, 0, kernel), "flows counted")
        others = [who_answers(place, hello("cvm2-s.phala.test")) for _ in range(10)]
        expect(kernel + sum(kernel for _, kernel in others) == 10, "an instance's name counts for its app")
        for sock in socks + [sock for sock, _ in others]:
            reset(sock)
        expect_counted(place, (0, 0, 0), "none counted")


@row(rows, "a client's limit, by many at once; others have their own", 60)
def source_at_once(place):
    limit(place, source=10)
    before = place.stand.reasons()
    socks, kernel = at_once(place, 40)
    late = declined(place, before, 40 - kernel)
    expect(10 - late <= kernel <= 10, f"{kernel} of 40 in the kernel, {late} late")
    expect_counted(place, (1, kernel, kernel), "flows counted")
    other = spliced(place)
    expect_counted(place, (2, kernel + 1, kernel + 1), "with another client")
    other.reset()
    for sock in socks:
        reset(sock)
    expect_counted(place, (0, 0, 0), "none counted")
    sock, kernel = who_answers(place)
    expect(kernel, "one that comes when they are over is the kernel's")
    sock.close()


@row(rows, "whatever ends a flow, or keeps it from beginning: nothing stays counted", 90)
def all_ends(place):
    limit(place, app=100, source=100)
    cvm = FakeCvm(place)

    def everyone():
        place.register([("app1", "cvm1", 0), ("deaf", "silent", FAKE), ("shut", "cvm2", 1)])
        for _ in range(8):
            sock, kernel = who_answers(place)
            expect(kernel, "the kernel's")
            sock.shutdown(socket.SHUT_WR)
            equal(sock.recv(1), b"", "end")
            sock.close()
            reset(who_answers(place)[0])
        with place.connect(timeout=20) as sock:         # refused, then a worker's
            sock.sendall(hello("shut-9999s.phala.test"))
            equal(receive(sock, 5), b"RELAY", "who answered")
        client = place.raw()                            # unanswered, then reset by the client
        client.send_at(0, hello("deaf-s.phala.test"))
        expect(cvm.syn(), "no SYN")
        expect(counted(place)[2] >= 1, "one that waits for its instance is counted")
        client.send(flags=RST, seq=(client.isn + 1) & MASK)
        client = place.raw()                            # unanswered, then killed
        client.send_at(0, hello("deaf-s.phala.test"))
        expect(cvm.syn(), "no SYN")
        who_answers(place)
        place.stand("kill")
        who_answers(place)
        place.stand("remove", "cvm1")
        place.registered = []
    everyone()
    expect_counted(place, (0, 0, 0), "none counted")
    everyone()
    expect_counted(place, (0, 0, 0), "none counted the second time")


@row(rows, "idle flows, and one whose reset was forged", 60)
def taken_back(place):
    limit(place, app=1, source=1)
    client, cvm, syn = bound(place)
    equal(counted(place), (1, 1, 1), "while it is there")
    client.send(flags=RST, seq=(client.isn + 1 + len(HELLO)) & MASK)
    wait_until(lambda: counted(place) == (0, 0, 0), 2, "none counted after the reset")

    def goes_on():
        client.send(b"on", flags=ACK | PSH, ack=(client.gateway_isn + 1) & MASK)
        return state_of(place, client) == ("spliced", "client-reset")
    wait_until(goes_on, 8, "alive again")
    expect_counted(place, (1, 1, 1), "alive again")
    limit(place, app=1, source=1, idle_ms=1)
    wait_until(lambda: place.stand("idle") == ["1"], 4, "idle")
    equal(counted(place), (0, 0, 0), "after its time")


@row(rows, "programs replaced, and limits changed, under flows that are counted", 60)
def replaced(place):
    limit(place, source=5)
    socks = [who_answers(place)[0] for _ in range(5)]
    place.stand("reload")
    limit(place)                                        # those that begin now are not counted, the others are
    socks += [who_answers(place)[0] for _ in range(3)]
    expect_counted(place, (1, 5, 8), "counted")
    limit(place, source=5)
    sock, kernel = who_answers(place)
    expect(not kernel, "at the limit")
    for sock in socks + [sock]:
        reset(sock)
    expect_counted(place, (0, 0, 0), "none counted")


@row(rows, "one client's address holds no more hellos than it may; others have room", 60)
def hellos_of_one(place):
    most, stream = 512, hello("app1-s.phala.test", 400) # PH_HELLOS_SOURCE_MAX
    for _ in range(3):
        clients = [place.raw() for _ in range(most + 40)]
        packets = [client.packet(stream[:100], flags=ACK | PSH) for client in clients]
        before, start = place.stand.reasons(), time.monotonic()
        for packet in packets:
            place.wire.send(packet)
        held, refused = (hellos_counted(place), counted(place)[0]), place.stand.since(before).get("declined-hellos")
        if time.monotonic() - start < 2.5:              # PH_COLLECT_TIMEOUT_MS, on every machine: none was given up yet
            break
        for client in clients:
            client.reset()
        wait_until(lambda: hellos_counted(place) == 0, 8, "none held")
    equal((held, refused), ((most, 1), 40), "hellos held, and clients; declined-hellos")
    sock, kernel = who_answers(place)
    expect(kernel, "another client's is the kernel's")
    sock.close()
    for client in clients[:200]:                        # whole, collected or not
        client.send_at(100, stream[100:])
    wait_until(lambda: hellos_counted(place) <= most - 200, 2, "whole ones are no longer held")
    wait_until(lambda: (hellos_counted(place), counted(place)[0]) == (0, 0), 8, "none held")
    for client in clients:
        client.reset()
