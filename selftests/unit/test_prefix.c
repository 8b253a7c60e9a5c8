// SPDX-License-Identifier: Apache-2.0
/* prefix: every form of a prefix and of a line, and every mistake with its place. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ktap.h"
#include "prefix.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const struct {
	const char *text;
	uint32_t bits;				/* as the map has them */
	const char *again;			/* as it is written; NULL as it was */
} good[] = {
	{ "192.0.2.0/24", 120, NULL },
	{ "192.0.2.1", 128, "192.0.2.1/32" },
	{ "192.0.2.1/32", 128, NULL },
	{ "0.0.0.0/0", 96, NULL },
	{ "128.0.0.0/1", 97, NULL },
	{ "2001:db8::/32", 32, NULL },
	{ "2001:DB8:0:0:0:0:0:1", 128, "2001:db8::1/128" },
	{ "::/0", 0, NULL },
	{ "8000::/1", 1, NULL },
	{ "::1/128", 128, NULL },
};

static const struct {
	const char *text, *why;
} bad[] = {
	{ "", "no address" },
	{ "nonsense", "nonsense is no address and no prefix" },
	{ "192.0.2.0/33", "the length is not 0 to 32" },
	{ "192.0.2.0/-1", "the length is not 0 to 32" },
	{ "192.0.2.0/", "the length is not 0 to 32" },
	{ "192.0.2.0/024", "the length is not 0 to 32" },
	{ "192.0.2.0/24/24", "the length is not 0 to 32" },
	{ "192.0.2.1/24", "192.0.2.1/24 has bits set behind the prefix" },
	{ "192.0.2", "no address" },
	{ "192.0.2.0.0/24", "no address" },
	{ "192.0.02.0/24", "no address" },
	{ "256.0.0.0/8", "no address" },
	{ "2001:db8::/129", "the length is not 0 to 128" },
	{ "2001:db8::1/32", "has bits set behind the prefix" },
	{ "2001:db8:::/32", "no address" },
	{ "::ffff:192.0.2.0/120", "is IPv4: write it as that" },
	{ "fe80::1%eth0", "no address" },
	{ "example.com", "no address" },
	{ "1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3:4:5:6", "no address" },
	{ "\033[2J", "no address" },
};

static const struct {
	const char *name, *text, *why;
} mistakes[] = {
	{ "a line that is wrong", "# x\n\n192.0.2.0/24\nnonsense\n", "list:4: nonsense is no address" },
	{ "the last line, without an end", "192.0.2.0/24\n192.0.2.0/2x", "list:2: 192.0.2.0/2x: the length" },
	{ "words behind it", "192.0.2.0/24 yes\n", "list:1: behind the prefix may stand 'until TIME' and '# why', not yes" },
	{ "until nothing", "192.0.2.0/24 until\n", "list:1: behind the prefix may stand" },
	{ "a word behind until", "192.0.2.0/24 until 2026-11-30T12:00:00Z x\n", "list:1: behind the prefix may stand" },
	{ "a time without its zone", "192.0.2.0/24 until 2026-11-30T12:00:00\n", "list:1: 2026-11-30T12:00:00 is not a time" },
	{ "a day that there is not", "192.0.2.0/24 until 2026-02-30T12:00:00Z\n", "list:1: 2026-02-30T12:00:00Z is not a time" },
	{ "a time before time", "192.0.2.0/24 until 1960-01-01T00:00:00Z\n", "list:1: 1960-01-01T00:00:00Z is not a time" },
	{ "two prefixes in a line", "192.0.2.0/24 198.51.100.0/24\n", "list:1: behind the prefix may stand" },
	{ "commas", "192.0.2.0/24,198.51.100.0/24\n", "list:1: 192.0.2.0/24,198.51.100.0/24" },
	{ "a control character", "192.0.2.0/24\a\n", "list:1: 192.0.2.0/24\\x07: the length" },
	{ "one more than there may be", "192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\n", "list:4: more than 3 prefixes" },
};

static int read_list(const char *text, size_t len, size_t max, struct ph_prefix_list *ret_list, char *error, size_t size)
{
	FILE *file = fmemopen((void *)text, len ? len : 1, "r");
	int err;

	if (!len)
		fgetc(file);
	err = ph_prefix_list_read(file, "list", max, ret_list, error, size);
	fclose(file);
	return err;
}

static void test_forms(void)
{
	char error[256], text[PH_PREFIX_TEXT_SIZE];
	struct ph_prefix prefix;

	for (size_t i = 0; i < COUNT(good); i++) {
		int err = ph_prefix_read(good[i].text, &prefix, error, sizeof(error));

		ktap_ok(!err && prefix.bits == good[i].bits &&
			!strcmp(ph_prefix_text(text, &prefix), good[i].again ? good[i].again : good[i].text),
			"%s is a prefix, and written again", good[i].text);
	}
	for (size_t i = 0; i < COUNT(bad); i++) {
		memset(&prefix, 0x5a, sizeof(prefix));
		ktap_ok(ph_prefix_read(bad[i].text, &prefix, error, sizeof(error)) == -EINVAL &&
			strstr(error, bad[i].why) && prefix.bits == 0x5a5a5a5a && !strpbrk(error, "\033\n"),
			"refused: %s", bad[i].text[0] == '\033' ? "an escape sequence" : bad[i].text);
	}
}

