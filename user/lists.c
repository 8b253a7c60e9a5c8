// SPDX-License-Identifier: Apache-2.0
#include "lists.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>

#define NS_PER_S 1000000000LL
#define EXPIRED_KEPT_S 86400
#define UNTIL_MAX_S (INT64_MAX / NS_PER_S / 2)	/* the year 2116: as good as never, and fits in nanoseconds */
#define BATCH 65536				/* rows that one system call takes to the kernel */

static const struct {
	const char *word, *file, *map;
} kinds[PH_LISTS] = {
	[PH_LIST_DENY] = { "deny", "deny.list", "ph_deny" },
	[PH_LIST_ALLOW] = { "allow", "allow.list", "ph_allow" },
};

/* A change under way: the lock is held. */
struct edit {
	const struct ph_lists_place *place;
	enum ph_list_kind kind;
	int lock_fd, map_fd;			/* the map's: -1 when there is none */
	struct ph_gate *gate;			/* mapped; NULL likewise */
	char path[PATH_MAX];			/* of the file */
	uint64_t stamp[PH_GATE_STAMP];		/* of the file as it was read */
	int64_t now_s, kept_s;			/* now, and for how long what has expired stays in the file */
	bool anew;				/* the map's times are of a clock that was set since */
	size_t live;				/* rows of @after that have not expired */
	struct ph_prefix_list before, after;	/* what was in it, and what is to be; reasons are @before's or the caller's */
};

__attribute__((format(printf, 4, 5))) static int refuse(int err, char *error, size_t error_size, const char *format,
							 ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, error_size, format, args);
	va_end(args);
	return err;
}

const char *ph_list_word(enum ph_list_kind kind)
{
	return kinds[kind].word;
}

static int join(char out[PATH_MAX], const char *dir, const char *name)
{
	return snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* The size too: two changes within a tick of the kernel's clock leave the same time. */
static void take_stamp(int fd, uint64_t ret_stamp[PH_GATE_STAMP])
{
	struct stat status;

	if (fstat(fd, &status))
		return;
	ret_stamp[0] = (uint64_t)status.st_mtim.tv_sec * NS_PER_S + (uint64_t)status.st_mtim.tv_nsec;
	ret_stamp[1] = status.st_ino;
	ret_stamp[2] = (uint64_t)status.st_size;
}

static int read_file(const char *path, struct ph_prefix_list *ret_list, uint64_t ret_stamp[PH_GATE_STAMP], char *error,
		     size_t error_size)
{
	FILE *file = fopen(path, "re");
	int err;

	if (!file && errno == ENOENT)
		return 0;
	if (!file)
		return refuse(-errno, error, error_size, "%s: %s", path, strerror(errno));
	take_stamp(fileno(file), ret_stamp);
	err = ph_prefix_list_read(file, path, SIZE_MAX, ret_list, error, error_size);
	fclose(file);
	return err;
}

int ph_lists_read(const struct ph_lists_place *place, enum ph_list_kind kind, struct ph_prefix_list *ret_list,
		  char *error, size_t error_size)
{
	struct ph_prefix_list list = { 0 };
	uint64_t stamp[PH_GATE_STAMP];
	char path[PATH_MAX];
	int err = join(path, place->state_dir, kinds[kind].file);

	if (err)
		return refuse(err, error, error_size, "%s: %s", place->state_dir, strerror(-err));
	err = read_file(path, &list, stamp, error, error_size);
	if (!err)
		*ret_list = list;
	return err;
}

static int take_lock(const struct ph_lists_place *place, bool wait, int *ret_fd, char *error, size_t error_size)
{
	char path[PATH_MAX];
	int err = join(path, place->state_dir, "lists.lock"), fd;

	if (err)
		return refuse(err, error, error_size, "%s: %s", place->state_dir, strerror(-err));
	if (mkdir(place->state_dir, 0700) && errno != EEXIST)
		return refuse(-errno, error, error_size, "%s: %s", place->state_dir, strerror(errno));
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return refuse(-errno, error, error_size, "%s: %s", path, strerror(errno));
	while (flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB))) {
		if (errno == EINTR)
			continue;
		err = -errno;
		close(fd);
		return refuse(err, error, error_size, "%s: %s", path, strerror(-err));
	}
	*ret_fd = fd;
	return 0;
}

