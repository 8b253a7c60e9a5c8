/* SPDX-License-Identifier: Apache-2.0 */
/*
 * holder - the first process: it opens the sockets and keeps them, starts manager and workers, starts again whichever
 * dies, and ends whichever hangs. It reads no peer's byte, so that as long as it lives, handshakes go on.
 */
#ifndef PHALAD_HOLDER_H
#define PHALAD_HOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

/*
 * The descriptors that a role finds in its --fds, by place. Workers: channel, tickets, pulse, then the listening
 * sockets; manager: control, pulse, what the holder counts (see page.h), then a channel per worker.
 *
 * Into pulse goes one byte when the process is ready, and one each PH_PULSE_MS from then on.
 */
enum ph_worker_fd {
	PH_WORKER_FD_CHANNEL,
	PH_WORKER_FD_TICKETS,
	PH_WORKER_FD_PULSE,
	PH_WORKER_FD_LISTEN,
};

enum ph_manager_fd {
	PH_MANAGER_FD_CONTROL,
	PH_MANAGER_FD_PULSE,
	PH_MANAGER_FD_COUNTS,
	PH_MANAGER_FD_CHANNELS,
};

/* Written by the holder alone, each by a store of its own. */
struct ph_holder_counts {
	uint64_t turned_away;			/* connections that were closed because no worker ran */
	uint64_t restarts;			/* of manager and workers */
	uint64_t hung;				/* those among them that were killed because nothing was heard of them */
};

#define PH_ROLE_FDS_MAX (3 + PH_LISTEN_MAX + PH_WORKERS_MAX)

/**
 * ph_holder_main() - run phalad until SIGTERM or SIGINT.
 * @config: as @config_fd says.
 * @config_fd: a sealed copy of the configuration file, for the children: they start again with what was checked once.
 * @fresh: the first manager begins with new maps, whatever is pinned.
 *
 * Return: the exit status: 0 when told to stop, 1 when the first start failed.
 */
int ph_holder_main(const struct ph_config *config, int config_fd, bool fresh);

#endif
