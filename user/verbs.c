// SPDX-License-Identifier: Apache-2.0
#include "verbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "key.h"

#define NS_PER_S 1000000000ULL
#define ROWS_PER_TURN 1024			/* of a list: some 300 KiB, made in about 10 ms */

_Static_assert(PH_CONTROL_LINE_MAX == PH_SERVER_LINE_MAX, "a request is a line");

/* Consumes @line; NULL is an answer that there was no memory for. */
static void reply(struct ph_client *client, char *line)
{
	static const char no_memory[] = "{\"ok\":false,\"code\":\"ENOMEM\",\"error\":\"out of memory\"}\n";

	ph_client_send(client, line ? line : no_memory, line ? strlen(line) : sizeof(no_memory) - 1);
	free(line);
	ph_client_done(client);
}

static uint64_t boot_now_ns(void)
{
	struct ph_clocks now;

	ph_clocks_read(&now);
	return now.boot_ns;
}

static struct ph_control_cvm describe(const struct ph_keeper *keeper, const struct ph_roster_entry *entry)
{
	const struct ph_instance *instance = &keeper->maps->instances[entry->cvm.slot];
	struct ph_control_cvm cvm = {
		.entry = entry,
		.health = ph_keeper_health(keeper, &entry->cvm),
		.handshake_age_s = -1,
	};
	uint64_t now_ns = boot_now_ns(), seen_ns = instance->handshake_ns;

	if (instance->generation == entry->cvm.generation && seen_ns)
		cvm.handshake_age_s = now_ns > seen_ns ? (now_ns - seen_ns) / NS_PER_S : 0;
	return cvm;
}

/* As the roster has it; a row that it could not take is shown as the registry has it. */
static struct ph_control_cvm describe_row(const struct ph_keeper *keeper, const struct ph_cvm *row,
					  struct ph_roster_entry *spare)
{
	const struct ph_roster_entry *entry = ph_roster_at(keeper->roster, row->slot);

	if (entry && entry->cvm.generation == row->generation)
		return describe(keeper, entry);
	memset(spare, 0, sizeof(*spare));
	spare->cvm = *row;
	return describe(keeper, spare);
}

static void add(struct ph_client *client, const struct ph_control_request *request, struct ph_keeper *keeper)
{
	struct ph_roster_entry spare;
	struct ph_control_cvm cvm;
	uint8_t key[PH_KEY_LEN];
	struct ph_cvm row;
	char error[256];
	int err;

	err = ph_key_decode(request->public_key, key);
	if (err)
		snprintf(error, sizeof(error), "public_key is not a WireGuard key: 44 characters of base64");
	else
		err = ph_keeper_add(keeper, request->app, request->instance, key, &row, error, sizeof(error));
	if (err) {
		reply(client, ph_control_error(err, error));
		return;
	}
	cvm = describe_row(keeper, &row, &spare);
	reply(client, ph_control_added(&cvm, &keeper->config->tunnel, ph_device_state(keeper->device)));
}

static void show(struct ph_client *client, const struct ph_control_request *request, struct ph_keeper *keeper)
{
	struct ph_roster_entry spare;
	struct ph_control_cvm cvm;
	struct ph_cvm row;
	char error[256];
	int err = ph_keeper_find(keeper, request->instance, &row, error, sizeof(error));

	if (err) {
		reply(client, ph_control_error(err, error));
		return;
	}
	cvm = describe_row(keeper, &row, &spare);
	reply(client, ph_control_cvm(&cvm));
}

static void drain(struct ph_client *client, const struct ph_control_request *request, struct ph_keeper *keeper)
{
	struct ph_roster_entry spare;
	struct ph_control_cvm cvm;
	struct ph_cvm row;
	char error[256];
	int err = ph_keeper_drain(keeper, request->instance, request->drain, &row, error, sizeof(error));

	if (err) {
		reply(client, ph_control_error(err, error));
		return;
	}
	cvm = describe_row(keeper, &row, &spare);
	reply(client, ph_control_cvm(&cvm));
}

struct removal {
	struct ph_client *client;
	char instance[PH_ID_SIZE];
};

static void removed(const struct ph_message *message, const struct ph_fanout_result *result, void *arg)
{
	struct removal *removal = arg;
	char names[1024], error[1280];

	if (result->silent || result->failed) {
		snprintf(error, sizeof(error),
			 "%s is removed, but not all of its connections may have ended: no answer from %s",
			 removal->instance, ph_fanout_names(result->silent | result->failed, names, sizeof(names)));
		reply(removal->client, ph_control_error(-ETIMEDOUT, error));
	} else {
		reply(removal->client, ph_control_removed(removal->instance, message->count + result->count));
	}
	free(removal);
}

static void begin_removal(struct ph_client *client, const struct ph_control_request *request, struct ph_keeper *keeper)
{
	struct removal *removal = calloc(1, sizeof(*removal));
	char error[256] = "out of memory";
	int err = -ENOMEM;

	if (removal) {
		removal->client = client;
		memcpy(removal->instance, request->instance, sizeof(removal->instance));
		err = ph_keeper_remove(keeper, request->instance, removed, removal, error, sizeof(error));
	}
	if (err) {
		free(removal);
		reply(client, ph_control_error(err, error));
	}
}

static void kill_flow(struct ph_client *client, const struct ph_control_request *request, struct ph_keeper *keeper)
{
	char error[256];
	int err = ph_keeper_end_flow(keeper, request->flow, request->generation, error, sizeof(error));

	reply(client, err ? ph_control_error(err, error) : ph_control_killed(1));
}

