// SPDX-License-Identifier: Apache-2.0
/*
 * gate show, and the gate's maps.
 */
#include "phalactl_map.h"

#include <errno.h>
#include <net/if.h>
#include <string.h>

#include <gate.h>
#include <prefix.h>

#define ABSENT "phalad makes it with a Nic, unless Gate = off"
#define TALKERS 10

const struct ph_ctl_word ph_ctl_gate_reasons[PH_GATE_COUNT] = {
#define ROW(name, word, text) [PH_GATE_##name] = { word, text },
	PH_GATE_REASONS(ROW)
#undef ROW
};

static const char *const budget_words[PH_GATE_BUDGETS] = {
	[PH_GATE_BUDGET_CONNECTIONS] = "connections",
	[PH_GATE_BUDGET_HELLOS] = "hellos",
	[PH_GATE_BUDGET_HANDSHAKES] = "handshakes",
};

static uint32_t bits_of(const struct ph_address *mask)
{
	uint32_t bits = 0;

	for (int i = 0; i < 4; i++)
		bits += (uint32_t)__builtin_popcount(mask->words[i]);
	return bits;
}

static uint64_t per_second(const struct ph_gate_budget *budget)
{
	return (1000000000 + budget->interval_ns / 2) / budget->interval_ns;
}

static struct ph_json *budgets_json(const struct ph_gate *gate)
{
	struct ph_json *array = ph_json_array();

	for (int i = 0; i < PH_GATE_BUDGETS; i++) {
		const struct ph_gate_budget *budget = &gate->budgets[i];
		struct ph_json *row = ph_json_object();

		ph_json_set_string(row, "what", budget_words[i]);
		if (budget->interval_ns) {
			ph_json_set_number(row, "per_second", per_second(budget));
			ph_json_set_number(row, "burst", budget->tolerance_ns / budget->interval_ns);
		} else {
			ph_json_set(row, "per_second", NULL);
			ph_json_set(row, "burst", NULL);
		}
		ph_json_add(array, row);
	}
	return array;
}

/* Return: NULL when the devices cannot be listed; that was said. */
static struct ph_json *devices_json(const struct ph_ctl *ctl)
{
	struct if_nameindex *names = if_nameindex();
	struct ph_json *array;

	if (!names) {
		ph_ctl_fail("the network devices: %s", strerror(errno));
		return NULL;
	}
	array = ph_json_array();
	for (struct if_nameindex *device = names; device->if_index; device++) {
		enum ph_gate_mode mode = PH_GATE_OFF;
		char driver[32] = "";
		struct ph_json *row;

		if (ph_gate_attached(ctl->bpf_dir, device->if_index, &mode) || mode == PH_GATE_OFF)
			continue;
		ph_gate_driver(device->if_index, driver);
		row = ph_json_object();
		ph_json_set_string(row, "device", device->if_name);
		ph_json_set_number(row, "ifindex", device->if_index);
		ph_json_set_string(row, "mode", ph_gate_mode_word(mode));
		ph_json_set_string(row, "driver", driver);
		ph_json_add(array, row);
	}
	if_freenameindex(names);
	return array;
}

struct talker {
	struct ph_address address;
	uint64_t dropped;
};

struct talkers {
	struct talker rows[TALKERS];		/* the most first */
	size_t count;
};

static int note_talker(const void *key, const void *value, void *arg)
{
	const struct ph_gate_source *source = value;
	struct talkers *talkers = arg;
	size_t at = talkers->count;

	if (!source->dropped)
		return 0;
	while (at && talkers->rows[at - 1].dropped < source->dropped)
		at--;
	if (at == TALKERS)
		return 0;
	talkers->count += talkers->count < TALKERS;
	memmove(&talkers->rows[at + 1], &talkers->rows[at], (talkers->count - at - 1) * sizeof(talkers->rows[0]));
	memcpy(&talkers->rows[at].address, key, sizeof(struct ph_address));
	talkers->rows[at].dropped = source->dropped;
	return 0;
}

/* Whom a key of ph_gate_sources stands for. */
static const char *source_text(char out[PH_PREFIX_TEXT_SIZE], const struct ph_address *address, const struct ph_gate *gate)
{
	struct ph_prefix prefix = { .bits = bits_of(&gate->source4), .address = *address };
	const __be32 *words = address->words;

	if (words[0] || words[1] || words[2] != htonl(0xffff))
		prefix.bits = bits_of(&gate->source6);
	return ph_prefix_text(out, &prefix);
}

