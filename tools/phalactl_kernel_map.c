// SPDX-License-Identifier: Apache-2.0
/*
 * The kernel path's maps. Queues cannot be read without taking from them: what they hold follows from the tables that
 * their slots are of.
 */
#include "phalactl_flow.h"
#include "phalactl_map.h"

#include <arpa/inet.h>
#include <errno.h>

#define ABSENT "this phalad has no kernel path"

static void print_record(const struct ph_json *rows, const struct ph_column *columns, FILE *out)
{
	ph_table_print_record(ph_json_at(rows, 0), columns, out);
}

static int steer_rows(struct ph_rows *rows)
{
	struct ph_json *row, *ports;
	char text[INET_ADDRSTRLEN];
	struct ph_steer steer;
	struct in_addr source;
	uint64_t now_ns;
	int err;

	if (!rows->flows)
		return -ENOENT;
	err = ph_flows_steer(rows->flows, &steer);
	if (err)
		return err;
	row = ph_json_object();
	ports = ph_json_array();
	now_ns = ph_flows_now_ns();
	source.s_addr = htonl(steer.source);
	for (size_t i = 0; i < PH_LISTEN_MAX; i++) {
		if (!steer.ports[i])
			continue;
		snprintf(text, sizeof(text), "%u", ntohs(steer.ports[i]));
		ph_json_add_string(ports, text);
	}
	ph_json_set_bool(row, "on", steer.flags & PH_STEER_ON);
	ph_json_set_number(row, "slots", steer.slots);
	ph_json_set_number(row, "fresh", steer.fresh);
	ph_json_set_number(row, "fresh_hellos", steer.fresh_hellos);
	ph_json_set_string(row, "source", inet_ntop(AF_INET, &source, text, sizeof(text)));
	ph_json_set_number(row, "sources", steer.slots / PH_FLOW_PORTS);
	ph_json_set(row, "ports", ports);
	ph_json_set_number(row, "tunnel_mtu", steer.tunnel_mtu);
	ph_json_set_number(row, "tries", steer.tries);
	ph_json_set_real(row, "idle_s", steer.idle_ns / 1e9);
	ph_json_set_bool(row, "watched", steer.watch_until_ns > now_ns);
	ph_rows_add(rows, row);
	return 0;
}

static const struct ph_column steer_columns[] = {
	{ "on", "takes new connections", PH_CELL_YES_NO },
	{ "ports", "the gateway's ports", PH_CELL_TEXT },
	{ "slots", "flow slots in use", PH_CELL_NUMBER },
	{ "fresh", "of them taken at least once", PH_CELL_NUMBER },
	{ "fresh_hellos", "hello slots taken at least once", PH_CELL_NUMBER },
	{ "source", "first address towards CVMs", PH_CELL_TEXT },
	{ "sources", "addresses towards CVMs", PH_CELL_NUMBER },
	{ "tunnel_mtu", "tunnel's MTU", PH_CELL_NUMBER },
	{ "tries", "instances tried for one connection", PH_CELL_NUMBER },
	{ "idle_s", "idle time-out", PH_CELL_DURATION },
	{ "watched", "events are read", PH_CELL_YES_NO },
	{ 0 },
};

static void print_steer(const struct ph_json *rows, FILE *out)
{
	print_record(rows, steer_columns, out);
}

struct flow_rows {
	struct ph_rows *rows;
	struct ph_ctl_view view;
	uint64_t now_ns;
};

static int flow_row(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	struct flow_rows *all = arg;

	if (all->rows->array)
		ph_rows_add(all->rows, ph_ctl_flow_json(&all->view, slot, flow, all->now_ns));
	else
		all->rows->count++;
	return 0;
}

static int flow_rows(struct ph_rows *rows)
{
	struct flow_rows all = { .rows = rows, .now_ns = ph_flows_now_ns() };
	int err;

	if (!rows->flows)
		return -ENOENT;
	if (ph_ctl_view_open(rows->ctl, false, &all.view))
		return -EIO;			/* which was said */
	err = ph_flows_each(rows->flows, flow_row, &all);
	ph_ctl_view_close(&all.view);
	return err;
}

