// SPDX-License-Identifier: Apache-2.0
/*
 * hello: what is read from a ClientHello, that no split changes it, and that no wrong length gets past.
 *
 *   test_hello                  the tests
 *   test_hello --write DIR      the vectors as files, a seed corpus for fuzzing
 */
#include "hello_rows.h"
#include "ktap.h"

static struct hello_bytes hello, other;

static enum ph_hello_verdict walk(struct ph_hello *state, const struct hello_bytes *bytes)
{
	memset(state, 0, sizeof(*state));
	return ph_hello_walk(state, bytes->bytes, bytes->len);
}

static int same(const struct ph_hello *a, const struct ph_hello *b)
{
	return a->verdict == b->verdict && a->at == b->at && a->name_len == b->name_len &&
	       !memcmp(a->name, b->name, sizeof(a->name));
}

/* Offers the stream in three pieces, behind each of which the buffer ends (so sanitizers see a read too far). */
static int is_same_split(const struct hello_bytes *bytes, uint32_t first, uint32_t second, const struct ph_hello *want)
{
	const uint32_t ends[] = { first, second, bytes->len };
	enum ph_hello_verdict verdict = PH_HELLO_MORE;
	struct ph_hello state = { 0 };

	for (int i = 0; i < 3; i++) {
		uint8_t *piece = malloc(ends[i] ? ends[i] : 1);

		if (!piece)
			abort();
		memcpy(piece, bytes->bytes, ends[i]);
		verdict = ph_hello_walk(&state, piece, ends[i]);
		free(piece);
		/* A verdict comes with the byte that decides it, no sooner and no later. */
		if ((verdict == PH_HELLO_MORE) != (want->verdict == PH_HELLO_MORE || ends[i] < want->at))
			return 0;
	}
	return verdict == want->verdict && same(&state, want);
}

static int is_same_at_every_split(const struct hello_bytes *bytes, const struct ph_hello *want)
{
	/* Long ones in steps that are no divisor of anything. */
	uint32_t step = 1 + bytes->len / 2500;

	for (uint32_t at = 0; at <= bytes->len; at += step)
		if (!is_same_split(bytes, at, at, want) ||
		    !is_same_split(bytes, at, at + 1 < bytes->len ? at + 1 : bytes->len, want))
			return 0;
	return 1;
}

static int is_same_byte_by_byte(const struct hello_bytes *bytes, const struct ph_hello *want)
{
	struct ph_hello state = { 0 };

	for (uint32_t len = 0; len <= bytes->len; len++)
		if (ph_hello_walk(&state, bytes->bytes, len) != PH_HELLO_MORE)
			break;
	/* A verdict is final, whatever follows. */
	return same(&state, want) && ph_hello_walk(&state, bytes->bytes, bytes->len) == want->verdict &&
	       same(&state, want);
}

static void test_row(const struct hello_row *row)
{
	size_t server_len = row->server ? strlen(row->server) : 0;
	struct ph_hello state;

	if (hello_make(&hello, row)) {
		ktap_ok(0, "%s: no such file in selftests/hellos", row->name);
		return;
	}
	walk(&state, &hello);
	ktap_ok(state.verdict == row->verdict, "%s: %s", row->name, hello_words[row->verdict]);
	if (state.verdict != row->verdict)
		printf("# said %s at %u of %u\n", hello_words[state.verdict], state.at, hello.len);
	if (row->verdict == PH_HELLO_OK)
		ktap_ok(state.name_len == server_len && !memcmp(state.name, row->server, server_len) &&
			!state.name[server_len], "%s: names %.32s", row->name, row->server);
	ktap_ok(is_same_at_every_split(&hello, &state) && is_same_byte_by_byte(&hello, &state),
		"%s: the same however it is split", row->name);
}

/* A whole hello in one record, with a name: records of any size change nothing, any wrong length is refused. */
static void test_whole(const struct hello_row *row)
{
	struct ph_hello state;
	int wrong = 0;

	if (row->verdict != PH_HELLO_OK || hello_make(&hello, row) || hello.len > 4096 ||
	    hello.len != 5 + hello_get_length(hello.bytes + 3, 2))
		return;
	hello_find_lengths(&hello);
	for (uint32_t size = 1; size < hello.len - 5; size++) {
		hello_cut(&other, &hello, size);
		if (walk(&state, &other) != PH_HELLO_OK || strcmp(state.name, row->server) || state.at != other.len)
			wrong++;
	}
	ktap_ok(!wrong, "%s: the same in records of any size", row->name);
	wrong = 0;
	for (uint32_t i = 0; i < hello.length_count; i++) {
		const struct hello_length *length = &hello.lengths[i];
		uint32_t value = hello_get_length(hello.bytes + length->at, length->width);

		for (int error = -1; error <= 1; error += 2) {
			enum ph_hello_verdict verdict;

			/* A byte more behind it, so that a record that is a byte too long is whole. */
			other = hello;
			hello_put(&other, 0x16, 1);
			hello_set_length(other.bytes + length->at, length->width, value + error);
			verdict = walk(&state, &other);
			if (verdict != PH_HELLO_MALFORMED && verdict != PH_HELLO_AMBIGUOUS) {
				printf("# length of %u bytes at %u, %u%+d: %s\n", length->width, length->at, value,
				       error, hello_words[verdict]);
				wrong++;
			}
		}
	}
	ktap_ok(!wrong && hello.length_count > 8, "%s: each of %u lengths one more or less is refused", row->name,
		hello.length_count);
}

static int write_rows(const char *dir)
{
	for (size_t i = 0; i < HELLO_ROW_COUNT; i++) {
		char path[512];
		FILE *file;

		if (hello_make(&hello, &hello_rows[i]) || hello.len > 4096)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, hello_rows[i].name);
		file = fopen(path, "we");
		if (!file || fwrite(hello.bytes, 1, hello.len, file) != hello.len || fclose(file)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct ph_hello state = { 0 };

	if (argc == 3 && !strcmp(argv[1], "--write"))
		return write_rows(argv[2]);
	ktap_header();
	for (size_t i = 0; i < HELLO_ROW_COUNT; i++)
		test_row(&hello_rows[i]);
	for (size_t i = 0; i < HELLO_ROW_COUNT; i++)
		test_whole(&hello_rows[i]);
	ktap_ok(ph_hello_walk(&state, NULL, 0) == PH_HELLO_MORE && !state.at, "a stream of no bytes");
	return ktap_end();
}
