/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trial - connections at an even pace, whatever becomes of them: what a client sees of a gateway that is under attack.
 */
#ifndef BENCH_TRIAL_H
#define BENCH_TRIAL_H

#include "client.h"

#define TRIAL_LIMIT_NS 3000000000U	/* for a connection; a later answer is none */

/*
 * @rate: connections a second, each asked once (the task's verb does not matter). Only what is wrong on our side ends it.
 * @result: connections are all that were tried. Those that failed have the limit for a latency, or p99 would not show them.
 */
void trial_run(const struct client_task *task, uint32_t rate, struct client_result *result);

#endif
