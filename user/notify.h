/* SPDX-License-Identifier: Apache-2.0 */
/*
 * notify - the two small protocols that systemd speaks with a service: sockets handed over at start (LISTEN_FDS,
 * sd_listen_fds(3)) and a word when it is ready, and that it lives (NOTIFY_SOCKET, sd_notify(3)). Without systemd both do
 * nothing.
 */
#ifndef PHALAD_NOTIFY_H
#define PHALAD_NOTIFY_H

#include <stdint.h>

#define PH_NOTIFY_FIRST_FD 3

/*
 * How many sockets, from PH_NOTIFY_FIRST_FD on, were handed to this process. They are made close-on-exec, and the
 * variables are taken out of the environment.
 *
 * Return: the count, 0 also when they are meant for another process, or -EINVAL when the variables make no sense.
 */
int ph_notify_listen_fds(void);

/* How often systemd wants to hear WATCHDOG=1 (sd_watchdog_enabled(3)), in milliseconds. Return: 0 when it does not. */
uint32_t ph_notify_watchdog_ms(void);

/* @state: "READY=1", "STOPPING=1", ... Return: 0, also when nobody asked to be told, -EAGAIN when systemd is behind, or -errno. */
int ph_notify(const char *state);

#endif
