/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * route - from a whole hello to an instance, by the rules of phala/{hello,name,pick}.h and what the maps say now.
 */
#ifndef PH_BPF_ROUTE_H
#define PH_BPF_ROUTE_H

#include <phala/pick.h>

#include "flow.h"
#include "packet.h"

/* Is the slot no longer the instance's? Generation 0 alone is one that is being written to. */
static __always_inline int instance_is_gone(const struct ph_ref *ref)
{
	__u32 slot = ref->slot, generation;
	struct ph_instance *instance = bpf_map_lookup_elem(&ph_instances, &slot);

	if (!instance)
		return 1;
	generation = READ_ONCE(instance->generation);
	return generation ? generation != ref->generation : READ_ONCE(instance->state) == PH_INSTANCE_FREE;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_domain_key);
} steer_domain SEC(".maps");

struct route_domain_run {
	const char *name;
	struct ph_domain_key *key;
	__u32 base;
};

/* Eight characters at a time. The name ends in zeros, so what lies behind it is shifted in as such. */
static long route_domain_step(__u32 index, void *arg)
{
	struct route_domain_run *run = arg;
	__u32 at = run->base + index * 8, to = ph_below(index, PH_NAME_SIZE / 8) * 8;
	__u64 word = 0;

	if (at <= PH_NAME_SIZE - 8)
		word = *(const __u64 *)(run->name + ph_below(at, PH_NAME_SIZE));
	else if (at < PH_NAME_SIZE)
		word = *(const __u64 *)(run->name + PH_NAME_SIZE - 8) >> ((at - (PH_NAME_SIZE - 8)) * 8 & 63);
	*(__u64 *)(run->key->name + to) = word;
	return 0;
}

/* Is this a passthrough name under a base domain of ours? If so, store->name is set. */
static __always_inline int route_is_passthrough(struct ph_hello_store *store)
{
	struct route_domain_run run = { .name = store->walk.name };
	__u32 zero = 0, *domain;

	if (ph_name_walk(&store->name, store->walk.name, store->walk.name_len) != PH_NAME_OK ||
	    store->name.found.mode != PH_MODE_PASSTHROUGH)
		return 0;
	run.base = store->name.found.base;
	run.key = bpf_map_lookup_elem(&steer_domain, &zero);
	if (!run.key)
		return 0;
	ph_loop(PH_NAME_SIZE / 8, route_domain_step, &run);
	domain = bpf_map_lookup_elem(&ph_domains, run.key);
	if (!domain)
		return 0;
	store->domain = *domain;
	return 1;
}

/* Does anybody have the id? Who asks for others costs no flow. */
static __always_inline int route_is_known(const struct ph_hello_store *store)
{
	return bpf_map_lookup_elem(&ph_ids, store->name.found.id) != NULL;
}

struct route_run {
	const struct ph_gateway *gateway;
	const struct ph_hello_store *store;
	const struct ph_id *id;
	__u64 candidates;
};

static __always_inline enum ph_health route_health(const struct route_run *run, __u32 index, __be32 *ret_address)
{
	struct ph_ref ref = run->id->refs[ph_below(index, PH_APP_INSTANCES_MAX)];
	struct ph_instance *instance = bpf_map_lookup_elem(&ph_instances, &ref.slot);

	if (!instance)
		return PH_HEALTH_GONE;
	return ph_instance_health(run->gateway, instance, &ref, run->store->name.found.id, ret_address);
}

static __always_inline int route_was_tried(const struct ph_hello_store *store, __u32 generation)
{
	__u32 tried = 0;

	for (int i = 0; i < PH_BIND_TRIES_MAX; i++)
		tried |= is_zero(store->tried[i] ^ generation);
	return tried;
}

static long route_step(__u32 index, void *arg)
{
	struct route_run *run = arg;
	struct ph_ref ref;
	__be32 address;

	if (index >= run->id->count)
		return 1;
	ref = run->id->refs[ph_below(index, PH_APP_INSTANCES_MAX)];
	if (route_health(run, index, &address) == PH_HEALTH_OK && !route_was_tried(run->store, ref.generation))
		run->candidates |= 1ULL << (index & 63);
	return 0;
}

/* A function of its own to the verifier: else it follows what comes after for each of the 64 results. */
__separate __u32 route_pick(__u64 candidates, __u32 random)
{
	return ph_pick(candidates, random);
}

/* Limits: this flow is counted before the sum is looked at, so that of several at once none gets through too many. */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_relayed_key);
} steer_relayed SEC(".maps");

struct route_sum_run {
	struct ph_relayed_key *key;
	const struct ph_id *app;
	__u64 sum;
};

static long route_relayed_step(__u32 index, void *arg)
{
	struct route_sum_run *run = arg;
	__u32 *connections;

	run->key->worker = index;
	connections = bpf_map_lookup_elem(&ph_relayed, run->key);
	if (connections)
		run->sum += *connections;
	return 0;
}

