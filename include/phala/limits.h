/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * limits - every capacity and time-out that more than one part must agree on.
 *
 * A limit stands here, or in the configuration, never in the code. Units are in the names. Compiled into BPF programs
 * and userspace alike.
 */
#ifndef PHALA_LIMITS_H
#define PHALA_LIMITS_H

/* Names: RFC 1035, section 2.3.4. */
#define PH_LABEL_MAX 63			/* characters of one DNS label, and so of an id */
#define PH_ID_SIZE 64			/* an id with its closing zero, padded with zeros */
#define PH_NAME_MAX 253			/* characters of a DNS name in presentation form */
#define PH_NAME_SIZE 256		/* such a name, padded with zeros: a power of two, for masks */

/* Hellos: one TLS record carries at most 2^14 bytes (RFC 8446, section 5.1). */
#define PH_HELLO_MAX 16384		/* bytes of the ClientHello message, with its 4-byte header */
#define PH_HELLO_STREAM_MAX 32768	/* bytes of TCP stream that may carry it: record headers cost 5 each */
#define PH_HELLO_STREAM_BPF_MAX 8192	/* the same where BPF collects it, a power of two; longer ones go to a worker */
#define PH_HELLO_LONG 2048		/* bytes from which an unfinished one is given room in the receive buffer */
#define PH_RECORD_MAX 16384		/* bytes of payload of one plaintext record */

/* Who there may be. */
#define PH_INSTANCES_MAX 65536		/* slots for instances on one gateway */
#define PH_IDS_MAX 131072		/* app-ids and instance-ids together */
#define PH_APP_INSTANCES_MAX 64		/* instances of one app: one bit each in a mask */
#define PH_DOMAINS_MAX 64		/* base domains */
#define PH_LISTEN_MAX 16		/* listening addresses */
#define PH_NICS_MAX 16			/* devices that clients come in on */
#define PH_WORKERS_MAX 64		/* worker processes */
#define PH_WORKER_SIZE 4096		/* of a worker's element: a page */
#define PH_LOAD_REASONS_MAX 16		/* counters kept for each instance */
#define PH_REASONS_MAX 128		/* counters a worker keeps; more than PH_REASON_COUNT, so that the ABI stays */

/* Defaults of the configuration. */
#define PH_HELLO_TIMEOUT_MS 5000	/* from accept to a whole ClientHello, and again to a finished TLS handshake */
#define PH_CONNECT_TIMEOUT_MS 1000	/* for one instance, before the next one's turn */
#define PH_CONNECT_TRIES 3		/* instances tried for one connection */
#define PH_IDLE_TIMEOUT_MS 3600000	/* no byte either way */
#define PH_IDLE_MIN_MS 100		/* the shortest and the longest that can be set */
#define PH_IDLE_MAX_MS 604800000
#define PH_FLOW_LIMIT_MAX 1000000000	/* the largest limit of connections that can be set */
#define PH_HEALTHY_FOR_MS 300000	/* age of the last WireGuard handshake at which an instance stops being healthy */
#define PH_MANAGER_GRACE_MS 3600000	/* how long frozen health is believed when no manager refreshes it */
#define PH_ADDRESS_QUARANTINE_MS 3600000 /* rest of a freed address before another instance may have it */
#define PH_KEEPALIVE_S 25		/* PersistentKeepalive that CVMs are told */
#define PH_GATE_CONNECTIONS 1000	/* SYNs a second from one source */
#define PH_GATE_HELLOS 1000		/* ClientHellos likewise */
#define PH_GATE_HANDSHAKES 500		/* WireGuard handshake initiations likewise */
#define PH_GATE_UNPROVEN 4000		/* SYNs a second from all sources not heard of: the kernel bears 6,000 without cookies */
#define PH_GATE_BURST 5			/* times that, at once */
#define PH_TUNNEL_MTU 1420		/* WireGuard over IPv6 over Ethernet */

/* The kernel path. */
#define PH_FLOWS_MAX 262144		/* slots of the flow table, a power of two */
#define PH_FLOW_PORTS 32768		/* slots per source address: ports 32768-65535 */
#define PH_SOURCE_LOCKS 1024		/* a power of two: clients that are counted at one time on different CPUs */
#define PH_RELAYED_MAX 262144		/* apps and clients of all workers that are counted for limits */
#define PH_DECLINES_MAX 16384		/* clients of which it is known why steer left them to a worker, the last ones */
#define PH_DECLINE_FRESH_MS 30000	/* how long that is believed to be about the same connection */
#define PH_HELLOS_MAX 4096		/* hellos that are being collected or whose SYN is out, at one time */
#define PH_HELLOS_SOURCE_MAX 512	/* the same of one client's address */
#define PH_HELLO_PIECES 8		/* gaps that may be open in one of them, and one more */
#define PH_HELLO_PACKETS_MAX 24		/* packets of one hello, repeated ones counted, before it is left to a worker */
#define PH_COLLECT_TIMEOUT_MS 3000	/* from the first packet of a hello to its last */
#define PH_BIND_TIMEOUT_MS 3000		/* from the whole hello to an instance's SYN-ACK, all tries together */
#define PH_BIND_TRIES_MAX 8		/* instances tried for one connection, however many are configured */
#define PH_BIND_TURN_MS 450		/* for one instance, if there is another and the client asks again */
#define PH_SLOTS_WORD 64			/* flow slots whose use is told by one word of ph_used */
#define PH_SWEEP_MS 50			/* between two looks at a part of the flow table */
#define PH_SWEEP_PARTS 16		/* so all of it is looked at in 800 ms */
#define PH_SWEEP_DEAD_MS 5000		/* without a look, steer takes no new connection: nothing would ever end */
#define PH_IDLE_GRACE_MS 20000		/* after which an idle flow ends even if no manager told its ends */
#define PH_FLOW_REST_MS 5000		/* how long a flow that is over keeps its slot and answers stragglers */
#define PH_RESETS_S 1000		/* packets of no connection that are answered in a second, all clients' together */
#define PH_FLOW_CLOSING_MS 150000	/* silence behind both FINs, or an early or missed RST, that ends a flow: longer than between retransmissions */
#define PH_FLOW_REVIVE_MS 500		/* a reset by an end that shows to live so long after it was forged */

