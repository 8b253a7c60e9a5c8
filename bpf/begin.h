/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * begin - a client's first data packets: are they steer's, and if so, what are they?
 *
 * Input is hostile, and mostly not ours: what is not certain goes to the stack.
 */
#ifndef PH_BPF_BEGIN_H
#define PH_BPF_BEGIN_H

#include "bind.h"
#include "collect.h"
#include "request.h"
#include "route.h"
#include "sweep.h"

#define WORKER_ALIVE_NS (3000 * NSEC_PER_MSEC)
#define BEGIN_ECHO_MS 120000		/* longer than a request sock lives */

static __always_inline struct ph_client_key client_key(const struct packet *p)
{
	return (struct ph_client_key){
		.client = p->ip.saddr,
		.gateway = p->ip.daddr,
		.client_port = p->tcp.source,
		.gateway_port = p->tcp.dest,
	};
}

static __always_inline int is_our_port(const struct ph_steer *steer, __be16 port)
{
	__u32 ours = 0;

	for (__u32 i = 0; i < PH_LISTEN_MAX; i++)
		ours |= is_zero(steer->ports[i] ^ port);
	return ours && port;
}

static long worker_alive_step(__u32 index, void *arg)
{
	__u64 *alive_since_ns = arg;
	struct ph_worker *worker = bpf_map_lookup_elem(&ph_workers, &index);

	if (!worker || worker->heartbeat_ns < *alive_since_ns)
		return 0;
	*alive_since_ns = 0;
	return 1;
}

static __always_inline int no_worker_lives(void)
{
	__u64 alive_since_ns = bpf_ktime_get_boot_ns() - WORKER_ALIVE_NS;

	ph_loop(PH_WORKERS_MAX, worker_alive_step, &alive_since_ns);
	return !!alive_since_ns;
}

/*
 * A worker's, all there is of it in the packet: passed on, unless nobody is there to take it and the accept queue fills, at the end of
 * which no SYN would be answered, passthrough's neither. A hello with its SYN bit set makes the stack reset the client
 * and forget it (RFC 9293, section 3.10.7.4).
 */
__separate int to_worker(struct __sk_buff *skb, struct packet *p, __u32 hello)
{
	struct ph_hello_store *store = hello_at(hello);
	__be32 was, is;
	__u64 sum = 0;
	__u32 at;

	if (!p || !store || !store->queue_fills || !no_worker_lives())
		return TC_ACT_UNSPEC;
	was = tcp_flag_word(&p->tcp);
	is = was | bpf_htonl(0x00020000);
	at = p->l2 + IP_HLEN;
	count(PH_REASON_TURNED_AWAY);
	sum_change(&sum, was, is);
	bpf_l4_csum_replace(skb, at + __builtin_offsetof(struct tcphdr, check), 0, sum_fold32(sum), 0);
	bpf_skb_store_bytes(skb, at + 12, &is, 4, 0);
	return TC_ACT_UNSPEC;
}

#define TLS_HANDSHAKE 22

/*
 * Do the @len bytes at @at begin as a ClientHello does (hello.h), as far as they go? Where no socket is asked whether they
 * are its first, a lone byte within a stream may look so.
 */
static __always_inline int is_hello(struct __sk_buff *skb, __u32 at, __u32 len)
{
	__u8 first[8] = { TLS_HANDSHAKE, 3, [5] = 1 };

	if (!len)
		return 0;
	if (len > 6)
		len = 6;
	len = ph_below(len - 1, sizeof(first)) + 1;
	return !bpf_skb_load_bytes(skb, at, first, len) && first[0] == TLS_HANDSHAKE && first[1] == 3 && first[5] == 1;
}

/* A hello, or the first part of one: all else that comes by is no news, and must not push out what was said of hellos. */
static __always_inline void count_decline(struct __sk_buff *skb, const struct packet *p, enum ph_reason reason)
{
	if (!is_hello(skb, p->l2 + p->ip.ihl * 4 + p->header_len, p->payload))
		return;
	count(reason);
	note_decline(p->ip.saddr, p->tcp.source, reason);
}

