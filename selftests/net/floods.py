# SPDX-License-Identifier: Apache-2.0
"""Floods: whatever one attacker sends, others are served meanwhile, it is counted, and nothing of it stays.

    attacker ┬ c0 ── n0 ─ gate ─ steer ─ listening ports          198.18.0.0/16 is nobody's, 198.19.0.0/28 the attacker's,
      client ┘                                                     and the gateway knows a way to both
"""
import contextlib, itertools, json, socket, struct, subprocess, time

from lab import tls
from lab.attack import TCP, checksum, ip6
from lab.lab import CLIENT, DOMAIN, GATEWAY, GATEWAY6, GUEST, SLOW, wait_until
from gate import ACK, ETH_P_IPV6, MODES, Raw, gate, mac, restart
from gate import counters as gate_counters
from kernel import flows, port_of
from rows import Topic, equal, expect, passthrough_pair, standard_pair
from slow import memory

HELLO_TIMEOUT = 2.0 * max(1, SLOW / 3)
HELLO_TIMEOUT_TEXT = f"{HELLO_TIMEOUT * 1000:.0f}ms"
CLIENT6 = "2001:db8::2"
SPOOFED, OWN = "198.18.0.0/16", "198.19.0.0/28"
RESETS_S = 1000                         # PH_RESETS_S
PAIRS = 3 if GUEST else 5               # of others' connections
KERNELS = 1 if GUEST else PAIRS - 1     # of them, at least: a hello that comes after the deferral is a worker's
GROWTH = 16 << 20                       # bytes of workers' memory that come and stay: buffers, session tickets


def setup(lab):
    lab.ready(**gate(Gate="tc", HelloTimeout=HELLO_TIMEOUT_TEXT))
    lab.gateway.sysctl("net.ipv4.tcp_synack_retries", 2)        # what waits for an answer is not for later rows
    lab.client.ip(f"route replace local {OWN} dev lo\n")
    lab.gateway.ip(f"route replace 198.18.0.0/15 via {CLIENT} dev n0\n")
    head = lab.directory / "flood.bin"
    head.write_bytes(tls.records(tls.client_hello(tls.sni(f"nobody-443s.{DOMAIN}"))))


topic = Topic("floods", setup)


@contextlib.contextmanager
def flood(lab, kind, number):
    """While one goes on. Yields a dictionary that has, afterwards, what it sent."""
    argv = [lab.build / "bench/flood", f"{kind}:{number}", f"{GATEWAY}:443", lab.directory / "flood.bin", 60 * SLOW]
    if kind in ("syn", "ack"):
        argv += [SPOOFED, "c0", mac(lab.gateway, "n0").hex(":")]
    else:
        argv.append(OWN)
    child = lab.client.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sent = {}
    try:
        expect(child.stdout.readline() == "flooding\n", "it began")
        yield sent
        expect(child.poll() is None, "it went on all the time")
        child.terminate()
        sent.update(json.loads(child.communicate(timeout=10 * SLOW)[0]))
    finally:
        child.kill()
        child.wait()


def active(lab):
    """Connections that workers have."""
    return sum(worker["active"] for worker in lab.workers())


def is_spliced(lab, *clients):
    """How many of these are the kernel's."""
    ports = [client.getsockname()[1] for client in clients]
    return sum(port_of(flow) in ports and (flow["state"], flow["path"]) == ("spliced", "kernel") for flow in flows(lab))


def serve(lab, times):
    """Connections of each kind by somebody else. Returns how many of the passthrough ones the kernel carried."""
    spliced = 0
    for _ in range(times):
        client, cvm = passthrough_pair(lab, "alpha1-7811s", "alpha1", 7811)
        spliced += is_spliced(lab, client)
        client.close()
        cvm.close()
        client, cvm = standard_pair(lab, "alpha1-7812", "alpha1", 7812)
        client.sock.close()
        cvm.close()
    return spliced


@contextlib.contextmanager
def no_trace(lab):
    """Afterwards neither workers nor the kernel hold anything of it."""
    serve(lab, 1)
    before = memory(lab)
    yield
    wait_until(lambda: not active(lab), 10 + 3 * HELLO_TIMEOUT, "workers have no connection any more")
    wait_until(lambda: not [flow for flow in flows(lab) if flow["state"] in ("collecting", "binding", "spliced")], 10, "nor steer")
    wait_until(lambda: not waiting(lab), 20, "nor the listener's queue")
    grown = memory(lab) - before
    # The address sanitizer keeps what is freed.
    expect(grown < GROWTH or lab.sanitized, f"the workers are {grown >> 10} KiB larger than before")


