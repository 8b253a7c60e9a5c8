# SPDX-License-Identifier: Apache-2.0
"""Limits of connections and idle time-outs, which hold for the kernel path and the relay together.

    client ─┬─ IPv4 passthrough: the kernel ───┬─ alpha1, alpha2, beta1
            ├─ IPv6 passthrough: relayed ──────┤
            └─ standard mode: a worker ────────┘
"""
import os, signal, time

from lab import tls
from lab.lab import DOMAIN, SLOW, wait_until
from kernel import count, is_alive, kernel_pair
from rows import LIMIT, Failed, Topic, counted, equal, expect, passthrough_pair, standard_pair


def setup(lab):
    lab.ready(Gateway={"Nic": "n0"})


topic = Topic("limits", setup)


def set_alpha(lab, flows="default", idle="default"):
    lab.ctl("app", "set", "alpha", "--flows", flows, "--idle-timeout", idle)


def app(lab, name):
    return lab.json("app", "show", name)


def refused(lab, label, family=4):
    """What a client sees: the name of the alert."""
    with lab.connect(family) as sock:
        sock.sendall(tls.records(tls.client_hello(tls.sni(f"{label}.{DOMAIN}"))))
        data, _ = tls.drain(sock)
        return tls.alert_of(data)


def steer_refuses(lab, label, reason):
    """Steer finds the limit reached and declines, and the worker that gets the hello refuses it. One that comes after the
    deferral is declined for that, so there are a few tries."""
    for _ in range(5):
        before = count(lab, "declined-limit"), count(lab, "declined-accepted")
        with counted(lab, reason):
            equal(refused(lab, label), "internal_error", f"alert for {label}")
        limit, late = count(lab, "declined-limit") - before[0], count(lab, "declined-accepted") - before[1]
        if limit:
            return equal(limit, 1, f"declined-limit for {label}")
        expect(late, f"{label}: neither declined-limit nor declined-accepted")
    raise Failed("not one hello of five came before the end of the deferral")


def close(*pairs):
    for pair in pairs:
        for end in pair:
            end.close()


def none_left(lab, name="alpha"):
    wait_until(lambda: (app(lab, name)["flows"], app(lab, name)["relayed"] or 0) == (0, 0), 10, "none is counted")


def three(lab, port):
    """One connection of each kind to alpha1."""
    return [kernel_pair(lab, f"alpha1-{port}s", "alpha1", port), passthrough_pair(lab, f"alpha1-{port + 1}s", "alpha1", port + 1, 6),
            standard_pair(lab, f"alpha1-{port + 2}", "alpha1", port + 2)]


@topic.row("an app's limit: both paths and both modes count, and each is refused", seconds=60)
def _(lab):
    set_alpha(lab, 3)
    pairs = three(lab, 7801)
    equal((app(lab, "alpha")["flows"], app(lab, "alpha")["relayed"], app(lab, "alpha")["flow_limit"]), (1, 2, 3), "counted")
    before = app(lab, "alpha")["reasons"].get("declined-limit", 0)
    for label in ("alpha-s", "alpha2-s"):
        steer_refuses(lab, label, "app-limit")
    with counted(lab, "app-limit", 2):
        for label, family in (("alpha1-s", 6), ("alpha2", 4)):
            equal(refused(lab, label, family), "internal_error", f"alert for {label} over IPv{family}")
    equal(app(lab, "alpha")["reasons"].get("declined-limit", 0) - before, 2, "what steer declined, by app")
    route = lab.json("route", f"alpha-s.{DOMAIN}", check=False)
    equal((route["routed"], route["reason"]), (False, "app-limit"), "route")
    close(kernel_pair(lab, "beta1-7804s", "beta1", 7804))
    is_alive(*pairs[0])
    pairs[2][0].sock.close()
    pairs[2][1].close()
    wait_until(lambda: app(lab, "alpha")["relayed"] == 1, 5, "one less")
    pairs[2] = kernel_pair(lab, "alpha2-7805s", "alpha2", 7805)
    equal(app(lab, "alpha")["flows"], 2, "flows, when there is room again")
    close(*pairs)
    none_left(lab)


@topic.row("an app's limit holds when phalad is stopped and started again", seconds=60)
def _(lab):
    set_alpha(lab, 1)
    pair = kernel_pair(lab, "alpha1-7811s", "alpha1", 7811)
    lab.ready(Gateway={"Nic": "n0"})
    is_alive(*pair)
    equal((app(lab, "alpha")["flow_limit"], app(lab, "alpha")["flows"]), (1, 1), "limit, flows")
    equal(refused(lab, "alpha1-s", 6), "internal_error", "alert")
    close(pair)
    none_left(lab)


