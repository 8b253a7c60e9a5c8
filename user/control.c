// SPDX-License-Identifier: Apache-2.0
#include "control.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "key.h"
#include "log.h"
#include "route.h"
#include "value.h"
#include "version.h"

#define NS_PER_S 1000000000ULL
#define PREFIX_TEXT_SIZE (INET_ADDRSTRLEN + 3)

/* Which members a verb has: all of those that it must have, and no other. */
enum member {
	MEMBER_APP = 1,
	MEMBER_INSTANCE = 2,
	MEMBER_PUBLIC_KEY = 4,
	MEMBER_DRAIN = 8,
	MEMBER_FLOW = 16,
	MEMBER_GENERATION = 32,
	MEMBER_IDLE_MS = 64,
	MEMBER_FLOW_LIMIT = 128,
};

static const struct {
	const char *name;
	unsigned members, optional;
} verbs[] = {
	[PH_CONTROL_STATUS] = { "status", 0, 0 },
	[PH_CONTROL_CVM_ADD] = { "cvm add", MEMBER_APP | MEMBER_INSTANCE | MEMBER_PUBLIC_KEY, 0 },
	[PH_CONTROL_CVM_LIST] = { "cvm list", 0, 0 },
	[PH_CONTROL_CVM_SHOW] = { "cvm show", MEMBER_INSTANCE, 0 },
	[PH_CONTROL_CVM_REMOVE] = { "cvm remove", MEMBER_INSTANCE, 0 },
	[PH_CONTROL_CVM_DRAIN] = { "cvm drain", MEMBER_INSTANCE | MEMBER_DRAIN, 0 },
	[PH_CONTROL_APP_SET] = { "app set", MEMBER_APP, MEMBER_IDLE_MS | MEMBER_FLOW_LIMIT },
	[PH_CONTROL_FLOW_KILL] = { "flow kill", MEMBER_FLOW | MEMBER_GENERATION, 0 },
};

static const struct {
	const char *name;
	enum member member;
} members[] = {
	{ "app", MEMBER_APP },
	{ "instance", MEMBER_INSTANCE },
	{ "public_key", MEMBER_PUBLIC_KEY },
	{ "drain", MEMBER_DRAIN },
	{ "flow", MEMBER_FLOW },
	{ "generation", MEMBER_GENERATION },
	{ "idle_ms", MEMBER_IDLE_MS },
	{ "flow_limit", MEMBER_FLOW_LIMIT },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

__attribute__((format(printf, 3, 4))) static int refuse(char *error, size_t size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, size, format, args);
	va_end(args);
	return -EINVAL;
}

/* Sets @out, zero padded. */
static int take_text(const json_t *value, const char *name, char *out, size_t size, char *error, size_t error_size)
{
	size_t len = json_string_length(value);

	if (!json_is_string(value))
		return refuse(error, error_size, "%s is not a string", name);
	if (!len)
		return refuse(error, error_size, "%s is empty", name);
	if (len >= size)
		return refuse(error, error_size, "%s is longer than %zu characters", name, size - 1);
	memset(out, 0, size);
	memcpy(out, json_string_value(value), len);
	return 0;
}

static int take_number(const json_t *value, const char *name, uint32_t *out, char *error, size_t error_size)
{
	json_int_t number = json_integer_value(value);

	if (!json_is_integer(value) || number < 0 || number > UINT32_MAX)
		return refuse(error, error_size, "%s is not a number from 0 to %u", name, UINT32_MAX);
	*out = (uint32_t)number;
	return 0;
}

static int take_member(const json_t *value, const char *name, enum member member, struct ph_control_request *request,
		       char *error, size_t error_size)
{
	switch (member) {
	case MEMBER_APP:
		return take_text(value, name, request->app, sizeof(request->app), error, error_size);
	case MEMBER_INSTANCE:
		return take_text(value, name, request->instance, sizeof(request->instance), error, error_size);
	case MEMBER_PUBLIC_KEY:
		return take_text(value, name, request->public_key, sizeof(request->public_key), error, error_size);
	case MEMBER_DRAIN:
		if (!json_is_boolean(value))
			return refuse(error, error_size, "drain is neither true nor false");
		request->drain = json_is_true(value);
		return 0;
	case MEMBER_FLOW:
		return take_number(value, name, &request->flow, error, error_size);
	case MEMBER_GENERATION:
		return take_number(value, name, &request->generation, error, error_size);
	case MEMBER_IDLE_MS:
		request->has_idle_ms = true;
		return take_number(value, name, &request->idle_ms, error, error_size);
	case MEMBER_FLOW_LIMIT:
		request->has_flow_limit = true;
		return take_number(value, name, &request->flow_limit, error, error_size);
	}
	return -EINVAL;
}

