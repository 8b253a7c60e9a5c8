# SPDX-License-Identifier: Apache-2.0
"""phalactl, the registry, the configuration: what an operator does, and what they are told when it is wrong."""
import contextlib, hashlib, os, re, shutil, signal, socket, sqlite3, stat

from lab.lab import DOMAIN, GATEWAY, GUEST, SLOW, wait_until, wg
from rows import LIMIT, Topic, equal, expect


def setup(lab):
    lab.ready()


topic = Topic("control", setup)


@topic.row("status names tunnel, CVMs and workers, for people and as JSON")
def _(lab):
    text, status = lab.ctl("status").stdout, lab.json("status")
    workers = {f"worker {row['index']}": row["pid"] for row in status["workers"]}
    equal({"manager": status["pid"], **workers}, {role: pid for role, pid in lab.processes().items() if role != "holder"}, "processes")
    equal((status["tunnel"]["interface"], status["cvms"], status["apps"], status["healthy"]), (lab.tunnel, 3, 2, 3), "tunnel and CVMs")
    for words in (lab.tunnel, f"manager {status['pid']}", "3 of 2 apps: 3 healthy", *map(str, workers.values())):
        expect(words in text, f"{words} is in {text}")


@topic.row("cvm list and show tell app, address, state and health")
def _(lab):
    rows = {row["instance"]: row for row in lab.json("cvm", "list")}
    equal(sorted(rows), sorted(lab.cvms), "instances")
    for name, cvm in lab.cvms.items():
        row = lab.json("cvm", "show", name)
        equal((row["app"], row["address"], row["state"], row["health"]), (cvm.app, cvm.address, "ready", "healthy"),
              name)
        equal(row["public_key"], wg("pubkey", cvm.key), "public key")
        expect(name in lab.ctl("cvm", "show", name).stdout, "text")
    equal([row["instance"] for row in lab.json("cvm", "list", "--app", "beta")], ["beta1"], "of one app")


@topic.row("cvm show of nobody fails with words")
def _(lab):
    done = lab.ctl("cvm", "show", "nobody", check=False)
    equal(done.returncode, 1, "exit status")
    expect("nobody" in done.stderr and not done.stdout, f"words: {done.stderr}")


@topic.row("addresses are in the range and not in the gateway's own prefix")
def _(lab):
    for name, cvm in lab.cvms.items():
        expect(cvm.address.startswith("10.") and not cvm.address.startswith("10.0.0."), f"{name} has {cvm.address}")


MAPS = ("gateway", "instances", "ids", "domains", "workers")


def dump_all(lab):
    """All maps that are pinned: each is listed, and is dumped or says why it cannot be. A guest has no time for each."""
    listed = {row["name"]: row for row in lab.json("map", "list") if row["pinned"]}
    equal(set(listed), {name.removeprefix("ph_") for name in os.listdir("/sys/fs/bpf/phala") if name.startswith("ph_")}, "listed")
    expect(set(MAPS) <= set(listed), f"listed are {set(listed)}")
    for name in MAPS if GUEST else listed:
        done = lab.ctl("map", "dump", name, check=False)
        if listed[name]["type"] == "ringbuf" or name == "gate_cache":
            expect(done.returncode == 1 and "cannot be dumped" in done.stderr, f"dump of {name}: {done.stderr}")
        else:
            expect(done.returncode == 0 and done.stdout, f"dump of {name}: {done.stderr}")
            expect(isinstance(lab.json("map", "dump", name), list), f"JSON of {name}")


@topic.row("map list and map dump show every pinned map, in names rather than numbers")
def _(lab):
    dump_all(lab)
    equal({row["id"]: (row["kind"], sorted(row["instances"])) for row in lab.json("map", "dump", "ids")},
          {"alpha": ("app", ["alpha1", "alpha2"]), "beta": ("app", ["beta1"]),
           **{name: ("instance", [name]) for name in lab.cvms}}, "ids")
    equal([row["domain"] for row in lab.json("map", "dump", "domains")], [DOMAIN], "domains")
    instances = {row["instance"]: row for row in lab.json("map", "dump", "instances")}
    equal({name: (row["address"], row["state"], row["health"]) for name, row in instances.items()},
          {name: (cvm.address, "ready", "healthy") for name, cvm in lab.cvms.items()}, "instances")
    equal(lab.ctl("map", "dump", "nothing", check=False).returncode, 2, "exit status for a map that is not")


