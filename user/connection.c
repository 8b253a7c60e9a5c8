// SPDX-License-Identifier: Apache-2.0
/*
 * connection - the states of one client's connection. See connection.h.
 *
 * Sockets are edge-triggered: what is known about them is kept in the two ends, and every event does whatever the state
 * can do then. Here are the states from RELAY and EXCHANGE on; those before are in approach.c.
 */
#include "connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alert.h"
#include "approach.h"

/* The end, and refusals. */

/*
 * @reset: with a RST, so that the peer knows its stream to be cut off. A CVM's socket is made to be reset (ph_dial()),
 * because a FIN from the kernel when a worker dies would tell the CVM that what it has is all.
 */
static void close_end(struct ph_end *end, bool reset)
{
	const struct linger linger = { .l_onoff = reset };

	if (end->fd < 0)
		return;
	setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(end->fd);
	*end = (struct ph_end){ .fd = -1 };
}

void ph_connection_drop_cvm(struct ph_connection *connection, bool reset)
{
	close_end(&connection->cvm, reset);
	ph_list_remove(&connection->instance_link);
}

static void drop_approach(struct ph_connection *connection)
{
	free(connection->approach);
	connection->approach = NULL;
}

void ph_connection_set_state(struct ph_connection *connection, enum ph_connection_state state)
{
	static const uint8_t told[] = {
		[PH_CONNECTION_HELLO] = PH_LEDGER_HELLO,	 [PH_CONNECTION_DIAL] = PH_LEDGER_DIALING,
		[PH_CONNECTION_ASK] = PH_LEDGER_DIALING,	 [PH_CONNECTION_HANDSHAKE] = PH_LEDGER_HANDSHAKE,
		[PH_CONNECTION_RELAY] = PH_LEDGER_RELAYING,	 [PH_CONNECTION_EXCHANGE] = PH_LEDGER_RELAYING,
		[PH_CONNECTION_LINGER] = PH_LEDGER_REFUSED,	 [PH_CONNECTION_ENDED] = PH_LEDGER_REFUSED,
	};

	connection->state = state;
	if (!connection->row)
		return;
	connection->row->state = told[state];
	connection->row->instance = connection->cvm.fd >= 0 ? connection->ref : (struct ph_ref){ 0 };
}

/* Against limits: one that is refused does not count any more. */
static void drop_entries(struct ph_connection *connection)
{
	struct ph_tally *tally = &connection->set->tally;

	ph_tally_drop(tally, connection->app_entry);
	ph_tally_drop(tally, connection->source_entry);
	connection->app_entry = connection->source_entry = NULL;
}

static void finish(struct ph_connection *connection, bool reset)
{
	struct ph_connections *set = connection->set;

	if (connection->state == PH_CONNECTION_RELAY)
		ph_relay_close(&connection->relay, &set->means);
	else if (connection->state == PH_CONNECTION_EXCHANGE)
		ph_exchange_close(&connection->exchange);
	ph_tls_session_free(connection->session);
	connection->session = NULL;
	drop_approach(connection);
	drop_entries(connection);
	ph_timer_disarm(&connection->timer);
	ph_timer_disarm(&connection->again);
	ph_connection_drop_cvm(connection, reset);
	close_end(&connection->client, reset);
	connection->state = PH_CONNECTION_ENDED;
	ph_ledger_give_back(set->ledger, connection->row);
	connection->row = NULL;
	ph_list_remove(&connection->link);
	ph_list_append(&set->ended, &connection->link);
	set->count--;
}

void ph_connection_end(struct ph_connection *connection, enum ph_reason reason)
{
	if (connection->state == PH_CONNECTION_ENDED)
		return;
	if (connection->state != PH_CONNECTION_LINGER)
		ph_connections_count(connection->set, reason);
	finish(connection, reason != PH_REASON_CLOSED);
}

bool ph_connection_watch_client(struct ph_connection *connection)
{
	if (connection->watched)
		return true;
	if (ph_events_add(connection->set->events, connection->client.fd, PH_SOCKET_EVENTS,
			  &connection->client_source)) {
		ph_connection_end(connection, PH_REASON_NO_MEMORY);
		return false;
	}
	connection->watched = true;
	return true;
}

/* Throws away what came. Return: false once there is no more to expect from the client, or it sends too much. */
static bool discard(struct ph_connection *connection)
{
	ssize_t got;

	while (connection->lingered_bytes < PH_LINGER_BYTES) {
		got = recv(connection->client.fd, NULL, PH_LINGER_BYTES, MSG_TRUNC);
		if (got <= 0)
			return got < 0 && errno == EAGAIN && !connection->client.failed;
		connection->lingered_bytes += (uint32_t)got;
	}
	return false;
}