static struct ph_json *talkers_json(const struct ph_ctl *ctl, const struct ph_gate *gate)
{
	struct talkers talkers = { 0 };
	struct ph_json *array = ph_json_array();
	char text[PH_PREFIX_TEXT_SIZE];

	ph_gate_each(ctl->bpf_dir, "ph_gate_sources", note_talker, &talkers);
	for (size_t i = 0; i < talkers.count; i++) {
		struct ph_json *row = ph_json_object();

		ph_json_set_string(row, "source", source_text(text, &talkers.rows[i].address, gate));
		ph_json_set_number(row, "dropped", talkers.rows[i].dropped);
		ph_json_add(array, row);
	}
	return array;
}

/* What the manager says is wrong. Return: NULL when there is none to say it. */
static struct ph_json *troubles_json(const struct ph_ctl *ctl)
{
	struct ph_json *reply = ph_ctl_ask(ctl, "status");
	const struct ph_json *rows = reply ? ph_json_child(ph_json_child(reply, "result"), "gate") : NULL;
	struct ph_json *array = rows ? ph_json_array() : NULL;

	for (size_t i = 0; i < ph_json_count(rows); i++) {
		const struct ph_json *from = ph_json_at(rows, i);
		const char *text = ph_json_string(from, "trouble", NULL);
		struct ph_json *row;

		if (!text)
			continue;
		row = ph_json_object();
		ph_json_set_string(row, "device", ph_json_string(from, "device", NULL));
		ph_json_set_string(row, "text", text);
		ph_json_add(array, row);
	}
	ph_json_free(reply);
	return array;
}

static void print_troubles(const struct ph_json *troubles, FILE *out)
{
	for (size_t i = 0; i < ph_json_count(troubles); i++) {
		const struct ph_json *row = ph_json_at(troubles, i);

		fprintf(out, "%s: %s\n", ph_json_string(row, "device", "all devices"), ph_json_string(row, "text", "?"));
	}
}

static void print_gate(const struct ph_json *json)
{
	static const struct ph_column devices[] = {
		{ "device", "DEVICE", PH_CELL_TEXT },
		{ "mode", "GATE", PH_CELL_TEXT },
		{ "driver", "DRIVER", PH_CELL_TEXT },
		{ 0 },
	};
	static const struct ph_column budgets[] = {
		{ "what", "FOR EACH SOURCE", PH_CELL_TEXT },
		{ "per_second", "A SECOND", PH_CELL_NUMBER },
		{ "burst", "AT ONCE", PH_CELL_NUMBER },
		{ 0 },
	};
	static const struct ph_column talkers[] = {
		{ "source", "OVER BUDGET", PH_CELL_TEXT },
		{ "dropped", "DROPPED", PH_CELL_NUMBER },
		{ 0 },
	};
	const struct ph_json *sources = ph_json_child(json, "sources"), *lists = ph_json_child(json, "lists");

	if (ph_json_count(ph_json_child(json, "devices")))
		ph_table_print(ph_json_child(json, "devices"), devices, stdout);
	else
		printf("the gate is on no device of this network namespace\n");
	print_troubles(ph_json_child(json, "troubles"), stdout);
	printf("\n");
	ph_table_print(ph_json_child(json, "budgets"), budgets, stdout);
	printf("\na source is a /%.0f of IPv4, a /%.0f of IPv6\n", ph_json_number(json, "source_prefix4", 0),
	       ph_json_number(json, "source_prefix6", 0));
	if (!ph_json_is_null(json, "unproven_per_second"))
		printf("sources not heard of: %.0f connections a second together, others are challenged\n",
		       ph_json_number(json, "unproven_per_second", 0));
	printf("listed prefixes: %.0f denied, %.0f allowed\n", ph_json_number(lists, "deny", 0),
	       ph_json_number(lists, "allow", 0));
	if (ph_json_count(ph_json_child(json, "counters")))
		printf("\n");
	ph_ctl_counters_print(ph_json_child(json, "counters"), ph_ctl_gate_reasons, PH_GATE_COUNT, "PACKETS", stdout);
	if (!ph_json_count(sources))
		return;
	printf("\n");
	ph_table_print(sources, talkers, stdout);
}

