// SPDX-License-Identifier: Apache-2.0
/*
 * What several verbs read from the pinned maps, in words.
 */
#include "phalactl.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <route.h>

#define COPY_TRIES 100				/* of a slot that its writer changes meanwhile: microseconds each */

const struct ph_ctl_word ph_ctl_reasons[PH_REASON_COUNT] = {
#define ROW(name, word, text) [PH_REASON_##name] = { word, text },
	PH_REASONS(ROW)
#undef ROW
};

const struct ph_ctl_word ph_ctl_guard_reasons[PH_GUARD_COUNT] = {
#define ROW(name, word, text) [PH_GUARD_##name] = { word, text },
	PH_GUARD_REASONS(ROW)
#undef ROW
};

struct ph_json *ph_ctl_counters_json(const __u64 *counters, size_t count, const struct ph_ctl_word *words,
				     size_t word_count)
{
	struct ph_json *object = ph_json_object();
	char later[32];

	for (size_t i = 0; i < count; i++) {
		if (!counters[i])
			continue;
		snprintf(later, sizeof(later), "reason-%zu", i);
		ph_json_set_number(object, i < word_count ? words[i].word : later, counters[i]);
	}
	return object;
}

struct counters {
	const struct ph_ctl_word *words;
	size_t word_count;
	struct ph_json *rows;
};

static void add_counter(const char *word, const struct ph_json *value, void *arg)
{
	uint64_t count = (uint64_t)ph_json_value_number(value, 0);
	const struct counters *counters = arg;
	const char *text = NULL;
	struct ph_json *row;

	if (!count)
		return;
	for (size_t i = 0; i < counters->word_count; i++) {
		if (!strcmp(counters->words[i].word, word))
			text = counters->words[i].text;
	}
	row = ph_json_object();
	ph_json_set_string(row, "reason", word);
	ph_json_set_number(row, "count", count);
	ph_json_set_string(row, "text", text);
	ph_json_add(counters->rows, row);
}

void ph_ctl_counters_print(const struct ph_json *object, const struct ph_ctl_word *words, size_t word_count,
			   const char *heading, FILE *out)
{
	const struct ph_column columns[] = {
		{ "reason", heading, PH_CELL_TEXT },
		{ "count", "COUNT", PH_CELL_NUMBER },
		{ "text", "MEANING", PH_CELL_TEXT },
		{ 0 },
	};
	struct counters counters = { .words = words, .word_count = word_count, .rows = ph_json_array() };

	ph_json_each(object, add_counter, &counters);
	if (ph_json_count(counters.rows))
		ph_table_print(counters.rows, columns, out);
	ph_json_free(counters.rows);
}

int ph_ctl_maps_open(const struct ph_ctl *ctl, struct ph_maps **ret_maps)
{
	char error[512];

	if (ph_maps_open(ctl->bpf_dir, -1, ret_maps, error, sizeof(error)))
		return ph_ctl_fail("%s", error);
	return PH_CTL_DONE;
}

uint64_t ph_ctl_boot_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

double ph_ctl_age_s(uint64_t now_ns, uint64_t then_ns)
{
	return now_ns > then_ns ? (now_ns - then_ns) / 1000000 / 1e3 : 0;
}

bool ph_ctl_slot(const struct ph_maps *maps, uint32_t slot, struct ph_instance *ret_instance)
{
	const struct ph_instance *at = &maps->instances[slot];

	for (int tries = 0; tries < COPY_TRIES; tries++) {
		uint32_t generation = __atomic_load_n(&at->generation, __ATOMIC_ACQUIRE);
		struct ph_instance copy;

		memcpy(&copy, at, sizeof(copy));
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (__atomic_load_n(&at->generation, __ATOMIC_RELAXED) != generation)
			continue;
		if (!generation)
			return false;
		copy.generation = generation;
		copy.app_id[PH_ID_SIZE - 1] = copy.instance_id[PH_ID_SIZE - 1] = 0;
		*ret_instance = copy;
		return true;
	}
	return false;
}

bool ph_ctl_is_down(uint32_t ifindex)
{
	struct ifreq device = { 0 };
	bool is_down;
	int fd;

	if (!if_indextoname(ifindex, device.ifr_name))
		return false;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	is_down = fd >= 0 && !ioctl(fd, SIOCGIFFLAGS, &device) && !(device.ifr_flags & IFF_UP);
	if (fd >= 0)
		close(fd);
	return is_down;
}

