/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connections - all connections of one worker, and what they share.
 */
#ifndef PHALAD_CONNECTIONS_H
#define PHALAD_CONNECTIONS_H

#include <stdint.h>

#include "config.h"
#include "events.h"
#include "idle.h"
#include "ledger.h"
#include "maps.h"
#include "relay.h"
#include "tally.h"
#include "tls.h"

#define PH_INSTANCE_BUCKETS 1024

struct ph_connections {
	const struct ph_config *config;
	const struct ph_maps *maps;
	struct ph_events *events;
	struct ph_worker *stats;		/* this worker's element of the map: nobody else writes it */
	struct ph_tls *tls[PH_DOMAINS_MAX];	/* NULL where certificate or key could not be read */
	struct ph_relay_means means;
	struct ph_timer_queue hello, dial, handshake, refusal, linger, again;
	struct ph_idle idle;
	struct ph_tally tally;
	struct ph_ledger *ledger;		/* NULL: nothing is written down */
	struct ph_list all, ended;
	struct ph_list by_instance[PH_INSTANCE_BUCKETS];	/* those with a CVM, by its slot */
	uint32_t count;				/* in all */
};

/* @set is filled by zeros, or has @tls or @ledger set. @worker: its index. Return: 0 or -ENOMEM. */
int ph_connections_init(struct ph_connections *set, const struct ph_config *config, const struct ph_maps *maps,
			uint32_t worker, struct ph_events *events);

/* Ends what there is for SHUTDOWN, and frees it, @tls and @ledger included; also after a failed init. */
void ph_connections_close(struct ph_connections *set);

/*
 * Ends the one that has waited longest for its ClientHello, if that is PH_ROOM_AFTER_MS: a crowd of silent ones must not
 * keep everybody else waiting. Return: false if there is none.
 */
bool ph_connections_make_room(struct ph_connections *set);

/* Frees those that ended in this turn. */
void ph_connections_reap(struct ph_connections *set);

/* End all connections to @ref, those that are being set up included. Return: how many. */
uint32_t ph_connections_end_instance(struct ph_connections *set, const struct ph_ref *ref);

/* End all connections to instances that the maps do not have, or have no more by that generation. Return: how many. */
uint32_t ph_connections_end_stale(struct ph_connections *set);

/* End all connections that have a CVM; and with @also_without the others. Return: how many. */
uint32_t ph_connections_end_all(struct ph_connections *set, enum ph_reason reason, bool also_without);

struct ph_list *ph_connections_bucket(struct ph_connections *set, const struct ph_ref *ref);
void ph_connections_count(struct ph_connections *set, enum ph_reason reason);

#endif