static __always_inline int decline(struct __sk_buff *skb, struct packet *p, __u32 hello, enum ph_reason reason)
{
	count_decline(skb, p, reason);
	return to_worker(skb, p, hello);
}

enum verdict {
	VERDICT_MORE,
	VERDICT_STEER,
	VERDICT_WORKER,
	VERDICT_LONG,			/* it will not fit */
};

/* What is it that was collected? Refusals are a worker's to answer, and to count. Return: enum verdict. */
__separate int begin_verdict(__u32 hello)
{
	struct ph_hello_store *store = hello_at(hello);

	if (!store)
		return VERDICT_WORKER;
	switch (ph_hello_walk(&store->walk, store->data, store->len)) {
	case PH_HELLO_MORE:
		return store->walk.message_end + 5 > PH_HELLO_STREAM_BPF_MAX || store->len >= PH_HELLO_STREAM_BPF_MAX
		       ? VERDICT_LONG : VERDICT_MORE;
	case PH_HELLO_OK:
		return route_is_passthrough(store) && route_is_known(store) ? VERDICT_STEER : VERDICT_WORKER;
	default:
		return VERDICT_WORKER;
	}
}

/* What the hello's own packet says of the client. Return: 0, or -1 if steer does not carry it. */
static __always_inline int begin_note(const struct packet *p, const struct options *o, struct ph_hello_store *store)
{
	store->window = bpf_ntohs(p->tcp.window);
	if (!(store->flags & PH_FLOW_TIMESTAMPS))
		return 0;
	if (!o->times_at)
		return -1;
	store->client_time = option_word(o, o->times_at);
	store->client_echo = option_word(o, o->times_at + 4);
	/* Its echo must be of the gateway's clock as we know it, else continuing that clock would go wrong. */
	return clock_ms() + 1 + store->time_offset - store->client_echo < BEGIN_ECHO_MS ? 0 : -1;
}

/* The hello is whole, or not yet: what becomes of the packet that brought the last piece? Under the flow's lock. */
static __always_inline int begin_continue(struct __sk_buff *skb, struct packet *p, struct ph_flow *flow, __u32 slot,
					  enum verdict verdict)
{
	int action;

	if (verdict == VERDICT_MORE)
		return TC_ACT_SHOT;
	if (verdict == VERDICT_STEER)
		return bind_next_or_pass(skb, p, flow, slot, 0);
	action = collect_pass_on(skb, p, flow->hello - 1, flow->client_isn, 0);
	if (action == TC_ACT_UNSPEC)
		action = to_worker(skb, p, flow->hello - 1);
	if (verdict == VERDICT_WORKER) {
		/* Should it be counted still, it rests; the client's packets are the stack's all the same. */
		flow->ended_ns = bpf_ktime_get_ns();
		WRITE_ONCE(flow->splice.state, PH_FLOW_DECLINED);
		flow_free(flow, slot);
	} else {
		flow_decline(flow, PH_REASON_DECLINED_LONG);
	}
	return action;
}

enum begin_result {
	BEGIN_COLLECTED,
	BEGIN_NOT_OURS,
	BEGIN_NOBODYS,
};

