/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flows - the kernel path's pinned maps, for those who look on: phalactl. Nothing here changes a flow.
 *
 * What is read changes meanwhile. A flow that is handed out was whole at one moment; counters are as they come.
 */
#ifndef PHALAD_FLOWS_H
#define PHALAD_FLOWS_H

#include <stddef.h>
#include <stdint.h>

#include <phala/abi.h>

struct ph_flows;

/**
 * ph_flows_open() - open the maps for reading.
 * @error: one line for people, set on failure.
 *
 * Return: 0, -ENOENT when phalad pinned none (it has no kernel path), -ESTALE when they have another layout, or -errno.
 */
int ph_flows_open(const char *bpf_dir, struct ph_flows **ret_flows, char *error, size_t error_size);
void ph_flows_free(struct ph_flows *flows);

/* CLOCK_MONOTONIC, in which flows and sweep hold their times. */
uint64_t ph_flows_now_ns(void);

/* All return 0 or -errno; what is beyond the table is -ENOENT. */
int ph_flows_steer(const struct ph_flows *flows, struct ph_steer *ret_steer);	/* without its secret */
int ph_flows_sweep(const struct ph_flows *flows, struct ph_sweep *ret_sweep);
int ph_flows_get(const struct ph_flows *flows, uint32_t slot, struct ph_flow *ret_flow);	/* also a free one */
int ph_flows_load(const struct ph_flows *flows, uint32_t slot, struct ph_load *ret_load);
int ph_flows_reasons(const struct ph_flows *flows, __u64 ret_counters[PH_REASONS_MAX]);	/* summed over CPUs */
int ph_flows_used(const struct ph_flows *flows, uint32_t *ret_used);	/* slots, at this moment */
int ph_flows_locks(const struct ph_flows *flows, uint32_t *ret_held);	/* of ph_source_locks, at this moment */

/* How much there is of a hello that is held, and nothing of what it says. */
struct ph_flows_hello {
	uint32_t bytes, packets, pieces, tries;
};

int ph_flows_hello(const struct ph_flows *flows, uint32_t slot, struct ph_flows_hello *ret_hello);

/* Walk all flows that are not free, all keys of clients, all loads that somebody had. As ph_maps_each_id(). */
int ph_flows_each(const struct ph_flows *flows, int (*visit)(uint32_t slot, const struct ph_flow *flow, void *arg),
		  void *arg);
int ph_flows_each_client(const struct ph_flows *flows,
			 int (*visit)(const struct ph_client_key *key, const struct ph_ref *ref, void *arg), void *arg);
int ph_flows_each_load(const struct ph_flows *flows,
		       int (*visit)(uint32_t slot, const struct ph_load *load, void *arg), void *arg);

#endif
