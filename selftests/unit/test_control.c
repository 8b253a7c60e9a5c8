// SPDX-License-Identifier: Apache-2.0
/* control: requests that are taken, requests that are refused and with what words, and what answers look like. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "control.h"
#include "ktap.h"

#define KEY "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
#define ID63 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static const struct {
	const char *name, *line;
	struct ph_control_request request;
} taken[] = {
	{ "status", "{\"verb\":\"status\"}", { .verb = PH_CONTROL_STATUS } },
	{ "cvm list", "{\"verb\":\"cvm list\"}", { .verb = PH_CONTROL_CVM_LIST } },
	{ "cvm add", "{\"verb\":\"cvm add\",\"app\":\"shop\",\"instance\":\"shop1\",\"public_key\":\"" KEY "\"}",
	  { .verb = PH_CONTROL_CVM_ADD, .app = "shop", .instance = "shop1", .public_key = KEY } },
	{ "members in another order, with blanks", " { \"instance\" : \"shop1\" ,\t\"verb\" : \"cvm show\" } ",
	  { .verb = PH_CONTROL_CVM_SHOW, .instance = "shop1" } },
	{ "cvm remove, of the longest id", "{\"verb\":\"cvm remove\",\"instance\":\"" ID63 "\"}",
	  { .verb = PH_CONTROL_CVM_REMOVE, .instance = ID63 } },
	{ "cvm drain", "{\"verb\":\"cvm drain\",\"instance\":\"shop1\",\"drain\":true}",
	  { .verb = PH_CONTROL_CVM_DRAIN, .instance = "shop1", .drain = true } },
	{ "cvm drain, undone", "{\"verb\":\"cvm drain\",\"instance\":\"shop1\",\"drain\":false}",
	  { .verb = PH_CONTROL_CVM_DRAIN, .instance = "shop1" } },
	{ "app set", "{\"verb\":\"app set\",\"app\":\"shop\",\"idle_ms\":1800000,\"flow_limit\":4294967295}",
	  { .verb = PH_CONTROL_APP_SET, .app = "shop", .has_idle_ms = true, .idle_ms = 1800000,
	    .has_flow_limit = true, .flow_limit = UINT32_MAX } },
	{ "app set, half of it", "{\"verb\":\"app set\",\"app\":\"shop\",\"flow_limit\":0}",
	  { .verb = PH_CONTROL_APP_SET, .app = "shop", .has_flow_limit = true } },
};

static const struct {
	const char *name, *line, *word;		/* of the message */
} refused[] = {
	{ "nothing", "", "not JSON" },
	{ "blanks", "   ", "not JSON" },
	{ "half an object", "{\"verb\":\"status\"", "not JSON" },
	{ "something behind the object", "{\"verb\":\"status\"} x", "not JSON" },
	{ "a second object", "{\"verb\":\"status\"}{\"verb\":\"status\"}", "not JSON" },
	{ "an array", "[\"verb\",\"status\"]", "object" },
	{ "a string", "\"status\"", "not JSON" },
	{ "no verb", "{}", "verb" },
	{ "a verb that is no string", "{\"verb\":7}", "verb" },
	{ "a verb that there is none", "{\"verb\":\"reboot\"}", "reboot" },
	{ "a verb with a newline in it", "{\"verb\":\"a\\nb\"}", "a\\x0ab" },
	{ "a verb with an ending", "{\"verb\":\"status \"}", "no verb" },
	{ "a doubled member", "{\"verb\":\"status\",\"verb\":\"status\"}", "duplicate" },
	{ "an unknown member", "{\"verb\":\"status\",\"loud\":true}", "loud" },
	{ "another verb's member", "{\"verb\":\"cvm show\",\"instance\":\"a\",\"drain\":true}", "drain" },
	{ "a missing member", "{\"verb\":\"cvm add\",\"app\":\"a\",\"instance\":\"b\"}", "public_key" },
	{ "a missing instance", "{\"verb\":\"cvm show\"}", "instance" },
	{ "a missing drain", "{\"verb\":\"cvm drain\",\"instance\":\"a\"}", "drain" },
	{ "an instance that is a number", "{\"verb\":\"cvm show\",\"instance\":7}", "instance" },
	{ "an instance that is null", "{\"verb\":\"cvm show\",\"instance\":null}", "instance" },
	{ "an empty instance", "{\"verb\":\"cvm show\",\"instance\":\"\"}", "empty" },
	{ "an instance of 64 characters", "{\"verb\":\"cvm show\",\"instance\":\"a" ID63 "\"}", "63" },
	{ "an instance with a zero in it", "{\"verb\":\"cvm show\",\"instance\":\"a\\u0000b\"}", "not JSON" },
	{ "an instance that is not UTF-8", "{\"verb\":\"cvm show\",\"instance\":\"\xff\"}", "not JSON" },
	{ "a drain that is a string", "{\"verb\":\"cvm drain\",\"instance\":\"a\",\"drain\":\"true\"}", "drain" },
	{ "a drain that is a number", "{\"verb\":\"cvm drain\",\"instance\":\"a\",\"drain\":1}", "drain" },
	{ "a key of 45 characters",
	  "{\"verb\":\"cvm add\",\"app\":\"a\",\"instance\":\"b\",\"public_key\":\"" KEY "=\"}", "44" },
	{ "an app that is missing", "{\"verb\":\"app set\",\"idle_ms\":1}", "app" },
	{ "a limit that is a string", "{\"verb\":\"app set\",\"app\":\"a\",\"flow_limit\":\"5\"}", "flow_limit" },
	{ "a limit over 32 bits", "{\"verb\":\"app set\",\"app\":\"a\",\"flow_limit\":4294967296}", "flow_limit" },
	{ "an idle time-out below 0", "{\"verb\":\"app set\",\"app\":\"a\",\"idle_ms\":-1}", "idle_ms" },
	{ "another verb's setting", "{\"verb\":\"cvm show\",\"instance\":\"a\",\"idle_ms\":1}", "idle_ms" },
	{ "a number too large", "{\"verb\":99999999999999999999}", "not JSON" },
};

