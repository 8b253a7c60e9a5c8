/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * collect - the pieces of a ClientHello, and of what came with it, until there is a verdict.
 *
 * Input is hostile. A held packet is stored and dropped: nothing is acknowledged to the client, so whatever goes wrong
 * here is repaired by its retransmission.
 */
#ifndef PH_BPF_COLLECT_H
#define PH_BPF_COLLECT_H

#include "emit.h"
#include "request.h"

enum collect_result {
	COLLECT_OK,
	COLLECT_LONG,			/* does not fit */
	COLLECT_PIECES,			/* too many */
	COLLECT_DAMAGED,		/* wrong checksum; nothing was taken */
};

static __always_inline void collect_begin(struct ph_hello_store *store)
{
	__builtin_memset(&store->walk, 0, sizeof(store->walk));
	__builtin_memset(&store->name, 0, sizeof(store->name));
	__builtin_memset(store->tried, 0, sizeof(store->tried));
	store->len = 0;
	store->packets = 0;
	store->piece_count = 0;
	store->tries = 0;
}

/* Adds [from, to) to what there is; touching pieces become one. Return: 0, or -1 when there are too many. */
static __always_inline int collect_piece(struct ph_hello_store *store, __u32 from, __u32 to)
{
	__u32 kept = 0, len = 0;

	for (__u32 i = 0; i < PH_HELLO_PIECES; i++) {
		__u32 piece_from = store->pieces[i].from, piece_to = store->pieces[i].to;

		if (i >= store->piece_count)
			break;
		if (piece_to < from || piece_from > to) {
			store->pieces[ph_below(kept, PH_HELLO_PIECES)].from = piece_from;
			store->pieces[ph_below(kept, PH_HELLO_PIECES)].to = piece_to;
			kept++;
			if (!piece_from)
				len = piece_to;
			continue;
		}
		from = piece_from < from ? piece_from : from;
		to = piece_to > to ? piece_to : to;
	}
	if (kept >= PH_HELLO_PIECES)
		return -1;
	store->pieces[ph_below(kept, PH_HELLO_PIECES)].from = from;
	store->pieces[ph_below(kept, PH_HELLO_PIECES)].to = to;
	store->piece_count = kept + 1;
	store->len = from ? len : to;
	return 0;
}

/*
 * The kernel checks checksums after us, and what is taken here gets a new one: so is this packet's right? Either over
 * all of it, or, if the device is to complete it, over the pseudo-header. The packet's options are in @s->seen.
 */
static __always_inline int collect_is_intact(const struct packet *p, const struct scratch *s, __u32 payload_sum)
{
	__u32 options = p->header_len - TCP_HLEN;
	__u64 pseudo = sum_pseudo(p->ip.saddr, p->ip.daddr, p->header_len + p->payload), sum;

	if (p->tcp.check == sum_fold16(pseudo))
		return 1;
	sum = pseudo + sum_words(&p->tcp, TCP_HLEN / 4) + payload_sum;
	sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)s->seen, ph_below(options, TCP_OPTIONS_SIZE), 0);
	return sum_fold16(sum) == 0xffff;
}

/**
 * collect() - take a packet's payload.
 * @offset: of its first byte in the stream.
 *
 * Return: enum collect_result.
 */
__separate int collect(struct __sk_buff *skb, struct packet *p, __u32 hello, __u32 offset)
{
	struct ph_hello_store *store = hello_at(hello);
	struct scratch *s = scratch_get();
	struct options o;
	__u32 len;

	if (!p || !store || !s || options_read(skb, p, s->seen, &o))
		return COLLECT_DAMAGED;
	len = p->payload;

	if (!len || len > PH_HELLO_STREAM_BPF_MAX || offset >= PH_HELLO_STREAM_BPF_MAX ||
	    offset + len > PH_HELLO_STREAM_BPF_MAX)
		return COLLECT_LONG;
	if (++store->packets > PH_HELLO_PACKETS_MAX)
		return COLLECT_PIECES;
	len = ph_below(len - 1, PH_HELLO_STREAM_BPF_MAX) + 1;
	if (bpf_skb_load_bytes(skb, p->l2 + IP_HLEN + p->header_len,
			       store->data + ph_below(offset, PH_HELLO_STREAM_BPF_MAX), len))
		return COLLECT_DAMAGED;
	/* The verdict is on what will be sent, not on what was there before a client wrote over it. */
	if (offset < store->walk.at)
		__builtin_memset(&store->walk, 0, sizeof(store->walk));
	if (!collect_is_intact(p, s, sum_hello(store->data, offset, p->payload)))
		return COLLECT_DAMAGED;
	return collect_piece(store, offset, offset + p->payload) ? COLLECT_PIECES : COLLECT_OK;
}

