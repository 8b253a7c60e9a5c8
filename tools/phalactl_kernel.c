// SPDX-License-Identifier: Apache-2.0
/*
 * What several verbs say of the kernel path: flows in words, and whether new ones may come.
 */
#include "phalactl_flow.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <string.h>

#include <steer.h>

static const char *const state_words[PH_CTL_FLOW_STATES] = {
	[PH_FLOW_FREE] = "free",
	[PH_FLOW_COLLECTING] = "collecting",
	[PH_FLOW_BINDING] = "binding",
	[PH_FLOW_SPLICED] = "spliced",
	[PH_FLOW_ENDED] = "ended",
	[PH_FLOW_KILLED] = "killed",
	[PH_FLOW_DECLINED] = "declined",
};

const struct ph_column ph_ctl_flow_columns[] = {
	{ "flow", "FLOW", PH_CELL_TEXT },
	{ "client", "CLIENT", PH_CELL_TEXT },
	{ "gateway", "GATEWAY", PH_CELL_TEXT },
	{ "app", "APP", PH_CELL_TEXT },
	{ "instance", "INSTANCE", PH_CELL_TEXT },
	{ "port", "PORT", PH_CELL_NUMBER },
	{ "state", "STATE", PH_CELL_TEXT },
	{ "age_s", "AGE", PH_CELL_DURATION },
	{ "idle_s", "IDLE", PH_CELL_DURATION },
	{ "bytes_from_client", "FROM CLIENT", PH_CELL_BYTES },
	{ "packets_from_client", "PACKETS", PH_CELL_NUMBER },
	{ "bytes_from_cvm", "FROM CVM", PH_CELL_BYTES },
	{ "packets_from_cvm", "PACKETS", PH_CELL_NUMBER },
	{ "path", "PATH", PH_CELL_TEXT },
	{ "reason", "REASON", PH_CELL_TEXT },
	{ 0 },
};

static int keep_domain(const struct ph_domain_key *key, uint32_t index, void *arg)
{
	struct ph_ctl_view *view = arg;

	if (index < PH_DOMAINS_MAX)
		snprintf(view->domains[index], sizeof(view->domains[index]), "%.*s", PH_NAME_SIZE - 1, key->name);
	return 0;
}

int ph_ctl_view_open(const struct ph_ctl *ctl, bool flows, struct ph_ctl_view *ret_view)
{
	char error[512];
	int status;

	memset(ret_view, 0, sizeof(*ret_view));
	status = ph_ctl_maps_open(ctl, &ret_view->maps);
	if (status)
		return status;
	if (flows && ph_flows_open(ctl->bpf_dir, &ret_view->flows, error, sizeof(error))) {
		ph_ctl_view_close(ret_view);
		return ph_ctl_fail("%s", error);
	}
	ph_maps_each_domain(ret_view->maps, keep_domain, ret_view);
	return PH_CTL_DONE;
}

void ph_ctl_view_close(struct ph_ctl_view *view)
{
	ph_flows_free(view->flows);
	ph_maps_free(view->maps);
}

const char *ph_ctl_flow_state(uint32_t state)
{
	return state < PH_CTL_FLOW_STATES ? state_words[state] : "unknown";
}

const char *ph_ctl_reason_word(uint32_t reason)
{
	return reason && reason < PH_REASON_COUNT ? ph_ctl_reasons[reason].word : NULL;
}

const char *ph_ctl_endpoint(char text[PH_CTL_ENDPOINT_SIZE], __be32 address, __be16 port)
{
	char host[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &address, host, sizeof(host));
	snprintf(text, PH_CTL_ENDPOINT_SIZE, "%s:%u", host, ntohs(port));
	return text;
}

void ph_ctl_set_instance(struct ph_json *row, const struct ph_maps *maps, const struct ph_ref *ref)
{
	struct ph_instance instance;
	bool known = ref->generation && ph_ctl_instance(maps, ref, &instance);

	ph_json_set_string(row, "app", known ? instance.app_id : NULL);
	ph_json_set_string(row, "instance", known ? instance.instance_id : NULL);
}

/* The name as it is plainest; the client may have written its port or its case otherwise. */
static void set_name(struct ph_json *row, const struct ph_ctl_view *view, const struct ph_flow *flow)
{
	const char *id = ph_json_string(row, flow->splice.flags & PH_FLOW_BY_INSTANCE ? "instance" : "app", NULL);
	char name[PH_ID_SIZE + 8 + PH_NAME_SIZE];

	if (!id || flow->domain >= PH_DOMAINS_MAX || !view->domains[flow->domain][0]) {
		ph_json_set(row, "name", NULL);
		return;
	}
	snprintf(name, sizeof(name), "%s-%us.%s", id, ntohs(flow->splice.cvm_port), view->domains[flow->domain]);
	ph_json_set_string(row, "name", name);
}

