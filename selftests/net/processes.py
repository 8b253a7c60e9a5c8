# SPDX-License-Identifier: Apache-2.0
"""Processes: what they may, and what their deaths leave.

    holder (sockets) ──┬── manager (CAP_NET_ADMIN, CAP_BPF)
                       ├── worker 0 (nothing)
                       └── worker 1 (nothing)
"""
import contextlib, json, os, pwd, re, signal, socket, sqlite3, ssl, subprocess, threading, time
from pathlib import Path

from lab import tls
from lab.lab import DOMAIN, GATEWAY, GATEWAY6, SLOW, wait_until, wg
from rows import (LIMIT, Topic, accept, counted, counters, equal, expect, listening, passthrough_pair, read_exactly,
                  standard_pair)


def setup(lab):
    lab.ready()


topic = Topic("processes", setup)


def status_of(pid):
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def ask(lab, label="alpha1-8080", **options):
    with lab.tls(label, **options) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return client.recv_all().split(b"\r\n\r\n")[1]


def works(lab, label="alpha1-8080"):
    equal(ask(lab, label), label.split("-")[0].encode() + b"\n", "a new connection")


def alive(pairs):
    """Does a byte still go from each client to its CVM and back? Returns a list."""
    def one(client, cvm):
        try:
            client.sendall(b"?")
            if cvm.recv(1) != b"?":
                return False
            cvm.sendall(b"!")
            return client.recv(1) == b"!"
        except OSError:
            return False
    return [one(*pair) for pair in pairs]


@topic.row("workers: nobody, no capability, seccomp, no new privileges, not dumpable", only="optimised")
def _(lab):
    nobody = pwd.getpwnam("nobody")
    workers = [pid for role, pid in lab.processes().items() if role.startswith("worker")]
    equal(len(workers), 2, "workers")
    for pid in workers:
        status = status_of(pid)
        for key, wanted in (("CapEff", "0" * 16), ("CapPrm", "0" * 16), ("CapInh", "0" * 16), ("CapBnd", "0" * 16),
                            ("CapAmb", "0" * 16), ("Seccomp", "2"), ("NoNewPrivs", "1"), ("Groups", ""),
                            ("Uid", "\t".join([str(nobody.pw_uid)] * 4)), ("Gid", "\t".join([str(nobody.pw_gid)] * 4))):
            equal(status[key].strip(), wanted, key)
        equal(os.stat(f"/proc/{pid}/maps").st_uid, 0, "owner of /proc/PID, which is root's only when not dumpable")


@topic.row("workers hold no file and no socket that they need not", only="optimised")
def _(lab):
    for role, pid in lab.processes().items():
        if role.startswith("worker"):
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            for link in links:
                expect(re.match(r"(socket:|pipe:|anon_inode:|/dev/null|/memfd:|" + re.escape(str(lab.log)) + ")", link),
                       f"{role} holds {link}")


@topic.row("the manager is no root with everything: CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF, and no other", only="optimised")
def _(lab):
    status = status_of(lab.processes()["manager"])
    for key in ("CapEff", "CapPrm", "CapBnd"):
        equal({bit for bit in range(64) if int(status[key], 16) >> bit & 1}, {12, 38, 39}, key)
    equal(status["NoNewPrivs"], "1", "NoNewPrivs")


@topic.row("with no capability but those that the unit leaves: it starts, serves, starts again who dies, and stops", only="optimised",
           seconds=60)
def _(lab):
    unit = (Path(__file__).resolve().parents[2] / "tools/phalad.service").read_text()
    left = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.M)[1].lower().replace("cap_", "+").split()
    lab.stop()
    lab.start(["setpriv", f"--bounding-set={','.join(['-all', *left])}", "--no-new-privs"])
    try:
        lab.wait_healthy()
        old = {role: pid for role, pid in lab.processes().items() if role in ("manager", "worker 0")}
        for pid in old.values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(lab.processes().get(role, pid) != pid for role, pid in old.items()) and
                   lab.ctl("status", check=False).returncode == 0, 5, "others in their place")
        works(lab)
        equal(lab.stop(), 0, "exit status")
    finally:
        if lab.phalad.poll() is None:
            lab.stop(signal.SIGKILL)
            wait_until(lambda: not lab.processes(), 5, "no process is left")
        lab.start()
        lab.wait_healthy()