@topic.row("connections of workers that were killed do not count", seconds=60)
def _(lab):
    set_alpha(lab, 2)
    pairs = [passthrough_pair(lab, "alpha1-7821s", "alpha1", 7821, 6) for _ in range(2)]
    equal(refused(lab, "alpha1-s"), "internal_error", "alert at the limit")
    before = {role: pid for role, pid in lab.processes().items() if role.startswith("worker")}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(lab.processes().get(role, pid) != pid for role, pid in before.items()), 5, "all are back")
    none_left(lab)
    close(*pairs, kernel_pair(lab, "alpha1-7822s", "alpha1", 7822))


@topic.row("the gateway's limits: FlowsPerApp, and an app's own over it; FlowsPerSource on both paths", seconds=90)
def _(lab):
    set_alpha(lab)
    lab.ready(Gateway={"Nic": "n0", "FlowsPerApp": 1})
    pair = kernel_pair(lab, "alpha1-7831s", "alpha1", 7831)
    equal(refused(lab, "alpha1", 6), "internal_error", "alert at the gateway's limit")
    set_alpha(lab, "none")
    close(pair, *(kernel_pair(lab, "alpha1-7832s", "alpha1", 7832) for _ in range(2)))
    set_alpha(lab)

    lab.ready(Gateway={"Nic": "n0", "FlowsPerSource": 2})
    pairs = [kernel_pair(lab, "alpha1-7833s", "alpha1", 7833), standard_pair(lab, "beta1-7834", "beta1", 7834)]
    before = count(lab, "declined-limit")
    steer_refuses(lab, "alpha1-s", "source-limit")
    with counted(lab, "source-limit"):
        equal(refused(lab, "beta1"), "internal_error", "alert for beta1")
    equal(count(lab, "declined-limit") - before, 1, "declined-limit")
    equal([(row["client"], row["flows"]) for row in lab.json("map", "dump", "sources")], [("192.0.2.2", 1)], "map dump sources")
    equal(sorted((row["kind"], row["id"], row["connections"]) for row in lab.json("map", "dump", "relayed")),
          [("client", "192.0.2.2", 1)], "map dump relayed")
    others = [passthrough_pair(lab, "alpha1-7835s", "alpha1", 7835, 6) for _ in range(2)]      # another address
    equal(refused(lab, "alpha1-s", 6), "internal_error", "alert over IPv6")
    close(*others)
    pairs[1][0].sock.close()
    pairs[1][1].close()
    wait_until(lambda: not lab.json("map", "dump", "relayed"), 5, "no relayed connection counts")
    pairs[1] = kernel_pair(lab, "beta1-7836s", "beta1", 7836)
    close(*pairs)
    wait_until(lambda: not lab.json("map", "dump", "sources"), 5, "no flow counts")
    setup(lab)


@topic.row("an app's idle time-out, on both paths, and nobody else's", seconds=60)
def _(lab):
    idle = max(2, 1.5 * SLOW)           # longer than it takes to make all the pairs
    set_alpha(lab, idle=f"{1000 * idle:.0f}ms")
    equal(app(lab, "alpha")["idle_s"], idle, "idle_s")
    pairs, other = three(lab, 7841), kernel_pair(lab, "beta1-7844s", "beta1", 7844)
    relay = passthrough_pair(lab, "beta1-7845s", "beta1", 7845, 6)
    before = app(lab, "alpha")["reasons"].get("idle", 0)
    with counted(lab, "idle", 2):
        start = time.monotonic()
        while time.monotonic() - start < 1.5 * idle:            # longer than that, but never idle
            is_alive(*pairs[1])
            is_alive(*pairs[0])
            time.sleep(0.1)
        for end in (pairs[2][0].sock, pairs[2][1], *pairs[1], *pairs[0]):
            end.settimeout(LIMIT)
            expect(tls.drain(end)[1] != "open", "the end of an idle connection")
        equal(app(lab, "alpha")["reasons"].get("idle", 0), before + 1, "flows that ended for it, by app")
    is_alive(*other)
    is_alive(*relay)
    close(other, relay)


@topic.row("settings that make no sense are refused, and change nothing")
def _(lab):
    set_alpha(lab)
    for words in (("nobody", "--flows", 3), ("alpha1", "--flows", 3), ("Alpha", "--flows", 3)):
        done = lab.ctl("app", "set", *words, check=False)
        equal(done.returncode, 1, f"app set {words}: {done.stderr}")
    equal((app(lab, "alpha")["flow_limit"], app(lab, "alpha")["idle_s"]), (None, None), "alpha's settings")
    equal([row["app"] for row in lab.json("app", "list")], ["alpha", "beta"], "apps")
