// SPDX-License-Identifier: Apache-2.0
/*
 * holder - states: the manager starts, and must say that it is ready; then the workers, each the same; then all run,
 * and whichever dies is started again; then all stop. A death before all run ends phalad: it is a mistake that a
 * restart does not mend.
 *
 * While no worker runs, clients wait in the listening sockets' queues; when one does not come back soon, because it
 * crashes at each start, they are turned away instead, so that silent ones do not fill the queues: a full one answers no
 * SYN, and passthrough needs the answer too.
 *
 * Who runs gives a sign of life each PH_PULSE_MS; of whom nothing is heard for the watchdog's time is killed, and so
 * started again. That time is systemd's WatchdogSec, by which the holder itself is watched, else PH_WATCHDOG_MS.
 */
#include "holder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dial.h"
#include "listener.h"
#include "lock.h"
#include "log.h"
#include "notify.h"
#include "page.h"
#include "tickets.h"
#include "worker.h"

#define STOP_TIMEOUT_MS 5000			/* from SIGTERM to SIGKILL */
#define STABLE_MS 5000				/* who lives longer than this is started again at once */
#define BACKOFF_FIRST_MS 100
#define BACKOFF_MAX_MS 2000
#define OVERSLEPT_MS (3 * PH_PULSE_MS)		/* a turn that takes longer: the holder was stopped, or starved */

#define CHILD_NAME_SIZE 24
#define MANAGER 0				/* place among the children; worker N is at 1 + N */
#define CHILDREN_MAX (1 + PH_WORKERS_MAX)

enum state {
	STARTING_MANAGER,
	STARTING_WORKERS,
	RUNNING,
	STOPPING,
};

struct child {
	pid_t pid;				/* 0 while it does not run */
	int pulse_fd;				/* -1 while it does not run */
	bool ready;				/* its first byte came */
	bool hung;				/* killed for silence */
	int64_t heard_ms;			/* when its last byte came */
	bool again;				/* not its first start */
	int64_t started_ms;
	int64_t start_ms;			/* when to start it again; 0 is not at all */
	int backoff_ms;				/* before its last start */
};

struct holder {
	const struct ph_config *config;
	int config_fd;
	bool fresh;
	enum state state;
	bool reload;				/* certificates are to be read anew, and the manager does not know */
	int status;
	uint32_t watchdog_ms, notify_ms;	/* the children's; systemd's, 0 if it does not watch */
	int64_t notified_ms;
	bool told_ready;
	int turn_ms;				/* it sleeps no longer */
	int64_t served_ms;			/* when a worker was last ready */
	int64_t accept_ms;			/* not before, for want of descriptors */
	bool away;				/* clients are turned away */
	int64_t rotate_ms;			/* CLOCK_BOOTTIME: when a new key for session tickets is due */
	struct ph_tickets *tickets;		/* workers read them by tickets_fd */
	struct ph_holder_counts *counts;	/* the manager reads them by counts_fd */
	char control_path[PATH_MAX + 16];
	int lock_fd, control_fd, tickets_fd, counts_fd, signal_fd;
	int listen_fds[PH_LISTEN_MAX];
	int channels[PH_WORKERS_MAX][2];	/* the manager's end, the worker's */
	struct child children[CHILDREN_MAX];
	int child_count;
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const char *child_name(int place, char out[CHILD_NAME_SIZE])
{
	if (place == MANAGER)
		return "manager";
	snprintf(out, CHILD_NAME_SIZE, "worker %d", place - 1);
	return out;
}

/* Tickets of one worker are good at all the others, and after its death. Return: 0 or -errno. */
static int make_tickets(struct holder *holder)
{
	int err = ph_page_new("tickets", sizeof(*holder->tickets), &holder->tickets_fd, (void **)&holder->tickets);

	return err ? err : ph_tickets_init(holder->tickets);
}

/* By a clock that goes on while the machine sleeps: the keys grow old all the same. */
static int64_t boot_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void rotate_tickets(struct holder *holder)
{
	int err = ph_tickets_rotate(holder->tickets);

	if (err)
		ph_log(PH_LOG_ERROR, "no new key for session tickets: %s", strerror(-err));
}

static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		ph_log(PH_LOG_WARNING, "cannot raise the limit of descriptors: %m");
}

