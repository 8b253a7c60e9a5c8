// SPDX-License-Identifier: Apache-2.0
/*
 * approach - from a client's first byte to a CVM: the states HELLO, DIAL, ASK and HANDSHAKE. See approach.h.
 */
#include "approach.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "connection.h"
#include "dial.h"
#include "postgres.h"

/* HANDSHAKE. */

static void handshake(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;

	if (connection->cvm.failed) {
		ph_connection_end(connection, PH_REASON_CVM_RESET);
		return;
	}
	ph_tls_session_turn(connection->session);
	switch (ph_tls_handshake(connection->session)) {
	case PH_TLS_OK:
		ph_connection_begin_moving(connection, PH_CONNECTION_EXCHANGE);
		return;
	case PH_TLS_WANT_READ:
	case PH_TLS_WANT_WRITE:
		return;
	case PH_TLS_AGAIN:
		ph_timer_arm(set->events, &set->again, &connection->again);
		return;
	case PH_TLS_RESET:
		ph_connection_end(connection, PH_REASON_CLIENT_RESET);
		return;
	case PH_TLS_NO_MEMORY:
		ph_connection_end(connection, PH_REASON_NO_MEMORY);
		return;
	case PH_TLS_CLOSED:
	case PH_TLS_TRUNCATED:
	case PH_TLS_FAILED:
		break;
	}
	/* OpenSSL has sent an alert. */
	ph_connections_count(set, PH_REASON_TLS_FAILED);
	ph_connection_drop_cvm(connection, true);
	ph_connection_linger(connection);
}

static void begin_handshake(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;
	struct ph_approach *approach = connection->approach;

	approach->terms.name = approach->hello.name;
	approach->terms.h2 = approach->route.name.mode == PH_MODE_GRPC;
	if (ph_tls_session_new(set->tls[approach->route.domain], connection->client.fd, &approach->terms,
			       &connection->session)) {
		ph_connection_refuse(connection, PH_REASON_NO_MEMORY);
		return;
	}
	ph_connection_set_state(connection, PH_CONNECTION_HANDSHAKE);
	ph_timer_arm(set->events, &set->handshake, &connection->timer);
	if (ph_connection_watch_client(connection))
		handshake(connection);
}

/* DIAL and ASK. */

/* Return: 0 when an instance is being connected to, -ENOENT when there is none left to try. */
static int dial_one(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;
	struct ph_approach *approach = connection->approach;
	struct in_addr address;
	int err;

	while (approach->tries < set->config->connect_tries) {
		if (ph_route_next(set->maps, &approach->route, &connection->ref, &address))
			return -ENOENT;
		approach->tries++;
		/* The manager's device, not whatever bears its name by now. */
		err = ph_dial(__atomic_load_n(&set->maps->gateway->tunnel_ifindex, __ATOMIC_ACQUIRE), address,
			      approach->route.name.port, &connection->cvm.fd);
		if (!err) {
			err = ph_events_add(set->events, connection->cvm.fd, PH_SOCKET_EVENTS, &connection->cvm_source);
			if (err)
				ph_connection_drop_cvm(connection, false);
		}
		if (!err)
			return 0;
		ph_connections_count(set, ph_dial_reason(err));
	}
	return -ENOENT;
}

static void dial(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;

	connection->state = PH_CONNECTION_DIAL;
	if (dial_one(connection)) {
		ph_connection_refuse(connection, connection->approach->tries ? PH_REASON_NO_INSTANCE_ANSWERED
									       : PH_REASON_NO_HEALTHY);
		return;
	}
	ph_connection_set_state(connection, PH_CONNECTION_DIAL);
	ph_list_append(ph_connections_bucket(set, &connection->ref), &connection->instance_link);
	ph_timer_arm(set->events, &set->dial, &connection->timer);
}

static void dial_next(struct ph_connection *connection, enum ph_reason why)
{
	ph_connections_count(connection->set, why);
	ph_connection_drop_cvm(connection, connection->state == PH_CONNECTION_ASK);
	dial(connection);
}

static void connected(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;
	const struct ph_approach *approach = connection->approach;

	if (approach->route.name.mode != PH_MODE_PASSTHROUGH) {
		ph_connections_count(set, PH_REASON_ROUTED_STANDARD);
		begin_handshake(connection);
		return;
	}
	if (approach->asked_ssl && connection->state == PH_CONNECTION_DIAL) {
		ph_connection_set_state(connection, PH_CONNECTION_ASK);
		if (ph_postgres_ask(connection->cvm.fd))
			ph_connection_refuse(connection, PH_REASON_CVM_NO_TLS);
		else
			ph_timer_arm(set->events, &set->dial, &connection->timer);
		return;
	}
	ph_connections_count(set, PH_REASON_ROUTED_PASSTHROUGH);
	ph_connection_begin_moving(connection, PH_CONNECTION_RELAY);
}

