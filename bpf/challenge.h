/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * challenge - who sends a SYN shows that he gets what is sent back, at no cost to anybody's memory.
 *
 * Spoofed SYNs fill the listener's queue; then the kernel sends SYN cookies, keeps no request socks, and steer has nothing
 * to work with. So only so many SYNs a second of sources that have not been heard of get in. The others are answered with
 * a SYN-ACK whose acknowledgement is a cookie instead of the client's number. A client in SYN-SENT answers that with a
 * RST that bears the cookie, and its connection attempt goes on (RFC 9293, section 3.10.7.3): the SYN that follows, in
 * Linux at once and elsewhere a second later, is that of a source that is known, for a while.
 */
#ifndef PH_BPF_CHALLENGE_H
#define PH_BPF_CHALLENGE_H

#include "siphash.h"
#include "sum.h"

#define COOKIE_SLICE 33			/* of nanoseconds, in bits: 8.6 s; a cookie is good for one to two of them */
#define IPV6_HLEN 40
#define IP_TTL_SENT 64
#define IP_TTL_AT (ETH_HLEN + 8)	/* and the protocol behind it */
#define IP_CHECK_AT (ETH_HLEN + 10)
#define IPV6_HOPS_AT (ETH_HLEN + 7)

/* RFC 9293, section 3.1. Not the kernel's: its flags are one bit each, and newer kernels have one more. */
struct tcp_plain {
	__be16 source, target;
	__be32 seq, ack;
	__be16 flags, window, check, urgent;
};

#define TCP_PLAIN_SYN_ACK 0x12
#define TCP_PLAIN_LENGTH 0xf000

static __always_inline __u32 cookie_of(const struct ph_gate *gate, const struct ph_address *source, __u32 ports, __u32 slice)
{
	const __be32 *words = source->words;
	__u64 hash = siphash(gate->secret, (__u64)words[0] << 32 | words[1], (__u64)words[2] << 32 | words[3]);

	return (__u32)siphash(gate->secret, hash, (__u64)ports << 32 | slice);
}

/* Return: 1 when the SYN of this source may go on to its own budget. */
__separate int is_expected(struct ph_address *source, __u32 is_v6)
{
	struct ph_gate *gate = (struct ph_gate *)gate_config();
	__u64 now_ns = bpf_ktime_get_boot_ns(), *until_ns;
	struct ph_address key;

	if (!gate || !source || !gate->unproven.interval_ns)
		return 1;
	key = source_key(gate, source, is_v6);
	until_ns = bpf_map_lookup_elem(&ph_gate_proven, &key);
	return (until_ns && *until_ns > now_ns) || budget_take(&gate->unproven, &gate->unproven_due_ns, now_ns);
}

/* @seq: of a RST without an acknowledgement. Return: 1 when it bears the cookie; its source is known from now on. */
__separate int is_proof(struct ph_address *source, __u32 is_v6, __u32 ports, __u32 seq)
{
	const struct ph_gate *gate = gate_config();
	__u64 now_ns = bpf_ktime_get_boot_ns(), until_ns = now_ns + PH_GATE_PROVEN_MS * 1000000ULL;
	__u32 slice = now_ns >> COOKIE_SLICE;
	struct ph_address key;

	if (!gate || !source || !gate->unproven.interval_ns)
		return 0;
	if (cookie_of(gate, source, ports, slice) != seq && cookie_of(gate, source, ports, slice - 1) != seq)
		return 0;
	key = source_key(gate, source, is_v6);
	bpf_map_update_elem(&ph_gate_proven, &key, &until_ns, BPF_ANY);
	return 1;
}

__separate int cookie_now(struct ph_address *source, __u32 ports)
{
	const struct ph_gate *gate = gate_config();

	return gate && source ? cookie_of(gate, source, ports, bpf_ktime_get_boot_ns() >> COOKIE_SLICE) : 0;
}

/* With extension headers or IP options a SYN is not answered. */
static __always_inline int is_plain(const struct packet *p)
{
	return p->at == ETH_HLEN + (p->is_v6 ? IPV6_HLEN : sizeof(struct iphdr));
}

static __always_inline void swap_macs(void *ethernet)
{
	__u16 *words = ethernet;

#pragma unroll
	for (int i = 0; i < 3; i++) {
		__u16 word = words[i];

		words[i] = words[i + 3];
		words[i + 3] = word;
	}
}

/* All but the pseudo-header's sum is made anew: a frame may bear no more than that for a checksum. */
static __always_inline void answer_tcp(struct tcp_plain *to, const struct packet *p, __u64 pseudo)
{
	struct tcp_plain tcp = { .source = p->ports.target, .target = p->ports.source, .ack = p->cookie,
				 .flags = bpf_htons(TCP_HLEN / 4 << 12 | TCP_PLAIN_SYN_ACK) };

	tcp.check = ~sum_fold16(pseudo + sum_words(&tcp, TCP_HLEN / 4));
	*to = tcp;
}

