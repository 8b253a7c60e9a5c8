// SPDX-License-Identifier: Apache-2.0
/*
 * The pinned maps, one row each: a later map needs a row in the table, its columns, and a function that makes rows.
 */
#include "phalactl_map.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <drops.h>
#include <watch.h>

#include "phalactl_guard.h"

#define NO_GUARD "an older phalad has none"
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

void ph_rows_add(struct ph_rows *rows, struct ph_json *row)
{
	rows->count++;
	if (rows->array)
		ph_json_add(rows->array, row);
	else
		ph_json_free(row);
}

static void add_row(struct ph_json *row, void *arg)
{
	ph_rows_add(arg, row);
}

static int gateway_rows(struct ph_rows *rows)
{
	const struct ph_gateway gateway = *rows->maps->gateway;
	uint64_t now_ns = ph_ctl_boot_now_ns();
	struct ph_json *row = ph_json_object();

	ph_json_set_number(row, "abi_version", gateway.abi_version);
	ph_json_set_string(row, "tunnel", gateway.flags & PH_GATEWAY_EXTERNAL ? "external" : "wireguard");
	if (gateway.tunnel_ifindex)
		ph_json_set_number(row, "tunnel_ifindex", gateway.tunnel_ifindex);
	else
		ph_json_set(row, "tunnel_ifindex", NULL);
	if (gateway.health_now_ns)
		ph_json_set_real(row, "health_age_s", ph_ctl_age_s(now_ns, gateway.health_now_ns));
	else
		ph_json_set(row, "health_age_s", NULL);
	ph_json_set_bool(row, "stale", ph_gateway_is_stale(&gateway, now_ns));
	ph_json_set_real(row, "healthy_for_s", gateway.healthy_for_ns / 1e9);
	ph_json_set_real(row, "manager_grace_s", gateway.manager_grace_ns / 1e9);
	ph_json_set_number(row, "workers", gateway.workers);
	ph_json_set_number(row, "app_limit", gateway.app_limit);
	ph_json_set_number(row, "source_limit", gateway.source_limit);
	ph_rows_add(rows, row);
	return 0;
}

static const struct ph_column gateway_columns[] = {
	{ "abi_version", "ABI version", PH_CELL_NUMBER },
	{ "tunnel", "tunnel", PH_CELL_TEXT },
	{ "tunnel_ifindex", "tunnel's interface index", PH_CELL_NUMBER },
	{ "health_age_s", "health refreshed", PH_CELL_AGE },
	{ "stale", "too old to believe", PH_CELL_YES_NO },
	{ "healthy_for_s", "healthy for", PH_CELL_DURATION },
	{ "manager_grace_s", "manager's grace", PH_CELL_DURATION },
	{ "workers", "workers", PH_CELL_NUMBER },
	{ "app_limit", "connections to one app (0: no limit)", PH_CELL_NUMBER },
	{ "source_limit", "connections of one client (0: no limit)", PH_CELL_NUMBER },
	{ 0 },
};

static void print_gateway(const struct ph_json *rows, FILE *out)
{
	ph_table_print_record(ph_json_at(rows, 0), gateway_columns, out);
}

static int instance_rows(struct ph_rows *rows)
{
	struct ph_instance instance;

	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX; slot++) {
		struct ph_ref ref = { .slot = slot };

		if (!ph_ctl_slot(rows->maps, slot, &instance))
			continue;
		ref.generation = instance.generation;
		ph_rows_add(rows, ph_ctl_instance_json(rows->maps, &ref, &instance, instance.instance_id));
	}
	return 0;
}

static const struct ph_column instance_columns[] = {
	{ "slot", "SLOT", PH_CELL_NUMBER },
	{ "generation", "GENERATION", PH_CELL_NUMBER },
	{ "instance", "INSTANCE", PH_CELL_TEXT },
	{ "app", "APP", PH_CELL_TEXT },
	{ "address", "ADDRESS", PH_CELL_TEXT },
	{ "state", "STATE", PH_CELL_TEXT },
	{ "health", "HEALTH", PH_CELL_TEXT },
	{ "handshake_age_s", "HANDSHAKE", PH_CELL_AGE },
	{ 0 },
};

