/* SPDX-License-Identifier: Apache-2.0 */
/*
 * table - documents as people read them: aligned columns, ages and sizes in words.
 */
#ifndef PHALACTL_TABLE_H
#define PHALACTL_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "phalactl_json.h"

enum ph_cell {
	PH_CELL_TEXT,			/* a string, or a list of them */
	PH_CELL_NUMBER,			/* to the right */
	PH_CELL_BYTES,			/* "1.50 MiB" */
	PH_CELL_AGE,			/* seconds: "63 s ago"; null is "never" */
	PH_CELL_DURATION,		/* seconds: "5 min" */
	PH_CELL_TIME,			/* Unix time: "2026-11-23 00:36:28" */
	PH_CELL_YES_NO,
};

struct ph_column {
	const char *key;		/* of the member shown; NULL ends a list of columns */
	const char *heading;
	enum ph_cell cell;
};

/* One line a row, below one of headings; a dash for what a row has not. @rows: an array of objects. */
void ph_table_print(const struct ph_json *rows, const struct ph_column *columns, FILE *out);

/* One line a member, "heading  value"; members that @row lacks are left out, null is a dash. */
void ph_table_print_record(const struct ph_json *row, const struct ph_column *columns, FILE *out);

/* "63 s", "5 min 3 s"; at most @size bytes with the closing zero. Return: @text. */
const char *ph_table_duration(char *text, size_t size, double seconds);
/* "1.50 MiB"; likewise. */
const char *ph_table_bytes(char *text, size_t size, double bytes);

#endif
