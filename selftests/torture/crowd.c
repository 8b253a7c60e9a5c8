// SPDX-License-Identifier: Apache-2.0
/*
 * crowd - clients of the torture: thousands of planned connections at once, in one thread.
 *
 *   crowd --to ADDRESS:PORT --names NAME,... --count N [--at-once N] [--first N] [--seed N] [--largest BYTES]
 *         [--relay PERMILLE] [--resets PERMILLE] [--stalls PERMILLE --stall SECONDS] [--sources ADDRESS-ADDRESS]
 *         [--patience SECONDS] [--gap MICROSECONDS] [--silent]
 *
 * Opens them as long as standard input is open and until there were so many, and prints one line of JSON when the last
 * is over: how many ended how, and a digest that host's must be equal to. What ended as it should not is described on
 * standard error, the first few. --silent ones connect and say nothing; they are given up when standard input ends.
 * --first numbers them from there on, --gap is between two.
 *
 * Exit status: 0 when it ran, whatever came of it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peers.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define AT_ONCE_MAX 20000
#define NAMES_MAX 256
#define EVENTS 256
#define OPEN_BURST 64

static struct options {
	struct sockaddr_in to;
	const char *names[NAMES_MAX];
	uint32_t name_count, count, at_once, first;
	struct plan_rules rules;
	uint64_t stall_ns, patience_ns, gap_ns;
	uint32_t source_first, source_last;	/* host order; 0: any */
	bool silent;
} options = {
	.at_once = 1000,
	.patience_ns = 60000000000U,
	.stall_ns = 5000000000U,
	.rules = { .seed = 1, .largest = 8 << 20 },
};

static struct peers peers;
static uint32_t connected;			/* those that ever were */

static void turn(struct peer *peer, uint64_t now_ns)
{
	bool was_connecting = peer->connecting;

	peers_turn(&peers, peer, now_ns);
	connected += was_connecting && !peer->connecting;
}

static void open_one(void)
{
	uint32_t number = peers.opened, index = options.first + number;
	struct sockaddr_in from = { .sin_family = AF_INET };
	struct peer *peer = peers_take(&peers);
	const int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), err;

	if (fd < 0)
		peers_fail(&peers, "socket");
	if (options.source_first) {
		from.sin_addr.s_addr = htonl(options.source_first +
					     number % (options.source_last - options.source_first + 1));
		if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) ||
		    bind(fd, (struct sockaddr *)&from, sizeof(from)))
			peers_fail(&peers, "bind");
	}
	if (connect(fd, (struct sockaddr *)&options.to, sizeof(options.to)) && errno != EINPROGRESS)
		peers_fail(&peers, "connect");
	err = options.silent ? peer_begin_silent(peer, fd)
			     : peer_begin_client(peer, fd, &options.rules, index, options.names[index % options.name_count]);
	if (err) {
		errno = -err;
		peers_fail(&peers, "a connection");
	}
}

static bool input_ended(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	char byte;

	return poll(&input, 1, 0) > 0 && read(0, &byte, 1) <= 0;
}

static void run(void)
{
	uint64_t now_ns = peer_now_ns(), next_ns = now_ns;
	struct epoll_event events[EVENTS];
	bool open = true, said = false;

	while ((open && peers.opened < options.count) || peers_open(&peers)) {
		for (int i = 0; open && i < OPEN_BURST && peers.free_count && peers.opened < options.count && now_ns >= next_ns; i++) {
			open_one();
			next_ns += options.gap_ns;
		}
		int count = epoll_wait(peers.epoll_fd, events, EVENTS, options.gap_ns && open ? 1 : 20);

		now_ns = peer_now_ns();
		if (count < 0 && errno != EINTR)
			peers_fail(&peers, "epoll_wait");
		for (int i = 0; i < count; i++) {
			struct peer *peer = events[i].data.ptr;

			if (peer->fd >= 0)
				turn(peer, now_ns);
		}
		if (!peers_scan(&peers, now_ns))
			continue;
		if (options.silent && !said && peers.opened == options.count &&
		    connected + peers.results[PEER_REFUSED] == peers.opened) {
			said = printf("{\"connected\": %u, \"open\": %u}\n", connected, peers_open(&peers));
			fflush(stdout);
		}
		if (open && input_ended()) {
			open = false;
			for (uint32_t i = 0; options.silent && i < peers.size; i++) {
				if (peers.all[i].fd >= 0)
					peers_over(&peers, &peers.all[i], peers.all[i].connecting ? PEER_REFUSED : PEER_BUSY);
			}
		}
	}
	peers_report(&peers);
}

