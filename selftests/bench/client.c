// SPDX-License-Identifier: Apache-2.0
/*
 * client - streams, all in one thread. See client.h.
 *
 * A buffer of STREAM_CHUNK takes more than one TLS record, so OpenSSL never holds back what epoll does not know of.
 */
#include "client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

#define EVENTS 64
#define STEPS_MAX 16			/* of one stream, before others have their turn */
#define OVERTIME_NS 15000000000U		/* for what was begun in time to come to its end */
#define OPENING_MAX 64			/* connections in the making, of those to be held */

enum state {
	IDLE,				/* no connection */
	OPENING,
	HEAD,				/* sending it */
	REPLY,				/* reading the answer */
	HELD,
	PULL,				/* reading the pattern */
	PUSH,				/* sending the pattern */
	LAST,				/* reading the last count, after PUSH */
	END,				/* nothing may come but the end of the stream */
};

struct stream {
	enum state state;
	uint32_t watched;		/* events, 0: none yet */
	struct wire wire;
	uint64_t begun_ns;
	uint64_t position;		/* bytes of the pattern, sent or read */
	uint32_t sent, got;		/* of the head; of @reply */
	bool stopped;			/* the server was told to stop sending */
	union {
		struct stream_answer answer;
		uint64_t count;
		uint8_t bytes[sizeof(struct stream_answer)];
	} reply;
};

static const struct client_task *task;
static struct client_result *result;
static struct stream_answer expected;
static struct stream *streams;
static uint32_t stream_count, busy, opening, held;
static uint64_t deadline_ns;
static bool over, released;
static int epoll_fd;
static uint8_t scratch[STREAM_CHUNK];

void client_fail(const char *format, ...)
{
	char text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	dprintf(STDERR_FILENO, "load: %s\n", text);	/* in one piece: others may be failing too */
	_exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static void watch(struct stream *stream, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = stream };

	if (stream->watched == events)
		return;
	if (epoll_ctl(epoll_fd, stream->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, stream->wire.fd, &event))
		client_fail("epoll_ctl: %s", strerror(errno));
	stream->watched = events;
}

/* For the result of a call on a wire. Return: false to wait for the next event. */
static bool progressed(struct stream *stream, ssize_t done, const char *what)
{
	if (done == -EAGAIN) {
		watch(stream, stream->wire.wants);
		return false;
	}
	if (done < 0)
		client_fail("%s: %s", what, strerror((int)-done));
	return true;
}

static void begin(struct stream *stream)
{
	int err;

	stream->begun_ns = now_ns();
	stream->position = 0;
	stream->sent = stream->got = stream->watched = 0;
	stream->stopped = false;
	stream->state = OPENING;
	err = wire_open(&stream->wire, &task->to, task->tls_name);
	if (err)
		client_fail("connect: %s", strerror(-err));
	busy++;
	opening++;
	watch(stream, EPOLLOUT);
}

static void close_stream(struct stream *stream)
{
	wire_close(&stream->wire);
	stream->state = IDLE;
	busy--;
	if (task->verb == CLIENT_ANSWER && !over)
		begin(stream);
}

static void answered(struct stream *stream)
{
	uint64_t took_us = (now_ns() - stream->begun_ns) / 1000;

	if (memcmp(&stream->reply.answer, &expected, sizeof(expected)))
		client_fail("the server did not see what was sent, or its answer was changed");
	if (result->latency_count == CLIENT_LATENCIES_MAX)
		client_fail("more answers than fit");
	result->latencies_us[result->latency_count++] = took_us < UINT32_MAX ? (uint32_t)took_us : UINT32_MAX;
	if (!over)
		result->answers++;
	stream->sent = stream->got = 0;
	switch (task->verb) {
	case CLIENT_HOLD:
		if (!released) {
			stream->state = HELD;
			held++;
			return;
		}
		break;
	case CLIENT_ASK:
		if (!over) {
			stream->begun_ns = now_ns();
			stream->state = HEAD;
			return;
		}
		break;
	default:
		stream->state = END;
		return;
	}
	close_stream(stream);
}

