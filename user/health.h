/* SPDX-License-Identifier: Apache-2.0 */
/*
 * health - from WireGuard's handshake stamps to the times in the maps.
 *
 * The kernel stamps a handshake with the wall clock, which people set. So a stamp is only ever compared for being equal
 * to the one seen before: another stamp is a handshake that has just happened, on CLOCK_BOOTTIME.
 */
#ifndef PHALAD_HEALTH_H
#define PHALAD_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#include "device.h"
#include "maps.h"
#include "roster.h"

/* Of one moment. */
struct ph_clocks {
	uint64_t boot_ns;			/* CLOCK_BOOTTIME */
	uint64_t wall_ns;			/* CLOCK_REALTIME */
};

void ph_clocks_read(struct ph_clocks *ret_clocks);

/**
 * ph_health_handshake_ns() - when was the last handshake?
 * @known_ns: what the map says, CLOCK_BOOTTIME; 0 is never.
 * @known_stamp_ns: the stamp that the map says this was of.
 * @stamp_ns: the kernel's stamp now; 0 is never.
 * @first: this manager has not looked at the peer before, so another stamp may be older than the last second: the wall
 *         clock is then asked for its age. Not before @known_ns, which was of an earlier one.
 *
 * Return: CLOCK_BOOTTIME in nanoseconds, never in the future; 0 is never.
 */
uint64_t ph_health_handshake_ns(uint64_t known_ns, uint64_t known_stamp_ns, uint64_t stamp_ns,
				const struct ph_clocks *now, bool first);

/**
 * ph_health_read() - one look at all peers: handshakes into @maps, counters and endpoints into @roster.
 * @first: as above.
 * @ret_differs: the device's peers are not the roster's; set on success.
 *
 * Return: 0, or -errno when the peers could not be read to the end.
 */
int ph_health_read(struct ph_device *device, struct ph_roster *roster, struct ph_maps *maps,
		   const struct ph_clocks *now, bool first, bool *ret_differs);

#endif
