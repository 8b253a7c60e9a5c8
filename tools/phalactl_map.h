/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map - what the rows of the table of maps are made of.
 */
#ifndef PHALACTL_MAP_H
#define PHALACTL_MAP_H

#include <flows.h>

#include "phalactl.h"

struct ph_rows {
	const struct ph_ctl *ctl;
	const struct ph_maps *maps;
	const struct ph_flows *flows;		/* NULL when phalad has pinned no such maps */
	struct ph_json *array;			/* NULL when they are only counted */
	uint64_t count;
};

/* Either @columns, for one line a row, or @print. */
struct ph_map_row {
	const char *name;			/* pinned as ph_<name> */
	int (*rows)(struct ph_rows *rows);	/* 0 or -errno; NULL: what it holds cannot be shown */
	const struct ph_column *columns;
	void (*print)(const struct ph_json *rows, FILE *out);
	const char *help;
	const char *absent;			/* why it may not be pinned; NULL if there is no good reason */
};

/* @row becomes theirs. */
void ph_rows_add(struct ph_rows *rows, struct ph_json *row);

extern const struct ph_map_row ph_kernel_maps[];
extern const size_t ph_kernel_map_count;
extern const struct ph_map_row ph_gate_maps[];
extern const size_t ph_gate_map_count;

#endif
