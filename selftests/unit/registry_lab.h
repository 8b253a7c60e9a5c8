/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registry_lab - what the tests of the registry share: a directory, keys, and a CVM in one call.
 */
#ifndef REGISTRY_LAB_H
#define REGISTRY_LAB_H

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ktap.h"
#include "registry.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define HOUR_MS 3600000

static char lab_dir[64], lab_path[128], lab_error[512];
static struct ph_registry_options lab_options;

/* A fresh directory; the registry in it is @range less @own, as "10.0.0.0/8" and "10.0.0.0/24". */
static inline int lab_start(const char *range, const char *own)
{
	char address[32];
	int len;

	strcpy(lab_dir, "/tmp/phala-registry.XXXXXX");
	if (!mkdtemp(lab_dir))
		return -errno;
	snprintf(lab_path, sizeof(lab_path), "%s/registry.db", lab_dir);
	memset(&lab_options, 0, sizeof(lab_options));
	lab_options.path = lab_path;
	lab_options.quarantine_ms = HOUR_MS;
	if (sscanf(range, "%31[0-9.]/%d", address, &len) != 2)
		return -EINVAL;
	lab_options.range.s_addr = inet_addr(address);
	lab_options.range_len = (uint8_t)len;
	if (sscanf(own, "%31[0-9.]/%d", address, &len) != 2)
		return -EINVAL;
	lab_options.gateway.s_addr = inet_addr(address);
	lab_options.gateway_len = (uint8_t)len;
	return 0;
}

static inline void lab_end(void)
{
	static const char *const names[] = {
		"registry.db", "registry.db-wal", "registry.db-shm", "registry.db-journal", "registry.db.new",
		"registry.db.new-wal", "registry.db.new-journal",
	};
	char path[160];

	for (size_t i = 0; i < COUNT(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", lab_dir, names[i]);
		unlink(path);
	}
	if (rmdir(lab_dir))
		ktap_ok(0, "nothing is left in %s: %m", lab_dir);
}

static inline struct ph_registry *lab_open(void)
{
	struct ph_registry *registry = NULL;
	int err = ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error));

	if (err)
		ktap_ok(0, "the registry opens: %d %s", err, lab_error);
	return registry;
}

/* A key like no other number's. */
static inline const uint8_t *lab_key(uint32_t number)
{
	static uint8_t key[PH_KEY_LEN];

	memset(key, 0x40, sizeof(key));
	memcpy(key + 4, &number, sizeof(number));
	return key;
}

static inline int lab_add(struct ph_registry *registry, const char *app_id, const char *instance_id, uint32_t key,
			  struct ph_cvm *ret_cvm)
{
	return ph_registry_add(registry, app_id, instance_id, lab_key(key), ret_cvm, lab_error, sizeof(lab_error));
}

static inline int lab_remove(struct ph_registry *registry, const char *instance_id)
{
	return ph_registry_remove(registry, instance_id, lab_error, sizeof(lab_error));
}

static inline bool lab_is_at(const struct ph_cvm *cvm, const char *address)
{
	return cvm->address.s_addr == inet_addr(address);
}

/* All that is in it, one line a CVM; the caller's to free. */
static inline int lab_line(const struct ph_cvm *cvm, void *arg)
{
	char key[2 * PH_KEY_LEN + 1], address[INET_ADDRSTRLEN];

	for (int i = 0; i < PH_KEY_LEN; i++)
		sprintf(key + 2 * i, "%02x", cvm->public_key[i]);
	inet_ntop(AF_INET, &cvm->address, address, sizeof(address));
	fprintf(arg, "%s %s %s %s slot %u generation %u%s added %lld seen %lld\n", cvm->app_id, cvm->instance_id, key,
		address, cvm->slot, cvm->generation, cvm->draining ? " draining" : "", (long long)cvm->added_s,
		(long long)cvm->seen_s);
	return 0;
}

static inline char *lab_dump(struct ph_registry *registry)
{
	char *text = NULL;
	size_t size;
	FILE *file = open_memstream(&text, &size);

	if (!file)
		abort();
	if (ph_registry_each(registry, lab_line, file))
		fprintf(file, "not read\n");
	fclose(file);
	return text;
}

#endif
