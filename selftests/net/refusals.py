# SPDX-License-Identifier: Apache-2.0
"""Bad input: each kind has its alert, its counter, and no connection to any CVM."""
import contextlib, random, time

from lab import tls
from lab.lab import DOMAIN, SLOW, wait_until
from rows import LIMIT, Topic, counted, counters, equal, expect, listening

HELLO_TIMEOUT = max(2, SLOW / 3)
CONNECT_TIMEOUT = 0.4 * max(1, SLOW / 3)


def setup(lab):
    lab.ready(Gateway={"HelloTimeout": f"{HELLO_TIMEOUT * 1000:.0f}ms", "ConnectTimeout": f"{CONNECT_TIMEOUT * 1000:.0f}ms",
                       "ConnectTries": 2})


topic = Topic("refusals", setup)


def refused(lab, data, alert, reason, family=4):
    """The client sends @data and is told @alert (None: nothing), counted as @reason."""
    with counted(lab, reason), lab.connect(family) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        said, ended = tls.drain(sock)
        expect(ended in ("FIN", "RST"), "the connection was closed")
        equal(tls.alert_of(said), alert, f"alert (the client read {said.hex()})")


def named(name):
    return tls.records(tls.client_hello(tls.sni(name)))


def good(extension=b"", **options):
    return tls.client_hello(tls.sni(f"alpha1-8080.{DOMAIN}") + extension, **options)


def cut_short(message, by):
    """A message whose own length says less than it holds."""
    return message[:1] + (len(message) - 4 - by).to_bytes(3, "big") + message[4:]


long_label = "a" * 64
HELLOS = (
    # what, the bytes, alert, reason
    ("plain HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None, "not-tls"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n", None, "not-tls"),
    ("PostgreSQL without TLS", bytes.fromhex("0000002900030000") + b"user\0postgres\0database\0x\0\0\0", None,
     "not-tls"),
    ("a TLS record that is no handshake", b"\x17\x03\x03\x00\x10" + bytes(16), None, "not-tls"),
    ("a handshake that is no ClientHello", tls.records(b"\x02" + good()[1:]), "decode_error", "malformed"),
    ("no SNI at all", tls.records(tls.client_hello()), "missing_extension", "no-sni"),
    ("two host_names in one SNI", tls.records(tls.client_hello(tls.sni(f"alpha1.{DOMAIN}", f"beta1.{DOMAIN}"))),
     "illegal_parameter", "ambiguous"),
    ("two SNI extensions", tls.records(good(tls.sni(f"beta1.{DOMAIN}"))), "illegal_parameter", "ambiguous"),
    ("a session-id length that counts one byte too many", tls.records(tls.client_hello(session_id_len=1)),
     "decode_error",
     "malformed"),
    ("the same with an SNI", tls.records(good(session_id_len=1)), "decode_error", "malformed"),
    ("a byte behind the extensions", tls.records(good(trailing=b"\0")), "decode_error", "malformed"),
    ("a message length that is too short", tls.records(cut_short(good(), 1)), "decode_error", "malformed"),
    ("an extension longer than the rest", tls.records(tls.client_hello(tls.sni(f"alpha1.{DOMAIN}")[:-1])),
     "decode_error",
     "malformed"),
    ("a host_name with a zero byte", tls.records(tls.client_hello(tls.sni(f"alpha1\0.{DOMAIN}"))), "decode_error",
     "malformed"),
    ("an empty host_name", tls.records(tls.client_hello(tls.sni(""))), "decode_error", "malformed"),
    ("an empty record", b"\x16\x03\x01\x00\x00" + tls.records(good()), "decode_error", "malformed"),
    ("a record over 2^14 bytes", b"\x16\x03\x01\x40\x01" + good() + bytes(16385), "decode_error", "malformed"),
    ("a hello over 16 KiB", tls.records(good(pad=16384)), "illegal_parameter", "hello-too-long"),
    ("a hello that says it has 16 MB", b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + bytes(16378),
     "illegal_parameter",
     "hello-too-long"),
)
NAMES = (
    # what, the name, reason; the alert is always unrecognized_name
    ("another base domain", "alpha1-8080.example.org", "other-domain"),
    ("a base domain that only ends alike", f"alpha1-8080.x{DOMAIN}", "other-domain"),
    ("two labels", f"alpha1.alpha.{DOMAIN}", "other-domain"),
    ("the base domain itself", DOMAIN, "other-domain"),
    ("no dot", "alpha1", "other-domain"),
    ("port 0", f"alpha1-0.{DOMAIN}", "bad-port"),
    ("port 65536", f"alpha1-65536.{DOMAIN}", "bad-port"),
    ("a leading zero", f"alpha1-080.{DOMAIN}", "bad-port"),
    ("a sign", f"alpha1-+80.{DOMAIN}", "bad-port"),
    ("nothing behind the dash", f"alpha1-.{DOMAIN}", "bad-port"),
    ("a port of ten digits", f"alpha1-4294967376.{DOMAIN}", "bad-port"),
    ("two suffixes", f"alpha1-80sg.{DOMAIN}", "bad-suffix"),
    ("digits behind the suffix", f"alpha1-s80.{DOMAIN}", "bad-suffix"),
    ("a second dash", f"alpha1-80-80.{DOMAIN}", "second-dash"),
    ("a trailing dot", f"alpha1-8080.{DOMAIN}.", "trailing-dot"),
    ("a label of 64 bytes", f"{long_label}.{DOMAIN}", "label-too-long"),
    ("an underscore", f"alpha_1.{DOMAIN}", "bad-name"),
    ("an empty label", f".{DOMAIN}", "bad-name"),
    ("a byte over 127", f"alph\xe41.{DOMAIN}", "bad-name"),
    ("an unknown id, standard", f"nobody-8080.{DOMAIN}", "unknown-id"),
    ("an unknown id, passthrough", f"nobody-443s.{DOMAIN}", "unknown-id"),
    ("an id that is the beginning of another", f"alpha1x.{DOMAIN}", "unknown-id"),
    ("an id of which another is the beginning", f"alph-s.{DOMAIN}", "unknown-id"),
)
for what, data, alert, reason in HELLOS:
    topic.row(f"{what}: {alert or 'closed without a word'}, {reason}", data=data, alert=alert, reason=reason)(refused)
