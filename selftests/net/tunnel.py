# SPDX-License-Identifier: Apache-2.0
"""Kernel WireGuard, health, and what must not cross.

    client ── n0 gateway wg0 ~~~ UDP over u0, fabric ~~~ wg in alpha1, alpha2, beta1
"""
import contextlib, errno, os, signal, socket, subprocess, threading, time

from lab import tls
from lab.capture import Capture
from lab.lab import CLIENT, DOMAIN, GATEWAY, SLOW, TUNNEL_GATEWAY, wait_until, wg
from rows import LIMIT, Topic, equal, expect, listening, passthrough_pair, read_exactly, standard_pair
from choice import spread
from processes import alive, works


def setup(lab):
    lab.ready()


topic = Topic("tunnel", setup)


@topic.row("a CVM reaches another by its public name")
def _(lab):
    sock = lab.cvms["alpha1"].ns.connect(GATEWAY, 443, timeout=LIMIT)
    with tls.Tls(sock, tls.client_context(authority=lab.authority.pem), f"beta1-8080.{DOMAIN}").handshake() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"beta1\n"), "beta1 answers")


def wg_show(lab, what):
    """{public key: value}"""
    lines = lab.gateway.run(["wg", "show", "wg0", what]).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


@topic.row("each peer has one /32, its own", only="wireguard")
def _(lab):
    equal(wg_show(lab, "allowed-ips"), {wg("pubkey", cvm.key): cvm.address + "/32" for cvm in lab.cvms.values()},
          "allowed IPs")


@topic.row("the CVM's side has keepalive and the gateway's prefix", only="wireguard")
def _(lab):
    for name, cvm in lab.cvms.items():
        show = cvm.ns.run(["wg", "show", name]).stdout
        expect("persistent keepalive: every 25 seconds" in show and "allowed ips: 10.0.0.0/24" in show, show)


@topic.row("a blackhole lies behind the CVM range", only="wireguard")
def _(lab):
    routes = lab.gateway.run(["ip", "route", "show", "10.0.0.0/8"]).stdout
    expect("blackhole 10.0.0.0/8" in routes and "dev wg0" in routes, routes)


@topic.row("a peer is added and removed while traffic flows, and the others' sessions stay", only="wireguard")
def _(lab):
    handshakes = wg_show(lab, "latest-handshakes")
    client, cvm = passthrough_pair(lab, "alpha1-7600s", "alpha1", 7600)
    with client, cvm:
        for i in range(3):
            lab.ctl("cvm", "add", "--app", "gamma", "--instance", f"gamma{i}", "--generate-key")
            equal(alive([(client, cvm)]), [True], "the old connection")
        equal(len(wg_show(lab, "allowed-ips")), 6, "peers")
        for i in range(3):
            lab.ctl("cvm", "remove", f"gamma{i}")
            equal(alive([(client, cvm)]), [True], "the old connection")
        wait_until(lambda: len(wg_show(lab, "allowed-ips")) == len(handshakes), 10, "the removed peers go")
        equal(alive([(client, cvm)]), [True], "the old connection")
    equal(wg_show(lab, "latest-handshakes"), handshakes, "handshakes")


@topic.row("a removed peer stays until all workers have ended its connections, and goes then", only="wireguard", seconds=60)
def _(lab):
    lab.ctl("cvm", "add", "--app", "gamma", "--instance", "gamma0", "--generate-key")
    key = lab.json("cvm", "show", "gamma0")["public_key"]
    worker = lab.processes()["worker 0"]
    start = time.monotonic()
    os.kill(worker, signal.SIGSTOP)
    try:
        remover = lab.gateway.start([lab.build / "phalactl", "--config", lab.conf, "cvm", "remove", "gamma0"])
        while remover.poll() is None:
            there = key in wg_show(lab, "allowed-ips")
            if remover.poll() is None:
                expect(there, f"the peer went after {time.monotonic() - start:.1f} s")
        waited = time.monotonic() - start
    finally:
        os.kill(worker, signal.SIGCONT)
    expect(waited > 4.5, f"only {waited:.1f} s were waited for the worker")        # of 5 (PH_FANOUT_TIMEOUT_MS)
    wait_until(lambda: key not in wg_show(lab, "allowed-ips"), 10, "the peer goes")


