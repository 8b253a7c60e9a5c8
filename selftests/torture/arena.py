# SPDX-License-Identifier: Apache-2.0
"""The lab with crowds and hosts in it, and what is to be true of phalad and its maps once they have gone."""
import collections, json, os, re, subprocess, time
from pathlib import Path

from lab import servers
from lab.lab import DOMAIN, GATEWAY, SLOW, wait_until
from rows import Failed, counters, equal, expect
import pins

GUEST = bool(os.environ.get("PHALA_GUEST"))
# An emulated guest carries some ten connections a second: with 10 of them at once a hello mostly comes before the deferral ends,
# and what it then has to wait for is no failure.
GATEWAY_SECTION = {"Nic": "n0", **({"HelloTimeout": "30s", "ConnectTimeout": "10s"} if GUEST else {})}
AT_ONCE_IN_GUEST = 10
PORT = 7800
SOURCES = ("192.0.2.16", "192.0.2.47")          # one client address has too few ports for a hundred thousand
WRONG = ("alert", "refused", "reset", "short", "different", "hung")
LABELS = (f"alpha-{PORT}s", f"alpha1-{PORT}s", f"beta-{PORT}s")
REST = 5                                        # seconds: PH_FLOW_REST_MS, and a sweep
CLOSING = 150                                   # PH_FLOW_CLOSING_MS: an end that resets behind both FINs says nothing


