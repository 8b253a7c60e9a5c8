// SPDX-License-Identifier: Apache-2.0
/*
 * guard show, guard watch: which CVM tries where it has no business. From the maps alone: works whether phalad runs or not.
 */
#include "phalactl_guard.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <drops.h>
#include <watch.h>

#include "phalactl_flow.h"
#include "phalactl_watch.h"

struct walk {
	const struct ph_maps *maps;
	uint64_t now_ns;
	void (*add)(struct ph_json *row, void *arg);
	void *arg;
};

static void set_address(struct ph_json *row, const char *key, __be32 address)
{
	char text[INET_ADDRSTRLEN];

	if (address)
		ph_json_set_string(row, key, inet_ntop(AF_INET, &address, text, sizeof(text)));
	else
		ph_json_set(row, key, NULL);
}

static const char *word_of(uint32_t reason, char *text, size_t size)
{
	if (reason < PH_GUARD_COUNT)
		return ph_ctl_guard_reasons[reason].word;
	snprintf(text, size, "reason-%u", reason);
	return text;
}

static int visit(__be32 address, const struct ph_guard_cvm *cvm, void *arg)
{
	const struct walk *walk = arg;
	char later[32];

	for (uint32_t reason = 0; reason < PH_GUARD_MAX; reason++) {
		const struct ph_guard_drops *drops = &cvm->drops[reason];
		struct ph_json *row;

		if (!drops->count)
			continue;
		row = ph_json_object();
		ph_ctl_set_instance(row, walk->maps, &cvm->instance);
		set_address(row, "address", address);
		ph_json_set_string(row, "reason", word_of(reason, later, sizeof(later)));
		ph_json_set_number(row, "count", drops->count);
		ph_json_set_real(row, "seen_age_s", ph_ctl_age_s(walk->now_ns, drops->seen_ns));
		walk->add(row, walk->arg);
	}
	return 0;
}

int ph_ctl_drop_rows(const struct ph_ctl *ctl, const struct ph_maps *maps,
		     void (*add)(struct ph_json *row, void *arg), void *arg)
{
	struct walk walk = { .maps = maps, .now_ns = ph_flows_now_ns(), .add = add, .arg = arg };
	struct ph_drops *drops = NULL;
	char error[PATH_MAX + 64];
	int err = ph_drops_open(ctl->bpf_dir, &drops, error, sizeof(error));

	if (!err)
		err = ph_drops_each(drops, visit, &walk);
	ph_drops_free(drops);
	return err;
}

const struct ph_column ph_ctl_drop_columns[] = {
	{ "instance", "INSTANCE", PH_CELL_TEXT },
	{ "app", "APP", PH_CELL_TEXT },
	{ "address", "ADDRESS", PH_CELL_TEXT },
	{ "reason", "REASON", PH_CELL_TEXT },
	{ "count", "PACKETS", PH_CELL_NUMBER },
	{ "seen_age_s", "LAST", PH_CELL_AGE },
	{ 0 },
};

static void add_row(struct ph_json *row, void *arg)
{
	ph_json_add(arg, row);
}

static int totals_json(const struct ph_ctl *ctl, struct ph_json **ret_totals, char *error, size_t error_size)
{
	__u64 counters[PH_GUARD_MAX];
	struct ph_drops *drops = NULL;
	int err = ph_drops_open(ctl->bpf_dir, &drops, error, error_size);

	if (!err) {
		err = ph_drops_totals(drops, counters);
		if (err)
			snprintf(error, error_size, "%s/ph_guard: %s", ctl->bpf_dir, strerror(-err));
	}
	ph_drops_free(drops);
	if (!err)
		*ret_totals = ph_ctl_counters_json(counters, PH_GUARD_MAX, ph_ctl_guard_reasons, PH_GUARD_COUNT);
	return err;
}

static void print_show(const struct ph_json *json)
{
	const struct ph_json *cvms = ph_json_child(json, "cvms");

	ph_ctl_counters_print(ph_json_child(json, "totals"), ph_ctl_guard_reasons, PH_GUARD_COUNT, "TUNNEL PACKETS",
			      stdout);
	if (!ph_json_count(cvms)) {
		printf("nothing of a CVM's was dropped\n");
		return;
	}
	printf("\n");
	ph_table_print(cvms, ph_ctl_drop_columns, stdout);
}

