// SPDX-License-Identifier: Apache-2.0
/*
 * listener and notify: sockets opened or handed over, and the word to systemd. In a network namespace of its own; needs
 * root for that.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "ktap.h"
#include "listener.h"
#include "notify.h"

static char error[512];

static struct ph_config *configure(uint32_t count, const char *const *addresses)
{
	struct ph_config *config = calloc(1, sizeof(*config));

	config->tunnel.mtu = 1420;
	for (uint32_t i = 0; i < count; i++) {
		struct sockaddr_in6 *v6 = (void *)&config->listen[i].address;
		struct sockaddr_in *v4 = (void *)&config->listen[i].address;

		if (inet_pton(AF_INET, addresses[i], &v4->sin_addr) == 1) {
			v4->sin_family = AF_INET;
			v4->sin_port = htons(4430);
			config->listen[i].address_len = sizeof(*v4);
		} else {
			inet_pton(AF_INET6, addresses[i], &v6->sin6_addr);
			v6->sin6_family = AF_INET6;
			v6->sin6_port = htons(4430);
			config->listen[i].address_len = sizeof(*v6);
		}
	}
	config->listen_count = count;
	return config;
}

static int option(int fd, int level, int name)
{
	socklen_t len = sizeof(int);
	int value = -1;

	return getsockopt(fd, level, name, &value, &len) ? -1 : value;
}

static int read_somaxconn(void)
{
	char text[16] = "";
	int fd = open("/proc/sys/net/core/somaxconn", O_RDONLY | O_CLOEXEC);

	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return atoi(text);
}

static void test_open(void)
{
	static const char *const both[] = { "0.0.0.0", "::" };
	static const char *const twice[] = { "127.0.0.1", "127.0.0.1" };
	static const char *const foreign[] = { "192.0.2.77" };
	struct ph_config *config = configure(2, both);
	int fds[PH_LISTEN_MAX], more[PH_LISTEN_MAX] = { -7 }, err;

	err = ph_listener_open(config, fds, error, sizeof(error));
	if (!ktap_ok(!err, "both families on the same port (%s)", err ? error : ""))
		return;
	ktap_ok(option(fds[0], SOL_SOCKET, SO_ACCEPTCONN) == 1 && option(fds[1], IPPROTO_IPV6, IPV6_V6ONLY) == 1 &&
			option(fds[0], SOL_SOCKET, SO_REUSEADDR) == 1,
		"listening, with the options");
	ktap_ok(option(fds[0], IPPROTO_TCP, TCP_DEFER_ACCEPT) == PH_DEFER_ACCEPT_S &&
			option(fds[1], IPPROTO_TCP, TCP_MAXSEG) == 1380,
		"deferred, with the tunnel's MSS");
	ktap_ok(fcntl(fds[0], F_GETFL) & O_NONBLOCK && fcntl(fds[0], F_GETFD) & FD_CLOEXEC,
		"not blocking, closed on exec");
	ktap_ok(read_somaxconn() == PH_LISTEN_BACKLOG, "somaxconn is raised");
	err = ph_listener_open(config, more, error, sizeof(error));
	ktap_ok(err == -EADDRINUSE && more[0] == -7 && strstr(error, "0.0.0.0:4430"),
		"in use: an error that says where (%s)", error);
	close(fds[0]);
	close(fds[1]);
	free(config);

	config = configure(2, twice);
	err = ph_listener_open(config, fds, error, sizeof(error));
	ktap_ok(err == -EADDRINUSE, "the same twice is an error");
	free(config);
	config = configure(1, twice);
	err = ph_listener_open(config, fds, error, sizeof(error));
	ktap_ok(!err, "and then the first was closed again");
	close(fds[0]);
	free(config);
	config = configure(1, foreign);
	err = ph_listener_open(config, fds, error, sizeof(error));
	ktap_ok(err == -EADDRNOTAVAIL && strstr(error, "192.0.2.77:4430"), "an address of nobody here is an error (%s)",
		error);
	free(config);
}

static int bound(const char *text, int type)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(4430) };
	int low = socket(AF_INET, type | SOCK_CLOEXEC, 0), fd = fcntl(low, F_DUPFD_CLOEXEC, 20);

	close(low);
	inet_pton(AF_INET, text, &at.sin_addr);
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)))
		printf("# bind: %m\n");
	return fd;
}

/* As systemd does it: at 3 and on, and named in the environment. Descriptors above are left alone. */
static void hand_over(const int *fds, int count, const char *pid)
{
	char text[16];

	for (int i = 0; i < count; i++) {
		dup3(fds[i], PH_NOTIFY_FIRST_FD + i, 0);
		close(fds[i]);
	}
	snprintf(text, sizeof(text), "%d", count);
	setenv("LISTEN_FDS", text, 1);
	snprintf(text, sizeof(text), "%d", getpid());
	setenv("LISTEN_PID", pid ? pid : text, 1);
}

