/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * nobody - packets of connections that there are not: how many of them the stack answers.
 *
 * A reset is due to whoever sends such a packet (RFC 9293, section 3.10.7.1): so a client learns that it was forgotten.
 * But who floods with them, spoofed, has each answered, to somebody who sent nothing. So of all together PH_RESETS_S a
 * second go up to the stack, and what is more is lost: a client that is answered late sends again until it is.
 */
#ifndef PH_BPF_NOBODY_H
#define PH_BPF_NOBODY_H

#include "flow.h"

#define AF_INET 2
#define AF_INET6 10
#define PACKET_HOST 0
#define RESET_NS (1000 * NSEC_PER_MSEC / PH_RESETS_S)

static __u64 resets_due_ns;		/* when all that went up is paid off */

/* Is @sock, a listener, all there is for a packet with these headers? Not if they bear a cookie of the kernel's. */
static __always_inline int is_nobodys(struct bpf_sock *sock, void *ip, __u32 ip_len, struct tcphdr *tcp)
{
	return sock->state == BPF_TCP_LISTEN && bpf_tcp_check_syncookie(sock, ip, ip_len, tcp, TCP_HLEN);
}

/*
 * Is the packet for this machine? One that goes on to another finds our listener too, if that listens at all addresses.
 * Where nothing is forwarded, all is. @v6: NULL for IPv4.
 */
__separate int nobody_is_here(struct __sk_buff *skb, struct iphdr *v4, struct ipv6hdr *v6)
{
	struct bpf_fib_lookup fib = { .l4_protocol = IPPROTO_TCP, .ifindex = skb->ifindex };
	long result;

	if (skb->pkt_type != PACKET_HOST)
		return 0;
	if (v6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &v6->saddr, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, &v6->daddr, sizeof(fib.ipv6_dst));
	} else if (v4) {
		fib.family = AF_INET;
		fib.ipv4_src = v4->saddr;
		fib.ipv4_dst = v4->daddr;
	}
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return result == BPF_FIB_LKUP_RET_NOT_FWDED || result == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* Two CPUs at once may let two go for the price of one. */
static __always_inline int nobody_refuse(struct __sk_buff *skb, struct iphdr *v4, struct ipv6hdr *v6)
{
	__u64 was_ns = resets_due_ns, now_ns = bpf_ktime_get_ns();
	__u64 due_ns = (was_ns > now_ns ? was_ns : now_ns) + RESET_NS;

	if (!nobody_is_here(skb, v4, v6))
		return TC_ACT_UNSPEC;
	if (due_ns > now_ns + 1000 * NSEC_PER_MSEC)
		return drop(PH_REASON_NOBODYS);
	__sync_val_compare_and_swap(&resets_due_ns, was_ns, due_ns);
	return TC_ACT_UNSPEC;
}

/* The socket that the packet is for: a listener if there is no connection; NULL if nobody listens. To be released. */
static __always_inline struct bpf_sock *socket_find(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple;

	tuple.ipv4.saddr = p->ip.saddr;
	tuple.ipv4.daddr = p->ip.daddr;
	tuple.ipv4.sport = p->tcp.source;
	tuple.ipv4.dport = p->tcp.dest;
	return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* A packet without data, which is not looked at for a hello. */
__separate int nobody_bare(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock *sock;
	int nobodys;

	if (!p)
		return TC_ACT_UNSPEC;
	sock = socket_find(skb, p);
	if (!sock)
		return TC_ACT_UNSPEC;
	nobodys = is_nobodys(sock, &p->ip, IP_HLEN, &p->tcp);
	bpf_sk_release(sock);
	return nobodys ? nobody_refuse(skb, &p->ip, NULL) : TC_ACT_UNSPEC;
}

static __always_inline int nobody_v6(struct __sk_buff *skb, struct ipv6hdr *ip, struct tcphdr *tcp)
{
	struct bpf_sock_tuple tuple;
	struct bpf_sock *sock;
	int nobodys;

	if (!tcp->ack || tcp->rst)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(tuple.ipv6.saddr, &ip->saddr, sizeof(tuple.ipv6.saddr));
	__builtin_memcpy(tuple.ipv6.daddr, &ip->daddr, sizeof(tuple.ipv6.daddr));
	tuple.ipv6.sport = tcp->source;
	tuple.ipv6.dport = tcp->dest;
	sock = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return TC_ACT_UNSPEC;
	nobodys = is_nobodys(sock, ip, sizeof(*ip), tcp);
	bpf_sk_release(sock);
	return nobodys ? nobody_refuse(skb, NULL, ip) : TC_ACT_UNSPEC;
}

#endif
