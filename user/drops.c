// SPDX-License-Identifier: Apache-2.0
#include "drops.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define WALK_BATCH 1024

struct ph_drops {
	int totals_fd, cvms_fd;
	int cpus;
};

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level, (void)format, (void)args;
	return 0;
}

/* Return: a descriptor, or -errno with @error set. */
static int open_map(const char *bpf_dir, const char *name, uint32_t value_size, uint32_t entries, char *error,
		    size_t error_size)
{
	LIBBPF_OPTS(bpf_obj_get_opts, options, .file_flags = BPF_F_RDONLY);
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);
	char path[PATH_MAX];
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", bpf_dir, name) >= (int)sizeof(path)) {
		snprintf(error, error_size, "%s: name too long", bpf_dir);
		return -ENAMETOOLONG;
	}
	fd = bpf_obj_get_opts(path, &options);
	if (fd < 0) {
		snprintf(error, error_size, "%s: %s", path, strerror(-fd));
		return fd;
	}
	/* What is looked up is written to memory by the kernel, as long as the map says. */
	if (bpf_obj_get_info_by_fd(fd, &info, &len) || info.key_size != sizeof(__u32) ||
	    info.value_size != value_size || info.max_entries != entries) {
		snprintf(error, error_size, "%s has another layout", path);
		close(fd);
		return -ESTALE;
	}
	return fd;
}

int ph_drops_open(const char *bpf_dir, struct ph_drops **ret_drops, char *error, size_t error_size)
{
	struct ph_drops *drops = calloc(1, sizeof(*drops));
	int err;

	libbpf_set_print(quiet);
	if (!drops) {
		snprintf(error, error_size, "out of memory");
		return -ENOMEM;
	}
	drops->cvms_fd = -1;
	drops->cpus = libbpf_num_possible_cpus();
	drops->totals_fd = open_map(bpf_dir, "ph_guard", sizeof(__u64), PH_GUARD_MAX, error, error_size);
	err = drops->totals_fd;
	if (err >= 0)
		err = drops->cvms_fd = open_map(bpf_dir, "ph_guard_cvms", sizeof(struct ph_guard_cvm),
						PH_INSTANCES_MAX + 1, error, error_size);
	if (err >= 0 && drops->cpus < 0) {
		err = drops->cpus;
		snprintf(error, error_size, "the number of CPUs: %s", strerror(-err));
	}
	if (err < 0) {
		ph_drops_free(drops);
		return err;
	}
	*ret_drops = drops;
	return 0;
}

void ph_drops_free(struct ph_drops *drops)
{
	if (!drops)
		return;
	if (drops->totals_fd >= 0)
		close(drops->totals_fd);
	if (drops->cvms_fd >= 0)
		close(drops->cvms_fd);
	free(drops);
}

int ph_drops_totals(const struct ph_drops *drops, __u64 ret_counters[PH_GUARD_MAX])
{
	__u64 *values = calloc(drops->cpus, sizeof(*values)), sums[PH_GUARD_MAX] = { 0 };
	int err = values ? 0 : -ENOMEM;

	for (uint32_t reason = 0; !err && reason < PH_GUARD_MAX; reason++) {
		err = bpf_map_lookup_elem(drops->totals_fd, &reason, values);
		for (int cpu = 0; !err && cpu < drops->cpus; cpu++)
			sums[reason] += values[cpu];
	}
	free(values);
	if (!err)
		memcpy(ret_counters, sums, sizeof(sums));
	return err;
}

int ph_drops_each(const struct ph_drops *drops,
		  int (*visit)(__be32 address, const struct ph_guard_cvm *cvm, void *arg), void *arg)
{
	struct ph_guard_cvm *values = calloc(WALK_BATCH, sizeof(*values));
	__be32 *keys = calloc(WALK_BATCH, sizeof(*keys));
	__u32 from = 0, to = 0, count;
	int err = keys && values ? 0 : -ENOMEM, last = 0;
	bool first = true;

	while (!err && !last) {
		count = WALK_BATCH;
		last = bpf_map_lookup_batch(drops->cvms_fd, first ? NULL : &from, &to, keys, values, &count, NULL);
		if (last && last != -ENOENT)
			err = last;
		for (__u32 i = 0; i < count && !err; i++)
			err = visit(keys[i], &values[i], arg);
		from = to;
		first = false;
	}
	free(keys);
	free(values);
	return err;
}
