# SPDX-License-Identifier: Apache-2.0
"""One client, one gateway, one CVM, and everything that may carry bytes between them.

                 192.0.2.0/24               10.0.0.0/8, MTU 1420
    client  c0 ──────────────── n0 gateway t0 ─────────────────── t0  CVM
            c1 ──────────────── n1         t1 ─────────────────── t1
                203.0.113.0/24             198.51.100.0/24, MTU 1420

phalad has its BPF programs on n0 and t0; n1 and t1 carry none, so forwarding and the other proxies pay for none. Relay
alone is what a client sees who comes in by n1. For floods an attacker is put on the client's wires, c0 and c1, as macvlan.
"""
import contextlib, ctypes, ipaddress, json, os, resource, shutil, signal, subprocess, tempfile
from pathlib import Path

from lab import certs, netns
from lab.lab import DOMAIN, wait_until, wg

CORES = len(os.sched_getaffinity(0))
PORTS = {"source": 7001, "sink": 7002, "answer": 7003, "ask": 7004}        # as in stream.h
NIC, BARE_NIC, BARE_CVM = "192.0.2.1", "203.0.113.1", "198.51.100.2"
# Names as long as the one that the captured hellos ask for, so that no length in them changes.
INSTANCE, CAPTURED = "measure", b"app1-8443s.phala.test"
HELLO, REQUEST = "chromium.bin", "openssl.bin"
# The attacker's own addresses, and those that he only claims to have and that the gateway would answer by the same wire.
ATTACKERS = {NIC: ("192.0.2.16/30", "198.18.0.0/16"), BARE_NIC: ("203.0.113.16/30", "198.19.0.0/16")}
DEVICES = {NIC: 0, BARE_NIC: 1}         # a0 on c0 to n0, a1 on c1 to n1
SPOOFED = ("syn", "ack")
TRIAL_LIMIT = 3         # seconds, as in trial.h
MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
BPF_STATS_RUN_TIME = 0  # linux/bpf.h


class Failed(Exception):
    pass


def label(verb, suffix="s"):
    return f"{INSTANCE}-{PORTS[verb]}{suffix}.{DOMAIN}"


