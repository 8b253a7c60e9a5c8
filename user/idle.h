/* SPDX-License-Identifier: Apache-2.0 */
/*
 * idle - time-outs of any length that begin anew with every byte.
 *
 * A queue of events.h holds timers of one length. Here there is one for each power of two: a timer waits in the longest
 * that ends before it is due, is asked then how long it has left, and so on. So a byte costs no more than a look at the
 * clock, and apps may have time-outs of their own.
 */
#ifndef PHALAD_IDLE_H
#define PHALAD_IDLE_H

#include "events.h"

#define PH_IDLE_SHORTEST_MS 64			/* how late one may be */
#define PH_IDLE_QUEUES 24			/* the longest is 149 h */

struct ph_idle {
	struct ph_timer_queue queues[PH_IDLE_QUEUES];
};

/* @expire: the timer may be due; if it is not, ph_idle_wait() again. */
void ph_idle_init(struct ph_idle *idle, struct ph_events *events, void (*expire)(struct ph_timer *timer));

/* Waits for @left_ms, or for a part of it. */
void ph_idle_wait(struct ph_idle *idle, struct ph_events *events, struct ph_timer *timer, uint64_t left_ms);

#endif
