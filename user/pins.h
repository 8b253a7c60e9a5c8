/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pins - the pinned maps given to the programs that use them.
 */
#ifndef PHALAD_PINS_H
#define PHALAD_PINS_H

#include <stddef.h>

struct bpf_object;

/**
 * ph_pins_reuse() - have an object that is not loaded yet use the maps that ph_maps_create() pinned in @bpf_dir.
 * @what: the object's name for people.
 * @error: one line for people, set on failure.
 *
 * Maps of its own, whose names do not begin as the pinned ones' do, are left alone. Return: 0 or -errno.
 */
int ph_pins_reuse(struct bpf_object *object, const char *bpf_dir, const char *what, char *error, size_t error_size);

#endif
