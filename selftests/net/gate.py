# SPDX-License-Identifier: Apache-2.0
"""The gate: who floods, is listed, or sends what no client does is dropped at the NIC; nobody else notices.

    client ─ n0 ─ gate ─ steer ─ listening ports           another port, ping, neighbour discovery: as without
"""
import contextlib, json, os, signal, socket, struct

from lab.lab import CLIENT, GATEWAY, GATEWAY6, GUEST, SLOW, wait_until
from kernel import is_alive, kernel_pair
from rows import LIMIT, Topic, accept, equal, expect, passthrough_pair, read_exactly, standard_pair

ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q = 0x0800, 0x86dd, 0x8100
FIN, SYN, RST, ACK = 1, 2, 4, 16
OTHER_PORT = 2222
MODES = ("tc", "generic", "native")
ADDRESS = {4: f"{CLIENT}/32", 6: "2001:db8::/64"}


def gate(**settings):
    return {"Gateway": {"Nic": "n0", **settings}}


def setup(lab):
    lab.ready(**gate(Gate="tc"))


topic = Topic("gate", setup)


def restart(lab, **settings):
    """phalad with another gate, its counters as they were."""
    lab.restart(**gate(**settings))
    for cvm in lab.cvms.values():
        cvm.handshake()
    lab.wait_healthy()


def counters(lab):
    return lab.json("gate", "show")["counters"]


@contextlib.contextmanager
def counted(lab, reason, times=1, least=False):
    """Just so many packets, or at least so many, are counted for it."""
    before = counters(lab).get(reason, 0)
    yield
    got = lambda: counters(lab).get(reason, 0) - before
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: got() >= times, 3, reason)
    expect(got() >= times if least else got() == times, f"{reason}: {got()} packets, not {times}")


def mode_of(lab, device="n0"):
    devices = {row["device"]: row["mode"] for row in lab.json("gate", "show")["devices"]}
    return devices.get(device, "off")


def attached(lab, device="n0"):
    """As others see it: what is in tc and what as XDP."""
    filters = lab.gateway.run(["tc", "filter", "show", "dev", device, "ingress"]).stdout
    link = lab.gateway.run(["ip", "-d", "link", "show", "dev", device]).stdout
    found = {"tc"} if "gate_tc" in filters else set()
    if "prog/xdp" in link:
        found.add("generic" if "xdpgeneric" in link else "native")
    return found


def in_mode(lab, mode):
    if mode_of(lab) != mode:
        restart(lab, Gate=mode)


def is_shut(lab, family=4):
    """No answer at all to a client's SYN."""
    sock = lab.client.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
    with sock:
        sock.settimeout(0.5)
        try:
            sock.connect((GATEWAY if family == 4 else GATEWAY6, 443))
        except TimeoutError:
            return True
    return False


def is_open(lab, family=4):
    lab.connect(family).close()
    return True


@contextlib.contextmanager
def listed(lab, kind, prefix, *options):
    lab.ctl(kind, "add", prefix, *options)
    try:
        yield
    finally:
        lab.ctl(kind, "remove", prefix, check=False)


def others_are_untouched(lab):
    """A port that is not the gateway's, ping, and neighbour discovery from nothing, by both families."""
    with lab.gateway.listen(OTHER_PORT) as listener:
        listener.settimeout(LIMIT)
        with lab.client.connect(GATEWAY, OTHER_PORT, timeout=LIMIT) as client, accept(listener) as server:
            client.sendall(b"x")
            equal(server.recv(1), b"x", "what another port gets")
    for address in (GATEWAY, GATEWAY6):
        lab.client.ip("neigh flush dev c0\n")
        done = lab.client.run(["ping", "-c", "1", "-W", int(5 * SLOW), address])
        equal(done.returncode, 0, f"ping of {address}: {done.stdout}")


def mac(ns, device):
    text = json.loads(ns.run(["ip", "-j", "link", "show", "dev", device]).stdout)[0]["address"]
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


