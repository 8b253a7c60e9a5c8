// SPDX-License-Identifier: Apache-2.0
#include "trial.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 64
#define SECOND_NS 1000000000U
#define MS_NS 1000000U

struct attempt {
	int fd;				/* -1: over */
	uint64_t begun_ns;
	uint32_t sent, got;		/* of the head; of @answer */
	uint8_t answer[sizeof(struct stream_answer)];
};

static const struct client_task *task;
static struct client_result *result;
static struct stream_answer expected;
static int epoll_fd;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void finish(struct attempt *attempt, bool answered)
{
	uint64_t took_ns = now_ns() - attempt->begun_ns;

	answered = answered && took_ns < TRIAL_LIMIT_NS;
	if (result->latency_count == CLIENT_LATENCIES_MAX)
		client_fail("more connections than fit");
	result->answers += answered;
	result->latencies_us[result->latency_count++] = (uint32_t)((answered ? took_ns : TRIAL_LIMIT_NS) / 1000);
	if (attempt->fd >= 0)
		close(attempt->fd);
	attempt->fd = -1;
}

static void begin(struct attempt *attempt)
{
	struct epoll_event event = { .events = EPOLLOUT, .data.ptr = attempt };

	*attempt = (struct attempt){ .begun_ns = now_ns() };
	result->connections++;
	attempt->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (attempt->fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, attempt->fd, &event))
		client_fail("socket: %s", strerror(errno));
	if (connect(attempt->fd, (const struct sockaddr *)&task->to, sizeof(task->to)) && errno != EINPROGRESS)
		finish(attempt, false);
}

static void send_head(struct attempt *attempt)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = attempt };
	ssize_t sent = send(attempt->fd, task->head + attempt->sent, task->head_len - attempt->sent, MSG_NOSIGNAL);

	if (sent < 0) {
		if (errno != EAGAIN)
			finish(attempt, false);
		return;
	}
	attempt->sent += (uint32_t)sent;
	if (attempt->sent == task->head_len && epoll_ctl(epoll_fd, EPOLL_CTL_MOD, attempt->fd, &event))
		client_fail("epoll_ctl: %s", strerror(errno));
}

static void receive_answer(struct attempt *attempt)
{
	ssize_t got = recv(attempt->fd, attempt->answer + attempt->got, sizeof(attempt->answer) - attempt->got, 0);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got > 0)
		attempt->got += (uint32_t)got;
	if (got <= 0)
		finish(attempt, false);
	else if (attempt->got == sizeof(attempt->answer))
		finish(attempt, !memcmp(attempt->answer, &expected, sizeof(expected)));
}

static void step(struct attempt *attempt)
{
	if (attempt->fd < 0)
		return;
	if (attempt->sent < task->head_len)
		send_head(attempt);
	else
		receive_answer(attempt);
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void trial_run(const struct client_task *what, uint32_t rate, struct client_result *ret)
{
	uint32_t count = (uint32_t)(what->duration_ns * rate / SECOND_NS) + 1, begun = 0, over = 0;
	struct attempt *attempts = calloc(count, sizeof(*attempts));
	struct epoll_event events[EVENTS];
	uint64_t now = now_ns(), next_ns;

	task = what;
	result = ret;
	expected = stream_answer_to(task->head, task->head_len);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0 || !attempts)
		client_fail("out of memory");
	result->begun_ns = now;
	/* All have the same limit, so they time out in the order in which they began. */
	while (over < count) {
		for (; begun < count && now >= result->begun_ns + (uint64_t)begun * SECOND_NS / rate; begun++)
			begin(&attempts[begun]);
		for (; over < begun; over++) {
			if (attempts[over].fd >= 0 && now < attempts[over].begun_ns + TRIAL_LIMIT_NS)
				break;
			if (attempts[over].fd >= 0)
				finish(&attempts[over], false);
		}
		next_ns = begun < count ? result->begun_ns + (uint64_t)begun * SECOND_NS / rate : UINT64_MAX;
		if (over < begun)
			next_ns = least(next_ns, attempts[over].begun_ns + TRIAL_LIMIT_NS);
		else if (begun == count)
			break;
		now = now_ns();
		for (int left = epoll_wait(epoll_fd, events, EVENTS, now < next_ns ? (int)((next_ns - now) / MS_NS) + 1 : 0);
		     left > 0; left--)
			step(events[left - 1].data.ptr);
		now = now_ns();
	}
	result->ended_ns = now;
	free(attempts);
}
