// SPDX-License-Identifier: Apache-2.0
#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static void tell_who(int fd, const char *path, char *error, size_t error_size)
{
	char text[16] = "";

	if (pread(fd, text, sizeof(text) - 1, 0) > 0)
		snprintf(error, error_size, "%s is locked: phalad runs already, as process %d", path, atoi(text));
	else
		snprintf(error, error_size, "%s is locked: phalad runs already", path);
}

static int write_pid(int fd)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d\n", getpid());

	return ftruncate(fd, 0) || pwrite(fd, text, len, 0) != len ? -errno : 0;
}

int ph_lock_take(const char *run_dir, int *ret_fd, char *error, size_t error_size)
{
	char path[PATH_MAX + 16];
	int fd = -1, err = 0;

	snprintf(path, sizeof(path), "%s", run_dir);
	if (!mkdir(run_dir, 0755) || errno == EEXIST) {
		snprintf(path, sizeof(path), "%s/phalad.lock", run_dir);
		/* Whoever can open it can lock it, also for reading only (flock(2)). What it leads to would be written to. */
		fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	}
	if (fd < 0 || fchmod(fd, 0600) || flock(fd, LOCK_EX | LOCK_NB))
		err = -errno;
	else
		err = write_pid(fd);
	if (err == -EWOULDBLOCK)
		tell_who(fd, path, error, error_size);
	else if (err)
		snprintf(error, error_size, "%s: %s", path, strerror(-err));
	if (!err)
		*ret_fd = fd;
	else if (fd >= 0)
		close(fd);
	return err;
}
