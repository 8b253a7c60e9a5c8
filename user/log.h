/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log - one line on standard error, with the priority in the way of systemd (sd-daemon(3)).
 *
 * No secret is ever logged; text that came from a peer goes through ph_log_escape().
 */
#ifndef PHALAD_LOG_H
#define PHALAD_LOG_H

#include <stddef.h>

enum ph_log_level {
	PH_LOG_ERROR = 3,
	PH_LOG_WARNING = 4,
	PH_LOG_INFO = 6,
	PH_LOG_DEBUG = 7,
};

/*
 * @role: "holder", "manager", "worker 0"; kept, not copied. Under systemd (standard error is JOURNAL_STREAM) lines get
 * "<3>" etc. errno is left as it is, and %m works.
 */
void ph_log_init(const char *role, enum ph_log_level most);
void ph_log(enum ph_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Copies @text with the backslash and all but printable ASCII as \xNN, cut to fit. Return: @out. */
const char *ph_log_escape(char *out, size_t out_size, const char *text, size_t text_len);

#endif
