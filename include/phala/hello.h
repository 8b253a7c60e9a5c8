/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * hello - find the server name in a TLS ClientHello.
 *
 * Input is hostile. Compiled into both the steer program and phalad, so the two cannot disagree; no libc, no
 * allocation, no pointer kept. Ambiguous input is refused rather than guessed (RFC 6066, section 3).
 *
 * On the wire (RFC 8446, sections 4.1.2, 5.1; RFC 6066, section 3), numbers big-endian:
 *
 *   record     type 22:8  version:16 (major 3)  length:16 (1-16384)  payload
 *   message    type 1:8  length:24  version:16  random:256                        in the payload of one or more records
 *              length:8 session-id (0-32 bytes)  length:16 cipher suites (2, 4, ... bytes)
 *              length:8 compression methods (1- bytes)  [length:16 extensions]    exactly to the end of the message
 *   extension  type:16  length:16  data
 *   data of server_name (type 0):  length:16  [type 0:8  length:16  host_name]    exactly one entry
 *
 * The walk is a step machine: a move takes what is there, be it a part of a number, so a split is no special case
 * anywhere. Refusals come as soon as they are certain; PH_HELLO_OK and PH_HELLO_NO_SNI only when the whole message
 * was consumed, down to the last length in it. What follows its last record (early data) is not looked at.
 */
#ifndef PHALA_HELLO_H
#define PHALA_HELLO_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#include "limits.h"
#include "loop.h"

enum ph_hello_verdict {
	PH_HELLO_MORE,			/* no refusal: call again with more bytes; from BPF, let the packet pass */
	PH_HELLO_OK,
	PH_HELLO_NOT_TLS,		/* the first bytes are no handshake record */
	PH_HELLO_NO_SNI,
	PH_HELLO_MALFORMED,
	PH_HELLO_AMBIGUOUS,		/* two server_name extensions, or two names in one, equal or not */
	PH_HELLO_TOO_LONG,		/* message over PH_HELLO_MAX, or stream over PH_HELLO_STREAM_MAX */
};

#define PH_HELLO_NUMBER_SIZE 4		/* bytes of the longest number, which is also the first */
#define PH_HELLO_NAME_STEP 4		/* characters read at once */
#define PH_HELLO_STEP_MOVES 4		/* moves to a step: in BPF, calling a step costs more than a move */
#ifdef __bpf__
#define PH_HELLO_LOOK_MAX PH_HELLO_STREAM_BPF_MAX
#else
#define PH_HELLO_LOOK_MAX PH_HELLO_STREAM_MAX
#endif

/* What the next bytes of the message are. The numbers' widths are with ph_hello_expect()'s callers. */
enum ph_hello_field {
	PH_HELLO_HEADER,		/* type and length in one number */
	PH_HELLO_SESSION_ID,		/* from here on up to EXTENSIONS: the length of it */
	PH_HELLO_CIPHER_SUITES,
	PH_HELLO_COMPRESSION,
	PH_HELLO_EXTENSIONS,
	PH_HELLO_EXTENSION,		/* type and length in one number */
	PH_HELLO_NAME_LIST,		/* length of the list in server_name */
	PH_HELLO_NAME_ENTRY,		/* type and length in one number */
	PH_HELLO_NAME,			/* the characters */
	PH_HELLO_END,			/* nothing, after what is skipped */
};

/* A walk that can be continued: zero it for a new stream. */
struct ph_hello {
	char name[PH_NAME_SIZE] __attribute__((aligned(8)));	/* lower case, zero padded; meaningful on PH_HELLO_OK */
	__u32 name_len;			/* characters */
	__u32 at;			/* bytes of the stream that are consumed; on a verdict, where it fell */

	/* The state of the walk. Ends are offsets in the message, as pos is. */
	__u32 verdict;			/* enum ph_hello_verdict */
	__u32 header_at;		/* bytes seen of the header of the next record, 0-4 */
	__u32 record_len;		/* what was read of the length in it */
	__u32 record_left;		/* payload bytes of this record still to come */
	__u32 pos;			/* bytes of the message that are consumed */
	__u32 skip;			/* bytes before the field that are of no interest */
	__u32 field;			/* enum ph_hello_field */
	__u32 number;			/* what was read of a number */
	__u32 filled;			/* its bytes, of PH_HELLO_NUMBER_SIZE: a narrower one begins with zeros */
	__u32 message_end;
	__u32 server_name_end;		/* of that extension; not 0 once there was one */
	__u32 name_end;
};

/* The next @count bytes of the stream are bytes of the message, and done with. */
static inline void ph_hello_consume(struct ph_hello *hello, __u32 count)
{
	hello->at += count;
	hello->pos += count;
	hello->record_left -= count;
}