int ph_ctl_guard_show(const struct ph_ctl *ctl)
{
	struct ph_json *json, *cvms, *totals;
	struct ph_maps *maps = NULL;
	char error[PATH_MAX + 64];
	int status, err;

	status = ph_ctl_maps_open(ctl, &maps);
	if (status)
		return status;
	if (totals_json(ctl, &totals, error, sizeof(error))) {
		ph_maps_free(maps);
		return ph_ctl_fail("%s", error);
	}
	json = ph_json_object();
	cvms = ph_json_array();
	err = ph_ctl_drop_rows(ctl, maps, add_row, cvms);
	ph_json_sort(cvms, "address");
	ph_json_set(json, "totals", totals);
	ph_json_set(json, "cvms", cvms);
	if (err)
		status = ph_ctl_fail("%s/ph_guard_cvms: %s", ctl->bpf_dir, strerror(-err));
	else if (ctl->json)
		ph_json_print(json, stdout);
	else
		print_show(json);
	ph_json_free(json);
	ph_maps_free(maps);
	return status;
}

/* "tcp", "udp", "icmp", or the number; with Ethernet's of what is not IPv4. */
static const char *protocol_text(const struct ph_guard_event *event, char *text, size_t size)
{
	if (ntohs(event->ethertype) != 0x0800)
		snprintf(text, size, "ethertype-%04x", ntohs(event->ethertype));
	else if (event->protocol == IPPROTO_TCP || event->protocol == IPPROTO_UDP || event->protocol == IPPROTO_ICMP)
		snprintf(text, size, "%s", event->protocol == IPPROTO_TCP ? "tcp" :
					   event->protocol == IPPROTO_UDP ? "udp" : "icmp");
	else
		snprintf(text, size, "protocol-%u", event->protocol);
	return text;
}

static struct ph_json *event_json(const struct ph_maps *maps, const struct ph_guard_event *event)
{
	struct ph_json *json = ph_json_object();
	char text[32];

	ph_json_set_real(json, "time", ph_ctl_unix_s(event->now_ns));
	ph_ctl_set_instance(json, maps, &event->instance);
	set_address(json, "from", event->from);
	set_address(json, "to", event->to);
	ph_json_set_string(json, "protocol", protocol_text(event, text, sizeof(text)));
	if (event->from_port || event->to_port) {
		ph_json_set_number(json, "from_port", ntohs(event->from_port));
		ph_json_set_number(json, "to_port", ntohs(event->to_port));
	}
	if (event->protocol == IPPROTO_TCP)
		ph_json_set_number(json, "flags", event->detail);
	if (event->protocol == IPPROTO_ICMP)
		ph_json_set_number(json, "type", event->detail);
	ph_json_set_number(json, "bytes", event->len);
	ph_json_set_string(json, "reason", word_of(event->reason, text, sizeof(text)));
	ph_json_set_number(json, "count", event->count);
	return json;
}

static void print_ports(const struct ph_json *json, const char *from, const char *key)
{
	printf(" %s", ph_json_string(json, from, "-"));
	if (ph_json_has(json, key))
		printf(":%.0f", ph_json_number(json, key, 0));
}

static void print_event(const struct ph_json *json)
{
	char clock[32];

	printf("%s %s/%s %s", ph_ctl_clock(clock, sizeof(clock), ph_json_number(json, "time", 0)),
	       ph_json_string(json, "app", "-"), ph_json_string(json, "instance", "-"),
	       ph_json_string(json, "protocol", ""));
	print_ports(json, "from", "from_port");
	printf(" >");
	print_ports(json, "to", "to_port");
	if (ph_json_has(json, "flags"))
		printf(" flags %02x", (unsigned)ph_json_number(json, "flags", 0));
	if (ph_json_has(json, "type"))
		printf(" type %.0f", ph_json_number(json, "type", 0));
	printf(" %.0f bytes: %s, %.0f so far\n", ph_json_number(json, "bytes", 0), ph_json_string(json, "reason", "-"),
	       ph_json_number(json, "count", 0));
}

static struct ph_json *show_event(const void *event, const struct ph_maps *maps)
{
	return event_json(maps, event);
}

int ph_ctl_guard_watch(const struct ph_ctl *ctl)
{
	static const struct ph_ctl_watching guard = { PH_WATCH_GUARD, show_event, print_event };

	return ph_ctl_watch(ctl, &guard);
}
