// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * state - no program, only the maps: what phalad creates and pins before any program is loaded.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "guard_maps.h"
#include "maps.h"
