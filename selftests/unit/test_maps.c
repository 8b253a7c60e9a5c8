// SPDX-License-Identifier: Apache-2.0
/*
 * maps: created, adopted, refused, read by somebody who may only read, and read while they are written. Needs root, for
 * BPF and for a bpffs of its own in a mount namespace of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "guard.h"
#include "ktap.h"
#include "lacking.h"
#include "maps.h"
#include "steer.h"

#define WRITES 500000			/* each with a few system calls */

static char top[] = "/tmp/phala-test-maps.XXXXXX", dir[64];
static char error[512];

static const char *at(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static struct ph_id_key id(const char *text)
{
	struct ph_id_key key = { 0 };

	snprintf(key.id, sizeof(key.id), "%s", text);
	return key;
}

static int create(struct ph_maps **ret_maps)
{
	*ret_maps = NULL;
	error[0] = 0;
	return ph_maps_create(dir, ret_maps, error, sizeof(error));
}

static bool is_pinned(const char *name)
{
	return !access(at(name), F_OK);
}

/* A map of ours under a name that is not, or not of ours under a name that is. Return: 0 or -errno. */
static int pin_other(const char *name, __u32 value_size)
{
	int fd = bpf_map_create(BPF_MAP_TYPE_HASH, "other", 64, value_size, 4, NULL), err;

	if (fd < 0)
		return fd;
	err = bpf_obj_pin(fd, at(name));
	close(fd);
	return err;
}

static void test_create(void)
{
	struct ph_maps *maps = NULL;
	int err;

	err = ph_maps_create("/tmp", &maps, error, sizeof(error));
	ktap_ok(err == -EINVAL && !maps && strstr(error, "/tmp is not on a bpffs"),
		"a directory that is on no bpffs is refused");
	err = ph_maps_open(dir, -1, &maps, error, sizeof(error));
	ktap_ok(err == -ENOENT && !maps && strstr(error, "has not run"), "nothing to open before the first start");

	err = create(&maps);
	if (!ktap_ok(!err && maps, "the maps are created, and the directory (%s)", error))
		return;
	ktap_ok(is_pinned("ph_gateway") && is_pinned("ph_instances") && is_pinned("ph_ids") &&
			is_pinned("ph_domains") && is_pinned("ph_workers"),
		"all five are pinned");
	ktap_ok(maps->gateway->abi_version == PH_ABI_VERSION, "ph_gateway says the version");
	maps->gateway->health_now_ns = 7;
	maps->instances[PH_INSTANCES_MAX - 1].generation = 9;
	maps->workers[PH_WORKERS_MAX - 1].counters[PH_REASONS_MAX - 1] = 11;
	ph_maps_free(maps);

	err = create(&maps);
	ktap_ok(!err && maps->gateway->health_now_ns == 7 && maps->instances[PH_INSTANCES_MAX - 1].generation == 9 &&
			maps->workers[PH_WORKERS_MAX - 1].counters[PH_REASONS_MAX - 1] == 11,
		"what is pinned is adopted with what it holds (%s)", error);
	ph_maps_free(maps);
}

static void test_hashes(void)
{
	struct ph_id_key key = id("app1"), none = id("app2");
	struct ph_id value = { .kind = PH_ID_APP, .count = 1, .refs = { { 3, 4 } } }, got = { 0 };
	struct ph_maps *maps;
	uint32_t index = 99;

	if (!ktap_ok(!create(&maps), "adopted again"))
		return;
	ktap_ok(ph_maps_find_id(maps, key.id, &got) == -ENOENT, "an id that is not there is ENOENT");
	ktap_ok(!ph_maps_set_id(maps, key.id, &value) && !ph_maps_find_id(maps, key.id, &got) &&
			got.refs[0].slot == 3 && got.refs[0].generation == 4,
		"an id is found as it was set");
	ktap_ok(ph_maps_remove_id(maps, none.id) == -ENOENT, "removing what is not there is ENOENT");
	ktap_ok(!ph_maps_set_domain(maps, "example.com", 5) && !ph_maps_find_domain(maps, "example.com", &index) &&
			index == 5,
		"a domain is found as it was set");
	ktap_ok(ph_maps_find_domain(maps, "example.org", &index) == -ENOENT && index == 5,
		"another domain is ENOENT and sets nothing");
	ktap_ok(!ph_maps_remove_domain(maps, "example.com") &&
			ph_maps_find_domain(maps, "example.com", &index) == -ENOENT,
		"a domain is removed");
	ph_maps_free(maps);
}

struct walk {
	struct ph_maps *maps;
	int count, remove_every, stop_at;
};

static int visit(const struct ph_id_key *key, const struct ph_id *value, void *arg)
{
	struct walk *walk = arg;

	(void)value;
	walk->count++;
	if (walk->stop_at && walk->count == walk->stop_at)
		return 42;
	if (walk->remove_every && walk->count % walk->remove_every == 0)
		return ph_maps_remove_id(walk->maps, key->id);
	return 0;
}

static void test_walk(void)
{
	struct ph_id value = { .kind = PH_ID_INSTANCE, .count = 1 };
	struct walk walk = { 0 };
	struct ph_id_key key;
	char text[16];
	int err = 0;

	if (!ktap_ok(!create(&walk.maps), "adopted again"))
		return;
	for (int i = 0; i < 1000; i++) {
		snprintf(text, sizeof(text), "walk%d", i);
		key = id(text);
		err |= ph_maps_set_id(walk.maps, key.id, &value);
	}
	err |= ph_maps_each_id(walk.maps, visit, &walk);
	ktap_ok(!err && walk.count == 1001, "a walk sees every id once (%d of 1001)", walk.count);
	walk.count = 0;
	walk.stop_at = 10;
	ktap_ok(ph_maps_each_id(walk.maps, visit, &walk) == 42 && walk.count == 10,
		"a walk ends when the visitor says so");
	walk = (struct walk){ .maps = walk.maps, .remove_every = 1 };
	err = ph_maps_each_id(walk.maps, visit, &walk);
	ktap_ok(!err && walk.count == 1001, "a walk that removes what it visits sees every id once (%d of 1001)",
		walk.count);
	walk = (struct walk){ .maps = walk.maps };
	err = ph_maps_each_id(walk.maps, visit, &walk);
	ktap_ok(!err && !walk.count, "then there are none");
	ph_maps_free(walk.maps);
}

static void test_versions(void)
{
	struct ph_maps *maps = NULL;
	struct ph_id_key key = id("kept");
	struct ph_id value = { .kind = PH_ID_APP };
	int err;

	if (!ktap_ok(!create(&maps) && !ph_maps_set_id(maps, key.id, &value), "adopted again"))
		return;
	unlink(at("ph_domains"));
	ph_maps_free(maps);
	err = create(&maps);
	ktap_ok(!err && is_pinned("ph_domains") && !ph_maps_find_id(maps, key.id, &value),
		"a map that lacks beside a good ph_gateway is added, the others stay (%s)", error);

	maps->gateway->abi_version = PH_ABI_VERSION + 1;
	ph_maps_free(maps);
	ktap_ok(create(&maps) == -ESTALE && !maps && strstr(error, "version"), "another version is refused (%s)",
		error);
	ktap_ok(ph_maps_open(dir, -1, &maps, error, sizeof(error)) == -ESTALE && !maps, "... by readers too");
	ktap_ok(is_pinned("ph_gateway") && is_pinned("ph_ids") && is_pinned("ph_workers"), "... and is left alone");
	ktap_ok(!pin_other("somebody", 8) && is_pinned("ph_guard") && !ph_maps_unpin(dir, error, sizeof(error)) &&
			!is_pinned("ph_gateway") && !is_pinned("ph_ids") && !is_pinned("ph_guard") &&
			is_pinned("somebody"),
		"unpinning takes ours and nobody else's");
	ktap_ok(!ph_maps_unpin(dir, error, sizeof(error)), "unpinning nothing is no error");
	err = create(&maps);
	ktap_ok(!err && maps->gateway->abi_version == PH_ABI_VERSION && !maps->gateway->health_now_ns &&
			ph_maps_find_id(maps, key.id, &value) == -ENOENT,
		"then creation begins anew");

	ph_maps_set_id(maps, key.id, &value);
	unlink(at("ph_gateway"));
	ph_maps_free(maps);
	err = create(&maps);
	ktap_ok(!err && ph_maps_find_id(maps, key.id, &value) == -ENOENT,
		"pins without ph_gateway, left by a creation cut short, are replaced");
	ph_maps_free(maps);

	unlink(at("ph_ids"));
	ktap_ok(!pin_other("ph_ids", 16) && create(&maps) == -ESTALE && strstr(error, "ph_ids has another layout"),
		"a map of another layout is refused (%s)", error);
	ktap_ok(is_pinned("ph_ids") && is_pinned("ph_gateway"), "... and is left alone");
	unlink(at("ph_ids"));
	ktap_ok(!create(&maps), "without it all is well again (%s)", error);
	ph_maps_free(maps);
}

/* Does writing there kill the writer? */
static bool is_fatal(volatile uint32_t *where)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		*where = 1;
		_exit(0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

static int count_relayed(const struct ph_relayed_key *key, uint32_t count, void *arg)
{
	(void)key;
	*(uint32_t *)arg += count;
	return 0;
}

/* What limits count: a worker's own numbers, and that a slot's begin anew with its generation. */
static void test_counted(void)
{
	struct ph_relayed_key key = { .worker = 1, .kind = PH_RELAYED_APP, .id = "shop" };
	struct ph_id app = { .kind = PH_ID_APP, .count = 2, .refs = { { 3, 30 }, { 4, 40 } } };
	struct ph_instance instance = { .generation = 30, .state = PH_INSTANCE_READY };
	struct ph_maps *maps, *worker = NULL, *reader = NULL;
	uint32_t sum = 0;

	if (!ktap_ok(!create(&maps) && !ph_maps_open(dir, 1, &worker, error, sizeof(error)) &&
		     !ph_maps_open(dir, -1, &reader, error, sizeof(error)), "opened by a worker and a reader (%s)", error))
		return;
	maps->gateway->workers = 2;
	ktap_ok(!ph_maps_set_relayed(worker, &key, 5) && ph_maps_relayed(reader, &key) == 5, "a worker counts itself");
	ktap_ok(ph_maps_set_relayed(reader, &key, 6) == -EPERM, "a reader does not");
	key.worker = 0;
	ktap_ok(!ph_maps_set_relayed(worker, &key, 7) && ph_maps_relayed_by_all(reader, &key) == 12, "the sum of all workers");
	key.worker = 2;
	ktap_ok(!ph_maps_set_relayed(worker, &key, 9) && ph_maps_relayed_by_all(reader, &key) == 12,
		"without those that there are no more");
	ktap_ok(!ph_maps_forget_relayed(worker, 1) && !ph_maps_each_relayed(reader, count_relayed, &sum) && sum == 7,
		"a new worker forgets what the one before it left, and they");
	key.worker = 0;
	ktap_ok(!ph_maps_set_relayed(worker, &key, 0) && !ph_maps_relayed(reader, &key), "none left: no element");

	ktap_ok(!ph_maps_decline(reader, (char[16]){ [10] = -1, [11] = -1, 192, 0, 2, 2 }, 4000, 1),
		"steer declined nobody");

	ph_maps_set_instance(maps, 3, &instance);
	maps->loads[3].active = 11;
	instance.handshake_ns = 5;
	ph_maps_set_instance(maps, 3, &instance);
	ktap_ok(reader->loads[3].active == 11 && ph_maps_app_flows(reader, &app) == 11, "flows stay with the generation");
	instance.generation = 31;
	ph_maps_set_instance(maps, 3, &instance);
	ktap_ok(reader->loads[3].generation == 31 && !reader->loads[3].active && !ph_maps_app_flows(reader, &app),
		"and begin anew with another");
	ktap_ok(is_fatal(&reader->loads[3].active) && is_fatal(&worker->loads[3].active), "nobody else writes them");
	ph_maps_free_instance(maps, 3);
	ph_maps_free(worker);
	ph_maps_free(reader);
	ph_maps_free(maps);
}

static void test_reader(void)
{
	struct ph_id value = { .kind = PH_ID_APP, .count = 1 }, got;
	struct ph_id_key key = id("seen");
	struct ph_maps *maps, *reader = NULL;
	size_t page = sysconf(_SC_PAGESIZE);
	void *first_page;

	if (!ktap_ok(!create(&maps) && !ph_maps_set_id(maps, key.id, &value), "adopted again"))
		return;
	if (!ktap_ok(!ph_maps_open(dir, 20, &reader, error, sizeof(error)), "worker 20 opens them (%s)", error))
		return;
	maps->gateway->health_now_ns = 123;
	ktap_ok(reader->gateway->health_now_ns == 123 && !ph_maps_find_id(reader, key.id, &got),
		"a worker sees what the manager writes");
	ktap_ok(is_fatal(&reader->gateway->flags) && is_fatal(&reader->instances[5].state), "... and cannot write it");
	ktap_ok(ph_maps_set_id(reader, key.id, &value) == -EPERM && ph_maps_remove_id(reader, key.id) == -EPERM,
		"... nor change an id");
	first_page = (void *)((uintptr_t)&reader->instances[5] & ~(page - 1));
	ktap_ok(mprotect(first_page, page, PROT_READ | PROT_WRITE) && errno == EACCES, "... nor make itself able to");
	ktap_ok(!is_fatal(&reader->workers[20].active) && maps->workers[20].active == 1, "its own counters it writes");
	ktap_ok(is_fatal(&reader->workers[0].active) && is_fatal(&reader->workers[40].active),
		"... but not those of workers far from it");
	ph_maps_free(reader);
	ktap_ok(ph_maps_open(dir, PH_WORKERS_MAX, &reader, error, sizeof(error)) == -EINVAL, "there is no worker 64");

	if (ktap_ok(!ph_maps_open(dir, -1, &reader, error, sizeof(error)), "a reader opens them"))
		ktap_ok(is_fatal(&reader->workers[20].active), "... and writes nothing at all");
	ph_maps_free(reader);
	ph_maps_free(maps);
}

/* What a slot says under @generation: the address follows from it. The ids do not: they would cover up a mix-up. */
static struct ph_instance sample(uint32_t generation)
{
	struct ph_instance instance = {
		.generation = generation,
		.state = PH_INSTANCE_READY,
		.address = generation * 3,
		.handshake_ns = 1000,
	};

	snprintf(instance.app_id, sizeof(instance.app_id), "app");
	snprintf(instance.instance_id, sizeof(instance.instance_id), "instance");
	return instance;
}

/* In a process of its own: reads until told to stop. Return: how often it was shown something untrue. */
static int read_along(struct ph_maps *maps, volatile int *stop, int *ret_seen)
{
	int wrong = 0, seen = 0;

	while (!*stop) {
		struct ph_ref ref = { .slot = 1,
				      .generation = ((volatile struct ph_instance *)maps->instances)[1].generation };
		struct ph_instance expected = sample(ref.generation);
		__be32 address;

		if (ph_instance_health(maps->gateway, &maps->instances[1], &ref, expected.instance_id, &address) !=
		    PH_HEALTH_OK)
			continue;
		seen++;
		wrong += address != expected.address;
	}
	*ret_seen = seen;
	return wrong;
}

static void test_concurrent(void)
{
	struct shared {
		volatile int stop;
		int wrong, seen;
	} *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct ph_maps *maps;
	pid_t pid;

	if (!ktap_ok(shared != MAP_FAILED && !create(&maps), "adopted again"))
		return;
	maps->gateway->healthy_for_ns = maps->gateway->manager_grace_ns = 1000000;
	maps->gateway->health_now_ns = 2000;
	maps->gateway->flags = 0;
	pid = fork();
	if (!pid) {
		shared->wrong = read_along(maps, &shared->stop, &shared->seen);
		_exit(0);
	}
	for (uint32_t generation = 1; generation <= WRITES; generation++) {
		struct ph_instance instance = sample(generation);

		ph_maps_set_instance(maps, 1, &instance);
	}
	shared->stop = 1;
	waitpid(pid, NULL, 0);
	ktap_ok(!shared->wrong && shared->seen, "%d reads during %d changes of owner never mixed two of them up",
		shared->seen, WRITES);
	munmap(shared, 4096);
	ph_maps_free(maps);
}

static void test_instance(void)
{
	struct ph_instance instance = sample(5), was;
	struct ph_maps *maps;

	if (!ktap_ok(!create(&maps), "adopted again"))
		return;
	ph_maps_set_instance(maps, 2, &instance);
	ktap_ok(!memcmp(&maps->instances[2], &instance, sizeof(instance)), "a slot holds what was set");
	instance.state = PH_INSTANCE_DRAINING;
	instance.handshake_ns = 2000;
	instance.handshake_wall_ns = 3000;
	ph_maps_set_instance(maps, 2, &instance);
	ktap_ok(!memcmp(&maps->instances[2], &instance, sizeof(instance)), "state and handshake change in place");
	was = maps->instances[3];
	ph_maps_free_instance(maps, 2);
	memset(&instance, 0, sizeof(instance));
	ktap_ok(!memcmp(&maps->instances[2], &instance, sizeof(instance)), "a freed slot is empty");
	ktap_ok(!memcmp(&maps->instances[3], &was, sizeof(was)), "its neighbour is not touched");
	ph_maps_free(maps);
}

static const struct ph_guard_cvm *guarded(const struct ph_maps *maps, __be32 address)
{
	static struct ph_guard_cvm cvm;

	return bpf_map_lookup_elem(maps->guard_fd, &address, &cvm) ? NULL : &cvm;
}

/* As guard does when it drops something. */
static void count_drop(const struct ph_maps *maps, __be32 address)
{
	struct ph_guard_cvm cvm = *guarded(maps, address);

	cvm.drops[PH_GUARD_UNCALLED].count++;
	bpf_map_update_elem(maps->guard_fd, &address, &cvm, BPF_EXIST);
}

static uint64_t drops_of(const struct ph_maps *maps, __be32 address, uint32_t slot, uint32_t generation)
{
	const struct ph_guard_cvm *cvm = guarded(maps, address);

	return cvm && cvm->instance.slot == slot && cvm->instance.generation == generation ?
	       cvm->drops[PH_GUARD_UNCALLED].count : UINT64_MAX;
}

/* There is an element for guard to count in just while there is the CVM. */
static void test_guard(void)
{
	struct ph_instance instance = sample(7);
	__be32 address, other = htonl(0x0a010203);
	struct ph_maps *maps;

	if (!ktap_ok(!create(&maps), "adopted again"))
		return;
	ktap_ok(drops_of(maps, 0, 0, 0) != UINT64_MAX, "what is of no CVM has a place");
	address = instance.address = htonl(0x0a010202);
	ph_maps_set_instance(maps, 2, &instance);
	ktap_ok(drops_of(maps, address, 2, 7) == 0, "a CVM begins at zero");
	count_drop(maps, address);
	instance.state = PH_INSTANCE_DRAINING;
	ph_maps_set_instance(maps, 2, &instance);
	ph_maps_free(maps);
	if (!ktap_ok(!create(&maps) && drops_of(maps, address, 2, 7) == 1, "what was counted stays while it stays"))
		return;
	instance.generation = 8;
	ph_maps_set_instance(maps, 3, &instance);
	ktap_ok(drops_of(maps, address, 3, 8) == 0, "the next one at its address begins at zero");
	count_drop(maps, address);
	ph_maps_free_instance(maps, 2);
	ktap_ok(drops_of(maps, address, 3, 8) == 1, "the end of the one before is not its");
	instance.address = other;
	instance.generation = 9;
	ph_maps_set_instance(maps, 3, &instance);
	ktap_ok(!guarded(maps, address) && drops_of(maps, other, 3, 9) == 0, "a slot that is another's: the old one is forgotten");
	bpf_map_delete_elem(maps->guard_fd, &other);
	ph_maps_free(maps);
	if (!ktap_ok(!create(&maps) && drops_of(maps, other, 3, 9) == 0, "one that lacks is made when maps are adopted"))
		return;
	ph_maps_free_instance(maps, 3);
	ktap_ok(!guarded(maps, other), "a CVM that is removed is forgotten");
	ph_maps_free(maps);
}

static void test_lock(void)
{
	int fd = -1, other = -1;

	ktap_ok(!ph_maps_lock(dir, &fd, error, sizeof(error)) && fd >= 0 && is_pinned(PH_MAPS_LOCK), "a manager locks the maps");
	ktap_ok(ph_maps_lock(dir, &other, error, sizeof(error)) == -EBUSY && other == -1 && strstr(error, dir) &&
			strstr(error, "another phalad's"),
		"another one is refused, and told why");
	ktap_ok(!ph_maps_unpin(dir, error, sizeof(error)) && ph_maps_lock(dir, &other, error, sizeof(error)) == -EBUSY,
		"the lock outlasts unpinning, as --fresh does it");
	close(fd);
	ktap_ok(!ph_maps_lock(dir, &fd, error, sizeof(error)), "it goes with the manager");
	close(fd);
	ktap_ok(!ph_maps_unpin(dir, error, sizeof(error)) && !is_pinned(PH_MAPS_LOCK), "unpinning takes away one that nobody has");
	ktap_ok(ph_maps_lock("/", &other, error, sizeof(error)) == -EINVAL && other == -1, "no bpffs, no lock");
}

static int load_maps(void)
{
	struct ph_maps *maps;
	int err = create(&maps);

	if (!err)
		ph_maps_free(maps);
	return err;
}

static int load_guard(void)
{
	struct ph_guard *guard;
	int err = ph_guard_load(dir, 1, &guard, error, sizeof(error));

	if (!err)
		ph_guard_free(guard);
	return err;
}

static int load_steer(void)
{
	struct ph_steering *steering;
	int err = ph_steer_load(dir, false, &steering, error, sizeof(error));

	if (!err)
		ph_steer_free(steering);
	return err;
}

/* What must be there for a start, and the kernel path; the gate's is in test_gate_load. */
static void test_lacking(void)
{
	static const struct {
		const char *name;
		int command, err;
		int (*load)(void);
		const char *want;
	} rows[] = {
		{ "maps", BPF_MAP_CREATE, EINVAL, load_maps, "lacks BPF maps as phalad needs them: Linux 6.1 (Debian 12)" },
		{ "bpf() at all", BPF_MAP_CREATE, ENOSYS, load_maps, "Linux 6.1 (Debian 12)" },
		{ "CAP_BPF", BPF_MAP_CREATE, EPERM, load_maps, "CAP_BPF is missing" },
		{ "a helper of guard's", BPF_PROG_LOAD, EINVAL, load_guard, "guard: cannot load the programs: Invalid argument; Linux 6.1" },
		{ "a helper of steer's", BPF_PROG_LOAD, EINVAL, load_steer, "steer: cannot load the programs: Invalid argument; Linux 6.1" },
	};

	ph_maps_unpin(dir, error, sizeof(error));
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		ktap_ok((rows[i].load == load_maps || !load_maps()) &&
			lacking_refused(rows[i].command, rows[i].err, rows[i].load, error, rows[i].want),
			"without %s: told what is missing", rows[i].name);
	ktap_ok(!load_guard() && !load_steer(), "guard and steer load here");
	ph_maps_unpin(dir, error, sizeof(error));
}

int main(void)
{
	ktap_header();
	if (geteuid()) {
		ktap_skip("maps", "needs root");
		return ktap_end();
	}
	if (!mkdtemp(top) || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("bpf", top, "bpf", 0, "mode=0700")) {
		ktap_ok(0, "a bpffs for the test: %m");
		rmdir(top);
		return ktap_end();
	}
	snprintf(dir, sizeof(dir), "%s/phala", top);
	test_create();
	test_hashes();
	test_walk();
	test_versions();
	test_reader();
	test_counted();
	test_concurrent();
	test_instance();
	test_guard();
	test_lacking();
	test_lock();
	umount2(top, MNT_DETACH);
	rmdir(top);
	return ktap_end();
}