class Raw:
    """Frames of any kind from the client's device."""
    def __init__(self, lab):
        self.ethernet = mac(lab.gateway, "n0") + mac(lab.client, "c0")
        self.sock = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.sock.bind(("c0", 0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def tcp(self, flags=SYN, source=CLIENT, port=443, total=0, fragment=0, doff=5, source_port=4000, payload=b"", tag=None):
        tcp = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, doff << 4, flags, 1000, 0, 0) + payload
        ends = socket.inet_aton(source) + socket.inet_aton(GATEWAY)
        padded = tcp + b"\0" * (len(tcp) % 2)
        sum_of = checksum(ends + struct.pack("!HH", 6, len(tcp)) + padded)
        tcp = tcp[:16] + struct.pack("!H", sum_of) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp) + total, 1, fragment, 64, 6, 0) + ends
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        vlan = b"" if tag is None else struct.pack("!HH", ETH_P_8021Q, tag)
        self.sock.send(self.ethernet + vlan + struct.pack("!H", ETH_P_IP) + ip + tcp)


BAD = (
    ("bad-flags", {"flags": SYN | FIN}), ("bad-flags", {"flags": SYN | RST}), ("bad-flags", {"flags": 0}),
    ("syn-ack", {"flags": SYN | ACK}), ("land", {"source": GATEWAY}), ("bad-source", {"source": "127.0.0.1"}),
    ("bad-source", {"source_port": 0}), ("fragment", {"fragment": 0x2000}), ("fragment", {"fragment": 1}),
    ("bad-length", {"total": 100}), ("bad-length", {"doff": 4}), ("bad-length", {"doff": 15}),
)