/* Everything that outlives a child. Return: 0; or -1, and why is logged. */
static int prepare(struct holder *holder)
{
	const struct ph_config *config = holder->config;
	char error[PATH_MAX + 512];
	sigset_t signals;
	int err;

	if (ph_lock_take(config->run_dir, &holder->lock_fd, error, sizeof(error))) {
		ph_log(PH_LOG_ERROR, "%s", error);
		return -1;
	}
	raise_descriptor_limit();
	ph_dial_prepare_host();
	snprintf(holder->control_path, sizeof(holder->control_path), "%s/control.sock", config->run_dir);
	if (ph_listener_open(config, holder->listen_fds, error, sizeof(error)) ||
	    ph_listener_open_control(holder->control_path, &holder->control_fd, error, sizeof(error))) {
		ph_log(PH_LOG_ERROR, "%s", error);
		return -1;
	}
	for (uint32_t i = 0; i < config->workers; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, holder->channels[i])) {
			ph_log(PH_LOG_ERROR, "cannot make the channel of worker %u: %m", i);
			return -1;
		}
	}
	err = ph_page_new("counts", sizeof(*holder->counts), &holder->counts_fd, (void **)&holder->counts);
	if (err) {
		ph_log(PH_LOG_ERROR, "cannot make the page of counts: %s", strerror(-err));
		return -1;
	}
	err = make_tickets(holder);
	if (err) {
		ph_log(PH_LOG_ERROR, "cannot make the keys of session tickets: %s", strerror(-err));
		return -1;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	holder->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (holder->signal_fd < 0) {
		ph_log(PH_LOG_ERROR, "signalfd: %m");
		return -1;
	}
	return 0;
}

/* In the child: becomes the role, with @fds and nothing else inherited. A new image has a new address space layout. */
__attribute__((noreturn)) static void become(const struct holder *holder, int place, pid_t parent, const int *fds,
					     int fd_count)
{
	char config_path[32], list[PH_ROLE_FDS_MAX * 12] = "", name[CHILD_NAME_SIZE], index[16];
	const struct child *child = &holder->children[place];
	const char *argv[16];
	size_t used = 0;
	sigset_t blocked;
	int argc = 0;

	/* The signal is lost if the parent is dead by now: look once more. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(1);
	setpgid(0, 0);					/* a terminal's interrupt is for the holder alone */
	unsetenv("NOTIFY_SOCKET");
	sigemptyset(&blocked);
	if (place == MANAGER)
		sigaddset(&blocked, SIGHUP);		/* until it can take one, a reload waits */
	sigprocmask(SIG_SETMASK, &blocked, NULL);

	for (int i = 0; i < fd_count; i++) {
		fcntl(fds[i], F_SETFD, 0);
		used += snprintf(list + used, sizeof(list) - used, i ? ",%d" : "%d", fds[i]);
	}
	fcntl(holder->config_fd, F_SETFD, 0);
	snprintf(config_path, sizeof(config_path), "/proc/self/fd/%d", holder->config_fd);
	snprintf(index, sizeof(index), "%d", place - 1);

	argv[argc++] = "phalad";
	argv[argc++] = "--role";
	argv[argc++] = place == MANAGER ? "manager" : "worker";
	if (place != MANAGER)
		argv[argc++] = index;
	argv[argc++] = "--config";
	argv[argc++] = config_path;
	argv[argc++] = "--fds";
	argv[argc++] = list;
	if (child->again)
		argv[argc++] = "--again";
	else if (holder->fresh && place == MANAGER)
		argv[argc++] = "--fresh";
	argv[argc] = NULL;
	execv("/proc/self/exe", (char *const *)argv);
	ph_log(PH_LOG_ERROR, "cannot start %s: /proc/self/exe: %m", child_name(place, name));
	_exit(1);
}

static int role_fds(const struct holder *holder, int place, int pulse_fd, int fds[PH_ROLE_FDS_MAX])
{
	int count;

	if (place == MANAGER) {
		fds[PH_MANAGER_FD_CONTROL] = holder->control_fd;
		fds[PH_MANAGER_FD_PULSE] = pulse_fd;
		fds[PH_MANAGER_FD_COUNTS] = holder->counts_fd;
		count = PH_MANAGER_FD_CHANNELS;
		for (uint32_t i = 0; i < holder->config->workers; i++)
			fds[count++] = holder->channels[i][0];
	} else {
		fds[PH_WORKER_FD_CHANNEL] = holder->channels[place - 1][1];
		fds[PH_WORKER_FD_TICKETS] = holder->tickets_fd;
		fds[PH_WORKER_FD_PULSE] = pulse_fd;
		count = PH_WORKER_FD_LISTEN;
		for (uint32_t i = 0; i < holder->config->listen_count; i++)
			fds[count++] = holder->listen_fds[i];
	}
	return count;
}

