// SPDX-License-Identifier: Apache-2.0
/*
 * hello: any bytes, in one piece, byte by byte, and split where the input's own bytes say; all must come to the same.
 *
 * The input is the stream, so the corpus is hellos as they are. Each call sees a copy that ends where its bytes end.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <phala/hello.h>
#include <phala/name.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int holds)
{
	if (!holds)
		abort();
}

static void check_state(const struct ph_hello *hello, enum ph_hello_verdict verdict, uint32_t len)
{
	check(hello->verdict == verdict);
	check(verdict <= PH_HELLO_TOO_LONG);
	check(hello->at <= len && hello->at <= PH_HELLO_STREAM_MAX);
	check(hello->name_len <= PH_NAME_MAX);
	for (uint32_t i = hello->name_len; i < PH_NAME_SIZE; i++)
		check(!hello->name[i]);
	if (verdict == PH_HELLO_MORE)
		check(hello->at == len && len < PH_HELLO_STREAM_MAX);
	if (verdict != PH_HELLO_OK)
		return;
	check(hello->name_len > 0);
	for (uint32_t i = 0; i < hello->name_len; i++) {
		uint8_t c = hello->name[i];

		check(c >= 0x20 && c != 0x7f && !(c >= 'A' && c <= 'Z'));
	}
}

/* Offers @data up to each end in turn; once there is a verdict, nothing may change any more. */
static void walk_to(struct ph_hello *hello, const uint8_t *data, const uint32_t *ends, uint32_t end_count)
{
	for (uint32_t i = 0; i < end_count; i++) {
		struct ph_hello before = *hello;
		uint8_t *copy = malloc(ends[i] ? ends[i] : 1);

		check(copy != NULL);
		memcpy(copy, data, ends[i]);
		check_state(hello, ph_hello_walk(hello, copy, ends[i]), ends[i]);
		free(copy);
		if (before.verdict != PH_HELLO_MORE)
			check(!memcmp(hello, &before, sizeof(before)));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ph_hello whole = { 0 }, split = { 0 }, bytes = { 0 };
	struct ph_name name;
	uint32_t len = size, hash = 2166136261, ends[3];

	if (size > 2 * PH_HELLO_STREAM_MAX)
		return 0;
	for (uint32_t i = 0; i < len; i++)
		hash = (hash ^ data[i]) * 16777619;
	ends[0] = len;
	walk_to(&whole, data, ends, 1);
	ends[0] = hash % (len + 1);
	ends[1] = ends[0] + (hash >> 8) % (len - ends[0] + 1);
	ends[2] = len;
	walk_to(&split, data, ends, 3);
	check(!memcmp(&whole, &split, sizeof(whole)));
	for (uint32_t i = 1; i <= len; i++)
		if (ph_hello_walk(&bytes, data, i) != PH_HELLO_MORE)
			break;
	check(!memcmp(&whole, &bytes, sizeof(whole)));
	if (whole.verdict == PH_HELLO_OK)
		ph_name_parse(whole.name, whole.name_len, &name);
	return 0;
}