@topic.row("listening: somaxconn and backlog are large, TCP_DEFER_ACCEPT is on, the MSS fits the tunnel")
def _(lab):
    with lab.gateway.inside():
        equal(int(Path("/proc/sys/net/core/somaxconn").read_text()), 65535, "somaxconn")
    for line in lab.gateway.run(["ss", "-Hltn", "sport", "=", "443"]).stdout.splitlines():
        equal(line.split()[2], "65535", f"backlog in {line}")
    with lab.connect() as sock:
        mss = sock.getsockopt(socket.IPPROTO_TCP, 2)
        expect(mss <= 1380, f"the client's MSS is {mss}")


@topic.row("source ports of connections that clients have ended are used again, not only a minute later", seconds=60)
def _(lab):
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    with lab.gateway.inside():
        before = ports.read_text()
        ports.write_text("40000 40019")
    try:
        with listening(lab, "alpha1", 7520) as listener:
            def served():
                with lab.tls("alpha1-7520") as client, accept(listener) as cvm:
                    client.close_notify()
                    equal(cvm.recv(1), b"", "the client's end")
                return True
            for _ in range(20):
                served()

            def again():
                with contextlib.suppress(ssl.SSLError):         # internal_error: no port is left
                    return served()
            wait_until(again, 4, "the 21st by 20 ports")
    finally:
        with lab.gateway.inside():
            ports.write_text(before)


