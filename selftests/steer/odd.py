# SPDX-License-Identifier: Apache-2.0
"""What is not plain TCP: ICMP errors, MTUs, fragments, IP options, IPv6, a full table, other people's filters."""
import socket, struct, threading, time

from binding import HELLO, bound, fake
from ends import is_alive, spliced
from field import CLIENT, GATEWAY, GUEST, PORT, RAW, SLOW, equal, expect, hello, netns, receive, row
from rawtcp import ACK, MASK, SYN, Client, build, internet_sum
from transfers import MIB, transfer

rows = []


def icmp(source, to, kind, code, quoted, rest=0):
    message = struct.pack("!BBHI", kind, code, 0, rest) + quoted
    message = message[:2] + struct.pack("!H", 0xffff ^ internet_sum(message)) + message[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 7, 0, 64, 1, 0) + socket.inet_aton(source) + socket.inet_aton(to)
    return header[:10] + struct.pack("!H", 0xffff ^ internet_sum(header)) + header[12:] + message


def next_icmp(wire, to, timeout=1.5):
    deadline = time.monotonic() + timeout * SLOW
    while (left := deadline - time.monotonic()) > 0:
        got = wire.receive(left)
        if got and got[0][9] == 1 and got[0][16:20] == socket.inet_aton(to):
            packet, total = got[0], struct.unpack("!H", got[0][2:4])[0]
            equal(internet_sum(packet[:20]), 0xffff, "sum of the IP header")
            equal(internet_sum(packet[20:total]), 0xffff, "sum of the ICMP message")
            if wire.completes:                          # as it will be when a device has done its part
                at, start = wire.completes
                packet = packet[:at] + struct.pack("!H", 0xffff ^ internet_sum(packet[start:total])) + packet[at + 2:]
                equal(internet_sum(packet[20:total]), 0xffff, "sum of the ICMP message once it is completed")
            equal(internet_sum(packet[28:48]), 0xffff, "sum of the quoted IP header")
            return packet
    return None


def quoted_of(packet):
    """(from, to, from port, to port, seq) of what an ICMP error quotes."""
    return (socket.inet_ntoa(packet[40:44]), socket.inet_ntoa(packet[44:48]), *struct.unpack("!HHI", packet[48:56]))


@row(rows, "an ICMP error about what the CVM sent")
def from_client(place):
    client, cvm, syn = bound(place)
    met = build(GATEWAY, RAW, PORT, client.sport, client.gateway_isn + 1, client.seq, ACK, b"x" * 100)
    client.wire.send(icmp("203.0.113.9", GATEWAY, 3, 4, met[:28], 1280))
    got = next_icmp(cvm.wire, cvm.address)
    expect(got, "nothing came")
    equal((got[20], got[21], struct.unpack("!H", got[26:28])[0]), (3, 4, 1280), "type, code, MTU")
    equal(quoted_of(got), (cvm.address, syn.source, 443, syn.sport, 1001), "what is quoted")
    equal(socket.inet_ntoa(got[12:16]), syn.source, "who says so")


@row(rows, "an ICMP error about what the client sent")
def from_cvm(place):
    client, cvm, syn = bound(place)
    met = build(syn.source, cvm.address, syn.sport, 443, syn.seq + 1, 1001, ACK, b"x" * 100)
    cvm.wire.send(icmp(cvm.address, syn.source, 3, 4, met[:28], 1300))
    got = next_icmp(client.wire, RAW)
    expect(got, "nothing came")
    equal((got[20], got[21], struct.unpack("!H", got[26:28])[0]), (3, 4, 1300), "type, code, MTU")
    equal(quoted_of(got), (RAW, GATEWAY, client.sport, PORT, (client.isn + 1) & MASK), "what is quoted")
    equal(socket.inet_ntoa(got[12:16]), GATEWAY, "who says so")