@topic.row("a removed peer does not outlast phalad", only="wireguard")
def _(lab):
    lab.ctl("cvm", "add", "--app", "gamma", "--instance", "gamma0", "--generate-key")
    key = lab.json("cvm", "show", "gamma0")["public_key"]
    lab.ctl("cvm", "remove", "gamma0")
    lab.stop()
    expect(key not in wg_show(lab, "allowed-ips"), "the peer is there")
    equal(len(wg_show(lab, "allowed-ips")), 3, "the others'")
    lab.start()
    lab.wait_healthy()


@topic.row("phalad starts again and touches no peer that is right", only="wireguard")
def _(lab):
    index = lab.gateway.run(["ip", "-o", "link", "show", "wg0"]).stdout.split(":")[0]
    handshakes, before = wg_show(lab, "latest-handshakes"), wg_show(lab, "transfer")
    lab.stop()
    lab.start()
    lab.wait_healthy()
    works(lab)
    equal(wg_show(lab, "latest-handshakes"), handshakes, "handshakes")
    equal(lab.gateway.run(["ip", "-o", "link", "show", "wg0"]).stdout.split(":")[0], index, "the device")
    for key, text in wg_show(lab, "transfer").items():
        expect(int(text.split()[0]) >= int(before[key].split()[0]), "counters go on")


@topic.row("peers that are strange or wrong are put right at a start", only="wireguard")
def _(lab):
    lab.stop()
    wrong = wg("pubkey", lab.cvms["alpha1"].key)
    lab.gateway.run(["wg", "set", "wg0", "peer", wg("pubkey", wg("genkey")), "allowed-ips", "10.5.5.5/32"])
    lab.gateway.run(["wg", "set", "wg0", "peer", wrong, "allowed-ips", "10.6.6.0/24"])
    lab.gateway.run(["wg", "set", "wg0", "peer", wg("pubkey", lab.cvms["beta1"].key), "remove"])
    lab.start()
    equal(wg_show(lab, "allowed-ips"), {wg("pubkey", cvm.key): cvm.address + "/32" for cvm in lab.cvms.values()},
          "allowed IPs")
    for cvm in lab.cvms.values():
        cvm.handshake()
    lab.wait_healthy()
    works(lab)


# Health.

@topic.row("an instance without handshake is never chosen", only="wireguard")
def _(lab):
    lab.ctl("cvm", "add", "--app", "alpha", "--instance", "alpha3", "--generate-key")
    try:
        equal(lab.health("alpha3"), "never seen", "health")
        equal(sum(spread(lab, "alpha-7601s", 7601, 30).values()), 30, "connections that arrive")
        equal(lab.json("route", f"alpha-7601s.{DOMAIN}")["choices"], 2, "choices")
    finally:
        lab.ctl("cvm", "remove", "alpha3")


def wait_for_looks(lab, count):
    """The manager looks at all peers so often."""
    def age():
        return lab.json("map", "dump", "gateway")[0]["health_age_s"]
    last = age()

    def looked():
        nonlocal last, count
        now = age()
        count -= now < last
        last = now
        return count <= 0
    wait_until(looked, 20, "the manager looks at the peers")


@topic.row("an instance that is removed and added again at once, with the same key: a handshake of before is not news",
           only="wireguard", seconds=60)
def _(lab):
    cvm = lab.cvms["beta1"]
    cvm.ns.ip("link set beta1 down")
    lab.ctl("cvm", "remove", "beta1")
    cvm.register()
    equal(lab.health("beta1"), "never seen", "health")
    wait_for_looks(lab, 3)
    equal(lab.health("beta1"), "never seen", "health, after the manager has looked")
    cvm.handshake()
    lab.wait_healthy()
    works(lab, "beta1-8080")


@topic.row("a silenced instance goes out of rotation when its handshake is too old, and comes back", only="wireguard",
           seconds=60)
