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
 *   ph_steer     array, mmapable  0             struct ph_steer    manager      steer, phalactl
 *   ph_flows     array            flow slot     struct ph_flow     steer        steer, phalactl
 *   ph_used      array            slot / 64     __u64, a bit a slot steer        steer, phalactl
 *   ph_clients   hash             ph_client_key struct ph_ref      steer        steer, phalactl
 *   ph_free      queue                          __u32 flow slot    steer        steer
 *   ph_hellos    array            hello slot    struct ph_hello_store steer     steer
 *   ph_free_hellos queue                        __u32 hello slot   steer        steer
 *   ph_sweep     array            0             struct ph_sweep    steer        steer
 *   ph_loads     array, mmapable  instance slot struct ph_load     steer, manager all
 *   ph_sources   hash             __be32 client struct ph_client_count steer        steer, workers, phalactl
 *   ph_source_locks array         any           __u32              steer        steer
 *   ph_relayed   hash             ph_relayed_key __u32 connections workers      steer, workers, phalactl
 *   ph_declines  LRU hash         ph_decline_key struct ph_decline steer      workers, phalactl
 *   ph_reasons   array, per CPU   enum ph_reason __u64             steer        phalactl
 *   ph_events    ring buffer                    struct ph_event    steer        phalactl
 *   ph_guard     array, per CPU   enum ph_guard_reason __u64       guard, steer all
 *   ph_guard_cvms hash            __be32 address struct ph_guard_cvm manager makes and removes, guard and steer count
 *   ph_guard_watch array, mmapable 0            struct ph_guard_watch phalactl  guard, steer
 *   ph_guard_events ring buffer                 struct ph_guard_event guard, steer phalactl
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

#include "hello.h"
#include "limits.h"
#include "name.h"
#include "reason.h"

#define PH_ABI_VERSION 4

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
	__u32 idle_ms;			/* the app's own time-out; 0 is the gateway's. An instance's are its app's */
	__u32 flow_limit;		/* the app's own; 0 is the gateway's, PH_LIMIT_NONE none at all */
	struct ph_ref refs[PH_APP_INSTANCES_MAX];
};

#define PH_LIMIT_NONE 0xffffffff

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
	__u32 app_limit;		/* connections to one app, on either path; 0 is no limit */
	__u32 source_limit;		/* the same of one client's address */
};

struct ph_worker {
	__u64 heartbeat_ns;		/* CLOCK_BOOTTIME, written each second */
	__u32 pid;
	__u32 active;			/* connections now */
	__u64 bytes_from_clients;	/* application bytes relayed */
	__u64 bytes_from_cvms;
	__u64 counters[PH_REASONS_MAX];	/* by enum ph_reason */
	__u8 reserved[PH_WORKER_SIZE - 32 - 8 * PH_REASONS_MAX];	/* a page: who may write one may write all of it */
};

/* What steer is told, and the two counters behind which its never-used slots begin. */
struct ph_steer {
	__u32 flags;			/* enum ph_steer_flags */
	__u32 slots;			/* flow slots in use: a power of two, 0 while there is no source address */
	__u32 source;			/* first source address towards CVMs, host order: PH_FLOW_PORTS slots each */
	__u32 tunnel_mtu;
	__u32 tries;			/* instances tried for one connection, at most PH_BIND_TRIES_MAX */
	__u32 spare;
	__be16 ports[PH_LISTEN_MAX];	/* where the gateway listens; 0 is none */
	__u32 fresh;			/* flow slots from here on were never used */
	__u32 fresh_hellos;		/* the same of hello slots */
	__u64 idle_ns;			/* no packet either way */
	__u64 watch_until_ns;		/* CLOCK_MONOTONIC: until then somebody reads ph_events */
	__u8 tunnel_mac[6];		/* of a layer-2 tunnel device */
	__u8 reserved[2];
	__u64 secret[4];		/* for sequence numbers, timestamps and ports; never shown */
};

enum ph_steer_flags {
	PH_STEER_ON = 1,
};

/* The client's side of a flow, as its packets have it. */
struct ph_client_key {
	__be32 client;
	__be32 gateway;
	__be16 client_port;
	__be16 gateway_port;
};