for what, name, reason in NAMES:
    topic.row(f"{what}: unrecognized_name, {reason}", data=named(name), alert="unrecognized_name",
              reason=reason)(refused)


@topic.row("an IPv6 client's unknown id: the same")
def _(lab):
    refused(lab, named(f"nobody.{DOMAIN}"), "unrecognized_name", "unknown-id", family=6)


@topic.row("openssl and curl show the alert for what it is")
def _(lab):
    lab.names("nobody")
    done = lab.client.run(["curl", "-sS", "--max-time", 10 * SLOW, f"https://nobody.{DOMAIN}/"])
    expect(done.returncode == 35 and "unrecognized name" in done.stderr, f"curl: {done.stderr}")


def ends_within(lab, data, alert, reason, seconds, then=None):
    """@data is sent, then nothing; the end comes with the hello time-out. @then(sock) goes on sending slowly."""
    with counted(lab, reason), lab.connect() as sock:
        start = time.monotonic()
        if data:
            sock.sendall(data)
        if then:
            sock.settimeout(0.1)
            while time.monotonic() < start + LIMIT:
                try:
                    sock.sendall(then)
                    said = sock.recv(100)
                    break
                except TimeoutError:
                    continue
                except OSError:
                    said = b""
                    break
        else:
            said, _ = tls.drain(sock)
        took = time.monotonic() - start
        expect(HELLO_TIMEOUT * 0.5 < took < seconds, f"ended after {took:.1f} s, hello time-out {HELLO_TIMEOUT:.1f} s")
        expect(then or tls.alert_of(said) == alert, f"alert {tls.alert_of(said)}")


half = good()[:60]

@topic.row("a silent client is closed, silent")
def _(lab):
    # Only after the deferral of the listener is it a connection at all, and only then does the clock run.
    ends_within(lab, b"", None, "silent", HELLO_TIMEOUT * 1.5 + 8 * max(1, SLOW / 3))


@topic.row("half a hello: closed within the hello time-out, hello-timeout")
def _(lab):
    ends_within(lab, tls.records(half), "decode_error", "hello-timeout", HELLO_TIMEOUT * 1.5 + SLOW)


@topic.row("one byte: closed within the hello time-out, hello-timeout")
def _(lab):
    ends_within(lab, b"\x16", "decode_error", "hello-timeout", HELLO_TIMEOUT * 1.5 + SLOW)


@topic.row("a hello that comes too slowly: the time-out is for the whole of it")
def _(lab):
    ends_within(lab, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None, "hello-timeout", HELLO_TIMEOUT * 1.5 + SLOW,
                then=b"\0")


@topic.row("an SSLRequest and no hello: closed within the hello time-out")
def _(lab):
    ends_within(lab, bytes.fromhex("0000000804d2162f"), None, "hello-timeout", HELLO_TIMEOUT * 2.5 + SLOW)


@topic.row("a handshake that stops after the hello: closed within the hello time-out, tls-timeout")
def _(lab):
    with listening(lab, "alpha1", 7200):
        ends_within(lab, tls.Tls(None, tls.client_context(), f"alpha1-7200.{DOMAIN}").hello(), None, "tls-timeout",
                    HELLO_TIMEOUT * 2.5 + SLOW)


