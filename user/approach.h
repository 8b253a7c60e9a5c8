/* SPDX-License-Identifier: Apache-2.0 */
/*
 * approach - a connection on its way: hello, route, instance, and in standard mode TLS.
 *
 * Nothing of the client's stream is consumed on the way, save PostgreSQL's questions, so that in passthrough the CVM
 * gets it from its first byte, and in standard mode OpenSSL does.
 */
#ifndef PHALAD_APPROACH_H
#define PHALAD_APPROACH_H

#include <stdbool.h>
#include <stdint.h>

#include <phala/hello.h>

#include "events.h"
#include "route.h"
#include "tls.h"

struct ph_connection;

/* What is needed until bytes go both ways. */
struct ph_approach {
	struct ph_hello hello;
	struct ph_route route;
	struct ph_tls_terms terms;
	uint32_t tries;				/* instances dialled */
	bool spoke;				/* the client sent something */
	bool widened;				/* the receive buffer, for a long hello */
	bool asked_ssl, asked_gss;		/* PostgreSQL's questions */
};

/* Does what can be done now in the states HELLO, DIAL, ASK and HANDSHAKE. */
void ph_approach_advance(struct ph_connection *connection);

void ph_approach_hello_expired(struct ph_timer *timer);
void ph_approach_dial_expired(struct ph_timer *timer);
void ph_approach_handshake_expired(struct ph_timer *timer);

#endif