/* A first data packet, into @hello. Return: enum begin_result. */
__separate int begin_collect(struct __sk_buff *skb, struct packet *p, __u32 hello)
{
	struct ph_hello_store *store = hello_at(hello);
	struct scratch *s = scratch_get();
	enum ph_reason reason;
	struct options o;
	__u32 offset;

	if (!p || !s || !store)
		return BEGIN_NOT_OURS;
	store->queue_fills = 0;
	switch (request_find(skb, p, store)) {
	case REQUEST_NONE:
		return BEGIN_NOT_OURS;
	case REQUEST_NOBODYS:
		return BEGIN_NOBODYS;
	case REQUEST_ACCEPTED:
		count_decline(skb, p, PH_REASON_DECLINED_ACCEPTED);
		return BEGIN_NOT_OURS;
	case REQUEST_ODD:
		count_decline(skb, p, PH_REASON_DECLINED_OPTIONS);
		return BEGIN_NOT_OURS;
	case REQUEST_OK:
		break;
	}
	/* Both numbers must be right, else a blind sender could make us call a CVM. */
	offset = bpf_ntohl(p->tcp.seq) - store->client_isn - 1;
	if (bpf_ntohl(p->tcp.ack_seq) != store->gateway_isn + 1 || offset > PH_HELLO_STREAM_MAX)
		return BEGIN_NOT_OURS;
	collect_begin(store);
	if (p->tcp.fin || p->tcp.urg || options_read(skb, p, s->seen, &o) || begin_note(p, &o, store)) {
		count_decline(skb, p, PH_REASON_DECLINED_OPTIONS);
		return BEGIN_NOT_OURS;
	}
	switch (collect(skb, p, hello, offset)) {
	case COLLECT_OK:
		return BEGIN_COLLECTED;
	case COLLECT_DAMAGED:
		reason = PH_REASON_DECLINED_CHECKSUM;
		break;
	case COLLECT_PIECES:
		reason = PH_REASON_DECLINED_PIECES;
		break;
	default:
		reason = PH_REASON_DECLINED_LONG;
	}
	count_decline(skb, p, reason);
	return BEGIN_NOT_OURS;
}

/* A flow for the hello, claimed and locked. Return: enum flow_new. */
__separate int begin_flow(struct __sk_buff *skb, struct packet *p, __u32 hello, __u32 *ret_slot)
{
	struct ph_hello_store *store = hello_at(hello);
	struct ph_steer *steer = steer_config();
	struct ph_client_key key;
	enum flow_new result;
	__u32 slot = 0, held;
	struct ph_flow *flow;

	if (!p || !ret_slot || !store || !steer)
		return FLOW_NEW_FULL;
	key = client_key(p);
	result = flow_new(steer, &key, &slot);
	if (result != FLOW_NEW)
		return result;
	*ret_slot = slot;
	flow = flow_at(slot);
	if (!flow)
		return FLOW_NEW_FULL;
	held = source_take(key.client, PH_COUNTED_HELLO, PH_HELLOS_SOURCE_MAX);
	if (held > PH_HELLOS_SOURCE_MAX) {
		flow_free(flow, slot);
		flow_unlock(flow);
		return FLOW_NEW_HELLOS;
	}
	/* One that cannot be counted just now is no reason to relay it. */
	flow->counted = held ? PH_COUNTED_HELLO : 0;
	flow->hello = hello + 1;
	flow->client_isn = store->client_isn;
	flow->gateway_isn = store->gateway_isn;
	flow->splice.flags |= store->flags;
	flow->splice.client_scale = store->client_scale;
	flow->splice.nic = skb->ifindex;
	if (bpf_skb_load_bytes(skb, 6, flow->nic_mac, 6) || bpf_skb_load_bytes(skb, 0, flow->nic_mac + 6, 6))
		__builtin_memset(flow->nic_mac, 0, sizeof(flow->nic_mac));
	return FLOW_NEW;
}

#define BEGIN_AGAIN (-2)		/* somebody else's claim was first */

/* What the hello says so far decides. A whole one for a worker needs no flow; else it becomes the flow's. */
static __always_inline int begin_claim(struct __sk_buff *skb, struct packet *p, __u32 hello, __u32 *ret_kept)
{
	struct ph_hello_store *store = hello_at(hello);
	enum verdict verdict = begin_verdict(hello);
	struct ph_flow *flow;
	__u32 slot = 0;
	int action;

	if (!store)
		return TC_ACT_UNSPEC;
	if (verdict == VERDICT_WORKER)
		return to_worker(skb, p, hello);
	if (verdict == VERDICT_LONG)
		return decline(skb, p, hello, PH_REASON_DECLINED_LONG);
	if (!sweep_lives())
		return decline(skb, p, hello, PH_REASON_DECLINED_TIMER);
	switch (begin_flow(skb, p, hello, &slot)) {
	case FLOW_NEW_EXISTS:
		return BEGIN_AGAIN;
	case FLOW_NEW:
		break;
	case FLOW_NEW_HELLOS:
		return decline(skb, p, hello, PH_REASON_DECLINED_HELLOS);
	default:
		return decline(skb, p, hello, PH_REASON_DECLINED_FULL);
	}
	flow = flow_at(slot);
	if (!flow)
		return TC_ACT_UNSPEC;
	*ret_kept = 1;
	action = begin_continue(skb, p, flow, slot, verdict);
	flow_unlock(flow);
	return action;
}