@topic.row("a client that leaves in the middle of its hello: hello-eof")
def _(lab):
    with counted(lab, "hello-eof"), lab.connect() as sock:
        sock.sendall(tls.records(half))
        sock.shutdown(1)
        tls.drain(sock)
    with counted(lab, "hello-eof"):
        sock = lab.connect()
        sock.sendall(tls.records(half))
        tls.reset(sock)


@topic.row("forty slow clients at once hold nobody up, and all are closed")
def _(lab):
    with counted(lab, "hello-timeout", 40):
        slow = [lab.connect() for _ in range(40)]
        for sock in slow:
            sock.sendall(b"\x16\x03\x01")
        with lab.tls("alpha1-8080") as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(client.recv_all().endswith(b"alpha1\n"), "alpha1 answers meanwhile")
        for sock in slow:
            with sock:
                expect(tls.drain(sock)[1] in ("FIN", "RST"), "closed")


# The way to the CVM.

@contextlib.contextmanager
def deaf(lab, *names):
    """CVMs whose kernels answer nothing that comes through the tunnel."""
    for name in names:
        lab.cvms[name].ns.ip("route add blackhole 10.0.0.1/32\n")
    try:
        yield
    finally:
        for name in names:
            lab.cvms[name].ns.ip("route del blackhole 10.0.0.1/32\n")


@topic.row("nobody listens, passthrough: internal_error", label="alpha1-7201s")
@topic.row("nobody listens, standard: internal_error before the handshake ends", label="alpha1-7201")
def _(lab, label):
    with counted(lab, "no-instance-answered"):
        refused(lab, named(f"{label}.{DOMAIN}"), "internal_error", "cvm-refused")


@topic.row("every instance of an app refuses: each is tried, then internal_error")
def _(lab):
    with counted(lab, "cvm-refused", 2), counted(lab, "no-instance-answered"), lab.connect() as sock:
        sock.sendall(named(f"alpha-7201s.{DOMAIN}"))
        equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", "alert")


@topic.row("a CVM that does not answer: internal_error within the connect time-out", label="alpha1-7202s", times=1)
@topic.row("no instance answers: as many are tried as ConnectTries says, no longer", label="alpha-7202s", times=2)
def _(lab, label, times):
    with deaf(lab, "alpha1", "alpha2"), counted(lab, "cvm-timeout", times), lab.connect() as sock:
        start = time.monotonic()
        sock.sendall(named(f"{label}.{DOMAIN}"))
        equal(tls.alert_of(tls.drain(sock)[0]), "internal_error", "alert")
        took = time.monotonic() - start
        expect(0.75 * CONNECT_TIMEOUT * times < took < CONNECT_TIMEOUT * times + SLOW,
               f"{took:.2f} s for {times} of {CONNECT_TIMEOUT:.1f} s")


@topic.row("one instance refuses: its neighbour gets all of them")
def _(lab):
    with listening(lab, "alpha2", 7203) as listener:
        for _ in range(12):
            with lab.connect() as sock:
                sock.sendall(named(f"alpha-7203s.{DOMAIN}"))
                listener.accept()[0].close()


@topic.row("one instance is silent: its neighbour gets all of them, in time")
def _(lab):
    with deaf(lab, "alpha1"), listening(lab, "alpha2", 7204) as listener:
        for _ in range(6):
            with lab.connect() as sock:
                start = time.monotonic()
                sock.sendall(named(f"alpha-7204s.{DOMAIN}"))
                listener.accept()[0].close()
                expect(time.monotonic() - start < CONNECT_TIMEOUT + SLOW, "within one connect time-out")


@topic.row("a draining app has no healthy instance: internal_error, standard", label="beta-8080")
@topic.row("a draining app has no healthy instance: internal_error, passthrough", label="beta-443s")
def _(lab, label):
    lab.ctl("cvm", "drain", "beta1")
    try:
        refused(lab, named(f"{label}.{DOMAIN}"), "internal_error", "no-healthy")
    finally:
        lab.ctl("cvm", "drain", "--undo", "beta1")


@topic.row("a thousand random beginnings: every one is closed and counted, and the workers live", seconds=120)
def _(lab):
    chance = random.Random(7)
    pids = {worker["pid"] for worker in lab.workers()}
    before = counters(lab)
    template = tls.records(good())
    for batch in range(20):
        socks = []
        for _ in range(50):
            data = bytearray(template)
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            sock = lab.connect()
            sock.sendall(data[:chance.randrange(1, len(data) + 1)])
            sock.shutdown(1)
            socks.append(sock)
        for sock in socks:
            with sock:
                expect(tls.drain(sock)[1] in ("FIN", "RST"), "closed")
    after = counters(lab)
    equal(after["accepted"] - before["accepted"], 1000, "accepted")
    wait_until(lambda: sum(worker["active"] for worker in lab.workers()) == 0, 5, "no active connection")
    equal({worker["pid"] for worker in lab.workers()}, pids, "workers")