/* Return: 0 or -errno. */
static int start(struct holder *holder, int place)
{
	struct child *child = &holder->children[place];
	int pulse[2], fds[PH_ROLE_FDS_MAX], fd_count, err = 0;
	pid_t self = getpid(), pid;

	if (pipe2(pulse, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	fd_count = role_fds(holder, place, pulse[1], fds);
	pid = fork();
	if (!pid)
		become(holder, place, self, fds, fd_count);
	if (pid < 0)
		err = -errno;
	close(pulse[1]);
	if (err) {
		close(pulse[0]);
		return err;
	}
	child->pid = pid;
	child->pulse_fd = pulse[0];
	child->ready = child->hung = false;
	child->started_ms = now_ms();
	child->start_ms = 0;
	return 0;
}

static void signal_all(struct holder *holder, int number)
{
	for (int i = 0; i < holder->child_count; i++) {
		if (holder->children[i].pid)
			kill(holder->children[i].pid, number);
	}
}

static void stop(struct holder *holder, int status)
{
	if (holder->state == STOPPING)
		return;
	holder->state = STOPPING;
	holder->status = status;
	ph_notify("STOPPING=1");
}

static void start_or_retry(struct holder *holder, int place)
{
	struct child *child = &holder->children[place];
	char name[CHILD_NAME_SIZE];
	int err = start(holder, place);

	if (!err)
		return;
	ph_log(PH_LOG_ERROR, "cannot start %s: %s", child_name(place, name), strerror(-err));
	if (holder->state == RUNNING)
		child->start_ms = now_ms() + BACKOFF_MAX_MS;
	else
		stop(holder, 1);
}

static void log_end(const char *name, pid_t pid, int status, int64_t delay_ms, bool again)
{
	char how[64], then[48] = "";

	if (WIFSIGNALED(status))
		snprintf(how, sizeof(how), "was killed by signal %d (%s)", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	else
		snprintf(how, sizeof(how), "ended with status %d", WEXITSTATUS(status));
	if (again && delay_ms)
		snprintf(then, sizeof(then), "; starts again in %lld ms", (long long)delay_ms);
	else if (again)
		snprintf(then, sizeof(then), "; starts again at once");
	ph_log(again ? PH_LOG_WARNING : PH_LOG_ERROR, "%s (process %d) %s%s", name, pid, how, then);
}

/* Did it end as a child does that is told to? Before it has a handler, SIGTERM just kills it. */
static bool was_told(int status)
{
	return !status || (WIFSIGNALED(status) && (WTERMSIG(status) == SIGTERM || WTERMSIG(status) == SIGKILL));
}

static void child_ended(struct holder *holder, int place, int status)
{
	struct child *child = &holder->children[place];
	int64_t now = now_ms(), delay = 0;
	char name[CHILD_NAME_SIZE];

	if (child->pulse_fd >= 0)
		close(child->pulse_fd);
	child->pulse_fd = -1;
	child->ready = false;
	if (holder->state == RUNNING) {
		holder->counts->restarts++;
		if (child->again && now - child->started_ms < STABLE_MS) {
			delay = child->backoff_ms ? child->backoff_ms * 2 : BACKOFF_FIRST_MS;
			delay = delay < BACKOFF_MAX_MS ? delay : BACKOFF_MAX_MS;
		}
		child->backoff_ms = delay;
		child->again = true;
		child->start_ms = now + delay;
		log_end(child_name(place, name), child->pid, status, delay, true);
	} else if (holder->state != STOPPING || !was_told(status)) {
		log_end(child_name(place, name), child->pid, status, 0, false);
	}
	child->pid = 0;
	if (holder->state != RUNNING)
		stop(holder, 1);			/* no effect on a stop that was asked for */
}

static void reap(struct holder *holder)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < holder->child_count; i++) {
			if (holder->children[i].pid == pid)
				child_ended(holder, i, status);
		}
	}
}

/* A manager that is about to start gets it then. */
static void forward_reload(struct holder *holder)
{
	pid_t manager = holder->children[MANAGER].pid;

	if (holder->reload && manager && !kill(manager, SIGHUP))
		holder->reload = false;
}

