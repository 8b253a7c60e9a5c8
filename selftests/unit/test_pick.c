// SPDX-License-Identifier: Apache-2.0
/* pick: the health rule row by row, and how even the choice is. */
#include <stdint.h>
#include <string.h>

#include <phala/pick.h>

#include "ktap.h"

#define SECOND 1000000000ULL
#define DRAWS 640000

static const char app[PH_ID_SIZE] __attribute__((aligned(8))) = "app";
static const char instance_id[PH_ID_SIZE] __attribute__((aligned(8))) = "instance";
static const char other[PH_ID_SIZE] __attribute__((aligned(8))) = "other";

struct health_row {
	const char *name;
	enum ph_health want;
	const char *asked;			/* NULL: the app */
	__u32 generation;			/* in the slot; the reference has 7 */
	__u32 state;
	__u32 flags;
	__u64 now_s, seen_s;
};

/* Healthy for 300 s. */
static const struct health_row health_rows[] = {
	{ "seen just now", PH_HEALTH_OK, NULL, 7, PH_INSTANCE_READY, 0, 1000, 1000 },
	{ "by the instance's own id", PH_HEALTH_OK, instance_id, 7, PH_INSTANCE_READY, 0, 1000, 1000 },
	{ "299 s old", PH_HEALTH_OK, NULL, 7, PH_INSTANCE_READY, 0, 1299, 1000 },
	{ "300 s old", PH_HEALTH_OLD, NULL, 7, PH_INSTANCE_READY, 0, 1300, 1000 },
	{ "seen after the manager last looked", PH_HEALTH_OK, NULL, 7, PH_INSTANCE_READY, 0, 1000, 1001 },
	{ "never seen", PH_HEALTH_NEVER, NULL, 7, PH_INSTANCE_READY, 0, 100, 0 },
	{ "never seen, external tunnel", PH_HEALTH_OK, NULL, 7, PH_INSTANCE_READY, PH_GATEWAY_EXTERNAL, 100, 0 },
	{ "old, external tunnel", PH_HEALTH_OK, NULL, 7, PH_INSTANCE_READY, PH_GATEWAY_EXTERNAL, 9000, 1 },
	{ "draining", PH_HEALTH_DRAINING, NULL, 7, PH_INSTANCE_DRAINING, 0, 1000, 1000 },
	{ "draining, external tunnel", PH_HEALTH_DRAINING, NULL, 7, PH_INSTANCE_DRAINING, PH_GATEWAY_EXTERNAL, 1, 0 },
	{ "slot free", PH_HEALTH_GONE, NULL, 7, PH_INSTANCE_FREE, 0, 1000, 1000 },
	{ "slot being rewritten", PH_HEALTH_GONE, NULL, 0, PH_INSTANCE_READY, 0, 1000, 1000 },
	{ "slot of a later generation", PH_HEALTH_GONE, NULL, 8, PH_INSTANCE_READY, 0, 1000, 1000 },
	{ "slot of another id", PH_HEALTH_GONE, other, 7, PH_INSTANCE_READY, 0, 1000, 1000 },
};

static void test_health(void)
{
	for (size_t i = 0; i < sizeof(health_rows) / sizeof(health_rows[0]); i++) {
		const struct health_row *row = &health_rows[i];
		struct ph_gateway gateway = {
			.flags = row->flags,
			.health_now_ns = row->now_s * SECOND,
			.healthy_for_ns = 300 * SECOND,
		};
		struct ph_instance instance = {
			.generation = row->generation,
			.state = row->state,
			.address = 0x0a000001,
			.handshake_ns = row->seen_s * SECOND,
		};
		const struct ph_ref ref = { .slot = 3, .generation = 7 };
		enum ph_health health;
		__be32 address = 1;

		memcpy(instance.app_id, app, PH_ID_SIZE);
		memcpy(instance.instance_id, instance_id, PH_ID_SIZE);
		health = ph_instance_health(&gateway, &instance, &ref, row->asked ? row->asked : app, &address);
		ktap_ok(health == row->want && address == (health == PH_HEALTH_OK ? 0x0a000001 : 1), "health: %s",
			row->name);
	}
}

