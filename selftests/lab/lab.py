# SPDX-License-Identifier: Apache-2.0
"""The lab: a client, a gateway and three CVMs of two apps, each in a network namespace of its own.

             192.0.2.0/24                              198.51.100.0/24
             2001:db8::/64                                  fabric
    client ───────────────── gateway ───────────────────── br0 ──┬── alpha1   .11
       c0 .2              n0 .1   u0 .1                          ├── alpha2   .12
                            phalad                               └── beta1    .13
                              │
                              │  the tunnel, 10.0.0.1/24 here, addresses that phalad gave out there:
                              ├─ wg0 ~~~~ WireGuard over the fabric ~~~~ wg0 in each CVM
                              └─ t0 ───── br1 in the fabric ──────────── t0 in each CVM, where there is no WireGuard

The servers run in threads of this process, on sockets made in their CVM's namespace, so one test holds both ends.
"""
import contextlib, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

from . import certs, netns, servers, tls

SLOW = float(os.environ.get("PHALA_SLOW", "1"))
GUEST = bool(os.environ.get("PHALA_GUEST"))                 # emulated, and without the time for everything
KERNEL_PATH = os.environ.get("PHALA_PATH") == "kernel"       # passthrough by steer rather than by the relay
DOMAIN = "gw.test"
GATEWAY, GATEWAY6, CLIENT = "192.0.2.1", "2001:db8::1", "192.0.2.2"
TUNNEL_GATEWAY = "10.0.0.1"
CVMS = (("alpha1", "alpha"), ("alpha2", "alpha"), ("beta1", "beta"))
INITIATION, KEEPALIVE = 148, 32                             # bytes of WireGuard's messages


def has_wireguard():
    """Asked of the kernel; call it in a network namespace of the lab's."""
    done = subprocess.run(["ip", "link", "add", "wgtest", "type", "wireguard"], capture_output=True)
    subprocess.run(["ip", "link", "del", "wgtest"], capture_output=True)
    return done.returncode == 0


def wait_until(condition, seconds, what):
    """Returns the first true thing that condition() does; @seconds are those of an unburdened machine."""
    deadline = time.monotonic() + seconds * SLOW
    while True:
        asked = time.monotonic()
        if result := condition():
            return result
        answered = time.monotonic()
        if answered > deadline:
            raise TimeoutError(f"{what}: not within {seconds * SLOW:.0f} s")
        time.sleep(min(max(0.02, answered - asked), 0.5))       # a slow guest is not to be busy with asking


def wg(verb, text=""):
    return subprocess.run(["wg", verb], input=text, capture_output=True, text=True, check=True).stdout.strip()


class Cvm:
    """One confidential VM. .address is its address in the tunnel, once registered."""
    def __init__(self, lab, name, app, number):
        self.lab, self.name, self.app, self.address = lab, name, app, None
        self.ns = netns.Netns(name)
        lab.fabric.ip(f"link add {name} type veth peer name e0 netns {name}\n"
                      f"link set {name} master br0 up\n" +
                      ("" if lab.wireguard else f"link add {name}t type veth peer name t0 netns {name}\n"
                       f"link set {name}t master br1 up\n"))
        self.ns.ip(f"link set e0 up\naddr add 198.51.100.{10 + number}/24 dev e0\nroute add default via 198.51.100.1\n")
        self.key = wg("genkey")
        self.conf = Path(f"/etc/wireguard/{name}.conf")         # the lab's own, not the machine's

    def register(self, generate_key=False):
        """`cvm add`; what it prints is what the CVM gets."""
        if generate_key:
            key = ["--generate-key"]
        else:
            key = ["--public-key", wg("pubkey", self.key)]
            self.conf.with_suffix(".key").write_text(self.key + "\n")
        printed = self.lab.ctl("cvm", "add", "--app", self.app, "--instance", self.name, *key).stdout
        self.address = re.search(r"^Address = ([0-9.]+)/32$|the address ([0-9.]+)\.$", printed, re.M)
        self.address = self.address[1] or self.address[2]
        self.conf.write_text(printed)
        self.conf.chmod(0o600)

    def up(self):
        """Brings the tunnel up in the CVM."""
        if self.lab.wireguard:
            self.quick("up")
        else:
            self.ns.ip(f"link set t0 up\naddr add {self.address}/32 dev t0\nroute add 10.0.0.0/24 dev t0\n")

    def down(self):
        if not self.lab.wireguard:
            self.ns.ip("addr flush dev t0\nlink set t0 down\n")
        elif self.ns.run(["ip", "link", "show", self.name]).returncode == 0:
            self.quick("down")

    def quick(self, verb):
        done = self.ns.run(["wg-quick", verb, self.name])
        if done.returncode:
            raise RuntimeError(f"{self.name}: wg-quick {verb}: {done.stderr}")

    def handshake(self):
        """A new WireGuard handshake: the kernel makes one when a device with keepalive comes up. The device has forgotten the old
        keys, so this returns when the gateway no longer sends by them."""
        if not self.lab.wireguard:
            return
        key = self.ns.run(["wg", "show", self.name, "public-key"]).stdout.strip()

        def heard():
            """Bytes, by the gateway."""
            shown = self.lab.gateway.run(["wg", "show", "wg0", "transfer"]).stdout.splitlines()
            return next((int(line.split()[1]) for line in shown if line.startswith(key)), 0)
        self.ns.ip(f"link set {self.name} down\n")
        before = heard()
        self.ns.ip(f"link set {self.name} up\nroute add 10.0.0.0/24 dev {self.name}\n")
        # Which is once a packet by the new ones has confirmed the response (Linux, wg_noise_received_with_keypair()).
        wait_until(lambda: heard() >= before + INITIATION + KEEPALIVE, 15, f"{self.name}: a handshake")