static __always_inline int answer_xdp(struct xdp_md *xdp, const struct packet *p)
{
	int surplus = (int)(bpf_xdp_get_buff_len(xdp) - p->at - TCP_HLEN);
	__u64 pseudo = bpf_htonl(IPPROTO_TCP) + (__u64)bpf_htonl(TCP_HLEN);
	void *data, *end;

	if (!is_plain(p) || (surplus && bpf_xdp_adjust_tail(xdp, -surplus)))
		return XDP_DROP;
	data = (void *)(long)xdp->data;
	end = (void *)(long)xdp->data_end;
	pseudo += sum_words(&p->source, 4) + sum_words(&p->target, 4);
	if (p->is_v6) {
		struct ipv6hdr *ip = data + ETH_HLEN;
		struct tcp_plain *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > end)
			return XDP_DROP;
		__builtin_memcpy(&ip->saddr, &p->target, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, &p->source, sizeof(ip->daddr));
		ip->payload_len = bpf_htons(TCP_HLEN);
		ip->hop_limit = IP_TTL_SENT;
		answer_tcp(tcp, p, pseudo);
	} else {
		struct iphdr *ip = data + ETH_HLEN;
		struct tcp_plain *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > end)
			return XDP_DROP;
		ip->saddr = p->target.words[3];
		ip->daddr = p->source.words[3];
		ip->tot_len = bpf_htons(sizeof(*ip) + TCP_HLEN);
		ip->ttl = IP_TTL_SENT;
		ip->check = sum_ip_header(ip);
		/* What these addresses have before them as IPv6's is no part of the sum. */
		answer_tcp(tcp, p, pseudo + 2 * (__u64)(__u32)~bpf_htonl(0xffff));
	}
	swap_macs(data);
	return XDP_TX;
}

/* Not what the client's had left: it may be too little for the way back. */
static __always_inline int renew_ttl(struct __sk_buff *skb, __u32 is_v6)
{
	__be16 was, is = bpf_htons(IP_TTL_SENT << 8 | IPPROTO_TCP);
	__u8 hops = IP_TTL_SENT;

	if (is_v6)
		return bpf_skb_store_bytes(skb, IPV6_HOPS_AT, &hops, sizeof(hops), 0);
	return bpf_skb_load_bytes(skb, IP_TTL_AT, &was, sizeof(was)) ||
	       bpf_l3_csum_replace(skb, IP_CHECK_AT, was, is, sizeof(is)) ||
	       bpf_skb_store_bytes(skb, IP_TTL_AT, &is, sizeof(is), 0);
}

/*
 * The checksum may be whole or the pseudo-header's only, which cannot be asked: it is changed by differences, and so the
 * SYN's own options stay. Addresses and ports change places, which no sum sees.
 */
static __always_inline int answer_tc(struct __sk_buff *skb, const struct packet *p)
{
	__u32 check_at = p->at + __builtin_offsetof(struct tcp_plain, check);
	__be32 addresses[2] = { p->target.words[3], p->source.words[3] };
	__be16 ports[2] = { p->ports.target, p->ports.source };
	struct tcp_plain tcp;
	__be16 flags;
	__u8 macs[12];

	if (!is_plain(p) || bpf_skb_load_bytes(skb, p->at, &tcp, sizeof(tcp)) ||
	    bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return TC_ACT_SHOT;
	swap_macs(macs);
	flags = (tcp.flags & bpf_htons(TCP_PLAIN_LENGTH)) | bpf_htons(TCP_PLAIN_SYN_ACK);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) || renew_ttl(skb, p->is_v6) ||
	    (p->is_v6 ? bpf_skb_store_bytes(skb, ETH_HLEN + 8, &p->target, 16, 0) ||
			bpf_skb_store_bytes(skb, ETH_HLEN + 24, &p->source, 16, 0) :
			bpf_skb_store_bytes(skb, ETH_HLEN + 12, addresses, sizeof(addresses), 0)) ||
	    bpf_skb_store_bytes(skb, p->at, ports, sizeof(ports), 0) ||
	    bpf_l4_csum_replace(skb, check_at, tcp.ack, p->cookie, 4) ||
	    bpf_l4_csum_replace(skb, check_at, tcp.flags, flags, 2) ||
	    bpf_skb_store_bytes(skb, p->at + __builtin_offsetof(struct tcp_plain, ack), &p->cookie, 4, 0) ||
	    bpf_skb_store_bytes(skb, p->at + __builtin_offsetof(struct tcp_plain, flags), &flags, 2, 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

#endif
