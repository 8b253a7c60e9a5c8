// SPDX-License-Identifier: Apache-2.0
/*
 * flow list, show, kill: the first two from the maps alone, so that they work whether phalad runs or not.
 */
#include "phalactl_flow.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

#include <value.h>

struct kept {
	uint32_t slot;
	struct ph_flow flow;
};

/* Flows that the filter lets through, the oldest first. */
struct list {
	const struct ph_ctl *ctl;
	const struct ph_maps *maps;
	struct kept *flows;
	size_t count, size;
};

static bool is_wanted(const struct list *list, const struct ph_flow *flow)
{
	const char *app = list->ctl->app, *id = list->ctl->instance;
	struct ph_instance instance;

	if (!app && !id)
		return true;
	return ph_ctl_instance(list->maps, &flow->splice.instance, &instance) &&
	       (!app || !strcmp(app, instance.app_id)) && (!id || !strcmp(id, instance.instance_id));
}

static int keep(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	struct list *list = arg;

	if (!is_wanted(list, flow))
		return 0;
	if (list->count == list->size) {
		size_t size = list->size ? list->size * 2 : 256;
		struct kept *grown = realloc(list->flows, size * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		list->flows = grown;
		list->size = size;
	}
	list->flows[list->count++] = (struct kept){ slot, *flow };
	return 0;
}

static int by_age(const void *a, const void *b)
{
	const struct kept *left = a, *right = b;

	return (left->flow.begun_ns > right->flow.begun_ns) - (left->flow.begun_ns < right->flow.begun_ns);
}

static struct ph_json *list_json(const struct ph_ctl *ctl, const struct ph_ctl_view *view, const struct list *list)
{
	struct ph_json *json = ph_json_object(), *rows = ph_json_array();
	uint64_t now_ns = ph_flows_now_ns();

	for (size_t i = 0; i < list->count && (!ctl->count || i < ctl->count); i++)
		ph_json_add(rows, ph_ctl_flow_json(view, list->flows[i].slot, &list->flows[i].flow, now_ns));
	ph_json_set(json, "flows", rows);
	ph_json_set_number(json, "count", list->count);
	ph_json_set_number(json, "relayed", ph_ctl_relayed(view->maps));
	return json;
}

static void print_list(const struct ph_json *json)
{
	const struct ph_json *rows = ph_json_child(json, "flows");
	double count = ph_json_number(json, "count", 0), relayed = ph_json_number(json, "relayed", 0);

	if (ph_json_count(rows)) {
		ph_table_print(rows, ph_ctl_flow_columns, stdout);
		printf("\n");
	}
	if (ph_json_count(rows) < count)
		printf("%zu of ", ph_json_count(rows));
	printf("%.0f flow%s in the kernel; workers relay %.0f connection%s\n", count, count == 1 ? "" : "s", relayed,
	       relayed == 1 ? "" : "s");
}

int ph_ctl_flow_list(const struct ph_ctl *ctl)
{
	struct list list = { .ctl = ctl };
	struct ph_ctl_view view;
	struct ph_json *json;
	int status, err;

	status = ph_ctl_view_open(ctl, true, &view);
	if (status)
		return status;
	list.maps = view.maps;
	err = ph_flows_each(view.flows, keep, &list);
	if (err) {
		status = ph_ctl_fail("%s/ph_flows: %s", ctl->bpf_dir, strerror(-err));
	} else {
		qsort(list.flows, list.count, sizeof(*list.flows), by_age);
		json = list_json(ctl, &view, &list);
		if (ctl->json)
			ph_json_print(json, stdout);
		else
			print_list(json);
		ph_json_free(json);
	}
	free(list.flows);
	ph_ctl_view_close(&view);
	return status;
}