/* Expect, after what is skipped, a number of @width bytes before @end. */
static inline enum ph_hello_verdict ph_hello_expect(struct ph_hello *hello, enum ph_hello_field field, __u32 width,
						    __u32 end)
{
	if (hello->pos + hello->skip + width > end)
		return PH_HELLO_MALFORMED;
	hello->field = field;
	hello->number = 0;
	hello->filled = PH_HELLO_NUMBER_SIZE - width;
	return PH_HELLO_MORE;
}

/* Expect an extension, or the end of the message if this is where it ends. */
static inline enum ph_hello_verdict ph_hello_expect_extension(struct ph_hello *hello)
{
	if (hello->pos + hello->skip != hello->message_end)
		return ph_hello_expect(hello, PH_HELLO_EXTENSION, 4, hello->message_end);
	hello->field = PH_HELLO_END;
	return PH_HELLO_MORE;
}

/* A number is complete, and pos is behind it: what does it mean, and what comes next? */
static inline enum ph_hello_verdict ph_hello_number(struct ph_hello *hello)
{
	__u32 number = hello->number, length = number & 0xffff, end = hello->pos + length;

	switch (hello->field) {
	case PH_HELLO_HEADER:
		if (number >> 24 != 1)
			return PH_HELLO_MALFORMED;
		hello->message_end = hello->pos + (number & 0xffffff);
		if (hello->message_end > PH_HELLO_MAX)
			return PH_HELLO_TOO_LONG;
		hello->skip = 2 + 32;
		return ph_hello_expect(hello, PH_HELLO_SESSION_ID, 1, hello->message_end);
	case PH_HELLO_SESSION_ID:
		if (length > 32)
			return PH_HELLO_MALFORMED;
		hello->skip = length;
		return ph_hello_expect(hello, PH_HELLO_CIPHER_SUITES, 2, hello->message_end);
	case PH_HELLO_CIPHER_SUITES:
		if (length < 2 || length % 2)
			return PH_HELLO_MALFORMED;
		hello->skip = length;
		return ph_hello_expect(hello, PH_HELLO_COMPRESSION, 1, hello->message_end);
	case PH_HELLO_COMPRESSION:
		if (length < 1)
			return PH_HELLO_MALFORMED;
		hello->skip = length;
		if (end == hello->message_end) {
			hello->field = PH_HELLO_END;
			return PH_HELLO_MORE;
		}
		return ph_hello_expect(hello, PH_HELLO_EXTENSIONS, 2, hello->message_end);
	case PH_HELLO_EXTENSIONS:
		if (end != hello->message_end)
			return PH_HELLO_MALFORMED;
		return ph_hello_expect_extension(hello);
	case PH_HELLO_EXTENSION:
		if (end > hello->message_end)
			return PH_HELLO_MALFORMED;
		if (number >> 16) {
			hello->skip = length;
			return ph_hello_expect_extension(hello);
		}
		if (hello->server_name_end)
			return PH_HELLO_AMBIGUOUS;
		hello->server_name_end = end;
		return ph_hello_expect(hello, PH_HELLO_NAME_LIST, 2, end);
	case PH_HELLO_NAME_LIST:
		if (end != hello->server_name_end)
			return PH_HELLO_MALFORMED;
		return ph_hello_expect(hello, PH_HELLO_NAME_ENTRY, 3, end);
	case PH_HELLO_NAME_ENTRY:
		if (number >> 16 || end > hello->server_name_end)
			return PH_HELLO_MALFORMED;
		if (hello->name_len)
			return PH_HELLO_AMBIGUOUS;
		if (length < 1 || length > PH_NAME_MAX)
			return PH_HELLO_MALFORMED;
		hello->name_end = end;
		hello->field = PH_HELLO_NAME;
		return PH_HELLO_MORE;
	default:
		return PH_HELLO_MALFORMED;
	}
}

/* What there is of a number. @available is not 0. */
static __always_inline enum ph_hello_verdict ph_hello_read(struct ph_hello *hello, const __u8 *stream, __u32 available)
{
	__u32 at = hello->at, number = hello->number, wanted = PH_HELLO_NUMBER_SIZE - hello->filled;
	__u32 count = available < wanted ? available : wanted;

	for (__u32 i = 0; i < PH_HELLO_NUMBER_SIZE && i < count; i++)
		number = number << 8 | stream[ph_below(at + i, PH_HELLO_STREAM_BPF_MAX)];
	hello->number = number;
	hello->filled += count;
	ph_hello_consume(hello, count);
	return count == wanted ? ph_hello_number(hello) : PH_HELLO_MORE;
}

