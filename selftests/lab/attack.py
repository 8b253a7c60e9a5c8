# SPDX-License-Identifier: Apache-2.0
"""What an attacker with root in a CVM sends, and everything that would notice if it went through.

Packets are built once and sent through one packet socket, from the tunnel device of the CVM. For each it is known
beforehand what guard must say of it (judge), from the rules and not from guard's code.
"""
import collections, contextlib, os, select, socket, struct, time

from .capture import ETH_P_ALL
from .lab import SLOW, wg

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86dd
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SO_RCVBUFFORCE, SO_BINDTODEVICE, PACKET_OUTGOING = 33, 25, 4
BATCH = 200                     # WireGuard's queues hold 1024 packets
PROTOCOLS = (0, 1, 2, 4, 6, 17, 33, 41, 47, 50, 51, 89, 103, 112, 132, 136, 253)
ERRORS = (3, 11, 12)            # destination unreachable, time exceeded, parameter problem
LATE = 5                        # packets that CVMs may say meanwhile of connections of earlier rows, which they have not given up yet


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return 0xffff ^ total


def ip(source, to, protocol, payload, options=b"", fragment=0, total=None, first=None, ttl=64):
    header = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4 if first is None else first, 0,
                         20 + len(options) + len(payload) if total is None else total, 7, fragment, ttl, protocol, 0)
    header += socket.inet_aton(source) + socket.inet_aton(to) + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def transport(source, to, protocol, segment, at):
    """@segment with its checksum, which is at @at."""
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack("!HH", protocol, len(segment))
    return segment[:at] + struct.pack("!H", checksum(pseudo + segment)) + segment[at + 2:]


def tcp(source, to, sport, dport, flags, seq=1000, ack=2000, data=b"", **more):
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 1000, 0, 0) + data
    return ip(source, to, TCP, transport(source, to, TCP, segment, 16), **more)


def udp(source, to, sport, dport, data=b"x", **more):
    return ip(source, to, UDP, transport(source, to, UDP, struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data, 6),
              **more)


def icmp(source, to, kind, code=0, rest=0, data=b"", **more):
    message = struct.pack("!BBHI", kind, code, 0, rest) + data
    return ip(source, to, ICMP, message[:2] + struct.pack("!H", checksum(message)) + message[4:], **more)


def to_ports(packet, at, ports):
    """@packet, of TCP or UDP with @at the place of its checksum, to each of @ports."""
    packet, packets = bytearray(packet), []
    start = (0xffff ^ struct.unpack_from("!H", packet, at)[0]) + (0xffff ^ struct.unpack_from("!H", packet, 22)[0])
    for port in ports:
        total = start + port
        total = (total & 0xffff) + (total >> 16)
        struct.pack_into("!H", packet, 22, port)
        struct.pack_into("!H", packet, at, (0xffff ^ ((total & 0xffff) + (total >> 16))) or 0xffff)
        packets.append(bytes(packet))
    return packets


def ip6(source, to, protocol, payload):
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + socket.inet_pton(socket.AF_INET6, source) + \
        socket.inet_pton(socket.AF_INET6, to) + payload


def judge(packet):
    """guard's word for a packet of a CVM that nobody called."""
    if packet[:1] and packet[0] >> 4 == 6:
        return "not-ipv4"
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 15 < 5:
        return "malformed"
    if packet[0] & 15 > 5:
        return "ip-options"
    if struct.unpack_from("!H", packet, 6)[0] & 0x3fff:
        return "fragment"
    if packet[16] & 0xf0 == 0xe0 or packet[16:20] == b"\xff" * 4:
        return "multicast"
    if packet[9] == TCP:
        return "uncalled" if len(packet) >= 40 else "malformed"
    if packet[9] != ICMP:
        return "protocol"
    if len(packet) < 28:
        return "malformed"
    if packet[20] not in ERRORS:
        return "protocol"
    if len(packet) < 48:
        return "malformed"
    if packet[28] != 0x45 or packet[37] != TCP:
        return "protocol"
    return "uncalled" if len(packet) >= 52 else "malformed"


class Place:
    """Counts packets somewhere. @is_one(packet, address as packet sockets have it): is it one that should not be?"""
    def __init__(self, name, sock, is_one):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self.name, self.sock, self.is_one = name, sock, is_one

    def take(self):
        seen = []
        while select.select([self.sock], [], [], 0)[0]:
            packet, address = self.sock.recvfrom(2048)
            if self.is_one(packet, address):
                seen.append(packet)
        return seen


def is_neighbour_discovery(packet):
    return packet[0] >> 4 == 6 and (packet[6] == 0 or packet[6] == ICMPV6 and packet[40] in (133, 134, 135, 136, 143))


@contextlib.contextmanager
def wide_open(lab):
    """CVMs whose own WireGuard takes everything and sends everywhere: only the gateway is left to keep them apart."""
    peer = wg("pubkey", lab.key_file.read_text())
    for name, cvm in lab.cvms.items() if lab.wireguard else ():
        cvm.ns.run(["wg", "set", name, "peer", peer, "allowed-ips", "0.0.0.0/0,::/0"])
    try:
        yield
    finally:
        for name, cvm in lab.cvms.items() if lab.wireguard else ():
            cvm.ns.run(["wg", "set", name, "peer", peer, "allowed-ips", "10.0.0.0/24"])