bool ph_ctl_find_id(const struct ph_maps *maps, const char *id, enum ph_id_kind kind, struct ph_id *ret_id)
{
	char key[PH_ID_SIZE] __attribute__((aligned(8))) = "";
	struct ph_id found;
	size_t len = strlen(id);

	if (len >= sizeof(key))
		return false;
	memcpy(key, id, len);
	if (ph_maps_find_id(maps, key, &found) || found.kind != kind)
		return false;
	*ret_id = found;
	return true;
}

bool ph_ctl_instance(const struct ph_maps *maps, const struct ph_ref *ref, struct ph_instance *ret_instance)
{
	struct ph_instance copy;

	if (ref->slot >= PH_INSTANCES_MAX || !ph_ctl_slot(maps, ref->slot, &copy) || copy.generation != ref->generation)
		return false;
	*ret_instance = copy;
	return true;
}

static const char *state_word(uint32_t state)
{
	switch (state) {
	case PH_INSTANCE_FREE:
		return "free";
	case PH_INSTANCE_READY:
		return "ready";
	case PH_INSTANCE_DRAINING:
		return "draining";
	default:
		return "unknown";
	}
}

struct ph_json *ph_ctl_instance_json(const struct ph_maps *maps, const struct ph_ref *ref,
				     const struct ph_instance *instance, const char *id)
{
	struct ph_gateway gateway = *maps->gateway;
	struct ph_json *row = ph_json_object();
	char address[INET_ADDRSTRLEN];
	enum ph_health health;
	__be32 ignored;

	inet_ntop(AF_INET, &instance->address, address, sizeof(address));
	health = ph_instance_health(&gateway, instance, ref, id, &ignored);
	ph_json_set_string(row, "instance", instance->instance_id);
	ph_json_set_string(row, "app", instance->app_id);
	ph_json_set_string(row, "address", address);
	ph_json_set_string(row, "state", state_word(instance->state));
	ph_json_set_string(row, "health", ph_health_word(health));
	if (instance->handshake_ns)
		ph_json_set_real(row, "handshake_age_s", ph_ctl_age_s(gateway.health_now_ns, instance->handshake_ns));
	else
		ph_json_set(row, "handshake_age_s", NULL);
	ph_json_set_number(row, "slot", ref->slot);
	ph_json_set_number(row, "generation", ref->generation);
	return row;
}

const char *ph_ctl_mode(uint8_t mode)
{
	switch (mode) {
	case PH_MODE_STANDARD:
		return "standard";
	case PH_MODE_PASSTHROUGH:
		return "passthrough";
	case PH_MODE_GRPC:
		return "grpc";
	default:
		return "unknown";
	}
}

struct ph_json *ph_ctl_load_reasons(const struct ph_load *load)
{
	static const enum ph_reason reasons[PH_LOAD_REASON_COUNT] = {
#define ROW(name) [PH_LOAD_REASON_##name] = PH_REASON_##name,
		PH_LOAD_REASONS(ROW)
#undef ROW
	};
	__u64 counters[PH_REASON_COUNT] = { 0 };

	for (uint32_t i = 0; i < PH_LOAD_REASON_COUNT; i++)
		counters[reasons[i]] = load->reasons[i];
	return ph_ctl_counters_json(counters, PH_REASON_COUNT, ph_ctl_reasons, PH_REASON_COUNT);
}

const char *ph_ctl_address(char *text, const struct in6_addr *address)
{
	if (IN6_IS_ADDR_V4MAPPED(address))
		return inet_ntop(AF_INET, &address->s6_addr32[3], text, INET6_ADDRSTRLEN);
	return inet_ntop(AF_INET6, address, text, INET6_ADDRSTRLEN);
}

struct ph_json *ph_ctl_worker_json(const struct ph_maps *maps, uint32_t index, const char *key)
{
	const struct ph_worker worker = maps->workers[index];
	struct ph_json *row;

	if (!worker.heartbeat_ns && !worker.pid)
		return NULL;
	row = ph_json_object();
	ph_json_set_number(row, key, index);
	ph_json_set_number(row, "pid", worker.pid);
	if (worker.heartbeat_ns)
		ph_json_set_real(row, "heartbeat_age_s", ph_ctl_age_s(ph_ctl_boot_now_ns(), worker.heartbeat_ns));
	else
		ph_json_set(row, "heartbeat_age_s", NULL);
	ph_json_set_number(row, "active", worker.active);
	ph_json_set_number(row, "bytes_from_clients", worker.bytes_from_clients);
	ph_json_set_number(row, "bytes_from_cvms", worker.bytes_from_cvms);
	return row;
}
