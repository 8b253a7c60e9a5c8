// SPDX-License-Identifier: Apache-2.0
/* postgres: the questions before TLS, byte by byte, and what servers may answer. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ktap.h"
#include "postgres.h"

#define SSL "\0\0\0\x08\x04\xd2\x16\x2f"
#define GSS "\0\0\0\x08\x04\xd2\x16\x30"

static const struct {
	const char *name;
	const char *bytes;
	size_t len;
	enum ph_postgres_request want;
} rows[] = {
	{ "SSLRequest", SSL, 8, PH_POSTGRES_SSL },
	{ "GSSENCRequest", GSS, 8, PH_POSTGRES_GSS },
	{ "SSLRequest and more", SSL "\x16\x03\x01", 11, PH_POSTGRES_SSL },
	{ "nothing yet", "", 0, PH_POSTGRES_MORE },
	{ "CancelRequest", "\0\0\0\x10\x04\xd2\x16\x2e", 8, PH_POSTGRES_NEITHER },
	{ "StartupMessage", "\0\0\0\x08\0\x03\0\0", 8, PH_POSTGRES_NEITHER },
	{ "another length", "\0\0\0\x09\x04\xd2\x16\x2f", 8, PH_POSTGRES_NEITHER },
	{ "wrong from the first byte", "\x16", 1, PH_POSTGRES_NEITHER },
	{ "wrong in the last byte", "\0\0\0\x08\x04\xd2\x16\x31", 8, PH_POSTGRES_NEITHER },
	{ "wrong half-way", "\0\0\0\x08\x05", 5, PH_POSTGRES_NEITHER },
};

static void test_parse(void)
{
	int wrong = 0;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		ktap_ok(ph_postgres_parse((const uint8_t *)rows[i].bytes, rows[i].len) == rows[i].want, "parse: %s",
			rows[i].name);
	for (size_t len = 0; len < PH_POSTGRES_REQUEST_LEN; len++) {
		wrong += ph_postgres_parse((const uint8_t *)SSL, len) != PH_POSTGRES_MORE;
		wrong += ph_postgres_parse((const uint8_t *)GSS, len) != PH_POSTGRES_MORE;
	}
	ktap_ok(!wrong, "parse: every beginning wants more");
}

static void test_words(void)
{
	char bytes[PH_POSTGRES_REQUEST_LEN + 1];
	int pair[2];

	socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair);
	ktap_ok(!ph_postgres_answer(pair[0], PH_POSTGRES_SSL) && read(pair[1], bytes, sizeof(bytes)) == 1 &&
			bytes[0] == 'S',
		"answer: S to SSL");
	ktap_ok(!ph_postgres_answer(pair[0], PH_POSTGRES_GSS) && read(pair[1], bytes, sizeof(bytes)) == 1 &&
			bytes[0] == 'N',
		"answer: N to GSS");
	ktap_ok(!ph_postgres_ask(pair[0]) && read(pair[1], bytes, sizeof(bytes)) == PH_POSTGRES_REQUEST_LEN &&
			!memcmp(bytes, SSL, PH_POSTGRES_REQUEST_LEN),
		"ask: an SSLRequest");
	close(pair[1]);
	ktap_ok(ph_postgres_ask(pair[0]) == -EPIPE, "ask: nobody there");
	close(pair[0]);
}

static const struct {
	const char *name;
	const char *answer;
	int want;
} answers[] = {
	{ "yes", "S", 0 },
	{ "no", "N", -EPROTO },
	{ "an error message", "E\0\0\0\x08", -EPROTO },
	{ "yes and something unasked", "SX", -EPROTO },
	{ "nothing yet", "", -EAGAIN },
};

static void test_answers(void)
{
	int pair[2];

	for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
		size_t len = strlen(answers[i].answer);

		socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair);
		ktap_ok(write(pair[1], answers[i].answer, len) == (ssize_t)len &&
				ph_postgres_read_answer(pair[0]) == answers[i].want,
			"server: %s", answers[i].name);
		close(pair[0]);
		close(pair[1]);
	}
	socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair);
	close(pair[1]);
	ktap_ok(ph_postgres_read_answer(pair[0]) == -EPROTO, "server: gone without an answer");
	close(pair[0]);
}

int main(void)
{
	ktap_header();
	test_parse();
	test_words();
	test_answers();
	return ktap_end();
}
