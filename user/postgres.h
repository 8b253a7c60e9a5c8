/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postgres - what PostgreSQL clients say before TLS (PostgreSQL, "Frontend/Backend Protocol", 55.2.10 and 55.2.11).
 *
 * libpq does not begin with a ClientHello: it asks in the clear whether TLS is spoken here, and begins on 'S'. It may
 * have asked for GSSAPI before. Input is hostile.
 */
#ifndef PHALAD_POSTGRES_H
#define PHALAD_POSTGRES_H

#include <stddef.h>
#include <stdint.h>

#define PH_POSTGRES_REQUEST_LEN 8		/* length:32 = 8, code:32 */

enum ph_postgres_request {
	PH_POSTGRES_MORE,			/* the beginning of one of the two */
	PH_POSTGRES_SSL,
	PH_POSTGRES_GSS,
	PH_POSTGRES_NEITHER,
};

enum ph_postgres_request ph_postgres_parse(const uint8_t *bytes, size_t len);

/* Tells a client yes ('S') to SSL or no ('N') to GSS. Return: 0 or -errno. */
int ph_postgres_answer(int fd, enum ph_postgres_request request);

/* Asks a server whether it speaks TLS. Return: 0 or -errno. */
int ph_postgres_ask(int fd);

/*
 * Reads its answer. Return: 0 for a yes, -EAGAIN, -EPROTO for anything else, or -errno. A server that says more than
 * one byte before it was sent a ClientHello does not speak the protocol: whatever that is, the client must not take it
 * for part of the TLS stream.
 */
int ph_postgres_read_answer(int fd);

#endif
