/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate - loads the gate programs (bpf/gate.bpf.c), pins their maps, and puts them on NICs.
 *
 * What is attached stays with the device when phalad goes: the tc filter by itself, XDP by a link that is pinned in
 * BpfDir. The lists are lists.c's.
 */
#ifndef PHALAD_GATE_H
#define PHALAD_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/gate.h>

#include "config.h"

struct ph_gating;

/**
 * ph_gate_load() - load the programs; their maps are pinned in @bpf_dir, or adopted from there.
 * @error: one line for people, set on failure.
 *
 * If one of them has another layout all are made anew: what they hold can be had again. Nothing is attached yet.
 *
 * Return: 0 or -errno.
 */
int ph_gate_load(const char *bpf_dir, struct ph_gating **ret_gating, char *error, size_t error_size);
/* What is attached stays attached. */
void ph_gate_free(struct ph_gating *gating);

/* Budgets and what a source is. Takes effect at once. */
void ph_gate_set(struct ph_gating *gating, const struct ph_gate_config *config);

/* Where the gateway may be reached, in place of what was set before. Return: 0, -E2BIG, or -errno. */
int ph_gate_set_targets(struct ph_gating *gating, const struct ph_gate_target *targets, uint32_t count);

/**
 * ph_gate_attach() - put the gate on a device, replacing one of ours, also one in another way.
 * @mode: PH_GATE_TC, PH_GATE_GENERIC or PH_GATE_NATIVE.
 * @error: what is wrong and what to do, set on failure; then what was attached stays.
 *
 * Return: 0 or -errno (-EOPNOTSUPP the driver has no native XDP, -EBUSY somebody else's XDP program is there).
 */
int ph_gate_attach(struct ph_gating *gating, uint32_t ifindex, enum ph_gate_mode mode, char *error, size_t error_size);

/* How ours is on a device: PH_GATE_OFF if it is not. @bpf_dir: where links are pinned. Return: 0 or -errno. */
int ph_gate_attached(const char *bpf_dir, uint32_t ifindex, enum ph_gate_mode *ret_mode);

/* Takes ours off. Return: 0, also when there was none, or -errno. */
int ph_gate_detach(const char *bpf_dir, uint32_t ifindex);

/* What to choose for a driver when nobody has said; see README, "The gate". */
enum ph_gate_mode ph_gate_default_mode(const char *driver);
/* The driver's name as ethtool(8) has it; "" when the device has none. Return: 0 or -errno. */
int ph_gate_driver(uint32_t ifindex, char ret_driver[32]);

const char *ph_gate_mode_word(enum ph_gate_mode mode);

/* Reads the pinned counters, summed over CPUs. Return: 0, -ENOENT when there are none, or -errno. */
int ph_gate_counters(const char *bpf_dir, uint64_t ret_counters[PH_GATE_COUNT]);

/* The pinned configuration, a copy. Return: 0, -ENOENT or -errno. */
int ph_gate_read(const char *bpf_dir, struct ph_gate *ret_gate);

/*
 * Walk a pinned map of the gate's: targets, sources, a list. @key and @value are of the map's types, see phala/gate.h.
 * Return: 0, what @visit returned if not 0, or -errno.
 */
int ph_gate_each(const char *bpf_dir, const char *map, int (*visit)(const void *key, const void *value, void *arg),
		 void *arg);

/* Removes links and the pins of the maps. Return: 0, also when there were none, or -errno. */
int ph_gate_unpin(const char *bpf_dir, char *error, size_t error_size);

#endif
