# SPDX-License-Identifier: Apache-2.0
"""Pressure: what is full, forced, unknown or silent. Declined with its reason, served by the relay, and over afterwards."""
import json

from lab.lab import wait_until
from rows import Topic, equal, expect
import arena as the_arena
import pins

topic = Topic("pressure", the_arena.setup)


def by_kernel(arena, count=200):
    """A crowd that goes by the kernel path again, all of it."""
    hosts, before = arena.hosts(), arena.counters()
    arena.all_intact(arena.crowd(count, "--at-once", arena.at_once(20), "--largest", 65536).finish_when_done(), hosts)
    since = arena.since(before)
    expect(since.get("spliced", 0) >= arena.scaled(1, 1, 0.5) * count, f"by the kernel path afterwards: {since}")


@topic.row("a full flow table: declined and counted, relayed, nobody evicted; and slots are found again", only="native",
           seconds=60)
def _(arena):
    memory = arena.memory()
    with pins.Steer() as steer:
        slots = steer[pins.SLOTS_AT]
        steer[pins.SLOTS_AT] = 256
        try:
            for _ in range(2):
                hosts, before = arena.hosts(), arena.counters()
                crowd = arena.crowd(1000, "--at-once", 600, "--stalls", 500, "--stall", 1)
                arena.all_intact(crowd.finish_when_done(), hosts)
                since = arena.since(before)
                arena.note(f"counted: {since}")
                expect(since.get("declined-full", 0) > 300 and since.get("spliced", 0) >= 200, "some by each path")
                equal(since["spliced"] + since["declined-full"], 1000, "all of them together")
                arena.clear()
                arena.tables_empty(now=True)        # all slots are free again
        finally:
            steer[pins.SLOTS_AT] = slots
        # Never-used slots are taken in an order that hangs on how many there are: one of the 256 may come up again.
        by_kernel(arena, 600)
        arena.clear()
        arena.tables_empty(twice=True)
    arena.no_growth(memory)
    arena.lab.broken = True             # new maps: what was given away twice here stays so
    the_arena.setup(arena)


@topic.row("SYN cookies forced: all relayed, and counted; the kernel path is back when they are off")
def _(arena):
    arena.lab.gateway.sysctl("net.ipv4.tcp_syncookies", 2)
    try:
        hosts, before, count = arena.hosts(), arena.counters(), arena.scaled(500, 10000, 100)
        arena.all_intact(arena.crowd(count, "--at-once", arena.at_once(100), "--largest", 262144).finish_when_done(), hosts)
        since = arena.since(before)
        arena.note(f"counted: {since}")
        # A port that the gateway still has in TIME_WAIT gets no cookie (tcp_conn_request() in net/ipv4/tcp_input.c).
        relayed = count - since.get("spliced", 0)
        equal(since.get("routed-passthrough"), relayed, "relayed")
        # A hello is counted again when it comes again: one that was lost because it and the handshake's end came at once.
        expect(relayed >= count - count // 20 and relayed <= since.get("declined-accepted", 0) <= relayed + count // 20,
               f"counted: {since}")
    finally:
        arena.lab.gateway.sysctl("net.ipv4.tcp_syncookies", 1)
    arena.clear()
    by_kernel(arena, arena.scaled(200, 2000, 30))


@topic.row("hellos for names that nobody has: alerts, counted, and everybody else is served", seconds=60)
def _(arena):
    memory, hosts, before = arena.memory(), arena.hosts(), arena.counters()
    count = arena.scaled(2000, 50000, 200)
    stranger = arena.crowd(count, "--at-once", arena.at_once(300), "--largest", 16384, labels=[f"nobody{i}-7800s" for i in range(200)])
    crowd = arena.crowd(arena.scaled(500, 5000, 30), "--at-once", arena.at_once(50), "--largest", arena.scaled(8 << 20, 8 << 20, 65536))
    report = stranger.finish_when_done()
    arena.all_intact(crowd.finish_when_done(), hosts)
    since = arena.since(before)
    arena.note(f"counted: {since}")
    equal((report["alert"], since.get("unknown-id")), (count, count), f"strangers: {report}")
    arena.clear()
    arena.tables_empty()
    arena.no_growth(memory)


@topic.row("workers at their limit of connections, all of them silent: who speaks is served all the same", only="native", seconds=60)
def _(arena):
    lab = arena.lab
    lab.stop()
    # Room for twenty, and a time-out that would keep them for all of this.
    lab.start(["prlimit", "--nofile=312:312"], Gateway={"Nic": "n0", "Workers": 1, "HelloTimeout": "5min"})
    lab.wait_healthy()
    hosts, before = arena.hosts(), arena.counters()
    crowd = silent(arena, 60)[0]
    wait_until(lambda: arena.since(before).get("connection-limit"), 10, "the worker is at its limit")
    arena.all_intact(arena.crowd(10, "--relay", 1000, "--largest", 16384).finish_when_done(), hosts)
    wait_until(lambda: arena.since(before).get("silent", 0) >= 40, 10, "silent ones made room")
    crowd.finish()


def silent(arena, count):
    """Connections that say nothing, and when they have all been made, by as many processes as it takes."""
    crowds = []
    while count:
        some = min(count, 15000)
        crowds.append(arena.crowd(some, "--at-once", some, "--silent", "--first", len(crowds)))
        count -= some
    made = [json.loads(crowd.line()) for crowd in crowds]
    arena.note(f"silent: {made}")
    return crowds


@topic.row("silent connections by the thousand: served beside them, ended in time, no growth", seconds=60)
def _(arena):
    memory, before = arena.memory(), arena.counters()
    count = arena.scaled(3000, 100000, 300)
    crowds, hosts = silent(arena, count), arena.hosts()
    arena.note(f"{count} silent; half-open at the gateway: "
               f"{len(arena.lab.gateway.run(['ss', '-Htan', 'state', 'syn-recv']).stdout.splitlines())}")
    crowd = arena.crowd(arena.scaled(500, 5000, 30), "--at-once", arena.at_once(50), "--largest", arena.scaled(8 << 20, 8 << 20, 65536))
    arena.all_intact(crowd.finish_when_done(), hosts)
    since = arena.since(before)
    arena.note(f"beside them: {since}")
    for one in crowds:
        report = one.finish_when_done()
        equal(report["ended"], report["opened"], "how silent ones end")
    since = arena.since(before)
    arena.note(f"counted: {since}")
    expect(since.get("silent", 0) > 0, "some were a worker's, and timed out there")
    arena.clear()
    arena.tables_empty(now=True)
    # What malloc() keeps of the many at once is as much as that, and no more the next time.
    arena.no_growth(memory, slack=2048 + count)
    by_kernel(arena, arena.scaled(200, 2000, 30))


@topic.row("other addresses towards CVMs: the flows there were end, and slots are found again", only="external", seconds=60)
def _(arena):
    lab = arena.lab
    by_kernel(arena, 1000)
    arena.clear()
    for address in ("10.0.0.1/30", "10.0.0.1/24"):
        lab.restart(Gateway={"Nic": "n0"}, Tunnel={"Address": address})
        lab.wait_healthy()
        by_kernel(arena, 500)
        arena.clear()
        arena.tables_empty(twice=True)
