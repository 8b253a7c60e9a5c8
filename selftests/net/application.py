# SPDX-License-Identifier: Apache-2.0
"""What a CVM is for: an application of several services on a bridge in it, of which one is published.

    client ── gateway ══ tunnel ══ beta1: 8090 ─┐
                                    app0 172.20.0.1/24 ──┬── frontend .11  80     published as 8090
                                                         ├── backend  .12  9000
                                                         └── db       .13  6432
"""
import socket

from lab import netns, servers, tls
from lab.attack import LATE, Attacker, tcp
from lab.lab import DOMAIN
from rows import LIMIT, Topic, counted, equal, expect

SERVICES = {"frontend": ("172.20.0.11", 80), "backend": ("172.20.0.12", 9000), "db": ("172.20.0.13", 6432)}
PUBLISHED = 8090


class Application:
    """In a CVM. Each service answers with its name, and asks the next one by name."""
    def __init__(self, lab, cvm):
        self.lab, self.sockets = lab, []
        with open(lab.hosts, "a") as file:
            file.writelines(f"{address} {name}\n" for name, (address, _) in SERVICES.items())
        cvm.ns.ip("link add app0 type bridge\nlink set app0 up\naddr add 172.20.0.1/24 dev app0\n")
        for name, (address, _) in SERVICES.items():
            ns = netns.Netns(name)
            cvm.ns.ip(f"link add v{name[:6]} type veth peer name eth0 netns {name}\nlink set v{name[:6]} master app0 up\n")
            ns.ip(f"link set eth0 up\naddr add {address}/24 dev eth0\nroute add default via 172.20.0.1\n")
            self.serve(name, ns)
        self.sockets.append(servers.serve(cvm.ns, PUBLISHED, lambda sock: self.publish(cvm.ns, sock)))

    def serve(self, name, ns):
        below = {"frontend": "backend", "backend": "db"}.get(name)

        def handle(sock):
            sock.recv(1 << 16)
            answer = name.encode()
            if below:
                answer += b" > " + self.ask(ns, below)
            sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + answer if name == "frontend" else answer)
        self.sockets.append(servers.serve(ns, SERVICES[name][1], handle))

    def ask(self, ns, name):
        with ns.connect(socket.gethostbyname(name), SERVICES[name][1], timeout=LIMIT) as sock:
            sock.sendall(b"who is there?")
            return tls.drain(sock)[0]

    def publish(self, ns, sock):
        """As docker-proxy does."""
        with ns.connect(*SERVICES["frontend"], timeout=LIMIT) as inner:
            inner.sendall(sock.recv(1 << 16))
            sock.sendall(tls.drain(inner)[0])

    def close(self):
        for sock in self.sockets:
            sock.close()


def setup(lab):
    lab.ready(Tunnel={} if lab.wireguard else {"Guard": "yes"})
    if not hasattr(lab, "application"):
        lab.application = Application(lab, lab.cvms["beta1"])


topic = Topic("application", setup)


def get(lab, label):
    with lab.tls(label) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        return client.recv_all()


@topic.row("the published port answers through the gateway, having asked the others by name")
def _(lab):
    equal(get(lab, f"beta1-{PUBLISHED}"), b"HTTP/1.0 200 OK\r\n\r\nfrontend > backend > db", "the answer")


@topic.row("the ports of the others are refused: nobody published them")
def _(lab):
    for port in (9000, 6432, 81):
        with counted(lab, "cvm-refused"), lab.connect() as sock:
            sock.sendall(tls.records(tls.client_hello(tls.sni(f"beta1-{port}s.{DOMAIN}"))))
            equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", f"port {port}")


@topic.row("another CVM reaches none of it through the tunnel, neither by the CVM's address nor by the services' own")
def _(lab):
    with Attacker(lab, "alpha1") as attacker:
        before = lab.json("guard", "show")["totals"].get("uncalled", 0)
        packets = [tcp(attacker.address, to, 40000, port, 2) for to in (lab.cvms["beta1"].address, "172.20.0.1", *(
            address for address, _ in SERVICES.values())) for port in (PUBLISHED, 80, 9000, 6432)]
        attacker.send(packets)
        equal(attacker.seen(), {}, "packets seen anywhere")
        late = lab.json("guard", "show")["totals"]["uncalled"] - before - len(packets)
        expect(0 <= late <= LATE, f"guard counted {late} packets more than the {len(packets)} that were sent")