@topic.row("workers may open as many files as the hard limit allows, not the soft one")
def _(lab):
    lab.stop()
    lab.start(["prlimit", "--nofile=512:2048"])
    try:
        pids = [pid for role, pid in lab.processes().items() if role.startswith("worker")]
        expect(pids, "there are workers")
        for pid in pids:
            limit = re.search(r"^Max open files +(\S+) +(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.M)
            equal(limit.groups(), ("2048", "2048"), "soft and hard limit")
    finally:
        lab.restart()
        lab.wait_healthy()


@topic.row("kill -9 of the manager: connections go on, new ones work meanwhile, it is back within a second")
def _(lab):
    pairs = [passthrough_pair(lab, "alpha1-7500s", "alpha1", 7500) for _ in range(3)]
    old = lab.processes()["manager"]
    start = time.monotonic()
    os.kill(old, signal.SIGKILL)
    works(lab)
    new = wait_until(lambda: lab.processes().get("manager", old) != old and lab.processes()["manager"], 5,
                     "a new manager")
    wait_until(lambda: lab.ctl("status", check=False).returncode == 0, 5, "it answers")
    took = time.monotonic() - start
    expect(took < 1 * SLOW, f"back after {took:.2f} s")
    expect(new != old, "another process")
    equal(alive(pairs), [True] * 3, "old connections")
    works(lab)
    equal(len(lab.json("cvm", "list")), 3, "CVMs")
    for pair in pairs:
        for sock in pair:
            sock.close()


def generation_moves(lab, instance):
    """In registry and map, as by `cvm add` with another key of a manager that died before it said so to the workers."""
    with contextlib.closing(sqlite3.connect(lab.directory / "state/registry.db")) as database:
        slot, old = database.execute("select slot, generation from cvm where instance_id = ?", (instance,)).fetchone()
        new, = database.execute("select max(generation) + 1 from cvm").fetchone()
        database.execute("update cvm set generation = ? where instance_id = ?", (new, instance))
        database.commit()
    place = ["pinned", "/sys/fs/bpf/phala/ph_instances", "key", *map(str, slot.to_bytes(4, "little"))]
    value = json.loads(lab.gateway.run(["bpftool", "-j", "map", "lookup", *place]).stdout)["value"]
    equal(bytes(int(byte, 16) for byte in value[:4]), old.to_bytes(4, "little"), "generation in the map")
    value[:4] = map(str, new.to_bytes(4, "little"))
    equal(lab.gateway.run(["bpftool", "map", "update", *place, "value", *value]).returncode, 0, "exit status")


@topic.row("a manager that died between a key's change and its word to the workers: connections to the CVM before end all the same",
           only="native")
def _(lab):
    gone, stays = standard_pair(lab, "alpha1-7504", "alpha1", 7504), standard_pair(lab, "beta1-7504", "beta1", 7504)
    pids = lab.processes()
    os.kill(pids["holder"], signal.SIGSTOP)
    try:
        os.kill(pids["manager"], signal.SIGKILL)
        wait_until(lambda: status_of(pids["manager"])["State"].startswith("Z"), 5, "the manager is dead")
        generation_moves(lab, "alpha1")
    finally:
        os.kill(pids["holder"], signal.SIGCONT)
    gone[1].settimeout(LIMIT)
    with contextlib.suppress(ConnectionResetError):
        equal(gone[1].recv(1), b"", "at the CVM before")
    stays[0].send(b"?")
    equal(stays[1].recv(1), b"?", "at another")
    wait_until(lambda: lab.ctl("status", check=False).returncode == 0, 5, "a manager answers")
    works(lab)
    for pair in (gone, stays):
        for sock in pair:
            sock.close()


@topic.row("kill -9 of a worker: the others' connections go on, it is back within a second")
def _(lab):
    works(lab)
    pairs = [passthrough_pair(lab, "alpha1-7501s", "alpha1", 7501) for _ in range(16)]
    before = {worker["worker"]: worker for worker in lab.workers()}
    equal(sum(worker["active"] for worker in before.values()), 16, "connections")
    start = time.monotonic()
    os.kill(before[0]["pid"], signal.SIGKILL)
    wait_until(lambda: lab.workers()[0]["pid"] not in (0, before[0]["pid"]), 5, "a new worker")
    took = time.monotonic() - start
    expect(took < 1 * SLOW, f"back after {took:.2f} s")
    equal(sum(alive(pairs)), before[1]["active"], "connections that live")
    for _ in range(6):
        works(lab)
    for pair in pairs:
        for sock in pair:
            sock.close()


@topic.row("workers that cannot start: clients wait, then are turned away, silent ones too, and counted; with workers all is well",
           seconds=60)
def _(lab):
    lab.restart()
    hello = tls.records(tls.client_hello(tls.sni(f"alpha1-8080.{DOMAIN}")))
    with lab.without_user():
        for role, pid in lab.processes().items():
            if role.startswith("worker"):
                os.kill(pid, signal.SIGKILL)
        clients = [lab.connect(), lab.connect(6)]
        clients[1].sendall(hello)
        clients[1].settimeout(1)
        equal(tls.drain(clients[1])[1], "open", "a client, at first")
        for _ in range(40):
            clients.append(lab.connect())
            clients[-1].sendall(hello)
        for client in clients:
            client.settimeout(2 * LIMIT)
        equal({tls.drain(client)[1] for client in clients[1:]}, {"RST"}, "how the others ended")
        equal(tls.drain(clients[0])[1], "FIN", "how the silent one ended")
        start = time.monotonic()
        with lab.connect() as client:
            client.sendall(hello)
            equal(tls.drain(client)[1], "RST", "how one that comes later ends")
        expect(time.monotonic() - start < SLOW, "at once")
        for client in clients:
            client.close()
    wait_until(lambda: sum(role.startswith("worker") for role in lab.processes()) == 2 and
               "a worker runs: 43 connections have been turned away" in lab.log.read_text(), 5, "workers")
    works(lab)
    equal(lab.json("status")["counters"]["turned-away"], len(clients) + 1, "turned away")


WATCHDOG = 5 * SLOW


@topic.row("a manager that hangs is killed and started again, and counted; the worker goes on", only="native", role="manager",
           seconds=40)
@topic.row("a worker that hangs is killed and started again, and counted", only="native", role="worker 0", seconds=40)
def _(lab, role):
    lab.stop()
    lab.start(watchdog=WATCHDOG)
    try:
        lab.wait_healthy()
        before = lab.processes()
        os.kill(before[role], signal.SIGSTOP)
        wait_until(lambda: lab.processes().get(role, before[role]) != before[role], WATCHDOG / SLOW + 5, "another one")
        wait_until(lambda: lab.ctl("status", check=False).returncode == 0, 5, "the manager answers")
        status = lab.json("status")
        equal((status["restarts"], status["hung"]), (1, 1), "restarts, those for hanging")
        expect(re.search(rf"{role} \(process {before[role]}\) has not been heard of for \d+ ms: killed", lab.log.read_text()),
               "the log says so")
        after = lab.processes()
        equal({name for name in before if after.get(name) != before[name]}, {role}, "who is another")
        works(lab)
    finally:
        lab.restart()
        lab.wait_healthy()


@topic.row("systemd's watchdog: the holder says that it lives, and not while it is stopped; nobody is killed for that",
           only="native", seconds=40)
def _(lab):
    lab.stop()
    lab.start(watchdog=WATCHDOG)

    def said():
        with contextlib.suppress(BlockingIOError):
            return lab.notified.recv(4096) == b"WATCHDOG=1"
    try:
        before = lab.processes()
        for _ in range(3):
            wait_until(said, WATCHDOG / SLOW, "WATCHDOG=1")
        for pid in before.values():
            os.kill(pid, signal.SIGSTOP)
        while said():
            pass
        time.sleep(1.5 * WATCHDOG)      # longer than anybody may be silent
        expect(not said(), "nothing is said meanwhile")
        os.kill(before["holder"], signal.SIGCONT)
        wait_until(said, WATCHDOG / SLOW, "WATCHDOG=1 again")
        for role, pid in before.items():
            os.kill(pid, signal.SIGCONT)
        works(lab)
        for _ in range(3):
            wait_until(said, WATCHDOG / SLOW, "WATCHDOG=1")
        equal(lab.processes(), before, "processes")
    finally:
        lab.restart()
        lab.wait_healthy()


@topic.row("a worker's counters are not lost with it")
def _(lab):
    ended = counters(lab)["tls-truncated"]
    works(lab)
    wait_until(lambda: counters(lab)["tls-truncated"] > ended, 3, "counted")
    before = counters(lab)
    worker = lab.workers()[0]
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: lab.workers()[0]["pid"] not in (0, worker["pid"]), 5, "a new worker")
    after = counters(lab)
    expect(all(after.get(reason, 0) >= count for reason, count in before.items()), f"{before} became {after}")