enum ph_flow_state {
	PH_FLOW_FREE = 0,
	PH_FLOW_COLLECTING = 1,		/* part of a ClientHello is held; nothing of it was acknowledged */
	PH_FLOW_BINDING = 2,		/* a SYN is out to an instance */
	PH_FLOW_SPLICED = 3,		/* packets are rewritten, either way */
	PH_FLOW_ENDED = 4,		/* both ends know; stragglers are still rewritten */
	PH_FLOW_KILLED = 5,		/* the gateway ended it; whoever sends is answered with RST */
	PH_FLOW_DECLINED = 6,		/* a worker's: the client's packets are passed on */
};

enum ph_flow_flags {
	PH_FLOW_REQUEST = 1,		/* the kernel still has the request sock; the client's next packet frees it */
	PH_FLOW_TIMESTAMPS = 2,
	PH_FLOW_SACK = 4,
	PH_FLOW_SCALING = 8,
	PH_FLOW_ECN = 16,
	PH_FLOW_KEYED = 32,		/* ph_clients leads here */
	PH_FLOW_BY_INSTANCE = 64,	/* the name had an instance-id */
	PH_FLOW_RESET = 128,		/* ended by RST, which may yet prove forged */
};

/*
 * What rewriting needs. It does not change while the state is SPLICED or ENDED, and state leaves these before
 * generation changes, and that before anything else: a copy is whole if generation is the same before and after.
 */
struct ph_splice {
	__u32 generation;
	__u8 state;			/* enum ph_flow_state */
	__u8 flags;			/* enum ph_flow_flags */
	__u8 client_scale;		/* of the windows that the client sends */
	__u8 cvm_scale;
	__s8 shift_to_client;		/* left, of windows; negative is right */
	__s8 shift_to_cvm;
	__u16 cvm_mtu;			/* the largest IP packet the CVM takes */
	struct ph_client_key key;
	__be32 cvm;
	__be32 source;			/* the gateway's address and port towards the CVM; the slot says both */
	__be16 cvm_port;
	__be16 source_port;
	__u32 seq_to_cvm;		/* added to the client's sequence numbers, taken off the CVM's acknowledgements */
	__u32 seq_to_client;		/* the same the other way round */
	__u32 time_to_cvm;		/* timestamps likewise */
	__u32 time_to_client;
	struct ph_ref instance;
	__u32 nic;			/* ifindex by which the client came in */
};

/* What one end has sent. Sequence numbers are as the client knows them. */
struct ph_flow_way {
	__u64 packets;
	__u64 bytes;			/* of payload */
	__u64 last_ns;			/* CLOCK_MONOTONIC, coarse: the last packet in its window; after its RST, sign of life */
	__u32 end;			/* behind the highest byte it sent */
	__u32 ack;			/* the highest it acknowledged */
	__u32 window_end;		/* the highest it allowed */
	__u32 fin;			/* end behind its FIN, if has_fin */
	__u16 has_fin;
	__u16 has_reset;
	union {
		__u32 first_time;	/* the CVM's, until it says more: TSval of its SYN-ACK, all that can be echoed */
		__u32 reset;		/* has_reset: that of one that came before its data or was missed; of an end that has reset it: its end then */
	};
	__u64 told_packets;		/* what of it is in ph_load already */
	__u64 told_bytes;
};

/* Where a flow is counted, until it is over. */
enum ph_counted {
	PH_COUNTED_INSTANCE = 1,	/* ph_load.active */
	PH_COUNTED_SOURCE = 2,		/* ph_client_count.flows */
	PH_COUNTED_HELLO = 4,		/* ph_client_count.hellos, while one is held */
};

/* What one client has. There is an element just while any of it is not 0. */
struct ph_client_count {
	__u32 flows;			/* if there is a limit of them */
	__u32 hellos;
};

struct ph_flow {
	struct ph_splice splice;
	struct ph_flow_way client;
	struct ph_flow_way cvm;
	__u64 begun_ns;			/* CLOCK_MONOTONIC */
	__u64 ended_ns;
	__u32 lock;			/* held while state, flags or the hello change */
	__u32 hello;			/* hello slot + 1, or 0 */
	__u32 client_isn;
	union {
		__u32 gateway_isn;	/* until it is spliced */
		__u32 other_end;	/* once one end has reset it: the other's end then */
	};
	__u8 reason;			/* enum ph_reason, once it is over or declined */
	__u8 domain;			/* index */
	__u8 ended_by_cvm;
	__u8 counted;			/* enum ph_counted */
	__u8 mac[12];			/* layer-2 tunnel: destination and source towards the CVM */
	__u8 nic_mac[12];		/* the same towards the client, as its hello came */
	__u32 idle_ms;			/* its app's own time-out; 0 is the gateway's */
};

