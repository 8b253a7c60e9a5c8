/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netlink - one request to the kernel and its whole answer.
 *
 * The kernel is trusted; that an answer is the answer to this request is checked all the same. Requests and answers may
 * hold keys: both buffers are zeroed after each call. Only wg.c and link.c include this, and libmnl through it.
 */
#ifndef PHALAD_NETLINK_H
#define PHALAD_NETLINK_H

#include <stdint.h>

#include <libmnl/libmnl.h>

#define PH_NETLINK_REQUEST_BYTES 8192		/* of one message, the most a caller may put together */
#define PH_NETLINK_DUMP_TRIES 16		/* for a dump that what it lists keeps changing under */

struct ph_netlink;

/* @bus: NETLINK_ROUTE or NETLINK_GENERIC. Return: 0 or -errno. */
int ph_netlink_new(int bus, struct ph_netlink **ret_netlink);
void ph_netlink_free(struct ph_netlink *netlink);

/**
 * ph_netlink_start() - the header of a request; attributes follow by mnl_attr_put().
 * @flags: besides NLM_F_REQUEST.
 *
 * Return: the request, inside a buffer of PH_NETLINK_REQUEST_BYTES; good until the call or dump that sends it.
 */
struct nlmsghdr *ph_netlink_start(struct ph_netlink *netlink, uint16_t type, uint16_t flags);

/**
 * ph_netlink_call() - send the started request and wait until the kernel has acknowledged it.
 * @visit: called for each message of the answer; NULL when nothing but the acknowledgement counts.
 *
 * Return: 0, the kernel's -errno, or what @visit returned if not 0 (later messages are then read, but not visited).
 */
int ph_netlink_call(struct ph_netlink *netlink, int (*visit)(const struct nlmsghdr *message, void *arg), void *arg);

/**
 * ph_netlink_dump() - send the started request as a dump and read all of it.
 * @reset: called before each attempt: forget what was collected. A dump that was interrupted by a change is read again.
 *
 * Return: as ph_netlink_call(), or -EINTR when PH_NETLINK_DUMP_TRIES attempts were all interrupted.
 */
int ph_netlink_dump(struct ph_netlink *netlink, void (*reset)(void *arg),
		    int (*visit)(const struct nlmsghdr *message, void *arg), void *arg);

/* Copies an attribute's payload if it has exactly @size bytes. Return: 0 or -EBADMSG. */
int ph_netlink_copy(const struct nlattr *attr, void *ret_value, uint16_t size);

#endif