static const struct {
	const char *name;
	const char *const handed[3];
	const char *word;			/* of the error; NULL: they are taken */
} handed[] = {
	{ "in another order", { "127.0.0.2", "127.0.0.1" }, NULL },
	{ "one that is not configured", { "127.0.0.1", "127.0.0.9" }, "127.0.0.9:4430" },
	{ "one that lacks", { "127.0.0.2" }, "127.0.0.1:4430" },
	{ "one too many", { "127.0.0.1", "127.0.0.2", "127.0.0.3" }, "127.0.0.3:4430" },
};

static void test_handed_over(void)
{
	static const char *const both[] = { "127.0.0.1", "127.0.0.2" };
	struct ph_config *config = configure(2, both);
	int fds[PH_LISTEN_MAX], one, err;

	/* 3 to 9 are for what is handed over. */
	for (int i = 3; i < 10; i++)
		dup3(STDOUT_FILENO, i, O_CLOEXEC);
	for (size_t row = 0; row < sizeof(handed) / sizeof(handed[0]); row++) {
		int sockets[3], count;

		for (count = 0; count < 3 && handed[row].handed[count]; count++)
			sockets[count] = bound(handed[row].handed[count], SOCK_STREAM);
		hand_over(sockets, count, NULL);
		err = ph_listener_open(config, fds, error, sizeof(error));
		if (handed[row].word) {
			ktap_ok(err == -EINVAL && strstr(error, handed[row].word), "handed over: %s: refused (%s)",
				handed[row].name, error);
			continue;
		}
		ktap_ok(!err && fds[0] == 4 && fds[1] == 3, "handed over: %s: taken, each in its place",
			handed[row].name);
		ktap_ok(option(4, SOL_SOCKET, SO_ACCEPTCONN) == 1 && option(4, IPPROTO_TCP, TCP_MAXSEG) == 1380 &&
				fcntl(4, F_GETFD) & FD_CLOEXEC && fcntl(4, F_GETFL) & O_NONBLOCK,
			"and prepared as if opened here");
		ktap_ok(!getenv("LISTEN_FDS") && !getenv("LISTEN_PID"), "and nobody else is told");
		close(3);
		close(4);
	}
	one = bound("127.0.0.1", SOCK_DGRAM);
	hand_over(&one, 1, NULL);
	err = ph_listener_open(config, fds, error, sizeof(error));
	ktap_ok(err == -EINVAL && strstr(error, "no TCP socket"), "a UDP socket is refused (%s)", error);
	one = bound("127.0.0.1", SOCK_STREAM);
	hand_over(&one, 1, "1");
	ktap_ok(!ph_notify_listen_fds() && fcntl(3, F_GETFD) == 0, "meant for another process: none is ours");
	close(3);
	setenv("LISTEN_FDS", "2x", 1);
	setenv("LISTEN_PID", "1", 1);
	ktap_ok(ph_notify_listen_fds() == -EINVAL, "a count that is no number is an error");
	free(config);
}

/* Clients that have sent something, so many: TCP_DEFER_ACCEPT hides others at first. */
static void test_turn_away(void)
{
	static const char *const here[] = { "127.0.0.1" };
	struct ph_config *config = configure(1, here);
	int fds[PH_LISTEN_MAX], clients[PH_ACCEPT_BATCH + 3], limit_fd, first, second;
	struct rlimit old, none = { 0 };
	char byte;

	if (ph_listener_open(config, fds, error, sizeof(error))) {
		ktap_ok(false, "turned away: %s", error);
		free(config);
		return;
	}
	for (int i = 0; i < PH_ACCEPT_BATCH + 3; i++) {
		clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(clients[i], (struct sockaddr *)&config->listen[0].address, config->listen[0].address_len) ||
		    send(clients[i], "x", 1, 0) != 1)
			printf("# client %d: %m\n", i);
	}
	getrlimit(RLIMIT_NOFILE, &old);
	limit_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);	/* the first descriptor that is free */
	close(limit_fd);
	none.rlim_cur = (rlim_t)limit_fd;
	none.rlim_max = old.rlim_max;
	setrlimit(RLIMIT_NOFILE, &none);
	first = ph_listener_turn_away(fds[0]);
	setrlimit(RLIMIT_NOFILE, &old);
	ktap_ok(first == -EMFILE, "turned away: without descriptors, nobody, and it is said");
	first = ph_listener_turn_away(fds[0]);
	second = ph_listener_turn_away(fds[0]);
	ktap_ok(first == PH_ACCEPT_BATCH && second == 3 && !ph_listener_turn_away(fds[0]),
		"turned away: a batch, then the rest, then nobody (%d, %d)", first, second);
	ktap_ok(recv(clients[0], &byte, 1, 0) == -1 && errno == ECONNRESET, "turned away: a client hears of it");
	for (int i = 0; i < PH_ACCEPT_BATCH + 3; i++)
		close(clients[i]);
	close(fds[0]);
	free(config);
}

