/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * bind - from a whole hello to a spliced flow: SYN, the answer to it, and the ways on when there is none.
 *
 * The CVM sees numbers of the gateway's own: sequence numbers by RFC 6528 and timestamps of one clock for each CVM, so
 * that a port may be used again while the CVM still remembers its last flow, and no CVM reads others' traffic off them.
 * All of it runs under the flow's lock.
 */
#ifndef PH_BPF_BIND_H
#define PH_BPF_BIND_H

#include "collect.h"
#include "route.h"
#include "siphash.h"

#define TCP_MSS_DEFAULT 536		/* RFC 9293, section 3.7.1: what every host takes */
#define TCP_SCALE_MAX 14		/* RFC 7323, section 2.3 */
#define BIND_SEGMENTS_MAX 17		/* of a hello, at the smallest MSS */
#define BIND_SEGMENT_MAX 2048		/* bytes, whatever the MTU: a power of two */
#define BIND_SYN_LEN 40			/* TCP header with MSS, SACK, timestamps, scale */
#define BIND_TIMES_LEN 32		/* TCP header with timestamps */

static __always_inline __u32 clock_ms(void)
{
	return bpf_ktime_get_ns() / NSEC_PER_MSEC;
}

/* Numbers for a new connection to the CVM that the flow has. */
__separate int bind_number(__u32 slot, __u32 client_time)
{
	struct ph_steer *steer = steer_config();
	struct ph_flow *flow = flow_at(slot);
	struct ph_splice *splice;
	__u64 hosts, ports;
	__u32 isn, time;

	if (!steer || !flow)
		return -1;
	splice = &flow->splice;
	hosts = (__u64)splice->cvm << 32 | splice->source;
	ports = (__u64)splice->cvm_port << 16 | splice->source_port;
	isn = siphash(steer->secret, hosts, ports) + (bpf_ktime_get_ns() >> 6);
	time = siphash(steer->secret, splice->cvm, 0) + clock_ms();

	splice->seq_to_cvm = isn - flow->client_isn;
	splice->time_to_cvm = time - client_time;
	return 0;
}

static __always_inline void option_times(__u8 *option, __u32 value, __u32 echo)
{
	option[0] = 8;
	option[1] = 10;
	option[2] = value >> 24;
	option[3] = value >> 16;
	option[4] = value >> 8;
	option[5] = value;
	option[6] = echo >> 24;
	option[7] = echo >> 16;
	option[8] = echo >> 8;
	option[9] = echo;
}

/*
 * Makes the packet the flow's SYN and sends it: exactly what the client negotiated, within what the tunnel takes.
 * Return: what becomes of the packet.
 */
__separate int bind_syn(struct __sk_buff *skb, __u32 l2, __u32 slot, __u32 hello)
{
	struct ph_hello_store *store = hello_at(hello);
	struct ph_steer *steer = steer_config();
	struct ph_flow *flow = flow_at(slot);
	struct scratch *s = scratch_get();
	__u32 mss, window, flags = EMIT_SYN;
	struct ph_splice *splice;
	__u8 *o;

	if (!store || !steer || !flow || !s)
		return TC_ACT_SHOT;
	splice = &flow->splice;
	mss = steer->tunnel_mtu - PH_MSS_OVERHEAD;
	if (mss > store->mss)
		mss = store->mss;
	window = store->window << (splice->client_scale & 15);
	if (splice->flags & PH_FLOW_ECN)
		flags |= EMIT_ECE | EMIT_CWR;
	emit_headers(s, splice->source, splice->cvm, splice->source_port, splice->cvm_port);
	emit_numbers(s, flow->client_isn + splice->seq_to_cvm, 0, BIND_SYN_LEN, flags, window > 65535 ? 65535 : window);
	o = s->options;
	__builtin_memset(o, 1, 20);
	o[0] = 2;
	o[1] = 4;
	o[2] = mss >> 8;
	o[3] = mss;
	if (splice->flags & PH_FLOW_SACK) {
		o[4] = 4;
		o[5] = 2;
	}
	if (splice->flags & PH_FLOW_TIMESTAMPS)
		option_times(o + 6, store->client_time + splice->time_to_cvm, 0);
	if (splice->flags & PH_FLOW_SCALING) {
		o[17] = 3;
		o[18] = 3;
		o[19] = splice->client_scale;
	}
	if (emit(skb, l2, s, BIND_SYN_LEN, 0, 0))
		return drop(PH_REASON_DROPPED_UNMADE);
	return to_tunnel(skb);
}

