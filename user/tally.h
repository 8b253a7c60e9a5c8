/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tally - how many connections a worker carries, by app and by client's address, for limits that hold for all workers
 * and the kernel path together.
 *
 * What is counted for a limit stands in ph_relayed too, where the others and steer see it. Each counts itself before it
 * looks at the sum: of several at once none gets through too many, though at the very limit all of them may be refused.
 * Without a limit counting costs no system call; when one is set, connections that were there before count once each
 * worker has had another one.
 */
#ifndef PHALAD_TALLY_H
#define PHALAD_TALLY_H

#include <netinet/in.h>
#include <stdint.h>

#include "list.h"
#include "maps.h"

#define PH_TALLY_BUCKETS 4096

struct ph_tally {
	const struct ph_maps *maps;
	uint32_t worker;
	struct ph_list buckets[PH_TALLY_BUCKETS];
};

struct ph_tally_entry;				/* one app's, or one client's */

void ph_tally_init(struct ph_tally *tally, const struct ph_maps *maps, uint32_t worker);

/**
 * ph_tally_app(), ph_tally_source() - count one more connection.
 * @app_id: zero padded to PH_ID_SIZE, 8-byte aligned.
 * @limit: 0 is none.
 * @ret_entry: for ph_tally_drop().
 *
 * Return: 0, -EDQUOT when that would be over the limit, or -ENOMEM; then nothing is counted.
 */
int ph_tally_app(struct ph_tally *tally, const char *app_id, uint32_t limit, struct ph_tally_entry **ret_entry);
int ph_tally_source(struct ph_tally *tally, const struct in6_addr *client, uint32_t limit,
		    struct ph_tally_entry **ret_entry);

/* One less; NULL is none. */
void ph_tally_drop(struct ph_tally *tally, struct ph_tally_entry *entry);

#endif
