/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow - the kernel path, as several verbs show it.
 */
#ifndef PHALACTL_FLOW_H
#define PHALACTL_FLOW_H

#include <flows.h>

#include "phalactl.h"

#define PH_CTL_FLOW_STATES (PH_FLOW_DECLINED + 1)

/* What flows are told by: whose instance, which domain. */
struct ph_ctl_view {
	struct ph_maps *maps;
	struct ph_flows *flows;			/* NULL unless asked for */
	char domains[PH_DOMAINS_MAX][PH_NAME_SIZE];	/* by index; "" is none */
};

/* @flows: also open the kernel path's maps. Return: PH_CTL_DONE or PH_CTL_FAILED; then there is nothing to close. */
int ph_ctl_view_open(const struct ph_ctl *ctl, bool flows, struct ph_ctl_view *ret_view);
void ph_ctl_view_close(struct ph_ctl_view *view);

/* Words, by enum ph_flow_state; numbers of a later phalad's have none: "unknown". */
const char *ph_ctl_flow_state(uint32_t state);
/* The word of an enum ph_reason; NULL for 0, which is none, and for a later phalad's. */
const char *ph_ctl_reason_word(uint32_t reason);

/* Both write "192.0.2.2:40000" and return @text. */
#define PH_CTL_ENDPOINT_SIZE 24
const char *ph_ctl_endpoint(char text[PH_CTL_ENDPOINT_SIZE], __be32 address, __be16 port);

/* "instance" and "app" of a document: those of @ref, null when it is gone. */
void ph_ctl_set_instance(struct ph_json *row, const struct ph_maps *maps, const struct ph_ref *ref);

/* What `flow list` says of a flow. */
struct ph_json *ph_ctl_flow_json(const struct ph_ctl_view *view, uint32_t slot, const struct ph_flow *flow,
				 uint64_t now_ns);
extern const struct ph_column ph_ctl_flow_columns[];

/* Flows by state, as {"collecting": 0, ...}, and in all, those that rest included. Return: 0 or -errno. */
int ph_ctl_flow_counts(const struct ph_flows *flows, struct ph_json **ret_states, uint64_t *ret_used);

/**
 * ph_ctl_relays() - connections that workers carry, as `flow list` says it.
 * @client: IPv4 mapped; only that one's, from @client_port. NULL: those that the options ask for.
 *
 * Return: an array.
 */
struct ph_json *ph_ctl_relays(const struct ph_ctl *ctl, const struct ph_ctl_view *view, const struct in6_addr *client,
			      uint16_t client_port);

/* Connections that workers carry now. */
uint64_t ph_ctl_relayed(const struct ph_maps *maps);

/**
 * ph_ctl_kernel_closed() - why can no new connection take the kernel path?
 * @flows: NULL when phalad has pinned no such maps.
 *
 * Return: NULL if nothing is in its way, else a line for people.
 */
const char *ph_ctl_kernel_closed(const struct ph_maps *maps, const struct ph_flows *flows);

/* The kernel path as `status` has it; null when there is none. Return: never NULL but then. */
struct ph_json *ph_ctl_kernel_json(const struct ph_ctl *ctl, const struct ph_maps *maps);
void ph_ctl_kernel_print(const struct ph_json *kernel);

#endif
