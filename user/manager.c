// SPDX-License-Identifier: Apache-2.0
/*
 * manager - one loop: a tick each second, links that come and go, answers of workers, clients of the control socket,
 * signals. What is done at each of these is keeper's and verbs'.
 */
#include "manager.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "events.h"
#include "fanout.h"
#include "holder.h"
#include "keeper.h"
#include "link.h"
#include "log.h"
#include "page.h"
#include "sandbox.h"
#include "server.h"
#include "verbs.h"

#define TICK_NS 1000000000ULL

struct manager {
	struct ph_events events;
	struct ph_source signal_source, timer_source, link_source;
	int signal_fd, timer_fd, link_fd;
	struct ph_fanout *fanout;
	struct ph_keeper *keeper;
	struct ph_server *server;
	struct ph_verbs verbs;
	int pulse_fd;
	bool stop;
};

static void handle_signal(struct ph_source *source, uint32_t events)
{
	struct manager *manager = ph_container_of(source, struct manager, signal_source);
	struct signalfd_siginfo info;

	(void)events;
	while (read(manager->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			ph_keeper_reload(manager->keeper);
		else
			manager->stop = true;
	}
}

/* Whether it comes is the holder's to judge. Return: 0 or -errno. */
static int say_alive(const struct manager *manager)
{
	return write(manager->pulse_fd, "", 1) == 1 ? 0 : -errno;
}

/*
 * Each second; but with so many peers on so slow a machine that a tick takes longer than half of one, half of the time
 * is still for everything else. Return: 0 or -errno.
 */
static int arm_timer(struct manager *manager, uint64_t took_ns)
{
	uint64_t rest_ns = took_ns < TICK_NS / 2 ? TICK_NS - took_ns : took_ns;
	struct itimerspec once = {
		.it_value = { .tv_sec = (time_t)(rest_ns / TICK_NS), .tv_nsec = (long)(rest_ns % TICK_NS) },
	};

	return timerfd_settime(manager->timer_fd, 0, &once, NULL) ? -errno : 0;
}

static void handle_timer(struct ph_source *source, uint32_t events)
{
	struct manager *manager = ph_container_of(source, struct manager, timer_source);
	struct ph_clocks before, after;
	uint64_t expired;

	(void)events;
	if (read(manager->timer_fd, &expired, sizeof(expired)) != sizeof(expired))
		return;
	say_alive(manager);
	ph_clocks_read(&before);
	ph_keeper_tick(manager->keeper);
	say_alive(manager);			/* a long tick is followed by as long a rest */
	ph_clocks_read(&after);
	arm_timer(manager, after.boot_ns - before.boot_ns);
}

struct change {
	uint32_t ifindex;			/* of the device in use */
	bool seen;
};

static void notice_link(uint32_t ifindex, const char *interface, bool gone, void *arg)
{
	struct change *change = arg;

	(void)interface, (void)gone;
	change->seen |= ifindex == change->ifindex;
}

/* Without a device in use there is nothing to be quick about: the next tick looks for one. */
static void handle_link(struct ph_source *source, uint32_t events)
{
	struct manager *manager = ph_container_of(source, struct manager, link_source);
	struct change change = { .ifindex = ph_device_state(manager->keeper->device)->ifindex };
	int result = ph_link_watch_drain(manager->link_fd, notice_link, &change);

	(void)events;
	if (change.ifindex && (change.seen || result < 0))
		ph_keeper_check_device(manager->keeper);
}

/* Return: 0 or -errno. */
static int watch_signals(struct manager *manager)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	manager->signal_source.handle = handle_signal;
	manager->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (manager->signal_fd < 0)
		return -errno;
	return ph_events_add(&manager->events, manager->signal_fd, EPOLLIN, &manager->signal_source);
}

static int start_ticking(struct manager *manager)
{
	int err;

	manager->timer_source.handle = handle_timer;
	manager->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (manager->timer_fd < 0)
		return -errno;
	err = arm_timer(manager, 0);
	return err ? err : ph_events_add(&manager->events, manager->timer_fd, EPOLLIN, &manager->timer_source);
}

static int watch_links(struct manager *manager)
{
	int err = ph_link_watch(&manager->link_fd);

	manager->link_source.handle = handle_link;
	if (err)
		return err;
	return ph_events_add(&manager->events, manager->link_fd, EPOLLIN, &manager->link_source);
}

/* Return: 0 or -errno, with @error set. What was opened is closed by finish(). */
static int prepare(struct manager *manager, const struct ph_config *config, const struct ph_manager_args *args,
		   char *error, size_t error_size)
{
	const char *what = "epoll";
	int err = ph_events_init(&manager->events);

	if (!err) {
		manager->verbs.started_ns = manager->events.now_ns;
		what = "signals";
		err = watch_signals(manager);
	}
	if (!err) {
		what = "what the holder counts";
		err = ph_page_open(args->counts_fd, sizeof(*manager->verbs.holder), (const void **)&manager->verbs.holder);
	}
	if (!err) {
		what = "the workers' channels";
		err = ph_fanout_new(&manager->events, args->channel_fds, args->worker_count, &manager->fanout);
	}
	if (!err) {
		what = "watching links";
		err = watch_links(manager);
	}
	if (!err) {
		what = NULL;
		err = ph_keeper_open(config, manager->fanout, args->fresh, args->restarted, &manager->keeper, error,
				     error_size);
	}
	if (!err)
		err = ph_sandbox_manager(error, error_size);
	if (!err) {
		what = "the control socket";
		manager->verbs.keeper = manager->keeper;
		err = ph_server_new(&manager->events, args->control_fd, &ph_verbs_calls, &manager->verbs,
				    &manager->server);
	}
	if (!err) {
		what = "timer";
		err = start_ticking(manager);
	}
	if (err && what)
		snprintf(error, error_size, "%s: %s", what, strerror(-err));
	return err;
}

static void finish(struct manager *manager)
{
	ph_fanout_free(manager->fanout);
	ph_server_free(manager->server);
	ph_keeper_free(manager->keeper);
	if (manager->link_fd >= 0)
		close(manager->link_fd);
	if (manager->timer_fd >= 0)
		close(manager->timer_fd);
	if (manager->signal_fd >= 0)
		close(manager->signal_fd);
	ph_events_close(&manager->events);
}

int ph_manager_main(const struct ph_config *config, const struct ph_manager_args *args)
{
	struct manager manager = {
		.signal_fd = -1, .timer_fd = -1, .link_fd = -1, .events.epoll_fd = -1, .pulse_fd = args->pulse_fd,
	};
	char error[1024];
	int err = prepare(&manager, config, args, error, sizeof(error));

	if (err)
		ph_log(PH_LOG_ERROR, "%s", error);
	else if (say_alive(&manager))
		ph_log(PH_LOG_WARNING, "cannot tell the holder: %m");
	while (!err && !manager.stop) {
		err = ph_events_turn(&manager.events);
		ph_server_sweep(manager.server);
		if (err)
			ph_log(PH_LOG_ERROR, "epoll: %s", strerror(-err));
	}
	finish(&manager);
	return err ? 1 : 0;
}
