// SPDX-License-Identifier: Apache-2.0
/*
 * authority: what of an h2 client's stream reaches the CVM, however the stream is cut, and what the CVM may answer.
 */
#include <stdlib.h>
#include <string.h>

#include <phala/limits.h>

#include "authority.h"
#include "h2.h"
#include "ktap.h"

#define NAME "app-8080g.example.test"
#define OTHER "victim.example.test"
#define START "SETTINGS 0\n"
#define TO(authority) ":method: GET\n:scheme: https\n:path: /\n:authority: " authority "\n"
#define OURS TO(NAME)
#define THEIRS TO(OTHER) "cookie: secret\n"
#define ALL_WELL PH_REASON_COUNT
#define STEPS_MAX 6
#define GET END_STREAM
#define F(t, f, s, ...) { .type = t, .flags = f, .stream = s, .text = __VA_ARGS__ }

static const struct row {
	const char *name;
	enum ph_reason reason;
	const char *text;			/* what the CVM gets */
	uint64_t refused;
	struct h2_step steps[STEPS_MAX + 1];
} rows[] = {
	{ "a request for our host", ALL_WELL, START "HEADERS 1 end\n" OURS, 0, { F(HEADERS, GET, 1, OURS) } },
	{ "Huffman code and static table", ALL_WELL, START "HEADERS 1 end\n" OURS, 0,
	  { F(HEADERS, GET, 1, OURS, .how = H2_COMPRESSED) } },
	{ "dynamic table", ALL_WELL,
	  START "HEADERS 1 end\n" OURS "x-a: b\nHEADERS 3 end\n" OURS "x-a: b\nHEADERS 5 end\n" OURS "x-a: b\n", 0,
	  { F(HEADERS, GET, 1, OURS "x-a: b\n", .how = H2_COMPRESSED),
	    F(HEADERS, GET, 3, OURS "x-a: b\n", .how = H2_COMPRESSED),
	    F(HEADERS, GET, 5, OURS "x-a: b\n", .how = H2_COMPRESSED) } },
	{ "never to be indexed stays so", ALL_WELL, START "HEADERS 1\n" ":authority:! " NAME "\n", 0,
	  { F(HEADERS, 0, 1, "\x11\x16" NAME, .how = H2_RAW) } },
	{ "padding goes", ALL_WELL, START "HEADERS 1 end\n" OURS "DATA 1\n", 0,
	  { F(HEADERS, GET | PADDED, 1, OURS), F(DATA, 0, 1, "") } },
	{ "priority stays", ALL_WELL, START "HEADERS 1 end priority\n" OURS, 0,
	  { F(HEADERS, GET | HAS_PRIORITY, 1, OURS) } },
	{ "padding and priority", ALL_WELL, START "HEADERS 1 priority\n" OURS "DATA 1 4\n", 0,
	  { F(HEADERS, PADDED | HAS_PRIORITY, 1, OURS), F(DATA, END_STREAM, 1, "body") } },
	{ "CONTINUATION", ALL_WELL, START "HEADERS 1 end\n" OURS "PING 0 8\n", 0,
	  { F(HEADERS, GET, 1, OURS, .how = H2_COMPRESSED, .cut = 3), F(PING, 0, 0, "12345678") } },
	{ "CONTINUATION of single bytes, padding before", ALL_WELL,
	  START "HEADERS 1 end priority\n" OURS "PING 0 8\n", 0,
	  { F(HEADERS, GET | PADDED | HAS_PRIORITY, 1, OURS, .cut = 1), F(PING, 0, 0, "12345678") } },
	{ "an empty CONTINUATION at the end", ALL_WELL, START "HEADERS 1 end\n:authority: " NAME "\nPING 0 8\n", 0,
	  { F(HEADERS, GET, 1, "\x01\x16" NAME, .how = H2_RAW, .cut = 24), F(PING, 0, 0, "12345678") } },
	{ "no field at all", ALL_WELL, START "HEADERS 1 end\n", 0, { F(HEADERS, GET, 1, "") } },
	{ "capitals", ALL_WELL, START "HEADERS 1 end\n" TO("APP-8080G.Example.test"), 0,
	  { F(HEADERS, GET, 1, TO("APP-8080G.Example.test")) } },
	{ "port 443", ALL_WELL, START "HEADERS 1 end\n" TO(NAME ":443"), 0, { F(HEADERS, GET, 1, TO(NAME ":443")) } },
	{ "another port", ALL_WELL, START "HEADERS 1 end\n" TO(NAME ":8443"), 0,
	  { F(HEADERS, GET, 1, TO(NAME ":8443")) } },
	{ "neither authority nor host", ALL_WELL, START "HEADERS 1\n:path: /\n", 0,
	  { F(HEADERS, 0, 1, ":path: /\n") } },
	{ "host in place of authority", ALL_WELL, START "HEADERS 1\nhost: " NAME "\n", 0,
	  { F(HEADERS, 0, 1, "host: " NAME "\n") } },
	{ "CONNECT to us", ALL_WELL, START "HEADERS 1\n:method: CONNECT\n:authority: " NAME ":443\n", 0,
	  { F(HEADERS, 0, 1, ":method: CONNECT\n:authority: " NAME ":443\n") } },
	{ "trailers", ALL_WELL, START "HEADERS 1\n" OURS "DATA 1 4\nHEADERS 1 end\ngrpc-status: 0\n", 0,
	  { F(HEADERS, 0, 1, OURS, .how = H2_COMPRESSED), F(DATA, 0, 1, "body"),
	    F(HEADERS, END_STREAM, 1, "grpc-status: 0\n", .how = H2_COMPRESSED) } },
	{ "frames that are none of ours", ALL_WELL,
	  START "WINDOW_UPDATE 0 4\nPRIORITY 5 5\nEXTENSION 0 3\nHEADERS 1\n" OURS "RST_STREAM 1 4\nGOAWAY 0 8\n", 0,
	  { F(WINDOW_UPDATE, 0, 0, "1234"), F(PRIORITY, 0, 5, "12345"), F(0x10, 0, 0, "abc"), F(HEADERS, 0, 1, OURS),
	    F(RST_STREAM, 0, 1, "1234"), F(GOAWAY, 0, 0, "12345678") } },
	{ "a table of 65536", ALL_WELL, START "HEADERS 1\n:path: /\n", 0,
	  { F(HEADERS, 0, 1, "\x3f\xe1\xff\x03\x84", .how = H2_RAW) } },
	{ "a table of none, and again one", ALL_WELL, START "HEADERS 1\n:path: /\n", 0,
	  { F(HEADERS, 0, 1, "\x20\x3f\x01\x84", .how = H2_RAW) } },

	{ "another host", ALL_WELL, START, 1, { F(HEADERS, GET, 1, THEIRS) } },
	{ "another host, by host", ALL_WELL, START, 1, { F(HEADERS, GET, 1, "host: " OTHER "\ncookie: secret\n") } },
	{ "another host, and ours by host", ALL_WELL, START, 1, { F(HEADERS, GET, 1, THEIRS "host: " NAME "\n") } },
	{ "ours, and another by host", ALL_WELL, START, 1,
	  { F(HEADERS, GET, 1, OURS "cookie: secret\nhost: " OTHER "\n") } },
	{ "two authorities", ALL_WELL, START, 1,
	  { F(HEADERS, GET, 1, OURS ":authority: " OTHER "\ncookie: secret\n") } },
	{ "two authorities, the other order", ALL_WELL, START, 1,
	  { F(HEADERS, GET, 1, THEIRS ":authority: " NAME "\n") } },
	{ "the cookie first", ALL_WELL, START, 1, { F(HEADERS, GET, 1, "cookie: secret\n:authority: " OTHER "\n") } },
	{ "CONNECT elsewhere", ALL_WELL, START, 1,
	  { F(HEADERS, 0, 1, ":method: CONNECT\n:authority: " OTHER ":443\ncookie: secret\n") } },
	{ "an empty authority", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO("")) } },
	{ "a port alone", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO(":443")) } },
	{ "a colon without port", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO(NAME ":")) } },
	{ "a port that is none", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO(NAME ":44x")) } },
	{ "a trailing dot", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO(NAME ".")) } },
	{ "a user", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO("u@" NAME)) } },
	{ "our host's beginning", ALL_WELL, START, 1, { F(HEADERS, GET, 1, TO("app-8080g.example.tes")) } },
	{ "our host, and a zero", ALL_WELL, START, 1,
	  { F(HEADERS, GET, 1, "\x01\x17" NAME "\0", .len = 25, .how = H2_RAW) } },
	{ "ours before and behind another's, which the CVM's table never sees", ALL_WELL,
	  START "HEADERS 1 end\n" OURS "HEADERS 5 end\n" OURS "cookie:! ours\n", 1,
	  { F(HEADERS, GET, 1, OURS, .how = H2_COMPRESSED), F(HEADERS, GET, 3, THEIRS, .how = H2_COMPRESSED),
	    F(HEADERS, GET, 5, OURS "cookie: ours\n", .how = H2_COMPRESSED) } },
	{ "the body of another's goes nowhere", ALL_WELL, START "DATA 0 1\nHEADERS 3 end\n" OURS, 1,
	  { F(HEADERS, PADDED, 1, THEIRS, .cut = 9), F(DATA, 0, 1, "secret"), F(DATA, 0, 0, "x"),
	    F(DATA, END_STREAM, 1, "secret"), F(HEADERS, GET, 3, OURS) } },
	{ "nor do its trailers, priority, windows and reset", ALL_WELL, START "HEADERS 3 end\n" OURS, 1,
	  { F(HEADERS, 0, 1, THEIRS), F(HEADERS, 0, 1, "x-t: secret\n", .how = H2_COMPRESSED),
	    F(PRIORITY, 0, 1, "12345"), F(WINDOW_UPDATE, 0, 1, "1234"), F(RST_STREAM, 0, 1, "1234"),
	    F(HEADERS, GET, 3, OURS, .how = H2_COMPRESSED) } },

	{ "trailers that name another", PH_REASON_H2_MALFORMED, START "HEADERS 1\n" OURS, 0,
	  { F(HEADERS, 0, 1, OURS), F(HEADERS, END_STREAM, 1, THEIRS) } },
	{ "a request on stream 0", PH_REASON_H2_MALFORMED, START, 0, { F(HEADERS, GET, 0, OURS) } },
	{ "a request on an even stream", PH_REASON_H2_MALFORMED, START, 0, { F(HEADERS, GET, 2, OURS) } },
	{ "CONTINUATION of nothing", PH_REASON_H2_MALFORMED, START, 0, { F(CONTINUATION, END_HEADERS, 1, "\x84") } },
	{ "CONTINUATION of another stream", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, GET, 1, "\x84", .how = H2_FRAME), F(CONTINUATION, END_HEADERS, 3, "\x84") } },
	{ "something else within a block", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, GET, 1, "\x84", .how = H2_FRAME), F(DATA, 0, 1, "x") } },
	{ "another block within a block", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, GET, 1, "\x84", .how = H2_FRAME), F(HEADERS, GET, 3, OURS) } },
	{ "padding longer than the frame", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, PADDED | END_HEADERS, 1, "\x06\x84" "1234", .how = H2_FRAME) } },
	{ "no room for the pad length", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, PADDED | END_HEADERS, 1, "", .how = H2_FRAME) } },
	{ "no room for the priority", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS, 1, "12345", .how = H2_FRAME) } },
	{ "a push by the client", PH_REASON_H2_MALFORMED, START, 0, { F(PUSH_PROMISE, END_HEADERS, 1, "1234\x84") } },
	{ "an index beyond the table", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, 0, 1, "\xff\x00", .len = 2, .how = H2_RAW) } },
	{ "a field cut by the end of its block", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, 0, 1, "\x01\x16" "app", .how = H2_RAW) } },
	{ "a table of 65537", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, 0, 1, "\x3f\xe2\xff\x03\x84", .how = H2_RAW) } },
	{ "a table size in the middle of a block", PH_REASON_H2_MALFORMED, START, 0,
	  { F(HEADERS, 0, 1, "\x84\x20", .how = H2_RAW) } },
};