/* Guard. */
#define PH_GUARD_MAX 24			/* counters there is room for; more than PH_GUARD_COUNT, so that the ABI stays */
#define PH_GUARD_EVENTS_S 16		/* drops of one CVM's that are told in a second: a scanner must not drown others */
#define PH_GUARD_RESETS_MAX 16384	/* connections that were reset and whose CVMs may not know yet, the last ones */
#define PH_SCAN_LEAST 50		/* packets of one CVM's dropped before the log tells of it */
#define PH_SCAN_EVERY_S 60		/* between two lines about one CVM */
#define PH_SCAN_LINES 16		/* about all of them, each few seconds */

/* The gate. */
#define PH_GATE_TARGETS_MAX 4096	/* listening addresses and ports, wildcards spelt out */
#define PH_GATE_SOURCES_MAX 131072	/* sources whose budgets are remembered; the oldest is forgotten */
#define PH_GATE_PROVEN_MAX 65536	/* sources that answered a challenge; likewise */
#define PH_GATE_PROVEN_MS 600000	/* for so long */
#define PH_GATE_PREFIXES_MAX 2097152	/* of each list */
#define PH_GATE_CACHE_SLOTS 4096	/* addresses, on each CPU, for which the lists' answer is kept; a power of two */
#define PH_GATE_EXPIRED_MAX 8		/* expired prefixes, one within the other, that are looked behind */
#define PH_GATE_HEADERS_MAX 6		/* IPv6 extension headers before TCP */

/* The listening sockets. */
#define PH_LISTEN_BACKLOG 65535
#define PH_DEFER_ACCEPT_S 1		/* TCP_DEFER_ACCEPT: silent clients sit in the SYN queue until it ends */
#define PH_MSS_OVERHEAD 40		/* IPv4 and TCP header: MSS told to clients = tunnel MTU - this */

/* One worker. */
#define PH_CONNECTION_FDS 6		/* at worst: client, CVM, and a pipe each way */
#define PH_WORKER_FDS 192		/* everything else of a worker: maps, listeners, spare pipes */
#define PH_ACCEPT_BATCH 16		/* connections accepted before other events have their turn */
#define PH_ACCEPT_PAUSE_MS 100		/* after running out of descriptors or memory */
#define PH_ROOM_AFTER_MS 1000		/* at the limit, who has had no ClientHello for so long makes room for others */
#define PH_LINGER_MS 1000		/* for a refused client to take its alert and close */
#define PH_LINGER_BYTES 65536		/* what it may send meanwhile */
#define PH_PIPE_BYTES 65536		/* what a pipe holds as it is made, at most */
#define PH_PIPE_WIDE_BYTES 262144	/* ... and a wide one; asked of one splice */
#define PH_PIPES_WIDE 64		/* of all workers: a quarter of what their user may have (pipe(7), pipe-user-pages-soft) */
#define PH_UNSENT_BYTES 131072		/* queued beyond what the peer's window lets out: a stalled one holds it, and a pipe */
#define PH_PIPES_SPARE 32		/* empty pipes that a worker keeps at hand, at most */
#define PH_PIPES_SPARE_ALL 256		/* ... and all of them */
#define PH_TURN_ROUNDS 16		/* of one direction, each PH_PIPE_BYTES, in TLS PH_TLS_BYTES, before others have their turn */
#define PH_TLS_BYTES PH_RECORD_MAX	/* of h2 requests, held while the CVM is slow; without h2 it is PH_PIPE_BYTES */
#define PH_H2_BLOCK_MAX 65536		/* bytes of a request's header block, without compression: held until judged */
#define PH_H2_TABLE_MAX 65536		/* of a client's HPACK table, which a CVM may ask for: 4,096 unless it does */
#define PH_H2_FRAME_BYTES 16384		/* of a frame's payload that every peer takes: RFC 9113, section 4.2 */
#define PH_H2_REFUSED_MAX 64		/* refused requests remembered on one connection */
#define PH_H2_REFUSAL_MS 5000		/* that a CVM in the middle of a frame may keep a refusal waiting */
#define PH_H2_ROOM_LEAST 64		/* bytes for anything that is never split: a preface, a refusal */
#define PH_TCP_PROBE_AFTER_S 60		/* silence after which TCP keepalives ask whether the peer is there */
#define PH_TCP_PROBE_EVERY_S 20		/* ... and how often; gone after nine */
#define PH_TICKET_KEYS 3		/* that session tickets are taken with; new ones are made with the newest */
#define PH_TICKET_ROTATE_MS 3600000	/* between two new keys: tickets, whose sessions last two hours, are good for two to three */
#define PH_PULSE_MS 1000		/* between two signs of life of manager and workers, for the holder */
#define PH_WATCHDOG_MS 60000		/* without one, the process hangs and is killed; systemd's WatchdogSec goes first */
#define PH_WATCHDOG_START 5		/* times that, for a process that has yet to begin */
#define PH_AWAY_MS 10000		/* clients wait so long for a worker to come back, then they are turned away */
#define PH_PEM_MAX 1048576		/* bytes of a certificate or key file */

#endif