def _(lab):
    lab.restart(Gateway={"HealthyFor": f"{max(10, 2 * SLOW):.0f}s"})
    silent, other = lab.cvms["alpha1"], lab.cvms["alpha2"]
    for cvm in (silent, other):
        cvm.handshake()
    lab.wait_healthy("alpha1", "alpha2")
    client, cvm = passthrough_pair(lab, "alpha1-7602s", "alpha1", 7602)
    silent.ns.ip("link set alpha1 down")

    def out():
        if lab.json("cvm", "show", "alpha2")["handshake_age_s"] > 3:
            other.handshake()
        return lab.health("alpha1") == "handshake too old"
    wait_until(out, 20, "alpha1 is out")
    other.handshake()
    lab.wait_healthy("alpha2")
    equal(spread(lab, "alpha-7603s", 7603, 20), {"alpha1": 0, "alpha2": 20, "beta1": 0}, "connections")
    with lab.connect() as sock:
        sock.sendall(tls.records(tls.client_hello(tls.sni(f"alpha1-7603s.{DOMAIN}"))))
        equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", "alert for the instance's own name")
    silent.handshake()
    other.handshake()
    lab.wait_healthy("alpha1", "alpha2")
    equal(alive([(client, cvm)]), [True], "the connection that was there before")
    expect(spread(lab, "alpha-7604s", 7604, 30)["alpha1"] > 0, "alpha1 gets some again")       # misses once in 2^30
    client.close()
    cvm.close()
    lab.restart()


@topic.row("the wall clock jumps a day forth and back, and nobody's health changes", only="guest", seconds=60)
def _(lab):
    for cvm in lab.cvms.values():
        cvm.handshake()
    lab.wait_healthy()
    client, cvm = passthrough_pair(lab, "alpha1-7605s", "alpha1", 7605)
    base, begin = time.clock_gettime(time.CLOCK_REALTIME), time.monotonic()
    try:
        for jump in (86400, -86400, 7200, -400):
            time.clock_settime(time.CLOCK_REALTIME, base + (time.monotonic() - begin) + jump)
            time.sleep(2.2)             # the manager looks each second: let it look twice
            wait_until(lambda: lab.json("map", "dump", "gateway")[0]["health_age_s"] < 2, 1, "health is refreshed")
            equal([lab.health(name) for name in lab.cvms], ["healthy"] * 3, f"health after a jump of {jump} s")
            equal(alive([(client, cvm)]), [True], "the connection")
            works(lab)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, base + (time.monotonic() - begin))
        client.close()
        cvm.close()


@topic.row("health freezes without a manager, and after ManagerGrace nothing new is routed")
def _(lab):
    lab.restart(Gateway={"ManagerGrace": f"{2 * max(2, SLOW / 2):.0f}s"})
    for cvm in lab.cvms.values():
        cvm.handshake()
    lab.wait_healthy()
    pair = passthrough_pair(lab, "alpha1-7606s", "alpha1", 7606)
    manager = lab.processes()["manager"]
    os.kill(manager, signal.SIGSTOP)    # gone, but not so that the holder starts another
    try:
        works(lab)
        wait_until(lambda: lab.json("route", f"alpha1.{DOMAIN}", check=False)["reason"] == "manager-stale", 15,
                   "too old to believe")
        with lab.connect() as sock:
            sock.sendall(tls.records(tls.client_hello(tls.sni(f"alpha1-7606s.{DOMAIN}"))))
            equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", "alert")
        equal(alive([pair]), [True], "the old connection")
    finally:
        os.kill(manager, signal.SIGCONT)
    lab.wait_healthy()
    works(lab)
    for sock in pair:
        sock.close()
    lab.restart()


# Nothing crosses. ip_forward is 1 in the gateway all the time.

@contextlib.contextmanager
def hostile(lab, name):
    """A CVM that routes everything into its tunnel, whatever it was told."""
    cvm, peer = lab.cvms[name], wg("pubkey", lab.key_file.read_text())
    cvm.ns.run(["wg", "set", name, "peer", peer, "allowed-ips", "0.0.0.0/0"])
    prefixes = "10.0.0.0/8", f"{CLIENT}/32", f"{GATEWAY}/32"
    cvm.ns.ip("".join(f"route add {prefix} dev {name}\n" for prefix in prefixes))
    try:
        yield cvm
    finally:
        cvm.ns.run(["wg", "set", name, "peer", peer, "allowed-ips", "10.0.0.0/24"])
        cvm.ns.ip("".join(f"route del {prefix} dev {name}\n" for prefix in prefixes))


