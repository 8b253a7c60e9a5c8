// SPDX-License-Identifier: Apache-2.0
/*
 * authority: any frames behind a client's preface, in one piece and split where the input's own bytes say; both must come
 * to the same, and no header block that comes out may name another host. The first byte is a number of bytes that are
 * the CVM's answers, at the end of the input.
 */
#include <ctype.h>

#include <phala/limits.h>

#include "../unit/h2.h"
#include "authority.h"

#define NAME "app-8080g.example.test"
#define ROOM 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int holds)
{
	if (!holds)
		abort();
}

static int is_ours(const uint8_t *value, size_t len)
{
	size_t name_len = strlen(NAME);

	if (len < name_len)
		return 0;
	for (size_t i = 0; i < name_len; i++)
		if (tolower(value[i]) != NAME[i])
			return 0;
	if (len == name_len)
		return 1;
	for (size_t i = name_len + 1; i < len; i++)
		if (!isdigit(value[i]))
			return 0;
	return value[name_len] == ':' && len > name_len + 1;
}

/* As a server that keeps no table; each block must be decodable by itself. */
static void check_block(const uint8_t *bytes, size_t len)
{
	nghttp2_hd_inflater *inflater;
	nghttp2_nv field;
	int flags = 0;

	check(!nghttp2_hd_inflate_new(&inflater) && !nghttp2_hd_inflate_change_table_size(inflater, 0));
	while (!(flags & NGHTTP2_HD_INFLATE_FINAL)) {
		ssize_t used;

		flags = 0;
		used = nghttp2_hd_inflate_hd2(inflater, &field, &flags, bytes, len, 1);
		check(used >= 0);
		bytes += used;
		len -= (size_t)used;
		if (!(flags & NGHTTP2_HD_INFLATE_EMIT))
			continue;
		if ((field.namelen == 10 && !memcmp(field.name, ":authority", 10)) ||
		    (field.namelen == 4 && !memcmp(field.name, "host", 4)))
			check(is_ours(field.value, field.valuelen));
	}
	nghttp2_hd_inflate_del(inflater);
}

static void check_stream(const struct h2_bytes *out)
{
	struct h2_bytes block = { 0 };
	size_t at = sizeof(H2_PREFACE) - 1, len;

	for (; at + 9 <= out->len; at += len) {
		const uint8_t *head = out->bytes + at;

		len = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
		at += 9;
		if (head[3] != HEADERS && head[3] != CONTINUATION)
			continue;
		check(len <= 16384 && at + len <= out->len && !(head[4] & PADDED));
		len -= head[3] == HEADERS && head[4] & HAS_PRIORITY ? 5 : 0;
		at += head[3] == HEADERS && head[4] & HAS_PRIORITY ? 5 : 0;
		h2_add(&block, out->bytes + at, len);
		if (!(head[4] & END_HEADERS))
			continue;
		check_block(block.bytes, block.len);
		block.len = 0;
	}
	free(block.bytes);
}

struct run {
	struct ph_authority *authority;
	__u64 count;
	struct h2_bytes out;
	enum ph_reason reason;
};

static void offer(struct run *run, const uint8_t *bytes, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1), out[ROOM];
	size_t at = 0, used, made;

	check(copy != NULL);
	if (len)
		memcpy(copy, bytes, len);
	while (run->reason == PH_REASON_COUNT && (at < len || ph_authority_is_holding(run->authority))) {
		run->reason = ph_authority_requests(run->authority, copy + at, len - at, &used, out, sizeof(out), &made);
		if (run->reason != PH_REASON_COUNT)
			break;
		check(made <= sizeof(out) && used <= len - at && (used || made));
		h2_add(&run->out, out, made);
		at += used;
	}
	free(copy);
}

static void begin(struct run *run)
{
	*run = (struct run){ .reason = PH_REASON_COUNT };
	check(!ph_authority_new(NAME, &run->count, &run->authority));
	offer(run, (const uint8_t *)H2_PREFACE, sizeof(H2_PREFACE) - 1);
}

static void end(struct run *run)
{
	ph_authority_free(run->authority);
	free(run->out.bytes);
}

/* What comes out is the same but for where frames are cut, which depends on the room. */
static void check_same(const struct run *one, const struct run *other)
{
	char *texts[] = { h2_read(one->out.bytes, one->out.len, 0), h2_read(other->out.bytes, other->out.len, 0) };

	check(one->reason == other->reason && one->count == other->count);
	if (one->reason == PH_REASON_COUNT)
		check(!strcmp(texts[0], texts[1]));
	free(texts[0]);
	free(texts[1]);
}

/* As exchange does it, @step bytes at most a read. Return: how it ended. */
static enum ph_reason answer(struct run *run, const uint8_t *bytes, size_t len, size_t step)
{
	enum ph_reason reason = PH_REASON_COUNT;
	uint8_t said[PH_H2_ROOM_LEAST];

	for (size_t at = 0, part; at < len && reason == PH_REASON_COUNT; at += part) {
		while (ph_authority_speak(run->authority, said, sizeof(said)))
			;
		part = ph_authority_room(run->authority, step);
		check(part && part <= step);
		if (part > len - at)
			part = len - at;
		reason = ph_authority_answers(run->authority, bytes + at, part);
	}
	return reason;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t hash = 2166136261;
	struct run whole, split;
	size_t asked, cut;

	if (!size || size > 1 << 16)
		return 0;
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ data[i]) * 16777619;
	asked = size - 1 > data[0] ? size - 1 - data[0] : 0;
	cut = hash % (asked + 1);
	begin(&whole);
	offer(&whole, data + 1, asked);
	begin(&split);
	offer(&split, data + 1, cut);
	offer(&split, data + 1 + cut, asked - cut);
	check_same(&whole, &split);
	check_stream(&whole.out);
	if (whole.reason == PH_REASON_COUNT)
		check(answer(&whole, data + 1 + asked, size - 1 - asked, 16384) ==
		      answer(&split, data + 1 + asked, size - 1 - asked, 1 + hash % 16));
	end(&whole);
	end(&split);
	return 0;
}