static int client_row(const struct ph_client_key *key, const struct ph_ref *ref, void *arg)
{
	char text[PH_CTL_ENDPOINT_SIZE];
	struct ph_rows *rows = arg;
	struct ph_json *row;

	if (!rows->array) {
		rows->count++;
		return 0;
	}
	row = ph_json_object();
	ph_json_set_string(row, "client", ph_ctl_endpoint(text, key->client, key->client_port));
	ph_json_set_string(row, "gateway", ph_ctl_endpoint(text, key->gateway, key->gateway_port));
	snprintf(text, sizeof(text), "%u.%u", ref->slot, ref->generation);
	ph_json_set_string(row, "flow", text);
	ph_rows_add(rows, row);
	return 0;
}

static int client_rows(struct ph_rows *rows)
{
	return rows->flows ? ph_flows_each_client(rows->flows, client_row, rows) : -ENOENT;
}

static const struct ph_column client_columns[] = {
	{ "client", "CLIENT", PH_CELL_TEXT },
	{ "gateway", "GATEWAY", PH_CELL_TEXT },
	{ "flow", "FLOW", PH_CELL_TEXT },
	{ 0 },
};

/* Whose a hello is, its flow knows. */
static int hello_row(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	char text[PH_CTL_ENDPOINT_SIZE];
	struct ph_flows_hello hello;
	struct ph_rows *rows = arg;
	struct ph_json *row;

	if (!flow->hello || ph_flows_hello(rows->flows, flow->hello - 1, &hello))
		return 0;
	row = ph_json_object();
	ph_json_set_number(row, "slot", flow->hello - 1);
	snprintf(text, sizeof(text), "%u.%u", slot, flow->splice.generation);
	ph_json_set_string(row, "flow", text);
	ph_json_set_string(row, "client", ph_ctl_endpoint(text, flow->splice.key.client, flow->splice.key.client_port));
	ph_json_set_string(row, "state", ph_ctl_flow_state(flow->splice.state));
	ph_json_set_number(row, "bytes", hello.bytes);
	ph_json_set_number(row, "packets", hello.packets);
	ph_json_set_number(row, "pieces", hello.pieces);
	ph_json_set_number(row, "tries", hello.tries);
	ph_rows_add(rows, row);
	return 0;
}

static int hello_rows(struct ph_rows *rows)
{
	return rows->flows ? ph_flows_each(rows->flows, hello_row, rows) : -ENOENT;
}

static const struct ph_column hello_columns[] = {
	{ "slot", "SLOT", PH_CELL_NUMBER },
	{ "flow", "FLOW", PH_CELL_TEXT },
	{ "client", "CLIENT", PH_CELL_TEXT },
	{ "state", "STATE", PH_CELL_TEXT },
	{ "bytes", "BYTES", PH_CELL_NUMBER },
	{ "packets", "PACKETS", PH_CELL_NUMBER },
	{ "pieces", "PIECES", PH_CELL_NUMBER },
	{ "tries", "TRIES", PH_CELL_NUMBER },
	{ 0 },
};

static int load_row(uint32_t slot, const struct ph_load *load, void *arg)
{
	const struct ph_ref ref = { slot, load->generation };
	struct ph_rows *rows = arg;
	struct ph_json *row = ph_json_object();

	ph_ctl_set_instance(row, rows->maps, &ref);
	ph_json_set_number(row, "slot", slot);
	ph_json_set_number(row, "generation", load->generation);
	ph_json_set_number(row, "active", load->active);
	ph_json_set_number(row, "begun", load->begun);
	ph_json_set_number(row, "bytes_from_clients", load->bytes_from_clients);
	ph_json_set_number(row, "packets_from_clients", load->packets_from_clients);
	ph_json_set_number(row, "bytes_from_cvms", load->bytes_from_cvms);
	ph_json_set_number(row, "packets_from_cvms", load->packets_from_cvms);
	ph_json_set(row, "reasons", ph_ctl_load_reasons(load));
	ph_rows_add(rows, row);
	return 0;
}