@topic.row("kill -9 of the holder: all of it ends, and the next start is whole")
def _(lab):
    lab.stop(signal.SIGKILL)
    wait_until(lambda: not lab.processes(), 5, "no process is left")
    lab.start()
    lab.wait_healthy()
    works(lab)


def add(lab, number):
    return lab.gateway.run([lab.build / "phalactl", "--config", lab.conf, "cvm", "add", "--app", "load", "--instance",
                            f"load{number}", "--generate-key"]).returncode == 0


@topic.row("kill -9 of everything during cvm add: whatever was acknowledged is there, and nothing by halves",
           victim="holder",
           seconds=60)
@topic.row("kill -9 of the manager during cvm add: whatever was acknowledged is there", victim="manager", seconds=60)
def _(lab, victim):
    acknowledged, number, base = [], 0, 1000 if victim == "holder" else 2000
    for pause in (0.03, 0.11, 0.2):
        killer, before = None, len(acknowledged)
        while not killer or killer.poll() is None:
            number += 1
            if add(lab, base + number):
                acknowledged.append(f"load{base + number}")
            if not killer and len(acknowledged) > before:
                killer = subprocess.Popen(["sh", "-c", f"sleep {pause * max(1, SLOW / 3)}; kill -9 {lab.processes()[victim]}"])
        if victim == "holder":
            lab.phalad.wait(LIMIT)
            wait_until(lambda: not lab.processes(), 5, "no process is left")
            lab.start()
        wait_until(lambda: lab.ctl("status", check=False).returncode == 0, 5, "phalad answers")
        known = {cvm["instance"]: cvm for cvm in lab.json("cvm", "list") if cvm["app"] == "load"}
        expect(set(acknowledged) <= set(known), f"{set(acknowledged) - set(known)} is lost")
        ids = {row["id"] for row in lab.json("map", "dump", "ids")}
        expect(set(known) <= ids, f"{set(known) - ids} is not in the maps")
        if lab.wireguard:
            show = lab.gateway.run(["wg", "show", "wg0", "allowed-ips"]).stdout
            peers = dict(line.split() for line in show.splitlines())
            every = {cvm["public_key"]: cvm["address"] + "/32" for cvm in lab.json("cvm", "list")}
            equal(peers, every, "WireGuard's peers")
    works(lab)
    for name in known:
        lab.ctl("cvm", "remove", name)


