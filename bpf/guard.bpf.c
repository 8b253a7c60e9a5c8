// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * guard - what may come out of the tunnel device, and what may go in. A CVM reaches nothing that did not call it.
 *
 * From a CVM passes only an answer: TCP to a connected socket that is bound to this very device (workers bind theirs),
 * or to one that was reset, or an ICMP error by that CVM itself about such a connection. Towards a CVM passes only what a worker's socket that is
 * bound to this device sent, or steer did, which marks it: a packet from outside bears no mark. So neither routes nor
 * ip_forward nor another process's sockets make a way in or past.
 *
 * Attached before the device is up, and kept by it: the guard stands while phalad is down. Everything that is dropped
 * is counted, and nothing answers for it, so that an address in use looks like one that is not.
 */
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806

#include "guard.h"

#define AF_INET 2
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define IP_FRAGMENT 0x3fff		/* more fragments, or an offset (RFC 791, section 3.1) */
#define IP_HLEN 20
#define TCP_HLEN 20

/* Set before the load: whose sockets may call CVMs, as binding to a device takes no privilege since Linux 5.7. */
const volatile __u32 worker_uid = 0;
/* The device has Ethernet headers; WireGuard's has none. */
const volatile __u32 device_l2 = 0;

/* A connection, as its CVM knows it. */
struct guard_call {
	__be32 cvm, gateway;
	__be16 cvm_port, gateway_port;
};

/*
 * Calls that were reset, the last so many. A reset may be lost, or overtake what was sent before it; then the CVM still
 * sends, and if nobody told it once more, it would do so for a quarter of an hour. What it learns it knew before.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PH_GUARD_RESETS_MAX);
	__type(key, struct guard_call);
	__type(value, __u8);
} guard_resets SEC(".maps");

static __always_inline __u32 device_header(void)
{
	return device_l2 ? ETH_HLEN : 0;
}

static __always_inline int verdict(struct __sk_buff *skb, enum ph_guard_reason reason)
{
	switch (reason) {
	case PH_GUARD_ANSWER:
	case PH_GUARD_ICMP:
	case PH_GUARD_SENT:
	case PH_GUARD_STEERED:
	case PH_GUARD_ARP:
	case PH_GUARD_LATE:
		guard_count(reason);
		return TC_ACT_UNSPEC;
	default:
		return guard_drop(skb, device_header(), reason);
	}
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

/*
 * Is that a packet of a call that was reset? To be answered by the kernel, for which there must be no socket at all that
 * hears it now, whosever.
 */
static __always_inline int was_reset(struct __sk_buff *skb, const struct iphdr *ip, const struct tcphdr *tcp)
{
	const struct guard_call call = { ip->saddr, ip->daddr, tcp->source, tcp->dest };
	struct bpf_sock_tuple tuple = {
		.ipv4 = { .saddr = ip->saddr, .daddr = ip->daddr, .sport = tcp->source, .dport = tcp->dest },
	};
	struct bpf_sock *sock;

	if (!bpf_map_lookup_elem(&guard_resets, &call))
		return 0;
	sock = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return 1;
	bpf_sk_release(sock);
	return 0;
}

static __always_inline int is_error(__u8 icmp_type)
{
	return icmp_type == ICMP_DEST_UNREACH || icmp_type == ICMP_TIME_EXCEEDED || icmp_type == ICMP_PARAMETERPROB;
}

/* An ICMP error quotes the packet we sent, which has no IP options: its header and the first 8 bytes behind (RFC 792). */
static __always_inline enum ph_guard_reason judge_icmp(struct __sk_buff *skb, const struct iphdr *ip, __u32 at)
{
	struct icmphdr icmp;
	struct iphdr quoted;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)))
		return PH_GUARD_MALFORMED;
	if (!is_error(icmp.type))
		return PH_GUARD_PROTOCOL;
	if (bpf_skb_load_bytes(skb, at + sizeof(icmp), &quoted, sizeof(quoted)))
		return PH_GUARD_MALFORMED;
	if (quoted.version != 4 || quoted.ihl != 5 || quoted.protocol != IPPROTO_TCP)
		return PH_GUARD_PROTOCOL;
	if (bpf_skb_load_bytes(skb, at + sizeof(icmp) + IP_HLEN, ports, sizeof(ports)))
		return PH_GUARD_MALFORMED;
	if (quoted.daddr != ip->saddr || quoted.saddr != ip->daddr)
		return PH_GUARD_UNCALLED;
	return is_called(skb, quoted.daddr, quoted.saddr, ports[1], ports[0]) ? PH_GUARD_ICMP : PH_GUARD_UNCALLED;
}