/* The map and its configuration, if phalad has made them. Return: 0 or -errno. */
static int open_map(struct edit *edit, char *error, size_t error_size)
{
	char path[PATH_MAX], gate_path[PATH_MAX];
	int err = join(path, edit->place->bpf_dir, kinds[edit->kind].map), fd;
	void *at;

	if (!err)
		err = join(gate_path, edit->place->bpf_dir, "ph_gate");
	if (err)
		return refuse(err, error, error_size, "%s: %s", edit->place->bpf_dir, strerror(-err));
	fd = bpf_obj_get(gate_path);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return refuse(fd, error, error_size, "%s: %s", gate_path, strerror(-fd));
	at = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = at == MAP_FAILED ? -errno : 0;
	close(fd);
	if (err)
		return refuse(err, error, error_size, "%s: %s", gate_path, strerror(-err));
	edit->gate = at;
	edit->map_fd = bpf_obj_get(path);
	return edit->map_fd < 0 ? refuse(edit->map_fd, error, error_size, "%s: %s", path, strerror(-edit->map_fd)) : 0;
}

static void end(struct edit *edit)
{
	ph_prefix_list_free(&edit->before);
	free(edit->after.rows);
	if (edit->gate)
		munmap(edit->gate, sysconf(_SC_PAGESIZE));
	if (edit->map_fd >= 0)
		close(edit->map_fd);
}

/* Return: 0, or -errno with @error set; call end() in either case. */
static int begin(struct edit *edit, char *error, size_t error_size)
{
	int err;

	edit->map_fd = -1;
	err = join(edit->path, edit->place->state_dir, kinds[edit->kind].file);
	if (err)
		return refuse(err, error, error_size, "%s: %s", edit->place->state_dir, strerror(-err));
	err = read_file(edit->path, &edit->before, edit->stamp, error, error_size);
	return err ? err : open_map(edit, error, error_size);
}

static bool has_expired(const struct ph_prefix_row *row, int64_t now_s)
{
	return row->until_s && row->until_s <= now_s;
}

static bool differs(const struct ph_prefix_row *a, const struct ph_prefix_row *b)
{
	return a->until_s != b->until_s || strcmp(a->reason, b->reason);
}

/*
 * @before less what has expired, or did @kept_s ago, and what is in @less, and what is in @more, into @after. Return: 0
 * or -ENOMEM.
 */
static int merge(struct edit *edit, const struct ph_prefix_list *more, const struct ph_prefix_list *less,
		 struct ph_lists_result *result)
{
	static const struct ph_prefix_list none;
	int64_t now_s = edit->now_s, gone_s = now_s - edit->kept_s;
	const struct ph_prefix_list *old = &edit->before;
	struct ph_prefix_row *out;
	size_t i = 0, j = 0;

	more = more ? more : &none;
	out = calloc(old->count + more->count + 1, sizeof(*out));
	if (!out)
		return -ENOMEM;
	edit->after.rows = out;
	while (i < old->count || j < more->count) {
		int order = i == old->count ? 1 : j == more->count ? -1 :
			    ph_prefix_compare(&old->rows[i].prefix, &more->rows[j].prefix);
		const struct ph_prefix_row *row = order < 0 ? &old->rows[i] : &more->rows[j];
		bool was = order <= 0 && !has_expired(&old->rows[i], now_s);

		if (has_expired(row, gone_s)) {
			result->removed += was;
		} else if (less && ph_prefix_list_find(less, &row->prefix)) {
			result->removed++;
		} else {
			result->rows += !has_expired(row, now_s);
			result->added += !was && !has_expired(row, now_s);
			result->changed += was && !order && differs(row, &old->rows[i]);
			out[edit->after.count++] = *row;
		}
		i += order <= 0;
		j += order >= 0;
	}
	edit->live = result->rows;
	return 0;
}

/* The file as a whole, under its name only once it is on disk. */
static int write_file(struct edit *edit, char *error, size_t error_size)
{
	char path[PATH_MAX + 8];
	FILE *file = NULL;
	int err = 0, fd;

	snprintf(path, sizeof(path), "%s.new", edit->path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd >= 0)
		file = fdopen(fd, "w");
	if (!file)
		return refuse(-errno, error, error_size, "%s: %s", path, strerror(errno));
	fprintf(file, "# Written by phalactl %s. Who changes it by hand does so while phalad is stopped.\n",
		kinds[edit->kind].word);
	err = ph_prefix_list_write(&edit->after, file);
	if (fflush(file) || fsync(fd))
		err = -errno;
	take_stamp(fd, edit->stamp);
	if (fclose(file) && !err)
		err = -errno;
	if (!err && rename(path, edit->path))
		err = -errno;
	fd = err ? -1 : open(edit->place->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!err && (fd < 0 || fsync(fd)))
		err = -errno;
	if (fd >= 0)
		close(fd);
	return err ? refuse(err, error, error_size, "%s: %s", path, strerror(-err)) : 0;
}

