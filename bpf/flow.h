/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * flow - the life of a flow: its slot, its lock, its end.
 *
 *   FREE        -> COLLECTING  a first packet of a hello was taken
 *   COLLECTING  -> FREE        the hello is whole and not steer's
 *               -> BINDING     it is, and an instance was picked
 *               -> DECLINED    too many pieces, too slow, no instance
 *   BINDING     -> SPLICED     an instance answered
 *               -> DECLINED    none did
 *   SPLICED     -> ENDED       FIN and its acknowledgement both ways, or RST; or silence behind FIN both ways, or behind an
 *                              early RST or one for which the lock was not to be had
 *               -> KILLED      idle for too long, instance removed, operator
 *   ENDED       -> SPLICED     the reset was forged
 *               -> KILLED      the client begins anew from the same port, or the instance was removed
 *   ENDED, KILLED, DECLINED -> FREE   PH_FLOW_REST_MS later
 *
 * What time does is done by sweep.h.
 *
 * State, flags and the hello change only under the flow's lock, which is ours and not bpf_spin_lock, because helpers are
 * called while it is held. Nothing here can be preempted by what else takes it: all run with softirqs off. Rewriting
 * takes no lock (struct ph_splice says how).
 */
#ifndef PH_BPF_FLOW_H
#define PH_BPF_FLOW_H

#include "maps.h"
#include "packet.h"
#include "scatter.h"

#define ENOENT 2
#define EEXIST 17
#define NSEC_PER_MSEC 1000000ULL
#define CLOCK_MONOTONIC 1
#define FLOW_LOCK_SPINS 20000		/* some 100 us: longer than anything that is done under it */
#define SOURCE_LOCK_SPINS 64
#define LOAD_TRIES 16
#define SLOT_TRIES 4

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

static __always_inline void count(enum ph_reason reason)
{
	__u32 key = reason;
	__u64 *counter = bpf_map_lookup_elem(&ph_reasons, &key);

	if (counter)
		++*counter;
}

static __always_inline int drop(enum ph_reason reason)
{
	count(reason);
	return TC_ACT_SHOT;
}

/* Leaves word for the worker that will have the client. */
__separate int note_decline(__u32 client, __u32 client_port_be16, __u32 reason)
{
	const struct ph_decline_key key = { .client = client, .client_port = client_port_be16 };
	const struct ph_decline decline = { .now_ns = bpf_ktime_get_boot_ns(), .reason = reason };

	return bpf_map_update_elem(&ph_declines, &key, &decline, BPF_ANY);
}

static __always_inline struct ph_steer *steer_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ph_steer, &zero);
}

static __always_inline struct ph_gateway *gateway_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ph_gateway, &zero);
}

/* The lock. */

struct flow_lock_run {
	struct ph_flow *flow;
	__u32 held;
};

static long flow_lock_step(__u32 index, void *arg)
{
	struct flow_lock_run *run = arg;

	(void)index;
	if (READ_ONCE(run->flow->lock) || __sync_val_compare_and_swap(&run->flow->lock, 0, 1))
		return 0;
	run->held = 1;
	return 1;
}

/* Return: 1 when it is held. Not getting it is as good as a packet lost. */
static __always_inline int flow_lock(struct ph_flow *flow)
{
	struct flow_lock_run run = { .flow = flow };

	bpf_loop(FLOW_LOCK_SPINS, flow_lock_step, &run, 0);
	return run.held;
}

static __always_inline void flow_unlock(struct ph_flow *flow)
{
	__sync_lock_test_and_set(&flow->lock, 0);
}

/* Slots. Never-used ones come first, in an order that tells nobody how many there were before. */

__separate __u32 slot_fresh(__u32 n)
{
	const struct ph_steer *steer = steer_config();

	return steer ? scatter(steer->secret + 2, n, steer->slots) : 0;
}

static __always_inline int slot_take(struct ph_steer *steer, __u32 *ret_slot)
{
	__u32 fresh;

	if (READ_ONCE(steer->fresh) < steer->slots) {
		fresh = __sync_fetch_and_add(&steer->fresh, 1);
		if (fresh < steer->slots) {
			*ret_slot = slot_fresh(fresh);
			return 0;
		}
	}
	return bpf_map_pop_elem(&ph_free, ret_slot);
}

