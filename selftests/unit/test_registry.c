// SPDX-License-Identifier: Apache-2.0
/* registry: who may be in it, which address each gets and keeps, and that a refusal changes nothing. */
#include <sqlite3.h>
#include <sys/resource.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#include "registry_lab.h"

/* Runs SQL on the file while nobody else has it, as a clock or a former version might have left it. */
static int meddle(const char *sql)
{
	sqlite3 *db = NULL;
	int code = sqlite3_open_v2(lab_path, &db, SQLITE_OPEN_READWRITE, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_exec(db, sql, NULL, NULL, NULL);
	if (code != SQLITE_OK)
		printf("# %s\n", sqlite3_errmsg(db));
	sqlite3_close(db);
	return code;
}

static struct ph_registry *reopen(struct ph_registry *registry, const char *sql)
{
	ph_registry_free(registry);
	if (sql)
		ktap_ok(meddle(sql) == SQLITE_OK, "(%s)", sql);
	return lab_open();
}

static void test_first(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm, found;
	time_t now = time(NULL);

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	memset(&found, 0xa5, sizeof(found));
	ktap_ok(ph_registry_find(registry, "i1", &found) == -ENOENT && found.slot == 0xa5a5a5a5, "nobody at first");
	ktap_ok(!lab_add(registry, "app", "i1", 1, &cvm), "an instance is registered");
	ktap_ok(!strcmp(cvm.app_id, "app") && !strcmp(cvm.instance_id, "i1") &&
		!memcmp(cvm.public_key, lab_key(1), PH_KEY_LEN) && lab_is_at(&cvm, "10.0.1.0") && cvm.slot == 0 &&
		cvm.generation == 1 && !cvm.draining && cvm.added_s >= now && cvm.added_s <= now + 60 && !cvm.seen_s,
		"with the lowest address behind the gateway's prefix, slot 0, generation 1");
	ktap_ok(!ph_registry_find(registry, "i1", &found) && !memcmp(&found, &cvm, sizeof(cvm)), "and is found");
	ktap_ok(!lab_add(registry, "app", "i2", 2, &cvm) && lab_is_at(&cvm, "10.0.1.1") && cvm.slot == 1 &&
		cvm.generation == 2, "the next gets the next");
	registry = reopen(registry, NULL);
	ktap_ok(!ph_registry_find(registry, "i1", &cvm) && !memcmp(&found, &cvm, sizeof(cvm)), "it outlasts a restart");
	ktap_ok(!lab_add(registry, "b", "i3", 3, &cvm) && lab_is_at(&cvm, "10.0.1.2") && cvm.slot == 2,
		"and so does what is taken");
	ph_registry_free(registry);
	lab_end();
}

#define LONGEST "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopq"	/* 63 */

/* In the registry: app, with i1 (key 1), i2 (key 2); other, with i3 (key 3); 64 instances of full. */
static const struct {
	const char *name;
	const char *app_id, *instance_id;
	uint32_t key;
	int want;
} refusals[] = {
	{ "empty app-id", "", "new", 9, -EINVAL },
	{ "empty instance-id", "app", "", 9, -EINVAL },
	{ "upper case in an app-id", "App", "new", 9, -EINVAL },
	{ "upper case in an instance-id", "app", "New", 9, -EINVAL },
	{ "dash", "app", "a-b", 9, -EINVAL },
	{ "dot", "a.b", "new", 9, -EINVAL },
	{ "blank", "app", "new ", 9, -EINVAL },
	{ "not ASCII", "app", "n\xc3\xa4h", 9, -EINVAL },
	{ "quote", "app'", "new", 9, -EINVAL },
	{ "64 characters of app-id", LONGEST "x", "new", 9, -EINVAL },
	{ "64 characters of instance-id", "app", LONGEST "x", 9, -EINVAL },
	{ "another instance's key", "app", "new", 3, -EEXIST },
	{ "another instance's key for a known one", "app", "i1", 2, -EEXIST },
	{ "another app's instance", "app", "i3", 9, -EBUSY },
	{ "another app's instance with its own key", "app", "i3", 3, -EBUSY },
	{ "an instance-id that is an app-id", "app", "other", 9, -EBUSY },
	{ "an instance-id that is the full app's", "app", "full", 9, -EBUSY },
	{ "an app-id that is an instance-id", "i3", "new", 9, -EBUSY },
	{ "an app-id that is the instance-id", "new", "new", 9, -EBUSY },
	{ "the 65th instance of an app", "full", "new", 9, -EMLINK },
};

static const struct {
	const char *name;
	uint8_t key[PH_KEY_LEN];
} weak[] = {
	{ "all zero", { 0 } },
	{ "one", { 1 } },
	{ "zero with the ignored bit", { [31] = 0x80 } },
	{ "p - 1", { 0xec, [1 ... 30] = 0xff, 0x7f } },
	{ "p", { 0xed, [1 ... 30] = 0xff, 0x7f } },
	{ "p + 1", { 0xee, [1 ... 30] = 0xff, 0x7f } },
	{ "order 8", { 0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
		       0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8 } },
	{ "order 8, the other", { 0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83,
				  0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd,
				  0xd0, 0x9f, 0x11, 0x57 } },
};

static void test_app(void)
{
	struct ph_registry *registry;
	uint32_t idle_ms, limit;
	struct ph_cvm cvm;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	ktap_ok(ph_registry_set_app(registry, "shop", 1, 2, lab_error, sizeof(lab_error)) == -ENOENT &&
		ph_registry_set_app(registry, "Shop'", 1, 2, lab_error, sizeof(lab_error)) == -ENOENT,
		"an app that there is none gets no setting");
	ktap_ok(!lab_add(registry, "shop", "shop1", 1, &cvm) && !cvm.idle_ms && !cvm.flow_limit, "none at first");
	ktap_ok(!ph_registry_set_app(registry, "shop", 1800000, UINT32_MAX, lab_error, sizeof(lab_error)) &&
		!ph_registry_find(registry, "shop1", &cvm) && cvm.idle_ms == 1800000 && cvm.flow_limit == UINT32_MAX,
		"an app's settings are its instances'");
	ktap_ok(!lab_add(registry, "shop", "shop2", 2, &cvm) && cvm.idle_ms == 1800000, "also of one that comes later");
	ktap_ok(!lab_add(registry, "other", "other1", 3, &cvm) && !cvm.idle_ms && !cvm.flow_limit, "and nobody else's");
	registry = reopen(registry, NULL);
	ktap_ok(!ph_registry_app(registry, "shop", &idle_ms, &limit) && idle_ms == 1800000 && limit == UINT32_MAX,
		"they outlast a restart");
	ktap_ok(!lab_remove(registry, "shop1") && !lab_remove(registry, "shop2") &&
		!lab_add(registry, "shop", "shop3", 4, &cvm) && cvm.idle_ms == 1800000,
		"and a time without instances");
	ktap_ok(!ph_registry_set_app(registry, "shop", 0, 0, lab_error, sizeof(lab_error)) &&
		!ph_registry_find(registry, "shop3", &cvm) && !cvm.idle_ms && !cvm.flow_limit,
		"back to the gateway's");
	ph_registry_free(registry);
	ktap_ok(meddle("CREATE TABLE t AS SELECT count(*) AS n FROM app; CREATE UNIQUE INDEX u ON t (n);"
		       "INSERT INTO t VALUES (1)") == SQLITE_OK, "and nothing is kept of that");
	lab_end();
}

static void test_refusals(void)
{
	struct ph_registry *registry;
	char *before, *after, id[16];
	struct ph_cvm cvm, untouched;
	int wrong = 0;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	wrong += !!lab_add(registry, "app", "i1", 1, &cvm) + !!lab_add(registry, "app", "i2", 2, &cvm) +
		 !!lab_add(registry, "other", "i3", 3, &cvm);
	for (uint32_t i = 0; i < PH_APP_INSTANCES_MAX; i++) {
		snprintf(id, sizeof(id), "full%u", i);
		wrong += !!lab_add(registry, "full", id, 100 + i, &cvm);
	}
	ktap_ok(!wrong, "64 instances of one app");
	before = lab_dump(registry);
	memset(&untouched, 0xa5, sizeof(untouched));
	for (size_t i = 0; i < COUNT(refusals); i++) {
		int err;

		cvm = untouched;
		*lab_error = '\0';
		err = lab_add(registry, refusals[i].app_id, refusals[i].instance_id, refusals[i].key, &cvm);
		after = lab_dump(registry);
		if (!ktap_ok(err == refusals[i].want && *lab_error && !strpbrk(lab_error, "\n\xc3") &&
			     !memcmp(&cvm, &untouched, sizeof(cvm)) && !strcmp(before, after),
			     "refused, nothing changed: %s", refusals[i].name))
			printf("# %d %s\n", err, lab_error);
		free(after);
	}
	for (size_t i = 0; i < COUNT(weak); i++) {
		int err = ph_registry_add(registry, "app", "new", weak[i].key, &cvm, lab_error, sizeof(lab_error));

		after = lab_dump(registry);
		ktap_ok(err == -EINVAL && !strcmp(before, after), "refused, nothing changed: the key %s", weak[i].name);
		free(after);
	}
	ktap_ok(lab_remove(registry, "new") == -ENOENT && lab_remove(registry, "app") == -ENOENT &&
		lab_remove(registry, "I1") == -ENOENT, "nobody to remove");
	ktap_ok(ph_registry_drain(registry, "new", true, lab_error, sizeof(lab_error)) == -ENOENT, "nobody to drain");
	ktap_ok(ph_registry_seen(registry, "new", 1) == -ENOENT, "nobody was seen");
	after = lab_dump(registry);
	ktap_ok(!strcmp(before, after), "and nothing changed");
	ktap_ok(!lab_add(registry, LONGEST, "0", 9, &cvm), "63 characters are an id, and so is one");
	ktap_ok(!lab_add(registry, "full", "full7", 107, &cvm), "a full app's instance is registered again");
	free(before);
	free(after);
	ph_registry_free(registry);
	lab_end();
}

static void test_again(void)
{
	struct ph_registry *registry;
	struct ph_cvm first, cvm;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	lab_add(registry, "app", "i0", 100, &cvm);
	lab_add(registry, "app", "i1", 1, &first);
	ktap_ok(!lab_add(registry, "app", "i1", 1, &cvm) && !memcmp(&first, &cvm, sizeof(cvm)),
		"again with the same key: as it was");
	ktap_ok(!ph_registry_drain(registry, "i1", true, lab_error, sizeof(lab_error)) &&
		!ph_registry_find(registry, "i1", &cvm) && cvm.draining, "it drains");
	ktap_ok(!ph_registry_drain(registry, "i1", true, lab_error, sizeof(lab_error)) &&
		!ph_registry_find(registry, "i1", &cvm) && cvm.draining, "it drains still");
	ktap_ok(!ph_registry_drain(registry, "i1", false, lab_error, sizeof(lab_error)) &&
		!ph_registry_find(registry, "i1", &cvm) && !cvm.draining, "it does not drain any more");
	ph_registry_drain(registry, "i1", true, lab_error, sizeof(lab_error));
	ph_registry_seen(registry, "i1", 1234);
	ktap_ok(!lab_add(registry, "app", "i1", 5, &cvm) && !memcmp(cvm.public_key, lab_key(5), PH_KEY_LEN) &&
		cvm.address.s_addr == first.address.s_addr && cvm.slot == first.slot &&
		cvm.generation > first.generation && !cvm.draining && cvm.added_s == first.added_s && !cvm.seen_s,
		"with another key: address and slot stay, the generation is another's, it no longer drains");
	ktap_ok(!lab_add(registry, "app", "i2", 1, &cvm), "the key it had before is free");

	ktap_ok(!lab_remove(registry, "i1") && ph_registry_find(registry, "i1", &cvm) == -ENOENT, "it is removed");
	ktap_ok(!lab_add(registry, "app", "i3", 5, &cvm) && lab_is_at(&cvm, "10.0.1.3") && cvm.slot == first.slot &&
		cvm.generation > first.generation, "its key and slot are free, its address rests");
	ktap_ok(!lab_add(registry, "app", "i1", 1000, &cvm) && cvm.address.s_addr == first.address.s_addr,
		"back, it has its old address, resting or not");
	lab_remove(registry, "i1");
	registry = reopen(registry, NULL);
	ktap_ok(!lab_add(registry, "app", "i1", 1000, &cvm) && cvm.address.s_addr == first.address.s_addr,
		"also after a restart");
	lab_remove(registry, "i1");
	ktap_ok(!lab_add(registry, "another", "i1", 1000, &cvm) && lab_is_at(&cvm, "10.0.1.4"),
		"as another app's instance it is another one");
	ktap_ok(!lab_remove(registry, "i1") && !lab_add(registry, "app", "i1", 1000, &cvm) &&
		cvm.address.s_addr == first.address.s_addr, "and as the first one it still has its old address");
	ktap_ok(!lab_remove(registry, "i2") && !lab_add(registry, "i2", "x", 77, &cvm), "a removed id is free");
	ph_registry_free(registry);
	lab_end();
}

/* One that is not the lowest is aged; times are those of the file. */
static void test_quarantine(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm;
	char id[8];

	lab_start("10.0.0.0/29", "10.1.0.0/24");
	registry = lab_open();
	for (uint32_t i = 1; i <= 6; i++) {
		snprintf(id, sizeof(id), "i%u", i);
		lab_add(registry, "app", id, i, &cvm);
	}
	ktap_ok(lab_is_at(&cvm, "10.0.0.6") && lab_add(registry, "app", "x", 7, &cvm) == -ENOSPC, "all are used");
	lab_remove(registry, "i2");
	lab_remove(registry, "i3");
	lab_remove(registry, "i5");
	ktap_ok(lab_add(registry, "app", "x", 7, &cvm) == -ENOSPC && strstr(lab_error, "resting"), "three are resting");
	registry = reopen(registry, "UPDATE rest SET freed_ms = freed_ms - 3599000 WHERE address & 255 = 3");
	ktap_ok(lab_add(registry, "app", "x", 7, &cvm) == -ENOSPC, "59 min 59 s are not an hour");
	registry = reopen(registry, "UPDATE rest SET freed_ms = freed_ms - 3601000 WHERE address & 255 IN (3, 5)");
	ktap_ok(!lab_add(registry, "app", "i5", 5, &cvm) && lab_is_at(&cvm, "10.0.0.5"),
		"one that has rested still goes to the one who had it");
	ktap_ok(!lab_add(registry, "app", "x", 7, &cvm) && lab_is_at(&cvm, "10.0.0.3"), "and else to anybody");
	ktap_ok(lab_add(registry, "app", "i3", 3, &cvm) == -ENOSPC, "who had it before has lost it");
	ktap_ok(!lab_add(registry, "app", "i2", 2, &cvm) && lab_is_at(&cvm, "10.0.0.2"), "who is in time has not");

	lab_remove(registry, "i1");
	lab_remove(registry, "i6");
	registry = reopen(registry, "UPDATE rest SET freed_ms = freed_ms + 86400000");
	ktap_ok(lab_add(registry, "app", "y", 8, &cvm) == -ENOSPC, "the clock was set back a day: they rest");
	registry = reopen(registry, "UPDATE rest SET freed_ms = freed_ms - 3601000");
	ktap_ok(!lab_add(registry, "app", "y", 8, &cvm) && lab_is_at(&cvm, "10.0.0.1"),
		"an hour from when that was seen, and no day more");

	lab_options.quarantine_ms = 0;
	registry = reopen(registry, NULL);
	lab_remove(registry, "y");
	ktap_ok(!lab_add(registry, "app", "z", 9, &cvm) && lab_is_at(&cvm, "10.0.0.1"), "without a rest it is free");
	ph_registry_free(registry);
	lab_end();
}

/* Everything that a range has, in order; the last of it, and how many. */
static const struct {
	const char *range, *own;
	const char *first, *last;
	int count;
} ranges[] = {
	{ "10.0.0.0/24", "10.1.0.0/24", "10.0.0.1", "10.0.0.254", 254 },
	{ "10.0.0.0/24", "9.255.255.0/24", "10.0.0.1", "10.0.0.254", 254 },
	{ "10.0.0.0/24", "10.0.0.0/25", "10.0.0.128", "10.0.0.254", 127 },
	{ "10.0.0.0/24", "10.0.0.128/25", "10.0.0.1", "10.0.0.127", 127 },
	{ "10.0.0.0/24", "10.0.0.64/26", "10.0.0.1", "10.0.0.254", 190 },
	{ "10.0.0.0/24", "10.0.0.1/32", "10.0.0.2", "10.0.0.254", 253 },
	{ "10.0.0.0/24", "10.0.0.254/32", "10.0.0.1", "10.0.0.253", 253 },
	{ "10.0.0.0/24", "10.0.0.77/32", "10.0.0.1", "10.0.0.254", 253 },
	{ "10.0.0.0/30", "10.0.0.0/31", "10.0.0.2", "10.0.0.2", 1 },
	{ "10.0.0.0/30", "10.0.0.2/31", "10.0.0.1", "10.0.0.1", 1 },
	{ "10.0.0.0/30", "10.9.0.0/24", "10.0.0.1", "10.0.0.2", 2 },
	{ "223.255.255.252/30", "10.0.0.0/8", "223.255.255.253", "223.255.255.254", 2 },
};

static void test_ranges(void)
{
	for (size_t i = 0; i < COUNT(ranges); i++) {
		struct ph_registry *registry;
		struct ph_cvm cvm, first = { 0 }, last = { 0 };
		bool ordered = true;
		char app[16], id[16];
		int count = 0, err;

		lab_start(ranges[i].range, ranges[i].own);
		registry = lab_open();
		ph_registry_begin(registry);
		for (;;) {
			snprintf(app, sizeof(app), "a%d", count / PH_APP_INSTANCES_MAX);
			snprintf(id, sizeof(id), "i%d", count);
			err = lab_add(registry, app, id, (uint32_t)count, &cvm);
			if (err)
				break;
			ordered = ordered && (!count || ntohl(cvm.address.s_addr) > ntohl(last.address.s_addr));
			last = cvm;
			if (!count++)
				first = cvm;
		}
		ph_registry_commit(registry);
		ktap_ok(err == -ENOSPC && count == ranges[i].count && ordered && lab_is_at(&first, ranges[i].first) &&
			lab_is_at(&last, ranges[i].last), "%s less %s: %s to %s, %d in all", ranges[i].range,
			ranges[i].own, ranges[i].first, ranges[i].last, ranges[i].count);
		ph_registry_free(registry);
		lab_end();
	}
}

static void test_range_changed(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm;
	char *before, *after;

	lab_start("10.0.0.0/16", "10.0.0.0/24");
	registry = lab_open();
	lab_add(registry, "app", "i1", 1, &cvm);
	lab_add(registry, "app", "i2", 2, &cvm);
	lab_remove(registry, "i1");
	before = lab_dump(registry);
	ph_registry_free(registry);

	registry = NULL;
	lab_options.range.s_addr = inet_addr("172.16.0.0");
	ktap_ok(ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error)) == -ERANGE && !registry &&
		strstr(lab_error, "instance i2 has address 10.0.1.1") && strstr(lab_error, "172.16.0.0/16"),
		"a CVM outside a new range is told");
	lab_options.range.s_addr = inet_addr("10.0.0.0");
	lab_options.gateway.s_addr = inet_addr("10.0.1.0");
	ktap_ok(ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error)) == -ERANGE && !registry,
		"and one inside a new prefix of the gateway");
	lab_options.range_len = 8;
	lab_options.gateway.s_addr = inet_addr("10.0.0.0");
	registry = lab_open();
	after = lab_dump(registry);
	ktap_ok(!strcmp(before, after), "a wider range takes all of them");
	lab_options.gateway.s_addr = inet_addr("10.0.0.0");
	lab_options.gateway_len = 32;
	registry = reopen(registry, NULL);
	ktap_ok(!lab_add(registry, "app", "i3", 3, &cvm) && lab_is_at(&cvm, "10.0.0.1"),
		"what a smaller prefix of the gateway leaves is given away");
	ktap_ok(!lab_add(registry, "app", "i1", 1, &cvm) && lab_is_at(&cvm, "10.0.1.0"), "old addresses are kept");
	free(before);
	free(after);
	ph_registry_free(registry);
	lab_end();
}