struct run {
	struct ph_authority *authority;
	__u64 count;
	struct h2_bytes out;
	enum ph_reason reason;
	size_t room;
};

static void begin(struct run *run, size_t room)
{
	*run = (struct run){ .reason = ALL_WELL, .room = room };
	if (ph_authority_new(NAME, &run->count, &run->authority))
		abort();
}

static void end(struct run *run)
{
	ph_authority_free(run->authority);
	free(run->out.bytes);
}

/* Offered in a copy of its own, so that a sanitizer sees who reads beyond it. */
static void offer(struct run *run, const uint8_t *bytes, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1), *out = malloc(run->room);
	size_t at = 0, used, made;

	if (!copy || !out)
		abort();
	if (len)
		memcpy(copy, bytes, len);
	while (run->reason == ALL_WELL && (at < len || ph_authority_is_holding(run->authority))) {
		run->reason = ph_authority_requests(run->authority, copy + at, len - at, &used, out, run->room, &made);
		if (run->reason != ALL_WELL)
			break;
		if (made > run->room || (!used && !made))
			abort();
		h2_add(&run->out, out, made);
		at += used;
	}
	free(copy);
	free(out);
}

static void add_script(struct h2_bytes *to, const struct h2_step *steps)
{
	nghttp2_hd_deflater *deflater;

	if (nghttp2_hd_deflate_new(&deflater, 4096))
		abort();
	h2_add(to, H2_PREFACE, sizeof(H2_PREFACE) - 1);
	h2_frame(to, SETTINGS, 0, 0, NULL, 0);
	for (const struct h2_step *step = steps; step->text; step++)
		h2_add_step(to, deflater, step);
	nghttp2_hd_deflate_del(deflater);
}

