# SPDX-License-Identifier: Apache-2.0
"""Streams: thousands of connections of all sizes and ends at once, by both paths, over good lines and bad ones."""
from rows import Topic, equal, expect
import arena as the_arena

topic = Topic("streams", the_arena.setup)


# Where lines lose, what a time-out takes for silence may be a packet that was lost for the third time. And a lost reset of a
# CVM's is seen by a worker when its probes begin, after a minute.
PATIENT = {"HelloTimeout": "60s", "ConnectTimeout": "20s"}
PATIENCE = 150


def bad_ends(arena):
    lab = arena.lab
    return (lab.client, "c0"), *((cvm.ns, "t0" if not lab.wireguard else "e0") for cvm in lab.cvms.values())


def stream(arena, count, *words, at_once=1000, now=False):
    hosts, memory, before = arena.hosts(), arena.memory(), arena.counters()
    report = arena.crowd(count, "--at-once", at_once, *words).finish_when_done()
    arena.all_intact(report, hosts)
    since = arena.since(before)
    arena.note(f"counted: {since}")
    expect(since.get("spliced", 0) > count / 2, "most of them went by the kernel path")
    if "--relay" in words:
        expect(since.get("routed-passthrough", 0) > 0, "and some by relay")
    arena.clear()
    arena.tables_empty(now=now)
    arena.no_growth(memory)


@topic.row("good lines: both ends have seen the same, nothing hung or was reset unasked, tables are empty at the end",
           only="native", seconds=90)
def _(arena):
    stream(arena, arena.scaled(3000, arena.full), "--relay", 100, "--resets", 100, at_once=arena.scaled(500, 2000))


@topic.row("lines that lose and double, both ways: the same", only="native", seconds=200)
def _(arena):
    the_arena.setup(arena, Gateway=PATIENT)
    arena.lose("one-each", *bad_ends(arena))
    stream(arena, arena.scaled(3000, arena.full), "--relay", 50, "--resets", 100, "--seed", 2, "--patience", PATIENCE,
           at_once=arena.scaled(1000, 3000))


@topic.row("lines that lose and double three times as many: the same", only="native", seconds=200)
def _(arena):
    the_arena.setup(arena, Gateway=PATIENT)
    arena.lose("bad", *bad_ends(arena))
    stream(arena, arena.scaled(500, arena.full // 10), "--resets", 100, "--seed", 4, "--patience", PATIENCE, "--largest", 1 << 20,
           at_once=arena.scaled(500, 1000))


@topic.row("netem with delay, reordering, loss and duplication, kernel WireGuard: the same", only="guest", seconds=60)
def _(arena):
    the_arena.setup(arena, Gateway=PATIENT)
    lab = arena.lab
    words = "delay 5ms 2ms reorder 5% 50% loss 1% duplicate 1% limit 10000"
    arena.netem(words, (lab.client, "c0"), (lab.gateway, "n0"), (lab.gateway, "u0"),
                *((cvm.ns, "e0") for cvm in lab.cvms.values()))
    # Few at once: an emulated client that is slow to say its hello, after its handshake, is a worker's.
    stream(arena, arena.scaled(300, 2000), "--relay", 50, "--resets", 100, "--largest", 262144, at_once=20, now=True)


@topic.row("readers that stop for a while, then go on", seconds=60)
def _(arena):
    hosts, before = arena.hosts(), arena.counters()
    seconds = arena.scaled(4, 60)
    count = arena.scaled(200, 2000, 30)
    crowd = arena.crowd(count, "--at-once", arena.at_once(count), "--stalls", 1000, "--stall", seconds,
                        "--largest", arena.scaled(8 << 20, 8 << 20, 1 << 20), "--seed", 3, "--relay", 100)
    report = arena.all_intact(crowd.finish_when_done(), hosts)
    expect(report["longest"] > seconds, "somebody has stopped")
    expect(arena.since(before).get("spliced", 0) > arena.scaled(30, 30, 10), "most of them went by the kernel path")
    arena.clear()
    arena.tables_empty(now=True)