static int find_verb(const json_t *object, enum ph_control_verb *ret_verb, char *error, size_t error_size)
{
	const char *name = json_string_value(json_object_get(object, "verb"));
	char text[64];

	if (!name)
		return refuse(error, error_size, "verb is missing, or not a string");
	for (size_t i = 0; i < COUNT(verbs); i++) {
		if (!strcmp(name, verbs[i].name)) {
			*ret_verb = (enum ph_control_verb)i;
			return 0;
		}
	}
	return refuse(error, error_size, "there is no verb %s", ph_log_escape(text, sizeof(text), name, strlen(name)));
}

static int take_members(json_t *object, struct ph_control_request *request, char *error, size_t error_size)
{
	unsigned missing = verbs[request->verb].members;
	const char *name;
	char text[64];
	json_t *value;
	int err;

	json_object_foreach(object, name, value) {
		size_t i;

		if (!strcmp(name, "verb"))
			continue;
		for (i = 0; i < COUNT(members) && strcmp(name, members[i].name); i++)
			;
		if (i == COUNT(members) || !((verbs[request->verb].members | verbs[request->verb].optional) & members[i].member))
			return refuse(error, error_size, "%s takes no %s", verbs[request->verb].name,
				      ph_log_escape(text, sizeof(text), name, strlen(name)));
		err = take_member(value, name, members[i].member, request, error, error_size);
		if (err)
			return err;
		missing &= ~members[i].member;
	}
	for (size_t i = 0; i < COUNT(members); i++) {
		if (missing & members[i].member)
			return refuse(error, error_size, "%s needs %s", verbs[request->verb].name, members[i].name);
	}
	return 0;
}

int ph_control_parse(const char *line, size_t len, struct ph_control_request *ret_request, char *error,
		     size_t error_size)
{
	struct ph_control_request request = { 0 };
	json_error_t where;
	json_t *object;
	char text[160];
	int err;

	if (len > PH_CONTROL_LINE_MAX)
		return refuse(error, error_size, "a request is at most %d bytes", PH_CONTROL_LINE_MAX);
	object = json_loadb(line, len, JSON_REJECT_DUPLICATES, &where);
	if (!object)
		return refuse(error, error_size, "not JSON, at byte %d: %s", where.position,
			      ph_log_escape(text, sizeof(text), where.text, strlen(where.text)));
	if (json_is_object(object)) {
		err = find_verb(object, &request.verb, error, error_size);
		if (!err)
			err = take_members(object, &request, error, error_size);
	} else {
		err = refuse(error, error_size, "a request is a JSON object");
	}
	json_decref(object);
	if (!err)
		*ret_request = request;
	return err;
}

/* Consumes @object, which may be NULL. */
static char *to_text(json_t *object, const char *end)
{
	char *text = object ? json_dumps(object, JSON_COMPACT) : NULL, *line = NULL;

	json_decref(object);
	if (text && asprintf(&line, "%s%s", text, end) < 0)
		line = NULL;
	free(text);
	return line;
}

static char *answer(json_t *result)
{
	return to_text(result ? json_pack("{s:b, s:o}", "ok", 1, "result", result) : NULL, "\n");
}

char *ph_control_error(int err, const char *error)
{
	const char *code = strerrorname_np(-err);

	return to_text(json_pack("{s:b, s:s, s:s}", "ok", 0, "code", code ? code : "EIO", "error", error), "\n");
}

static json_t *address_text(struct in_addr address)
{
	char text[INET_ADDRSTRLEN];

	return json_string(inet_ntop(AF_INET, &address, text, sizeof(text)));
}

static json_t *key_text(const uint8_t key[PH_KEY_LEN])
{
	char text[PH_KEY_BASE64_SIZE];

	return json_string(ph_key_encode(key, text));
}

