/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * abi - what the maps hold: the whole contract between phalad, the BPF programs and phalactl.
 *
 * A change of layout or meaning is a new PH_ABI_VERSION, and maps of another version are never touched. Every type has
 * its size and offsets asserted below, by both compilers. Who writes what:
 *
 *   map          type             key           value              written by   read by
 *   ph_gateway   array, mmapable  0             struct ph_gateway  manager      all
 *   ph_instances array, mmapable  slot          struct ph_instance manager      all
 *   ph_ids       hash             ph_id_key     struct ph_id       manager      all
 *   ph_domains   hash             ph_domain_key __u32 index        manager      steer, phalactl
 *   ph_workers   array, mmapable  worker index  struct ph_worker   that worker  all
 *
 * Readers take no lock. An instance is trusted only if its generation is that of the reference both before and after
 * its fields were read, and its own ids answer to the name that was asked for (pick.h): an element of a hash map may be
 * another tenant's by the time it is read.
 */
#ifndef PHALA_ABI_H
#define PHALA_ABI_H

#ifndef __VMLINUX_H__			/* BPF programs that know the kernel's own types bring these along */
#include <linux/types.h>
#endif

#include "limits.h"
#include "reason.h"

#define PH_ABI_VERSION 1

struct ph_id_key {
	char id[PH_ID_SIZE];		/* zero padded */
};

struct ph_domain_key {
	char name[PH_NAME_SIZE];	/* lower case, no leading or trailing dot, zero padded */
};

/* Names an instance without holding it: a slot is reused, a generation never. */
struct ph_ref {
	__u32 slot;
	__u32 generation;
};

enum ph_id_kind {
	PH_ID_APP = 1,
	PH_ID_INSTANCE = 2,
};

struct ph_id {
	__u32 kind;			/* enum ph_id_kind */
	__u32 count;			/* valid refs; 1 for an instance */
	struct ph_ref refs[PH_APP_INSTANCES_MAX];
};

enum ph_instance_state {
	PH_INSTANCE_FREE = 0,
	PH_INSTANCE_READY = 1,
	PH_INSTANCE_DRAINING = 2,	/* keeps what it has, gets nothing new */
};

struct ph_instance {
	__u32 generation;		/* 0 while the slot is free or being rewritten */
	__u32 state;			/* enum ph_instance_state */
	__be32 address;			/* inside the tunnel */
	__u32 reserved;
	__u64 handshake_ns;		/* CLOCK_BOOTTIME at which the last handshake was seen; 0 is never */
	__u64 handshake_wall_ns;	/* WireGuard's own stamp of it (wall clock): only ever compared for being equal */
	char app_id[PH_ID_SIZE];
	char instance_id[PH_ID_SIZE];
};

enum ph_gateway_flags {
	PH_GATEWAY_EXTERNAL = 1,	/* somebody else's tunnel: every instance counts as healthy */
};

struct ph_gateway {
	__u32 abi_version;
	__u32 flags;			/* enum ph_gateway_flags */
	__u64 health_now_ns;		/* CLOCK_BOOTTIME, written each second; frozen while no manager lives */
	__u64 healthy_for_ns;
	__u64 manager_grace_ns;
	__u32 tunnel_ifindex;		/* 0 while there is no tunnel device */
	__u32 workers;			/* how many of ph_workers are in use */
};

struct ph_worker {
	__u64 heartbeat_ns;		/* CLOCK_BOOTTIME, written each second */
	__u32 pid;
	__u32 active;			/* connections now */
	__u64 bytes_from_clients;	/* application bytes relayed */
	__u64 bytes_from_cvms;
	__u64 counters[PH_REASONS_MAX];	/* by enum ph_reason */
};

#define PH_ABI_SIZE(type, size) _Static_assert(sizeof(struct type) == (size), "ABI: size of " #type)
#define PH_ABI_AT(type, field, at) \
	_Static_assert(__builtin_offsetof(struct type, field) == (at), "ABI: place of " #type "." #field)

PH_ABI_SIZE(ph_id_key, 64);
PH_ABI_SIZE(ph_domain_key, 256);
PH_ABI_SIZE(ph_ref, 8);
PH_ABI_SIZE(ph_id, 8 + 8 * PH_APP_INSTANCES_MAX);
PH_ABI_AT(ph_id, refs, 8);
PH_ABI_SIZE(ph_instance, 160);
PH_ABI_AT(ph_instance, handshake_ns, 16);
PH_ABI_AT(ph_instance, app_id, 32);
PH_ABI_AT(ph_instance, instance_id, 96);
PH_ABI_SIZE(ph_gateway, 40);
PH_ABI_AT(ph_gateway, health_now_ns, 8);
PH_ABI_SIZE(ph_worker, 32 + 8 * PH_REASONS_MAX);
PH_ABI_AT(ph_worker, counters, 32);
_Static_assert((int)PH_REASON_COUNT <= PH_REASONS_MAX, "ABI: more reasons than counters");

#endif
