/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch - reads what steer tells of flows that begin, end, or are declined, and what guard tells of packets it drops.
 *
 * They tell nothing while nobody reads, and what the ring buffer has no room for is lost.
 */
#ifndef PHALAD_WATCH_H
#define PHALAD_WATCH_H

#include <stdbool.h>
#include <stddef.h>

#include <phala/abi.h>

struct ph_watch;

enum ph_watch_what {
	PH_WATCH_FLOWS,				/* struct ph_event */
	PH_WATCH_GUARD,				/* struct ph_guard_event */
};

/**
 * ph_watch_begin() - have them tell, from now on.
 * @visit: is given each event, in order; false ends ph_watch_wait() before the next one.
 * @error: one line for people, set on failure.
 *
 * Return: 0, -EBUSY when somebody else watches (a ring buffer has one reader), -ENOENT when phalad pinned no such maps,
 * -ESTALE when they have another layout, or -errno.
 */
int ph_watch_begin(const char *bpf_dir, enum ph_watch_what what, bool (*visit)(const void *event, void *arg), void *arg,
		   struct ph_watch **ret_watch, char *error, size_t error_size);

/* To be called once a second or oftener, else they fall silent. Return: 0, -EINTR after a signal, or -errno. */
int ph_watch_wait(struct ph_watch *watch, int timeout_ms);

/* They fall silent at once. */
void ph_watch_free(struct ph_watch *watch);

/* Does anybody read? Return: 0, -ENOENT when phalad pinned no such maps, or -errno. */
int ph_watch_is_on(const char *bpf_dir, enum ph_watch_what what, bool *ret_on);

#endif