class Attacker:
    """In CVM @name. Use as a context."""
    def __init__(self, lab, name):
        self.lab, self.cvm = lab, lab.cvms[name]
        self.ns, self.address = self.cvm.ns, self.cvm.address
        self.device = name if lab.wireguard else "t0"

    def __enter__(self):
        lab, self.stack = self.lab, contextlib.ExitStack()
        self.stack.enter_context(wide_open(lab))
        self.sock = self.stack.enter_context(self.packet_socket(self.ns, self.device, socket.SOCK_RAW, protocol=0))
        self.link = b"" if lab.wireguard else self.mac_of(lab.gateway, lab.tunnel) + self.mac_of(self.ns, self.device)
        with lab.gateway.inside():
            self.counters = os.open("/proc/thread-self/net/dev", os.O_RDONLY)
        self.stack.callback(os.close, self.counters)
        self.places = self.watch()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def mac_of(self, ns, device):
        with self.packet_socket(ns, device, socket.SOCK_RAW, protocol=0) as sock:
            return sock.getsockname()[4]

    def packet_socket(self, ns, device, kind=socket.SOCK_DGRAM, protocol=ETH_P_ALL):
        sock = ns.socket(socket.AF_PACKET, kind, 0)
        sock.bind((device, protocol))
        return sock

    def watch(self):
        """The places: the other CVMs, the gateway's sockets, its other devices, and what comes back here."""
        lab, places = self.lab, []

        def add(name, sock, is_one):
            places.append(Place(name, self.stack.enter_context(sock), is_one))

        def is_ip(packet, address):
            return address[1] in (ETH_P_IP, ETH_P_IPV6) and not is_neighbour_discovery(packet)

        def is_clear(packet, address):
            is_wireguard = packet[0] >> 4 == 4 and packet[9] == UDP and b"\xca\x6c" in (packet[20:22], packet[22:24])
            return is_ip(packet, address) and not is_wireguard

        # What a CVM says itself reached nobody: the end of a connection of an earlier row, perhaps.
        def has_come(packet, address):
            return address[2] != PACKET_OUTGOING and is_ip(packet, address)

        for name, cvm in lab.cvms.items():
            if cvm is not self.cvm:
                add("another CVM", self.packet_socket(cvm.ns, name if lab.wireguard else "t0"), has_come)
        for device in ("n0", "u0", "lo"):
            add("another device", self.packet_socket(lab.gateway, device), is_clear)
        for family, protocols in ((socket.AF_INET, PROTOCOLS[1:]), (socket.AF_INET6, (TCP, UDP))):
            for protocol in protocols:
                sock = lab.gateway.socket(family, socket.SOCK_RAW, protocol)
                sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, lab.tunnel.encode())
                add("the gateway's sockets", sock, lambda *_: True)
        add("an answer", self.packet_socket(self.ns, self.device), has_come)
        return places

    def received(self):
        """Packets that the gateway's tunnel device took in, or that WireGuard refused there."""
        for line in os.pread(self.counters, 65536, 0).decode().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self.lab.tunnel:
                numbers = [int(number) for number in numbers.split()]
                return numbers[1] + numbers[2]
        return 0

    def leaves(self, packet):
        """Does WireGuard in the CVM, the kernel's own, send it at all?"""
        return not self.lab.wireguard or len(packet) >= {4: 20, 6: 40}.get(packet[:1] and packet[0] >> 4, 1 << 16)

    def passes_wireguard(self, packet):
        """Does the gateway's WireGuard let it in: is it IP, all there (padding counts), from an address of this peer?"""
        return not self.lab.wireguard or packet[0] >> 4 == 4 and packet[12:16] == socket.inet_aton(self.address) and \
            20 <= struct.unpack_from("!H", packet, 2)[0] <= (len(packet) + 15) // 16 * 16

    def send(self, packets):
        """Sends them all, no faster than they are taken in. Returns what guard must have counted, by its words."""
        wanted = collections.Counter()
        for start in range(0, len(packets), BATCH):
            before, gone = self.received(), 0
            for packet in packets[start:start + BATCH]:
                protocol = ETH_P_IPV6 if packet[:1] and packet[0] >> 4 == 6 else ETH_P_IP
                link = self.link + struct.pack("!H", protocol) if self.link else b""
                with contextlib.suppress(OSError):      # WireGuard's word for what it does not send
                    self.sock.sendto(link + packet, (self.device, protocol))
                if self.leaves(packet):
                    gone += 1
                    wanted[judge(packet)] += self.passes_wireguard(packet)
            deadline = time.monotonic() + 5 * SLOW
            while self.received() - before < gone:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.received() - before} of {gone} packets came to the gateway")
                time.sleep(0.0005)
        return +wanted

    def seen(self):
        """{place: packets} since the last call, of places that saw any."""
        found = collections.defaultdict(list)
        for place in self.places:
            found[place.name] += place.take()
        return {name: packets for name, packets in found.items() if packets}