@topic.row("a second phalad is refused, and the first goes on")
def _(lab):
    done = lab.gateway.run([lab.build / "phalad", "--config", lab.conf], timeout=20 * SLOW)
    equal(done.returncode, 1, "exit status")
    expect("runs already" in done.stderr and str(lab.phalad.pid) in done.stderr, f"it says why: {done.stderr}")
    works(lab)
    expect(lab.ctl("status", check=False).returncode == 0, "phalactl still reaches the first")


@topic.row("a second phalad with directories of its own, but the same maps: refused, with --fresh too, and the first goes on")
def _(lab):
    conf, before = lab.directory / "second.conf", lab.json("map", "dump", "ids")
    for name in ("state", "run"):
        (lab.directory / f"second-{name}").mkdir()
    conf.write_text(lab.configuration(Gateway={"Listen": f"{GATEWAY}:444", "StateDir": lab.directory / "second-state",
                                               "RunDir": lab.directory / "second-run"}))
    for words in ([], ["--fresh"]):
        done = lab.gateway.run([lab.build / "phalad", "--config", conf, *words], timeout=20 * SLOW)
        equal(done.returncode, 1, "exit status")
        expect("/sys/fs/bpf/phala are another phalad's" in done.stderr, f"it says why: {done.stderr}")
    equal(lab.json("map", "dump", "ids"), before, "ids in the maps")
    works(lab)


@topic.row("SIGTERM: exit status 0, connections end, the maps stay; the next start adopts them")
def _(lab):
    pairs = [passthrough_pair(lab, "alpha1-7502s", "alpha1", 7502) for _ in range(2)]
    equal(lab.stop(), 0, "exit status")
    for pair in pairs:
        for sock in pair:
            with sock:
                expect(tls.drain(sock)[1] in ("FIN", "RST"), "ended")
    equal(lab.processes(), {}, "processes")
    expect(lab.ctl("route", f"alpha1.{DOMAIN}", check=False).stdout.count("alpha1"), "the maps are there")
    lab.start()
    lab.wait_healthy()
    works(lab)


def serial(lab):
    with lab.tls("alpha1-8080", authority=lab.authority.pem) as client:
        return client.ssl.getpeercert()["serialNumber"]


@contextlib.contextmanager
def files_replaced(lab, certificate, key):
    """The configured pair is other content for a while."""
    kept = [path.read_bytes() for path in lab.certificate]
    try:
        for path, content in zip(lab.certificate, (certificate, key)):
            path.write_bytes(content)
        yield
    finally:
        for path, content in zip(lab.certificate, kept):
            path.write_bytes(content)


@topic.row("SIGHUP: a new certificate is used for new connections, old ones go on")
def _(lab):
    client, cvm = standard_pair(lab, "alpha1-7503", "alpha1", 7503)
    new = lab.authority.issue("renewed", f"*.{DOMAIN}")
    before = serial(lab)
    with client, cvm, files_replaced(lab, *(path.read_bytes() for path in new)):
        lab.phalad.send_signal(signal.SIGHUP)
        wait_until(lambda: all(serial(lab) != before for _ in range(8)), 5, "every worker shows the new certificate")
        client.send(b"still here")
        equal(cvm.recv(100), b"still here", "the old connection")
    lab.phalad.send_signal(signal.SIGHUP)
    wait_until(lambda: all(serial(lab) == before for _ in range(8)), 5, "and back")


@topic.row("SIGHUP with a bad pair: the old one stays, and the log says why", what="rubbish",
           why="no certificate in PEM")
@topic.row("SIGHUP with a certificate behind a passphrase: the old one stays, and the workers too", what="sealed",
           why="the certificate has a passphrase")
@topic.row("SIGHUP with another key: the old one stays, and the log says why", what="mismatch",
           why="not the key of the certificate")
