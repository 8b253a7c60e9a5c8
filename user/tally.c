// SPDX-License-Identifier: Apache-2.0
#include "tally.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct ph_tally_entry {
	struct ph_list link;
	struct ph_relayed_key key;
	uint32_t count;
	bool published;				/* the map has it */
};

void ph_tally_init(struct ph_tally *tally, const struct ph_maps *maps, uint32_t worker)
{
	tally->maps = maps;
	tally->worker = worker;
	for (unsigned i = 0; i < PH_TALLY_BUCKETS; i++)
		ph_list_init(&tally->buckets[i]);
}

/* FNV-1a. Clients choose among their own addresses; to fill a bucket takes as many connections as it has entries. */
static struct ph_list *bucket(struct ph_tally *tally, const struct ph_relayed_key *key)
{
	const uint8_t *bytes = (const uint8_t *)key;
	uint32_t hash = 2166136261u;

	for (size_t i = 0; i < sizeof(*key); i++)
		hash = (hash ^ bytes[i]) * 16777619u;
	return &tally->buckets[hash % PH_TALLY_BUCKETS];
}

/* The key's entry, made if there is none. Return: NULL when memory is short. */
static struct ph_tally_entry *entry_of(struct ph_tally *tally, const struct ph_relayed_key *key)
{
	struct ph_list *list = bucket(tally, key);
	struct ph_tally_entry *entry;

	for (struct ph_list *link = list->next; link != list; link = link->next) {
		entry = ph_container_of(link, struct ph_tally_entry, link);
		if (!memcmp(&entry->key, key, sizeof(*key)))
			return entry;
	}
	entry = calloc(1, sizeof(*entry));
	if (!entry)
		return NULL;
	entry->key = *key;
	ph_list_init(&entry->link);
	ph_list_append(list, &entry->link);
	return entry;
}

/* Return: 0 or -errno. */
static int publish(struct ph_tally *tally, struct ph_tally_entry *entry)
{
	int err = ph_maps_set_relayed(tally->maps, &entry->key, entry->count);

	if (!err)
		entry->published = entry->count;
	return err;
}

void ph_tally_drop(struct ph_tally *tally, struct ph_tally_entry *entry)
{
	if (!entry)
		return;
	entry->count--;
	if (entry->published)			/* it is in the map, which therefore has room for it */
		publish(tally, entry);
	if (entry->count)
		return;
	ph_list_remove(&entry->link);
	free(entry);
}

/* Kernel path and all workers, this one included. */
static uint64_t sum(const struct ph_tally *tally, const struct ph_relayed_key *key)
{
	uint64_t relayed = ph_maps_relayed_by_all(tally->maps, key);
	struct ph_id app;

	if (key->kind == PH_RELAYED_SOURCE)
		return relayed + ph_maps_source_flows(tally->maps, key->id);
	return ph_maps_find_id(tally->maps, key->id, &app) ? relayed : relayed + ph_maps_app_flows(tally->maps, &app);
}

static int add(struct ph_tally *tally, struct ph_relayed_key *key, uint32_t limit, struct ph_tally_entry **ret_entry)
{
	struct ph_tally_entry *entry;
	int err = 0;

	key->worker = tally->worker;
	entry = entry_of(tally, key);
	if (!entry)
		return -ENOMEM;
	entry->count++;
	if (limit || entry->published)
		err = publish(tally, entry) ? -ENOMEM : 0;
	if (!err && limit && sum(tally, key) > limit)
		err = -EDQUOT;
	if (err)
		ph_tally_drop(tally, entry);
	else
		*ret_entry = entry;
	return err;
}

int ph_tally_app(struct ph_tally *tally, const char *app_id, uint32_t limit, struct ph_tally_entry **ret_entry)
{
	struct ph_relayed_key key = { .kind = PH_RELAYED_APP };

	memcpy(key.id, app_id, sizeof(key.id));
	return add(tally, &key, limit, ret_entry);
}

int ph_tally_source(struct ph_tally *tally, const struct in6_addr *client, uint32_t limit,
		    struct ph_tally_entry **ret_entry)
{
	struct ph_relayed_key key = { .kind = PH_RELAYED_SOURCE };

	/* Of IPv6 the /64: who has one address of it has them all (RFC 7934, section 6). */
	memcpy(key.id, client, IN6_IS_ADDR_V4MAPPED(client) ? sizeof(*client) : sizeof(*client) / 2);
	return add(tally, &key, limit, ret_entry);
}