int ph_ctl_gate_show(const struct ph_ctl *ctl)
{
	uint64_t counters[PH_GATE_COUNT];
	__u64 copy[PH_GATE_COUNT];
	struct ph_json *json, *lists, *devices;
	struct ph_maps *maps = NULL;
	struct ph_gate gate;
	int status, err;

	/* Also has libbpf keep its words to itself. */
	status = ph_ctl_maps_open(ctl, &maps);
	if (status)
		return status;
	ph_maps_free(maps);
	err = ph_gate_read(ctl->bpf_dir, &gate);
	if (!err)
		err = ph_gate_counters(ctl->bpf_dir, counters);
	if (err == -ENOENT) {
		json = troubles_json(ctl);
		status = ph_ctl_fail("there is no gate in %s: " ABSENT, ctl->bpf_dir);
		print_troubles(json, stderr);
		ph_json_free(json);
		return status;
	}
	if (err)
		return ph_ctl_fail("%s/ph_gate: %s", ctl->bpf_dir, strerror(-err));
	devices = devices_json(ctl);
	if (!devices)
		return PH_CTL_FAILED;
	for (int i = 0; i < PH_GATE_COUNT; i++)
		copy[i] = counters[i];
	json = ph_json_object();
	ph_json_set(json, "devices", devices);
	ph_json_set(json, "troubles", troubles_json(ctl));
	ph_json_set(json, "budgets", budgets_json(&gate));
	ph_json_set_number(json, "source_prefix4", bits_of(&gate.source4) - PH_ADDRESS_V4_BITS);
	ph_json_set_number(json, "source_prefix6", bits_of(&gate.source6));
	if (gate.unproven.interval_ns)
		ph_json_set_number(json, "unproven_per_second", per_second(&gate.unproven));
	else
		ph_json_set(json, "unproven_per_second", NULL);
	lists = ph_json_object();
	ph_json_set_number(lists, "deny", gate.lists[PH_LIST_DENY].rows);
	ph_json_set_number(lists, "allow", gate.lists[PH_LIST_ALLOW].rows);
	ph_json_set(json, "lists", lists);
	ph_json_set(json, "counters", ph_ctl_counters_json(copy, PH_GATE_COUNT, ph_ctl_gate_reasons, PH_GATE_COUNT));
	ph_json_set(json, "sources", talkers_json(ctl, &gate));
	if (ctl->json)
		ph_json_print(json, stdout);
	else
		print_gate(json);
	ph_json_free(json);
	return PH_CTL_DONE;
}

/* The maps */

static int gate_rows(struct ph_rows *rows)
{
	struct ph_json *row;
	struct ph_gate gate;
	int err = ph_gate_read(rows->ctl->bpf_dir, &gate);

	if (err)
		return err;
	row = ph_json_object();
	for (int i = 0; i < PH_GATE_BUDGETS; i++) {
		char key[32];

		snprintf(key, sizeof(key), "%s_interval_ns", budget_words[i]);
		ph_json_set_number(row, key, gate.budgets[i].interval_ns);
		snprintf(key, sizeof(key), "%s_tolerance_ns", budget_words[i]);
		ph_json_set_number(row, key, gate.budgets[i].tolerance_ns);
	}
	ph_json_set_number(row, "source_prefix4", bits_of(&gate.source4) - PH_ADDRESS_V4_BITS);
	ph_json_set_number(row, "source_prefix6", bits_of(&gate.source6));
	ph_json_set_number(row, "denied", gate.lists[PH_LIST_DENY].rows);
	ph_json_set_number(row, "allowed", gate.lists[PH_LIST_ALLOW].rows);
	ph_json_set_number(row, "generation", gate.generation);
	ph_rows_add(rows, row);
	return 0;
}

