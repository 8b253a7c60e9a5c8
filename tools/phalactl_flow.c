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

/* The first @count of @rows, or all. Consumes @rows. */
static struct ph_json *limited(struct ph_json *rows, uint32_t count)
{
	struct ph_json *some;

	if (!count || ph_json_count(rows) <= count)
		return rows;
	some = ph_json_array();
	for (size_t i = 0; i < count; i++)
		ph_json_add_again(some, ph_json_at(rows, i));
	ph_json_free(rows);
	return some;
}

static struct ph_json *list_json(const struct ph_ctl *ctl, const struct ph_ctl_view *view, const struct list *list)
{
	struct ph_json *json = ph_json_object(), *rows = ph_json_array();
	uint64_t now_ns = ph_flows_now_ns();

	for (size_t i = 0; i < list->count && (!ctl->count || i < ctl->count); i++)
		ph_json_add(rows, ph_ctl_flow_json(view, list->flows[i].slot, &list->flows[i].flow, now_ns));
	ph_json_set(json, "flows", rows);
	ph_json_set_number(json, "count", list->count);
	ph_json_set(json, "relays", limited(ph_ctl_relays(ctl, view, NULL, 0), ctl->count));
	ph_json_set_number(json, "relayed", ph_ctl_relayed(view->maps));
	return json;
}

static void print_list(const struct ph_json *json)
{
	const struct ph_json *rows = ph_json_child(json, "flows"), *relays = ph_json_child(json, "relays");
	double count = ph_json_number(json, "count", 0), relayed = ph_json_number(json, "relayed", 0);

	if (ph_json_count(rows) + ph_json_count(relays)) {
		struct ph_json *both = ph_json_array();

		for (size_t i = 0; i < ph_json_count(rows); i++)
			ph_json_add_again(both, ph_json_at(rows, i));
		for (size_t i = 0; i < ph_json_count(relays); i++)
			ph_json_add_again(both, ph_json_at(relays, i));
		ph_table_print(both, ph_ctl_flow_columns, stdout);
		ph_json_free(both);
		printf("\n");
	}
	if (ph_json_count(rows) < count)
		printf("%zu of ", ph_json_count(rows));
	printf("%.0f flow%s in the kernel; workers relay %.0f connection%s\n", count, count == 1 ? "" : "s", relayed,
	       relayed == 1 ? "" : "s");
}

