# SPDX-License-Identifier: Apache-2.0
"""Passthrough, by the relay: the gateway reads the ClientHello and never decrypts.

    client ══════════════ TLS, byte for byte ══════════════ CVM
                │ phalad: peek, route, splice │
"""
import os, ssl

from lab import tls
from lab.lab import DOMAIN, GATEWAY, SLOW
from rows import Topic, accept, counted, equal, expect, listening, passthrough_pair, read_exactly, together


def setup(lab):
    lab.ready()


topic = Topic("passthrough", setup)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def body(client):
    client.send(GET)
    return client.recv_all().split(b"\r\n\r\n")[1]


@topic.row("openssl s_client sees the CVM's own certificate")
def _(lab):
    done = lab.client.run(["openssl", "s_client", "-connect", f"{GATEWAY}:443", "-servername", f"alpha1-443s.{DOMAIN}",
                           "-CAfile", lab.cvm_authority.pem, "-verify_return_error", "-brief"], input="",
                          timeout=20 * SLOW)
    expect("CN = alpha1" in done.stderr and "Verification: OK" in done.stderr, f"s_client: {done.stderr}{done.stdout}")


@topic.row("id-s is port 443")
@topic.row("an IPv6 client gets through", family=6)
@topic.row("TLS 1.2 gets through", version=ssl.TLSVersion.TLSv1_2)
def _(lab, family=4, version=None):
    with lab.tls("alpha1-s", family=family, authority=lab.cvm_authority.pem, version=version) as client:
        equal(body(client), b"alpha1\n", "answer")
        equal(client.ended, "close_notify", "end")


@topic.row("mutual TLS: the CVM sees the client's certificate")
def _(lab):
    with lab.tls("alpha1-8443s", authority=lab.cvm_authority.pem, certificate=lab.client_certificate) as client:
        equal(body(client), b"alpha1, and you are client\n", "answer")


@topic.row("mutual TLS without a certificate is refused by the CVM, and its alert arrives")
def _(lab):
    with lab.tls("alpha1-8443s", authority=lab.cvm_authority.pem) as client:
        try:
            body(client)
        except ssl.SSLError as error:
            expect("CERTIFICATE_REQUIRED" in str(error) or "certificate required" in str(error), f"error {error}")
        else:
            expect(False, "an error")


@topic.row("every byte is the same at both ends, both ways")
def _(lab):
    data = os.urandom(200000)
    with listening(lab, "alpha1", 7100) as listener, lab.connect() as sock:
        client = tls.Tls(sock, tls.client_context(), f"alpha1-7100s.{DOMAIN}")

        def serve():
            cvm = tls.Tls(accept(listener), tls.server_context(lab.cvm_certificates["alpha1"]), server=True).handshake()
            cvm.send(cvm.recv_exactly(len(data)))
            cvm.close_notify()
            cvm.recv_all()
            return cvm

        def ask():
            client.handshake()
            client.send(data)
            equal(client.recv_all(), data, "echo")
            client.close_notify()
            sock.shutdown(1)

        cvm, _ = together(serve, ask)
        with cvm:
            equal(cvm.received, client.sent, "client to CVM")
            equal(client.received, cvm.sent, "CVM to client")


def say_hello(lab, pieces, port):
    """A hello that arrives in @pieces; the CVM must see it as it is."""
    with listening(lab, "alpha1", port) as listener, lab.connect() as sock:
        sock.setsockopt(6, 1, 1)        # TCP_NODELAY: a segment each
        for piece in pieces:
            sock.sendall(piece)
        with accept(listener) as cvm:
            equal(read_exactly(cvm, len(b"".join(pieces))), b"".join(pieces), "the hello at the CVM")


def hello(label, **options):
    return tls.client_hello(tls.sni(f"{label}.{DOMAIN}"), **options)


@topic.row("a hello byte by byte")
def _(lab):
    stream = tls.records(hello("alpha1-7101s"))
    say_hello(lab, [stream[i:i + 1] for i in range(len(stream))], 7101)


@topic.row("a hello of one byte a record")
def _(lab):
    message = hello("alpha1-7102s")
    say_hello(lab, [tls.records(message, *range(len(message)))], 7102)


@topic.row("a hello whose first record ends inside the name, so that it looks empty")
def _(lab):
    message = hello("alpha1-7103s")
    cut = message.index(b"alpha1")
    for at in (cut, cut - 1, cut - 2, cut - 3, cut - 5, cut - 9, 4, 38):
        say_hello(lab, [tls.records(message, at)], 7103)


@topic.row("a hello of 2 kB, as post-quantum ones are", pad=1800)
@topic.row("a hello of just 16 KiB", pad=16384 - 134)
def _(lab, pad):
    message = hello("alpha1-7104s", pad=pad)
    expect(pad < 2000 or 16300 < len(message) <= 16384, f"the hello has {len(message)} bytes")
    say_hello(lab, [tls.records(message)], 7104)
    say_hello(lab, [tls.records(message, 1, 700, 1500)], 7104)


@topic.row("bytes behind the hello in the same segment are not lost")
def _(lab):
    say_hello(lab, [tls.records(hello("alpha1-7105s")) + b"early data" * 100], 7105)


