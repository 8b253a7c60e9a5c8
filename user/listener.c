// SPDX-License-Identifier: Apache-2.0
#include "listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "notify.h"

#define SOMAXCONN_PATH "/proc/sys/net/core/somaxconn"
#define CONTROL_BACKLOG 64

/* "1.2.3.4:443", "[::]:443" */
static const char *address_text(const struct sockaddr_storage *address, char *out, size_t size)
{
	const struct sockaddr_in6 *v6 = (const void *)address;
	const struct sockaddr_in *v4 = (const void *)address;
	char host[INET6_ADDRSTRLEN] = "?";

	if (address->ss_family == AF_INET6) {
		inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
		snprintf(out, size, "[%s]:%u", host, ntohs(v6->sin6_port));
	} else {
		inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
		snprintf(out, size, "%s:%u", host, ntohs(v4->sin_port));
	}
	return out;
}

static bool is_same(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
	const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;
	const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;

	if (a->ss_family != b->ss_family)
		return false;
	if (a->ss_family == AF_INET6)
		return a6->sin6_port == b6->sin6_port && a6->sin6_scope_id == b6->sin6_scope_id &&
		       !memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof(a6->sin6_addr));
	return a4->sin_port == b4->sin_port && a4->sin_addr.s_addr == b4->sin_addr.s_addr;
}

static bool is_any6(const struct sockaddr_storage *address)
{
	return address->ss_family == AF_INET6 &&
	       IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

static void raise_somaxconn(void)
{
	char text[16] = "";
	int fd = open(SOMAXCONN_PATH, O_RDWR | O_CLOEXEC), len;

	if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && atoi(text) >= PH_LISTEN_BACKLOG) {
		close(fd);
		return;
	}
	len = snprintf(text, sizeof(text), "%d\n", PH_LISTEN_BACKLOG);
	if (fd < 0 || pwrite(fd, text, len, 0) != len)
		ph_log(PH_LOG_WARNING, "cannot raise net.core.somaxconn to %d: %m", PH_LISTEN_BACKLOG);
	if (fd >= 0)
		close(fd);
}

/* What both our own and systemd's sockets need. */
static int prepare(int fd, uint32_t tunnel_mtu)
{
	const int defer_s = PH_DEFER_ACCEPT_S, mss = (int)tunnel_mtu - PH_MSS_OVERHEAD;
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer_s, sizeof(defer_s)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, sizeof(mss)) || listen(fd, PH_LISTEN_BACKLOG))
		return -errno;
	return 0;
}

static int open_one(const struct ph_listen *at, int *ret_fd)
{
	const int on = 1;
	int fd = socket(at->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
	int err = 0;

	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    (at->address.ss_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on))) ||
	    bind(fd, (const struct sockaddr *)&at->address, at->address_len)) {
		err = -errno;
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

/* Finds @fd's place among the Listen addresses. Return: its index, or -errno with @error set. */
static int place_of(int fd, const struct ph_config *config, char *error, size_t error_size)
{
	struct sockaddr_storage address = { 0 };
	socklen_t len = sizeof(address), type_len = sizeof(int);
	char text[64];
	int type = 0, v6_only = 1;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) || type != SOCK_STREAM ||
	    getsockname(fd, (struct sockaddr *)&address, &len) ||
	    (address.ss_family != AF_INET && address.ss_family != AF_INET6)) {
		snprintf(error, error_size, "descriptor %d, handed over by LISTEN_FDS, is no TCP socket", fd);
		return -EINVAL;
	}
	/* IPv4 clients would come in by an address that the gate does not take for a listening one. */
	len = sizeof(v6_only);
	if (is_any6(&address) && !getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, &len) && !v6_only) {
		snprintf(error, error_size, "%s, handed over by LISTEN_FDS, takes IPv4 too: BindIPv6Only=ipv6-only is needed "
			 "(see phalad.socket)", address_text(&address, text, sizeof(text)));
		return -EINVAL;
	}
	for (uint32_t i = 0; i < config->listen_count; i++) {
		if (is_same(&address, &config->listen[i].address))
			return (int)i;
	}
	snprintf(error, error_size, "%s, handed over by LISTEN_FDS, is not among the Listen addresses",
		 address_text(&address, text, sizeof(text)));
	return -EINVAL;
}

/* @fds: -1 each; those that were handed over are put in their places, and all of them are taken or closed. */
static int take_over(const struct ph_config *config, int count, int fds[PH_LISTEN_MAX], char *error,
		     size_t error_size)
{
	char text[64];
	int err = 0;

	for (int fd = PH_NOTIFY_FIRST_FD; fd < PH_NOTIFY_FIRST_FD + count; fd++) {
		int place = err ? -1 : place_of(fd, config, error, error_size);

		if (place >= 0 && fds[place] < 0) {
			fds[place] = fd;
			continue;
		}
		if (place >= 0) {
			snprintf(error, error_size, "%s was handed over twice by LISTEN_FDS",
				 address_text(&config->listen[place].address, text, sizeof(text)));
			place = -EINVAL;
		}
		if (!err)
			err = place;
		close(fd);
	}
	for (uint32_t i = 0; !err && i < config->listen_count; i++) {
		if (fds[i] >= 0)
			continue;
		snprintf(error, error_size, "Listen = %s was not handed over by LISTEN_FDS (see phalad.socket)",
			 address_text(&config->listen[i].address, text, sizeof(text)));
		err = -EINVAL;
	}
	return err;
}

int ph_listener_open(const struct ph_config *config, int ret_fds[PH_LISTEN_MAX], char *error, size_t error_size)
{
	int handed_over = ph_notify_listen_fds(), err = 0;
	int fds[PH_LISTEN_MAX];
	char text[64];

	for (int i = 0; i < PH_LISTEN_MAX; i++)
		fds[i] = -1;
	if (handed_over < 0) {
		snprintf(error, error_size, "LISTEN_PID and LISTEN_FDS make no sense");
		return handed_over;
	}
	raise_somaxconn();
	if (handed_over)
		err = take_over(config, handed_over, fds, error, error_size);
	for (uint32_t i = 0; !err && i < config->listen_count; i++) {
		if (!handed_over)
			err = open_one(&config->listen[i], &fds[i]);
		if (!err)
			err = prepare(fds[i], config->tunnel.mtu);
		if (err)
			snprintf(error, error_size, "cannot listen on %s: %s",
				 address_text(&config->listen[i].address, text, sizeof(text)), strerror(-err));
	}
	for (uint32_t i = 0; i < config->listen_count; i++) {
		if (!err)
			ret_fds[i] = fds[i];
		else if (fds[i] >= 0)
			close(fds[i]);
	}
	return err;
}

int ph_listener_turn_away(int fd)
{
	int count = 0;

	for (int i = 0; i < PH_ACCEPT_BATCH; i++) {
		int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

		if (client >= 0) {
			close(client);
			count++;
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			return count ? count : -errno;
		} else if (errno == EAGAIN) {
			break;
		}
	}
	return count;
}

int ph_listener_open_control(const char *path, int *ret_fd, char *error, size_t error_size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = -1, err = 0;
	mode_t mask;

	if ((size_t)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path) >= sizeof(address.sun_path)) {
		snprintf(error, error_size, "%s: too long for a unix socket", path);
		return -ENAMETOOLONG;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mask = umask(0177);
	if (fd < 0 || (unlink(path) && errno != ENOENT) || bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, CONTROL_BACKLOG))
		err = -errno;
	umask(mask);
	if (err) {
		snprintf(error, error_size, "%s: %s", path, strerror(-err));
		if (fd >= 0)
			close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}