static void dial_advanced(struct ph_connection *connection)
{
	if (connection->cvm.failed)
		dial_next(connection, ph_dial_reason(ph_dial_result(connection->cvm.fd)));
	else if (connection->cvm.writable)
		connected(connection);
}

static void ask_advanced(struct ph_connection *connection)
{
	int err = ph_postgres_read_answer(connection->cvm.fd);

	if (!err)
		connected(connection);
	else if (err != -EAGAIN)
		ph_connection_refuse(connection, PH_REASON_CVM_NO_TLS);
}

/* HELLO. */

/* The app that the route leads to. Return: false when it is no more. */
static bool app_of(const struct ph_maps *maps, const struct ph_route *route, char ret_app_id[PH_ID_SIZE])
{
	const struct ph_ref *ref = &route->id.refs[0];

	if (route->id.kind == PH_ID_APP) {
		memcpy(ret_app_id, route->name.id, PH_ID_SIZE);
		return true;
	}
	if (ref->slot >= PH_INSTANCES_MAX)
		return false;
	memcpy(ret_app_id, maps->instances[ref->slot].app_id, PH_ID_SIZE);
	return __atomic_load_n(&maps->instances[ref->slot].generation, __ATOMIC_ACQUIRE) == ref->generation;
}

/* Why it is not the kernel's, as far as that can be known here. */
static enum ph_reason why_relayed(const struct ph_connection *connection)
{
	const struct ph_connections *set = connection->set;

	if (connection->approach->route.name.mode != PH_MODE_PASSTHROUGH)
		return PH_REASON_ROUTED_STANDARD;
	if (!set->config->nics[0][0])
		return PH_REASON_NO_NIC;
	if (connection->approach->asked_ssl || connection->approach->asked_gss)
		return PH_REASON_POSTGRES;
	if (!IN6_IS_ADDR_V4MAPPED(&connection->client_address))
		return PH_REASON_DECLINED_IPV6;
	return ph_maps_decline(set->maps, (const char *)&connection->client_address, connection->client_port,
			       set->events->now_ns);
}

static void write_down(struct ph_connection *connection)
{
	const struct ph_route *route = &connection->approach->route;
	struct ph_ledger_row *row = connection->row;

	if (!row)
		return;
	row->mode = route->name.mode;
	row->domain = (uint8_t)route->domain;
	row->port = route->name.port;
	row->by_instance = route->id.kind == PH_ID_INSTANCE;
	row->reason = why_relayed(connection);
}

/* Counts it, for the limits of app and client. Return: PH_REASON_COUNT, or why it is refused. */
static enum ph_reason admit(struct ph_connection *connection)
{
	const struct ph_route *route = &connection->approach->route;
	struct ph_connections *set = connection->set;
	char app_id[PH_ID_SIZE] __attribute__((aligned(8)));
	int err;

	connection->idle_ms = route->id.idle_ms ? route->id.idle_ms : set->config->idle_timeout_ms;
	if (!app_of(set->maps, route, app_id))
		return PH_REASON_NO_HEALTHY;
	err = ph_tally_app(&set->tally, app_id, ph_app_limit(&route->id, set->maps->gateway->app_limit),
			   &connection->app_entry);
	if (err)
		return err == -EDQUOT ? PH_REASON_APP_LIMIT : PH_REASON_NO_MEMORY;
	if (!set->config->flows_per_source)
		return PH_REASON_COUNT;
	err = ph_tally_source(&set->tally, &connection->client_address, set->config->flows_per_source,
			      &connection->source_entry);
	if (err)
		return err == -EDQUOT ? PH_REASON_SOURCE_LIMIT : PH_REASON_NO_MEMORY;
	return PH_REASON_COUNT;
}

static void route(struct ph_connection *connection)
{
	struct ph_connections *set = connection->set;
	struct ph_approach *approach = connection->approach;
	enum ph_reason reason;

	reason = ph_route_find(set->maps, approach->hello.name, approach->hello.name_len, set->events->now_ns,
			       &approach->route);
	if (reason == PH_REASON_COUNT && approach->route.domain >= set->config->domain_count)
		reason = PH_REASON_OTHER_DOMAIN;
	if (reason == PH_REASON_COUNT && approach->route.name.mode != PH_MODE_PASSTHROUGH &&
	    !set->tls[approach->route.domain])
		reason = PH_REASON_NO_CERTIFICATE;
	if (reason == PH_REASON_COUNT)
		reason = admit(connection);
	if (reason == PH_REASON_COUNT) {
		write_down(connection);
		dial(connection);
		return;
	}
	ph_connection_refuse(connection, reason);
}

