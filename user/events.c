// SPDX-License-Identifier: Apache-2.0
/*
 * events - epoll and queues of time-outs. See events.h.
 */
#include "events.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_TURN 256
#define NS_PER_MS 1000000

static void read_clock(struct ph_events *events)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	events->now_ns = (uint64_t)now.tv_sec * 1000 * NS_PER_MS + (uint64_t)now.tv_nsec;
	events->now_ms = events->now_ns / NS_PER_MS;
}

int ph_events_init(struct ph_events *events)
{
	events->queues = NULL;
	events->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (events->epoll_fd < 0)
		return -errno;
	read_clock(events);
	return 0;
}

void ph_events_close(struct ph_events *events)
{
	close(events->epoll_fd);
	events->epoll_fd = -1;
}

int ph_events_add(struct ph_events *events, int fd, uint32_t mask, struct ph_source *source)
{
	struct epoll_event event = { .events = mask, .data.ptr = source };

	return epoll_ctl(events->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

int ph_events_remove(struct ph_events *events, int fd)
{
	return epoll_ctl(events->epoll_fd, EPOLL_CTL_DEL, fd, NULL) ? -errno : 0;
}

void ph_events_add_queue(struct ph_events *events, struct ph_timer_queue *queue, uint64_t timeout_ms,
			 void (*expire)(struct ph_timer *timer))
{
	ph_list_init(&queue->timers);
	queue->timeout_ms = timeout_ms;
	queue->expire = expire;
	queue->next = events->queues;
	events->queues = queue;
}

struct ph_timer *ph_timer_first(const struct ph_timer_queue *queue)
{
	if (ph_list_is_empty(&queue->timers))
		return NULL;
	return ph_container_of(queue->timers.next, struct ph_timer, link);
}

/* Return: milliseconds until the next timer is due, as epoll_wait() takes it. */
static int until_due(const struct ph_events *events)
{
	uint64_t wait_ms = INT_MAX;
	int found = 0;

	for (const struct ph_timer_queue *queue = events->queues; queue; queue = queue->next) {
		const struct ph_timer *timer = ph_timer_first(queue);

		if (!timer)
			continue;
		if (timer->due_ms <= events->now_ms)
			return 0;
		if (timer->due_ms - events->now_ms < wait_ms)
			wait_ms = timer->due_ms - events->now_ms;
		found = 1;
	}
	return found ? (int)wait_ms : -1;
}

/*
 * Those that are due are set apart first: what they arm anew, even for 0 ms, waits for the next turn. Disarming one
 * that is set apart takes it out of there.
 */
static void expire_queue(struct ph_events *events, struct ph_timer_queue *queue)
{
	struct ph_list due, *link;
	struct ph_timer *timer;

	ph_list_init(&due);
	while ((timer = ph_timer_first(queue)) && timer->due_ms <= events->now_ms) {
		ph_list_remove(&timer->link);
		ph_list_append(&due, &timer->link);
	}
	while ((link = ph_list_take(&due)))
		queue->expire(ph_container_of(link, struct ph_timer, link));
}

int ph_events_turn(struct ph_events *events)
{
	struct epoll_event list[EVENTS_PER_TURN];
	int count;

	count = epoll_wait(events->epoll_fd, list, EVENTS_PER_TURN, until_due(events));
	if (count < 0 && errno != EINTR)
		return -errno;
	read_clock(events);
	for (int i = 0; i < count; i++) {
		struct ph_source *source = list[i].data.ptr;

		source->handle(source, list[i].events);
	}
	for (struct ph_timer_queue *queue = events->queues; queue; queue = queue->next)
		expire_queue(events, queue);
	return 0;
}

void ph_timer_init(struct ph_timer *timer)
{
	ph_list_init(&timer->link);
}

void ph_timer_arm(struct ph_events *events, struct ph_timer_queue *queue, struct ph_timer *timer)
{
	ph_list_remove(&timer->link);
	timer->due_ms = events->now_ms + queue->timeout_ms;
	ph_list_append(&queue->timers, &timer->link);
}

void ph_timer_disarm(struct ph_timer *timer)
{
	ph_list_remove(&timer->link);
}