def reaches(ns, address, port):
    """Does a TCP connection come about, or even a refusal?"""
    try:
        ns.connect(address, port, timeout=0.5 * max(1, SLOW / 5)).close()
        return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


@topic.row("ip_forward is 1, and a CVM that tries reaches no other CVM: no packet arrives there", only="wireguard")
def _(lab):
    victim = lab.cvms["beta1"]
    with lab.gateway.inside():
        equal(open("/proc/sys/net/ipv4/ip_forward").read(), "1\n", "ip_forward")
    with hostile(lab, "alpha1") as cvm, Capture(victim.ns, "beta1", f"{victim.address}/32", ethernet=False) as capture:
        works(lab, "beta1-8080")
        expect(capture.packets(), "the capture sees what a worker sends")
        expect(not reaches(cvm.ns, victim.address, 8080), "TCP to beta1")
        udp = cvm.ns.socket(kind=socket.SOCK_DGRAM)
        for _ in range(3):
            udp.sendto(b"x", (victim.address, 9))
        cvm.ns.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", victim.address])
        theirs = [packet for packet in capture.packets() if packet[12:16] == socket.inet_aton(cvm.address)]
        equal(theirs, [], "packets from alpha1 that beta1 saw")
    expect(sum(row["count"] for row in lab.json("map", "dump", "guard")) > 0, "what was refused is counted")


@topic.row("a CVM that tries reaches nothing past the gateway: no packet arrives at the client", only="wireguard")
def _(lab):
    with listening_at(lab.client, 7607), hostile(lab, "alpha1") as cvm, \
            Capture(lab.client, "c0", f"{CLIENT}/32") as capture:
        expect(not reaches(cvm.ns, CLIENT, 7607), "TCP to the client")
        cvm.ns.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", CLIENT])
        theirs = [packet for packet in capture.packets() if packet[26:30] == socket.inet_aton(cvm.address)]
        equal(theirs, [], "packets from alpha1 that the client saw")


@contextlib.contextmanager
def listening_at(ns, port):
    with ns.listen(port) as sock:
        yield sock


@topic.row("a CVM that tries reaches no service of the gateway through the tunnel", only="wireguard")
def _(lab):
    with listening_at(lab.gateway, 7608), hostile(lab, "alpha1") as cvm:
        expect(reaches(lab.client, GATEWAY, 7608), "the service is there")
        for address in (TUNNEL_GATEWAY, GATEWAY):
            for port in (7608, 443, 7609):
                expect(not reaches(cvm.ns, address, port), f"TCP to {address} port {port} through the tunnel")


@topic.row("a client that routes the CVM range to the gateway reaches no CVM: no packet arrives there",
           only="wireguard")
def _(lab):
    victim = lab.cvms["beta1"]
    with Capture(victim.ns, "beta1", f"{victim.address}/32", ethernet=False) as capture:
        expect(not reaches(lab.client, victim.address, 8080), "TCP to beta1")
        lab.client.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", victim.address])
        theirs = [packet for packet in capture.packets() if packet[12:16] == socket.inet_aton(CLIENT)]
        equal(theirs, [], "packets from the client that beta1 saw")


@topic.row("a CVM's packet with another's source address goes nowhere", only="wireguard")
def _(lab):
    thief, victim = lab.cvms["alpha1"], lab.cvms["beta1"]
    with hostile(lab, "alpha1"), Capture(lab.gateway, "wg0", "10.0.0.0/8", ethernet=False) as capture:
        thief.ns.ip(f"addr add {victim.address}/32 dev alpha1\n")
        try:
            udp = thief.ns.socket(kind=socket.SOCK_DGRAM)
            udp.bind((victim.address, 0))
            for _ in range(3):
                udp.sendto(b"x", (TUNNEL_GATEWAY, 9))
            reaches(thief.ns, TUNNEL_GATEWAY, 9)        # its own source, and later: what was sent before has arrived
            sources = [packet[12:16] for packet in capture.packets()]
            expect(socket.inet_aton(thief.address) in sources, "the capture sees what alpha1 sends as itself")
            expect(socket.inet_aton(victim.address) not in sources, "nothing came as beta1")
        finally:
            thief.ns.ip(f"addr del {victim.address}/32 dev alpha1\n")