static void set_age(struct ph_json *row, const char *key, uint64_t now_ns, uint64_t then_ns)
{
	if (then_ns)
		ph_json_set_real(row, key, ph_ctl_age_s(now_ns, then_ns));
	else
		ph_json_set(row, key, NULL);
}

struct ph_json *ph_ctl_flow_json(const struct ph_ctl_view *view, uint32_t slot, const struct ph_flow *flow,
				 uint64_t now_ns)
{
	uint64_t last_ns = flow->client.last_ns > flow->cvm.last_ns ? flow->client.last_ns : flow->cvm.last_ns;
	const struct ph_splice *splice = &flow->splice;
	struct ph_json *row = ph_json_object();
	char text[PH_CTL_ENDPOINT_SIZE];

	snprintf(text, sizeof(text), "%u.%u", slot, splice->generation);
	ph_json_set_string(row, "flow", text);
	ph_json_set_number(row, "slot", slot);
	ph_json_set_number(row, "generation", splice->generation);
	ph_json_set_string(row, "client", ph_ctl_endpoint(text, splice->key.client, splice->key.client_port));
	ph_json_set_string(row, "gateway", ph_ctl_endpoint(text, splice->key.gateway, splice->key.gateway_port));
	ph_ctl_set_instance(row, view->maps, &splice->instance);
	set_name(row, view, flow);
	if (splice->cvm)
		ph_json_set_number(row, "port", ntohs(splice->cvm_port));
	else
		ph_json_set(row, "port", NULL);
	ph_json_set_string(row, "state", ph_ctl_flow_state(splice->state));
	ph_json_set_string(row, "reason", ph_ctl_reason_word(flow->reason));
	set_age(row, "age_s", now_ns, flow->begun_ns);
	/* That clock is a coarse one: a packet may seem to be older than its flow. */
	set_age(row, "idle_s", now_ns, last_ns && last_ns < flow->begun_ns ? flow->begun_ns : last_ns);
	ph_json_set_number(row, "bytes_from_client", flow->client.bytes);
	ph_json_set_number(row, "packets_from_client", flow->client.packets);
	ph_json_set_number(row, "bytes_from_cvm", flow->cvm.bytes);
	ph_json_set_number(row, "packets_from_cvm", flow->cvm.packets);
	ph_json_set_string(row, "path", splice->state == PH_FLOW_DECLINED ? "relay" : "kernel");
	return row;
}

static int count_state(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	uint64_t *counts = arg;

	(void)slot;
	if (flow->splice.state < PH_CTL_FLOW_STATES)
		counts[flow->splice.state]++;
	return 0;
}

int ph_ctl_flow_counts(const struct ph_flows *flows, struct ph_json **ret_states, uint64_t *ret_used)
{
	uint64_t counts[PH_CTL_FLOW_STATES] = { 0 }, used = 0;
	int err = ph_flows_each(flows, count_state, counts);
	struct ph_json *states;

	if (err)
		return err;
	states = ph_json_object();
	for (uint32_t state = PH_FLOW_FREE + 1; state < PH_CTL_FLOW_STATES; state++) {
		ph_json_set_number(states, state_words[state], counts[state]);
		used += counts[state];
	}
	*ret_states = states;
	*ret_used = used;
	return 0;
}

uint64_t ph_ctl_relayed(const struct ph_maps *maps)
{
	uint64_t now_ns = ph_ctl_boot_now_ns(), count = 0;

	/* A worker that died took its connections along, but left its count. */
	for (uint32_t i = 0; i < PH_WORKERS_MAX; i++)
		if (ph_ctl_age_s(now_ns, maps->workers[i].heartbeat_ns) <= PH_CTL_LATE_S)
			count += maps->workers[i].active;
	return count;
}

/* Names of the devices that steer is on, here: in this network namespace. @except: an ifindex that does not count, or 0. */
static struct ph_json *attached_json(uint32_t except)
{
	struct if_nameindex *devices = if_nameindex();
	struct ph_json *names = ph_json_array();

	for (struct if_nameindex *device = devices; device && device->if_index; device++)
		if (device->if_index != except && ph_steer_is_attached(device->if_index) > 0)
			ph_json_add_string(names, device->if_name);
	if (devices)
		if_freenameindex(devices);
	return names;
}

/* To a device that clients come in on: the tunnel's alone takes nothing over. */
static bool is_attached(uint32_t tunnel_ifindex)
{
	struct ph_json *names = attached_json(tunnel_ifindex);
	bool any = ph_json_count(names);

	ph_json_free(names);
	return any;
}

static bool timer_lives(const struct ph_flows *flows)
{
	struct ph_sweep sweep;

	return !ph_flows_sweep(flows, &sweep) && sweep.swept_ns &&
	       ph_ctl_age_s(ph_flows_now_ns(), sweep.swept_ns) * 1000 < PH_SWEEP_DEAD_MS;
}