/* What is in the map, as rows whose end is not known. */
static int read_map(int fd, struct ph_prefix_list *ret_list)
{
	struct ph_prefix_list list = { 0 };
	struct ph_prefix key, next;
	int more;

	for (more = bpf_map_get_next_key(fd, NULL, &next); !more; more = bpf_map_get_next_key(fd, &key, &next)) {
		key = next;
		if (list.count == list.room) {
			struct ph_prefix_row *rows;

			list.room = list.room ? 2 * list.room : 64;
			rows = reallocarray(list.rows, list.room, sizeof(*rows));
			if (!rows) {
				free(list.rows);
				return -ENOMEM;
			}
			list.rows = rows;
		}
		list.rows[list.count++] = (struct ph_prefix_row){ .prefix = key, .until_s = -1, .reason = "" };
	}
	if (more != -ENOENT) {
		free(list.rows);
		return more;
	}
	if (list.count)
		qsort(list.rows, list.count, sizeof(*list.rows), ph_prefix_compare);
	*ret_list = list;
	return 0;
}

/* Until then, by CLOCK_REALTIME @real_ns. */
static int64_t left_ns(int64_t until_s, int64_t real_ns)
{
	return (until_s < UNTIL_MAX_S ? until_s : UNTIL_MAX_S) * NS_PER_S - real_ns;
}

struct batch {
	int fd;
	uint32_t count;
	int64_t real_ns, boot_ns;		/* now */
	struct ph_prefix keys[BATCH];
	struct ph_listed values[BATCH];
};

static int flush_updates(struct batch *batch)
{
	uint32_t count = batch->count;

	batch->count = 0;
	return count ? bpf_map_update_batch(batch->fd, batch->keys, batch->values, &count, NULL) : 0;
}

static int update(struct batch *batch, const struct ph_prefix_row *row)
{
	int64_t end_ns = row->until_s ? batch->boot_ns + left_ns(row->until_s, batch->real_ns) : 0;
	struct ph_listed value = { .bits = row->prefix.bits };

	if (row->until_s)
		value.until_ns = (uint64_t)(end_ns > 1 ? end_ns : 1);
	batch->keys[batch->count] = row->prefix;
	batch->values[batch->count++] = value;
	return batch->count == BATCH ? flush_updates(batch) : 0;
}

/* Both in order: what is only in @old, or has expired, is deleted; what is new or has another end is set. */
static int change_map(int fd, const struct ph_prefix_list *old, const struct ph_prefix_list *new, int64_t now_s)
{
	struct batch *batch = calloc(1, sizeof(*batch));
	size_t i = 0, j = 0;
	int err = 0;

	if (!batch)
		return -ENOMEM;
	batch->fd = fd;
	batch->real_ns = clock_ns(CLOCK_REALTIME);
	batch->boot_ns = clock_ns(CLOCK_BOOTTIME);
	while (!err && (i < old->count || j < new->count)) {
		int order = i == old->count ? 1 : j == new->count ? -1 :
			    ph_prefix_compare(&old->rows[i].prefix, &new->rows[j].prefix);

		if (order < 0 || (!order && has_expired(&new->rows[j], now_s)))
			err = bpf_map_delete_elem(fd, &old->rows[i].prefix);
		else if (has_expired(&new->rows[j], now_s))
			err = 0;
		else if (order > 0 || old->rows[i].until_s != new->rows[j].until_s)
			err = update(batch, &new->rows[j]);
		if (order <= 0 && err == -ENOENT)
			err = 0;
		i += order <= 0;
		j += order >= 0;
	}
	if (!err)
		err = flush_updates(batch);
	free(batch);
	return err;
}

/* When the next of them expires, on CLOCK_BOOTTIME; 0 is never. */
static uint64_t next_expiry(const struct ph_prefix_list *list, int64_t now_s)
{
	int64_t first_s = 0, left;

	for (size_t i = 0; i < list->count; i++) {
		int64_t until_s = list->rows[i].until_s;

		if (until_s > now_s && (!first_s || until_s < first_s))
			first_s = until_s;
	}
	left = left_ns(first_s, clock_ns(CLOCK_REALTIME));
	return first_s ? (uint64_t)(clock_ns(CLOCK_BOOTTIME) + (left > 0 ? left : 0)) : 0;
}

