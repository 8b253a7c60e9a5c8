/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer - one end of a planned connection, client's or server's, over a non-blocking socket.
 */
#ifndef TORTURE_PEER_H
#define TORTURE_PEER_H

#include "plan.h"

enum peer_result {
	PEER_BUSY,
	PEER_INTACT,			/* everything arrived, both ends have said so */
	PEER_RESET_PLANNED,		/* by us or by the other end, as planned */
	PEER_ENDED,			/* a silent one: closed or reset by the other side, which is right */
	PEER_EMPTY,			/* ended before a hello came */
	PEER_ALERT,			/* a TLS alert in place of the stream */
	PEER_REFUSED,			/* no connection was made */
	PEER_RESET,			/* reset, and nobody's plan says so */
	PEER_SHORT,			/* a FIN before the end of the stream */
	PEER_DIFFERENT,			/* other bytes than planned, or too many, or for somebody else */
	PEER_HUNG,
	PEER_RESULTS
};

struct peer {
	int fd;				/* -1: none */
	bool is_client;
	bool silent;			/* connects, and never says a word */
	bool connecting;
	bool has_plan;			/* a server's: once the hello is there */
	bool sent_fin, got_fin;
	bool stalled, has_stalled;
	uint32_t watched;		/* events that epoll knows of */
	struct plan_rules rules;
	struct plan plan;
	char label[PLAN_LABEL_SIZE];
	uint64_t send_from, read_from;	/* offsets into the pattern */
	uint32_t sent, got;		/* of the stream */
	uint8_t *head;			/* what comes before the stream, or NULL */
	uint32_t head_len, head_at;	/* client: bytes, bytes sent; server: bytes seen */
	bool awaits_answer;		/* to an SSLRequest */
	uint64_t moved_ns, resume_ns, begun_ns;
};

/* Is the hello for @label right at this server's end? Must not be NULL for a server. */
typedef bool (*peer_owns)(const struct peer *peer, const char *label);

void peer_init(int epoll_fd, uint64_t stall_ns, peer_owns owns);

/* @fd: connecting. Return: 0 or -errno. */
int peer_begin_client(struct peer *peer, int fd, const struct plan_rules *rules, uint32_t index, const char *name);
int peer_begin_silent(struct peer *peer, int fd);
int peer_begin_server(struct peer *peer, int fd);

/* When something happened, or nothing for a while. Not PEER_BUSY is the end; its socket is closed. */
enum peer_result peer_turn(struct peer *peer, uint64_t now_ns);

/* Gives it up. */
void peer_close(struct peer *peer);

uint64_t peer_now_ns(void);
const char *peer_result_word(enum peer_result result);

/* Says what it was, for people. */
void peer_describe(const struct peer *peer, enum peer_result result, const char *who);

#endif