static void set_app(struct ph_client *client, const struct ph_control_request *request, struct ph_keeper *keeper)
{
	char error[256];
	int err = ph_keeper_set_app(keeper, request->app, request->has_idle_ms ? &request->idle_ms : NULL,
				    request->has_flow_limit ? &request->flow_limit : NULL, error, sizeof(error));

	reply(client, err ? ph_control_error(err, error) : ph_control_app(request->app));
}

/* Whom to list, in order; who is gone by the time of the row is left out. */
struct listing {
	struct ph_keeper *keeper;
	uint32_t count, next;
	bool comma;
	struct ph_ref refs[];
};

static int collect(const struct ph_cvm *cvm, void *arg)
{
	struct listing *listing = arg;

	if (listing->next == listing->count)
		return -EAGAIN;
	listing->refs[listing->next++] = (struct ph_ref){ .slot = cvm->slot, .generation = cvm->generation };
	return 0;
}

static void begin_list(struct ph_client *client, struct ph_keeper *keeper)
{
	uint32_t count = ph_roster_count(keeper->roster);
	struct listing *listing = calloc(1, sizeof(*listing) + count * sizeof(listing->refs[0]));
	int err;

	if (!listing) {
		reply(client, NULL);
		return;
	}
	listing->keeper = keeper;
	listing->count = count;
	err = ph_registry_each(keeper->registry, collect, listing);
	if (err && err != -EAGAIN) {
		free(listing);
		reply(client, ph_control_error(err, "the registry cannot be read"));
		return;
	}
	listing->count = listing->next;
	listing->next = 0;
	ph_client_send(client, PH_CONTROL_LIST_BEGIN, strlen(PH_CONTROL_LIST_BEGIN));
	ph_client_more(client, listing);
}

static void more(struct ph_client *client, void *data, void *arg)
{
	struct listing *listing = data;
	struct ph_roster *roster = listing->keeper->roster;
	uint32_t stop = listing->next + ROWS_PER_TURN;

	(void)arg;
	for (; listing->next < listing->count && listing->next < stop; listing->next++) {
		const struct ph_roster_entry *entry = ph_roster_at(roster, listing->refs[listing->next].slot);
		struct ph_control_cvm cvm;
		char *row;

		if (!entry || entry->cvm.generation != listing->refs[listing->next].generation)
			continue;
		cvm = describe(listing->keeper, entry);
		row = ph_control_list_row(&cvm);
		if (!row) {
			ph_client_close(client);
			return;
		}
		if (listing->comma)
			ph_client_send(client, ",", 1);
		listing->comma = true;
		ph_client_send(client, row, strlen(row));
		free(row);
	}
	if (listing->next < listing->count)
		return;
	ph_client_send(client, PH_CONTROL_LIST_END, strlen(PH_CONTROL_LIST_END));
	ph_client_done(client);
}

static void answer_status(struct ph_client *client, const struct ph_verbs *verbs)
{
	const struct ph_keeper *keeper = verbs->keeper;
	struct ph_gates_row gate[PH_GATES_ROWS];
	__u64 guard[PH_GUARD_MAX];
	struct ph_control_status status = {
		.now_ns = boot_now_ns(),
		.started_ns = verbs->started_ns,
		.tunnel = &keeper->config->tunnel,
		.device = ph_device_state(keeper->device),
		.maps = keeper->maps,
		.cvms = ph_roster_count(keeper->roster),
		.apps = keeper->apps,
		.gate = gate,
		.gate_rows = ph_gates_rows(keeper->gates, gate),
		.trouble = keeper->trouble,
		.holder = verbs->holder,
	};

	if (keeper->drops && !ph_drops_totals(keeper->drops, guard))
		status.guard = guard;
	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX; slot++) {
		const struct ph_roster_entry *entry = ph_roster_at(keeper->roster, slot);

		if (!entry)
			continue;
		status.healthy += ph_keeper_health(keeper, &entry->cvm) == PH_HEALTH_OK;
		status.draining += entry->cvm.draining;
	}
	reply(client, ph_control_status(&status));
}

static void handle_request(struct ph_client *client, const char *line, size_t len, void *arg)
{
	struct ph_verbs *verbs = arg;
	struct ph_control_request request;
	char error[256];
	int err = ph_control_parse(line, len, &request, error, sizeof(error));

	if (err) {
		reply(client, ph_control_error(err, error));
		return;
	}
	switch (request.verb) {
	case PH_CONTROL_STATUS:
		answer_status(client, verbs);
		break;
	case PH_CONTROL_CVM_ADD:
		add(client, &request, verbs->keeper);
		break;
	case PH_CONTROL_CVM_LIST:
		begin_list(client, verbs->keeper);
		break;
	case PH_CONTROL_CVM_SHOW:
		show(client, &request, verbs->keeper);
		break;
	case PH_CONTROL_CVM_REMOVE:
		begin_removal(client, &request, verbs->keeper);
		break;
	case PH_CONTROL_CVM_DRAIN:
		drain(client, &request, verbs->keeper);
		break;
	case PH_CONTROL_APP_SET:
		set_app(client, &request, verbs->keeper);
		break;
	case PH_CONTROL_FLOW_KILL:
		kill_flow(client, &request, verbs->keeper);
		break;
	}
}

static void handle_too_long(struct ph_client *client, void *arg)
{
	char error[64];

	(void)arg;
	snprintf(error, sizeof(error), "a request is at most %d bytes", PH_CONTROL_LINE_MAX);
	reply(client, ph_control_error(-EMSGSIZE, error));
}

const struct ph_server_calls ph_verbs_calls = {
	.request = handle_request,
	.too_long = handle_too_long,
	.more = more,
};
