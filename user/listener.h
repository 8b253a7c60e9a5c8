/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener - the sockets that clients connect to, and the control socket.
 */
#ifndef PHALAD_LISTENER_H
#define PHALAD_LISTENER_H

#include <stddef.h>

#include "config.h"

/**
 * ph_listener_open() - one listening TCP socket per Listen of the configuration, in its order.
 * @ret_fds: PH_LISTEN_MAX of them; config->listen_count are set, the caller's to close; untouched on failure.
 * @error: one line for people, set on failure.
 *
 * Takes over the sockets that systemd opened (LISTEN_FDS) when there are any: each must be a TCP socket on one of the
 * Listen addresses, and each address must have one. Raises net.core.somaxconn where it is below the backlog.
 *
 * Return: 0 or -errno; -EINVAL when what systemd opened is not what the configuration says.
 */
int ph_listener_open(const struct ph_config *config, int ret_fds[PH_LISTEN_MAX], char *error, size_t error_size);

/*
 * Accepts and closes, unread, what waits at a listening socket: PH_ACCEPT_BATCH connections at most. Return: how many, or
 * -errno when there is no descriptor or memory for even one.
 */
int ph_listener_turn_away(int fd);

/**
 * ph_listener_open_control() - the unix socket at @path, mode 0600, in place of whatever is there.
 * @ret_fd: the caller's to close.
 *
 * Return: 0 or -errno.
 */
int ph_listener_open_control(const char *path, int *ret_fd, char *error, size_t error_size);

#endif