# What is freed is kept for the address sanitizer to find its use: little of it, or a process grows to 256 MiB more.
SANITIZER = {"ASAN_OPTIONS": "quarantine_size_mb=1:" + os.environ.get("ASAN_OPTIONS", "")}


class Lab:
    def __init__(self, build, wireguard=None):
        """@wireguard: None finds out."""
        self.build = Path(build).resolve()
        self.sanitized = self.build.name == "asan"
        self.directory = Path(tempfile.mkdtemp(prefix="phala-lab-"))
        self.directory.chmod(0o755)
        self.children, self.phalad, self.notified, self.broken = [], None, None, True
        self.log = self.directory / "phalad.log"
        self.hosts = self.directory / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        netns.own_world(self.hosts)
        self.wireguard = has_wireguard() if wireguard is None else wireguard
        self.fabric = netns.Netns("fabric")
        # A wire: says nothing itself, and carries what is no good IP.
        for name, value in (("ipv6.conf.all.disable_ipv6", 1), ("ipv6.conf.default.disable_ipv6", 1),
                            ("bridge.bridge-nf-call-iptables", 0), ("bridge.bridge-nf-call-ip6tables", 0)):
            with contextlib.suppress(FileNotFoundError):
                self.fabric.sysctl("net." + name, value)
        self.fabric.ip("".join(f"link add {name} type bridge\nlink set {name} up\n" for name in ("br0", "br1")))
        self.gateway = netns.Netns("gateway")
        self.client = netns.Netns("client")
        self.connect_client()
        self.fabric.ip("link add gw type veth peer name u0 netns gateway\nlink set gw master br0 up\n")
        self.gateway.ip("link set u0 up\naddr add 198.51.100.1/24 dev u0\n")
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.gateway.sysctl(name, 1)
        if not self.wireguard:
            self.connect_external()
        self.tunnel = "wg0" if self.wireguard else "t0"
        self.cvms = {name: Cvm(self, name, app, i + 1) for i, (name, app) in enumerate(CVMS)}
        self.authority = certs.Authority(self.directory, "authority")
        self.certificate = self.authority.issue("wildcard", f"*.{DOMAIN}")
        # The CVMs' own certificates are for names that the gateway's wildcard does not cover: whose one sees is told.
        self.cvm_authority = certs.Authority(self.directory, "cvm-authority")
        self.cvm_certificates = {}
        for name, app in CVMS:
            labels = [id + suffix for id in (name, app) for suffix in ("-s", "-443s", "-8443s", "-5432s")]
            self.cvm_certificates[name] = self.cvm_authority.issue(name, name, *(f"{label}.{DOMAIN}" for label in labels))
        self.client_certificate = self.cvm_authority.issue("client", "client")
        self.key_file = self.directory / "wg.key"
        self.key_file.write_text(wg("genkey") + "\n")
        self.key_file.chmod(0o600)

    def connect_client(self):
        self.client.ip(f"""link add c0 type veth peer name n0 netns gateway
			link set c0 up
			addr add {CLIENT}/24 dev c0
			addr add 2001:db8::2/64 dev c0 nodad
			route add default via {GATEWAY}""")
        self.gateway.ip(f"link set n0 up\naddr add {GATEWAY}/24 dev n0\naddr add {GATEWAY6}/64 dev n0 nodad\n")

    def connect_external(self):
        self.fabric.ip("link add gwt type veth peer name t0 netns gateway\nlink set gwt master br1 up\n")
        self.gateway.ip(f"link set t0 up\naddr add {TUNNEL_GATEWAY}/24 dev t0\nroute add 10.0.0.0/8 dev t0\n")

    def close(self):
        """Ends what was started; the namespaces go with this process."""
        for child in [self.phalad, *self.children]:
            if child and child.poll() is None:
                child.terminate()
                try:
                    child.wait(5 * SLOW)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    # phalad

    def configuration(self, **changes):
        """Its text; changes are Gateway={...}, Tunnel={...}, domain={...}; a value None takes a key out."""
        sections = {
            "Gateway": {"Listen": [f"{GATEWAY}:443", f"[{GATEWAY6}]:443"], "Workers": 2, "User": "nobody",
                        "StateDir": self.directory / "state", "RunDir": self.directory / "run",
                        "BpfDir": "/sys/fs/bpf/phala",
                        "Nic": "n0" if KERNEL_PATH else None,
                        # In a guest either end may be late by the time-outs that are the default; who tests them sets them.
                        **({"ConnectTimeout": "4s", "HelloTimeout": "20s"} if GUEST else {})},
            f"Domain {DOMAIN}": {"Certificate": self.certificate[0], "PrivateKey": self.certificate[1]},
            "Tunnel": {"Type": "wireguard", "Interface": "wg0", "PrivateKeyFile": self.key_file, "ListenPort": 51820,
                       "Address": f"{TUNNEL_GATEWAY}/24", "Endpoint": "198.51.100.1:51820"} if self.wireguard else
                      {"Type": "external", "Interface": "t0", "Address": f"{TUNNEL_GATEWAY}/24"},
        }
        for section, values in changes.items():
            if section not in sections:
                section = {"domain": f"Domain {DOMAIN}", "other": "Domain other.test"}[section]
            sections.setdefault(section, {}).update(values)
        text = ""
        for section, values in sections.items():
            text += f"[{section}]\n"
            for key, value in values.items():
                for one in value if isinstance(value, list) else [value]:
                    text += f"{key} = {one}\n" if one is not None else ""
        return text

    def start(self, launcher=(), fresh=False, wait=True, pass_fds=(), watchdog=60 * SLOW, **changes):
        """Starts phalad with a changed configuration; waits until it answers. @fresh: with new maps. @watchdog: systemd's
        WatchdogSec."""
        self.conf = self.directory / "phalad.conf"
        self.conf.write_text(self.configuration(**changes))
        for name in ("state", "run"):
            (self.directory / name).mkdir(exist_ok=True)
        if self.notified:
            self.notified.close()
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(path))
        self.notified.setblocking(False)
        with open(self.log, "a") as log:
            argv = [*launcher, self.build / "phalad", "--config", self.conf, *(["--fresh"] if fresh else [])]
            self.phalad = self.gateway.start(argv, stdout=log, stderr=log, pass_fds=pass_fds,
                                              env={**os.environ, **SANITIZER, "NOTIFY_SOCKET": str(path),
                                                   "WATCHDOG_USEC": str(int(watchdog * 1e6))})
        if wait:
            self.wait_ready()

    def wait_ready(self):
        """Until READY=1, as systemd would (sd_notify(3)): manager and all workers are."""
        def ready():
            if self.phalad.poll() is not None:
                raise RuntimeError(f"phalad ended with {self.phalad.returncode}: {self.log.read_text()[-2000:]}")
            with contextlib.suppress(BlockingIOError):
                return b"READY=1" in self.notified.recv(4096)
        wait_until(ready, 30, "phalad is ready")

    def stop(self, how=signal.SIGTERM):
        self.phalad.send_signal(how)
        return self.phalad.wait(10 * SLOW)

    def restart(self, **changes):
        self.stop()
        self.start(**changes)

    def ready(self, **changes):
        """phalad with these changes, all CVMs known and healthy; from nothing when self.broken."""
        if self.broken:
            self.start_over(**changes)
        else:
            self.restart(**changes)
            for cvm in self.cvms.values():
                cvm.handshake()
        self.wait_healthy()

    def start_over(self, **changes):
        if self.phalad and self.phalad.poll() is None:
            self.stop(signal.SIGKILL)
            wait_until(lambda: not self.processes(), 5, "phalad's processes end")
        shutil.rmtree(self.directory / "state", ignore_errors=True)
        self.gateway.run(["ip", "link", "del", "wg0"])
        self.start(launcher=(), fresh=True, **changes)
        for cvm in self.cvms.values():
            cvm.down()
            cvm.register()
            cvm.up()
        self.broken = False

    def wait_healthy(self, *names):
        def healthy():
            return all(self.health(name) == "healthy" for name in names or self.cvms)
        wait_until(healthy, 15, "instances are healthy")

    def health(self, name):
        """In phalactl's words; "unknown" when there is no such instance."""
        instances = self.json("route", f"{name}.{DOMAIN}", check=False)["instances"]
        return instances[0]["health"] if instances else "unknown"

    def processes(self):
        """{role: pid} of phalad's processes, of whichever holder: "holder", "manager", "worker 0"; "ending PID" for one that
        has let go of its memory, and so of its name, but not of sockets and locks yet (the kernel's do_exit())."""
        found, here = {}, os.readlink("/proc/self/ns/mnt")
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/mnt") != here:
                    continue
                name = (path / "comm").read_text()
            except OSError:             # a zombie's too
                continue
            words = [""]
            with contextlib.suppress(OSError):
                if os.readlink(path / "exe") != str(self.build / "phalad"):
                    continue
                words = (path / "cmdline").read_bytes().decode().split("\0")
            if words != [""]:
                role = words[words.index("--role") + 1:][:2] if "--role" in words else ["holder"]
                found[" ".join(role) if role[0] == "worker" else role[0]] = int(path.name)
            elif name.startswith("phalad"):
                found[f"ending {path.name}"] = int(path.name)
        return found

    def ctl(self, *words, check=True):
        """phalactl; returns the finished process."""
        done = self.gateway.run([self.build / "phalactl", "--config", self.conf, *words])
        if check and done.returncode:
            raise RuntimeError(f"phalactl {' '.join(map(str, words))}: {done.stderr or done.stdout}")
        return done

    def json(self, *words, check=True):
        return json.loads(self.ctl("--json", *words, check=check).stdout)

    @contextlib.contextmanager
    def without_user(self):
        """Workers do not start, for there is nobody for them to become; nor does phalactl take the configuration. (libnss-systemd
        would make one up.)"""
        passwd, switch = self.directory / "passwd", self.directory / "nsswitch.conf"
        passwd.write_text("".join(line for line in open("/etc/passwd") if not line.startswith("nobody:")))
        switch.write_text("passwd: files\ngroup: files\nhosts: files\n")
        with netns.mounted_over(passwd, "/etc/passwd"), netns.mounted_over(switch, "/etc/nsswitch.conf"):
            yield

    def workers(self):
        """What each worker keeps in its map: pid, active, counters, ..."""
        return self.json("map", "dump", "workers")

    # clients

    def names(self, *labels):
        """Names that programs with a resolver of their own will ask for."""
        with open(self.hosts, "a") as file:
            file.writelines(f"{GATEWAY} {label}.{DOMAIN}\n" for label in labels)

    def connect(self, family=4, source=""):
        """A client's TCP connection to the gateway."""
        return self.client.connect(GATEWAY if family == 4 else GATEWAY6, 443, timeout=10 * SLOW, address_from=source)

    def tls(self, label, family=4, session=None, **context):
        """A client's TLS connection, handshake done; @context as in tls.client_context()."""
        return tls.Tls(self.connect(family), tls.client_context(**context), f"{label}.{DOMAIN}",
                       session=session).handshake()

    def say(self, message):
        print(f"# {message}", file=sys.stderr, flush=True)