static int id_row(const struct ph_id_key *key, const struct ph_id *value, void *arg)
{
	uint32_t count = value->count < PH_APP_INSTANCES_MAX ? value->count : PH_APP_INSTANCES_MAX;
	struct ph_json *row = ph_json_object(), *instances = ph_json_array();
	struct ph_instance instance;
	struct ph_rows *rows = arg;
	char text[PH_ID_SIZE];

	snprintf(text, sizeof(text), "%.*s", PH_ID_SIZE - 1, key->id);
	ph_json_set_string(row, "id", text);
	ph_json_set_string(row, "kind", value->kind == PH_ID_APP ? "app" : value->kind == PH_ID_INSTANCE ? "instance" :
								   "unknown");
	ph_json_set_number(row, "count", value->count);
	for (uint32_t i = 0; i < count; i++) {
		const struct ph_ref *ref = &value->refs[i];

		if (ph_ctl_instance(rows->maps, ref, &instance)) {
			ph_json_add_string(instances, instance.instance_id);
		} else {
			snprintf(text, sizeof(text), "(gone: slot %u generation %u)", ref->slot, ref->generation);
			ph_json_add_string(instances, text);
		}
	}
	ph_json_set(row, "instances", instances);
	ph_rows_add(rows, row);
	return 0;
}

static int id_rows(struct ph_rows *rows)
{
	int err = ph_maps_each_id(rows->maps, id_row, rows);

	if (rows->array)
		ph_json_sort(rows->array, "id");
	return err;
}

static const struct ph_column id_columns[] = {
	{ "id", "ID", PH_CELL_TEXT },
	{ "kind", "KIND", PH_CELL_TEXT },
	{ "count", "COUNT", PH_CELL_NUMBER },
	{ "instances", "INSTANCES", PH_CELL_TEXT },
	{ 0 },
};

static int domain_row(const struct ph_domain_key *key, uint32_t index, void *arg)
{
	struct ph_json *row = ph_json_object();
	char name[PH_NAME_SIZE];

	snprintf(name, sizeof(name), "%.*s", PH_NAME_SIZE - 1, key->name);
	ph_json_set_string(row, "domain", name);
	ph_json_set_number(row, "index", index);
	ph_rows_add(arg, row);
	return 0;
}

static int domain_rows(struct ph_rows *rows)
{
	int err = ph_maps_each_domain(rows->maps, domain_row, rows);

	if (rows->array)
		ph_json_sort(rows->array, "domain");
	return err;
}

static const struct ph_column domain_columns[] = {
	{ "domain", "DOMAIN", PH_CELL_TEXT },
	{ "index", "INDEX", PH_CELL_NUMBER },
	{ 0 },
};

static int worker_rows(struct ph_rows *rows)
{
	/* Those that a larger number of workers left behind still count. */
	for (uint32_t i = 0; i < PH_WORKERS_MAX; i++) {
		const __u64 *counters = rows->maps->workers[i].counters;
		struct ph_json *row = ph_ctl_worker_json(rows->maps, i, "worker");

		if (!row)
			continue;
		ph_json_set(row, "counters",
			    ph_ctl_counters_json(counters, PH_REASONS_MAX, ph_ctl_reasons, PH_REASON_COUNT));
		ph_rows_add(rows, row);
	}
	return 0;
}

static const struct ph_column worker_columns[] = {
	{ "worker", "WORKER", PH_CELL_NUMBER },
	{ "pid", "PID", PH_CELL_NUMBER },
	{ "heartbeat_age_s", "HEARTBEAT", PH_CELL_AGE },
	{ "active", "CONNECTIONS", PH_CELL_NUMBER },
	{ "bytes_from_clients", "FROM CLIENTS", PH_CELL_BYTES },
	{ "bytes_from_cvms", "FROM CVMS", PH_CELL_BYTES },
	{ 0 },
};

