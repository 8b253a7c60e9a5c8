// SPDX-License-Identifier: Apache-2.0
/*
 * roster - an array by slot; an open-addressing index by public key (linear probing, never more than a quarter full).
 *
 * Tenants choose their keys, so the index hashes with a secret.
 */
#include "roster.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "list.h"

#define INDEX_SIZE (4 * PH_INSTANCES_MAX)

struct ph_leaving {
	struct ph_list link;
	uint64_t until_ns;			/* UINT64_MAX until it is known */
	uint8_t public_key[PH_KEY_LEN];
};

struct ph_roster {
	struct ph_list leaving;
	uint64_t secret[4];
	uint32_t count;
	uint32_t index[INDEX_SIZE];		/* slot + 1; 0 is empty */
	struct ph_roster_entry entries[PH_INSTANCES_MAX];
};

int ph_roster_new(struct ph_roster **ret_roster)
{
	struct ph_roster *roster = calloc(1, sizeof(*roster));

	if (!roster)
		return -ENOMEM;
	if (getrandom(roster->secret, sizeof(roster->secret), 0) != sizeof(roster->secret)) {
		free(roster);
		return -EIO;
	}
	ph_list_init(&roster->leaving);
	*ret_roster = roster;
	return 0;
}

void ph_roster_free(struct ph_roster *roster)
{
	struct ph_list *link;

	while (roster && (link = ph_list_take(&roster->leaving)))
		free(ph_container_of(link, struct ph_leaving, link));
	free(roster);
}

void ph_roster_clear(struct ph_roster *roster)
{
	roster->count = 0;
	memset(roster->index, 0, sizeof(roster->index));
	memset(roster->entries, 0, sizeof(roster->entries));
}

static uint64_t fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Where the search for @key begins. */
static uint32_t home(const struct ph_roster *roster, const uint8_t key[PH_KEY_LEN])
{
	uint64_t word[4];

	_Static_assert(sizeof(word) == PH_KEY_LEN, "a key is four words");
	memcpy(word, key, sizeof(word));
	return (fold(word[0] ^ roster->secret[0], word[1] ^ roster->secret[1]) ^
		fold(word[2] ^ roster->secret[2], word[3] ^ roster->secret[3])) % INDEX_SIZE;
}

/* The place of @key in the index, or the empty one where it belongs. */
static uint32_t place(const struct ph_roster *roster, const uint8_t key[PH_KEY_LEN])
{
	uint32_t at = home(roster, key);

	while (roster->index[at] && memcmp(roster->entries[roster->index[at] - 1].cvm.public_key, key, PH_KEY_LEN))
		at = (at + 1) % INDEX_SIZE;
	return at;
}

/* Empties a place, and moves those behind it up whose way to their own place led through it. */
static void take_out(struct ph_roster *roster, uint32_t hole)
{
	uint32_t at = hole, start;

	roster->index[hole] = 0;
	for (;;) {
		at = (at + 1) % INDEX_SIZE;
		if (!roster->index[at])
			return;
		start = home(roster, roster->entries[roster->index[at] - 1].cvm.public_key);
		if ((at - start + INDEX_SIZE) % INDEX_SIZE < (at - hole + INDEX_SIZE) % INDEX_SIZE)
			continue;
		roster->index[hole] = roster->index[at];
		roster->index[at] = 0;
		hole = at;
	}
}

int ph_roster_set(struct ph_roster *roster, const struct ph_cvm *cvm)
{
	struct ph_roster_entry *entry;
	uint32_t at;

	if (cvm->slot >= PH_INSTANCES_MAX || !cvm->generation)
		return -EINVAL;
	entry = &roster->entries[cvm->slot];
	at = place(roster, cvm->public_key);
	if (roster->index[at] && roster->index[at] != cvm->slot + 1)
		return -EEXIST;
	if (entry->cvm.generation == cvm->generation && roster->index[at]) {
		entry->cvm = *cvm;
		return 0;
	}
	ph_roster_remove(roster, cvm->slot);
	entry->cvm = *cvm;
	roster->index[place(roster, cvm->public_key)] = cvm->slot + 1;
	roster->count++;
	return 0;
}

void ph_roster_remove(struct ph_roster *roster, uint32_t slot)
{
	struct ph_roster_entry *entry = ph_roster_at(roster, slot);

	if (!entry)
		return;
	take_out(roster, place(roster, entry->cvm.public_key));
	memset(entry, 0, sizeof(*entry));
	roster->count--;
}

struct ph_leaving *ph_roster_leave(struct ph_roster *roster, const uint8_t public_key[PH_KEY_LEN])
{
	struct ph_leaving *leaving = malloc(sizeof(*leaving));

	if (!leaving)
		return NULL;
	ph_list_init(&leaving->link);
	leaving->until_ns = UINT64_MAX;
	memcpy(leaving->public_key, public_key, PH_KEY_LEN);
	ph_list_append(&roster->leaving, &leaving->link);
	return leaving;
}

void ph_roster_leave_by(struct ph_leaving *leaving, uint64_t until_ns)
{
	leaving->until_ns = until_ns;
}

bool ph_roster_is_leaving(const struct ph_roster *roster, const uint8_t public_key[PH_KEY_LEN])
{
	for (const struct ph_list *link = roster->leaving.next; link != &roster->leaving; link = link->next) {
		if (!memcmp(ph_container_of(link, struct ph_leaving, link)->public_key, public_key, PH_KEY_LEN))
			return true;
	}
	return false;
}

void ph_roster_forget_left(struct ph_roster *roster, uint64_t now_ns, unsigned max,
			   void (*left)(const uint8_t public_key[PH_KEY_LEN], void *arg), void *arg)
{
	struct ph_list *link = roster->leaving.next, *next;

	for (unsigned count = 0; link != &roster->leaving && count < max; link = next) {
		struct ph_leaving *leaving = ph_container_of(link, struct ph_leaving, link);

		next = link->next;
		if (leaving->until_ns > now_ns)
			continue;
		count++;
		ph_list_remove(link);
		if (!ph_roster_find_key(roster, leaving->public_key) && !ph_roster_is_leaving(roster, leaving->public_key))
			left(leaving->public_key, arg);
		free(leaving);
	}
}

uint32_t ph_roster_count(const struct ph_roster *roster)
{
	return roster->count;
}

struct ph_roster_entry *ph_roster_at(struct ph_roster *roster, uint32_t slot)
{
	if (slot >= PH_INSTANCES_MAX || !roster->entries[slot].cvm.generation)
		return NULL;
	return &roster->entries[slot];
}

struct ph_roster_entry *ph_roster_find_key(struct ph_roster *roster, const uint8_t public_key[PH_KEY_LEN])
{
	uint32_t at = place(roster, public_key);

	return roster->index[at] ? &roster->entries[roster->index[at] - 1] : NULL;
}