static bool is_one_line(const char *text)
{
	for (; *text; text++) {
		if (*text < ' ' || *text > '~')
			return false;
	}
	return true;
}

static void test_parse(void)
{
	char error[256];

	for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
		struct ph_control_request request;

		memset(&request, 0xaa, sizeof(request));
		strcpy(error, "");
		if (!ktap_ok(!ph_control_parse(taken[i].line, strlen(taken[i].line), &request, error, sizeof(error)) &&
				     request.verb == taken[i].request.verb && request.drain == taken[i].request.drain &&
				     !memcmp(request.app, taken[i].request.app, sizeof(request.app)) &&
				     !memcmp(request.instance, taken[i].request.instance, sizeof(request.instance)) &&
				     !strcmp(request.public_key, taken[i].request.public_key) &&
				     request.has_idle_ms == taken[i].request.has_idle_ms &&
				     request.idle_ms == taken[i].request.idle_ms &&
				     request.has_flow_limit == taken[i].request.has_flow_limit &&
				     request.flow_limit == taken[i].request.flow_limit,
			     "taken: %s", taken[i].name))
			printf("# %s\n", error);
	}
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		struct ph_control_request request, untouched;
		int err;

		memset(&request, 0xaa, sizeof(request));
		memset(&untouched, 0xaa, sizeof(untouched));
		strcpy(error, "");
		err = ph_control_parse(refused[i].line, strlen(refused[i].line), &request, error, sizeof(error));
		if (!ktap_ok(err == -EINVAL && strstr(error, refused[i].word) && is_one_line(error) &&
				     !memcmp(&request, &untouched, sizeof(request)),
			     "refused: %s", refused[i].name))
			printf("# %s\n", error);
	}
}

static void test_large(void)
{
	struct ph_control_request request;
	char *line = malloc(PH_CONTROL_LINE_MAX + 2);
	char error[256];

	memset(line, ' ', PH_CONTROL_LINE_MAX + 1);
	memcpy(line, "{\"verb\":\"status\"}", 17);
	ktap_ok(!ph_control_parse(line, PH_CONTROL_LINE_MAX, &request, error, sizeof(error)),
		"taken: 64 KiB, most of it blank");
	ktap_ok(ph_control_parse(line, PH_CONTROL_LINE_MAX + 1, &request, error, sizeof(error)) == -EINVAL &&
			strstr(error, "65536"),
		"refused: a byte more");
	memset(line, '[', PH_CONTROL_LINE_MAX);
	ktap_ok(ph_control_parse(line, PH_CONTROL_LINE_MAX, &request, error, sizeof(error)) == -EINVAL,
		"refused: 65536 arrays inside each other");
	free(line);
}

