// SPDX-License-Identifier: Apache-2.0
#include "peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench/stream.h"

#define ROUNDS 8			/* reads and writes of one peer, before others have their turn */
#define SSL_REQUEST_LEN 8
#define RECORD_HEADER_LEN 5
/* A reset may be lost, and nobody have anything to send any more. */
#define KEEPALIVE_AFTER_S 2
#define KEEPALIVE_TIMES 20

static const uint8_t ssl_request[SSL_REQUEST_LEN] = { 0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f };

static const char *const words[PEER_RESULTS] = { "busy", "intact", "reset-planned", "ended", "empty", "alert", "refused",
						 "reset", "short", "different", "hung" };

static uint8_t scratch[STREAM_CHUNK];
static uint64_t stall_ns;
static peer_owns owns;
static int epoll_fd;

void peer_init(int epoll, uint64_t stall, peer_owns is_owner)
{
	epoll_fd = epoll;
	stall_ns = stall;
	owns = is_owner;
	stream_init();
}

uint64_t peer_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

const char *peer_result_word(enum peer_result result)
{
	return words[result];
}

void peer_describe(const struct peer *peer, enum peer_result result, const char *who)
{
	struct sockaddr_in at = { 0 };
	socklen_t len = sizeof(at);
	uint64_t now_ns = peer_now_ns();

	if (peer->fd >= 0)
		peer->is_client ? getsockname(peer->fd, (struct sockaddr *)&at, &len)
				: getpeername(peer->fd, (struct sockaddr *)&at, &len);
	fprintf(stderr, "%s: %s: number %u of %s, port %u, hello %u, up %u, down %u, end %d, way %d, reset at %u%s; sent %u%s, "
			"got %u%s after %llu ms, the last move %llu ms ago\n",
		who, words[result], peer->plan.index, peer->label, ntohs(at.sin_port), peer->plan.hello_len, peer->plan.up,
		peer->plan.down, peer->plan.end, peer->plan.way, peer->plan.reset_at, peer->plan.stalls ? ", stalls" : "",
		peer->sent, peer->sent_fin ? " and FIN" : "", peer->got, peer->got_fin ? " and FIN" : "",
		(unsigned long long)(now_ns - peer->begun_ns) / 1000000, (unsigned long long)(now_ns - peer->moved_ns) / 1000000);
}

void peer_close(struct peer *peer)
{
	if (peer->fd >= 0)
		close(peer->fd);
	free(peer->head);
	peer->head = NULL;
	peer->fd = -1;
}

static int begin(struct peer *peer, int fd)
{
	const int on = 1, after = KEEPALIVE_AFTER_S, every = 1, times = KEEPALIVE_TIMES;
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.ptr = peer };

	peer->fd = fd;
	peer->watched = event.events;
	peer->begun_ns = peer->moved_ns = peer_now_ns();
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
	    (!peer->silent && (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) ||
			       setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &after, sizeof(after)) ||
			       setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof(every)) ||
			       setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times)))) ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
		return -errno;
	return 0;
}

static void take_plan(struct peer *peer, uint32_t index)
{
	plan_make(&peer->rules, index, &peer->plan);
	peer->send_from = plan_offset(&peer->rules, index, peer->label, peer->is_client);
	peer->read_from = plan_offset(&peer->rules, index, peer->label, !peer->is_client);
	peer->has_plan = true;
}

int peer_begin_client(struct peer *peer, int fd, const struct plan_rules *rules, uint32_t index, const char *name)
{
	size_t label_len = strcspn(name, "-.");
	uint8_t *at;

	*peer = (struct peer){ .fd = -1, .is_client = true, .connecting = true, .rules = *rules };
	snprintf(peer->label, sizeof(peer->label), "%.*s", (int)label_len, name);
	take_plan(peer, index);
	peer->head = at = malloc(SSL_REQUEST_LEN + PLAN_HELLO_MAX + PLAN_EARLY_MAX);
	if (!at)
		return -ENOMEM;
	if (peer->plan.way == PLAN_POSTGRES) {
		memcpy(at, ssl_request, SSL_REQUEST_LEN);
		at += SSL_REQUEST_LEN;
	}
	at += plan_hello(rules, &peer->plan, name, at);
	memcpy(at, stream_at(peer->send_from), peer->plan.early);
	at += peer->plan.early;
	peer->sent = peer->plan.early;
	peer->head_len = (uint32_t)(at - peer->head);
	return begin(peer, fd);
}

int peer_begin_silent(struct peer *peer, int fd)
{
	*peer = (struct peer){ .fd = -1, .is_client = true, .connecting = true, .silent = true };
	return begin(peer, fd);
}

int peer_begin_server(struct peer *peer, int fd)
{
	*peer = (struct peer){ .fd = -1 };
	peer->head = malloc(SSL_REQUEST_LEN + PLAN_HELLO_MAX);
	return peer->head ? begin(peer, fd) : -ENOMEM;
}

