// SPDX-License-Identifier: Apache-2.0
#include "flows.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define WALK_BATCH 4096

enum flows_map {
	MAP_STEER,
	MAP_FLOWS,
	MAP_CLIENTS,
	MAP_HELLOS,
	MAP_SWEEP,
	MAP_LOADS,
	MAP_REASONS,
	MAP_LOCKS,
	MAP_USED,
	MAP_COUNT,
};

static const struct {
	const char *name;
	uint32_t key_size, value_size, entries;
} map_rows[MAP_COUNT] = {
	[MAP_STEER] = { "ph_steer", sizeof(__u32), sizeof(struct ph_steer), 1 },
	[MAP_FLOWS] = { "ph_flows", sizeof(__u32), sizeof(struct ph_flow), PH_FLOWS_MAX },
	[MAP_CLIENTS] = { "ph_clients", sizeof(struct ph_client_key), sizeof(struct ph_ref), PH_FLOWS_MAX },
	[MAP_HELLOS] = { "ph_hellos", sizeof(__u32), sizeof(struct ph_hello_store), PH_HELLOS_MAX },
	[MAP_SWEEP] = { "ph_sweep", sizeof(__u32), sizeof(struct ph_sweep), 1 },
	[MAP_LOADS] = { "ph_loads", sizeof(__u32), sizeof(struct ph_load), PH_INSTANCES_MAX },
	[MAP_REASONS] = { "ph_reasons", sizeof(__u32), sizeof(__u64), PH_REASONS_MAX },
	[MAP_USED] = { "ph_used", sizeof(__u32), sizeof(__u64), PH_FLOWS_MAX / PH_SLOTS_WORD },
	[MAP_LOCKS] = { "ph_source_locks", sizeof(__u32), sizeof(__u32), PH_SOURCE_LOCKS },
};

struct ph_flows {
	int fds[MAP_COUNT];
	int cpus;
};

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level, (void)format, (void)args;
	return 0;
}

static int open_map(const char *bpf_dir, enum flows_map which, int *ret_fd, char *error, size_t error_size)
{
	LIBBPF_OPTS(bpf_obj_get_opts, options, .file_flags = BPF_F_RDONLY);
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);
	char path[PATH_MAX];
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", bpf_dir, map_rows[which].name) >= (int)sizeof(path)) {
		snprintf(error, error_size, "%s: name too long", bpf_dir);
		return -ENAMETOOLONG;
	}
	fd = bpf_obj_get_opts(path, &options);
	if (fd < 0) {
		if (fd == -ENOENT)
			snprintf(error, error_size, "no %s: this phalad has no kernel path", path);
		else
			snprintf(error, error_size, "%s: %s", path, strerror(-fd));
		return fd;
	}
	/* What is looked up is written to memory by the kernel, as long as the map says. */
	if (bpf_obj_get_info_by_fd(fd, &info, &len) || info.key_size != map_rows[which].key_size ||
	    info.value_size != map_rows[which].value_size || info.max_entries != map_rows[which].entries) {
		snprintf(error, error_size, "%s has another layout", path);
		close(fd);
		return -ESTALE;
	}
	*ret_fd = fd;
	return 0;
}

int ph_flows_open(const char *bpf_dir, struct ph_flows **ret_flows, char *error, size_t error_size)
{
	struct ph_flows *flows = calloc(1, sizeof(*flows));
	int err = 0;

	libbpf_set_print(quiet);
	if (!flows) {
		snprintf(error, error_size, "out of memory");
		return -ENOMEM;
	}
	for (int i = 0; i < MAP_COUNT; i++)
		flows->fds[i] = -1;
	flows->cpus = libbpf_num_possible_cpus();
	if (flows->cpus < 0) {
		err = flows->cpus;
		snprintf(error, error_size, "the number of CPUs: %s", strerror(-err));
	}
	for (int i = 0; !err && i < MAP_COUNT; i++)
		err = open_map(bpf_dir, i, &flows->fds[i], error, error_size);
	if (err)
		ph_flows_free(flows);
	else
		*ret_flows = flows;
	return err;
}