static void test_slots_and_generations(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm, last;
	char *before, *after;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	lab_add(registry, "app", "i0", 10, &cvm);
	lab_add(registry, "app", "i1", 11, &cvm);
	lab_add(registry, "app", "i2", 12, &cvm);
	lab_remove(registry, "i1");
	lab_remove(registry, "i0");
	ktap_ok(!lab_add(registry, "app", "i3", 13, &cvm) && cvm.slot == 0 && cvm.generation == 4, "the lowest slot");
	ktap_ok(!lab_add(registry, "app", "i4", 14, &cvm) && cvm.slot == 1 && cvm.generation == 5, "then the next");
	ktap_ok(!lab_add(registry, "app", "i5", 15, &cvm) && cvm.slot == 3, "then the first behind all");
	ktap_ok(!lab_remove(registry, "i2") && !lab_remove(registry, "i3") && !lab_remove(registry, "i4") &&
		!lab_remove(registry, "i5"), "all are removed");
	registry = reopen(registry, NULL);
	ktap_ok(!lab_add(registry, "app", "i6", 16, &cvm) && cvm.slot == 0 && cvm.generation == 7,
		"no generation comes twice, after a restart neither");

	registry = reopen(registry, "UPDATE sqlite_sequence SET seq = 4294967294 WHERE name = 'cvm'");
	ktap_ok(!lab_add(registry, "app", "i7", 17, &cvm) && cvm.generation == UINT32_MAX, "the last generation");
	before = lab_dump(registry);
	ktap_ok(lab_add(registry, "app", "i8", 18, &cvm) == -ENOSPC && strstr(lab_error, "generation"),
		"there is none after it");
	ktap_ok(lab_add(registry, "app", "i7", 99, &cvm) == -ENOSPC && strstr(lab_error, "generation"), "nor for another key");
	after = lab_dump(registry);
	ktap_ok(!strcmp(before, after), "and nothing changed");

	/* The address is taken before the row is refused. */
	ktap_ok(!ph_registry_find(registry, "i7", &last) &&
		!lab_remove(registry, "i7") && !ph_registry_begin(registry) &&
		lab_add(registry, "app", "i7", 17, &cvm) == -ENOSPC && !ph_registry_commit(registry),
		"refused half-way, in a transaction that is kept");
	registry = reopen(registry, "UPDATE sqlite_sequence SET seq = 100 WHERE name = 'cvm'");
	ktap_ok(!lab_add(registry, "app", "i8", 18, &cvm) && cvm.address.s_addr != last.address.s_addr,
		"its address rests still");
	ktap_ok(!lab_add(registry, "app", "i7", 17, &cvm) && cvm.address.s_addr == last.address.s_addr,
		"and waits for it");
	free(before);
	free(after);
	ph_registry_free(registry);
	lab_end();
}

