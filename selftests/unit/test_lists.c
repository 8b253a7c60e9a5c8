// SPDX-License-Identifier: Apache-2.0
/*
 * lists: files and maps that agree, whatever happened to either meanwhile; and a million prefixes. Needs root, for BPF
 * and for a bpffs of its own in a mount namespace of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "gate.h"
#include "ktap.h"
#include "lists.h"

#define MILLION 1000000
#define IN_GUEST 20000			/* an emulated guest would take half a minute for each step */

static char top[] = "/tmp/phala-test-lists.XXXXXX", state_dir[64], bpf_dir[64];
static char error[1024];
static struct ph_lists_place place = { state_dir, bpf_dir };
static struct ph_lists_result result;

static struct ph_prefix prefix(const char *text)
{
	struct ph_prefix read = { 0 };
	char why[128];

	ph_prefix_read(text, &read, why, sizeof(why));
	return read;
}

/* Prefixes with blanks between them; @for_s: from now, 0 is for ever. */
static int change(enum ph_list_kind kind, bool add, const char *texts, int64_t for_s, const char *reason)
{
	struct ph_prefix_list list = { 0 };
	char *copy = strdup(texts), *at = copy, *word;
	struct ph_prefix_row rows[64];
	int err;

	list.rows = rows;
	while ((word = strsep(&at, " ")) && list.count < 64)
		rows[list.count++] = (struct ph_prefix_row){ .prefix = prefix(word), .reason = reason,
							     .until_s = for_s ? time(NULL) + for_s : 0 };
	qsort(rows, list.count, sizeof(rows[0]), ph_prefix_compare);
	memset(&result, 0, sizeof(result));
	error[0] = '\0';
	err = add ? ph_lists_add(&place, kind, &list, &result, error, sizeof(error)) :
		    ph_lists_remove(&place, kind, &list, &result, error, sizeof(error));
	free(copy);
	return err;
}

static int count_row(const void *key, const void *value, void *arg)
{
	(void)key, (void)value;
	++*(size_t *)arg;
	return 0;
}

static size_t mapped(const char *map)
{
	size_t count = 0;

	return ph_gate_each(bpf_dir, map, count_row, &count) ? SIZE_MAX : count;
}

/* Return: NULL when it is not in the map. */
static const struct ph_listed *in_map(const char *map, const char *text)
{
	static struct ph_listed value;
	struct ph_prefix key = prefix(text);
	char path[128];
	int fd, err;

	snprintf(path, sizeof(path), "%s/%s", bpf_dir, map);
	fd = bpf_obj_get(path);
	err = fd < 0 ? fd : bpf_map_lookup_elem(fd, &key, &value);
	if (fd >= 0)
		close(fd);
	return err || value.bits != key.bits ? NULL : &value;	/* a trie finds what holds it, too */
}

static const char *file_of(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", state_dir, name);
	return path;
}

static const char *text_of(const char *name)
{
	static char text[4096];
	FILE *file = fopen(file_of(name), "re");
	size_t len = 0;

	if (file) {
		len = fread(text, 1, sizeof(text) - 1, file);
		fclose(file);
	}
	text[len] = '\0';
	return strchr(text, '\n') ? strchr(text, '\n') + 1 : "";	/* without the comment at its head */
}

static void write_text(const char *name, const char *text)
{
	FILE *file = fopen(file_of(name), "we");

	fputs(text, file);
	fclose(file);
}

static struct ph_gate read_gate(void)
{
	struct ph_gate gate = { 0 };

	ph_gate_read(bpf_dir, &gate);
	return gate;
}

static int sync_lists(void)
{
	error[0] = '\0';
	return ph_lists_sync(&place, true, false, error, sizeof(error));
}

/* Before there is a gate only the files are written. */
static void test_no_gate(void)
{
	ktap_ok(!change(PH_LIST_DENY, true, "192.0.2.0/24 2001:db8::/32", 0, "early") && result.added == 2 &&
		result.rows == 2 && !result.enforced, "without a gate prefixes are kept, and it is told that none is enforced");
	ktap_ok(!strcmp(text_of("deny.list"), "192.0.2.0/24 # early\n2001:db8::/32 # early\n"), "the file says so");
}