static int load_rows(struct ph_rows *rows)
{
	return rows->flows ? ph_flows_each_load(rows->flows, load_row, rows) : -ENOENT;
}

/* Bytes and packets are counted when a flow is over. */
static const struct ph_column load_columns[] = {
	{ "instance", "INSTANCE", PH_CELL_TEXT },
	{ "app", "APP", PH_CELL_TEXT },
	{ "active", "FLOWS", PH_CELL_NUMBER },
	{ "begun", "BEGUN", PH_CELL_NUMBER },
	{ "bytes_from_clients", "FROM CLIENTS", PH_CELL_BYTES },
	{ "packets_from_clients", "PACKETS", PH_CELL_NUMBER },
	{ "bytes_from_cvms", "FROM CVM", PH_CELL_BYTES },
	{ "packets_from_cvms", "PACKETS", PH_CELL_NUMBER },
	{ 0 },
};

static int relayed_row(const struct ph_relayed_key *key, uint32_t count, void *arg)
{
	const struct in6_addr *address = (const struct in6_addr *)key->id;
	bool app = key->kind == PH_RELAYED_APP;
	struct ph_json *row = ph_json_object();
	char text[PH_ID_SIZE];

	if (app)
		snprintf(text, sizeof(text), "%.*s", PH_ID_SIZE - 1, key->id);
	else
		ph_ctl_address(text, address);
	ph_json_set_number(row, "worker", key->worker);
	ph_json_set_string(row, "kind", app ? "app" : "client");
	ph_json_set_string(row, "id", text);
	ph_json_set_number(row, "connections", count);
	ph_rows_add(arg, row);
	return 0;
}

static int relayed_rows(struct ph_rows *rows)
{
	return ph_maps_each_relayed(rows->maps, relayed_row, rows);
}

static const struct ph_column relayed_columns[] = {
	{ "worker", "WORKER", PH_CELL_NUMBER },
	{ "kind", "KIND", PH_CELL_TEXT },
	{ "id", "ID", PH_CELL_TEXT },
	{ "connections", "CONNECTIONS", PH_CELL_NUMBER },
	{ 0 },
};

/* A map of which people are shown how many. */
static int count_row(struct ph_rows *rows, const char *key,
		     int (*count)(const struct ph_flows *flows, uint32_t *ret_count))
{
	struct ph_json *row;
	uint32_t number;
	int err;

	if (!rows->flows)
		return -ENOENT;
	err = count(rows->flows, &number);
	if (err)
		return err;
	row = ph_json_object();
	ph_json_set_number(row, key, number);
	ph_rows_add(rows, row);
	rows->count = number;
	return 0;
}

static int lock_rows(struct ph_rows *rows)
{
	return count_row(rows, "held", ph_flows_locks);
}

static void print_locks(const struct ph_json *rows, FILE *out)
{
	static const struct ph_column columns[] = {
		{ "held", "held at this moment", PH_CELL_NUMBER },
		{ 0 },
	};

	print_record(rows, columns, out);
}

static int source_row(__be32 client, const struct ph_client_count *source, void *arg)
{
	struct ph_json *row = ph_json_object();
	char text[INET_ADDRSTRLEN];

	ph_json_set_string(row, "client", inet_ntop(AF_INET, &client, text, sizeof(text)));
	ph_json_set_number(row, "flows", source->flows);
	ph_json_set_number(row, "hellos", source->hellos);
	ph_rows_add(arg, row);
	return 0;
}

static int source_rows(struct ph_rows *rows)
{
	return ph_maps_each_source(rows->maps, source_row, rows);
}

