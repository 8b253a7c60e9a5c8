# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 with every frame in hand (RFC 9113); header blocks are literals without a table (RFC 7541, section 6.2.2)."""
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def number(value):
    """With a prefix of 7 bits (RFC 7541, section 5.1)."""
    if value < 127:
        return bytes([value])
    out, value = b"\x7f", value - 127
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def block(fields):
    return b"".join(b"\0" + number(len(name)) + name + number(len(value)) + value for name, value in fields)


def fields_of(data):
    """What block() made, size updates in front of it aside."""
    fields, at = [], 0

    def string():
        nonlocal at
        length, at = data[at], at + 1
        if length == 127:
            shift = 0
            while True:
                byte, at = data[at], at + 1
                length += (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        at += length
        return bytes(data[at - length:at])

    while at < len(data):
        first, at = data[at], at + 1
        if first in (0x00, 0x10):
            fields.append((string(), string()))
        elif first >> 5 != 1:
            raise ValueError(f"no literal: {first:#x}")
    return fields


def request(stream, authority, *more, end=True, method=b"POST"):
    fields = [(b":method", method), (b":scheme", b"https"), (b":path", b"/"), (b":authority", authority.encode()),
              *more]
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(fields))


def read_frame(recv_exactly):
    """Returns (type, flags, stream, payload), or None at the end of the stream."""
    head = recv_exactly(9)
    if len(head) < 9:
        return None
    size = int.from_bytes(head[:3], "big")
    return head[3], head[4], int.from_bytes(head[5:9], "big"), recv_exactly(size) if size else b""
