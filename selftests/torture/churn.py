# SPDX-License-Identifier: Apache-2.0
"""Churn: CVMs come, drain and go as fast as phalactl can, addresses and slots change hands at once, and crowds connect.

All addresses of the CVMs' range are alpha1's, where host knows whose each is at the moment.
"""
import random, re, shutil, time

from lab.lab import SLOW
from rows import Topic, equal, expect
import arena as the_arena

APPS = [f"app{i}" for i in range(6)]
RANGE = "10.77.0.0/28"


def setup(arena):
    lab = arena.lab
    if lab.phalad and lab.phalad.poll() is None:
        lab.stop()
    shutil.rmtree(lab.directory / "state", ignore_errors=True)
    lab.start(fresh=True, Gateway={"Nic": "n0", "AddressQuarantine": 0}, Tunnel={"CvmRange": RANGE})
    lab.broken = True                   # the next topic begins anew
    lab.cvms["alpha1"].ns.ip(f"link set t0 up\nroute replace local {RANGE} dev lo\nroute replace 10.0.0.0/24 dev t0\n")


topic = Topic("churn", setup)


class Churner:
    """Adds, drains and removes; what it does to an address, host is told."""
    def __init__(self, arena, host):
        self.arena, self.host, self.serial, self.live, self.verbs, self.left_open = arena, host, 0, {}, 0, 0

    def add(self, app):
        self.serial += 1
        name = f"i{self.serial}"
        printed = self.arena.lab.ctl("cvm", "add", "--app", app, "--instance", name, "--generate-key").stdout
        address = re.search(r"10\.77\.0\.\d+", printed)[0]
        self.host.say("assign", address, app)
        self.live[name] = (app, address)
        self.verbs += 1

    def remove(self, name):
        app, address = self.live.pop(name)
        self.arena.lab.ctl("cvm", "remove", name)
        self.host.say("release", address)
        self.left_open += int(self.host.line())
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
            if len(self.live) > 8 or (name and random.random() < 0.4):
                self.remove(name)
            else:
                self.add(random.choice(APPS))
        for name in list(self.live):
            self.remove(name)


@topic.row("none ever reaches another app, and what is removed is reset", only="external", seconds=60)
def _(arena):
    host, memory = arena.host("alpha1"), arena.memory()
    before = arena.counters()
    crowd = arena.crowd(10**7, "--at-once", 600, "--gap", int(1000 * SLOW), "--relay", 200, "--stalls", 500, "--stall", 1,
                        labels=[f"{app}-{the_arena.PORT}s" for app in APPS])
    churner = Churner(arena, host)
    churner.run(arena.scaled(10, 300, 10))
    report, hosted = crowd.finish(), host.finish()
    arena.note(f"{churner.verbs} verbs; counted: {arena.since(before)}")
    arena.note(f"crowd: {report}")
    arena.note(f"host: {hosted}")
    for who, seen in (("crowd", report), ("host", hosted)):
        equal((seen["different"], seen["short"], seen["hung"]), (0, 0, 0), f"{who}: {arena.said()}")
    equal(churner.left_open, 0, "connections that were left open by their removal")
    expect(report["intact"] > 100 and report["reset"] > 10 and report["alert"] > 100, "all of it happened")
    arena.clear()
    arena.tables_empty(now=True)
    arena.no_growth(memory)
