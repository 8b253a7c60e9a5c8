// SPDX-License-Identifier: Apache-2.0
/*
 * What would happen to a connection for a name: asked of the parser and the route that workers use, and put in words.
 */
#include "phalactl_flow.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include <log.h>
#include <phala/hello.h>
#include <route.h>

/* Around the name: record, handshake, version, random, session id, suites, methods, extensions, server_name, entry. */
#define HELLO_HEAD 61
#define NAME_BYTES_MAX (PH_RECORD_MAX - HELLO_HEAD)
#define WORKER_LATE_S 5

struct verdict {
	enum ph_reason reason;			/* PH_REASON_COUNT: it would be routed */
	const char *text;			/* why */
	bool parsed;				/* route.name is meant */
	bool known_id;				/* route.id too */
	struct ph_route route;
};

static uint8_t *put(uint8_t *at, uint32_t value, unsigned bytes)
{
	while (bytes--)
		*at++ = (uint8_t)(value >> 8 * bytes);
	return at;
}

/* The smallest ClientHello that has this server name. Return: its bytes. */
static uint32_t write_hello(uint8_t *hello, const char *name, uint32_t len)
{
	uint8_t *at = hello;

	at = put(at, 22, 1);			/* record: handshake, TLS 1.0 */
	at = put(at, 0x0301, 2);
	at = put(at, HELLO_HEAD - 5 + len, 2);
	at = put(at, 1, 1);			/* ClientHello */
	at = put(at, HELLO_HEAD - 9 + len, 3);
	at = put(at, 0x0303, 2);		/* TLS 1.2 */
	memset(at, 0, 32);			/* random */
	at += 32;
	at = put(at, 0, 1);			/* no session id */
	at = put(at, 2, 2);			/* one cipher suite */
	at = put(at, 0x1301, 2);
	at = put(at, 1, 1);			/* one compression method: none */
	at = put(at, 0, 1);
	at = put(at, 9 + len, 2);		/* extensions */
	at = put(at, 0, 2);			/* server_name */
	at = put(at, 5 + len, 2);
	at = put(at, 3 + len, 2);		/* its list */
	at = put(at, 0, 1);			/* host_name */
	at = put(at, len, 2);
	memcpy(at, name, len);
	return (uint32_t)(at - hello) + len;
}

/* The name as a worker has it after the ClientHello, into @ret_hello. Return: PH_REASON_COUNT or why there is none. */
static enum ph_reason pass_through_hello(const char *name, struct ph_hello *ret_hello)
{
	static uint8_t stream[PH_HELLO_STREAM_MAX];
	size_t len = strlen(name);

	if (len > NAME_BYTES_MAX)
		return PH_REASON_HELLO_TOO_LONG;
	memset(ret_hello, 0, sizeof(*ret_hello));
	switch (ph_hello_walk(ret_hello, stream, write_hello(stream, name, (uint32_t)len))) {
	case PH_HELLO_OK:
		return PH_REASON_COUNT;
	case PH_HELLO_NO_SNI:
		return PH_REASON_NO_SNI;
	case PH_HELLO_AMBIGUOUS:
		return PH_REASON_AMBIGUOUS;
	case PH_HELLO_TOO_LONG:
		return PH_REASON_HELLO_TOO_LONG;
	default:
		return PH_REASON_MALFORMED;
	}
}

/* The app's connections, on both paths, against its limit. */
static bool is_at_limit(const struct ph_maps *maps, const struct ph_route *route)
{
	struct ph_relayed_key key = { .kind = PH_RELAYED_APP };
	uint32_t limit = ph_app_limit(&route->id, maps->gateway->app_limit);
	struct ph_instance instance;
	struct ph_id app;

	if (!limit || !ph_ctl_instance(maps, &route->id.refs[0], &instance) ||
	    ph_maps_find_id(maps, instance.app_id, &app))
		return false;
	memcpy(key.id, instance.app_id, sizeof(key.id));
	return ph_maps_app_flows(maps, &app) + ph_maps_relayed_by_all(maps, &key) >= limit;
}