/* The server's count, once its stream has ended. */
static void check_count(struct stream *stream, uint64_t bytes)
{
	if (stream->got != sizeof(stream->reply.count))
		client_fail("the stream ended without a count, after %llu bytes", (unsigned long long)bytes);
	if (stream->reply.count != bytes)
		client_fail("%llu bytes at the client, %llu at the server", (unsigned long long)bytes,
		     (unsigned long long)stream->reply.count);
	result->bytes += bytes;
	result->ended_ns = now_ns();
	close_stream(stream);
}

/* The steps of a stream. Each returns whether to go on at once. */

static bool step_opening(struct stream *stream)
{
	if (!progressed(stream, wire_ready(&stream->wire), task->tls_name ? "handshake" : "connect"))
		return false;
	result->connections++;
	opening--;
	stream->state = HEAD;
	return true;
}

static bool step_head(struct stream *stream)
{
	ssize_t sent = wire_write(&stream->wire, task->head + stream->sent, task->head_len - stream->sent);

	if (!progressed(stream, sent, "the head"))
		return false;
	stream->sent += (uint32_t)sent;
	if (stream->sent < task->head_len)
		return true;
	stream->state = task->verb == CLIENT_SOURCE ? PULL : task->verb == CLIENT_SINK ? PUSH : REPLY;
	watch(stream, stream->state == PUSH ? EPOLLOUT : EPOLLIN);
	return false;
}

static bool step_reply(struct stream *stream, size_t size)
{
	ssize_t got = wire_read(&stream->wire, stream->reply.bytes + stream->got, size - stream->got);

	if (!progressed(stream, got, "the answer"))
		return false;
	if (!got)
		client_fail("the stream ended before its answer, after %u bytes", stream->got);
	stream->got += (uint32_t)got;
	if (stream->got == size && stream->state == REPLY)
		answered(stream);
	else if (stream->got == size)
		stream->state = END;
	return stream->state != IDLE && stream->state != HELD;
}

/* Once the server was told to stop, its last eight bytes are its count, and only its end tells which those are. */
static void keep_tail(struct stream *stream, const uint8_t *bytes, size_t len)
{
	const size_t size = sizeof(stream->reply.count);
	size_t kept = len >= size ? 0 : stream->got < size - len ? stream->got : size - len;

	memmove(stream->reply.bytes, stream->reply.bytes + stream->got - kept, kept);
	if (len > size) {
		bytes += len - size;
		len = size;
	}
	memcpy(stream->reply.bytes + kept, bytes, len);
	stream->got = (uint32_t)(kept + len);
}

static bool step_pull(struct stream *stream)
{
	bool look = stream->wire.ssl || stream->stopped;
	ssize_t got = look ? wire_read(&stream->wire, scratch, sizeof(scratch))
			   : stream_receive(stream->wire.fd, stream->position, scratch);

	if (!look)
		stream->wire.wants = EPOLLIN;
	if (!progressed(stream, got, "the pattern"))
		return false;
	if (!got && stream->stopped) {
		check_count(stream, stream->position - stream->got);
		return false;
	}
	if (!got)
		client_fail("the stream ended by itself, after %llu bytes", (unsigned long long)stream->position);
	if (stream->stopped)
		keep_tail(stream, scratch, (size_t)got);
	else if (look && !stream_matches(stream->position, scratch, (size_t)got))
		client_fail("not the pattern, at %llu", (unsigned long long)stream->position);
	stream->position += (uint64_t)got;
	return !!stream->wire.ssl;		/* it was one record */
}

static bool step_push(struct stream *stream)
{
	ssize_t sent = wire_write(&stream->wire, stream_at(stream->position), STREAM_CHUNK);

	if (progressed(stream, sent, "the pattern"))
		stream->position += (uint64_t)sent;
	return false;
}

