/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manager - the process with CAP_NET_ADMIN and CAP_BPF: keeps registry, WireGuard device and maps true to each other,
 * reads handshakes, answers phalactl. It never sees a client's byte.
 */
#ifndef PHALAD_MANAGER_H
#define PHALAD_MANAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

struct ph_manager_args {
	const int *channel_fds;		/* the manager's end of each worker's channel */
	uint32_t worker_count;
	int control_fd;			/* listening unix socket, bound by the holder, 0600 */
	int pulse_fd;			/* one byte is written once registry, device and maps agree, then one each tick */
	int counts_fd;			/* struct ph_holder_counts, see page.h */
	bool fresh;			/* begin with new maps: pins of any version are removed */
	bool restarted;			/* not the first start: without a usable tunnel device it waits for one */
};

/* Runs until told to stop by SIGTERM; SIGHUP reloads certificates. Return: the process's exit status. */
int ph_manager_main(const struct ph_config *config, const struct ph_manager_args *args);

#endif
