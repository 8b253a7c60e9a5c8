// SPDX-License-Identifier: Apache-2.0
#include "scans.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"

#define NS_PER_S 1000000000ULL
#define WALK_EVERY_S 5				/* all CVMs are walked */
#define NOBODY PH_INSTANCES_MAX			/* the index of what is of no CVM */

/* What was told of a slot's CVM. */
struct told {
	uint32_t generation;
	uint64_t count, at_ns;
};

struct ph_scans {
	const struct ph_drops *drops;
	const struct ph_maps *maps;
	uint64_t total;				/* when they were walked last */
	uint64_t now_ns, walked_ns;
	uint32_t lines;				/* in this walk */
	bool owing;				/* it had more to tell than it may */
	struct told told[PH_INSTANCES_MAX + 1];
};

/* What a CVM sent; what somebody sent to it is not its fault. */
static bool is_from_cvm(uint32_t reason)
{
	switch (reason) {
	case PH_GUARD_NOT_IPV4:
	case PH_GUARD_MALFORMED:
	case PH_GUARD_FRAGMENT:
	case PH_GUARD_PROTOCOL:
	case PH_GUARD_UNCALLED:
	case PH_GUARD_IP_OPTIONS:
	case PH_GUARD_MULTICAST:
		return true;
	default:
		return false;
	}
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void tell(const struct ph_scans *scans, __be32 address, struct ph_ref ref, uint64_t count)
{
	const struct ph_instance *instance = &scans->maps->instances[ref.slot];
	char text[INET_ADDRSTRLEN] = "";

	inet_ntop(AF_INET, &address, text, sizeof(text));
	if (!ref.generation)
		ph_log(PH_LOG_WARNING, "guard: %" PRIu64 " packets of no CVM were dropped (phalactl guard show)", count);
	else if (instance->generation == ref.generation)
		ph_log(PH_LOG_WARNING, "guard: cvm %s of app %s at %s: %" PRIu64 " packets to what did not call it were "
		       "dropped (phalactl guard show)", instance->instance_id, instance->app_id, text, count);
}

static int look_at(__be32 address, const struct ph_guard_cvm *cvm, void *arg)
{
	uint32_t index = cvm->instance.generation ? cvm->instance.slot : NOBODY;
	struct ph_scans *scans = arg;
	uint64_t count = 0;
	struct told *told;

	if (index > NOBODY)
		return 0;
	for (uint32_t reason = 0; reason < PH_GUARD_MAX; reason++)
		count += is_from_cvm(reason) ? cvm->drops[reason].count : 0;
	told = &scans->told[index];
	if (told->generation != cvm->instance.generation)
		*told = (struct told){ .generation = cvm->instance.generation };
	if (!scans->walked_ns)				/* the first walk */
		told->count = count;
	if (count < told->count + PH_SCAN_LEAST)
		return 0;
	if (scans->lines == PH_SCAN_LINES || (told->at_ns && scans->now_ns - told->at_ns < PH_SCAN_EVERY_S * NS_PER_S)) {
		scans->owing = true;
		return 0;
	}
	tell(scans, address, cvm->instance, count - told->count);
	scans->lines++;
	told->count = count;
	told->at_ns = scans->now_ns;
	return 0;
}

void ph_scans_look(struct ph_scans *scans)
{
	__u64 counters[PH_GUARD_MAX];
	uint64_t total = 0;
	int err;

	scans->now_ns = now_ns();
	if (scans->walked_ns && scans->now_ns - scans->walked_ns < WALK_EVERY_S * NS_PER_S)
		return;
	err = ph_drops_totals(scans->drops, counters);
	for (uint32_t reason = 0; !err && reason < PH_GUARD_MAX; reason++)
		total += is_from_cvm(reason) ? counters[reason] : 0;
	if (err || (total == scans->total && !scans->owing))
		return;
	scans->owing = false;
	scans->lines = 0;
	err = ph_drops_each(scans->drops, look_at, scans);
	if (err)
		ph_log(PH_LOG_WARNING, "guard: what was dropped cannot be read: %s", strerror(-err));
	scans->total = total;
	scans->walked_ns = scans->now_ns;
}

int ph_scans_new(const struct ph_drops *drops, const struct ph_maps *maps, struct ph_scans **ret_scans)
{
	struct ph_scans *scans = calloc(1, sizeof(*scans));

	if (!scans)
		return -ENOMEM;
	scans->drops = drops;
	scans->maps = maps;
	scans->owing = true;
	ph_scans_look(scans);
	*ret_scans = scans;
	return 0;
}

void ph_scans_free(struct ph_scans *scans)
{
	free(scans);
}
