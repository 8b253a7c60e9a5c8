// SPDX-License-Identifier: Apache-2.0
/* log: what reaches standard error, and that a peer's text can neither end a line nor steer a terminal. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ktap.h"
#include "log.h"

static int pipe_fds[2];

/* What was written to standard error since the last call. */
static const char *logged(void)
{
	static char text[8192];
	ssize_t len = read(pipe_fds[0], text, sizeof(text) - 1);

	text[len > 0 ? len : 0] = '\0';
	return text;
}

static const struct {
	const char *name;
	const char *text;
	size_t len;
	size_t size;
	const char *want;
} escapes[] = {
	{ "plain text stays", "abc XYZ~", 8, 64, "abc XYZ~" },
	{ "empty text", "", 0, 64, "" },
	{ "newline, escape, delete", "a\n\033\177", 4, 64, "a\\x0a\\x1b\\x7f" },
	{ "zero byte inside", "a\0b", 3, 64, "a\\x00b" },
	{ "high bytes", "\x80\xff", 2, 64, "\\x80\\xff" },
	{ "backslash cannot pass for an escape", "\\x41", 4, 64, "\\x5cx41" },
	{ "quotes stay", "'\"", 2, 64, "'\"" },
	{ "cut to fit", "abcdef", 6, 4, "abc" },
	{ "an escape that just fits", "\n", 1, 5, "\\x0a" },
	{ "an escape is never cut", "\n", 1, 4, "" },
	{ "nothing plain follows a cut escape", "\nabc", 4, 4, "" },
	{ "room for the end only", "abc", 3, 1, "" },
};

static void test_escape(void)
{
	char out[64];

	for (size_t i = 0; i < sizeof(escapes) / sizeof(escapes[0]); i++) {
		const char *got;

		memset(out, '#', sizeof(out));
		got = ph_log_escape(out, escapes[i].size, escapes[i].text, escapes[i].len);
		ktap_ok(got == out && !strcmp(out, escapes[i].want), "escape: %s", escapes[i].name);
	}
	out[0] = '#';
	ktap_ok(ph_log_escape(out, 0, "abc", 3) == out && out[0] == '#', "escape: no room at all is left alone");
}

static void test_lines(void)
{
	char big[4096];
	const char *got;

	unsetenv("JOURNAL_STREAM");
	ph_log_init("worker 0", PH_LOG_INFO);

	ph_log(PH_LOG_INFO, "%d of %s", 3, "four");
	ktap_ok(!strcmp(logged(), "worker 0: 3 of four\n"), "a line names its role");
	ph_log(PH_LOG_ERROR, "broken");
	ktap_ok(!strcmp(logged(), "worker 0: error: broken\n"), "an error says so");
	ph_log(PH_LOG_WARNING, "odd");
	ktap_ok(!strcmp(logged(), "worker 0: warning: odd\n"), "a warning says so");
	ph_log(PH_LOG_DEBUG, "quiet");
	ktap_ok(!strcmp(logged(), ""), "what is below the level is not written");

	ph_log_init("worker 0", PH_LOG_DEBUG);
	ph_log(PH_LOG_DEBUG, "loud");
	ktap_ok(!strcmp(logged(), "worker 0: debug: loud\n"), "debug is written when asked for");

	ph_log(PH_LOG_INFO, "one\ntwo\033[2J\rthree");
	ktap_ok(!strcmp(logged(), "worker 0: one?two?[2J?three\n"), "a line is one line");

	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	ph_log(PH_LOG_INFO, "%s", big);
	got = logged();
	ktap_ok(strlen(got) == 1024 && !strcmp(got + 1020, "...\n"), "a long line is cut, and shows it");

	errno = ENOENT;
	ph_log(PH_LOG_INFO, "open: %m");
	ktap_ok(errno == ENOENT && !strcmp(logged(), "worker 0: open: No such file or directory\n"),
		"errno is there for %%m and is left alone");
}

static void test_journal(void)
{
	struct stat status;
	char variable[64];

	fstat(STDERR_FILENO, &status);
	snprintf(variable, sizeof(variable), "%llu:%llu", (unsigned long long)status.st_dev,
		 (unsigned long long)status.st_ino);
	setenv("JOURNAL_STREAM", variable, 1);
	ph_log_init("manager", PH_LOG_DEBUG);
	ph_log(PH_LOG_ERROR, "e");
	ph_log(PH_LOG_WARNING, "w");
	ph_log(PH_LOG_INFO, "i");
	ph_log(PH_LOG_DEBUG, "d");
	ktap_ok(!strcmp(logged(), "<3>manager: e\n<4>manager: w\n<6>manager: i\n<7>manager: d\n"),
		"lines to the journal carry their priority");

	snprintf(variable, sizeof(variable), "%llu:%llu", (unsigned long long)status.st_dev,
		 (unsigned long long)status.st_ino + 1);
	setenv("JOURNAL_STREAM", variable, 1);
	ph_log_init("manager", PH_LOG_INFO);
	ph_log(PH_LOG_INFO, "i");
	ktap_ok(!strcmp(logged(), "manager: i\n"), "standard error that was redirected is not the journal");

	setenv("JOURNAL_STREAM", "nonsense", 1);
	ph_log_init("manager", PH_LOG_INFO);
	ph_log(PH_LOG_INFO, "i");
	ktap_ok(!strcmp(logged(), "manager: i\n"), "a JOURNAL_STREAM that is none is ignored");
}

int main(void)
{
	int saved = dup(STDERR_FILENO);
	int status;

	ktap_header();
	if (saved < 0 || pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) || dup2(pipe_fds[1], STDERR_FILENO) < 0) {
		ktap_ok(0, "standard error can be redirected: %m");
		return ktap_end();
	}
	test_escape();
	test_lines();
	test_journal();
	dup2(saved, STDERR_FILENO);
	status = ktap_end();
	close(saved);
	return status;
}