@topic.row("SIGHUP with an expired certificate: the old one stays, and the log says why", what="expired",
           why="the certificate has expired")
def _(lab, what, why):
    before, logged, processes = serial(lab), len(lab.log.read_text()), lab.processes()
    other = lab.authority.issue(what, f"*.{DOMAIN}", days=-1 if what == "expired" else 30)
    pair = {"rubbish": (b"no certificate", b"no key"),
            "sealed": (lab.certificate[0].read_bytes().replace(b"-----\n", b"-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC," +
                                                               b"00" * 16 + b"\n\n", 1), lab.certificate[1].read_bytes()),
            "mismatch": (lab.certificate[0].read_bytes(), other[1].read_bytes()),
            "expired": (other[0].read_bytes(), other[1].read_bytes())}[what]
    with files_replaced(lab, *pair):
        lab.phalad.send_signal(signal.SIGHUP)
        wait_until(lambda: why in lab.log.read_text()[logged:], 5, f"the log says: {why}")
        equal([serial(lab) for _ in range(4)], [before] * 4, "the certificate")
    equal(lab.processes(), processes, "the processes")


def wait_for_others(lab, dead):
    """Until there is another ready worker for each of these: one that is not would have to answer SIGHUP too, in time."""
    wait_until(lambda: not {0, *dead.values()} & {worker["pid"] for worker in lab.workers()}, 5, "workers")


@topic.row("a worker that dies while one domain's pair is bad: it comes back, and only that domain's standard mode is refused")
def _(lab):
    other, new = lab.authority.issue("second", "*.other.test"), lab.authority.issue("half", f"*.{DOMAIN}")
    lab.restart(other={"Certificate": other[0], "PrivateKey": other[1]})
    lab.wait_healthy()
    counters_before, logged = counters(lab), len(lab.log.read_text())
    try:
        with files_replaced(lab, new[0].read_bytes(), lab.certificate[1].read_bytes()):
            dead = {role: pid for role, pid in lab.processes().items() if role.startswith("worker")}
            for pid in dead.values():
                os.kill(pid, signal.SIGKILL)
            wait_for_others(lab, dead)
            for name, wanted in ((DOMAIN, "internal_error"), ("other.test", None)):
                with lab.connect() as sock:
                    sock.sendall(tls.records(tls.client_hello(tls.sni(f"alpha1-8080.{name}"))))
                    got = tls.alert_of(tls.drain(sock)[0]) if wanted else sock.recv(1)
                    equal(got, wanted or b"\x16", f"the answer for {name}")
            client, cvm = passthrough_pair(lab, "alpha1-7521s", "alpha1", 7521)
            equal(alive([(client, cvm)]), [True], "passthrough")
            client.close()
            cvm.close()
            equal(counters(lab)["no-certificate"] - counters_before["no-certificate"], 1, "counted")
            expect(f"standard mode of {DOMAIN} is refused until SIGHUP" in lab.log.read_text()[logged:], "the log says it")
        lab.phalad.send_signal(signal.SIGHUP)
        wait_until(lambda: lab.log.read_text()[logged:].count("read anew by all workers") == 2, 5, "the reload")
        for _ in range(4):
            works(lab)
    finally:
        lab.restart()
        lab.wait_healthy()


@topic.row("workers that died while the only domain's pair was bad: SIGHUP mends it, and ends no connection")
def _(lab):
    new = lab.authority.issue("half", f"*.{DOMAIN}")
    with files_replaced(lab, new[0].read_bytes(), lab.certificate[1].read_bytes()):
        dead = {role: pid for role, pid in lab.processes().items() if role.startswith("worker")}
        for pid in dead.values():
            os.kill(pid, signal.SIGKILL)
        wait_for_others(lab, dead)
        client, cvm = passthrough_pair(lab, "alpha1-7521s", "alpha1", 7521)
    with client, cvm:
        processes, logged = lab.processes(), len(lab.log.read_text())
        lab.phalad.send_signal(signal.SIGHUP)
        wait_until(lambda: "read anew by all workers" in lab.log.read_text()[logged:], 5, "the log says it")
        equal(alive([(client, cvm)]), [True], "passthrough")
    equal(lab.processes(), processes, "the processes")
    works(lab)


