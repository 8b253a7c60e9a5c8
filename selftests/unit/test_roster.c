// SPDX-License-Identifier: Apache-2.0
/* roster: found by slot and by key, whatever came and went before; held against a plain array. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ktap.h"
#include "roster.h"

#define SLOTS 3000
#define KEYS 6000
#define STEPS 200000

static struct ph_cvm cvm(uint32_t slot, uint32_t generation, uint32_t key)
{
	struct ph_cvm made = { .slot = slot, .generation = generation };

	memcpy(made.public_key, &key, sizeof(key));
	return made;
}

static uint32_t random_below(uint32_t limit)
{
	static uint64_t state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 16) % limit;
}

/* Return: how many of all keys and slots are not as @keys (0 is none) says. */
static int differences(struct ph_roster *roster, const uint32_t *keys)
{
	uint32_t *slot_of = calloc(KEYS + 1, sizeof(*slot_of));
	int wrong = 0;

	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		const struct ph_roster_entry *entry = ph_roster_at(roster, slot);
		struct ph_cvm wanted = cvm(slot, 1, keys[slot]);

		wrong += !entry != !keys[slot] ||
			 (entry && memcmp(entry->cvm.public_key, wanted.public_key, sizeof(wanted.public_key)));
		if (keys[slot])
			slot_of[keys[slot]] = slot + 1;
	}
	for (uint32_t key = 1; key <= KEYS; key++) {
		struct ph_cvm wanted = cvm(0, 1, key);
		const struct ph_roster_entry *entry = ph_roster_find_key(roster, wanted.public_key);

		wrong += !entry != !slot_of[key] || (entry && entry->cvm.slot + 1 != slot_of[key]);
	}
	free(slot_of);
	return wrong;
}

static bool has_key(const uint32_t *keys, uint32_t key)
{
	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		if (keys[slot] == key)
			return true;
	}
	return false;
}

static void test_random(void)
{
	uint32_t *keys = calloc(SLOTS, sizeof(*keys)), count = 0;
	struct ph_roster *roster = NULL;
	int wrong = 0, unexpected = 0;

	if (!ktap_ok(keys && !ph_roster_new(&roster), "a roster is made"))
		return;
	for (int i = 0; i < STEPS; i++) {
		uint32_t slot = random_below(SLOTS), key = 1 + random_below(KEYS);
		struct ph_cvm made = cvm(slot, 1 + i, key);

		if (random_below(3)) {
			bool taken = keys[slot] != key && has_key(keys, key);

			unexpected += ph_roster_set(roster, &made) != (taken ? -EEXIST : 0);
			if (!taken)
				keys[slot] = key;
		} else {
			ph_roster_remove(roster, slot);
			keys[slot] = 0;
		}
		if (i % (STEPS / 20) == 0)
			wrong += differences(roster, keys);
	}
	wrong += differences(roster, keys);
	for (uint32_t slot = 0; slot < SLOTS; slot++)
		count += keys[slot] != 0;
	ktap_ok(!unexpected, "%d random changes are taken or refused as they should be", STEPS);
	ktap_ok(!wrong && count, "after them every slot and every key lead to the right one");
	ktap_ok(ph_roster_count(roster) == count, "the count is right");
	ph_roster_clear(roster);
	memset(keys, 0, SLOTS * sizeof(*keys));
	ktap_ok(!differences(roster, keys) && !ph_roster_count(roster), "cleared, it knows nobody");
	ph_roster_free(roster);
	free(keys);
}

static void test_full(void)
{
	struct ph_roster *roster = NULL;
	int err = ph_roster_new(&roster), wrong = 0;
	struct ph_cvm made;

	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX && !err; slot++) {
		made = cvm(slot, 1, slot + 1);
		err = ph_roster_set(roster, &made);
	}
	ktap_ok(!err && ph_roster_count(roster) == PH_INSTANCES_MAX, "every slot may be taken");
	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX; slot++) {
		made = cvm(slot, 1, slot + 1);
		wrong += !ph_roster_find_key(roster, made.public_key) ||
			 ph_roster_find_key(roster, made.public_key)->cvm.slot != slot;
	}
	made = cvm(0, 1, PH_INSTANCES_MAX + 1);
	ktap_ok(!wrong && !ph_roster_find_key(roster, made.public_key), "then all are found, and nobody else");
	ph_roster_free(roster);
}