/* JSON takes nothing else. */
static void test_reasons(void)
{
	static const struct {
		const char *name, *text, *want;
	} rows[] = {
		{ "characters of all lengths", "a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80", "a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80" },
		{ "Latin-1", "caf\xe9", "caf?" },
		{ "Latin-1 within", "caf\xe9s", "caf?s" },
		{ "half a character", "x\xe2\x82", "x??" },
		{ "a longer form than needed", "\xc0\xaf \xe0\x9f\xbf", "?? ???" },
		{ "a surrogate", "\xed\xa0\x80", "???" },
		{ "above all there are", "\xf4\x90\x80\x80 \xff", "???? ?" },
	};
	char text[512], error[256];
	struct ph_prefix_list list;
	size_t len;

	for (size_t i = 0; i < COUNT(rows); i++) {
		len = (size_t)snprintf(text, sizeof(text), "192.0.2.1 # %s", rows[i].text);
		ktap_ok(!read_list(text, len, SIZE_MAX, &list, error, sizeof(error)) && !strcmp(list.rows[0].reason, rows[i].want),
			"reason: %s", rows[i].name);
		ph_prefix_list_free(&list);
	}
	len = (size_t)snprintf(text, sizeof(text), "192.0.2.1 # %0*d\xc3\xbc", PH_PREFIX_REASON_MAX - 1, 0);
	ktap_ok(!read_list(text, len, SIZE_MAX, &list, error, sizeof(error)) &&
		strlen(list.rows[0].reason) == PH_PREFIX_REASON_MAX && list.rows[0].reason[PH_PREFIX_REASON_MAX - 1] == '?',
		"reason: cut within a character");
	ph_prefix_list_free(&list);
}

static void test_list(void)
{
	static const char text[] = "# a list\n\n  2001:db8::/32\t# documentation \r\n198.51.100.0/24 until 2096-11-30T12:00:00Z\n"
				   "192.0.2.0/24#first\n10.0.0.0/8 # \a bell\n10.0.0.0/9\n"
				   "192.0.2.0/24 until 2096-01-01T00:00:00Z # second\n192.0.2.7";
	static const char want[] = "10.0.0.0/8 # ? bell\n10.0.0.0/9\n192.0.2.0/24 until 2096-01-01T00:00:00Z # second\n"
				   "192.0.2.7/32\n198.51.100.0/24 until 2096-11-30T12:00:00Z\n2001:db8::/32 # documentation\n";
	struct ph_prefix_list list, again;
	char error[256], out[1024] = "", twice[1024] = "";
	struct ph_prefix prefix;
	FILE *file;

	if (!ktap_ok(!read_list(text, strlen(text), SIZE_MAX, &list, error, sizeof(error)), "a list of every form"))
		return;
	file = fmemopen(out, sizeof(out), "w");
	ph_prefix_list_write(&list, file);
	fclose(file);
	if (!ktap_ok(!strcmp(out, want), "in order, each once, the last line of it"))
		printf("# %s\n", out);
	ktap_ok(!ph_prefix_read("192.0.2.0/24", &prefix, error, sizeof(error)) &&
		ph_prefix_list_find(&list, &prefix) == &list.rows[2], "one that is there is found");
	prefix.bits++;
	ktap_ok(!ph_prefix_list_find(&list, &prefix), "another length of it is not");
	ktap_ok(!read_list(out, strlen(out), SIZE_MAX, &again, error, sizeof(error)), "what is written is read");
	file = fmemopen(twice, sizeof(twice), "w");
	ph_prefix_list_write(&again, file);
	fclose(file);
	ktap_ok(!strcmp(out, twice), "and is as it was");
	ph_prefix_list_free(&again);
	ph_prefix_list_free(&list);
	ktap_ok(!read_list("", 0, SIZE_MAX, &list, error, sizeof(error)) && !list.count, "nothing is an empty list");
	ph_prefix_list_free(&list);
	ktap_ok(!read_list("# no end", 8, SIZE_MAX, &list, error, sizeof(error)) && !list.count, "a comment is an empty list");
	ph_prefix_list_free(&list);
	ktap_ok(read_list("192.0.2.1\n192.\0000.2.1\n", 21, SIZE_MAX, &list, error, sizeof(error)) == -EINVAL &&
		!strcmp(error, "list:2: a zero byte"), "a zero byte is told");
}

static void test_mistakes(void)
{
	struct ph_prefix_list list;
	char error[512];

	for (size_t i = 0; i < COUNT(mistakes); i++) {
		int err = read_list(mistakes[i].text, strlen(mistakes[i].text), 3, &list, error, sizeof(error));

		if (!ktap_ok((err == -EINVAL || err == -E2BIG) && !strncmp(error, mistakes[i].why, strlen(mistakes[i].why)),
			     "%s", mistakes[i].name))
			printf("# %d: %s\n", err, error);
	}
}

static void test_long_reason(void)
{
	char text[400] = "192.0.2.1 # ", error[256];
	struct ph_prefix_list list;

	memset(text + strlen(text), 'x', 300);
	ktap_ok(!read_list(text, strlen(text), 3, &list, error, sizeof(error)) && list.count == 1 &&
		strlen(list.rows[0].reason) == PH_PREFIX_REASON_MAX, "a long reason is cut");
	ph_prefix_list_free(&list);
}

int main(void)
{
	ktap_header();
	test_forms();
	test_reasons();
	test_list();
	test_mistakes();
	test_long_reason();
	return ktap_end();
}
