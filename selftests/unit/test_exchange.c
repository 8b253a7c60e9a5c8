// SPDX-License-Identifier: Apache-2.0
/*
 * exchange: plaintext between a TLS client and a plain CVM, and how each way of ending is passed on.
 *
 *   client === gateway's client end | exchange | gateway's CVM end --- CVM
 */
#include <errno.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <time.h>

#include "exchange.h"
#include "h2.h"
#include "ktap.h"
#include "tickets.h"
#include "tls_lab.h"
#include "tls_raw.h"

#define DOMAIN "example.test"
#define NAME "app-8080." DOMAIN
#define BYTES 2000000
#define PATIENCE_S 20

static const struct ph_tickets tickets;
static const struct ph_tls_terms terms = { .name = NAME };
static struct ph_tls *tls;
static struct ph_worker stats;
static uint8_t scratch[PH_PIPE_BYTES];
static struct ph_relay_means means = { .stats = &stats, .scratch = scratch, .scratch_size = sizeof(scratch) };

/* One side's doings: @send of it, then the end of its stream if it is to, while what comes is kept. */
struct peer {
	const uint8_t *send;
	size_t send_len, sent;
	bool end_after, end_sent;
	uint8_t *got;
	size_t got_len;
	bool got_end;				/* close_notify, or FIN */
	bool got_fin;				/* the client: TCP's, behind close_notify */
	bool got_error;
};

struct lab {
	SSL *client;
	int cvm;
	struct ph_end client_end, cvm_end;
	struct ph_exchange exchange;
	enum ph_progress progress;
	enum ph_reason reason;
	struct peer c, v;			/* the client's and the CVM's doings */
};

static uint8_t data[2][BYTES];
static uint8_t received[2][BYTES + 1];

static void set_up_as(struct lab *lab, SSL_CTX *context, int buffer_bytes, const struct ph_tls_terms *as)
{
	struct ph_tls_session *session;
	int far, client;

	memset(lab, 0, sizeof(*lab));
	lab_tcp_pair(&lab->client_end.fd, &far);
	lab_tcp_pair(&lab->cvm_end.fd, &lab->cvm);
	if (buffer_bytes) {
		const int fds[] = { lab->client_end.fd, far, lab->cvm_end.fd, lab->cvm };

		for (int i = 0; i < 4; i++) {
			setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof(buffer_bytes));
			setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
		}
	}
	lab->client = lab_connect(context, far, NAME);
	if (ph_tls_session_new(tls, lab->client_end.fd, as, &session) ||
	    lab_handshake(session, lab->client, &client) != PH_TLS_OK)
		lab_die("handshake");
	if (ph_exchange_init(&lab->exchange, session, NAME, &means))
		lab_die("exchange");
	lab->c = (struct peer){ .send = data[0], .got = received[0] };
	lab->v = (struct peer){ .send = data[1], .got = received[1] };
}