static void test_changes(void)
{
	uint32_t generation;
	struct ph_gate gate;

	ktap_ok(!sync_lists() && mapped("ph_deny") == 2 && in_map("ph_deny", "192.0.2.0/24") &&
		in_map("ph_deny", "2001:db8::/32"), "the gate that comes gets what is in the file");
	gate = read_gate();
	ktap_ok(gate.lists[PH_LIST_DENY].rows == 2 && !gate.lists[PH_LIST_ALLOW].rows, "it is told how many");
	generation = gate.generation;
	ktap_ok(!sync_lists() && read_gate().generation == generation, "what is equal is not touched");

	ktap_ok(!change(PH_LIST_ALLOW, true, "192.0.2.7", 0, "") && result.enforced && mapped("ph_allow") == 1 &&
		mapped("ph_deny") == 2, "the other list is another");
	ktap_ok(!change(PH_LIST_DENY, true, "198.51.100.0/24", 3600, "scans") && result.added == 1 && result.rows == 3 &&
		in_map("ph_deny", "198.51.100.0/24")->until_ns, "one for an hour");
	ktap_ok(read_gate().generation > generation + 1, "what was cached is void");
	ktap_ok(read_gate().lists[PH_LIST_DENY].expires_ns == in_map("ph_deny", "198.51.100.0/24")->until_ns ||
		llabs((long long)(read_gate().lists[PH_LIST_DENY].expires_ns -
				  in_map("ph_deny", "198.51.100.0/24")->until_ns)) < 1000000000LL, "its end is noted");
	ktap_ok(!change(PH_LIST_DENY, true, "198.51.100.0/24 192.0.2.0/24", 0, "early") && !result.added &&
		result.changed == 1 && !in_map("ph_deny", "198.51.100.0/24")->until_ns, "now for ever; the other is as it was");
	ktap_ok(change(PH_LIST_DENY, false, "192.0.2.0/24 203.0.113.0/24", 0, "") == -ENOENT &&
		strstr(error, "203.0.113.0/24 is not in the deny list") && in_map("ph_deny", "192.0.2.0/24"),
		"one of two that is not there: neither is removed");
	ktap_ok(change(PH_LIST_DENY, false, "192.0.2.0/25", 0, "") == -ENOENT, "a part of one is not there");
	ktap_ok(!change(PH_LIST_DENY, false, "192.0.2.0/24", 0, "") && result.removed == 1 && result.rows == 2 &&
		!in_map("ph_deny", "192.0.2.0/24") && in_map("ph_deny", "198.51.100.0/24"), "removed, and nothing else");
	ktap_ok(!change(PH_LIST_DENY, true, "203.0.113.7", 250000000000, "") && in_map("ph_deny", "203.0.113.7") &&
		in_map("ph_deny", "203.0.113.7")->until_ns > 1000000000000000000 &&
		read_gate().lists[PH_LIST_DENY].expires_ns > 1000000000000000000,
		"until a time that nanoseconds cannot count to: still denied");
}

/* The files and the maps part, in each way they can; sync brings them together. */
static void test_apart(void)
{
	struct ph_gating *gating = NULL;
	struct timespec times[2];
	struct stat status = { 0 };

	ktap_ok(!stat(file_of("deny.list"), &status), "the file as it was written");
	write_text("deny.list", "# by hand\n203.0.113.0/24\n");
	times[0] = times[1] = status.st_mtim;
	ktap_ok(!utimensat(AT_FDCWD, file_of("deny.list"), times, 0) && !sync_lists() && mapped("ph_deny") == 1 &&
		in_map("ph_deny", "203.0.113.0/24"), "a file changed by hand, in the same tick of the clock");
	unlink(file_of("deny.list"));
	ktap_ok(!sync_lists() && !mapped("ph_deny") && !read_gate().lists[PH_LIST_DENY].rows, "a file that was deleted");
	write_text("deny.list", "203.0.113.0/24\nnonsense\n");
	ktap_ok(sync_lists() == -EINVAL && strstr(error, "deny.list:2: nonsense"), "a file that is wrong: told where");
	ktap_ok(mapped("ph_allow") == 1, "and the other list stays as it is");
	ktap_ok(change(PH_LIST_DENY, true, "192.0.2.1", 0, "") == -EINVAL && strstr(text_of("deny.list"), "nonsense"),
		"it is not written over");
	write_text("deny.list", "203.0.113.0/24\n198.51.100.0/24 until 2001-01-01T00:00:00Z\n");
	ktap_ok(!sync_lists() && mapped("ph_deny") == 1 && !strstr(text_of("deny.list"), "198.51.100"),
		"what has expired is nowhere");
	ktap_ok(!ph_gate_unpin(bpf_dir, error, sizeof(error)) && !ph_gate_load(bpf_dir, &gating, error, sizeof(error)) &&
		!mapped("ph_deny"), "another boot: the maps are new");
	ph_gate_free(gating);
	ktap_ok(!sync_lists() && in_map("ph_deny", "203.0.113.0/24") && in_map("ph_allow", "192.0.2.7"),
		"and have what is in the files");
	ktap_ok(!change(PH_LIST_DENY, true, "192.0.2.9", 2, "") && in_map("ph_deny", "192.0.2.9"), "one for two seconds");
	for (int64_t until = time(NULL) + 30; mapped("ph_deny") == 2 && time(NULL) < until;)
		sync_lists();
	ktap_ok(mapped("ph_deny") == 1 && read_gate().lists[PH_LIST_DENY].rows == 1 && strstr(text_of("deny.list"), "192.0.2.9"),
		"when that is over the map has it no longer, and the file for a day");
	ktap_ok(!change(PH_LIST_DENY, true, "192.0.2.8", 3600, "") && result.rows == 2 && !strstr(text_of("deny.list"), "192.0.2.9"),
		"or until it is written");
}

