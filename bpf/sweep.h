/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sweep - ends flows whose time is over, by one timer that looks at a part of the table at each turn.
 *
 * One, because a timer takes memory when it is first set, and from Linux 6.18 on it may not get it in a packet's path: a
 * timer for each flow failed after some 150. So it is set once, by phalad, and a connection costs no timer at all. It
 * goes on when phalad is gone, as long as the maps are pinned.
 */
#ifndef PH_BPF_SWEEP_H
#define PH_BPF_SWEEP_H

#include "flow.h"

#define CLOCK_MONOTONIC 1
#define ENOMEM 12
#define SWEEP_TRIES 16

static __always_inline struct ph_sweep *sweep_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ph_sweep, &zero);
}

/* Will flows end? */
static __always_inline int sweep_lives(void)
{
	struct ph_sweep *sweep = sweep_get();

	/* The last look may be later than our own at the clock. */
	return sweep && bpf_ktime_get_ns() < READ_ONCE(sweep->swept_ns) + PH_SWEEP_DEAD_MS * NSEC_PER_MSEC;
}

struct sweep_run {
	const struct ph_steer *steer;
	__u64 now_ns;
	struct slot_walk walk;
};

static long sweep_step(__u32 index, void *arg)
{
	struct sweep_run *run = arg;
	__u32 slot = slot_walk_on(&run->walk);
	struct ph_flow *flow = flow_at(slot);

	(void)index;
	if (!flow)
		return run->walk.next >= run->walk.end;
	if (READ_ONCE(flow->splice.state) == PH_FLOW_FREE || flow_due_ns(flow, run->steer) > run->now_ns ||
	    !flow_lock(flow))
		return 0;
	if (flow->splice.state != PH_FLOW_FREE && flow_due_ns(flow, run->steer) <= run->now_ns)
		flow_expire(flow, slot);
	flow_unlock(flow);
	return 0;
}

static int sweep_turn(void *map, __u32 *key, struct ph_sweep *sweep)
{
	__u32 end = sweep->next + PH_FLOWS_MAX / PH_SWEEP_PARTS;
	struct sweep_run run = { .steer = steer_config(), .now_ns = bpf_ktime_get_ns(), .walk = { sweep->next, end } };

	(void)map;
	(void)key;
	if (run.steer)
		bpf_loop(PH_FLOWS_MAX / PH_SWEEP_PARTS, sweep_step, &run, 0);
	sweep->next = end % PH_FLOWS_MAX;
	sweep->swept_ns = bpf_ktime_get_ns();
	bpf_timer_start(&sweep->timer, PH_SWEEP_MS * NSEC_PER_MSEC, 0);
	return 0;
}

/* Sets the timer, or gives the one that is there this program's code. Return: 0 or -1. */
static __always_inline int sweep_begin(void)
{
	struct ph_sweep *sweep = sweep_get();

	if (!sweep)
		return -1;
	for (int i = 0; i < SWEEP_TRIES; i++)
		if (bpf_timer_init(&sweep->timer, &ph_sweep, CLOCK_MONOTONIC) != -ENOMEM)
			break;
	if (bpf_timer_set_callback(&sweep->timer, sweep_turn) ||
	    bpf_timer_start(&sweep->timer, PH_SWEEP_MS * NSEC_PER_MSEC, 0))
		return -1;
	sweep->swept_ns = bpf_ktime_get_ns();
	return 0;
}

#endif
