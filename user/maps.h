/* SPDX-License-Identifier: Apache-2.0 */
/*
 * maps - the pinned maps of include/phala/abi.h, seen from userspace: the manager's writing side and everybody's
 * reading side.
 *
 * The only part of phalad and phalactl that knows libbpf. Arrays are mapped, so reading and writing them are plain
 * loads and stores; hashes are system calls.
 */
#ifndef PHALAD_MAPS_H
#define PHALAD_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/abi.h>
#include <phala/name.h>
#include <phala/pick.h>

#define PH_MAPS_GUARD_LOCK "guard_watch"	/* a directory beside the pins, which whoever watches guard locks */
#define PH_MAPS_LOCK "manager"			/* the same, which the manager locks */

struct ph_maps {
	struct ph_gateway *gateway;		/* mapped; read-only unless opened by ph_maps_create() */
	struct ph_instance *instances;		/* PH_INSTANCES_MAX of them */
	struct ph_worker *workers;		/* PH_WORKERS_MAX of them */
	struct ph_load *loads;			/* PH_INSTANCES_MAX of them */
	int ids_fd;
	int domains_fd;
	int guard_fd;				/* ph_guard_cvms; -1 unless opened by ph_maps_create() */
	int sources_fd;
	int relayed_fd;				/* writable for a worker */
	int declines_fd;
};

/**
 * ph_maps_lock() - keep other managers away from the maps in @dir.
 * @dir: on a bpffs; made if missing. If no bpffs is mounted at /sys/fs/bpf and @dir is below it, one is mounted.
 * @ret_fd: the lock, until it is closed.
 *
 * Return: 0, -EBUSY when another manager has them, or -errno; then with @error set.
 */
int ph_maps_lock(const char *dir, int *ret_fd, char *error, size_t error_size);

/**
 * ph_maps_create() - create and pin the maps, or adopt those that are pinned.
 * @dir: as above.
 * @error: one line for people, set on failure.
 *
 * What adopted maps hold is left as it is. A creation that was cut short leaves pins but no ph_gateway, which is pinned
 * last: such pins are replaced.
 *
 * Return: 0, -ESTALE when maps of another ABI version or layout are pinned there (they are left alone), -EPERM,
 * -ENOTSUP when the kernel lacks something (@error says what and which kernel has it), or -errno.
 */
int ph_maps_create(const char *dir, struct ph_maps **ret_maps, char *error, size_t error_size);

/*
 * Removes the pins of these maps from @dir, of whatever version, and the locks unless a manager has them, and nothing else.
 * Return: 0, also when there were none, or -errno.
 */
int ph_maps_unpin(const char *dir, char *error, size_t error_size);

/**
 * ph_maps_open() - open pinned maps for reading.
 * @worker: the index of the worker that wants to write its own ph_workers element, or -1.
 *
 * Nothing that is returned can be made writable later, save the memory pages that hold that element (its neighbours'
 * counters are there too), and for a worker ph_relayed.
 *
 * Return: 0, -ENOENT when none are pinned there, -ESTALE when they are of another ABI version, or -errno.
 */
int ph_maps_open(const char *dir, int worker, struct ph_maps **ret_maps, char *error, size_t error_size);
void ph_maps_free(struct ph_maps *maps);

/* The manager's side. All return 0 or -errno. @id is zero padded to PH_ID_SIZE. */
int ph_maps_set_id(struct ph_maps *maps, const char *id, const struct ph_id *value);
int ph_maps_remove_id(struct ph_maps *maps, const char *id);
int ph_maps_set_domain(struct ph_maps *maps, const char *name, uint32_t index);
int ph_maps_remove_domain(struct ph_maps *maps, const char *name);
/*
 * Writes a slot so that no reader can take a half-written one for whole, and lets guard count for it. Where the slot has this generation already,
 * only state and handshake are stored, and no reader sees it gone for a moment.
 */
void ph_maps_set_instance(struct ph_maps *maps, uint32_t slot, const struct ph_instance *instance);
void ph_maps_free_instance(struct ph_maps *maps, uint32_t slot);

/* The reading side. Return: 0, -ENOENT, or -errno. */
int ph_maps_find_id(const struct ph_maps *maps, const char *id, struct ph_id *ret_id);
int ph_maps_find_domain(const struct ph_maps *maps, const char *name, uint32_t *ret_index);

/* Connections that steer carries for a client. @address: as in struct ph_relayed_key; IPv6 ones have none. */
uint32_t ph_maps_source_flows(const struct ph_maps *maps, const char address[16]);
/* Why steer left a client alone, a moment ago. @address: as above. Return: an enum ph_reason, or 0 when it said nothing. */
uint32_t ph_maps_decline(const struct ph_maps *maps, const char address[16], uint16_t port, uint64_t boot_now_ns);
/* Flows of the kernel path to an app. */
uint64_t ph_maps_app_flows(const struct ph_maps *maps, const struct ph_id *app);

/* What a worker carries, by what is limited; 0 when there is no such key. */
uint32_t ph_maps_relayed(const struct ph_maps *maps, const struct ph_relayed_key *key);
/* The same of all workers; @key's worker is not looked at. */
uint64_t ph_maps_relayed_by_all(const struct ph_maps *maps, const struct ph_relayed_key *key);
/* A worker's own. @count 0 takes the key away. Return: 0 or -errno. */
int ph_maps_set_relayed(const struct ph_maps *maps, const struct ph_relayed_key *key, uint32_t count);
/* Takes away what a worker of this index, and those that there are no more, left behind. Return: 0 or -errno. */
int ph_maps_forget_relayed(const struct ph_maps *maps, uint32_t worker);
int ph_maps_each_source(const struct ph_maps *maps,
			int (*visit)(__be32 client, const struct ph_client_count *source, void *arg), void *arg);
int ph_maps_each_decline(const struct ph_maps *maps,
			 int (*visit)(const struct ph_decline_key *key, const struct ph_decline *decline, void *arg),
			 void *arg);
int ph_maps_each_relayed(const struct ph_maps *maps,
			 int (*visit)(const struct ph_relayed_key *key, uint32_t count, void *arg), void *arg);

/* Walk all keys of a hash; safe while it changes. Return: 0, what @visit returned if not 0, or -errno. */
int ph_maps_each_id(const struct ph_maps *maps,
		    int (*visit)(const struct ph_id_key *key, const struct ph_id *value, void *arg), void *arg);
int ph_maps_each_domain(const struct ph_maps *maps,
			int (*visit)(const struct ph_domain_key *key, uint32_t index, void *arg), void *arg);

#endif
