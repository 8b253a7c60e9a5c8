/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lists - the gate's deny and allow lists: a file each in StateDir (deny.list, allow.list, as prefix.h has it), which is
 * the truth, and a pinned map each, which is what the kernel enforces.
 *
 * phalactl changes both, whether phalad runs or not; phalad makes the maps anew from the files when it starts. A lock
 * keeps them apart. What has expired is in no map, and is left out of a file when phalactl writes it, or a day later: till
 * then the clock that says so may turn out to be wrong.
 */
#ifndef PHALAD_LISTS_H
#define PHALAD_LISTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/gate.h>

#include "prefix.h"

struct ph_lists_place {
	const char *state_dir, *bpf_dir;
};

struct ph_lists_result {
	size_t added, changed, removed;		/* prefixes, beside those that have expired */
	size_t rows;				/* now */
	bool enforced;				/* there is a map; without one the file waits for phalad to make it */
};

const char *ph_list_word(enum ph_list_kind kind);

/* Reads a list's file; no file is an empty list. Return: 0, or -errno with @error set. */
int ph_lists_read(const struct ph_lists_place *place, enum ph_list_kind kind, struct ph_prefix_list *ret_list,
		  char *error, size_t error_size);

/**
 * ph_lists_add() - add prefixes to a list, or change those that are there.
 * @ret_result: may be NULL.
 *
 * On disk, and enforced, once this returns 0. If only the map could not be changed the file has it, and the next change,
 * or phalad's next start, makes up for it.
 *
 * Return: 0, -E2BIG for more than PH_GATE_PREFIXES_MAX, or -errno; @error set.
 */
int ph_lists_add(const struct ph_lists_place *place, enum ph_list_kind kind, const struct ph_prefix_list *more,
		 struct ph_lists_result *ret_result, char *error, size_t error_size);

/* Takes prefixes off: all, or none and -ENOENT if one is not there. */
int ph_lists_remove(const struct ph_lists_place *place, enum ph_list_kind kind, const struct ph_prefix_list *which,
		    struct ph_lists_result *ret_result, char *error, size_t error_size);

/*
 * Makes both maps equal to their files but for what has expired. @wait: for the lock. @anew: also the times in the maps,
 * as the clock was set. Return: 0, -EAGAIN when somebody has the lock, or -errno; @error set.
 */
int ph_lists_sync(const struct ph_lists_place *place, bool wait, bool anew, char *error, size_t error_size);

#endif