static int count_flow(uint32_t slot, const struct ph_flow *flow, void *arg)
{
	(void)slot, (void)flow;
	++*(uint32_t *)arg;
	return 0;
}

static bool is_full(const struct ph_flows *flows, const struct ph_steer *steer)
{
	uint32_t used = 0;

	return steer->fresh >= steer->slots && !ph_flows_each(flows, count_flow, &used) && used >= steer->slots;
}

const char *ph_ctl_kernel_closed(const struct ph_maps *maps, const struct ph_flows *flows)
{
	const struct ph_gateway gateway = *maps->gateway;
	struct ph_steer steer;

	if (!flows)
		return "this phalad has no kernel path";
	if (ph_flows_steer(flows, &steer))
		return "ph_steer cannot be read";
	if (!(steer.flags & PH_STEER_ON))
		return "steer is switched off";
	if (!steer.slots)
		return "the tunnel's prefix has no address to spare for it";
	if (!timer_lives(flows))
		return ph_ctl_reasons[PH_REASON_DECLINED_TIMER].text;
	if (ph_gateway_is_stale(&gateway, ph_ctl_boot_now_ns()))
		return ph_ctl_reasons[PH_REASON_MANAGER_STALE].text;
	if (!gateway.tunnel_ifindex)
		return "there is no tunnel device";
	if (ph_ctl_is_down(gateway.tunnel_ifindex))
		return "the tunnel's device is down";
	if (!is_attached(gateway.tunnel_ifindex))
		return "steer is on no device of this network namespace that clients come in on";
	if (is_full(flows, &steer))
		return ph_ctl_reasons[PH_REASON_DECLINED_FULL].text;
	return NULL;
}

struct ph_json *ph_ctl_kernel_json(const struct ph_ctl *ctl, const struct ph_maps *maps)
{
	__u64 counters[PH_REASONS_MAX] = { 0 };
	struct ph_json *kernel, *states = NULL;
	struct ph_flows *flows = NULL;
	struct ph_steer steer = { 0 };
	struct ph_sweep sweep = { 0 };
	uint64_t used = 0;
	char error[512];
	const char *why;

	if (ph_flows_open(ctl->bpf_dir, &flows, error, sizeof(error)))
		return NULL;
	why = ph_ctl_kernel_closed(maps, flows);
	ph_flows_steer(flows, &steer);
	ph_flows_sweep(flows, &sweep);
	ph_flows_reasons(flows, counters);
	ph_ctl_flow_counts(flows, &states, &used);
	kernel = ph_json_object();
	ph_json_set_bool(kernel, "open", !why);
	ph_json_set_string(kernel, "text", why);
	ph_json_set(kernel, "devices", attached_json(0));
	ph_json_set_number(kernel, "slots", steer.slots);
	ph_json_set_number(kernel, "used", used);
	ph_json_set(kernel, "flows", states);
	set_age(kernel, "swept_age_s", ph_flows_now_ns(), sweep.swept_ns);
	ph_json_set_bool(kernel, "timer", timer_lives(flows));
	ph_json_set(kernel, "counters",
		    ph_ctl_counters_json(counters, PH_REASONS_MAX, ph_ctl_reasons, PH_REASON_COUNT));
	ph_flows_free(flows);
	return kernel;
}

static void print_devices(const struct ph_json *devices)
{
	for (size_t i = 0; i < ph_json_count(devices); i++)
		printf("%s%s", i ? ", " : " on ", ph_json_string_at(devices, i));
}

void ph_ctl_kernel_print(const struct ph_json *kernel)
{
	const struct ph_json *states = ph_json_child(kernel, "flows");
	const char *gap = ": ";
	char age[48];

	if (!kernel) {
		printf("kernel   this phalad has no kernel path\n");
		return;
	}
	printf("kernel   %s", ph_json_bool(kernel, "open", false) ? "open" : "closed");
	print_devices(ph_json_child(kernel, "devices"));
	if (!ph_json_bool(kernel, "open", false))
		printf(": %s", ph_json_string(kernel, "text", "?"));
	printf("\n         %.0f of %.0f flows", ph_json_number(kernel, "used", 0), ph_json_number(kernel, "slots", 0));
	for (uint32_t state = PH_FLOW_FREE + 1; state < PH_CTL_FLOW_STATES; state++) {
		if (!ph_json_number(states, state_words[state], 0))
			continue;
		printf("%s%.0f %s", gap, ph_json_number(states, state_words[state], 0), state_words[state]);
		gap = ", ";
	}
	if (ph_json_is_null(kernel, "swept_age_s"))
		printf("; the timer never ran\n");
	else
		printf("; the timer ran %s ago\n",
		       ph_table_duration(age, sizeof(age), ph_json_number(kernel, "swept_age_s", 0)));
}