static void test_control(void)
{
	char directory[] = "/tmp/phala-test-listener.XXXXXX", path[128];
	struct stat status = { 0 };
	int fd = -1, err;

	if (!mkdtemp(directory))
		return;
	snprintf(path, sizeof(path), "%s/control.sock", directory);
	err = ph_listener_open_control(path, &fd, error, sizeof(error));
	ktap_ok(!err && !stat(path, &status) && S_ISSOCK(status.st_mode) && (status.st_mode & 07777) == 0600,
		"the control socket is the owner's alone");
	close(fd);
	err = ph_listener_open_control(path, &fd, error, sizeof(error));
	ktap_ok(!err, "one that was left over is replaced");
	close(fd);
	unlink(path);
	rmdir(directory);
	err = ph_listener_open_control(path, &fd, error, sizeof(error));
	ktap_ok(err == -ENOENT && strstr(error, path), "where it cannot be made the error says where");
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	ktap_ok(ph_listener_open_control(path, &fd, error, sizeof(error)) == -ENAMETOOLONG,
		"a path too long is refused");
}

static void test_notify(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = offsetof(struct sockaddr_un, sun_path) + 1;
	char text[64] = "";

	unsetenv("NOTIFY_SOCKET");
	ktap_ok(!ph_notify("READY=1"), "without anybody to tell, nothing is told");
	len += snprintf(at.sun_path + 1, sizeof(at.sun_path) - 1, "phala-test-notify-%d", getpid());
	bind(fd, (struct sockaddr *)&at, len);
	at.sun_path[0] = '@';
	setenv("NOTIFY_SOCKET", at.sun_path, 1);
	ktap_ok(!ph_notify("READY=1") && recv(fd, text, sizeof(text) - 1, 0) == 7 && !strcmp(text, "READY=1"),
		"the word arrives, at an abstract name");
	while (!ph_notify("WATCHDOG=1"))
		;
	ktap_ok(ph_notify("WATCHDOG=1") == -EAGAIN, "nobody waits for a systemd that reads nothing");
	setenv("NOTIFY_SOCKET", "relative", 1);
	ktap_ok(ph_notify("READY=1") == -EINVAL, "a name of another form is refused");
	setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1);
	ktap_ok(ph_notify("READY=1") == -ENOENT, "an error is passed on");
	close(fd);
}

static void test_watchdog(void)
{
	static const struct {
		const char *usec;
		long pid;			/* added to this process's; LONG_MAX is none */
		uint32_t want;
		const char *name;
	} rows[] = {
		{ "60000000", 0, 60000, "a minute" },
		{ "60000000", LONG_MAX, 60000, "for whoever reads it" },
		{ "60000000", 1, 0, "for another process" },
		{ NULL, 0, 0, "not asked for" },
		{ "", 0, 0, "nothing" },
		{ "-1", 0, 0, "less than nothing" },
		{ "60s", 0, 0, "a unit" },
		{ "0", 0, 0, "none" },
		{ "18446744073709551615", 0, 0, "for ever" },
	};
	char pid[24];

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		unsetenv("WATCHDOG_USEC");
		unsetenv("WATCHDOG_PID");
		if (rows[i].usec)
			setenv("WATCHDOG_USEC", rows[i].usec, 1);
		snprintf(pid, sizeof(pid), "%ld", getpid() + (rows[i].pid == LONG_MAX ? 0 : rows[i].pid));
		if (rows[i].pid != LONG_MAX)
			setenv("WATCHDOG_PID", pid, 1);
		ktap_ok(ph_notify_watchdog_ms() == rows[i].want, "watchdog: %s", rows[i].name);
	}
}

static void bring_up_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (ioctl(fd, SIOCSIFFLAGS, &request))
		printf("# lo: %m\n");
	close(fd);
}

int main(void)
{
	ktap_header();
	test_notify();
	test_watchdog();
	test_control();
	if (geteuid() || unshare(CLONE_NEWNET)) {
		ktap_skip("listening sockets", "needs root, for a network namespace");
		return ktap_end();
	}
	bring_up_loopback();
	test_turn_away();
	test_open();
	test_handed_over();
	return ktap_end();
}
