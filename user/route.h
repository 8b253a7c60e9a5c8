/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route - from a server name to an instance: parse, look up, judge health, pick.
 *
 * The one place in userspace that does this: workers route by it and `phalactl route` explains by it.
 */
#ifndef PHALAD_ROUTE_H
#define PHALAD_ROUTE_H

#include <netinet/in.h>
#include <stdint.h>

#include "maps.h"

struct ph_route {
	struct ph_name name;			/* as parsed; id is zero padded */
	uint32_t domain;			/* index of the base domain */
	struct ph_id id;			/* what the id stands for */
	uint64_t candidates;			/* a bit per id.refs that is healthy and was not tried yet */
};

/**
 * ph_route_find() - everything up to the pick.
 * @name: PH_NAME_SIZE bytes, zero padded; @len characters.
 * @boot_now_ns: CLOCK_BOOTTIME.
 * @ret_route: filled as far as it got, also when it fails.
 *
 * Return: PH_REASON_COUNT when there is at least one candidate, else the reason for refusing.
 */
enum ph_reason ph_route_find(const struct ph_maps *maps, const char *name, uint32_t len, uint64_t boot_now_ns,
			     struct ph_route *ret_route);

/**
 * ph_route_next() - pick an instance at random among the candidates and take it off them.
 * @ret_ref: which; @ret_address: where.
 *
 * Health is judged again at this moment. Return: 0, or -ENOENT when no candidate is left.
 */
int ph_route_next(const struct ph_maps *maps, struct ph_route *route, struct ph_ref *ret_ref,
		  struct in_addr *ret_address);

/* The reason for refusing a name that the grammar refused. */
enum ph_reason ph_route_name_reason(enum ph_name_verdict verdict);

/* The domain's index by the map; names of health states and reasons for people. */
const char *ph_health_word(enum ph_health health);

#endif