for mode in MODES:
    where = {"only": "native"} if mode == "generic" else {}      # guests have no time
    @topic.row(f"{mode}: attached so, and connections of each kind go through", **where, mode=mode)
    def _(lab, mode):
        restart(lab, Gate=mode)
        equal((mode_of(lab), attached(lab)), (mode, {mode}), "how it is attached")
        spliced = lambda: sum(row["count"] for row in lab.json("map", "dump", "reasons") if row["reason"] == "spliced")
        before = spliced()
        for family in (4, 4, 4, 6):
            for sock in passthrough_pair(lab, "alpha1-7801s", "alpha1", 7801, family):
                sock.close()
        expect(spliced() > before, "steer behind it has its share")
        # A client that is answered late says it again.
        with counted(lab, "connection", least=GUEST), counted(lab, "hello", least=GUEST):
            client, cvm = standard_pair(lab, "alpha1-7802", "alpha1", 7802)
        data = os.urandom(1 << 18)
        client.send(data)
        equal(read_exactly(cvm, len(data)), data, "what arrives")
        client.sock.close()
        cvm.close()
        others_are_untouched(lab)

    @topic.row(f"{mode}: denied: nothing of it gets in, running connections included, and the rest of the machine does", **where, mode=mode)
    def _(lab, mode):
        in_mode(lab, mode)
        client, cvm = passthrough_pair(lab, "alpha1-7803s", "alpha1", 7803)
        with client, cvm:
            with listed(lab, "deny", ADDRESS[4], "--reason", "a test"):
                with counted(lab, "denied", least=True):
                    client.sendall(b"late")
                expect(is_shut(lab) and is_open(lab, 6), "one family is shut")
                others_are_untouched(lab)
            equal(read_exactly(cvm, 4), b"late", "what comes once it is no longer denied")
        with listed(lab, "deny", ADDRESS[6]):
            expect(is_shut(lab, 6) and is_open(lab), "the other family is shut")
            others_are_untouched(lab)
        expect(is_open(lab) and is_open(lab, 6), "both are open again")

    @topic.row(f"{mode}: allowed: over the deny list and over budget", **where, mode=mode)
    def _(lab, mode):
        in_mode(lab, mode)
        with listed(lab, "deny", "192.0.2.0/24"), listed(lab, "allow", CLIENT):
            with counted(lab, "allowed", least=True):
                expect(is_open(lab), "an allowed address within a denied prefix")
        with listed(lab, "deny", CLIENT), listed(lab, "allow", "192.0.2.0/24"):
            expect(is_open(lab), "a denied address within an allowed prefix")

    @topic.row(f"{mode}: frames that no client sends are dropped, each for its reason, and elsewhere not even looked at", **where, mode=mode)
    def _(lab, mode):
        in_mode(lab, mode)
        with Raw(lab) as raw:
            for reason, frame in BAD:
                with counted(lab, reason):
                    raw.tcp(**frame)
            before = counters(lab)
            for _, frame in BAD:
                raw.tcp(**{**frame, "port": OTHER_PORT, **({"fragment": 0x2000} if frame.get("fragment") else {})})
            with counted(lab, "bad-flags"):
                raw.tcp(flags=0)
            after = counters(lab)
            # Lengths within IP alone: whose port it is cannot be told, and whose address it is counts.
            for reason in ("syn-ack", "land", "bad-source", "fragment"):
                equal(after.get(reason), before.get(reason), f"packets to another port that were counted as {reason}")

    @topic.row(f"{mode}: over budget: a burst, then no more, and another source is not concerned", **where, mode=mode)
    def _(lab, mode):
        restart(lab, Gate=mode, ConnectionsPerSource=1, ConnectionsBurst=8)
        try:
            source = f"192.0.2.{50 + MODES.index(mode)}"     # one that owes nothing yet
            lab.client.ip(f"addr add {source}/24 dev c0\n")
            with Raw(lab) as raw:
                before = counters(lab)
                for i in range(30):
                    raw.tcp(flags=SYN, source=source, source_port=5000 + i)
                wait_until(lambda: sum(counters(lab).get(one, 0) - before.get(one, 0)
                                       for one in ("connection", "over-connections")) >= 30, 5, "all are counted")
            over = counters(lab).get("over-connections", 0) - before.get("over-connections", 0)
            expect(15 <= over <= 22, f"{over} of 30 SYNs were over a budget of 8 and one a second")
            expect(is_open(lab), "another source")
            sources = {row["source"]: row["dropped"] for row in lab.json("gate", "show")["sources"]}
            equal(sources.get(f"{source}/32"), over, "what gate show says of the source")
        finally:
            lab.client.ip(f"addr del {source}/24 dev c0\n")

    @topic.row(f"{mode}: ClientHellos over budget: dropped, and served when the client says them again", only="native", mode=mode)
    def _(lab, mode):
        restart(lab, Gate=mode, HellosPerSource=2, HellosBurst=2)
        with counted(lab, "over-hellos", least=True):
            for _ in range(6):
                for sock in passthrough_pair(lab, "alpha1-7804s", "alpha1", 7804):
                    sock.close()

    @topic.row(f"{mode}: without phalad: attached, lists enforced, and adopted when it is back", only="native", mode=mode)
    def _(lab, mode):
        restart(lab, Gate=mode)
        lab.ctl("deny", "add", CLIENT)
        try:
            for pid in lab.processes().values():
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not lab.processes(), 5, "phalad is dead")
            equal(attached(lab) & {mode}, {mode}, "still attached")
            with lab.gateway.listen(443, address=GATEWAY), lab.gateway.listen(OTHER_PORT):
                expect(is_shut(lab), "denied without phalad")
                lab.client.connect(GATEWAY, OTHER_PORT, timeout=LIMIT).close()
                lab.ctl("deny", "remove", CLIENT)
                expect(is_open(lab), "and no longer, once phalactl took it off")
                lab.ctl("deny", "add", CLIENT)
            lab.start(**gate(Gate=mode))
            equal((mode_of(lab), attached(lab)), (mode, {mode}), "how it is attached afterwards")
            expect(is_shut(lab), "denied after a restart")
        finally:
            lab.ctl("deny", "remove", CLIENT, check=False)
        expect(is_open(lab), "open again")

    @topic.row(f"{mode}: a NIC that goes and comes back", **where, mode=mode)
    def _(lab, mode):
        in_mode(lab, mode)
        lab.gateway.ip("link del n0\n")
        lab.connect_client()
        wait_until(lambda: attached(lab) == {mode}, 10, "the gate is on it again")
        wait_until(lambda: is_open(lab), 10, "it is open")


@topic.row("tc: a tag that names no VLAN is no way past it, and one that does is another device's", only="native")
def _(lab):
    in_mode(lab, "tc")
    with Raw(lab) as raw:
        with counted(lab, "bad-flags"):
            raw.tcp(flags=0, tag=0)
        with counted(lab, "bad-flags"):
            raw.tcp(flags=0, tag=7)
            raw.tcp(flags=0, tag=7 << 13)           # a priority
        expect(is_open(lab), "a connection")


@topic.row("expiry: the kernel keeps to it without phalad, and phalad takes it off the list", only="native")
def _(lab):
    restart(lab, Gate="tc")
    lab.ctl("deny", "add", CLIENT, "--for", f"{4 * SLOW:.0f}s", "--reason", "for a moment")
    row, = lab.json("deny", "list")
    equal((row["prefix"], row["reason"]), (f"{CLIENT}/32", "for a moment"), "the list")
    manager = lab.processes()["manager"]
    os.kill(manager, signal.SIGSTOP)
    try:
        expect(is_shut(lab), "denied")
        wait_until(lambda: not is_shut(lab), 10, "it is open")
        equal(len(lab.json("map", "dump", "deny")), 1, "prefixes in the map: the kernel has forgotten none")
    finally:
        os.kill(manager, signal.SIGCONT)
    wait_until(lambda: not lab.json("map", "dump", "deny"), 5, "phalad takes it off")
    equal(lab.json("deny", "list"), [], "the list")


