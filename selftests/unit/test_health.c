// SPDX-License-Identifier: Apache-2.0
/*
 * health: from the kernel's stamps to times on CLOCK_BOOTTIME, and from those to a yes or no. The device is played
 * here: ph_device_each_peer() below shows the peers that a test has set up.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "health.h"
#include "ktap.h"

#define S 1000000000ULL
#define BOOT (1000 * S)				/* now, on CLOCK_BOOTTIME */
#define WALL (1700000000 * S)			/* now, by the wall clock */
#define DAY (86400 * S)

static const struct {
	const char *name;
	uint64_t known, known_stamp, stamp, wall;
	bool first;
	uint64_t at;
} rule[] = {
	{ "never stays never", 0, 0, 0, WALL, false, 0 },
	{ "never, at the first look", 0, 0, 0, WALL, true, 0 },
	{ "a stamp where there was none is a handshake now", 0, 0, WALL - 1, WALL, false, BOOT },
	{ "another stamp is a handshake now", BOOT - 100 * S, WALL - 100 * S, WALL - 1, WALL, false, BOOT },
	{ "the same stamp keeps its time", BOOT - 100 * S, WALL - 100 * S, WALL - 100 * S, WALL, false,
	  BOOT - 100 * S },
	{ "the same stamp keeps its time, with the clock a day ahead", BOOT - 100 * S, WALL - 100 * S, WALL - 100 * S,
	  WALL + DAY, false, BOOT - 100 * S },
	{ "the same stamp keeps its time, with the clock a day behind", BOOT - 100 * S, WALL - 100 * S, WALL - 100 * S,
	  WALL - DAY, false, BOOT - 100 * S },
	{ "a stamp of yesterday, after the clock was set back, is a handshake now", BOOT - 100 * S, WALL - 100 * S,
	  WALL - DAY, WALL - DAY, false, BOOT },
	{ "a stamp of tomorrow is a handshake now", BOOT - 100 * S, WALL - 100 * S, WALL + DAY, WALL + DAY, false,
	  BOOT },
	{ "a stamp that is gone is never: the peer was made anew", BOOT - 100 * S, WALL - 100 * S, 0, WALL, false, 0 },
	{ "first look, same stamp: what the manager before knew", BOOT - 100 * S, WALL - 100 * S, WALL - 100 * S,
	  WALL + DAY, true, BOOT - 100 * S },
	{ "first look, nothing known: the wall clock's guess", 0, 0, WALL - 40 * S, WALL, true, BOOT - 40 * S },
	{ "first look, a stamp in the future: not later than now", 0, 0, WALL + DAY, WALL, true, BOOT },
	{ "first look, a stamp older than the boot: as old as can be", 0, 0, WALL - DAY, WALL, true, 1 },
	{ "first look, a newer stamp: not before the one known", BOOT - 100 * S, WALL - 100 * S, WALL - 300 * S, WALL,
	  true, BOOT - 100 * S },
	{ "first look, a newer stamp: the wall clock's guess", BOOT - 100 * S, WALL - 100 * S, WALL - 30 * S, WALL,
	  true, BOOT - 30 * S },
	{ "a time in the future, in adopted maps, is brought back to now", BOOT + DAY, WALL, WALL, WALL, true, BOOT },
};

static void test_rule(void)
{
	for (size_t i = 0; i < sizeof(rule) / sizeof(rule[0]); i++) {
		struct ph_clocks now = { .boot_ns = BOOT, .wall_ns = rule[i].wall };
		uint64_t at =
			ph_health_handshake_ns(rule[i].known, rule[i].known_stamp, rule[i].stamp, &now, rule[i].first);

		if (!ktap_ok(at == rule[i].at, "%s", rule[i].name))
			printf("# %llu, not %llu\n", (unsigned long long)at, (unsigned long long)rule[i].at);
	}
}

/* Whom a new connection finds healthy: pick.h's rule over what the maps hold. */
static const struct {
	const char *name;
	uint64_t age;				/* of the handshake against health_now; 0 is never */
	uint32_t state, flags;
	enum ph_health health;
} judged[] = {
	{ "a second old", 1 * S, PH_INSTANCE_READY, 0, PH_HEALTH_OK },
	{ "just young enough", 300 * S - 1, PH_INSTANCE_READY, 0, PH_HEALTH_OK },
	{ "as old as the limit", 300 * S, PH_INSTANCE_READY, 0, PH_HEALTH_OLD },
	{ "never seen", 0, PH_INSTANCE_READY, 0, PH_HEALTH_NEVER },
	{ "never seen, external tunnel", 0, PH_INSTANCE_READY, PH_GATEWAY_EXTERNAL, PH_HEALTH_OK },
	{ "old, external tunnel", 900 * S, PH_INSTANCE_READY, PH_GATEWAY_EXTERNAL, PH_HEALTH_OK },
	{ "draining", 1 * S, PH_INSTANCE_DRAINING, 0, PH_HEALTH_DRAINING },
	{ "draining, external tunnel", 0, PH_INSTANCE_DRAINING, PH_GATEWAY_EXTERNAL, PH_HEALTH_DRAINING },
	{ "being removed", 1 * S, PH_INSTANCE_FREE, 0, PH_HEALTH_GONE },
};

