# SPDX-License-Identifier: Apache-2.0
"""Standard mode: the gateway terminates TLS.

    client ══ TLS ══ phalad ── plaintext, inside the tunnel ── CVM
"""
import os, ssl

from lab import servers, tls
from lab.lab import DOMAIN, GATEWAY, SLOW, wait_until
from rows import Topic, accept, counted, equal, expect, listening, read_exactly, standard_pair, together


def setup(lab):
    lab.ready()


topic = Topic("standard", setup)


def curl(lab, *words, label="alpha1-8080", ok=True):
    """Returns the body, and the last line that --write-out makes: HTTP version, remote address."""
    done = lab.client.run(["curl", "-sS", "--max-time", 10 * SLOW, "--cacert", lab.authority.pem, "--write-out",
                           "%{http_version} %{remote_ip}", *words, f"https://{label}.{DOMAIN}/who"])
    expect(not ok or done.returncode == 0, f"curl: {done.stderr}")
    return done.stdout


@topic.row("curl reaches the instance it names, HTTP/1.1, certificate verified")
def _(lab):
    lab.names("alpha1-8080")
    equal(curl(lab), f"alpha1\n1.1 {GATEWAY}", "answer")


@topic.row("a name without port is port 80", label="alpha1")
@topic.row("a name in capitals is the same name", label="ALPHA1-8080")
def _(lab, label):
    with lab.tls(label, authority=lab.authority.pem) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"alpha1\n"), "alpha1 answers")


@topic.row("an app's name reaches an instance of that app")
def _(lab):
    with lab.tls("beta-8080") as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"beta1\n"), "beta1 answers")


@topic.row("an IPv6 client reaches it")
def _(lab):
    with lab.tls("alpha1-8080", family=6) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"alpha1\n"), "alpha1 answers")


@topic.row("curl --http2 on a g name speaks h2 with the server in the CVM")
def _(lab):
    lab.names("alpha1-50051g")
    equal(curl(lab, "--http2", label="alpha1-50051g"), f"alpha1\n2 {GATEWAY}", "answer")


@topic.row("a WebSocket conversation stays on its instance")
def _(lab):
    with lab.tls("alpha-8080") as client:
        client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv_exactly(1)
        expect(b"101 " in head and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, "upgraded (the key of RFC 6455)")
        said = set()
        for i in range(20):
            client.send(servers.frame(b"%d" % i, os.urandom(4)))
            who, text = servers.read_frame(client).split(b": ")
            equal(text, b"%d" % i, "echo")
            said.add(who)
        equal(len(said), 1, "instances that answered")


@topic.row("TLS 1.2", version=ssl.TLSVersion.TLSv1_2, wanted="TLSv1.2")
@topic.row("TLS 1.3", version=ssl.TLSVersion.TLSv1_3, wanted="TLSv1.3")
def _(lab, version, wanted):
    with lab.tls("alpha1-8080", version=version, authority=lab.authority.pem) as client:
        equal(client.ssl.version(), wanted, "version")
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"alpha1\n"), "alpha1 answers")
        equal(client.ended, "close_notify", "end")


@topic.row("TLS 1.1 is refused with an alert")
def _(lab):
    # OpenSSL speaks it no more; our own hello says 1.1 at most.
    message = bytearray(tls.client_hello(tls.sni(f"alpha1-8080.{DOMAIN}")))
    message[4:6] = b"\x03\x02"
    with counted(lab, "tls-failed"), lab.connect() as sock:
        sock.sendall(tls.records(bytes(message)))
        data, _ = tls.drain(sock)
        equal(tls.alert_of(data), "protocol_version", "alert")


@topic.row("ALPN: h2 and http/1.1 on a plain name is http/1.1", label="alpha1-8080", offer=["h2", "http/1.1"],
           wanted="http/1.1")
