# SPDX-License-Identifier: Apache-2.0
"""Real clients, to a real TLS server in a CVM: each a flow of the kernel path, as phalactl shows it.

    curl, openssl, GnuTLS, Chromium, node ══ TLS, seen by nobody ══ steer ══ alpha1: HTTPS
"""
import shutil, subprocess, tempfile, threading, time

from lab import servers
from lab.lab import DOMAIN, GATEWAY, SLOW, wait_until
from rows import LIMIT, Failed, Topic, equal, expect

PORT = 7900
LABEL = f"alpha1-{PORT}s"
NAME = f"{LABEL}.{DOMAIN}"
BODY = b"<html><head></head><body>" + b"".join(b"<p>%06d of the payload</p>" % i for i in range(20000)) + b"</body></html>"
REQUEST = f"GET /payload HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"


def setup(lab):
    lab.ready(Gateway={"Nic": "n0"})
    if not hasattr(topic, "server"):
        topic.server = Server(lab)


topic = Topic("clients", setup)


class Server:
    """HTTPS in alpha1. Of /payload it sends one half, and the other when .go is set."""
    def __init__(self, lab):
        self.arrived, self.go = threading.Event(), threading.Event()
        certificate = lab.cvm_authority.issue("clients", "alpha1", NAME)
        lab.names(LABEL)
        servers.serve(lab.cvms["alpha1"].ns, PORT, servers.behind_tls(self.answer, certificate))

    def answer(self, stream, client=""):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := stream.recv()):
                return
            head += data
        if not head.startswith(b"GET /payload "):       # a browser's wish for an icon
            stream.send(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return
        stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" %
                    len(BODY))
        stream.send(BODY[:len(BODY) // 2])
        self.arrived.set()
        self.go.wait(LIMIT)
        stream.send(BODY[len(BODY) // 2:])


def flows(lab):
    return {flow["flow"]: flow for flow in lab.json("flow", "list", "--app", "alpha")["flows"]}


def through(lab, server, argv, speaks, seconds):
    """Runs a client, which gets @speaks on its standard input if it has to be told what to ask for. Returns its output and its
    flow, or None for that if the kernel did not have it."""
    server.arrived.clear()
    server.go.clear()
    before = flows(lab)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = lab.client.start(argv, stdin=subprocess.PIPE, stdout=output, stderr=errors, cwd="/")
        try:
            if speaks:
                child.stdin.write(speaks.encode())
                child.stdin.flush()
            if not server.arrived.wait(seconds * SLOW):
                errors.seek(0)
                raise Failed(f"{argv[0]} asked for nothing: {errors.read()[-1500:].decode(errors='replace')}")
            live = [flow for name, flow in flows(lab).items() if name not in before and flow["state"] == "spliced"]
            server.go.set()
            child.wait(seconds * SLOW)
        finally:
            child.kill()
            child.wait()
        output.seek(0)
        return output.read(), max(live, key=lambda flow: flow["bytes_from_cvm"], default=None)


def curl(lab, scratch):
    return ["curl", "--silent", "--cacert", lab.cvm_authority.pem, f"https://{NAME}/payload"]


def openssl(lab, scratch):
    return ["openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", lab.cvm_authority.pem, "-servername", NAME,
            "-connect", f"{GATEWAY}:443"]


def openssl_tls12(lab, scratch):
    return [*openssl(lab, scratch), "-tls1_2"]


def gnutls(lab, scratch):
    return ["gnutls-cli", "--x509cafile", lab.cvm_authority.pem, "--port", "443", NAME]


def chromium(lab, scratch):
    return ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--ignore-certificate-errors",
            f"--user-data-dir={scratch}", f"--host-resolver-rules=MAP {NAME} {GATEWAY}", "--dump-dom", f"https://{NAME}/payload"]


def node(lab, scratch):
    script = f"""const fs = require("fs"), https = require("https");
        https.request({{ host: "{NAME}", path: "/payload", ca: fs.readFileSync("{lab.cvm_authority.pem}") }},
                      answer => answer.pipe(process.stdout)).end();"""
    return ["node", "-e", script]


@topic.row("curl", client=curl)
@topic.row("openssl s_client, TLS 1.3", client=openssl, speaks=REQUEST)
@topic.row("openssl s_client, TLS 1.2", client=openssl_tls12, speaks=REQUEST)
@topic.row("gnutls-cli", client=gnutls, speaks=REQUEST)
@topic.row("Chromium, headless: a post-quantum hello in two packets", only="native", seconds=90, client=chromium, patience=40)
@topic.row("node's https.request", only="native", client=node)
def _(lab, client, speaks=None, patience=20):
    scratch = tempfile.mkdtemp(prefix="phala-client-")
    try:
        for _ in range(3):      # in a slow guest a hello may come after the deferral, and is a worker's then
            output, flow = through(lab, topic.server, client(lab, scratch), speaks, patience)
            expect(BODY in output, f"{len(output)} bytes of output, and the payload is not among them: {output[-300:]}")
            if flow:
                break
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    expect(flow, "the kernel had no flow of it")
    equal((flow["path"], flow["app"], flow["instance"], flow["port"]), ("kernel", "alpha", "alpha1", PORT), "its flow")
    expect(flow["client"].startswith("192.0.2.2:"), f"its client {flow['client']}")

    def over():
        shown = lab.json("flow", "show", flow["flow"])
        return shown if shown["state"] != "spliced" else None
    shown = wait_until(over, 5, "the flow's end")
    expect(shown["bytes_from_cvm"] > len(BODY) and 200 < shown["bytes_from_client"] < 20000,
           f"bytes: {shown['bytes_from_client']} from the client, {shown['bytes_from_cvm']} from the CVM")
    equal((shown["app"], shown["instance"], shown["path"]), ("alpha", "alpha1", "kernel"), "the same, when it is over")
