/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link - network devices, addresses and routes through rtnetlink.
 */
#ifndef PHALAD_LINK_H
#define PHALAD_LINK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

struct ph_link;					/* a request socket */

struct ph_link_info {
	uint32_t ifindex;
	uint32_t mtu;
	bool up;
	char kind[16];				/* IFLA_INFO_KIND: "wireguard", "veth", ...; empty when there is none */
};

int ph_link_new(struct ph_link **ret_link);
void ph_link_free(struct ph_link *link);

/* Return: 0, -ENODEV, or -errno. */
int ph_link_get(struct ph_link *link, const char *interface, struct ph_link_info *ret_info);
int ph_link_create_wireguard(struct ph_link *link, const char *interface);
int ph_link_set_up(struct ph_link *link, uint32_t ifindex, uint32_t mtu);
int ph_link_delete(struct ph_link *link, uint32_t ifindex);

/* Makes @address/@prefix_len the device's only IPv4 address. */
int ph_link_set_address(struct ph_link *link, uint32_t ifindex, struct in_addr address, uint8_t prefix_len);

/* The range through the device, and, behind it with the worst metric, a blackhole for the same range. Idempotent. */
int ph_link_set_route(struct ph_link *link, struct in_addr range, uint8_t range_len, uint32_t ifindex);
int ph_link_set_blackhole(struct ph_link *link, struct in_addr range, uint8_t range_len);

/* A non-blocking socket that becomes readable when devices come, go or change. */
int ph_link_watch(int *ret_fd);
/* Reads all that is pending. Return: the number of notices, -ENOBUFS when some were lost, or -errno. */
int ph_link_watch_drain(int fd, void (*notice)(uint32_t ifindex, const char *interface, bool gone, void *arg),
			void *arg);

#endif