static long route_load_step(__u32 index, void *arg)
{
	struct route_sum_run *run = arg;
	struct ph_load *load;
	struct ph_ref ref;

	if (index >= run->app->count)
		return 1;
	ref = run->app->refs[ph_below(index, PH_APP_INSTANCES_MAX)];
	load = load_of(&ref);
	if (load)
		run->sum += load->active;
	return 0;
}

/* Has the flow's client, by now, more connections than it may have? */
__separate int route_source_is_full(struct ph_flow *flow)
{
	struct ph_gateway *gateway = gateway_config();
	struct route_sum_run run = { 0 };
	__u32 zero = 0;

	if (!flow || !gateway || !gateway->source_limit)
		return 0;
	run.sum = source_take(flow->splice.key.client, PH_COUNTED_SOURCE, PH_LIMIT_NONE);
	if (!run.sum)
		return 1;
	flow->counted |= PH_COUNTED_SOURCE;
	run.key = bpf_map_lookup_elem(&steer_relayed, &zero);
	if (!run.key)
		return 1;
	__builtin_memset(run.key, 0, sizeof(*run.key));
	run.key->kind = PH_RELAYED_SOURCE;
	run.key->id[10] = run.key->id[11] = 0xff;
	__builtin_memcpy(run.key->id + 12, &flow->splice.key.client, 4);
	ph_loop(gateway->workers, route_relayed_step, &run);
	return run.sum > gateway->source_limit;
}

/* The same of the app, whose instance the flow is already counted at. @slot: the instance's. */
__separate int route_app_is_full(__u32 slot)
{
	struct ph_instance *instance = bpf_map_lookup_elem(&ph_instances, &slot);
	struct ph_gateway *gateway = gateway_config();
	struct route_sum_run run = { 0 };
	__u32 zero = 0, limit;

	if (!instance || !gateway)
		return 0;
	run.app = bpf_map_lookup_elem(&ph_ids, instance->app_id);
	if (!run.app)
		return 0;
	limit = ph_app_limit(run.app, gateway->app_limit);
	if (!limit)
		return 0;
	run.key = bpf_map_lookup_elem(&steer_relayed, &zero);
	if (!run.key)
		return 1;
	__builtin_memset(run.key, 0, sizeof(*run.key));
	run.key->kind = PH_RELAYED_APP;
	__builtin_memcpy(run.key->id, instance->app_id, PH_ID_SIZE);
	ph_loop(PH_APP_INSTANCES_MAX, route_load_step, &run);
	ph_loop(gateway->workers, route_relayed_step, &run);
	return run.sum > limit;
}

enum route_result {
	ROUTE_OK,
	ROUTE_NONE,			/* nothing that is healthy and was not tried yet, or no such id */
	ROUTE_LIMIT,
};

/* The next instance for this hello, into the flow. */
__separate int route_next(__u32 slot, __u32 hello)
{
	struct route_run run = { .gateway = gateway_config() };
	struct ph_hello_store *store = hello_at(hello);
	const struct ph_steer *steer = steer_config();
	struct ph_flow *flow = flow_at(slot);
	struct ph_splice *splice;
	__be32 address = 0;
	struct ph_ref ref;
	__u32 index;

	if (!steer || !store || !flow)
		return ROUTE_NONE;
	run.store = store;
	splice = &flow->splice;
	if (!run.gateway || ph_gateway_is_stale(run.gateway, bpf_ktime_get_boot_ns()) || !run.gateway->tunnel_ifindex ||
	    store->tries >= steer->tries)
		return ROUTE_NONE;
	run.id = bpf_map_lookup_elem(&ph_ids, store->name.found.id);
	if (!run.id)
		return ROUTE_NONE;
	ph_loop(PH_APP_INSTANCES_MAX, route_step, &run);
	if (!run.candidates)
		return ROUTE_NONE;
	index = route_pick(run.candidates, bpf_get_prandom_u32());
	if (route_health(&run, index, &address) != PH_HEALTH_OK)
		return ROUTE_NONE;
	ref = run.id->refs[ph_below(index, PH_APP_INSTANCES_MAX)];
	store->tried[store->tries % PH_BIND_TRIES_MAX] = ref.generation;
	store->tries++;
	flow_uncount_instance(flow);
	splice->cvm = address;
	splice->cvm_port = bpf_htons(store->name.found.port);
	splice->instance = ref;
	flow->idle_ms = run.id->idle_ms;
	flow_count_instance(flow);
	if (run.id->kind == PH_ID_INSTANCE)
		splice->flags |= PH_FLOW_BY_INSTANCE;
	/* Who declines the flow takes it off what it is counted at. The next instance's turn changes nothing of limits. */
	if (store->tries == 1 && (route_app_is_full(ref.slot) || route_source_is_full(flow)))
		return ROUTE_LIMIT;
	return ROUTE_OK;
}

#endif