static bool is_as_wanted(const struct run *run, const struct row *row)
{
	bool same = run->reason == row->reason && run->count == row->refused;

	/* Servers that keep a table, and that allow none. */
	for (int i = 0; i < 2; i++) {
		char *text = h2_read(run->out.bytes, run->out.len, i ? 0 : 4096);

		if (row->reason == ALL_WELL ? strcmp(text, row->text)
					    : run->out.len && strncmp(text, row->text, strlen(text))) {
			printf("# %d refused, reason %d, the CVM read:\n%s", (int)run->count, (int)run->reason, text);
			same = false;
		}
		free(text);
	}
	return same && !memmem(run->out.bytes ? run->out.bytes : (const uint8_t *)"", run->out.len, "secret", 6);
}

static bool run_cut_at(const struct row *row, const struct h2_bytes *in, size_t cut, size_t room)
{
	struct run run;
	bool passed;

	begin(&run, room);
	offer(&run, in->bytes, cut);
	offer(&run, in->bytes + cut, in->len - cut);
	passed = is_as_wanted(&run, row);
	end(&run);
	return passed;
}

static void test_rows(void)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct h2_bytes in = { 0 };
		struct run run;
		bool passed;

		add_script(&in, rows[i].steps);
		passed = run_cut_at(&rows[i], &in, in.len, 16384);
		for (size_t cut = 0; passed && cut < in.len; cut++)
			passed = run_cut_at(&rows[i], &in, cut, 16384) &&
				 run_cut_at(&rows[i], &in, cut, PH_H2_ROOM_LEAST);
		if (passed) {
			begin(&run, PH_H2_ROOM_LEAST);
			for (size_t at = 0; at < in.len; at++)
				offer(&run, in.bytes + at, 1);
			passed = is_as_wanted(&run, &rows[i]);
			end(&run);
		}
		ktap_ok(passed, "requests: %s", rows[i].name);
		free(in.bytes);
	}
}