/* The next instance's turn: the packet becomes its SYN. Return: what becomes of it, or -1 - enum route_result. */
__separate int bind_next(struct __sk_buff *skb, __u32 l2, __u32 slot, __u32 hello)
{
	enum route_result result = route_next(slot, hello);
	struct ph_hello_store *store = hello_at(hello);
	struct ph_flow *flow = flow_at(slot);

	if (!store || !flow)
		return TC_ACT_SHOT;
	if (result != ROUTE_OK)
		return -1 - (int)result;
	bind_number(slot, store->client_time);
	store->turn_ns = bpf_ktime_get_ns();
	flow->domain = store->domain;
	WRITE_ONCE(flow->splice.state, PH_FLOW_BINDING);
	return bind_syn(skb, l2, slot, hello);
}

static __always_inline enum ph_reason bind_failure(int result)
{
	return result == -1 - ROUTE_LIMIT ? PH_REASON_DECLINED_LIMIT : PH_REASON_DECLINED_UNANSWERED;
}

/*
 * With a packet of the client's; if there is no next one, all that is held goes up in its place. @patient: not before
 * the one that has its turn had PH_CONNECT_TIMEOUT_MS.
 */
static __always_inline int bind_next_or_pass(struct __sk_buff *skb, struct packet *p, struct ph_flow *flow, __u32 slot,
					     int patient)
{
	__u32 hello = flow->hello - 1;
	int verdict, result = bind_next(skb, p->l2, slot, hello);

	if (result >= 0)
		return result;
	if (patient && bpf_ktime_get_ns() - flow->begun_ns < PH_CONNECT_TIMEOUT_MS * NSEC_PER_MSEC)
		return bind_syn(skb, p->l2, slot, hello);
	verdict = collect_pass_on(skb, p, hello, flow->client_isn, 0);
	flow_decline(flow, bind_failure(result));
	return verdict;
}

/* With a packet from the tunnel; if there is no next one, the client's retransmission finds its way to a worker. */
static __always_inline int bind_next_or_drop(struct __sk_buff *skb, __u32 l2, struct ph_flow *flow, __u32 slot)
{
	int result = bind_next(skb, l2, slot, flow->hello - 1);

	if (result >= 0)
		return result;
	flow_decline(flow, bind_failure(result));
	return TC_ACT_SHOT;
}

struct bind_send_run {
	struct __sk_buff *skb;
	struct scratch *s;
	const struct ph_flow *flow;
	const struct ph_hello_store *store;
	__u32 l2;
	__u32 done;
	__u32 segment;			/* bytes of payload in each, a multiple of 4 */
	__u32 window;
	__u32 echo;			/* of the CVM's timestamp */
	int result;			/* 0 when the last one is in skb */
};

/* One segment of ACK + hello. Return: 1 when it was the last, which stays in the packet. */
static long bind_send_step(__u32 index, void *arg)
{
	struct bind_send_run *run = arg;
	const struct ph_splice *splice = &run->flow->splice;
	__u32 left = run->store->len - run->done, len = left < run->segment ? left : run->segment;
	__u32 seq = run->flow->client_isn + splice->seq_to_cvm + 1 + run->done, flags = EMIT_ACK;
	__u32 ack = run->flow->gateway_isn + 1 - splice->seq_to_client;
	__u32 header_len = TCP_HLEN, sum;
	int last = len == left, err;

	(void)index;
	if (run->done >= run->store->len || !len || len > BIND_SEGMENT_MAX)
		return 1;
	if (last)
		flags |= EMIT_PSH;
	sum = sum_hello(run->store->data, run->done, len);
	emit_headers(run->s, splice->source, splice->cvm, splice->source_port, splice->cvm_port);
	if (splice->flags & PH_FLOW_TIMESTAMPS) {
		header_len = BIND_TIMES_LEN;
		run->s->options[0] = run->s->options[1] = 1;
		option_times(run->s->options + 2, run->store->client_time + splice->time_to_cvm, run->echo);
		emit_numbers(run->s, seq, ack, BIND_TIMES_LEN, flags, run->window);
		err = emit(run->skb, run->l2, run->s, BIND_TIMES_LEN, len, sum);
	} else {
		emit_numbers(run->s, seq, ack, TCP_HLEN, flags, run->window);
		err = emit(run->skb, run->l2, run->s, TCP_HLEN, len, sum);
	}
	if (err)
		return 1;
	if (bpf_skb_store_bytes(run->skb, run->l2 + IP_HLEN + header_len,
				run->store->data + ph_below(run->done, PH_HELLO_STREAM_BPF_MAX),
				ph_below(len - 1, BIND_SEGMENT_MAX) + 1, 0))
		return 1;
	run->done += len;
	if (last) {
		run->result = 0;
		return 1;
	}
	return copy_to_tunnel(run->skb, run->flow->mac) ? 1 : 0;
}