/* As the clock was in the future when phalad started, and the map was made by it. */
static void test_clock(void)
{
	struct ph_prefix key = prefix("192.0.2.8");
	struct ph_listed wrong = { .until_ns = 1, .bits = key.bits };
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/ph_deny", bpf_dir);
	fd = bpf_obj_get(path);
	ktap_ok(fd >= 0 && !bpf_map_update_elem(fd, &key, &wrong, BPF_EXIST) && !sync_lists() &&
		in_map("ph_deny", "192.0.2.8")->until_ns == 1, "a map whose times are wrong looks like any");
	ktap_ok(!ph_lists_sync(&place, true, true, error, sizeof(error)) && in_map("ph_deny", "192.0.2.8")->until_ns > 1,
		"once the clock was set they are made anew");
	ktap_ok(!bpf_map_delete_elem(fd, &key) && !ph_lists_sync(&place, true, true, error, sizeof(error)) &&
		in_map("ph_deny", "192.0.2.8"), "and what had expired by the other clock is back");
	close(fd);
}

static void test_lock(void)
{
	int fd = open(file_of("lists.lock"), O_RDWR | O_CLOEXEC);

	ktap_ok(fd >= 0 && !flock(fd, LOCK_EX) && ph_lists_sync(&place, false, false, error, sizeof(error)) == -EAGAIN,
		"while somebody has the lock, who will not wait is told");
	close(fd);
	ktap_ok(!ph_lists_sync(&place, false, false, error, sizeof(error)), "and may afterwards");
}

static void test_places(void)
{
	struct ph_lists_place wrong = { "/proc/phala", bpf_dir };
	struct ph_prefix_row row = { .prefix = prefix("192.0.2.1"), .reason = "" };
	struct ph_prefix_list list = { .rows = &row, .count = 1 };

	ktap_ok(ph_lists_add(&wrong, PH_LIST_DENY, &list, NULL, error, sizeof(error)) < 0 && strstr(error, "/proc/phala"),
		"a directory that cannot be: told which");
}

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void test_million(void)
{
	const size_t many = getenv("PHALA_GUEST") ? IN_GUEST : MILLION;
	struct ph_prefix_list list = { .rows = calloc(many, sizeof(*list.rows)), .count = many };
	char last[INET_ADDRSTRLEN];
	struct in_addr address;
	double began;
	int err;

	for (uint32_t i = 0; i < many; i++)
		list.rows[i] = (struct ph_prefix_row){
			.prefix = { .bits = 128, .address = { { 0, 0, htonl(0xffff), htonl(0x0b000000 + i * 3) } } },
			.reason = "",
		};
	began = now_s();
	err = ph_lists_add(&place, PH_LIST_DENY, &list, &result, error, sizeof(error));
	if (!ktap_ok(!err && result.added == many && result.enforced, "%zu prefixes", many))
		printf("# %s\n", error);
	printf("# in %.1f s\n", now_s() - began);
	address.s_addr = htonl(0x0b000000 + (many - 1) * 3);
	inet_ntop(AF_INET, &address, last, sizeof(last));
	ktap_ok(in_map("ph_deny", "11.0.0.0") && in_map("ph_deny", last) && !in_map("ph_deny", "11.0.0.1"),
		"the first and the last are enforced, and what is between is not");
	began = now_s();
	ktap_ok(!change(PH_LIST_DENY, true, "192.0.2.200", 0, "") && in_map("ph_deny", "192.0.2.200"), "and one more");
	printf("# in %.1f s\n", now_s() - began);
	began = now_s();
	ktap_ok(!ph_lists_remove(&place, PH_LIST_DENY, &list, &result, error, sizeof(error)) && result.removed == many &&
		!in_map("ph_deny", "11.0.0.0") && in_map("ph_deny", "192.0.2.200"), "%zu removed, and nothing else", many);
	printf("# in %.1f s\n", now_s() - began);
	free(list.rows);
}

int main(void)
{
	struct ph_gating *gating = NULL;

	ktap_header();
	if (!mkdtemp(top) || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		ktap_ok(0, "a place to test in (root is needed)");
		return ktap_end();
	}
	snprintf(state_dir, sizeof(state_dir), "%s/state", top);
	snprintf(bpf_dir, sizeof(bpf_dir), "%s/bpf", top);
	if (mount("tmpfs", top, "tmpfs", 0, "mode=0700") || mkdir(bpf_dir, 0700) ||
	    mount("bpf", bpf_dir, "bpf", 0, "mode=0700")) {
		ktap_ok(0, "a bpffs to test in (root is needed)");
		return ktap_end();
	}
	test_no_gate();
	if (ktap_ok(!ph_gate_load(bpf_dir, &gating, error, sizeof(error)), "a gate")) {
		test_changes();
		test_apart();
		test_clock();
		test_lock();
		test_places();
		test_million();
	} else {
		printf("# %s\n", error);
	}
	ph_gate_free(gating);
	umount2(bpf_dir, MNT_DETACH);
	umount2(top, MNT_DETACH);
	rmdir(top);
	return ktap_end();
}
