// SPDX-License-Identifier: Apache-2.0
/*
 * name: what is a name, what it means, and which of several faults it is refused for.
 *
 *   test_name                  the tests
 *   test_name --write DIR      the names as files, a seed corpus for fuzzing
 */
#include <stdio.h>
#include <string.h>

#include <phala/name.h>

#include "ktap.h"

#define A10 "aaaaaaaaaa"
#define A62 A10 A10 A10 A10 A10 A10 "aa"
#define A63 A62 "a"

static const struct {
	const char *name;
	const char *id;
	unsigned int port;
	enum ph_mode mode;
	const char *base;
} good[] = {
	{ "app.phala.test", "app", 80, PH_MODE_STANDARD, "phala.test" },
	{ "app-8080.phala.test", "app", 8080, PH_MODE_STANDARD, "phala.test" },
	{ "app-5432s.phala.test", "app", 5432, PH_MODE_PASSTHROUGH, "phala.test" },
	{ "app-50051g.phala.test", "app", 50051, PH_MODE_GRPC, "phala.test" },
	{ "app-s.phala.test", "app", 443, PH_MODE_PASSTHROUGH, "phala.test" },
	{ "app-g.phala.test", "app", 80, PH_MODE_GRPC, "phala.test" },
	{ "app-80.phala.test", "app", 80, PH_MODE_STANDARD, "phala.test" },
	{ "app-80s.phala.test", "app", 80, PH_MODE_PASSTHROUGH, "phala.test" },
	{ "app-443g.phala.test", "app", 443, PH_MODE_GRPC, "phala.test" },
	{ "app-1.phala.test", "app", 1, PH_MODE_STANDARD, "phala.test" },
	{ "app-65535s.phala.test", "app", 65535, PH_MODE_PASSTHROUGH, "phala.test" },
	/* The suffix counts only after the dash. */
	{ "ids.phala.test", "ids", 80, PH_MODE_STANDARD, "phala.test" },
	{ "idg.phala.test", "idg", 80, PH_MODE_STANDARD, "phala.test" },
	{ "s.phala.test", "s", 80, PH_MODE_STANDARD, "phala.test" },
	{ "g-g.phala.test", "g", 80, PH_MODE_GRPC, "phala.test" },
	{ "8080.phala.test", "8080", 80, PH_MODE_STANDARD, "phala.test" },
	{ "8080-8080.phala.test", "8080", 8080, PH_MODE_STANDARD, "phala.test" },
	{ "0.phala.test", "0", 80, PH_MODE_STANDARD, "phala.test" },
	{ "0123456789.x", "0123456789", 80, PH_MODE_STANDARD, "x" },
	{ "abcdefghijklmnopqrstuvwxyz.x", "abcdefghijklmnopqrstuvwxyz", 80, PH_MODE_STANDARD, "x" },
	/* DNS names are case-insensitive. */
	{ "APP-8080S.Phala.Test", "app", 8080, PH_MODE_PASSTHROUGH, "Phala.Test" },
	{ "ABCDEFGHIJKLMNOPQRSTUVWXYZ-G.x", "abcdefghijklmnopqrstuvwxyz", 80, PH_MODE_GRPC, "x" },
	/* What follows the first dot is the caller's to compare. */
	{ "app.x", "app", 80, PH_MODE_STANDARD, "x" },
	{ "a.b.c.d", "a", 80, PH_MODE_STANDARD, "b.c.d" },
	{ "app-s.sub-1-2.test", "app", 443, PH_MODE_PASSTHROUGH, "sub-1-2.test" },
	{ "app..test", "app", 80, PH_MODE_STANDARD, ".test" },
	{ "app.-80", "app", 80, PH_MODE_STANDARD, "-80" },
	{ A63 ".x", A63, 80, PH_MODE_STANDARD, "x" },
	{ A62 "." A63 "." A63 "." A62, A62, 80, PH_MODE_STANDARD, A63 "." A63 "." A62 },	/* 253 characters */
	{ A10 A10 A10 A10 A10 "aaaaaa-65535g.x", A10 A10 A10 A10 A10 "aaaaaa", 65535, PH_MODE_GRPC, "x" },
};