@topic.row("session tickets: each SIGHUP makes a new key; resumed by all workers, new ones too, until the third", seconds=60)
def _(lab):
    lab.restart()
    lab.wait_healthy()
    context = tls.client_context(version=ssl.TLSVersion.TLSv1_2)

    def connect(session=None):
        with tls.Tls(lab.connect(), context, f"alpha1-8080.{DOMAIN}", session=session).handshake() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(client.recv_all().endswith(b"alpha1\n"), "alpha1 answers")
            return client.ssl.session_reused, client.ssl.session

    def new_key():
        lab.phalad.send_signal(signal.SIGHUP)
        wait_until(lambda: not int(status_of(lab.phalad.pid)["ShdPnd"], 16) & 1 << signal.SIGHUP - 1, 5, "the signal is read")
    _, session = connect()
    for i in range(2):
        new_key()
        for role, pid in lab.processes().items():
            if role == f"worker {i}":
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: lab.workers()[i]["pid"] not in (0, pid), 5, "a new worker")
        equal([connect(session)[0] for _ in range(6)], [True] * 6, f"resumed after new key {i + 1}")
    _, later = connect(session)                 # in TLS 1.2 this is no newer ticket: it would hold the same secret
    new_key()
    wait_until(lambda: not connect(session)[0], 3, "the ticket is good no more")
    equal([connect(session)[0] for _ in range(6)], [False] * 6, "resumed after the third")
    equal([connect(later)[0] for _ in range(6)], [False] * 6, "resumed with what was had of resuming")


LISTEN_FDS = """
import os, sys
for at, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(at + 1))
os.execv(sys.argv[2], sys.argv[2:])
"""


@topic.row("socket activation: sockets that are handed over are used, and nobody is turned away while phalad restarts")
def _(lab):
    lab.stop()
    sockets = [lab.gateway.socket(), lab.gateway.socket(socket.AF_INET6)]
    for sock, address in zip(sockets, (GATEWAY, GATEWAY6)):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, 443))
        sock.listen(512)
    try:
        # 10 and 11: out of the way of 3 and 4.
        held = [os.dup2(sock.fileno(), 100 + i) for i, sock in enumerate(sockets)]
        launcher = ["/usr/bin/python3", "-c", LISTEN_FDS, ",".join(map(str, held))]
        lab.start(launcher, pass_fds=held)
        lab.wait_healthy()
        works(lab)
        equal(ask(lab, family=6), b"alpha1\n", "IPv6")
        lab.stop()
        waiting = tls.Tls(lab.connect(), tls.client_context(), f"alpha1-8080.{DOMAIN}")
        waiting.sock.sendall(waiting.hello())
        lab.start(launcher, pass_fds=held)
        with waiting:
            waiting.handshake()
            waiting.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(waiting.recv_all().endswith(b"alpha1\n"), "who came while phalad was away is served")
    finally:
        for fd in held:
            os.close(fd)
        for sock in sockets:
            sock.close()
        lab.stop()
        lab.start()
        lab.wait_healthy()


@topic.row("a socket handed over that is not configured is refused")
def _(lab):
    with lab.gateway.socket() as sock:
        sock.bind((GATEWAY, 4444))
        sock.listen(1)
        lab.stop()
        held = os.dup2(sock.fileno(), 100)
        try:
            lab.start(["/usr/bin/python3", "-c", LISTEN_FDS, str(held)], pass_fds=[held], wait=False)
            equal(lab.phalad.wait(LIMIT), 1, "exit status")
            expect(f"{GATEWAY}:4444" in lab.log.read_text()[-500:], "it says which")
        finally:
            os.close(held)
            lab.start()
            lab.wait_healthy()