void ph_flows_free(struct ph_flows *flows)
{
	if (!flows)
		return;
	for (int i = 0; i < MAP_COUNT; i++)
		if (flows->fds[i] >= 0)
			close(flows->fds[i]);
	free(flows);
}

uint64_t ph_flows_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int ph_flows_steer(const struct ph_flows *flows, struct ph_steer *ret_steer)
{
	struct ph_steer steer;
	__u32 zero = 0;
	int err = bpf_map_lookup_elem(flows->fds[MAP_STEER], &zero, &steer);

	explicit_bzero(steer.secret, sizeof(steer.secret));
	if (!err)
		*ret_steer = steer;
	return err;
}

int ph_flows_sweep(const struct ph_flows *flows, struct ph_sweep *ret_sweep)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(flows->fds[MAP_SWEEP], &zero, ret_sweep);
}

/* The second look proves that the first one saw no other flow's beginning (struct ph_splice). */
int ph_flows_get(const struct ph_flows *flows, uint32_t slot, struct ph_flow *ret_flow)
{
	struct ph_flow flow, again;
	int err;

	do {
		err = bpf_map_lookup_elem(flows->fds[MAP_FLOWS], &slot, &flow);
		if (!err)
			err = bpf_map_lookup_elem(flows->fds[MAP_FLOWS], &slot, &again);
	} while (!err && flow.splice.generation != again.splice.generation);
	if (!err)
		*ret_flow = flow;
	return err;
}

int ph_flows_load(const struct ph_flows *flows, uint32_t slot, struct ph_load *ret_load)
{
	return bpf_map_lookup_elem(flows->fds[MAP_LOADS], &slot, ret_load);
}

int ph_flows_reasons(const struct ph_flows *flows, __u64 ret_counters[PH_REASONS_MAX])
{
	__u64 *values = calloc(flows->cpus, sizeof(*values)), sums[PH_REASONS_MAX] = { 0 };
	int err = values ? 0 : -ENOMEM;

	for (uint32_t reason = 0; !err && reason < PH_REASONS_MAX; reason++) {
		err = bpf_map_lookup_elem(flows->fds[MAP_REASONS], &reason, values);
		for (int cpu = 0; !err && cpu < flows->cpus; cpu++)
			sums[reason] += values[cpu];
	}
	free(values);
	if (!err)
		memcpy(ret_counters, sums, sizeof(sums));
	return err;
}

int ph_flows_locks(const struct ph_flows *flows, uint32_t *ret_held)
{
	__u32 held = 0, lock = 0;
	int err = 0;

	for (__u32 i = 0; i < PH_SOURCE_LOCKS && !err; i++) {
		err = bpf_map_lookup_elem(flows->fds[MAP_LOCKS], &i, &lock);
		held += !err && lock;
	}
	if (!err)
		*ret_held = held;
	return err;
}

int ph_flows_hello(const struct ph_flows *flows, uint32_t slot, struct ph_flows_hello *ret_hello)
{
	struct ph_hello_store *store = calloc(1, sizeof(*store));
	int err = store ? 0 : -ENOMEM;

	if (!err)
		err = bpf_map_lookup_elem(flows->fds[MAP_HELLOS], &slot, store);
	if (!err)
		*ret_hello = (struct ph_flows_hello){ store->len, store->packets, store->piece_count, store->tries };
	free(store);
	return err;
}

/* A part of a map at a time, which costs the same whether it is an array or a hash. */
struct walk {
	int fd;
	size_t key_size, value_size;
	void *keys, *values;
	struct ph_client_key from, to;	/* large enough for every key here */
	__u32 count;
	bool begun, over;
};

static int walk_begin(struct walk *walk, const struct ph_flows *flows, enum flows_map which)
{
	*walk = (struct walk){ .fd = flows->fds[which], .key_size = map_rows[which].key_size,
			       .value_size = map_rows[which].value_size };
	walk->keys = calloc(WALK_BATCH, walk->key_size);
	walk->values = calloc(WALK_BATCH, walk->value_size);
	return walk->keys && walk->values ? 0 : -ENOMEM;
}

