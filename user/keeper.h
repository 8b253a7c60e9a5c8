/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keeper - registry, device and maps, and every operation that changes them together.
 *
 * The registry is the truth. A change is made there first and is then carried out on device and maps; whatever of that
 * fails is logged and made up for within a second, from the registry.
 */
#ifndef PHALAD_KEEPER_H
#define PHALAD_KEEPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "device.h"
#include "drops.h"
#include "fanout.h"
#include "gates.h"
#include "health.h"
#include "maps.h"
#include "nics.h"
#include "registry.h"
#include "roster.h"
#include "scans.h"

struct ph_keeper {
	const struct ph_config *config;
	struct ph_fanout *fanout;		/* the caller's */
	struct ph_registry *registry;
	struct ph_roster *roster;
	int maps_lock_fd;
	struct ph_maps *maps;
	struct ph_guard *guard;			/* NULL for an external tunnel without */
	struct ph_drops *drops;			/* what it counts; NULL likewise */
	struct ph_scans *scans;			/* likewise */
	struct ph_device *device;
	struct ph_nics *nics;
	struct ph_gates *gates;
	uint32_t apps;				/* that have at least one CVM */
	bool looked;				/* all peers were read at least once */
	bool mend_maps;				/* something failed: reconcile at the next tick */
	uint64_t seen_pass_ns;			/* when the last pass over seen_s began, CLOCK_BOOTTIME */
	uint32_t seen_slot;			/* where it goes on; PH_INSTANCES_MAX when it is done */
	char trouble[256];			/* the last error of a tick, so that each is logged once */
};

/**
 * ph_keeper_open() - open the registry, the maps and the device, and make them agree.
 * @fresh: begin with new maps.
 * @wait: a tunnel device that is missing or unusable is logged and waited for, instead of being an error.
 * @error: one line for people, set on failure.
 *
 * Return: 0 or -errno.
 */
int ph_keeper_open(const struct ph_config *config, struct ph_fanout *fanout, bool fresh, bool wait,
		   struct ph_keeper **ret_keeper, char *error, size_t error_size);
/* Device, maps and what is in them stay. */
void ph_keeper_free(struct ph_keeper *keeper);

/* Once a second: device, handshakes, what is to be mended, and what is to be written down. */
void ph_keeper_tick(struct ph_keeper *keeper);

/* The tunnel device, or one that may be it, came, went or changed. */
void ph_keeper_check_device(struct ph_keeper *keeper);

/*
 * The operations. Return: 0 once it is on disk, else -errno as in registry.h with one line in @error; then nothing was
 * changed. An instance that is added with another key than it had is another CVM: connections to the old one end.
 */
int ph_keeper_add(struct ph_keeper *keeper, const char *app_id, const char *instance_id,
		  const uint8_t public_key[PH_KEY_LEN], struct ph_cvm *ret_cvm, char *error, size_t error_size);
int ph_keeper_drain(struct ph_keeper *keeper, const char *instance_id, bool drain, struct ph_cvm *ret_cvm, char *error,
		    size_t error_size);

/* Settings of an app; of those that are NULL nothing is changed. They hold for connections that begin from now on. */
int ph_keeper_set_app(struct ph_keeper *keeper, const char *app_id, const uint32_t *idle_ms, const uint32_t *flow_limit,
		      char *error, size_t error_size);

/*
 * The kernel path's connections have ended when this returns; the message's count says how many. @done is called once all
 * workers have ended theirs, or some did not answer; never if this returns an error. The peer goes 2 to 3 s later: a reset
 * that overtook what was under way is protested against (RFC 5961, section 3.2), and the protest is to be answered.
 */
int ph_keeper_remove(struct ph_keeper *keeper, const char *instance_id,
		     void (*done)(const struct ph_message *message, const struct ph_fanout_result *result, void *arg),
		     void *arg, char *error, size_t error_size);

/* Return: 0, -ENOENT with @error, or -errno. */
int ph_keeper_find(struct ph_keeper *keeper, const char *instance_id, struct ph_cvm *ret_cvm, char *error,
		   size_t error_size);

/* What a new connection would find. */
enum ph_health ph_keeper_health(const struct ph_keeper *keeper, const struct ph_cvm *cvm);

/* Ends one flow of the kernel path. Return: 0, or -ENOENT with @error when there is no such flow. */
int ph_keeper_end_flow(struct ph_keeper *keeper, uint32_t slot, uint32_t generation, char *error, size_t error_size);

/* Gives every worker every domain's certificate and key, read anew. */
void ph_keeper_reload(struct ph_keeper *keeper);

#endif
