/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guard - puts the guard programs (bpf/guard.bpf.c) on the tunnel device. What they count, drops.h reads.
 */
#ifndef PHALAD_GUARD_H
#define PHALAD_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ph_guard;

/**
 * ph_guard_load() - load the programs over the maps that ph_maps_create() pinned in @bpf_dir.
 * @worker_uid: whose sockets may call CVMs.
 * @error: one line for people, set on failure.
 *
 * Return: 0 or -errno.
 */
int ph_guard_load(const char *bpf_dir, uint32_t worker_uid, struct ph_guard **ret_guard, char *error, size_t error_size);
/* What is attached stays with the device. */
void ph_guard_free(struct ph_guard *guard);

/**
 * ph_guard_attach() - filter both directions of a device, replacing a guard that is there already.
 * @l2: the device has Ethernet headers.
 *
 * Call it before the device is up. Other people's filters on the same clsact stay. Return: 0 or -errno.
 */
int ph_guard_attach(struct ph_guard *guard, uint32_t ifindex, bool l2);

/* Are these very programs on both directions of the device? Return: 1, 0, or -errno. */
int ph_guard_is_attached(const struct ph_guard *guard, uint32_t ifindex);

/* Takes off a guard, whichever phalad put it there. Return: 1, 0 when there was none, or -errno. */
int ph_guard_detach(uint32_t ifindex);

#endif
