/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * guard - the count of packets on the tunnel device: for all, and for each CVM, what was dropped and why.
 *
 * For guard itself, and for steer, which drops a CVM's packets where guard does not see them. What is dropped is told
 * to whoever watches, for each CVM so often and no oftener. When nobody does, that costs a look at the clock.
 *
 * Include after the kernel's types, bpf/bpf_helpers.h and bpf/bpf_endian.h.
 */
#ifndef PH_BPF_GUARD_H
#define PH_BPF_GUARD_H

#include "guard_maps.h"

#define GUARD_SECOND_NS 1000000000ULL

#ifndef __separate
#define __separate __attribute__((noinline))	/* verified by itself, once (packet.h) */
#endif

static __always_inline void guard_count(enum ph_guard_reason reason)
{
	__u32 key = reason;
	__u64 *count = bpf_map_lookup_elem(&ph_guard, &key);

	if (count)
		++*count;
}

static __always_inline struct ph_guard_cvm *guard_cvm(__be32 address)
{
	struct ph_guard_cvm *cvm = bpf_map_lookup_elem(&ph_guard_cvms, &address);

	if (cvm)
		return cvm;
	address = 0;
	return bpf_map_lookup_elem(&ph_guard_cvms, &address);
}

static __always_inline int guard_knows(__be32 address)
{
	return address && bpf_map_lookup_elem(&ph_guard_cvms, &address);
}

static __always_inline int guard_is_watched(__u64 now)
{
	__u32 zero = 0;
	struct ph_guard_watch *watch = bpf_map_lookup_elem(&ph_guard_watch, &zero);

	return watch && now <= watch->until_ns;
}

/* Two CPUs at the turn of a second may both begin it: then there are a few more. */
static __always_inline int guard_may_tell(struct ph_guard_cvm *cvm, __u64 now)
{
	if (now - cvm->second_ns >= GUARD_SECOND_NS) {
		cvm->second_ns = now;
		cvm->events = 0;
	}
	return cvm->events < PH_GUARD_EVENTS_S && __sync_fetch_and_add(&cvm->events, 1) < PH_GUARD_EVENTS_S;
}

static __always_inline void guard_describe(struct __sk_buff *skb, __u32 l2, const struct iphdr *ip,
					   struct ph_guard_event *event)
{
	__u32 at = l2 + ip->ihl * 4;

	event->len = skb->len - l2;
	event->ethertype = skb->protocol;
	event->from = ip->saddr;
	event->to = ip->daddr;
	event->protocol = ip->protocol;
	event->from_port = event->to_port = 0;
	event->detail = 0;
	if (!ip->version || ip->frag_off & bpf_htons(0x1fff))	/* not the first fragment: no header follows */
		return;
	if (ip->protocol == IPPROTO_ICMP)
		bpf_skb_load_bytes(skb, at, &event->detail, 1);
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return;
	bpf_skb_load_bytes(skb, at, &event->from_port, 4);
	if (ip->protocol == IPPROTO_TCP)
		bpf_skb_load_bytes(skb, at + 13, &event->detail, 1);
}

/**
 * guard_drop() - count a packet that is to be dropped, and tell it.
 * @l2: bytes before the IP header.
 * @reason: enum ph_guard_reason.
 *
 * It is its sender's, a CVM's, or with PH_GUARD_NOT_OURS that of the CVM it was for. Return: TC_ACT_SHOT.
 */
__separate int guard_drop(struct __sk_buff *skb, __u32 l2, __u32 reason)
{
	struct ph_guard_event *event;
	struct ph_guard_cvm *cvm;
	struct iphdr ip = { 0 };
	__u64 now, count;

	guard_count(reason);
	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, l2, &ip, sizeof(ip)))
		__builtin_memset(&ip, 0, sizeof(ip));
	cvm = guard_cvm(reason == PH_GUARD_NOT_OURS ? ip.daddr : ip.saddr);
	if (!cvm || reason >= PH_GUARD_MAX)
		return TC_ACT_SHOT;
	now = bpf_ktime_get_coarse_ns();
	count = __sync_fetch_and_add(&cvm->drops[reason].count, 1) + 1;
	cvm->drops[reason].seen_ns = now;
	if (!guard_is_watched(now) || !guard_may_tell(cvm, now))
		return TC_ACT_SHOT;
	event = bpf_ringbuf_reserve(&ph_guard_events, sizeof(*event), 0);
	if (!event)
		return TC_ACT_SHOT;
	event->now_ns = now;
	event->count = count;
	event->instance = cvm->instance;
	event->reason = reason;
	guard_describe(skb, l2, &ip, event);
	bpf_ringbuf_submit(event, 0);
	return TC_ACT_SHOT;
}

#endif
