// SPDX-License-Identifier: Apache-2.0
/*
 * Watching; and flow watch: each flow that begins, ends, or is declined.
 */
#include "phalactl_watch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "phalactl_flow.h"

#define TURN_MS 500

struct watching {
	const struct ph_ctl *ctl;
	const struct ph_ctl_watching *what;
	const struct ph_maps *maps;
	uint64_t seen;
};

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static const char *kind_word(uint32_t kind)
{
	switch (kind) {
	case PH_EVENT_BEGIN:
		return "begin";
	case PH_EVENT_END:
		return "end";
	case PH_EVENT_DECLINE:
		return "decline";
	default:
		return "unknown";
	}
}

double ph_ctl_unix_s(uint64_t monotonic_ns)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec + now.tv_nsec / 1000000 / 1e3 - ph_ctl_age_s(ph_flows_now_ns(), monotonic_ns);
}

const char *ph_ctl_clock(char *text, size_t size, double unix_s)
{
	time_t seconds = (time_t)unix_s;
	struct tm broken;
	size_t len = 0;

	if (localtime_r(&seconds, &broken))
		len = strftime(text, size, "%H:%M:%S", &broken);
	snprintf(text + len, size - len, ".%03u", (unsigned)((unix_s - (double)seconds) * 1000));
	return text;
}

static struct ph_json *event_json(const void *record, const struct ph_maps *maps)
{
	const struct ph_event *event = record;
	struct ph_json *json = ph_json_object();
	char text[PH_CTL_ENDPOINT_SIZE];

	ph_json_set_real(json, "time", ph_ctl_unix_s(event->now_ns));
	ph_json_set_string(json, "event", kind_word(event->kind));
	snprintf(text, sizeof(text), "%u.%u", event->slot, event->generation);
	ph_json_set_string(json, "flow", text);
	ph_json_set_number(json, "slot", event->slot);
	ph_json_set_number(json, "generation", event->generation);
	ph_json_set_string(json, "client", ph_ctl_endpoint(text, event->key.client, event->key.client_port));
	ph_json_set_string(json, "gateway", ph_ctl_endpoint(text, event->key.gateway, event->key.gateway_port));
	ph_ctl_set_instance(json, maps, &event->instance);
	ph_json_set_string(json, "reason", ph_ctl_reason_word(event->reason));
	if (event->cvm)
		ph_json_set_string(json, "cvm", inet_ntop(AF_INET, &event->cvm, text, sizeof(text)));
	else
		ph_json_set(json, "cvm", NULL);
	ph_json_set_real(json, "age_s", ph_ctl_age_s(event->now_ns, event->begun_ns));
	ph_json_set_number(json, "bytes_from_client", event->bytes_from_client);
	ph_json_set_number(json, "packets_from_client", event->packets_from_client);
	ph_json_set_number(json, "bytes_from_cvm", event->bytes_from_cvm);
	ph_json_set_number(json, "packets_from_cvm", event->packets_from_cvm);
	return json;
}

static void print_event(const struct ph_json *json)
{
	const char *kind = ph_json_string(json, "event", "");
	char clock[32], age[48], up[48], down[48];

	printf("%s %-7s %-14s %-21s %s/%s", ph_ctl_clock(clock, sizeof(clock), ph_json_number(json, "time", 0)), kind,
	       ph_json_string(json, "flow", ""), ph_json_string(json, "client", ""), ph_json_string(json, "app", "-"),
	       ph_json_string(json, "instance", "-"));
	if (!strcmp(kind, "begin"))
		printf(" at %s", ph_json_string(json, "cvm", "-"));
	else
		printf(" %s", ph_json_string(json, "reason", "-"));
	if (!strcmp(kind, "end"))
		printf(" after %s, %s from client, %s from CVM",
		       ph_table_duration(age, sizeof(age), ph_json_number(json, "age_s", 0)),
		       ph_table_bytes(up, sizeof(up), ph_json_number(json, "bytes_from_client", 0)),
		       ph_table_bytes(down, sizeof(down), ph_json_number(json, "bytes_from_cvm", 0)));
	printf("\n");
}

/* Return: false when that was the last one wanted, or nobody takes them any more. */
static bool show(const void *event, void *arg)
{
	struct watching *watching = arg;
	struct ph_json *json = watching->what->json(event, watching->maps);

	if (watching->ctl->json) {
		char *text = ph_json_text(json);

		printf("%s\n", text);
		free(text);
	} else {
		watching->what->print(json);
	}
	ph_json_free(json);
	watching->seen++;
	return !fflush(stdout) && (!watching->ctl->count || watching->seen < watching->ctl->count) && !stopped;
}

static bool is_over(const struct watching *watching, uint64_t end_ns)
{
	return stopped || ferror(stdout) || (watching->ctl->count && watching->seen >= watching->ctl->count) ||
	       (end_ns && ph_flows_now_ns() >= end_ns);
}

/* Return: 0 or -errno. */
static int watch_on(struct watching *watching, struct ph_watch *watch)
{
	const uint32_t seconds = watching->ctl->seconds;
	uint64_t end_ns = seconds ? ph_flows_now_ns() + seconds * 1000000000ULL : 0;

	while (!is_over(watching, end_ns)) {
		uint64_t now_ns = ph_flows_now_ns(), left_ms = TURN_MS;
		int err;

		if (end_ns)
			left_ms = end_ns > now_ns ? (end_ns - now_ns) / 1000000 + 1 : 0;
		err = ph_watch_wait(watch, left_ms < TURN_MS ? (int)left_ms : TURN_MS);
		if (err && err != -EINTR)
			return err;
	}
	return 0;
}

int ph_ctl_watch(const struct ph_ctl *ctl, const struct ph_ctl_watching *what)
{
	const struct sigaction action = { .sa_handler = stop };
	struct watching watching = { .ctl = ctl, .what = what };
	struct ph_watch *watch = NULL;
	struct ph_maps *maps = NULL;
	char error[PATH_MAX + 128];
	int status, err;

	status = ph_ctl_maps_open(ctl, &maps);
	if (status)
		return status;
	watching.maps = maps;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	if (ph_watch_begin(ctl->bpf_dir, what->what, show, &watching, &watch, error, sizeof(error))) {
		status = ph_ctl_fail("%s", error);
	} else {
		ph_ctl_say("watching; an interrupt (^C) ends it");
		err = watch_on(&watching, watch);
		if (err)
			status = ph_ctl_fail("%s: the events: %s", ctl->bpf_dir, strerror(-err));
	}
	ph_watch_free(watch);
	ph_maps_free(maps);
	return status;
}

int ph_ctl_flow_watch(const struct ph_ctl *ctl)
{
	static const struct ph_ctl_watching flows = { PH_WATCH_FLOWS, event_json, print_event };

	return ph_ctl_watch(ctl, &flows);
}
