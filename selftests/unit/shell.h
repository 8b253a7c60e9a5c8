/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shell - what other people's tools say about the kernel's state: the oracles of tests, and their stage hands.
 */
#ifndef SHELL_H
#define SHELL_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

/* Runs a command; its output, both streams and cut to fit, goes to @out. Return: its exit status, or -1. */
__attribute__((format(printf, 3, 4)))
static inline int shell_run(char *out, size_t out_size, const char *format, ...)
{
	char command[2048] = "exec 2>&1; ";
	size_t prefix = strlen(command), have = 0, got;
	char rest[512];
	va_list args;
	FILE *pipe;
	int status;

	va_start(args, format);
	vsnprintf(command + prefix, sizeof(command) - prefix, format, args);
	va_end(args);
	fflush(stdout);
	pipe = popen(command, "re");
	if (!pipe)
		return -1;
	while (have < out_size - 1 && (got = fread(out + have, 1, out_size - 1 - have, pipe)) > 0)
		have += got;
	out[have] = 0;
	while (fread(rest, 1, sizeof(rest), pipe) > 0)
		;
	status = pclose(pipe);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#endif
