// SPDX-License-Identifier: Apache-2.0
/*
 * stand - what phalad does for steer, and nothing else, by the line: for tests of the programs themselves.
 *
 *   stand BPFDIR NIC TUNNEL ADDRESS/LEN MTU PORT DOMAIN
 *
 * Creates the maps, loads and attaches (guard too, to a WireGuard device), prints "ready", then reads commands; each is answered by lines and a ".":
 *
 *   add APP INSTANCE ADDRESS	a healthy instance
 *   remove INSTANCE		and end its flows
 *   flows			slot state client cvm bytes packets bytes packets reason
 *   reasons			word and count of those that are not 0
 *   limit APPLIMIT IDLE_MS TRIES [SOURCELIMIT]
 *   counted			what limits count: clients, flows of clients, flows of instances, hellos of clients
 *   kill			all flows
 *   reload			the programs anew, over the same maps
 *   detach
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "guard.h"
#include "maps.h"
#include "steer.h"

#define INSTANCES 16
#define BATCH 4096

static const char *const states[] = { "free", "collecting", "binding", "spliced", "ended", "killed", "declined" };
static const char *const words[] = {
#define WORD(name, word, text) word,
	PH_REASONS(WORD)
#undef WORD
};

static struct ph_instance known[INSTANCES];
static uint32_t generation;
static const char *bpf_dir;

static int open_map(const char *name)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", bpf_dir, name);
	fd = bpf_obj_get(path);
	if (fd < 0)
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
	return fd;
}

static void publish(struct ph_maps *maps, const char *id, uint32_t kind)
{
	struct ph_id value = { .kind = kind };

	for (uint32_t i = 0; i < INSTANCES; i++) {
		const char *of = kind == PH_ID_APP ? known[i].app_id : known[i].instance_id;

		if (known[i].generation && !strcmp(of, id))
			value.refs[value.count++] = (struct ph_ref){ i, known[i].generation };
	}
	if (value.count)
		ph_maps_set_id(maps, id, &value);
	else
		ph_maps_remove_id(maps, id);
}

static int add(struct ph_maps *maps, const char *app, const char *id, const char *address)
{
	for (uint32_t i = 0; i < INSTANCES; i++) {
		struct ph_instance *instance = &known[i];

		if (instance->generation)
			continue;
		memset(instance, 0, sizeof(*instance));
		snprintf(instance->app_id, PH_ID_SIZE, "%s", app);
		snprintf(instance->instance_id, PH_ID_SIZE, "%s", id);
		inet_pton(AF_INET, address, &instance->address);
		instance->generation = ++generation;
		instance->state = PH_INSTANCE_READY;
		instance->handshake_ns = 1;
		ph_maps_set_instance(maps, i, instance);
		publish(maps, instance->app_id, PH_ID_APP);
		publish(maps, instance->instance_id, PH_ID_INSTANCE);
		return 0;
	}
	return -ENOSPC;
}

static int remove_instance(struct ph_maps *maps, struct ph_steering *steering, const char *id)
{
	for (uint32_t i = 0; i < INSTANCES; i++) {
		struct ph_instance gone = known[i];

		if (!gone.generation || strcmp(gone.instance_id, id))
			continue;
		memset(&known[i], 0, sizeof(known[i]));
		publish(maps, gone.app_id, PH_ID_APP);
		publish(maps, gone.instance_id, PH_ID_INSTANCE);
		ph_maps_free_instance(maps, i);
		printf("%d\n", ph_steer_kill_instance(steering, (struct ph_ref){ i, gone.generation }));
		return 0;
	}
	return -ENOENT;
}

static void print_flow(uint32_t slot, const struct ph_flow *flow)
{
	char client[INET_ADDRSTRLEN], cvm[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &flow->splice.key.client, client, sizeof(client));
	inet_ntop(AF_INET, &flow->splice.cvm, cvm, sizeof(cvm));
	printf("%u %s %s:%u %s:%u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %s\n", slot, states[flow->splice.state],
	       client, ntohs(flow->splice.key.client_port), cvm, ntohs(flow->splice.cvm_port),
	       (uint64_t)flow->client.bytes, (uint64_t)flow->client.packets, (uint64_t)flow->cvm.bytes,
	       (uint64_t)flow->cvm.packets, flow->reason ? words[flow->reason] : "-");
}

static void print_flows(int fd)
{
	static struct ph_flow flows[BATCH];
	static uint32_t slots[BATCH];
	uint32_t at = 0, count;
	int err = 0;

	for (bool first = true; !err; first = false) {
		count = BATCH;
		err = bpf_map_lookup_batch(fd, first ? NULL : &at, &at, slots, flows, &count, NULL);
		if (err && err != -ENOENT)
			break;
		for (uint32_t i = 0; i < count; i++)
			if (flows[i].splice.state != PH_FLOW_FREE)
				print_flow(slots[i], &flows[i]);
	}
}

static void print_reasons(int fd)
{
	int cpus = sysconf(_SC_NPROCESSORS_CONF);
	uint64_t counts[256];

	for (uint32_t reason = 0; reason < PH_REASON_COUNT; reason++) {
		uint64_t sum = 0;

		if (cpus > 256 || bpf_map_lookup_elem(fd, &reason, counts))
			continue;
		for (int i = 0; i < cpus; i++)
			sum += counts[i];
		if (sum)
			printf("%s %" PRIu64 "\n", words[reason], sum);
	}
}

/* What limits count: clients that have an element, their flows, the flows of all instances, and clients' hellos. */
static void print_counted(const struct ph_maps *maps)
{
	uint32_t clients = 0, flows = 0, active = 0, hellos = 0;
	__be32 key, *last = NULL;
	struct ph_client_count source;

	for (; !bpf_map_get_next_key(maps->sources_fd, last, &key); last = &key) {
		clients++;
		if (bpf_map_lookup_elem(maps->sources_fd, &key, &source))
			continue;
		flows += source.flows;
		hellos += source.hellos;
	}
	for (uint32_t i = 0; i < PH_INSTANCES_MAX; i++)
		active += maps->loads[i].active;
	printf("%u %u %u %u\n", clients, flows, active, hellos);
}