static void test_no_generation(void)
{
	struct ph_gateway gateway = { .flags = PH_GATEWAY_EXTERNAL };
	struct ph_instance instance = { .state = PH_INSTANCE_READY };
	const struct ph_ref ref = { 0 };
	__be32 address;

	memcpy(instance.app_id, app, PH_ID_SIZE);
	ktap_ok(ph_instance_health(&gateway, &instance, &ref, app, &address) == PH_HEALTH_GONE,
		"health: generation 0 is nobody's");
}

static void test_stale(void)
{
	const struct ph_gateway gateway = { .health_now_ns = 1000 * SECOND, .manager_grace_ns = 60 * SECOND };

	ktap_ok(!ph_gateway_is_stale(&gateway, 1060 * SECOND), "stale: not after exactly the grace");
	ktap_ok(ph_gateway_is_stale(&gateway, 1060 * SECOND + 1), "stale: a nanosecond later");
	ktap_ok(!ph_gateway_is_stale(&gateway, 999 * SECOND), "stale: not when the manager is ahead of our clock");
}

static void test_ids(void)
{
	char a[PH_ID_SIZE] __attribute__((aligned(8))), b[PH_ID_SIZE] __attribute__((aligned(8)));
	int wrong = 0;

	memset(a, 'x', sizeof(a));
	for (unsigned i = 0; i < PH_ID_SIZE; i++) {
		memcpy(b, a, sizeof(b));
		b[i] = 'y';
		wrong += ph_id_equal(a, b);
	}
	ktap_ok(!wrong && ph_id_equal(a, a), "ids: every character counts");
}

/* splitmix64: the same numbers in every run. */
static uint32_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (uint32_t)((z ^ z >> 31) >> 32);
}

struct pick_row {
	const char *name;
	__u64 mask;
	double critical;			/* chi-square at p = 0.0001, with one degree less than there are bits */
};

static const struct pick_row pick_rows[] = {
	{ "two neighbours", 3, 15.14 },
	{ "first and last", 1ULL << 63 | 1, 15.14 },
	{ "three", 0x700, 18.42 },
	{ "seven scattered", 0x8040201008040201ULL & ~1ULL, 27.86 },
	{ "all 64", ~0ULL, 118.01 },
};

static void test_even(void)
{
	for (size_t i = 0; i < sizeof(pick_rows) / sizeof(pick_rows[0]); i++) {
		const struct pick_row *row = &pick_rows[i];
		uint32_t seen[PH_APP_INSTANCES_MAX] = { 0 };
		double expected = (double)DRAWS / __builtin_popcountll(row->mask), chi_square = 0;
		uint64_t state = 42;
		int outside = 0;

		for (int draw = 0; draw < DRAWS; draw++)
			seen[ph_pick(row->mask, next_random(&state))]++;
		for (unsigned bit = 0; bit < PH_APP_INSTANCES_MAX; bit++) {
			if (row->mask >> bit & 1)
				chi_square += (seen[bit] - expected) * (seen[bit] - expected) / expected;
			else
				outside += seen[bit] != 0;
		}
		ktap_ok(!outside && chi_square < row->critical, "pick: %s: chi-square %.2f, limit %.2f", row->name,
			chi_square, row->critical);
	}
}

static void test_edges(void)
{
	int wrong = 0;

	for (unsigned bit = 0; bit < 64; bit++)
		wrong += ph_pick(1ULL << bit, 0) != bit || ph_pick(1ULL << bit, UINT32_MAX) != bit;
	ktap_ok(!wrong, "pick: a single candidate, whatever the random number");
	ktap_ok(ph_pick(0xf0, 0) == 4 && ph_pick(0xf0, UINT32_MAX) == 7, "pick: the ends of the random numbers");
}

int main(void)
{
	ktap_header();
	test_health();
	test_no_generation();
	test_stale();
	test_ids();
	test_even();
	test_edges();
	return ktap_end();
}
