/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * icmp - errors about spliced flows, translated both ways, and the two that steer itself sends as a router.
 *
 * An error quotes the packet that met it: its IP header and at least 8 bytes behind it (RFC 792), which is where TCP
 * has ports and sequence number. The end that gets it checks that number (RFC 5927), so it is translated too.
 */
#ifndef PH_BPF_ICMP_H
#define PH_BPF_ICMP_H

#include "bind.h"
#include "splice.h"

#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_MTU_LEAST 576		/* what every host takes (RFC 791, section 3.1) */
#define ICMP_QUOTE 28			/* IP header and 8 bytes */

/* The part of a message that is looked at and changed. */
struct icmp_error {
	struct icmphdr icmp;
	struct iphdr quoted;
	__be16 from_port, to_port;
	__be32 seq;
};

/* Return: 0 when it is an error about TCP. */
static __always_inline int icmp_read(struct __sk_buff *skb, const struct packet *p, struct icmp_error *ret_error)
{
	struct icmp_error *e = ret_error;

	if (bpf_skb_load_bytes(skb, p->l2 + IP_HLEN, e, sizeof(*e)))
		return -1;
	if (e->icmp.type != ICMP_DEST_UNREACH && e->icmp.type != ICMP_TIME_EXCEEDED &&
	    e->icmp.type != ICMP_PARAMETERPROB)
		return -1;
	return e->quoted.version == 4 && e->quoted.ihl == 5 && e->quoted.protocol == IPPROTO_TCP ? 0 : -1;
}

/*
 * Makes the error, which goes from @from to @to, quote a packet from @quoted_from to @quoted_to with @seq added to its
 * number. Return: 0 or -1.
 */
static __always_inline int icmp_rewrite(struct __sk_buff *skb, const struct packet *p, const struct icmp_error *e,
					__be32 from, __be32 to, __be32 quoted_from, __be32 quoted_to, __be16 from_port,
					__be16 to_port, __u32 seq)
{
	__u32 at = p->l2 + IP_HLEN;
	struct icmp_error changed = *e;
	struct iphdr ip = p->ip;
	__u64 sum = 0, ip_sum = (__u16)~p->ip.check;
	const __u32 *was = (const __u32 *)e, *is = (const __u32 *)&changed;
	const __u32 *ip_was = (const __u32 *)&p->ip, *ip_is = (const __u32 *)&ip;

	ip.saddr = from;
	ip.daddr = to;
	ip.ttl--;
	sum_change(&ip_sum, p->ip.saddr, ip.saddr);
	sum_change(&ip_sum, p->ip.daddr, ip.daddr);
	sum_change(&ip_sum, ip_was[2] & bpf_htonl(0xffff0000), ip_is[2] & bpf_htonl(0xffff0000));
	ip.check = ~sum_fold16(ip_sum);

	changed.quoted.saddr = quoted_from;
	changed.quoted.daddr = quoted_to;
	ip_sum = (__u16)~e->quoted.check;
	sum_change(&ip_sum, e->quoted.saddr, quoted_from);
	sum_change(&ip_sum, e->quoted.daddr, quoted_to);
	changed.quoted.check = ~sum_fold16(ip_sum);
	changed.from_port = from_port;
	changed.to_port = to_port;
	changed.seq = bpf_htonl(bpf_ntohl(e->seq) + seq);
	for (int i = 2; i < (int)sizeof(changed) / 4; i++)
		sum_change(&sum, was[i], is[i]);
	sum += (__u16)~e->icmp.checksum;
	changed.icmp.checksum = ~sum_fold16(sum);
	return bpf_skb_store_bytes(skb, p->l2, &ip, IP_HLEN, 0) || bpf_skb_store_bytes(skb, at, &changed, sizeof(changed), 0)
	       ? -1 : 0;
}

/**
 * icmp_too_big() - make @skb, a packet that cannot go on, an error to whoever sent it.
 * @from: the address that says so.
 * @mtu: what would fit.
 *
 * By itself, for its stack, as splice_end(). Return: 0 or -1.
 *
 * Where the device is to complete the packet's checksum, as with all that GRO merged, it does so for the error too, at the
 * place where TCP has it, and nothing tells it not to. So the error's headers go before that place, and what the device
 * sums up is padding of zeros, which are valid whether they are summed up or not: -0 is 0.
 */
__separate int icmp_too_big(struct __sk_buff *skb, struct packet *p, __u32 from, __u32 mtu)
{
	struct scratch *s = scratch_get();
	__u32 len = sizeof(struct icmp_error);
	struct icmp_error e;
	int partial;

	if (!p || !s)
		return -1;
	e = (struct icmp_error){
		.icmp = { .type = ICMP_DEST_UNREACH, .code = ICMP_FRAG_NEEDED, .un.frag.mtu = bpf_htons(mtu) },
		.quoted = p->ip,
		.from_port = p->tcp.source,
		.to_port = p->tcp.dest,
		.seq = p->tcp.seq,
	};
	if (bpf_skb_change_tail(skb, p->l2 + IP_HLEN + TCP_HLEN, 0))
		return unmade();
	partial = csum_is_partial(skb, p->l2 + IP_HLEN + __builtin_offsetof(struct tcphdr, check));
	if (partial)
		len += TCP_HLEN;
	if (partial ? bpf_skb_adjust_room(skb, sizeof(e), BPF_ADJ_ROOM_MAC, 0)
		    : bpf_skb_change_tail(skb, p->l2 + IP_HLEN + sizeof(e), 0))
		return unmade();
	emit_headers(s, from, p->ip.saddr, 0, 0);
	if (partial && bpf_skb_store_bytes(skb, p->l2 + IP_HLEN + sizeof(e), &s->tcp, TCP_HLEN, 0))
		return unmade();
	s->ip.protocol = IPPROTO_ICMP;
	s->ip.tot_len = bpf_htons(IP_HLEN + len);
	s->ip.check = sum_ip_header(&s->ip);
	e.icmp.checksum = ~sum_fold16(sum_words(&e, sizeof(e) / 4));
	return bpf_skb_store_bytes(skb, p->l2, &s->ip, IP_HLEN, BPF_F_RECOMPUTE_CSUM) ||
	       bpf_skb_store_bytes(skb, p->l2 + IP_HLEN, &e, sizeof(e), BPF_F_RECOMPUTE_CSUM) ? unmade() : 0;
}

#endif