static void read_signals(struct holder *holder)
{
	struct signalfd_siginfo info;

	while (read(holder->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		switch (info.ssi_signo) {
		case SIGTERM:
		case SIGINT:
			stop(holder, 0);
			break;
		case SIGHUP:
			holder->reload = true;
			rotate_tickets(holder);
			holder->rotate_ms = boot_now_ms() + PH_TICKET_ROTATE_MS;
			break;
		}
	}
	reap(holder);					/* SIGCHLD may stand for several */
	forward_reload(holder);
}

static void read_pulse(struct holder *holder, int place)
{
	struct child *child = &holder->children[place];
	char bytes[64];
	ssize_t got = read(child->pulse_fd, bytes, sizeof(bytes));

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got > 0) {
		child->ready = true;
		child->heard_ms = now_ms();
		return;
	}
	close(child->pulse_fd);				/* it ended, and SIGCHLD follows */
	child->pulse_fd = -1;
}

/* Ends who says nothing any more. Stopped processes too, so it takes a signal that nobody can put off. */
static void watch(struct holder *holder)
{
	int64_t now = now_ms();

	for (int i = 0; i < holder->child_count; i++) {
		struct child *child = &holder->children[i];
		int64_t patience = (int64_t)holder->watchdog_ms * (child->ready ? 1 : PH_WATCHDOG_START);
		int64_t since = child->ready ? child->heard_ms : child->started_ms;
		char name[CHILD_NAME_SIZE];

		if (!child->pid || child->hung || now - since < patience)
			continue;
		ph_log(PH_LOG_ERROR, "%s (process %d) has not been heard of for %lld ms: killed", child_name(i, name),
		       child->pid, (long long)(now - since));
		child->hung = true;
		holder->counts->hung++;
		kill(child->pid, SIGKILL);
	}
}

/* The holder itself did not run: the others may not have either, and their time begins anew. */
static void forgive(struct holder *holder)
{
	int64_t now = now_ms();

	for (int i = 0; i < holder->child_count; i++)
		holder->children[i].heard_ms = holder->children[i].started_ms = now;
	holder->served_ms = now;
}

/* For how long has no worker been there? Clients wait for a while, and then no more. */
static void judge_workers(struct holder *holder)
{
	int64_t now = now_ms();
	bool away;

	for (int i = 1; i < holder->child_count; i++) {
		if (holder->children[i].ready)
			holder->served_ms = now;
	}
	away = now - holder->served_ms > PH_AWAY_MS;
	if (away && !holder->away)
		ph_log(PH_LOG_ERROR, "no worker runs: who connects is turned away");
	else if (!away && holder->away)
		ph_log(PH_LOG_INFO, "a worker runs: %llu connections have been turned away so far",
		       (unsigned long long)holder->counts->turned_away);
	holder->away = away;
}

static void turn_away(struct holder *holder, int listen_fd)
{
	int count = ph_listener_turn_away(listen_fd);

	if (count < 0)
		holder->accept_ms = now_ms() + PH_ACCEPT_PAUSE_MS;
	else
		holder->counts->turned_away += count;
}

static void notify(struct holder *holder)
{
	int64_t now = now_ms();

	if (!holder->told_ready)
		holder->told_ready = ph_notify("READY=1") != -EAGAIN;
	if (!holder->notify_ms || now - holder->notified_ms < holder->notify_ms / 4)
		return;
	holder->notified_ms = now;
	ph_notify("WATCHDOG=1");
}

/* Goes on to the next state when everybody who was started is ready. */
static void advance(struct holder *holder)
{
	int count = holder->state == STARTING_MANAGER ? 1 : holder->child_count;

	for (int i = 0; i < count; i++) {
		if (!holder->children[i].ready)
			return;
	}
	if (holder->state == STARTING_MANAGER) {
		holder->state = STARTING_WORKERS;
		for (int i = 1; i < holder->child_count && holder->state == STARTING_WORKERS; i++)
			start_or_retry(holder, i);
	} else if (holder->state == STARTING_WORKERS) {
		holder->state = RUNNING;
		holder->rotate_ms = boot_now_ms() + PH_TICKET_ROTATE_MS;
		ph_log(PH_LOG_INFO, "ready: %u workers", holder->config->workers);
	}
}