@topic.row("the client's end of file passes, and the answer still comes")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7106s", "alpha1", 7106)
    with client, cvm, counted(lab, "closed"):
        client.sendall(b"question")
        client.shutdown(1)
        equal(tls.drain(cvm), (b"question", "FIN"), "at the CVM")
        cvm.sendall(b"answer")
        cvm.close()
        equal(tls.drain(client), (b"answer", "FIN"), "at the client")


@topic.row("the CVM's end of file passes, and what the client still says arrives")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7107s", "alpha1", 7107)
    with client, cvm, counted(lab, "closed"):
        cvm.sendall(b"bye")
        cvm.shutdown(1)
        equal(tls.drain(client), (b"bye", "FIN"), "at the client")
        client.sendall(b"last words")
        client.close()
        equal(tls.drain(cvm), (b"last words", "FIN"), "at the CVM")


@topic.row("a client's RST passes as RST")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7108s", "alpha1", 7108)
    with cvm, counted(lab, "client-reset"):
        tls.reset(client)
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a CVM's RST passes as RST")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7109s", "alpha1", 7109)
    with client, counted(lab, "cvm-reset"):
        tls.reset(cvm)
        equal(tls.drain(client), (b"", "RST"), "at the client")


@topic.row("four megabytes each way at once arrive whole")
def _(lab):
    client, cvm = passthrough_pair(lab, "alpha1-7110s", "alpha1", 7110)
    up, down = os.urandom(4 << 20), os.urandom(4 << 20)
    with client, cvm:
        got_up, got_down, _, _ = together(lambda: read_exactly(cvm, len(up)), lambda: read_exactly(client, len(down)),
                                          lambda: client.sendall(up), lambda: cvm.sendall(down))
        expect(got_up == up, "client to CVM")
        expect(got_down == down, "CVM to client")


@topic.row("what follows the hello need not look like TLS, and the connection is counted")
def _(lab):
    with counted(lab, "routed-passthrough"):
        client, cvm = passthrough_pair(lab, "alpha1-7111s", "alpha1", 7111)
        with client, cvm:
            client.sendall(bytes(range(256)))
            equal(read_exactly(cvm, 256), bytes(range(256)), "at the CVM")


# PostgreSQL: the client asks in the clear whether there is TLS before it says hello.

def psql(lab, label, sslmode, *words):
    return lab.client.run(["psql", f"host={label}.{DOMAIN} port=443 sslmode={sslmode} user=postgres dbname=postgres "
                           f"connect_timeout={int(10 * SLOW)} {' '.join(words)}", "-Atc", "select 6 * 7"],
                          timeout=30 * SLOW)


@topic.row('psql "host=<id>-5432s.<base> port=443 sslmode=require" works', sslmode="require")
@topic.row("psql with sslmode=verify-full verifies the CVM's certificate", sslmode="verify-full")
def _(lab, sslmode):
    lab.names("beta1-5432s")
    done = psql(lab, "beta1-5432s", sslmode, *([f"sslrootcert={lab.cvm_authority.pem}"]
                                               if sslmode != "require" else []))
    equal((done.returncode, done.stdout), (0, "42\n"), f"psql ({done.stderr})")


@topic.row("psql by the app's name")
def _(lab):
    lab.names("beta-5432s")
    equal(psql(lab, "beta-5432s", "require").stdout, "42\n", "answer")


@topic.row("psql with sslmode=disable is refused: it names nobody")
def _(lab):
    with counted(lab, "not-tls"):
        done = psql(lab, "beta1-5432s", "disable")
    expect(done.returncode != 0 and "42" not in done.stdout, f"psql: {done.stdout}{done.stderr}")


SSL_REQUEST = bytes.fromhex("0000000804d2162f")
GSS_REQUEST = bytes.fromhex("0000000804d21630")


@topic.row("an SSLRequest byte by byte, after a GSSENCRequest that is declined")
def _(lab):
    message = tls.records(hello("alpha1-7120s"))
    with listening(lab, "alpha1", 7120) as listener, lab.connect() as sock:
        sock.sendall(GSS_REQUEST)
        equal(read_exactly(sock, 1), b"N", "GSS is declined")
        for byte in SSL_REQUEST:
            sock.sendall(bytes([byte]))
        equal(read_exactly(sock, 1), b"S", "TLS is not")
        sock.sendall(message)
        with accept(listener) as cvm:
            equal(read_exactly(cvm, 8), SSL_REQUEST, "the same is asked of the CVM")
            cvm.sendall(b"S")
            equal(read_exactly(cvm, len(message)), message, "the hello at the CVM")


@topic.row("a CVM that declines TLS: alert, no plaintext", answer=b"N", reason="cvm-no-tls")
@topic.row("a CVM that answers an SSLRequest with more than a byte: alert, and the rest goes nowhere", answer=b"SX",
           reason="cvm-no-tls")
def _(lab, answer, reason):
    message = tls.records(hello("alpha1-7121s"))
    with listening(lab, "alpha1", 7121) as listener, lab.connect() as sock, counted(lab, reason):
        sock.sendall(SSL_REQUEST)
        equal(read_exactly(sock, 1), b"S", "TLS is spoken here")
        sock.sendall(message)
        with accept(listener) as cvm:
            equal(read_exactly(cvm, 8), SSL_REQUEST, "the same is asked of the CVM")
            cvm.sendall(answer)
            data, _ = tls.drain(sock)
            equal(tls.alert_of(data), "internal_error", "alert")
            got, _ = tls.drain(cvm)
            equal(got, b"", "the CVM gets nothing more")