/* The one timer, by which flows end when their time is over. */
struct ph_sweep {
#ifdef __bpf__
	struct bpf_timer timer;
#else
	__u64 timer[2];
#endif
	__u64 swept_ns;			/* CLOCK_MONOTONIC of its last turn: if that is old, there is no timer any more */
	__u32 next;			/* flow slot */
	__u32 reserved;
};

/* A hello while it is collected and until the CVM has it, and what its request sock said. */
struct ph_hello_store {
	struct ph_hello walk;
	struct ph_name_walk name;
	__u32 len;			/* bytes there are from the first one on */
	__u32 packets;
	__u32 piece_count;
	struct {
		__u32 from, to;
	} pieces[PH_HELLO_PIECES];	/* in order, apart from each other */
	__u32 tried[PH_BIND_TRIES_MAX];	/* generations of the instances that had their turn */
	__u32 tries;
	__u32 client_time;		/* TSval of the hello */
	__u32 client_echo;		/* TSecr: the last TSval that the client had of the gateway */
	__u32 time_offset;		/* of the gateway's TSval to the client */
	__u32 gateway_scale;
	__u32 client_isn;
	__u32 gateway_isn;
	__u8 client_scale;
	__u8 flags;			/* enum ph_flow_flags: options agreed */
	__u8 queue_fills;
	__u8 reserved;
	__u32 domain;			/* index of the base domain */
	__u32 mss;			/* the client's, or less */
	__u32 window;			/* the client's, unscaled */
	__u64 turn_ns;			/* when this instance's turn began */
	__u8 data[2 * PH_HELLO_STREAM_BPF_MAX];	/* of which half is used: the verifier adds two bounds */
};

/*
 * Flows of one instance. The manager begins it anew before it lets anybody know of the generation: from a packet's path
 * that would not be safe.
 */
struct ph_load {
	union {
		struct {
			__u32 generation;
			__u32 active;	/* from the pick on */
		};
		__u64 whose;		/* both: none is changed without a look at the other */
	};
	__u64 begun;
	__u64 bytes_from_clients;	/* of flows that are over */
	__u64 bytes_from_cvms;
	__u64 packets_from_clients;
	__u64 packets_from_cvms;
	__u64 reasons[PH_LOAD_REASONS_MAX];	/* by enum ph_load_reason */
};

/*
 * What one worker carries, by what is limited. Each writes its own keys, and takes away what a dead one of its index left.
 */
enum ph_relayed_kind {
	PH_RELAYED_APP = 1,
	PH_RELAYED_SOURCE = 2,
};

struct ph_relayed_key {
	__u32 worker;
	__u32 kind;			/* enum ph_relayed_kind */
	char id[PH_ID_SIZE];		/* app-id, or 16 bytes of IPv6 address (IPv4: mapped; IPv6: the /64), zero padded */
};

/* Why steer left a client's connection to a worker: for the worker to tell, the last ones only. */
struct ph_decline_key {
	__be32 client;
	__be16 client_port;
	__be16 zero;
};

struct ph_decline {
	__u64 now_ns;			/* CLOCK_BOOTTIME */
	__u32 reason;			/* enum ph_reason */
	__u32 zero;
};

enum ph_event_kind {
	PH_EVENT_BEGIN = 1,
	PH_EVENT_END = 2,
	PH_EVENT_DECLINE = 3,
};

struct ph_event {
	__u64 now_ns;			/* CLOCK_MONOTONIC */
	__u64 begun_ns;
	__u32 kind;			/* enum ph_event_kind */
	__u32 reason;			/* enum ph_reason */
	__u32 slot;			/* of the flow */
	__u32 generation;
	struct ph_client_key key;
	__be32 cvm;
	struct ph_ref instance;
	__u64 bytes_from_client;
	__u64 bytes_from_cvm;
	__u64 packets_from_client;
	__u64 packets_from_cvm;
};

struct ph_guard_drops {
	__u64 count;
	__u64 seen_ns;			/* CLOCK_MONOTONIC, coarse: the last one */
};

/*
 * What guard dropped of one CVM's; under address 0, whatever is of none. There is an element just while there is the
 * CVM, so nothing is held against the next one at its address.
 */
struct ph_guard_cvm {
	struct ph_ref instance;		/* generation 0: of none */
	__u64 second_ns;		/* when the second began in which events are counted */
	__u32 events;
	__u32 reserved;
	struct ph_guard_drops drops[PH_GUARD_MAX];	/* by enum ph_guard_reason */
};

