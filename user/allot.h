/* SPDX-License-Identifier: Apache-2.0 */
/*
 * allot - which address inside the tunnel a new instance gets.
 *
 * An address is, in this order: unused; an instance's; resting, once that was removed, until AddressQuarantine is over;
 * rested, until somebody gets it; an instance's again. What changes the tables belongs into the caller's transaction.
 */
#ifndef PHALAD_ALLOT_H
#define PHALAD_ALLOT_H

#include <stdbool.h>
#include <stdint.h>

struct ph_allot;
struct ph_registry_options;
struct sqlite3;

/* @db: borrowed; must outlive the result. Return: 0, -ENOMEM or -EIO. */
int ph_allot_new(struct sqlite3 *db, const struct ph_registry_options *options, struct ph_allot **ret_allot);
void ph_allot_free(struct ph_allot *allot);

/* May the range as it is configured give this address (host order) to an instance? */
bool ph_allot_covers(const struct ph_allot *allot, uint32_t address);

/*
 * Notes which rests are over by now, and begins those anew that would begin in the future. Outside the transaction of a
 * change, so that it stays when that is refused. Return: 0 or -EIO.
 */
int ph_allot_age(struct ph_allot *allot);

/**
 * ph_allot_take() - the address that the instance had before, or else the lowest that is unused or rested.
 * @ret_address: host order; no longer resting.
 *
 * Return: 0, -ENOSPC or -EIO.
 */
int ph_allot_take(struct ph_allot *allot, const char *app_id, const char *instance_id, uint32_t *ret_address);

/* Lays the address of a CVM that is about to be removed to rest. Return: 0 or -EIO. */
int ph_allot_rest(struct ph_allot *allot, const char *instance_id);

/* Forgets what it remembers of the tables, after changes were undone. */
void ph_allot_reset(struct ph_allot *allot);

#endif
