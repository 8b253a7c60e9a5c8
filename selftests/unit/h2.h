/* SPDX-License-Identifier: Apache-2.0 */
/*
 * h2 - both peers' side of HTTP/2: a client's frames from a script, and what a server makes of what it gets. One of the
 * few places outside user/headers.c that know libnghttp2.
 */
#ifndef H2_H
#define H2_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nghttp2/nghttp2.h>

#define H2_PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define H2_FIELDS_MAX 64

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, END_HEADERS = 4, PADDED = 8, HAS_PRIORITY = 0x20 };

/* How a header block is encoded. */
enum h2_how {
	H2_LITERAL,				/* no table, no Huffman code */
	H2_COMPRESSED,				/* as libnghttp2 does it: tables and Huffman code */
	H2_RAW,					/* the text is the block */
	H2_FRAME,				/* the text is the payload of a frame, the flags are as they are */
};

/* One frame, or for HEADERS a whole block. No text ends a script. */
struct h2_step {
	int type;
	uint8_t flags;				/* PADDED: by 7 bytes; END_HEADERS goes where it belongs */
	uint32_t stream;
	const char *text;			/* a payload, or fields: "name: value\n" each */
	size_t len;				/* of a text that has zeros in it */
	enum h2_how how;
	size_t cut;				/* bytes of the block in HEADERS and each CONTINUATION; 0: all in one */
};

struct h2_bytes {
	uint8_t *bytes;
	size_t len, size;
};

static inline void h2_add(struct h2_bytes *to, const void *bytes, size_t len)
{
	while (to->len + len > to->size) {
		to->size = to->size ? 2 * to->size : 4096;
		to->bytes = realloc(to->bytes, to->size);
		if (!to->bytes)
			abort();
	}
	if (len)
		memcpy(to->bytes + to->len, bytes, len);
	to->len += len;
}

