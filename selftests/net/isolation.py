# SPDX-License-Identifier: Apache-2.0
"""A hostile CVM, and the gateway's own processes: what reaches nobody.

    another CVM ┐                        ┌ sockets
    another CVM ┼ tunnel ── guard ── gateway ── n0, u0, lo         everywhere: has anything come?
       attacker ┘   root, packet sockets                           at guard: were all counted, as what they are?
"""
import collections, json, os, random, signal, socket, struct, subprocess, time

from lab import attack
from lab.attack import ERRORS, ICMP, LATE, PROTOCOLS, TCP, UDP, Attacker, icmp, ip, ip6, tcp, udp
from lab.lab import CLIENT, GATEWAY, GATEWAY6, TUNNEL_GATEWAY, wait_until
from kernel import is_alive, kernel_pair
from rows import LIMIT, Topic, equal, expect, read_exactly, standard_pair

GUEST = bool(os.environ.get("PHALA_GUEST"))
NOBODYS = ("10.0.0.77", "10.0.1.99", "10.3.2.1", "10.255.255.254", "203.0.113.7")
STEERS = ("10.0.0.2", "10.0.0.9")               # steer's source addresses: from .2 on
GUARD_HANDLE = "0x70686c"


def setup(lab):
    if not lab.wireguard:               # else Linux speaks IPv6 by itself, which guard drops and counts
        for cvm in lab.cvms.values():
            cvm.ns.sysctl("net.ipv6.conf.t0.disable_ipv6", 1)
    lab.ready(Gateway={"Nic": "n0"}, Tunnel={} if lab.wireguard else {"Guard": "yes"})


topic = Topic("isolation", setup)


def guard(lab):
    """What it counted."""
    return lab.json("guard", "show")


def totals(lab):
    return collections.Counter({word: count for word, count in guard(lab)["totals"].items()
                                if word not in ("answer", "icmp", "sent", "steered", "arp", "late", "not-ours")})


def drops(lab, name):
    """{reason: count} of one CVM."""
    return {row["reason"]: row["count"] for row in guard(lab)["cvms"] if row["instance"] == name}


def others(lab):
    return [cvm.address for name, cvm in lab.cvms.items() if name != "alpha1"]


def gateways(lab):
    """The gateway's addresses on each interface."""
    return [TUNNEL_GATEWAY, GATEWAY, "198.51.100.1", "127.0.0.1"]


def everywhere(lab):
    """Addresses in use and addresses that are not."""
    return [*others(lab), *gateways(lab), *STEERS, CLIENT, "198.51.100.12", lab.cvms["alpha1"].address, *NOBODYS]


# What is sent: each a function of the lab and the attacker's address that gives packets. @sample: one in so many, or FEW: in a
# guest, where a packet takes a hundred times as long, what means something and some of the others.
FEW = 4

def some(known, sample, end=256):
    """One in @sample of the numbers below @end; the @known ones with them, where it is FEW."""
    return sorted({*range(0, end, sample), *(known if sample == FEW else ())})


def ports(lab, me, sample, protocol):
    """Each port of each address in use."""
    every, packets = range(1, 65536), []
    which = [*every[:100], *every[100:1024:16], *every[1024::256]] if sample == FEW else every[::sample]
    for address in [*others(lab), *gateways(lab)[:3]]:
        first = tcp(me, address, 40000, 0, 2) if protocol == TCP else udp(me, address, 40000, 0)
        packets += attack.to_ports(first, 36 if protocol == TCP else 26, which)
    return packets


def flags(lab, me, sample):
    """TCP with each combination of flags, without data and with, to ports that listen somewhere and others."""
    return [tcp(me, to, sport, dport, flags, data=data) for to in everywhere(lab) for flags in range(0, 256, sample)
            for sport, dport, data in ((40000, 443, b""), (80, 40000, b"GET / HTTP/1.0\r\n\r\n"), (8080, 33000, b""))]


