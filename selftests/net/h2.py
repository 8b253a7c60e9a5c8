# SPDX-License-Identifier: Apache-2.0
"""h2 on g names: a request reaches the CVM only if it names the host that the connection was made for.

    browser ══ TLS, SNI alpha1-7020g ══ phalad ── frames ── alpha1
       └─ :authority beta1-8080g: 421, and alpha1 hears nothing of it
"""
import collections, contextlib, io, os, re, shutil, socket, subprocess

from lab import h2, tls
from lab.lab import DOMAIN, GATEWAY, SLOW
from rows import Skipped, Topic, counted, counters, equal, expect, read_exactly, standard_pair, together

OURS, THEIRS = f"alpha1-7020g.{DOMAIN}", f"beta1-8080g.{DOMAIN}"
SECRET = (b"cookie", b"session=secret")
REFUSAL = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, b"\x08\x03421")


def setup(lab):
    lab.ready()


topic = Topic("h2", setup)


@contextlib.contextmanager
def pair(lab):
    """A client that has said hello in h2, and a CVM that has heard it."""
    client, cvm = standard_pair(lab, "alpha1-7020g", "alpha1", 7020, alpn=["h2", "http/1.1"])
    with client, cvm:
        equal(client.ssl.selected_alpn_protocol(), "h2", "protocol")
        hello = h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0)
        client.send(hello)
        equal(read_exactly(cvm, len(hello)), hello, "at the CVM")
        yield client, cvm


def heard(cvm):
    return h2.read_frame(lambda size: read_exactly(cvm, size))


def told(client):
    return h2.read_frame(client.recv_exactly)


def frames_of(data):
    stream = io.BytesIO(data)
    return list(iter(lambda: h2.read_frame(stream.read), None))


@topic.row("a request for its own host arrives, and the answer", authority=OURS)
@topic.row("with a port and capitals too", authority=OURS.upper() + ":443")
def _(lab, authority):
    with pair(lab) as (client, cvm), counted(lab, "misdirected", 0):
        client.send(h2.request(1, authority, SECRET))
        kind, flags, stream, data = heard(cvm)
        equal((kind, flags, stream), (h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1), "frame")
        equal(h2.fields_of(data)[3:], [(b":authority", authority.encode()), SECRET], "fields")
        answer = h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x88") + \
            h2.frame(h2.DATA, h2.END_STREAM, 1, b"hello")
        cvm.sendall(answer)
        equal(client.recv_exactly(len(answer)), answer, "answer")


@topic.row("a request for another host is answered with 421; the CVM hears nothing of it")
def _(lab):
    with pair(lab) as (client, cvm), counted(lab, "misdirected"):
        settings = h2.frame(h2.SETTINGS, 0, 0)
        client.send(h2.request(1, THEIRS, SECRET) + h2.frame(h2.PING, 0, 0, b"12345678"))
        equal(heard(cvm), (h2.PING, 0, 0, b"12345678"), "at the CVM")
        cvm.sendall(settings)
        equal(client.recv_exactly(len(settings + REFUSAL)), settings + REFUSAL, "at the client")
        client.send(h2.request(3, OURS))
        equal(heard(cvm)[2], 3, "the next stream at the CVM")
        cvm.sendall(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 3, b"\x88"))
        equal(told(client), (h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 3, b"\x88"), "the connection goes on")
        client.close_notify()
        equal(tls.drain(cvm), (b"", "FIN"), "all that the CVM heard")


@topic.row("the body of such a request goes nowhere, and its window is given back")
def _(lab):
    with pair(lab) as (client, cvm):
        cvm.sendall(h2.frame(h2.SETTINGS, 0, 0))
        client.send(h2.request(1, THEIRS, end=False))
        for _ in range(4):
            client.send(h2.frame(h2.DATA, 0, 1, b"secret" * 1000))
        client.send(h2.frame(h2.PING, 0, 0, b"12345678"))
        equal(heard(cvm), (h2.PING, 0, 0, b"12345678"), "at the CVM")
        seen, window = set(), 0
        while window < 24000 or not {(h2.HEADERS, 1), (h2.RST_STREAM, 1)} <= seen:      # in whatever order
            kind, _, stream, data = told(client)
            seen.add((kind, stream))
            if kind == h2.WINDOW_UPDATE:
                window += int.from_bytes(data, "big")
        equal(window, 24000, "window")
        client.send(h2.frame(h2.RST_STREAM, 0, 1, bytes(4)) + h2.frame(h2.DATA, 0, 1, b"secret") +
                    h2.frame(h2.PING, 0, 0, b"87654321"))
        equal(heard(cvm), (h2.PING, 0, 0, b"87654321"), "at the CVM, of a request that the client gave up")


