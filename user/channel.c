// SPDX-License-Identifier: Apache-2.0
/*
 * channel - fixed-size messages between manager and workers. See channel.h.
 *
 * A worker may be in an attacker's hands: whatever the manager receives is checked for its form here, and no descriptor
 * that comes with a refused message stays open.
 */
#include "channel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for exactly PH_MESSAGE_FDS; the kernel closes what does not fit and sets MSG_CTRUNC. */
union control {
	char space[CMSG_SPACE(PH_MESSAGE_FDS * sizeof(int))];
	struct cmsghdr align;
};

int ph_channel_send(int fd, const struct ph_message *message, const int *fds, unsigned fd_count)
{
	struct iovec data = { .iov_base = (void *)message, .iov_len = sizeof(*message) };
	struct msghdr header = { .msg_iov = &data, .msg_iovlen = 1 };
	union control control;
	struct cmsghdr *rights;
	ssize_t sent;

	if (fd_count > PH_MESSAGE_FDS || (fd_count && !fds))
		return -EINVAL;
	if (fd_count) {
		memset(&control, 0, sizeof(control));
		header.msg_control = control.space;
		header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		rights = CMSG_FIRSTHDR(&header);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
	}

	/* Without descriptors by send(2): workers are not allowed sendmsg(2), which could hand some to the manager. */
	do {
		sent = fd_count ? sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL)
				: send(fd, message, sizeof(*message), MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return -errno;
	return sent == sizeof(*message) ? 0 : -EPROTO;
}

/* Return: how many descriptors came; more than PH_MESSAGE_FDS never do. */
static unsigned take_fds(struct msghdr *header, int fds[PH_MESSAGE_FDS])
{
	struct cmsghdr *rights;
	unsigned taken = 0;

	for (rights = CMSG_FIRSTHDR(header); rights; rights = CMSG_NXTHDR(header, rights)) {
		unsigned count;

		if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
			continue;
		count = (unsigned)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (unsigned i = 0; i < count && taken < PH_MESSAGE_FDS; i++)
			memcpy(&fds[taken++], CMSG_DATA(rights) + i * sizeof(int), sizeof(int));
	}
	return taken;
}

int ph_channel_receive(int fd, struct ph_message *ret_message, int ret_fds[PH_MESSAGE_FDS])
{
	struct ph_message message;
	struct iovec data = { .iov_base = &message, .iov_len = sizeof(message) };
	union control control;
	struct msghdr header = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	int fds[PH_MESSAGE_FDS] = { -1, -1 };
	unsigned fd_count;
	ssize_t received;

	_Static_assert(PH_MESSAGE_FDS == 2, "fds needs as many -1");
	do {
		received = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (received < 0 && errno == EINTR);
	if (received < 0)
		return -errno;

	fd_count = take_fds(&header, fds);
	if (received != sizeof(message) || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
	    !memchr(message.text, 0, sizeof(message.text))) {
		for (unsigned i = 0; i < fd_count; i++)
			close(fds[i]);
		return received ? -EPROTO : -EPIPE;
	}
	*ret_message = message;
	memcpy(ret_fds, fds, sizeof(fds));
	return 0;
}
