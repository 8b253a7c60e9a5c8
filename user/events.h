/* SPDX-License-Identifier: Apache-2.0 */
/*
 * events - one epoll set and the time-outs of one process.
 *
 * A time-out of one kind always lasts equally long, so each kind is a queue in the order of arrival: arming and
 * disarming are O(1), and only the heads are ever looked at. A queue of 0 ms holds what is to go on in the next
 * turn.
 */
#ifndef PHALAD_EVENTS_H
#define PHALAD_EVENTS_H

#include <stdint.h>

#include "list.h"

struct ph_source {
	void (*handle)(struct ph_source *source, uint32_t events);
};

struct ph_timer {
	struct ph_list link;
	uint64_t due_ms;
};

struct ph_timer_queue {
	struct ph_list timers;
	uint64_t timeout_ms;
	void (*expire)(struct ph_timer *timer);	/* the timer is disarmed by then */
	struct ph_timer_queue *next;
};

struct ph_events {
	int epoll_fd;
	uint64_t now_ns, now_ms;		/* CLOCK_BOOTTIME when this turn began */
	struct ph_timer_queue *queues;
};

/* Return: 0 or -errno. */
int ph_events_init(struct ph_events *events);
void ph_events_close(struct ph_events *events);

/**
 * ph_events_add() - watch a descriptor.
 * @mask: EPOLLIN and so on.
 * @source: must live until the end of the turn in which @fd is removed or closed: events of it may be in hand.
 */
int ph_events_add(struct ph_events *events, int fd, uint32_t mask, struct ph_source *source);
int ph_events_remove(struct ph_events *events, int fd);

/* @queue is the caller's and lives as long as @events. */
void ph_events_add_queue(struct ph_events *events, struct ph_timer_queue *queue, uint64_t timeout_ms,
			 void (*expire)(struct ph_timer *timer));

/* One turn: wait, handle what happened, expire what is due. Return: 0 or -errno. */
int ph_events_turn(struct ph_events *events);

void ph_timer_init(struct ph_timer *timer);
/* Starts @timer anew, whatever queue it was in. */
void ph_timer_arm(struct ph_events *events, struct ph_timer_queue *queue, struct ph_timer *timer);
void ph_timer_disarm(struct ph_timer *timer);
/* The one that was armed before all others of its queue, or NULL. */
struct ph_timer *ph_timer_first(const struct ph_timer_queue *queue);

#endif