static void set_up(struct lab *lab, SSL_CTX *context, int buffer_bytes)
{
	set_up_as(lab, context, buffer_bytes, &terms);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void tear_down(struct lab *lab)
{
	ph_exchange_close(&lab->exchange);
	close_fd(&lab->client_end.fd);
	close_fd(&lab->cvm_end.fd);
	close_fd(&lab->cvm);
	lab_disconnect(lab->client);
}

/* As an edge-triggered watcher that is woken for every reason at once. */
static void run_once(struct lab *lab)
{
	lab->client_end.readable = lab->client_end.writable = true;
	lab->cvm_end.readable = lab->cvm_end.writable = true;
	lab->progress = ph_exchange_run(&lab->exchange, &lab->client_end, &lab->cvm_end, &means, &lab->reason);
	if (lab->progress != PH_PROGRESS_OVER)
		return;
	/* What the worker does. */
	ph_exchange_close(&lab->exchange);
	if (lab->reason == PH_REASON_CLOSED) {
		close_fd(&lab->client_end.fd);
		close_fd(&lab->cvm_end.fd);
	} else {
		lab_reset(lab->client_end.fd);
		lab_reset(lab->cvm_end.fd);
		lab->client_end.fd = lab->cvm_end.fd = -1;
	}
}

static void read_as_client(struct lab *lab)
{
	struct peer *peer = &lab->c;
	int got;

	if (peer->got_error || peer->got_fin)
		return;
	if (peer->got_end) {
		got = (int)recv(SSL_get_fd(lab->client), peer->got + BYTES, 1, MSG_DONTWAIT);
		peer->got_fin = !got;
		peer->got_error = got < 0 && errno != EAGAIN;
		return;
	}
	ERR_clear_error();
	got = SSL_read(lab->client, peer->got + peer->got_len, (int)(BYTES + 1 - peer->got_len));
	if (got > 0) {
		peer->got_len += (size_t)got;
		return;
	}
	got = SSL_get_error(lab->client, got);
	peer->got_end = got == SSL_ERROR_ZERO_RETURN;
	peer->got_error = got == SSL_ERROR_SSL || got == SSL_ERROR_SYSCALL;
}

static void act_as_client(struct lab *lab)
{
	struct peer *peer = &lab->c;
	size_t done;

	read_as_client(lab);
	if (peer->sent < peer->send_len) {
		ERR_clear_error();
		if (SSL_write_ex(lab->client, peer->send + peer->sent, peer->send_len - peer->sent, &done) == 1)
			peer->sent += done;
	} else if (peer->end_after && !peer->end_sent) {
		ERR_clear_error();
		peer->end_sent = SSL_shutdown(lab->client) >= 0;
	}
}

static void act_as_cvm(struct lab *lab)
{
	struct peer *peer = &lab->v;
	ssize_t done;

	if (peer->sent < peer->send_len) {
		done = send(lab->cvm, peer->send + peer->sent, peer->send_len - peer->sent,
			    MSG_DONTWAIT | MSG_NOSIGNAL);
		if (done > 0)
			peer->sent += (size_t)done;
	} else if (peer->end_after && !peer->end_sent) {
		shutdown(lab->cvm, SHUT_WR);
		peer->end_sent = true;
	}
	if (peer->got_end || peer->got_error)
		return;
	done = recv(lab->cvm, peer->got + peer->got_len, BYTES + 1 - peer->got_len, MSG_DONTWAIT);
	if (done > 0)
		peer->got_len += (size_t)done;
	else if (!done)
		peer->got_end = true;
	else
		peer->got_error = errno != EAGAIN;
}

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static bool run(struct lab *lab, bool (*done)(const struct lab *lab))
{
	time_t until = now_s() + PATIENCE_S;

	while (now_s() < until) {
		if (lab->progress != PH_PROGRESS_OVER)
			run_once(lab);
		if (SSL_get_fd(lab->client) >= 0)
			act_as_client(lab);
		if (lab->cvm >= 0)
			act_as_cvm(lab);
		if (done(lab))
			return true;
	}
	return false;
}

static bool both_have_ends(const struct lab *lab)
{
	return lab->c.got_fin && lab->v.got_end;
}

static bool cvm_has_end(const struct lab *lab)
{
	return lab->v.got_end || lab->v.got_error;
}

static bool client_has_end(const struct lab *lab)
{
	return lab->c.got_fin || lab->c.got_error;
}

static bool both_have_all(const struct lab *lab)
{
	return lab->c.got_len == lab->v.send_len && lab->v.got_len == lab->c.send_len;
}

static bool is_over(const struct lab *lab)
{
	return lab->progress == PH_PROGRESS_OVER;
}

static bool got_exactly(const struct peer *who, const struct peer *from)
{
	return who->got_len == from->send_len && !memcmp(who->got, from->send, from->send_len);
}

static void test_both_ways(SSL_CTX *context, const char *name, int buffer_bytes)
{
	struct lab lab;
	bool done;

	set_up(&lab, context, buffer_bytes);
	memset(&stats, 0, sizeof(stats));
	lab.c.send_len = BYTES;
	lab.v.send_len = BYTES - 4321;
	lab.c.end_after = lab.v.end_after = true;
	done = run(&lab, both_have_ends);
	ktap_ok(done && got_exactly(&lab.c, &lab.v) && got_exactly(&lab.v, &lab.c),
		"%s: both streams whole, then their ends", name);
	ktap_ok(lab.progress == PH_PROGRESS_OVER && lab.reason == PH_REASON_CLOSED, "%s: closed after both", name);
	ktap_ok(stats.bytes_from_clients == BYTES && stats.bytes_from_cvms == BYTES - 4321, "%s: bytes counted", name);
	tear_down(&lab);
}

static void test_client_ends_first(SSL_CTX *context, const char *name)
{
	struct lab lab;
	bool done;

	set_up(&lab, context, 0);
	lab.c.send_len = 100000;
	lab.c.end_after = true;
	done = run(&lab, cvm_has_end);
	ktap_ok(done && got_exactly(&lab.v, &lab.c) && !lab.v.got_error && lab.progress != PH_PROGRESS_OVER,
		"%s: close_notify becomes a FIN", name);
	lab.v.send_len = 200000;
	lab.v.end_after = true;
	done = run(&lab, client_has_end);
	ktap_ok(done && got_exactly(&lab.c, &lab.v) && !lab.c.got_error && lab.reason == PH_REASON_CLOSED,
		"%s: the CVM answers after it", name);
	tear_down(&lab);
}

static void test_cvm_ends_first(SSL_CTX *context, const char *name)
{
	struct lab lab;
	bool done;

	set_up(&lab, context, 0);
	lab.v.send_len = 100000;
	lab.v.end_after = true;
	done = run(&lab, client_has_end);
	ktap_ok(done && got_exactly(&lab.c, &lab.v) && lab.c.got_end && lab.c.got_fin &&
			lab.progress != PH_PROGRESS_OVER,
		"%s: a FIN becomes close_notify and a FIN", name);
	lab.c.send_len = 200000;
	lab.c.end_after = true;
	done = run(&lab, cvm_has_end);
	ktap_ok(done && got_exactly(&lab.v, &lab.c) && !lab.v.got_error, "%s: the client goes on after it", name);
	tear_down(&lab);
}

enum how { CLIENT_FIN, CLIENT_RST, CLIENT_GARBAGE, CVM_RST };

static void break_it(struct lab *lab, enum how how)
{
	int fd = SSL_get_fd(lab->client);

	switch (how) {
	case CLIENT_FIN:
		shutdown(fd, SHUT_WR);
		break;
	case CLIENT_RST:
		lab_reset(fd);
		SSL_set_fd(lab->client, -1);
		break;
	case CLIENT_GARBAGE:
		if (write(fd, "\x17\x03\x03\x00\x20 garbage garbage garbage garbage", 37) != 37)
			lab_die("write");
		break;
	case CVM_RST:
		lab_reset(lab->cvm);
		lab->cvm = -1;
		break;
	}
}

static void test_breaks(SSL_CTX *context)
{
	static const struct {
		const char *name;
		enum how how;
		enum ph_reason want;
	} rows[] = {
		{ "FIN without close_notify", CLIENT_FIN, PH_REASON_TLS_TRUNCATED },
		{ "the client's RST", CLIENT_RST, PH_REASON_CLIENT_RESET },
		{ "a record that does not decrypt", CLIENT_GARBAGE, PH_REASON_TLS_ERROR },
		{ "the CVM's RST", CVM_RST, PH_REASON_CVM_RESET },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct lab lab;
		bool done, cut_off;

		set_up(&lab, context, 0);
		lab.c.send_len = 1000;
		run(&lab, both_have_all);
		break_it(&lab, rows[i].how);
		done = run(&lab, is_over);
		ktap_ok(done && lab.reason == rows[i].want, "breaks: %s", rows[i].name);
		if (rows[i].how == CVM_RST) {
			run(&lab, client_has_end);
			cut_off = lab.c.got_error && !lab.c.got_end;
		} else {
			run(&lab, cvm_has_end);
			cut_off = lab.v.got_error && lab.v.got_len == 1000;
		}
		ktap_ok(cut_off, "breaks: %s: the other side does not take its stream for complete", rows[i].name);
		tear_down(&lab);
	}
}

/* Runs and sends on one side only, until nothing has moved for a while. */
static void send_until_blocked(struct lab *lab, bool by_client)
{
	struct peer *peer = by_client ? &lab->c : &lab->v;
	size_t before = 0;

	peer->send_len = BYTES;
	for (int still = 0; still < 250 && peer->sent < BYTES; still++) {
		struct pollfd wait = { .fd = by_client ? SSL_get_fd(lab->client) : lab->cvm, .events = POLLOUT };
		size_t done = 0;
		ssize_t sent;

		run_once(lab);
		poll(&wait, 1, 2);
		if (by_client) {
			ERR_clear_error();
			SSL_write_ex(lab->client, data[0] + peer->sent, BYTES - peer->sent, &done);
		} else {
			sent = send(lab->cvm, data[1] + peer->sent, BYTES - peer->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
			done = sent > 0 ? (size_t)sent : 0;
		}
		peer->sent += done;
		if (peer->sent != before)
			still = 0;
		before = peer->sent;
	}
}

static void test_stopped_readers(SSL_CTX *context)
{
	struct lab lab;
	bool done;

	set_up(&lab, context, 65536);
	send_until_blocked(&lab, true);
	ktap_ok(lab.c.sent < BYTES && lab.exchange.to_cvm && lab.exchange.to_cvm->len <= PH_PIPE_BYTES,
		"stopped CVM: the client is stopped after %zu", lab.c.sent);
	send_until_blocked(&lab, false);
	ktap_ok(lab.v.sent < BYTES && ph_tls_held(lab.exchange.session) &&
			ph_tls_held(lab.exchange.session) <= PH_PIPE_BYTES + PH_PIPE_BYTES / 64,
		"stopped client: the CVM is stopped after %zu", lab.v.sent);
	ktap_ok(lab.progress == PH_PROGRESS_WAIT && !lab.cvm_end.writable && !lab.client_end.writable,
		"stopped readers: nothing to do but wait");
	lab.c.end_after = lab.v.end_after = true;
	done = run(&lab, both_have_ends);
	ktap_ok(done && got_exactly(&lab.v, &lab.c) && got_exactly(&lab.c, &lab.v),
		"stopped readers: go on, nothing lost");
	tear_down(&lab);
}

static void test_nothing_kept(SSL_CTX *context)
{
	struct lab lab;
	bool done;

	set_up(&lab, context, 0);
	lab.c.send_len = lab.v.send_len = 5000;
	done = run(&lab, both_have_all);
	ktap_ok(done && !lab.exchange.to_cvm && !ph_tls_held(lab.exchange.session), "idle: nothing is held");
	tear_down(&lab);
}

/* A byte in each record must not become a packet each, once they are all there. */
static void test_gathering(SSL_CTX *context)
{
	enum { RECORDS = 500, RECORD_LEN = 5 + 1 + 1 + 16 };
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);
	time_t until = now_s() + PATIENCE_S;
	int waiting = 0;
	const int on = 1;
	struct lab lab;
	bool done;

	set_up(&lab, context, 0);
	setsockopt(lab.cvm_end.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	for (int i = 0; i < RECORDS; i++)
		SSL_write(lab.client, data[0] + i, 1);
	lab.c.send_len = lab.c.sent = RECORDS;
	while (waiting < RECORDS * RECORD_LEN && now_s() < until)
		ioctl(lab.client_end.fd, FIONREAD, &waiting);
	done = run(&lab, both_have_all);
	getsockopt(lab.cvm_end.fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	ktap_ok(done && got_exactly(&lab.v, &lab.c) && info.tcpi_data_segs_out <= 4,
		"small records: %d went on in %u segments", RECORDS, info.tcpi_data_segs_out);
	tear_down(&lab);
}

/* The answer to it has no place any more. */
static void test_key_update_after_end(SSL_CTX *context)
{
	struct lab lab;
	bool done;

	set_up(&lab, context, 0);
	lab.v.end_after = true;
	done = run(&lab, client_has_end) && SSL_key_update(lab.client, SSL_KEY_UPDATE_REQUESTED) == 1;
	lab.c.send_len = 5000;
	lab.c.end_after = true;
	done = done && run(&lab, both_have_ends);
	ktap_ok(done && got_exactly(&lab.v, &lab.c) && lab.reason == PH_REASON_CLOSED,
		"a KeyUpdate that asks for one, after close_notify: what comes behind it goes on");
	tear_down(&lab);
}

/* Only once: as an edge-triggered watcher that has nothing more to tell. */
static void settle(struct lab *lab)
{
	do
		lab->progress = ph_exchange_run(&lab->exchange, &lab->client_end, &lab->cvm_end, &means, &lab->reason);
	while (lab->progress == PH_PROGRESS_AGAIN);
}

/* OpenSSL writes nothing while it has half of a message. */
static void test_split_key_update(SSL_CTX *context)
{
	char got[8] = "";
	struct lab lab;
	bool done;
	int fd;

	set_up(&lab, context, 0);
	fd = SSL_get_fd(lab.client);
	run_once(&lab);
	done = !raw_send(fd, RAW_HANDSHAKE, "\x18\0\0\1", 4);
	lab.client_end.readable = true;
	settle(&lab);
	done = done && send(lab.cvm, "hello", 5, 0) == 5;
	lab.cvm_end.readable = true;
	settle(&lab);
	ktap_ok(done && lab.progress == PH_PROGRESS_WAIT && SSL_read(lab.client, got, sizeof(got)) < 0,
		"half a KeyUpdate: the CVM has to wait");
	done = !raw_send(fd, RAW_HANDSHAKE, "\0", 1) && !raw_next_secret() && !raw_send(fd, RAW_DATA, "data", 4);
	lab.client_end.readable = true;
	settle(&lab);
	done = done && lab.progress == PH_PROGRESS_WAIT && SSL_read(lab.client, got, sizeof(got)) == 5 && !memcmp(got, "hello", 5);
	ktap_ok(done && recv(lab.cvm, got, sizeof(got), MSG_DONTWAIT) == 4 && !memcmp(got, "data", 4),
		"half a KeyUpdate: with the other half both ways go on");
	tear_down(&lab);
}

/* Whom a refusal waits for: only a CVM in the middle of a frame has to hurry. */
static void test_refusal_waits(void)
{
	static const struct h2_step foreign = { HEADERS, END_STREAM, 1, ":authority: other." DOMAIN "\n", 0, H2_LITERAL, 0 };
	static const struct ph_tls_terms h2_terms = { .name = NAME, .h2 = true };
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	struct h2_bytes request = { 0 }, answer = { 0 };
	bool blocked, owed;
	struct lab lab;

	SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\2h2", 3);
	h2_add(&request, H2_PREFACE, sizeof(H2_PREFACE) - 1);
	h2_frame(&request, SETTINGS, 0, 0, NULL, 0);
	h2_add_step(&request, NULL, &foreign);
	h2_frame(&answer, SETTINGS, 0, 0, NULL, 0);
	h2_add(&answer, "\xff\xff\xff\xf0\0\0\0\0\0", 9);	/* a frame of a type that there is not, longer than all that comes */
	memcpy(data[1], answer.bytes, answer.len);
	set_up_as(&lab, context, 65536, &h2_terms);
	send_until_blocked(&lab, false);
	blocked = SSL_write(lab.client, request.bytes, (int)request.len) == (int)request.len;
	for (time_t until = now_s() + PATIENCE_S; blocked && stats.counters[PH_REASON_MISDIRECTED] != 1 && now_s() < until;)
		run_once(&lab);
	blocked = blocked && lab.v.sent < BYTES && ph_tls_held(lab.exchange.session);
	owed = ph_exchange_owed(&lab.exchange);
	ktap_ok(blocked && stats.counters[PH_REASON_MISDIRECTED] == 1 && !owed, "a refusal that a stopped client keeps waiting: not owed");
	lab.v.send_len = lab.v.sent;
	for (time_t until = now_s() + PATIENCE_S; lab.c.got_len < lab.v.sent && now_s() < until;) {
		run_once(&lab);
		read_as_client(&lab);
	}
	ktap_ok(lab.c.got_len == lab.v.sent && ph_exchange_owed(&lab.exchange) == 1,
		"once it has taken all: owed, by a CVM in the middle of a frame");
	free(request.bytes);
	free(answer.bytes);
	tear_down(&lab);
	SSL_CTX_free(context);
}

int main(void)
{
	SSL_CTX *tls12 = lab_client(TLS1_2_VERSION), *tls13 = lab_client(TLS1_3_VERSION);
	struct ph_domain domain;
	char error[256];

	ktap_header();
	lab_set_up();
	lab_make_pair("good", &(struct lab_certificate){ "gw", "DNS:*." DOMAIN, -DAY_S, DAY_S });
	lab_domain(&domain, DOMAIN, "good.crt", "good.key");
	if (ph_tls_open(&domain, &tickets, false, &tls, error, sizeof(error)))
		lab_die(error);
	srandom(1);
	for (size_t i = 0; i < BYTES; i++) {
		data[0][i] = (uint8_t)random();
		data[1][i] = (uint8_t)random();
	}
	test_both_ways(tls13, "TLS 1.3", 0);
	test_both_ways(tls12, "TLS 1.2", 0);
	test_both_ways(tls13, "small buffers", 65536);
	test_client_ends_first(tls13, "TLS 1.3");
	test_client_ends_first(tls12, "TLS 1.2");
	test_cvm_ends_first(tls13, "TLS 1.3");
	test_cvm_ends_first(tls12, "TLS 1.2");
	test_breaks(tls13);
	test_breaks(tls12);
	test_stopped_readers(tls13);
	test_nothing_kept(tls13);
	test_gathering(tls13);
	test_key_update_after_end(tls13);
	SSL_CTX_set_ciphersuites(tls13, "TLS_AES_128_GCM_SHA256");
	SSL_CTX_set_keylog_callback(tls13, raw_keylog);
	test_split_key_update(tls13);
	memset(&stats, 0, sizeof(stats));
	test_refusal_waits();
	SSL_CTX_free(tls12);
	SSL_CTX_free(tls13);
	ph_tls_free(tls);
	lab_tear_down();
	return ktap_end();
}
