// SPDX-License-Identifier: Apache-2.0
/*
 * host - what crowd's connections end at: the server of one CVM, or of as many as there are addresses.
 *
 *   host --port PORT [--patience SECONDS] [--own LABEL,...]
 *
 * Prints "ready", and then answers lines on standard input:
 *
 *   assign ADDRESS LABEL	that address is its, and was since the release
 *   release ADDRESS		it is nobody's any more. What came before is dealt with first, and what is under way: prints
 *				how many connections to it stayed open, and ends them
 *   report			prints one line of JSON, as crowd does, and how many connections are open
 *
 * At the end of its input it waits for what is open, prints the report, and ends. With --own all addresses are those
 * labels'; without it an address is whose it was assigned to, and before that of whoever came first, who must be the one
 * that it is assigned to. A connection for somebody else is "different".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peers.h"

#define PEERS_MAX 19000
#define OWNERS_MAX 1024
#define LABELS_SIZE 256
#define EVENTS 256
#define BACKLOG 65535
#define RELEASE_NS 5000000000U		/* after which a reset is lost and not late */
#define RELEASE_POLL_MS 20

struct owner {
	struct in_addr address;
	char label[PLAN_LABEL_SIZE];	/* "" is yet to be known */
};

static struct owner owners[OWNERS_MAX];
static uint32_t owner_count;
static char own[LABELS_SIZE];
static struct peers peers;
static int listen_fd;

static struct in_addr local_address(int fd)
{
	struct sockaddr_in at = { 0 };
	socklen_t len = sizeof(at);

	getsockname(fd, (struct sockaddr *)&at, &len);
	return at.sin_addr;
}

/* Return: whose it is, or an empty place for it. */
static struct owner *owner_of(struct in_addr address)
{
	for (uint32_t i = 0; i < owner_count; i++) {
		if (owners[i].address.s_addr == address.s_addr)
			return &owners[i];
	}
	if (owner_count == OWNERS_MAX) {
		errno = ENOSPC;
		peers_fail(&peers, "addresses");
	}
	owners[owner_count].address = address;
	return &owners[owner_count++];
}

static void set_labels(char out[LABELS_SIZE], const char *labels)
{
	snprintf(out, LABELS_SIZE, ",%.*s,", LABELS_SIZE - 3, labels);
}

/* Return: false if it is somebody else's. */
static bool take_label(struct in_addr address, const char *label)
{
	struct owner *owner = owner_of(address);

	if (!owner->label[0])
		snprintf(owner->label, sizeof(owner->label), "%s", label);
	return !strcmp(owner->label, label);
}

static bool is_right(const struct peer *peer, const char *label)
{
	char word[PLAN_LABEL_SIZE + 2];

	if (!own[0])
		return take_label(local_address(peer->fd), label);
	snprintf(word, sizeof(word), ",%s,", label);
	return strstr(own, word) != NULL;
}

static void accept_all(uint64_t now_ns)
{
	while (peers.free_count) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct peer *peer;

		if (fd < 0 && errno == ECONNABORTED)
			continue;
		if (fd < 0 && errno == EAGAIN)
			return;
		if (fd < 0)
			peers_fail(&peers, "accept");
		peer = peers_take(&peers);
		if (peer_begin_server(peer, fd))
			peers_over(&peers, peer, PEER_EMPTY);
		else
			peers_turn(&peers, peer, now_ns);
	}
}

static void assign(struct in_addr address, const char *label)
{
	if (!take_label(address, label)) {
		fprintf(stderr, "host: %s is %s's, and somebody came for %s\n", inet_ntoa(address), label, owner_of(address)->label);
		peers.results[PEER_DIFFERENT]++;
	}
}

/* To the reset, which a tunnel may still have under way. */
static void turn_to_end(struct peer *peer, uint64_t until_ns)
{
	struct pollfd on = { .fd = peer->fd, .events = POLLIN };
	uint64_t now_ns;

	while (peer->fd >= 0 && (now_ns = peer_now_ns()) < until_ns) {
		poll(&on, 1, RELEASE_POLL_MS);
		peers_turn(&peers, peer, now_ns);
	}
}