static void walk_end(struct walk *walk)
{
	free(walk->keys);
	free(walk->values);
}

static int look(struct walk *walk, void *values)
{
	int err;

	walk->count = WALK_BATCH;
	err = bpf_map_lookup_batch(walk->fd, walk->begun ? &walk->from : NULL, &walk->to, walk->keys, values,
				   &walk->count, NULL);
	if (err != -ENOENT)
		return err;
	walk->over = true;
	return 0;
}

static void walk_on(struct walk *walk)
{
	walk->from = walk->to;
	walk->begun = true;
}

static int find_used(const struct ph_flows *flows, __u64 ret_used[PH_FLOWS_MAX / PH_SLOTS_WORD])
{
	struct walk walk;
	int err = walk_begin(&walk, flows, MAP_USED);

	while (!err && !walk.over) {
		const __u64 *words = walk.values;
		const __u32 *places = walk.keys;

		err = look(&walk, walk.values);
		for (__u32 i = 0; !err && i < walk.count; i++)
			ret_used[places[i]] = words[i];
		walk_on(&walk);
	}
	walk_end(&walk);
	return err;
}

/* What became another flow between two looks is left out. */
int ph_flows_each(const struct ph_flows *flows, int (*visit)(uint32_t slot, const struct ph_flow *flow, void *arg),
		  void *arg)
{
	__u64 *used = calloc(PH_FLOWS_MAX / PH_SLOTS_WORD, sizeof(*used));
	int err = used ? find_used(flows, used) : -ENOMEM;

	for (uint32_t slot = 0; !err && slot < PH_FLOWS_MAX; slot++) {
		struct ph_flow flow;

		if (!(used[slot / PH_SLOTS_WORD] >> slot % PH_SLOTS_WORD & 1))
			continue;
		err = ph_flows_get(flows, slot, &flow);
		if (!err && flow.splice.state != PH_FLOW_FREE)
			err = visit(slot, &flow, arg);
	}
	free(used);
	return err;
}

int ph_flows_used(const struct ph_flows *flows, uint32_t *ret_used)
{
	__u64 *used = calloc(PH_FLOWS_MAX / PH_SLOTS_WORD, sizeof(*used));
	int err = used ? find_used(flows, used) : -ENOMEM;
	uint32_t count = 0;

	for (uint32_t i = 0; !err && i < PH_FLOWS_MAX / PH_SLOTS_WORD; i++)
		count += (uint32_t)__builtin_popcountll(used[i]);
	free(used);
	if (!err)
		*ret_used = count;
	return err;
}

int ph_flows_each_client(const struct ph_flows *flows,
			 int (*visit)(const struct ph_client_key *key, const struct ph_ref *ref, void *arg), void *arg)
{
	struct walk walk;
	int err = walk_begin(&walk, flows, MAP_CLIENTS);

	while (!err && !walk.over) {
		const struct ph_client_key *keys = walk.keys;
		const struct ph_ref *values = walk.values;

		err = look(&walk, walk.values);
		for (__u32 i = 0; !err && i < walk.count; i++)
			err = visit(&keys[i], &values[i], arg);
		walk_on(&walk);
	}
	walk_end(&walk);
	return err;
}

int ph_flows_each_load(const struct ph_flows *flows,
		       int (*visit)(uint32_t slot, const struct ph_load *load, void *arg), void *arg)
{
	struct walk walk;
	int err = walk_begin(&walk, flows, MAP_LOADS);

	while (!err && !walk.over) {
		const struct ph_load *values = walk.values;
		const __u32 *slots = walk.keys;

		err = look(&walk, walk.values);
		for (__u32 i = 0; !err && i < walk.count; i++)
			if (values[i].generation)
				err = visit(slots[i], &values[i], arg);
		walk_on(&walk);
	}
	walk_end(&walk);
	return err;
}
