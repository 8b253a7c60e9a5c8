// SPDX-License-Identifier: Apache-2.0
/*
 * Connections that workers carry, as their ledgers have them: read as the maps are, whether the manager lives or not.
 */
#include "phalactl_flow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <ledger.h>

static const char *const state_words[PH_LEDGER_STATES] = {
	[PH_LEDGER_HELLO] = "hello",
	[PH_LEDGER_DIALING] = "dialing",
	[PH_LEDGER_HANDSHAKE] = "handshake",
	[PH_LEDGER_RELAYING] = "relaying",
	[PH_LEDGER_REFUSED] = "refused",
};

static const char *mode_suffix(uint8_t mode)
{
	return mode == PH_MODE_PASSTHROUGH ? "s" : mode == PH_MODE_GRPC ? "g" : "";
}

static void set_endpoint(struct ph_json *json, const char *key, const struct in6_addr *address, uint16_t port)
{
	char host[INET6_ADDRSTRLEN], text[INET6_ADDRSTRLEN + 16];

	ph_ctl_address(host, address);
	snprintf(text, sizeof(text), strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, port);
	ph_json_set_string(json, key, text);
}

static void set_name(struct ph_json *json, const struct ph_ctl_view *view, const struct ph_ledger_row *row)
{
	const char *id = ph_json_string(json, row->by_instance ? "instance" : "app", NULL);
	const char *domain = row->domain < PH_DOMAINS_MAX ? view->domains[row->domain] : "";
	char name[PH_ID_SIZE + 8 + PH_NAME_SIZE];

	snprintf(name, sizeof(name), "%s-%u%s.%s", id ? id : "", row->port, mode_suffix(row->mode), domain);
	ph_json_set_string(json, "name", id && row->port && domain[0] ? name : NULL);
}

/* Has the keys of ph_ctl_flow_json(), where they mean something. */
static struct ph_json *row_json(const struct ph_ctl_view *view, uint32_t worker, const struct ph_ledger_row *row)
{
	uint64_t now_ns = ph_ctl_boot_now_ns();
	struct ph_json *json = ph_json_object();
	bool routed = row->port;

	ph_json_set(json, "flow", NULL);
	ph_json_set_number(json, "worker", worker);
	set_endpoint(json, "client", &row->client, row->client_port);
	ph_ctl_set_instance(json, view->maps, &row->instance);
	set_name(json, view, row);
	if (routed)
		ph_json_set_number(json, "port", row->port);
	else
		ph_json_set(json, "port", NULL);
	ph_json_set_string(json, "mode", routed ? ph_ctl_mode(row->mode) : NULL);
	ph_json_set_string(json, "state", row->state < PH_LEDGER_STATES ? state_words[row->state] : "unknown");
	ph_json_set_string(json, "reason", ph_ctl_reason_word(row->reason));
	ph_json_set_string(json, "reason_text", row->reason && row->reason < PH_REASON_COUNT ?
						ph_ctl_reasons[row->reason].text : NULL);
	ph_json_set_real(json, "age_s", ph_ctl_age_s(now_ns, row->begun_ns));
	ph_json_set_real(json, "idle_s", ph_ctl_age_s(now_ns, row->moved_ns));
	ph_json_set_number(json, "bytes_from_client", row->bytes_from_client);
	ph_json_set_number(json, "bytes_from_cvm", row->bytes_from_cvm);
	ph_json_set_string(json, "path", "relay");
	return json;
}

struct relays {
	const struct ph_ctl *ctl;
	const struct ph_ctl_view *view;
	const struct in6_addr *client;		/* NULL: all */
	uint16_t client_port;
	uint32_t worker;
	struct ph_json *rows;
};

static bool is_wanted(const struct relays *relays, const struct ph_ledger_row *row)
{
	const char *app = relays->ctl->app, *id = relays->ctl->instance;
	struct ph_instance instance;

	if (relays->client)
		return row->client_port == relays->client_port && !memcmp(&row->client, relays->client, sizeof(row->client));
	if (!app && !id)
		return true;
	return ph_ctl_instance(relays->view->maps, &row->instance, &instance) &&
	       (!app || !strcmp(app, instance.app_id)) && (!id || !strcmp(id, instance.instance_id));
}

static int add_row(uint32_t index, const struct ph_ledger_row *row, void *arg)
{
	const struct relays *relays = arg;

	(void)index;
	if (is_wanted(relays, row))
		ph_json_add(relays->rows, row_json(relays->view, relays->worker, row));
	return 0;
}

struct ph_json *ph_ctl_relays(const struct ph_ctl *ctl, const struct ph_ctl_view *view, const struct in6_addr *client,
			      uint16_t client_port)
{
	struct relays relays = { ctl, view, client, client_port, 0, ph_json_array() };
	const struct ph_worker *workers = view->maps->workers;
	uint64_t now_ns = ph_ctl_boot_now_ns();

	for (uint32_t i = 0; i < PH_WORKERS_MAX; i++) {
		int err;

		/* One that died took its connections along. */
		if (!workers[i].pid || ph_ctl_age_s(now_ns, workers[i].heartbeat_ns) > PH_CTL_LATE_S)
			continue;
		relays.worker = i;
		err = ph_ledger_each(ctl->run_dir, i, workers[i].pid, add_row, &relays);
		if (err && err != -ESTALE)
			ph_ctl_say("%s/worker-%u: %s", ctl->run_dir, i, strerror(-err));
	}
	return relays.rows;
}