static const struct {
	const char *name;
	enum ph_name_verdict verdict;
} bad[] = {
	{ "", PH_NAME_BAD },
	{ ".", PH_NAME_BAD },
	{ ".phala.test", PH_NAME_BAD },
	{ "-80.phala.test", PH_NAME_BAD },
	{ "-s.phala.test", PH_NAME_BAD },
	{ "-.phala.test", PH_NAME_BAD },
	{ "a_b.phala.test", PH_NAME_BAD },
	{ "*.phala.test", PH_NAME_BAD },
	{ "a b.phala.test", PH_NAME_BAD },
	{ "caf\xc3\xa9.phala.test", PH_NAME_BAD },
	{ "app\x7f.phala.test", PH_NAME_BAD },
	{ "app/.phala.test", PH_NAME_BAD },
	{ "app:80.phala.test", PH_NAME_BAD },
	{ "app@.phala.test", PH_NAME_BAD },
	{ "app[.phala.test", PH_NAME_BAD },
	{ "app`.phala.test", PH_NAME_BAD },
	{ "app{.phala.test", PH_NAME_BAD },
	{ "app-.phala.test", PH_NAME_BAD_PORT },
	{ "app-0.phala.test", PH_NAME_BAD_PORT },
	{ "app-0s.phala.test", PH_NAME_BAD_PORT },
	{ "app-080.phala.test", PH_NAME_BAD_PORT },
	{ "app-00080.phala.test", PH_NAME_BAD_PORT },
	{ "app-65536.phala.test", PH_NAME_BAD_PORT },
	{ "app-65536s.phala.test", PH_NAME_BAD_PORT },
	{ "app-99999.phala.test", PH_NAME_BAD_PORT },
	{ "app-131152.phala.test", PH_NAME_BAD_PORT },
	{ "app-4294967376.phala.test", PH_NAME_BAD_PORT },
	{ "app-18446744073709551696.phala.test", PH_NAME_BAD_PORT },
	{ "app-+80.phala.test", PH_NAME_BAD_PORT },
	{ "app-80x.phala.test", PH_NAME_BAD_PORT },
	{ "app-8o.phala.test", PH_NAME_BAD_PORT },
	{ "app-x.phala.test", PH_NAME_BAD_PORT },
	{ "app-0x50.phala.test", PH_NAME_BAD_PORT },
	{ "app-8 0.phala.test", PH_NAME_BAD_PORT },
	{ "app-80/.phala.test", PH_NAME_BAD_PORT },
	{ "app-80:.phala.test", PH_NAME_BAD_PORT },
	{ "app-80sg.phala.test", PH_NAME_BAD_SUFFIX },
	{ "app-80ss.phala.test", PH_NAME_BAD_SUFFIX },
	{ "app-80gs.phala.test", PH_NAME_BAD_SUFFIX },
	{ "app-s80.phala.test", PH_NAME_BAD_SUFFIX },
	{ "app-g1.phala.test", PH_NAME_BAD_SUFFIX },
	{ "app-sx.phala.test", PH_NAME_BAD_SUFFIX },
	{ "app-80-90.phala.test", PH_NAME_SECOND_DASH },
	{ "app--80.phala.test", PH_NAME_SECOND_DASH },
	{ "app--.phala.test", PH_NAME_SECOND_DASH },
	{ "app-80s-.phala.test", PH_NAME_SECOND_DASH },
	{ "app-s-g.phala.test", PH_NAME_SECOND_DASH },
	{ "my-app-80.phala.test", PH_NAME_BAD_PORT },
	{ A63 "a.phala.test", PH_NAME_LABEL_TOO_LONG },
	{ A63 "a", PH_NAME_LABEL_TOO_LONG },
	{ A63 "-80.phala.test", PH_NAME_LABEL_TOO_LONG },
	{ A10 A10 A10 A10 A10 "aaaaaaaa-8080s.x", PH_NAME_LABEL_TOO_LONG },
	{ A63 A63 A63 A63 "a", PH_NAME_LABEL_TOO_LONG },
	{ A62 "." A63 "." A63 "." A63, PH_NAME_BAD },		/* 254 characters */
	{ "app.phala.test.", PH_NAME_TRAILING_DOT },
	{ "app.", PH_NAME_TRAILING_DOT },
	{ "app..", PH_NAME_TRAILING_DOT },
	{ "app-80s.", PH_NAME_TRAILING_DOT },
	{ "app", PH_NAME_NO_DOMAIN },
	{ "app-80", PH_NAME_NO_DOMAIN },
	{ "app-", PH_NAME_NO_DOMAIN },
	{ "app-s", PH_NAME_NO_DOMAIN },
	{ "localhost", PH_NAME_NO_DOMAIN },
	{ "a", PH_NAME_NO_DOMAIN },
	{ A63, PH_NAME_NO_DOMAIN },
};

