// SPDX-License-Identifier: Apache-2.0
/*
 * relay: bytes, ends and resets through a relay between two real TCP connections on loopback.
 *
 *   client --- gateway's client end | relay | gateway's CVM end --- CVM
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ktap.h"
#include "relay.h"

#define BYTES 3000000
#define PATIENCE_S 20

static struct ph_worker stats;
static uint8_t scratch[PH_PIPE_BYTES];
static struct ph_relay_means means = { .stats = &stats, .scratch = scratch, .scratch_size = sizeof(scratch) };

struct lab {
	int client, cvm;			/* the far ends */
	struct ph_end client_end, cvm_end;
	struct ph_relay relay;
	enum ph_progress progress;
	enum ph_reason reason;
};

/* One peer's doings: @send of it, then a FIN if it is to, while everything that comes is kept. */
struct peer {
	int fd;
	const uint8_t *send;
	size_t send_len, sent;
	bool fin_after, fin_sent;
	uint8_t *got;
	size_t got_len;
	bool got_fin, got_reset;
};

static uint8_t data[2][BYTES];
static uint8_t received[2][BYTES + 1];

static void tcp_pair(int *ret_near, int *ret_far)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*ret_far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || *ret_far < 0 || bind(listener, (struct sockaddr *)&address, len) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &len) ||
	    connect(*ret_far, (struct sockaddr *)&address, len)) {
		perror("loopback");
		exit(1);
	}
	*ret_near = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	close(listener);
}

static void set_up(struct lab *lab)
{
	memset(lab, 0, sizeof(*lab));
	tcp_pair(&lab->client_end.fd, &lab->client);
	tcp_pair(&lab->cvm_end.fd, &lab->cvm);
	ph_relay_init(&lab->relay);
}