static void test_details(void)
{
	struct ph_roster *roster = NULL;
	struct ph_cvm one = cvm(5, 9, 77);
	struct ph_roster_entry *entry;

	if (!ktap_ok(!ph_roster_new(&roster) && !ph_roster_set(roster, &one), "one is set"))
		return;
	entry = ph_roster_at(roster, 5);
	entry->present = true;
	entry->rx_bytes = 3;
	one.draining = true;
	ktap_ok(!ph_roster_set(roster, &one) && entry->present && entry->rx_bytes == 3 && entry->cvm.draining,
		"what is known of the peer stays while generation and key do");
	one = cvm(5, 9, 78);
	ktap_ok(!ph_roster_set(roster, &one) && !entry->present && !entry->rx_bytes,
		"with another key it is forgotten");
	one = cvm(PH_INSTANCES_MAX, 1, 79);
	ktap_ok(ph_roster_set(roster, &one) == -EINVAL, "there is no slot 65536");
	one = cvm(6, 0, 79);
	ktap_ok(ph_roster_set(roster, &one) == -EINVAL, "there is no generation 0");
	one = cvm(6, 1, 78);
	ktap_ok(ph_roster_set(roster, &one) == -EEXIST && !ph_roster_at(roster, 6), "a key is one CVM's");
	ktap_ok(!ph_roster_at(roster, PH_INSTANCES_MAX), "nobody is beyond the last slot");
	ph_roster_free(roster);
}

struct left {
	unsigned count;
	uint8_t last[PH_KEY_LEN];
};

static void note_left(const uint8_t public_key[PH_KEY_LEN], void *arg)
{
	struct left *left = arg;

	left->count++;
	memcpy(left->last, public_key, PH_KEY_LEN);
}

static struct left left_at(struct ph_roster *roster, uint64_t now_ns, unsigned max)
{
	struct left left = { 0 };

	ph_roster_forget_left(roster, now_ns, max, note_left, &left);
	return left;
}

static void test_leaving(void)
{
	struct ph_cvm first = cvm(1, 1, 11), second = cvm(2, 1, 12);
	struct ph_leaving *one, *two, *three;
	struct ph_roster *roster = NULL;
	struct left left;

	if (!ktap_ok(!ph_roster_new(&roster), "a roster"))
		return;
	one = ph_roster_leave(roster, first.public_key);
	two = ph_roster_leave(roster, second.public_key);
	if (!ktap_ok(one && two, "two leave"))
		return;
	ph_roster_clear(roster);
	ktap_ok(ph_roster_is_leaving(roster, first.public_key) && ph_roster_is_leaving(roster, second.public_key) &&
		!ph_roster_find_key(roster, first.public_key) && !ph_roster_count(roster),
		"who leaves is none of the roster's, and is known all the same");
	ktap_ok(!left_at(roster, UINT64_MAX - 1, 9).count, "nobody goes before it is said when");
	ph_roster_leave_by(two, 100);
	ph_roster_leave_by(one, 200);
	left = left_at(roster, 100, 9);
	ktap_ok(left.count == 1 && !memcmp(left.last, second.public_key, PH_KEY_LEN) && !left_at(roster, 199, 9).count &&
		!ph_roster_is_leaving(roster, second.public_key), "each goes when it is time, and once");
	ktap_ok(!ph_roster_set(roster, &first) && !left_at(roster, 200, 9).count &&
		!ph_roster_is_leaving(roster, first.public_key), "one that came back does not go");
	ph_roster_remove(roster, first.slot);
	one = ph_roster_leave(roster, first.public_key);
	two = ph_roster_leave(roster, first.public_key);
	ph_roster_leave_by(one, 300);
	ph_roster_leave_by(two, 400);
	ktap_ok(!left_at(roster, 300, 9).count && left_at(roster, 400, 9).count == 1,
		"one that came back and was removed again goes when its last time is over");
	one = ph_roster_leave(roster, first.public_key);
	two = ph_roster_leave(roster, second.public_key);
	three = ph_roster_leave(roster, cvm(3, 1, 13).public_key);
	ph_roster_leave_by(one, 500);
	ph_roster_leave_by(three, 500);
	ktap_ok(two && left_at(roster, 500, 1).count == 1 && left_at(roster, 500, 1).count == 1 && !left_at(roster, 500, 1).count,
		"no more at once than is said");
	ktap_ok(left_at(roster, UINT64_MAX, 9).count == 1, "at the end of time all have left");
	ktap_ok(ph_roster_leave(roster, first.public_key) != NULL, "one is left in it");
	ph_roster_free(roster);
}

int main(void)
{
	ktap_header();
	test_details();
	test_leaving();
	test_random();
	test_full();
	return ktap_end();
}