/* @in_step: the map is as the file was. */
static int enforce(struct edit *edit, bool in_step, char *error, size_t error_size)
{
	struct ph_gate_list *about = &edit->gate->lists[edit->kind];
	struct ph_prefix_list found = { 0 };
	int err = in_step ? 0 : read_map(edit->map_fd, &found);

	if (!err) {
		/* No stamp while it is neither the one nor the other; rows, so that the gate looks. */
		memset(about->stamp, 0xff, sizeof(about->stamp));
		if (edit->live > about->rows)
			__atomic_store_n(&about->rows, edit->live, __ATOMIC_RELEASE);
		err = change_map(edit->map_fd, in_step ? &edit->before : &found, &edit->after, edit->now_s);
	}
	free(found.rows);
	__atomic_fetch_add(&edit->gate->generation, 1, __ATOMIC_RELEASE);
	if (err)
		return refuse(err, error, error_size, "%s is written, but the kernel's list could not be made equal: %s",
			      edit->path, strerror(-err));
	__atomic_store_n(&about->rows, edit->live, __ATOMIC_RELEASE);
	about->expires_ns = next_expiry(&edit->after, edit->now_s);
	memcpy(about->stamp, edit->stamp, sizeof(about->stamp));
	return 0;
}

static int finish(struct edit *edit, struct ph_lists_result *result, char *error, size_t error_size)
{
	const struct ph_gate_list *about = edit->gate ? &edit->gate->lists[edit->kind] : NULL;
	bool in_step = about && !edit->anew && !memcmp(edit->stamp, about->stamp, sizeof(edit->stamp));
	bool due = about && about->expires_ns && about->expires_ns <= (uint64_t)clock_ns(CLOCK_BOOTTIME);
	bool same = edit->after.count == edit->before.count && !result->added && !result->changed && !result->removed;
	int err;

	if (result->rows > PH_GATE_PREFIXES_MAX)
		return refuse(-E2BIG, error, error_size, "the %s list would have %zu prefixes; it holds %d",
			      kinds[edit->kind].word, result->rows, PH_GATE_PREFIXES_MAX);
	err = same ? 0 : write_file(edit, error, error_size);
	result->enforced = edit->gate;
	if (!err && edit->gate && (!same || !in_step || due))
		err = enforce(edit, in_step, error, error_size);
	return err;
}

/* One change with the lock held, by either argument; with neither, what phalad does by itself. */
static int change(const struct ph_lists_place *place, enum ph_list_kind kind, const struct ph_prefix_list *more,
		  const struct ph_prefix_list *less, bool anew, struct ph_lists_result *ret_result, char *error,
		  size_t error_size)
{
	struct edit edit = { .place = place, .kind = kind, .anew = anew, .kept_s = more || less ? 0 : EXPIRED_KEPT_S,
			     .now_s = clock_ns(CLOCK_REALTIME) / NS_PER_S };
	struct ph_lists_result result = { 0 };
	int err = begin(&edit, error, error_size);

	for (size_t i = 0; !err && less && i < less->count; i++) {
		char text[PH_PREFIX_TEXT_SIZE];

		if (!ph_prefix_list_find(&edit.before, &less->rows[i].prefix))
			err = refuse(-ENOENT, error, error_size, "%s is not in the %s list",
				     ph_prefix_text(text, &less->rows[i].prefix), kinds[kind].word);
	}
	if (!err && merge(&edit, more, less, &result))
		err = refuse(-ENOMEM, error, error_size, "out of memory");
	if (!err)
		err = finish(&edit, &result, error, error_size);
	end(&edit);
	if (!err && ret_result)
		*ret_result = result;
	return err;
}

static int change_locked(const struct ph_lists_place *place, enum ph_list_kind kind, const struct ph_prefix_list *more,
			 const struct ph_prefix_list *less, struct ph_lists_result *ret_result, char *error,
			 size_t error_size)
{
	int fd, err = take_lock(place, true, &fd, error, error_size);

	if (err)
		return err;
	err = change(place, kind, more, less, false, ret_result, error, error_size);
	close(fd);
	return err;
}

int ph_lists_add(const struct ph_lists_place *place, enum ph_list_kind kind, const struct ph_prefix_list *more,
		 struct ph_lists_result *ret_result, char *error, size_t error_size)
{
	return change_locked(place, kind, more, NULL, ret_result, error, error_size);
}

int ph_lists_remove(const struct ph_lists_place *place, enum ph_list_kind kind, const struct ph_prefix_list *which,
		    struct ph_lists_result *ret_result, char *error, size_t error_size)
{
	return change_locked(place, kind, NULL, which, ret_result, error, error_size);
}

int ph_lists_sync(const struct ph_lists_place *place, bool wait, bool anew, char *error, size_t error_size)
{
	int fd, err = take_lock(place, wait, &fd, error, error_size);
	char unsaid[PATH_MAX];

	if (err)
		return err;
	/* A list that cannot be read is no reason to go without the other. */
	for (int kind = 0; kind < PH_LISTS; kind++) {
		int one = change(place, (enum ph_list_kind)kind, NULL, NULL, anew, NULL, err ? unsaid : error,
				 err ? sizeof(unsaid) : error_size);

		err = err ? err : one;
	}
	close(fd);
	return err;
}