/* An id that nobody has lists nothing, as one without connections does: who mistyped it is told. */
static void say_unknown(const struct ph_maps *maps, const char *id, const char *noun, enum ph_id_kind kind)
{
	struct ph_id found;

	if (id && !ph_ctl_find_id(maps, id, kind, &found))
		ph_ctl_say("there is no %s %s", noun, id);
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
	say_unknown(view.maps, ctl->app, "app", PH_ID_APP);
	say_unknown(view.maps, ctl->instance, "instance", PH_ID_INSTANCE);
	err = ph_flows_each(view.flows, keep, &list);
	if (err) {
		status = ph_ctl_fail("%s/ph_flows: %s", ctl->bpf_dir, strerror(-err));
	} else {
		if (list.count)
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

/* "SLOT", "SLOT.GENERATION"; @ret_generation is 0 without one. Return: false when it is neither. */
static bool parse_flow(const char *text, uint32_t *ret_slot, uint32_t *ret_generation)
{
	char slot[16];
	size_t len = strcspn(text, ".");

	*ret_generation = 0;
	if (len >= sizeof(slot))
		return false;
	memcpy(slot, text, len);
	slot[len] = 0;
	return !ph_value_number(slot, 0, PH_FLOWS_MAX - 1, ret_slot) &&
	       (!text[len] || !ph_value_number(text + len + 1, 1, UINT32_MAX, ret_generation));
}

/* Whose client it is; a client's port is one flow's at one gateway address. */
struct search {
	struct sockaddr_in client;
	struct kept live, over;			/* the youngest of each */
	uint32_t live_count, over_count;
};

static void keep_younger(struct kept *kept, uint32_t *count, uint32_t slot, const struct ph_flow *flow)
{
	if (!*count || flow->begun_ns > kept->flow.begun_ns)
		*kept = (struct kept){ slot, *flow };
	++*count;
}

static int match(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	struct search *search = arg;

	if (flow->splice.key.client != search->client.sin_addr.s_addr ||
	    flow->splice.key.client_port != search->client.sin_port)
		return 0;
	if (flow->splice.state <= PH_FLOW_SPLICED)
		keep_younger(&search->live, &search->live_count, slot, flow);
	else
		keep_younger(&search->over, &search->over_count, slot, flow);
	return 0;
}

/* Return: PH_CTL_DONE, or said why not. */
static int find_client(const struct ph_ctl *ctl, const struct ph_ctl_view *view, const struct sockaddr_in *client,
		       struct kept *ret_kept)
{
	struct search search = { .client = *client };
	int err = ph_flows_each(view->flows, match, &search);

	if (err)
		return ph_ctl_fail("%s/ph_flows: %s", ctl->bpf_dir, strerror(-err));
	if (search.live_count > 1)
		return ph_ctl_fail("%s has %u flows, to several addresses of the gateway: take one of `flow list`",
				   ctl->operand, search.live_count);
	if (!search.live_count && !search.over_count)
		return ph_ctl_fail("no flow of client %s", ctl->operand);
	*ret_kept = search.live_count ? search.live : search.over;
	return PH_CTL_DONE;
}

static int find_slot(const struct ph_ctl *ctl, const struct ph_ctl_view *view, uint32_t slot, uint32_t generation,
		     struct kept *ret_kept)
{
	int err = ph_flows_get(view->flows, slot, &ret_kept->flow);

	if (err)
		return ph_ctl_fail("%s/ph_flows: %s", ctl->bpf_dir, strerror(-err));
	ret_kept->slot = slot;
	if (ret_kept->flow.splice.state == PH_FLOW_FREE ||
	    (generation && ret_kept->flow.splice.generation != generation))
		return ph_ctl_fail("there is no flow %s", ctl->operand);
	return PH_CTL_DONE;
}

static void set_flags(struct ph_json *json, uint32_t flags)
{
	static const struct {
		uint32_t flag;
		const char *word;
	} rows[] = {
		{ PH_FLOW_TIMESTAMPS, "timestamps" }, { PH_FLOW_SACK, "SACK" }, { PH_FLOW_SCALING, "window scaling" },
		{ PH_FLOW_ECN, "ECN" },
	};
	struct ph_json *options = ph_json_array();

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (flags & rows[i].flag)
			ph_json_add_string(options, rows[i].word);
	ph_json_set(json, "options", options);
	ph_json_set_bool(json, "request_sock", flags & PH_FLOW_REQUEST);
	ph_json_set_bool(json, "in_clients", flags & PH_FLOW_KEYED);
	ph_json_set_bool(json, "reset", flags & PH_FLOW_RESET);
}

/* @way: "client" or "cvm", which begins the keys. */
static void set_way(struct ph_json *json, const char *way, const struct ph_flow_way *from, uint64_t now_ns)
{
	const struct {
		const char *key;
		uint32_t value;
	} rows[] = { { "end", from->end }, { "ack", from->ack }, { "window_end", from->window_end } };
	char key[32];

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		snprintf(key, sizeof(key), "%s_%s", way, rows[i].key);
		ph_json_set_number(json, key, rows[i].value);
	}
	snprintf(key, sizeof(key), "%s_fin", way);
	if (from->has_fin)
		ph_json_set_number(json, key, from->fin);
	else
		ph_json_set(json, key, NULL);
	snprintf(key, sizeof(key), "%s_idle_s", way);
	if (from->last_ns)
		ph_json_set_real(json, key, ph_ctl_age_s(now_ns, from->last_ns));
	else
		ph_json_set(json, key, NULL);
}

static void set_splice(struct ph_json *json, const struct ph_splice *splice)
{
	char text[PH_CTL_ENDPOINT_SIZE];

	ph_json_set_string(json, "cvm", ph_ctl_endpoint(text, splice->cvm, splice->cvm_port));
	ph_json_set_number(json, "instance_slot", splice->instance.slot);
	ph_json_set_number(json, "instance_generation", splice->instance.generation);
	ph_json_set_number(json, "cvm_mtu", splice->cvm_mtu);
	ph_json_set_number(json, "client_scale", splice->client_scale);
	ph_json_set_number(json, "cvm_scale", splice->cvm_scale);
	ph_json_set_real(json, "shift_to_client", splice->shift_to_client);
	ph_json_set_real(json, "shift_to_cvm", splice->shift_to_cvm);
	ph_json_set_number(json, "seq_to_cvm", splice->seq_to_cvm);
	ph_json_set_number(json, "seq_to_client", splice->seq_to_client);
	ph_json_set_number(json, "time_to_cvm", splice->time_to_cvm);
	ph_json_set_number(json, "time_to_client", splice->time_to_client);
}

static void set_hello(struct ph_json *json, const struct ph_ctl_view *view, const struct ph_flow *flow)
{
	struct ph_flows_hello hello;
	struct ph_json *held;

	if (!flow->hello || ph_flows_hello(view->flows, flow->hello - 1, &hello))
		return;
	held = ph_json_object();
	ph_json_set_number(held, "slot", flow->hello - 1);
	ph_json_set_number(held, "bytes", hello.bytes);
	ph_json_set_number(held, "packets", hello.packets);
	ph_json_set_number(held, "pieces", hello.pieces);
	ph_json_set_number(held, "tries", hello.tries);
	ph_json_set(json, "hello", held);
}

static struct ph_json *show_json(const struct ph_ctl_view *view, const struct kept *kept)
{
	const struct ph_flow *flow = &kept->flow;
	uint64_t now_ns = ph_flows_now_ns();
	struct ph_json *json = ph_ctl_flow_json(view, kept->slot, flow, now_ns);
	char text[PH_CTL_ENDPOINT_SIZE], name[IF_NAMESIZE];

	ph_json_set_string(json, "source", ph_ctl_endpoint(text, flow->splice.source, flow->splice.source_port));
	ph_json_set_number(json, "nic_ifindex", flow->splice.nic);
	ph_json_set_string(json, "nic", if_indextoname(flow->splice.nic, name));
	if (flow->ended_ns) {
		ph_json_set_real(json, "ended_age_s", ph_ctl_age_s(now_ns, flow->ended_ns));
		ph_json_set_string(json, "reason_text", flow->reason < PH_REASON_COUNT ?
							ph_ctl_reasons[flow->reason].text : NULL);
		ph_json_set_string(json, "ended_by", flow->splice.state == PH_FLOW_ENDED ?
						     flow->ended_by_cvm ? "cvm" : "client" : NULL);
	}
	set_flags(json, flow->splice.flags);
	ph_json_set_number(json, "client_isn", flow->client_isn);
	/* Once an end has reset it, that place is another number's. */
	if (flow->reason != PH_REASON_CLIENT_RESET && flow->reason != PH_REASON_CVM_RESET)
		ph_json_set_number(json, "gateway_isn", flow->gateway_isn);
	if (flow->splice.cvm)
		set_splice(json, &flow->splice);
	set_way(json, "client", &flow->client, now_ns);
	set_way(json, "cvm", &flow->cvm, now_ns);
	set_hello(json, view, flow);
	return json;
}

static void print_show(const struct ph_json *json)
{
	static const struct ph_column columns[] = {
		{ "flow", "flow", PH_CELL_TEXT },
		{ "state", "state", PH_CELL_TEXT },
		{ "path", "path", PH_CELL_TEXT },
		{ "reason", "reason", PH_CELL_TEXT },
		{ "reason_text", "that is", PH_CELL_TEXT },
		{ "ended_by", "ended by", PH_CELL_TEXT },
		{ "ended_age_s", "ended", PH_CELL_AGE },
		{ "client", "client", PH_CELL_TEXT },
		{ "gateway", "gateway", PH_CELL_TEXT },
		{ "nic", "came in by", PH_CELL_TEXT },
		{ "name", "name", PH_CELL_TEXT },
		{ "app", "app", PH_CELL_TEXT },
		{ "instance", "instance", PH_CELL_TEXT },
		{ "source", "source", PH_CELL_TEXT },
		{ "cvm", "CVM", PH_CELL_TEXT },
		{ "instance_slot", "instance's slot", PH_CELL_NUMBER },
		{ "instance_generation", "instance's generation", PH_CELL_NUMBER },
		{ "age_s", "age", PH_CELL_DURATION },
		{ "idle_s", "idle", PH_CELL_DURATION },
		{ "client_idle_s", "client idle", PH_CELL_DURATION },
		{ "cvm_idle_s", "CVM idle", PH_CELL_DURATION },
		{ "bytes_from_client", "from client", PH_CELL_BYTES },
		{ "packets_from_client", "packets from client", PH_CELL_NUMBER },
		{ "bytes_from_cvm", "from CVM", PH_CELL_BYTES },
		{ "packets_from_cvm", "packets from CVM", PH_CELL_NUMBER },
		{ "options", "TCP options", PH_CELL_TEXT },
		{ "cvm_mtu", "largest packet to CVM", PH_CELL_NUMBER },
		{ "client_scale", "client's window scale", PH_CELL_NUMBER },
		{ "cvm_scale", "CVM's window scale", PH_CELL_NUMBER },
		{ "shift_to_client", "windows to client, left by", PH_CELL_NUMBER },
		{ "shift_to_cvm", "windows to CVM, left by", PH_CELL_NUMBER },
		{ "seq_to_cvm", "sequence to CVM, plus", PH_CELL_NUMBER },
		{ "seq_to_client", "sequence to client, plus", PH_CELL_NUMBER },
		{ "time_to_cvm", "timestamps to CVM, plus", PH_CELL_NUMBER },
		{ "time_to_client", "timestamps to client, plus", PH_CELL_NUMBER },
		{ "client_isn", "client's ISN", PH_CELL_NUMBER },
		{ "gateway_isn", "gateway's ISN", PH_CELL_NUMBER },
		{ "client_end", "client sent to", PH_CELL_NUMBER },
		{ "client_ack", "client acknowledged to", PH_CELL_NUMBER },
		{ "client_window_end", "client allows to", PH_CELL_NUMBER },
		{ "client_fin", "client's FIN", PH_CELL_NUMBER },
		{ "cvm_end", "CVM sent to", PH_CELL_NUMBER },
		{ "cvm_ack", "CVM acknowledged to", PH_CELL_NUMBER },
		{ "cvm_window_end", "CVM allows to", PH_CELL_NUMBER },
		{ "cvm_fin", "CVM's FIN", PH_CELL_NUMBER },
		{ "request_sock", "kernel has a request sock", PH_CELL_YES_NO },
		{ "in_clients", "found by its client", PH_CELL_YES_NO },
		{ "reset", "ended by RST", PH_CELL_YES_NO },
		{ 0 },
	};
	static const struct ph_column hello_columns[] = {
		{ "bytes", "hello's bytes", PH_CELL_NUMBER },
		{ "packets", "hello's packets", PH_CELL_NUMBER },
		{ "pieces", "hello's pieces", PH_CELL_NUMBER },
		{ "tries", "instances tried", PH_CELL_NUMBER },
		{ 0 },
	};
	const struct ph_json *hello = ph_json_child(json, "hello");

	ph_table_print_record(json, columns, stdout);
	if (hello)
		ph_table_print_record(hello, hello_columns, stdout);
}

static void print_relay(const struct ph_json *json)
{
	static const struct ph_column columns[] = {
		{ "client", "client", PH_CELL_TEXT },
		{ "state", "state", PH_CELL_TEXT },
		{ "path", "path", PH_CELL_TEXT },
		{ "reason", "reason", PH_CELL_TEXT },
		{ "reason_text", "that is", PH_CELL_TEXT },
		{ "mode", "mode", PH_CELL_TEXT },
		{ "name", "name", PH_CELL_TEXT },
		{ "app", "app", PH_CELL_TEXT },
		{ "instance", "instance", PH_CELL_TEXT },
		{ "worker", "worker", PH_CELL_NUMBER },
		{ "age_s", "age", PH_CELL_DURATION },
		{ "idle_s", "idle", PH_CELL_DURATION },
		{ "bytes_from_client", "from client", PH_CELL_BYTES },
		{ "bytes_from_cvm", "from CVM", PH_CELL_BYTES },
		{ 0 },
	};

	ph_table_print_record(json, columns, stdout);
}

/* Does a worker carry a connection of this client? If so, shows it. */
static bool show_relay(const struct ph_ctl *ctl, const struct ph_ctl_view *view, const struct sockaddr_storage *client)
{
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)client;
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)client;
	struct in6_addr address = { 0 };
	struct ph_json *rows;
	bool found;

	if (client->ss_family == AF_INET6) {
		address = v6->sin6_addr;
	} else {
		address.s6_addr32[2] = htonl(0xffff);
		address.s6_addr32[3] = v4->sin_addr.s_addr;
	}
	rows = ph_ctl_relays(ctl, view, &address, ntohs(client->ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port));
	found = ph_json_count(rows);
	if (found && ctl->json)
		ph_json_print(ph_json_at(rows, 0), stdout);
	else if (found)
		print_relay(ph_json_at(rows, 0));
	ph_json_free(rows);
	return found;
}

