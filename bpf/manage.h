/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * manage - what phalad has done by BPF_PROG_TEST_RUN: the timer set, flows ended.
 *
 * Here and not in userspace, because timer and locks are out of its reach.
 */
#ifndef PH_BPF_MANAGE_H
#define PH_BPF_MANAGE_H

#include "bind.h"
#include "sweep.h"

/* The way the hello came: bpf_fib_lookup() knows no way where nothing is forwarded. */
__separate int kill_tell_client(struct __sk_buff *skb, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	__be16 protocol = bpf_htons(ETH_P_IP);
	struct scratch *s = scratch_of_manager();
	const struct ph_client_key *key;

	if (!flow || !s)
		return -1;
	key = &flow->splice.key;
	emit_headers(s, key->gateway, key->client, key->gateway_port, key->client_port);
	emit_numbers(s, flow->cvm.end, flow->cvm.ack, TCP_HLEN, EMIT_RST | EMIT_ACK, 0);
	if (emit(skb, ETH_HLEN, s, TCP_HLEN, 0, 0) || bpf_skb_store_bytes(skb, 0, flow->nic_mac, 12, 0) ||
	    bpf_skb_store_bytes(skb, 12, &protocol, 2, 0))
		return -1;
	return bpf_clone_redirect(skb, flow->splice.nic, 0);
}

__separate int kill_tell_cvm(struct __sk_buff *skb, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	struct scratch *s = scratch_of_manager();
	const struct ph_splice *splice;

	if (!flow || !s)
		return -1;
	splice = &flow->splice;
	emit_headers(s, splice->source, splice->cvm, splice->source_port, splice->cvm_port);
	emit_numbers(s, flow->client.end + splice->seq_to_cvm, flow->client.ack - splice->seq_to_client, TCP_HLEN,
		     EMIT_RST | EMIT_ACK, 0);
	if (emit(skb, ETH_HLEN, s, TCP_HLEN, 0, 0))
		return -1;
	return copy_to_tunnel(skb, flow->mac);
}

struct kill_run {
	struct __sk_buff *skb;
	__u32 what, slot, generation;
	struct slot_walk walk;			/* of the one flow, or all */
	const struct ph_steer *steer;
	__u64 now_ns;
	enum ph_reason reason;
	__u32 count, again;
};

static __always_inline int kill_applies(const struct kill_run *run, const struct ph_flow *flow)
{
	if (run->what == PH_KILL_INSTANCE)
		return flow->splice.instance.slot == run->slot && flow->splice.instance.generation == run->generation;
	if (run->what == PH_KILL_IDLE)
		return flow->splice.state == PH_FLOW_SPLICED &&
		       flow_last_ns(flow) + flow_idle_ns(flow, run->steer) <= run->now_ns;
	return run->what == PH_KILL_ALL || flow->splice.generation == run->generation;
}

static long kill_step(__u32 index, void *arg)
{
	struct kill_run *run = arg;
	__u32 slot = slot_walk_on(&run->walk);
	struct ph_flow *flow = flow_at(slot);
	int ended = 0;

	(void)index;
	if (!flow)
		return run->walk.next >= run->walk.end;
	if (READ_ONCE(flow->splice.state) == PH_FLOW_FREE)
		return 0;
	if (!flow_lock(flow)) {
		run->again = PH_KILL_AGAIN;
		return 0;
	}
	if (kill_applies(run, flow)) {
		if (flow->splice.state == PH_FLOW_BINDING || flow->splice.state == PH_FLOW_COLLECTING)
			flow_decline(flow, run->reason);
		else
			ended = flow_kill(flow, run->reason);
	}
	flow_unlock(flow);
	if (ended) {
		kill_tell_client(run->skb, slot);
		kill_tell_cvm(run->skb, slot);
		run->count++;
	}
	return 0;
}

/* Return: 0, or 1 when there is no timer. */
SEC("tc")
int steer_begin(struct __sk_buff *skb)
{
	return sweep_begin() ? 1 : 0;
}

/* Return: how many flows it ended, and PH_KILL_AGAIN. */
SEC("tc")
int steer_kill(struct __sk_buff *skb)
{
	struct ph_steer *steer = steer_config();
	struct kill_run run = {
		.skb = skb,
		.what = skb->cb[0],
		.slot = skb->cb[1],
		.generation = skb->cb[2],
		.reason = skb->cb[3] < PH_REASON_COUNT ? skb->cb[3] : PH_REASON_KILLED,
	};

	if (!steer)
		return 0;
	run.steer = steer;
	run.now_ns = bpf_ktime_get_ns();
	run.walk = (struct slot_walk){ 0, PH_FLOWS_MAX };
	if (run.what == PH_KILL_FLOW)
		run.walk = (struct slot_walk){ run.slot, run.slot + 1 };
	bpf_loop(PH_FLOWS_MAX, kill_step, &run, 0);
	return run.count | run.again;
}

#endif