static int stop_at_second(const struct ph_cvm *cvm, void *arg)
{
	(void)cvm;
	return ++*(int *)arg == 2 ? 42 : 0;
}

static void test_each_and_seen(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm;
	char *text, *b, *a2, *a10;
	int visits = 0;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	lab_add(registry, "bb", "i1", 1, &cvm);
	lab_add(registry, "aa", "i2", 2, &cvm);
	lab_add(registry, "aa", "i10", 3, &cvm);
	text = lab_dump(registry);
	a10 = strstr(text, "aa i10 ");
	a2 = strstr(text, "aa i2 ");
	b = strstr(text, "bb i1 ");
	ktap_ok(a10 == text && a2 > a10 && b > a2, "each comes in order of app, then instance");
	ktap_ok(ph_registry_each(registry, stop_at_second, &visits) == 42 && visits == 2, "a visit can stop");
	ktap_ok(!ph_registry_begin(registry) && !ph_registry_seen(registry, "i1", 1111) &&
		!ph_registry_seen(registry, "i2", 2222) && !ph_registry_commit(registry), "two are seen");
	registry = reopen(registry, NULL);
	ktap_ok(!ph_registry_find(registry, "i1", &cvm) && cvm.seen_s == 1111, "and it is written down");
	ktap_ok(!ph_registry_find(registry, "i2", &cvm) && cvm.seen_s == 2222, "for both");
	free(text);
	ph_registry_free(registry);
	lab_end();
}