static void test_preface(void)
{
	static const char *const bad[] = { "GET / HTTP/1.1\r\nHost: " OTHER "\r\n\r\n",
					   "PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n" };

	for (size_t i = 0; i < 2; i++) {
		struct run run;

		begin(&run, 16384);
		offer(&run, (const uint8_t *)bad[i], strlen(bad[i]));
		ktap_ok(run.reason == PH_REASON_H2_MALFORMED && !run.out.len, "preface: %.14s is none", bad[i]);
		end(&run);
	}
}

/* What stands for much: an entry of the table, named again and again. */
static void test_bombs(void)
{
	static const struct {
		unsigned names, blocks;
		enum ph_reason reason;
	} bombs[] = { { 20, 200, ALL_WELL }, { 25, 1, PH_REASON_H2_TOO_LONG } };
	char *field = NULL;
	struct run run;

	for (size_t i = 0; i < 2; i++) {
		struct h2_bytes in = { 0 };
		uint8_t block[64];

		if (asprintf(&field, OURS "x: %03000d\n", 0) < 0)
			abort();
		add_script(&in, (struct h2_step[]){ F(HEADERS, GET, 1, field, .how = H2_COMPRESSED), { 0 } });
		memset(block, 0xbe, sizeof(block));	/* the newest entry: RFC 7541, section 2.3.3 */
		for (unsigned j = 0; j < bombs[i].blocks; j++)
			h2_frame(&in, HEADERS, END_HEADERS | END_STREAM, 3 + 2 * j, block, bombs[i].names);
		begin(&run, 16384);
		offer(&run, in.bytes, in.len);
		ktap_ok(run.reason == bombs[i].reason &&
				(run.reason != ALL_WELL || run.out.len > 200 * 20 * 3000),
			"bombs: %u blocks of %u entries of 3 KB: %s", bombs[i].blocks, bombs[i].names,
			bombs[i].reason == ALL_WELL ? "written piece by piece" : "refused");
		end(&run);
		free(in.bytes);
		free(field);
	}
}

