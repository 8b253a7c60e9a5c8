/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device - the tunnel device: made or adopted, configured, guarded, and its peers kept equal to the roster.
 *
 * For Type = external there is only an interface to look at, and to guard if that is wanted; nothing of it is
 * configured, and peers are no matter.
 */
#ifndef PHALAD_DEVICE_H
#define PHALAD_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "guard.h"
#include "roster.h"
#include "wg.h"

struct ph_device;

struct ph_device_state {
	uint32_t ifindex;			/* 0 while there is none, or it cannot be used */
	bool up;
	uint32_t mtu;
	uint16_t listen_port;			/* host order; 0 for an external one, as the next */
	bool has_key;
	uint8_t public_key[PH_KEY_LEN];
};

/**
 * ph_device_new() - nothing is made or touched yet.
 * @guard: put on a WireGuard device before it is up, and back when it was taken off; NULL for Type = external without
 *         Guard; the caller's, outlives the device.
 * @error: one line for people, set on failure.
 *
 * Return: 0, -EPROTONOSUPPORT when this kernel has no WireGuard, or -errno.
 */
int ph_device_new(const struct ph_tunnel *config, struct ph_guard *guard, struct ph_device **ret_device, char *error,
		  size_t error_size);
/* The device itself stays, with everything on it. */
void ph_device_free(struct ph_device *device);

/*
 * Is the device there, and is it as ph_device_ensure() left it? The state's ifindex becomes 0 when it is gone, or
 * another one has its name. Return: 1, 0, or -errno when it cannot be known.
 */
int ph_device_look(struct ph_device *device);

/**
 * ph_device_ensure() - make the device and configure it. An interface of another kind is never touched.
 *
 * Whatever is right already stays as it is. Peers are not looked at.
 *
 * Return: 0, -ENODEV when an external one is not there, or -errno; then the state's ifindex is 0.
 */
int ph_device_ensure(struct ph_device *device, char *error, size_t error_size);

const struct ph_device_state *ph_device_state(const struct ph_device *device);

/* Adds or changes, removes one peer. Nothing to do for an external device. Return: 0 or -errno. */
int ph_device_set_peer(struct ph_device *device, const uint8_t public_key[PH_KEY_LEN], struct in_addr address);
int ph_device_remove_peer(struct ph_device *device, const uint8_t public_key[PH_KEY_LEN]);

/* As ph_wg_each_peer(); visits nobody on an external device. */
int ph_device_each_peer(struct ph_device *device, int (*visit)(const struct ph_wg_peer *peer, void *arg), void *arg);

struct ph_device_changes {
	uint32_t kept, set, removed;		/* peers */
};

/*
 * Makes the peers equal to @roster: one that is right is not touched, one that is missing or wrong is set, one that is
 * not in it is removed. Return: 0 or -errno.
 */
int ph_device_reconcile(struct ph_device *device, struct ph_roster *roster, struct ph_device_changes *ret_changes);

#endif