@topic.row("from one way of attaching to another, and off: never two at a time, and nobody else's is touched", only="native", seconds=90)
def _(lab):
    for mode in ("native", "tc", "generic", "native"):
        lab.restart(**gate(Gate=mode))
        equal((mode_of(lab), attached(lab)), (mode, {mode}), f"with Gate = {mode}")
    lab.restart(**gate(Gate="off"))
    wait_until(lambda: not attached(lab), 5, "with Gate = off it is nowhere")
    expect("steer_nic" in lab.gateway.run(["tc", "filter", "show", "dev", "n0", "ingress"]).stdout, "steer stays")
    lab.restart(**gate())
    equal((mode_of(lab), attached(lab)), ("tc", {"tc"}), "with Gate left out, on veth")


@topic.row("gate before steer, whichever was there first")
def _(lab):
    restart(lab, Gate="tc")
    lab.gateway.run(["tc", "filter", "del", "dev", "n0", "ingress"])
    wait_until(lambda: attached(lab) == {"tc"}, 5, "it is back")
    wait_until(lambda: "steer_nic" in lab.gateway.run(["tc", "filter", "show", "dev", "n0", "ingress"]).stdout, 5, "so is steer")
    filters = lab.gateway.run(["tc", "filter", "show", "dev", "n0", "ingress"]).stdout
    expect(0 < filters.index("gate_tc") < filters.index("steer_nic"), filters)


@topic.row("lost links and filters are put back", only="native", seconds=60)
def _(lab):
    for mode in ("tc", "native"):
        lab.restart(**gate(Gate=mode))
        equal(attached(lab), {mode}, "before")
        if mode == "tc":
            lab.gateway.run(["tc", "filter", "del", "dev", "n0", "ingress"])
        else:
            lab.ctl("detach")
        wait_until(lambda: attached(lab) == {mode}, 5, f"{mode} is back")


@topic.row("somebody else's XDP program: told, theirs stays, and the gateway works on", only="native")
def _(lab):
    lab.restart(**gate(Gate="off"))
    wait_until(lambda: not attached(lab), 5, "it is nowhere")
    theirs = lab.build.parent / "bpf/gate.bpf.o" if lab.sanitized else lab.build / "bpf/gate.bpf.o"
    done = lab.gateway.run(["ip", "link", "set", "dev", "n0", "xdpgeneric", "obj", theirs, "sec", "xdp.frags"])
    equal(done.returncode, 0, done.stderr)
    before = lab.log.stat().st_size
    try:
        restart(lab, Gate="native")
        wait_until(lambda: "another XDP program is on the device" in lab.log.read_text()[before:], 5, "it is told")
        equal((mode_of(lab), attached(lab)), ("off", {"generic"}), "what is attached")
        expect(is_open(lab), "a connection")
    finally:
        lab.gateway.run(["ip", "link", "set", "dev", "n0", "xdpgeneric", "off"])


@topic.row("a device without native XDP, one that is not there, one that is no Ethernet: told, and the others have it", only="native", seconds=60)
def _(lab):
    lab.gateway.ip("link add d0 type bridge\nlink set d0 up\n")
    before = lab.log.stat().st_size
    try:
        lab.restart(Gateway={"Nic": ["n0", "d0", "absent0", "lo"], "Gate": "native"})
        told = lambda: lab.log.read_text()[before:]
        for text in ("gate: d0: gate: cannot be attached as native (driver bridge): the driver has no native XDP, "
                     "or not with these offloads; set Gate = tc, or Gate = generic",
                     "gate: absent0: no such device; waiting for it",
                     "gate: lo: not an Ethernet device"):
            wait_until(lambda: text in told(), 5, text)
        equal((mode_of(lab), mode_of(lab, "d0")), ("native", "off"), "what is attached")
        expect(is_open(lab), "a connection")
        troubles = {row["device"]: row["text"] for row in lab.json("gate", "show")["troubles"]}
        equal(sorted(troubles), ["absent0", "d0", "lo"], "devices with trouble")
        expect("set Gate = tc" in troubles["d0"], "gate show says what to do")
        equal({row["device"]: (row["mode"], row["trouble"]) for row in lab.json("status")["gate"]},
              {"n0": ("native", None), **{device: ("off", text) for device, text in troubles.items()}}, "status")
        for words in (("gate", "show"), ("status",)):
            said = lab.ctl(*words).stdout
            expect(all(f"{device}: {text}\n" in said for device, text in troubles.items()), f"{words}: {said}")
        manager = lab.processes()["manager"]
        os.kill(manager, signal.SIGSTOP)            # a manager that does not answer hides only that
        try:
            equal(lab.json("gate", "show")["troubles"], None, "troubles, when nobody says")
        finally:
            os.kill(manager, signal.SIGCONT)
        lab.restart(Gateway={"Nic": ["n0", "d0"], "Gate": "generic"})
        equal((mode_of(lab), mode_of(lab, "d0")), ("generic", "generic"), "what is attached as generic XDP")
        equal(lab.json("gate", "show")["troubles"], [], "troubles")
    finally:
        lab.gateway.ip("link del d0\n")


