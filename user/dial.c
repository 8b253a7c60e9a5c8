// SPDX-License-Identifier: Apache-2.0
/*
 * dial - connections to instances. See dial.h.
 */
#include "dial.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <phala/limits.h>

#include "log.h"

#define TW_REUSE_PATH "/proc/sys/net/ipv4/tcp_tw_reuse"

/* 2 is the kernel's default, and for loopback only; 0 and 1 are somebody's choice. */
void ph_dial_prepare_host(void)
{
	int fd = open(TW_REUSE_PATH, O_RDWR | O_CLOEXEC);
	char number = 0;

	if (fd < 0 || read(fd, &number, 1) != 1 || (number == '2' && pwrite(fd, "1\n", 2, 0) != 2))
		ph_log(PH_LOG_WARNING, "cannot set net.ipv4.tcp_tw_reuse to 1: %m");
	if (fd >= 0)
		close(fd);
}

static int set_option(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof(value)) ? -errno : 0;
}

/*
 * When is a peer gone, whose FIN or RST never came? Idle: a probe after PH_TCP_PROBE_AFTER_S, which one that has started
 * anew answers with a RST; one that answers nothing is given up after nine, four minutes in all. With bytes under way it is
 * retransmission that gives up (tcp_retries2, a quarter of an hour). TCP_USER_TIMEOUT would be quicker for both, but ends
 * connections of live peers too, whose window has been closed for as long: here a reader may stop for IdleTimeout.
 */
int ph_dial_prepare(int fd)
{
	int err;

	err = set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	if (!err)
		err = set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, PH_TCP_PROBE_AFTER_S);
	if (!err)
		err = set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, PH_TCP_PROBE_EVERY_S);
	if (!err)
		err = set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (!err)
		err = set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, PH_UNSENT_BYTES);
	return err;
}

int ph_dial(uint32_t ifindex, struct in_addr address, uint16_t port, int *ret_fd)
{
	static const struct linger at_once = { .l_onoff = 1 };
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr = address, .sin_port = htons(port) };
	int fd, err;

	if (!ifindex)
		return -ENODEV;
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	err = set_option(fd, SOL_SOCKET, SO_BINDTOIFINDEX, (int)ifindex);
	if (!err && setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)))
		err = -errno;
	if (!err)
		err = ph_dial_prepare(fd);
	if (!err && connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS)
		err = -errno;
	if (err) {
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

int ph_dial_result(int fd)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len))
		return -errno;
	return -error;
}

enum ph_reason ph_dial_reason(int error)
{
	switch (-error) {
	case ECONNREFUSED:
	case ECONNRESET:			/* accepted and reset before we looked */
		return PH_REASON_CVM_REFUSED;
	case ETIMEDOUT:
		return PH_REASON_CVM_TIMEOUT;
	case EMFILE:
	case ENFILE:
	case ENOBUFS:
	case ENOMEM:
	case ENOSPC:				/* fs.epoll.max_user_watches */
	case EADDRNOTAVAIL:			/* no source port left towards this instance and port */
	case EAGAIN:
		return PH_REASON_NO_MEMORY;
	default:
		return PH_REASON_CVM_UNREACHABLE;
	}
}