static void print_workers(const struct ph_json *rows, FILE *out)
{
	ph_table_print(rows, worker_columns, out);
	for (size_t i = 0; i < ph_json_count(rows); i++) {
		const struct ph_json *row = ph_json_at(rows, i);

		const struct ph_json *counters = ph_json_child(row, "counters");
		char heading[32];

		if (!ph_json_count(counters))
			continue;
		snprintf(heading, sizeof(heading), "WORKER %.0f", ph_json_number(row, "worker", 0));
		fprintf(out, "\n");
		ph_ctl_counters_print(counters, ph_ctl_reasons, PH_REASON_COUNT, heading, out);
	}
}

static int guard_rows(struct ph_rows *rows)
{
	__u64 counters[PH_GUARD_MAX];
	struct ph_drops *drops = NULL;
	char error[PATH_MAX + 64];
	int err = ph_drops_open(rows->ctl->bpf_dir, &drops, error, sizeof(error));

	if (!err)
		err = ph_drops_totals(drops, counters);
	ph_drops_free(drops);
	for (unsigned i = 0; !err && i < PH_GUARD_COUNT; i++) {
		struct ph_json *row;

		if (!counters[i])
			continue;
		row = ph_json_object();
		ph_json_set_string(row, "reason", ph_ctl_guard_reasons[i].word);
		ph_json_set_number(row, "count", counters[i]);
		ph_json_set_string(row, "text", ph_ctl_guard_reasons[i].text);
		ph_rows_add(rows, row);
	}
	return err;
}

static const struct ph_column guard_columns[] = {
	{ "reason", "REASON", PH_CELL_TEXT },
	{ "count", "PACKETS", PH_CELL_NUMBER },
	{ "text", "MEANING", PH_CELL_TEXT },
	{ 0 },
};

static int guard_cvm_rows(struct ph_rows *rows)
{
	return ph_ctl_drop_rows(rows->ctl, rows->maps, add_row, rows);
}

static int guard_watch_rows(struct ph_rows *rows)
{
	struct ph_json *row;
	bool watched;
	int err = ph_watch_is_on(rows->ctl->bpf_dir, PH_WATCH_GUARD, &watched);

	if (err)
		return err;
	row = ph_json_object();
	ph_json_set_bool(row, "watched", watched);
	ph_rows_add(rows, row);
	return 0;
}

static void print_guard_watch(const struct ph_json *rows, FILE *out)
{
	static const struct ph_column columns[] = { { "watched", "events are read", PH_CELL_YES_NO }, { 0 } };

	ph_table_print_record(ph_json_at(rows, 0), columns, out);
}

static const struct ph_map_row map_rows[] = {
	{ "gateway", gateway_rows, NULL, print_gateway, "health's clock and limits", NULL },
	{ "instances", instance_rows, instance_columns, NULL, "CVMs: address, state, handshake", NULL },
	{ "ids", id_rows, id_columns, NULL, "what app-ids and instance-ids stand for", NULL },
	{ "domains", domain_rows, domain_columns, NULL, "base domains", NULL },
	{ "workers", worker_rows, NULL, print_workers, "heartbeats and counters of each worker", NULL },
	{ "guard", guard_rows, guard_columns, NULL, "packets on the tunnel device, by what became of them", NO_GUARD },
	{ "guard_cvms", guard_cvm_rows, ph_ctl_drop_columns, NULL, "what was dropped of each CVM's", NO_GUARD },
	{ "guard_watch", guard_watch_rows, NULL, print_guard_watch, "whether somebody reads guard_events", NO_GUARD },
	{ "guard_events", NULL, NULL, NULL, "what `guard watch` reads", NO_GUARD },
};

