// SPDX-License-Identifier: Apache-2.0
#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Return: 0, or -EINVAL when @text is not a plain decimal number within int. */
static int parse_number(const char *text, long *ret_number)
{
	char *end;
	long number;

	errno = 0;
	number = strtol(text, &end, 10);
	if (errno || end == text || *end || number < 0 || number > INT_MAX)
		return -EINVAL;
	*ret_number = number;
	return 0;
}

int ph_notify_listen_fds(void)
{
	const char *pid_text = getenv("LISTEN_PID"), *count_text = getenv("LISTEN_FDS");
	long pid = 0, count = 0;
	int err = 0;

	if (!pid_text || !count_text)
		return 0;
	if (parse_number(pid_text, &pid) || parse_number(count_text, &count) || count > INT_MAX - PH_NOTIFY_FIRST_FD)
		err = -EINVAL;
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	if (err || pid != getpid())
		return err;
	for (int fd = PH_NOTIFY_FIRST_FD; fd < PH_NOTIFY_FIRST_FD + count; fd++) {
		if (fcntl(fd, F_SETFD, FD_CLOEXEC))
			return -EINVAL;
	}
	return (int)count;
}

uint32_t ph_notify_watchdog_ms(void)
{
	const char *pid_text = getenv("WATCHDOG_PID"), *text = getenv("WATCHDOG_USEC");
	char *end;
	unsigned long long usec;
	long pid;

	if (!text || *text < '0' || *text > '9' || (pid_text && (parse_number(pid_text, &pid) || pid != getpid())))
		return 0;
	errno = 0;
	usec = strtoull(text, &end, 10);
	if (errno || *end || usec / 1000 > INT_MAX)
		return 0;
	return (uint32_t)(usec / 1000);
}

int ph_notify(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t len = path ? strlen(path) : 0;
	int fd, err = 0;

	if (!len)
		return 0;
	if ((path[0] != '/' && path[0] != '@') || len >= sizeof(address.sun_path))
		return -EINVAL;
	memcpy(address.sun_path, path, len);
	if (path[0] == '@')
		address.sun_path[0] = 0;		/* an abstract name */
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (sendto(fd, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&address,
		   offsetof(struct sockaddr_un, sun_path) + len) < 0)
		err = -errno;
	close(fd);
	return err;
}
