// SPDX-License-Identifier: Apache-2.0
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define AHEAD_NS 3000000000ULL		/* steer falls silent so long after a watcher that died */

struct ph_watch {
	bool (*visit)(const struct ph_event *event, void *arg);
	void *arg;
	uint64_t begun_ns;
	struct ph_steer *steer;		/* mapped */
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
	const struct ph_event *event = data;
	struct ph_watch *watch = arg;

	/* What an earlier watcher left unread is not news. */
	if (size < sizeof(*event) || event->now_ns < watch->begun_ns || watch->stopped)
		return 0;
	watch->stopped = !watch->visit(event, watch->arg);
	return 0;
}

/* Two readers would share one position in the buffer; the lock is on the directory, as a pin cannot be opened. */
static int lock(const char *bpf_dir, int *ret_fd)
{
	int fd = open(bpf_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;

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

static int map_steer(const char *bpf_dir, struct ph_steer **ret_steer)
{
	void *at;
	int fd, err = open_map(bpf_dir, "ph_steer", BPF_MAP_TYPE_ARRAY, sizeof(struct ph_steer), &fd);

	if (err)
		return err;
	at = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = at == MAP_FAILED ? -errno : 0;
	close(fd);
	if (!err)
		*ret_steer = at;
	return err;
}

static int open_ring(const char *bpf_dir, struct ph_watch *watch)
{
	int err = open_map(bpf_dir, "ph_events", BPF_MAP_TYPE_RINGBUF, 0, &watch->ring_fd);

	if (err)
		return err;
	watch->ring = ring_buffer__new(watch->ring_fd, take, watch, NULL);
	return watch->ring ? 0 : -errno;
}

static void refresh(struct ph_watch *watch)
{
	__atomic_store_n(&watch->steer->watch_until_ns, now_ns(CLOCK_MONOTONIC) + AHEAD_NS, __ATOMIC_RELAXED);
}

int ph_watch_begin(const char *bpf_dir, bool (*visit)(const struct ph_event *event, void *arg), void *arg,
		   struct ph_watch **ret_watch, char *error, size_t error_size)
{
	struct ph_watch *watch = calloc(1, sizeof(*watch));
	int err;

	libbpf_set_print(quiet);
	if (!watch) {
		snprintf(error, error_size, "out of memory");
		return -ENOMEM;
	}
	*watch = (struct ph_watch){ .visit = visit, .arg = arg, .lock_fd = -1, .ring_fd = -1 };
	err = lock(bpf_dir, &watch->lock_fd);
	if (!err)
		err = map_steer(bpf_dir, &watch->steer);
	if (!err)
		err = open_ring(bpf_dir, watch);
	if (err) {
		snprintf(error, error_size, "%s: %s", bpf_dir,
			 err == -EBUSY ? "somebody else watches already" :
			 err == -ENOENT ? "no events: this phalad has no kernel path" :
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
	if (watch->steer && watch->begun_ns)
		__atomic_store_n(&watch->steer->watch_until_ns, 0, __ATOMIC_RELAXED);
	ring_buffer__free(watch->ring);
	if (watch->steer)
		munmap(watch->steer, sysconf(_SC_PAGESIZE));
	if (watch->ring_fd >= 0)
		close(watch->ring_fd);
	if (watch->lock_fd >= 0)
		close(watch->lock_fd);
	free(watch);
}
