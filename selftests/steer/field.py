# SPDX-License-Identifier: Apache-2.0
"""The field: a client, a gateway with steer and a listener, and CVMs, each in a network namespace.

      192.0.2.0/24               10.0.0.0/24 | 10.64.0.0/16
    client ───────────── gateway ─────────────┬── cvm1  10.64.0.1
       c0 .2           n0 .1   t0 10.0.0.1    ├── cvm2  10.64.0.2
                         stand             fabric, a bridge

With WireGuard the bridge carries 198.51.100.0/24, and the gateway's wg0 and each CVM's t0 are WireGuard devices over it.

The listener stands in for phalad: it answers every connection that comes up to it with the word RELAY and what it read.
"""
import os, re, socket, struct, subprocess, sys, tempfile, threading, time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "selftests"))
from lab import netns                                           # noqa: E402
import rawtcp                                                   # noqa: E402

SLOW = float(os.environ.get("PHALA_SLOW", "1"))
GUEST = bool(os.environ.get("PHALA_GUEST"))
GATEWAY, CLIENT, RAW, PORT, DOMAIN = "192.0.2.1", "192.0.2.2", "192.0.2.9", 443, "phala.test"
TCP_DEFER_ACCEPT, TCP_MAXSEG = 9, 2
SYSCTLS = ("tcp_timestamps", "tcp_sack", "tcp_window_scaling", "tcp_ecn", "tcp_rmem")
CHROMIUM = (TOP / "selftests/hellos/chromium.bin").read_bytes()         # for app1-8443s.phala.test
STANDARD = CHROMIUM.replace(b"app1-8443s", b"app12-8443")


class Failed(Exception):
    pass


def expect(true, what):
    if not true:
        raise Failed(what)


def equal(got, wanted, what):
    if got != wanted:
        show = lambda value: repr(value) if len(repr(value)) < 300 else f"{len(value)} of {type(value).__name__}, {repr(value)[:200]}"
        raise Failed(f"{what}: {show(got)}, not {show(wanted)}")


def row(rows, name, seconds=20, **arguments):
    """Decorates a function: it becomes a row of @rows."""
    def keep(function):
        rows.append((name, lambda place: function(place, **arguments), seconds))
        return function
    return keep