static __always_inline struct ph_flow *flow_at(__u32 slot)
{
	return bpf_map_lookup_elem(&ph_flows, &slot);
}

/* ph_used: a slot is in use from before its flow is COLLECTING until after it is FREE. */

static __always_inline __u64 *slot_word(__u32 slot)
{
	__u32 word = slot / PH_SLOTS_WORD;

	return bpf_map_lookup_elem(&ph_used, &word);
}

static __always_inline void slot_set_used(__u32 slot)
{
	__u64 *word = slot_word(slot);

	if (word)
		__sync_fetch_and_or(word, 1ULL << slot % PH_SLOTS_WORD);
}

static __always_inline void slot_set_unused(__u32 slot)
{
	__u64 *word = slot_word(slot);

	if (word)
		__sync_fetch_and_and(word, ~(1ULL << slot % PH_SLOTS_WORD));
}

/* From one slot in use to the next, words without any at once. */
struct slot_walk {
	__u32 next, end;
};

/* One step, of @end - @next at the most. Return: the slot, or PH_FLOWS_MAX: nothing at this step. */
static __always_inline __u32 slot_walk_on(struct slot_walk *walk)
{
	__u32 slot = walk->next;
	__u64 *word, bits;

	walk->next = PH_FLOWS_MAX;
	if (slot >= walk->end)
		return PH_FLOWS_MAX;
	word = slot_word(slot);
	if (!word)
		return PH_FLOWS_MAX;
	bits = READ_ONCE(*word) >> slot % PH_SLOTS_WORD;
	walk->next = bits ? slot + 1 : (slot | (PH_SLOTS_WORD - 1)) + 1;
	return bits & 1 ? slot : PH_FLOWS_MAX;
}

static __always_inline __be32 slot_address(const struct ph_steer *steer, __u32 slot)
{
	return bpf_htonl(steer->source + slot / PH_FLOW_PORTS);
}

static __always_inline __be16 slot_port(__u32 slot)
{
	return bpf_htons(PH_FLOW_PORTS + slot % PH_FLOW_PORTS);
}

/* The slot that sends from @address and @port, or one that is none: what is behind the last may be the gateway's own. */
static __always_inline __u32 slot_of(const struct ph_steer *steer, __be32 address, __be16 port)
{
	__u32 host = bpf_ntohl(address) - steer->source;

	if (host >= (steer->slots + PH_FLOW_PORTS - 1) / PH_FLOW_PORTS || bpf_ntohs(port) < PH_FLOW_PORTS)
		return PH_FLOWS_MAX;
	return host * PH_FLOW_PORTS + bpf_ntohs(port) - PH_FLOW_PORTS;
}

/*
 * A free slot, its flow locked. One that turns out to be in use, or beyond what there is, was given away twice, as happens
 * when phalad is told to use other addresses: it is forgotten here, and whoever has it gives it back. Return: NULL when
 * there is none.
 */
static __always_inline struct ph_flow *slot_claim(struct ph_steer *steer, __u32 *ret_slot)
{
	struct ph_flow *flow;
	__u32 slot = 0;

	for (int i = 0; i < SLOT_TRIES; i++) {
		if (slot_take(steer, &slot))
			return NULL;
		flow = flow_at(slot);
		if (!flow || slot >= steer->slots)
			continue;
		if (!flow_lock(flow)) {
			bpf_map_push_elem(&ph_free, &slot, 0);
			continue;
		}
		if (flow->splice.state == PH_FLOW_FREE) {
			*ret_slot = slot;
			return flow;
		}
		flow_unlock(flow);
	}
	return NULL;
}

static __always_inline int key_equal(const struct ph_client_key *a, const struct ph_client_key *b)
{
	return a->client == b->client && a->gateway == b->gateway && a->client_port == b->client_port &&
	       a->gateway_port == b->gateway_port;
}

/* Where hellos are kept meanwhile. */

static __always_inline struct ph_hello_store *hello_at(__u32 slot)
{
	return bpf_map_lookup_elem(&ph_hellos, &slot);
}