@topic.row("a CVM that answers another host's request itself is cut off", early=False)
@topic.row("and so is one that answers it before it is made", early=True)
def _(lab, early):
    forged = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x88") + h2.frame(h2.DATA, h2.END_STREAM, 1, b"forged")
    with pair(lab) as (client, cvm), counted(lab, "cvm-h2"):
        if not early:
            client.send(h2.request(1, THEIRS, SECRET))
        cvm.sendall(h2.frame(h2.SETTINGS, 0, 0) + forged)
        got = client.recv_all()
        expect(b"forged" not in got and client.ended != "close_notify", f"{got}, {client.ended}")
        equal(tls.drain(cvm)[0], b"", "at the CVM")


@topic.row("a CVM that pushes is cut off")
def _(lab):
    promise = h2.block([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"),
                        (b":authority", THEIRS.encode())])
    with pair(lab) as (client, cvm), counted(lab, "cvm-h2"):
        client.send(h2.request(1, OURS))
        heard(cvm)
        cvm.sendall(h2.frame(h2.SETTINGS, 0, 0) +
                    h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(3) + b"\2" + promise))
        expect(b":authority" not in client.recv_all() and client.ended != "close_notify", f"ended by {client.ended}")


@topic.row("a CVM that stops in the middle of a frame does not hold the refusal up for ever")
def _(lab):
    part = h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.DATA, 0, 1, b"data")[:-1]
    with pair(lab) as (client, cvm), counted(lab, "cvm-h2"):
        client.send(h2.request(1, OURS))
        heard(cvm)
        cvm.sendall(part)
        equal(client.recv_exactly(len(part)), part, "at the client")
        client.send(h2.request(3, THEIRS, SECRET))
        equal(client.recv(), b"", "at the client")
        expect(client.ended != "close_notify", f"ended by {client.ended}")
        equal(tls.drain(cvm)[0], b"", "at the CVM")


@topic.row("a refusal after the CVM's end of file is none any more; the client's end still arrives")
def _(lab):
    with pair(lab) as (client, cvm), counted(lab, "closed"):
        cvm.sendall(h2.frame(h2.SETTINGS, 0, 0))
        cvm.shutdown(socket.SHUT_WR)
        equal((client.recv_all(), client.ended), (h2.frame(h2.SETTINGS, 0, 0), "close_notify"), "at the client")
        client.send(h2.request(1, THEIRS, SECRET))
        client.close_notify()
        equal(tls.drain(cvm), (b"", "FIN"), "at the CVM")


@topic.row("HTTP/1.1 where h2 was agreed on is refused; the CVM hears nothing of it")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7021g", "alpha1", 7021, alpn=["h2"])
    with client, cvm, counted(lab, "h2-malformed"):
        client.send(b"GET / HTTP/1.1\r\nHost: " + THEIRS.encode() + b"\r\n\r\n")
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a header block over the limit is refused; the CVM hears nothing of it")
def _(lab):
    with pair(lab) as (client, cvm), counted(lab, "h2-too-long"):
        with contextlib.suppress(OSError):
            client.send(h2.frame(h2.HEADERS, 0, 1, h2.block([(b"x", b"y" * 15000)])))
            for _ in range(5):
                client.send(h2.frame(h2.CONTINUATION, 0, 1, h2.block([(b"x", b"y" * 15000)])))
        equal(tls.drain(cvm), (b"", "RST"), "at the CVM")


@topic.row("a megabyte each way arrives whole, with refusals in between")
def _(lab):
    size, turns, each = 5000, 10, 20
    with pair(lab) as (client, cvm), counted(lab, "misdirected", turns * each):
        client.send(h2.request(1, OURS, end=False))
        heard(cvm)
        cvm.sendall(h2.frame(h2.SETTINGS, 0, 0))
        equal(told(client)[0], h2.SETTINGS, "at the client")
        for turn in range(turns):       # not more at once than are remembered
            streams = range(3 + 2 * each * turn, 3 + 2 * each * (turn + 1), 2)
            up = b"".join(h2.frame(h2.DATA, 0, 1, b"u" * size) + h2.request(stream, THEIRS, SECRET)
                          for stream in streams)
            down = b"".join(h2.frame(h2.DATA, 0, 1, b"d" * size) for _ in streams)
            arrived, _, got = together(lambda: [heard(cvm) for _ in streams], lambda: cvm.sendall(down),
                                       lambda: client.exchange(up, len(down) + each * len(REFUSAL)))
            expect(all(frame == (h2.DATA, 0, 1, b"u" * size) for frame in arrived), "the upload at the CVM")
            frames = frames_of(got)
            equal([frame[2] for frame in frames if frame[0] == h2.HEADERS], list(streams), "refusals")
            equal([frame[3] for frame in frames if frame[0] == h2.DATA], each * [b"d" * size], "the download")


