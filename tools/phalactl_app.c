// SPDX-License-Identifier: Apache-2.0
/*
 * Apps: what the maps tell of them, and what an operator sets for one.
 */
#include "phalactl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <value.h>

/* "idle_s" and "flow_limit" are null where the gateway's hold; no limit at all is 0. */
static void set_settings(struct ph_json *row, const struct ph_id *app)
{
	if (app->idle_ms)
		ph_json_set_real(row, "idle_s", app->idle_ms / 1e3);
	else
		ph_json_set(row, "idle_s", NULL);
	if (app->flow_limit)
		ph_json_set_number(row, "flow_limit", app->flow_limit == PH_LIMIT_NONE ? 0 : app->flow_limit);
	else
		ph_json_set(row, "flow_limit", NULL);
}

static void set_relayed(struct ph_json *row, const struct ph_maps *maps, const char *id, const struct ph_id *app)
{
	struct ph_relayed_key key = { .kind = PH_RELAYED_APP };

	memcpy(key.id, id, strnlen(id, sizeof(key.id) - 1));
	if (ph_app_limit(app, maps->gateway->app_limit))
		ph_json_set_number(row, "relayed", ph_maps_relayed_by_all(maps, &key));
	else
		ph_json_set(row, "relayed", NULL);
}

static struct ph_json *instance_row(const struct ph_maps *maps, const struct ph_ref *ref, struct ph_load *sum)
{
	const struct ph_load load = maps->loads[ref->slot % PH_INSTANCES_MAX];
	struct ph_instance instance;
	struct ph_json *row;

	if (!ph_ctl_instance(maps, ref, &instance) || load.generation != ref->generation)
		return NULL;
	sum->active += load.active;
	sum->begun += load.begun;
	for (uint32_t i = 0; i < PH_LOAD_REASONS_MAX; i++)
		sum->reasons[i] += load.reasons[i];
	row = ph_json_object();
	ph_json_set_string(row, "instance", instance.instance_id);
	ph_json_set_number(row, "flows", load.active);
	ph_json_set_number(row, "begun", load.begun);
	ph_json_set(row, "reasons", ph_ctl_load_reasons(&load));
	return row;
}

static struct ph_json *app_json(const struct ph_maps *maps, const char *id, const struct ph_id *app)
{
	struct ph_json *row = ph_json_object(), *instances = ph_json_array(), *one;
	struct ph_load sum = { 0 };

	for (uint32_t i = 0; i < app->count && i < PH_APP_INSTANCES_MAX; i++) {
		one = instance_row(maps, &app->refs[i], &sum);
		if (one)
			ph_json_add(instances, one);
	}
	ph_json_set_string(row, "app", id);
	ph_json_set_number(row, "count", ph_json_count(instances));
	ph_json_set_number(row, "flows", sum.active);
	set_relayed(row, maps, id, app);
	set_settings(row, app);
	ph_json_set_number(row, "begun", sum.begun);
	ph_json_set(row, "reasons", ph_ctl_load_reasons(&sum));
	ph_json_set(row, "instances", instances);
	return row;
}

struct list {
	const struct ph_maps *maps;
	struct ph_json *rows;
};

static int add_app(const struct ph_id_key *key, const struct ph_id *value, void *arg)
{
	const struct list *list = arg;
	char id[PH_ID_SIZE];

	memcpy(id, key->id, sizeof(id));
	id[PH_ID_SIZE - 1] = 0;
	if (value->kind == PH_ID_APP)
		ph_json_add(list->rows, app_json(list->maps, id, value));
	return 0;
}

static const struct ph_column list_columns[] = {
	{ "app", "APP", PH_CELL_TEXT },
	{ "count", "INSTANCES", PH_CELL_NUMBER },
	{ "flows", "FLOWS", PH_CELL_NUMBER },
	{ "relayed", "RELAYED", PH_CELL_NUMBER },
	{ "flow_limit", "LIMIT", PH_CELL_NUMBER },
	{ "idle_s", "IDLE TIME-OUT", PH_CELL_DURATION },
	{ "begun", "BEGUN", PH_CELL_NUMBER },
	{ 0 },
};