def hello(name, size=0, extra=b""):
    """A ClientHello record for @name, padded (RFC 7685) to @size bytes of record if that is longer."""
    def record(padding):
        entry = b"\0" + struct.pack("!H", len(name)) + name.encode()
        data = struct.pack("!H", len(entry)) + entry
        extensions = struct.pack("!HH", 0, len(data)) + data + extra
        extensions += struct.pack("!HHH", 43, 3, 0x0203)[:4] + b"\x02\x03\x04"
        if padding is not None:
            extensions += struct.pack("!HH", 21, padding) + bytes(padding)
        body = b"\x03\x03" + os.urandom(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + struct.pack("!H", len(extensions)) + extensions
        message = b"\x01" + struct.pack("!I", len(body))[1:] + body
        return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message
    plain = record(None)
    return plain if size < len(plain) + 4 else record(size - len(plain) - 4)


def many(count):
    """Repetitions: an emulated guest takes a twentieth of them."""
    return max(1, count // 20) if GUEST else count


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds * SLOW
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds * SLOW:.0f} s")
        time.sleep(0.01)


def serve(listener, handle):
    """Calls handle(connection) in a thread of its own for each; ends with the listener."""
    def loop():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=guarded, args=(handle, connection), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()


def guarded(handle, connection):
    with connection:
        try:
            handle(connection)
        except OSError:
            pass


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def relay(connection):
    connection.settimeout(2 * SLOW)
    data = connection.recv(65536)
    connection.sendall(b"RELAY" + data)


class Stand:
    """The process that loads steer (stand.c)."""
    def __init__(self, ns, *arguments):
        self.process = ns.start(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.slots = int(self.answer()[0].split()[1])

    def answer(self):
        lines = []
        while (line := self.process.stdout.readline()) != ".\n":
            if not line:
                raise RuntimeError(f"stand ended: {lines}")
            lines.append(line.strip())
        if lines and lines[-1].startswith("error"):
            raise RuntimeError(lines[-1])
        return lines

    def __call__(self, *words):
        self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def since(self, before):
        """Reasons counted since reasons() gave @before."""
        now = self.reasons()
        return {word: now[word] - before.get(word, 0) for word in now if now[word] != before.get(word, 0)}

    def reasons(self):
        return {word: int(count) for word, count in (line.split() for line in self("reasons"))}

    def flows(self):
        keys = ("slot", "state", "client", "cvm", "from_client", "client_packets", "from_cvm", "cvm_packets", "reason")
        return [dict(zip(keys, line.split())) for line in self("flows")]


def mac_of(ns, interface):
    shown = ns.run(["ip", "link", "show", interface]).stdout
    return bytes.fromhex(re.search(r"link/ether (\S+)", shown)[1].replace(":", ""))


def has_wireguard():
    """Asked in a network namespace of our own."""
    made = subprocess.run(["ip", "link", "add", "wgtest", "type", "wireguard"], capture_output=True).returncode == 0
    subprocess.run(["ip", "link", "del", "wgtest"], capture_output=True)
    return made


def wg(*words, text=""):
    return subprocess.run(["wg", *words], input=text, capture_output=True, text=True, check=True).stdout.strip()


class Cvm:
    """Serves an echo on 443 and 8443."""
    def __init__(self, field, number):
        self.name, self.address, self.number = f"cvm{number}", f"10.64.0.{number}", number
        self.ns = netns.Netns(self.name)
        device = "e0" if field.wireguard else "t0"
        field.fabric.ip(f"link add {self.name} type veth peer name {device} netns {self.name}\n"
                        f"link set {self.name} master br0 up\n")
        if field.wireguard:
            self.ns.ip(f"link set e0 up\naddr add 198.51.100.{10 + number}/24 dev e0\nlink add t0 type wireguard\n")
            self.key = wg("genkey")
            self.public = wg("pubkey", text=self.key)
            field.set_wireguard(self.ns, "t0", f"private-key {field.directory}/key listen-port 51820 peer {field.public} "
                                f"endpoint 198.51.100.1:51820 allowed-ips 10.0.0.0/24 persistent-keepalive 25", self.key)
            self.lead = [self.address]
            field.allow(self)
        self.ns.ip(f"link set t0 mtu {field.mtu} up\naddr add {self.address}/32 dev t0\nroute add 10.0.0.0/24 dev t0\n")
        self.accepted = 0
        for port in (443, 8443):
            self.serve(port, self.echo)

    def echo(self, connection):
        self.accepted += 1
        echo(connection)

    def serve(self, port, handle):
        listener = self.ns.listen(port)
        serve(listener, handle)
        return listener


class Field:
    def __init__(self, build, cvms=2, mtu=1420):
        self.build, self.mtu = build, mtu
        self.directory = Path(tempfile.mkdtemp(prefix="phala-field-"))
        hosts = self.directory / "hosts"
        hosts.write_text("127.0.0.1 localhost\n")
        netns.own_world(hosts)
        self.fabric = netns.Netns("fabric", "link add br0 type bridge\nlink set br0 up\n")
        self.gateway, self.client = netns.Netns("gateway"), netns.Netns("client")
        self.client.ip(f"link add c0 type veth peer name n0 netns gateway\nlink set c0 up\naddr add {CLIENT}/24 dev c0\n"
                       f"route add default via {GATEWAY}\n")
        self.wireguard = has_wireguard()
        self.tunnel, device = ("wg0", "u0") if self.wireguard else ("t0", "t0")
        self.fabric.ip(f"link add gw type veth peer name {device} netns gateway\nlink set gw master br0 up\n")
        if self.wireguard:
            self.key = wg("genkey")
            self.public = wg("pubkey", text=self.key)
            self.gateway.ip("link set u0 up\naddr add 198.51.100.1/24 dev u0\nlink add wg0 type wireguard\n")
            self.set_wireguard(self.gateway, "wg0", f"private-key {self.directory}/key listen-port 51820", self.key)
        self.gateway.ip(f"link set n0 up\naddr add {GATEWAY}/24 dev n0\nlink set {self.tunnel} mtu {mtu} up\n"
                        f"addr add 10.0.0.1/24 dev {self.tunnel}\nroute add 10.64.0.0/16 dev {self.tunnel}\n")
        self.gateway.ip(f"neigh add {RAW} lladdr {mac_of(self.client, 'c0').hex(':')} dev n0\n")
        self.cvms = [Cvm(self, i + 1) for i in range(cvms)]
        self.listener = self.listen()
        self.stand = Stand(self.gateway, build / "steer/stand", "/sys/fs/bpf/phala", "n0", self.tunnel, "10.0.0.1/24", mtu, PORT, DOMAIN)
        self.wire = rawtcp.Wire(self.client, "c0", mac_of(self.gateway, "n0"))
        self.sport, self.registered, self.lossy = 1023, [], []
        self.defaults = {(ns.name, name): self.sysctl(ns, name) for ns in self.namespaces() for name in SYSCTLS}
        self.restore()

    def set_wireguard(self, ns, device, words, key=""):
        (self.directory / "key").write_text(key + "\n")
        done = ns.run(["wg", "set", device, *words.split()])
        expect(not done.returncode, done.stderr)

    def allow(self, cvm):
        self.set_wireguard(self.gateway, "wg0", f"peer {cvm.public} endpoint 198.51.100.{10 + cvm.number}:51820 allowed-ips " +
                           ",".join(f"{address}/32" for address in cvm.lead))

    def lead(self, address, cvm):
        """Packets to @address go to @cvm's device, and may come from there."""
        if not self.wireguard:
            self.gateway.ip(f"neigh replace {address} lladdr {mac_of(cvm.ns, 't0').hex(':')} dev t0\n")
        elif address not in cvm.lead:
            cvm.lead.append(address)
            self.allow(cvm)

    def namespaces(self):
        return [self.client, self.gateway, *(cvm.ns for cvm in self.cvms)]

    def sysctl(self, ns, name):
        with ns.inside(), open(f"/proc/sys/net/ipv4/{name}") as file:
            return file.read().strip()

    def restore(self):
        """As every row finds it: app1 and app are cvm1, pair is cvm1 and cvm2; no flow, no loss, all options on."""
        self.mend()
        self.relay = relay
        self.wire.was_slow = False
        for ns in self.namespaces():
            for name in SYSCTLS:
                if self.sysctl(ns, name) != self.defaults[ns.name, name]:
                    ns.sysctl(f"net.ipv4.{name}", self.defaults[ns.name, name])
        self.stand("kill")
        self.stand("limit", 0, 3600000, 3)
        self.register([("app1", "cvm1", 0)])

    def register(self, wanted):
        """@wanted: (app, instance, index of CVM)."""
        for instance in self.registered:
            self.stand("remove", instance)
        self.registered = [instance for _, instance, _ in wanted]
        for app, instance, index in wanted:
            address = self.cvms[index].address if isinstance(index, int) else index
            self.stand("add", app, instance, address)

    def lose(self, section, *places):
        """Makes the lines bad at which @places, (namespace, device), receive."""
        for ns, device in places:
            ns.run(["tc", "qdisc", "add", "dev", device, "clsact"])
            done = ns.run(["tc", "filter", "add", "dev", device, "ingress", "bpf", "da", "obj", self.build / "steer/loss.bpf.o",
                           "sec", section])
            expect(not done.returncode, done.stderr)
            self.lossy.append((ns, device))

    def mend(self):
        """All lines are good again."""
        for ns, device in self.lossy:
            ns.run(["tc", "filter", "del", "dev", device, "ingress"])
        self.lossy = []

    def listen(self):
        listener = self.gateway.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A slow machine's hello comes later: what comes after the deferral is a worker's.
        listener.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, max(1, int(SLOW)))
        listener.setsockopt(socket.IPPROTO_TCP, TCP_MAXSEG, self.mtu - 40)
        listener.bind((GATEWAY, PORT))
        listener.listen(4096)
        serve(listener, lambda connection: self.relay(connection))
        return listener

    def connect(self, timeout=5, options=(), source=None):
        sock = self.client.socket()
        for option in options:
            sock.setsockopt(*option)
        if source:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", source))
        sock.settimeout(timeout * SLOW)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((GATEWAY, PORT))
        return sock

    def raw(self, fast_open=False, **options):
        """A raw client, its handshake done; with @fast_open but for the last packet (RFC 7413)."""
        self.sport = self.sport + 1 if self.sport < 60000 else 1024
        options.setdefault("sport", self.sport)
        self.wire.drain()
        return rawtcp.Client(self.wire, RAW, GATEWAY, PORT, **options).handshake(fast_open=fast_open)

    def flow_of(self, port, source=CLIENT):
        """The flow of that client port; if there was one before, the younger one."""
        flows = [flow for flow in self.stand.flows() if flow["client"] == f"{source}:{port}"]
        return min(flows, key=lambda flow: flow["state"] in ("killed", "ended", "declined"), default=None)

    def requests(self):
        """Request socks and others that the gateway has beside listeners."""
        return self.gateway.run(["ss", "-Htan", "state", "syn-recv"]).stdout.splitlines()

    def established(self, port):
        """The gateway's sockets for that port of a client's."""
        return self.gateway.run(["ss", "-Htn", "state", "established", "dport", "=", f":{port}"]).stdout.splitlines()

    def close(self):
        self.stand.process.stdin.close()
        self.stand.process.wait(20 * SLOW)


def receive(sock, count):
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)
