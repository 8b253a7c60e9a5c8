# SPDX-License-Identifier: Apache-2.0
"""What leaves by a device, seen with a packet socket."""
import ctypes, ipaddress, select, socket, struct

ETH_P_ALL, SO_ATTACH_FILTER = 3, 26


class Capture:
    """IPv4 packets on @device whose destination is in @prefix (of 8, 16, 24 or 32 bits), in clear."""
    def __init__(self, ns, device, prefix, ethernet=True):
        # Without a protocol it sees nothing until bind(), and by then it has its filter.
        self.sock = ns.socket(socket.AF_PACKET, socket.SOCK_RAW if ethernet else socket.SOCK_DGRAM)
        network = ipaddress.ip_network(prefix)
        at, kind = (30, True) if ethernet else (16, False)
        # Classic BPF (linux/filter.h): [ethertype is IPv4, or drop]; destination & mask is the network, or drop; take.
        code = [(0x28, 0, 0, 12), (0x15, 0, 4, 0x0800)] if kind else []
        code += [(0x20, 0, 0, at), (0x54, 0, 0, int(network.netmask)), (0x15, 0, 1, int(network.network_address)),
                 (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0)]
        text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
        self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(code), ctypes.addressof(text)))
        self.sock.bind((device, ETH_P_ALL))

    def packets(self):
        """What was seen since the last call."""
        seen = []
        while select.select([self.sock], [], [], 0)[0]:
            seen.append(self.sock.recv(65536))
        return seen

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
