/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guard - puts the guard programs (bpf/guard.bpf.c) on the tunnel device.
 */
#ifndef PHALAD_GUARD_H
#define PHALAD_GUARD_H

#include <stddef.h>
#include <stdint.h>

#include <phala/reason.h>

struct ph_guard;

/**
 * ph_guard_load() - load the programs; their counters are pinned in @bpf_dir, or adopted from there.
 * @error: one line for people, set on failure.
 *
 * Return: 0 or -errno.
 */
int ph_guard_load(const char *bpf_dir, uint32_t worker_uid, struct ph_guard **ret_guard, char *error, size_t error_size);
/* What is attached stays with the device. */
void ph_guard_free(struct ph_guard *guard);

/**
 * ph_guard_attach() - filter both directions of a layer-3 device, replacing a guard that is there already.
 *
 * Call it before the device is up. Other people's filters on the same clsact stay. Return: 0 or -errno.
 */
int ph_guard_attach(struct ph_guard *guard, uint32_t ifindex);

/* Reads the pinned counters, summed over CPUs. Return: 0, -ENOENT when there are none, or -errno. */
int ph_guard_counters(const char *bpf_dir, uint64_t ret_counters[PH_GUARD_COUNT]);

#endif