struct ph_guard_watch {
	__u64 until_ns;			/* CLOCK_MONOTONIC: until then somebody reads ph_guard_events */
};

/* A packet that was dropped. What it lacks, or is too short for, is 0. */
struct ph_guard_event {
	__u64 now_ns;			/* CLOCK_MONOTONIC */
	__u64 count;			/* drops of this CVM's for this reason, this one included */
	struct ph_ref instance;
	__u32 reason;			/* enum ph_guard_reason */
	__u32 len;			/* bytes of IP packet */
	__be32 from;
	__be32 to;
	__be16 from_port;
	__be16 to_port;
	__be16 ethertype;
	__u8 protocol;
	__u8 detail;			/* TCP: the flags; ICMP: the type */
};

/* Which flows steer_kill ends. Its arguments are in cb: this, slot, generation, enum ph_reason. */
enum ph_kill {
	PH_KILL_ALL,
	PH_KILL_FLOW,			/* flow slot, and the flow's generation */
	PH_KILL_INSTANCE,		/* instance slot, and the instance's generation */
	PH_KILL_IDLE,			/* those that were idle for too long */
};

/* It returns how many it ended, and this beside when the lock of one was not to be had. */
#define PH_KILL_AGAIN (1U << 30)

/* Marks packets of steer's on their way to the tunnel device, so that guard lets them out. */
#define PH_STEER_MARK 0x70684c41

#define PH_ABI_SIZE(type, size) _Static_assert(sizeof(struct type) == (size), "ABI: size of " #type)
#define PH_ABI_AT(type, field, at) \
	_Static_assert(__builtin_offsetof(struct type, field) == (at), "ABI: place of " #type "." #field)

PH_ABI_SIZE(ph_id_key, 64);
PH_ABI_SIZE(ph_domain_key, 256);
PH_ABI_SIZE(ph_ref, 8);
PH_ABI_SIZE(ph_id, 16 + 8 * PH_APP_INSTANCES_MAX);
PH_ABI_AT(ph_id, refs, 16);
PH_ABI_SIZE(ph_instance, 160);
PH_ABI_AT(ph_instance, handshake_ns, 16);
PH_ABI_AT(ph_instance, app_id, 32);
PH_ABI_AT(ph_instance, instance_id, 96);
PH_ABI_SIZE(ph_gateway, 48);
PH_ABI_AT(ph_gateway, health_now_ns, 8);
PH_ABI_SIZE(ph_worker, PH_WORKER_SIZE);
PH_ABI_AT(ph_worker, counters, 32);
PH_ABI_SIZE(ph_steer, 120);
PH_ABI_SIZE(ph_client_key, 12);
PH_ABI_SIZE(ph_splice, 64);
PH_ABI_AT(ph_splice, key, 12);
PH_ABI_AT(ph_splice, seq_to_cvm, 36);
PH_ABI_SIZE(ph_flow_way, 64);
PH_ABI_AT(ph_flow_way, told_packets, 48);
PH_ABI_SIZE(ph_flow, 256);
PH_ABI_AT(ph_flow, begun_ns, 192);
PH_ABI_AT(ph_flow, lock, 208);
PH_ABI_AT(ph_flow, counted, 227);
PH_ABI_AT(ph_flow, mac, 228);
PH_ABI_AT(ph_flow, idle_ms, 252);
PH_ABI_SIZE(ph_client_count, 8);
PH_ABI_SIZE(ph_sweep, 32);
PH_ABI_SIZE(ph_load, 48 + 8 * PH_LOAD_REASONS_MAX);
PH_ABI_SIZE(ph_relayed_key, 72);
PH_ABI_SIZE(ph_decline_key, 8);
PH_ABI_SIZE(ph_decline, 16);
PH_ABI_SIZE(ph_event, 88);
PH_ABI_SIZE(ph_guard_cvm, 24 + 16 * PH_GUARD_MAX);
PH_ABI_AT(ph_guard_cvm, drops, 24);
PH_ABI_SIZE(ph_guard_event, 48);
_Static_assert((int)PH_GUARD_COUNT <= PH_GUARD_MAX, "ABI: more reasons of guard's than counters");
_Static_assert((int)PH_LOAD_REASON_COUNT <= PH_LOAD_REASONS_MAX, "ABI: more of an instance's reasons than counters");
_Static_assert((int)PH_REASON_COUNT <= PH_REASONS_MAX, "ABI: more reasons than counters");

#endif
