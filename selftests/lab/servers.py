# SPDX-License-Identifier: Apache-2.0
"""What runs in the lab's CVMs: HTTP with WebSocket, the same behind TLS of its own, nghttpd, PostgreSQL."""
import base64, hashlib, os, shutil, ssl, subprocess, threading
from pathlib import Path

from . import tls


class Plain:
    """A socket with the same verbs as tls.Tls."""
    def __init__(self, sock):
        self.sock = sock

    def send(self, data):
        self.sock.sendall(data)

    def recv(self, size=65536):
        return self.sock.recv(size)

    recv_exactly = tls.Tls.recv_exactly


def serve(ns, port, handler):
    """Accepts for ever, a thread for each connection; handler(sock) owns none of it. Close what is returned to stop."""
    listener = ns.listen(port)

    def one(sock):
        with sock:
            try:
                handler(sock)
            except (OSError, ssl.SSLError):
                pass    # the client's affair

    def accept():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def frame(data, mask=b""):
    """A WebSocket text frame (RFC 6455, section 5.2) of less than 126 bytes; clients give a mask of 4."""
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)) if mask else data
    return bytes([0x81, len(data) | (0x80 if mask else 0)]) + mask + masked


def read_frame(stream):
    """Returns the text, or None at the end or a close frame."""
    head = stream.recv_exactly(2)
    if len(head) < 2 or head[0] & 15 != 1:
        return None
    mask = stream.recv_exactly(4) if head[1] & 0x80 else b""
    data = stream.recv_exactly(head[1] & 0x7f)
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)) if mask else data


def http(name):
    """A handler (of a stream, not of a socket) that says who it is, and for an Upgrade echoes WebSocket frames."""
    def handle(stream, client=""):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := stream.recv()):
                return
            head += data
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if fields.get(b"upgrade") == b"websocket":
            key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
            digest = hashlib.sha1(key.split(b": ")[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            stream.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
            while (text := read_frame(stream)) is not None:
                stream.send(frame(name.encode() + b": " + text))
            return
        body = f"{name}{client}\n".encode()
        stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    return handle


def plain(handle):
    return lambda sock: handle(Plain(sock))


def behind_tls(handle, certificate, client_authority=None):
    """The same behind TLS; with @client_authority, mutual, and the client's name is told to the handler."""
    context = tls.server_context(certificate, client_authority)

    def handler(sock):
        stream = tls.Tls(sock, context, server=True).handshake()
        subject = stream.ssl.getpeercert() or {}
        names = [value for part in subject.get("subject", ()) for key, value in part if key == "commonName"]
        handle(stream, "".join(f", and you are {name}" for name in names))
        stream.close_notify()
        tls.drain(sock)
    return handler


def nghttpd(ns, directory, name, port):
    """HTTP/2 without TLS, as a gRPC server speaks it behind the gateway."""
    root = directory / f"h2-{name}"
    root.mkdir(exist_ok=True)
    (root / "who").write_text(name + "\n")
    return ns.start(["nghttpd", "--no-tls", "-d", root, port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


PG_BIN = Path("/usr/lib/postgresql/15/bin")
AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def postgres_template(build):
    """A database cluster as a tar file, made once: initdb takes minutes in an emulated guest. Returns its path."""
    template = build / "pgdata.tar"
    if not template.exists():
        work = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
        try:
            shutil.chown(work, "postgres", "postgres")
            subprocess.run([*AS_POSTGRES, PG_BIN / "initdb", "-D", work / "data", "-U", "postgres", "--auth=trust",
                            "--no-sync",
                            "--no-instructions", "--wal-segsize=1", "--locale=C", "--encoding=UTF8"],
                           check=True, stdout=subprocess.DEVNULL, cwd="/")
            subprocess.run(["tar", "-C", work, "-cf", f"{template}.{os.getpid()}", "data"], check=True)
            os.rename(f"{template}.{os.getpid()}", template)
        finally:
            shutil.rmtree(work)
    return template


def postgres(ns, directory, build, certificate):
    """PostgreSQL 15 on port 5432 that takes TLS and nothing else."""
    home = directory / "postgres"
    home.mkdir()
    shutil.chown(home, "postgres", "postgres")
    subprocess.run(["tar", "-C", home, "-xf", postgres_template(build)], check=True)
    for source, name in zip(certificate, ("server.crt", "server.key")):
        shutil.copyfile(source, home / name)
        (home / name).chmod(0o600)
        shutil.chown(home / name, "postgres", "postgres")
    (home / "data/pg_hba.conf").write_text("hostssl all all 0.0.0.0/0 trust\n")
    settings = {"listen_addresses": "*", "port": 5432, "ssl": "on", "ssl_cert_file": home / "server.crt",
                "ssl_key_file": home / "server.key", "unix_socket_directories": "", "fsync": "off", "autovacuum": "off",
                "max_worker_processes": 0, "shared_buffers": "16MB"}
    argv = [*AS_POSTGRES, "--pdeathsig=SIGKILL", PG_BIN / "postgres", "-D", home / "data"]
    for name, value in settings.items():
        argv += ["-c", f"{name}={value}"]
    with open(directory / "postgres.log", "w") as log:
        return ns.start(argv, stdout=log, stderr=log, cwd="/")


def start_all(lab):
    """What every CVM offers: HTTP on 80 and 8080, TLS of its own on 443, mutual TLS on 8443, h2c on 50051 (alpha1),
    PostgreSQL on 5432 (beta1)."""
    for name, cvm in lab.cvms.items():
        certificate = lab.cvm_certificates[name]
        for port in (80, 8080):
            serve(cvm.ns, port, plain(http(name)))
        serve(cvm.ns, 443, behind_tls(http(name), certificate))
        serve(cvm.ns, 8443, behind_tls(http(name), certificate, lab.cvm_authority.pem))
    lab.children.append(nghttpd(lab.cvms["alpha1"].ns, lab.directory, "alpha1", 50051))
    lab.children.append(postgres(lab.cvms["beta1"].ns, lab.directory, lab.build, lab.cvm_certificates["beta1"]))