static void print_gate_row(const struct ph_json *rows, FILE *out)
{
	static const struct ph_column columns[] = {
		{ "connections_interval_ns", "a SYN costs, ns", PH_CELL_NUMBER },
		{ "connections_tolerance_ns", "of so many ns at once", PH_CELL_NUMBER },
		{ "hellos_interval_ns", "a ClientHello costs, ns", PH_CELL_NUMBER },
		{ "hellos_tolerance_ns", "of so many ns at once", PH_CELL_NUMBER },
		{ "handshakes_interval_ns", "a handshake initiation costs, ns", PH_CELL_NUMBER },
		{ "handshakes_tolerance_ns", "of so many ns at once", PH_CELL_NUMBER },
		{ "source_prefix4", "bits of an IPv4 source", PH_CELL_NUMBER },
		{ "source_prefix6", "bits of an IPv6 source", PH_CELL_NUMBER },
		{ "denied", "prefixes denied", PH_CELL_NUMBER },
		{ "allowed", "prefixes allowed", PH_CELL_NUMBER },
		{ "generation", "changes of the lists", PH_CELL_NUMBER },
		{ 0 },
	};

	ph_table_print_record(ph_json_at(rows, 0), columns, out);
}

static int target_row(const void *key, const void *value, void *arg)
{
	const struct ph_gate_target *target = key;
	struct ph_prefix alone = { .bits = 128, .address = target->address };
	struct ph_json *row = ph_json_object();
	char text[PH_PREFIX_TEXT_SIZE];

	(void)value;
	ph_prefix_text(text, &alone);
	*strchr(text, '/') = '\0';
	ph_json_set_string(row, "address", text);
	ph_json_set_number(row, "port", ntohs(target->port));
	ph_json_set_string(row, "protocol", target->protocol == IPPROTO_UDP ? "udp" : "tcp");
	ph_rows_add(arg, row);
	return 0;
}

static int target_rows(struct ph_rows *rows)
{
	int err = ph_gate_each(rows->ctl->bpf_dir, "ph_gate_targets", target_row, rows);

	if (rows->array)
		ph_json_sort(rows->array, "address");
	return err;
}

static const struct ph_column target_columns[] = {
	{ "address", "ADDRESS", PH_CELL_TEXT },
	{ "port", "PORT", PH_CELL_NUMBER },
	{ "protocol", "PROTOCOL", PH_CELL_TEXT },
	{ 0 },
};

static int reason_rows(struct ph_rows *rows)
{
	uint64_t counters[PH_GATE_COUNT];
	int err = ph_gate_counters(rows->ctl->bpf_dir, counters);

	for (unsigned i = 0; !err && i < PH_GATE_COUNT; i++) {
		struct ph_json *row;

		if (!counters[i])
			continue;
		row = ph_json_object();
		ph_json_set_string(row, "reason", ph_ctl_gate_reasons[i].word);
		ph_json_set_number(row, "count", counters[i]);
		ph_json_set_string(row, "text", ph_ctl_gate_reasons[i].text);
		ph_rows_add(rows, row);
	}
	return err;
}

static const struct ph_column reason_columns[] = {
	{ "reason", "REASON", PH_CELL_TEXT },
	{ "count", "PACKETS", PH_CELL_NUMBER },
	{ "text", "MEANING", PH_CELL_TEXT },
	{ 0 },
};

struct source_rows {
	struct ph_rows *rows;
	struct ph_gate gate;
	uint64_t now_ns;
};

static int source_row(const void *key, const void *value, void *arg)
{
	const struct ph_gate_source *source = value;
	const struct source_rows *sources = arg;
	struct ph_json *row = ph_json_object();
	char text[PH_PREFIX_TEXT_SIZE];

	ph_json_set_string(row, "source", source_text(text, key, &sources->gate));
	for (int i = 0; i < PH_GATE_BUDGETS; i++) {
		uint64_t interval_ns = sources->gate.budgets[i].interval_ns;
		uint64_t due_ns = source->due_ns[i] > sources->now_ns ? source->due_ns[i] - sources->now_ns : 0;

		ph_json_set_number(row, budget_words[i], interval_ns ? (due_ns + interval_ns - 1) / interval_ns : 0);
	}
	ph_json_set_number(row, "dropped", source->dropped);
	ph_rows_add(sources->rows, row);
	return 0;
}

static int source_rows(struct ph_rows *rows)
{
	struct source_rows sources = { .rows = rows, .now_ns = ph_ctl_boot_now_ns() };
	int err = ph_gate_read(rows->ctl->bpf_dir, &sources.gate);

	if (!err)
		err = ph_gate_each(rows->ctl->bpf_dir, "ph_gate_sources", source_row, &sources);
	if (rows->array)
		ph_json_sort(rows->array, "source");
	return err;
}