class World:
    """The namespaces, the server in the CVM, the load generator."""
    def __init__(self, build):
        self.build, self.daemons, self.server, self.attacker = Path(build).resolve(), [], None, None
        self.directory = Path(tempfile.mkdtemp(prefix="phala-bench-"))
        self.directory.chmod(0o755)
        hosts = self.directory / "hosts"
        hosts.write_text("127.0.0.1 localhost\n")
        netns.own_world(hosts)
        self.client, self.gateway, self.cvm = netns.Netns("client"), netns.Netns("gateway"), netns.Netns("cvm")
        self.client.ip("link add c0 type veth peer name n0 netns gateway\n"
                       "link add c1 type veth peer name n1 netns gateway\n"
                       "link set c0 up\nlink set c1 up\naddr add 192.0.2.2/24 dev c0\naddr add 203.0.113.2/24 dev c1\n"
                       f"route add 198.51.100.0/24 via {BARE_NIC}\n")
        self.cvm.ip("link add t0 mtu 1420 type veth peer name t0 netns gateway\n"
                    "link add t1 mtu 1420 type veth peer name t1 netns gateway\n"
                    f"link set t0 up\nlink set t1 up\naddr add {BARE_CVM}/24 dev t1\n"
                    "route add 203.0.113.0/24 via 198.51.100.1\n")
        self.gateway.ip(f"link set n0 up\nlink set n1 up\naddr add {NIC}/24 dev n0\naddr add {BARE_NIC}/24 dev n1\n"
                        "link set t0 mtu 1420 up\nlink set t1 mtu 1420 up\n"
                        "addr add 10.0.0.1/24 dev t0\nroute add 10.0.0.0/8 dev t0\naddr add 198.51.100.1/24 dev t1\n")
        self.gateway.sysctl("net.ipv4.ip_forward", 1)
        for ns in (self.client, self.gateway, self.cvm):
            ns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
            ns.sysctl("net.core.somaxconn", 65535)
        self.certificate = certs.Authority(self.directory, "authority").issue("wildcard", f"*.{DOMAIN}")
        self.write_heads()
        self.server = self.cvm.start([self.build / "bench/serve", CORES], stdout=subprocess.PIPE)
        if self.server.stdout.readline() != b"ready\n":
            raise Failed("the CVM's server does not start")

    def write_heads(self):
        hellos = Path(__file__).resolve().parent.parent / "hellos"
        shutil.copy(hellos / REQUEST, self.directory / REQUEST)
        for verb in PORTS:
            captured, name = (hellos / HELLO).read_bytes(), label(verb).encode()
            if captured.count(CAPTURED) != 1 or len(name) != len(CAPTURED):
                raise Failed(f"{HELLO} does not ask for a name like {name}")
            (self.directory / f"{verb}.bin").write_bytes(captured.replace(CAPTURED, name))

    def argv(self, verb, target, seconds, streams):
        """@target: (address, port, whether the gateway ends TLS)."""
        address, port, tls = target
        asked = {"hold": "ask", "try": "answer"}.get(verb, verb)
        head = self.directory / (REQUEST if tls else f"{asked}.bin")
        return [self.build / "bench/load", verb, f"{address}:{port}", head, seconds, streams, CORES,
                *([label(asked, "")] if tls else [])]

    def load(self, verb, target, seconds, streams):
        """Returns what the load generator counted; raises Failed at any error."""
        done = self.client.run(self.argv(verb, target, seconds, streams), timeout=seconds + 20)
        if done.returncode:
            raise Failed(done.stderr.strip().splitlines()[0] if done.stderr else f"load: status {done.returncode}")
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def holding(self, target, streams):
        """So many idle connections; each is asked again at the end."""
        argv = self.argv("hold", target, 20, streams)
        pipe = subprocess.PIPE
        child = self.client.start(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            if child.stdout.readline() != "held\n":
                raise Failed(child.stderr.read().strip() or "load: died")
            yield
            out, err = child.communicate(timeout=30)
            if child.returncode or json.loads(out)["answers"] + json.loads(out)["connections"] < 2 * streams:
                raise Failed(err.strip() or f"load: {out}")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()

    def add_attacker(self):
        self.attacker = netns.Netns("attacker")
        for name, value in (("ip_forward", 0), ("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", 1)):
            self.attacker.sysctl(f"net.ipv4.{name}", value)
        for address, i in DEVICES.items():
            own, spoofed = map(ipaddress.ip_network, ATTACKERS[address])
            self.client.ip(f"link add link c{i} name a{i} netns attacker type macvlan mode private\n")
            self.attacker.ip(f"link set a{i} up\n" + "".join(f"addr add {one}/24 dev a{i}\n" for one in own))
            self.gateway.ip(f"route add {spoofed} via {own[0]} dev n{i}\n")

    def mac(self, device):
        """Of one of the gateway's."""
        return json.loads(self.gateway.run(["ip", "-j", "link", "show", "dev", device]).stdout)[0]["address"]

    @contextlib.contextmanager
    def flooding(self, kind, target, seconds):
        """Yields when the flood is under way. @seconds: in which it is over, whatever happens here."""
        address, port, _ = target
        own, spoofed = ATTACKERS[address]
        argv = [self.build / "bench/flood", kind, f"{address}:{port}", self.directory / "answer.bin", seconds,
                spoofed if kind in SPOOFED else own]
        if kind in SPOOFED:
            argv += [f"a{DEVICES[address]}", self.mac(f"n{DEVICES[address]}")]
        pipe = subprocess.PIPE
        child = self.attacker.start(argv, stdout=pipe, stderr=pipe, text=True)
        sent = {}
        try:
            if child.stdout.readline() != "flooding\n":
                raise Failed(child.stderr.read().strip() or "flood: died")
            yield sent
            child.terminate()
            out, err = child.communicate(timeout=10)
            if child.returncode:
                raise Failed(err.strip() or f"flood: status {child.returncode}")
            sent.update(json.loads(out))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()

    def close(self):
        for daemon in self.daemons:
            daemon.stop()
        if self.server:
            self.server.kill()
            self.server.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Daemon:
    """A gateway's process and its children."""
    def __init__(self, world):
        self.world, self.child, self.log = world, None, world.directory / f"{self.name}.log"
        world.daemons.append(self)

    def start(self):
        with open(self.log, "ab") as log:
            self.child = self.world.gateway.start(self.argv(), stdout=log, stderr=log)

    def wait(self, targets):
        """Until each of them answers. @targets: {verb: target}"""
        def answers():
            if self.child.poll() is not None:
                raise Failed(f"{self.name} ended with {self.child.returncode}: {self.log.read_text()[-2000:]}")
            with contextlib.suppress(Failed):
                return all(self.world.load(verb, target, 0.01, 1) for verb, target in targets)
        wait_until(answers, 10, f"{self.name} answers: {self.log.read_text()[-500:]}")

    def stop(self):
        if self.child and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def pids(self):
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = [self.child.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def resident_kib(self):
        """Of all processes, what no other has a share in and no file has a copy of."""
        total = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
        return total


class Phalad(Daemon):
    name, gate, budget = "phalad", "auto", 1000000

    def argv(self):
        directory, certificate = self.world.directory, self.world.certificate
        for name in ("state", "run"):
            (directory / name).mkdir(exist_ok=True)
        self.conf = directory / "phalad.conf"
        self.conf.write_text(f"""[Gateway]
Listen = {NIC}:443
Listen = {BARE_NIC}:443
Nic = n0
Gate = {self.gate}
ConnectionsPerSource = {self.budget}
ConnectionsBurst = {self.budget}
HellosPerSource = {self.budget}
HellosBurst = {self.budget}
Workers = {CORES}
User = nobody
StateDir = {directory}/state
RunDir = {directory}/run
BpfDir = /sys/fs/bpf/phala
[Domain {DOMAIN}]
Certificate = {certificate[0]}
PrivateKey = {certificate[1]}
[Tunnel]
Type = external
Interface = t0
Address = 10.0.0.1/24
""")
        return [self.world.build / "phalad", "--config", self.conf]

    def ctl(self, *words, check=True):
        done = self.world.gateway.run([self.world.build / "phalactl", "--config", self.conf, "--json", *words])
        if check and done.returncode:
            raise Failed(f"phalactl {' '.join(words)}: {done.stderr or done.stdout}")
        return json.loads(done.stdout or "{}") if not done.returncode else None

    def start(self):
        first = not self.child
        super().start()
        wait_until(lambda: self.child.poll() is not None or self.ctl("status", check=False), 10, "phalad answers")
        if self.child.poll() is not None:
            raise Failed(f"phalad ended with {self.child.returncode}: {self.log.read_text()[-2000:]}")
        if first:
            key = wg("pubkey", wg("genkey"))
            address = self.ctl("cvm", "add", "--app", "bench", "--instance", INSTANCE, "--public-key", key)["address"]
            self.world.cvm.ip(f"addr add {address}/32 dev t0\nroute add 10.0.0.0/24 dev t0\n")

    def counted(self, *reasons):
        """How many connections went these ways, by workers and by the kernel."""
        totals = self.ctl("status")["totals"]
        return [totals.get(reason, 0) for reason in reasons]

    def programs(self):
        """{id: (name, run_time_ns, run_cnt)} of the BPF programs on the gateway's devices."""
        attached = json.loads(self.world.gateway.run(["bpftool", "-j", "net", "show"]).stdout)[0]
        found = {}
        for one in attached["xdp"] + attached["tc"]:
            program = json.loads(self.world.gateway.run(["bpftool", "-j", "prog", "show", "id", one["id"]]).stdout)
            found[one["id"]] = (program["name"], program.get("run_time_ns", 0), program.get("run_cnt", 0))
        return found


@contextlib.contextmanager
def bpf_statistics():
    """As kernel.bpf_stats_enabled, for as long as this holds and no longer, whatever happens to us."""
    fd = ctypes.CDLL("libbpf.so.1", use_errno=True).bpf_enable_stats(BPF_STATS_RUN_TIME)
    if fd < 0:
        raise Failed(f"BPF run-time statistics: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(fd)


# The other proxies, as well tuned as we know how: a thread or worker for each core, large backlogs, no log of
# connections, splice where there is any, buffers of the size that served each best here.

class Haproxy(Daemon):
    name = "haproxy"

    def argv(self):
        pem, conf = self.world.directory / "haproxy.pem", self.world.directory / "haproxy.conf"
        pem.write_text("".join(path.read_text() for path in self.world.certificate))
        rules = lambda fetch, suffix: "".join(f"    use_backend {verb} if {{ {fetch} -i {label(verb, suffix)} }}\n"
                                              for verb in PORTS)
        backends = "".join(f"backend {verb}\n    server cvm {BARE_CVM}:{port}\n" for verb, port in PORTS.items())
        connections = resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 4     # two descriptors each, and pipes
        conf.write_text(f"""global
    nbthread {CORES}
    maxconn {connections}
    tune.pipesize 1048576
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode tcp
    option splice-request
    option splice-response
    backlog 65535
    maxconn {connections}
    timeout connect 5s
    timeout client 10m
    timeout server 10m
frontend passthrough
    bind {BARE_NIC}:1443 defer-accept shards by-thread
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
{rules("req.ssl_sni", "s")}
frontend standard
    bind {BARE_NIC}:1444 defer-accept shards by-thread ssl crt {pem}
{rules("ssl_fc_sni", "")}
{backends}""")
        return ["haproxy", "-db", "-f", conf]


class Nginx(Daemon):
    name = "nginx"

    def argv(self):
        directory, certificate = self.world.directory / "nginx", self.world.certificate
        directory.mkdir(exist_ok=True)
        names = lambda suffix: "".join(f"        {label(verb, suffix)} {verb};\n" for verb in PORTS)
        upstreams = "".join(f"    upstream {verb} {{ server {BARE_CVM}:{port}; }}\n" for verb, port in PORTS.items())
        conf = directory / "nginx.conf"
        conf.write_text(f"""load_module {MODULE};
daemon off;
user nobody nogroup;
worker_processes {CORES};
worker_rlimit_nofile 20000;
pid {directory}/pid;
error_log stderr error;
events {{
    worker_connections 16384;
    accept_mutex off;
    multi_accept on;
}}
stream {{
    map $ssl_preread_server_name $passthrough {{
{names("s")}    }}
    map $ssl_server_name $standard {{
{names("")}    }}
{upstreams}    proxy_buffer_size 128k;
    server {{
        listen {BARE_NIC}:2443 reuseport backlog=65535;
        ssl_preread on;
        proxy_half_close on;
        proxy_pass $passthrough;
    }}
    server {{
        listen {BARE_NIC}:2444 ssl reuseport backlog=65535;
        ssl_certificate {certificate[0]};
        ssl_certificate_key {certificate[1]};
        ssl_protocols TLSv1.2 TLSv1.3;
        proxy_pass $standard;
    }}
}}
""")
        return ["nginx", "-c", conf, "-p", directory, "-e", "stderr"]
