/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * splice - rewrite the packets of a bound flow, and watch for its end.
 *
 * Nothing is acknowledged on anyone's behalf: loss, flow control and both ends are the ends' own. All changes to
 * checksums are differences, so that a packet damaged before us stays damaged.
 */
#ifndef PH_BPF_SPLICE_H
#define PH_BPF_SPLICE_H

#include "emit.h"

#define TIMES_ALIGNED 0x0101080a	/* NOP, NOP, timestamps: how nearly everybody places them (RFC 7323, appendix A) */
#define IP_ECN 3
#define SPLICE_OLD_ACK (1 << 20)	/* how far behind an acknowledgement may come in */

/* What to add to each number of a packet in one direction. */
struct splice_change {
	__be32 from, to;
	__be16 from_port, to_port;
	__u32 seq, ack, time, echo;
	__s32 shift;			/* of the window, left */
	__u16 clear_ecn;
	__u8 has_times;
	__u8 sets_echo;			/* to echo, rather than add that */
};

static __always_inline struct splice_change splice_towards_cvm(const struct ph_splice *splice)
{
	return (struct splice_change){
		.from = splice->source,
		.to = splice->cvm,
		.from_port = splice->source_port,
		.to_port = splice->cvm_port,
		.seq = splice->seq_to_cvm,
		.ack = -splice->seq_to_client,
		.time = splice->time_to_cvm,
		.echo = -splice->time_to_client,
		.shift = splice->shift_to_cvm,
		.clear_ecn = !(splice->flags & PH_FLOW_ECN),
		.has_times = splice->flags & PH_FLOW_TIMESTAMPS,
	};
}

static __always_inline struct splice_change splice_towards_client(const struct ph_splice *splice)
{
	return (struct splice_change){
		.from = splice->key.gateway,
		.to = splice->key.client,
		.from_port = splice->key.gateway_port,
		.to_port = splice->key.client_port,
		.seq = splice->seq_to_client,
		.ack = -splice->seq_to_cvm,
		.time = splice->time_to_client,
		.echo = -splice->time_to_cvm,
		.shift = splice->shift_to_client,
		.has_times = splice->flags & PH_FLOW_TIMESTAMPS,
	};
}

static __always_inline __u32 splice_echo(const struct splice_change *c, __u32 echo)
{
	return c->sets_echo ? c->echo : echo + c->echo;
}

static __always_inline void splice_set_word(__u8 *bytes, __u32 at, __u32 value)
{
	bytes[ph_below(at, TCP_OPTIONS_SIZE)] = value >> 24;
	bytes[ph_below(at + 1, TCP_OPTIONS_SIZE)] = value >> 16;
	bytes[ph_below(at + 2, TCP_OPTIONS_SIZE)] = value >> 8;
	bytes[ph_below(at + 3, TCP_OPTIONS_SIZE)] = value;
}

/* Options in any order and at any place. Adds to @sum what changes. Return: 0 or -1. */
__separate int splice_options(struct __sk_buff *skb, struct packet *p, struct splice_change *c, __u64 *sum)
{
	struct scratch *s = scratch_get();
	struct options o;
	__u32 len;

	if (!s || !p || !c || !sum || options_read(skb, p, s->seen, &o))
		return -1;
	len = p->header_len - TCP_HLEN;
	if (!o.times_at && !o.edges_at)
		return 0;
	__builtin_memcpy(s->changed, s->seen, TCP_OPTIONS_SIZE);
	if (o.times_at && c->has_times) {
		splice_set_word(s->changed, o.times_at, option_word(&o, o.times_at) + c->time);
		if (p->tcp.ack)
			splice_set_word(s->changed, o.times_at + 4, splice_echo(c, option_word(&o, o.times_at + 4)));
	}
	for (__u32 i = 0; i < 8; i++) {
		__u32 at = o.edges_at + i * 4;

		if (i >= o.edges)
			break;
		splice_set_word(s->changed, at, option_word(&o, at) + c->ack);
	}
	len = ph_below(len - 1, TCP_OPTIONS_SIZE) + 1;
	*sum += (__u32)bpf_csum_diff((__be32 *)s->seen, len, (__be32 *)s->changed, len, 0);
	return bpf_skb_store_bytes(skb, p->l2 + IP_HLEN + TCP_HLEN, s->changed, len, 0) ? -1 : 0;
}

