// SPDX-License-Identifier: Apache-2.0
/* route: names to instances, over arrays and tables that this file makes itself. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ktap.h"
#include "route.h"

#define SECOND 1000000000ULL
#define NOW (1000 * SECOND)

/* What the maps would hold. These two take the place of maps.c. */

static const struct {
	const char *name;
	uint32_t index;
} domains[] = { { "apps.example.com", 0 }, { "example.org", 5 } };

static const struct {
	const char *id;
	struct ph_id value;
} ids[] = {
	{ "one", { PH_ID_APP, 1, 0, 0, { { 1, 11 } } } },
	{ "i1", { PH_ID_INSTANCE, 1, 0, 0, { { 1, 11 } } } },
	{ "three", { PH_ID_APP, 3, 0, 0, { { 2, 12 }, { 3, 13 }, { 4, 14 } } } },
	{ "mixed", { PH_ID_APP, 4, 0, 0, { { 5, 15 }, { 6, 16 }, { 7, 17 }, { 8, 18 } } } },
	{ "drained", { PH_ID_APP, 1, 0, 0, { { 6, 16 } } } },
	{ "empty", { PH_ID_APP, 0, 0, 0, { { 0, 0 } } } },
	{ "wild", { PH_ID_APP, 1, 0, 0, { { PH_INSTANCES_MAX, 1 } } } },
	{ "full", { PH_ID_APP, 1000, 0, 0, { { 1, 11 } } } },
	{ "stolen", { PH_ID_APP, 1, 0, 0, { { 1, 11 } } } },
};

int ph_maps_find_id(const struct ph_maps *maps, const char *id, struct ph_id *ret_id)
{
	(void)maps;
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		if (strcmp(ids[i].id, id))
			continue;
		*ret_id = ids[i].value;
		return 0;
	}
	return -ENOENT;
}

int ph_maps_find_domain(const struct ph_maps *maps, const char *name, uint32_t *ret_index)
{
	(void)maps;
	for (size_t i = 0; i < sizeof(domains) / sizeof(domains[0]); i++) {
		if (strcmp(domains[i].name, name))
			continue;
		*ret_index = domains[i].index;
		return 0;
	}
	return -ENOENT;
}

static struct ph_gateway gateway = {
	.health_now_ns = NOW,
	.healthy_for_ns = 300 * SECOND,
	.manager_grace_ns = 60 * SECOND,
};
static struct ph_instance *instances;
static struct ph_maps maps;

static void set_instance(uint32_t slot, const char *app, uint32_t state, uint64_t age_s)
{
	struct ph_instance *instance = &instances[slot];

	memset(instance, 0, sizeof(*instance));
	instance->generation = slot + 10;
	instance->state = state;
	instance->address = htonl(0x0a000000 + slot);
	instance->handshake_ns = NOW - age_s * SECOND;
	strcpy(instance->app_id, app);
	snprintf(instance->instance_id, PH_ID_SIZE, "i%u", slot);
}

static void set_up(void)
{
	instances = calloc(PH_INSTANCES_MAX, sizeof(*instances));
	maps = (struct ph_maps){ .gateway = &gateway, .instances = instances, .ids_fd = -1, .domains_fd = -1 };
	set_instance(1, "one", PH_INSTANCE_READY, 10);
	for (uint32_t slot = 2; slot <= 4; slot++)
		set_instance(slot, "three", PH_INSTANCE_READY, 10);
	set_instance(5, "mixed", PH_INSTANCE_READY, 301);
	set_instance(6, "mixed", PH_INSTANCE_DRAINING, 10);
	set_instance(7, "mixed", PH_INSTANCE_READY, 10);
	set_instance(8, "mixed", PH_INSTANCE_READY, 10);
	instances[8].generation++;			/* another instance's by now */
	memcpy(instances[6].app_id, "drained", 8);
}

static enum ph_reason find(const char *text, uint64_t now_ns, struct ph_route *ret_route)
{
	char name[PH_NAME_SIZE] = { 0 };

	strncpy(name, text, sizeof(name) - 1);
	return ph_route_find(&maps, name, (uint32_t)strlen(name), now_ns, ret_route);
}

struct row {
	const char *name;
	enum ph_reason want;
	uint32_t domain;			/* these where a candidate is wanted */
	uint64_t candidates;
	enum ph_mode mode;
	uint16_t port;
};

#define FOUND PH_REASON_COUNT

