# SPDX-License-Identifier: Apache-2.0
"""The kernel path under phalad where the way is bad: instances that do not answer, links that take less.

    far ──1500── mid ──1280── client ──1500── n0: steer ══ tunnel ══ alpha1: silent, refusing, unreachable
                                                              └───── alpha2: well
"""
import contextlib, os, time

from lab import netns, tls
from lab.lab import CLIENT, DOMAIN, SLOW
from kernel import count, kernel_pair, spliced
from rows import LIMIT, Topic, accept, equal, expect, listening, read_exactly, together

MIB = 1 << 20


def setup(lab):
    lab.ready(Gateway={"Nic": "n0"})


topic = Topic("ways", setup)


def connected(lab, port, reason, connections=12):
    """All are answered by alpha2, and all but one of ten within a second: a busy machine's client asks late. So many, and more
    until alpha1 was asked first."""
    hello = tls.records(tls.client_hello(tls.sni(f"alpha-{port}s.{DOMAIN}")))
    made, late, before, kernel = 0, 0, count(lab, reason), spliced(lab)
    with listening(lab, "alpha2", port) as listener:
        while made < connections or made < 40 and count(lab, reason) == before:
            made += 1
            start = time.monotonic()
            with lab.connect() as client:
                client.sendall(hello)
                with accept(listener) as cvm:
                    equal(read_exactly(cvm, len(hello)), hello, "the hello")
                    took = time.monotonic() - start
            expect(took < 3 * SLOW, f"connected after {took:.2f} s")
            late += took > SLOW
    expect(late <= made // 10, f"{late} of {made} connected after {SLOW:.0f} s")
    expect(count(lab, reason) > before, f"nobody was {reason}")
    expect(spliced(lab) - kernel >= made // 2, f"{spliced(lab) - kernel} of {made} by the kernel")


@contextlib.contextmanager
def route_changed(lab, kind):
    """What alpha1 does with packets to itself."""
    cvm = lab.cvms["alpha1"]
    device = "alpha1" if lab.wireguard else "t0"
    cvm.ns.sysctl("net.ipv4.icmp_ratelimit", 0)
    cvm.ns.sysctl("net.ipv4.ip_forward", 1)
    if not lab.wireguard:               # nobody answers for an address that is not local
        mac = cvm.ns.run(["ip", "-br", "link", "show", "t0"]).stdout.split()[2]
        lab.gateway.ip(f"neigh replace {cvm.address} lladdr {mac} dev t0 nud permanent\n")
    cvm.ns.ip(f"route del table local local {cvm.address} dev {device}\nroute add table local {kind} {cvm.address}\n")
    try:
        yield
    finally:
        cvm.ns.ip(f"route del table local {kind} {cvm.address}\nroute add table local local {cvm.address} dev {device} src "
                  f"{cvm.address} scope host proto kernel\n")
        if not lab.wireguard:
            lab.gateway.ip(f"neigh del {cvm.address} dev t0\n")


@topic.row("an instance that refuses, beside a healthy one: connected within a second", seconds=60)
def _(lab):
    connected(lab, 8101, "cvm-refused")


@topic.row("one that is silent", kind="blackhole", port=8102, reason="cvm-timeout", seconds=90)
@topic.row("one that is unreachable", kind="unreachable", port=8103, reason="cvm-unreachable", seconds=60)
def _(lab, kind, port, reason):
    with route_changed(lab, kind):
        connected(lab, port, reason)


def both_ways(pair, size=MIB):
    client, cvm = pair
    data = os.urandom(size)
    with client, cvm:
        for one, other in ((client, cvm), (cvm, client)):
            one.settimeout(LIMIT)
            other.settimeout(LIMIT)
            got = together(lambda: one.sendall(data), lambda: read_exactly(other, size))[1]
            expect(got == data, f"{len(got)} of {size} bytes arrived, or others than were sent")


@topic.row("a 1280-byte link behind the client: a megabyte each way", seconds=60)
def _(lab):
    mid, far = netns.Netns("mid"), netns.Netns("far")
    lab.client.ip("link add c1 type veth peer name m0 netns mid\nlink set c1 mtu 1280 up\naddr add 10.9.1.1/24 dev c1\n"
                  "route add 10.9.2.0/24 via 10.9.1.2\n")
    mid.ip("link set m0 mtu 1280 up\naddr add 10.9.1.2/24 dev m0\nroute add default via 10.9.1.1\n"
           "link add m1 type veth peer name f0 netns far\nlink set m1 up\naddr add 10.9.2.1/24 dev m1\n")
    far.ip("link set f0 up\naddr add 10.9.2.2/24 dev f0\nroute add default via 10.9.2.1\n")
    lab.gateway.ip(f"route add 10.9.2.0/24 via {CLIENT}\n")
    for ns in (mid, lab.client):
        ns.sysctl("net.ipv4.ip_forward", 1)
    before, client = count(lab, "icmp-passed"), lab.client
    try:
        lab.client = far
        both_ways(kernel_pair(lab, "alpha1-8104s", "alpha1", 8104))
    finally:
        lab.client = client
        client.ip("link del c1\n")
        client.sysctl("net.ipv4.ip_forward", 0)
        lab.gateway.ip("route del 10.9.2.0/24\n")
    expect(count(lab, "icmp-passed") > before, "no ICMP error was translated")


@topic.row("a tunnel of 1280 bytes, and one of 576: a megabyte each way", seconds=90)
def _(lab):
    for mtu in (1280, 576):
        if not lab.wireguard:           # the device is ours to configure
            lab.gateway.ip(f"link set t0 mtu {mtu}\n")
        lab.ready(Gateway={"Nic": "n0"}, Tunnel={"Mtu": mtu})
        both_ways(kernel_pair(lab, "alpha1-8105s", "alpha1", 8105))
    if not lab.wireguard:
        lab.gateway.ip("link set t0 mtu 1500\n")
    setup(lab)


# Of a WireGuard device phalad keeps the MTU as it is configured.
@topic.row("a tunnel that becomes narrower while bytes go through it", only="external", seconds=60)
def _(lab):
    lab.client.ip("route flush cache\n")        # what the client learned of the path before
    before, pair = count(lab, "too-big"), kernel_pair(lab, "alpha1-8106s", "alpha1", 8106)
    lab.gateway.ip(f"link set {lab.tunnel} mtu 1280\n")
    lab.cvms["alpha1"].ns.ip("link set t0 mtu 1280\n")
    try:
        both_ways(pair)
    finally:
        lab.gateway.ip(f"link set {lab.tunnel} mtu 1500\n")
        lab.cvms["alpha1"].ns.ip("link set t0 mtu 1500\n")
    expect(count(lab, "too-big") > before, "nobody was told that a packet was too big")
