/* SPDX-License-Identifier: Apache-2.0 */
/*
 * drops - what guard let through and dropped, for those who look on: phalactl and the manager.
 *
 * Counters are as they come: what is read changes meanwhile.
 */
#ifndef PHALAD_DROPS_H
#define PHALAD_DROPS_H

#include <stddef.h>
#include <stdint.h>

#include <phala/abi.h>

struct ph_drops;

/**
 * ph_drops_open() - open guard's pinned maps for reading.
 * @error: one line for people, set on failure.
 *
 * Return: 0, -ENOENT when there are none, -ESTALE when they have another layout, or -errno.
 */
int ph_drops_open(const char *bpf_dir, struct ph_drops **ret_drops, char *error, size_t error_size);
void ph_drops_free(struct ph_drops *drops);

/* All packets by enum ph_guard_reason, summed over CPUs. Return: 0 or -errno. */
int ph_drops_totals(const struct ph_drops *drops, __u64 ret_counters[PH_GUARD_MAX]);

/* Walks all CVMs, and address 0 for what is of none; as ph_maps_each_id(). */
int ph_drops_each(const struct ph_drops *drops,
		  int (*visit)(__be32 address, const struct ph_guard_cvm *cvm, void *arg), void *arg);

#endif