/* Some characters of the name. @available is not 0. */
static __always_inline enum ph_hello_verdict ph_hello_read_name(struct ph_hello *hello, const __u8 *stream,
								__u32 available)
{
	__u32 at = hello->at, len = hello->name_len, wanted = hello->name_end - hello->pos, count = 0;
	int is_bad = 0;

	while (count < PH_HELLO_NAME_STEP && count < available && count < wanted && !is_bad) {
		__u8 c = stream[ph_below(at + count, PH_HELLO_STREAM_BPF_MAX)];

		is_bad = c < 0x20 || c == 0x7f;
		if (c >= 'A' && c <= 'Z')
			c += 'a' - 'A';
		hello->name[ph_below(len + count, PH_NAME_SIZE)] = c;
		count++;
	}
	hello->name_len = len + count;
	ph_hello_consume(hello, count);
	if (is_bad)
		return PH_HELLO_MALFORMED;
	if (hello->pos != hello->name_end)
		return PH_HELLO_MORE;
	if (hello->pos != hello->server_name_end)
		return ph_hello_expect(hello, PH_HELLO_NAME_ENTRY, 3, hello->server_name_end);
	return ph_hello_expect_extension(hello);
}

/* One byte of a record's header. The minor version means nothing (RFC 8446, section 5.1). */
static inline enum ph_hello_verdict ph_hello_record(struct ph_hello *hello, __u8 byte)
{
	enum ph_hello_verdict wrong = hello->pos ? PH_HELLO_MALFORMED : PH_HELLO_NOT_TLS;

	hello->at++;
	switch (hello->header_at++) {
	case 0:
		return byte == 22 ? PH_HELLO_MORE : wrong;
	case 1:
		return byte == 3 ? PH_HELLO_MORE : wrong;
	case 2:
		return PH_HELLO_MORE;
	case 3:
		hello->record_len = byte << 8;
		return PH_HELLO_MORE;
	default:
		hello->header_at = 0;
		hello->record_len |= byte;
		hello->record_left = hello->record_len;
		if (hello->record_len < 1 || hello->record_len > PH_RECORD_MAX)
			return PH_HELLO_MALFORMED;
		return PH_HELLO_MORE;
	}
}

struct ph_hello_run {
	struct ph_hello *hello;
	const __u8 *stream;
	__u32 len;
};

/* What is skipped, and a field or a part of it; at least one byte. Return: 1 when there is nothing left to do. */
static __always_inline long ph_hello_move(const struct ph_hello_run *run)
{
	struct ph_hello *hello = run->hello;
	__u32 available, skipped;

	if (hello->verdict != PH_HELLO_MORE || hello->at >= run->len)
		return 1;
	if (!hello->record_left) {
		hello->verdict = ph_hello_record(hello, run->stream[ph_below(hello->at, PH_HELLO_STREAM_BPF_MAX)]);
		return 0;
	}
	available = run->len - hello->at;
	if (available > hello->record_left)
		available = hello->record_left;
	skipped = hello->skip < available ? hello->skip : available;
	ph_hello_consume(hello, skipped);
	hello->skip -= skipped;
	available -= skipped;
	if (available && hello->field == PH_HELLO_NAME)
		hello->verdict = ph_hello_read_name(hello, run->stream, available);
	else if (available && hello->field != PH_HELLO_END)
		hello->verdict = ph_hello_read(hello, run->stream, available);
	if (!hello->skip && hello->field == PH_HELLO_END && hello->verdict == PH_HELLO_MORE) {
		if (hello->record_left)
			hello->verdict = PH_HELLO_MALFORMED;
		else
			hello->verdict = hello->name_len ? PH_HELLO_OK : PH_HELLO_NO_SNI;
	}
	return 0;
}

static inline long ph_hello_step(__u32 index, void *arg)
{
	(void)index;
	for (int i = 0; i < PH_HELLO_STEP_MOVES; i++)
		if (ph_hello_move(arg))
			return 1;
	return 0;
}

/**
 * ph_hello_walk() - continue the walk over the start of a TCP stream.
 * @hello: state; zeroed before the first call. In BPF: in a map value, so that the verifier need not follow it.
 * @stream: the stream from its first byte on (also on later calls); borrowed. In BPF: PH_HELLO_STREAM_BPF_MAX bytes.
 * @len: bytes seen so far. What is over PH_HELLO_STREAM_MAX, in BPF PH_HELLO_STREAM_BPF_MAX, is not looked at; a
 * stream that is still PH_HELLO_MORE at the former is PH_HELLO_TOO_LONG, at the latter a worker's.
 *
 * Return: enum ph_hello_verdict; once it is not PH_HELLO_MORE it never changes. It does not depend on how the stream
 * was split over calls.
 */
static inline enum ph_hello_verdict ph_hello_walk(struct ph_hello *hello, const __u8 *stream, __u32 len)
{
	struct ph_hello_run run = { .hello = hello, .stream = stream, .len = len };

	if (run.len > PH_HELLO_LOOK_MAX)
		run.len = PH_HELLO_LOOK_MAX;
	ph_loop(run.len, ph_hello_step, &run);
	if (hello->verdict == PH_HELLO_MORE && hello->at == PH_HELLO_STREAM_MAX)
		hello->verdict = PH_HELLO_TOO_LONG;
	return (enum ph_hello_verdict)hello->verdict;
}

#endif
