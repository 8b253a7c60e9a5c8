// SPDX-License-Identifier: Apache-2.0
/*
 * log - one line on standard error. See log.h.
 *
 * A line is one write(2), so that lines of several processes never mix, and it is one line whatever is in it: bytes
 * that could end it or steer a terminal are replaced. Losing a line is better than stopping a worker: errors of the
 * write are ignored.
 */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_SIZE 1024				/* bytes of a line with its newline; longer ones are cut */
#define CUT_MARK "..."

static struct {
	const char *role;
	enum ph_log_level most;
	bool journal;
} log_state = { .role = "phalad", .most = PH_LOG_INFO };

/*
 * Is standard error really the journal's stream? systemd.exec(5): the variable is inherited by children whose standard
 * error has been redirected, so the device and inode numbers in it count and not its presence.
 */
static bool is_journal(void)
{
	const char *variable = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat status;
	int used = 0;

	if (!variable || sscanf(variable, "%llu:%llu%n", &device, &inode, &used) != 2 || variable[used])
		return false;
	return !fstat(STDERR_FILENO, &status) && status.st_dev == device && status.st_ino == inode;
}

void ph_log_init(const char *role, enum ph_log_level most)
{
	log_state.role = role;
	log_state.most = most;
	log_state.journal = is_journal();
}

static const char *level_word(enum ph_log_level level)
{
	switch (level) {
	case PH_LOG_ERROR:
		return "error: ";
	case PH_LOG_WARNING:
		return "warning: ";
	case PH_LOG_DEBUG:
		return "debug: ";
	case PH_LOG_INFO:
		break;
	}
	return "";
}

void ph_log(enum ph_log_level level, const char *format, ...)
{
	int saved_errno = errno;
	char line[LINE_SIZE];
	size_t start, len;
	va_list args;

	if (level > log_state.most)
		return;
	if (log_state.journal)
		len = (size_t)snprintf(line, sizeof(line), "<%d>%s: ", level, log_state.role);
	else
		len = (size_t)snprintf(line, sizeof(line), "%s: %s", log_state.role, level_word(level));
	if (len > sizeof(line) / 2)
		len = sizeof(line) / 2;
	start = len;

	errno = saved_errno;			/* for %m */
	va_start(args, format);
	len += (size_t)vsnprintf(line + len, sizeof(line) - len, format, args);
	va_end(args);
	if (len > sizeof(line) - 1) {
		len = sizeof(line) - 1;
		memcpy(line + len - strlen(CUT_MARK), CUT_MARK, strlen(CUT_MARK));
	}
	for (size_t i = start; i < len; i++) {
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	}
	line[len++] = '\n';

	while (write(STDERR_FILENO, line, len) < 0 && errno == EINTR)
		;
	errno = saved_errno;
}

const char *ph_log_escape(char *out, size_t out_size, const char *text, size_t text_len)
{
	static const char digits[] = "0123456789abcdef";
	size_t at = 0;

	if (!out_size)
		return out;
	for (size_t i = 0; i < text_len; i++) {
		uint8_t byte = (uint8_t)text[i];
		bool plain = byte >= ' ' && byte < 0x7f && byte != '\\';

		if (at + (plain ? 1 : 4) >= out_size)
			break;
		if (plain) {
			out[at++] = (char)byte;
			continue;
		}
		out[at++] = '\\';
		out[at++] = 'x';
		out[at++] = digits[byte >> 4];
		out[at++] = digits[byte & 15];
	}
	out[at] = '\0';
	return out;
}
