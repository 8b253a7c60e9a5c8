/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lacking - a kernel that lacks something of BPF, as far as one process can tell.
 */
#ifndef LACKING_H
#define LACKING_H

#include <errno.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Calls @load in a child in which bpf(@command) fails with @err, as it does in a kernel that lacks it. Return: whether it fails,
 * with @want somewhere in its one line of @error.
 */
static inline bool lacking_refused(int command, int err, int (*load)(void), const char *error, const char *want)
{
	struct scmp_arg_cmp is_command = { 0, SCMP_CMP_EQ, (scmp_datum_t)command, 0 };
	scmp_filter_ctx filter;
	int status = 1;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid > 0)
		return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
	filter = seccomp_init(SCMP_ACT_ALLOW);
	if (pid < 0 || !filter || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    seccomp_rule_add(filter, SCMP_ACT_ERRNO((uint32_t)err), SCMP_SYS(bpf), 1, is_command) ||
	    seccomp_load(filter))
		_exit(1);
	if (!load() || !strstr(error, want) || strchr(error, '\n')) {
		printf("# %s\n", error);
		fflush(stdout);
		_exit(1);
	}
	_exit(0);
}

#endif