@topic.row("bpftool reads the maps by their types' names")
def _(lab):
    done = lab.gateway.run(["bpftool", "map", "dump", "pinned", "/sys/fs/bpf/phala/ph_gateway"])
    expect("healthy_for_ns" in done.stdout, f"bpftool: {done.stdout}{done.stderr}")


@topic.row("route explains a name that is served", label="alpha-8080", parsed=("alpha", 8080, "standard"), choices=2)
@topic.row("route explains passthrough", label="beta1-s", parsed=("beta1", 443, "passthrough"), choices=1)
@topic.row("route explains gRPC", label="alpha1-50051g", parsed=("alpha1", 50051, "grpc"), choices=1)
def _(lab, label, parsed, choices):
    route = lab.json("route", f"{label}.{DOMAIN}")
    equal((route["parsed"]["id"], route["parsed"]["port"], route["parsed"]["mode"]), parsed, "parsed")
    equal((route["routed"], route["choices"]), (True, choices), "routed")
    expect("routed" in lab.ctl("route", f"{label}.{DOMAIN}").stdout, "text")


@topic.row("route explains a refusal: unknown id", name=f"nobody.{DOMAIN}", reason="unknown-id")
@topic.row("route explains a refusal: bad port", name=f"alpha1-0.{DOMAIN}", reason="bad-port")
@topic.row("route explains a refusal: other domain", name="alpha1.example.org", reason="other-domain")
def _(lab, name, reason):
    done = lab.ctl("route", name, check=False)
    equal(done.returncode, 1, "exit status")
    expect(reason in done.stdout, f"text: {done.stdout}")
    equal(lab.json("route", name, check=False)["reason"], reason, "reason")


@topic.row("route and map dump work while phalad is killed, and say that the manager is away and no worker lives")
def _(lab):
    lab.stop(signal.SIGKILL)
    try:
        wait_until(lambda: not lab.processes(), 5, "no process is left")
        dump_all(lab)
        name = f"alpha1.{DOMAIN}"
        wait_until(lambda: "away" in lab.ctl("route", name, check=False).stdout, 8, "the manager is away")
        said = wait_until(lambda: (said := lab.json("route", name, check=False))["live_workers"] == 0 and said, 8,
                          "no worker's heart beats")
        equal(said["routed"], True, "health stays as it was")
        done = lab.ctl("route", name, check=False)
        equal(done.returncode, 1, "exit status of route")
        expect("workers   none lives: nobody answers\n" in done.stdout, f"no worker lives: {done.stdout}")
        done = lab.ctl("status", check=False)
        equal(done.returncode, 1, "exit status of status")
        expect("worker" in done.stdout.lower(), f"what the maps still tell: {done.stdout}")
        equal(lab.ctl("cvm", "list", check=False).returncode, 1, "exit status of cvm list")
    finally:
        lab.start()
        lab.wait_healthy()


@topic.row("every verb has --help; what is no verb is usage, exit status 2", only="native")
def _(lab):
    for verb in (["status"], ["cvm", "add"], ["cvm", "list"], ["cvm", "show"], ["cvm", "remove"], ["cvm", "drain"],
                 ["map", "list"], ["map", "dump"], ["route"]):
        done = lab.ctl(*verb, "--help")
        expect(done.stdout.startswith("usage: phalactl " + " ".join(verb)), f"help: {done.stdout}")
    for words in ([], ["nonsense"], ["cvm", "nonsense"], ["cvm", "show"], ["route"], ["cvm", "add", "--app", "x"]):
        equal(lab.ctl(*words, check=False).returncode, 2, f"exit status of {words}")


@topic.row("the control socket is root's alone")
def _(lab):
    mode = os.stat(lab.directory / "run/control.sock")
    equal((stat.S_IMODE(mode.st_mode), mode.st_uid), (0o600, 0), "mode and owner")