/*
 * Makes the packet one with a piece of what is held, of which there is no end before its beginning. Its options stay, and
 * it may become larger than the MTU: if it is not GSO, the stack takes it. Return: 0 or -1.
 */
__separate int collect_give(struct __sk_buff *skb, struct packet *p, __u32 hello, __u32 client_isn, __u32 piece)
{
	struct ph_hello_store *store = hello_at(hello);
	struct scratch *s = scratch_get();
	__u32 header, options, from, len, at;
	struct options o;
	__u64 sum;

	if (!p || !store || !s || options_read(skb, p, s->seen, &o))
		return -1;
	piece = ph_below(piece, PH_HELLO_PIECES);
	from = store->pieces[piece].from;
	len = store->pieces[piece].to - from;
	header = p->l2 + IP_HLEN + p->header_len;
	options = p->header_len - TCP_HLEN;
	at = p->l2 + IP_HLEN + __builtin_offsetof(struct tcphdr, check);
	sum = sum_pseudo(p->ip.saddr, p->ip.daddr, p->header_len + len);
	if (len < 1 || len > PH_HELLO_STREAM_BPF_MAX)
		return -1;
	/* A super-packet is too long to grow. And having grown, no checksum of the device's stands in the way. */
	if (bpf_skb_change_tail(skb, header, 0) || bpf_skb_change_tail(skb, header + len, 0))
		return -1;
	s->ip = p->ip;
	s->tcp = p->tcp;
	s->ip.tot_len = bpf_htons(header + len - p->l2);
	s->ip.check = sum_ip_header(&s->ip);
	s->tcp.seq = bpf_htonl(client_isn + 1 + from);
	s->tcp.check = 0;
	if (csum_is_partial(skb, at)) {
		s->tcp.check = sum_fold16(sum);
	} else {
		sum += sum_words(&s->tcp, TCP_HLEN / 4) + sum_hello(store->data, from, len);
		sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)s->seen, ph_below(options, TCP_OPTIONS_SIZE), 0);
		s->tcp.check = ~sum_fold16(sum);
	}
	return bpf_skb_store_bytes(skb, p->l2, s, IP_HLEN + TCP_HLEN, 0) ||
	       bpf_skb_store_bytes(skb, header, store->data + ph_below(from, PH_HELLO_STREAM_BPF_MAX),
				   ph_below(len - 1, PH_HELLO_STREAM_BPF_MAX) + 1, 0) ? -1 : 0;
}

/**
 * collect_pass_on() - give the stack all that is held, so that no retransmission need be waited for.
 * @skb: its place is taken by the first piece; the others go in behind it.
 * @and_packet: what is in @skb itself is not among it, and goes in too.
 *
 * What goes in behind passes steer again, and must find no flow that collects. Return: TC_ACT_UNSPEC, or TC_ACT_SHOT when
 * a piece could not be made.
 */
__separate int collect_pass_on(struct __sk_buff *skb, struct packet *p, __u32 hello, __u32 client_isn, __u32 and_packet)
{
	struct ph_hello_store *store = hello_at(hello);

	if (!p || !store)
		return TC_ACT_SHOT;
	if (!store->piece_count)
		return TC_ACT_UNSPEC;
	if (and_packet) {
		if (bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS))
			unmade();
	} else if (store->piece_count == 1 && store->pieces[0].to - store->pieces[0].from == p->payload &&
		   bpf_ntohl(p->tcp.seq) == client_isn + 1 + store->pieces[0].from) {
		return TC_ACT_UNSPEC;
	}
	for (__u32 i = 1; i < PH_HELLO_PIECES; i++) {
		if (i >= store->piece_count)
			break;
		if (collect_give(skb, p, hello, client_isn, i) || bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS))
			unmade();
	}
	return collect_give(skb, p, hello, client_isn, 0) ? drop(PH_REASON_DROPPED_UNMADE) : TC_ACT_UNSPEC;
}

#endif