@topic.row("a gate that cannot be loaded: told, and all else works", only="native", seconds=60)
def _(lab):
    lab.stop()
    lab.ctl("detach", "--pins")
    # In the place of a map what is none stands for a kernel that lacks something; test_gate_load has those one by one.
    lab.gateway.run(["mkdir", "/sys/fs/bpf/phala/ph_deny"])
    try:
        lab.start(**gate(Gate="tc"))
        lab.wait_healthy()
        row, = [row for row in lab.json("status")["gate"] if row["trouble"]]
        equal((row["device"], row["mode"]), (None, "off"), "whose trouble it is")
        expect("gate: cannot load the programs with maps in /sys/fs/bpf/phala: " in row["trouble"], row["trouble"])
        said = lab.ctl("gate", "show", check=False)
        expect(said.returncode == 1 and f"all devices: {row['trouble']}\n" in said.stderr, f"gate show: {said.stderr}")
        equal(attached(lab), set(), "what is attached")
        client, cvm = kernel_pair(lab, "alpha1-7807s", "alpha1", 7807)
        is_alive(client, cvm)
        for sock in (client, cvm):
            sock.close()
    finally:
        lab.gateway.run(["rmdir", "/sys/fs/bpf/phala/ph_deny"])
    lab.restart(**gate(Gate="tc"))
    equal((mode_of(lab), lab.json("gate", "show")["troubles"]), ("tc", []), "once it can be")


@topic.row("a device that is no longer a Nic: neither gate nor steer stays on it", only="native", seconds=60)
def _(lab):
    filters = lambda device: lab.gateway.run(["tc", "filter", "show", "dev", device, "ingress"]).stdout
    lab.gateway.ip("link add d0 type bridge\nlink set d0 up\n")
    try:
        for mode in ("tc", "generic"):
            lab.restart(Gateway={"Nic": ["n0", "d0"], "Gate": mode})
            wait_until(lambda: "steer_nic" in filters("d0") and attached(lab, "d0") == {mode}, 5, f"both are on d0, with {mode}")
            lab.restart(**gate(Gate=mode))
            wait_until(lambda: "steer_nic" not in filters("d0") and not attached(lab, "d0"), 5, f"neither is, after {mode}")
            expect("steer_nic" in filters("n0") and attached(lab) == {mode}, "n0 has both")
            expect("steer_tunnel" in filters("t0") or "steer_tunnel" in filters("wg0"), "so has the tunnel its own")
        lab.restart(Gateway={"Nic": None})
        wait_until(lambda: "steer_nic" not in filters("n0") and not attached(lab), 5, "without any Nic neither is on n0")
        expect(is_open(lab), "a connection")
    finally:
        lab.gateway.ip("link del d0\n")


@topic.row("a device that is renamed: both go off it and that is told; one that gets the name has them", only="native", seconds=60)
def _(lab):
    filters = lambda device: lab.gateway.run(["tc", "filter", "show", "dev", device, "ingress"]).stdout
    has_both = lambda device: "steer_nic" in filters(device) and attached(lab, device) == {"tc"}
    lab.gateway.ip("link add d0 type bridge\nlink set d0 up\n")
    device = "d0"
    try:
        lab.restart(Gateway={"Nic": ["n0", "d0"], "Gate": "tc"})
        wait_until(lambda: has_both("d0"), 5, "both are on d0")
        logged = len(lab.log.read_text())
        lab.gateway.ip("link set d0 down\nlink set d0 name d1\nlink set d1 up\n")
        device = "d1"
        wait_until(lambda: "steer_nic" not in filters("d1") and not attached(lab, "d1"), 10, "neither is on d1")
        wait_until(lambda: lab.log.read_text()[logged:].count("d0: no such device; waiting for it") == 2, 5, "told by both")
        expect(has_both("n0"), "n0 has both")
        lab.gateway.ip("link set d1 down\nlink set d1 name d0\nlink set d0 up\n")
        device = "d0"
        wait_until(lambda: has_both("d0"), 10, "both are on d0 again")
    finally:
        lab.gateway.ip(f"link del {device}\n")


