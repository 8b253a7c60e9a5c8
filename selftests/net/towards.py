# SPDX-License-Identifier: Apache-2.0
"""Towards a CVM goes only what workers and steer send.

    client ── n0 ─ forwarding ┐
    gateway's other processes ┼─ guard ─ tunnel ── CVM          what arrives?
                      workers ┘
"""
import contextlib, os, socket, struct

from lab import netns
from lab.attack import (ETH_P_IP, PACKET_OUTGOING, SO_BINDTODEVICE, TCP, Attacker, icmp, ip, is_neighbour_discovery, tcp,
                        transport, udp, wide_open)
from lab.lab import CLIENT, GATEWAY, SLOW, TUNNEL_GATEWAY, wait_until
from rows import LIMIT, Topic, accept, equal, expect, listening, passthrough_pair, standard_pair
from processes import works

SO_MARK, SOL_PACKET, PACKET_QDISC_BYPASS, IP_HDRINCL = 36, 263, 20, 3
STEER_MARK = 0x70684c41
MOMENT = 0.05 * SLOW            # for what comes beside what was waited for
SOMEBODY = 12345                # a user that is neither root nor the workers'


def setup(lab):
    lab.ready(Gateway={"Nic": "n0"}, Tunnel={} if lab.wireguard else {"Guard": "yes"})
    lab.gateway.sysctl("net.ipv4.conf.all.rp_filter", 0)


topic = Topic("towards", setup)


def any_one(packet):
    return True


def is_reset(packet):
    return packet[9] == TCP and packet[33] & 4


class Victim:
    """CVM beta1: what comes there, and what guard refused on its behalf."""
    def __init__(self, lab):
        self.lab, self.cvm = lab, lab.cvms["beta1"]
        self.address, self.device = self.cvm.address, "beta1" if lab.wireguard else "t0"

    def __enter__(self):
        self.sock = self.cvm.ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self.sock.bind((self.device, 3))
        self.open = wide_open(self.lab)
        self.open.__enter__()
        self.refused_before = self.refused()
        return self

    def __exit__(self, *error):
        self.sock.close()
        self.open.__exit__(*error)

    def refused(self):
        return sum(row["count"] for row in self.lab.json("guard", "show")["cvms"]
                   if row["instance"] == "beta1" and row["reason"] == "not-ours")

    def came(self, seconds=0.0, wanted=None):
        """Packets that came by the tunnel, until none did for @seconds; once wanted(packet) of one, for a moment."""
        packets = []
        with contextlib.suppress(TimeoutError, BlockingIOError):
            while True:
                self.sock.settimeout(seconds or 0.001)
                packet, address = self.sock.recvfrom(2048)
                if address[2] != PACKET_OUTGOING and address[1] in (ETH_P_IP, 0x86dd) and not is_neighbour_discovery(packet):
                    packets.append(packet)
                    if wanted and wanted(packet):
                        seconds = min(seconds, MOMENT)
        return packets

    def expect_nothing(self, least):
        """And guard has refused at least so many."""
        wait_until(lambda: self.refused() - self.refused_before >= least, 3, f"{least} packets refused")
        equal(self.came(), [], "packets that came")


@contextlib.contextmanager
def user(uid):
    """Sockets made within are this user's (setfsuid(2) is the thread's own)."""
    netns.libc.setfsuid(uid)
    try:
        yield
    finally:
        netns.libc.setfsuid(0)


def call(lab, victim, uid=0, bound=True, port=8080):
    """A TCP socket on the gateway whose SYN is on its way."""
    with user(uid):
        sock = lab.gateway.socket()
        sock.setblocking(False)
        if bound:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, lab.tunnel.encode())
        sock.connect_ex((victim.address, port))
    return sock


def send(sock, frame, device):
    with contextlib.suppress(OSError):              # ENOBUFS: so tc's drop is told to who sent it
        sock.sendto(frame, (device, ETH_P_IP))


def link_to(lab, cvm):
    """The Ethernet header to it, on a tunnel that has such."""
    if lab.wireguard:
        return b""
    macs = []
    for ns in (cvm.ns, lab.gateway):
        with ns.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("t0", 0))
            macs.append(sock.getsockname()[4])
    return b"".join(macs) + b"\x08\0"


@topic.row("a worker's user, on a socket bound to the tunnel: arrives, so that what follows means something")
def _(lab):
    with Victim(lab) as victim:
        works(lab, "beta1-8080")
        expect(victim.came(), "the capture sees what a worker sends")
        with call(lab, victim, uid=65534):
            expect(victim.came(1.0 * SLOW, any_one), "the capture sees what this user sends")


