/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link - network devices, IPv4 addresses and routes through rtnetlink.
 *
 * Every call may be repeated: what is right already is not touched. Nothing that is somebody else's is changed, save
 * the addresses of the device that the caller names: our routes bear a protocol number of their own.
 */
#ifndef PHALAD_LINK_H
#define PHALAD_LINK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define PH_LINK_ROUTE_PROTOCOL 177		/* rtm_protocol of our routes; unused in rtnetlink.h, iproute2, FRR */
#define PH_LINK_BLACKHOLE_METRIC UINT32_MAX	/* behind every other route for the same range */

struct ph_link;					/* a request socket */

struct ph_link_info {
	uint32_t ifindex;
	uint32_t mtu;
	bool up;
	uint16_t hardware;			/* ARPHRD_ETHER, ARPHRD_NONE for a layer-3 device, ... */
	char kind[16];				/* IFLA_INFO_KIND: "wireguard", "veth", ...; empty when there is none */
};

int ph_link_new(struct ph_link **ret_link);
void ph_link_free(struct ph_link *link);

/* Return: 0, -ENODEV, -EINVAL for a name that no device can have, or -errno. */
int ph_link_get(struct ph_link *link, const char *interface, struct ph_link_info *ret_info);

/*
 * Creates the device, or adopts one that is there. Return: 0, -EEXIST when the name is a device of another kind,
 * -EPROTONOSUPPORT when this kernel has no WireGuard, -EINVAL as above, or -errno.
 */
int ph_link_create_wireguard(struct ph_link *link, const char *interface);

/* Return: 0, -ENODEV, -EADDRINUSE when a WireGuard device's UDP port is another socket's, or -errno. */
int ph_link_set_up(struct ph_link *link, uint32_t ifindex, uint32_t mtu);

/*
 * Deleting a WireGuard device with peers in it takes an RCU grace period for each, some 20 ms, and this call waits; the
 * name is free at once. Removing the peers before is much faster. Return: 0, -ENODEV, or -errno.
 */
int ph_link_delete(struct ph_link *link, uint32_t ifindex);

/*
 * Makes @address/@prefix_len the device's only IPv4 address. Before ph_link_set_route(): with a device's last address
 * the kernel drops the routes through it.
 */
int ph_link_set_address(struct ph_link *link, uint32_t ifindex, struct in_addr address, uint8_t prefix_len);

/* Return: 1 if it is one of the device's addresses, 0 if not, -ENODEV, or -errno. */
int ph_link_has_address(struct ph_link *link, uint32_t ifindex, struct in_addr address, uint8_t prefix_len);

/*
 * The range (host bits zero) through the device, which must be up; and, behind it with the worst metric, a blackhole
 * for the same range, which stays when the device goes. The blackhole is set first, so that no moment is without
 * either. A route of ours for the range through another device is moved.
 *
 * Return: 0, -EEXIST when somebody else's route for the range stands there, -ENETDOWN, or -errno.
 */
int ph_link_set_route(struct ph_link *link, struct in_addr range, uint8_t range_len, uint32_t ifindex);
int ph_link_set_blackhole(struct ph_link *link, struct in_addr range, uint8_t range_len);

/*
 * Takes away ours, and only ours, for every range but this one: what a configuration with another range left. So there
 * is one gateway to a network namespace. Return: 0 also when there was none, or -errno.
 */
int ph_link_keep_only_route(struct ph_link *link, struct in_addr range, uint8_t range_len);

/* A non-blocking socket that becomes readable when devices come, go or change; the caller's to close. */
int ph_link_watch(int *ret_fd);

/*
 * Reads all that is pending; a device that was moved to another namespace is gone. Return: the number of notices,
 * -ENOBUFS when some were lost (what is left has been read: look at the devices themselves), or -errno.
 */
int ph_link_watch_drain(int fd, void (*notice)(uint32_t ifindex, const char *interface, bool gone, void *arg),
			void *arg);

#endif
