// SPDX-License-Identifier: Apache-2.0
/*
 * connections - all connections of one worker. See connections.h.
 */
#include "connections.h"

#include <errno.h>
#include <stdlib.h>

#include "approach.h"
#include "connection.h"

int ph_connections_init(struct ph_connections *set, const struct ph_config *config, const struct ph_maps *maps,
			uint32_t worker, struct ph_events *events)
{
	struct ph_worker *stats = &maps->workers[worker];

	set->config = config;
	set->maps = maps;
	set->events = events;
	set->stats = stats;
	ph_tally_init(&set->tally, maps, worker);
	ph_list_init(&set->all);
	ph_list_init(&set->ended);
	for (unsigned i = 0; i < PH_INSTANCE_BUCKETS; i++)
		ph_list_init(&set->by_instance[i]);

	_Static_assert(PH_PIPE_BYTES >= PH_HELLO_STREAM_MAX && PH_PIPE_BYTES >= PH_TLS_BYTES, "scratch is for all");
	set->means.stats = stats;
	ph_pipes_init(&set->means.pipes, config->workers);
	set->means.scratch_size = PH_PIPE_BYTES;
	set->means.scratch = malloc(PH_PIPE_BYTES);
	if (!set->means.scratch)
		return -ENOMEM;
	ph_events_add_queue(events, &set->hello, config->hello_timeout_ms, ph_approach_hello_expired);
	ph_events_add_queue(events, &set->dial, config->connect_timeout_ms, ph_approach_dial_expired);
	ph_events_add_queue(events, &set->handshake, config->hello_timeout_ms, ph_approach_handshake_expired);
	ph_idle_init(&set->idle, events, ph_connection_idle_expired);
	ph_events_add_queue(events, &set->refusal, PH_H2_REFUSAL_MS, ph_connection_refusal_expired);
	ph_events_add_queue(events, &set->linger, PH_LINGER_MS, ph_connection_linger_expired);
	ph_events_add_queue(events, &set->again, 0, ph_connection_turn_came);
	return 0;
}

void ph_connections_close(struct ph_connections *set)
{
	ph_connections_end_all(set, PH_REASON_SHUTDOWN, true);
	ph_connections_reap(set);
	ph_pipes_close(&set->means.pipes);
	free(set->means.scratch);
	set->means.scratch = NULL;
	for (uint32_t i = 0; i < PH_DOMAINS_MAX; i++)
		ph_tls_free(set->tls[i]);
	ph_ledger_free(set->ledger);
	set->ledger = NULL;
}

bool ph_connections_make_room(struct ph_connections *set)
{
	struct ph_timer *oldest = ph_timer_first(&set->hello);
	struct ph_connection *connection;

	if (!oldest || oldest->due_ms - set->hello.timeout_ms + PH_ROOM_AFTER_MS > set->events->now_ms)
		return false;
	connection = ph_connection_of(oldest);
	ph_timer_disarm(oldest);
	ph_approach_hello_expired(oldest);
	/* One that lingers makes none, and would have the next one ended, and all others behind it. */
	if (connection->state == PH_CONNECTION_LINGER)
		ph_connection_linger_expired(oldest);
	return true;
}

void ph_connections_reap(struct ph_connections *set)
{
	struct ph_list *link;

	while ((link = ph_list_take(&set->ended)))
		ph_connection_free(ph_container_of(link, struct ph_connection, link));
}

struct ph_list *ph_connections_bucket(struct ph_connections *set, const struct ph_ref *ref)
{
	return &set->by_instance[ref->slot % PH_INSTANCE_BUCKETS];
}

uint32_t ph_connections_end_instance(struct ph_connections *set, const struct ph_ref *ref)
{
	struct ph_list *bucket = ph_connections_bucket(set, ref), *link, *next;
	uint32_t ended = 0;

	for (link = bucket->next; link != bucket; link = next) {
		struct ph_connection *connection = ph_container_of(link, struct ph_connection, instance_link);

		next = link->next;
		if (connection->ref.slot != ref->slot || connection->ref.generation != ref->generation)
			continue;
		ph_connection_end(connection, PH_REASON_INSTANCE_REMOVED);
		ended++;
	}
	return ended;
}

uint32_t ph_connections_end_stale(struct ph_connections *set)
{
	struct ph_list *link, *next;
	uint32_t ended = 0;

	for (link = set->all.next; link != &set->all; link = next) {
		struct ph_connection *connection = ph_container_of(link, struct ph_connection, link);
		const struct ph_instance *instance = &set->maps->instances[connection->ref.slot];

		next = link->next;
		if (ph_list_is_empty(&connection->instance_link) ||
		    __atomic_load_n(&instance->generation, __ATOMIC_RELAXED) == connection->ref.generation)
			continue;
		ph_connection_end(connection, PH_REASON_INSTANCE_REMOVED);
		ended++;
	}
	return ended;
}

uint32_t ph_connections_end_all(struct ph_connections *set, enum ph_reason reason, bool also_without)
{
	struct ph_list *link, *next;
	uint32_t ended = 0;

	for (link = set->all.next; link != &set->all; link = next) {
		struct ph_connection *connection = ph_container_of(link, struct ph_connection, link);

		next = link->next;
		if (!also_without && ph_list_is_empty(&connection->instance_link))
			continue;
		ph_connection_end(connection, reason);
		ended++;
	}
	return ended;
}

void ph_connections_count(struct ph_connections *set, enum ph_reason reason)
{
	set->stats->counters[reason]++;
}
