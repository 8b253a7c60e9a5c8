/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reconcile - the maps made equal to the registry: all of them at start and after an error, one CVM at a change.
 */
#ifndef PHALAD_RECONCILE_H
#define PHALAD_RECONCILE_H

#include <stdint.h>

#include "config.h"
#include "maps.h"
#include "registry.h"
#include "roster.h"

struct ph_reconciled {
	uint32_t apps;				/* that there are now */
	uint32_t changed;			/* ids and instances that were missing, stale or wrong */
};

/**
 * ph_reconcile_all() - @roster and @maps from @registry.
 * @stale: called for each instance that the maps had and the registry has not, before its slot is freed or taken by
 *         another: its connections are to end.
 *
 * What the maps have right is not touched; handshakes stay with their generation.
 *
 * Return: 0 or -errno; after an error what was done is right, and the rest is as before.
 */
int ph_reconcile_all(struct ph_registry *registry, struct ph_roster *roster, struct ph_maps *maps,
		     void (*stale)(struct ph_ref ref, void *arg), void *arg, struct ph_reconciled *ret_reconciled);

/* Exactly the configuration's domains, by index. */
int ph_reconcile_domains(const struct ph_config *config, struct ph_maps *maps);

/**
 * ph_reconcile_add() - bring one CVM, new or changed, into the maps.
 * @forget_handshake: it has another key: no handshake of this one was seen yet.
 * @apps: raised by one when it is its app's first.
 */
int ph_reconcile_add(struct ph_maps *maps, const struct ph_cvm *cvm, bool forget_handshake, uint32_t *apps);

/*
 * Takes one CVM's ids out of the maps, and its state to free; but the slot keeps the generation until
 * ph_maps_free_instance(), as the mark by which a next manager knows that its connections may still have to end.
 */
int ph_reconcile_remove(struct ph_maps *maps, const struct ph_cvm *cvm, uint32_t *apps);

#endif
