// SPDX-License-Identifier: Apache-2.0
/*
 * scans: which CVM the log tells of, when, and how often. Clock, counters and log are played here: the functions below stand
 * in for the C library's, drops.c's and log.c's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ktap.h"
#include "log.h"
#include "scans.h"

#define CVMS 24
#define LINES 64
#define LINE_SIZE 256
#define NOBODY CVMS				/* what is of no CVM */

static struct {
	time_t now_s;
	int error;				/* what reading counters comes to */
	uint64_t walks;
	struct ph_guard_cvm cvms[CVMS + 1];
	char lines[LINES][LINE_SIZE];
	size_t line_count;
} world;
static struct ph_instance *instances;
static struct ph_maps maps;

int clock_gettime(clockid_t clock, struct timespec *ret_now)
{
	(void)clock;
	*ret_now = (struct timespec){ .tv_sec = world.now_s };
	return 0;
}

int ph_drops_totals(const struct ph_drops *drops, __u64 ret_counters[PH_GUARD_MAX])
{
	(void)drops;
	for (int reason = 0; reason < PH_GUARD_MAX; reason++) {
		ret_counters[reason] = 0;
		for (int i = 0; i <= NOBODY; i++)
			ret_counters[reason] += world.cvms[i].drops[reason].count;
	}
	return 0;
}

int ph_drops_each(const struct ph_drops *drops,
		  int (*visit)(__be32 address, const struct ph_guard_cvm *cvm, void *arg), void *arg)
{
	int err = world.error;

	(void)drops;
	world.walks++;
	for (int i = 0; i <= NOBODY && !err; i++)
		err = visit(i == NOBODY ? 0 : htonl(0x0a000100 + (uint32_t)i), &world.cvms[i], arg);
	return err;
}

void ph_log(enum ph_log_level level, const char *format, ...)
{
	va_list args;

	(void)level;
	va_start(args, format);
	if (world.line_count < LINES)
		vsnprintf(world.lines[world.line_count++], LINE_SIZE, format, args);
	va_end(args);
}

static void set_cvm(int i, uint32_t generation)
{
	world.cvms[i] = (struct ph_guard_cvm){ .instance = { .slot = (uint32_t)i, .generation = generation } };
	instances[i].generation = generation;
	snprintf(instances[i].app_id, sizeof(instances[i].app_id), "app%d", i);
	snprintf(instances[i].instance_id, sizeof(instances[i].instance_id), "cvm%dg%u", i, generation);
}

static void drop(int i, enum ph_guard_reason reason, uint64_t packets)
{
	world.cvms[i].drops[reason].count += packets;
}

/* A second a look, so often. Return: how many lines they made. */
static size_t look(struct ph_scans *scans, int seconds)
{
	size_t before = world.line_count;

	for (int i = 0; i < seconds; i++) {
		world.now_s++;
		ph_scans_look(scans);
	}
	return world.line_count - before;
}

static bool says(size_t line, const char *text)
{
	bool found = line < world.line_count && strstr(world.lines[line], text);

	if (!found)
		printf("# %s, not %s\n", line < world.line_count ? world.lines[line] : "no line", text);
	return found;
}

/* Of a world in which CVM 0 was dropped @packets of before. */
static struct ph_scans *begin(uint64_t packets)
{
	struct ph_scans *scans = NULL;

	memset(&world, 0, sizeof(world));
	world.now_s = 1000;
	for (int i = 0; i < CVMS; i++)
		set_cvm(i, 1);
	drop(0, PH_GUARD_UNCALLED, packets);
	if (ph_scans_new(NULL, &maps, &scans))
		exit(1);
	return scans;
}

static void test_who(void)
{
	struct ph_scans *scans = begin(1000);

	ktap_ok(!world.line_count && !look(scans, 60), "what was counted before is not told");
	drop(0, PH_GUARD_UNCALLED, PH_SCAN_LEAST - 1);
	ktap_ok(!look(scans, 10), "a few packets too many are nothing");
	drop(0, PH_GUARD_FRAGMENT, 1);
	ktap_ok(look(scans, 10) == 1 && says(0, "cvm cvm0g1 of app app0 at 10.0.1.0: 50 packets"),
		"one more, for another reason, is told: who, where, how many");
	drop(1, PH_GUARD_NOT_OURS, 1000);
	ktap_ok(!look(scans, 10), "what others sent to a CVM is not its fault");
	drop(NOBODY, PH_GUARD_MALFORMED, 70);
	ktap_ok(look(scans, 10) == 1 && says(1, "70 packets of no CVM"), "what is of no CVM has a line of its own");
	ph_scans_free(scans);
}