def icmps(lab, me, sample):
    """ICMP of each type; errors with each code that is anything, which quote packets of this CVM's and of others'."""
    packets = []
    for to in everywhere(lab):
        packets += [icmp(me, to, kind, 0, 1, bytes(40)) for kind in some(range(44), sample)]
        for quoted in (tcp(to, me, 443, 40000, 16), tcp(to, others(lab)[0], 33000, 8080, 16),
                       tcp(GATEWAY, CLIENT, 443, 50000, 16), udp(to, me, 53, 53)):
            packets += [icmp(me, to, kind, code, 576, quoted[:length]) for kind in ERRORS for code in some(range(5), sample, 16)
                        for length in (28, len(quoted))]
        packets += [icmp(me, to, 5, code, 0x0a000001, tcp(to, me, 443, 40000, 16)) for code in range(4)]    # redirects
        packets += [icmp(me, to, kind, 0, 0, data) for kind in ERRORS for data in (b"", bytes(10), bytes(28), b"\x45" + bytes(19))]
    return packets


def protocols(lab, me, sample):
    return [ip(me, to, protocol, bytes(40)) for to in everywhere(lab) for protocol in some(PROTOCOLS, sample)]


def fragments(lab, me, sample):
    """First ones, later ones, tiny ones that hide the ports, and such as overlap."""
    packets = []
    for to in everywhere(lab):
        whole = tcp(me, to, 40000, 8080, 2, data=bytes(64))[20:], udp(me, to, 40000, 53, bytes(64))[20:], bytes(64)
        for protocol, payload in zip((TCP, UDP, ICMP), whole):
            packets += [ip(me, to, protocol, payload[:16], fragment=0x2000), ip(me, to, protocol, payload[16:], fragment=2),
                        ip(me, to, protocol, payload[:8], fragment=0x2000), ip(me, to, protocol, payload[8:], fragment=1),
                        ip(me, to, protocol, payload[:24], fragment=0x2001), ip(me, to, protocol, payload, fragment=0x1fff),
                        ip(me, to, protocol, payload, fragment=0x6000)]
    return packets


def options(lab, me, sample):
    """Loose and strict source routes through the gateway, record route, timestamps, router alert, and an odd one."""
    packets = []
    for to in everywhere(lab):
        for via in (TUNNEL_GATEWAY, others(lab)[0], GATEWAY):
            for kind in (131, 137):
                route = bytes((kind, 7, 4)) + socket.inet_aton(to) + b"\0"
                packets += [tcp(me, via, 40000, 8080, 2, options=route), udp(me, via, 40000, 53, options=route),
                            icmp(me, via, 8, options=route)]
        for odd in (b"\x07\x07\x04" + bytes(5), b"\x44\x08\x05\x00" + bytes(4), b"\x94\x04\x00\x00", b"\x82\x0b" + bytes(10),
                    b"\x01" * 40):
            packets += [tcp(me, to, 40000, 443, 2, options=odd), icmp(me, to, 8, options=odd)]
    return packets


def many(lab, me, sample):
    """To many at once."""
    groups = ("255.255.255.255", "224.0.0.1", "224.0.0.2", "224.0.0.22", "224.0.0.251", "224.0.1.1", "232.1.2.3", "239.255.255.250",
              "10.0.0.255", "10.0.0.0", "10.255.255.255", "10.0.1.255", "192.0.2.255", "198.51.100.255", "0.0.0.0")
    return [packet for to in groups for packet in (
        udp(me, to, 68, 67), udp(me, to, 5353, 5353), udp(me, to, 137, 137), icmp(me, to, 8), tcp(me, to, 40000, 443, 2),
        ip(me, to, 2, b"\x16\0\x09\x04" + socket.inet_aton("224.0.0.251")), ip(me, to, 89, bytes(40)),
        udp(me, to, 53, 53, options=b"\x94\x04\x00\x00"))]


