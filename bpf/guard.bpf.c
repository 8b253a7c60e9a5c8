// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * guard - what may come out of the tunnel device, and what may go in. A CVM reaches nothing that did not call it.
 *
 * From a CVM passes only an answer: TCP to a connected socket that is bound to this very device (workers bind theirs),
 * or an ICMP error by that CVM itself about such a connection. Towards a CVM passes only what a socket bound to this
 * device sent, or steer did, which marks it: a packet from outside bears no mark. So neither routes nor ip_forward nor another process's sockets make a way in or past.
 *
 * Attached before the device is up, and kept by it: the guard stands while phalad is down. Everything that is dropped
 * is counted, and nothing answers for it, so that an address in use looks like one that is not.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include <phala/abi.h>

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2
#define ETH_P_IP 0x0800
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define IP_FRAGMENT 0x3fff		/* more fragments, or an offset (RFC 791, section 3.1) */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PH_GUARD_COUNT);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ph_guard SEC(".maps");

/* Whose sockets may call CVMs; set before the load. Binding to a device takes no privilege since Linux 5.7. */
const volatile __u32 worker_uid = 0;

static __always_inline int verdict(enum ph_guard_reason reason)
{
	__u32 key = reason;
	__u64 *count = bpf_map_lookup_elem(&ph_guard, &key);

	if (count)
		++*count;
	return reason == PH_GUARD_ANSWER || reason == PH_GUARD_ICMP || reason == PH_GUARD_SENT ||
	       reason == PH_GUARD_STEERED ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

/* Is there a connected socket, bound to this device, that hears @remote -> @local? */
static __always_inline int is_called(struct __sk_buff *skb, __be32 remote, __be32 local, __be16 remote_port,
				     __be16 local_port)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = { .saddr = remote, .daddr = local, .sport = remote_port, .dport = local_port },
	};
	struct bpf_sock *sock = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	int called;

	if (!sock)
		return 0;
	called = sock->bound_dev_if == skb->ifindex && sock->state != BPF_TCP_LISTEN &&
		 sock->state != BPF_TCP_NEW_SYN_RECV;
	bpf_sk_release(sock);
	return called;
}

static __always_inline int is_error(__u8 icmp_type)
{
	return icmp_type == ICMP_DEST_UNREACH || icmp_type == ICMP_TIME_EXCEEDED || icmp_type == ICMP_PARAMETERPROB;
}

/* An ICMP error quotes the packet we sent: IP header and the first 8 bytes behind it (RFC 792). */
static __always_inline enum ph_guard_reason judge_icmp(struct __sk_buff *skb, const struct iphdr *ip, __u32 at)
{
	struct icmphdr icmp;
	struct iphdr quoted;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)) || !is_error(icmp.type))
		return PH_GUARD_PROTOCOL;
	if (bpf_skb_load_bytes(skb, at + sizeof(icmp), &quoted, sizeof(quoted)) || quoted.version != 4 ||
	    quoted.ihl < 5 || quoted.protocol != IPPROTO_TCP)
		return PH_GUARD_PROTOCOL;
	if (bpf_skb_load_bytes(skb, at + sizeof(icmp) + quoted.ihl * 4, ports, sizeof(ports)))
		return PH_GUARD_MALFORMED;
	if (quoted.daddr != ip->saddr || quoted.saddr != ip->daddr)
		return PH_GUARD_UNCALLED;
	return is_called(skb, quoted.daddr, quoted.saddr, ports[1], ports[0]) ? PH_GUARD_ICMP : PH_GUARD_UNCALLED;
}

static __always_inline enum ph_guard_reason judge_from_cvm(struct __sk_buff *skb)
{
	struct iphdr ip;
	__be16 ports[2];

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return PH_GUARD_NOT_IPV4;
	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return PH_GUARD_MALFORMED;
	if (ip.frag_off & bpf_htons(IP_FRAGMENT))
		return PH_GUARD_FRAGMENT;
	if (ip.protocol == IPPROTO_ICMP)
		return judge_icmp(skb, &ip, ip.ihl * 4);
	if (ip.protocol != IPPROTO_TCP)
		return PH_GUARD_PROTOCOL;
	if (bpf_skb_load_bytes(skb, ip.ihl * 4, ports, sizeof(ports)))
		return PH_GUARD_MALFORMED;
	return is_called(skb, ip.saddr, ip.daddr, ports[0], ports[1]) ? PH_GUARD_ANSWER : PH_GUARD_UNCALLED;
}

SEC("tc")
int guard_from_cvm(struct __sk_buff *skb)
{
	return verdict(judge_from_cvm(skb));
}

/* What the kernel answers for a closing socket comes from its control socket, which it binds as that one was. */
SEC("tc")
int guard_to_cvm(struct __sk_buff *skb)
{
	struct bpf_sock *sock = skb->sk;
	__u32 uid;

	if (skb->mark == PH_STEER_MARK)
		return verdict(PH_GUARD_STEERED);
	if (sock)
		sock = bpf_sk_fullsock(sock);
	if (!sock || sock->bound_dev_if != skb->ifindex)
		return verdict(PH_GUARD_NOT_OURS);
	uid = bpf_get_socket_uid(skb);
	return verdict(!uid || uid == worker_uid ? PH_GUARD_SENT : PH_GUARD_NOT_OURS);
}

char LICENSE[] SEC("license") = "GPL";