class Program:
    """crowd or host: lines in, lines out."""
    def __init__(self, ns, argv, log):
        with open(log, "w") as out:
            self.process = ns.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True)
        self.log = log

    def line(self):
        line = self.process.stdout.readline()
        expect(line, f"{self.log.name} died: {self.said()}")
        return line

    def say(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def said(self):
        return self.log.read_text()

    def finish(self):
        """Ends its input. Returns its report."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        report = json.loads(self.line())
        self.process.wait(10 * SLOW)
        return report

    def finish_when_done(self):
        """The report of a crowd that ends by itself."""
        report = json.loads(self.line())
        self.process.stdin.close()
        self.process.wait(10 * SLOW)
        return report

    def kill(self):
        """It may say how far it has come."""
        self.process.terminate()
        try:
            self.process.wait(2 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Arena:
    def __init__(self, lab, full):
        self.lab, self.full, self.notes, self.programs, self.undo = lab, full, [], [], []
        first, last = (int(address.rpartition(".")[2]) for address in SOURCES)
        lab.client.ip("".join(f"addr add 192.0.2.{i}/32 dev c0\n" for i in range(first, last + 1)))
        servers.serve(lab.cvms["alpha1"].ns, 8080, servers.plain(servers.http("alpha1")))
        lab.client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
        for ns in (lab.client, *(cvm.ns for cvm in lab.cvms.values())):
            ns.sysctl("net.core.somaxconn", 65535)
            ns.sysctl("net.ipv4.tcp_max_syn_backlog", 65535)

    def scaled(self, short, full, guest=None):
        if guest is not None and GUEST and not self.full:
            return guest
        return full if self.full else short

    def note(self, text):
        self.notes.append(text)

    def clear(self):
        """Nothing of a row's is left over for the next one. Returns what those said that were not done."""
        said = ""
        for program in self.programs:
            busy = program.process.poll() is None
            program.kill()
            said += program.said() if busy else ""
        self.programs = []
        for ns, argv in self.undo:
            ns.run(argv)
        self.undo = []
        return said

    def start(self, ns, name, *words):
        log = self.lab.directory / f"{name}{len(self.programs)}.log"
        program = Program(ns, [self.lab.build / "torture" / name, *words], log)
        self.programs.append(program)
        return program

    def host(self, cvm, *words):
        one = self.lab.cvms[cvm]
        program = self.start(one.ns, "host", "--port", PORT, "--patience", 200, *words)
        equal(program.line(), "ready\n", "host")
        return program

    def hosts(self):
        """One in each CVM, for its own labels."""
        return [self.host(name, "--own", f"{cvm.app},{name}") for name, cvm in self.lab.cvms.items()]

    def at_once(self, count):
        return min(count, AT_ONCE_IN_GUEST) if GUEST else count

    def crowd(self, count, *words, labels=LABELS):
        return self.start(self.lab.client, "crowd", "--to", f"{GATEWAY}:443", "--names",
                          ",".join(f"{label}.{DOMAIN}" for label in labels), "--sources", "-".join(SOURCES),
                          "--count", count, "--patience", int(60 * max(1, SLOW / 3)), *words)

    # bad lines

    def lose(self, section, *places):
        """@places: (namespace, device), which lose what they send and what they receive."""
        for ns, device in places:
            ns.run(["tc", "qdisc", "add", "dev", device, "clsact"])
            for way, name in (("ingress", section), ("egress", f"{section}-out")):
                done = ns.run(["tc", "filter", "add", "dev", device, way, "bpf", "da", "obj",
                               self.lab.build / "steer/loss.bpf.o", "sec", name])
                expect(not done.returncode, done.stderr)
            self.undo.append((ns, ["tc", "qdisc", "del", "dev", device, "clsact"]))

    def netem(self, words, *places):
        """What @places send."""
        for ns, device in places:
            done = ns.run(["tc", "qdisc", "add", "dev", device, "root", "netem", *words.split()])
            expect(not done.returncode, done.stderr)
            self.undo.append((ns, ["tc", "qdisc", "del", "dev", device, "root"]))

    # what is counted

    def counters(self):
        return counters(self.lab) + collections.Counter({row["reason"]: row["count"] for row in self.reasons()})

    def reasons(self):
        return self.lab.json("map", "dump", "reasons")

    def since(self, before):
        now = self.counters()
        return {reason: count - before[reason] for reason, count in sorted(now.items()) if count != before[reason]}

    def flows(self):
        return self.lab.json("flow", "list")["flows"]

    def memory(self):
        """KiB of each phalad process that is nobody's but its own."""
        found = {}
        for role, pid in self.lab.processes().items():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found[role] = sum(int(size) for size in re.findall(r"^Private_(?:Dirty|Hugetlb): +(\d+) kB", text, re.M))
        return found

    # what must be true

    def all_intact(self, crowd, hosts, allowed=0):
        """The reports of both ends agree, and nothing went wrong. Returns crowd's."""
        wrong = {word: crowd[word] for word in WRONG if crowd[word]}
        self.note(f"crowd: {crowd['intact']} intact, {crowd['reset-planned']} reset as planned, "
                  f"{(crowd['up'] + crowd['down']) >> 20} MiB in {crowd['seconds']:.1f} s, the longest {crowd['longest']:.1f} s")
        reports = [host.finish() for host in hosts]
        expect(sum(wrong.values()) <= allowed, f"crowd: {wrong} of {crowd['opened']}: {self.said()}")
        for report in reports:
            bad = {word: report[word] for word in WRONG if report[word] and not (allowed and word in ("reset", "short"))}
            equal(bad, {}, f"hosts: {self.said()}")
        if not wrong:
            equal((sum(report["intact"] for report in reports), f"{sum(int(report['digest'], 16) for report in reports) % 2**64:016x}"),
                  (crowd["intact"], crowd["digest"]), "what both ends saw")
        return crowd

    def said(self):
        return "".join(program.said() for program in self.programs)[:4000]

    def tables_empty(self, twice=False, now=False):
        """
        Once every flow has had its rest, and one whose end was lost its silence. No slot is lost; none is there twice unless
        it may be. In short runs that is looked at @now, at the end of a topic, and not after each row.
        """
        if not (self.full or now):
            return
        try:
            wait_until(lambda: not self.flows(), REST + 15, "the flow table empties")
        except TimeoutError:
            self.note(f"those that close by silence: {self.flows()}")
            wait_until(lambda: not self.flows(), CLOSING / SLOW, "the flow table empties")
        equal(self.lab.json("map", "dump", "clients"), [], "clients")
        equal(self.lab.json("map", "dump", "used"), [{"used": 0}], "slots in use")
        with pins.Steer() as steer:
            slots, fresh, hellos = steer[pins.SLOTS_AT], steer[pins.FRESH_AT], steer[pins.FRESH_HELLOS_AT]
        for name, taken in (("ph_free", min(slots, fresh)), ("ph_free_hellos", min(4096, hellos))):
            free = pins.queue(name)
            if not twice:
                equal((len(free), len(set(free))), (taken, taken), f"{name}: slots, and different ones")
        for load in self.lab.json("map", "dump", "loads"):
            equal(load["active"], 0, f"connections of {load}")

    def no_growth(self, before, slack=2048):
        """KiB beyond what it was. The address sanitizer keeps some of what was freed."""
        after, slack = {}, slack * 8 if self.lab.sanitized else slack

        def settled():
            after.update(self.memory())
            return all(after[role] <= before.get(role, after[role]) + slack for role in after)
        try:
            wait_until(settled, 15, "memory")
        except TimeoutError:
            raise Failed(f"memory grew from {before} to {after} KiB") from None
        self.note(f"memory, KiB: {before} became {after}")


def setup(arena, **changes):
    """phalad with the kernel path and everybody healthy."""
    gateway = {**GATEWAY_SECTION, **changes.pop("Gateway", {})}
    arena.lab.ready(Gateway=gateway, **changes)