/* Timestamps alone and aligned, as in nearly all packets; else the long way. */
static __always_inline int splice_times(struct __sk_buff *skb, struct packet *p, struct splice_change *c, __u64 *sum)
{
	__u32 at = p->l2 + IP_HLEN + TCP_HLEN;
	__be32 words[3], changed[2];

	if (p->header_len == TCP_HLEN)
		return 0;
	if (p->header_len != TCP_HLEN + 12 || bpf_skb_load_bytes(skb, at, words, 12) ||
	    words[0] != bpf_htonl(TIMES_ALIGNED))
		return splice_options(skb, p, c, sum);
	if (!c->has_times)
		return 0;
	changed[0] = bpf_htonl(bpf_ntohl(words[1]) + c->time);
	changed[1] = p->tcp.ack ? bpf_htonl(splice_echo(c, bpf_ntohl(words[2]))) : words[2];
	sum_change(sum, words[1], changed[0]);
	sum_change(sum, words[2], changed[1]);
	return bpf_skb_store_bytes(skb, at + 4, changed, 8, 0) ? -1 : 0;
}

static __always_inline __u16 splice_window(const struct packet *p, __s32 shift)
{
	__u32 window = bpf_ntohs(p->tcp.window);

	if (p->tcp.syn)			/* never scaled */
		return window;
	if (shift < 0)
		return window >> (-shift & 15);
	window <<= shift & 15;
	return window > 65535 ? 65535 : window;
}

