// SPDX-License-Identifier: Apache-2.0
#include "prefix.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"
#include "value.h"

#define BLANKS " \t\r"
#define UNTIL "until"

__attribute__((format(printf, 4, 5))) static int refuse(int err, char *error, size_t error_size, const char *format,
							 ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, error_size, format, args);
	va_end(args);
	return err;
}

static bool is_v4(const struct ph_prefix *prefix)
{
	const __be32 *words = prefix->address.words;

	return prefix->bits >= PH_ADDRESS_V4_BITS && !words[0] && !words[1] && words[2] == htonl(0xffff);
}

static bool has_host_bits(const struct ph_prefix *prefix)
{
	uint32_t bits = prefix->bits;

	for (uint32_t i = 0; i < 4; i++, bits -= bits < 32 ? bits : 32) {
		if (bits < 32 && ntohl(prefix->address.words[i]) & UINT32_MAX >> bits)
			return true;
	}
	return false;
}

int ph_prefix_read(const char *text, struct ph_prefix *ret_prefix, char *error, size_t error_size)
{
	struct ph_prefix prefix = { .address = { .words = { 0, 0, htonl(0xffff) } } };
	const char *slash = strchr(text, '/');
	size_t len = slash ? (size_t)(slash - text) : strlen(text);
	char address[INET6_ADDRSTRLEN], escaped[96];
	bool v6 = memchr(text, ':', len);
	uint32_t bits = v6 ? 128 : 32;

	ph_log_escape(escaped, sizeof(escaped), text, strlen(text));
	if (len >= sizeof(address))
		return refuse(-EINVAL, error, error_size, "%s is no address and no prefix", escaped);
	memcpy(address, text, len);
	address[len] = '\0';
	if (inet_pton(v6 ? AF_INET6 : AF_INET, address, v6 ? &prefix.address.words[0] : &prefix.address.words[3]) != 1)
		return refuse(-EINVAL, error, error_size, "%s is no address and no prefix such as 192.0.2.0/24", escaped);
	if (slash && ph_value_number(slash + 1, 0, bits, &bits))
		return refuse(-EINVAL, error, error_size, "%s: the length is not 0 to %u", escaped, bits);
	prefix.bits = bits + (v6 ? 0 : PH_ADDRESS_V4_BITS);
	if (has_host_bits(&prefix))
		return refuse(-EINVAL, error, error_size, "%s has bits set behind the prefix", escaped);
	if (v6 && is_v4(&prefix))
		return refuse(-EINVAL, error, error_size, "%s is IPv4: write it as that", escaped);
	*ret_prefix = prefix;
	return 0;
}

const char *ph_prefix_text(char out[PH_PREFIX_TEXT_SIZE], const struct ph_prefix *prefix)
{
	char address[INET6_ADDRSTRLEN];
	bool v4 = is_v4(prefix);

	inet_ntop(v4 ? AF_INET : AF_INET6, &prefix->address.words[v4 ? 3 : 0], address, sizeof(address));
	snprintf(out, PH_PREFIX_TEXT_SIZE, "%s/%u", address, prefix->bits - (v4 ? PH_ADDRESS_V4_BITS : 0));
	return out;
}

int ph_prefix_compare(const void *a, const void *b)
{
	const struct ph_prefix *one = a, *other = b;
	int order = memcmp(&one->address, &other->address, sizeof(one->address));

	return order ? order : one->bits < other->bits ? -1 : one->bits > other->bits;
}

const char *ph_time_text(char out[PH_TIME_TEXT_SIZE], int64_t time_s)
{
	time_t when = (time_t)time_s;
	struct tm parts;

	if (!gmtime_r(&when, &parts) || !strftime(out, PH_TIME_TEXT_SIZE, "%Y-%m-%dT%H:%M:%SZ", &parts))
		snprintf(out, PH_TIME_TEXT_SIZE, "?");
	return out;
}

int ph_time_read(const char *text, int64_t *ret_time_s)
{
	char again[PH_TIME_TEXT_SIZE];
	struct tm parts = { 0 };
	const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%SZ", &parts);
	time_t when;

	if (!rest || *rest)
		return -EINVAL;
	when = timegm(&parts);
	if (when <= 0 || strcmp(ph_time_text(again, when), text))	/* February 30, or another spelling */
		return -EINVAL;
	*ret_time_s = when;
	return 0;
}

/* Takes the next word off *@at. Return: NULL when there is none. */
static char *take_word(char **at)
{
	char *word = *at + strspn(*at, BLANKS);

	if (!*word)
		return NULL;
	*at = word + strcspn(word, BLANKS);
	if (**at)
		*(*at)++ = '\0';
	return word;
}

/* RFC 3629, section 4. Return: bytes of the character that @text begins with, 0 when that is none. */
static size_t character_len(const char *text)
{
	const unsigned char *c = (const unsigned char *)text;
	size_t len = c[0] < 0x80 ? 1 : c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : c[0] < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < len; i++) {
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	}
	if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) || (c[0] == 0xf0 && c[1] < 0x90) ||
	    (c[0] == 0xf4 && c[1] > 0x8f))
		return 0;
	return len;
}