/* Starts whose time has come. Return: milliseconds until the next one's, or -1. */
static int restart(struct holder *holder)
{
	int64_t now = now_ms(), next = -1;

	for (int i = 0; i < holder->child_count; i++) {
		struct child *child = &holder->children[i];

		if (child->start_ms && child->start_ms <= now)
			start_or_retry(holder, i);
		if (child->start_ms && (next < 0 || child->start_ms - now < next))
			next = child->start_ms > now ? child->start_ms - now : 0;
	}
	return (int)next;
}

static void run(struct holder *holder)
{
	struct pollfd polls[1 + CHILDREN_MAX + PH_LISTEN_MAX];

	start_or_retry(holder, MANAGER);
	while (holder->state != STOPPING) {
		int timeout = restart(holder);
		int64_t asleep_ms = now_ms();
		bool turns_away = holder->away && asleep_ms >= holder->accept_ms;
		int count = 1 + holder->child_count;

		if (timeout < 0 || timeout > holder->turn_ms)
			timeout = holder->turn_ms;
		forward_reload(holder);
		polls[0] = (struct pollfd){ .fd = holder->signal_fd, .events = POLLIN };
		for (int i = 0; i < holder->child_count; i++)
			polls[1 + i] = (struct pollfd){ .fd = holder->children[i].pulse_fd, .events = POLLIN };
		for (uint32_t i = 0; turns_away && i < holder->config->listen_count; i++)
			polls[count++] = (struct pollfd){ .fd = holder->listen_fds[i], .events = POLLIN };
		if (poll(polls, count, timeout) < 0)
			continue;
		for (int i = 0; i < holder->child_count; i++) {
			if (polls[1 + i].revents && holder->children[i].pulse_fd >= 0)
				read_pulse(holder, i);
		}
		for (int i = 1 + holder->child_count; i < count; i++) {
			if (polls[i].revents)
				turn_away(holder, polls[i].fd);
		}
		if (polls[0].revents)
			read_signals(holder);
		if (holder->state < RUNNING)
			advance(holder);
		if (now_ms() - asleep_ms > OVERSLEPT_MS)
			forgive(holder);
		if (holder->state == RUNNING) {
			watch(holder);
			if (boot_now_ms() >= holder->rotate_ms) {
				rotate_tickets(holder);
				holder->rotate_ms += PH_TICKET_ROTATE_MS;	/* one a turn, for each that was slept through */
			}
			judge_workers(holder);
			notify(holder);
		}
	}
}

/* Asks everybody to end, and after STOP_TIMEOUT_MS ends them. */
static void stop_children(struct holder *holder)
{
	struct pollfd poll_signal = { .fd = holder->signal_fd, .events = POLLIN };
	int64_t until = now_ms() + STOP_TIMEOUT_MS;
	bool killed = false;

	signal_all(holder, SIGTERM);
	for (;;) {
		int64_t left = until - now_ms();
		int alive = 0;

		for (int i = 0; i < holder->child_count; i++)
			alive += holder->children[i].pid != 0;
		if (!alive)
			return;
		if (left <= 0 && !killed) {
			ph_log(PH_LOG_WARNING, "%d processes did not stop within %d ms: killed", alive,
			       STOP_TIMEOUT_MS);
			signal_all(holder, SIGKILL);
			killed = true;
		}
		poll(&poll_signal, 1, left > 0 ? (int)left : 1000);
		read_signals(holder);
	}
}

int ph_holder_main(const struct ph_config *config, int config_fd, bool fresh)
{
	struct holder holder = {
		.config = config,
		.config_fd = config_fd,
		.fresh = fresh,
		.state = STARTING_MANAGER,
		.child_count = 1 + (int)config->workers,
		.notify_ms = ph_notify_watchdog_ms(),
		.turn_ms = PH_PULSE_MS,
	};

	holder.watchdog_ms = holder.notify_ms ? holder.notify_ms : PH_WATCHDOG_MS;
	if (holder.watchdog_ms < 3 * PH_PULSE_MS)
		holder.watchdog_ms = 3 * PH_PULSE_MS;
	if (holder.notify_ms && holder.notify_ms / 4 < PH_PULSE_MS)
		holder.turn_ms = 1 + (int)holder.notify_ms / 4;
	for (int i = 0; i < CHILDREN_MAX; i++)
		holder.children[i].pulse_fd = -1;
	if (prepare(&holder))
		return 1;
	run(&holder);
	stop_children(&holder);
	unlink(holder.control_path);
	ph_log(PH_LOG_INFO, "stopped");
	return holder.status;
}
