// SPDX-License-Identifier: Apache-2.0
#include "peers.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#define SCAN_NS 50000000U
#define TOLD_MAX 20

static volatile sig_atomic_t terminated;

static void terminate(int number)
{
	terminated = number;
}

_Noreturn void peers_fail(const struct peers *peers, const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", peers->who, what, strerror(errno));
	exit(1);
}

void peers_init(struct peers *peers, const char *who, uint32_t size, uint64_t patience_ns, uint64_t stall_ns,
		peer_owns owns)
{
	struct rlimit descriptors;

	*peers = (struct peers){ .who = who, .size = size, .patience_ns = patience_ns, .begun_ns = peer_now_ns() };
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, terminate);
	if (getrlimit(RLIMIT_NOFILE, &descriptors))
		peers_fail(peers, "RLIMIT_NOFILE");
	descriptors.rlim_cur = descriptors.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &descriptors))
		peers_fail(peers, "RLIMIT_NOFILE");
	peers->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	peers->all = calloc(size, sizeof(*peers->all));
	peers->free = calloc(size, sizeof(*peers->free));
	if (peers->epoll_fd < 0 || !peers->all || !peers->free)
		peers_fail(peers, "epoll");
	for (uint32_t i = size; i--;) {
		peers->all[i].fd = -1;
		peers->free[peers->free_count++] = i;
	}
	peer_init(peers->epoll_fd, stall_ns, owns);
}

struct peer *peers_take(struct peers *peers)
{
	if (!peers->free_count)
		return NULL;
	peers->opened++;
	return &peers->all[peers->free[--peers->free_count]];
}

void peers_over(struct peers *peers, struct peer *peer, enum peer_result result)
{
	uint64_t took_ns = peer_now_ns() - peer->begun_ns;

	peers->results[result]++;
	if (result == PEER_INTACT) {
		peers->digest += plan_digest(&peer->plan);
		peers->up += peer->plan.up;
		peers->down += peer->plan.down;
		if (took_ns > peers->longest_ns)
			peers->longest_ns = took_ns;
	}
	if (result >= PEER_ALERT && peers->told++ < TOLD_MAX)
		peer_describe(peer, result, peers->who);
	peer_close(peer);
	peers->free[peers->free_count++] = (uint32_t)(peer - peers->all);
}

void peers_turn(struct peers *peers, struct peer *peer, uint64_t now_ns)
{
	enum peer_result result = peer_turn(peer, now_ns);

	if (result != PEER_BUSY)
		peers_over(peers, peer, result);
}

static void report(const struct peers *peers, FILE *out)
{
	fprintf(out, "{\"opened\": %u, \"open\": %u", peers->opened, peers_open(peers));
	for (int i = PEER_INTACT; i < PEER_RESULTS; i++)
		fprintf(out, ", \"%s\": %" PRIu64, peer_result_word((enum peer_result)i), peers->results[i]);
	fprintf(out, ", \"digest\": \"%016" PRIx64 "\", \"up\": %" PRIu64 ", \"down\": %" PRIu64 ", \"seconds\": %.3f, "
		"\"longest\": %.3f}\n", peers->digest, peers->up, peers->down,
		(double)(peer_now_ns() - peers->begun_ns) / 1e9, (double)peers->longest_ns / 1e9);
	fflush(out);
}

void peers_report(const struct peers *peers)
{
	report(peers, stdout);
}

static _Noreturn void say_last_words(const struct peers *peers)
{
	fprintf(stderr, "%s: ", peers->who);
	report(peers, stderr);
	for (uint32_t i = 0, told = 0; i < peers->size && told < TOLD_MAX; i++) {
		if (peers->all[i].fd < 0)
			continue;
		peer_describe(&peers->all[i], PEER_BUSY, peers->who);
		told++;
	}
	exit(1);
}

bool peers_scan(struct peers *peers, uint64_t now_ns)
{
	if (terminated)
		say_last_words(peers);
	if (now_ns - peers->scanned_ns < SCAN_NS)
		return false;
	peers->scanned_ns = now_ns;
	for (uint32_t i = 0; i < peers->size; i++) {
		struct peer *peer = &peers->all[i];

		if (peer->fd < 0 || peer->silent)
			continue;
		if (peer->stalled && now_ns >= peer->resume_ns)
			peers_turn(peers, peer, now_ns);
		else if (!peer->stalled && now_ns > peer->moved_ns + peers->patience_ns)
			peers_over(peers, peer, peer->has_plan ? PEER_HUNG : PEER_EMPTY);
	}
	return true;
}