/* The answer as an object, if it is one line of JSON; consumes @line. */
static json_t *read_answer(char *line)
{
	size_t len = line ? strlen(line) : 0;
	json_t *answer = NULL;

	if (len && line[len - 1] == '\n' && !memchr(line, '\n', len - 1))
		answer = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
	free(line);
	return answer;
}

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));

	return text ? text : "(none)";
}

static struct ph_roster_entry sample_entry(void)
{
	struct ph_roster_entry entry = {
		.cvm = { .app_id = "shop", .instance_id = "shop1", .slot = 3, .generation = 4, .added_s = 1700000000 },
		.rx_bytes = 5000000000, .tx_bytes = 7,
	};
	struct sockaddr_in6 *endpoint = (void *)&entry.endpoint;

	memset(entry.cvm.public_key, 9, sizeof(entry.cvm.public_key));
	inet_pton(AF_INET, "10.1.2.3", &entry.cvm.address);
	endpoint->sin6_family = AF_INET6;
	endpoint->sin6_port = htons(51820);
	inet_pton(AF_INET6, "2001:db8::7", &endpoint->sin6_addr);
	return entry;
}

static void test_answers(void)
{
	struct ph_roster_entry entry = sample_entry();
	struct ph_control_cvm cvm = { .entry = &entry, .health = PH_HEALTH_OK, .handshake_age_s = 12 };
	struct ph_tunnel tunnel = { .type = PH_TUNNEL_WIREGUARD, .mtu = 1420, .prefix_len = 24, .range_len = 8,
				    .endpoint = "gw.example.com:51820" };
	struct ph_device_state device = { .has_key = true, .listen_port = 51820 };
	json_t *answer, *result;

	answer = read_answer(ph_control_error(-EBUSY, "a \"quoted\"\nword"));
	ktap_ok(json_is_false(json_object_get(answer, "ok")) && !strcmp(text_of(answer, "code"), "EBUSY") &&
			!strcmp(text_of(answer, "error"), "a \"quoted\"\nword"),
		"an error is one line with code and words");
	json_decref(answer);

	answer = read_answer(ph_control_cvm(&cvm));
	result = json_object_get(answer, "result");
	ktap_ok(json_is_true(json_object_get(answer, "ok")) && !strcmp(text_of(result, "app"), "shop") &&
			!strcmp(text_of(result, "instance"), "shop1") &&
			!strcmp(text_of(result, "address"), "10.1.2.3") && !strcmp(text_of(result, "state"), "ready") &&
			!strcmp(text_of(result, "endpoint"), "[2001:db8::7]:51820"),
		"a CVM's ids, address, state and endpoint");
	ktap_ok(json_integer_value(json_object_get(result, "handshake_age_s")) == 12 &&
			json_integer_value(json_object_get(result, "rx_bytes")) == 5000000000 &&
			json_integer_value(json_object_get(result, "slot")) == 3 &&
			json_integer_value(json_object_get(result, "generation")) == 4 &&
			json_integer_value(json_object_get(result, "added")) == 1700000000,
		"a CVM's numbers");
	ktap_ok(!strcmp(text_of(result, "public_key"), "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk="), "a CVM's key");
	json_decref(answer);

	entry.cvm.draining = true;
	entry.endpoint.ss_family = 0;
	cvm.handshake_age_s = -1;
	cvm.health = PH_HEALTH_NEVER;
	answer = read_answer(ph_control_cvm(&cvm));
	result = json_object_get(answer, "result");
	ktap_ok(!strcmp(text_of(result, "state"), "draining") &&
			json_is_null(json_object_get(result, "handshake_age_s")) &&
			json_is_null(json_object_get(result, "endpoint")) &&
			json_is_string(json_object_get(result, "health")),
		"what is not known is null");
	json_decref(answer);

	inet_pton(AF_INET, "10.0.0.1", &tunnel.address);
	answer = read_answer(ph_control_added(&cvm, &tunnel, &device));
	result = json_object_get(answer, "result");
	ktap_ok(!strcmp(text_of(result, "allowed_ips"), "10.0.0.0/24") &&
			!strcmp(text_of(result, "endpoint"), "gw.example.com:51820") &&
			strlen(text_of(result, "gateway_public_key")) == 44 &&
			json_integer_value(json_object_get(result, "keepalive_s")) == 25 &&
			json_integer_value(json_object_get(result, "mtu")) == 1420 &&
			json_integer_value(json_object_get(result, "listen_port")) == 51820,
		"what is added learns its side of the tunnel");
	json_decref(answer);

	device.has_key = false;
	tunnel.endpoint[0] = 0;
	answer = read_answer(ph_control_added(&cvm, &tunnel, &device));
	result = json_object_get(answer, "result");
	ktap_ok(json_is_null(json_object_get(result, "gateway_public_key")) &&
			json_is_null(json_object_get(result, "endpoint")),
		"with an external tunnel there is no key to tell");
	json_decref(answer);
}

