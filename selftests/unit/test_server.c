// SPDX-License-Identifier: Apache-2.0
/* server: lines over a unix socket, in pieces, in heaps, too long, from too many, and from those who go away. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ktap.h"
#include "server.h"

static struct ph_events events;
static struct ph_server *server;
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static struct ph_client *later;			/* whose answer is held back */
static unsigned requests;
static int tick_fds[2];				/* makes a turn end when nothing else happens */

/* "echo X" is answered by X, "later" when the test says so, "long N" by N bytes in pieces. */
static void request(struct ph_client *client, const char *line, size_t len, void *arg)
{
	char text[64] = "";
	unsigned *left;

	(void)arg;
	requests++;
	memcpy(text, line, len < sizeof(text) ? len : sizeof(text) - 1);
	if (!strncmp(text, "echo ", 5)) {
		ph_client_send(client, line + 5, len - 5);
		ph_client_send(client, "\n", 1);
		ph_client_done(client);
	} else if (!strcmp(text, "later")) {
		later = client;
	} else if (!strncmp(text, "long ", 5)) {
		left = malloc(sizeof(*left));
		*left = atoi(text + 5);
		ph_client_more(client, left);
	} else {
		ph_client_send(client, "what?\n", 6);
		ph_client_done(client);
	}
}

static void too_long(struct ph_client *client, void *arg)
{
	(void)arg;
	ph_client_send(client, "too long\n", 9);
	ph_client_done(client);
}

static void more(struct ph_client *client, void *data, void *arg)
{
	static const char piece[10000] = { [0 ... 9999] = 'x' };
	unsigned *left = data, now = *left < sizeof(piece) ? *left : sizeof(piece);

	(void)arg;
	ph_client_send(client, piece, now);
	*left -= now;
	if (*left)
		return;
	ph_client_send(client, "\n", 1);
	ph_client_done(client);
}

static const struct ph_server_calls calls = { .request = request, .too_long = too_long, .more = more };

static void handle_tick(struct ph_source *source, uint32_t mask)
{
	char bytes[256];

	(void)source, (void)mask;
	if (read(tick_fds[0], bytes, sizeof(bytes)) < 0)
		return;
}

/* Lets the server do what there is to do. */
static void settle(void)
{
	for (int i = 0; i < 50; i++) {
		if (write(tick_fds[1], "", 1) != 1)
			abort();
		ph_events_turn(&events);
		ph_server_sweep(server);
	}
}

static int connect_client(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		return -1;
	}
	settle();
	return fd;
}

static void say(int fd, const char *text)
{
	if (send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
		printf("# cannot send\n");
	settle();
}

/* What has come, as text. */
static const char *hear(int fd)
{
	static char text[512];
	ssize_t got;

	settle();
	got = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);
	text[got > 0 ? got : 0] = 0;
	return text;
}

static bool is_closed(int fd)
{
	char byte;

	settle();
	return !recv(fd, &byte, 1, MSG_DONTWAIT);
}

static void test_lines(void)
{
	int fd = connect_client();

	say(fd, "echo one\n");
	ktap_ok(!strcmp(hear(fd), "one\n"), "a line is answered");
	say(fd, "echo t");
	ktap_ok(!strcmp(hear(fd), ""), "half a line is not");
	say(fd, "wo\n");
	ktap_ok(!strcmp(hear(fd), "two\n"), "its other half completes it");
	say(fd, "echo 3\necho 4\necho 5\nec");
	ktap_ok(!strcmp(hear(fd), "3\n4\n5\n"), "several at once are answered in order");
	say(fd, "ho 6\n");
	ktap_ok(!strcmp(hear(fd), "6\n"), "and so is what was begun behind them");
	say(fd, "\n");
	ktap_ok(!strcmp(hear(fd), "what?\n"), "an empty line is a line");
	say(fd, "echo last\n");
	shutdown(fd, SHUT_WR);
	ktap_ok(!strcmp(hear(fd), "last\n") && is_closed(fd), "who says no more is answered and then closed");
	close(fd);
	fd = connect_client();
	say(fd, "echo no newline");
	shutdown(fd, SHUT_WR);
	ktap_ok(is_closed(fd), "a line without its end is no request");
	close(fd);
}

static void test_later(void)
{
	int fd = connect_client(), other = connect_client();

	say(fd, "later\necho after\n");
	say(other, "echo meanwhile\n");
	ktap_ok(!strcmp(hear(other), "meanwhile\n"), "while one waits, another is served");
	ktap_ok(!strcmp(hear(fd), ""), "the next line waits for the answer");
	ph_client_send(later, "now\n", 4);
	ph_client_done(later);
	ktap_ok(!strcmp(hear(fd), "now\nafter\n"), "then both are answered, in order");

	say(fd, "later\n");
	shutdown(fd, SHUT_WR);
	settle();
	ph_client_send(later, "now\n", 4);
	ph_client_done(later);
	ktap_ok(!strcmp(hear(fd), "now\n") && is_closed(fd), "who closed one way is still answered");
	close(fd);

	later = NULL;
	say(other, "later\n");
	close(other);
	settle();
	ph_client_send(later, "now\n", 4);
	ph_client_done(later);
	settle();
	ktap_ok(later != NULL, "an answer to somebody who went away goes nowhere");
}

