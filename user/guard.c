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
#include "pins.h"

/* Ours among the filters of a clsact: nobody else's is touched. */
#define GUARD_HANDLE 0x70686c
#define GUARD_PRIORITY 2		/* steer has 1 */

struct ph_guard {
	char *bpf_dir;
	uint32_t worker_uid;
	bool l2;
	struct ph_guard_bpf *skel;		/* for devices of that layer */
};

/* What to look for when the kernel refuses the programs; libbpf and the verifier each have their errors for it. */
static const char *kernel_lacks(int err)
{
	return err == -EINVAL || err == -ENOTSUP || err == -ENOENT || err == -ESRCH || err == -ENOSYS || err == -EACCES ?
	       "; Linux 6.1 (Debian 12) with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT has what they need" : "";
}

/* Programs for a device with or without Ethernet headers, in place of those there are. */
static int load(struct ph_guard *guard, bool l2, char *error, size_t error_size)
{
	struct ph_guard_bpf *skel = ph_guard_bpf__open();
	int err;

	if (!skel) {
		err = -errno;
		snprintf(error, error_size, "guard: cannot open the programs: %s", strerror(-err));
		return err;
	}
	skel->rodata->worker_uid = guard->worker_uid;
	skel->rodata->device_l2 = l2;
	err = ph_pins_reuse(skel->obj, guard->bpf_dir, "guard", error, error_size);
	if (!err) {
		err = ph_guard_bpf__load(skel);
		if (err)
			snprintf(error, error_size, "guard: cannot load the programs: %s%s", strerror(-err),
				 kernel_lacks(err));
	}
	if (err) {
		ph_guard_bpf__destroy(skel);
		return err;
	}
	ph_guard_bpf__destroy(guard->skel);
	guard->skel = skel;
	guard->l2 = l2;
	return 0;
}

int ph_guard_load(const char *bpf_dir, uint32_t worker_uid, struct ph_guard **ret_guard, char *error, size_t error_size)
{
	struct ph_guard *guard = calloc(1, sizeof(*guard));
	int err = -ENOMEM;

	snprintf(error, error_size, "guard: out of memory");
	if (!guard)
		return err;
	guard->worker_uid = worker_uid;
	guard->bpf_dir = strdup(bpf_dir);
	if (guard->bpf_dir)
		err = load(guard, false, error, error_size);
	if (err)
		ph_guard_free(guard);
	else
		*ret_guard = guard;
	return err;
}

void ph_guard_free(struct ph_guard *guard)
{
	if (!guard)
		return;
	ph_guard_bpf__destroy(guard->skel);
	free(guard->bpf_dir);
	free(guard);
}

static int attach(uint32_t ifindex, enum bpf_tc_attach_point point, const struct bpf_program *program)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)ifindex, .attach_point = point);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GUARD_HANDLE, .priority = GUARD_PRIORITY,
		    .prog_fd = bpf_program__fd(program), .flags = BPF_TC_F_REPLACE);

	return bpf_tc_attach(&hook, &opts);
}

int ph_guard_attach(struct ph_guard *guard, uint32_t ifindex, bool l2)
{
	LIBBPF_OPTS(bpf_tc_hook, both, .ifindex = (int)ifindex,
		    .attach_point = (enum bpf_tc_attach_point)(BPF_TC_INGRESS | BPF_TC_EGRESS));
	char error[256];
	int err = 0;

	if (l2 != guard->l2)
		err = load(guard, l2, error, sizeof(error));
	if (err)
		return err;
	err = bpf_tc_hook_create(&both);
	if (err && err != -EEXIST)
		return err;
	err = attach(ifindex, BPF_TC_INGRESS, guard->skel->progs.guard_from_cvm);
	if (err)
		return err;
	return attach(ifindex, BPF_TC_EGRESS, guard->skel->progs.guard_to_cvm);
}

/* Is our filter there? @program: and is it this one; NULL takes any. Return: 1, 0, or -errno. */
static int is_attached(uint32_t ifindex, enum bpf_tc_attach_point point, const struct bpf_program *program)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)ifindex, .attach_point = point);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GUARD_HANDLE, .priority = GUARD_PRIORITY);
	struct bpf_prog_info info = { 0 };
	__u32 len = sizeof(info);
	int err = bpf_tc_query(&hook, &opts);

	if (err)
		return err == -ENOENT || err == -EINVAL || err == -ENODEV ? 0 : err;
	if (!program)
		return 1;
	err = bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &len);
	return err ? err : info.id == opts.prog_id;
}

int ph_guard_is_attached(const struct ph_guard *guard, uint32_t ifindex)
{
	int attached = is_attached(ifindex, BPF_TC_INGRESS, guard->skel->progs.guard_from_cvm);

	return attached > 0 ? is_attached(ifindex, BPF_TC_EGRESS, guard->skel->progs.guard_to_cvm) : attached;
}

static int detach(uint32_t ifindex, enum bpf_tc_attach_point point)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)ifindex, .attach_point = point);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GUARD_HANDLE, .priority = GUARD_PRIORITY);
	int attached = is_attached(ifindex, point, NULL), err;

	if (attached <= 0)
		return attached;
	err = bpf_tc_detach(&hook, &opts);
	return err ? err : 1;
}

int ph_guard_detach(uint32_t ifindex)
{
	int in = detach(ifindex, BPF_TC_INGRESS), out = detach(ifindex, BPF_TC_EGRESS);

	return in < 0 ? in : out < 0 ? out : in || out;
}
