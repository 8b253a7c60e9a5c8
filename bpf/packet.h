/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * packet - what steer needs to know of a packet, and the TCP options in it.
 *
 * Input is hostile. Headers are copied rather than pointed at: they may lie anywhere in an skb. Include after the
 * kernel's types and bpf/bpf_helpers.h.
 */
#ifndef PH_BPF_PACKET_H
#define PH_BPF_PACKET_H

#include <phala/limits.h>
#include <phala/loop.h>

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff		/* more fragments, or an offset (RFC 791, section 3.1) */
#define IP_HLEN 20
#define TCP_HLEN 20
#define TCP_OPTIONS_SIZE 64		/* at most 40 are used; a power of two */
#define ICMP_HLEN 8

/* The sequence number @a is behind @b, or not before it. */
#define seq_after(a, b) ((__s32)((__u32)(a) - (__u32)(b)) > 0)
#define seq_reaches(a, b) ((__s32)((__u32)(a) - (__u32)(b)) >= 0)

/* 1 for 0, else 0, without a branch: the verifier would double its work with each. */
static __always_inline __u32 is_zero(__u32 x)
{
	__u64 wide = x;

	__asm__ volatile("" : "+r"(wide));
	return (wide - 1) >> 63;
}

/*
 * A function that the verifier looks at once, by itself, and not at each call for each way there. It takes and gives
 * numbers and pointers to plain memory, so maps' elements go by their keys.
 */
#define __separate __attribute__((noinline))

enum packet_kind {
	PACKET_OTHER,			/* nothing to steer */
	PACKET_TCP,
	PACKET_TCP_OPTIONS,		/* with IP options: ip, the ports and lengths are set */
	PACKET_TCP_FRAGMENT,		/* the same, for a first fragment */
	PACKET_ICMP,			/* ip is set */
	PACKET_IPV6,
};

struct packet {
	struct iphdr ip;
	struct tcphdr tcp;
	__u32 l2;			/* bytes before the IP header */
	__u32 header_len;		/* of TCP, with options */
	__u32 payload;			/* bytes */
	__u32 gso_size;			/* of payload in each packet on the wire, if this is a super-packet */
	struct {
		struct iphdr ip;
		__be32 tcp[4];
	} changed;			/* what is made of its headers: here, for want of stack */
};

static __always_inline __be32 tcp_flag_word(const struct tcphdr *tcp)
{
	return ((const __be32 *)tcp)[3];
}

static __always_inline enum packet_kind packet_read(struct __sk_buff *skb, __u32 l2, struct packet *ret_packet)
{
	struct packet *p = ret_packet;
	__u32 total;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return skb->protocol == bpf_htons(ETH_P_IPV6) ? PACKET_IPV6 : PACKET_OTHER;
	p->l2 = l2;
	if (bpf_skb_load_bytes(skb, l2, &p->ip, IP_HLEN) || p->ip.version != 4 || p->ip.ihl < 5)
		return PACKET_OTHER;
	if (p->ip.protocol == IPPROTO_ICMP)
		return p->ip.ihl == 5 && !(p->ip.frag_off & bpf_htons(IP_FRAGMENT)) ? PACKET_ICMP : PACKET_OTHER;
	if (p->ip.protocol != IPPROTO_TCP)
		return PACKET_OTHER;
	if (p->ip.ihl != 5 || p->ip.frag_off & bpf_htons(IP_FRAGMENT)) {
		if (p->ip.frag_off & bpf_htons(IP_FRAGMENT & 0x1fff))
			return PACKET_OTHER;
		/* What is not all there leaves zeros: no flags. */
		if (bpf_skb_load_bytes(skb, l2 + p->ip.ihl * 4, &p->tcp, TCP_HLEN) &&
		    bpf_skb_load_bytes(skb, l2 + p->ip.ihl * 4, &p->tcp, 4))
			return PACKET_OTHER;
		p->header_len = p->tcp.doff * 4;
		total = p->ip.ihl * 4 + p->header_len;
		p->payload = bpf_ntohs(p->ip.tot_len) > total ? bpf_ntohs(p->ip.tot_len) - total : 0;
		return p->ip.ihl != 5 ? PACKET_TCP_OPTIONS : PACKET_TCP_FRAGMENT;
	}
	if (bpf_skb_load_bytes(skb, l2 + IP_HLEN, &p->tcp, TCP_HLEN))
		return PACKET_OTHER;
	p->header_len = p->tcp.doff * 4;
	total = bpf_ntohs(p->ip.tot_len);
	if (!total)			/* a super-packet over 64 KiB */
		total = skb->len - l2;
	if (p->header_len < TCP_HLEN || total < IP_HLEN + p->header_len || skb->len < l2 + total)
		return PACKET_OTHER;
	p->payload = total - IP_HLEN - p->header_len;
	p->gso_size = skb->gso_size;
	return PACKET_TCP;
}