static int usage(const char *operand, const char *wanted)
{
	ph_ctl_say("%s: not %s", operand, wanted);
	return PH_CTL_USAGE;
}

int ph_ctl_flow_show(const struct ph_ctl *ctl)
{
	uint32_t slot = 0, generation = 0;
	struct sockaddr_storage client;
	struct ph_ctl_view view;
	struct ph_json *json;
	struct kept kept;
	bool by_client;
	socklen_t len;
	int status;

	by_client = !ph_value_socket(ctl->operand, &client, &len);
	if (!by_client && !parse_flow(ctl->operand, &slot, &generation))
		return usage(ctl->operand, "a flow (SLOT or SLOT.GENERATION) or a client (192.0.2.2:40000)");
	status = ph_ctl_view_open(ctl, true, &view);
	if (status)
		return status;
	/* A worker's first: of its client there may be a declined flow too. */
	if (by_client && show_relay(ctl, &view, &client)) {
		ph_ctl_view_close(&view);
		return PH_CTL_DONE;
	}
	if (by_client && client.ss_family == AF_INET6)
		status = ph_ctl_fail("no connection of client %s", ctl->operand);
	else if (by_client)
		status = find_client(ctl, &view, (const struct sockaddr_in *)&client, &kept);
	else
		status = find_slot(ctl, &view, slot, generation, &kept);
	if (!status) {
		json = show_json(&view, &kept);
		if (ctl->json)
			ph_json_print(json, stdout);
		else
			print_show(json);
		ph_json_free(json);
	}
	ph_ctl_view_close(&view);
	return status;
}

/* By the manager: to tell both ends takes the programs, which it has. */
int ph_ctl_flow_kill(const struct ph_ctl *ctl)
{
	struct ph_json *request, *reply, *result;
	uint32_t slot, generation;
	double killed;
	int status;

	if (!parse_flow(ctl->operand, &slot, &generation) || !generation)
		return usage(ctl->operand, "SLOT.GENERATION, as in `flow list`");
	request = ph_ctl_verb("flow kill");
	ph_json_set_number(request, "flow", slot);
	ph_json_set_number(request, "generation", generation);
	status = ph_ctl_request(ctl, request, &reply);
	if (status)
		return status;
	result = ph_json_child(reply, "result");
	killed = ph_json_number(result, "killed", 0);
	if (ctl->json)
		ph_json_print(result, stdout);
	if (killed < 1)
		status = ph_ctl_fail("flow %s is over, or was never spliced", ctl->operand);
	else if (!ctl->json)
		ph_ctl_say("flow %s is ended, with RST at both ends", ctl->operand);
	ph_json_free(reply);
	return status;
}