/* A client's packet that has no flow. Return: what becomes of it, or BEGIN_AGAIN. */
__separate int begin(struct __sk_buff *skb, struct packet *p)
{
	struct ph_steer *steer = steer_config();
	__u32 hello, kept = 0;
	int action;

	if (!p || !steer || !(steer->flags & PH_STEER_ON) || !p->tcp.ack || p->tcp.rst || !is_our_port(steer, p->tcp.dest))
		return TC_ACT_UNSPEC;
	if (p->ip.ihl != 5 && p->payload && !p->tcp.syn && p->tcp.doff >= 5 && request_awaits(skb, p))
		count_decline(skb, p, PH_REASON_DECLINED_OPTIONS);
	if (p->tcp.syn || !p->payload || p->ip.ihl != 5)
		return nobody_bare(skb, p);
	if (hello_take(steer, &hello)) {
		count_decline(skb, p, PH_REASON_DECLINED_FULL);
		return nobody_bare(skb, p);
	}
	switch (begin_collect(skb, p, hello)) {
	case BEGIN_COLLECTED:
		action = begin_claim(skb, p, hello, &kept);
		break;
	case BEGIN_NOBODYS:
		action = nobody_refuse(skb, &p->ip, NULL);
		break;
	default:
		action = to_worker(skb, p, hello);
	}
	if (!kept)
		hello_give_back(hello);
	return action;
}

/* A packet that is not taken, and so ends the collecting: a worker gets all there is. Return: what becomes of it. */
static __always_inline int begin_give_up(struct __sk_buff *skb, struct packet *p, struct ph_flow *flow,
					 enum ph_reason reason)
{
	int action = collect_pass_on(skb, p, flow->hello - 1, flow->client_isn, 1);

	flow_decline(flow, reason);
	return action;
}

/* A client's packet at a flow that is COLLECTING or BINDING. Under its lock. */
__separate int begin_more(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	struct ph_hello_store *store;
	__u32 offset;

	if (!p || !flow)
		return TC_ACT_SHOT;
	if (p->tcp.syn)			/* the request sock knows what to do with it */
		return TC_ACT_UNSPEC;
	store = hello_at(flow->hello - 1);
	if (!store)
		return TC_ACT_SHOT;
	offset = bpf_ntohl(p->tcp.seq) - flow->client_isn - 1;
	if (p->tcp.rst) {
		if (offset > store->len)
			return drop(PH_REASON_DROPPED_EARLY);
		flow_decline(flow, PH_REASON_CLIENT_RESET);
		return TC_ACT_UNSPEC;
	}
	if (!p->tcp.ack || !p->payload || bpf_ntohl(p->tcp.ack_seq) != flow->gateway_isn + 1 ||
	    offset > PH_HELLO_STREAM_MAX || p->tcp.fin)
		return drop(PH_REASON_DROPPED_EARLY);
	if (flow->splice.state == PH_FLOW_BINDING)
		return bind_from_client(skb, p, flow, slot, offset);
	if (is_to_go_around(skb))
		return go_around(skb);
	switch (collect(skb, p, flow->hello - 1, offset)) {
	case COLLECT_OK:
		return begin_continue(skb, p, flow, slot, begin_verdict(flow->hello - 1));
	case COLLECT_DAMAGED:		/* and so may be what it overlapped */
		store->piece_count = store->len = 0;
		__builtin_memset(&store->walk, 0, sizeof(store->walk));
		return drop(PH_REASON_DROPPED_EARLY);
	case COLLECT_PIECES:
		return begin_give_up(skb, p, flow, PH_REASON_DECLINED_PIECES);
	default:
		return begin_give_up(skb, p, flow, PH_REASON_DECLINED_LONG);
	}
}

#endif