int ph_ctl_app_list(const struct ph_ctl *ctl)
{
	struct list list = { 0 };
	struct ph_maps *maps;
	int status, err;

	status = ph_ctl_maps_open(ctl, &maps);
	if (status)
		return status;
	list.maps = maps;
	list.rows = ph_json_array();
	err = ph_maps_each_id(maps, add_app, &list);
	if (err) {
		status = ph_ctl_fail("%s/ph_ids: %s", ctl->bpf_dir, strerror(-err));
	} else {
		ph_json_sort(list.rows, "app");
		if (ctl->json)
			ph_json_print(list.rows, stdout);
		else if (ph_json_count(list.rows))
			ph_table_print(list.rows, list_columns, stdout);
		else
			ph_ctl_say("no app has an instance");
	}
	ph_json_free(list.rows);
	ph_maps_free(maps);
	return status;
}

static void print_app(const struct ph_json *app)
{
	static const struct ph_column columns[] = {
		{ "app", "app", PH_CELL_TEXT },
		{ "count", "instances", PH_CELL_NUMBER },
		{ "flows", "flows in the kernel", PH_CELL_NUMBER },
		{ "relayed", "relayed", PH_CELL_NUMBER },
		{ "flow_limit", "limit of its own (0: none)", PH_CELL_NUMBER },
		{ "idle_s", "idle time-out of its own", PH_CELL_DURATION },
		{ "begun", "flows begun", PH_CELL_NUMBER },
		{ 0 },
	};
	static const struct ph_column instance_columns[] = {
		{ "instance", "INSTANCE", PH_CELL_TEXT },
		{ "flows", "FLOWS", PH_CELL_NUMBER },
		{ "begun", "BEGUN", PH_CELL_NUMBER },
		{ 0 },
	};
	const struct ph_json *instances = ph_json_child(app, "instances");

	ph_table_print_record(app, columns, stdout);
	printf("\n");
	ph_table_print(instances, instance_columns, stdout);
	for (size_t i = 0; i < ph_json_count(instances); i++) {
		const struct ph_json *row = ph_json_at(instances, i), *reasons = ph_json_child(row, "reasons");

		if (!ph_json_count(reasons))
			continue;
		printf("\n");
		ph_ctl_counters_print(reasons, ph_ctl_reasons, PH_REASON_COUNT, ph_json_string(row, "instance", ""),
				      stdout);
	}
}

int ph_ctl_app_show(const struct ph_ctl *ctl)
{
	struct ph_id app = { 0 };
	struct ph_maps *maps;
	struct ph_json *json;
	int status;

	status = ph_ctl_maps_open(ctl, &maps);
	if (status)
		return status;
	if (!ph_ctl_find_id(maps, ctl->operand, PH_ID_APP, &app)) {
		status = ph_ctl_fail("there is no app %s", ctl->operand);
	} else {
		json = app_json(maps, ctl->operand, &app);
		if (ctl->json)
			ph_json_print(json, stdout);
		else
			print_app(json);
		ph_json_free(json);
	}
	ph_maps_free(maps);
	return status;
}

int ph_ctl_app_set(const struct ph_ctl *ctl)
{
	struct ph_json *request = ph_ctl_verb("app set"), *reply;
	uint32_t number = 0;
	int status;

	ph_json_set_string(request, "app", ctl->operand);
	if (ctl->idle_timeout) {
		if (!strcmp(ctl->idle_timeout, "default"))
			number = 0;
		else
			ph_value_duration(ctl->idle_timeout, PH_IDLE_MIN_MS, PH_IDLE_MAX_MS, &number);
		ph_json_set_number(request, "idle_ms", number);
	}
	if (ctl->flows) {
		number = !strcmp(ctl->flows, "none") ? PH_LIMIT_NONE : 0;
		if (!number)
			ph_value_number(ctl->flows, 1, PH_FLOW_LIMIT_MAX, &number);
		ph_json_set_number(request, "flow_limit", number);
	}
	status = ph_ctl_request(ctl, request, &reply);
	if (status)
		return status;
	if (ctl->json)
		ph_json_print(ph_json_child(reply, "result"), stdout);
	else
		ph_ctl_say("%s: set", ctl->operand);
	ph_json_free(reply);
	return PH_CTL_DONE;
}