/* The largest IP packet on the wire that this one makes: a super-packet is cut up on its way out. */
static __always_inline __u32 packet_wire_len(const struct packet *p)
{
	return IP_HLEN + p->header_len + (p->gso_size ? p->gso_size : p->payload);
}

struct options {
	__u8 *bytes;			/* TCP_OPTIONS_SIZE of them, in a map value */
	__u32 len;
	__u32 at;
	__u32 times_at;			/* of TSval; 0 when there are none (an option has two bytes before it) */
	__u32 edges_at;			/* of the first SACK edge */
	__u32 edges;			/* how many of them */
	__u32 mss;			/* 0 when there is none */
	__s32 scale;			/* -1 when there is none */
	__u32 sack_permitted;
};

static __always_inline __u8 option_byte(const struct options *o, __u32 at)
{
	return o->bytes[ph_below(at, TCP_OPTIONS_SIZE)];
}

static __always_inline __u32 option_word(const struct options *o, __u32 at)
{
	return (__u32)option_byte(o, at) << 24 | (__u32)option_byte(o, at + 1) << 16 |
	       (__u32)option_byte(o, at + 2) << 8 | option_byte(o, at + 3);
}

/* One option (RFC 9293, 3.1; RFC 7323; RFC 2018). Return: 1 behind the last. */
static long options_step(__u32 index, void *arg)
{
	struct options *o = arg;
	__u32 at = o->at, kind, len;

	(void)index;
	if (at >= o->len)
		return 1;
	kind = option_byte(o, at);
	if (!kind)
		return 1;
	if (kind == 1) {
		o->at = at + 1;
		return 0;
	}
	len = option_byte(o, at + 1);
	if (at + 2 > o->len || len < 2 || at + len > o->len)
		return 1;
	if (kind == 2 && len == 4)
		o->mss = option_byte(o, at + 2) << 8 | option_byte(o, at + 3);
	else if (kind == 3 && len == 3)
		o->scale = option_byte(o, at + 2);
	else if (kind == 4 && len == 2)
		o->sack_permitted = 1;
	else if (kind == 5 && len >= 10 && (len - 2) % 8 == 0) {
		o->edges_at = at + 2;
		o->edges = (len - 2) / 4;
	} else if (kind == 8 && len == 10)
		o->times_at = at + 2;
	o->at = at + len;
	return 0;
}

/**
 * options_read() - copy a packet's TCP options and find those that matter.
 * @bytes: TCP_OPTIONS_SIZE bytes in a map value; what is behind the options is left as it was.
 *
 * Return: 0, or -1 when the packet is shorter than it says.
 */
static __always_inline int options_read(struct __sk_buff *skb, const struct packet *p, __u8 *bytes,
					struct options *ret_options)
{
	__u32 len = p->header_len - TCP_HLEN;

	*ret_options = (struct options){ .bytes = bytes, .len = len, .scale = -1 };
	if (!len)
		return 0;
	len = ph_below(len - 1, TCP_OPTIONS_SIZE) + 1;
	if (bpf_skb_load_bytes(skb, p->l2 + IP_HLEN + TCP_HLEN, bytes, len))
		return -1;
	ph_loop(40, options_step, ret_options);
	return 0;
}

#endif
