/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * maps - the maps of phala/abi.h, as every program here sees them.
 *
 * They are pinned by name in phalad's BpfDir, by phalad itself (user/maps.c) and not by libbpf's pinning: loading an
 * object only to try its programs must leave no pin behind. A program that is to share them is loaded with
 * bpf_map__reuse_fd(). Include after the kernel's types (vmlinux.h or linux/bpf.h) and bpf/bpf_helpers.h.
 */
#ifndef PH_BPF_MAPS_H
#define PH_BPF_MAPS_H

#include <phala/abi.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_gateway);
} ph_gateway SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PH_INSTANCES_MAX);
	__type(key, __u32);
	__type(value, struct ph_instance);
} ph_instances SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PH_WORKERS_MAX);
	__type(key, __u32);
	__type(value, struct ph_worker);
} ph_workers SEC(".maps");

/* Not preallocated: room for PH_IDS_MAX would be 80 MB on a gateway with ten CVMs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_IDS_MAX);
	__type(key, struct ph_id_key);
	__type(value, struct ph_id);
} ph_ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_DOMAINS_MAX);
	__type(key, struct ph_domain_key);
	__type(value, __u32);
} ph_domains SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_steer);
} ph_steer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PH_FLOWS_MAX);
	__type(key, __u32);
	__type(value, struct ph_flow);
} ph_flows SEC(".maps");

/* Which slots are in use. Who goes through all flows looks here first, and not at 100 MB of table. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PH_FLOWS_MAX / PH_SLOTS_WORD);
	__type(key, __u32);
	__type(value, __u64);
} ph_used SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_sweep);
} ph_sweep SEC(".maps");

/* Plain, never LRU: a flood must not evict somebody's connection. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PH_FLOWS_MAX);
	__type(key, struct ph_client_key);
	__type(value, struct ph_ref);
} ph_clients SEC(".maps");

/* First in, first out: a slot, and so a port, rests as long as it can. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, PH_FLOWS_MAX);
	__type(value, __u32);
} ph_free SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PH_HELLOS_MAX);
	__type(key, __u32);
	__type(value, struct ph_hello_store);
} ph_hellos SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, PH_HELLOS_MAX);
	__type(value, __u32);
} ph_free_hellos SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PH_INSTANCES_MAX);
	__type(key, __u32);
	__type(value, struct ph_load);
} ph_loads SEC(".maps");

/* Elements are taken away with the last of what they count, under the lock of their address, so that none is counted in vain. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_FLOWS_MAX);
	__type(key, __be32);
	__type(value, struct ph_client_count);
} ph_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PH_SOURCE_LOCKS);
	__type(key, __u32);
	__type(value, __u32);
} ph_source_locks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_RELAYED_MAX);
	__type(key, struct ph_relayed_key);
	__type(value, __u32);
} ph_relayed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PH_DECLINES_MAX);
	__type(key, struct ph_decline_key);
	__type(value, struct ph_decline);
} ph_declines SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PH_REASONS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} ph_reasons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ph_events SEC(".maps");

#endif
