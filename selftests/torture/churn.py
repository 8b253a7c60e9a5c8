# SPDX-License-Identifier: Apache-2.0
"""Churn: CVMs come, drain and go as fast as phalactl can, addresses and slots change hands at once, and crowds connect.

All addresses of the CVMs' range are alpha1's, where host knows whose each is at the moment. Over WireGuard each CVM has a
device and key of its own there, which are some other CVM's later on.
"""
import random, re, shutil, time

from lab.lab import SLOW, wg
from rows import Topic, equal, expect
import arena as the_arena

APPS = [f"app{i}" for i in range(6)]
RANGE = "10.77.0.0/28"
LIVE = 9                                # CVMs at one time, at most


def setup(arena):
    lab = arena.lab
    if lab.phalad and lab.phalad.poll() is None:
        lab.stop()
    shutil.rmtree(lab.directory / "state", ignore_errors=True)
    lab.gateway.run(["ip", "link", "del", "wg0"])
    lab.start(fresh=True, Gateway={**the_arena.GATEWAY_SECTION, "AddressQuarantine": 0}, Tunnel={"CvmRange": RANGE})
    lab.broken = True                   # the next topic begins anew
    if not lab.wireguard:
        lab.cvms["alpha1"].ns.ip(f"link set t0 up\nroute replace 10.0.0.0/24 dev t0\n")
    lab.cvms["alpha1"].ns.ip(f"route replace local {RANGE} dev lo\n")


topic = Topic("churn", setup)


class Tunnels:
    """WireGuard devices k0, k1, ... in alpha1. A packet leaves by the device of the CVM whose address it comes from."""
    def __init__(self, arena):
        self.lab, self.ns = arena.lab, arena.lab.cvms["alpha1"].ns
        self.gateway = wg("pubkey", self.lab.key_file.read_text())
        self.free, self.public = list(range(LIVE)), []
        self.lab.cvms["alpha1"].down()
        for i in self.free:
            key = self.lab.directory / f"k{i}.key"
            key.write_text(wg("genkey") + "\n")
            self.public.append(wg("pubkey", key.read_text()))
            self.ns.ip(f"link add k{i} type wireguard\nlink set k{i} up\nroute add 10.0.0.0/24 dev k{i} table {100 + i}\n")
            self.ns.run(["wg", "set", f"k{i}", "private-key", key])
            arena.undo.append((self.ns, ["ip", "link", "del", f"k{i}"]))

    def up(self, i, address):
        self.ns.run(["wg", "set", f"k{i}", "peer", self.gateway, "endpoint", "198.51.100.1:51820", "allowed-ips", "10.0.0.0/24",
                     "persistent-keepalive", "25"])
        self.ns.ip(f"rule add from {address} lookup {100 + i}\n")

    def down(self, i, address):
        self.ns.run(["wg", "set", f"k{i}", "peer", self.gateway, "remove"])
        self.ns.ip(f"rule del from {address} lookup {100 + i}\n")
        self.free.append(i)


class Churner:
    """Adds, drains and removes; what it does to an address, host is told."""
    def __init__(self, arena, host):
        self.arena, self.host, self.serial, self.live, self.verbs, self.waited = arena, host, 0, {}, 0, 0
        self.left_open = []             # connections, by removals
        self.tunnels = Tunnels(arena) if arena.lab.wireguard else None

    def add(self, app):
        self.serial += 1
        name, device = f"i{self.serial}", self.tunnels and self.tunnels.free.pop(0)
        key = ["--public-key", self.tunnels.public[device]] if self.tunnels else ["--generate-key"]
        printed = self.arena.lab.ctl("cvm", "add", "--app", app, "--instance", name, *key).stdout
        address = re.search(r"10\.77\.0\.\d+", printed)[0]
        self.host.say("assign", address, app)
        if self.tunnels:
            self.tunnels.up(device, address)
        self.live[name] = (address, device)
        self.verbs += 1

    def remove(self, name):
        address, device = self.live.pop(name)
        self.arena.lab.ctl("cvm", "remove", name)
        start = time.monotonic()
        self.host.say("release", address)
        self.left_open.append(int(self.host.line()))
        self.waited += time.monotonic() - start
        if self.tunnels:
            self.tunnels.down(device, address)
        self.verbs += 1

    def drain(self, name):
        self.arena.lab.ctl("cvm", "drain", name)
        self.verbs += 1

    def run(self, seconds):
        random.seed(7)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            name = random.choice(list(self.live)) if self.live else None
            if name and random.random() < 0.2:
                self.drain(name)
            if len(self.live) == LIVE or (name and random.random() < 0.4):
                self.remove(name)
            else:
                self.add(random.choice(APPS))
        for name in list(self.live):
            self.remove(name)


@topic.row("none ever reaches another app, and what is removed is reset", seconds=60)
def _(arena):
    host, memory = arena.host("alpha1"), arena.memory()
    before = arena.counters()
    churner = Churner(arena, host)
    crowd = arena.crowd(10**7, "--at-once", arena.at_once(600), "--gap", int(1000 * SLOW), "--relay", 200, "--stalls", 500, "--stall", 1,
                        labels=[f"{app}-{the_arena.PORT}s" for app in APPS])
    churner.run(arena.scaled(10, 300, 30))
    report, hosted = crowd.finish(), host.finish()
    arena.note(f"{churner.verbs} verbs, {churner.waited:.1f} s for resets under way; counted: {arena.since(before)}")
    arena.note(f"crowd: {report}")
    arena.note(f"host: {hosted}")
    for who, seen in (("crowd", report), ("host", hosted)):
        equal((seen["different"], seen["short"], seen["hung"]), (0, 0, 0), f"{who}: {arena.said()}")
    # A guest may be off the CPU for longer than a removed CVM's peer stays to answer for resets that were not taken, and so it is
    # for all connections of one removal.
    most = max(1, len(churner.left_open) // 20) if the_arena.GUEST else 0
    left_open = [count for count in churner.left_open if count]
    expect(len(left_open) <= most, f"of {len(churner.left_open)} removals {len(left_open)} left connections open: {left_open}")
    least = arena.scaled(10, 10, 1)
    expect(report["intact"] > 10 * least and report["reset"] > least and report["alert"] > 10 * least, "all of it happened")
    arena.clear()
    arena.tables_empty(now=True)
    arena.no_growth(memory)
