// SPDX-License-Identifier: Apache-2.0
/*
 * exchange - plaintext between TLS and TCP. See exchange.h.
 *
 * What is read goes on from the worker's scratch at once. Only what the other side does not take is kept, and while
 * anything is kept nothing more is read in that direction. Of h2, authority says what goes on.
 */
#include "exchange.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* PH_REASON_COUNT: nothing has ended. */
#define GOING_ON PH_REASON_COUNT

int ph_exchange_init(struct ph_exchange *exchange, struct ph_tls_session *session, const char *name,
		     struct ph_relay_means *means)
{
	*exchange = (struct ph_exchange){ .session = session };
	if (!ph_tls_session_is_h2(session))
		return 0;
	return ph_authority_new(name, &means->stats->counters[PH_REASON_MISDIRECTED], &exchange->authority);
}

void ph_exchange_close(struct ph_exchange *exchange)
{
	ph_tls_session_free(exchange->session);
	ph_authority_free(exchange->authority);
	free(exchange->unchecked);
	free(exchange->to_cvm);
	*exchange = (struct ph_exchange){ 0 };
}

static int keep(struct ph_chunk **chunk, const uint8_t *bytes, size_t len)
{
	*chunk = malloc(sizeof(**chunk) + len);
	if (!*chunk)
		return -ENOMEM;
	(*chunk)->at = 0;
	(*chunk)->len = (uint32_t)len;
	memcpy((*chunk)->bytes, bytes, len);
	return 0;
}

/* @len bytes of it are gone. */
static void shorten(struct ph_chunk **chunk, size_t len)
{
	(*chunk)->at += (uint32_t)len;
	if ((*chunk)->at < (*chunk)->len)
		return;
	free(*chunk);
	*chunk = NULL;
}

static enum ph_reason tls_reason(enum ph_tls_result result)
{
	switch (result) {
	case PH_TLS_RESET:
		return PH_REASON_CLIENT_RESET;
	case PH_TLS_TRUNCATED:
		return PH_REASON_TLS_TRUNCATED;
	case PH_TLS_NO_MEMORY:
		return PH_REASON_NO_MEMORY;
	default:
		return PH_REASON_TLS_ERROR;
	}
}

/* @ret_sent: 0 when the CVM takes nothing now. */
static enum ph_reason send_to_cvm(struct ph_end *cvm, const uint8_t *bytes, size_t len, size_t *ret_sent)
{
	ssize_t sent;

	*ret_sent = 0;
	if (!cvm->writable)
		return GOING_ON;
	sent = send(cvm->fd, bytes, len, MSG_NOSIGNAL);
	if (sent >= 0)
		*ret_sent = (size_t)sent;
	else if (errno == EAGAIN)
		cvm->writable = false;
	else
		return PH_REASON_CVM_RESET;
	return GOING_ON;
}

/* Of what the client said goes on what may, and what the CVM does not take is kept. @ret_used: less if that is much. */
static enum ph_reason pass_on(struct ph_exchange *exchange, struct ph_end *cvm, struct ph_relay_means *means,
			      const uint8_t *bytes, size_t len, size_t *ret_used)
{
	uint8_t *checked = means->scratch + PH_TLS_BYTES;
	enum ph_reason reason;
	size_t sent;

	*ret_used = len;
	if (exchange->authority) {
		reason = ph_authority_requests(exchange->authority, bytes, len, ret_used, checked, PH_TLS_BYTES, &len);
		if (reason != GOING_ON || !len)
			return reason;
		bytes = checked;
	}
	reason = send_to_cvm(cvm, bytes, len, &sent);
	if (reason == GOING_ON && sent < len && keep(&exchange->to_cvm, bytes + sent, len - sent))
		reason = PH_REASON_NO_MEMORY;
	return reason;
}

static bool has_unchecked(const struct ph_exchange *exchange)
{
	return exchange->unchecked || (exchange->authority && ph_authority_is_holding(exchange->authority));
}

static enum ph_reason pass_unchecked(struct ph_exchange *exchange, struct ph_end *cvm, struct ph_relay_means *means)
{
	const struct ph_chunk *chunk = exchange->unchecked;
	enum ph_reason reason;
	size_t used;

	if (!chunk)
		return pass_on(exchange, cvm, means, means->scratch, 0, &used);
	reason = pass_on(exchange, cvm, means, chunk->bytes + chunk->at, chunk->len - chunk->at, &used);
	if (reason == GOING_ON)
		shorten(&exchange->unchecked, used);
	return reason;
}