/* What the CVM's SYN-ACK agreed to: scales, timestamps, what it takes. Return: PH_REASON_COUNT, or what is wrong. */
static __always_inline enum ph_reason bind_options(const struct ph_steer *steer, const struct packet *p,
						   const struct options *o, struct ph_flow *flow,
						   const struct ph_hello_store *store)
{
	__u32 mss = o->mss ? o->mss : TCP_MSS_DEFAULT, scale = o->scale < 0 ? 0 : o->scale, now;
	struct ph_splice *splice = &flow->splice;

	if (mss < TCP_MSS_DEFAULT)
		return PH_REASON_DECLINED_OPTIONS;
	if (splice->flags & PH_FLOW_TIMESTAMPS) {
		if (!o->times_at)
			return PH_REASON_CVM_NO_TIMESTAMPS;
		/* The client must not see time run backwards, and BPF's clock may be a little behind the stack's. */
		now = clock_ms() + 1 + store->time_offset;
		if (seq_after(store->client_echo, now))
			now = store->client_echo;
		flow->cvm.first_time = option_word(o, o->times_at);
		splice->time_to_client = now - flow->cvm.first_time;
	}
	splice->cvm_mtu = steer->tunnel_mtu;
	if (mss + PH_MSS_OVERHEAD < steer->tunnel_mtu)
		splice->cvm_mtu = mss + PH_MSS_OVERHEAD;
	splice->cvm_scale = 0;
	splice->shift_to_client = 0;
	splice->shift_to_cvm = 0;
	if (splice->flags & PH_FLOW_SCALING) {
		if (o->scale >= 0) {
			splice->cvm_scale = scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale;
			splice->shift_to_client = splice->cvm_scale - (__s32)store->gateway_scale;
		} else {
			splice->shift_to_client = -(__s32)store->gateway_scale;
			splice->shift_to_cvm = splice->client_scale;
			count(PH_REASON_CVM_NO_SCALING);
		}
	}
	if (splice->flags & PH_FLOW_SACK && !o->sack_permitted)
		count(PH_REASON_CVM_NO_SACK);
	/* A CVM that will not hear of congestion marks must not get packets that may be marked. */
	if (!p->tcp.ece)
		splice->flags &= ~PH_FLOW_ECN;
	return PH_REASON_COUNT;
}

/* What each end has sent so far, for telling packets in the window from forged ones. */
static __always_inline void bind_windows(struct ph_flow *flow, const struct ph_hello_store *store, __u32 cvm_window)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	flow->client.end = flow->client_isn + 1 + store->len;
	flow->client.ack = flow->gateway_isn + 1;
	flow->client.window_end = flow->client.ack + (store->window << (flow->splice.client_scale & 15));
	flow->cvm.end = flow->gateway_isn + 1;
	flow->cvm.ack = flow->client_isn + 1;
	/* The client had the gateway's window first, which may have been larger. */
	flow->cvm.window_end = flow->cvm.ack + (cvm_window > 65535 ? cvm_window : 65535);
	flow->client.bytes = store->len;
	flow->client.packets = 1;
	flow->client.last_ns = flow->cvm.last_ns = now;
}

/* Layer-2 tunnel: the way back to the CVM is the way its packet came. */
static __always_inline int bind_mac(struct __sk_buff *skb, struct ph_flow *flow)
{
	if (!tunnel_l2)
		return 0;
	return bpf_skb_load_bytes(skb, 6, flow->mac, 6) || bpf_skb_load_bytes(skb, 0, flow->mac + 6, 6) ? -1 : 0;
}

#define BIND_UNFIT (-2)

/*
 * The CVM has answered: the packet becomes ACK + hello, and the flow SPLICED. Return: what becomes of the packet, or
 * BIND_UNFIT for a CVM that will not do; it was told so.
 */