/* Whatever has arrived by now is the former owner's. */
static void release(struct in_addr address)
{
	uint64_t now_ns = peer_now_ns();
	uint32_t open = 0;

	accept_all(now_ns);
	for (uint32_t i = 0; i < peers.size; i++) {
		struct peer *peer = &peers.all[i];

		if (peer->fd < 0 || local_address(peer->fd).s_addr != address.s_addr)
			continue;
		if (peer->has_plan)
			turn_to_end(peer, now_ns + RELEASE_NS);
		if (peer->fd < 0)
			continue;
		open += peer->has_plan;
		peers_over(&peers, peer, PEER_EMPTY);
	}
	owner_of(address)->label[0] = '\0';
	printf("%u\n", open);
	fflush(stdout);
}

/* Return: false at the end of the input. */
static bool obey(void)
{
	static char input[4096];
	static size_t len;
	ssize_t got = read(0, input + len, sizeof(input) - 1 - len);
	char *line = input, *end;

	if (got <= 0)
		return false;
	len += (size_t)got;
	input[len] = '\0';
	for (; (end = strchr(line, '\n')); line = end + 1) {
		char verb[16] = "", address[64] = "", label[PLAN_LABEL_SIZE] = "";
		struct in_addr at = { 0 };

		*end = '\0';
		sscanf(line, "%15s %63s %63s", verb, address, label);
		inet_pton(AF_INET, address, &at);
		if (!strcmp(verb, "assign"))
			assign(at, label);
		else if (!strcmp(verb, "release"))
			release(at);
		else
			peers_report(&peers);
	}
	len -= (size_t)(line - input);
	memmove(input, line, len);
	return true;
}

static void run(void)
{
	struct epoll_event events[EVENTS], input = { .events = EPOLLIN, .data.fd = 0 };
	uint64_t now_ns;
	bool ending = false;

	if (epoll_ctl(peers.epoll_fd, EPOLL_CTL_ADD, listen_fd, &(struct epoll_event){ .events = EPOLLIN, .data.ptr = &listen_fd }))
		peers_fail(&peers, "epoll");
	input.data.ptr = NULL;
	if (epoll_ctl(peers.epoll_fd, EPOLL_CTL_ADD, 0, &input))
		peers_fail(&peers, "standard input must be a pipe");
	while (!ending || peers_open(&peers)) {
		int count = epoll_wait(peers.epoll_fd, events, EVENTS, 100);

		if (count < 0 && errno != EINTR)
			peers_fail(&peers, "epoll_wait");
		now_ns = peer_now_ns();
		for (int i = 0; i < count; i++) {
			struct peer *peer = events[i].data.ptr;

			if (events[i].data.ptr == &listen_fd) {
				accept_all(now_ns);
			} else if (!peer) {
				if (obey())
					break;		/* an event may be of a connection that is no more */
				ending = true;
				epoll_ctl(peers.epoll_fd, EPOLL_CTL_DEL, 0, NULL);
				accept_all(now_ns);
			} else if (peer->fd >= 0) {
				peers_turn(&peers, peer, now_ns);
			}
		}
		peers_scan(&peers, now_ns);
	}
	peers_report(&peers);
}

static void listen_on(uint16_t port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	const int on = 1;

	listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listen_fd < 0 || setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(listen_fd, (struct sockaddr *)&at, sizeof(at)) || listen(listen_fd, BACKLOG))
		peers_fail(&peers, "listen");
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "port", 1, NULL, 'p' }, { "patience", 1, NULL, 't' }, { "own", 1, NULL, 'o' }, { 0 },
	};
	uint64_t patience_ns = 60000000000U;
	uint16_t port = 0;
	int option;

	while ((option = getopt_long(argc, argv, "", longs, NULL)) > 0) {
		if (option == 'p')
			port = (uint16_t)atoi(optarg);
		else if (option == 't')
			patience_ns = strtoull(optarg, NULL, 10) * 1000000000U;
		else if (option == 'o')
			set_labels(own, optarg);
		else
			return 2;
	}
	if (!port || optind != argc) {
		fprintf(stderr, "usage: host --port PORT [--patience SECONDS] [--own LABEL,...]\n");
		return 2;
	}
	peers_init(&peers, "host", PEERS_MAX, patience_ns, 0, is_right);
	listen_on(port);
	printf("ready\n");
	fflush(stdout);
	run();
	return 0;
}
