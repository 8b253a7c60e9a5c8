/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client - one process's streams towards the gateway.
 *
 * A load generator has one way to fail: a word to stderr and exit(1), at the first thing out of order.
 */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#include "stream.h"

#define CLIENT_LATENCIES_MAX (1U << 21)

enum client_verb {
	CLIENT_SOURCE,
	CLIENT_SINK,
	CLIENT_ANSWER,
	CLIENT_ASK,
	CLIENT_HOLD,
	CLIENT_TRY,			/* trial.h's */
	CLIENT_VERBS,
};

struct client_task {
	enum client_verb verb;
	struct sockaddr_in to;
	const char *tls_name;			/* NULL: in clear */
	uint64_t duration_ns;
	size_t head_len;
	uint8_t head[STREAM_HEAD_MAX];
};

struct client_result {
	uint64_t begun_ns, ended_ns;		/* CLOCK_MONOTONIC */
	uint64_t connections;
	uint64_t answers;			/* in time; later ones are no less checked */
	uint64_t bytes;				/* of the pattern, as both ends have counted */
	uint32_t latency_count;
	uint32_t latencies_us[CLIENT_LATENCIES_MAX];
};

__attribute__((noreturn, format(printf, 1, 2))) void client_fail(const char *format, ...);

/* @result is all zero before. */
void client_run(const struct client_task *task, uint32_t streams, struct client_result *result);

#endif