static __always_inline int hello_take(struct ph_steer *steer, __u32 *ret_slot)
{
	__u32 fresh;

	if (READ_ONCE(steer->fresh_hellos) < PH_HELLOS_MAX) {
		fresh = __sync_fetch_and_add(&steer->fresh_hellos, 1);
		if (fresh < PH_HELLOS_MAX) {
			*ret_slot = fresh;
			return 0;
		}
	}
	return bpf_map_pop_elem(&ph_free_hellos, ret_slot);
}

static __always_inline void hello_give_back(__u32 slot)
{
	bpf_map_push_elem(&ph_free_hellos, &slot, 0);
}

/* Events: a look at the clock when nobody listens. */
static __always_inline void flow_event(struct ph_flow *flow, enum ph_event_kind kind, enum ph_reason reason)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct ph_steer *steer = steer_config();
	struct ph_event *event;

	if (!steer || now > steer->watch_until_ns)
		return;
	event = bpf_ringbuf_reserve(&ph_events, sizeof(*event), 0);
	if (!event)
		return;
	event->now_ns = now;
	event->begun_ns = flow->begun_ns;
	event->kind = kind;
	event->reason = reason;
	event->slot = slot_of(steer, flow->splice.source, flow->splice.source_port);
	event->generation = flow->splice.generation;
	event->key = flow->splice.key;
	event->cvm = flow->splice.cvm;
	event->instance = flow->splice.instance;
	event->bytes_from_client = flow->client.bytes;
	event->bytes_from_cvm = flow->cvm.bytes;
	event->packets_from_client = flow->client.packets;
	event->packets_from_cvm = flow->cvm.packets;
	bpf_ringbuf_submit(event, 0);
}

/* What an instance carries. */

static __always_inline struct ph_load *load_of(const struct ph_ref *instance)
{
	__u32 slot = instance->slot;
	struct ph_load *load = bpf_map_lookup_elem(&ph_loads, &slot);

	return load && instance->generation && READ_ONCE(load->generation) == instance->generation ? load : NULL;
}

/* A reason that has to do with an instance. */
__separate int load_count(__u32 slot, __u32 generation, __u32 reason)
{
	const struct ph_ref instance = { slot, generation };
	enum ph_load_reason which = ph_load_reason(reason);
	struct ph_load *load = load_of(&instance);

	if (load && which < PH_LOAD_REASON_COUNT)
		__sync_fetch_and_add(&load->reasons[ph_below(which, PH_LOAD_REASONS_MAX)], 1);
	return 0;
}

static __always_inline void count_instance(const struct ph_flow *flow, enum ph_reason reason)
{
	count(reason);
	load_count(flow->splice.instance.slot, flow->splice.instance.generation, reason);
}

static __always_inline void load_begin(const struct ph_ref *instance)
{
	struct ph_load *load = load_of(instance);

	if (load)
		__sync_fetch_and_add(&load->begun, 1);
}

/* Adds what @way carried since it was last told. */
static __always_inline void load_tell(struct ph_flow_way *way, __u64 *packets, __u64 *bytes)
{
	__u64 now = READ_ONCE(way->packets);

	__sync_fetch_and_add(packets, now - way->told_packets);
	way->told_packets = now;
	now = READ_ONCE(way->bytes);
	__sync_fetch_and_add(bytes, now - way->told_bytes);
	way->told_bytes = now;
}

/* A flow may end more than once, if its reset proves forged. */
static __always_inline void load_end(struct ph_flow *flow)
{
	struct ph_load *load = load_of(&flow->splice.instance);

	if (!load)
		return;
	load_tell(&flow->client, &load->packets_from_clients, &load->bytes_from_clients);
	load_tell(&flow->cvm, &load->packets_from_cvms, &load->bytes_from_cvms);
}

/* All from here on: under the lock. */

enum load_result {
	LOAD_CHANGED,
	LOAD_GONE,			/* the slot is another instance's by now */
	LOAD_BUSY,			/* to be tried again */
};