#define GOOD_COUNT (sizeof(good) / sizeof(good[0]))
#define BAD_COUNT (sizeof(bad) / sizeof(bad[0]))

static enum ph_name_verdict parse(const char *text, size_t len, struct ph_name *ret_name)
{
	char name[PH_NAME_SIZE] = { 0 };

	memcpy(name, text, len < sizeof(name) ? len : sizeof(name));
	return ph_name_parse(name, len, ret_name);
}

/* The id is a map key: what follows it must be zeros. */
static int is_padded(const struct ph_name *name)
{
	for (size_t i = strlen(name->id); i < sizeof(name->id); i++)
		if (name->id[i])
			return 0;
	return 1;
}

static void test_every_port(void)
{
	static const char *const suffix[] = { "", "s", "g" };
	int wrong = 0;

	for (unsigned int port = 0; port < 100000; port++) {
		for (unsigned int mode = 0; mode < 3; mode++) {
			char text[64];
			struct ph_name name;
			int len = snprintf(text, sizeof(text), "id-%u%s.x", port, suffix[mode]);
			int is_good = parse(text, len, &name) == PH_NAME_OK;

			if (is_good != (port >= 1 && port <= 65535))
				wrong++;
			else if (is_good && (name.port != port || name.mode != mode))
				wrong++;
		}
	}
	ktap_ok(!wrong, "every port from 0 to 99999 in every mode");
}

/* What may stand in an id, by trying all. */
static void test_every_character(void)
{
	int wrong = 0;

	for (int c = 0; c < 256; c++) {
		char text[] = { 'a', c, '.', 'x' };
		int is_id = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
		struct ph_name name;
		enum ph_name_verdict verdict = parse(text, sizeof(text), &name);

		if (c == '.')		/* "a..x": an empty label, which no base domain has */
			wrong += verdict != PH_NAME_OK || name.base != 2;
		else if (c == '-')
			wrong += verdict != PH_NAME_BAD_PORT;
		else
			wrong += verdict != (is_id ? PH_NAME_OK : PH_NAME_BAD);
	}
	ktap_ok(!wrong, "every character in an id");
}

static int write_name(const char *dir, const char *kind, size_t index, const char *name)
{
	char path[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s-%zu", dir, kind, index);
	file = fopen(path, "we");
	if (!file || fputs(name, file) < 0 || fclose(file)) {
		perror(path);
		return -1;
	}
	return 0;
}

static int write_names(const char *dir)
{
	for (size_t i = 0; i < GOOD_COUNT; i++)
		if (write_name(dir, "good", i, good[i].name))
			return 1;
	for (size_t i = 0; i < BAD_COUNT; i++)
		if (write_name(dir, "bad", i, bad[i].name))
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	struct ph_name untouched, name;

	if (argc == 3 && !strcmp(argv[1], "--write"))
		return write_names(argv[2]);
	ktap_header();
	for (size_t i = 0; i < GOOD_COUNT; i++) {
		size_t len = strlen(good[i].name);

		memset(&name, '#', sizeof(name));
		ktap_ok(parse(good[i].name, len, &name) == PH_NAME_OK && is_padded(&name) &&
			!strcmp(name.id, good[i].id) && name.port == good[i].port && name.mode == good[i].mode &&
			!strcmp(good[i].name + name.base, good[i].base), "means what it says: %s", good[i].name);
	}
	memset(&untouched, '#', sizeof(untouched));
	for (size_t i = 0; i < BAD_COUNT; i++) {
		enum ph_name_verdict verdict;

		memset(&name, '#', sizeof(name));
		verdict = parse(bad[i].name, strlen(bad[i].name), &name);
		ktap_ok(verdict == bad[i].verdict && !memcmp(&name, &untouched, sizeof(name)),
			"refused, verdict %d: \"%s\"", bad[i].verdict, bad[i].name);
	}
	ktap_ok(parse("a\0.x", 4, &name) == PH_NAME_BAD, "refused: a zero byte in an id");
	ktap_ok(parse("app.xyz", 5, &name) == PH_NAME_OK && !strcmp(name.id, "app") && name.base == 4,
		"the length counts, not what follows it");
	test_every_port();
	test_every_character();
	return ktap_end();
}