/* Those above, then the kernel path's, then the gate's. Return: NULL behind the last one. */
static const struct ph_map_row *map_at(size_t index)
{
	if (index < COUNT(map_rows))
		return &map_rows[index];
	index -= COUNT(map_rows);
	if (index < ph_kernel_map_count)
		return &ph_kernel_maps[index];
	index -= ph_kernel_map_count;
	return index < ph_gate_map_count ? &ph_gate_maps[index] : NULL;
}

static const char *type_word(uint32_t type)
{
	static const char *const names[] = {
		[BPF_MAP_TYPE_HASH] = "hash",
		[BPF_MAP_TYPE_ARRAY] = "array",
		[BPF_MAP_TYPE_PERCPU_HASH] = "percpu-hash",
		[BPF_MAP_TYPE_PERCPU_ARRAY] = "percpu-array",
		[BPF_MAP_TYPE_LRU_HASH] = "lru-hash",
		[BPF_MAP_TYPE_LPM_TRIE] = "lpm-trie",
		[BPF_MAP_TYPE_SOCKHASH] = "sockhash",
		[BPF_MAP_TYPE_QUEUE] = "queue",
		[BPF_MAP_TYPE_RINGBUF] = "ringbuf",
	};

	return type < COUNT(names) && names[type] ? names[type] : "other";
}

struct map_info {
	uint32_t type;
	uint64_t entries_max, memory_bytes;
};

/*
 * What the kernel says about a pinned map in fdinfo, which unlike BPF_OBJ_GET_INFO_BY_FD tells the memory.
 * Return: 0 or -errno.
 */
static int read_info(const char *path, struct map_info *ret_info)
{
	struct map_info info = { 0 };
	char fdinfo[64], line[256];
	union bpf_attr attr;
	FILE *file;
	int fd;

	memset(&attr, 0, sizeof(attr));
	attr.pathname = (uintptr_t)path;
	attr.file_flags = BPF_F_RDONLY;
	fd = (int)syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));
	if (fd < 0)
		return -errno;
	snprintf(fdinfo, sizeof(fdinfo), "/proc/self/fdinfo/%d", fd);
	file = fopen(fdinfo, "re");
	if (!file) {
		int err = -errno;

		close(fd);
		return err;
	}
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "map_type: %" SCNu32, &info.type) == 1 ||
		    sscanf(line, "max_entries: %" SCNu64, &info.entries_max) == 1)
			continue;
		sscanf(line, "memlock: %" SCNu64, &info.memory_bytes);
	}
	fclose(file);
	close(fd);
	*ret_info = info;
	return 0;
}

static int count_rows(const struct ph_map_row *map, struct ph_rows *rows, uint64_t entries_max, struct ph_json *row)
{
	char text[64];
	int err;

	rows->count = 0;
	err = map->rows(rows);
	snprintf(text, sizeof(text), "%" PRIu64 " of %" PRIu64, rows->count, entries_max);
	ph_json_set_number(row, "entries", rows->count);
	if (!rows->ctl->json)
		ph_json_set_string(row, "entries_text", text);
	return err;
}

static int list_row(const struct ph_map_row *map, struct ph_rows *rows, struct ph_json *list)
{
	char path[PATH_MAX + 64];
	struct ph_json *row = ph_json_object();
	struct map_info info = { 0 };
	int err;

	snprintf(path, sizeof(path), "%s/ph_%s", rows->ctl->bpf_dir, map->name);
	ph_json_set_string(row, "name", map->name);
	err = read_info(path, &info);
	if (!err) {
		ph_json_set_string(row, "type", type_word(info.type));
		ph_json_set_number(row, "entries_max", info.entries_max);
		if (map->rows)
			err = count_rows(map, rows, info.entries_max, row);
		ph_json_set_number(row, "memory_bytes", info.memory_bytes);
	}
	ph_json_set_bool(row, "pinned", !err);
	ph_json_set_string(row, "path", path);
	ph_json_set_string(row, "holds", map->help);
	ph_json_add(list, row);
	return err && (err != -ENOENT || !map->absent) ? ph_ctl_fail("%s: %s", path, strerror(-err)) : PH_CTL_DONE;
}