static inline void h2_frame(struct h2_bytes *to, int type, int flags, uint32_t stream, const void *payload, size_t len)
{
	const uint8_t head[9] = { (uint8_t)(len >> 16),	   (uint8_t)(len >> 8),	    (uint8_t)len,
				  (uint8_t)type,	   (uint8_t)flags,	    (uint8_t)(stream >> 24),
				  (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream };

	h2_add(to, head, sizeof(head));
	h2_add(to, payload, len);
}

static inline size_t h2_split_fields(const char *text, nghttp2_nv fields[H2_FIELDS_MAX])
{
	size_t count = 0;

	while (*text) {
		const char *colon = strstr(text + 1, ": "), *end = strchr(text, '\n');

		if (!colon || !end || count == H2_FIELDS_MAX)
			abort();
		fields[count++] = (nghttp2_nv){ (uint8_t *)text, (uint8_t *)colon + 2, (size_t)(colon - text),
						(size_t)(end - colon - 2), NGHTTP2_NV_FLAG_NONE };
		text = end + 1;
	}
	return count;
}

static inline void h2_add_string(struct h2_bytes *to, const uint8_t *bytes, size_t len)
{
	size_t rest = len;
	uint8_t byte = len < 127 ? (uint8_t)len : 127;

	h2_add(to, &byte, 1);
	if (len >= 127) {
		for (rest -= 127; rest >= 128; rest >>= 7) {
			byte = (uint8_t)(rest | 0x80);
			h2_add(to, &byte, 1);
		}
		byte = (uint8_t)rest;
		h2_add(to, &byte, 1);
	}
	h2_add(to, bytes, len);
}

static inline void h2_block(struct h2_bytes *to, nghttp2_hd_deflater *deflater, const struct h2_step *step)
{
	nghttp2_nv fields[H2_FIELDS_MAX];
	uint8_t *room;
	size_t count;
	ssize_t len;

	if (step->how == H2_RAW) {
		h2_add(to, step->text, step->len ? step->len : strlen(step->text));
		return;
	}
	count = h2_split_fields(step->text, fields);
	if (step->how == H2_LITERAL) {
		for (size_t i = 0; i < count; i++) {
			h2_add(to, "", 1);
			h2_add_string(to, fields[i].name, fields[i].namelen);
			h2_add_string(to, fields[i].value, fields[i].valuelen);
		}
		return;
	}
	room = malloc(1 << 17);
	len = room ? nghttp2_hd_deflate_hd(deflater, room, 1 << 17, fields, count) : -1;
	if (len < 0)
		abort();
	h2_add(to, room, (size_t)len);
	free(room);
}

static inline void h2_add_headers(struct h2_bytes *to, nghttp2_hd_deflater *deflater, const struct h2_step *step)
{
	static const uint8_t priority[5] = { 0, 0, 0, 0, 15 };
	struct h2_bytes block = { 0 }, payload = { 0 };
	size_t part;

	h2_block(&block, deflater, step);
	part = step->cut && step->cut < block.len ? step->cut : block.len;
	if (step->flags & PADDED)
		h2_add(&payload, "\7", 1);
	if (step->flags & HAS_PRIORITY)
		h2_add(&payload, priority, sizeof(priority));
	h2_add(&payload, block.bytes, part);
	if (step->flags & PADDED)
		h2_add(&payload, "\0\0\0\0\0\0\0", 7);
	h2_frame(to, HEADERS, step->flags | (part == block.len ? END_HEADERS : 0), step->stream, payload.bytes,
		 payload.len);
	for (size_t at = part; at < block.len; at += part) {
		part = step->cut < block.len - at ? step->cut : block.len - at;
		h2_frame(to, CONTINUATION, at + part == block.len ? END_HEADERS : 0, step->stream, block.bytes + at,
			 part);
	}
	free(block.bytes);
	free(payload.bytes);
}

static inline void h2_add_step(struct h2_bytes *to, nghttp2_hd_deflater *deflater, const struct h2_step *step)
{
	size_t len = step->len || !step->text ? step->len : strlen(step->text);

	if (step->type == HEADERS && step->how != H2_FRAME)
		h2_add_headers(to, deflater, step);
	else
		h2_frame(to, step->type, step->flags, step->stream, step->text, len);
}

/* What a server makes of what it gets. */

static inline void h2_say(FILE *to, const uint8_t *bytes, size_t len)
{
	fwrite(bytes, 1, len, to);
}

/* Return: false when the block cannot be decoded. */
static inline bool h2_read_block(FILE *to, nghttp2_hd_inflater *inflater, const uint8_t *bytes, size_t len,
				 bool is_last)
{
	int flags;

	do {
		nghttp2_nv field;
		ssize_t used;

		flags = 0;
		used = nghttp2_hd_inflate_hd2(inflater, &field, &flags, bytes, len, is_last);
		if (used < 0)
			return false;
		bytes += used;
		len -= (size_t)used;
		if (!(flags & NGHTTP2_HD_INFLATE_EMIT))
			continue;
		h2_say(to, field.name, field.namelen);
		fputs(field.flags & NGHTTP2_NV_FLAG_NO_INDEX ? ":! " : ": ", to);
		h2_say(to, field.value, field.valuelen);
		fputc('\n', to);
	} while (len || flags & NGHTTP2_HD_INFLATE_EMIT);
	return !is_last || !nghttp2_hd_inflate_end_headers(inflater);
}

/*
 * A line for each frame but CONTINUATION, and one for each field, with ":!" if it is never to be indexed. @table_bytes:
 * SETTINGS_HEADER_TABLE_SIZE. Return: the text, to be freed.
 */
static inline char *h2_read(const uint8_t *bytes, size_t len, uint32_t table_bytes)
{
	static const char *const names[] = { "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE",
					     "PING", "GOAWAY", "WINDOW_UPDATE", "CONTINUATION" };
	nghttp2_hd_inflater *inflater;
	char *text = NULL;
	size_t text_len, at = sizeof(H2_PREFACE) - 1;
	FILE *to = open_memstream(&text, &text_len);

	if (!to || nghttp2_hd_inflate_new(&inflater) || nghttp2_hd_inflate_change_table_size(inflater, table_bytes))
		abort();
	if (len < at || memcmp(bytes, H2_PREFACE, at)) {
		fprintf(to, "%zu bytes without a preface\n", len);
		at = len;
	}
	while (at + 9 <= len) {
		const uint8_t *head = bytes + at;
		size_t size = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2], skip = 0;
		bool is_block = head[3] == HEADERS || head[3] == CONTINUATION;

		at += 9;
		if (at + size > len)
			break;
		if (head[3] != CONTINUATION)
			fprintf(to, "%s %u%s%s", head[3] < 10 ? names[head[3]] : "EXTENSION",
				(unsigned)head[7] << 8 | head[8], is_block && head[4] & END_STREAM ? " end" : "",
				is_block && head[4] & HAS_PRIORITY ? " priority" : "");
		if (!is_block && size)
			fprintf(to, " %zu", size);
		if (head[3] != CONTINUATION)
			fputc('\n', to);
		if (head[3] == HEADERS && head[4] & HAS_PRIORITY)
			skip = 5;
		if (is_block && (size > 16384 || head[4] & PADDED ||
				 !h2_read_block(to, inflater, head + 9 + skip, size - skip, head[4] & END_HEADERS)))
			fputs("undecodable\n", to);
		at += size;
	}
	if (at != len)
		fputs("cut\n", to);
	fclose(to);
	nghttp2_hd_inflate_del(inflater);
	return text;
}

#endif
