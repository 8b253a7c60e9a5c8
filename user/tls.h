/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls - the TLS that ends at this gateway: one certificate per base domain, one session per standard connection.
 *
 * The only part of the data path that knows OpenSSL. Peers are hostile; certificate and key files are the operator's.
 */
#ifndef PHALAD_TLS_H
#define PHALAD_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/limits.h>

#include "config.h"

#define PH_TLS_WRITE_MAX PH_PIPE_BYTES

struct ph_tickets;
struct ph_tls;					/* a domain's certificate, key and settings */
struct ph_tls_session;				/* one connection's */

/**
 * ph_tls_new() - a domain's settings from its pair of files.
 * @domain: its name, and the paths for messages.
 * @certificate_fd, @private_key_fd: read from their start, stay the caller's.
 * @tickets: the keys of session tickets; they may change at any time, and must outlive all connections.
 * @allow_expired: a certificate outside its time is logged as a warning instead of being refused.
 * @error: one line for people, set on failure.
 *
 * Refused are: files that are not PEM, a key with a passphrase, a key file that is neither root's nor ours, or that others
 * can read or write, a key that is not the certificate's, a certificate that does not cover *.@domain or has expired.
 *
 * Return: 0, -EINVAL for one of those, or -errno.
 */
int ph_tls_new(const struct ph_domain *domain, int certificate_fd, int private_key_fd,
	       const struct ph_tickets *tickets, bool allow_expired, struct ph_tls **ret_tls, char *error,
	       size_t error_size);

/* The same, from the paths in @domain. */
int ph_tls_open(const struct ph_domain *domain, const struct ph_tickets *tickets, bool allow_expired,
		struct ph_tls **ret_tls, char *error, size_t error_size);

/* Sessions that were made with it go on. */
void ph_tls_free(struct ph_tls *tls);

/* Would all domains' files be taken? Return: as ph_tls_new(). */
int ph_tls_check(const struct ph_config *config, char *error, size_t error_size);

enum ph_tls_result {
	PH_TLS_OK,
	PH_TLS_WANT_READ,			/* once the socket is readable */
	PH_TLS_WANT_WRITE,			/* once it is writable */
	PH_TLS_AGAIN,				/* this turn's share of reading is used up */
	PH_TLS_CLOSED,				/* the peer sent close_notify */
	PH_TLS_TRUNCATED,			/* the peer's stream ended without it */
	PH_TLS_RESET,				/* the peer reset the connection, or it broke */
	PH_TLS_FAILED,				/* not TLS, or refused; an alert was sent where there is one */
	PH_TLS_NO_MEMORY,
};

/* What the handshake must turn out as. */
struct ph_tls_terms {
	const char *name;			/* SNI, lower case, zero terminated: any other is refused */
	bool h2;				/* ALPN h2 instead of http/1.1 */
};

/**
 * ph_tls_session_new() - the server's side of a connection.
 * @fd: non-blocking; stays the caller's, and open for as long as the session lives.
 * @terms: borrowed until the handshake is over.
 *
 * Sessions are resumed only under the name they were made with (RFC 6066, section 3).
 *
 * Return: 0 or -ENOMEM.
 */
int ph_tls_session_new(struct ph_tls *tls, int fd, const struct ph_tls_terms *terms,
		       struct ph_tls_session **ret_session);
void ph_tls_session_free(struct ph_tls_session *session);

/* A new turn: as much may be read from the socket as one connection gets before others have their turn. */
void ph_tls_session_turn(struct ph_tls_session *session);

enum ph_tls_result ph_tls_handshake(struct ph_tls_session *session);

/* After the handshake: was h2 agreed on? */
bool ph_tls_session_is_h2(const struct ph_tls_session *session);

/* Plaintext from the peer. @ret_len is set on PH_TLS_OK, and then at least 1. */
enum ph_tls_result ph_tls_read(struct ph_tls_session *session, uint8_t *bytes, size_t size, size_t *ret_len);

/**
 * ph_tls_write() - plaintext to the peer.
 * @len: PH_TLS_WRITE_MAX at most, and only while nothing is held and ph_tls_can_write().
 *
 * All of it is taken and goes out at once, however many records that is; what the socket does not take is held,
 * encrypted.
 *
 * Return: PH_TLS_OK, RESET, FAILED or NO_MEMORY.
 */
enum ph_tls_result ph_tls_write(struct ph_tls_session *session, const uint8_t *bytes, size_t len);

/* Not while a message of the peer's that is no data (KeyUpdate) has come in part: only reading changes that. */
bool ph_tls_can_write(const struct ph_tls_session *session);

/* Bytes that the socket did not take: ph_tls_write()'s, or the handshake's last ones. */
size_t ph_tls_held(const struct ph_tls_session *session);

/* Sends what is held. Return: PH_TLS_OK when nothing is any more, WANT_WRITE, or RESET. */
enum ph_tls_result ph_tls_flush(struct ph_tls_session *session);

/* Sends close_notify, behind what is held, while ph_tls_can_write(); reading goes on. */
enum ph_tls_result ph_tls_close(struct ph_tls_session *session);

#endif
