/* SPDX-License-Identifier: Apache-2.0 */
/*
 * authority - every request of an h2 connection names the host that it was made for.
 *
 * A browser sends requests for any host that the certificate covers over a connection that it has (RFC 9113, section
 * 9.1.1), and under a wildcard those are all tenants'. Here such a request is answered with 421, upon which browsers
 * make it again on a connection of its own (RFC 9110, section 15.5.20), and nothing of it reaches the CVM. The client
 * is protected from the CVM, so the CVM may answer nothing but what was passed on to it, and push nothing: it could
 * else guess a stream and answer first.
 *
 * Both peers' bytes are hostile. Their frames are not judged beyond what that takes; the peers do that.
 */
#ifndef PHALAD_AUTHORITY_H
#define PHALAD_AUTHORITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/types.h>

#include <phala/reason.h>

struct ph_authority;

/**
 * ph_authority_new() - at the beginning of an h2 connection.
 * @name: SNI, lower case, zero terminated.
 * @count: counts requests that were refused; outlives it.
 *
 * Return: 0 or -ENOMEM.
 */
int ph_authority_new(const char *name, __u64 *count, struct ph_authority **ret_authority);
void ph_authority_free(struct ph_authority *authority);

/**
 * ph_authority_requests() - what goes on to the CVM of what the client said.
 * @bytes, @len: the client's next bytes; 0 for going on with what is held.
 * @size: room in @out, PH_H2_ROOM_LEAST at least.
 * @ret_used: less than @len when @out is full; the rest is to be offered again.
 *
 * Return: PH_REASON_COUNT, or why the connection must end: H2_MALFORMED, H2_TOO_LONG, MISDIRECTED when more requests
 * wait for their refusal than can be remembered, or NO_MEMORY. The outputs are set in the first case only.
 */
enum ph_reason ph_authority_requests(struct ph_authority *authority, const uint8_t *bytes, size_t len, size_t *ret_used,
				     uint8_t *out, size_t size, size_t *ret_made);

/* Is there something for the CVM that did not fit? */
bool ph_authority_is_holding(const struct ph_authority *authority);

/* How much of the CVM's stream, @most at most, may be read before the gateway must have its say. At least 1. */
size_t ph_authority_room(const struct ph_authority *authority, size_t most);

/* May these bytes of the CVM's, its next ones, go on to the client? Return: PH_REASON_COUNT, or CVM_H2. */
enum ph_reason ph_authority_answers(struct ph_authority *authority, const uint8_t *bytes, size_t len);

/*
 * What the gateway itself says to the client, to be sent before anything else of the CVM's. @size: PH_H2_ROOM_LEAST at
 * least. Return: its length, 0 when there is nothing to say, or the CVM is in the middle of a frame.
 */
size_t ph_authority_speak(struct ph_authority *authority, uint8_t *out, size_t size);

/* Which refusal, counted from 1, is the oldest that the client was not told yet; 0: none. */
uint32_t ph_authority_owed(const struct ph_authority *authority);

#endif
