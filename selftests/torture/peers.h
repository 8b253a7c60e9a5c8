/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peers - all connections of a crowd or a host, and what became of them.
 *
 * At SIGTERM it says on standard error how far it has come and which are open, the first few, and ends the process.
 */
#ifndef TORTURE_PEERS_H
#define TORTURE_PEERS_H

#include "peer.h"

struct peers {
	const char *who;			/* in what is said for people */
	int epoll_fd;
	uint32_t size, opened, free_count;
	struct peer *all;			/* @size of them; fd is -1 where there is none */
	uint32_t *free;
	uint64_t results[PEER_RESULTS], digest, up, down;
	uint64_t patience_ns, begun_ns, scanned_ns, longest_ns;
	uint32_t told;
};

/* Up to @size at once; those that nothing comes of for @patience_ns have hung. The process ends if that can't be. */
void peers_init(struct peers *peers, const char *who, uint32_t size, uint64_t patience_ns, uint64_t stall_ns,
		peer_owns owns);

/* Return: one to begin, or NULL: there are @size. */
struct peer *peers_take(struct peers *peers);

static inline uint32_t peers_open(const struct peers *peers)
{
	return peers->size - peers->free_count;
}

/* As peer_turn(); what is over is counted. */
void peers_turn(struct peers *peers, struct peer *peer, uint64_t now_ns);
void peers_over(struct peers *peers, struct peer *peer, enum peer_result result);

/* Those that wait for a time, and those that nothing comes of, now and then. Return: whether it was time. */
bool peers_scan(struct peers *peers, uint64_t now_ns);

/* One line of JSON: how many ended how, and a digest that is the other end's too. */
void peers_report(const struct peers *peers);

/* Says what failed, and why by errno; ends the process. */
_Noreturn void peers_fail(const struct peers *peers, const char *what);

#endif
