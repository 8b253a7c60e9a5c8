// SPDX-License-Identifier: Apache-2.0
#include "gate.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "gate.skel.h"

/* Ours among the filters of a clsact: nobody else's is touched. Before steer, which has 2 on NICs. */
#define GATE_HANDLE 0x70686774
#define GATE_PRIORITY 1

#define LINK_PREFIX "gate_link_"		/* and the device's index */
#define NS_PER_S 1000000000ULL

struct ph_gating {
	struct ph_gate_bpf *skel;
	struct ph_gate *config;			/* mapped */
	char bpf_dir[PATH_MAX];
};

static const char *const map_names[] = { "ph_gate", "ph_gate_targets", "ph_gate_reasons", "ph_gate_sources",
					 "ph_gate_cache", "ph_gate_proven", "ph_deny", "ph_allow" };

static int pin_path(char out[PATH_MAX], const char *bpf_dir, const char *name)
{
	return snprintf(out, PATH_MAX, "%s/%s", bpf_dir, name) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int link_path(char out[PATH_MAX], const char *bpf_dir, uint32_t ifindex)
{
	char name[sizeof(LINK_PREFIX) + 10];

	snprintf(name, sizeof(name), LINK_PREFIX "%u", ifindex);
	return pin_path(out, bpf_dir, name);
}

/* What to look for when the kernel refuses the programs; libbpf and the verifier each have their errors for it. */
static const char *kernel_lacks(int err)
{
	return err == -EINVAL || err == -ENOTSUP || err == -ENOENT || err == -ESRCH || err == -ENOSYS || err == -EACCES ?
	       "; Linux 6.1 (Debian 12) with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT has what they need" : "";
}

static bool layout_fits(int fd, const struct bpf_map *map)
{
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);

	return !bpf_obj_get_info_by_fd(fd, &info, &len) && info.type == bpf_map__type(map) &&
	       info.key_size == bpf_map__key_size(map) && info.value_size == bpf_map__value_size(map) &&
	       info.max_entries == bpf_map__max_entries(map) && info.map_flags == bpf_map__map_flags(map);
}

/* Return: 1 when the map is pinned as it should be, 0 when it is not pinned, -ESTALE for another layout, or -errno. */
static int look_at_pin(const struct bpf_map *map, const char *bpf_dir)
{
	char path[PATH_MAX];
	int err = pin_path(path, bpf_dir, bpf_map__name(map)), fd;

	if (err)
		return err;
	fd = bpf_obj_get(path);
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	err = layout_fits(fd, map) ? 1 : -ESTALE;
	close(fd);
	return err;
}

static int unpin_maps(const char *bpf_dir, const char **ret_name)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < sizeof(map_names) / sizeof(map_names[0]); i++) {
		int err = pin_path(path, bpf_dir, map_names[i]);

		*ret_name = map_names[i];
		if (!err && unlink(path) && errno != ENOENT)
			err = -errno;
		if (err)
			return err;
	}
	return 0;
}

/* libbpf adopts what is pinned there, and pins what is not: all of it or nothing. Return: 0 or -errno. */
static int set_pins(struct bpf_object *obj, const char *bpf_dir)
{
	size_t fitting = 0, wanted = 0;
	char path[PATH_MAX];
	struct bpf_map *map;
	const char *name;
	int err = 0, found;

	bpf_object__for_each_map(map, obj) {
		if (bpf_map__is_internal(map))
			continue;
		wanted++;
		found = look_at_pin(map, bpf_dir);
		if (found < 0 && found != -ESTALE)
			return found;
		fitting += found > 0;
	}
	if (fitting < wanted)
		err = unpin_maps(bpf_dir, &name);
	bpf_object__for_each_map(map, obj) {
		if (bpf_map__is_internal(map) || err)
			continue;
		err = pin_path(path, bpf_dir, bpf_map__name(map));
		if (!err)
			err = bpf_map__set_pin_path(map, path);
	}
	return err;
}