/* What stands behind the first '#', without blanks around it; nothing in it is more than a character. */
static const char *take_reason(char *line)
{
	char *hash = strchr(line, '#'), *end;

	if (!hash)
		return line + strlen(line);
	*hash++ = '\0';
	hash += strspn(hash, BLANKS);
	end = hash + strnlen(hash, PH_PREFIX_REASON_MAX);
	while (end > hash && strchr(BLANKS, end[-1]))
		end--;
	*end = '\0';
	for (char *c = hash; *c;) {
		size_t len = character_len(c);

		if (!len || (unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
		c += len ? len : 1;
	}
	return hash;
}

/* Return: 1 for a row, 0 for a line without one, or -EINVAL. */
static int read_line(char *line, struct ph_prefix_row *row, char *error, size_t error_size)
{
	char *prefix, *until, *when, *more;
	char escaped[96];
	int err;

	row->reason = take_reason(line);
	row->until_s = 0;
	prefix = take_word(&line);
	if (!prefix)
		return 0;
	err = ph_prefix_read(prefix, &row->prefix, error, error_size);
	if (err)
		return err;
	until = take_word(&line);
	if (!until)
		return 1;
	when = take_word(&line);
	more = take_word(&line);
	if (strcmp(until, UNTIL) || !when || more)
		return refuse(-EINVAL, error, error_size, "behind the prefix may stand 'until TIME' and '# why', not %s",
			      ph_log_escape(escaped, sizeof(escaped), until, strlen(until)));
	if (ph_time_read(when, &row->until_s))
		return refuse(-EINVAL, error, error_size, "%s is not a time such as 2026-11-30T12:00:00Z",
			      ph_log_escape(escaped, sizeof(escaped), when, strlen(when)));
	return 1;
}

static int read_all(FILE *file, char **ret_text, size_t *ret_len)
{
	char *text = NULL, *more;
	size_t len = 0, room = 0;

	while (!feof(file)) {
		if (len + 1 >= room) {
			room = room ? 2 * room : 65536;
			more = realloc(text, room);
			if (!more) {
				free(text);
				return -ENOMEM;
			}
			text = more;
		}
		len += fread(text + len, 1, room - len - 1, file);
		if (ferror(file)) {
			int err = -errno;

			free(text);
			return err;
		}
	}
	text[len] = '\0';
	*ret_text = text;
	*ret_len = len;
	return 0;
}

static int add_row(struct ph_prefix_list *list, const struct ph_prefix_row *row)
{
	struct ph_prefix_row *more;

	if (list->count == list->room) {
		list->room = list->room ? 2 * list->room : 64;
		more = reallocarray(list->rows, list->room, sizeof(*more));
		if (!more)
			return -ENOMEM;
		list->rows = more;
	}
	list->rows[list->count++] = *row;
	return 0;
}

/* Of equal ones the last: lines are in the order of their reasons' places in the text. */
static int compare_rows(const void *a, const void *b)
{
	const struct ph_prefix_row *one = a, *other = b;
	int order = ph_prefix_compare(&one->prefix, &other->prefix);

	return order ? order : one->reason < other->reason ? -1 : one->reason > other->reason;
}

static void sort(struct ph_prefix_list *list)
{
	size_t kept = 0;

	if (list->count)
		qsort(list->rows, list->count, sizeof(*list->rows), compare_rows);
	for (size_t i = 0; i < list->count; i++) {
		if (kept && !ph_prefix_compare(&list->rows[kept - 1].prefix, &list->rows[i].prefix))
			kept--;
		list->rows[kept++] = list->rows[i];
	}
	list->count = kept;
}

int ph_prefix_list_read(FILE *file, const char *path, size_t max, struct ph_prefix_list *ret_list, char *error,
			size_t error_size)
{
	struct ph_prefix_list list = { 0 };
	struct ph_prefix_row row;
	char why[256], *line, *next;
	unsigned number = 0;
	size_t len = 0;
	int err = read_all(file, &list.text, &len);

	if (err)
		return refuse(err, error, error_size, "%s: %s", path, strerror(-err));
	for (line = list.text; !err && line < list.text + len; line = next) {
		int found;

		number++;
		next = memchr(line, '\n', (size_t)(list.text + len - line));
		next = next ? next : list.text + len;
		*next++ = '\0';
		if (strlen(line) != (size_t)(next - 1 - line))
			err = refuse(-EINVAL, error, error_size, "%s:%u: a zero byte", path, number);
		found = err ? err : read_line(line, &row, why, sizeof(why));
		if (!err && found < 0)
			err = refuse(found, error, error_size, "%s:%u: %s", path, number, why);
		if (!err && found && list.count == max)
			err = refuse(-E2BIG, error, error_size, "%s:%u: more than %zu prefixes", path, number, max);
		if (!err && found && add_row(&list, &row))
			err = refuse(-ENOMEM, error, error_size, "out of memory");
	}
	if (err) {
		ph_prefix_list_free(&list);
		return err;
	}
	sort(&list);
	*ret_list = list;
	return 0;
}

void ph_prefix_row_write(const struct ph_prefix_row *row, FILE *file)
{
	char prefix[PH_PREFIX_TEXT_SIZE], until[PH_TIME_TEXT_SIZE];

	fputs(ph_prefix_text(prefix, &row->prefix), file);
	if (row->until_s)
		fprintf(file, " " UNTIL " %s", ph_time_text(until, row->until_s));
	if (row->reason[0])
		fprintf(file, " # %s", row->reason);
	fputc('\n', file);
}

int ph_prefix_list_write(const struct ph_prefix_list *list, FILE *file)
{
	for (size_t i = 0; i < list->count; i++)
		ph_prefix_row_write(&list->rows[i], file);
	return ferror(file) ? -EIO : 0;
}

void ph_prefix_list_free(struct ph_prefix_list *list)
{
	free(list->rows);
	free(list->text);
	memset(list, 0, sizeof(*list));
}

struct ph_prefix_row *ph_prefix_list_find(const struct ph_prefix_list *list, const struct ph_prefix *prefix)
{
	return list->count ? bsearch(prefix, list->rows, list->count, sizeof(*list->rows), ph_prefix_compare) : NULL;
}