static void test_when(void)
{
	struct ph_scans *scans = begin(0);
	uint64_t walks = world.walks;

	look(scans, 60);
	ktap_ok(world.walks == walks, "while nothing is dropped nobody is walked");
	drop(2, PH_GUARD_PROTOCOL, 100);
	ktap_ok(look(scans, 1) == 1, "a scan is told within a second of the first");
	walks = world.walks;
	drop(2, PH_GUARD_PROTOCOL, 100);
	drop(3, PH_GUARD_PROTOCOL, 100);
	look(scans, 4);
	ktap_ok(world.walks == walks && world.line_count == 1, "no oftener than each five seconds");
	look(scans, 1);
	ktap_ok(world.line_count == 2 && says(1, "cvm3g1"), "then another CVM's, and the same one's not again");
	look(scans, PH_SCAN_EVERY_S - 10);
	ktap_ok(world.line_count == 2, "nor a while later");
	drop(2, PH_GUARD_PROTOCOL, 7);
	look(scans, 10);
	ktap_ok(world.line_count == 3 && says(2, "cvm2g1 of app app2 at 10.0.1.2: 107 packets"),
		"a minute after the first line it is told what came since");
	ktap_ok(!look(scans, 200), "once");
	ph_scans_free(scans);
}

static void test_many(void)
{
	struct ph_scans *scans = begin(0);

	look(scans, 10);
	for (int i = 0; i < CVMS; i++)
		drop(i, PH_GUARD_UNCALLED, 60);
	ktap_ok(look(scans, 1) == PH_SCAN_LINES, "of many at once so many are told");
	ktap_ok(look(scans, 10) == CVMS - PH_SCAN_LINES, "and the others next time, though nothing more is dropped");
	ph_scans_free(scans);
}

static void test_heir(void)
{
	struct ph_scans *scans = begin(0);

	drop(4, PH_GUARD_UNCALLED, 1000);
	look(scans, 10);
	set_cvm(4, 2);
	drop(5, PH_GUARD_UNCALLED, 1);		/* so that there is a walk */
	ktap_ok(!look(scans, 10), "a CVM's slot taken by another: nothing is told of that");
	drop(4, PH_GUARD_UNCALLED, 50);
	ktap_ok(look(scans, 10) == 1 && says(1, "cvm4g2 of app app4 at 10.0.1.4: 50 packets"),
		"what it sends itself is, and need not wait for the other's minute");
	instances[6].generation = 0;
	drop(6, PH_GUARD_UNCALLED, 1000);
	ktap_ok(!look(scans, 10), "one that is being removed is not named");
	world.cvms[7].instance.slot = PH_INSTANCES_MAX + 5;
	drop(7, PH_GUARD_UNCALLED, 1000);
	ktap_ok(!look(scans, 10), "a slot that there is not is nobody's");
	ph_scans_free(scans);
}

static void test_unreadable(void)
{
	struct ph_scans *scans = begin(0);

	world.error = -EPERM;
	drop(8, PH_GUARD_UNCALLED, 100);
	ktap_ok(look(scans, 10) == 1 && says(0, "cannot be read: Operation not permitted"), "counters that cannot be read: said");
	world.error = 0;
	drop(8, PH_GUARD_UNCALLED, 1);
	ktap_ok(look(scans, 10) == 1 && says(1, "101 packets"), "and told once they can");
	ph_scans_free(scans);
}

int main(void)
{
	instances = calloc(PH_INSTANCES_MAX, sizeof(*instances));
	if (!instances)
		return 1;
	maps.instances = instances;
	ktap_header();
	test_who();
	test_when();
	test_many();
	test_heir();
	test_unreadable();
	free(instances);
	return ktap_end();
}