static void test_long(void)
{
	int fd = connect_client(), other = connect_client();
	const unsigned total = 5000000;
	unsigned got = 0, rounds = 0;
	static char bytes[65536];
	bool wrong = false;

	say(fd, "long 5000000\necho behind\n");
	say(other, "echo meanwhile\n");
	ktap_ok(!strcmp(hear(other), "meanwhile\n"), "a long answer that is not read stops nobody");
	while (got < total + 1 && rounds++ < 10000) {
		ssize_t now = recv(fd, bytes, got + sizeof(bytes) > total + 1 ? total + 1 - got : sizeof(bytes),
				   MSG_DONTWAIT);

		if (now <= 0) {
			settle();
			continue;
		}
		for (ssize_t i = 0; i < now; i++)
			wrong |= bytes[i] != (got + i == total ? '\n' : 'x');
		got += now;
	}
	ktap_ok(got == total + 1 && !wrong, "it comes whole (%u bytes)", got);
	ktap_ok(!strcmp(hear(fd), "behind\n"), "and the next request after it");
	say(fd, "long 5000000\n");
	close(fd);
	settle();
	say(other, "echo still\n");
	ktap_ok(!strcmp(hear(other), "still\n"), "who goes away in the middle of a long answer is forgotten");
	close(other);
}

static void test_bounds(void)
{
	static char line[PH_SERVER_LINE_MAX + 2];
	int fd = connect_client();
	size_t got = 0;
	ssize_t now;

	memset(line, 'y', sizeof(line));
	memcpy(line, "echo ", 5);
	line[PH_SERVER_LINE_MAX] = '\n';
	for (size_t at = 0; at < PH_SERVER_LINE_MAX + 1; at += now > 0 ? now : 0) {
		now = send(fd, line + at, PH_SERVER_LINE_MAX + 1 - at, MSG_NOSIGNAL);
		settle();
	}
	while ((now = recv(fd, line, sizeof(line), MSG_DONTWAIT)) > 0) {
		got += now;
		settle();
	}
	ktap_ok(got == PH_SERVER_LINE_MAX - 5 + 1, "a line of 64 KiB is a line");
	memset(line, 'y', sizeof(line));
	for (size_t at = 0; at < PH_SERVER_LINE_MAX + 1; at += now > 0 ? now : 0) {
		now = send(fd, line + at, PH_SERVER_LINE_MAX + 1 - at, MSG_NOSIGNAL);
		settle();
	}
	ktap_ok(!strcmp(hear(fd), "too long\n"), "a longer one is told so");
	ktap_ok(is_closed(fd), "and closed");
	close(fd);
}

static void test_crowd(void)
{
	int fds[PH_SERVER_CLIENTS_MAX + 8];
	unsigned served = 0;

	for (int i = 0; i < PH_SERVER_CLIENTS_MAX + 8; i++)
		fds[i] = connect_client();
	for (int i = 0; i < PH_SERVER_CLIENTS_MAX + 8; i++) {
		say(fds[i], "echo me\n");
		served += !strcmp(hear(fds[i]), "me\n");
	}
	ktap_ok(served == PH_SERVER_CLIENTS_MAX, "64 are served at a time (%u)", served);
	for (int i = 0; i < PH_SERVER_CLIENTS_MAX; i++)
		close(fds[i]);
	served = 0;
	for (int i = PH_SERVER_CLIENTS_MAX; i < PH_SERVER_CLIENTS_MAX + 8; i++) {
		served += !strcmp(hear(fds[i]), "me\n");
		close(fds[i]);
	}
	ktap_ok(served == 8, "the others once there is room (%u)", served);
}

static void test_stranger(void)
{
	unsigned before = requests;
	int status = -1;
	pid_t pid;

	if (geteuid()) {
		ktap_skip("who is neither root nor this process's user is refused", "needs root");
		return;
	}
	pid = fork();
	if (!pid) {
		struct pollfd poll_fd = { .events = POLLIN };
		char byte;

		if (setuid(65534))
			_exit(1);
		poll_fd.fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(poll_fd.fd, (struct sockaddr *)&address, sizeof(address)))
			_exit(2);
		if (send(poll_fd.fd, "echo me\n", 8, MSG_NOSIGNAL) < 0)
			_exit(0);
		poll(&poll_fd, 1, 10000);
		_exit(recv(poll_fd.fd, &byte, 1, MSG_DONTWAIT) > 0 ? 3 : 0);
	}
	for (int i = 0; i < 30000 && !waitpid(pid, &status, WNOHANG); i++) {
		settle();
		usleep(1000);
	}
	ktap_ok(WIFEXITED(status) && !WEXITSTATUS(status) && requests == before,
		"who is neither root nor this process's user is refused");
}

int main(void)
{
	struct ph_source tick = { .handle = handle_tick };
	int listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	ktap_header();
	/* An abstract name: open to all, so that the server has to judge. */
	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "phala-test-server-%d", getpid());
	if (ph_events_init(&events) || pipe2(tick_fds, O_CLOEXEC) || ph_events_add(&events, tick_fds[0], 1, &tick) ||
	    bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) || listen(listen_fd, 128) ||
	    ph_server_new(&events, listen_fd, &calls, NULL, &server)) {
		ktap_ok(0, "a server: %m");
		return ktap_end();
	}
	test_lines();
	test_later();
	test_long();
	test_bounds();
	test_crowd();
	test_stranger();
	later = NULL;
	say(connect_client(), "later\n");
	ktap_ok(later != NULL, "one waits");
	ph_server_free(server);
	return ktap_end();
}
