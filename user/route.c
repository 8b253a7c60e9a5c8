// SPDX-License-Identifier: Apache-2.0
/*
 * route - from a server name to an instance. See route.h.
 */
#include "route.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

/* Random words are fetched many at a time: a pick should not cost a system call. */
static int random_word(uint32_t *ret_word)
{
	static uint32_t words[64];
	static unsigned left;

	if (!left) {
		if (getrandom(words, sizeof(words), 0) != sizeof(words))
			return -EIO;		/* cannot happen for 256 bytes or less once the pool is ready */
		left = sizeof(words) / sizeof(words[0]);
	}
	*ret_word = words[--left];
	return 0;
}

enum ph_reason ph_route_name_reason(enum ph_name_verdict verdict)
{
	switch (verdict) {
	case PH_NAME_OK:
		return PH_REASON_COUNT;
	case PH_NAME_BAD:
		return PH_REASON_BAD_NAME;
	case PH_NAME_BAD_PORT:
		return PH_REASON_BAD_PORT;
	case PH_NAME_BAD_SUFFIX:
		return PH_REASON_BAD_SUFFIX;
	case PH_NAME_SECOND_DASH:
		return PH_REASON_SECOND_DASH;
	case PH_NAME_LABEL_TOO_LONG:
		return PH_REASON_LABEL_TOO_LONG;
	case PH_NAME_TRAILING_DOT:
		return PH_REASON_TRAILING_DOT;
	case PH_NAME_NO_DOMAIN:
		return PH_REASON_OTHER_DOMAIN;
	}
	return PH_REASON_BAD_NAME;
}

const char *ph_health_word(enum ph_health health)
{
	switch (health) {
	case PH_HEALTH_OK:
		return "healthy";
	case PH_HEALTH_GONE:
		return "gone";
	case PH_HEALTH_DRAINING:
		return "draining";
	case PH_HEALTH_NEVER:
		return "never seen";
	case PH_HEALTH_OLD:
		return "handshake too old";
	}
	return "unknown";
}

static enum ph_health health_of(const struct ph_maps *maps, const struct ph_route *route, unsigned nth,
				__be32 *ret_address)
{
	const struct ph_ref *ref = &route->id.refs[nth];

	if (ref->slot >= PH_INSTANCES_MAX)
		return PH_HEALTH_GONE;
	return ph_instance_health(maps->gateway, &maps->instances[ref->slot], ref, route->name.id, ret_address);
}

enum ph_reason ph_route_find(const struct ph_maps *maps, const char *name, uint32_t len, uint64_t boot_now_ns,
			     struct ph_route *ret_route)
{
	struct ph_domain_key domain = { 0 };
	enum ph_name_verdict verdict;
	__be32 address;

	memset(ret_route, 0, sizeof(*ret_route));
	verdict = ph_name_parse(name, len, &ret_route->name);
	if (verdict != PH_NAME_OK)
		return ph_route_name_reason(verdict);

	for (uint32_t i = ret_route->name.base; i < len; i++) {
		char c = name[i];

		domain.name[i - ret_route->name.base] = c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
	}
	if (ph_maps_find_domain(maps, domain.name, &ret_route->domain))
		return PH_REASON_OTHER_DOMAIN;
	if (ph_maps_find_id(maps, ret_route->name.id, &ret_route->id))
		return PH_REASON_UNKNOWN_ID;
	if (ret_route->id.count > PH_APP_INSTANCES_MAX)
		ret_route->id.count = PH_APP_INSTANCES_MAX;
	if (ph_gateway_is_stale(maps->gateway, boot_now_ns))
		return PH_REASON_MANAGER_STALE;

	for (uint32_t i = 0; i < ret_route->id.count; i++) {
		if (health_of(maps, ret_route, i, &address) == PH_HEALTH_OK)
			ret_route->candidates |= 1ULL << i;
	}
	return ret_route->candidates ? PH_REASON_COUNT : PH_REASON_NO_HEALTHY;
}

int ph_route_next(const struct ph_maps *maps, struct ph_route *route, struct ph_ref *ret_ref,
		  struct in_addr *ret_address)
{
	while (route->candidates) {
		uint32_t word, nth;
		__be32 address;

		if (random_word(&word))
			return -ENOENT;
		nth = ph_pick(route->candidates, word);
		route->candidates &= ~(1ULL << nth);
		if (health_of(maps, route, nth, &address) != PH_HEALTH_OK)
			continue;
		*ret_ref = route->id.refs[nth];
		ret_address->s_addr = address;
		return 0;
	}
	return -ENOENT;
}
