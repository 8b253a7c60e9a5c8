/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registry - the CVMs this gateway knows, on disk (SQLite, WAL, synchronous FULL).
 *
 * A call that changes something returns 0 only when the change is on disk. Kernel state is derived from here and never
 * the other way round. One process opens it: the manager.
 */
#ifndef PHALAD_REGISTRY_H
#define PHALAD_REGISTRY_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/limits.h>

#include "key.h"

struct ph_cvm {
	char app_id[PH_ID_SIZE];		/* zero padded */
	char instance_id[PH_ID_SIZE];		/* zero padded */
	uint8_t public_key[PH_KEY_LEN];
	struct in_addr address;
	uint32_t slot;				/* in ph_instances; below PH_INSTANCES_MAX */
	uint32_t generation;			/* never 0, never used twice */
	bool draining;
	int64_t added_s;			/* Unix time */
	int64_t seen_s;				/* Unix time of the last handshake that was written down; 0 is never */
	uint32_t idle_ms;			/* its app's, as set by ph_registry_set_app() */
	uint32_t flow_limit;
};

struct ph_registry;

struct ph_registry_options {
	const char *path;
	struct in_addr range;			/* host bits zero */
	uint8_t range_len;
	struct in_addr gateway;			/* the gateway's own prefix: never allocated */
	uint8_t gateway_len;
	uint32_t quarantine_ms;
};

/**
 * ph_registry_open() - open or create.
 * @error: one line for people, set on failure.
 *
 * A damaged file, one of a newer schema, or one that is not a registry is refused without being changed. The directory
 * must exist; the file is created readable by its owner only.
 *
 * Return: 0 or -errno (-EUCLEAN damaged or foreign, -EPROTONOSUPPORT newer, -EBUSY another process has it, -ERANGE a
 * CVM has an address that the options do not cover).
 */
int ph_registry_open(const struct ph_registry_options *options, struct ph_registry **ret_registry, char *error,
		     size_t error_size);
void ph_registry_free(struct ph_registry *registry);

/**
 * ph_registry_add() - register an instance, or register it again.
 * @ret_cvm: the row as it is on disk; untouched on failure.
 *
 * An instance that is registered already keeps its address, slot and generation, and no longer drains, if it is of the same
 * app; with another key it is another CVM, of a generation of its own. One that was removed gets its old address again while
 * nobody else has it.
 *
 * Return: 0, or
 *   -EINVAL     an id that is no id, an all-zero or low-order key
 *   -EEXIST     the key is another instance's
 *   -EBUSY      the instance-id is of another app, or one id would be both an app's and an instance's
 *   -ENOSPC     no address left (none free and rested), no slot, or no generation
 *   -EMLINK     the app has PH_APP_INSTANCES_MAX instances
 *   -EIO        SQLite failed; @error says how
 */
int ph_registry_add(struct ph_registry *registry, const char *app_id, const char *instance_id,
		    const uint8_t public_key[PH_KEY_LEN], struct ph_cvm *ret_cvm, char *error, size_t error_size);

/*
 * What an operator set for an app, with the meaning that it has in struct ph_id. It stays when the app has no instance any
 * more. Return: 0, -ENOENT for an app that has none now, -EIO.
 */
int ph_registry_set_app(struct ph_registry *registry, const char *app_id, uint32_t idle_ms, uint32_t flow_limit,
			char *error, size_t error_size);
int ph_registry_app(struct ph_registry *registry, const char *app_id, uint32_t *ret_idle_ms, uint32_t *ret_flow_limit);

/* Return: 0, -ENOENT, -EIO. After a remove the address rests. */
int ph_registry_remove(struct ph_registry *registry, const char *instance_id, char *error, size_t error_size);
int ph_registry_drain(struct ph_registry *registry, const char *instance_id, bool drain, char *error,
		      size_t error_size);
int ph_registry_find(struct ph_registry *registry, const char *instance_id, struct ph_cvm *ret_cvm);

/*
 * Between begin and commit, changes are on disk, all of them, once commit returns 0; if it fails, none is. A change
 * that is refused meanwhile takes nothing of the others with it.
 */
int ph_registry_begin(struct ph_registry *registry);
int ph_registry_commit(struct ph_registry *registry);

/* Write down when instances were last seen; by the caller in one transaction, at most once a minute. */
int ph_registry_seen(struct ph_registry *registry, const char *instance_id, int64_t seen_s);

/*
 * Calls @visit for every CVM in order of app-id, then instance-id, until it returns other than 0, which is returned. It
 * may look for others but change nothing.
 */
int ph_registry_each(struct ph_registry *registry, int (*visit)(const struct ph_cvm *cvm, void *arg), void *arg);

#endif
