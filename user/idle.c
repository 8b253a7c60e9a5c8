// SPDX-License-Identifier: Apache-2.0
#include "idle.h"

void ph_idle_init(struct ph_idle *idle, struct ph_events *events, void (*expire)(struct ph_timer *timer))
{
	for (unsigned i = 0; i < PH_IDLE_QUEUES; i++)
		ph_events_add_queue(events, &idle->queues[i], (uint64_t)PH_IDLE_SHORTEST_MS << i, expire);
}

void ph_idle_wait(struct ph_idle *idle, struct ph_events *events, struct ph_timer *timer, uint64_t left_ms)
{
	unsigned i = 0;

	while (i + 1 < PH_IDLE_QUEUES && idle->queues[i + 1].timeout_ms <= left_ms)
		i++;
	ph_timer_arm(events, &idle->queues[i], timer);
}