def stream_until_it_ends(send, ended):
    """Sends on and on until the connection has ended; sets @ended."""
    with contextlib.suppress(OSError):
        while True:
            send(b"secret" * 1000)
    ended.set()


@topic.row("wg0 deleted while traffic flows: connections end, nothing for a CVM leaves by the NIC, it comes back",
           only="wireguard", seconds=60)
def _(lab):
    plain_client, plain_cvm = standard_pair(lab, "alpha1-7610", "alpha1", 7610)
    pass_client, pass_cvm = passthrough_pair(lab, "alpha2-7611s", "alpha2", 7611)
    idle_client, idle_cvm = passthrough_pair(lab, "beta1-7612s", "beta1", 7612)
    ended = [threading.Event(), threading.Event()]
    sinks = [threading.Thread(target=tls.drain, args=[sock], daemon=True) for sock in (plain_cvm, pass_cvm)]
    with Capture(lab.gateway, "n0", "10.0.0.0/8") as nic, Capture(lab.gateway, "u0", "10.0.0.0/8") as underlay:
        for sink in sinks:
            sink.start()
        for send, event in ((plain_client.send, ended[0]), (pass_client.sendall, ended[1])):
            threading.Thread(target=stream_until_it_ends, args=(send, event), daemon=True).start()
        wait_until(lambda: sum(worker["bytes_from_clients"] for worker in lab.workers()) > 300000, 10, "traffic flows")
        lab.gateway.run(["ip", "link", "del", "wg0"])
        for event in ended:
            expect(event.wait(LIMIT), "a connection with traffic has ended")
        expect(tls.drain(idle_client)[1] in ("FIN", "RST"), "an idle connection has ended")
        wait_until(lambda: lab.gateway.run(["ip", "link", "show", "wg0"]).returncode == 0, 5, "wg0 is back")
        wait_until(lambda: len(wg_show(lab, "allowed-ips")) == 3, 5, "its peers are back")
        # No CVM does anything for it: the new device knows where they were, and calls them.
        equal(sorted(endpoint.split(":")[0] for endpoint in wg_show(lab, "endpoints").values()),
              ["198.51.100.11", "198.51.100.12", "198.51.100.13"], "endpoints")
        equal(set(wg_show(lab, "persistent-keepalive").values()), {"off"}, "keepalives of the gateway's")
        wait_until(lambda: all(map(int, wg_show(lab, "latest-handshakes").values())), 5, "handshakes")
        lab.wait_healthy()
        works(lab)
        equal((nic.packets(), underlay.packets()), ([], []), "packets for CVMs in clear")
    # The CVMs have not heard of the end: a reset is said once, FINs would be repeated far into later rows.
    for sock in (plain_cvm, pass_cvm, idle_cvm):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)       # which wakes its reader
    for sink in sinks:
        sink.join(LIMIT)
    for sock in (plain_cvm, pass_cvm, idle_cvm):
        tls.reset(sock)


@topic.row("wg0's addresses flushed, and the route with them: back within a second or two, and told", only="wireguard")
def _(lab):
    logged = len(lab.log.read_text())
    kept = standard_pair(lab, "alpha1-7613", "alpha1", 7613)
    lab.gateway.run(["ip", "addr", "flush", "dev", "wg0"])
    wait_until(lambda: f"{TUNNEL_GATEWAY}/24" in lab.gateway.run(["ip", "addr", "show", "dev", "wg0"]).stdout, 5, "the address")
    wait_until(lambda: "10.0.0.0/8 dev wg0" in lab.gateway.run(["ip", "route"]).stdout, 2, "the route")
    works(lab)
    kept[0].send(b"?")
    equal(kept[1].recv(1), b"?", "a byte of a connection from before")
    kept[0].sock.close()
    kept[1].close()
    expect("wg0: somebody took its address off: it is put back" in lab.log.read_text()[logged:], "the log says it")


