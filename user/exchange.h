/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exchange - move plaintext both ways between a client's TLS session and a CVM's socket.
 *
 * The counterpart of relay for standard mode, under the same rules: see relay.h.
 */
#ifndef PHALAD_EXCHANGE_H
#define PHALAD_EXCHANGE_H

#include "authority.h"
#include "relay.h"
#include "tls.h"

/* Plaintext that its reader did not take yet. */
struct ph_chunk {
	uint32_t at, len;
	uint8_t bytes[];
};

struct ph_exchange {
	struct ph_tls_session *session;		/* its handshake is over */
	struct ph_authority *authority;		/* NULL unless it is h2 */
	struct ph_chunk *unchecked;		/* of the client's, before authority had a look */
	struct ph_chunk *to_cvm;		/* NULL while there is nothing to hold: most of the time */
	bool client_ended, cvm_ended;		/* close_notify, or FIN, was read */
	bool cvm_told, client_told;		/* and passed on */
	bool read_waits_to_write;		/* TLS cannot read before it has written */
};

/**
 * ph_exchange_init() - begin.
 * @session: taken over, also on failure.
 * @name: SNI: whom requests may name if this is h2.
 * @means: of all runs of it.
 *
 * Return: 0 or -ENOMEM; @exchange is to be closed either way.
 */
int ph_exchange_init(struct ph_exchange *exchange, struct ph_tls_session *session, const char *name,
		     struct ph_relay_means *means);

/**
 * ph_exchange_run() - move what can be moved.
 * @ret_reason: set on PH_PROGRESS_OVER: CLOSED after close_notify and FIN, TLS_TRUNCATED when the client's stream ended
 * without close_notify, TLS_ERROR, CLIENT_RESET, CVM_RESET, NO_MEMORY, or in h2 what authority.h says.
 *
 * close_notify is passed on as a FIN and the reverse, each after the last byte before it. Anything but CLOSED must not
 * look like a complete stream: the caller resets both sides. A stopped client costs PH_PIPE_BYTES and what TLS adds
 * to it; a stopped CVM PH_PIPE_BYTES, and in h2 twice PH_TLS_BYTES and a header block.
 */
enum ph_progress ph_exchange_run(struct ph_exchange *exchange, struct ph_end *client, struct ph_end *cvm,
				 struct ph_relay_means *means, enum ph_reason *ret_reason);

/* As ph_authority_owed(), by the CVM: 0 while it is the client that lets nothing be said. */
uint32_t ph_exchange_owed(const struct ph_exchange *exchange);

void ph_exchange_close(struct ph_exchange *exchange);

#endif
