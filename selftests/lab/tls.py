# SPDX-License-Identifier: Apache-2.0
"""TLS with every byte in hand: streams that say how they ended, and ClientHellos that no library would send."""
import contextlib, os, select, socket, ssl, struct

ALERTS = {0: "close_notify", 10: "unexpected_message", 22: "record_overflow", 40: "handshake_failure",
          47: "illegal_parameter",
          50: "decode_error", 70: "protocol_version", 80: "internal_error", 109: "missing_extension",
          112: "unrecognized_name"}


def drain(sock):
    """Reads to the end. Returns (bytes, how it ended: "FIN", "RST" or "open" when the time is over)."""
    data = bytearray()
    try:
        while chunk := sock.recv(65536):
            data += chunk
        return bytes(data), "FIN"
    except (ConnectionResetError, BrokenPipeError):
        return bytes(data), "RST"
    except TimeoutError:
        return bytes(data), "open"


def alert_of(data):
    """The name of the fatal alert that @data, a plaintext record, is; None for anything else."""
    if len(data) >= 7 and data[0] == 21 and data[5] == 2:
        return ALERTS.get(data[6], f"alert {data[6]}")
    return None


IGNORE_UNEXPECTED_EOF = 1 << 7          # OpenSSL's SSL_OP_IGNORE_UNEXPECTED_EOF, which Python sets by default


def client_context(authority=None, alpn=None, version=None, certificate=None):
    """@authority: PEM file to verify with, or None: anything goes. @certificate: (chain, key) of our own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~IGNORE_UNEXPECTED_EOF
    context.check_hostname = authority is not None
    context.verify_mode = ssl.CERT_REQUIRED if authority else ssl.CERT_NONE
    if authority:
        context.load_verify_locations(authority)
    if alpn:
        context.set_alpn_protocols(alpn)
    if version:
        context.minimum_version = context.maximum_version = version
    if certificate:
        context.load_cert_chain(*certificate)
    return context


def server_context(certificate, client_authority=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options &= ~IGNORE_UNEXPECTED_EOF
    context.load_cert_chain(*certificate)
    if client_authority:
        context.load_verify_locations(client_authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Tls:
    """One end of a TLS connection over @sock. After the end, .ended is "close_notify", "FIN" or "RST"."""
    def __init__(self, sock, context, name=None, server=False, session=None):
        self.sock, self.ended = sock, None
        self.sent, self.received = bytearray(), bytearray()     # what went over the wire, as it was
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_side=server, server_hostname=name,
                                    session=session)

    def flush(self):
        if data := self.outgoing.read():
            self.sent += data
            self.sock.sendall(data)

    def fill(self):
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data, self.ended = b"", "RST"
        if data:
            self.received += data
            self.incoming.write(data)
        else:
            self.ended = self.ended or "FIN"
            self.incoming.write_eof()

    def pump(self, function, *args):
        while True:
            try:
                result = function(*args)
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                self.fill()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self.flush()        # the alert that says so
                raise

    def hello(self):
        """The ClientHello that handshake() would send first."""
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return self.outgoing.read()

    def handshake(self):
        self.pump(self.ssl.do_handshake)
        return self

    def send(self, data):
        self.pump(self.ssl.write, data)

    def recv(self, size=65536):
        """Some plaintext; b"" at the end."""
        try:
            if data := self.pump(self.ssl.read, size):
                return data
            self.ended = "close_notify"         # what read() says when we have not sent ours yet
        except ssl.SSLZeroReturnError:
            self.ended = "close_notify"
        except ssl.SSLError as error:
            if error.reason != "UNEXPECTED_EOF_WHILE_READING":
                raise
        return b""

    def recv_exactly(self, size):
        data = b""
        while len(data) < size and (chunk := self.recv(size - len(data))):
            data += chunk
        return data

    def recv_all(self):
        data = bytearray()
        while chunk := self.recv():
            data += chunk
        return bytes(data)

    def exchange(self, data, size):
        """Sends @data and reads @size bytes, both at once; returns what it read."""
        got, out = bytearray(), b""
        while data or out or len(got) < size:
            if data and not out:
                self.ssl.write(data[:16384])
                data, out = data[16384:], self.outgoing.read()
            readable, writable, _ = select.select([self.sock], [self.sock] if out else [], [], self.sock.gettimeout())
            if not readable and not writable:
                raise TimeoutError(f"{len(got)} of {size} bytes, {len(data)} still to send")
            if writable:
                out = out[self.sock.send(out, socket.MSG_DONTWAIT):]
            if readable:
                self.fill()
                try:
                    while chunk := self.ssl.read(65536):
                        got += chunk
                except ssl.SSLWantReadError:
                    pass
        return bytes(got)

    def close_notify(self):
        """Ends our direction; the other stays readable."""
        try:
            self.ssl.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def block(data, size):
    """@data behind its length in @size bytes."""
    return len(data).to_bytes(size, "big") + data


def extension(kind, data):
    return struct.pack(">H", kind) + block(data, 2)


def sni(*names, kind=0):
    """A server_name extension with these host_names (RFC 6066, section 3)."""
    return extension(0, block(b"".join(bytes([kind]) + block(name.encode("latin-1"), 2) for name in names), 2))


def client_hello(extensions=b"", session_id=b"", session_id_len=None, trailing=b"", pad=0):
    """A ClientHello message (RFC 8446, section 4.1.2), well formed unless asked otherwise. @pad: bytes of padding."""
    if pad:
        extensions += extension(21, bytes(pad))
    others = extension(10, block(b"\x00\x1d\x00\x17", 2)) + extension(11, block(b"\0", 1)) + \
        extension(13, block(b"\x04\x03\x08\x04\x04\x01", 2))
    length = len(session_id) if session_id_len is None else session_id_len
    body = b"\x03\x03" + os.urandom(32) + bytes([length]) + session_id + block(b"\xc0\x2b\xc0\x2f\x00\xff", 2) + \
        b"\x01\0" + block(others + extensions, 2) + trailing
    return b"\x01" + block(body, 3)


def records(message, *cuts):
    """@message as handshake records, cut at these offsets (and at 2^14)."""
    cuts = sorted({0, len(message), *cuts, *range(0, len(message), 16384)})
    return b"".join(b"\x16\x03\x01" + block(message[a:b], 2) for a, b in zip(cuts, cuts[1:]))


def reset(sock):
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