@topic.row("a wildcard: addresses that come later are watched too, and no longer once they go", only="native")
def _(lab):
    targets = lambda: {(row["address"], row["port"]) for row in lab.json("map", "dump", "gate_targets")}
    lab.restart(Gateway={"Nic": "n0", "Gate": "tc", "Listen": ["0.0.0.0:443", "[::]:443"]})
    try:
        expect({(GATEWAY, 443), (GATEWAY6, 443)} <= targets(), f"{targets()}")
        lab.gateway.ip("addr add 192.0.2.77/24 dev n0\n")
        wait_until(lambda: ("192.0.2.77", 443) in targets(), 5, "it is watched")
        with listed(lab, "deny", CLIENT):
            sock = lab.client.socket()
            sock.settimeout(0.5)
            with sock:
                equal(sock.connect_ex(("192.0.2.77", 443)) != 0, True, "it is shut")
    finally:
        lab.gateway.ip("addr del 192.0.2.77/24 dev n0\n")
    wait_until(lambda: ("192.0.2.77", 443) not in targets(), 5, "it is no longer watched")


@topic.row("detach: off all devices, with and without its maps; the lists are in their files", only="native", seconds=90)
def _(lab):
    for mode in ("tc", "native"):
        restart(lab, Gate=mode)
        lab.ctl("deny", "add", "203.0.113.0/24")
        lab.stop()
        equal(lab.json("detach")["gates"], ["n0"], "what it says")
        equal(attached(lab), set(), "what is attached")
        lab.ctl("detach", "--pins")
        equal(lab.ctl("gate", "show", check=False).returncode, 1, "gate show, when there is none")
        done = lab.ctl("deny", "add", "198.51.100.0/24")
        expect("enforced once phalad has made one" in done.stderr, done.stderr)
        lab.start(**gate(Gate=mode))
        equal([row["prefix"] for row in lab.json("map", "dump", "deny")], ["198.51.100.0/24", "203.0.113.0/24"],
              "what the new map has")
        for prefix in ("203.0.113.0/24", "198.51.100.0/24"):
            lab.ctl("deny", "remove", prefix)


@topic.row("a flood of SYNs from one source: others connect as if there were none", only="native", seconds=60)
def _(lab):
    restart(lab, Gate="tc", ConnectionsPerSource=100)
    with Raw(lab) as raw:
        for i in range(5000):
            raw.tcp(flags=SYN, source="192.0.2.60", source_port=1024 + i)
        for _ in range(20):
            expect(is_open(lab), "a connection meanwhile")
    expect(counters(lab).get("over-connections", 0) > 3000, "most of it was dropped")


INITIATION = struct.pack("<I", 1) + b"\0" * 144


@topic.row("WireGuard: handshake initiations over budget are dropped, data is not", only="wireguard")
def _(lab):
    lab.restart(Gateway={"Nic": ["n0", "u0"], "Gate": "tc", "HandshakesPerSource": 1, "HandshakesBurst": 100})
    for cvm in lab.cvms.values():
        cvm.handshake()
    lab.wait_healthy()
    with lab.cvms["alpha1"].ns.socket(kind=socket.SOCK_DGRAM) as sock:
        with counted(lab, "over-handshakes", least=True):
            for _ in range(300):
                sock.sendto(INITIATION, ("198.51.100.1", 51820))
    client, cvm = passthrough_pair(lab, "alpha1-7805s", "alpha1", 7805)
    with client, cvm:
        data = os.urandom(1 << 16)
        cvm.sendall(data)
        equal(read_exactly(client, len(data)), data, "what comes through the tunnel of the one that floods")


@topic.row("off again: the next topic has none")
def _(lab):
    lab.restart(**gate(Gate="off"))
    wait_until(lambda: not attached(lab), 5, "it is nowhere")