static const struct ph_column source_columns[] = {
	{ "client", "CLIENT", PH_CELL_TEXT },
	{ "flows", "FLOWS", PH_CELL_NUMBER },
	{ "hellos", "HELLOS", PH_CELL_NUMBER },
	{ 0 },
};

static int decline_row(const struct ph_decline_key *key, const struct ph_decline *decline, void *arg)
{
	char text[PH_CTL_ENDPOINT_SIZE];
	struct ph_json *row = ph_json_object();

	ph_json_set_string(row, "client", ph_ctl_endpoint(text, key->client, key->client_port));
	ph_json_set_string(row, "reason", ph_ctl_reason_word(decline->reason));
	ph_json_set_real(row, "age_s", ph_ctl_age_s(ph_ctl_boot_now_ns(), decline->now_ns));
	ph_rows_add(arg, row);
	return 0;
}

static int decline_rows(struct ph_rows *rows)
{
	return ph_maps_each_decline(rows->maps, decline_row, rows);
}

static const struct ph_column decline_columns[] = {
	{ "client", "CLIENT", PH_CELL_TEXT },
	{ "reason", "REASON", PH_CELL_TEXT },
	{ "age_s", "WHEN", PH_CELL_AGE },
	{ 0 },
};

static int reason_rows(struct ph_rows *rows)
{
	__u64 counters[PH_REASONS_MAX];
	char later[32];
	int err;

	if (!rows->flows)
		return -ENOENT;
	err = ph_flows_reasons(rows->flows, counters);
	for (uint32_t reason = 0; !err && reason < PH_REASONS_MAX; reason++) {
		bool known = reason < PH_REASON_COUNT;
		struct ph_json *row;

		if (!counters[reason])
			continue;
		snprintf(later, sizeof(later), "reason-%u", reason);
		row = ph_json_object();
		ph_json_set_string(row, "reason", known ? ph_ctl_reasons[reason].word : later);
		ph_json_set_number(row, "count", counters[reason]);
		ph_json_set_string(row, "text", known ? ph_ctl_reasons[reason].text : NULL);
		ph_rows_add(rows, row);
	}
	return err;
}

static const struct ph_column reason_columns[] = {
	{ "reason", "REASON", PH_CELL_TEXT },
	{ "count", "COUNT", PH_CELL_NUMBER },
	{ "text", "MEANING", PH_CELL_TEXT },
	{ 0 },
};

struct used {
	uint64_t flows, hellos;
};

static int count_used(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	struct used *used = arg;

	(void)slot;
	used->flows++;
	used->hellos += !!flow->hello;
	return 0;
}

/* @rows->count becomes that of slots that were given back, which are what the queue holds. */
static int free_rows(struct ph_rows *rows, bool hellos)
{
	struct used used = { 0 };
	struct ph_steer steer;
	uint64_t slots, taken, in_use;
	struct ph_json *row;
	int err;

	if (!rows->flows)
		return -ENOENT;
	err = ph_flows_steer(rows->flows, &steer);
	if (!err)
		err = ph_flows_each(rows->flows, count_used, &used);
	if (err)
		return err;
	slots = hellos ? PH_HELLOS_MAX : steer.slots;
	taken = hellos ? steer.fresh_hellos : steer.fresh;
	in_use = hellos ? used.hellos : used.flows;
	if (taken > slots)			/* it is counted on when there is none left */
		taken = slots;
	row = ph_json_object();
	ph_json_set_number(row, "slots", slots);
	ph_json_set_number(row, "in_use", in_use);
	ph_json_set_number(row, "given_back", taken > in_use ? taken - in_use : 0);
	ph_json_set_number(row, "never_used", slots - taken);
	ph_rows_add(rows, row);
	rows->count = taken > in_use ? taken - in_use : 0;
	return 0;
}

static int free_flow_rows(struct ph_rows *rows)
{
	return free_rows(rows, false);
}