/* Kernels would else take megabytes before a sender feels that nobody reads. */
static void set_up_small(struct lab *lab)
{
	const int small = 65536;

	set_up(lab);
	setsockopt(lab->cvm, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	setsockopt(lab->cvm_end.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	setsockopt(lab->client_end.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	setsockopt(lab->client, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void tear_down(struct lab *lab)
{
	ph_relay_close(&lab->relay, &means);
	close_fd(&lab->client_end.fd);
	close_fd(&lab->cvm_end.fd);
	close_fd(&lab->client);
	close_fd(&lab->cvm);
}

static void reset(int *fd)
{
	const struct linger at_once = { .l_onoff = 1 };

	setsockopt(*fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close_fd(fd);
}

/* As an edge-triggered watcher that is woken for every reason at once. */
static void run_once(struct lab *lab)
{
	lab->client_end.readable = lab->client_end.writable = true;
	lab->cvm_end.readable = lab->cvm_end.writable = true;
	lab->progress = ph_relay_run(&lab->relay, &lab->client_end, &lab->cvm_end, &means, &lab->reason);
	/* What the worker does: the descriptors are closed, which is the last FIN. */
	if (lab->progress == PH_PROGRESS_OVER && lab->reason == PH_REASON_CLOSED) {
		close_fd(&lab->client_end.fd);
		close_fd(&lab->cvm_end.fd);
	}
}

static void act(struct peer *peer)
{
	ssize_t done;

	if (peer->sent < peer->send_len) {
		done = send(peer->fd, peer->send + peer->sent, peer->send_len - peer->sent,
			    MSG_DONTWAIT | MSG_NOSIGNAL);
		if (done > 0)
			peer->sent += (size_t)done;
	} else if (peer->fin_after && !peer->fin_sent) {
		shutdown(peer->fd, SHUT_WR);
		peer->fin_sent = true;
	}
	if (peer->got_fin || peer->got_reset)
		return;
	done = recv(peer->fd, peer->got + peer->got_len, BYTES + 1 - peer->got_len, MSG_DONTWAIT);
	if (done > 0)
		peer->got_len += (size_t)done;
	else if (!done)
		peer->got_fin = true;
	else if (errno != EAGAIN)
		peer->got_reset = true;
}

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* Until @done says so, or the patience ends. */
static bool run(struct lab *lab, struct peer *client, struct peer *cvm,
		bool (*done)(const struct lab *lab, const struct peer *client, const struct peer *cvm))
{
	time_t until = now_s() + PATIENCE_S;

	while (now_s() < until) {
		if (lab->progress != PH_PROGRESS_OVER)
			run_once(lab);
		act(client);
		act(cvm);
		if (done(lab, client, cvm))
			return true;
	}
	return false;
}

static bool both_have_fin(const struct lab *lab, const struct peer *client, const struct peer *cvm)
{
	(void)lab;
	return client->got_fin && cvm->got_fin;
}

static bool cvm_has_all(const struct lab *lab, const struct peer *client, const struct peer *cvm)
{
	(void)lab;
	return cvm->got_len == client->send_len && cvm->got_fin;
}

static bool client_has_all(const struct lab *lab, const struct peer *client, const struct peer *cvm)
{
	(void)lab;
	return client->got_len == cvm->send_len && client->got_fin;
}

static bool cvm_got_all(const struct lab *lab, const struct peer *client, const struct peer *cvm)
{
	(void)lab;
	return cvm->got_len == client->send_len;
}

static bool is_over(const struct lab *lab, const struct peer *client, const struct peer *cvm)
{
	(void)client, (void)cvm;
	return lab->progress == PH_PROGRESS_OVER;
}

static struct peer peer(int which, int fd, size_t send_len, bool fin_after)
{
	return (struct peer){ .fd = fd, .send = data[which], .send_len = send_len, .fin_after = fin_after,
			      .got = received[which] };
}

static bool got_exactly(const struct peer *who, const struct peer *from)
{
	return who->got_len == from->send_len && !memcmp(who->got, from->send, from->send_len);
}

static void test_both_ways(const char *name)
{
	struct peer client, cvm;
	struct lab lab;
	bool done;

	set_up(&lab);
	memset(&stats, 0, sizeof(stats));
	client = peer(0, lab.client, BYTES, true);
	cvm = peer(1, lab.cvm, BYTES - 12345, true);
	done = run(&lab, &client, &cvm, both_have_fin);
	ktap_ok(done && got_exactly(&client, &cvm) && got_exactly(&cvm, &client),
		"%s: both streams whole, then a FIN", name);
	ktap_ok(lab.progress == PH_PROGRESS_OVER && lab.reason == PH_REASON_CLOSED, "%s: closed after both", name);
	ktap_ok(stats.bytes_from_clients == BYTES && stats.bytes_from_cvms == BYTES - 12345, "%s: bytes counted", name);
	tear_down(&lab);
}

static void test_client_ends_first(void)
{
	struct peer client, cvm;
	struct lab lab;
	bool done;

	set_up(&lab);
	client = peer(0, lab.client, 100000, true);
	cvm = peer(1, lab.cvm, 0, false);
	done = run(&lab, &client, &cvm, cvm_has_all);
	ktap_ok(done && got_exactly(&cvm, &client) && lab.progress != PH_PROGRESS_OVER && !client.got_fin,
		"half-close: the client's FIN reaches the CVM alone");
	cvm.send_len = 200000;
	cvm.fin_after = true;
	done = run(&lab, &client, &cvm, client_has_all);
	ktap_ok(done && got_exactly(&client, &cvm) && lab.reason == PH_REASON_CLOSED,
		"half-close: the CVM answers after it");
	tear_down(&lab);
}

static void test_cvm_ends_first(void)
{
	struct peer client, cvm;
	struct lab lab;
	bool done;

	set_up(&lab);
	client = peer(0, lab.client, 0, false);
	cvm = peer(1, lab.cvm, 100000, true);
	done = run(&lab, &client, &cvm, client_has_all);
	ktap_ok(done && got_exactly(&client, &cvm) && lab.progress != PH_PROGRESS_OVER && !cvm.got_fin,
		"half-close: the CVM's FIN reaches the client alone");
	client.send_len = 200000;
	client.fin_after = true;
	done = run(&lab, &client, &cvm, cvm_has_all);
	ktap_ok(done && got_exactly(&cvm, &client), "half-close: the client goes on after it");
	tear_down(&lab);
}

static void test_reset(bool by_client)
{
	struct peer client, cvm;
	struct lab lab;
	bool done;

	set_up(&lab);
	client = peer(0, lab.client, 1000, false);
	cvm = peer(1, lab.cvm, 1000, false);
	run_once(&lab);
	reset(by_client ? &lab.client : &lab.cvm);
	client.fd = lab.client;
	cvm.fd = lab.cvm;
	done = run(&lab, &client, &cvm, is_over);
	ktap_ok(done && lab.reason == (by_client ? PH_REASON_CLIENT_RESET : PH_REASON_CVM_RESET), "reset: by the %s",
		by_client ? "client" : "CVM");
	tear_down(&lab);
}

/* A reset while nothing can be written to it is noticed by reading, and the reverse. */
static void test_reset_against_the_stream(void)
{
	struct peer client, cvm;
	struct lab lab;
	bool done;

	set_up(&lab);
	client = peer(0, lab.client, 0, false);
	cvm = peer(1, lab.cvm, BYTES, false);
	run_once(&lab);
	act(&cvm);
	run_once(&lab);
	reset(&lab.client);
	client.fd = -1;
	done = run(&lab, &client, &cvm, is_over);
	ktap_ok(done && lab.reason == PH_REASON_CLIENT_RESET, "reset: by a client that the CVM is sending to");
	tear_down(&lab);
}

/* Writing to it tells that it is reset, and reading then looks like an end: the client must not take it for one. */
static void test_reset_while_writing(void)
{
	struct peer client, cvm;
	struct lab lab;
	bool done;

	set_up(&lab);
	client = peer(0, lab.client, BYTES, false);
	cvm = peer(1, lab.cvm, 0, false);
	run_once(&lab);
	act(&client);
	reset(&lab.cvm);
	cvm.fd = -1;
	done = run(&lab, &client, &cvm, is_over);
	act(&client);
	ktap_ok(done && lab.reason == PH_REASON_CVM_RESET && !client.got_fin,
		"reset: by a CVM that the client is sending to, which is no FIN to the client");
	tear_down(&lab);
}

/* Sends until nothing has moved for a while. Return: how much. */
static size_t send_until_blocked(struct lab *lab, struct peer *client)
{
	int still = 0;

	while (still < 250 && client->sent < client->send_len) {
		struct pollfd writable = { .fd = client->fd, .events = POLLOUT };
		ssize_t done;

		run_once(lab);
		poll(&writable, 1, 2);
		done = send(client->fd, client->send + client->sent, client->send_len - client->sent,
			    MSG_DONTWAIT | MSG_NOSIGNAL);
		if (done > 0)
			client->sent += (size_t)done;
		still = done > 0 ? 0 : still + 1;
	}
	return client->sent;
}

static void test_stopped_reader(void)
{
	struct peer client, cvm;
	struct lab lab;
	size_t sent;
	bool done;

	set_up_small(&lab);
	client = peer(0, lab.client, BYTES, true);
	cvm = peer(1, lab.cvm, 0, true);
	sent = send_until_blocked(&lab, &client);
	ktap_ok(sent < BYTES && lab.relay.to_cvm.in_pipe <= (means.pipes.wide_max ? PH_PIPE_WIDE_BYTES : PH_PIPE_BYTES),
		"stopped reader: the sender is stopped after %zu", sent);
	ktap_ok(lab.relay.to_cvm.pipe.in >= 0 && lab.relay.to_client.pipe.in < 0,
		"stopped reader: a pipe is held in that direction only");
	ktap_ok(lab.progress == PH_PROGRESS_WAIT && !lab.cvm_end.writable, "stopped reader: nothing to do but wait");
	done = run(&lab, &client, &cvm, both_have_fin);
	ktap_ok(done && got_exactly(&cvm, &client), "stopped reader: goes on, nothing lost");
	tear_down(&lab);
}

static void test_pipes(void)
{
	struct peer client, cvm;
	struct lab lab;
	unsigned spare;
	bool done, kept = false;
	int dirty;

	ph_pipes_close(&means.pipes);
	set_up(&lab);
	client = peer(0, lab.client, 1000, false);
	cvm = peer(1, lab.cvm, 0, false);
	done = run(&lab, &client, &cvm, cvm_got_all);
	ktap_ok(done && lab.relay.to_cvm.pipe.in < 0 && lab.relay.to_client.pipe.in < 0,
		"pipes: an idle connection holds none");
	spare = means.pipes.count;
	ktap_ok(spare == 1, "pipes: one served both directions");
	tear_down(&lab);

	/* Ended with something in it: such a pipe is nobody else's. */
	set_up_small(&lab);
	client = peer(0, lab.client, BYTES, false);
	send_until_blocked(&lab, &client);
	dirty = lab.relay.to_cvm.pipe.in;
	ktap_ok(lab.relay.to_cvm.in_pipe && dirty >= 0, "pipes: one is in use");
	tear_down(&lab);
	for (unsigned i = 0; i < means.pipes.count; i++)
		kept |= means.pipes.spare[i].in == dirty;
	ktap_ok(!kept && fcntl(dirty, F_GETFD) < 0, "pipes: what is not empty is not used again");
}

static void test_spare_pipes_bounded(void)
{
	struct ph_pipe pipes[PH_PIPES_SPARE + 4];
	int err = 0;

	ph_pipes_close(&means.pipes);
	for (unsigned i = 0; i < PH_PIPES_SPARE + 4; i++)
		err |= ph_pipes_take(&means.pipes, &pipes[i]);
	for (unsigned i = 0; i < PH_PIPES_SPARE + 4; i++)
		ph_pipes_give(&means.pipes, &pipes[i]);
	ktap_ok(!err && means.pipes.count == PH_PIPES_SPARE, "pipes: no more than %d at hand", PH_PIPES_SPARE);
}

static unsigned count_wide(const struct ph_pipe *pipes, unsigned count)
{
	unsigned wide = 0;

	for (unsigned i = 0; i < count; i++)
		wide += fcntl(pipes[i].in, F_GETPIPE_SZ) == PH_PIPE_WIDE_BYTES;
	return wide;
}

static void test_wide(void)
{
	struct ph_pipes few = { .count_max = 4, .wide_max = 2 };
	struct ph_pipe pipes[4];
	int err = 0;

	for (unsigned i = 0; i < 4; i++)
		err |= ph_pipes_take(&few, &pipes[i]);
	ktap_ok(!err && count_wide(pipes, 4) == 2 && few.wide == 2, "pipes: no more are wide than may be");
	ph_pipes_drop(&few, &pipes[0]);
	for (unsigned i = 1; i < 4; i++)
		ph_pipes_give(&few, &pipes[i]);
	ktap_ok(few.wide == 1 && few.count == 3 && count_wide(few.spare, few.count) == 1, "pipes: the others are at hand");
	err = ph_pipes_take(&few, &pipes[0]);
	ktap_ok(!err && few.wide == 2 && count_wide(pipes, 1) == 1, "pipes: one at hand is made wide when there is room again");
	ph_pipes_give(&few, &pipes[0]);
	ph_pipes_close(&few);
	ktap_ok(!few.wide && !few.count, "pipes: none is left");
	ph_pipes_init(&few, 1);
	ktap_ok(few.count_max == PH_PIPES_SPARE && few.wide_max == PH_PIPES_WIDE, "pipes: one worker has all that one may have");
	ph_pipes_init(&few, 64);
	ktap_ok(few.count_max * 64 == PH_PIPES_SPARE_ALL && few.wide_max * 64 == PH_PIPES_WIDE, "pipes: 64 have their share");
}

static void test_turn(void)
{
	uint64_t before, most = 0;
	struct lab lab;

	set_up(&lab);
	while (send(lab.client, data[0], BYTES, MSG_DONTWAIT) > 0)
		;
	/* There is more all the time: a turn that ended only for want of bytes would not end. */
	for (int i = 0; i < 10000 && lab.progress != PH_PROGRESS_AGAIN; i++) {
		before = stats.bytes_from_clients;
		run_once(&lab);
		if (stats.bytes_from_clients - before > most)
			most = stats.bytes_from_clients - before;
		recv(lab.cvm, received[0], BYTES, MSG_DONTWAIT);
		send(lab.client, data[0], BYTES, MSG_DONTWAIT);
	}
	ktap_ok(lab.progress == PH_PROGRESS_AGAIN && most < PH_TURN_ROUNDS * PH_PIPE_BYTES + PH_PIPE_WIDE_BYTES,
		"turn: a busy stream lets others have theirs, after %llu bytes at most", (unsigned long long)most);
	tear_down(&lab);
}

/* Not a descriptor left for a pipe. */
static void test_without_pipes(void)
{
	struct rlimit before, none;
	struct lab lab;
	struct peer client, cvm;
	bool done;

	ph_pipes_close(&means.pipes);
	set_up(&lab);
	getrlimit(RLIMIT_NOFILE, &before);
	none = before;
	none.rlim_cur = 3;
	setrlimit(RLIMIT_NOFILE, &none);
	client = peer(0, lab.client, BYTES, true);
	cvm = peer(1, lab.cvm, BYTES - 777, true);
	done = run(&lab, &client, &cvm, both_have_fin);
	setrlimit(RLIMIT_NOFILE, &before);
	ktap_ok(done && got_exactly(&client, &cvm) && got_exactly(&cvm, &client) && lab.reason == PH_REASON_CLOSED,
		"without pipes: both streams whole");
	ktap_ok(!means.pipes.count, "without pipes: there really was none");
	tear_down(&lab);

	set_up_small(&lab);
	setrlimit(RLIMIT_NOFILE, &none);
	client = peer(0, lab.client, BYTES, false);
	cvm = peer(1, lab.cvm, 0, false);
	send_until_blocked(&lab, &client);
	ktap_ok(lab.progress == PH_PROGRESS_WAIT && client.sent < BYTES,
		"without pipes: a stopped reader stops the sender");
	reset(&lab.cvm);
	cvm.fd = -1;
	done = run(&lab, &client, &cvm, is_over);
	setrlimit(RLIMIT_NOFILE, &before);
	ktap_ok(done && lab.reason == PH_REASON_CVM_RESET, "without pipes: a reset");
	tear_down(&lab);
}

int main(void)
{
	ktap_header();
	signal(SIGPIPE, SIG_IGN);		/* as in a worker: splice(2) has no MSG_NOSIGNAL */
	srandom(1);
	for (size_t i = 0; i < BYTES; i++) {
		data[0][i] = (uint8_t)random();
		data[1][i] = (uint8_t)random();
	}
	for (int wide = 0; wide < 2; wide++) {
		ph_pipes_init(&means.pipes, 1);
		if (!wide)
			means.pipes.wide_max = 0;
		test_both_ways(wide ? "splice, wide" : "splice");
		test_client_ends_first();
		test_cvm_ends_first();
		test_reset(true);
		test_reset(false);
		test_reset_against_the_stream();
		test_reset_while_writing();
		test_stopped_reader();
		test_pipes();
		test_spare_pipes_bounded();
		test_turn();
		test_without_pipes();
		ph_pipes_close(&means.pipes);
	}
	test_wide();
	return ktap_end();
}