/*
 * Closing a socket with unread bytes sends a RST, and a RST may overtake the alert on its way through the client's
 * system: so what comes is read until the client closes, within bounds.
 */
void ph_connection_linger(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;

	drop_approach(connection);
	drop_entries(connection);
	ph_tls_session_free(connection->session);
	connection->session = NULL;
	shutdown(connection->client.fd, SHUT_WR);
	connection->lingered_bytes = 0;
	ph_connection_set_state(connection, PH_CONNECTION_LINGER);
	ph_timer_arm(set->events, &set->linger, &connection->timer);
	if (!discard(connection))
		finish(connection, false);
	else
		ph_connection_watch_client(connection);
}

/* Before bytes went both ways. The client is told why if TLS has words for it and it got as far as speaking TLS. */
void ph_connection_refuse(struct ph_connection *connection, enum ph_reason reason)
{
	uint8_t record[PH_ALERT_LEN];
	size_t len = connection->approach->hello.at ? ph_alert_write(reason, record) : 0;

	ph_connections_count(connection->set, reason);
	ph_connection_drop_cvm(connection, true);
	connection->lingered_bytes = 0;
	if (!len) {
		discard(connection);
		finish(connection, false);
		return;
	}
	send(connection->client.fd, record, len, MSG_NOSIGNAL);
	ph_connection_linger(connection);
}

/* RELAY and EXCHANGE. */

/*
 * A CVM that stopped in the middle of a frame could hold on to requests that were never its own. Cut off, browsers make
 * them again elsewhere.
 */
static void keep_time(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;
	uint32_t owed = connection->state == PH_CONNECTION_EXCHANGE ? ph_exchange_owed(&connection->exchange) : 0;

	connection->moved_ms = set->events->now_ms;
	if (owed == connection->owed)
		return;
	connection->owed = owed;
	if (owed)
		ph_timer_arm(set->events, &set->refusal, &connection->timer);
	else
		ph_idle_wait(&set->idle, set->events, &connection->timer, connection->idle_ms);
}

static void move(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;
	enum ph_reason reason = PH_REASON_CLOSED;
	enum ph_progress progress;
	uint64_t from_clients = set->stats->bytes_from_clients, from_cvms = set->stats->bytes_from_cvms;

	if (connection->state == PH_CONNECTION_RELAY)
		progress = ph_relay_run(&connection->relay, &connection->client, &connection->cvm, &set->means,
					&reason);
	else
		progress = ph_exchange_run(&connection->exchange, &connection->client, &connection->cvm, &set->means,
					   &reason);
	if (connection->row) {
		connection->row->bytes_from_client += set->stats->bytes_from_clients - from_clients;
		connection->row->bytes_from_cvm += set->stats->bytes_from_cvms - from_cvms;
		connection->row->moved_ns = set->events->now_ns;
	}
	switch (progress) {
	case PH_PROGRESS_OVER:
		ph_connection_end(connection, reason);
		return;
	case PH_PROGRESS_AGAIN:
		ph_timer_arm(set->events, &set->again, &connection->again);
		break;
	case PH_PROGRESS_WAIT:
		/* What a broken socket had received is through, or never will be. */
		if (connection->client.failed || connection->cvm.failed) {
			ph_connection_end(connection, connection->client.failed ? PH_REASON_CLIENT_RESET
										 : PH_REASON_CVM_RESET);
			return;
		}
		break;
	}
	keep_time(connection);
}

void ph_connection_begin_moving(struct ph_connection *connection, enum ph_connection_state state)
{
	struct ph_connections *set = connection->set;
	int err = 0;

	ph_connection_set_state(connection, state);
	if (state == PH_CONNECTION_RELAY) {
		ph_relay_init(&connection->relay);
	} else {
		err = ph_exchange_init(&connection->exchange, connection->session, connection->approach->hello.name,
				       &set->means);
		connection->session = NULL;
	}
	drop_approach(connection);
	if (err) {
		ph_connection_end(connection, PH_REASON_NO_MEMORY);
		return;
	}
	ph_idle_wait(&set->idle, set->events, &connection->timer, connection->idle_ms);
	connection->client.readable = connection->client.writable = true;
	if (ph_connection_watch_client(connection))
		move(connection);
}