static void print_list(const struct ph_json *list)
{
	static const struct ph_column columns[] = {
		{ "name", "NAME", PH_CELL_TEXT },
		{ "type", "TYPE", PH_CELL_TEXT },
		{ "entries_text", "ENTRIES", PH_CELL_TEXT },
		{ "memory_bytes", "MEMORY", PH_CELL_BYTES },
		{ "path", "PINNED AT", PH_CELL_TEXT },
		{ "holds", "HOLDS", PH_CELL_TEXT },
		{ 0 },
	};

	ph_table_print(list, columns, stdout);
}

/* Maps of another layout are as good as none, but that is told. Return: PH_CTL_DONE or PH_CTL_FAILED. */
static int open_maps(const struct ph_ctl *ctl, struct ph_maps **ret_maps, struct ph_flows **ret_flows)
{
	int status = ph_ctl_maps_open(ctl, ret_maps), err;
	char error[PATH_MAX + 128];

	if (status)
		return status;
	err = ph_flows_open(ctl->bpf_dir, ret_flows, error, sizeof(error));
	if (err && err != -ENOENT)
		ph_ctl_say("%s", error);
	return PH_CTL_DONE;
}

int ph_ctl_map_list(const struct ph_ctl *ctl)
{
	struct ph_rows rows = { .ctl = ctl };
	struct ph_flows *flows = NULL;
	struct ph_maps *maps = NULL;
	struct ph_json *list;
	int status;

	status = open_maps(ctl, &maps, &flows);
	if (status)
		return status;
	rows.maps = maps;
	rows.flows = flows;
	list = ph_json_array();
	for (size_t i = 0; !status && map_at(i); i++)
		status = list_row(map_at(i), &rows, list);
	if (!status && ctl->json)
		ph_json_print(list, stdout);
	else if (!status)
		print_list(list);
	ph_json_free(list);
	ph_flows_free(flows);
	ph_maps_free(maps);
	return status;
}

static const struct ph_map_row *find_map(const char *name)
{
	if (!strncmp(name, "ph_", 3))
		name += 3;
	for (size_t i = 0; map_at(i); i++) {
		if (!strcmp(map_at(i)->name, name))
			return map_at(i);
	}
	return NULL;
}

static int unknown_map(const char *name)
{
	fprintf(stderr, "phalactl: no map is called %s; there are", name);
	for (size_t i = 0; map_at(i); i++)
		fprintf(stderr, "%s %s", i ? "," : "", map_at(i)->name);
	fputc('\n', stderr);
	return PH_CTL_USAGE;
}

static void print_rows(const struct ph_map_row *map, const struct ph_json *rows)
{
	if (map->print)
		map->print(rows, stdout);
	else
		ph_table_print(rows, map->columns, stdout);
}

int ph_ctl_map_dump(const struct ph_ctl *ctl)
{
	const struct ph_map_row *map = find_map(ctl->operand);
	struct ph_rows rows = { .ctl = ctl };
	struct ph_flows *flows = NULL;
	struct ph_maps *maps = NULL;
	int status, err;

	if (!map)
		return unknown_map(ctl->operand);
	if (!map->rows)
		return ph_ctl_fail("%s cannot be dumped: %s", map->name, map->help);
	status = open_maps(ctl, &maps, &flows);
	if (status)
		return status;
	rows.maps = maps;
	rows.flows = flows;
	rows.array = ph_json_array();
	err = map->rows(&rows);
	if (err == -ENOENT && map->absent)
		status = ph_ctl_fail("%s/ph_%s: not pinned: %s", ctl->bpf_dir, map->name, map->absent);
	else if (err)
		status = ph_ctl_fail("%s/ph_%s: %s", ctl->bpf_dir, map->name, strerror(-err));
	else if (ctl->json)
		ph_json_print(rows.array, stdout);
	else
		print_rows(map, rows.array);
	ph_json_free(rows.array);
	ph_flows_free(flows);
	ph_maps_free(maps);
	return status;
}