static void test_status(void)
{
	struct ph_gateway gateway = { .workers = 2 };
	struct ph_worker *workers = calloc(PH_WORKERS_MAX, sizeof(*workers));
	struct ph_maps maps = { .gateway = &gateway, .workers = workers };
	struct ph_tunnel tunnel = { .interface = "wg0" };
	struct ph_device_state device = { .ifindex = 4, .up = true };
	const struct ph_gates_row gate[] = { { NULL, PH_GATE_OFF, "no kernel" }, { "eth0", PH_GATE_TC, "" } };
	struct ph_holder_counts holder = { .turned_away = 21, .restarts = 8, .hung = 3 };
	struct ph_control_status status = {
		.holder = &holder, .now_ns = 100000000000, .started_ns = 40000000000, .tunnel = &tunnel, .device = &device, .maps = &maps,
		.cvms = 9, .apps = 4, .healthy = 7, .draining = 1, .trouble = "", .gate = gate, .gate_rows = 2,
	};
	json_t *answer, *result, *counters, *worker, *rows;

	workers[0] = (struct ph_worker){ .heartbeat_ns = 99000000000, .pid = 42, .active = 3 };
	workers[0].counters[PH_REASON_ACCEPTED] = 5;
	workers[1].counters[PH_REASON_ACCEPTED] = 6;
	workers[9].counters[PH_REASON_ACCEPTED] = 100;
	answer = read_answer(ph_control_status(&status));
	result = json_object_get(answer, "result");
	counters = json_object_get(result, "counters");
	worker = json_array_get(json_object_get(result, "workers"), 0);
	ktap_ok(json_integer_value(json_object_get(result, "uptime_s")) == 60 &&
			json_integer_value(json_object_get(result, "cvms")) == 9 &&
			json_integer_value(json_object_get(result, "healthy")) == 7 &&
			json_is_null(json_object_get(result, "trouble")),
		"status: counts and uptime");
	rows = json_object_get(result, "gate");
	ktap_ok(json_array_size(rows) == 2 && json_is_null(json_object_get(json_array_get(rows, 0), "device")) &&
			!strcmp(json_string_value(json_object_get(json_array_get(rows, 0), "trouble")), "no kernel") &&
			!strcmp(json_string_value(json_object_get(json_array_get(rows, 1), "mode")), "tc") &&
			json_is_null(json_object_get(json_array_get(rows, 1), "trouble")),
		"status: the gate on each device, and what is wrong");
	ktap_ok(json_integer_value(json_object_get(result, "restarts")) == 8 &&
			json_integer_value(json_object_get(result, "hung")) == 3,
		"status: what the holder counts");
	ktap_ok(json_array_size(json_object_get(result, "workers")) == 2 &&
			json_integer_value(json_object_get(worker, "pid")) == 42 &&
			json_integer_value(json_object_get(worker, "active")) == 3 &&
			json_number_value(json_object_get(worker, "heartbeat_age_s")) == 1.0 &&
			json_is_null(json_object_get(json_array_get(json_object_get(result, "workers"), 1),
						     "heartbeat_age_s")),
		"status: the workers that are in use");
	ktap_ok(json_object_size(counters) == PH_REASON_COUNT &&
			json_integer_value(json_object_get(counters, "accepted")) == 111 &&
			json_integer_value(json_object_get(counters, "turned-away")) == 21,
		"status: every reason, summed over all workers that ever were");
	ktap_ok(json_is_true(json_object_get(json_object_get(result, "tunnel"), "up")), "status: the tunnel");
	json_decref(answer);
	free(workers);
}

int main(void)
{
	ktap_header();
	test_parse();
	test_large();
	test_answers();
	test_status();
	return ktap_end();
}