/* Events and time-outs. */

static void advance(struct ph_connection *connection)
{
	switch (connection->state) {
	case PH_CONNECTION_HELLO:
	case PH_CONNECTION_DIAL:
	case PH_CONNECTION_ASK:
	case PH_CONNECTION_HANDSHAKE:
		ph_approach_advance(connection);
		break;
	case PH_CONNECTION_RELAY:
	case PH_CONNECTION_EXCHANGE:
		move(connection);
		break;
	case PH_CONNECTION_LINGER:
		if (!discard(connection))
			finish(connection, false);
		break;
	case PH_CONNECTION_ENDED:
		break;
	}
}

static void note(struct ph_end *end, uint32_t events)
{
	end->readable |= (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
	end->writable |= (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
	end->hangup |= (events & (EPOLLRDHUP | EPOLLHUP)) != 0;
	end->failed |= (events & EPOLLERR) != 0;
}

static void client_happened(struct ph_source *source, uint32_t events)
{
	struct ph_connection *connection = ph_container_of(source, struct ph_connection, client_source);

	note(&connection->client, events);
	if (connection->client.failed &&
	    (connection->state == PH_CONNECTION_DIAL || connection->state == PH_CONNECTION_ASK))
		ph_connection_end(connection, PH_REASON_CLIENT_RESET);
	else
		advance(connection);
}

static void cvm_happened(struct ph_source *source, uint32_t events)
{
	struct ph_connection *connection = ph_container_of(source, struct ph_connection, cvm_source);

	note(&connection->cvm, events);
	advance(connection);
}

void ph_connection_turn_came(struct ph_timer *again)
{
	advance(ph_container_of(again, struct ph_connection, again));
}

struct ph_connection *ph_connection_of(struct ph_timer *timer)
{
	return ph_container_of(timer, struct ph_connection, timer);
}

void ph_connection_idle_expired(struct ph_timer *timer)
{
	struct ph_connection *connection = ph_connection_of(timer);
	struct ph_connections *set = connection->set;
	uint64_t due_ms = connection->moved_ms + connection->idle_ms;

	if (due_ms <= set->events->now_ms)
		ph_connection_end(connection, PH_REASON_IDLE);
	else
		ph_idle_wait(&set->idle, set->events, timer, due_ms - set->events->now_ms);
}

void ph_connection_refusal_expired(struct ph_timer *timer)
{
	ph_connection_end(ph_connection_of(timer), PH_REASON_CVM_H2);
}

void ph_connection_linger_expired(struct ph_timer *timer)
{
	finish(ph_connection_of(timer), false);
}

/* The beginning. */

static void note_client(struct ph_connection *connection, const struct sockaddr_storage *client)
{
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)client;
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)client;

	if (client->ss_family == AF_INET6) {
		connection->client_address = v6->sin6_addr;
		connection->client_port = ntohs(v6->sin6_port);
	} else if (client->ss_family == AF_INET) {
		connection->client_address.s6_addr32[2] = htonl(0xffff);	/* RFC 4291, section 2.5.5.2 */
		connection->client_address.s6_addr32[3] = v4->sin_addr.s_addr;
		connection->client_port = ntohs(v4->sin_port);
	}
}

void ph_connection_open(struct ph_connections *set, int fd, const struct sockaddr_storage *client)
{
	struct ph_connection *connection = calloc(1, sizeof(*connection));

	ph_connections_count(set, PH_REASON_ACCEPTED);
	if (connection)
		connection->approach = calloc(1, sizeof(*connection->approach));
	if (!connection || !connection->approach) {
		free(connection);
		close(fd);
		ph_connections_count(set, PH_REASON_NO_MEMORY);
		return;
	}
	connection->set = set;
	connection->client.fd = fd;
	connection->cvm.fd = -1;
	note_client(connection, client);
	connection->row = ph_ledger_take(set->ledger, &connection->client_address, connection->client_port,
					 set->events->now_ns);
	connection->client_source.handle = client_happened;
	connection->cvm_source.handle = cvm_happened;
	ph_list_init(&connection->instance_link);
	ph_timer_init(&connection->timer);
	ph_timer_init(&connection->again);
	ph_list_init(&connection->link);
	ph_list_append(&set->all, &connection->link);
	set->count++;
	ph_timer_arm(set->events, &set->hello, &connection->timer);
	ph_approach_advance(connection);
}

void ph_connection_free(struct ph_connection *connection)
{
	free(connection);
}
