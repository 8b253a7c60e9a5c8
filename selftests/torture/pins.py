# SPDX-License-Identifier: Apache-2.0
"""The pinned maps by bare system calls (bpf(2)): what phalactl does not show, and limits made small."""
import ctypes, mmap, os, struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET, BPF_MAP_LOOKUP_AND_DELETE_ELEM = 2, 7, 21
DIRECTORY = "/sys/fs/bpf/phala"
SLOTS_AT, FRESH_AT, FRESH_HELLOS_AT = 4, 56, 60         # in struct ph_steer of phala/abi.h
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(SYS_BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def opened(name):
    path = ctypes.create_string_buffer(f"{DIRECTORY}/{name}".encode())
    return bpf(BPF_OBJ_GET, struct.pack("QI", ctypes.addressof(path), 0))


class Steer:
    """ph_steer, mapped."""
    def __enter__(self):
        fd = opened("ph_steer")
        self.at = mmap.mmap(fd, 4096)
        os.close(fd)
        return self

    def __exit__(self, *_):
        self.at.close()

    def __getitem__(self, at):
        return struct.unpack_from("I", self.at, at)[0]

    def __setitem__(self, at, value):
        struct.pack_into("I", self.at, at, value)


def queue(name):
    """What is in a queue of slots, in order; it is the same afterwards, if nobody else is at it."""
    fd, found = opened(name), []
    value = ctypes.create_string_buffer(4)
    attributes = struct.pack("IIQQQ", fd, 0, 0, ctypes.addressof(value), 0)
    try:
        while True:
            bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, attributes)
            found.append(struct.unpack("I", value.raw)[0])
    except FileNotFoundError:
        pass
    for slot in found:
        value.raw = struct.pack("I", slot)
        bpf(BPF_MAP_UPDATE_ELEM, attributes)
    os.close(fd)
    return found
