# SPDX-License-Identifier: Apache-2.0
"""Rows of the end-to-end tests, and the few words they are written in."""
import collections, contextlib, fnmatch, os, threading

from lab import lab as the_lab, tls
from lab.lab import DOMAIN, SLOW

LIMIT = 10 * SLOW       # seconds that a socket waits before a row fails


class Failed(Exception):
    pass


class Skipped(Exception):
    """For want of a program, which it names."""


class Topic:
    """Rows that share a configuration of phalad. @setup(lab) makes ready; rows take the lab."""
    def __init__(self, name, setup):
        self.name, self.setup, self.rows = name, setup, []

    def here(self, lab, pattern):
        """The rows that mean something in this lab, and match."""
        places = {None, "wireguard" if lab.wireguard else "external", "sanitized" if lab.sanitized else "optimised",
                  "guest" if os.environ.get("PHALA_GUEST") else "native"}
        return [row for row in self.rows if row[2] in places and fnmatch.fnmatch(f"{self.name}: {row[0]}", pattern)]

    def row(self, name, /, only=None, seconds=30, **arguments):
        """Decorates a function. @only: "wireguard", "external", "guest", "native", "optimised": not elsewhere."""
        def keep(function):
            self.rows.append((name, lambda lab: function(lab, **arguments), only, seconds))
            return function
        return keep


def expect(true, what):
    if not true:
        raise Failed(what)


def equal(got, wanted, what):
    if got != wanted:
        raise Failed(f"{what}: {repr(got)[:300]}, not {repr(wanted)[:300]}")


def together(*functions):
    """Runs them in threads; returns their results, or raises what one of them raised."""
    results, errors = [None] * len(functions), []

    def one(i, function):
        try:
            results[i] = function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * LIMIT)
    if errors:
        raise errors[0]
    expect(not any(thread.is_alive() for thread in threads), "still busy when the time was over")
    return results


@contextlib.contextmanager
def listening(lab, name, port, backlog=512):
    """A listening socket in a CVM."""
    with lab.cvms[name].ns.listen(port, backlog=backlog) as listener:
        listener.settimeout(LIMIT)
        yield listener


def accept(listener):
    sock, _ = listener.accept()
    sock.settimeout(LIMIT)
    return sock


def standard_pair(lab, label, name, port, **options):
    """A client's TLS connection and the CVM's end of it."""
    with listening(lab, name, port) as listener:
        client = lab.tls(label, **options)
        return client, accept(listener)


def passthrough_pair(lab, label, name, port, family=4, source="", **shape):
    """A client's socket that has sent a hello, and the CVM's end that has read it; from here on bytes are bytes. @source: the
    client's address."""
    hello = tls.records(tls.client_hello(tls.sni(f"{label}.{DOMAIN}"), **shape))
    with listening(lab, name, port) as listener:
        client = lab.connect(family, source)
        client.sendall(hello)
        cvm = accept(listener)
    equal(read_exactly(cvm, len(hello)), hello, "the hello at the CVM")
    return client, cvm


def read_exactly(sock, size):
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(min(size - len(data), 1 << 16))):
        data += chunk
    return bytes(data)


def counters(lab):
    """What workers and kernel path have counted, by reason; a passthrough connection is one, whichever carries it."""
    total = collections.Counter()
    for worker in lab.workers():
        total.update(worker["counters"])
    if the_lab.KERNEL_PATH:
        total.update({row["reason"]: row["count"] for row in lab.json("map", "dump", "reasons")})
        total["routed-passthrough"] += total["spliced"]
    return total


@contextlib.contextmanager
def counted(lab, reason, times=1):
    """Expects that a counter has gone up by exactly so much, soon."""
    before = counters(lab).get(reason, 0)
    yield
    got = 0

    def enough():
        nonlocal got
        got = counters(lab).get(reason, 0) - before
        return got >= times
    with contextlib.suppress(TimeoutError):
        the_lab.wait_until(enough, 3, reason)
    equal(got, times, f"counter {reason}")