static uint32_t total(const struct peer *peer, bool sending)
{
	return peer->is_client == sending ? peer->plan.up : peer->plan.down;
}

static bool resets(const struct peer *peer, bool we)
{
	return peer->plan.end == (peer->is_client == we ? PLAN_CLIENT_RESETS : PLAN_SERVER_RESETS);
}

/* Return: what an error of the socket's means. */
static enum peer_result broken(const struct peer *peer)
{
	if (peer->silent)
		return PEER_ENDED;
	if (peer->connecting)
		return PEER_REFUSED;
	if (!peer->has_plan)
		return PEER_EMPTY;
	return resets(peer, false) ? PEER_RESET_PLANNED : PEER_RESET;
}

static bool is_alert(const struct peer *peer, const uint8_t *bytes, size_t len)
{
	return peer->is_client && !peer->got && len >= 7 && bytes[0] == 21 && bytes[1] == 3 && !bytes[3] && bytes[4] == 2;
}

/* Bytes of the stream. */
static enum peer_result take(struct peer *peer, const uint8_t *bytes, size_t len)
{
	if (is_alert(peer, bytes, len))
		return PEER_ALERT;
	if (len > total(peer, false) - peer->got || memcmp(bytes, stream_at(peer->read_from + peer->got), len))
		return PEER_DIFFERENT;
	peer->got += (uint32_t)len;
	return PEER_BUSY;
}

/* A server's first bytes. */
static enum peer_result take_head(struct peer *peer, const uint8_t *bytes, size_t len)
{
	size_t room, record_len, kept;
	uint32_t index;

	while (len) {
		room = SSL_REQUEST_LEN + PLAN_HELLO_MAX - peer->head_at;
		kept = len < room ? len : room;
		if (!kept)
			return PEER_DIFFERENT;
		/* No more than is missing: what follows the hello is the stream's. */
		if (peer->head_at < RECORD_HEADER_LEN && kept > RECORD_HEADER_LEN - peer->head_at)
			kept = RECORD_HEADER_LEN - peer->head_at;
		record_len = RECORD_HEADER_LEN;
		if (peer->head_at >= RECORD_HEADER_LEN) {
			record_len += peer->head[0] ? (size_t)peer->head[3] << 8 | peer->head[4] : SSL_REQUEST_LEN - RECORD_HEADER_LEN;
			if (kept > record_len - peer->head_at)
				kept = record_len - peer->head_at;
		}
		memcpy(peer->head + peer->head_at, bytes, kept);
		peer->head_at += (uint32_t)kept;
		bytes += kept;
		len -= kept;
		if (record_len == RECORD_HEADER_LEN || peer->head_at < record_len)
			continue;
		if (!memcmp(peer->head, ssl_request, SSL_REQUEST_LEN)) {
			if (send(peer->fd, "S", 1, MSG_NOSIGNAL) != 1)
				return PEER_EMPTY;
			peer->head_at = 0;
			continue;
		}
		if (plan_read(peer->head, peer->head_at, &peer->rules, &index, peer->label))
			return PEER_DIFFERENT;
		take_plan(peer, index);
		if (!owns(peer, peer->label))
			return PEER_DIFFERENT;
		free(peer->head);
		peer->head = NULL;
		return len ? take(peer, bytes, len) : PEER_BUSY;
	}
	return PEER_BUSY;
}

static enum peer_result take_answer(struct peer *peer, const uint8_t *bytes, size_t len)
{
	if (bytes[0] != 'S')
		return is_alert(peer, bytes, len) ? PEER_ALERT : PEER_DIFFERENT;
	peer->awaits_answer = false;
	return len > 1 ? PEER_DIFFERENT : PEER_BUSY;
}

static bool may_read(const struct peer *peer)
{
	return !peer->connecting && !peer->got_fin && !peer->stalled;
}

static enum peer_result do_read(struct peer *peer, bool *moved)
{
	ssize_t got = recv(peer->fd, scratch, sizeof(scratch), 0);

	if (got < 0)
		return errno == EAGAIN ? PEER_BUSY : broken(peer);
	*moved = true;
	if (!got) {
		peer->got_fin = true;
		if (peer->silent)
			return PEER_ENDED;
		if (!peer->has_plan)
			return PEER_EMPTY;
		return peer->got < total(peer, false) ? PEER_SHORT : PEER_BUSY;
	}
	if (peer->silent)
		return PEER_DIFFERENT;
	if (peer->awaits_answer)
		return take_answer(peer, scratch, (size_t)got);
	return peer->has_plan ? take(peer, scratch, (size_t)got) : take_head(peer, scratch, (size_t)got);
}

static bool may_send_stream(const struct peer *peer)
{
	return peer->got_fin || peer->plan.end != (peer->is_client ? PLAN_SERVER_FIRST : PLAN_CLIENT_FIRST);
}

