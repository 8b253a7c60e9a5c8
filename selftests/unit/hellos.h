/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hellos - ClientHellos for tests: written down byte by byte in a small notation, captured ones, and both cut anew.
 *
 * The notation, words apart by spaces:
 *
 *   16 0301        bytes in hexadecimal
 *   55*32          a byte, so many times
 *   'app.x'        characters
 *   2( ... )       a length of two bytes, of what stands in between; so 1( and 3(
 *   2+1( ... )     the same, counting one too many; 2-1( one too few
 */
#ifndef HELLOS_H
#define HELLOS_H

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <phala/hello.h>

#define HELLO_BYTES_MAX (4 * PH_HELLO_STREAM_MAX)
#define HELLO_LENGTHS_MAX 64
#define HELLO_DEPTH_MAX 8

struct hello_bytes {
	uint32_t len;
	uint32_t length_count;
	struct hello_length {
		uint32_t at;		/* offset of the length field */
		uint32_t width;		/* its bytes */
	} lengths[HELLO_LENGTHS_MAX];	/* in the order in which they stand */
	uint8_t bytes[HELLO_BYTES_MAX];
};

#define SERVER "app1-8443s.phala.test"

#define RECORD(payload) "16 0301 2( " payload " ) "
#define MESSAGE(body) "01 3( " body " ) "
#define START "0303 55*32 1( 77*32 ) 2( 1301 1302 ) 1( 00 ) "
#define EXTENSIONS(list) "2( " list " ) "
#define HOST(name) "00 2( '" name "' ) "
#define NAMES(list) "0000 2( 2( " list " ) ) "
#define SNI NAMES(HOST(SERVER))
#define VERSIONS "002b 2( 1( 0304 0303 ) ) "
#define EMS "0017 2( ) "
#define HELLO(list) RECORD(MESSAGE(START EXTENSIONS(list)))

static inline void hello_put(struct hello_bytes *out, uint32_t byte, uint32_t count)
{
	if (out->len + count > sizeof(out->bytes))
		abort();
	memset(out->bytes + out->len, (int)byte, count);
	out->len += count;
}

static inline uint32_t hello_get_length(const uint8_t *field, uint32_t width)
{
	uint32_t value = 0;

	for (uint32_t i = 0; i < width; i++)
		value = value << 8 | field[i];
	return value;
}

static inline void hello_set_length(uint8_t *field, uint32_t width, uint32_t value)
{
	for (uint32_t i = 0; i < width; i++)
		field[i] = value >> 8 * (width - 1 - i);
}

/* A length field for what is put until hello_close() of what this returns. */
static inline struct hello_length hello_open(struct hello_bytes *out, uint32_t width)
{
	struct hello_length length = { .at = out->len, .width = width };

	if (out->length_count == HELLO_LENGTHS_MAX)
		abort();
	out->lengths[out->length_count++] = length;
	hello_put(out, 0, width);
	return length;
}

static inline void hello_close(struct hello_bytes *out, struct hello_length length, int error)
{
	hello_set_length(out->bytes + length.at, length.width, out->len - length.at - length.width + error);
}

/* What is wrong with @text is a bug of the test, which ends there. */
static inline void hello_write(struct hello_bytes *out, const char *text)
{
	struct { struct hello_length length; int error; } open[HELLO_DEPTH_MAX];
	int depth = 0;

	out->len = 0;
	out->length_count = 0;
	while (*text) {
		unsigned int byte, count, width;
		int used = 0, error = 0;

		if (*text == ' ') {
			text++;
		} else if (*text == '\'') {
			for (text++; *text && *text != '\''; text++)
				hello_put(out, (uint8_t)*text, 1);
			if (!*text++)
				abort();
		} else if (*text == ')') {
			if (!depth--)
				abort();
			hello_close(out, open[depth].length, open[depth].error);
			text++;
		} else if (text[1] == '(' || (text[1] && text[2] && text[3] == '(')) {
			width = *text - '0';
			if (width < 1 || width > 3 || depth == HELLO_DEPTH_MAX)
				abort();
			if (text[1] != '(')
				error = text[1] == '+' ? 1 : -1;
			open[depth].error = error;
			open[depth++].length = hello_open(out, width);
			text += error ? 4 : 2;
		} else if (sscanf(text, "%2x*%u%n", &byte, &count, &used) == 2 && used) {
			hello_put(out, byte, count);
			text += used;
		} else if (isxdigit(text[0]) && isxdigit(text[1]) && sscanf(text, "%2x", &byte) == 1) {
			hello_put(out, byte, 1);
			text += 2;
		} else {
			fprintf(stderr, "hellos: not in the notation: \"%.20s\"\n", text);
			abort();
		}
	}
	if (depth)
		abort();
}

/* The payload of @in, which is one record, in records of @size bytes. */
static inline void hello_cut(struct hello_bytes *out, const struct hello_bytes *in, uint32_t size)
{
	out->len = 0;
	out->length_count = 0;
	for (uint32_t at = 5; at < in->len;) {
		uint32_t count = in->len - at < size ? in->len - at : size;

		hello_put(out, 0x16, 1);
		hello_put(out, 0x03, 2);
		hello_put(out, count >> 8, 1);
		hello_put(out, count & 0xff, 1);
		if (out->len + count > sizeof(out->bytes))
			abort();
		memcpy(out->bytes + out->len, in->bytes + at, count);
		out->len += count;
		at += count;
	}
}

static inline void hello_add_length(struct hello_bytes *out, uint32_t *at, uint32_t width)
{
	if (out->length_count < HELLO_LENGTHS_MAX && *at + width <= out->len)
		out->lengths[out->length_count++] = (struct hello_length){ .at = *at, .width = width };
	*at += width;
}

/* Where the lengths are in a well-formed hello of one record, if nobody wrote that down. */
static inline void hello_find_lengths(struct hello_bytes *out)
{
	uint32_t at = 3;

	out->length_count = 0;
	hello_add_length(out, &at, 2);		/* record */
	at++;
	hello_add_length(out, &at, 3);		/* message */
	at += 2 + 32;
	for (int i = 0; i < 3; i++) {		/* session id, cipher suites, compression methods */
		uint32_t width = i == 1 ? 2 : 1;

		hello_add_length(out, &at, width);
		at += hello_get_length(out->bytes + at - width, width);
	}
	hello_add_length(out, &at, 2);		/* extensions */
	while (at + 4 <= out->len) {
		uint32_t type = hello_get_length(out->bytes + at, 2), inner, data;

		at += 2;
		hello_add_length(out, &at, 2);
		data = hello_get_length(out->bytes + at - 2, 2);
		inner = at;
		if (!type) {			/* server_name: list, then name */
			hello_add_length(out, &inner, 2);
			inner++;
			hello_add_length(out, &inner, 2);
		}
		at += data;
	}
}

/* Reads selftests/hellos/@name.bin. Return: 0, or -1 when it is not there (tests run from the top directory). */
static inline int hello_read(struct hello_bytes *out, const char *name)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "selftests/hellos/%s.bin", name);
	file = fopen(path, "re");
	if (!file)
		return -1;
	out->len = fread(out->bytes, 1, sizeof(out->bytes), file);
	fclose(file);
	if (out->len < 100)
		return -1;
	hello_find_lengths(out);
	return 0;
}

/* By enum ph_hello_verdict. */
static const char *const hello_words[] = { "more", "ok", "not-tls", "no-sni", "malformed", "ambiguous", "too-long" };

#define HELLO_WORD_COUNT (sizeof(hello_words) / sizeof(hello_words[0]))

struct hello_row {
	const char *name;
	const char *text;		/* in the notation, or "@file" in selftests/hellos */
	uint32_t cut;			/* if not 0, cut into records of so many bytes */
	enum ph_hello_verdict verdict;
	const char *server;		/* the name, on PH_HELLO_OK */
};

/* Return: 0, or -1 when a file is missing. */
static inline int hello_make(struct hello_bytes *out, const struct hello_row *row)
{
	static struct hello_bytes whole;
	int err = 0;

	if (row->text[0] == '@')
		err = hello_read(row->cut ? &whole : out, row->text + 1);
	else
		hello_write(row->cut ? &whole : out, row->text);
	if (!err && row->cut)
		hello_cut(out, &whole, row->cut);
	return err;
}

#endif
