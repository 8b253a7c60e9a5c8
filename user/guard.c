// SPDX-License-Identifier: Apache-2.0
#include "guard.h"

#include <errno.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "guard.skel.h"

/* Ours among the filters of a clsact: nobody else's is touched. */
#define GUARD_HANDLE 0x70686c
#define GUARD_PRIORITY 2		/* steer has 1 */

struct ph_guard {
	struct ph_guard_bpf *skel;
};

static int counters_path(char *path, size_t size, const char *bpf_dir)
{
	return (size_t)snprintf(path, size, "%s/ph_guard", bpf_dir) < size ? 0 : -ENAMETOOLONG;
}

/* What to look for when the kernel refuses the programs; libbpf and the verifier each have their errors for it. */
static const char *kernel_lacks(int err)
{
	return err == -EINVAL || err == -ENOTSUP || err == -ENOENT || err == -ESRCH || err == -ENOSYS || err == -EACCES ?
	       "; Linux 6.1 (Debian 12) with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT has what they need" : "";
}

int ph_guard_load(const char *bpf_dir, uint32_t worker_uid, struct ph_guard **ret_guard, char *error, size_t error_size)
{
	struct ph_guard *guard = calloc(1, sizeof(*guard));
	char path[PATH_MAX];
	int err;

	if (!guard)
		return -ENOMEM;
	err = counters_path(path, sizeof(path), bpf_dir);
	if (err)
		goto fail;
	guard->skel = ph_guard_bpf__open();
	if (!guard->skel) {
		err = -errno;
		goto fail;
	}
	guard->skel->rodata->worker_uid = worker_uid;
	err = bpf_map__set_pin_path(guard->skel->maps.ph_guard, path);
	if (!err)
		err = ph_guard_bpf__load(guard->skel);
	if (err)
		goto fail;
	*ret_guard = guard;
	return 0;
fail:
	snprintf(error, error_size, "guard: cannot load the programs with counters at %s/ph_guard: %s%s", bpf_dir,
		 strerror(-err), kernel_lacks(err));
	ph_guard_free(guard);
	return err;
}

void ph_guard_free(struct ph_guard *guard)
{
	if (!guard)
		return;
	ph_guard_bpf__destroy(guard->skel);
	free(guard);
}

static int attach(uint32_t ifindex, enum bpf_tc_attach_point point, int prog_fd)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)ifindex, .attach_point = point);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GUARD_HANDLE, .priority = GUARD_PRIORITY, .prog_fd = prog_fd,
		    .flags = BPF_TC_F_REPLACE);

	return bpf_tc_attach(&hook, &opts);
}

int ph_guard_attach(struct ph_guard *guard, uint32_t ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, both, .ifindex = (int)ifindex,
		    .attach_point = (enum bpf_tc_attach_point)(BPF_TC_INGRESS | BPF_TC_EGRESS));
	int err = bpf_tc_hook_create(&both);

	if (err && err != -EEXIST)
		return err;
	err = attach(ifindex, BPF_TC_INGRESS, bpf_program__fd(guard->skel->progs.guard_from_cvm));
	if (err)
		return err;
	return attach(ifindex, BPF_TC_EGRESS, bpf_program__fd(guard->skel->progs.guard_to_cvm));
}

int ph_guard_counters(const char *bpf_dir, uint64_t ret_counters[PH_GUARD_COUNT])
{
	int cpus = libbpf_num_possible_cpus(), fd, err = 0;
	uint64_t sums[PH_GUARD_COUNT] = { 0 };
	uint64_t *values = NULL;
	char path[PATH_MAX];

	if (cpus < 0)
		return cpus;
	err = counters_path(path, sizeof(path), bpf_dir);
	if (err)
		return err;
	fd = bpf_obj_get(path);
	if (fd < 0)
		return -errno;
	values = calloc(cpus, sizeof(*values));
	if (!values)
		err = -ENOMEM;
	for (uint32_t reason = 0; !err && reason < PH_GUARD_COUNT; reason++) {
		if (bpf_map_lookup_elem(fd, &reason, values))
			err = -errno;
		for (int cpu = 0; cpu < cpus; cpu++)
			sums[reason] += values[cpu];
	}
	free(values);
	close(fd);
	if (!err)
		memcpy(ret_counters, sums, sizeof(sums));
	return err;
}