def spoofed(lab, me, sample):
    """From addresses that are others'."""
    sources = [*others(lab), *gateways(lab), *STEERS, *NOBODYS, CLIENT, "0.0.0.0", "255.255.255.255", "224.0.0.1"]
    return [packet for source in sources for to in everywhere(lab) if source != me for packet in (
        tcp(source, to, 40000, 443, 2), tcp(source, to, 8080, 33000, 18), udp(source, to, 53, 53), icmp(source, to, 8),
        icmp(source, to, 3, 1, 0, tcp(to, source, 33000, 8080, 16)))]


def version6(lab, me, sample):
    sources = "fe80::1", "2001:db8::2", "::", f"::ffff:{me}", f"2002:{socket.inet_aton(me)[:2].hex()}:{socket.inet_aton(me)[2:].hex()}::1"
    targets = (GATEWAY6, "2001:db8::2", "fe80::1", "ff02::1", "ff02::2", "ff02::16", "ff05::2", "::1", f"::ffff:{others(lab)[0]}",
               "2001:db8:1::9")
    segment = struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 5 << 4, 2, 1000, 0, 0)
    return [packet for source in sources for to in targets for packet in (
        ip6(source, to, TCP, segment), ip6(source, to, UDP, struct.pack("!HHHH", 53, 53, 8, 0)),
        ip6(source, to, 58, b"\x80\0\0\0" + bytes(4)), ip6(source, to, 58, b"\x86\0\0\0" + bytes(12)),
        ip6(source, to, 58, b"\x88\0\0\0" + bytes(20)), ip6(source, to, 0, b"\x3a\0\x05\x02\0\0\0\0" + bytes(8)),
        ip6(source, to, 44, b"\x06\0\0\1" + bytes(12)), ip6(source, to, 43, b"\x06\x02\0\1" + bytes(20)), ip6(source, to, 4, bytes(40)))]


def malformed(lab, me, sample):
    packets = []
    for to in everywhere(lab):
        whole = tcp(me, to, 40000, 443, 2)
        packets += [ip(me, to, TCP, whole[20:20 + length]) for length in (0, 1, 4, 8, 12, 19)]
        packets += [ip(me, to, ICMP, bytes(length)) for length in (0, 1, 4, 7)]
        packets += [icmp(me, to, 3, 1, 0, whole[:length]) for length in (1, 19, 20, 23)]
        packets += [bytes([first]) + whole[1:] for first in (0x00, 0x40, 0x44, 0x55, 0x75, 0xf5)]
        packets += [whole[:length] for length in (1, 8, 19)]
        packets += [whole[:2] + struct.pack("!H", total) + whole[4:] for total in (0, 19, 41, 65535)]
        packets += [whole[:32] + bytes([doff << 4]) + whole[33:] for doff in (0, 4, 15)]
    return packets