static void *refresh_health(struct ph_maps *maps)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	maps->gateway->health_now_ns = now.tv_sec * 1000000000ULL + now.tv_nsec;
	return NULL;
}

int main(int argc, char **argv)
{
	struct ph_steer_settings settings = { .tries = 3, .idle_timeout_ms = 3600000 };
	struct ph_steering *steering = NULL;
	uint32_t nic, tunnel, slots, l2 = 1;
	struct ph_guard *guard = NULL;
	struct ph_maps *maps = NULL;
	char error[512], line[512];
	int err, flows, reasons;

	if (argc != 8) {
		fprintf(stderr, "usage: stand BPFDIR NIC TUNNEL ADDRESS/LEN MTU PORT DOMAIN\n");
		return 2;
	}
	bpf_dir = argv[1];
	nic = if_nametoindex(argv[2]);
	tunnel = if_nametoindex(argv[3]);
	if (!strncmp(argv[3], "wg", 2))
		l2 = 0;
	argv[4][strcspn(argv[4], "/")] = 0;
	inet_pton(AF_INET, argv[4], &settings.address);
	settings.prefix_len = atoi(argv[4] + strlen(argv[4]) + 1);
	settings.tunnel_mtu = atoi(argv[5]);
	settings.ports[0] = atoi(argv[6]);
	err = ph_maps_create(bpf_dir, &maps, error, sizeof(error));
	if (!err)
		err = ph_steer_load(bpf_dir, l2, &steering, error, sizeof(error));
	if (err) {
		fprintf(stderr, "%s\n", error);
		return 1;
	}
	slots = ph_steer_set(steering, &settings);
	maps->gateway->flags = PH_GATEWAY_EXTERNAL;
	maps->gateway->tunnel_ifindex = tunnel;
	maps->gateway->healthy_for_ns = 300000000000ULL;
	maps->gateway->manager_grace_ns = 3600000000000ULL;
	refresh_health(maps);
	ph_maps_set_domain(maps, argv[7], 0);
	ph_steer_enable(steering, true);
	err = ph_steer_attach_nic(steering, nic);
	if (!err)
		err = ph_steer_attach_tunnel(steering, tunnel);
	if (!err && !l2) {
		err = ph_guard_load(bpf_dir, 0, &guard, error, sizeof(error));
		if (!err)
			err = ph_guard_attach(guard, tunnel, false);
	}
	if (err) {
		fprintf(stderr, "attach: %s\n", strerror(-err));
		return 1;
	}
	flows = open_map("ph_flows");
	reasons = open_map("ph_reasons");
	if (flows < 0 || reasons < 0)
		return 1;
	printf("ready %u\n.\n", slots);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		char a[64] = "", b[64] = "", c[64] = "", d[64] = "", verb[64] = "";

		sscanf(line, "%63s %63s %63s %63s %63s", verb, a, b, c, d);
		refresh_health(maps);
		err = 0;
		if (!strcmp(verb, "add")) {
			err = add(maps, a, b, c);
		} else if (!strcmp(verb, "remove")) {
			err = remove_instance(maps, steering, a);
		} else if (!strcmp(verb, "flows")) {
			print_flows(flows);
		} else if (!strcmp(verb, "reasons")) {
			print_reasons(reasons);
		} else if (!strcmp(verb, "limit")) {
			maps->gateway->app_limit = atoi(a);
			maps->gateway->source_limit = atoi(d);
			settings.idle_timeout_ms = atoi(b);
			settings.tries = atoi(c);
			ph_steer_set(steering, &settings);
		} else if (!strcmp(verb, "counted")) {
			print_counted(maps);
		} else if (!strcmp(verb, "kill")) {
			printf("%d\n", ph_steer_kill_all(steering, PH_REASON_KILLED));
		} else if (!strcmp(verb, "idle")) {
			printf("%d\n", ph_steer_kill_idle(steering));
		} else if (!strcmp(verb, "reload")) {
			ph_steer_free(steering);
			err = ph_steer_load(bpf_dir, l2, &steering, error, sizeof(error));
			if (!err)
				err = ph_steer_attach_nic(steering, nic);
			if (!err)
				err = ph_steer_attach_tunnel(steering, tunnel);
		} else if (!strcmp(verb, "detach")) {
			err = ph_steer_detach(nic);
			if (!err)
				err = ph_steer_detach(tunnel);
		} else {
			err = -EINVAL;
		}
		if (err)
			printf("error %s\n", strerror(-err));
		printf(".\n");
		fflush(stdout);
	}
	ph_guard_free(guard);
	ph_steer_free(steering);
	ph_maps_free(maps);
	return 0;
}
