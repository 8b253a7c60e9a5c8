// SPDX-License-Identifier: Apache-2.0
#include "phalactl_table.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GAP 2					/* blanks between columns */

const char *ph_table_duration(char *text, size_t size, double seconds)
{
	uint64_t whole = seconds < 0 ? 0 : seconds > 1e15 ? (uint64_t)1e15 : (uint64_t)seconds;

	if (seconds < 10 && seconds != (double)whole)
		snprintf(text, size, "%.1f s", seconds < 0 ? 0 : seconds);
	else if (whole < 120)
		snprintf(text, size, "%" PRIu64 " s", whole);
	else if (whole < 2 * 3600 && whole != 3600)
		snprintf(text, size, whole % 60 ? "%" PRIu64 " min %" PRIu64 " s" : "%" PRIu64 " min", whole / 60,
			 whole % 60);
	else if (whole < 2 * 86400)
		snprintf(text, size, whole / 60 % 60 ? "%" PRIu64 " h %" PRIu64 " min" : "%" PRIu64 " h", whole / 3600,
			 whole / 60 % 60);
	else
		snprintf(text, size, "%" PRIu64 " d %" PRIu64 " h", whole / 86400, whole / 3600 % 24);
	return text;
}

const char *ph_table_bytes(char *text, size_t size, double bytes)
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB" };
	size_t unit = 0;

	if (bytes < 1024) {
		snprintf(text, size, "%.0f B", bytes);
		return text;
	}
	for (bytes /= 1024; bytes >= 1024 && unit < sizeof(units) / sizeof(units[0]) - 1; unit++)
		bytes /= 1024;
	snprintf(text, size, "%.2f %s", bytes, units[unit]);
	return text;
}

static void write_list(const struct ph_json *list, FILE *out)
{
	size_t count = ph_json_count(list);

	if (!count)
		fputs("-", out);
	for (size_t i = 0; i < count; i++) {
		const char *text = ph_json_string_at(list, i);

		fprintf(out, "%s%s", i ? ", " : "", text ? text : "?");
	}
}

static void write_time(double unix_s, FILE *out)
{
	time_t seconds = (time_t)unix_s;
	struct tm broken;
	char text[32];

	if (localtime_r(&seconds, &broken) && strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &broken))
		fputs(text, out);
}

static void write_cell(const struct ph_json *row, const struct ph_column *column, FILE *out)
{
	const struct ph_json *list = ph_json_child(row, column->key);
	double number = ph_json_number(row, column->key, 0);
	char text[64];

	if (ph_json_is_null(row, column->key)) {
		fputs(column->cell == PH_CELL_AGE ? "never" : "-", out);
		return;
	}
	switch (column->cell) {
	case PH_CELL_TEXT:
		if (list)
			write_list(list, out);
		else
			fputs(ph_json_string(row, column->key, "?"), out);
		break;
	case PH_CELL_NUMBER:
		fprintf(out, "%.0f", number);
		break;
	case PH_CELL_BYTES:
		fputs(ph_table_bytes(text, sizeof(text), number), out);
		break;
	case PH_CELL_AGE:
		fprintf(out, "%s ago", ph_table_duration(text, sizeof(text), number));
		break;
	case PH_CELL_DURATION:
		fputs(ph_table_duration(text, sizeof(text), number), out);
		break;
	case PH_CELL_TIME:
		write_time(number, out);
		break;
	case PH_CELL_YES_NO:
		fputs(ph_json_bool(row, column->key, false) ? "yes" : "no", out);
		break;
	}
}

/* The caller's to free(); out of memory ends the program. */
static char *cell_text(const struct ph_json *row, const struct ph_column *column)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	if (out) {
		write_cell(row, column, out);
		if (!fclose(out) && text)
			return text;
	}
	fprintf(stderr, "phalactl: out of memory\n");
	exit(1);
}

static bool is_to_the_right(enum ph_cell cell)
{
	return cell == PH_CELL_NUMBER || cell == PH_CELL_BYTES;
}

static void print_cell(const char *text, int width, bool right, bool last, FILE *out)
{
	if (right)
		fprintf(out, "%*s%s", width, text, last ? "\n" : "  ");
	else if (last)
		fprintf(out, "%s\n", text);
	else
		fprintf(out, "%-*s", width + GAP, text);
}

static void print_line(char *const *cells, const int *widths, const struct ph_column *columns, size_t count, FILE *out)
{
	for (size_t i = 0; i < count; i++)
		print_cell(cells[i], widths[i], is_to_the_right(columns[i].cell), i == count - 1, out);
}

void ph_table_print(const struct ph_json *rows, const struct ph_column *columns, FILE *out)
{
	size_t row_count = ph_json_count(rows), count = 0;
	char **cells, **headings;
	int *widths;

	while (columns[count].key)
		count++;
	cells = calloc(row_count * count + 1, sizeof(*cells));
	headings = calloc(count, sizeof(*headings));
	widths = calloc(count, sizeof(*widths));
	if (!cells || !headings || !widths) {
		fprintf(stderr, "phalactl: out of memory\n");
		exit(1);
	}
	for (size_t i = 0; i < count; i++) {
		headings[i] = (char *)columns[i].heading;
		widths[i] = (int)strlen(headings[i]);
	}
	for (size_t i = 0; i < row_count * count; i++) {
		int len;

		cells[i] = cell_text(ph_json_at(rows, i / count), &columns[i % count]);
		len = (int)strlen(cells[i]);
		if (widths[i % count] < len)
			widths[i % count] = len;
	}
	print_line(headings, widths, columns, count, out);
	for (size_t i = 0; i < row_count; i++)
		print_line(cells + i * count, widths, columns, count, out);
	for (size_t i = 0; i < row_count * count; i++)
		free(cells[i]);
	free(cells);
	free(headings);
	free(widths);
}

void ph_table_print_record(const struct ph_json *row, const struct ph_column *columns, FILE *out)
{
	int width = 0;

	for (const struct ph_column *column = columns; column->key; column++) {
		int len = (int)strlen(column->heading);

		if (ph_json_has(row, column->key) && width < len)
			width = len;
	}
	for (const struct ph_column *column = columns; column->key; column++) {
		if (!ph_json_has(row, column->key))
			continue;
		fprintf(out, "%-*s", width + GAP, column->heading);
		write_cell(row, column, out);
		fputc('\n', out);
	}
}