/* Rewrites the packet. Return: 0 or -1. */
static __always_inline int splice_rewrite(struct __sk_buff *skb, struct packet *p, struct splice_change *c)
{
	__u32 at = p->l2 + IP_HLEN + __builtin_offsetof(struct tcphdr, check);
	__u64 addresses = 0, numbers = 0, ip_sum;
	struct iphdr *ip = &p->changed.ip;
	__be32 *tcp = p->changed.tcp;
	const __be32 *old = (const __be32 *)&p->tcp, *old_ip = (const __be32 *)&p->ip;
	const __be32 *new_ip = (const __be32 *)ip;

	if (splice_times(skb, p, c, &numbers))
		return -1;

	*ip = p->ip;
	ip->ttl--;
	if (c->clear_ecn)
		ip->tos &= ~IP_ECN;
	ip->saddr = c->from;
	ip->daddr = c->to;
	sum_change(&addresses, p->ip.saddr, c->from);
	sum_change(&addresses, p->ip.daddr, c->to);
	ip_sum = addresses + (__u16)~p->ip.check;
	sum_change(&ip_sum, old_ip[0], new_ip[0]);
	/* The third word has the checksum itself in its other half. */
	sum_change(&ip_sum, old_ip[2] & bpf_htonl(0xffff0000), new_ip[2] & bpf_htonl(0xffff0000));
	ip->check = ~sum_fold16(ip_sum);

	tcp[0] = (__u32)c->from_port | (__u32)c->to_port << 16;
	tcp[1] = bpf_htonl(bpf_ntohl(p->tcp.seq) + c->seq);
	tcp[2] = p->tcp.ack ? bpf_htonl(bpf_ntohl(p->tcp.ack_seq) + c->ack) : p->tcp.ack_seq;
	tcp[3] = (old[3] & bpf_htonl(0xffff0000)) | bpf_htonl(splice_window(p, c->shift));
	for (int i = 0; i < 4; i++)
		sum_change(&numbers, old[i], tcp[i]);

	if (bpf_l4_csum_replace(skb, at, 0, sum_fold32(addresses), BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(skb, at, 0, sum_fold32(numbers), 0))
		return -1;
	return bpf_skb_store_bytes(skb, p->l2, &p->changed, sizeof(p->changed), 0) ? -1 : 0;
}

enum splice_news {
	SPLICE_NOTHING,
	SPLICE_FINISHED,		/* FIN and its acknowledgement both ways */
	SPLICE_RESET,
};

/* Does a reset of @me's end the flow, if it is not @over already? */
static __always_inline int splice_reset_counts(struct ph_flow_way *me, const struct ph_flow_way *other, __u32 seq, int over)
{
	if (!over && seq_after(seq, me->end) && !seq_after(seq, other->window_end)) {
		me->reset = seq;
		WRITE_ONCE(me->has_reset, 1);
	}
	return seq == other->ack || seq == me->end || (me->has_fin && seq == me->fin - 1);
}

/*
 * Takes note of what @me sends: only of what fits the windows, so that nobody who merely guesses ends a flow or keeps
 * one alive. @seq, @ack: as the client knows them. @scale: of @me's windows. @reset: the flow, if @me ended it by a reset.
 *
 * A reset counts in two places: behind all that this end sent, where whoever gives up sends it, and at what the other
 * end acknowledged last, where it answers a packet (RFC 9293, section 3.10.7.1). What lies between is the other end's to
 * judge: it provokes a challenge (RFC 5961, section 3.2), and the answer to that is in the second place. Had all between
 * counted, who guesses would need as many tries fewer as there are bytes under way. One more place is where the FIN was,
 * by which macOS gives up and which Linux takes (tcp_reset_check()).
 *
 * One that lies beyond has overtaken data. On its way on it may be overtaken in turn: then the other end takes it, and
 * nobody says anything any more. So if nothing comes behind what it has overtaken, the flow ends after less silence than
 * else (flow_is_closing()). Not at once: who guesses a number that a live end's next packets will reach gains nothing.
 *
 * An end that is no more sends nothing, but what it sent before may come in late. So after a reset only what it cannot
 * have sent before is a sign of life: more data, or an acknowledgement of what passed here after the reset did.
 */
static __always_inline enum splice_news splice_watch(const struct packet *p, struct ph_flow_way *me,
						     struct ph_flow_way *other, __u32 seq, __u32 ack, __u32 scale,
						     const struct ph_flow *reset)
{
	__u32 end = seq + p->payload + p->tcp.fin, window_end;

	__sync_fetch_and_add(&me->packets, 1);
	__sync_fetch_and_add(&me->bytes, p->payload);
	if (p->tcp.syn)
		return SPLICE_NOTHING;
	if (p->tcp.rst)
		return splice_reset_counts(me, other, seq, !!reset) ? SPLICE_RESET : SPLICE_NOTHING;
	if (!p->tcp.ack || seq_after(seq, other->window_end) || seq_after(other->ack, end + 1) ||
	    seq_after(ack, other->end) || seq_after(me->ack - SPLICE_OLD_ACK, ack))
		return SPLICE_NOTHING;
	if (!reset || seq_after(end, me->reset) || seq_after(ack, reset->other_end))
		me->last_ns = bpf_ktime_get_coarse_ns();
	if (seq_after(end, me->end)) {
		WRITE_ONCE(me->end, end);
		if (READ_ONCE(me->has_reset) && seq_after(end, me->reset))
			me->has_reset = 0;	/* whoever sends more has not reset it */
	}
	if (seq_reaches(ack, me->ack)) {
		me->ack = ack;
		window_end = ack + ((__u32)bpf_ntohs(p->tcp.window) << (scale & 15));
		if (seq_after(window_end, me->window_end))
			me->window_end = window_end;
	}
	if (p->tcp.fin && !me->has_fin) {
		WRITE_ONCE(me->fin, end);	/* sweep looks at both */
		WRITE_ONCE(me->has_fin, 1);
	}
	return ways_have_ended(me, other) ? SPLICE_FINISHED : SPLICE_NOTHING;
}

/* @flow, if that end has reset it, or somebody in its name; else NULL. */
static __always_inline const struct ph_flow *splice_reset_by(const struct ph_flow *flow, const struct ph_splice *splice,
							     __u32 cvm)
{
	return splice->flags & PH_FLOW_RESET && flow->ended_by_cvm == cvm ? flow : NULL;
}

/*
 * The flow is over, if nobody else said so meanwhile. What cannot be told here, for want of the lock, sweep finds: FINs at
 * its next turn, a reset after PH_FLOW_CLOSING_MS of silence. By itself, for its stack: those who call it have much of
 * their own.
 */
__separate int splice_end(__u32 slot, __u32 generation, __u32 news, __u32 by_cvm)
{
	struct ph_flow *flow = flow_at(slot);
	struct ph_flow_way *me;

	if (!flow)
		return 0;
	me = by_cvm ? &flow->cvm : &flow->client;
	if (!flow_lock(flow)) {
		if (news == SPLICE_RESET && READ_ONCE(flow->splice.generation) == generation &&
		    READ_ONCE(flow->splice.state) == PH_FLOW_SPLICED) {
			me->reset = me->end;
			WRITE_ONCE(me->has_reset, 1);
		}
		return 0;
	}
	if (flow->splice.generation == generation && flow->splice.state == PH_FLOW_SPLICED) {
		flow->ended_by_cvm = by_cvm;
		if (news == SPLICE_RESET) {
			me->has_reset = 0;
			me->reset = me->end;
			flow->other_end = by_cvm ? flow->client.end : flow->cvm.end;
			flow->splice.flags |= PH_FLOW_RESET;
		}
		flow_end(flow, PH_FLOW_ENDED, news == SPLICE_FINISHED ? PH_REASON_CLOSED
					      : by_cvm ? PH_REASON_CVM_RESET : PH_REASON_CLIENT_RESET);
	}
	flow_unlock(flow);
	return 0;
}

/* A packet of a flow that is ENDED: if its sender only said that it would end, its limits hold for it again. */
__separate int splice_recount(__u32 slot, __u32 generation)
{
	struct ph_flow *flow = flow_at(slot);

	if (!flow || flow->counted & PH_COUNTED_INSTANCE || !flow_goes_on(flow, 0) || !flow_lock(flow))
		return 0;
	if (flow->splice.generation == generation && flow->splice.state == PH_FLOW_ENDED && flow_goes_on(flow, 0))
		flow_recount(flow);
	flow_unlock(flow);
	return 0;
}

#endif
