// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * gate - the first to see what comes in by the NIC, as XDP or in tc: whoever floods the gateway hurts only himself.
 *
 * Only what is for the gateway's own listening addresses and ports is judged; all else passes untouched. What is
 * attached stays with the device, lists expire here, and budgets are paid off here, so all of it goes on without phalad.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include <phala/gate.h>

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2
#define PACKET_OTHERHOST 3
#define VLAN_VID 0x0fff

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_gate);
} ph_gate SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_GATE_TARGETS_MAX);
	__type(key, struct ph_gate_target);
	__type(value, __u8);
} ph_gate_targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PH_GATE_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} ph_gate_reasons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PH_GATE_SOURCES_MAX);
	__type(key, struct ph_address);
	__type(value, struct ph_gate_source);
} ph_gate_sources SEC(".maps");

/* Nobody gets in here who does not hear what he is told, so no flood of spoofed packets makes it forget. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PH_GATE_PROVEN_MAX);
	__type(key, struct ph_address);
	__type(value, __u64);
} ph_gate_proven SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PH_GATE_CACHE_SLOTS);
	__type(key, __u32);
	__type(value, struct ph_gate_cached);
} ph_gate_cache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_GATE_PREFIXES_MAX);
	__type(key, struct ph_prefix);
	__type(value, struct ph_listed);
} ph_deny SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_GATE_PREFIXES_MAX);
	__type(key, struct ph_prefix);
	__type(value, struct ph_listed);
} ph_allow SEC(".maps");

#include "gate.h"

/* Counts what is to be counted. Return: as judge(). */
static __always_inline enum ph_gate_reason look(const struct frame *f, struct packet *p)
{
	__u32 key = judge(f, p);
	__u64 *count;

	if (key == GATE_PASS)
		return key;
	count = bpf_map_lookup_elem(&ph_gate_reasons, &key);
	if (count)
		++*count;
	return key;
}

/* What is in reach of it at once. */
#define FRAME_OF(context) \
	.ctx = (context), .data = (void *)(long)(context)->data, .data_end = (void *)(long)(context)->data_end

static __always_inline int judge_xdp(struct xdp_md *xdp)
{
	struct frame f = {
		FRAME_OF(xdp), .is_xdp = 1, .len = bpf_xdp_get_buff_len(xdp),
	};
	struct packet p = { 0 };
	enum ph_gate_reason reason = look(&f, &p);

	if (reason == PH_GATE_CHALLENGED)
		return answer_xdp(xdp, &p);
	return is_drop(reason) ? XDP_DROP : XDP_PASS;
}

/* It knows frames in several buffers, as large ones are: drivers would refuse it on them otherwise. */
SEC("xdp.frags")
int gate_xdp(struct xdp_md *xdp)
{
	return judge_xdp(xdp);
}

/*
 * Generic XDP copies the skb for a program that knows several buffers (skb_pp_cow_data(), Linux 6.9), and the copy has no
 * mac_len: tc, and steer there, would see it from its IP header on.
 */
SEC("xdp")
int gate_generic(struct xdp_md *xdp)
{
	return judge_xdp(xdp);
}

/*
 * A tag that was taken off makes it another device's packet. One that names no VLAN (VID 0: IEEE 802.1Q, a priority) does
 * not: the stack forgets it, and would take from there what is denied here. A frame for another MAC, which a NIC in
 * promiscuous mode hands up, is nobody's here: the stack drops it, and no answer is due.
 */
SEC("tc")
int gate_tc(struct __sk_buff *skb)
{
	struct frame f = {
		FRAME_OF(skb), .len = skb->len, .is_super = skb->gso_segs > 1,
	};
	enum ph_gate_reason reason;
	struct packet p = { 0 };

	if (skb->pkt_type == PACKET_OTHERHOST || (skb->vlan_present && skb->vlan_tci & VLAN_VID))
		return TC_ACT_UNSPEC;
	reason = look(&f, &p);
	if (reason == PH_GATE_CHALLENGED)
		return answer_tc(skb, &p);
	return is_drop(reason) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";
