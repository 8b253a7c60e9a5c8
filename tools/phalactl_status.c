// SPDX-License-Identifier: Apache-2.0
/*
 * How the gateway is: what the manager says, or, when it says nothing, what the maps still tell.
 */
#include "phalactl_flow.h"

#include <string.h>

static void print_tunnel(const struct ph_json *tunnel)
{
	double port = ph_json_number(tunnel, "listen_port", 0);

	printf("tunnel   %s %s, ", ph_json_string(tunnel, "type", "?"), ph_json_string(tunnel, "interface", "?"));
	if (!ph_json_number(tunnel, "ifindex", 0))
		printf("missing");
	else
		printf("%s, MTU %.0f", ph_json_bool(tunnel, "up", false) ? "up" : "down",
		       ph_json_number(tunnel, "mtu", 0));
	printf(", address %s, CVMs in %s\n", ph_json_string(tunnel, "address", "?"),
	       ph_json_string(tunnel, "range", "?"));
	if (port)
		printf("         port %.0f, public key %s\n", port, ph_json_string(tunnel, "public_key", "?"));
}

/* A line for the devices that have it, and one for each that has trouble; none without a Nic. */
static void print_gate(const struct ph_json *rows)
{
	static const char indent[] = "         ";
	const char *head = "gate     ";
	bool any = false;

	for (size_t i = 0; i < ph_json_count(rows); i++) {
		const struct ph_json *row = ph_json_at(rows, i);
		const char *mode = ph_json_string(row, "mode", "off");

		if (!strcmp(mode, "off"))
			continue;
		printf("%s%s on %s", any ? ", " : head, mode, ph_json_string(row, "device", "?"));
		any = true;
	}
	if (any) {
		printf("\n");
		head = indent;
	}
	for (size_t i = 0; i < ph_json_count(rows); i++) {
		const struct ph_json *row = ph_json_at(rows, i);

		if (ph_json_is_null(row, "trouble"))
			continue;
		printf("%s%s: %s\n", head, ph_json_string(row, "device", "all devices"), ph_json_string(row, "trouble", "?"));
		head = indent;
	}
}

static void print_workers(const struct ph_json *workers)
{
	static const struct ph_column columns[] = {
		{ "index", "WORKER", PH_CELL_NUMBER },
		{ "pid", "PID", PH_CELL_NUMBER },
		{ "heartbeat_age_s", "HEARTBEAT", PH_CELL_AGE },
		{ "active", "CONNECTIONS", PH_CELL_NUMBER },
		{ "bytes_from_clients", "FROM CLIENTS", PH_CELL_BYTES },
		{ "bytes_from_cvms", "FROM CVMS", PH_CELL_BYTES },
		{ 0 },
	};

	if (!ph_json_count(workers))
		return;
	printf("\n");
	ph_table_print(workers, columns, stdout);
}

/* The words of reason.h are for single connections and packets; here is the sum of all workers, or of all CPUs. */
static void print_counters(const struct ph_json *counters, const struct ph_ctl_word *words, size_t word_count,
			   const char *heading)
{
	bool any = false;

	for (size_t i = 0; i < word_count; i++)
		any |= ph_json_number(counters, words[i].word, 0) > 0;
	if (!any)
		return;
	printf("\n");
	ph_ctl_counters_print(counters, words, word_count, heading, stdout);
}

/* A reason's word, as the documents have it. Return: @text or a constant. */
static const char *reason_word(uint32_t reason, char *text, size_t size)
{
	if (reason < PH_REASON_COUNT)
		return ph_ctl_reasons[reason].word;
	snprintf(text, size, "reason-%u", reason);
	return text;
}

/* What workers and the kernel path count by the same words, together. */
static struct ph_json *totals_json(const struct ph_json *counters, const struct ph_json *kernel)
{
	struct ph_json *totals = ph_json_object();
	char later[32];

	for (uint32_t reason = 0; reason < PH_REASONS_MAX; reason++) {
		const char *word = reason_word(reason, later, sizeof(later));
		double total = ph_json_number(counters, word, 0) + ph_json_number(kernel, word, 0);

		if (total > 0)
			ph_json_set_number(totals, word, (uint64_t)total);
	}
	return totals;
}

/* @maps: NULL when there are none. */
static void add_kernel(const struct ph_ctl *ctl, const struct ph_maps *maps, struct ph_json *status)
{
	struct ph_json *kernel = maps ? ph_ctl_kernel_json(ctl, maps) : NULL;

	ph_json_set(status, "kernel", kernel);
	if (kernel)
		ph_json_set(status, "totals",
			    totals_json(ph_json_child(status, "counters"), ph_json_child(kernel, "counters")));
}

/* With the kernel path's part beside the sum. */
static void print_totals(const struct ph_json *status)
{
	static const struct ph_column columns[] = {
		{ "reason", "CONNECTIONS", PH_CELL_TEXT },
		{ "count", "COUNT", PH_CELL_NUMBER },
		{ "kernel", "KERNEL", PH_CELL_NUMBER },
		{ "text", "MEANING", PH_CELL_TEXT },
		{ 0 },
	};
	const struct ph_json *totals = ph_json_child(status, "totals");
	const struct ph_json *kernel = ph_json_child(ph_json_child(status, "kernel"), "counters");
	struct ph_json *rows = ph_json_array();
	char later[32];

	for (uint32_t reason = 0; reason < PH_REASONS_MAX; reason++) {
		const char *word = reason_word(reason, later, sizeof(later));
		uint64_t total = (uint64_t)ph_json_number(totals, word, 0);
		struct ph_json *row;

		if (!total)
			continue;
		row = ph_json_object();
		ph_json_set_string(row, "reason", word);
		ph_json_set_number(row, "count", total);
		ph_json_set_number(row, "kernel", (uint64_t)ph_json_number(kernel, word, 0));
		ph_json_set_string(row, "text", reason < PH_REASON_COUNT ? ph_ctl_reasons[reason].text : NULL);
		ph_json_add(rows, row);
	}
	if (ph_json_count(rows)) {
		printf("\n");
		ph_table_print(rows, columns, stdout);
	}
	ph_json_free(rows);
}