@row(rows, "an ICMP error of one CVM's about another's flow: the client hears nothing of it")
def from_another(place):
    other = fake(place)
    place.register([("app1", "cvm1", 0), ("app2", "other", other.address)])
    client = spliced(place)
    slot = int(place.flow_of(client.sport, RAW)["slot"])
    source, port = socket.inet_ntoa(struct.pack("!I", 0x0a000002 + slot // 32768)), 32768 + slot % 32768
    for kind, code in ((3, 1), (3, 3), (3, 4), (11, 0), (12, 0)):
        for quoted_to in (place.cvms[0].address, other.address):
            met = build(source, quoted_to, port, 443, 1, 1001, ACK, b"x" * 100)
            other.wire.send(icmp(other.address, source, kind, code, met[:28], 600))
    equal(next_icmp(client.wire, RAW, 0.5), None, "what the client got")
    is_alive(place, client, "the flow")


@row(rows, "ICMP errors about nothing of ours go no further")
def icmp_about_nothing(place):
    client, cvm, syn = bound(place)
    met = build("10.0.0.9", cvm.address, 50000, 443, 1, 1, ACK)
    cvm.wire.send(icmp(cvm.address, "10.0.0.9", 3, 4, met[:28], 68))
    met = build(GATEWAY, RAW, PORT, client.sport ^ 1, 1, 1, ACK)
    client.wire.send(icmp("203.0.113.9", GATEWAY, 3, 4, met[:28], 68))
    equal(next_icmp(cvm.wire, cvm.address, 0.3), None, "what the CVM got")
    equal(next_icmp(client.wire, RAW, 0.3), None, "what the client got")


@row(rows, "a packet too big for the tunnel, or for the CVM's MSS: the client is told")
def too_big(place):
    client, cvm, syn = bound(place)
    client.send(b"y" * 1440)
    got = next_icmp(client.wire, RAW)
    expect(got, "no ICMP error")
    equal((got[20], got[21], struct.unpack("!H", got[26:28])[0]), (3, 4, 1420), "type, code, MTU")
    equal(quoted_of(got), (RAW, GATEWAY, client.sport, PORT, client.seq), "what is quoted")
    equal(cvm.next(0.3), None, "what the CVM got")
    client.send(b"y" * 1380)
    expect(cvm.next(), "one that fits")


def super_packet(source, to, sport, dport, seq, ack, data=bytes(2880)):
    return build(source, to, sport, dport, seq, ack, ACK, data)


def cvm_is_told(place, cvm, syn, send):
    """What it sends is too big for the NIC's new MTU."""
    place.gateway.ip("link set n0 mtu 1300\n")
    try:
        send()
        got = next_icmp(cvm.wire, cvm.address)
    finally:
        place.gateway.ip("link set n0 mtu 1500\n")
    expect(got, "no ICMP error at the CVM")
    equal((got[20], got[21], struct.unpack("!H", got[26:28])[0]), (3, 4, 1300), "type, code, MTU at the CVM")
    equal(quoted_of(got), (cvm.address, syn.source, 443, syn.sport, 1001), "what is quoted at the CVM")


@row(rows, "a super-packet of packets too big: the same, with a checksum that the device may complete")
def too_big_gso(place):
    client, cvm, syn = bound(place)
    client.wire.send(super_packet(RAW, GATEWAY, client.sport, PORT, client.seq, client.ack), gso=1440)
    got = next_icmp(client.wire, RAW)
    expect(got, "no ICMP error")
    equal((got[20], got[21], struct.unpack("!H", got[26:28])[0]), (3, 4, 1420), "type, code, MTU")
    equal(quoted_of(got), (RAW, GATEWAY, client.sport, PORT, client.seq), "what is quoted")
    equal(cvm.next(0.3), None, "what the CVM got")
    cvm_is_told(place, cvm, syn, lambda: cvm.wire.send(super_packet(cvm.address, syn.source, 443, syn.sport, 1001,
                                                                    syn.seq + 1 + len(HELLO)), gso=1380))


@row(rows, "a packet too big for the client's link: the CVM is told")
def too_big_for_nic(place):
    client, cvm, syn = bound(place)
    cvm_is_told(place, cvm, syn, lambda: cvm.answer(syn, ACK, 1001, syn.seq + 1 + len(HELLO), data=b"z" * 1300))


@row(rows, "a narrow link behind the client", 60)
def narrow_client(place):
    """far ──1500── mid ──1280── client ──1500── gateway"""
    mid, far = netns.Netns("mid"), netns.Netns("far")
    place.client.ip("link add c1 type veth peer name m0 netns mid\nlink set c1 mtu 1280 up\naddr add 10.9.1.1/24 dev c1\n"
                    "route add 10.9.2.0/24 via 10.9.1.2\n")
    mid.ip("link set m0 mtu 1280 up\naddr add 10.9.1.2/24 dev m0\nroute add default via 10.9.1.1\n"
           "link add m1 type veth peer name f0 netns far\nlink set m1 up\naddr add 10.9.2.1/24 dev m1\n")
    far.ip("link set f0 up\naddr add 10.9.2.2/24 dev f0\nroute add default via 10.9.2.1\n")
    place.gateway.ip(f"route add 10.9.0.0/16 via {CLIENT}\n")
    for ns in (mid, place.client):
        ns.sysctl("net.ipv4.ip_forward", 1)
    before, client = place.stand.reasons(), place.client
    try:
        place.client = far
        transfer(place, MIB)
    finally:
        place.client = client
        client.ip("link del c1\n")
        client.sysctl("net.ipv4.ip_forward", 0)
    counted = place.stand.since(before)
    expect(counted.get("spliced") == 1 and counted.get("icmp-passed"), f"counted {counted}")


@row(rows, "a tunnel that becomes narrow", 60)
def narrow_tunnel(place):
    before = place.stand.reasons()
    place.client.ip("route flush cache\n")      # what it learned of the path in other rows
    with place.connect(timeout=30) as sock:
        sock.sendall(HELLO)
        receive(sock, len(HELLO))
        place.gateway.ip(f"link set {place.tunnel} mtu 1280\n")
        place.cvms[0].ns.ip("link set t0 mtu 1280\n")
        try:
            data = bytes(MIB)
            sender = threading.Thread(target=lambda: sock.sendall(data))
            sender.start()
            equal(len(receive(sock, len(data))), len(data), "bytes back")
            sender.join()
        finally:
            place.gateway.ip(f"link set {place.tunnel} mtu {place.mtu}\n")
            place.cvms[0].ns.ip(f"link set t0 mtu {place.mtu}\n")
    expect(place.stand.since(before).get("too-big"), f"counted {place.stand.since(before)}")


@row(rows, "fragments and IP options of a flow: dropped and counted")
def fragments(place):
    client, cvm, syn = bound(place)
    before = place.stand.reasons()
    client.send(b"x" * 40, fragment=0x2000, options=b"")
    client.send(b"x" * 40, ip_options=b"\x07\x07\4\0\0\0\0\0", options=b"")
    ack = (syn.seq + 1 + len(HELLO)) & MASK
    cvm.answer(syn, ACK, 1001, ack, data=b"x" * 40, fragment=0x2000)
    cvm.answer(syn, ACK, 1001, ack, data=b"x" * 40, ip_options=b"\x07\x07\4\0\0\0\0\0")
    equal(cvm.next(0.3), None, "what the CVM got")
    equal(client.next(0.3, lambda segment: segment.data), None, "what the client got")
    counted = place.stand.since(before)
    equal((counted.get("dropped-fragment"), counted.get("dropped-ip-options")), (2, 2), f"counted {counted}")


@row(rows, "a hello with IP options: a worker has it, and the reason is counted")
def hello_options(place):
    before, client = place.stand.reasons(), place.raw()
    record_route = b"\x07\x07\4\0\0\0\0\0"
    Client(place.wire, "192.0.2.77", GATEWAY, PORT).send_at(0, HELLO, ip_options=record_route)      # of no connection
    client.send_at(1000, HELLO, ip_options=record_route)        # not the next that is read
    client.send_at(0, HELLO, ip_options=record_route)
    client.sent(len(HELLO))
    equal(client.read(5)[:5], b"RELAY", "who answered")
    client.send(b"x", ip_options=record_route)     # no hello
    counted = place.stand.since(before)
    equal(counted.get("declined-options"), 1, f"counted {counted}")
    client.reset()


@row(rows, "TTL: one less each way, and dropped at its end")
def ttl(place):
    client, cvm, syn = bound(place)
    before = place.stand.reasons()
    client.send(b"x", ttl=9)
    equal(cvm.next().ttl, 8, "TTL at the CVM")
    client.send(b"x", ttl=1)
    cvm.answer(syn, ACK, 1001, syn.seq + 1 + len(HELLO), data=b"x", ttl=1)
    equal(cvm.next(0.3), None, "what the CVM got")
    equal(place.stand.since(before).get("dropped-ttl"), 2, "counted")


@row(rows, "marks of congestion: passed on if both agreed, cleared if the CVM did not")
def congestion(place):
    client, cvm, syn = bound(place)
    client.send(b"x", tos=0x2)
    equal(cvm.next().tos, 0, "TOS at a CVM without ECN")
    cvm = fake(place)
    client = place.raw(times=False, ecn=True)
    client.send_at(0, HELLO, tos=2)
    client.sent(len(HELLO))
    syn = cvm.syn()
    cvm.answer(syn, SYN | ACK | 64, 1000, options=b"\2\4\x05\x64")
    equal(cvm.next().tos, 0, "TOS of the hello")
    client.send(b"x", tos=0x2e)
    equal(cvm.next().tos, 0x2e, "TOS at a CVM with ECN")


@row(rows, "a hello over IPv6: relayed, counted")
def ipv6(place):
    place.client.ip("addr add 2001:db8::2/64 dev c0 nodad\n")
    place.gateway.ip("addr add 2001:db8::1/64 dev n0 nodad\n")
    listener = place.gateway.socket(socket.AF_INET6)
    listener.bind(("2001:db8::1", PORT))
    listener.listen()
    before = place.stand.reasons()
    with place.client.connect("2001:db8::1", PORT, 3 * SLOW) as sock:
        accepted, _ = listener.accept()
        sock.sendall(HELLO)
        equal(accepted.recv(1000), HELLO, "what the listener got")
        accepted.close()
    listener.close()
    counted = place.stand.since(before).get("declined-ipv6", 0)
    expect(counted == 1 or (GUEST and counted > 1), f"{counted} hellos counted")     # in a guest it may be sent again


@row(rows, "detach leaves other people's filters; attach again")
def detach(place):
    other = place.build / "steer/loss.bpf.o"
    place.gateway.run(["tc", "filter", "add", "dev", "n0", "ingress", "prio", "77", "bpf", "da", "obj", other, "sec", "one"])
    place.stand("detach")
    shown = place.gateway.run(["tc", "filter", "show", "dev", "n0", "ingress"]).stdout
    expect("pref 77" in shown and "steer" not in shown, f"filters: {shown}")
    place.gateway.run(["tc", "filter", "del", "dev", "n0", "ingress", "prio", "77"])
    with place.connect() as sock:
        sock.sendall(HELLO)
        equal(receive(sock, 5), b"RELAY", "who answered")
    place.stand("reload")
    with place.connect() as sock:
        sock.sendall(HELLO)
        equal(receive(sock, len(HELLO)), HELLO, "who answered")