static json_t *endpoint_text(const struct sockaddr_storage *endpoint)
{
	const struct sockaddr_in6 *v6 = (const void *)endpoint;
	const struct sockaddr_in *v4 = (const void *)endpoint;
	char host[INET6_ADDRSTRLEN], text[INET6_ADDRSTRLEN + 16];

	if (endpoint->ss_family == AF_INET && inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host)))
		snprintf(text, sizeof(text), "%s:%u", host, ntohs(v4->sin_port));
	else if (endpoint->ss_family == AF_INET6 && inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host)))
		snprintf(text, sizeof(text), "[%s]:%u", host, ntohs(v6->sin6_port));
	else
		return json_null();
	return json_string(text);
}

static json_t *cvm_object(const struct ph_control_cvm *cvm)
{
	const struct ph_roster_entry *entry = cvm->entry;
	const struct ph_cvm *row = &entry->cvm;

	return json_pack("{s:s, s:s, s:o, s:o, s:s, s:s, s:o, s:I, s:I, s:o, s:I, s:I, s:I}", "app", row->app_id,
			 "instance", row->instance_id, "public_key", key_text(row->public_key), "address",
			 address_text(row->address), "state", row->draining ? "draining" : "ready", "health",
			 ph_health_word(cvm->health), "handshake_age_s",
			 cvm->handshake_age_s < 0 ? json_null() : json_integer(cvm->handshake_age_s), "rx_bytes",
			 (json_int_t)entry->rx_bytes, "tx_bytes", (json_int_t)entry->tx_bytes, "endpoint",
			 endpoint_text(&entry->endpoint), "added", (json_int_t)row->added_s, "slot",
			 (json_int_t)row->slot, "generation", (json_int_t)row->generation);
}

char *ph_control_cvm(const struct ph_control_cvm *cvm)
{
	return answer(cvm_object(cvm));
}

char *ph_control_list_row(const struct ph_control_cvm *cvm)
{
	return to_text(cvm_object(cvm), "");
}

static json_t *prefix_text(struct in_addr address, uint8_t len)
{
	struct in_addr network = { address.s_addr & ph_value_netmask(len) };
	char host[INET_ADDRSTRLEN], text[PREFIX_TEXT_SIZE];

	snprintf(text, sizeof(text), "%s/%u", inet_ntop(AF_INET, &network, host, sizeof(host)), len);
	return json_string(text);
}

char *ph_control_added(const struct ph_control_cvm *cvm, const struct ph_tunnel *tunnel,
		       const struct ph_device_state *device)
{
	json_t *result = cvm_object(cvm), *join;

	join = json_pack("{s:o, s:o, s:i, s:o, s:i, s:i, s:i}", "gateway_public_key",
			 device->has_key ? key_text(device->public_key) : json_null(), "endpoint",
			 tunnel->endpoint[0] ? json_string(tunnel->endpoint) : json_null(), "listen_port",
			 device->listen_port, "allowed_ips", prefix_text(tunnel->address, tunnel->prefix_len),
			 "keepalive_s", PH_KEEPALIVE_S, "mtu", (int)tunnel->mtu, "prefix_len", tunnel->range_len);
	if (!result || !join || json_object_update(result, join)) {
		json_decref(result);
		result = NULL;
	}
	json_decref(join);
	return answer(result);
}

char *ph_control_removed(const char *instance, uint64_t ended)
{
	return answer(json_pack("{s:s, s:I}", "instance", instance, "ended", (json_int_t)ended));
}

char *ph_control_killed(uint64_t killed)
{
	return answer(json_pack("{s:I}", "killed", (json_int_t)killed));
}

char *ph_control_app(const char *app)
{
	return answer(json_pack("{s:s}", "app", app));
}

static json_t *worker_object(uint32_t index, const struct ph_worker *worker, uint64_t now_ns)
{
	uint64_t beat_ns = __atomic_load_n(&worker->heartbeat_ns, __ATOMIC_RELAXED);
	json_t *age = json_null();

	if (beat_ns)
		age = json_real(now_ns > beat_ns ? (double)(now_ns - beat_ns) / NS_PER_S : 0);
	return json_pack("{s:i, s:i, s:i, s:o, s:I, s:I}", "index", (int)index, "pid", (int)worker->pid, "active",
			 (int)worker->active, "heartbeat_age_s", age, "bytes_from_clients",
			 (json_int_t)worker->bytes_from_clients, "bytes_from_cvms",
			 (json_int_t)worker->bytes_from_cvms);
}

