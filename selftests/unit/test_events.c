// SPDX-License-Identifier: Apache-2.0
/* events, list: order, time-outs, and what handlers may do to each other within a turn. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <phala/limits.h>

#include "events.h"
#include "idle.h"
#include "ktap.h"

#define TIMEOUT_MS 30

static struct ph_events events;
static struct ph_timer_queue queue, soon;

struct thing {
	struct ph_timer timer;
	struct ph_source source;
	int expired, handled;
	uint32_t last_events;
	struct thing *disarms;			/* when it expires */
	bool arms_itself;			/* when it expires */
	int fd;
};

static void expired(struct ph_timer *timer)
{
	struct thing *thing = ph_container_of(timer, struct thing, timer);

	thing->expired++;
	if (thing->disarms)
		ph_timer_disarm(&thing->disarms->timer);
	if (thing->arms_itself)
		ph_timer_arm(&events, &soon, timer);
}

static void handle(struct ph_source *source, uint32_t what)
{
	struct thing *thing = ph_container_of(source, struct thing, source);
	char byte;

	thing->handled++;
	thing->last_events = what;
	if (read(thing->fd, &byte, 1) < 0)
		thing->handled = -1000;
}

static void set_up(struct thing *things, int count)
{
	memset(things, 0, sizeof(*things) * (size_t)count);
	ph_events_init(&events);
	ph_events_add_queue(&events, &queue, TIMEOUT_MS, expired);
	ph_events_add_queue(&events, &soon, 0, expired);
	for (int i = 0; i < count; i++)
		ph_timer_init(&things[i].timer);
}

static void test_list(void)
{
	struct ph_list list, links[3];
	bool right;

	ph_list_init(&list);
	ktap_ok(ph_list_is_empty(&list) && !ph_list_take(&list), "list: begins empty");
	for (int i = 0; i < 3; i++) {
		ph_list_init(&links[i]);
		ph_list_append(&list, &links[i]);
	}
	ph_list_remove(&links[1]);
	ph_list_remove(&links[1]);
	right = ph_list_take(&list) == &links[0] && ph_list_take(&list) == &links[2] && !ph_list_take(&list);
	ktap_ok(right, "list: in order, without the one that was removed, twice");
}

static void test_expiry(void)
{
	struct thing things[3];
	uint64_t start_ns;

	set_up(things, 3);
	start_ns = events.now_ns;
	for (int i = 0; i < 3; i++)
		ph_timer_arm(&events, &queue, &things[i].timer);
	ph_timer_disarm(&things[1].timer);
	while (!things[2].expired)
		ph_events_turn(&events);
	ktap_ok(things[0].expired == 1 && !things[1].expired, "timers: one expires, one that was disarmed does not");
	ktap_ok(events.now_ns - start_ns >= TIMEOUT_MS * 1000000ULL, "timers: not early");
	ph_events_close(&events);
}

/* As connections do it: asked when a part of the time is over, it says how much is left. */
static struct ph_idle idle;
static struct ph_timer idle_timer;
static uint64_t idle_due_ms, idle_ended_ms;
static unsigned idle_asked, idle_late;

/* How late it may come is known when it is armed. */
static void idle_arm(struct ph_timer *timer, uint64_t wait_ms)
{
	ph_idle_wait(&idle, &events, timer, wait_ms);
	idle_late += timer->due_ms > idle_due_ms + PH_IDLE_SHORTEST_MS;
}

static void idle_expired(struct ph_timer *timer)
{
	idle_asked++;
	if (events.now_ms < idle_due_ms)
		idle_arm(timer, idle_due_ms - events.now_ms);
	else
		idle_ended_ms = events.now_ms;
}

static void test_idle(void)
{
	static const uint64_t odd[] = { 1, 64, 65, 100, 333, 700 };
	unsigned early = 0, often = 0;

	ph_events_init(&events);
	ph_idle_init(&idle, &events, idle_expired);
	ph_timer_init(&idle_timer);
	for (unsigned i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
		idle_ended_ms = idle_asked = 0;
		idle_due_ms = events.now_ms + odd[i];
		idle_arm(&idle_timer, odd[i]);
		while (!idle_ended_ms)
			ph_events_turn(&events);
		early += idle_ended_ms < idle_due_ms;
		often += idle_asked > 12;
	}
	ktap_ok(!early && !idle_late && !often, "idle: times of any length (%u early, %u late, %u asked too often)", early,
		idle_late, often);
	ph_idle_wait(&idle, &events, &idle_timer, PH_IDLE_MAX_MS);
	ktap_ok(idle_timer.due_ms > events.now_ms + PH_IDLE_MAX_MS / 2 && idle_timer.due_ms <= events.now_ms + PH_IDLE_MAX_MS,
		"idle: the longest that can be set");
	ph_timer_disarm(&idle_timer);
	ph_events_close(&events);
}

static void test_within_a_turn(void)
{
	struct thing things[3];

	set_up(things, 3);
	for (int i = 0; i < 3; i++)
		ph_timer_arm(&events, &soon, &things[i].timer);
	things[0].disarms = &things[1];
	things[2].arms_itself = true;
	ph_events_turn(&events);
	ktap_ok(things[0].expired == 1 && !things[1].expired, "turn: one that is due is disarmed by another");
	ktap_ok(things[2].expired == 1, "turn: what is armed for 0 ms waits for the next turn");
	ph_events_turn(&events);
	ktap_ok(things[2].expired == 2, "turn: and comes then");
	ph_events_close(&events);
}

static void test_sources(void)
{
	struct thing thing;
	int pipe_fds[2];

	set_up(&thing, 1);
	if (pipe(pipe_fds) || write(pipe_fds[1], "x", 1) != 1)
		return;
	thing.fd = pipe_fds[0];
	thing.source.handle = handle;
	ktap_ok(!ph_events_add(&events, thing.fd, EPOLLIN, &thing.source), "sources: added");
	ph_events_turn(&events);
	ktap_ok(thing.handled == 1 && thing.last_events == EPOLLIN, "sources: handled");
	ktap_ok(!ph_events_remove(&events, thing.fd) && write(pipe_fds[1], "x", 1) == 1, "sources: removed");
	ph_timer_arm(&events, &soon, &thing.timer);
	ph_events_turn(&events);
	ktap_ok(thing.handled == 1, "sources: not handled any more");
	ktap_ok(ph_events_add(&events, 1000000, EPOLLIN, &thing.source) < 0, "sources: no such descriptor");
	ph_events_close(&events);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

int main(void)
{
	ktap_header();
	test_list();
	test_expiry();
	test_idle();
	test_within_a_turn();
	test_sources();
	return ktap_end();
}
