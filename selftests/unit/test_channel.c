// SPDX-License-Identifier: Apache-2.0
/* channel: messages and descriptors over a socket pair, and what a worker in the wrong hands could send. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "channel.h"
#include "ktap.h"

static int pair[2];

static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	if (!dir)
		return -1;
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static struct ph_message sample(void)
{
	struct ph_message message = {
		.type = PH_MESSAGE_END_INSTANCE,
		.worker = 3,
		.serial = 0x0123456789abcdefULL,
		.ref = { .slot = 7, .generation = 9 },
		.domain = 1,
		.count = 42,
		.text = "words",
	};

	return message;
}

static bool same_file(int a, int b)
{
	struct stat x, y;

	return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void test_whole(void)
{
	struct ph_message sent = sample(), got;
	int fds[PH_MESSAGE_FDS] = { -7, -7 };
	int given[PH_MESSAGE_FDS];
	int before = open_fds();

	memset(&got, 0xa5, sizeof(got));
	ktap_ok(ph_channel_receive(pair[0], &got, fds) == -EAGAIN && got.type == 0xa5a5a5a5 && fds[0] == -7,
		"an empty pair is EAGAIN and sets nothing");

	ktap_ok(!ph_channel_send(pair[1], &sent, NULL, 0) && !ph_channel_receive(pair[0], &got, fds) &&
		!memcmp(&got, &sent, sizeof(got)) && fds[0] == -1 && fds[1] == -1,
		"a message arrives as it was, without descriptors");
	ktap_ok(!ph_channel_send(pair[0], &sent, NULL, 0) && !ph_channel_receive(pair[1], &got, fds) &&
		!memcmp(&got, &sent, sizeof(got)), "and the other way");

	given[0] = open("/", O_PATH | O_CLOEXEC);
	given[1] = open("/proc", O_PATH | O_CLOEXEC);
	ktap_ok(!ph_channel_send(pair[1], &sent, given, 1) && !ph_channel_receive(pair[0], &got, fds) &&
		same_file(fds[0], given[0]) && fds[1] == -1, "one descriptor arrives");
	ktap_ok(fcntl(fds[0], F_GETFD) == FD_CLOEXEC, "it is closed on exec");
	close(fds[0]);
	ktap_ok(!ph_channel_send(pair[1], &sent, given, 2) && !ph_channel_receive(pair[0], &got, fds) &&
		same_file(fds[0], given[0]) && same_file(fds[1], given[1]), "two descriptors arrive in order");
	close(fds[0]);
	close(fds[1]);
	ktap_ok(ph_channel_send(pair[1], &sent, given, 3) == -EINVAL, "three descriptors are refused by the sender");
	close(given[0]);
	close(given[1]);
	ktap_ok(open_fds() == before, "no descriptor leaks");
}

/* Sends what no honest worker does. */
static int send_raw(const void *bytes, size_t len, int fd, unsigned fd_count)
{
	union {
		char space[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec data = { .iov_base = (void *)bytes, .iov_len = len };
	struct msghdr header = { .msg_iov = &data, .msg_iovlen = 1 };

	memset(&control, 0, sizeof(control));
	if (fd_count) {
		struct cmsghdr *rights;

		header.msg_control = control.space;
		header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		rights = CMSG_FIRSTHDR(&header);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		for (unsigned i = 0; i < fd_count; i++)
			memcpy(CMSG_DATA(rights) + i * sizeof(int), &fd, sizeof(int));
	}
	return sendmsg(pair[1], &header, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len ? 0 : -errno;
}

static const struct {
	const char *name;
	long extra;				/* bytes more than a message has */
	unsigned fd_count;
	bool endless;				/* text without a closing zero */
} hostile[] = {
	{ "one byte short", -1, 0, false },
	{ "one byte long", 1, 0, false },
	{ "one byte only", 1 - (long)sizeof(struct ph_message), 0, false },
	{ "four times as long, with descriptors", 3 * (long)sizeof(struct ph_message), 2, false },
	{ "short, with descriptors", -1, 2, false },
	{ "three descriptors", 0, 3, false },
	{ "eight descriptors", 0, 8, false },
	{ "text without an end", 0, 0, true },
	{ "text without an end, with a descriptor", 0, 1, true },
};

static void test_hostile(void)
{
	char bytes[4 * sizeof(struct ph_message)];
	struct ph_message sent = sample(), got;
	int fds[PH_MESSAGE_FDS];
	int before = open_fds();

	for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
		int err;

		memset(bytes, 'x', sizeof(bytes));
		memcpy(bytes, &sent, sizeof(sent));
		if (hostile[i].endless)
			memset(bytes + offsetof(struct ph_message, text), 'x', sizeof(sent.text));
		err = send_raw(bytes, sizeof(sent) + (size_t)hostile[i].extra, STDOUT_FILENO, hostile[i].fd_count);
		memset(&got, 0xa5, sizeof(got));
		fds[0] = fds[1] = -7;
		ktap_ok(!err && ph_channel_receive(pair[0], &got, fds) == -EPROTO && got.type == 0xa5a5a5a5 &&
			fds[0] == -7 && fds[1] == -7, "refused: %s", hostile[i].name);
	}
	ktap_ok(open_fds() == before, "refused messages leave no descriptor open");
	ktap_ok(!ph_channel_send(pair[1], &sent, NULL, 0) && !ph_channel_receive(pair[0], &got, fds) &&
		!memcmp(&got, &sent, sizeof(got)), "the next message is whole");
}

static void test_full_and_gone(void)
{
	struct ph_message sent = sample(), got;
	int fds[PH_MESSAGE_FDS];
	int queued = 0, err;

	while (!(err = ph_channel_send(pair[1], &sent, NULL, 0)) && queued < 1000000) {
		sent.serial++;
		queued++;
	}
	ktap_ok(err == -EAGAIN && queued > 0, "a full pair is EAGAIN (after %d messages)", queued);
	sent = sample();
	while (!ph_channel_receive(pair[0], &got, fds) && got.serial == sent.serial) {
		sent.serial++;
		queued--;
	}
	ktap_ok(!queued, "what was queued arrives in order, all of it");

	ph_channel_send(pair[1], &sent, NULL, 0);
	close(pair[1]);
	ktap_ok(!ph_channel_receive(pair[0], &got, fds), "what was sent before the far end closed still arrives");
	ktap_ok(ph_channel_receive(pair[0], &got, fds) == -EPIPE, "then the far end is gone");
	ktap_ok(ph_channel_send(pair[0], &sent, NULL, 0) == -EPIPE, "sending to nobody is EPIPE, no signal");
	close(pair[0]);
	ktap_ok(ph_channel_receive(pair[0], &got, fds) == -EBADF, "a closed descriptor is EBADF");
}

int main(void)
{
	ktap_header();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		ktap_ok(0, "a socket pair can be made: %m");
		return ktap_end();
	}
	test_whole();
	test_hostile();
	test_full_and_gone();
	return ktap_end();
}