/* One flow more, or less, of an instance: of that one, and never fewer than none. Return: enum load_result. */
__separate int load_change(__u32 slot, __u32 generation, int by)
{
	struct ph_load *load = bpf_map_lookup_elem(&ph_loads, &slot), was, is;

	if (!load || !generation)
		return LOAD_GONE;
	for (int i = 0; i < LOAD_TRIES; i++) {
		is.whose = was.whose = READ_ONCE(load->whose);
		if (was.generation != generation || (!was.active && by < 0))
			return LOAD_GONE;
		is.active += by;
		if (__sync_val_compare_and_swap(&load->whose, was.whose, is.whose) == was.whose)
			return LOAD_CHANGED;
	}
	return LOAD_BUSY;
}

/* Counted once, whatever becomes of it: the bits in the flow say where, and go with what they stand for. */
static __always_inline void flow_count_instance(struct ph_flow *flow)
{
	const struct ph_ref *instance = &flow->splice.instance;

	if (!(flow->counted & PH_COUNTED_INSTANCE) && load_change(instance->slot, instance->generation, 1) == LOAD_CHANGED)
		flow->counted |= PH_COUNTED_INSTANCE;
}

static __always_inline void flow_uncount_instance(struct ph_flow *flow)
{
	const struct ph_ref *instance = &flow->splice.instance;

	if (flow->counted & PH_COUNTED_INSTANCE && load_change(instance->slot, instance->generation, -1) != LOAD_BUSY)
		flow->counted &= ~PH_COUNTED_INSTANCE;
}

/*
 * The lock of a client's address, of which what is done under it takes 100 ns. A plain loop: a callback is one frame more,
 * and where flows end there is no stack left for it. Return: NULL when it was not to be had.
 */
static __always_inline __u32 *source_lock(__u32 client)
{
	__u32 index = (client * 0x9e3779b1 >> 16) % PH_SOURCE_LOCKS;
	__u32 *lock = bpf_map_lookup_elem(&ph_source_locks, &index);

	for (int i = 0; lock && i < SOURCE_LOCK_SPINS; i++)
		if (!READ_ONCE(*lock) && !__sync_val_compare_and_swap(lock, 0, 1))
			return lock;
	return NULL;
}

static __always_inline void source_unlock(__u32 *lock)
{
	__sync_lock_test_and_set(lock, 0);
}

static __always_inline __u32 *source_count(struct ph_client_count *source, enum ph_counted what)
{
	return what == PH_COUNTED_HELLO ? &source->hellos : &source->flows;
}

/*
 * What there is of one client's address. Return: how many, this one included, or 0 when it cannot be counted; more than
 * @limit when there are that many already, and this one was not counted.
 */
__separate __u32 source_take(__u32 client, __u32 what, __u32 limit)
{
	struct ph_client_count one = { .flows = what != PH_COUNTED_HELLO, .hellos = what == PH_COUNTED_HELLO }, *source;
	__u32 *lock = source_lock(client), *count, result = 0;
	__be32 key = client;

	if (!lock)
		return 0;
	source = bpf_map_lookup_elem(&ph_sources, &key);
	if (source) {
		count = source_count(source, what);
		result = *count + 1;
		if (result <= limit)
			*count = result;
	} else if (!bpf_map_update_elem(&ph_sources, &key, &one, BPF_NOEXIST)) {
		result = 1;
	}
	source_unlock(lock);
	return result;
}

/* Return: 0, or -1 when it is still counted: to be tried again. */
__separate int source_give_back(__u32 client, __u32 what)
{
	__u32 *lock = source_lock(client), *count;
	struct ph_client_count *source;
	__be32 key = client;

	if (!lock)
		return -1;
	source = bpf_map_lookup_elem(&ph_sources, &key);
	if (source) {
		count = source_count(source, what);
		if (*count)
			--*count;
		if (!source->flows && !source->hellos)
			bpf_map_delete_elem(&ph_sources, &key);
	}
	source_unlock(lock);
	return 0;
}

static __always_inline void flow_uncount_source(struct ph_flow *flow, enum ph_counted what)
{
	if (flow->counted & what && !source_give_back(flow->splice.key.client, what))
		flow->counted &= ~what;
}

static __always_inline void flow_drop_hello(struct ph_flow *flow)
{
	if (!flow->hello)
		return;
	hello_give_back(flow->hello - 1);
	flow->hello = 0;
	flow_uncount_source(flow, PH_COUNTED_HELLO);
}