static void judge(const struct ph_maps *maps, const char *name, struct verdict *verdict)
{
	struct ph_hello hello;

	memset(verdict, 0, sizeof(*verdict));
	verdict->reason = pass_through_hello(name, &hello);
	if (verdict->reason == PH_REASON_COUNT) {
		verdict->reason = ph_route_find(maps, hello.name, hello.name_len, ph_ctl_boot_now_ns(),
						&verdict->route);
		verdict->parsed = verdict->route.name.id[0];
		verdict->known_id = verdict->route.id.kind;
	}
	if (verdict->reason == PH_REASON_COUNT && (!maps->gateway->tunnel_ifindex ||
						   ph_ctl_is_down(maps->gateway->tunnel_ifindex)))
		verdict->reason = PH_REASON_CVM_UNREACHABLE;
	if (verdict->reason == PH_REASON_COUNT && is_at_limit(maps, &verdict->route))
		verdict->reason = PH_REASON_APP_LIMIT;
	if (verdict->reason == PH_REASON_MALFORMED)
		verdict->text = "no ClientHello carries that: it is empty, over 253 characters, or has control characters";
	else if (verdict->reason != PH_REASON_COUNT)
		verdict->text = ph_ctl_reasons[verdict->reason].text;
}

static const char *mode_text(uint8_t mode)
{
	switch (mode) {
	case PH_MODE_STANDARD:
		return "the gateway terminates TLS";
	case PH_MODE_PASSTHROUGH:
		return "TLS ends in the CVM";
	case PH_MODE_GRPC:
		return "the gateway terminates TLS, with ALPN h2";
	default:
		return "";
	}
}

static struct ph_json *parsed_json(const struct verdict *verdict, const char *shown)
{
	const struct ph_name *name = &verdict->route.name;
	struct ph_json *parsed;

	if (!verdict->parsed)
		return NULL;
	parsed = ph_json_object();
	ph_json_set_string(parsed, "id", name->id);
	ph_json_set_number(parsed, "port", name->port);
	ph_json_set_string(parsed, "mode", ph_ctl_mode(name->mode));
	ph_json_set_string(parsed, "mode_text", mode_text(name->mode));
	ph_json_set_string(parsed, "base_domain", strlen(shown) > name->base ? shown + name->base : "");
	return parsed;
}

static struct ph_json *instances_json(const struct ph_maps *maps, const struct verdict *verdict)
{
	const struct ph_id *id = &verdict->route.id;
	struct ph_json *list = ph_json_array();
	struct ph_instance instance;

	for (uint32_t i = 0; i < id->count; i++) {
		struct ph_json *row;

		if (!ph_ctl_instance(maps, &id->refs[i], &instance))
			continue;		/* removed a moment ago */
		row = ph_ctl_instance_json(maps, &id->refs[i], &instance, verdict->route.name.id);
		ph_json_set_bool(row, "candidate", verdict->route.candidates >> i & 1);
		ph_json_add(list, row);
	}
	return list;
}

static struct ph_json *manager_json(const struct ph_maps *maps)
{
	const struct ph_gateway gateway = *maps->gateway;
	struct ph_json *manager = ph_json_object();
	uint64_t now_ns = ph_ctl_boot_now_ns();

	ph_json_set_bool(manager, "stale", ph_gateway_is_stale(&gateway, now_ns));
	if (gateway.health_now_ns)
		ph_json_set_real(manager, "health_age_s", ph_ctl_age_s(now_ns, gateway.health_now_ns));
	else
		ph_json_set(manager, "health_age_s", NULL);
	ph_json_set_real(manager, "grace_s", gateway.manager_grace_ns / 1e9);
	ph_json_set_bool(manager, "tunnel_device", gateway.tunnel_ifindex);
	ph_json_set_bool(manager, "tunnel_down", ph_ctl_is_down(gateway.tunnel_ifindex));
	ph_json_set_bool(manager, "tunnel_external", gateway.flags & PH_GATEWAY_EXTERNAL);
	return manager;
}

