// SPDX-License-Identifier: Apache-2.0
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "maps.h"

#define AHEAD_NS 3000000000ULL		/* silence comes so long after a watcher that died */

/* Where it is said that somebody reads, and where from; each event begins with its time, CLOCK_MONOTONIC. */
static const struct {
	const char *map, *ring, *lock;	/* the lock is a directory: a pin cannot be opened; "" is that of the pins */
	uint32_t map_size, until_at, event_size;
} rows[] = {
	[PH_WATCH_FLOWS] = { "ph_steer", "ph_events", "", sizeof(struct ph_steer),
			     offsetof(struct ph_steer, watch_until_ns), sizeof(struct ph_event) },
	[PH_WATCH_GUARD] = { "ph_guard_watch", "ph_guard_events", "/" PH_MAPS_GUARD_LOCK, sizeof(struct ph_guard_watch),
			     offsetof(struct ph_guard_watch, until_ns), sizeof(struct ph_guard_event) },
};

struct ph_watch {
	enum ph_watch_what what;
	bool (*visit)(const void *event, void *arg);
	void *arg;
	uint64_t begun_ns;
	void *map;			/* mapped */
	struct ring_buffer *ring;
	int lock_fd, ring_fd;
	bool stopped;
};

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level, (void)format, (void)args;
	return 0;
}

static int take(void *arg, void *data, size_t size)
{
	struct ph_watch *watch = arg;
	uint64_t at_ns;

	if (size < rows[watch->what].event_size || watch->stopped)
		return 0;
	memcpy(&at_ns, data, sizeof(at_ns));
	if (at_ns < watch->begun_ns)		/* what an earlier watcher left unread is not news */
		return 0;
	watch->stopped = !watch->visit(data, watch->arg);
	return 0;
}

/* Two readers would share one position in the buffer. */
static int lock(const char *bpf_dir, enum ph_watch_what what, int *ret_fd)
{
	char path[PATH_MAX];
	int fd, err;

	if (snprintf(path, sizeof(path), "%s%s", bpf_dir, rows[what].lock) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (rows[what].lock[0] && mkdir(path, 0700) && errno != EEXIST)
		return -errno;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		err = errno == EWOULDBLOCK ? -EBUSY : -errno;
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

static int open_map(const char *bpf_dir, const char *name, uint32_t type, uint32_t value_size, int *ret_fd)
{
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);
	char path[PATH_MAX];
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", bpf_dir, name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = bpf_obj_get(path);
	if (fd < 0)
		return fd;
	if (bpf_obj_get_info_by_fd(fd, &info, &len) || info.type != type || info.value_size != value_size) {
		close(fd);
		return -ESTALE;
	}
	*ret_fd = fd;
	return 0;
}

static int map_state(const char *bpf_dir, enum ph_watch_what what, int protection, void **ret_map)
{
	void *at;
	int fd, err = open_map(bpf_dir, rows[what].map, BPF_MAP_TYPE_ARRAY, rows[what].map_size, &fd);

	if (err)
		return err;
	at = mmap(NULL, sysconf(_SC_PAGESIZE), protection, MAP_SHARED, fd, 0);
	err = at == MAP_FAILED ? -errno : 0;
	close(fd);
	if (!err)
		*ret_map = at;
	return err;
}

static uint64_t *until_of(void *map, enum ph_watch_what what)
{
	return (uint64_t *)((char *)map + rows[what].until_at);
}

static int open_ring(const char *bpf_dir, struct ph_watch *watch)
{
	int err = open_map(bpf_dir, rows[watch->what].ring, BPF_MAP_TYPE_RINGBUF, 0, &watch->ring_fd);

	if (err)
		return err;
	watch->ring = ring_buffer__new(watch->ring_fd, take, watch, NULL);
	return watch->ring ? 0 : -errno;
}

static void refresh(struct ph_watch *watch)
{
	__atomic_store_n(until_of(watch->map, watch->what), now_ns(CLOCK_MONOTONIC) + AHEAD_NS, __ATOMIC_RELAXED);
}

int ph_watch_begin(const char *bpf_dir, enum ph_watch_what what, bool (*visit)(const void *event, void *arg), void *arg,
		   struct ph_watch **ret_watch, char *error, size_t error_size)
{
	struct ph_watch *watch = calloc(1, sizeof(*watch));
	int err;

	libbpf_set_print(quiet);
	if (!watch) {
		snprintf(error, error_size, "out of memory");
		return -ENOMEM;
	}
	*watch = (struct ph_watch){ .what = what, .visit = visit, .arg = arg, .lock_fd = -1, .ring_fd = -1 };
	err = lock(bpf_dir, what, &watch->lock_fd);
	if (!err)
		err = map_state(bpf_dir, what, PROT_READ | PROT_WRITE, &watch->map);
	if (!err)
		err = open_ring(bpf_dir, watch);
	if (err) {
		snprintf(error, error_size, "%s: %s", bpf_dir,
			 err == -EBUSY ? "somebody else watches already" :
			 err == -ENOENT ? what == PH_WATCH_FLOWS ? "no events: this phalad has no kernel path" : "no events: an older phalad has none" :
			 err == -ESTALE ? "the maps have another layout" : strerror(-err));
		ph_watch_free(watch);
		return err;
	}
	watch->begun_ns = now_ns(CLOCK_MONOTONIC_COARSE);
	refresh(watch);
	*ret_watch = watch;
	return 0;
}

int ph_watch_wait(struct ph_watch *watch, int timeout_ms)
{
	int got;

	refresh(watch);
	got = ring_buffer__poll(watch->ring, timeout_ms);
	return got < 0 ? got : 0;
}

void ph_watch_free(struct ph_watch *watch)
{
	if (!watch)
		return;
	if (watch->map && watch->begun_ns)
		__atomic_store_n(until_of(watch->map, watch->what), 0, __ATOMIC_RELAXED);
	ring_buffer__free(watch->ring);
	if (watch->map)
		munmap(watch->map, sysconf(_SC_PAGESIZE));
	if (watch->ring_fd >= 0)
		close(watch->ring_fd);
	if (watch->lock_fd >= 0)
		close(watch->lock_fd);
	free(watch);
}

int ph_watch_is_on(const char *bpf_dir, enum ph_watch_what what, bool *ret_on)
{
	void *map;
	int err = map_state(bpf_dir, what, PROT_READ, &map);

	if (err)
		return err;
	*ret_on = __atomic_load_n(until_of(map, what), __ATOMIC_RELAXED) > now_ns(CLOCK_MONOTONIC);
	munmap(map, sysconf(_SC_PAGESIZE));
	return 0;
}
