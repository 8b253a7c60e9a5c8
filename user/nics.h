/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nics - the kernel path kept in place: steer on the configured NICs and on the tunnel device, as they come and go.
 *
 * Nothing here is needed for the gateway to work: where steer is not, connections are relayed. So trouble is told, and
 * tried again each second, and never stops anything.
 */
#ifndef PHALAD_NICS_H
#define PHALAD_NICS_H

#include <stdbool.h>
#include <stdint.h>

#include <phala/abi.h>

#include "config.h"

struct ph_nics;

/* Nothing is loaded or attached yet. Return: 0 or -errno. */
int ph_nics_new(const struct ph_config *config, struct ph_nics **ret_nics);
/* What is attached stays, and goes on. */
void ph_nics_free(struct ph_nics *nics);

/*
 * Looks at all devices, and puts steer where it is missing: at the start, once a second, and when devices come or go.
 * The first time, takes it off where an earlier configuration had it.
 * @tunnel_ifindex: the tunnel device in use, 0 while there is none.
 */
void ph_nics_ensure(struct ph_nics *nics, uint32_t tunnel_ifindex);

/* Calls @visit for each device there is that is neither a Nic of @config nor its tunnel. */
void ph_nics_each_other(const struct ph_config *config, void (*visit)(const char *name, uint32_t ifindex, void *arg),
			void *arg);

/* Is @ifindex a device that steer is on? */
bool ph_nics_has(const struct ph_nics *nics, uint32_t ifindex);

/* End flows with a reset at both ends: an instance's, all, one. Return: how many, 0 while nothing is loaded, or -errno. */
int ph_nics_end_instance(struct ph_nics *nics, struct ph_ref ref);
int ph_nics_end_all(struct ph_nics *nics);
int ph_nics_end_flow(struct ph_nics *nics, uint32_t slot, uint32_t generation);

#endif
