/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scans - one line in the log for a CVM that tries where it has no business, and no more than that.
 *
 * A few packets too many are nothing: the end of a connection makes them. It takes PH_SCAN_LEAST to be told, a CVM is
 * told of once in PH_SCAN_EVERY_S, and no more than PH_SCAN_LINES at a time.
 */
#ifndef PHALAD_SCANS_H
#define PHALAD_SCANS_H

#include "drops.h"
#include "maps.h"

struct ph_scans;

/* @drops, @maps: the caller's, outlive it. What was counted before is not told. Return: 0 or -errno. */
int ph_scans_new(const struct ph_drops *drops, const struct ph_maps *maps, struct ph_scans **ret_scans);
void ph_scans_free(struct ph_scans *scans);

/* To be called each second: costs a look at a few counters while nothing is dropped. */
void ph_scans_look(struct ph_scans *scans);

#endif