def use_up(lab, port, count, reason, allowed):
    """So many connections, of which only some are served at once. @allowed: alerts that the others may get."""
    pid = lab.processes()["worker 0"]
    hello = tls.records(tls.client_hello(tls.sni(f"alpha1-{port}s.{DOMAIN}")))
    with listening(lab, "alpha1", port) as listener:
        clients = [lab.connect() for _ in range(count)]
        for client in clients:
            client.sendall(hello)
        wait_until(lambda: counters(lab).get(reason, 0) >= 1, 5, f"{reason} is counted")
        ticks = lambda: sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        before = ticks()
        time.sleep(2)                   # a stretch of time in which a busy loop would show
        used = (ticks() - before) / os.sysconf("SC_CLK_TCK") / 2
        expect(used < 0.5, f"the worker uses {used:.0%} of a core while it waits")
        served = []
        listener.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                served.append(accept(listener))
        expect(4 <= len(served) < count, f"{len(served)} connections are served at once")
        for sock in served:
            equal(read_exactly(sock, len(hello)), hello, "at the CVM")
            sock.close()
        # There is room now, and more with each that ends.
        listener.settimeout(LIMIT)
        rest = threading.Thread(target=accept_and_close, args=(listener,), daemon=True)
        rest.start()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
        ends = [tls.drain(client) for client in clients]
        for client in clients:
            client.close()
        listener.shutdown(socket.SHUT_RDWR)
        rest.join(LIMIT)
    expect(all(ended != "open" for _, ended in ends), "all connections have ended")
    alerts = {tls.alert_of(data) for data, _ in ends}
    expect(alerts <= {None, *allowed}, f"what the clients were told: {alerts}")
    equal(lab.processes()["worker 0"], pid, "the worker")
    works(lab)


def accept_and_close(listener):
    with contextlib.suppress(OSError):
        while True:
            accept(listener).close()


@topic.row("more clients than the limit of descriptors allows: some are served, the others wait for their turn",
           seconds=60)
def _(lab):
    lab.stop()
    lab.start(["prlimit", "--nofile=312:312"], Gateway={"Workers": 1})
    try:
        lab.wait_healthy()
        use_up(lab, 7504, 48, "connection-limit", [])
    finally:
        lab.stop()
        lab.start()
        lab.wait_healthy()


@topic.row("at the limit, one whose hello is not whole makes room for one more, and the others stay", seconds=60)
def _(lab):
    lab.stop()
    lab.start(["prlimit", "--nofile=312:312"], Gateway={"Workers": 1, "HelloTimeout": "5min"})
    with contextlib.ExitStack() as stack:
        try:
            lab.wait_healthy()
            for _ in range(20):
                stack.enter_context(lab.connect(6)).sendall(tls.records(tls.client_hello(tls.sni(f"alpha1.{DOMAIN}")))[:50])
            wait_until(lambda: lab.workers()[0]["active"] == 20, 5, "all are accepted")
            with counted(lab, "hello-timeout", 1):
                for sock in standard_pair(lab, "alpha1-7506", "alpha1", 7506, family=6):
                    stack.enter_context(sock)
        finally:
            lab.stop()
            lab.start()
            lab.wait_healthy()


@topic.row("descriptors run out all the same (EMFILE): accept backs off without spinning, then goes on", seconds=60)
def _(lab):
    lab.restart(Gateway={"Workers": 1})
    try:
        lab.wait_healthy()
        worker = lab.processes()["worker 0"]
        held = max(int(path.name) for path in Path(f"/proc/{worker}/fd").iterdir())
        # As the same user: root may lack CAP_SYS_RESOURCE, in a container for one.
        subprocess.run(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "prlimit", "--pid",
                        str(worker),
                        f"--nofile={held + 40}:{held + 40}"], check=True)
        use_up(lab, 7505, 64, "no-descriptors", ["internal_error"])
    finally:
        lab.restart()
        lab.wait_healthy()


@topic.row("a kernel without WireGuard: phalad says so, and which kernel has it", only="external")
def _(lab):
    conf = lab.directory / "wireguard.conf"
    lab.wireguard = True
    text = lab.configuration(Gateway={"Listen": f"{GATEWAY}:4443", "RunDir": lab.directory / "run-wg",
                                      "StateDir": lab.directory / "state-wg",
                                      "BpfDir": "/sys/fs/bpf/phala-wg"})
    lab.wireguard = False
    conf.write_text(text)
    done = lab.gateway.run([lab.build / "phalad", "--config", conf], timeout=20 * SLOW)
    equal(done.returncode, 1, "exit status")
    expect("WireGuard" in done.stderr and "5.6" in done.stderr, f"it says: {done.stderr}")