def random_ones(lab, me, sample):
    """Headers at random, the same ones each time."""
    dice, packets = random.Random(4), []
    for _ in range(4000 // sample):
        packet = bytearray(ip(me, dice.choice(everywhere(lab)), dice.choice((TCP, UDP, ICMP, dice.randrange(256))),
                              dice.randbytes(dice.randrange(8, 80))))
        if dice.random() < 0.3:
            packet[dice.choice((0, 1, 6, 7, 8, 9))] = dice.randrange(256)
        packets.append(bytes(packet))
    return packets


MATRIX = (("TCP to each port of addresses in use", lambda *given: ports(*given, TCP)),
          ("UDP to each port of addresses in use", lambda *given: ports(*given, UDP)),
          ("TCP with each combination of flags", flags), ("ICMP of each type, errors about others' connections", icmps),
          ("each IP protocol", protocols), ("fragments", fragments), ("IP options", options), ("broadcast and multicast", many),
          ("sources that are others'", spoofed), ("IPv6", version6), ("malformed", malformed), ("headers at random", random_ones))


MUCH_LATE = 40          # beside hundreds of packets and more, which take their time


def agree(counted, wanted, what, most_late=LATE):
    equal(wanted - counted, collections.Counter(), f"sent, and not counted {what}")
    late = counted - wanted
    expect(not late - collections.Counter(uncalled=most_late), f"counted {what}, and not sent: {late}")


def strike(lab, attacker, packets, most_late=LATE):
    """Sends, and expects that nothing is seen anywhere and all is counted."""
    before = totals(lab)
    attacker.seen()
    wanted = attacker.send(packets)
    seen = attacker.seen()
    equal({name: len(what) for name, what in seen.items()}, {},
          "packets seen at places (one: " + next(iter(seen.values()))[0][:60].hex() + ")" if seen else "packets seen")
    agree(totals(lab) - before, wanted, "by guard", most_late)
    return wanted


for name, make in MATRIX:
    @topic.row(f"{name}: nothing arrives, nothing answers, all is counted", seconds=90, make=make)
    def _(lab, make):
        with Attacker(lab, "alpha1") as attacker:
            packets = make(lab, attacker.address, FEW if GUEST else 1)
            before = drops(lab, "alpha1")
            wanted = strike(lab, attacker, packets, MUCH_LATE)
            expect(wanted or lab.wireguard, "none of it was for guard")
            own = collections.Counter(attack.judge(packet) for packet in packets
                                      if attacker.leaves(packet) and attacker.passes_wireguard(packet) and len(packet) >= 20 and
                                      packet[12:16] == socket.inet_aton(attacker.address) and packet[0] >> 4 != 6)
            now = collections.Counter(drops(lab, "alpha1"))
            agree(now - collections.Counter(before), own, "of alpha1", MUCH_LATE)


PROBES = (lambda me, to, ttl: icmp(me, to, 8, ttl=ttl),                              # a ping
          lambda me, to, ttl: tcp(me, to, 40000, 443, 2, ttl=ttl),                   # SYNs, to ports of the gateway's and of CVMs'
          lambda me, to, ttl: tcp(me, to, 40000, 7722, 2, ttl=ttl),
          lambda me, to, ttl: tcp(me, to, 7722, 40000, 16, ttl=ttl),                 # an ACK
          lambda me, to, ttl: udp(me, to, 40000, 53, ttl=ttl),
          lambda me, to, ttl: icmp(me, to, 3, 1, 0, tcp(to, me, 40000, 443, 16), ttl=ttl))   # an error
# Of what the stack counts, what a packet from a CVM could add to if it came so far, and keepalives do not.
STACK = {"Ip": ("InHdrErrors", "InAddrErrors", "InUnknownProtos", "ForwDatagrams", "OutNoRoutes", "ReasmReqds", "FragCreates"),
         "Icmp": None, "IcmpMsg": None, "Tcp": ("PassiveOpens", "AttemptFails", "EstabResets", "InErrs", "OutRsts"),
         "Udp": ("NoPorts",)}


def stack_counters(lab):
    with lab.gateway.inside(), open("/proc/thread-self/net/snmp") as file:
        lines = [line.split() for line in file]
    return {f"{head[0]}{name}": number for head, numbers in zip(lines[::2], lines[1::2]) for name, number in zip(head[1:], numbers[1:])
            if (group := head[0][:-1]) in STACK and (STACK[group] is None or name in STACK[group])}


def traces(lab):
    """All that may be kept of a packet but guard's counters: the stack's, neighbours, flows, and entries of each map."""
    neighbours = sorted((row["dst"], row["dev"]) for row in json.loads(lab.gateway.run(["ip", "-j", "neigh", "show"]).stdout))
    flows = [{key: value for key, value in flow.items() if not key.endswith("_s")} for flow in lab.json("flow", "list")["flows"]]
    return {"stack": stack_counters(lab), "neighbours": neighbours, "flows": flows, "reasons": lab.json("map", "dump", "reasons"),
            "maps": {row["name"]: row.get("entries") for row in lab.json("map", "list")}}


def resting_address(lab):
    """Of a CVM that was removed, and that no other has yet."""
    lab.ctl("cvm", "add", "--app", "gamma", "--instance", "resting", "--generate-key")
    address = lab.json("cvm", "show", "resting")["address"]
    lab.ctl("cvm", "remove", "resting")
    return address


@topic.row("an address in use, one that rests and one that is nobody's: nothing tells them apart, not even here", seconds=60)
def _(lab):
    # Time is what differs when work does. So: each packet is dropped by the first program on the device, for the same
    # reason whoever has the address, and neither the stack nor any map hears of it.
    spliced = kernel_pair(lab, "beta1-7722s", "beta1", 7722)
    client, cvm = standard_pair(lab, "beta1-7723", "beta1", 7723)
    is_alive(*spliced)
    targets = {"a CVM with connections": lab.cvms["beta1"].address, "a CVM": lab.cvms["alpha2"].address,
               "the gateway": TUNNEL_GATEWAY, "one that rests": resting_address(lab),
               **{f"nobody's, {address}": address for address in NOBODYS}}
    with Attacker(lab, "alpha1") as attacker:
        quiet(lab, attacker)
        me = attacker.address
        attacker.send([probe(me, to, 64) for to in targets.values() for probe in PROBES])   # no counter is at 0 any more
        wait_until(lambda: len(lab.json("flow", "list")["flows"]) == 1, 10, "flows of earlier connections go")
        before, told = traces(lab), {}

        def counted(to):
            """Of the attacker, by these probes: an old connection may say something again meanwhile, but not each time."""
            for _ in range(5):
                start = collections.Counter(drops(lab, "alpha1"))
                wanted = strike(lab, attacker, [probe(me, to, ttl) for probe in PROBES for ttl in (1, 2, 64)])
                more = collections.Counter(drops(lab, "alpha1")) - start
                if more == wanted:
                    break
            return sorted(more.items())
        for target, to in targets.items():
            told[target] = counted(to)
        expect(len(set(map(str, told.values()))) == 1, f"reasons are {told}")
        after = traces(lab)
        for name, count in before.pop("stack").items():
            equal(after["stack"][name], count, f"{name} after the probes")
        # Old ones may go meanwhile, and the links' own come.
        new = set(after["neighbours"]) - set(before.pop("neighbours"))
        equal(sorted(one for one in new if not one[0].startswith("fe80:")), [], "neighbours that are new")
        for what in before:
            equal(after[what], before[what], f"{what} after the probes")
    is_alive(*spliced)
    for sock in (*spliced, client.sock, cvm):
        sock.close()


def quiet(lab, attacker, seconds=0.2):
    """Until what is under way has arrived: delayed acknowledgements, say."""
    def nothing():
        before = totals(lab)
        time.sleep(seconds)
        return not attacker.seen() and totals(lab) == before
    wait_until(nothing, 5 + 10 * seconds, "no packet for a while")


def guard_off(lab):
    """By somebody with the right to."""
    for side in ("ingress", "egress"):
        done = lab.gateway.run(["tc", "filter", "del", "dev", lab.tunnel, side, "prio", 2])
        equal(done.returncode, 0, f"tc: {done.stderr}")


def guards(lab):
    """How many of its two are there?"""
    return sum(GUARD_HANDLE in lab.gateway.run(["tc", "filter", "show", "dev", lab.tunnel, side]).stdout
               for side in ("ingress", "egress"))


@topic.row("the same without guard: it is seen at other CVMs, at the gateway's sockets and devices, and answered", seconds=90)
def _(lab):
    manager = lab.processes()["manager"]
    os.kill(manager, signal.SIGSTOP)            # who would put it back
    for cvm in lab.cvms.values():               # what they would say again and again is not for later rows
        cvm.ns.sysctl("net.ipv4.tcp_synack_retries", 0)
    try:
        guard_off(lab)
        with Attacker(lab, "alpha1") as attacker:
            seen = collections.Counter()
            for name, make in MATRIX:
                sample = 4001 if name.endswith("addresses in use") else 32
                packets = make(lab, attacker.address, sample)
                attacker.seen()
                attacker.send(random.Random(1).sample(packets, min(len(packets), 200)))
                time.sleep(0.05)                # what is answered is, soon; this only makes it likelier to be seen
                found = {place: len(what) for place, what in attacker.seen().items()}
                lab.say(f"without guard: {name}: {found}")
                seen.update(found)
        equal(sorted(seen), ["an answer", "another CVM", "another device", "the gateway's sockets"], "places that saw packets")
    finally:
        os.kill(manager, signal.SIGCONT)
    wait_until(lambda: guards(lab) == 2, 5, "guard is back")
    with Attacker(lab, "alpha1") as attacker:
        quiet(lab, attacker, 3.5)                   # so long does the kernel ask for who is not there
    for cvm in lab.cvms.values():
        cvm.ns.sysctl("net.ipv4.tcp_synack_retries", 5)


@topic.row("guard taken off, in one direction or both, or with all of clsact: back within a second or two, and told")
def _(lab):
    equal(guards(lab), 2, "there at the start")
    for words in (["filter", "del", "dev", lab.tunnel, "ingress", "prio", 2],
                  ["filter", "del", "dev", lab.tunnel, "egress", "prio", 2], ["qdisc", "del", "dev", lab.tunnel, "clsact"]):
        told = lab.log.read_text().count("took the guard off")
        equal(lab.gateway.run(["tc", *words]).returncode, 0, f"tc {words}")
        wait_until(lambda: guards(lab) == 2, 2.5, "guard is back")
        equal(lab.log.read_text().count("took the guard off"), told + 1, "lines about it")
    with Attacker(lab, "alpha1") as attacker:
        strike(lab, attacker, [tcp(attacker.address, to, 40000, 443, 2) for to in everywhere(lab)])


@topic.row("at a spliced and at a relayed connection of another CVM's, and their ICMP errors: nothing, and they go on")
def _(lab):
    spliced = kernel_pair(lab, "beta1-7720s", "beta1", 7720)
    client, cvm = standard_pair(lab, "beta1-7721", "beta1", 7721)
    victim = lab.cvms["beta1"].address
    is_alive(*spliced)                          # the kernel has let go of the client's request, and repeats no SYN-ACK
    with Attacker(lab, "alpha1") as attacker:
        me, packets = attacker.address, []
        quiet(lab, attacker)
        for sock in (spliced[1], cvm):
            (gateway, port), own = sock.getpeername(), sock.getsockname()[1]
            for source in (me, victim) if lab.wireguard else (me,):         # a bridge cannot tell who sends
                for flags in range(0, 256, 4 if GUEST else 1):
                    packets += [tcp(source, gateway, sport, port, flags, random.getrandbits(32), random.getrandbits(32), b"x" * size)
                                for sport in (own, 443) for size in (0, 100)]
                for kind in ERRORS:
                    for code in range(16):
                        packets += [icmp(source, gateway, kind, code, 576, tcp(gateway, to, port, own, 16)[:28]) for to in (victim, me)]
        strike(lab, attacker, packets)
    is_alive(*spliced)
    client.send(b"x" * 1000)
    equal(len(read_exactly(cvm, 1000)), 1000, "bytes to the CVM")
    cvm.sendall(b"y" * 1000)
    equal(len(client.recv_exactly(1000)), 1000, "bytes to the client")
    for sock in (*spliced, client.sock, cvm):
        sock.close()


@topic.row("guard watch: who sends much is told a few times, who sends little every time")
def _(lab):
    argv = [lab.build / "phalactl", "--config", lab.conf, "--json", "guard", "watch"]
    child = lab.gateway.start(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: lab.json("map", "dump", "guard_watch")[0]["watched"], 5, "it watches")
        start = time.monotonic()
        with Attacker(lab, "alpha1") as one, Attacker(lab, "alpha2") as other:
            for _ in range(3):
                one.send([udp(one.address, TUNNEL_GATEWAY, 40000, port) for port in range(1, 600)])
                other.send([tcp(other.address, one.address, 40000, 22, 2)])
        seconds = time.monotonic() - start
        expect(lab.ctl("guard", "watch", "--seconds", "1", check=False).returncode == 1, "a second one is refused")
        child.send_signal(signal.SIGINT)
        events = [json.loads(line) for line in child.communicate(timeout=LIMIT)[0].splitlines()]
    finally:
        child.kill()
        child.wait()
    # Not the gateway's ICMP, late from the row without guard, and not what CVMs say of connections of earlier rows.
    events = [event for event in events if event["reason"] != "not-ours" and event.get("from_port") == 40000]
    by = collections.Counter(event["instance"] for event in events)
    equal([(event["to"], event["to_port"], event["flags"]) for event in events if event["instance"] == "alpha2"],
          [(lab.cvms["alpha1"].address, 22, 2)] * 3, "events of who sent little")
    expect(16 <= by["alpha1"] <= 16 * (seconds + 2), f"{by['alpha1']} events in {seconds:.1f} s of who sent much")
    event = next(event for event in events if event["instance"] == "alpha2")
    equal({key: event[key] for key in ("app", "from", "to", "protocol", "from_port", "to_port", "flags", "bytes", "reason")},
          {"app": "alpha", "from": lab.cvms["alpha2"].address, "to": lab.cvms["alpha1"].address, "protocol": "tcp",
           "from_port": 40000, "to_port": 22, "flags": 2, "bytes": 40, "reason": "uncalled"}, "an event")


@topic.row("the log names a CVM that scans, once a minute, and those beside it")
def _(lab):
    setup(lab)                                  # a new manager has told of nobody yet
    logged = len(lab.log.read_text())
    lines = lambda name: lab.log.read_text()[logged:].count(f"guard: cvm {name} ")

    def scan(name):
        with Attacker(lab, name) as attacker:
            attacker.send([tcp(attacker.address, TUNNEL_GATEWAY, 40000, port, 2) for port in range(1, 200)])
    scan("beta1")
    wait_until(lambda: lines("beta1"), 12, "a line")
    scan("beta1")
    scan("alpha2")
    wait_until(lambda: lines("alpha2"), 12, "another CVM's line")
    equal((lines("beta1"), lines("alpha1")), (1, 0), "lines about who was told of, and about who did nothing")


@topic.row("what was counted of a CVM that is removed is not the next one's at its address", seconds=60)
def _(lab):
    lab.restart(Gateway={"Nic": "n0", "AddressQuarantine": "0s"}, Tunnel={} if lab.wireguard else {"Guard": "yes"})
    cvm = lab.cvms["beta1"]
    cvm.handshake()
    with Attacker(lab, "beta1") as attacker:
        attacker.send([tcp(attacker.address, TUNNEL_GATEWAY, 40000, 22, 2)] * 7)
    expect(drops(lab, "beta1")["uncalled"] >= 7, "counted of beta1")
    before = totals(lab)
    lab.broken = True
    lab.ctl("cvm", "remove", "beta1")
    lab.ctl("cvm", "add", "--app", "gamma", "--instance", "heir", "--generate-key")
    equal(lab.json("cvm", "show", "heir")["address"], cvm.address, "the next one's address")
    equal((drops(lab, "heir"), drops(lab, "beta1")), ({}, {}), "counted of it, and of the one that is gone")
    late = totals(lab) - before
    expect(not late - collections.Counter(uncalled=LATE), f"the totals have grown by {late}")
    lab.ctl("cvm", "remove", "heir")
    cvm.down()
    cvm.register()
    cvm.up()
    lab.wait_healthy()
    lab.broken = False
