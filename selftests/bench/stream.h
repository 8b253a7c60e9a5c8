/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream - what the load generator and the CVM's server agree on.
 *
 * A stream begins with a head: one TLS record, whole; a captured ClientHello in passthrough, and the same bytes as some
 * request in clear behind a gateway that ends TLS. What follows depends on the port:
 *
 *   source  the server sends the pattern until the client says anything, then how many bytes that were, and closes
 *   sink    the client sends the pattern until its FIN; the server answers how many bytes came, and closes
 *   answer  the server sends a struct stream_answer and closes
 *   ask     the same, without closing: another head may follow
 *
 * So each end knows what the other has seen, and bytes that got lost, doubled or mixed up in between are noticed.
 */
#ifndef BENCH_STREAM_H
#define BENCH_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define STREAM_SOURCE_PORT 7001
#define STREAM_SINK_PORT 7002
#define STREAM_ANSWER_PORT 7003
#define STREAM_ASK_PORT 7004

#define STREAM_HEAD_MAX 4096		/* bytes */
#define STREAM_RECORD_HEADER_LEN 5
#define STREAM_CHUNK 131072		/* bytes sent or read at once */
#define STREAM_LOOK_EVERY 16		/* reads to one that looks at the bytes; the others leave them in the kernel */

/* Numbers are in the host's order: both ends are on one machine. */
struct stream_answer {
	uint64_t head_hash;
	uint64_t head_len;
	uint8_t padding[48];
};

/* Fills in the pattern. Before anything else here. */
void stream_init(void);

/* Whole length of the head that begins with these bytes; only what was seen when that is not enough to tell. */
size_t stream_head_len(const uint8_t *bytes, size_t seen);

struct stream_answer stream_answer_to(const uint8_t *head, size_t len);

/* STREAM_CHUNK bytes of the pattern from @position on. */
const uint8_t *stream_at(uint64_t position);

/*
 * Reads from a stream in clear. Most of it is thrown away without being copied: the ends share the cores with what is
 * measured, and should not be what is measured.
 * @scratch: STREAM_CHUNK bytes. Return: bytes, 0 at the end of the stream, or -errno: -EBADMSG for other bytes than the
 * pattern's.
 */
ssize_t stream_receive(int fd, uint64_t position, uint8_t *scratch);

/* Compares a few bytes at either end of @bytes with the pattern. */
bool stream_matches(uint64_t position, const uint8_t *bytes, size_t len);

#endif