static const struct ph_column source_columns[] = {
	{ "source", "SOURCE", PH_CELL_TEXT },
	{ "connections", "CONNECTIONS OWED", PH_CELL_NUMBER },
	{ "hellos", "HELLOS OWED", PH_CELL_NUMBER },
	{ "handshakes", "HANDSHAKES OWED", PH_CELL_NUMBER },
	{ "dropped", "DROPPED", PH_CELL_NUMBER },
	{ 0 },
};

static int proven_row(const void *key, const void *value, void *arg)
{
	const struct source_rows *sources = arg;
	struct ph_json *row = ph_json_object();
	char text[PH_PREFIX_TEXT_SIZE];
	__u64 until_ns;

	memcpy(&until_ns, value, sizeof(until_ns));
	ph_json_set_string(row, "source", source_text(text, key, &sources->gate));
	ph_json_set_real(row, "left_s", ph_ctl_age_s(until_ns, sources->now_ns));
	ph_rows_add(sources->rows, row);
	return 0;
}

static int proven_rows(struct ph_rows *rows)
{
	struct source_rows sources = { .rows = rows, .now_ns = ph_ctl_boot_now_ns() };
	int err = ph_gate_read(rows->ctl->bpf_dir, &sources.gate);

	return err ? err : ph_gate_each(rows->ctl->bpf_dir, "ph_gate_proven", proven_row, &sources);
}

static const struct ph_column proven_columns[] = {
	{ "source", "SOURCE", PH_CELL_TEXT },
	{ "left_s", "FOR", PH_CELL_DURATION },
	{ 0 },
};

static int listed_row(const void *key, const void *value, void *arg)
{
	const struct ph_listed *listed = value;
	struct ph_json *row = ph_json_object();
	char text[PH_PREFIX_TEXT_SIZE];
	uint64_t now_ns = ph_ctl_boot_now_ns();

	ph_json_set_string(row, "prefix", ph_prefix_text(text, key));
	if (listed->until_ns)
		ph_json_set_real(row, "left_s", ph_ctl_age_s(listed->until_ns, now_ns));
	else
		ph_json_set(row, "left_s", NULL);
	ph_rows_add(arg, row);
	return 0;
}

/* A million of them are not counted one by one. */
static int listed_rows(struct ph_rows *rows, enum ph_list_kind kind, const char *map)
{
	struct ph_gate gate;
	int err;

	if (rows->array)
		return ph_gate_each(rows->ctl->bpf_dir, map, listed_row, rows);
	err = ph_gate_read(rows->ctl->bpf_dir, &gate);
	rows->count = err ? 0 : gate.lists[kind].rows;
	return err;
}

static int deny_rows(struct ph_rows *rows)
{
	return listed_rows(rows, PH_LIST_DENY, "ph_deny");
}

static int allow_rows(struct ph_rows *rows)
{
	return listed_rows(rows, PH_LIST_ALLOW, "ph_allow");
}

static const struct ph_column listed_columns[] = {
	{ "prefix", "PREFIX", PH_CELL_TEXT },
	{ "left_s", "FOR", PH_CELL_DURATION },
	{ 0 },
};

const struct ph_map_row ph_gate_maps[] = {
	{ "gate", gate_rows, NULL, print_gate_row, "what the gate is told", ABSENT },
	{ "gate_targets", target_rows, target_columns, NULL, "what the gate watches; port 0 is an address of others", ABSENT },
	{ "gate_reasons", reason_rows, reason_columns, NULL, "packets for the gateway, by what became of them", ABSENT },
	{ "gate_sources", source_rows, source_columns, NULL, "what of its budgets each source has spent", ABSENT },
	{ "gate_proven", proven_rows, proven_columns, NULL, "sources that answered a challenge", ABSENT },
	{ "gate_cache", NULL, NULL, NULL, "what the lists said lately, on each CPU", ABSENT },
	{ "deny", deny_rows, listed_columns, NULL, "prefixes that are denied", ABSENT },
	{ "allow", allow_rows, listed_columns, NULL, "prefixes that are neither denied nor budgeted", ABSENT },
};

const size_t ph_gate_map_count = sizeof(ph_gate_maps) / sizeof(ph_gate_maps[0]);