/* Return: how many calls failed. */
static int add_many(struct ph_registry *registry, const char *prefix, int count, uint32_t key, struct ph_cvm *ret_last)
{
	char app[24], id[24];
	int failed = !!ph_registry_begin(registry);

	for (int i = 0; i < count; i++) {
		snprintf(app, sizeof(app), "app%s%d", prefix, i / PH_APP_INSTANCES_MAX);
		snprintf(id, sizeof(id), "%s%d", prefix, i);
		failed += !!lab_add(registry, app, id, key + (uint32_t)i, ret_last);
	}
	return failed + !!ph_registry_commit(registry);
}

static bool unsynced;			/* something was written since the last sync */
static uint32_t syncs;

/* SQLite finds these before libc's. */
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at)
{
	unsynced = true;
	return syscall(SYS_pwrite64, fd, bytes, count, at);
}

int fdatasync(int fd)
{
	unsynced = false;
	syncs++;
	return (int)syscall(SYS_fdatasync, fd);
}

/* Did what was just called write, and wait until the disk had it? */
static bool is_on_disk(void)
{
	bool on_disk = syncs && !unsynced;

	syncs = 0;
	return on_disk;
}

static void test_disk(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	is_on_disk();
	ktap_ok(!lab_add(registry, "app", "i1", 1, &cvm) && is_on_disk(), "added: on disk when the call returns");
	ktap_ok(!lab_add(registry, "app", "i1", 2, &cvm) && is_on_disk(), "another key: likewise");
	ktap_ok(!ph_registry_drain(registry, "i1", true, lab_error, sizeof(lab_error)) && is_on_disk(), "drained: likewise");
	ktap_ok(!ph_registry_set_app(registry, "app", 1000, 1, lab_error, sizeof(lab_error)) && is_on_disk(),
		"an app's settings: likewise");
	ktap_ok(!lab_remove(registry, "i1") && is_on_disk(), "removed: likewise");
	ktap_ok(!ph_registry_begin(registry) && !lab_add(registry, "app", "i2", 3, &cvm) && !syncs &&
		!ph_registry_commit(registry) && is_on_disk(), "a transaction: when it is committed");
	ph_registry_free(registry);
	lab_end();
}