static __always_inline void flow_uncount(struct ph_flow *flow)
{
	flow_uncount_instance(flow);
	flow_uncount_source(flow, PH_COUNTED_SOURCE);
	flow_uncount_source(flow, PH_COUNTED_HELLO);
}

/* A map whose lock is not to be had refuses. Return: 0, or -1 when it is still there: to be tried again. */
static __always_inline int flow_unkey(struct ph_flow *flow)
{
	struct ph_client_key key = flow->splice.key;
	int err;			/* before Linux 6.4 the upper half of what map helpers return is 0 */

	if (!(flow->splice.flags & PH_FLOW_KEYED))
		return 0;
	err = bpf_map_delete_elem(&ph_clients, &key);
	if (err && err != -ENOENT)
		return -1;
	flow->splice.flags &= ~PH_FLOW_KEYED;
	return 0;
}

/* One that is still counted, or known, stays: sweep comes again. Who is given the slot waits for the lock. */
static __always_inline void flow_free(struct ph_flow *flow, __u32 slot)
{
	flow_drop_hello(flow);
	flow_uncount(flow);
	if (flow->counted || flow_unkey(flow))
		return;
	if (bpf_map_push_elem(&ph_free, &slot, 0))
		return;
	WRITE_ONCE(flow->splice.state, PH_FLOW_FREE);
	slot_set_unused(slot);
}

static __always_inline void flow_rest(struct ph_flow *flow, enum ph_flow_state state, enum ph_reason reason)
{
	flow->ended_ns = bpf_ktime_get_ns();
	flow->reason = reason;
	WRITE_ONCE(flow->splice.state, state);
	count_instance(flow, reason);
	flow_uncount(flow);
}

/* COLLECTING or BINDING: the client's packets go to a worker from now on. */
static __always_inline void flow_decline(struct ph_flow *flow, enum ph_reason reason)
{
	flow_drop_hello(flow);
	note_decline(flow->splice.key.client, flow->splice.key.client_port, reason);
	flow_rest(flow, PH_FLOW_DECLINED, reason);
	flow_event(flow, PH_EVENT_DECLINE, reason);
}

/* SPLICED: to ENDED or KILLED. */
static __always_inline void flow_end(struct ph_flow *flow, enum ph_flow_state state, enum ph_reason reason)
{
	load_end(flow);
	flow_rest(flow, state, reason);
	flow_event(flow, PH_EVENT_END, reason);
}

/* SPLICED or ENDED: whoever sends is answered with a reset from now on. Return: 1 if it was not over before. */
static __always_inline int flow_kill(struct ph_flow *flow, enum ph_reason reason)
{
	if (flow->splice.state == PH_FLOW_SPLICED) {
		flow_end(flow, PH_FLOW_KILLED, reason);
		return 1;
	}
	if (flow->splice.state == PH_FLOW_ENDED)
		WRITE_ONCE(flow->splice.state, PH_FLOW_KILLED);
	return 0;
}

/* ENDED by a reset, and yet it goes on: it counts as if it had not, whatever limits there are now. */
static __always_inline void flow_recount(struct ph_flow *flow)
{
	struct ph_gateway *gateway = gateway_config();

	flow_count_instance(flow);
	/* It may be counted still, if its address's lock was not to be had. */
	if (gateway && gateway->source_limit && !(flow->counted & PH_COUNTED_SOURCE) &&
	    source_take(flow->splice.key.client, PH_COUNTED_SOURCE, PH_LIMIT_NONE))
		flow->counted |= PH_COUNTED_SOURCE;
}

/* ENDED by a reset that was forged. */
static __always_inline void flow_revive(struct ph_flow *flow)
{
	(flow->ended_by_cvm ? &flow->cvm : &flow->client)->has_reset = 0;
	flow->splice.flags &= ~PH_FLOW_RESET;
	WRITE_ONCE(flow->splice.state, PH_FLOW_SPLICED);
	flow_recount(flow);
}

static __always_inline __u64 flow_last_ns(const struct ph_flow *flow)
{
	__u64 client = READ_ONCE(flow->client.last_ns), cvm = READ_ONCE(flow->cvm.last_ns);

	return client > cvm ? client : cvm;
}