@topic.row("few bytes that stand for many reach a CVM that reads late, whole and in order")
def _(lab):
    value, count, times = b"v" * 3000, 100, 20
    with pair(lab) as (client, cvm):
        entry = b"\x40" + h2.block([(b"x", value)])[1:]          # into the table (RFC 7541, section 6.2.1)
        client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, entry) +
                    b"".join(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, b"\xbe" * times)
                             for stream in range(3, 3 + 2 * count, 2)))
        client.close_notify()
        cvm.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        got = frames_of(tls.drain(cvm)[0])
    blocks = collections.defaultdict(bytes)
    for kind, flags, stream, data in got:
        expect(kind in (h2.HEADERS, h2.CONTINUATION), f"a frame of type {kind}")
        blocks[stream] += data
    equal(list(blocks), list(range(1, 3 + 2 * count, 2)), "streams")
    for stream, data in blocks.items():
        equal(h2.fields_of(data), (times if stream > 1 else 1) * [(b"x", value)], f"fields of stream {stream}")


@topic.row("nghttp: a body and trailers arrive, the answer comes, nothing is refused")
def _(lab):
    lab.names("alpha1-50051g")
    body = lab.directory / "h2-body"
    body.write_bytes(bytes(200000))
    with counted(lab, "misdirected", 0), counted(lab, "closed"):
        done = lab.client.run(["nghttp", "-v", "-t", int(10 * SLOW), "--data", body, "--trailer", "grpc-status: 0",
                               f"https://alpha1-50051g.{DOMAIN}/who"])
        expect(":status: 200" in done.stdout and "alpha1" in done.stdout,
               f"nghttp: {done.stdout[-1000:]} {done.stderr}")


@topic.row("h2load: a thousand requests over ten connections succeed")
def _(lab):
    lab.names("alpha1-50051g")
    with counted(lab, "misdirected", 0):
        done = lab.client.run(["h2load", "-n", 1000, "-c", 10, "-m", 20, f"https://alpha1-50051g.{DOMAIN}/who"])
        expect(re.search(r"1000 succeeded, 0 failed, 0 errored", done.stdout), f"h2load: {done.stdout} {done.stderr}")


PAGE = """<pre id=said></pre><script>
(async () => {
    let said = "";
    for (const url of URLS) {
        const answer = await fetch(url, {cache: "no-store", credentials: "include"});
        said += `[${url} ${answer.status} ${(await answer.text()).trim()}]`;
    }
    document.getElementById("said").textContent = said;
})();
</script>"""


@topic.row("Chromium: a page of one tenant's that asks another gets the other's answers", only="native", seconds=90)
def _(lab):
    if not shutil.which("chromium"):
        raise Skipped("chromium is not installed")
    page = f"alpha1-50051g.{DOMAIN}"
    urls = [f"https://{label}.{DOMAIN}/who" for label in ("beta1-8080", "alpha1-50051g") for _ in range(2)]
    (lab.directory / "h2-alpha1/page.html").write_text(PAGE.replace("URLS", str(urls)))
    # A browser reuses a connection only if its certificate has no error: this one key is declared to be good.
    public_key = subprocess.run(f"openssl x509 -in {lab.certificate[0]} -pubkey -noout |"
                                "openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
                                shell=True, capture_output=True, text=True).stdout
    before = counters(lab)["misdirected"]
    done = lab.client.run(["timeout", "60", "chromium", "--headless", "--no-sandbox", "--disable-gpu",
                           "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
                           "--disable-web-security",    # so that the page may read what it is answered
                           f"--user-data-dir={lab.directory}/chromium",
                           f"--ignore-certificate-errors-spki-list={public_key.strip()}",
                           f"--host-resolver-rules=MAP *.{DOMAIN} {GATEWAY}", "--virtual-time-budget=20000",
                           "--dump-dom", f"https://{page}/page.html"], env={**os.environ, "HOME": str(lab.directory)})
    said = "".join(f"[{url} 200 {'beta1' if 'beta1' in url else 'alpha1'}]" for url in urls)
    expect(said in done.stdout, f"{done.stdout[-1000:]} {done.stderr[-1000:]}")
    expect(counters(lab)["misdirected"] > before, "it tried the connection that it had first")