@topic.row("ALPN: h2 alone on a plain name is none", label="alpha1-8080", offer=["h2"], wanted=None)
@topic.row("ALPN: something else on a plain name is none", label="alpha1-8080", offer=["imap"], wanted=None)
@topic.row("ALPN: h2 and http/1.1 on a g name is h2", label="alpha1-8080g", offer=["http/1.1", "h2"], wanted="h2")
@topic.row("ALPN: http/1.1 alone on a g name is none", label="alpha1-8080g", offer=["http/1.1"], wanted=None)
@topic.row("ALPN: none offered is none", label="alpha1-8080", offer=None, wanted=None)
def _(lab, label, offer, wanted):
    with lab.tls(label, alpn=offer) as client:
        equal(client.ssl.selected_alpn_protocol(), wanted, "protocol")
        if wanted == "h2":              # the server there does not speak it: see h2.py
            return
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"alpha1\n"), "the connection works")


@topic.row("TLS 1.2 sessions are resumed, by whichever worker", version=ssl.TLSVersion.TLSv1_2)
@topic.row("TLS 1.3 sessions are resumed, by whichever worker", version=ssl.TLSVersion.TLSv1_3)
def _(lab, version):
    context = tls.client_context(version=version)
    session, resumed = None, []
    for _ in range(8):
        with tls.Tls(lab.connect(), context, f"alpha1-8080.{DOMAIN}", session=session).handshake() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(client.recv_all().endswith(b"alpha1\n"), "alpha1 answers")
            resumed.append(client.ssl.session_reused)
            session = client.ssl.session
    equal(resumed, [False] + 7 * [True], "resumed")


@topic.row("a session of one name does not open another's connection to the wrong instance")
def _(lab):
    context = tls.client_context()
    with tls.Tls(lab.connect(), context, f"alpha1-8080.{DOMAIN}").handshake() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv_all()
        session = client.ssl.session
    with tls.Tls(lab.connect(), context, f"beta1-8080.{DOMAIN}", session=session).handshake() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"beta1\n"), "beta1 answers")


@topic.row("the client's close_notify is the CVM's end of file, and the answer still comes")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7000", "alpha1", 7000)
    with client, cvm, counted(lab, "closed"):
        client.send(b"question")
        client.close_notify()
        equal(tls.drain(cvm), (b"question", "FIN"), "at the CVM")
        cvm.sendall(b"answer")
        equal(client.recv_exactly(6), b"answer", "at the client")
        cvm.close()
        equal((client.recv(), client.ended), (b"", "close_notify"), "end at the client")


@topic.row("the CVM's end of file is a close_notify, and what the client still says arrives")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7001", "alpha1", 7001)
    with client, cvm, counted(lab, "closed"):
        cvm.sendall(b"bye")
        cvm.shutdown(1)
        equal((client.recv_all(), client.ended), (b"bye", "close_notify"), "at the client")
        client.send(b"last words")
        equal(read_exactly(cvm, 10), b"last words", "at the CVM")
        client.close_notify()
        equal(tls.drain(cvm), (b"", "FIN"), "end at the CVM")


@topic.row("a client's stream cut off without close_notify reaches the CVM as RST, not as FIN")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7002", "alpha1", 7002)
    with client, cvm, counted(lab, "tls-truncated"):
        client.send(b"pay 10")
        equal(read_exactly(cvm, 6), b"pay 10", "at the CVM")
        client.sock.shutdown(1)
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a record cut in the middle reaches the CVM as RST, without the part")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7003", "alpha1", 7003)
    with client, cvm, counted(lab, "tls-truncated"):
        client.ssl.write(b"pay 1000000")
        client.sock.sendall(client.outgoing.read()[:-3])
        client.sock.shutdown(1)
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a client's RST reaches the CVM as RST")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7004", "alpha1", 7004)
    with cvm, counted(lab, "client-reset"):
        client.send(b"x")
        equal(read_exactly(cvm, 1), b"x", "at the CVM")
        tls.reset(client.sock)
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a CVM's RST reaches the client without close_notify")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7005", "alpha1", 7005)
    with client, counted(lab, "cvm-reset"):
        cvm.sendall(b"half an ans")
        equal(client.recv_exactly(11), b"half an ans", "at the client")
        tls.reset(cvm)
        equal(client.recv(), b"", "at the client")
        expect(client.ended in ("FIN", "RST"), f"ended by {client.ended}")


