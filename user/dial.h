/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dial - begin a TCP connection to an instance, through the tunnel device and no other.
 */
#ifndef PHALAD_DIAL_H
#define PHALAD_DIAL_H

#include <netinet/in.h>
#include <stdint.h>

#include <phala/reason.h>

/**
 * ph_dial() - begin to connect.
 * @ifindex: the tunnel device; without it nothing is sent, whatever the routes say. By index, because another device may
 * get its name while nobody looks.
 * @port: host order.
 * @ret_fd: non-blocking, the caller's to close; it becomes writable when connected, or failed.
 *
 * Return: 0, or -errno when it failed at once.
 */
int ph_dial(uint32_t ifindex, struct in_addr address, uint16_t port, int *ret_fd);

/* What became of it once it is writable. Return: 0 or -errno. */
int ph_dial_result(int fd);

/* @error: -errno of either; what to count it as. */
enum ph_reason ph_dial_reason(int error);

/*
 * Once, by who may: connections that a client has ended wait here in TIME_WAIT, for a minute, each with the source port that
 * it had. Sets net.ipv4.tcp_tw_reuse, with which those older than a second are used again, unless somebody has set it.
 */
void ph_dial_prepare_host(void);

/* No delay, and keepalive for peers that vanish. What a listening socket has, those it accepts inherit. */
int ph_dial_prepare(int fd);

#endif