/* What goes nowhere is not written first: a thousand times 64 KiB would be felt. */
static void test_dropped_bomb(void)
{
	struct h2_bytes in = { 0 };
	char *field = NULL;
	uint8_t block[120];
	struct run run;

	if (asprintf(&field, THEIRS "x: %03000d\n", 0) < 0)
		abort();
	add_script(&in, (struct h2_step[]){ F(HEADERS, 0, 1, field, .how = H2_COMPRESSED), { 0 } });
	memset(block, 0xbe, sizeof(block));
	h2_frame(&in, HEADERS, END_HEADERS | END_STREAM, 1, block, sizeof(block));
	begin(&run, 16384);
	offer(&run, in.bytes, in.len);
	ktap_ok(run.reason == ALL_WELL && run.count == 1 && !memmem(run.out.bytes, run.out.len, "000", 3),
		"bombs: trailers of a refused request are only decoded");
	end(&run);
	free(in.bytes);
	free(field);
}

static void test_long_block(void)
{
	static const struct {
		int len;
		enum ph_reason reason;
	} lens[] = { { 60000, ALL_WELL }, { 66000, PH_REASON_H2_TOO_LONG } };

	for (size_t i = 0; i < 2; i++) {
		struct h2_bytes in = { 0 };
		char *fields = NULL, *want = NULL, *text;
		struct run run;

		if (asprintf(&fields, OURS "x: %0*d\ny: %0*d\n", lens[i].len / 2, 0, lens[i].len / 2, 0) < 0 ||
		    asprintf(&want, START "HEADERS 1 priority\n%s", fields) < 0)
			abort();
		add_script(&in, (struct h2_step[]){ F(HEADERS, HAS_PRIORITY, 1, fields, .cut = 16000), { 0 } });
		begin(&run, 16384);
		offer(&run, in.bytes, in.len);
		text = h2_read(run.out.bytes, run.out.len, 4096);
		ktap_ok(run.reason == lens[i].reason && (run.reason != ALL_WELL || !strcmp(text, want)),
			"a block of %d bytes: %s", lens[i].len,
			run.reason == ALL_WELL ? "whole, in several frames" : "refused");
		end(&run);
		free(text);
		free(in.bytes);
		free(fields);
		free(want);
	}
}

/* Stream 1 is ours, 3 was refused, 5 is ours, 7 never was. */
static void begin_three(struct run *run)
{
	struct h2_bytes in = { 0 };

	begin(run, 16384);
	add_script(&in, (struct h2_step[]){ F(HEADERS, GET, 1, OURS), F(HEADERS, 0, 3, THEIRS), F(DATA, 0, 3, "secret"),
					    F(HEADERS, GET, 5, OURS), { 0 } });
	offer(run, in.bytes, in.len);
	free(in.bytes);
	if (run->reason != ALL_WELL)
		abort();
}