int ph_gate_load(const char *bpf_dir, struct ph_gating **ret_gating, char *error, size_t error_size)
{
	struct ph_gating *gating = calloc(1, sizeof(*gating));
	void *at;
	int err = 0;

	if (!gating)
		return -ENOMEM;
	if ((size_t)snprintf(gating->bpf_dir, sizeof(gating->bpf_dir), "%s", bpf_dir) >= sizeof(gating->bpf_dir)) {
		err = -ENAMETOOLONG;
		goto fail;
	}
	gating->skel = ph_gate_bpf__open();
	if (!gating->skel) {
		err = -errno;
		goto fail;
	}
	err = set_pins(gating->skel->obj, bpf_dir);
	if (!err)
		err = ph_gate_bpf__load(gating->skel);
	if (err)
		goto fail;
	at = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED,
		  bpf_map__fd(gating->skel->maps.ph_gate), 0);
	if (at == MAP_FAILED) {
		err = -errno;
		goto fail;
	}
	gating->config = at;
	if (!gating->config->secret[0] && !gating->config->secret[1] &&
	    getrandom(gating->config->secret, sizeof(gating->config->secret), 0) != sizeof(gating->config->secret)) {
		err = -EIO;
		goto fail;
	}
	*ret_gating = gating;
	return 0;
fail:
	snprintf(error, error_size, "gate: cannot load the programs with maps in %s: %s%s", bpf_dir, strerror(-err),
		 kernel_lacks(err));
	ph_gate_free(gating);
	return err;
}

void ph_gate_free(struct ph_gating *gating)
{
	if (!gating)
		return;
	if (gating->config)
		munmap(gating->config, sysconf(_SC_PAGESIZE));
	ph_gate_bpf__destroy(gating->skel);
	free(gating);
}

static void set_budget(struct ph_gate_budget *budget, uint32_t per_second, uint32_t burst)
{
	uint64_t interval_ns = per_second ? NS_PER_S / per_second : 0;
	uint64_t at_once = burst ? burst : (uint64_t)PH_GATE_BURST * per_second;

	__atomic_store_n(&budget->tolerance_ns, interval_ns * at_once, __ATOMIC_RELAXED);
	__atomic_store_n(&budget->interval_ns, interval_ns, __ATOMIC_RELEASE);
}

static struct ph_address mask_of(uint32_t bits)
{
	struct ph_address mask;

	for (uint32_t i = 0; i < 4; i++, bits -= bits < 32 ? bits : 32)
		mask.words[i] = bits < 32 ? htonl(~(UINT32_MAX >> bits)) : UINT32_MAX;
	return mask;
}

void ph_gate_set(struct ph_gating *gating, const struct ph_gate_config *config)
{
	struct ph_gate *gate = gating->config;

	set_budget(&gate->budgets[PH_GATE_BUDGET_CONNECTIONS], config->connections, config->connections_burst);
	set_budget(&gate->budgets[PH_GATE_BUDGET_HELLOS], config->hellos, config->hellos_burst);
	set_budget(&gate->budgets[PH_GATE_BUDGET_HANDSHAKES], config->handshakes, config->handshakes_burst);
	set_budget(&gate->unproven, config->unproven, 0);
	gate->source4 = mask_of(PH_ADDRESS_V4_BITS + config->prefix4);
	gate->source6 = mask_of(config->prefix6);
}

static bool has_target(const struct ph_gate_target *targets, uint32_t count, const struct ph_gate_target *target)
{
	for (uint32_t i = 0; i < count; i++) {
		if (!memcmp(&targets[i], target, sizeof(*target)))
			return true;
	}
	return false;
}

int ph_gate_set_targets(struct ph_gating *gating, const struct ph_gate_target *targets, uint32_t count)
{
	int fd = bpf_map__fd(gating->skel->maps.ph_gate_targets), err = 0, more;
	struct ph_gate_target key, next;
	uint8_t one = 1;

	if (count > PH_GATE_TARGETS_MAX)
		return -E2BIG;
	for (more = bpf_map_get_next_key(fd, NULL, &next); !more && !err;) {
		key = next;
		more = bpf_map_get_next_key(fd, &key, &next);
		if (!has_target(targets, count, &key))
			err = bpf_map_delete_elem(fd, &key);
	}
	for (uint32_t i = 0; i < count && !err; i++)
		err = bpf_map_update_elem(fd, &targets[i], &one, BPF_ANY);
	return err;
}

/* tc */

static int is_in_tc(uint32_t ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, ingress, .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GATE_HANDLE, .priority = GATE_PRIORITY);
	int err = bpf_tc_query(&ingress, &opts);

	if (!err)
		return 1;
	return err == -ENOENT || err == -EINVAL || err == -ENODEV ? 0 : err;
}

static int attach_tc(struct ph_gating *gating, uint32_t ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, both, .ifindex = (int)ifindex,
		    .attach_point = (enum bpf_tc_attach_point)(BPF_TC_INGRESS | BPF_TC_EGRESS));
	LIBBPF_OPTS(bpf_tc_hook, ingress, .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GATE_HANDLE, .priority = GATE_PRIORITY,
		    .prog_fd = bpf_program__fd(gating->skel->progs.gate_tc), .flags = BPF_TC_F_REPLACE);
	int err = bpf_tc_hook_create(&both);

	if (err && err != -EEXIST)
		return err;
	return bpf_tc_attach(&ingress, &opts);
}

static int detach_tc(uint32_t ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, ingress, .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = GATE_HANDLE, .priority = GATE_PRIORITY);
	int attached = is_in_tc(ifindex);

	return attached > 0 ? bpf_tc_detach(&ingress, &opts) : attached;
}

/* XDP. A link that lost its device says index 0. Return: a descriptor, or -errno; -ENOENT also for such a link. */
static int open_link(const char *bpf_dir, uint32_t ifindex, uint32_t *ret_prog_id)
{
	struct bpf_link_info info = { 0 };
	__u32 len = sizeof(info);
	char path[PATH_MAX];
	int err = link_path(path, bpf_dir, ifindex), fd;

	if (err)
		return err;
	fd = bpf_obj_get(path);
	if (fd < 0)
		return fd;
	err = bpf_obj_get_info_by_fd(fd, &info, &len);
	if (!err && (info.type != BPF_LINK_TYPE_XDP || info.xdp.ifindex != ifindex))
		err = -ENOENT;
	if (err) {
		close(fd);
		return err;
	}
	*ret_prog_id = info.prog_id;
	return fd;
}

static int find_xdp(const char *bpf_dir, uint32_t ifindex, int *ret_fd, enum ph_gate_mode *ret_mode)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, opts);
	uint32_t prog_id;
	int fd = open_link(bpf_dir, ifindex, &prog_id), err;

	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	err = bpf_xdp_query((int)ifindex, 0, &opts);
	if (err) {
		close(fd);
		return err == -ENODEV ? 0 : err;
	}
	*ret_mode = opts.skb_prog_id == prog_id ? PH_GATE_GENERIC : PH_GATE_NATIVE;
	*ret_fd = fd;
	return 0;
}

static int detach_xdp(const char *bpf_dir, uint32_t ifindex)
{
	char path[PATH_MAX];
	int err = link_path(path, bpf_dir, ifindex), fd;

	if (err)
		return err;
	fd = bpf_obj_get(path);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	err = bpf_link_detach(fd);		/* at once, whoever else holds it; not an error if the device is gone */
	close(fd);
	if (unlink(path) && errno != ENOENT)
		return -errno;
	return err == -EINVAL || err == -ENOLINK ? 0 : err;
}

static int xdp_fd(const struct ph_gating *gating, enum ph_gate_mode mode)
{
	const struct ph_gate_bpf *skel = gating->skel;

	return bpf_program__fd(mode == PH_GATE_NATIVE ? skel->progs.gate_xdp : skel->progs.gate_generic);
}

static int create_link(struct ph_gating *gating, uint32_t ifindex, enum ph_gate_mode mode)
{
	LIBBPF_OPTS(bpf_link_create_opts, opts,
		    .flags = mode == PH_GATE_NATIVE ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE);
	char path[PATH_MAX];
	int err = link_path(path, gating->bpf_dir, ifindex), fd;

	if (err)
		return err;
	fd = bpf_link_create(xdp_fd(gating, mode), (int)ifindex, BPF_XDP, &opts);
	if (fd < 0)
		return fd;
	unlink(path);				/* of a device that had this index, and is gone */
	err = bpf_obj_pin(fd, path);
	close(fd);				/* unpinned, it is detached by that */
	return err;
}

static int attach_xdp(struct ph_gating *gating, uint32_t ifindex, enum ph_gate_mode mode)
{
	enum ph_gate_mode is = PH_GATE_OFF;
	int fd = -1, err = find_xdp(gating->bpf_dir, ifindex, &fd, &is);

	if (err)
		return err;
	if (is == mode)
		err = bpf_link_update(fd, xdp_fd(gating, mode), NULL);
	if (fd >= 0)
		close(fd);
	if (is == mode)
		return err;
	if (is != PH_GATE_OFF)			/* a device has one of the two ways at a time */
		err = detach_xdp(gating->bpf_dir, ifindex);
	if (err)
		return err;
	err = create_link(gating, ifindex, mode);
	if (err && is != PH_GATE_OFF)		/* what there was is better than nothing */
		create_link(gating, ifindex, is);
	return err;
}

static void explain(int err, uint32_t ifindex, enum ph_gate_mode mode, char *error, size_t error_size)
{
	char driver[32] = "";
	const char *why = strerror(-err), *remedy = "";

	ph_gate_driver(ifindex, driver);
	if (mode == PH_GATE_TC)
		remedy = err == -EOPNOTSUPP || err == -ENOENT ? "; the kernel needs sch_ingress and cls_bpf" : "";
	else if (err == -EOPNOTSUPP)
		why = "the driver has no native XDP, or not with these offloads", remedy = "; set Gate = tc, or Gate = generic";
	else if (err == -EBUSY || err == -EEXIST)
		why = "another XDP program is on the device", remedy = "; take it off (ip link set dev NIC xdp off), or set Gate = tc";
	else if (err == -ENODEV)
		remedy = "";
	else if (err == -EPERM)
		why = "not permitted", remedy = ": CAP_NET_ADMIN and CAP_BPF are needed";
	else if (mode == PH_GATE_NATIVE)
		remedy = ": the driver refuses XDP as the device is set up (MTU too large, LRO on, too few queues?); set it "
			 "up otherwise, or set Gate = tc";
	snprintf(error, error_size, "gate: cannot be attached as %s (driver %s): %s%s", ph_gate_mode_word(mode),
		 driver[0] ? driver : "unknown", why, remedy);
}

int ph_gate_attach(struct ph_gating *gating, uint32_t ifindex, enum ph_gate_mode mode, char *error, size_t error_size)
{
	bool tc = mode == PH_GATE_TC;
	char name[IF_NAMESIZE];
	int err;

	/* The new one before the old one goes: no moment is without. */
	err = tc ? attach_tc(gating, ifindex) : attach_xdp(gating, ifindex, mode);
	if (err) {
		if (!if_indextoname(ifindex, name))
			err = -ENODEV;
		explain(err, ifindex, mode, error, error_size);
		return err;
	}
	err = tc ? detach_xdp(gating->bpf_dir, ifindex) : detach_tc(ifindex);
	if (err)
		snprintf(error, error_size, "gate: what was attached before cannot be taken off: %s", strerror(-err));
	return err;
}

int ph_gate_attached(const char *bpf_dir, uint32_t ifindex, enum ph_gate_mode *ret_mode)
{
	enum ph_gate_mode mode = PH_GATE_OFF;
	int fd = -1, err = find_xdp(bpf_dir, ifindex, &fd, &mode), in_tc;

	if (fd >= 0)
		close(fd);
	if (err)
		return err;
	if (mode == PH_GATE_OFF) {
		in_tc = is_in_tc(ifindex);
		if (in_tc < 0)
			return in_tc;
		mode = in_tc ? PH_GATE_TC : PH_GATE_OFF;
	}
	*ret_mode = mode;
	return 0;
}

int ph_gate_detach(const char *bpf_dir, uint32_t ifindex)
{
	int err = detach_xdp(bpf_dir, ifindex), tc_err = detach_tc(ifindex);

	return err ? err : tc_err;
}

/*
 * Native XDP pays where nothing goes for it: these drivers merge packets after XDP, and make no skb of what is dropped.
 * Elsewhere it costs more than it saves (veth: no super-packets; virtio_net: none from the host; ena: half the queues),
 * or nobody has looked.
 */
enum ph_gate_mode ph_gate_default_mode(const char *driver)
{
	static const char *const native[] = { "mlx5_core", "ice", "i40e", "ixgbe" };

	for (size_t i = 0; i < sizeof(native) / sizeof(native[0]); i++) {
		if (!strcmp(driver, native[i]))
			return PH_GATE_NATIVE;
	}
	return PH_GATE_TC;
}

int ph_gate_driver(uint32_t ifindex, char ret_driver[32])
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq request = { .ifr_data = (char *)&info };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), err = 0;

	if (fd < 0)
		return -errno;
	if (!if_indextoname(ifindex, request.ifr_name) || ioctl(fd, SIOCETHTOOL, &request))
		err = -errno;
	close(fd);
	if (err == -EOPNOTSUPP)
		err = 0;
	if (!err)
		snprintf(ret_driver, 32, "%.31s", info.driver);
	return err;
}

const char *ph_gate_mode_word(enum ph_gate_mode mode)
{
	switch (mode) {
	case PH_GATE_AUTO:
		return "auto";
	case PH_GATE_OFF:
		return "off";
	case PH_GATE_TC:
		return "tc";
	case PH_GATE_GENERIC:
		return "generic";
	case PH_GATE_NATIVE:
		return "native";
	}
	return "?";
}

static int open_map(const char *bpf_dir, const char *name)
{
	char path[PATH_MAX];
	int err = pin_path(path, bpf_dir, name);

	return err ? err : bpf_obj_get(path);
}

int ph_gate_counters(const char *bpf_dir, uint64_t ret_counters[PH_GATE_COUNT])
{
	int cpus = libbpf_num_possible_cpus(), fd, err = 0;
	uint64_t sums[PH_GATE_COUNT] = { 0 };
	uint64_t *values;

	if (cpus < 0)
		return cpus;
	fd = open_map(bpf_dir, "ph_gate_reasons");
	if (fd < 0)
		return fd;
	values = calloc(cpus, sizeof(*values));
	if (!values)
		err = -ENOMEM;
	for (uint32_t reason = 0; !err && reason < PH_GATE_COUNT; reason++) {
		err = bpf_map_lookup_elem(fd, &reason, values);
		for (int cpu = 0; !err && cpu < cpus; cpu++)
			sums[reason] += values[cpu];
	}
	free(values);
	close(fd);
	if (!err)
		memcpy(ret_counters, sums, sizeof(sums));
	return err;
}

int ph_gate_read(const char *bpf_dir, struct ph_gate *ret_gate)
{
	int fd = open_map(bpf_dir, "ph_gate"), err;
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info), zero = 0;

	if (fd < 0)
		return fd;
	err = bpf_obj_get_info_by_fd(fd, &info, &len);
	if (!err && info.value_size != sizeof(*ret_gate))
		err = -ESTALE;
	if (!err)
		err = bpf_map_lookup_elem(fd, &zero, ret_gate);
	close(fd);
	return err;
}

/* Keys are fetched before the visit, which may delete; a trie has no batches that its walk could use on all kernels. */
int ph_gate_each(const char *bpf_dir, const char *map, int (*visit)(const void *key, const void *value, void *arg),
		 void *arg)
{
	unsigned char key[64], next[64], value[64];
	int fd = open_map(bpf_dir, map), err = 0, more;
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);
	uint64_t bound;

	if (fd < 0)
		return fd;
	err = bpf_obj_get_info_by_fd(fd, &info, &len);
	if (!err && (info.key_size > sizeof(key) || info.value_size > sizeof(value)))
		err = -ESTALE;
	bound = 2ULL * info.max_entries;	/* a map that changes could be chased for ever */
	for (more = err ? err : bpf_map_get_next_key(fd, NULL, next); !more && !err && bound; bound--) {
		memcpy(key, next, info.key_size);
		more = bpf_map_get_next_key(fd, key, next);
		if (!bpf_map_lookup_elem(fd, key, value))
			err = visit(key, value, arg);
	}
	close(fd);
	return err ? err : more == -ENOENT || !more ? 0 : more;
}

static int unpin_links(const char *bpf_dir)
{
	DIR *dir = opendir(bpf_dir);
	struct dirent *entry;
	int err = 0;

	if (!dir)
		return errno == ENOENT ? 0 : -errno;
	while (!err && (entry = readdir(dir))) {
		if (!strncmp(entry->d_name, LINK_PREFIX, strlen(LINK_PREFIX)))
			err = detach_xdp(bpf_dir, (uint32_t)strtoul(entry->d_name + strlen(LINK_PREFIX), NULL, 10));
	}
	closedir(dir);
	return err;
}

int ph_gate_unpin(const char *bpf_dir, char *error, size_t error_size)
{
	const char *name = "links of the gate";
	int err = unpin_links(bpf_dir);

	if (!err)
		err = unpin_maps(bpf_dir, &name);
	if (err)
		snprintf(error, error_size, "%s/%s: %s", bpf_dir, name, strerror(-err));
	return err;
}