def count(lab, reason):
    """Of connections, by workers and the kernel path."""
    return lab.json("status")["totals"].get(reason, 0)


def resets(lab):
    """That the gateway's kernel sent."""
    with lab.gateway.inside(), open("/proc/thread-self/net/snmp") as file:
        names, numbers = [line.split() for line in file if line.startswith("Tcp:")]
    return int(numbers[names.index("OutRsts")])


def waiting(lab):
    """In the listener's queue."""
    return lab.gateway.run(["ss", "-Htn", "state", "syn-recv"]).stdout.splitlines()


@contextlib.contextmanager
def answered_natively(lab, mode):
    """A veth hands on what native XDP answers only to an end that has XDP too: a gate that watches nothing."""
    passes = lab.build.parent / "bpf/gate.bpf.o" if lab.sanitized else lab.build / "bpf/gate.bpf.o"
    if mode == "native":
        done = lab.client.run(["ip", "link", "set", "dev", "c0", "xdpdrv", "obj", passes, "sec", "xdp"])
        equal(done.returncode, 0, done.stderr)
    try:
        yield
    finally:
        lab.client.run(["ip", "link", "set", "dev", "c0", "xdpdrv", "off"])


for mode in MODES:
    @topic.row(f"{mode}: SYNs, spoofed: a client that is challenged is served all the same, over IPv4 by the kernel path",
               only="native" if mode == "generic" else None, seconds=60, mode=mode)
    def _(lab, mode):
        unproven = 20
        restart(lab, Gate=mode, UnprovenConnections=unproven, HelloTimeout=HELLO_TIMEOUT_TEXT)
        number = 10 + MODES.index(mode)     # clients of this mode's own: not known from before
        sources = {4: f"192.0.2.{number}", 6: f"2001:db8:{number}::2"}
        lab.client.ip(f"addr add {sources[4]}/24 dev c0\naddr add {sources[6]}/64 dev c0 nodad\n")
        lab.gateway.ip(f"route add 2001:db8:{number}::/64 dev n0\n")
        known = lambda: {row["source"] for row in lab.json("map", "dump", "gate_proven")}
        try:
            begun = time.monotonic()
            with answered_natively(lab, mode), no_trace(lab), flood(lab, "syn", 1000 if GUEST else 10000) as sent:
                wait_until(lambda: gate_counters(lab).get("challenged", 0) > 10 * unproven, 10, "most are challenged")
                for family, prefix in ((4, f"{sources[4]}/32"), (6, f"2001:db8:{number}::/64")):
                    expect(prefix not in known(), f"{prefix} is not known yet")
                    pairs = []
                    while len(pairs) < PAIRS or (prefix not in known() and len(pairs) < 20):    # some get in unasked
                        pairs.append(passthrough_pair(lab, "alpha1-7813s", "alpha1", 7813, family, source=sources[family]))
                    expect(prefix in known(), f"{prefix} is known")
                    by_kernel, all_of_them = is_spliced(lab, *(client for client, _ in pairs)), len(pairs)
                    least = all_of_them // 2 if GUEST else all_of_them - 1
                    expect(by_kernel >= least if family == 4 else not by_kernel,
                           f"{by_kernel} of {all_of_them} over IPv{family} are the kernel's")
                    for sock in itertools.chain(*pairs):
                        sock.close()
                expect(not any(row.startswith("198.18.") for row in known()), "nobody who does not exist is known")
                in_queue, most = len(waiting(lab)), unproven * (5 + time.monotonic() - begun)
                expect(in_queue <= most, f"{in_queue} in the listener's queue, of {most:.0f} at most")
            expect(sent["packets"] > 10 * unproven, f"{sent} were sent")
        finally:
            lab.client.ip(f"addr del {sources[4]}/24 dev c0\naddr del {sources[6]}/64 dev c0\n")
            lab.gateway.ip(f"route del 2001:db8:{number}::/64 dev n0\n")