static json_t *workers_array(const struct ph_maps *maps, uint64_t now_ns)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < maps->gateway->workers && i < PH_WORKERS_MAX; i++)
		json_array_append_new(array, worker_object(i, &maps->workers[i], now_ns));
	return array;
}

/* Also of workers that a configuration before this one had: what was counted stays counted. */
static json_t *counters_object(const struct ph_maps *maps, const struct ph_holder_counts *holder)
{
	static const char *const words[] = {
#define WORD(name, word, text) [PH_REASON_##name] = word,
		PH_REASONS(WORD)
#undef WORD
	};
	json_t *object = json_object();

	for (uint32_t reason = 0; reason < PH_REASON_COUNT; reason++) {
		uint64_t sum = 0;

		for (uint32_t i = 0; i < PH_WORKERS_MAX; i++)
			sum += __atomic_load_n(&maps->workers[i].counters[reason], __ATOMIC_RELAXED);
		if (reason == PH_REASON_TURNED_AWAY)
			sum += __atomic_load_n(&holder->turned_away, __ATOMIC_RELAXED);
		json_object_set_new(object, words[reason], json_integer((json_int_t)sum));
	}
	return object;
}

static json_t *guard_object(const __u64 *counters)
{
	static const char *const words[] = {
#define WORD(name, word, text) [PH_GUARD_##name] = word,
		PH_GUARD_REASONS(WORD)
#undef WORD
	};
	json_t *object;

	if (!counters)
		return json_null();
	object = json_object();
	for (uint32_t reason = 0; reason < PH_GUARD_COUNT; reason++)
		json_object_set_new(object, words[reason], json_integer((json_int_t)counters[reason]));
	return object;
}

static json_t *gate_array(const struct ph_gates_row *rows, uint32_t count)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < count; i++)
		json_array_append_new(array, json_pack("{s:s?, s:s, s:o}", "device", rows[i].device, "mode",
						       ph_gate_mode_word(rows[i].mode), "trouble",
						       rows[i].trouble[0] ? json_string(rows[i].trouble) : json_null()));
	return array;
}

static json_t *tunnel_object(const struct ph_tunnel *tunnel, const struct ph_device_state *device)
{
	return json_pack("{s:s, s:s, s:i, s:b, s:i, s:o, s:o, s:o, s:o}", "type",
			 tunnel->type == PH_TUNNEL_EXTERNAL ? "external" : "wireguard", "interface", tunnel->interface,
			 "ifindex", (int)device->ifindex, "up", device->ifindex && device->up, "mtu", (int)device->mtu,
			 "public_key", device->has_key ? key_text(device->public_key) : json_null(), "listen_port",
			 device->listen_port ? json_integer(device->listen_port) : json_null(), "address",
			 address_text(tunnel->address), "range", prefix_text(tunnel->range, tunnel->range_len));
}

char *ph_control_status(const struct ph_control_status *status)
{
	return answer(json_pack(
		"{s:s, s:i, s:I, s:I, s:I, s:o, s:o, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:o}", "version", PH_VERSION, "pid",
		(int)getpid(), "uptime_s", (json_int_t)((status->now_ns - status->started_ns) / NS_PER_S), "restarts",
		(json_int_t)__atomic_load_n(&status->holder->restarts, __ATOMIC_RELAXED), "hung",
		(json_int_t)__atomic_load_n(&status->holder->hung, __ATOMIC_RELAXED), "workers",
		workers_array(status->maps, status->now_ns), "tunnel", tunnel_object(status->tunnel, status->device),
		"cvms", (int)status->cvms, "apps", (int)status->apps, "healthy", (int)status->healthy, "draining",
		(int)status->draining, "counters", counters_object(status->maps, status->holder), "guard", guard_object(status->guard),
		"gate", gate_array(status->gate, status->gate_rows), "trouble",
		status->trouble[0] ? json_string(status->trouble) : json_null()));
}
