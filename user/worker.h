/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker - the process that sees client bytes and certificate keys, and nothing else: no capability, seccomp, not
 * dumpable.
 */
#ifndef PHALAD_WORKER_H
#define PHALAD_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

struct ph_worker_args {
	uint32_t index;
	const int *listen_fds;		/* shared by all workers; the holder's */
	uint32_t listen_count;
	int channel_fd;			/* this worker's end */
	int pulse_fd;			/* one byte is written when the worker accepts connections, then one each second */
	int tickets_fd;			/* struct ph_tickets, see page.h; the same for all */
	bool restarted;			/* not the first start: an expired certificate is a warning, not an error */
};

/* Runs until told to stop by SIGTERM. Return: the process's exit status. */
int ph_worker_main(const struct ph_config *config, const struct ph_worker_args *args);

#endif