/* Why a worker would relay it; NULL if it would stay in the kernel. */
static const char *relay_reason(const struct ph_ctl *ctl, const struct ph_maps *maps)
{
	struct ph_flows *flows = NULL;
	char error[PATH_MAX + 128];
	const char *why;

	ph_flows_open(ctl->bpf_dir, &flows, error, sizeof(error));
	why = ph_ctl_kernel_closed(maps, flows);
	ph_flows_free(flows);
	return why;
}

/* "path" is null where there is no choice: TLS ends in a worker, or the connection is refused. */
static void set_path(struct ph_json *json, const struct ph_ctl *ctl, const struct ph_maps *maps,
		     const struct verdict *verdict)
{
	bool chosen = verdict->reason == PH_REASON_COUNT && verdict->route.name.mode == PH_MODE_PASSTHROUGH;
	const char *why = chosen ? relay_reason(ctl, maps) : NULL;

	ph_json_set_string(json, "path", !chosen ? NULL : why ? "relay" : "kernel");
	ph_json_set_string(json, "path_text", why);
}

/* Workers whose heart beats. A moment longer than PH_CTL_LATE_S: nobody is to be alarmed by one that was restarted. */
static uint64_t count_workers(const struct ph_maps *maps)
{
	uint64_t now_ns = ph_ctl_boot_now_ns(), count = 0;

	for (uint32_t i = 0; i < PH_WORKERS_MAX; i++) {
		uint64_t beat_ns = maps->workers[i].heartbeat_ns;

		count += beat_ns && ph_ctl_age_s(now_ns, beat_ns) <= WORKER_LATE_S;
	}
	return count;
}

static struct ph_json *route_json(const struct ph_maps *maps, const struct verdict *verdict, const char *shown)
{
	struct ph_json *json = ph_json_object();
	bool routed = verdict->reason == PH_REASON_COUNT;

	ph_json_set_string(json, "name", shown);
	ph_json_set_bool(json, "routed", routed);
	ph_json_set_string(json, "reason", routed ? NULL : ph_ctl_reasons[verdict->reason].word);
	ph_json_set_string(json, "text", verdict->text);
	ph_json_set_number(json, "choices", routed ? (uint64_t)__builtin_popcountll(verdict->route.candidates) : 0);
	ph_json_set(json, "parsed", parsed_json(verdict, shown));
	ph_json_set_string(json, "kind", !verdict->known_id ? NULL :
					 verdict->route.id.kind == PH_ID_APP ? "app" : "instance");
	ph_json_set(json, "instances", instances_json(maps, verdict));
	ph_json_set(json, "manager", manager_json(maps));
	ph_json_set_number(json, "live_workers", count_workers(maps));
	return json;
}

static void print_manager(const struct ph_json *manager)
{
	double age_s = ph_json_number(manager, "health_age_s", 0);
	char age[48], grace[48];

	ph_table_duration(age, sizeof(age), age_s);
	ph_table_duration(grace, sizeof(grace), ph_json_number(manager, "grace_s", 0));
	if (ph_json_is_null(manager, "health_age_s"))
		printf("manager   none yet: health was never refreshed\n");
	else if (ph_json_bool(manager, "stale", true))
		printf("manager   gone: health was refreshed %s ago, and is believed for %s\n", age, grace);
	else if (age_s > PH_CTL_LATE_S)
		printf("manager   away: health was refreshed %s ago, and is believed for %s\n", age, grace);
	else
		printf("manager   fresh: health was refreshed %s ago\n", age);
	if (!ph_json_bool(manager, "tunnel_device", false))
		printf("tunnel    there is no tunnel device\n");
	else if (ph_json_bool(manager, "tunnel_down", false))
		printf("tunnel    the device is down\n");
	else if (ph_json_bool(manager, "tunnel_external", false))
		printf("tunnel    external: every instance counts as healthy\n");
}