static void test_judgement(void)
{
	for (size_t i = 0; i < sizeof(judged) / sizeof(judged[0]); i++) {
		struct ph_gateway gateway = { .flags = judged[i].flags,
					      .health_now_ns = BOOT,
					      .healthy_for_ns = 300 * S };
		struct ph_instance instance = {
			.generation = 7, .state = judged[i].state, .address = 9, .instance_id = "one"
		};
		struct ph_ref ref = { .slot = 0, .generation = 7 };
		char id[PH_ID_SIZE] __attribute__((aligned(8))) = "one";
		__be32 address = 0;
		enum ph_health health;

		instance.handshake_ns = judged[i].age ? BOOT - judged[i].age : 0;
		health = ph_instance_health(&gateway, &instance, &ref, id, &address);
		ktap_ok(health == judged[i].health && address == (health == PH_HEALTH_OK ? 9u : 0), "judged: %s",
			judged[i].name);
	}
}

/* The device that this test plays. */
static struct ph_wg_peer peers[4];
static unsigned peer_count;
static int dump_error;

int ph_device_each_peer(struct ph_device *device, int (*visit)(const struct ph_wg_peer *peer, void *arg), void *arg)
{
	int err = 0;

	(void)device;
	if (dump_error)
		return dump_error;
	for (unsigned i = 0; i < peer_count && !err; i++)
		err = visit(&peers[i], arg);
	return err;
}

static struct ph_cvm cvm(uint32_t slot)
{
	struct ph_cvm cvm = { .slot = slot, .generation = 100 + slot, .address = { htonl(0x0a010000 + slot) } };

	snprintf(cvm.app_id, sizeof(cvm.app_id), "app");
	snprintf(cvm.instance_id, sizeof(cvm.instance_id), "instance%u", slot);
	memset(cvm.public_key, 1 + (int)slot, sizeof(cvm.public_key));
	return cvm;
}

static struct ph_wg_peer peer(const struct ph_cvm *row, uint64_t stamp)
{
	struct ph_wg_peer made = {
		.address = row->address, .allowed_count = 1, .handshake_wall_ns = stamp, .rx_bytes = 5
	};

	memcpy(made.public_key, row->public_key, sizeof(made.public_key));
	return made;
}

static void test_read(void)
{
	struct ph_maps maps = {
		.instances = calloc(PH_INSTANCES_MAX, sizeof(struct ph_instance)),
		.loads = calloc(PH_INSTANCES_MAX, sizeof(struct ph_load)),
	};
	struct ph_clocks now = { .boot_ns = BOOT, .wall_ns = WALL };
	struct ph_cvm a = cvm(1), b = cvm(2);
	struct ph_roster *roster = NULL;
	bool differs = true;
	int err;

	if (!ktap_ok(maps.instances && maps.loads && !ph_roster_new(&roster) && !ph_roster_set(roster, &a) &&
			     !ph_roster_set(roster, &b),
		     "a roster of two"))
		return;
	maps.instances[1].generation = a.generation;
	maps.instances[2].generation = b.generation - 1;	/* another's still */
	peers[0] = peer(&a, WALL - 20 * S);
	peers[1] = peer(&b, WALL - 20 * S);
	peer_count = 2;

	err = ph_health_read(NULL, roster, &maps, &now, true, &differs);
	ktap_ok(!err && !differs, "two peers as they should be");
	ktap_ok(maps.instances[1].handshake_ns == BOOT - 20 * S && maps.instances[1].handshake_wall_ns == WALL - 20 * S,
		"a handshake gets into the map");
	ktap_ok(!maps.instances[2].handshake_ns, "but not into a slot of another generation");
	ktap_ok(ph_roster_at(roster, 1)->rx_bytes == 5 && ph_roster_at(roster, 1)->present,
		"counters get into the roster");

	now.boot_ns += S;
	now.wall_ns -= DAY;
	err = ph_health_read(NULL, roster, &maps, &now, false, &differs);
	ktap_ok(!err && maps.instances[1].handshake_ns == BOOT - 20 * S,
		"with the clock set back a day, nothing changes");
	peers[0].handshake_wall_ns = now.wall_ns;
	err = ph_health_read(NULL, roster, &maps, &now, false, &differs);
	ktap_ok(!err && maps.instances[1].handshake_ns == BOOT + S, "and a handshake with that clock counts");

	peer_count = 1;
	err = ph_health_read(NULL, roster, &maps, &now, false, &differs);
	ktap_ok(!err && differs, "a peer that lacks is told");
	peer_count = 2;
	peers[1].address.s_addr ^= 1;
	err = ph_health_read(NULL, roster, &maps, &now, false, &differs);
	ktap_ok(!err && differs && !ph_roster_at(roster, 2)->present, "a peer with another address is told");
	peers[1] = peer(&b, 0);
	peers[1].allowed_count = 2;
	err = ph_health_read(NULL, roster, &maps, &now, false, &differs);
	ktap_ok(!err && differs, "a peer with two prefixes is told");
	peers[1] = peer(&b, 0);
	peers[2] = peer(&b, 0);
	peers[2].public_key[0] ^= 1;
	peer_count = 3;
	err = ph_health_read(NULL, roster, &maps, &now, false, &differs);
	ktap_ok(!err && differs, "a peer too many is told");
	dump_error = -ENODEV;
	differs = false;
	ktap_ok(ph_health_read(NULL, roster, &maps, &now, false, &differs) == -ENODEV && !differs,
		"an error is passed on");
	ph_roster_free(roster);
	free(maps.instances);
	free(maps.loads);
}

int main(void)
{
	ktap_header();
	test_rule();
	test_judgement();
	test_read();
	return ktap_end();
}