@topic.row("other processes of the gateway: TCP, UDP, ICMP, raw and packet sockets, root's too: nothing arrives")
def _(lab):
    with Victim(lab) as victim, contextlib.ExitStack() as stack:
        for uid, bound in ((0, False), (0, True), (SOMEBODY, False), (SOMEBODY, True), (65534, False)):
            stack.enter_context(call(lab, victim, uid, bound))
        for kind, protocol in ((socket.SOCK_DGRAM, 0), (socket.SOCK_RAW, 1), (socket.SOCK_RAW, 6), (socket.SOCK_RAW, 255)):
            for bound in (False, True):
                for uid in (0, 65534):
                    sock = stack.enter_context(lab.gateway.socket(socket.AF_INET, kind, protocol))
                    if uid and kind == socket.SOCK_RAW:         # made with the right to, and given away
                        os.fchown(sock.fileno(), uid, uid)
                    if bound:
                        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, lab.tunnel.encode())
                    packet = {0: b"x", 1: icmp(TUNNEL_GATEWAY, victim.address, 8)[20:],
                              6: tcp(TUNNEL_GATEWAY, victim.address, 40000, 8080, 2)[20:],
                              255: tcp(TUNNEL_GATEWAY, victim.address, 40000, 8080, 2)}[protocol]
                    sock.sendto(packet, (victim.address, 9))
        link = link_to(lab, victim.cvm)
        sock = stack.enter_context(lab.gateway.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        for packet in (tcp(TUNNEL_GATEWAY, victim.address, 40000, 8080, 2), tcp("10.0.0.2", victim.address, 40000, 8080, 16),
                       udp(GATEWAY, victim.address, 53, 53), icmp(TUNNEL_GATEWAY, victim.address, 3, 4, 576, bytes(28))):
            send(sock, link + packet, lab.tunnel)
        victim.expect_nothing(5 + 16 + 4)


def from_client(lab, victim, packets, mark=0):
    """By the NIC, with ip_forward on."""
    with lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock, \
            lab.gateway.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as nic:
        sock.bind(("c0", 0))
        nic.bind(("n0", 0))
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        for packet in packets:
            sock.sendto(nic.getsockname()[4] + sock.getsockname()[4] + b"\x08\0" + packet, ("c0", ETH_P_IP))


@topic.row("what is forwarded from the NIC, from whatever address, and with a mark that its sender set: nothing arrives")
def _(lab):
    with Victim(lab) as victim:
        packets = []
        for source in (CLIENT, "10.0.0.2", lab.cvms["alpha1"].address, "203.0.113.7"):
            packets += [tcp(source, victim.address, 40000, 8080, flags) for flags in (2, 16, 18, 4)]
            packets += [udp(source, victim.address, 53, 53), icmp(source, victim.address, 8), ip(source, victim.address, 47, bytes(20))]
            packets += [ip(source, victim.address, TCP, tcp(source, victim.address, 40000, 8080, 2)[20:36], fragment=0x2000)]
        for mark in (0, STEER_MARK):
            from_client(lab, victim, packets, mark)
        victim.expect_nothing(len(packets))


@topic.row("routes and sysctls that would help it: nothing arrives")
def _(lab):
    with Victim(lab) as victim:
        for name, value in (("all.accept_local", 1), ("all.route_localnet", 1), ("all.proxy_arp", 1), ("all.forwarding", 1)):
            lab.gateway.sysctl(f"net.ipv4.conf.{name}", value)
        lab.gateway.ip(f"route add {victim.address}/32 dev {lab.tunnel} table 77\nrule add iif n0 table 77 prio 77\n")
        try:
            from_client(lab, victim, [tcp(source, victim.address, 40000, 8080, 2) for source in (CLIENT, GATEWAY, TUNNEL_GATEWAY)])
            victim.expect_nothing(3)
        finally:
            lab.gateway.ip("rule del prio 77\nroute flush table 77\n")
            for name in ("all.accept_local", "all.route_localnet", "all.proxy_arp"):
                lab.gateway.sysctl(f"net.ipv4.conf.{name}", 0)


@topic.row("where guard ends: packet sockets that pass by tc, and root's own mark; README says so")
def _(lab):
    with Victim(lab) as victim, lab.gateway.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        packet = link_to(lab, victim.cvm) + udp(TUNNEL_GATEWAY, victim.address, 53, 53)
        send(sock, packet, lab.tunnel)
        victim.expect_nothing(1)
        sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        send(sock, packet, lab.tunnel)
        expect(victim.came(1.0 * SLOW, any_one), "with PACKET_QDISC_BYPASS it arrives")
        sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 0)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, STEER_MARK)
        send(sock, packet, lab.tunnel)
        expect(victim.came(1.0 * SLOW, any_one), "with steer's mark it arrives")