static const struct row rows[] = {
	{ "one.apps.example.com", FOUND, 0, 1, PH_MODE_STANDARD, 80 },
	{ "ONE.Apps.Example.COM", FOUND, 0, 1, PH_MODE_STANDARD, 80 },
	{ "i1-8080.example.org", FOUND, 5, 1, PH_MODE_STANDARD, 8080 },
	{ "three-s.example.org", FOUND, 5, 7, PH_MODE_PASSTHROUGH, 443 },
	{ "three-50051g.example.org", FOUND, 5, 7, PH_MODE_GRPC, 50051 },
	{ "mixed.example.org", FOUND, 5, 4, PH_MODE_STANDARD, 80 },
	{ "full.example.org", PH_REASON_NO_HEALTHY, 0, 0, 0, 0 },
	{ "one.com", PH_REASON_OTHER_DOMAIN, 0, 0, 0, 0 },
	{ "one.www.example.org", PH_REASON_OTHER_DOMAIN, 0, 0, 0, 0 },
	{ "one.example.or", PH_REASON_OTHER_DOMAIN, 0, 0, 0, 0 },
	{ "one.example.orgg", PH_REASON_OTHER_DOMAIN, 0, 0, 0, 0 },
	{ "example.org", PH_REASON_OTHER_DOMAIN, 0, 0, 0, 0 },
	{ "one", PH_REASON_OTHER_DOMAIN, 0, 0, 0, 0 },
	{ "one.example.org.", PH_REASON_TRAILING_DOT, 0, 0, 0, 0 },
	{ "-80.example.org", PH_REASON_BAD_NAME, 0, 0, 0, 0 },
	{ "one-0.example.org", PH_REASON_BAD_PORT, 0, 0, 0, 0 },
	{ "one-80sg.example.org", PH_REASON_BAD_SUFFIX, 0, 0, 0, 0 },
	{ "one-80-81.example.org", PH_REASON_SECOND_DASH, 0, 0, 0, 0 },
	{ "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.example.org", PH_REASON_LABEL_TOO_LONG,
	  0, 0, 0, 0 },
	{ "nobody.example.org", PH_REASON_UNKNOWN_ID, 0, 0, 0, 0 },
	{ "on.example.org", PH_REASON_UNKNOWN_ID, 0, 0, 0, 0 },
	{ "empty.example.org", PH_REASON_NO_HEALTHY, 0, 0, 0, 0 },
	{ "drained.example.org", PH_REASON_NO_HEALTHY, 0, 0, 0, 0 },
	{ "wild.example.org", PH_REASON_NO_HEALTHY, 0, 0, 0, 0 },
	{ "stolen.example.org", PH_REASON_NO_HEALTHY, 0, 0, 0, 0 },
};

static void test_find(void)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct row *row = &rows[i];
		struct ph_route route;
		enum ph_reason reason = find(row->name, NOW, &route);
		int right = reason == row->want;

		if (row->want == FOUND)
			right = right && route.domain == row->domain && route.candidates == row->candidates &&
				route.name.mode == row->mode && route.name.port == row->port;
		else
			right = right && !route.candidates;
		ktap_ok(right, "find: %s", row->name);
	}
}

static void test_stale(void)
{
	struct ph_route route;

	ktap_ok(find("one.example.org", NOW + 60 * SECOND, &route) == FOUND, "stale: not within the grace");
	ktap_ok(find("one.example.org", NOW + 61 * SECOND, &route) == PH_REASON_MANAGER_STALE && !route.candidates,
		"stale: after it nobody is found");
	ktap_ok(find("nobody.example.org", NOW + 61 * SECOND, &route) == PH_REASON_UNKNOWN_ID,
		"stale: an unknown id is unknown all the same");
}

static void test_next(void)
{
	struct ph_route route;
	struct in_addr address;
	uint32_t slots = 0;
	struct ph_ref ref;
	int right = 1;

	find("three.example.org", NOW, &route);
	for (int i = 0; i < 3; i++) {
		right &= !ph_route_next(&maps, &route, &ref, &address);
		right &= address.s_addr == htonl(0x0a000000 + ref.slot) && ref.generation == ref.slot + 10;
		slots |= 1u << ref.slot;
	}
	ktap_ok(right && slots == 0x1c, "next: each candidate once, with its own address");
	ktap_ok(ph_route_next(&maps, &route, &ref, &address) == -ENOENT, "next: then none");
}

static void test_judged_again(void)
{
	struct ph_route route;
	struct in_addr address;
	struct ph_ref ref;

	find("three.example.org", NOW, &route);
	instances[2].generation = 0;
	instances[4].state = PH_INSTANCE_DRAINING;
	ktap_ok(!ph_route_next(&maps, &route, &ref, &address) && ref.slot == 3 &&
			ph_route_next(&maps, &route, &ref, &address) == -ENOENT,
		"next: those that stopped being healthy since are passed over");
	set_instance(2, "three", PH_INSTANCE_READY, 10);
	set_instance(4, "three", PH_INSTANCE_READY, 10);
}

/* Really random: the limit is the chi-square of two degrees at one in a thousand million. */
static void test_even(void)
{
	uint32_t seen[5] = { 0 };
	double chi_square = 0;
	const int draws = 30000;

	for (int i = 0; i < draws; i++) {
		struct ph_route route;
		struct in_addr address;
		struct ph_ref ref;

		if (find("three.example.org", NOW, &route) == FOUND && !ph_route_next(&maps, &route, &ref, &address))
			seen[ref.slot]++;
	}
	for (int slot = 2; slot <= 4; slot++)
		chi_square += (seen[slot] - draws / 3.0) * (seen[slot] - draws / 3.0) / (draws / 3.0);
	ktap_ok(seen[2] + seen[3] + seen[4] == (uint32_t)draws && chi_square < 41.45,
		"next: evenly spread: %u, %u, %u, chi-square %.2f", seen[2], seen[3], seen[4], chi_square);
}

int main(void)
{
	ktap_header();
	set_up();
	test_find();
	test_stale();
	test_next();
	test_judged_again();
	test_even();
	free(instances);
	return ktap_end();
}