@topic.row("somebody else's route for the CVM range: refused, with the reason", only="wireguard", seconds=60)
def _(lab):
    lab.stop()
    lab.gateway.ip("link del wg0\nroute add 10.0.0.0/8 dev u0\n")
    try:
        done = lab.gateway.run([lab.build / "phalad", "--config", lab.conf], timeout=20 * SLOW)
        equal(done.returncode, 1, "exit status")
        expect("wg0: somebody else has a route for CvmRange, 10.0.0.0/8" in done.stderr, f"it says why: {done.stderr}")
    finally:
        lab.gateway.ip("route del 10.0.0.0/8 dev u0\n")
        lab.start()
        for cvm in lab.cvms.values():
            cvm.handshake()
        lab.wait_healthy()


@topic.row("wg0 away for longer: new connections are refused with an alert, no packet leaves by the NIC",
           only="wireguard")
def _(lab):
    # A device of another kind in its place: phalad must not touch it, and has no tunnel meanwhile.
    with Capture(lab.gateway, "n0", "10.0.0.0/8") as nic, Capture(lab.gateway, "u0", "10.0.0.0/8") as underlay:
        # The manager would be quicker than we are: it sees nothing while this happens.
        manager = lab.processes()["manager"]
        os.kill(manager, signal.SIGSTOP)
        lab.gateway.ip("link del wg0\nlink add wg0 type dummy\n")
        os.kill(manager, signal.SIGCONT)
        try:
            wait_until(lambda: not lab.json("map", "dump", "gateway")[0]["tunnel_ifindex"], 5,
                       "phalad knows it has no tunnel")
            for label in ("alpha1-8080", "alpha1-443s"):
                with lab.connect() as sock:
                    sock.sendall(tls.records(tls.client_hello(tls.sni(f"{label}.{DOMAIN}"))))
                    equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", "alert")
            expect("dummy" in lab.gateway.run(["ip", "-d", "link", "show", "wg0"]).stdout,
                   "the foreign device is untouched")
            expect(lab.ctl("status", check=False).stdout, "phalactl status answers")
        finally:
            lab.gateway.ip("link del wg0\n")
        wait_until(lambda: len(wg_show(lab, "allowed-ips")) == 3, 5, "device and peers are back")
        for cvm in lab.cvms.values():
            cvm.handshake()
        lab.wait_healthy()
        works(lab)
        equal((nic.packets(), underlay.packets()), ([], []), "packets for CVMs in clear")


@topic.row("an external interface that goes away ends its connections; it comes back and so does the service",
           only="external")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7613s", "alpha1", 7613)
    with client, cvm:
        lab.fabric.ip("link del gwt\n")
        expect(tls.drain(client)[1] in ("FIN", "RST"), "ended")
    with lab.connect() as sock:
        sock.sendall(tls.records(tls.client_hello(tls.sni(f"alpha1-443s.{DOMAIN}"))))
        equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", "alert")
    lab.connect_external()
    lab.wait_healthy()
    wait_until(lambda: lab.json("route", f"alpha1.{DOMAIN}", check=False)["routed"], 5, "routed again")
    works(lab)


@topic.row("another interface is configured: told as that, not as one that is gone", only="external")
def _(lab):
    index = int(lab.gateway.run(["ip", "-o", "link", "show", "t0"]).stdout.split(":")[0])
    lab.gateway.ip("link add t1 type veth peer name t2\nlink set t1 up\n")
    try:
        logged = len(lab.log.read_text())
        lab.restart(Tunnel={"Interface": "t1"})
        said = lab.log.read_text()[logged:]
        expect(f"t1: interface {index} is the tunnel no more" in said and "is gone" not in said, said)
    finally:
        lab.restart()
        lab.gateway.ip("link del t1\n")
        lab.wait_healthy()
    works(lab)