static const char *candidate(const struct ph_json *instances)
{
	for (size_t i = 0; i < ph_json_count(instances); i++) {
		const struct ph_json *row = ph_json_at(instances, i);

		if (ph_json_bool(row, "candidate", false))
			return ph_json_string(row, "instance", "");
	}
	return "that one";
}

static void print_route(const struct ph_json *json)
{
	static const struct ph_column columns[] = {
		{ "instance", "INSTANCE", PH_CELL_TEXT },
		{ "app", "APP", PH_CELL_TEXT },
		{ "address", "ADDRESS", PH_CELL_TEXT },
		{ "health", "HEALTH", PH_CELL_TEXT },
		{ "handshake_age_s", "HANDSHAKE", PH_CELL_AGE },
		{ "candidate", "CANDIDATE", PH_CELL_YES_NO },
		{ 0 },
	};
	const struct ph_json *parsed = ph_json_child(json, "parsed"), *instances = ph_json_child(json, "instances");
	const char *kind = ph_json_string(json, "kind", NULL), *path = ph_json_string(json, "path", "");
	unsigned choices = (unsigned)ph_json_number(json, "choices", 0);
	size_t count = ph_json_count(instances);

	printf("name      %s\n", ph_json_string(json, "name", ""));
	if (parsed) {
		printf("parsed    id %s, port %.0f, %s mode: %s\n", ph_json_string(parsed, "id", ""),
		       ph_json_number(parsed, "port", 0), ph_json_string(parsed, "mode", ""),
		       ph_json_string(parsed, "mode_text", ""));
		printf("domain    %s\n", ph_json_string(parsed, "base_domain", ""));
	}
	if (kind && !strcmp(kind, "app"))
		printf("id        an app with %zu instance%s\n", count, count == 1 ? "" : "s");
	else if (kind)
		printf("id        an instance\n");
	print_manager(ph_json_child(json, "manager"));
	if (ph_json_number(json, "live_workers", 0) < 1)
		printf("workers   none lives: nobody answers%s\n",
		       strcmp(path, "kernel") ? "" : " what the kernel does not carry");
	if (count) {
		printf("\n");
		ph_table_print(instances, columns, stdout);
		printf("\n");
	}
	if (choices == 1)
		printf("routed    to %s\n", candidate(instances));
	else if (choices)
		printf("routed    to one of %u healthy instances, at random\n", choices);
	else
		printf("refused   %s: %s\n", ph_json_string(json, "reason", ""), ph_json_string(json, "text", ""));
	if (!strcmp(path, "kernel"))
		printf("path      kernel: no process touches it; of clients over IPv6, relay\n");
	else if (path[0])
		printf("path      relay: %s\n", ph_json_string(json, "path_text", ""));
}

int ph_ctl_route(const struct ph_ctl *ctl)
{
	/* Every byte as \xNN, at worst: names are mostly typed, but may be pasted from a log. */
	size_t shown_size = strlen(ctl->operand) * 4 + 1;
	struct ph_maps *maps = NULL;
	struct verdict verdict;
	struct ph_json *json;
	char *shown;
	bool answered;
	int status;

	status = ph_ctl_maps_open(ctl, &maps);
	if (status)
		return status;
	shown = malloc(shown_size);
	if (!shown) {
		ph_maps_free(maps);
		return ph_ctl_fail("out of memory");
	}
	ph_log_escape(shown, shown_size, ctl->operand, strlen(ctl->operand));
	judge(maps, ctl->operand, &verdict);
	json = route_json(maps, &verdict, shown);
	set_path(json, ctl, maps, &verdict);
	if (ctl->json)
		ph_json_print(json, stdout);
	else
		print_route(json);
	answered = ph_json_number(json, "live_workers", 0) > 0 || !strcmp(ph_json_string(json, "path", ""), "kernel");
	ph_json_free(json);
	free(shown);
	ph_maps_free(maps);
	return verdict.reason == PH_REASON_COUNT && answered ? PH_CTL_DONE : PH_CTL_FAILED;
}
