// SPDX-License-Identifier: Apache-2.0
/*
 * serve PROCESSES - the CVM's side of the benchmarks, on the ports of stream.h.
 *
 * One listening socket a port and process, by SO_REUSEPORT. Prints "ready" once all listen; ends by a signal.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stream.h"

#define EVENTS 64
#define BACKLOG 65535
#define PROCESSES_MAX 64

static const uint16_t ports[] = { STREAM_SOURCE_PORT, STREAM_SINK_PORT, STREAM_ANSWER_PORT, STREAM_ASK_PORT };
#define PORTS (sizeof(ports) / sizeof(ports[0]))

enum state {
	LISTEN,
	HEAD,				/* reading it */
	SOURCE,				/* sending the pattern */
	SINK,				/* reading the pattern */
	COUNT,				/* sending @position, the last thing */
};

struct peer {
	enum state state;
	int fd;
	uint16_t port;
	uint32_t head_len, count_sent;
	uint64_t position;		/* bytes of the pattern, sent or read */
	uint8_t head[STREAM_HEAD_MAX];
};

static int epoll_fd;
static uint8_t scratch[STREAM_CHUNK];

static void fail(const char *what)
{
	fprintf(stderr, "serve: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void watch(struct peer *peer, int verb, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = peer };

	if (epoll_ctl(epoll_fd, verb, peer->fd, &event))
		fail("epoll_ctl");
}

static void hang_up(struct peer *peer)
{
	close(peer->fd);
	free(peer);
}

static void accept_all(const struct peer *listener)
{
	for (;;) {
		int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct peer *peer;

		if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED))
			return;
		if (fd < 0)
			fail("accept");
		peer = malloc(sizeof(*peer));
		if (!peer)
			fail("a connection");
		peer->state = HEAD;
		peer->fd = fd;
		peer->port = listener->port;
		peer->head_len = peer->count_sent = 0;
		peer->position = 0;
		watch(peer, EPOLL_CTL_ADD, EPOLLIN);
	}
}

static void send_count(struct peer *peer)
{
	ssize_t sent = send(peer->fd, (uint8_t *)&peer->position + peer->count_sent,
			    sizeof(peer->position) - peer->count_sent, MSG_NOSIGNAL);

	if (sent < 0 && errno == EAGAIN)
		return;
	if (sent > 0)
		peer->count_sent += (uint32_t)sent;
	if (sent < 0 || peer->count_sent == sizeof(peer->position))
		hang_up(peer);
}

static void begin_count(struct peer *peer)
{
	peer->state = COUNT;
	watch(peer, EPOLL_CTL_MOD, EPOLLOUT);
}

static void source(struct peer *peer, uint32_t events)
{
	ssize_t sent;

	if (events & EPOLLIN) {
		if (recv(peer->fd, scratch, sizeof(scratch), 0) < 0)
			hang_up(peer);
		else
			begin_count(peer);
		return;
	}
	sent = send(peer->fd, stream_at(peer->position), STREAM_CHUNK, MSG_NOSIGNAL);
	if (sent > 0)
		peer->position += (uint64_t)sent;
	else if (errno != EAGAIN)
		hang_up(peer);
}

/* Return: false when the stream is not what was sent. */
static bool take(struct peer *peer, const uint8_t *bytes, size_t len)
{
	if (!stream_matches(peer->position, bytes, len))
		return false;
	peer->position += len;
	return true;
}

static void sink(struct peer *peer)
{
	ssize_t got = stream_receive(peer->fd, peer->position, scratch);

	if (!got)
		begin_count(peer);
	else if (got > 0)
		peer->position += (uint64_t)got;
	else if (got != -EAGAIN)
		hang_up(peer);			/* the client misses the count */
}

/* An answer is small enough for the socket of a client that waits for it. */
static bool answer(struct peer *peer, size_t len)
{
	struct stream_answer answer = stream_answer_to(peer->head, len);

	peer->head_len = 0;
	return send(peer->fd, &answer, sizeof(answer), MSG_NOSIGNAL) == sizeof(answer);
}

static void obey(struct peer *peer, size_t len)
{
	size_t more = peer->head_len - len;

	switch (peer->port) {
	case STREAM_SOURCE_PORT:
		if (more) {			/* told to stop already */
			begin_count(peer);
			return;
		}
		peer->state = SOURCE;
		watch(peer, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
		return;
	case STREAM_SINK_PORT:
		peer->state = SINK;
		if (!more || take(peer, peer->head + len, more))
			return;
		break;
	case STREAM_ASK_PORT:
		if (!more && answer(peer, len))
			return;
		break;
	default:
		if (!more)
			answer(peer, len);
	}
	hang_up(peer);
}

static void read_head(struct peer *peer)
{
	ssize_t got = recv(peer->fd, peer->head + peer->head_len, sizeof(peer->head) - peer->head_len, 0);
	size_t len;

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		hang_up(peer);
		return;
	}
	peer->head_len += (uint32_t)got;
	len = stream_head_len(peer->head, peer->head_len);
	if (len > sizeof(peer->head))
		hang_up(peer);
	else if (peer->head_len > STREAM_RECORD_HEADER_LEN && peer->head_len >= len)
		obey(peer, len);
}

static void happened(struct peer *peer, uint32_t events)
{
	switch (peer->state) {
	case LISTEN:
		accept_all(peer);
		break;
	case HEAD:
		read_head(peer);
		break;
	case SOURCE:
		source(peer, events);
		break;
	case SINK:
		sink(peer);
		break;
	case COUNT:
		send_count(peer);
		break;
	}
}

static void listen_on(uint16_t port, struct peer *ret_listener)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	const int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, BACKLOG))
		fail("listen");
	ret_listener->state = LISTEN;
	ret_listener->fd = fd;
	ret_listener->port = port;
}

static void serve(struct peer listeners[PORTS])
{
	struct epoll_event events[EVENTS];

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		fail("epoll");
	for (size_t i = 0; i < PORTS; i++)
		watch(&listeners[i], EPOLL_CTL_ADD, EPOLLIN);
	for (;;) {
		int count = epoll_wait(epoll_fd, events, EVENTS, -1);

		if (count < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < count; i++)
			happened(events[i].data.ptr, events[i].events);
	}
}

int main(int argc, char **argv)
{
	struct rlimit descriptors;
	static struct peer listeners[PROCESSES_MAX][PORTS];
	int processes = argc == 2 ? atoi(argv[1]) : 0;

	if (processes < 1 || processes > PROCESSES_MAX) {
		fprintf(stderr, "usage: serve PROCESSES\n");
		return 2;
	}
	stream_init();
	if (getrlimit(RLIMIT_NOFILE, &descriptors))
		fail("RLIMIT_NOFILE");
	descriptors.rlim_cur = descriptors.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &descriptors))
		fail("RLIMIT_NOFILE");
	for (int i = 0; i < processes; i++) {
		for (size_t j = 0; j < PORTS; j++)
			listen_on(ports[j], &listeners[i][j]);
	}
	printf("ready\n");
	fflush(stdout);
	for (int i = 1; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			serve(listeners[i]);
		}
	}
	serve(listeners[0]);
}
