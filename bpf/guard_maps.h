/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * guard_maps - what guard counts and tells, pinned as the maps of maps.h are.
 */
#ifndef PH_BPF_GUARD_MAPS_H
#define PH_BPF_GUARD_MAPS_H

#include <phala/abi.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PH_GUARD_MAX);
	__type(key, __u32);
	__type(value, __u64);
} ph_guard SEC(".maps");

/*
 * Not preallocated: an element is some 400 bytes. One that is removed may be another's at once, but only once the
 * manager has registered that one, and since the removal no packet came from here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PH_INSTANCES_MAX + 1);
	__type(key, __be32);
	__type(value, struct ph_guard_cvm);
} ph_guard_cvms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_guard_watch);
} ph_guard_watch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} ph_guard_events SEC(".maps");

#endif