static void test_answers(void)
{
	static const struct {
		const char *name;
		int type;
		uint32_t stream;
		enum ph_reason want;
	} answers[] = {
		{ "an answer", HEADERS, 1, ALL_WELL },
		{ "another", HEADERS, 5, ALL_WELL },
		{ "data", DATA, 1, ALL_WELL },
		{ "the connection's", WINDOW_UPDATE, 0, ALL_WELL },
		{ "an answer to what was refused", HEADERS, 3, PH_REASON_CVM_H2 },
		{ "data for what was refused", DATA, 3, PH_REASON_CVM_H2 },
		{ "an answer to what was not asked yet", HEADERS, 7, PH_REASON_CVM_H2 },
		{ "an answer to what never will be", HEADERS, 0x7fffffff, PH_REASON_CVM_H2 },
		{ "an answer on a stream of its own", HEADERS, 2, PH_REASON_CVM_H2 },
		{ "a push", PUSH_PROMISE, 1, PH_REASON_CVM_H2 },
		{ "an extension for what was refused", 0xfa, 3, PH_REASON_CVM_H2 },
		{ "a stream's reserved bit set", HEADERS, 0x80000003, PH_REASON_CVM_H2 },
	};

	for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
		struct h2_bytes in = { 0 };
		bool passed = true;

		h2_frame(&in, SETTINGS, 0, 0, "123456", 6);
		h2_frame(&in, HEADERS, 0, 1, "\x88", 1);
		h2_frame(&in, CONTINUATION, END_HEADERS, 1, "", 0);
		h2_frame(&in, answers[i].type, END_HEADERS, answers[i].stream, "1234", 4);
		for (size_t cut = 0; cut <= in.len; cut++) {
			enum ph_reason reason;
			struct run run;

			begin_three(&run);
			reason = ph_authority_answers(run.authority, in.bytes, cut);
			if (reason == ALL_WELL)
				reason = ph_authority_answers(run.authority, in.bytes + cut, in.len - cut);
			passed &= reason == answers[i].want;
			end(&run);
		}
		ktap_ok(passed, "answers: %s", answers[i].name);
		free(in.bytes);
	}
	{
		static const char http[] = "HTTP/1.1 200 OK\r\n\r\n";
		struct run run;

		begin_three(&run);
		ktap_ok(ph_authority_answers(run.authority, (const uint8_t *)http, sizeof(http)) == PH_REASON_CVM_H2,
			"answers: HTTP/1.1");
		end(&run);
	}
}

/* The CVM is read byte by byte, as if it were slow; the gateway speaks as soon as it may. */
static void test_speaking(void)
{
	static const uint8_t want[] = { 0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 0, 0, 0, 0, 6,
					0, 0, 5, HEADERS, END_HEADERS | END_STREAM, 0, 0, 0, 3, 8, 3, '4', '2', '1',
					0, 0, 4, RST_STREAM, 0, 0, 0, 0, 3, 0, 0, 0, 0 };
	struct h2_bytes in = { 0 };
	uint8_t said[PH_H2_ROOM_LEAST];
	size_t settings_end, block_end, at = 0, room, len;
	bool too_early = false;
	struct run run;

	h2_frame(&in, SETTINGS, 0, 0, "123456", 6);
	settings_end = in.len;
	h2_frame(&in, HEADERS, 0, 1, "\x88\x88", 2);
	h2_frame(&in, CONTINUATION, END_HEADERS, 1, "\x88", 1);
	block_end = in.len;

	begin_three(&run);
	while (at < settings_end) {
		too_early |= ph_authority_speak(run.authority, said, sizeof(said));
		room = ph_authority_room(run.authority, 16384);
		too_early |= at + room > settings_end;
		ph_authority_answers(run.authority, in.bytes + at++, 1);
	}
	ktap_ok(ph_authority_owed(run.authority) == 1, "speaking: owed until then");
	ktap_ok(!too_early, "speaking: not before the CVM's SETTINGS, and not within");
	len = ph_authority_speak(run.authority, said, sizeof(said));
	ktap_ok(len == sizeof(want) && !memcmp(said, want, len), "speaking: the body's window, 421, and no more of it");
	ktap_ok(!ph_authority_speak(run.authority, said, sizeof(said)) && !ph_authority_owed(run.authority) &&
			ph_authority_room(run.authority, 16384) == 16384,
		"speaking: once");
	end(&run);

	begin_three(&run);
	ph_authority_answers(run.authority, in.bytes, settings_end + 3);
	too_early = false;
	for (at = settings_end + 3; at < block_end; at += room) {
		too_early |= ph_authority_speak(run.authority, said, sizeof(said));
		room = ph_authority_room(run.authority, 16384);
		too_early |= at + room > block_end;
		ph_authority_answers(run.authority, in.bytes + at, room);
	}
	ktap_ok(!too_early && at == block_end && ph_authority_speak(run.authority, said, sizeof(said)) == sizeof(want),
		"speaking: not within a header block, and not read over its end");
	end(&run);
	free(in.bytes);
}