/* Has the end that reset it, or in whose name it was, shown a sign of life (splice_watch()) so long after that? */
static __always_inline int flow_goes_on(const struct ph_flow *flow, __u64 after_ns)
{
	__u64 last = flow->ended_by_cvm ? READ_ONCE(flow->cvm.last_ns) : READ_ONCE(flow->client.last_ns);

	return flow->splice.flags & PH_FLOW_RESET && last > flow->ended_ns + after_ns;
}

static __always_inline int flow_reset_was_forged(const struct ph_flow *flow)
{
	return flow_goes_on(flow, PH_FLOW_REVIVE_MS * NSEC_PER_MSEC);
}

/*
 * ENDED, by a reset within what the CVM had not acknowledged yet, or behind which the client went on: it may have been
 * forged, and so may a SYN. One that is the client's comes again.
 */
static __always_inline int flow_may_go_on(const struct ph_flow *flow)
{
	if (!(flow->splice.flags & PH_FLOW_RESET) || flow->ended_by_cvm)
		return 0;
	return READ_ONCE(flow->client.last_ns) > flow->ended_ns ||
	       (flow->client.end != flow->cvm.ack &&
		bpf_ktime_get_ns() < flow->ended_ns + PH_FLOW_REVIVE_MS * NSEC_PER_MSEC);
}

static __always_inline __u64 flow_idle_ns(const struct ph_flow *flow, const struct ph_steer *steer)
{
	return flow->idle_ms ? flow->idle_ms * NSEC_PER_MSEC : steer->idle_ns;
}

/* A reset that came early, and all that it had overtaken; or one that could not be told at once (splice_end()). */
static __always_inline int way_has_reset(const struct ph_flow_way *way)
{
	return way->has_reset && way->end == way->reset;
}

/*
 * FIN and its acknowledgement both ways. Of two ends that are through at the same time, on two CPUs, each may miss what
 * the other has said, and neither says any more: sweep sees both.
 */
static __always_inline int ways_have_ended(const struct ph_flow_way *one, const struct ph_flow_way *other)
{
	return one->has_fin && other->has_fin && seq_reaches(one->ack, other->fin) && seq_reaches(other->ack, one->fin);
}

/* Both FINs came by. An end that is through with it may vanish without a word, and the last acknowledgement get lost. */
static __always_inline int flow_is_closing(const struct ph_flow *flow)
{
	return (flow->client.has_fin && flow->cvm.has_fin) || way_has_reset(&flow->client) || way_has_reset(&flow->cvm);
}

/* When the state's time is over. */
static __always_inline __u64 flow_due_ns(const struct ph_flow *flow, const struct ph_steer *steer)
{
	switch (flow->splice.state) {
	case PH_FLOW_COLLECTING:
		return flow->begun_ns + PH_COLLECT_TIMEOUT_MS * NSEC_PER_MSEC;
	case PH_FLOW_BINDING:
		return flow->begun_ns + (PH_COLLECT_TIMEOUT_MS + PH_BIND_TIMEOUT_MS) * NSEC_PER_MSEC;
	case PH_FLOW_SPLICED:
		if (ways_have_ended(&flow->client, &flow->cvm))
			return 0;
		return flow_last_ns(flow) + (flow_is_closing(flow) ? PH_FLOW_CLOSING_MS * NSEC_PER_MSEC
					     : flow_idle_ns(flow, steer) + PH_IDLE_GRACE_MS * NSEC_PER_MSEC);
	default:
		return flow->ended_ns + PH_FLOW_REST_MS * NSEC_PER_MSEC;
	}
}