static void test_transactions(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm;
	struct rlimit old, small = { 0 };
	char *before, *after;
	bool refused;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	lab_add(registry, "app", "i1", 1, &cvm);
	ktap_ok(!ph_registry_begin(registry) && !lab_add(registry, "app", "i2", 2, &cvm) &&
		lab_add(registry, "i1", "i3", 3, &cvm) == -EBUSY && !lab_remove(registry, "i1") &&
		lab_add(registry, "app", "i4", 2, &cvm) == -EEXIST && !lab_add(registry, "app", "i5", 5, &cvm) &&
		!ph_registry_commit(registry), "refusals inside a transaction");
	registry = reopen(registry, NULL);
	ktap_ok(ph_registry_find(registry, "i1", &cvm) == -ENOENT && !ph_registry_find(registry, "i2", &cvm) &&
		ph_registry_find(registry, "i3", &cvm) == -ENOENT &&
		ph_registry_find(registry, "i4", &cvm) == -ENOENT && !ph_registry_find(registry, "i5", &cvm),
		"take nothing of the others with them");
	ktap_ok(ph_registry_commit(registry) == -EIO, "nothing to commit");
	before = lab_dump(registry);
	ph_registry_begin(registry);
	lab_add(registry, "app", "i6", 6, &cvm);
	registry = reopen(registry, NULL);
	after = lab_dump(registry);
	ktap_ok(!strcmp(before, after), "what was not committed is not there");
	free(after);

	/* A disk that is full, as far as this process can tell. */
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_cur = 65536;
	small.rlim_max = old.rlim_max;
	setrlimit(RLIMIT_FSIZE, &small);
	refused = add_many(registry, "many", 1000, 1000, &cvm);
	setrlimit(RLIMIT_FSIZE, &old);
	after = lab_dump(registry);
	ktap_ok(refused && !strcmp(before, after), "a full disk: the transaction fails as a whole");
	free(after);
	ktap_ok(!lab_add(registry, "app", "i7", 7, &cvm) && cvm.slot == 2 && lab_is_at(&cvm, "10.0.1.3"),
		"afterwards the next gets what it would have got");
	registry = reopen(registry, NULL);
	ktap_ok(!ph_registry_find(registry, "i7", &cvm), "and the file is whole");
	free(before);
	ph_registry_free(registry);
	lab_end();
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Growth that went with the square of the count would take minutes here. */
static void test_many(void)
{
	enum { MANY = 20000, LIMIT_S = 60 };
	struct ph_registry *registry;
	struct ph_cvm cvm;
	double start = seconds();
	int failed = 0;
	char id[24];

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	registry = lab_open();
	ktap_ok(!add_many(registry, "i", MANY, 0, &cvm) && lab_is_at(&cvm, "10.0.79.31") && cvm.slot == MANY - 1,
		"%d CVMs in one transaction", MANY);
	ph_registry_begin(registry);
	for (int i = 0; i < MANY; i += 2) {
		snprintf(id, sizeof(id), "i%d", i);
		failed += !!lab_remove(registry, id);
	}
	ktap_ok(!failed && !ph_registry_commit(registry), "every other one is removed");
	ktap_ok(!add_many(registry, "j", MANY / 2, MANY, &cvm) && lab_is_at(&cvm, "10.0.118.47") &&
		cvm.slot == MANY - 2,
		"half of them rest: the next are behind them, in the slots between");
	registry = reopen(registry, "UPDATE rest SET freed_ms = 1");
	ktap_ok(!add_many(registry, "k", MANY / 2, 2 * MANY, &cvm) && lab_is_at(&cvm, "10.0.79.30"),
		"they have rested: the next fill the gaps");
	ktap_ok(!lab_add(registry, "app", "one", 3 * MANY, &cvm) && lab_is_at(&cvm, "10.0.118.48"),
		"then they go on at the end");
	ktap_ok(seconds() - start < LIMIT_S, "all of it within %d s (%.1f s)", LIMIT_S, seconds() - start);
	ph_registry_free(registry);
	lab_end();
}

int main(void)
{
	ktap_header();
	test_first();
	test_app();
	test_refusals();
	test_again();
	test_quarantine();
	test_ranges();
	test_range_changed();
	test_slots_and_generations();
	test_each_and_seen();
	test_disk();
	test_transactions();
	test_many();
	return ktap_end();
}