/* Return: 0 when the question was answered and something else must follow, or -errno. */
static int answer_postgres(struct ph_connection *connection, enum ph_postgres_request request)
{
	struct ph_approach *approach = connection->approach;
	uint8_t consumed[PH_POSTGRES_REQUEST_LEN];
	bool *asked = request == PH_POSTGRES_SSL ? &approach->asked_ssl : &approach->asked_gss;

	if (approach->asked_ssl || *asked)
		return -EPROTO;
	*asked = true;
	if (recv(connection->client.fd, consumed, sizeof(consumed), 0) != sizeof(consumed))
		return -EPROTO;
	return ph_postgres_answer(connection->client.fd, request);
}

/* A question of PostgreSQL's begins with a zero, which no TLS record does. */
static enum ph_hello_verdict look(struct ph_connection *connection, size_t seen, bool *ret_consumed)
{
	struct ph_approach *approach = connection->approach;
	const uint8_t *stream = connection->set->means.scratch;
	enum ph_postgres_request request;

	if (approach->hello.at || stream[0])
		return ph_hello_walk(&approach->hello, stream, (uint32_t)seen);
	request = ph_postgres_parse(stream, seen);
	if (request == PH_POSTGRES_MORE)
		return PH_HELLO_MORE;
	if (request == PH_POSTGRES_NEITHER || answer_postgres(connection, request))
		return PH_HELLO_NOT_TLS;
	*ret_consumed = true;
	return PH_HELLO_MORE;
}

static enum ph_reason hello_reason(enum ph_hello_verdict verdict)
{
	switch (verdict) {
	case PH_HELLO_NOT_TLS:
		return PH_REASON_NOT_TLS;
	case PH_HELLO_NO_SNI:
		return PH_REASON_NO_SNI;
	case PH_HELLO_AMBIGUOUS:
		return PH_REASON_AMBIGUOUS;
	case PH_HELLO_TOO_LONG:
		return PH_REASON_HELLO_TOO_LONG;
	default:
		return PH_REASON_MALFORMED;
	}
}

/*
 * Looking does not make the window grow: a long hello might never fit. Asking for a low-water mark makes the kernel
 * find room for as much (tcp_set_rcvlowat()), and unlike SO_RCVBUF leaves its tuning alone.
 */
static void widen(struct ph_connection *connection)
{
	static const int most = PH_HELLO_STREAM_MAX, least = 1;

	connection->approach->widened = true;
	setsockopt(connection->client.fd, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof(most));
	setsockopt(connection->client.fd, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof(least));
}

static void read_hello(struct ph_connection *connection)
{
	uint8_t *stream = connection->set->means.scratch;
	enum ph_hello_verdict verdict;
	bool consumed;
	ssize_t seen;

	do {
		consumed = false;
		verdict = PH_HELLO_MORE;
		seen = recv(connection->client.fd, stream, PH_HELLO_STREAM_MAX, MSG_PEEK);
		if (!seen || (seen < 0 && (errno != EAGAIN || connection->client.failed))) {
			ph_connection_refuse(connection, PH_REASON_HELLO_EOF);
			return;
		}
		if (seen > 0) {
			connection->approach->spoke = true;
			verdict = look(connection, (size_t)seen, &consumed);
			if (verdict == PH_HELLO_MORE && seen >= PH_HELLO_LONG && !connection->approach->widened)
				widen(connection);
		}
	} while (consumed);

	if (verdict == PH_HELLO_OK)
		route(connection);
	else if (verdict != PH_HELLO_MORE)
		ph_connection_refuse(connection, hello_reason(verdict));
	else if (connection->client.hangup)
		ph_connection_refuse(connection, PH_REASON_HELLO_EOF);
	else
		ph_connection_watch_client(connection);
}

void ph_approach_advance(struct ph_connection *connection)
{
	switch (connection->state) {
	case PH_CONNECTION_HELLO:
		read_hello(connection);
		break;
	case PH_CONNECTION_DIAL:
		dial_advanced(connection);
		break;
	case PH_CONNECTION_ASK:
		ask_advanced(connection);
		break;
	default:
		handshake(connection);
	}
}

/* Time-outs. */

void ph_approach_hello_expired(struct ph_timer *timer)
{
	struct ph_connection *connection = ph_connection_of(timer);

	ph_connection_refuse(connection, connection->approach->spoke ? PH_REASON_HELLO_TIMEOUT : PH_REASON_SILENT);
}

/* The last one has the turns that others would have had: it may be a packet that was lost, and nobody else is there. */
void ph_approach_dial_expired(struct ph_timer *timer)
{
	struct ph_connection *connection = ph_connection_of(timer);
	struct ph_connections *set = connection->set;
	struct ph_approach *approach = connection->approach;

	if (!approach->route.candidates && approach->tries < set->config->connect_tries) {
		approach->tries++;
		ph_timer_arm(set->events, &set->dial, &connection->timer);
		return;
	}
	dial_next(connection, PH_REASON_CVM_TIMEOUT);
}

void ph_approach_handshake_expired(struct ph_timer *timer)
{
	ph_connection_end(ph_connection_of(timer), PH_REASON_TLS_TIMEOUT);
}
