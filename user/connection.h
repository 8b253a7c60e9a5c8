/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connection - one client's connection, from accept to its end.
 *
 * Everything the client sends is hostile, and what a CVM sends is not trusted either.
 */
#ifndef PHALAD_CONNECTION_H
#define PHALAD_CONNECTION_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "approach.h"
#include "connections.h"
#include "exchange.h"
#include "relay.h"

/*
 *   HELLO      the client has not said yet where it wants to go; PostgreSQL's questions are answered here
 *   DIAL       an instance is being connected to
 *   ASK        passthrough of PostgreSQL: it was asked whether it speaks TLS
 *   HANDSHAKE  standard mode: TLS with the client; the CVM is connected
 *   RELAY      passthrough: bytes go both ways
 *   EXCHANGE   standard mode: plaintext goes both ways
 *   LINGER     refused, with an alert under way; what the client still sends is thrown away
 *   ENDED      descriptors are closed; freed at the end of the turn
 *
 * HELLO -> DIAL -> [ASK ->] RELAY -> ENDED, HELLO -> DIAL -> HANDSHAKE -> EXCHANGE -> ENDED; LINGER from all before
 * RELAY and EXCHANGE; ENDED from everywhere.
 */
enum ph_connection_state {
	PH_CONNECTION_HELLO,
	PH_CONNECTION_DIAL,
	PH_CONNECTION_ASK,
	PH_CONNECTION_HANDSHAKE,
	PH_CONNECTION_RELAY,
	PH_CONNECTION_EXCHANGE,
	PH_CONNECTION_LINGER,
	PH_CONNECTION_ENDED,
};

struct ph_connection {
	struct ph_connections *set;
	struct ph_list link;			/* in all, or in ended */
	struct ph_list instance_link;		/* while there is a CVM */
	struct ph_ref ref;			/* which */
	struct in6_addr client_address;		/* IPv4: mapped */
	uint16_t client_port;
	uint32_t idle_ms;			/* the app's time-out, or the gateway's */
	uint64_t moved_ms;			/* when a byte went last */
	struct ph_ledger_row *row;		/* what phalactl is told of it; NULL when there was none left */
	struct ph_tally_entry *app_entry, *source_entry;	/* where it is counted */
	enum ph_connection_state state;
	bool watched;				/* the client's socket is in the epoll set */
	struct ph_timer timer;			/* of the state */
	struct ph_timer again;
	struct ph_source client_source, cvm_source;
	struct ph_end client, cvm;
	struct ph_approach *approach;		/* until bytes go both ways */
	struct ph_tls_session *session;		/* in HANDSHAKE */
	uint32_t owed;				/* in EXCHANGE: the refusal that the timer is about, 0 for none */
	union {
		struct ph_relay relay;
		struct ph_exchange exchange;
		uint32_t lingered_bytes;
	};
};

/* A client was accepted. @fd: non-blocking, taken over. */
void ph_connection_open(struct ph_connections *set, int fd, const struct sockaddr_storage *client);

/*
 * Ends it for @reason, which is counted unless another one has been already. Unless the reason is CLOSED, both sides
 * are reset: nobody may take what was cut off for complete. The memory stays until the end of the turn.
 */
void ph_connection_end(struct ph_connection *connection, enum ph_reason reason);

void ph_connection_free(struct ph_connection *connection);

/* For the states before RELAY and EXCHANGE, in approach.c. */

#define PH_SOCKET_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

/* The client's socket into the epoll set, unless it is there. Return: false when that failed: it has ended then. */
bool ph_connection_watch_client(struct ph_connection *connection);

/* @reset: with a RST, so that the CVM knows that nothing it heard was complete. */
void ph_connection_drop_cvm(struct ph_connection *connection, bool reset);

/* From one state before RELAY and EXCHANGE to another. */
void ph_connection_set_state(struct ph_connection *connection, enum ph_connection_state state);

/* With an alert, if @reason has one and the client speaks TLS. */
void ph_connection_refuse(struct ph_connection *connection, enum ph_reason reason);

/* An alert was sent: wait a little until the client has it. */
void ph_connection_linger(struct ph_connection *connection);

/* @state: RELAY or EXCHANGE. */
void ph_connection_begin_moving(struct ph_connection *connection, enum ph_connection_state state);

/* Time-outs; ph_connections_init() hands them to the queues. */
struct ph_connection *ph_connection_of(struct ph_timer *timer);
void ph_connection_idle_expired(struct ph_timer *timer);
void ph_connection_refusal_expired(struct ph_timer *timer);
void ph_connection_linger_expired(struct ph_timer *timer);
void ph_connection_turn_came(struct ph_timer *again);

#endif