/* 224.0.0.0/4, and the broadcast address; what is a network's own broadcast address, routes know and this need not. */
static __always_inline int is_multicast(__be32 address)
{
	return (address & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || address == 0xffffffff;
}

static __always_inline enum ph_guard_reason judge_from_cvm(struct __sk_buff *skb)
{
	__u32 l2 = device_header();
	struct iphdr ip;
	struct tcphdr tcp;

	if (device_l2 && skb->protocol == bpf_htons(ETH_P_ARP))
		return PH_GUARD_ARP;
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return PH_GUARD_NOT_IPV4;
	if (bpf_skb_load_bytes(skb, l2, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return PH_GUARD_MALFORMED;
	if (ip.ihl != 5)
		return PH_GUARD_IP_OPTIONS;
	if (ip.frag_off & bpf_htons(IP_FRAGMENT))
		return PH_GUARD_FRAGMENT;
	if (is_multicast(ip.daddr))
		return PH_GUARD_MULTICAST;
	if (ip.protocol == IPPROTO_ICMP)
		return judge_icmp(skb, &ip, l2 + IP_HLEN);
	if (ip.protocol != IPPROTO_TCP)
		return PH_GUARD_PROTOCOL;
	if (bpf_skb_load_bytes(skb, l2 + IP_HLEN, &tcp, TCP_HLEN))
		return PH_GUARD_MALFORMED;
	if (is_called(skb, ip.saddr, ip.daddr, tcp.source, tcp.dest))
		return PH_GUARD_ANSWER;
	return !tcp.syn && was_reset(skb, &ip, &tcp) ? PH_GUARD_LATE : PH_GUARD_UNCALLED;
}

SEC("tc")
int guard_from_cvm(struct __sk_buff *skb)
{
	return verdict(skb, judge_from_cvm(skb));
}

/*
 * The kernel's own socket, by which it answers for a connection that has none any more, and which it binds as that
 * connection was: raw, for TCP, of no process. A process's raw socket differs in that it keeps its namespace alive.
 */
static __always_inline int is_control(const struct bpf_sock *sock)
{
	struct sock_common common = { 0 };

	return sock->type == SOCK_RAW && sock->protocol == IPPROTO_TCP &&
	       !bpf_probe_read_kernel(&common, sizeof(common), sock) && !BPF_CORE_READ_BITFIELD(&common, skc_net_refcnt);
}

static __always_inline enum ph_guard_reason judge_to_cvm(struct __sk_buff *skb)
{
	struct bpf_sock *sock = skb->sk;

	if (skb->mark == PH_STEER_MARK)
		return PH_GUARD_STEERED;
	if (device_l2 && skb->protocol == bpf_htons(ETH_P_ARP))
		return PH_GUARD_ARP;
	if (!sock || sock->bound_dev_if != skb->ifindex || sock->family != AF_INET)
		return PH_GUARD_NOT_OURS;
	/* One that is closed but for the wait: only a connection that was let through can have come so far. */
	if (sock->state == BPF_TCP_TIME_WAIT)
		return PH_GUARD_SENT;
	sock = bpf_sk_fullsock(sock);
	if (!sock)
		return PH_GUARD_NOT_OURS;
	if (sock->type == SOCK_STREAM)
		return bpf_get_socket_uid(skb) == worker_uid ? PH_GUARD_SENT : PH_GUARD_NOT_OURS;
	return is_control(sock) ? PH_GUARD_SENT : PH_GUARD_NOT_OURS;
}

/* Return: 0, or -1 if the packet, which the stack made, is no reset. */
static __always_inline int read_reset(struct __sk_buff *skb, struct guard_call *ret_call)
{
	__u32 at = device_header();
	struct tcphdr tcp;
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, at + IP_HLEN, &tcp, TCP_HLEN) || !tcp.rst || bpf_skb_load_bytes(skb, at, &ip, IP_HLEN) ||
	    ip.ihl != 5 || ip.protocol != IPPROTO_TCP)
		return -1;
	*ret_call = (struct guard_call){ ip.daddr, ip.saddr, tcp.dest, tcp.source };
	return 0;
}

/* The kernel's answer to what was let through late, which it binds to no device. */
static __always_inline int is_late_answer(struct __sk_buff *skb)
{
	struct bpf_sock *sock = skb->sk;
	struct guard_call call;

	if (!sock)
		return 0;
	sock = bpf_sk_fullsock(sock);
	return sock && is_control(sock) && !read_reset(skb, &call) && bpf_map_lookup_elem(&guard_resets, &call);
}

SEC("tc")
int guard_to_cvm(struct __sk_buff *skb)
{
	enum ph_guard_reason reason = judge_to_cvm(skb);
	struct guard_call call;
	__u8 yes = 1;

	if (reason == PH_GUARD_SENT && !read_reset(skb, &call))
		bpf_map_update_elem(&guard_resets, &call, &yes, BPF_ANY);
	else if (reason == PH_GUARD_NOT_OURS && is_late_answer(skb))
		reason = PH_GUARD_SENT;
	return verdict(skb, reason);
}

char LICENSE[] SEC("license") = "GPL";