static bool step_end(struct stream *stream)
{
	ssize_t got = wire_read(&stream->wire, scratch, sizeof(scratch));

	if (!progressed(stream, got, "the end"))
		return false;
	if (got)
		client_fail("%zd bytes too many", got);
	if (task->verb == CLIENT_SINK)
		check_count(stream, stream->position);
	else
		close_stream(stream);
	return false;
}

static bool step(struct stream *stream)
{
	switch (stream->state) {
	case OPENING:
		return step_opening(stream);
	case HEAD:
		return step_head(stream);
	case REPLY:
		return step_reply(stream, sizeof(stream->reply.answer));
	case LAST:
		return step_reply(stream, sizeof(stream->reply.count));
	case PULL:
		return step_pull(stream);
	case PUSH:
		return step_push(stream);
	case END:
		return step_end(stream);
	case HELD:
		client_fail("a connection that was only held had something to say");
	case IDLE:
		break;
	}
	return false;
}

/* All of them. */

static void stop_stream(struct stream *stream)
{
	int err;

	if (stream->state == PULL) {
		stream->stopped = wire_write(&stream->wire, "", 1) == 1;
		if (!stream->stopped)
			client_fail("the server can't be told to stop");
	} else if (stream->state == PUSH) {
		err = wire_finish(&stream->wire);
		if (err)
			client_fail("shutdown: %s", strerror(-err));
		stream->state = LAST;
		watch(stream, EPOLLIN);
	} else if ((task->verb == CLIENT_SOURCE || task->verb == CLIENT_SINK) && stream->state != IDLE) {
		client_fail("a stream had not begun when the time was over");
	}
}

static void release(void)
{
	uint8_t byte;

	printf("held\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	released = over = true;
	deadline_ns = now_ns();
	for (uint32_t i = 0; i < stream_count; i++) {
		streams[i].state = HEAD;
		streams[i].begun_ns = now_ns();
		watch(&streams[i], EPOLLOUT);
	}
}

static void open_more(void)
{
	uint32_t limit = task->verb == CLIENT_HOLD ? OPENING_MAX : stream_count;

	for (uint32_t i = busy; i < stream_count && opening < limit; i++)
		begin(&streams[i]);
}

static void turn(uint64_t now)
{
	uint64_t until = over || task->verb == CLIENT_HOLD ? deadline_ns + OVERTIME_NS : deadline_ns;
	struct epoll_event events[EVENTS];
	int count;

	if (now >= deadline_ns + OVERTIME_NS)
		client_fail("%u connections had not come to their end in time", busy - held);
	count = epoll_wait(epoll_fd, events, EVENTS, (int)((until - now) / 1000000 + 1));
	if (count < 0 && errno != EINTR)
		client_fail("epoll_wait: %s", strerror(errno));
	for (int i = 0; i < count; i++) {
		for (int steps = 0; steps < STEPS_MAX && step(events[i].data.ptr); steps++)
			;
	}
}

void client_run(const struct client_task *what, uint32_t count, struct client_result *ret)
{
	uint64_t now = now_ns();

	task = what;
	stream_count = count;
	result = ret;
	expected = stream_answer_to(task->head, task->head_len);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	streams = calloc(stream_count, sizeof(*streams));
	if (epoll_fd < 0 || !streams)
		client_fail("out of memory");
	result->begun_ns = now;
	deadline_ns = now + task->duration_ns;
	open_more();
	while (busy) {
		now = now_ns();
		if (!over && task->verb != CLIENT_HOLD && now >= deadline_ns) {
			over = true;
			for (uint32_t i = 0; i < stream_count; i++)
				stop_stream(&streams[i]);
		}
		turn(now);
		if (task->verb == CLIENT_HOLD && !released)
			open_more();
		if (task->verb == CLIENT_HOLD && !released && held == stream_count)
			release();
	}
	if (task->verb != CLIENT_SOURCE && task->verb != CLIENT_SINK)
		result->ended_ns = deadline_ns;		/* later answers were not counted either */
}