static int free_hello_rows(struct ph_rows *rows)
{
	return free_rows(rows, true);
}

static void print_free(const struct ph_json *rows, FILE *out)
{
	static const struct ph_column columns[] = {
		{ "slots", "slots", PH_CELL_NUMBER },
		{ "in_use", "in use", PH_CELL_NUMBER },
		{ "given_back", "given back, and in the queue", PH_CELL_NUMBER },
		{ "never_used", "never used", PH_CELL_NUMBER },
		{ 0 },
	};

	print_record(rows, columns, out);
}

static int sweep_rows(struct ph_rows *rows)
{
	struct ph_sweep sweep;
	struct ph_json *row;
	double age_s;
	int err;

	if (!rows->flows)
		return -ENOENT;
	err = ph_flows_sweep(rows->flows, &sweep);
	if (err)
		return err;
	row = ph_json_object();
	age_s = ph_ctl_age_s(ph_flows_now_ns(), sweep.swept_ns);
	if (sweep.swept_ns)
		ph_json_set_real(row, "swept_age_s", age_s);
	else
		ph_json_set(row, "swept_age_s", NULL);
	ph_json_set_bool(row, "alive", sweep.swept_ns && age_s * 1000 < PH_SWEEP_DEAD_MS);
	ph_json_set_number(row, "next", sweep.next);
	ph_rows_add(rows, row);
	return 0;
}

static int used_rows(struct ph_rows *rows)
{
	return count_row(rows, "used", ph_flows_used);
}

static void print_used(const struct ph_json *rows, FILE *out)
{
	static const struct ph_column columns[] = {
		{ "used", "slots in use", PH_CELL_NUMBER },
		{ 0 },
	};

	print_record(rows, columns, out);
}

static void print_sweep(const struct ph_json *rows, FILE *out)
{
	static const struct ph_column columns[] = {
		{ "alive", "the timer runs", PH_CELL_YES_NO },
		{ "swept_age_s", "it looked at a part of the flows", PH_CELL_AGE },
		{ "next", "its next part begins at slot", PH_CELL_NUMBER },
		{ 0 },
	};

	print_record(rows, columns, out);
}

const struct ph_map_row ph_kernel_maps[] = {
	{ "steer", steer_rows, NULL, print_steer, "what steer is told; its keys are not shown", ABSENT },
	{ "flows", flow_rows, ph_ctl_flow_columns, NULL, "the kernel path's connections", ABSENT },
	{ "used", used_rows, NULL, print_used, "which of their slots are in use", ABSENT },
	{ "clients", client_rows, client_columns, NULL, "which flow a client's packets are of", ABSENT },
	{ "free", free_flow_rows, NULL, print_free, "flow slots to be used again", ABSENT },
	{ "hellos", hello_rows, hello_columns, NULL, "ClientHellos held; their bytes are not shown", ABSENT },
	{ "free_hellos", free_hello_rows, NULL, print_free, "hello slots to be used again", ABSENT },
	{ "sweep", sweep_rows, NULL, print_sweep, "the timer by which flows end", ABSENT },
	{ "loads", load_rows, load_columns, NULL, "flows of each instance; traffic of those that are over", ABSENT },
	{ "sources", source_rows, source_columns, NULL, "of each client: its flows, if there is a limit, and hellos that are held", ABSENT },
	{ "source_locks", lock_rows, NULL, print_locks, "locks of those", ABSENT },
	{ "relayed", relayed_rows, relayed_columns, NULL, "what workers carry, by what has a limit", ABSENT },
	{ "declines", decline_rows, decline_columns, NULL, "why clients were left to workers, the last ones", ABSENT },
	{ "reasons", reason_rows, reason_columns, NULL, "the kernel path's counters", ABSENT },
	{ "events", NULL, NULL, NULL, "what `flow watch` reads", ABSENT },
};

const size_t ph_kernel_map_count = sizeof(ph_kernel_maps) / sizeof(ph_kernel_maps[0]);