/* Small records are gathered: a client must not be able to make a system call, or a packet, of every byte. */
static enum ph_reason read_client(struct ph_exchange *exchange, struct ph_end *client, struct ph_end *cvm,
				  struct ph_relay_means *means, enum ph_progress *progress)
{
	size_t most = exchange->authority ? PH_TLS_BYTES : PH_PIPE_BYTES, used = 0, len, passed;
	enum ph_tls_result result = PH_TLS_OK;
	enum ph_reason reason;

	while (used < most) {
		result = ph_tls_read(exchange->session, means->scratch + used, most - used, &len);
		if (result != PH_TLS_OK)
			break;
		used += len;
	}
	if (used) {
		exchange->read_waits_to_write = false;
		means->stats->bytes_from_clients += used;
		reason = pass_on(exchange, cvm, means, means->scratch, used, &passed);
		if (reason != GOING_ON)
			return reason;
		if (passed < used && keep(&exchange->unchecked, means->scratch + passed, used - passed))
			return PH_REASON_NO_MEMORY;
	}
	switch (result) {
	case PH_TLS_OK:
		return GOING_ON;
	case PH_TLS_WANT_READ:
		exchange->read_waits_to_write = false;
		client->readable = false;
		return GOING_ON;
	case PH_TLS_WANT_WRITE:
		exchange->read_waits_to_write = true;
		client->writable = false;
		return GOING_ON;
	case PH_TLS_AGAIN:
		*progress = PH_PROGRESS_AGAIN;
		return GOING_ON;
	case PH_TLS_CLOSED:
		exchange->client_ended = true;
		return GOING_ON;
	default:
		return tls_reason(result);
	}
}

static bool can_read_client(const struct ph_exchange *exchange, const struct ph_end *client)
{
	return exchange->read_waits_to_write ? client->writable : client->readable;
}

/* One direction, until it is blocked or its turn is over. */
static enum ph_reason run_to_cvm(struct ph_exchange *exchange, struct ph_end *client, struct ph_end *cvm,
				 struct ph_relay_means *means, enum ph_progress *progress)
{
	enum ph_reason reason;
	int rounds = 0;
	size_t sent;

	ph_tls_session_turn(exchange->session);
	while (*progress == PH_PROGRESS_WAIT) {
		if (exchange->to_cvm) {
			const struct ph_chunk *chunk = exchange->to_cvm;

			reason = send_to_cvm(cvm, chunk->bytes + chunk->at, chunk->len - chunk->at, &sent);
			if (reason != GOING_ON || !sent)
				return reason;
			shorten(&exchange->to_cvm, sent);
			continue;
		}
		/* A few bytes may stand for many: the client's turn is over all the same. */
		if (has_unchecked(exchange)) {
			reason = pass_unchecked(exchange, cvm, means);
			if (reason != GOING_ON)
				return reason;
			if (++rounds == PH_TURN_ROUNDS)
				*progress = PH_PROGRESS_AGAIN;
			continue;
		}
		if (exchange->client_ended || !can_read_client(exchange, client))
			return GOING_ON;
		reason = read_client(exchange, client, cvm, means, progress);
		if (reason != GOING_ON)
			return reason;
	}
	return GOING_ON;
}

static enum ph_reason pass_back(struct ph_exchange *exchange, const struct ph_relay_means *means, size_t len)
{
	enum ph_tls_result result = ph_tls_write(exchange->session, means->scratch, len);

	return result == PH_TLS_OK ? GOING_ON : tls_reason(result);
}

/* @rounds: goes up by what it was, in records. */
static enum ph_reason read_cvm(struct ph_exchange *exchange, struct ph_end *cvm, struct ph_relay_means *means,
			       int *rounds)
{
	size_t most = exchange->authority ? ph_authority_room(exchange->authority, PH_PIPE_BYTES) : PH_PIPE_BYTES;
	ssize_t got = recv(cvm->fd, means->scratch, most, 0);
	enum ph_reason reason;

	if (got <= 0) {
		if (!got)
			exchange->cvm_ended = true;
		else if (errno == EAGAIN)
			cvm->readable = false;
		else
			return PH_REASON_CVM_RESET;
		return GOING_ON;
	}
	means->stats->bytes_from_cvms += (__u64)got;
	*rounds += 1 + (int)((got - 1) / PH_TLS_BYTES);
	if (exchange->authority) {
		reason = ph_authority_answers(exchange->authority, means->scratch, (size_t)got);
		if (reason != GOING_ON)
			return reason;
	}
	return pass_back(exchange, means, (size_t)got);
}