@topic.row("ACKs, spoofed: so many are answered with a reset, not each", seconds=60)
def _(lab):
    restart(lab, Gate="tc", HelloTimeout=HELLO_TIMEOUT_TEXT)
    before, lost, begun = resets(lab), count(lab, "nobodys"), time.monotonic()
    with no_trace(lab), flood(lab, "ack", 3 * RESETS_S if GUEST else 20 * RESETS_S) as sent:
        wait_until(lambda: count(lab, "nobodys") > lost, 10, "some are not answered")
        expect(serve(lab, PAIRS) >= KERNELS, "others' connections are the kernel's")
    answered, lost = resets(lab) - before, count(lab, "nobodys") - lost
    most = RESETS_S * (time.monotonic() - begun + 1)
    expect(RESETS_S <= answered <= most, f"{answered} were answered, of {most:.0f} at most")
    expect(answered + lost >= (0.7 if GUEST else 0.9) * sent["packets"],
           f"{answered} answered and {lost} not are all of {sent['packets']}")
    with Raw(lab) as raw:
        for payload in (b"", b"data"):          # few are all answered: a client that was forgotten learns so
            def one():
                raw.tcp(flags=ACK, source_port=4001, payload=payload)
                return resets(lab) > before
            before = resets(lab)
            wait_until(one, 5, f"a reset for an ACK with {payload}")


@topic.row("ACKs over IPv6: the same", only="native")
def _(lab):
    ends = [socket.inet_pton(socket.AF_INET6, address) for address in (CLIENT6, GATEWAY6)]
    for payload in (b"", b"data"):
        lost, answered, begun = count(lab, "nobodys"), resets(lab), time.monotonic()
        segment = struct.pack("!HHIIBBHHH", 4001, 443, 1, 2, 5 << 4, ACK, 1000, 0, 0) + payload
        total = checksum(b"".join(ends) + struct.pack("!II", len(segment), TCP) + segment)
        packet = ip6(CLIENT6, GATEWAY6, TCP, segment[:16] + struct.pack("!H", total) + segment[18:])
        with Raw(lab) as raw:
            for _ in range(4 * RESETS_S):
                raw.sock.send(raw.ethernet + struct.pack("!H", ETH_P_IPV6) + packet)
        lost, answered, most = count(lab, "nobodys") - lost, resets(lab) - answered, RESETS_S * (time.monotonic() - begun + 1)
        expect(0 < answered <= most and lost >= 4 * RESETS_S - most, f"with {payload}: {answered} answered, {lost} not, of {most:.0f}")


@topic.row("hellos over budget: dropped, and others are served", only="native", seconds=60)
def _(lab):
    restart(lab, Gate="tc", HelloTimeout=HELLO_TIMEOUT_TEXT, HellosPerSource=20, HellosBurst=20)
    over, refused = gate_counters(lab).get("over-hellos", 0), count(lab, "unknown-id")
    with no_trace(lab), flood(lab, "hello", 128):
        wait_until(lambda: gate_counters(lab).get("over-hellos", 0) >= over + 100, 20, "most are over budget")
        expect(serve(lab, 2) >= 1, "others' connections are the kernel's")
    expect(count(lab, "unknown-id") > refused, "those within it are told what is wrong")


MANY = 100 if GUEST else 1500


@topic.row("connections that say a byte a second: closed in time, others are served", kind="slow", reason="hello-timeout", seconds=90)
@topic.row("connections that never speak: closed in time, others are served", kind="silent", reason="silent", only="native", seconds=90)
def _(lab, kind, reason):
    restart(lab, Gate="tc", HelloTimeout=HELLO_TIMEOUT_TEXT)
    ended = count(lab, reason)
    with no_trace(lab), flood(lab, kind, MANY) as sent:
        expect(serve(lab, 2) >= 1, "others' connections are the kernel's")
        wait_until(lambda: count(lab, reason) >= ended + MANY, 10 + 5 * HELLO_TIMEOUT, "as many as there are end")
        wait_until(lambda: active(lab) <= MANY + 10, 5, f"no more than {MANY} connections")     # a worker counts once a turn
        expect(serve(lab, 2) >= 1, "others' connections are the kernel's")
    expect(sent["connections"] > MANY, f"{sent} were begun: others take the place of those that are closed")


@topic.row("off again: the next topic has none")
def _(lab):
    lab.gateway.sysctl("net.ipv4.tcp_synack_retries", 5)
    lab.restart(**gate(Gate="off"))
