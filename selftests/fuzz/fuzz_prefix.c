// SPDX-License-Identifier: Apache-2.0
/*
 * prefix: any bytes are a list or an error that names its line; what was read is written, and read again the same.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "prefix.h"

static void must(bool holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "%s\n", what);
		abort();
	}
}

static int read_list(const void *data, size_t size, struct ph_prefix_list *ret_list, char *error, size_t error_size)
{
	FILE *file = fmemopen((void *)data, size, "r");
	int err;

	must(file, "memory for the file");
	err = ph_prefix_list_read(file, "list", 1000, ret_list, error, error_size);
	fclose(file);
	return err;
}

static char *write_list(const struct ph_prefix_list *list, size_t *ret_size)
{
	char *text = NULL;
	FILE *file = open_memstream(&text, ret_size);

	must(file && !ph_prefix_list_write(list, file) && !fclose(file), "memory for the text");
	return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ph_prefix_list list, again;
	char error[512], *text, *twice;
	size_t len, twice_len;

	if (!size)
		return 0;
	error[0] = '\0';
	if (read_list(data, size, &list, error, sizeof(error))) {
		must(!strncmp(error, "list:", 5) && !strpbrk(error, "\n\r\033"), "one line that names the place");
		return 0;
	}
	for (size_t i = 1; i < list.count; i++)
		must(ph_prefix_compare(&list.rows[i - 1].prefix, &list.rows[i].prefix) < 0, "in order, each once");
	text = write_list(&list, &len);
	if (len) {
		must(!read_list(text, len, &again, error, sizeof(error)), "what was written is read");
		twice = write_list(&again, &twice_len);
		must(len == twice_len && !memcmp(text, twice, len) && list.count == again.count, "and is the same");
		free(twice);
		ph_prefix_list_free(&again);
	}
	free(text);
	ph_prefix_list_free(&list);
	return 0;
}
