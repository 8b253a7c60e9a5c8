/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * gate - what the gate's maps hold: the contract between phalad, the gate programs and phalactl.
 *
 *   map             type            key                  value              written by          read by
 *   ph_gate         array, mmapable 0                    struct ph_gate     manager, phalactl   gate, phalactl
 *   ph_gate_targets hash            struct ph_gate_target __u8              manager             gate, phalactl
 *   ph_gate_reasons array, per CPU  enum ph_gate_reason  __u64              gate                phalactl
 *   ph_gate_sources LRU hash        struct ph_address    struct ph_gate_source gate             gate, phalactl
 *   ph_gate_proven  LRU hash        struct ph_address    __u64 until_ns     gate                gate, phalactl
 *   ph_gate_cache   array, per CPU  slot                 struct ph_gate_cached gate             gate
 *   ph_deny         LPM trie        struct ph_prefix     struct ph_listed   phalactl, manager   gate, phalactl
 *   ph_allow        LPM trie        the same             the same           the same            the same
 *
 * All addresses are IPv6's; IPv4's are inside ::ffff:0:0/96 (RFC 4291, section 2.5.5.2), prefix lengths likewise.
 */
#ifndef PHALA_GATE_H
#define PHALA_GATE_H

#include "abi.h"

struct ph_address {
	__be32 words[4];
};

#define PH_ADDRESS_V4_BITS 96			/* before an IPv4 address */

/* Where the gateway may be reached. With port 0 only the address is said: it is one of those of other targets. */
struct ph_gate_target {
	struct ph_address address;
	__be16 port;
	__u8 protocol;				/* IPPROTO_TCP, or IPPROTO_UDP for the tunnel's */
	__u8 reserved;
};

/*
 * So much each second, and a burst: the time at which all that was let in is paid off may be so far ahead (the virtual
 * scheduling form of the token bucket, ITU-T I.371, annex A).
 */
struct ph_gate_budget {
	__u64 interval_ns;			/* what one costs; 0 is no budget */
	__u64 tolerance_ns;			/* the burst's cost */
};

enum ph_gate_budget_kind {
	PH_GATE_BUDGET_CONNECTIONS,		/* SYNs */
	PH_GATE_BUDGET_HELLOS,			/* packets that begin like a ClientHello */
	PH_GATE_BUDGET_HANDSHAKES,		/* WireGuard's initiations */
	PH_GATE_BUDGETS
};

enum ph_list_kind {
	PH_LIST_DENY,
	PH_LIST_ALLOW,				/* who is here is neither denied nor budgeted */
	PH_LISTS
};

#define PH_GATE_STAMP 3				/* when it was written, inode, bytes */

/* What userspace notes about a list. The rows are for the gate too: an empty list costs nothing. */
struct ph_gate_list {
	__u64 rows;				/* in the map, about: never 0 while there is one */
	__u64 expires_ns;			/* CLOCK_BOOTTIME: the first row that will; 0 is none */
	__u64 stamp[PH_GATE_STAMP];		/* of the file that the map was made equal to */
};

struct ph_gate {
	__u32 generation;			/* of both lists: what is cached of another one is void */
	__u32 reserved;
	struct ph_gate_budget budgets[PH_GATE_BUDGETS];
	struct ph_address source4;		/* masks: what of an address is a source */
	struct ph_address source6;
	struct ph_gate_list lists[PH_LISTS];
	struct ph_gate_budget unproven;		/* SYNs of all sources that have not been heard of */
	__u64 unproven_due_ns;			/* of these; the gate writes it */
	__u64 secret[2];			/* of the cookies; never shown */
};

struct ph_gate_source {
	__u64 due_ns[PH_GATE_BUDGETS];		/* CLOCK_BOOTTIME at which all of it is paid off */
	__u64 dropped;				/* over budget */
};

struct ph_prefix {
	__u32 bits;				/* 0-128; an IPv4 prefix has 96 more than people say */
	struct ph_address address;
};

struct ph_listed {
	__u64 until_ns;				/* CLOCK_BOOTTIME; 0 is for ever */
	__u32 bits;				/* its own: a shorter one counts again once this has expired */
	__u32 reserved;
};

/* What the lists said about an address. */
struct ph_gate_cached {
	struct ph_address address;
	__u32 generation;
	__u32 verdict;				/* enum ph_gate_listing */
	__u64 until_ns;				/* of the row that decided; 0 is for ever */
};

enum ph_gate_listing {
	PH_GATE_UNLISTED,
	PH_GATE_LISTED_DENY,
	PH_GATE_LISTED_ALLOW,
};

PH_ABI_SIZE(ph_address, 16);
PH_ABI_SIZE(ph_gate_target, 20);
PH_ABI_SIZE(ph_gate_list, 40);
PH_ABI_SIZE(ph_gate, 8 + 48 + 32 + 80 + 40);
PH_ABI_AT(ph_gate, source4, 56);
PH_ABI_AT(ph_gate, lists, 88);
PH_ABI_AT(ph_gate, unproven, 168);
PH_ABI_SIZE(ph_gate_source, 32);
PH_ABI_SIZE(ph_prefix, 20);
PH_ABI_SIZE(ph_listed, 16);
PH_ABI_SIZE(ph_gate_cached, 32);

#endif