__separate int bind_answered(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct bind_send_run run = { .skb = skb, .result = -1 };
	struct ph_steer *steer = steer_config();
	struct ph_flow *flow = flow_at(slot);
	struct scratch *s = scratch_get();
	struct ph_hello_store *store;
	struct ph_splice *splice;
	enum ph_reason wrong;
	struct options o;

	if (!p || !steer || !flow || !s)
		return TC_ACT_SHOT;
	store = hello_at(flow->hello - 1);
	if (!store || options_read(skb, p, s->seen, &o))
		return drop(PH_REASON_DROPPED_MALFORMED);
	splice = &flow->splice;
	splice->seq_to_client = flow->gateway_isn - bpf_ntohl(p->tcp.seq);
	wrong = bind_options(steer, p, &o, flow, store);
	if (instance_is_gone(&splice->instance))
		wrong = PH_REASON_INSTANCE_REMOVED;
	if (wrong != PH_REASON_COUNT) {
		count_instance(flow, wrong);
		if (emit_reset_reply(skb, p, s) || copy_to_tunnel(skb, flow->mac))
			unmade();
		return BIND_UNFIT;
	}
	bind_windows(flow, store, bpf_ntohs(p->tcp.window));
	run.s = s;
	run.flow = flow;
	run.store = store;
	run.l2 = p->l2;
	if (o.times_at)
		run.echo = option_word(&o, o.times_at);
	run.window = store->window;
	if (splice->shift_to_cvm > 0)
		run.window <<= splice->shift_to_cvm & 15;
	if (run.window > 65535)
		run.window = 65535;
	run.segment = (splice->cvm_mtu - IP_HLEN - BIND_TIMES_LEN) & ~3;
	if (run.segment > BIND_SEGMENT_MAX)
		run.segment = BIND_SEGMENT_MAX;
	splice->flags |= PH_FLOW_REQUEST;
	WRITE_ONCE(splice->state, PH_FLOW_SPLICED);
	load_begin(&splice->instance);
	count(PH_REASON_SPLICED);
	flow_event(flow, PH_EVENT_BEGIN, PH_REASON_SPLICED);
	ph_loop(BIND_SEGMENTS_MAX, bind_send_step, &run);
	flow_drop_hello(flow);
	/* What is missing is the client's retransmission to repair. */
	return run.result ? drop(PH_REASON_DROPPED_UNMADE) : to_tunnel(skb);
}

/* A packet of the CVM's, or nobody's, at a flow that is BINDING. */
__separate int bind_from_cvm(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	struct scratch *s = scratch_get();
	struct ph_hello_store *store;
	int expected, action;

	if (!p || !flow || !s)
		return TC_ACT_SHOT;
	if (!p->tcp.ack)
		return drop(PH_REASON_DROPPED_EARLY);
	expected = bpf_ntohl(p->tcp.ack_seq) == flow->client_isn + flow->splice.seq_to_cvm + 1;
	if (p->tcp.rst) {
		if (!expected)
			return drop(PH_REASON_DROPPED_EARLY);
		count_instance(flow, PH_REASON_CVM_REFUSED);
		return bind_next_or_drop(skb, p->l2, flow, slot);
	}
	if (bind_mac(skb, flow))
		return TC_ACT_SHOT;
	if (p->tcp.syn && expected) {
		if (is_to_go_around(skb))		/* it becomes the hello */
			return go_around(skb);
		action = bind_answered(skb, p, slot);
		return action == BIND_UNFIT ? bind_next_or_drop(skb, p->l2, flow, slot) : action;
	}
	/*
	 * It remembers an older connection from this port: TIME_WAIT with numbers that ours are not beyond. A reset
	 * ends that one (RFC 9293, section 3.10.7.3), and the SYN goes again.
	 */
	store = hello_at(flow->hello - 1);
	if (!store || ++store->packets > PH_HELLO_PACKETS_MAX || emit_reset_reply(skb, p, s))
		return drop(PH_REASON_DROPPED_EARLY);
	if (copy_to_tunnel(skb, flow->mac))
		unmade();
	return bind_syn(skb, p->l2, slot, flow->hello - 1);
}

/* A packet with payload of the client's at a flow that is BINDING: its retransmission is the clock. */
static __always_inline int bind_from_client(struct __sk_buff *skb, struct packet *p, struct ph_flow *flow, __u32 slot,
					    __u32 offset)
{
	struct ph_hello_store *store = hello_at(flow->hello - 1);
	int result;

	if (!store)
		return TC_ACT_SHOT;
	/* Early data. What overlaps the hello is left out: a damaged packet must not spoil what is there. */
	result = offset >= store->len ? collect(skb, p, flow->hello - 1, offset) : COLLECT_OK;
	if (result == COLLECT_DAMAGED) {
		store->pieces[0].from = 0;	/* those ahead of a gap may be spoilt */
		store->pieces[0].to = store->len;
		store->piece_count = 1;
	}
	if (result != COLLECT_OK)
		return drop(PH_REASON_DROPPED_EARLY);
	if (offset)
		return TC_ACT_SHOT;
	if (bpf_ktime_get_ns() - store->turn_ns < PH_BIND_TURN_MS * NSEC_PER_MSEC)
		return bind_syn(skb, p->l2, slot, flow->hello - 1);
	if (store->turn_ns)		/* once, however often the client asks until there is another way */
		count_instance(flow, PH_REASON_CVM_TIMEOUT);
	store->turn_ns = 0;
	return bind_next_or_pass(skb, p, flow, slot, 1);
}

#endif