static bool parse_to(char *text)
{
	char *colon = strchr(text, ':');

	if (!colon)
		return false;
	*colon = '\0';
	options.to.sin_family = AF_INET;
	options.to.sin_port = htons((uint16_t)atoi(colon + 1));
	return inet_pton(AF_INET, text, &options.to.sin_addr) == 1;
}

static bool parse_sources(char *text)
{
	char *dash = strchr(text, '-');
	struct in_addr first, last;

	if (!dash)
		return false;
	*dash = '\0';
	if (inet_pton(AF_INET, text, &first) != 1 || inet_pton(AF_INET, dash + 1, &last) != 1)
		return false;
	options.source_first = ntohl(first.s_addr);
	options.source_last = ntohl(last.s_addr);
	return options.source_last >= options.source_first;
}

static bool parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "to", 1, NULL, 't' }, { "names", 1, NULL, 'n' }, { "count", 1, NULL, 'c' }, { "at-once", 1, NULL, 'a' },
		{ "first", 1, NULL, 'f' }, { "seed", 1, NULL, 's' }, { "largest", 1, NULL, 'l' }, { "relay", 1, NULL, 'r' },
		{ "resets", 1, NULL, 'R' }, { "stalls", 1, NULL, 'S' }, { "stall", 1, NULL, 'T' },
		{ "sources", 1, NULL, 'o' }, { "patience", 1, NULL, 'p' }, { "gap", 1, NULL, 'g' },
		{ "silent", 0, NULL, 'q' }, { 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", longs, NULL)) > 0) {
		switch (option) {
		case 't':
			if (!parse_to(optarg))
				return false;
			break;
		case 'n':
			for (char *name = strtok(optarg, ","); name && options.name_count < NAMES_MAX; name = strtok(NULL, ","))
				options.names[options.name_count++] = name;
			break;
		case 'c':
			options.count = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'a':
			options.at_once = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'f':
			options.first = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 's':
			options.rules.seed = strtoull(optarg, NULL, 10);
			break;
		case 'l':
			options.rules.largest = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'r':
			options.rules.relay = (uint16_t)atoi(optarg);
			break;
		case 'R':
			options.rules.resets = (uint16_t)atoi(optarg);
			break;
		case 'S':
			options.rules.stalls = (uint16_t)atoi(optarg);
			break;
		case 'T':
			options.stall_ns = strtoull(optarg, NULL, 10) * 1000000000U;
			break;
		case 'o':
			if (!parse_sources(optarg))
				return false;
			break;
		case 'p':
			options.patience_ns = strtoull(optarg, NULL, 10) * 1000000000U;
			break;
		case 'g':
			options.gap_ns = strtoull(optarg, NULL, 10) * 1000U;
			break;
		case 'q':
			options.silent = true;
			break;
		default:
			return false;
		}
	}
	return optind == argc && options.to.sin_port && options.count && options.at_once && options.at_once <= AT_ONCE_MAX &&
	       (options.silent || options.name_count);
}

int main(int argc, char **argv)
{
	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: crowd --to ADDRESS:PORT --names NAME,... --count N ...; see crowd.c\n");
		return 2;
	}
	peers_init(&peers, "crowd", options.at_once, options.patience_ns, options.stall_ns, NULL);
	run();
	return 0;
}
