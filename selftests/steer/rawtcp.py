# SPDX-License-Identifier: Apache-2.0
"""A TCP client with every packet in hand, at an address of its own that no kernel answers for.

It retransmits nothing and answers only when told, so whatever arrives did so without a retransmission. Every packet that
comes in has its checksums computed from scratch, and its timestamps held against RFC 7323.
"""
import contextlib, os, random, select, socket, struct, time

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
ETH_P_IP = 0x0800
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
SO_RCVBUFFORCE = 33
NEEDS_CSUM = 1
MASK = 0xffffffff
SLOW = float(os.environ.get("PHALA_SLOW", "1"))         # time-outs are those of an unburdened machine


def internet_sum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


def tcp_sum(source, to, segment):
    return internet_sum(socket.inet_aton(source) + socket.inet_aton(to) + struct.pack("!HH", 6, len(segment)) + segment)


class Wire:
    """
    A packet socket on @interface of @ns. Frames come with whether their TCP checksum is still to be completed. @peer_mac is
    None on a layer-3 device.
    """
    def __init__(self, ns, interface, peer_mac):
        self.sock = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 25)
        self.sock.bind((interface, ETH_P_IP))
        self.interface, self.was_slow = interface, False        # whether a client of its was away within what it sends
        self.link = peer_mac + self.sock.getsockname()[4] + struct.pack("!H", ETH_P_IP) if peer_mac else b""

    def send(self, packet, gso=1368):
        """One that is over the MTU goes as a super-packet: its checksum is left to be completed."""
        header = bytes(10)
        if len(packet) > 1500:
            headers = 20 + (packet[32] >> 4) * 4
            pseudo = internet_sum(packet[12:20] + struct.pack("!HH", 6, len(packet) - 20))
            packet = packet[:36] + struct.pack("!H", pseudo) + packet[38:]
            header = struct.pack("=BBHHHH", NEEDS_CSUM, 1, len(self.link) + headers, gso, len(self.link) + 20, 16)
        self.sock.sendto(header + self.link + packet, (self.interface, ETH_P_IP))

    def receive(self, timeout):
        """(IP packet, checksum is partial) or None. .completes: where the checksum goes in the packet, and from where it is summed."""
        if not select.select([self.sock], [], [], timeout)[0]:
            return None
        frame = self.sock.recv(1 << 17)
        start, offset = struct.unpack("=HH", frame[6:10])
        self.completes = (start + offset - len(self.link), start - len(self.link)) if frame[0] & NEEDS_CSUM else None
        return frame[10 + len(self.link):], bool(frame[0] & NEEDS_CSUM)

    def drain(self):
        """Forgets what came so far: others' transfers, maybe, of which there is much."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.recv(64, socket.MSG_DONTWAIT | socket.MSG_TRUNC)

    def close(self):
        self.sock.close()


class Segment:
    def __init__(self, packet, partial=False):
        total = struct.unpack("!H", packet[2:4])[0] or len(packet)
        self.ip, self.packet = packet[:20], packet[:total]
        self.source, self.to = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        self.tos, self.ttl, self.protocol = packet[1], packet[8], packet[9]
        tcp = packet[20:total]
        self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.window = struct.unpack("!HHIIBBH", tcp[:16])
        self.options = tcp[20:(offset >> 4) * 4]
        self.data = tcp[(offset >> 4) * 4:]
        assert internet_sum(self.ip) == 0xffff, "IP checksum"
        if partial:
            pseudo = internet_sum(packet[12:20] + struct.pack("!HH", 6, len(tcp)))
            assert pseudo == struct.unpack("!H", tcp[16:18])[0], "pseudo-header checksum"
        else:
            assert tcp_sum(self.source, self.to, tcp) == 0xffff, "TCP checksum"
        self.times = self.mss = self.scale = None
        self.sack_ok, self.edges = False, []
        at = 0
        while at < len(self.options) and (kind := self.options[at]):
            if kind == 1:
                at += 1
                continue
            length = self.options[at + 1]
            value = self.options[at + 2:at + length]
            if kind == 2:
                self.mss = struct.unpack("!H", value)[0]
            elif kind == 3:
                self.scale = value[0]
            elif kind == 4:
                self.sack_ok = True
            elif kind == 5:
                self.edges = struct.unpack(f"!{len(value) // 4}I", value)
            elif kind == 8:
                self.times = struct.unpack("!II", value)
            at += length

    def __repr__(self):
        names = "".join(letter for bit, letter in zip((1, 2, 4, 8, 16, 32, 64, 128), "FSRP.UEW") if self.flags & bit)
        return f"<{self.sport}>{self.dport} {names} seq {self.seq} ack {self.ack} len {len(self.data)}>"


def build(source, to, sport, dport, seq, ack, flags, data=b"", options=b"", window=64000, ttl=64, tos=0, damage=False,
          ip_options=b"", fragment=0x4000):
    options += b"\1" * (-len(options) % 4)
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq & MASK, ack & MASK, (20 + len(options)) // 4 << 4, flags, window, 0, 0)
    tcp += options + data
    check = 0xffff ^ tcp_sum(source, to, tcp)
    if damage:
        check ^= 0x5555
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    header = struct.pack("!BBHHHBBH", 0x45 + len(ip_options) // 4, tos, 20 + len(ip_options) + len(tcp), 1, fragment, ttl, 6, 0)
    header += socket.inet_aton(source) + socket.inet_aton(to) + ip_options
    return header[:10] + struct.pack("!H", 0xffff ^ internet_sum(header)) + header[12:] + tcp


class Client:
    """One connection. .inbox are the segments that came."""
    def __init__(self, wire, source, to, port, sport=None, times=True, sack=True, scale=7, mss=1460, ecn=False, isn=None):
        self.wire, self.source, self.to, self.dport = wire, source, to, port
        self.sport = sport or random.randrange(10000, 32000)
        self.has_times, self.sack, self.scale, self.mss, self.ecn = times, sack, scale, mss, ecn
        self.isn = random.getrandbits(32) if isn is None else isn
        self.seq, self.ack, self.window = (self.isn + 1) & MASK, 0, 64000
        self.clock, self.echo = random.getrandbits(32), 0
        self.stream, self.finished, self.was_reset, self.inbox = bytearray(), False, False, []
        self.began = None               # to send its stream

    def options(self):
        if not self.has_times:
            return b""
        return b"\1\1\x08\x0a" + struct.pack("!II", (self.clock + int(time.monotonic() * 1000)) & MASK, self.echo)

    def packet(self, data=b"", flags=ACK, seq=None, ack=None, **more):
        more.setdefault("options", self.options())
        more.setdefault("window", self.window)
        return build(self.source, self.to, self.sport, self.dport, self.seq if seq is None else seq,
                     self.ack if ack is None else ack, flags, data, **more)

    def send(self, *what, **more):
        self.wire.send(self.packet(*what, **more))

    def next(self, timeout=2, want=lambda segment: True):
        """The next segment for this connection that is wanted, or None."""
        return self.next_until(time.monotonic() + timeout * SLOW, want)

    def next_until(self, deadline, want=lambda segment: True):
        while (left := deadline - time.monotonic()) > 0:
            got = self.wire.receive(left)
            if not got or got[0][9] != 6 or got[0][16:20] != socket.inet_aton(self.source):
                continue
            segment = Segment(*got)
            if segment.dport != self.sport or segment.source != self.to:
                continue
            self.inbox.append(segment)
            if self.has_times and not segment.flags & RST and not segment.flags & SYN:
                assert segment.times, f"no timestamps: {segment}"
                behind = (segment.times[0] - self.synack.times[0]) & MASK       # others may have changed places on the way
                assert behind < 1 << 31, f"time runs backwards, {self.synack.times[0]} to {segment.times[0]}: {self.inbox}"
                if (segment.times[0] - self.echo) & MASK < 1 << 31:
                    self.echo = segment.times[0]
            if want(segment):
                return segment
        return None

    def handshake(self, timeout=2, fast_open=False):
        options = b"\2\4" + struct.pack("!H", self.mss)
        if self.sack:
            options += b"\4\2"
        if self.has_times:
            options += b"\x08\x0a" + struct.pack("!II", (self.clock + int(time.monotonic() * 1000)) & MASK, 0)
        if self.scale is not None:
            options += b"\1\3\3" + bytes([self.scale])
        if fast_open:
            options += b"\x22\2"
        self.send(flags=SYN | (ECE | CWR if self.ecn else 0), seq=self.isn, ack=0, options=options)
        # One with another number is for the connection that had this port before, sent again.
        self.synack = self.next(timeout, lambda segment: segment.flags & SYN and segment.ack == (self.isn + 1) & MASK)
        assert self.synack, "no SYN-ACK"
        self.gateway_isn, self.ack = self.synack.seq, (self.synack.seq + 1) & MASK
        if self.has_times:
            assert self.synack.times
            self.echo = self.synack.times[0]
        if not fast_open:
            self.send()
        return self

    def pieces(self, data, *cuts):
        """[(offset, bytes)] of @data, cut."""
        edges = [0, *cuts, len(data)]
        return [(a, data[a:b]) for a, b in zip(edges, edges[1:])]

    def send_at(self, offset, data, **more):
        self.began = self.began or time.monotonic()
        self.wire.was_slow |= time.monotonic() - self.began > 2
        self.send(data, flags=ACK | PSH, seq=(self.isn + 1 + offset) & MASK, **more)

    def sent(self, count):
        self.seq = (self.seq + count) & MASK

    def read(self, count, timeout=2):
        """Takes segments in order until there are @count bytes of stream, acknowledging each."""
        deadline = time.monotonic() + timeout * SLOW
        while len(self.stream) < count and not self.finished and not self.was_reset:
            segment = self.next_until(deadline)
            if segment is None:
                break
            if segment.flags & RST:
                self.was_reset = True
                break
            if segment.seq == self.ack and (segment.data or segment.flags & FIN):
                self.stream += segment.data
                self.ack = (self.ack + len(segment.data) + bool(segment.flags & FIN)) & MASK
                self.finished = bool(segment.flags & FIN)
                self.send()
        return bytes(self.stream)

    def reset(self):
        self.send(flags=RST | ACK, options=b"")