static void print_connections(const struct ph_json *status)
{
	if (ph_json_child(status, "kernel"))
		print_totals(status);
	else
		print_counters(ph_json_child(status, "counters"), ph_ctl_reasons, PH_REASON_COUNT, "CONNECTIONS");
}

static void print_status(const struct ph_json *status)
{
	const char *trouble = ph_json_string(status, "trouble", NULL);
	char uptime[48];

	ph_table_duration(uptime, sizeof(uptime), ph_json_number(status, "uptime_s", 0));
	printf("phalad   %s, manager %.0f, up for %s\n", ph_json_string(status, "version", "?"),
	       ph_json_number(status, "pid", 0), uptime);
	if (ph_json_number(status, "restarts", 0))
		printf("restarts %.0f of manager and workers, %.0f of these because they hung\n",
		       ph_json_number(status, "restarts", 0), ph_json_number(status, "hung", 0));
	print_tunnel(ph_json_child(status, "tunnel"));
	printf("CVMs     %.0f of %.0f apps: %.0f healthy, %.0f draining\n", ph_json_number(status, "cvms", 0),
	       ph_json_number(status, "apps", 0), ph_json_number(status, "healthy", 0),
	       ph_json_number(status, "draining", 0));
	ph_ctl_kernel_print(ph_json_child(status, "kernel"));
	print_gate(ph_json_child(status, "gate"));
	if (trouble)
		printf("trouble  %s\n", trouble);
	print_workers(ph_json_child(status, "workers"));
	print_connections(status);
	print_counters(ph_json_child(status, "guard"), ph_ctl_guard_reasons, PH_GUARD_COUNT, "TUNNEL PACKETS");
}

static struct ph_json *status_of_maps(const struct ph_maps *maps)
{
	struct ph_json *status = ph_json_object(), *workers = ph_json_array();
	__u64 sums[PH_REASONS_MAX] = { 0 };

	for (uint32_t i = 0; i < PH_WORKERS_MAX; i++) {
		struct ph_json *row = ph_ctl_worker_json(maps, i, "index");

		if (row)
			ph_json_add(workers, row);
		for (uint32_t reason = 0; reason < PH_REASONS_MAX; reason++)
			sums[reason] += maps->workers[i].counters[reason];
	}
	ph_json_set(status, "pid", NULL);
	if (maps->gateway->health_now_ns)
		ph_json_set_real(status, "health_age_s",
				 ph_ctl_age_s(ph_ctl_boot_now_ns(), maps->gateway->health_now_ns));
	else
		ph_json_set(status, "health_age_s", NULL);
	ph_json_set_bool(status, "stale", ph_gateway_is_stale(maps->gateway, ph_ctl_boot_now_ns()));
	ph_json_set(status, "workers", workers);
	ph_json_set(status, "counters", ph_ctl_counters_json(sums, PH_REASONS_MAX, ph_ctl_reasons, PH_REASON_COUNT));
	return status;
}

/* The manager did not answer, which was said. Without maps there is nothing to add. */
static void show_maps(const struct ph_ctl *ctl)
{
	struct ph_maps *maps = NULL;
	struct ph_json *status;
	char error[512], age[48];

	if (ph_maps_open(ctl->bpf_dir, -1, &maps, error, sizeof(error)))
		return;
	status = status_of_maps(maps);
	add_kernel(ctl, maps, status);
	if (ctl->json) {
		ph_json_print(status, stdout);
	} else {
		printf("phalad   no manager answers");
		if (!ph_json_is_null(status, "health_age_s"))
			printf("; health was refreshed %s ago%s",
			       ph_table_duration(age, sizeof(age), ph_json_number(status, "health_age_s", 0)),
			       ph_json_bool(status, "stale", true) ? ", too long to route by it" : "");
		printf("\n");
		ph_ctl_kernel_print(ph_json_child(status, "kernel"));
		print_workers(ph_json_child(status, "workers"));
		print_connections(status);
	}
	ph_json_free(status);
	ph_maps_free(maps);
}

int ph_ctl_status(const struct ph_ctl *ctl)
{
	struct ph_maps *maps = NULL;
	struct ph_json *reply;
	char error[512];
	int status;

	status = ph_ctl_request(ctl, ph_ctl_verb("status"), &reply);
	if (status) {
		show_maps(ctl);
		return status;
	}
	ph_maps_open(ctl->bpf_dir, -1, &maps, error, sizeof(error));
	add_kernel(ctl, maps, ph_json_child(reply, "result"));
	if (ctl->json)
		ph_json_print(ph_json_child(reply, "result"), stdout);
	else
		print_status(ph_json_child(reply, "result"));
	ph_json_free(reply);
	ph_maps_free(maps);
	return PH_CTL_DONE;
}
