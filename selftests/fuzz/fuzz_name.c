// SPDX-License-Identifier: Apache-2.0
/* name: any bytes; a name that is accepted is rebuilt from its parts, and must be the one that was read. */
#include <ctype.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <phala/name.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int holds)
{
	if (!holds)
		abort();
}

static int is_same_label(const char *name, uint32_t len, const char *want)
{
	if (strlen(want) != len)
		return 0;
	for (uint32_t i = 0; i < len; i++)
		if (tolower((unsigned char)name[i]) != want[i])
			return 0;
	return 1;
}

/* The ways to write it down: with the port, and without it where it is the default. */
static void check_accepted(const char *name, uint32_t len, const struct ph_name *parsed)
{
	static const char *const suffix[] = { "", "s", "g" };
	uint32_t id_len = strnlen(parsed->id, PH_ID_SIZE), label_len = parsed->base - 1U;
	char label[PH_ID_SIZE + 16];
	int same;

	check(id_len >= 1 && id_len <= PH_LABEL_MAX && parsed->port && parsed->mode <= PH_MODE_GRPC);
	for (uint32_t i = 0; i < PH_ID_SIZE; i++)
		check(i < id_len ? islower(parsed->id[i]) || isdigit(parsed->id[i]) : !parsed->id[i]);
	check(parsed->base >= 2 && parsed->base < len && label_len <= PH_LABEL_MAX);
	check(name[parsed->base - 1] == '.' && !memchr(name, '.', label_len) && name[len - 1] != '.');
	snprintf(label, sizeof(label), "%s-%u%s", parsed->id, parsed->port, suffix[parsed->mode]);
	same = is_same_label(name, label_len, label);
	if (!same && parsed->port == (parsed->mode == PH_MODE_PASSTHROUGH ? 443 : 80)) {
		snprintf(label, sizeof(label), "%s%s%s", parsed->id, parsed->mode ? "-" : "", suffix[parsed->mode]);
		same = is_same_label(name, label_len, label);
	}
	check(same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char name[PH_NAME_SIZE] = { 0 };
	struct ph_name parsed, before;
	enum ph_name_verdict verdict;

	memcpy(name, data, size < sizeof(name) ? size : sizeof(name));
	memset(&parsed, '#', sizeof(parsed));
	before = parsed;
	verdict = ph_name_parse(name, size, &parsed);
	check(verdict <= PH_NAME_NO_DOMAIN);
	if (verdict == PH_NAME_OK)
		check_accepted(name, size, &parsed);
	else
		check(!memcmp(&parsed, &before, sizeof(parsed)));
	return 0;
}
