# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for one process tree, and for no one else.

own_world() gives this process a mount and a network namespace of its own, so that nothing the lab makes (namespaces,
devices, pins in bpffs, names in /etc/hosts) is seen by the machine, and all of it goes with the last process, even
after a kill -9.
"""
import contextlib, ctypes, os, signal, socket, subprocess

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
PR_SET_PDEATHSIG = 1
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)


def call(function, *args):
    if getattr(libc, function)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}{args}: {os.strerror(error)}")


def mount(source, target, kind=None, flags=0):
    encode = lambda text: text.encode() if text else None
    call("mount", encode(source), encode(str(target)), encode(kind), flags, None)


@contextlib.contextmanager
def mounted_over(source, target):
    """One file in the place of another, in this world."""
    mount(str(source), target, None, MS_BIND)
    try:
        yield
    finally:
        call("umount2", str(target).encode(), MNT_DETACH)


def own_world(hosts):
    """@hosts: a file that takes the place of /etc/hosts."""
    call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    os.makedirs("/run/netns", exist_ok=True)
    mount("tmpfs", "/run/netns", "tmpfs")
    mount("bpf", "/sys/fs/bpf", "bpf")
    mount(str(hosts), "/etc/hosts", None, MS_BIND)
    if os.path.isdir("/etc/wireguard"):
        mount("tmpfs", "/etc/wireguard", "tmpfs")


class Netns:
    """A network namespace. `with ns.inside():` puts this thread, and what it starts, into it."""
    def __init__(self, name, setup=""):
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link set lo up\n" + setup)

    @contextlib.contextmanager
    def inside(self):
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            call("setns", self.fd, CLONE_NEWNET)
            yield
        finally:
            call("setns", before, CLONE_NEWNET)
            os.close(before)

    def ip(self, commands):
        """Many ip commands by one process."""
        with self.inside():
            done = subprocess.run(["ip", "-batch", "-"], input=commands, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{self.name}: ip: {done.stderr}{commands}")

    def run(self, argv, **options):
        """Returns the finished process, its output as text."""
        options = {"text": True, "capture_output": True, "stdin": subprocess.DEVNULL, **options}
        if "input" in options:
            del options["stdin"]
        with self.inside():
            return subprocess.run([str(word) for word in argv], **options)

    def start(self, argv, **options):
        """A process that does not outlive this one."""
        options = {"stdin": subprocess.DEVNULL, "preexec_fn": lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
                   **options}
        with self.inside():
            return subprocess.Popen([str(word) for word in argv], **options)

    def sysctl(self, name, value):
        with self.inside(), open("/proc/sys/" + name.replace(".", "/"), "w") as file:
            file.write(str(value))

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
        """A socket stays where it was made, whichever thread uses it."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def connect(self, address, port, timeout=None, source=None, address_from=""):
        """@source: port to come from; @address_from: address."""
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.settimeout(timeout)
        if source or address_from:
            sock.bind((address_from, source or 0))
        sock.connect((address, port))
        return sock

    def listen(self, port, address="", backlog=512):
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock
