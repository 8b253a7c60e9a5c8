// SPDX-License-Identifier: Apache-2.0
/*
 * maps - creating, pinning, adopting, reading and writing the maps of phala/abi.h.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/magic.h>

#include "maps.h"
#include "state.skel.h"

#define BPFFS "/sys/fs/bpf"
#define WALK_BATCH 1024

__attribute__((format(printf, 4, 5))) static int fail(int err, char *error, size_t size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, size, format, args);
	va_end(args);
	return err;
}

/* libbpf's own words would be more than one line; every failure here is reported by its caller. */
static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level, (void)format, (void)args;
	return 0;
}

static int pin_path(char out[PATH_MAX], const char *dir, const char *name)
{
	int len = snprintf(out, PATH_MAX, "%s/%s", dir, name);

	return len < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static bool is_bpffs(const char *path)
{
	struct statfs fs;

	return !statfs(path, &fs) && (unsigned long)fs.f_type == BPF_FS_MAGIC;
}

static int prepare_dir(const char *dir, char *error, size_t error_size)
{
	size_t len = strlen(BPFFS);
	int err;

	if (!strncmp(dir, BPFFS, len) && (!dir[len] || dir[len] == '/') && !is_bpffs(BPFFS) &&
	    mount("bpf", BPFFS, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700")) {
		err = -errno;
		return fail(err, error, error_size, "no bpffs at " BPFFS ", and mounting one failed: %s",
			    strerror(-err));
	}
	if (mkdir(dir, 0700) && errno != EEXIST) {
		err = -errno;
		return fail(err, error, error_size, "%s: %s", dir, strerror(-err));
	}
	if (!is_bpffs(dir))
		return fail(-EINVAL, error, error_size, "%s is not on a bpffs, where maps can be pinned", dir);
	return 0;
}

/* Return: the lock, -EBUSY when somebody has it, or -errno. */
static int take_lock(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err;

	if (fd < 0)
		return -errno;
	if (!flock(fd, LOCK_EX | LOCK_NB))
		return fd;
	err = errno == EWOULDBLOCK ? -EBUSY : -errno;
	close(fd);
	return err;
}

int ph_maps_lock(const char *dir, int *ret_fd, char *error, size_t error_size)
{
	char path[PATH_MAX];
	int err = prepare_dir(dir, error, error_size), fd;

	if (err)
		return err;
	if (pin_path(path, dir, PH_MAPS_LOCK))
		return fail(-ENAMETOOLONG, error, error_size, "%s: name too long", dir);
	fd = mkdir(path, 0700) && errno != EEXIST ? -errno : take_lock(path);
	if (fd == -EBUSY)
		return fail(fd, error, error_size, "the maps in %s are another phalad's that runs: each needs a BpfDir, StateDir, "
			    "RunDir and Interface of its own", dir);
	if (fd < 0)
		return fail(fd, error, error_size, "%s: %s", path, strerror(-fd));
	*ret_fd = fd;
	return 0;
}

/* Elements of a mappable array start at multiples of 8 bytes, and the mapping ends with a page. */
static size_t array_bytes(size_t value_size, uint32_t entries)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return (((value_size + 7) & ~(size_t)7) * entries + page - 1) & ~(page - 1);
}

static void *map_array(int fd, size_t value_size, uint32_t entries, int protection)
{
	void *at = mmap(NULL, array_bytes(value_size, entries), protection, MAP_SHARED, fd, 0);

	return at == MAP_FAILED ? NULL : at;
}

static void unmap_array(void *at, size_t value_size, uint32_t entries)
{
	if (at)
		munmap(at, array_bytes(value_size, entries));
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void ph_maps_free(struct ph_maps *maps)
{
	if (!maps)
		return;
	unmap_array(maps->gateway, sizeof(*maps->gateway), 1);
	unmap_array(maps->instances, sizeof(*maps->instances), PH_INSTANCES_MAX);
	unmap_array(maps->workers, sizeof(*maps->workers), PH_WORKERS_MAX);
	unmap_array(maps->loads, sizeof(*maps->loads), PH_INSTANCES_MAX);
	close_fd(maps->ids_fd);
	close_fd(maps->domains_fd);
	close_fd(maps->sources_fd);
	close_fd(maps->relayed_fd);
	close_fd(maps->guard_fd);
	close_fd(maps->declines_fd);
	free(maps);
}

static struct ph_maps *maps_alloc(void)
{
	struct ph_maps *maps = calloc(1, sizeof(*maps));

	if (maps)
		maps->ids_fd = maps->domains_fd = maps->sources_fd = maps->relayed_fd = maps->declines_fd = maps->guard_fd = -1;
	return maps;
}

static bool layout_fits(int fd, const struct bpf_map *map)
{
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);

	return !bpf_obj_get_info_by_fd(fd, &info, &len) && info.type == bpf_map__type(map) &&
	       info.key_size == bpf_map__key_size(map) && info.value_size == bpf_map__value_size(map) &&
	       info.max_entries == bpf_map__max_entries(map) && info.map_flags == bpf_map__map_flags(map);
}

/* Return: 0, or -ESTALE when the pinned ph_gateway is not of our version. */
static int check_version(int fd, const struct bpf_map *map, const char *dir, char *error, size_t error_size)
{
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info), zero = 0, version = 0;
	void *value;

	if (bpf_obj_get_info_by_fd(fd, &info, &len) || info.type != BPF_MAP_TYPE_ARRAY ||
	    info.key_size != sizeof(zero) || info.value_size < sizeof(version) || info.value_size > 4096)
		return fail(-ESTALE, error, error_size, "%s/ph_gateway is not a map of phalad's", dir);
	value = calloc(1, info.value_size);
	if (!value)
		return fail(-ENOMEM, error, error_size, "out of memory");
	if (!bpf_map_lookup_elem(fd, &zero, value))
		memcpy(&version, value, sizeof(version));
	free(value);
	if (version != PH_ABI_VERSION)
		return fail(-ESTALE, error, error_size, "the maps in %s are of ABI version %u, this phalad has %u; start "
			    "once with --fresh to begin with new maps", dir, version, PH_ABI_VERSION);
	if (map && !layout_fits(fd, map))
		return fail(-ESTALE, error, error_size, "%s/ph_gateway has another layout", dir);
	return 0;
}

/* Gives every map of @obj that is pinned in @dir to it. */
static int adopt(struct bpf_object *obj, const char *dir, char *error, size_t error_size)
{
	char path[PATH_MAX];
	struct bpf_map *map;
	int err, fd;

	bpf_object__for_each_map(map, obj) {
		if (pin_path(path, dir, bpf_map__name(map)))
			return fail(-ENAMETOOLONG, error, error_size, "%s: name too long", dir);
		fd = bpf_obj_get(path);
		if (fd == -ENOENT)
			continue;
		if (fd < 0)
			return fail(fd, error, error_size, "%s: %s", path, strerror(-fd));
		err = 0;
		if (!layout_fits(fd, map))
			err = fail(-ESTALE, error, error_size, "%s has another layout", path);
		else
			err = bpf_map__reuse_fd(map, fd);
		close(fd);
		if (err == -ESTALE)
			return err;
		if (err)
			return fail(err, error, error_size, "%s: %s", path, strerror(-err));
	}
	return 0;
}

static int pin(struct bpf_map *map, const char *dir, char *error, size_t error_size)
{
	char path[PATH_MAX];
	int err = pin_path(path, dir, bpf_map__name(map));

	if (!err && !access(path, F_OK))
		return 0;
	if (!err)
		err = bpf_obj_pin(bpf_map__fd(map), path);
	return err ? fail(err, error, error_size, "%s: cannot pin: %s", path, strerror(-err)) : 0;
}

static int unpin_one(const char *dir, const char *name, char *error, size_t error_size)
{
	char path[PATH_MAX];
	int err = pin_path(path, dir, name);

	if (!err && unlink(path) && errno != ENOENT)
		err = -errno;
	return err ? fail(err, error, error_size, "%s/%s: cannot unpin: %s", dir, name, strerror(-err)) : 0;
}

/* ph_gateway is the first: what is left by a removal cut short has no version, and is replaced. */
static int unpin(struct bpf_object *obj, const char *dir, char *error, size_t error_size)
{
	struct bpf_map *map;
	int err = 0;

	bpf_object__for_each_map(map, obj) {
		err = unpin_one(dir, bpf_map__name(map), error, error_size);
		if (err)
			break;
	}
	return err;
}

static void remove_locks(const char *dir)
{
	char path[PATH_MAX];
	int fd;

	if (!pin_path(path, dir, PH_MAPS_GUARD_LOCK))
		rmdir(path);			/* rarely there, and in nobody's way */
	fd = pin_path(path, dir, PH_MAPS_LOCK) ? -ENAMETOOLONG : take_lock(path);
	if (fd < 0)
		return;
	rmdir(path);
	close(fd);
}

int ph_maps_unpin(const char *dir, char *error, size_t error_size)
{
	struct ph_state_bpf *skel;
	int err;

	libbpf_set_print(quiet);
	skel = ph_state_bpf__open();
	if (!skel)
		return fail(-errno, error, error_size, "the maps' description: %s", strerror(errno));
	err = unpin(skel->obj, dir, error, error_size);
	ph_state_bpf__destroy(skel);
	if (!err)
		remove_locks(dir);
	return err;
}

static int load_failed(int err, char *error, size_t error_size)
{
	switch (err) {
	case -EPERM:
		return fail(err, error, error_size, "creating BPF maps is not permitted: CAP_BPF is missing");
	case -ENOSYS:
	case -EINVAL:
	case -EOPNOTSUPP:
		return fail(-ENOTSUP, error, error_size,
			    "this kernel lacks BPF maps as phalad needs them: Linux 6.1 (Debian 12) has them");
	default:
		return fail(err, error, error_size, "creating BPF maps: %s", strerror(-err));
	}
}

/* Everything is pinned in @dir afterwards; maps that were there are in use again. */
static int load_and_pin(struct ph_state_bpf *skel, const char *dir, char *error, size_t error_size)
{
	struct ph_gateway first = { .abi_version = PH_ABI_VERSION };
	char path[PATH_MAX];
	struct bpf_map *map;
	__u32 zero = 0;
	int err, fd;

	if (pin_path(path, dir, "ph_gateway"))
		return fail(-ENAMETOOLONG, error, error_size, "%s: name too long", dir);
	fd = bpf_obj_get(path);
	if (fd < 0 && fd != -ENOENT)
		return fail(fd, error, error_size, "%s: %s", path, strerror(-fd));
	if (fd >= 0) {
		err = check_version(fd, skel->maps.ph_gateway, dir, error, error_size);
		close(fd);
		if (!err)
			err = adopt(skel->obj, dir, error, error_size);
	} else {
		err = unpin(skel->obj, dir, error, error_size);
	}
	if (err)
		return err;

	err = ph_state_bpf__load(skel);
	if (err)
		return load_failed(err, error, error_size);
	if (fd < 0) {
		err = bpf_map_update_elem(bpf_map__fd(skel->maps.ph_gateway), &zero, &first, BPF_ANY);
		if (err)
			return fail(err, error, error_size, "ph_gateway: %s", strerror(-err));
	}
	bpf_object__for_each_map(map, skel->obj) {
		if (map == skel->maps.ph_gateway)
			continue;
		err = pin(map, dir, error, error_size);
		if (err)
			return err;
	}
	return pin(skel->maps.ph_gateway, dir, error, error_size);
}

/* What guard counts of one CVM begins at zero, unless it is this very one's already. Return: 0 or -errno. */
static int guard_add(struct ph_maps *maps, __be32 address, struct ph_ref ref)
{
	struct ph_guard_cvm cvm = { 0 };

	if (!bpf_map_lookup_elem(maps->guard_fd, &address, &cvm) && cvm.instance.slot == ref.slot &&
	    cvm.instance.generation == ref.generation)
		return 0;
	cvm = (struct ph_guard_cvm){ .instance = ref };
	return bpf_map_update_elem(maps->guard_fd, &address, &cvm, BPF_ANY);
}

/* The address may be another's by now. */
static void guard_remove(struct ph_maps *maps, __be32 address, struct ph_ref ref)
{
	struct ph_guard_cvm cvm;

	if (address && !bpf_map_lookup_elem(maps->guard_fd, &address, &cvm) && cvm.instance.slot == ref.slot &&
	    cvm.instance.generation == ref.generation)
		bpf_map_delete_elem(maps->guard_fd, &address);
}

/* For maps that were there: whoever wrote ph_instances may have ended before it came to this. */
static int guard_agree(struct ph_maps *maps)
{
	int err = guard_add(maps, 0, (struct ph_ref){ 0 });

	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX && !err; slot++) {
		const struct ph_instance *instance = &maps->instances[slot];

		if (instance->generation && instance->address)
			err = guard_add(maps, instance->address, (struct ph_ref){ slot, instance->generation });
	}
	return err;
}

int ph_maps_create(const char *dir, struct ph_maps **ret_maps, char *error, size_t error_size)
{
	const int both = PROT_READ | PROT_WRITE;
	struct ph_state_bpf *skel = NULL;
	struct ph_maps *maps;
	int err;

	libbpf_set_print(quiet);
	maps = maps_alloc();
	if (!maps)
		return fail(-ENOMEM, error, error_size, "out of memory");
	err = prepare_dir(dir, error, error_size);
	if (err)
		goto out;
	skel = ph_state_bpf__open();
	if (!skel) {
		err = fail(-errno, error, error_size, "the maps' description: %s", strerror(errno));
		goto out;
	}
	err = load_and_pin(skel, dir, error, error_size);
	if (err)
		goto out;

	maps->gateway = map_array(bpf_map__fd(skel->maps.ph_gateway), sizeof(*maps->gateway), 1, both);
	maps->instances = map_array(bpf_map__fd(skel->maps.ph_instances), sizeof(*maps->instances), PH_INSTANCES_MAX,
				    both);
	maps->workers = map_array(bpf_map__fd(skel->maps.ph_workers), sizeof(*maps->workers), PH_WORKERS_MAX, both);
	maps->loads = map_array(bpf_map__fd(skel->maps.ph_loads), sizeof(*maps->loads), PH_INSTANCES_MAX, both);
	maps->ids_fd = fcntl(bpf_map__fd(skel->maps.ph_ids), F_DUPFD_CLOEXEC, 3);
	maps->domains_fd = fcntl(bpf_map__fd(skel->maps.ph_domains), F_DUPFD_CLOEXEC, 3);
	maps->guard_fd = fcntl(bpf_map__fd(skel->maps.ph_guard_cvms), F_DUPFD_CLOEXEC, 3);
	maps->sources_fd = fcntl(bpf_map__fd(skel->maps.ph_sources), F_DUPFD_CLOEXEC, 3);
	maps->relayed_fd = fcntl(bpf_map__fd(skel->maps.ph_relayed), F_DUPFD_CLOEXEC, 3);
	maps->declines_fd = fcntl(bpf_map__fd(skel->maps.ph_declines), F_DUPFD_CLOEXEC, 3);
	if (!maps->gateway || !maps->instances || !maps->workers || !maps->loads || maps->ids_fd < 0 ||
	    maps->domains_fd < 0 || maps->sources_fd < 0 || maps->relayed_fd < 0 ||
	    maps->declines_fd < 0 || maps->guard_fd < 0) {
		err = fail(-errno, error, error_size, "mapping the maps in %s: %s", dir, strerror(errno));
		goto out;
	}
	err = guard_agree(maps);
	if (err) {
		fail(err, error, error_size, "%s/ph_guard_cvms: %s", dir, strerror(-err));
		goto out;
	}
	*ret_maps = maps;
	maps = NULL;
out:
	ph_state_bpf__destroy(skel);
	ph_maps_free(maps);
	return err;
}

/*
 * A descriptor that may only read cannot be mapped as shared (do_mmap() takes VM_SHARED off, which bpf_map_mmap()
 * insists on); but a mapping without PROT_WRITE can never get it (VM_MAYWRITE is taken off), and its descriptor is
 * closed.
 */
static int open_array(const char *dir, const char *name, size_t value_size, uint32_t entries, int writable_entry,
		      void **ret_at)
{
	size_t page = sysconf(_SC_PAGESIZE), from, to;
	char path[PATH_MAX];
	int err = 0, fd;
	char *at;

	err = pin_path(path, dir, name);
	if (err)
		return err;
	fd = bpf_obj_get(path);
	if (fd < 0)
		return fd;
	at = map_array(fd, value_size, entries, PROT_READ);
	if (!at) {
		err = -errno;
	} else if (writable_entry >= 0) {
		from = value_size * writable_entry & ~(page - 1);
		to = (value_size * (writable_entry + 1) + page - 1) & ~(page - 1);
		if (mmap(at + from, to - from, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, from) == MAP_FAILED)
			err = -errno;
	}
	close(fd);
	if (err)
		unmap_array(at, value_size, entries);
	else
		*ret_at = at;
	return err;
}

static int open_hash(const char *dir, const char *name, bool writable, int *ret_fd)
{
	LIBBPF_OPTS(bpf_obj_get_opts, options, .file_flags = writable ? 0 : BPF_F_RDONLY);
	char path[PATH_MAX];
	int fd, err = pin_path(path, dir, name);

	if (err)
		return err;
	fd = bpf_obj_get_opts(path, &options);
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

int ph_maps_open(const char *dir, int worker, struct ph_maps **ret_maps, char *error, size_t error_size)
{
	void *gateway = NULL, *instances = NULL, *workers = NULL, *loads = NULL;
	struct ph_maps *maps;
	char path[PATH_MAX];
	int err, fd;

	libbpf_set_print(quiet);
	if (worker < -1 || worker >= PH_WORKERS_MAX || pin_path(path, dir, "ph_gateway"))
		return fail(-EINVAL, error, error_size, "%s: no such maps", dir);
	fd = bpf_obj_get(path);
	if (fd == -ENOENT)
		return fail(fd, error, error_size, "no maps in %s: phalad has not run yet", dir);
	if (fd < 0)
		return fail(fd, error, error_size, "%s: %s", path, strerror(-fd));
	err = check_version(fd, NULL, dir, error, error_size);
	close(fd);
	if (err)
		return err;

	maps = maps_alloc();
	if (!maps)
		return fail(-ENOMEM, error, error_size, "out of memory");
	err = open_array(dir, "ph_gateway", sizeof(*maps->gateway), 1, -1, &gateway);
	if (!err)
		err = open_array(dir, "ph_instances", sizeof(*maps->instances), PH_INSTANCES_MAX, -1, &instances);
	if (!err)
		err = open_array(dir, "ph_workers", sizeof(*maps->workers), PH_WORKERS_MAX, worker, &workers);
	if (!err)
		err = open_array(dir, "ph_loads", sizeof(*maps->loads), PH_INSTANCES_MAX, -1, &loads);
	maps->gateway = gateway;
	maps->instances = instances;
	maps->workers = workers;
	maps->loads = loads;
	if (!err)
		err = open_hash(dir, "ph_ids", false, &maps->ids_fd);
	if (!err)
		err = open_hash(dir, "ph_domains", false, &maps->domains_fd);
	if (!err)
		err = open_hash(dir, "ph_sources", false, &maps->sources_fd);
	if (!err)
		err = open_hash(dir, "ph_relayed", worker >= 0, &maps->relayed_fd);
	if (!err)
		err = open_hash(dir, "ph_declines", false, &maps->declines_fd);
	if (err) {
		ph_maps_free(maps);
		return fail(err, error, error_size, "opening the maps in %s: %s", dir, strerror(-err));
	}
	*ret_maps = maps;
	return 0;
}

static struct ph_id_key id_key(const char *id)
{
	struct ph_id_key key;

	memcpy(key.id, id, sizeof(key.id));
	return key;
}

static struct ph_domain_key domain_key(const char *name)
{
	struct ph_domain_key key = { 0 };

	memcpy(key.name, name, strnlen(name, sizeof(key.name) - 1));
	return key;
}

int ph_maps_set_id(struct ph_maps *maps, const char *id, const struct ph_id *value)
{
	struct ph_id_key key = id_key(id);

	return bpf_map_update_elem(maps->ids_fd, &key, value, BPF_ANY);
}

int ph_maps_remove_id(struct ph_maps *maps, const char *id)
{
	struct ph_id_key key = id_key(id);

	return bpf_map_delete_elem(maps->ids_fd, &key);
}

int ph_maps_set_domain(struct ph_maps *maps, const char *name, uint32_t index)
{
	struct ph_domain_key key = domain_key(name);

	return bpf_map_update_elem(maps->domains_fd, &key, &index, BPF_ANY);
}

int ph_maps_remove_domain(struct ph_maps *maps, const char *name)
{
	struct ph_domain_key key = domain_key(name);

	return bpf_map_delete_elem(maps->domains_fd, &key);
}

int ph_maps_find_id(const struct ph_maps *maps, const char *id, struct ph_id *ret_id)
{
	struct ph_id_key key = id_key(id);

	return bpf_map_lookup_elem(maps->ids_fd, &key, ret_id);
}

int ph_maps_find_domain(const struct ph_maps *maps, const char *name, uint32_t *ret_index)
{
	struct ph_domain_key key = domain_key(name);

	return bpf_map_lookup_elem(maps->domains_fd, &key, ret_index);
}

/*
 * A hundred thousand ids: by batches, which copy whole buckets, so that the visitor may change the map as it likes.
 * What comes into a bucket that was passed is not seen.
 */
int ph_maps_each_id(const struct ph_maps *maps,
		    int (*visit)(const struct ph_id_key *key, const struct ph_id *value, void *arg), void *arg)
{
	struct ph_id_key *keys = calloc(WALK_BATCH, sizeof(*keys));
	struct ph_id *values = calloc(WALK_BATCH, sizeof(*values));
	__u32 from = 0, to = 0, count = WALK_BATCH;
	int err = keys && values ? 0 : -ENOMEM, last = 0;
	bool first = true;

	while (!err && !last) {
		count = WALK_BATCH;
		last = bpf_map_lookup_batch(maps->ids_fd, first ? NULL : &from, &to, keys, values, &count, NULL);
		if (last && last != -ENOENT)
			err = last;
		for (__u32 i = 0; i < count && !err; i++)
			err = visit(&keys[i], &values[i], arg);
		from = to;
		first = false;
	}
	free(keys);
	free(values);
	return err;
}

/*
 * The key after the current one is fetched before the visit, which may therefore delete the current one. When somebody
 * else deletes the fetched one, the kernel begins anew; the bound ends a walk that would chase a changing map for ever.
 */
int ph_maps_each_domain(const struct ph_maps *maps,
			int (*visit)(const struct ph_domain_key *key, uint32_t index, void *arg), void *arg)
{
	struct ph_domain_key key, next;
	int err, more, bound = 2 * PH_DOMAINS_MAX;
	uint32_t index;

	for (more = bpf_map_get_next_key(maps->domains_fd, NULL, &next); !more && bound; bound--) {
		key = next;
		more = bpf_map_get_next_key(maps->domains_fd, &key, &next);
		err = bpf_map_lookup_elem(maps->domains_fd, &key, &index);
		if (!err)
			err = visit(&key, index, arg);
		else if (err == -ENOENT)
			err = 0;
		if (err)
			return err;
	}
	return more == -ENOENT || !more ? 0 : more;
}

/* Return: false for an address that is IPv6. */
static bool v4_of(const char address[16], __be32 *ret_client)
{
	static const char mapped[12] = { [10] = (char)0xff, [11] = (char)0xff };	/* RFC 4291, section 2.5.5.2 */

	memcpy(ret_client, address + sizeof(mapped), sizeof(*ret_client));
	return !memcmp(address, mapped, sizeof(mapped));
}

uint32_t ph_maps_source_flows(const struct ph_maps *maps, const char address[16])
{
	struct ph_client_count source;
	__be32 client;

	return v4_of(address, &client) && !bpf_map_lookup_elem(maps->sources_fd, &client, &source) ? source.flows : 0;
}

uint32_t ph_maps_decline(const struct ph_maps *maps, const char address[16], uint16_t port, uint64_t boot_now_ns)
{
	struct ph_decline_key key = { .client_port = htons(port) };
	struct ph_decline decline;

	if (!v4_of(address, &key.client) || bpf_map_lookup_elem(maps->declines_fd, &key, &decline) ||
	    decline.now_ns + PH_DECLINE_FRESH_MS * 1000000ULL < boot_now_ns || decline.reason >= PH_REASON_COUNT)
		return 0;
	return decline.reason;
}

uint64_t ph_maps_app_flows(const struct ph_maps *maps, const struct ph_id *app)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < app->count && i < PH_APP_INSTANCES_MAX; i++) {
		const struct ph_ref *ref = &app->refs[i];

		if (ref->slot < PH_INSTANCES_MAX && maps->loads[ref->slot].generation == ref->generation)
			sum += __atomic_load_n(&maps->loads[ref->slot].active, __ATOMIC_RELAXED);
	}
	return sum;
}

uint32_t ph_maps_relayed(const struct ph_maps *maps, const struct ph_relayed_key *key)
{
	__u32 count = 0;

	return bpf_map_lookup_elem(maps->relayed_fd, key, &count) ? 0 : count;
}

uint64_t ph_maps_relayed_by_all(const struct ph_maps *maps, const struct ph_relayed_key *key)
{
	struct ph_relayed_key one = *key;
	uint64_t sum = 0;

	for (one.worker = 0; one.worker < maps->gateway->workers && one.worker < PH_WORKERS_MAX; one.worker++)
		sum += ph_maps_relayed(maps, &one);
	return sum;
}

int ph_maps_set_relayed(const struct ph_maps *maps, const struct ph_relayed_key *key, uint32_t count)
{
	__u32 value = count;

	return count ? bpf_map_update_elem(maps->relayed_fd, key, &value, BPF_ANY)
		     : bpf_map_delete_elem(maps->relayed_fd, key);
}

/* As ph_maps_each_id(), whatever is in it. */
static int each(int fd, size_t key_size, size_t value_size,
		int (*visit)(const void *key, const void *value, void *arg), void *arg)
{
	char *keys = calloc(WALK_BATCH, key_size), *values = calloc(WALK_BATCH, value_size);
	__u32 from = 0, to = 0, count;
	int err = keys && values ? 0 : -ENOMEM, last = 0;
	bool first = true;

	while (!err && !last) {
		count = WALK_BATCH;
		last = bpf_map_lookup_batch(fd, first ? NULL : &from, &to, keys, values, &count, NULL);
		if (last && last != -ENOENT)
			err = last;
		for (__u32 i = 0; i < count && !err; i++)
			err = visit(keys + i * key_size, values + i * value_size, arg);
		from = to;
		first = false;
	}
	free(keys);
	free(values);
	return err;
}

struct visit_relayed {
	int (*visit)(const struct ph_relayed_key *key, uint32_t count, void *arg);
	void *arg;
};

static int visit_relayed(const void *key, const void *value, void *arg)
{
	const struct visit_relayed *to = arg;

	return to->visit(key, *(const __u32 *)value, to->arg);
}

int ph_maps_each_relayed(const struct ph_maps *maps,
			 int (*visit)(const struct ph_relayed_key *key, uint32_t count, void *arg), void *arg)
{
	struct visit_relayed to = { visit, arg };

	return each(maps->relayed_fd, sizeof(struct ph_relayed_key), sizeof(__u32), visit_relayed, &to);
}

struct visit_source {
	int (*visit)(__be32 client, const struct ph_client_count *source, void *arg);
	void *arg;
};

static int visit_source(const void *key, const void *value, void *arg)
{
	const struct visit_source *to = arg;

	return to->visit(*(const __be32 *)key, value, to->arg);
}

int ph_maps_each_source(const struct ph_maps *maps,
			int (*visit)(__be32 client, const struct ph_client_count *source, void *arg), void *arg)
{
	struct visit_source to = { visit, arg };

	return each(maps->sources_fd, sizeof(__be32), sizeof(struct ph_client_count), visit_source, &to);
}

struct visit_decline {
	int (*visit)(const struct ph_decline_key *key, const struct ph_decline *decline, void *arg);
	void *arg;
};

static int visit_decline(const void *key, const void *value, void *arg)
{
	const struct visit_decline *to = arg;

	return to->visit(key, value, to->arg);
}

int ph_maps_each_decline(const struct ph_maps *maps,
			 int (*visit)(const struct ph_decline_key *key, const struct ph_decline *decline, void *arg),
			 void *arg)
{
	struct visit_decline to = { visit, arg };

	return each(maps->declines_fd, sizeof(struct ph_decline_key), sizeof(struct ph_decline), visit_decline, &to);
}

struct forgetting {
	const struct ph_maps *maps;
	uint32_t worker;
};

static int forget(const struct ph_relayed_key *key, uint32_t count, void *arg)
{
	const struct forgetting *forgetting = arg;
	int err = 0;

	(void)count;
	if (key->worker == forgetting->worker || key->worker >= forgetting->maps->gateway->workers)
		err = ph_maps_set_relayed(forgetting->maps, key, 0);
	return err == -ENOENT ? 0 : err;
}

int ph_maps_forget_relayed(const struct ph_maps *maps, uint32_t worker)
{
	struct forgetting forgetting = { maps, worker };

	return ph_maps_each_relayed(maps, forget, &forgetting);
}

/* Flows of whoever had the slot before may still end: from the first store on they are not counted here. */
static void begin_load(struct ph_load *load, uint32_t generation)
{
	const struct ph_load begun = { .generation = generation };

	__atomic_store_n(&load->whose, 0, __ATOMIC_SEQ_CST);
	memset((char *)load + sizeof(load->whose), 0, sizeof(*load) - sizeof(load->whose));
	__atomic_store_n(&load->whose, begun.whose, __ATOMIC_RELEASE);
}

/*
 * The fences order the stores for readers that look at the generation before and after (pick.h). Without memory for
 * what guard counts of it, that counts for nobody: no reason to do without a CVM.
 */
void ph_maps_set_instance(struct ph_maps *maps, uint32_t slot, const struct ph_instance *instance)
{
	struct ph_instance *to = &maps->instances[slot];

	if (to->generation == instance->generation && maps->loads[slot].generation == instance->generation &&
	    to->address == instance->address &&
	    ph_id_equal(to->app_id, instance->app_id) && ph_id_equal(to->instance_id, instance->instance_id)) {
		__atomic_store_n(&to->handshake_wall_ns, instance->handshake_wall_ns, __ATOMIC_RELAXED);
		__atomic_store_n(&to->handshake_ns, instance->handshake_ns, __ATOMIC_RELAXED);
		__atomic_store_n(&to->state, instance->state, __ATOMIC_RELEASE);
		return;
	}
	guard_remove(maps, to->address, (struct ph_ref){ slot, to->generation });
	if (instance->generation && instance->address)
		guard_add(maps, instance->address, (struct ph_ref){ slot, instance->generation });
	__atomic_store_n(&to->generation, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (maps->loads[slot].generation != instance->generation)
		begin_load(&maps->loads[slot], instance->generation);
	to->address = instance->address;
	to->reserved = 0;
	to->handshake_wall_ns = instance->handshake_wall_ns;
	to->handshake_ns = instance->handshake_ns;
	memcpy(to->app_id, instance->app_id, sizeof(to->app_id));
	memcpy(to->instance_id, instance->instance_id, sizeof(to->instance_id));
	to->state = instance->state;
	__atomic_store_n(&to->generation, instance->generation, __ATOMIC_RELEASE);
}

void ph_maps_free_instance(struct ph_maps *maps, uint32_t slot)
{
	struct ph_instance *at = &maps->instances[slot];

	guard_remove(maps, at->address, (struct ph_ref){ slot, at->generation });
	__atomic_store_n(&at->generation, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&at->state, PH_INSTANCE_FREE, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memset(at, 0, sizeof(*at));
}