@topic.row("rubbish on the control socket is refused, and the next request is served")
def _(lab):
    for data in (b"\n", b"{}\n", b"[1]\n", b"{" * 5000 + b"\n", b"\0" * 100 + b"\n", b'{"verb":7}\n',
                 b'{"verb":"cvm add"}\n', b"x" * 200000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT)
            sock.connect(str(lab.directory / "run/control.sock"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                expect(b'"ok":true' not in sock.recv(65536).replace(b" ", b""), f"refused: {data[:20]}")
    lab.ctl("status")


# Registering.

def state(lab):
    """Everything that a refused request must not change."""
    return (lab.ctl("--json", "map", "dump", "ids").stdout,
            [(row["instance"], row["address"], row["public_key"], row["state"]) for row in lab.json("cvm", "list")],
            sorted(lab.gateway.run(["wg", "show", "wg0", "allowed-ips"]).stdout.splitlines()))


def own(lab):
    return wg("pubkey", wg("genkey"))


REFUSED = (
    # what, app, instance, public key, a word of the answer
    ("a public key that is no key", "alpha", "alpha9", lambda lab: "hello", "key"),
    ("a key of 31 bytes", "alpha", "alpha9", lambda lab: "A" * 41 + "E=", "key"),
    ("a public key of zeros", "alpha", "alpha9", lambda lab: "A" * 43 + "=", "key"),
    ("a key of low order", "alpha", "alpha9", lambda lab: "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "key"),
    ("another instance's key", "alpha", "alpha9", lambda lab: wg("pubkey", lab.cvms["beta1"].key), "key"),
    ("the gateway's own key", "alpha", "alpha9", lambda lab: wg("pubkey", lab.key_file.read_text()), "key"),
    ("an instance-id of another app", "beta", "alpha1", own, "alpha"),
    ("an instance-id equal to an app-id", "beta", "alpha", own, "alpha"),
    ("an instance-id equal to its own app-id", "gamma", "gamma", own, "gamma"),
    ("an app-id equal to an instance-id", "alpha1", "gamma1", own, "alpha1"),
    ("an id in capitals", "Alpha", "alpha9", own, "the app-id is not"),
    ("an id with a dash", "alpha", "alpha-9", own, "the instance-id is not"),
    ("an empty id", "", "alpha9", own, "app is empty"),
    ("an id of 64 characters", "alpha", "a" * 64, own, "instance is longer than 63 characters"),
)
for what, app, instance, key, word in REFUSED:
    @topic.row(f"cvm add with {what}: refused, nothing changed", app=app, instance=instance, key=key, word=word,
               only="wireguard" if "own key" in what else None)
    def _(lab, app, instance, key, word):
        before = state(lab)
        done = lab.ctl("cvm", "add", "--app", app, "--instance", instance, "--public-key", key(lab), check=False)
        expect(done.returncode in (1, 2) and not done.stdout, f"refused: {done.returncode} {done.stdout}")
        expect(word in done.stderr, f"words: {done.stderr}")
        equal(state(lab), before, "what there is")


@contextlib.contextmanager
def other_phalad(lab, **changes):
    """Another configuration with directories of its own; phalad proper is away meanwhile."""
    lab.stop()
    place = {name: lab.directory / f"other-{name}" for name in ("StateDir", "RunDir")}
    for path in place.values():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    changes["Gateway"] = {**place, "BpfDir": "/sys/fs/bpf/other", **changes.get("Gateway", {})}
    try:
        lab.start(**changes)
        yield
    finally:
        if lab.phalad.poll() is None:
            lab.stop()
        lab.start()
        for cvm in lab.cvms.values():
            cvm.handshake()
        lab.wait_healthy()


def add(lab, app, instance):
    return lab.ctl("cvm", "add", "--app", app, "--instance", instance, "--public-key", own(lab), check=False)


@topic.row("an exhausted range: refused, those that are there untouched; room again once an address has rested",
           only="native")
def _(lab):
    with other_phalad(lab, Tunnel={"CvmRange": "10.9.0.0/30"}, Gateway={"AddressQuarantine": f"{4 * SLOW:.0f}s"}):
        count = 0
        while (done := add(lab, "small", f"small{count}")).returncode == 0:
            count += 1
            expect(count <= 4, "the range of four addresses is finite")
        expect(count >= 2 and "address" in done.stderr, f"{count} fitted; {done.stderr}")
        before = lab.json("cvm", "list")
        equal(len(before), count, "CVMs")
        equal(add(lab, "small", "another").returncode, 1, "exit status")
        equal([(row["instance"], row["address"]) for row in lab.json("cvm", "list")],
              [(row["instance"], row["address"]) for row in before], "those that are there")
        lab.ctl("cvm", "remove", "small0")
        equal(add(lab, "small", "another").returncode, 1, "exit status while the address rests")
        wait_until(lambda: add(lab, "small", "another").returncode == 0, 10, "it has rested")
        equal(lab.json("cvm", "show", "another")["address"],
              next(row["address"] for row in before if row["instance"] == "small0"),
              "address")


@topic.row("an app has at most 64 instances", only="native")
def _(lab):
    with other_phalad(lab):
        for i in range(64):
            expect(add(lab, "many", f"many{i}").returncode == 0, f"instance {i}")
        done = add(lab, "many", "many64")
        expect(done.returncode == 1 and "64" in done.stderr, f"the 65th: {done.stderr}")
        equal(add(lab, "more", "more1").returncode, 0, "another app's")


# Starts that must fail. What looks at files alone is the same on every kernel: those rows stay out of the guests.

def starts(lab, text, *words):
    """Runs phalad to its end with this configuration. Returns the finished process."""
    path = lab.directory / "trial.conf"
    path.write_text(text)
    try:
        return lab.gateway.run([lab.build / "phalad", "--config", path, *words], timeout=20 * SLOW)
    finally:
        if lab.wireguard:
            lab.gateway.run(["ip", "link", "del", "wg7"])
            lab.gateway.run(["ip", "route", "del", "blackhole", "10.77.0.0/16"])


def trial(lab, **changes):
    place = {"StateDir": lab.directory / "trial-state", "RunDir": lab.directory / "trial-run",
             "BpfDir": "/sys/fs/bpf/trial"}
    changes["Gateway"] = {**place, "Listen": f"{GATEWAY}:4443", **changes.get("Gateway", {})}
    if lab.wireguard:
        other = {"Interface": "wg7", "ListenPort": 51827, "Address": "10.77.0.1/24", "CvmRange": "10.77.0.0/16"}
        changes["Tunnel"] = {**other, **changes.get("Tunnel", {})}
    return lab.configuration(**changes)


@topic.row("phalad --check says OK to a good configuration, with one running")
def _(lab):
    done = starts(lab, trial(lab), "--check")
    equal((done.returncode, "OK" in done.stdout), (0, True), f"{done.stdout}{done.stderr}")


MISTAKES = (
    # what, a change of the configuration, a word of the message
    ("an unknown key", {"Gateway": {"Speed": "fast"}}, "Speed"),
    ("a bad duration", {"Gateway": {"HelloTimeout": "soon"}}, "HelloTimeout"),
    ("a negative number", {"Gateway": {"Workers": "-1"}}, "Workers"),
    ("too many workers", {"Gateway": {"Workers": "65"}}, "Workers"),
    ("an address that is none", {"Gateway": {"Listen": "443"}}, "Listen"),
    ("no Listen at all", {"Gateway": {"Listen": None}}, "Listen"),
    ("root as the workers' user", {"Gateway": {"User": "root"}}, "User"),
    ("a user that does not exist", {"Gateway": {"User": "nosuchuser"}}, "User"),
    ("a tunnel type that is none", {"Tunnel": {"Type": "ipsec"}}, "Type"),
    ("a prefix of 33 bits", {"Tunnel": {"Address": "10.0.0.1/33"}}, "Address"),
    ("an interface name of 16 characters", {"Tunnel": {"Interface": "a" * 16}}, "Interface"),
    ("a domain without certificate", {"domain": {"Certificate": None}}, "Certificate"),
)
for what, change, word in MISTAKES:
    @topic.row(f"{what}: an error with file and line, from --check and from a start", change=change, word=word,
               only="native")
    def _(lab, change, word):
        for words in (["--check"], []):
            done = starts(lab, trial(lab, **change), *words)
            equal(done.returncode, 1, "exit status")
            expect(re.search(r"trial\.conf:\d+: .*" + word, done.stderr), f"message: {done.stderr}")


@topic.row("a StateDir that everybody can write to: refused, with its name and mode", only="native")
def _(lab):
    path = lab.directory / "open-state"
    path.mkdir()
    path.chmod(0o777)
    done = starts(lab, trial(lab, Gateway={"StateDir": path}))
    equal(done.returncode, 1, "exit status")
    expect(f"{path}: mode 0777" in done.stderr, f"message: {done.stderr}")
    equal(list(path.iterdir()), [], "what is in it")


@topic.row("a configuration that is not there: an error with its name", only="native")
def _(lab):
    done = lab.gateway.run([lab.build / "phalad", "--config", "/nonexistent/phalad.conf", "--check"])
    equal(done.returncode, 1, "exit status")
    expect("/nonexistent/phalad.conf" in done.stderr, f"message: {done.stderr}")


def certificate_files(lab, what):
    """A certificate and a key with something wrong. Returns (certificate, key, words of the message)."""
    certificate, key = lab.certificate
    path = lab.directory / "trial.pem"
    if what == "missing key":
        return certificate, lab.directory / "none.key", "none.key: No such file"
    if what == "missing certificate":
        return lab.directory / "none.pem", key, "none.pem: No such file"
    if what == "mismatched":
        return certificate, lab.cvm_certificates["alpha1"][1], "not the key of the certificate"
    if what == "expired":
        return (*lab.authority.issue("old", f"*.{DOMAIN}", days=-1), "the certificate has expired")
    if what == "of another domain":
        return (*lab.authority.issue("foreign", "*.example.org"), f"does not cover *.{DOMAIN}")
    if what == "rubbish":
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        return path, key, "trial.pem: no certificate in PEM"
    if what == "key readable by others":
        shutil.copyfile(key, path)
        path.chmod(0o644)
        return certificate, path, "trial.pem: mode 0644"
    if what == "key of another user":
        path = lab.directory / "theirs.key"
        shutil.copyfile(key, path)
        path.chmod(0o600)
        os.chown(path, 65533, -1)
        return certificate, path, "theirs.key: belongs to user 65533"
    if what == "certificate in the key's place":
        shutil.copyfile(certificate, path)
        path.chmod(0o600)
        return certificate, path, "trial.pem: no private key in PEM"


for what in ("missing key", "missing certificate", "mismatched", "expired", "of another domain", "rubbish",
             "key readable by others", "key of another user", "certificate in the key's place"):
    @topic.row(f"certificate: {what}: refused with the reason, by --check and by a start", what=what, only="native")
    def _(lab, what):
        certificate, key, word = certificate_files(lab, what)
        text = trial(lab, domain={"Certificate": certificate, "PrivateKey": key})
        for words in (["--check"], []):
            done = starts(lab, text, *words)
            equal(done.returncode, 1, "exit status")
            expect(word in done.stderr, f"message: {done.stderr}")


@topic.row("WireGuard's key file readable by others: refused with the reason", mode=0o644, content=None,
           word="mode 0644", only="wireguard")
@topic.row("WireGuard's key file that holds no key: refused with the reason", mode=0o600, content="hello\n",
           word="not a private key", only="wireguard")
def _(lab, mode, content, word):
    path = lab.directory / "trial.key"
    path.write_text(content or lab.key_file.read_text())
    path.chmod(mode)
    for words in (["--check"], []):
        done = starts(lab, trial(lab, Tunnel={"PrivateKeyFile": path}), *words)
        equal(done.returncode, 1, "exit status")
        expect("trial.key: " in done.stderr and word in done.stderr, f"message: {done.stderr}")


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def execute(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


def damage(path, what):
    if what == "overwritten in the middle":
        data = bytearray(path.read_bytes())
        data[len(data) // 3:len(data) // 3 + 3000] = os.urandom(3000)
        path.write_bytes(data)
    elif what == "no database":
        path.write_bytes(b"these are my notes\n" * 100)
    elif what == "of a newer version":
        execute(path, "pragma user_version = 99")
    elif what == "another program's database":
        path.unlink()
        execute(path, "create table t (a)")


for what in ("overwritten in the middle", "no database", "of a newer version", "another program's database"):
    @topic.row(f"a registry file {what}: refused, and not touched", what=what, only="native")
    def _(lab, what):
        lab.stop()
        state_dir = lab.directory / "state"
        kept = lab.directory / "state-kept"
        shutil.copytree(state_dir, kept)
        try:
            for name in ("registry.db-wal", "registry.db-shm"):
                (state_dir / name).unlink(missing_ok=True)
            damage(state_dir / "registry.db", what)
            before = checksum(state_dir / "registry.db")
            lab.start(wait=False)
            equal(lab.phalad.wait(LIMIT), 1, "exit status")
            expect("registry.db" in lab.log.read_text()[-1000:], "the log says why")
            equal(checksum(state_dir / "registry.db"), before, "the file")
        finally:
            if lab.phalad.poll() is None:
                lab.stop()
            shutil.rmtree(state_dir)
            kept.rename(state_dir)
            lab.start()
            lab.wait_healthy()