static __always_inline void flow_expire(struct ph_flow *flow, __u32 slot)
{
	switch (flow->splice.state) {
	case PH_FLOW_COLLECTING:
		flow_decline(flow, PH_REASON_DECLINED_SLOW);
		return;
	case PH_FLOW_BINDING:
		flow_decline(flow, PH_REASON_DECLINED_UNANSWERED);
		return;
	case PH_FLOW_SPLICED:
		if (ways_have_ended(&flow->client, &flow->cvm)) {
			flow->ended_by_cvm = 0;
			flow_end(flow, PH_FLOW_ENDED, PH_REASON_CLOSED);
			return;
		}
		flow->ended_by_cvm = way_has_reset(&flow->cvm);
		if (way_has_reset(&flow->client) || flow->ended_by_cvm)
			flow_end(flow, PH_FLOW_ENDED, flow->ended_by_cvm ? PH_REASON_CVM_RESET : PH_REASON_CLIENT_RESET);
		else if (flow_is_closing(flow))
			flow_end(flow, PH_FLOW_ENDED, PH_REASON_CLOSED);
		else
			flow_end(flow, PH_FLOW_KILLED, PH_REASON_IDLE);
		return;
	case PH_FLOW_ENDED:
		if (flow_reset_was_forged(flow)) {
			flow_revive(flow);
			return;
		}
		flow_free(flow, slot);
		return;
	default:
		flow_free(flow, slot);
	}
}

enum flow_new {
	FLOW_NEW,			/* it is the caller's, locked, COLLECTING */
	FLOW_NEW_EXISTS,		/* somebody else was first */
	FLOW_NEW_FULL,
	FLOW_NEW_HELLOS,		/* the client has as many hellos here as it may have */
};

/* The insertion of the key is the claim: of two packets of a client's on two CPUs one gets the flow. */
static __always_inline enum flow_new flow_new(struct ph_steer *steer, const struct ph_client_key *key, __u32 *ret_slot)
{
	enum flow_new result = FLOW_NEW_FULL;
	struct ph_flow *flow;
	struct ph_ref ref;
	int err;			/* before Linux 6.4 the upper half of what map helpers return is 0 */

	flow = slot_claim(steer, &ref.slot);
	if (!flow)
		return FLOW_NEW_FULL;
	ref.generation = flow->splice.generation + 1;
	if (!ref.generation)
		ref.generation = 1;
	WRITE_ONCE(flow->splice.generation, ref.generation);
	barrier();
	flow->splice.key = *key;
	flow->splice.flags = 0;
	flow->splice.source = slot_address(steer, ref.slot);
	flow->splice.source_port = slot_port(ref.slot);
	flow->splice.cvm = 0;
	flow->splice.instance = (struct ph_ref){ 0 };
	__builtin_memset(&flow->client, 0, sizeof(flow->client));
	__builtin_memset(&flow->cvm, 0, sizeof(flow->cvm));
	flow->begun_ns = bpf_ktime_get_ns();
	flow->ended_ns = 0;
	flow->reason = 0;
	flow->counted = 0;
	flow->idle_ms = 0;
	flow->ended_by_cvm = 0;
	err = bpf_map_update_elem(&ph_clients, key, &ref, BPF_NOEXIST);
	if (!err) {
		flow->splice.flags = PH_FLOW_KEYED;
		slot_set_used(ref.slot);
		WRITE_ONCE(flow->splice.state, PH_FLOW_COLLECTING);
		*ret_slot = ref.slot;
		return FLOW_NEW;
	}
	if (err == -EEXIST)
		result = FLOW_NEW_EXISTS;
	bpf_map_push_elem(&ph_free, &ref.slot, 0);
	flow_unlock(flow);
	return result;
}

static __always_inline struct ph_flow *flow_find(const struct ph_client_key *key, __u32 *ret_slot)
{
	struct ph_ref *ref = bpf_map_lookup_elem(&ph_clients, key);
	struct ph_flow *flow;
	__u32 generation;

	if (!ref)
		return NULL;
	generation = ref->generation;
	*ret_slot = ref->slot;
	flow = flow_at(*ret_slot);
	if (!flow || READ_ONCE(flow->splice.generation) != generation || !key_equal(&flow->splice.key, key))
		return NULL;
	return flow;
}

/* A copy of what rewriting needs. Return: 0, or -1 when the flow is not in a state for it. */
static __always_inline int flow_snapshot(const struct ph_flow *flow, struct ph_splice *ret_splice)
{
	__u32 generation = READ_ONCE(flow->splice.generation);

	barrier();
	*ret_splice = flow->splice;
	barrier();
	if (READ_ONCE(flow->splice.generation) != generation || ret_splice->generation != generation)
		return -1;
	return ret_splice->state == PH_FLOW_SPLICED || ret_splice->state == PH_FLOW_ENDED ? 0 : -1;
}

#endif
