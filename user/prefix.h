/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefix - lists of IPv4 and IPv6 prefixes as people write them, a line each:
 *
 *   # a comment
 *   192.0.2.0/24
 *   2001:db8::/32 until 2026-11-30T12:00:00Z # why
 *
 * An address without a length is itself alone. What is written is read again as it was.
 */
#ifndef PHALAD_PREFIX_H
#define PHALAD_PREFIX_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <phala/gate.h>

#define PH_PREFIX_TEXT_SIZE 64			/* an IPv6 prefix (INET6_ADDRSTRLEN, and its length), with room */
#define PH_PREFIX_REASON_MAX 128		/* characters; what is longer is cut */
#define PH_TIME_TEXT_SIZE 24			/* 2026-11-30T12:00:00Z */

struct ph_prefix_row {
	struct ph_prefix prefix;
	int64_t until_s;			/* Unix time; 0 is for ever */
	const char *reason;			/* the list's; "" when there is none */
};

/* Rows are in the order of ph_prefix_compare(), each prefix once. */
struct ph_prefix_list {
	struct ph_prefix_row *rows;
	size_t count, room;
	char *text;				/* where reasons are */
};

/*
 * Reads "192.0.2.0/24", "2001:db8::/32", or an address alone. @error: what is wrong with it, set on failure. Return: 0
 * or -EINVAL.
 */
int ph_prefix_read(const char *text, struct ph_prefix *ret_prefix, char *error, size_t error_size);
/* Return: @out. */
const char *ph_prefix_text(char out[PH_PREFIX_TEXT_SIZE], const struct ph_prefix *prefix);

/* Addresses in order, IPv4 where it is inside IPv6; of the same one the shorter prefix first. As for qsort(3). */
int ph_prefix_compare(const void *a, const void *b);

/* Unix time as RFC 3339 has it, UTC, and back. Return: @out; 0 or -EINVAL. */
const char *ph_time_text(char out[PH_TIME_TEXT_SIZE], int64_t time_s);
int ph_time_read(const char *text, int64_t *ret_time_s);

/**
 * ph_prefix_list_read() - read a whole file.
 * @path: for the error; @file is read from where it is to its end.
 * @max: no more prefixes than that.
 * @error: one line for people, "path:line: what", set on failure.
 *
 * Of a prefix that stands there twice the last line counts.
 *
 * Return: 0, -EINVAL for a line that is wrong, -E2BIG, or -errno.
 */
int ph_prefix_list_read(FILE *file, const char *path, size_t max, struct ph_prefix_list *ret_list, char *error,
			size_t error_size);
/* Return: 0, or -EIO as ferror() has it. */
int ph_prefix_list_write(const struct ph_prefix_list *list, FILE *file);
void ph_prefix_row_write(const struct ph_prefix_row *row, FILE *file);
void ph_prefix_list_free(struct ph_prefix_list *list);

/* Return: NULL when it is not there. */
struct ph_prefix_row *ph_prefix_list_find(const struct ph_prefix_list *list, const struct ph_prefix *prefix);

#endif