@topic.row("rubbish after the handshake ends in an alert and a RST at the CVM")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7006", "alpha1", 7006)
    with client, cvm, counted(lab, "tls-error"):
        client.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a client that asks for renegotiation goes on without one, or is refused; the worker lives")
def _(lab):
    with lab.tls("alpha1-8080", version=ssl.TLSVersion.TLSv1_2) as client:
        pid = lab.workers()[0]["pid"]
        done = lab.client.run(["openssl", "s_client", "-connect", f"{GATEWAY}:443", "-servername",
                               f"alpha1-8080.{DOMAIN}", "-tls1_2"], input="R\n", timeout=20 * SLOW)
        said = done.stdout + done.stderr
        expect("Cipher is ECDHE" in said, f"it connected: {said}")
        expect("RENEGOTIATING" in said, f"it asked: {said}")
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(client.recv_all().endswith(b"alpha1\n"), "others' connections go on")
        equal(lab.workers()[0]["pid"], pid, "worker")


@topic.row("a megabyte each way at once arrives whole")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7007", "alpha1", 7007)
    up, down = os.urandom(1 << 20), os.urandom(1 << 20)
    with client, cvm:
        got_up, got_down, _ = together(lambda: read_exactly(cvm, len(up)), lambda: client.exchange(up, len(down)),
                                       lambda: cvm.sendall(down))
        expect(got_up == up, "client to CVM")
        expect(got_down == down, "CVM to client")


@topic.row("data in the client's last handshake flight is not lost")
def _(lab):
    with listening(lab, "alpha1", 7008) as listener, lab.connect() as sock:
        client = tls.Tls(sock, tls.client_context(version=ssl.TLSVersion.TLSv1_3), f"alpha1-7008.{DOMAIN}")
        sock.sendall(client.hello())
        while True:
            try:
                client.ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.fill()
        client.ssl.write(b"at once")
        client.close_notify()           # Finished, data and close_notify in one segment
        with accept(listener) as cvm:
            equal(tls.drain(cvm), (b"at once", "FIN"), "at the CVM")


@topic.row("a served connection is counted, and its bytes")
def _(lab):
    def total(key):
        return sum(worker[key] for worker in lab.workers())
    before = total("bytes_from_clients"), total("bytes_from_cvms")
    client, cvm = None, None
    with counted(lab, "routed-standard"), counted(lab, "accepted"), counted(lab, "closed"):
        client, cvm = standard_pair(lab, "alpha1-7009", "alpha1", 7009)
        client.send(b"x" * 1000)
        read_exactly(cvm, 1000)
        cvm.sendall(b"y" * 3000)
        client.recv_exactly(3000)
        client.close_notify()
        cvm.close()
        equal(client.recv(), b"", "end")
        client.close()
    equal((total("bytes_from_clients") - before[0], total("bytes_from_cvms") - before[1]), (1000, 3000), "bytes")


@topic.row("nothing is left open at a worker when its connections have ended")
def _(lab):
    wait_until(lambda: sum(worker["active"] for worker in lab.workers()) == 0, 5, "no active connection")


@topic.row("each base domain has its own certificate")
def _(lab):
    authority = lab.authority
    other = authority.issue("other", "*.other.test")
    lab.restart(other={"Certificate": other[0], "PrivateKey": other[1]})
    for domain in (DOMAIN, "other.test"):
        client = tls.Tls(lab.connect(), tls.client_context(authority=authority.pem),
                         f"alpha1-8080.{domain}").handshake()
        with client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(client.recv_all().endswith(b"alpha1\n"), f"{domain}: alpha1 answers")
    lab.restart()