static void test_many(void)
{
	struct h2_bytes in = { 0 };
	enum { MANY = 10 * PH_H2_REFUSED_MAX };
	uint8_t said[PH_H2_ROOM_LEAST];
	size_t start, each, told = 0;
	struct run run;

	add_script(&in, (struct h2_step[]){ { 0 } });
	start = in.len;
	for (uint32_t i = 0; i < MANY; i++)
		h2_add_step(&in, NULL, &(struct h2_step)F(HEADERS, GET, 2 * i + 1, THEIRS));
	each = (in.len - start) / MANY;

	begin(&run, 16384);
	offer(&run, in.bytes, start + PH_H2_REFUSED_MAX * each);
	ktap_ok(run.reason == ALL_WELL && run.count == PH_H2_REFUSED_MAX, "many: %d refused at once",
		PH_H2_REFUSED_MAX);
	offer(&run, in.bytes + start + PH_H2_REFUSED_MAX * each, each);
	ktap_ok(run.reason == PH_REASON_MISDIRECTED, "many: one more ends the connection");
	end(&run);

	begin(&run, 16384);
	ph_authority_answers(run.authority, (const uint8_t *)"\0\0\0\4\0\0\0\0\0", 9);
	for (size_t at = 0; at < in.len; at += at ? each : start) {
		offer(&run, in.bytes + at, at ? each : start);
		told += ph_authority_speak(run.authority, said, sizeof(said));
	}
	ktap_ok(run.reason == ALL_WELL && run.count == MANY && told == MANY * 14, "many: %d one after the other", MANY);
	end(&run);
	free(in.bytes);
}

/* As many as are remembered, told, and one more: @end is what the client sends of each before that, or "" for nothing. */
static enum ph_reason refuse_many_bodies(int type, int flags, const char *end_text)
{
	struct h2_bytes in = { 0 };
	uint8_t said[PH_H2_ROOM_LEAST];
	enum ph_reason reason;
	struct run run;

	begin(&run, 16384);
	ph_authority_answers(run.authority, (const uint8_t *)"\0\0\0\4\0\0\0\0\0", 9);
	add_script(&in, (struct h2_step[]){ { 0 } });
	for (uint32_t i = 0; i <= PH_H2_REFUSED_MAX; i++) {
		h2_add_step(&in, NULL, &(struct h2_step)F(HEADERS, 0, 2 * i + 1, THEIRS));
		offer(&run, in.bytes, in.len);
		ph_authority_speak(run.authority, said, sizeof(said));
		in.len = 0;
		if (type >= 0)
			h2_frame(&in, type, flags, 2 * i + 1, end_text, strlen(end_text));
	}
	reason = run.reason;
	end(&run);
	free(in.bytes);
	return reason;
}

static void test_many_bodies(void)
{
	static const struct {
		const char *name;
		int type, flags;
		const char *text;
		enum ph_reason want;
	} ends[] = {
		{ "left open", -1, 0, "", PH_REASON_MISDIRECTED },
		{ "with more to come", DATA, 0, "secret", PH_REASON_MISDIRECTED },
		{ "ended", DATA, END_STREAM, "secret", ALL_WELL },
		{ "ended by trailers", HEADERS, END_HEADERS | END_STREAM, "", ALL_WELL },
		{ "reset", RST_STREAM, 0, "1234", ALL_WELL },
	};

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		ktap_ok(refuse_many_bodies(ends[i].type, ends[i].flags, ends[i].text) == ends[i].want,
			"many: one more than %d refused and told, each %s", PH_H2_REFUSED_MAX, ends[i].name);
}

int main(void)
{
	ktap_header();
	test_rows();
	test_preface();
	test_bombs();
	test_dropped_bomb();
	test_long_block();
	test_answers();
	test_speaking();
	test_many();
	test_many_bodies();
	return ktap_end();
}