static bool may_write(const struct peer *peer)
{
	if (peer->connecting)
		return true;
	if (!peer->has_plan || peer->awaits_answer)
		return false;
	if (peer->is_client && peer->head_at < peer->head_len)
		return true;
	return !peer->sent_fin && may_send_stream(peer);
}

/* The client's head goes out in packets as planned. */
static enum peer_result send_head(struct peer *peer, bool *moved)
{
	uint32_t before = peer->plan.way == PLAN_POSTGRES ? SSL_REQUEST_LEN : 0, to = peer->head_len;
	ssize_t sent;

	for (int i = PLAN_CUTS - 1; i >= 0; i--) {
		if (peer->plan.cuts[i] && before + peer->plan.cuts[i] > peer->head_at)
			to = before + peer->plan.cuts[i];
	}
	if (peer->head_at < before)
		to = before;
	sent = send(peer->fd, peer->head + peer->head_at, to - peer->head_at, MSG_NOSIGNAL);
	if (sent < 0)
		return errno == EAGAIN ? PEER_BUSY : broken(peer);
	*moved = true;
	peer->head_at += (uint32_t)sent;
	if (peer->head_at == before)
		peer->awaits_answer = true;
	if (peer->head_at == peer->head_len) {
		free(peer->head);
		peer->head = NULL;
		peer->head_len = peer->head_at = 0;
	}
	return PEER_BUSY;
}

static enum peer_result do_write(struct peer *peer, bool *moved)
{
	uint32_t left = total(peer, true) - peer->sent;
	socklen_t len = sizeof(int);
	int error = 0;
	ssize_t sent;

	if (peer->connecting) {
		if (getsockopt(peer->fd, SOL_SOCKET, SO_ERROR, &error, &len) || error)
			return PEER_REFUSED;
		peer->connecting = false;
		*moved = true;
		return PEER_BUSY;
	}
	if (peer->silent)
		return PEER_BUSY;
	if (peer->head)
		return send_head(peer, moved);
	if (!left) {
		if (shutdown(peer->fd, SHUT_WR))
			return broken(peer);
		peer->sent_fin = *moved = true;
		return PEER_BUSY;
	}
	/* A reset comes at its byte, not some buffer later. */
	if (resets(peer, true) && left > peer->plan.reset_at - peer->sent - peer->got)
		left = peer->plan.reset_at - peer->sent - peer->got;
	if (!left)
		return PEER_BUSY;
	sent = send(peer->fd, stream_at(peer->send_from + peer->sent), left < STREAM_CHUNK ? left : STREAM_CHUNK, MSG_NOSIGNAL);
	if (sent < 0)
		return errno == EAGAIN ? PEER_BUSY : broken(peer);
	*moved = true;
	peer->sent += (uint32_t)sent;
	return PEER_BUSY;
}

/* Our reset's time? Not before the hello is out: a client that never said anything is no test of anything. */
static bool reset_is_due(const struct peer *peer)
{
	return resets(peer, true) && peer->has_plan && !peer->connecting && !peer->head && !peer->awaits_answer &&
	       peer->sent + peer->got >= peer->plan.reset_at;
}

static void reset(struct peer *peer)
{
	const struct linger at_once = { .l_onoff = 1 };

	setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

static void stall(struct peer *peer, uint64_t now_ns)
{
	if (peer->stalled && now_ns >= peer->resume_ns)
		peer->stalled = false;
	if (!peer->is_client || !peer->plan.stalls || peer->has_stalled || peer->got < peer->plan.down / 4)
		return;
	peer->has_stalled = peer->stalled = true;
	peer->resume_ns = now_ns + stall_ns;
}

static enum peer_result watch(struct peer *peer)
{
	struct epoll_event event = { .data.ptr = peer };

	if (may_read(peer))
		event.events |= EPOLLIN;
	if (may_write(peer))
		event.events |= EPOLLOUT;
	if (peer->silent && !peer->connecting)
		event.events = EPOLLIN;
	if (event.events == peer->watched)
		return PEER_BUSY;
	peer->watched = event.events;
	return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, peer->fd, &event) ? PEER_HUNG : PEER_BUSY;
}

enum peer_result peer_turn(struct peer *peer, uint64_t now_ns)
{
	enum peer_result result = PEER_BUSY;
	bool moved = true;

	for (int i = 0; i < ROUNDS && moved && result == PEER_BUSY; i++) {
		moved = false;
		stall(peer, now_ns);
		if (reset_is_due(peer)) {
			reset(peer);
			result = PEER_RESET_PLANNED;
			break;
		}
		if (may_read(peer))
			result = do_read(peer, &moved);
		if (result == PEER_BUSY && !reset_is_due(peer) && may_write(peer))
			result = do_write(peer, &moved);
		if (moved)
			peer->moved_ns = now_ns;
		if (result == PEER_BUSY && peer->sent_fin && peer->got_fin)
			result = peer->plan.end < PLAN_CLIENT_RESETS ? PEER_INTACT : PEER_RESET_PLANNED;
	}
	return result == PEER_BUSY ? watch(peer) : result;
}