static enum ph_reason flush(struct ph_exchange *exchange, struct ph_end *client)
{
	enum ph_tls_result result;

	if (!ph_tls_held(exchange->session) || !client->writable)
		return GOING_ON;
	result = ph_tls_flush(exchange->session);
	if (result == PH_TLS_WANT_WRITE)
		client->writable = false;
	else if (result != PH_TLS_OK)
		return tls_reason(result);
	return GOING_ON;
}

static enum ph_reason run_to_client(struct ph_exchange *exchange, struct ph_end *client, struct ph_end *cvm,
				    struct ph_relay_means *means, enum ph_progress *progress)
{
	enum ph_reason reason;
	size_t len;

	for (int rounds = 0; rounds < PH_TURN_ROUNDS;) {
		reason = flush(exchange, client);
		if (reason != GOING_ON || ph_tls_held(exchange->session) || !ph_tls_can_write(exchange->session))
			return reason;
		len = 0;
		if (exchange->authority && !exchange->client_told)
			len = ph_authority_speak(exchange->authority, means->scratch, PH_TLS_BYTES);
		if (len) {
			reason = pass_back(exchange, means, len);
			if (reason != GOING_ON)
				return reason;
			continue;
		}
		if (exchange->cvm_ended || !cvm->readable)
			return GOING_ON;
		reason = read_cvm(exchange, cvm, means, &rounds);
		if (reason != GOING_ON)
			return reason;
	}
	*progress = PH_PROGRESS_AGAIN;
	return GOING_ON;
}

/* The last thing in a direction. */
static enum ph_reason pass_ends(struct ph_exchange *exchange, struct ph_end *client, struct ph_end *cvm)
{
	enum ph_tls_result result;

	if (exchange->client_ended && !exchange->to_cvm && !has_unchecked(exchange) && !exchange->cvm_told) {
		exchange->cvm_told = true;
		shutdown(cvm->fd, SHUT_WR);
	}
	if (exchange->cvm_ended && !exchange->client_told && client->writable && !ph_tls_held(exchange->session) &&
	    ph_tls_can_write(exchange->session)) {
		result = ph_tls_close(exchange->session);
		if (result == PH_TLS_WANT_WRITE) {
			client->writable = false;
			return GOING_ON;
		}
		if (result != PH_TLS_OK)
			return tls_reason(result);
		exchange->client_told = true;
		shutdown(client->fd, SHUT_WR);		/* some clients wait for this one */
	}
	return exchange->cvm_told && exchange->client_told ? PH_REASON_CLOSED : GOING_ON;
}

enum ph_progress ph_exchange_run(struct ph_exchange *exchange, struct ph_end *client, struct ph_end *cvm,
				 struct ph_relay_means *means, enum ph_reason *ret_reason)
{
	enum ph_progress from_client = PH_PROGRESS_WAIT, from_cvm = PH_PROGRESS_WAIT;
	enum ph_reason reason;
	bool waited;

	reason = run_to_client(exchange, client, cvm, means, &from_cvm);
	waited = !ph_tls_can_write(exchange->session);
	if (reason == GOING_ON)
		reason = run_to_cvm(exchange, client, cvm, means, &from_client);
	/* Once more, for authority's refusals, or for what had to wait for the client's message. */
	if (reason == GOING_ON && (exchange->authority || waited) && from_cvm == PH_PROGRESS_WAIT)
		reason = run_to_client(exchange, client, cvm, means, &from_cvm);
	if (reason == GOING_ON)
		reason = pass_ends(exchange, client, cvm);
	if (reason != GOING_ON) {
		*ret_reason = reason;
		return PH_PROGRESS_OVER;
	}
	return from_client == PH_PROGRESS_AGAIN || from_cvm == PH_PROGRESS_AGAIN ? PH_PROGRESS_AGAIN : PH_PROGRESS_WAIT;
}

uint32_t ph_exchange_owed(const struct ph_exchange *exchange)
{
	if (!exchange->authority || exchange->client_told || ph_tls_held(exchange->session) ||
	    !ph_tls_can_write(exchange->session))
		return 0;
	return ph_authority_owed(exchange->authority);
}