@topic.row("connections that end in every way: none of their packets is taken for somebody else's")
def _(lab):
    refused = lambda: lab.json("guard", "show")["totals"].get("not-ours", 0)

    def ends():
        """How many of their packets were refused."""
        before = refused()
        for first in ("client", "cvm", "both"):
            client, cvm = standard_pair(lab, "beta1-7731", "beta1", 7731)
            plain, plain_cvm = passthrough_pair(lab, "beta1-7732s", "beta1", 7732)
            for sock in {"client": (client.sock, plain), "cvm": (cvm, plain_cvm), "both": (client.sock, cvm, plain, plain_cvm)}[first]:
                sock.close()
            for sock in (client.sock, cvm, plain, plain_cvm):
                sock.close()
        return refused() - before
    # A socket of an earlier row, which is rightly refused, may repeat itself meanwhile, but not each time.
    counts = []
    while len(counts) < 3 and 0 not in counts:
        counts.append(ends())
    expect(0 in counts, f"packets refused towards CVMs, in three tries: {counts}")


@topic.row("a connection that waits in TIME_WAIT still answers its CVM")
def _(lab):
    with Victim(lab) as victim, listening(lab, "beta1", 7733) as listener:
        with call(lab, victim, uid=65534, port=7733) as sock:
            cvm = accept(listener)
            sock.setblocking(True)
            sock.shutdown(socket.SHUT_WR)
            equal(cvm.recv(1), b"", "the end, at the CVM")
            out = victim.cvm.ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            out.bind((victim.device, 3))
            cvm.close()
            sock.settimeout(LIMIT)
            equal(sock.recv(1), b"", "the end, at the gateway")
            last = None
            with out:
                out.settimeout(LIMIT)
                while last is None:
                    packet, address = out.recvfrom(2048)
                    if address[2] == PACKET_OUTGOING and packet[9] == TCP and packet[33] & 1:
                        last = packet[:20] + transport(victim.address, TUNNEL_GATEWAY, TCP, packet[20:36] + b"\0\0" + packet[38:], 16)
        victim.came(0.5)
        with Attacker(lab, "beta1") as again:           # as if its acknowledgement had been lost
            again.sock.sendto(again.link + (b"\x08\0" if again.link else b"") + last, (again.device, ETH_P_IP))
            is_ack = lambda packet: packet[9] == TCP and packet[33] & 16
            expect(any(map(is_ack, victim.came(1.0 * SLOW, is_ack))), "acknowledged again")
    equal(victim.refused() - victim.refused_before, 0, "packets refused")


@topic.row("a connection that was reset: a CVM that did not hear it is told once more, and of no other port")
def _(lab):
    with Victim(lab) as victim, listening(lab, "beta1", 7734) as listener:
        with call(lab, victim, uid=65534, port=7734) as sock:
            port = sock.getsockname()[1]
            cvm = accept(listener)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(ConnectionResetError):
            cvm.recv(1)
        cvm.close()
        late = lambda: lab.json("guard", "show")["totals"].get("late", 0)
        with Attacker(lab, "beta1") as again:           # as if it had been lost
            for to_port, answers in ((port, 1), (port, 1), (port + 1, 0)):
                victim.came(0.2)
                before = late()
                packet = tcp(victim.address, TUNNEL_GATEWAY, 7734, to_port, 0x18, ack=4711, data=b"late")
                again.sock.sendto(again.link + (b"\x08\0" if again.link else b"") + packet, (again.device, ETH_P_IP))
                came = [packet for packet in victim.came(1.0 * SLOW if answers else 2 * MOMENT, is_reset) if packet[9] == TCP]
                equal([(packet[33] & 4, packet[24:28]) for packet in came], [(4, struct.pack("!I", 4711))] * answers,
                      f"resets from port {to_port}")
                equal(late() - before, answers, "counted")
    equal(victim.refused() - victim.refused_before, 0, "packets refused")
