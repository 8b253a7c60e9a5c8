// SPDX-License-Identifier: Apache-2.0
/*
 * worker - start, serve, stop. See worker.h.
 *
 * Everything that needs root or a path comes first: maps, certificates, the keys of session tickets. Then the
 * sandbox, and only then the first accept.
 */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "connection.h"
#include "dial.h"
#include "log.h"
#include "page.h"
#include "sandbox.h"
#include "tickets.h"

struct worker;

struct listener {
	struct ph_source source;
	struct worker *worker;
	int fd;
};

struct worker {
	const struct ph_config *config;
	const struct ph_worker_args *args;
	struct ph_maps *maps;
	struct ph_events events;
	struct ph_connections connections;
	const struct ph_tickets *tickets;

	struct listener listeners[PH_LISTEN_MAX];
	uint32_t limit;				/* of connections */
	bool listening;
	unsigned accepted;			/* since we queued up */
	bool at_limit;				/* not listening because of it */
	struct ph_timer_queue pause_queue;
	struct ph_timer pause;

	struct ph_source channel_source;
	struct ph_message answer;		/* while the channel has no room for it */
	bool answer_waits;

	struct ph_source signal_source;
	int signal_fd;
	bool stopping;

	struct ph_timer_queue heartbeat_queue;
	struct ph_timer heartbeat;
};

/* Accepting. */

static void stop_listening(struct worker *worker)
{
	if (!worker->listening)
		return;
	for (uint32_t i = 0; i < worker->args->listen_count; i++)
		ph_events_remove(&worker->events, worker->listeners[i].fd);
	worker->listening = false;
}

/* Return: 0 or -errno. */
static int listen_again(struct worker *worker)
{
	if (worker->listening)
		return 0;
	for (uint32_t i = 0; i < worker->args->listen_count; i++) {
		int err = ph_events_add(&worker->events, worker->listeners[i].fd, EPOLLIN | EPOLLEXCLUSIVE,
					&worker->listeners[i].source);

		if (err) {
			while (i--)
				ph_events_remove(&worker->events, worker->listeners[i].fd);
			return err;
		}
	}
	worker->listening = true;
	worker->at_limit = false;
	return 0;
}

static void pause_listening(struct worker *worker)
{
	ph_connections_count(&worker->connections, PH_REASON_NO_DESCRIPTORS);
	ph_pipes_close(&worker->connections.means.pipes);
	stop_listening(worker);
	ph_timer_arm(&worker->events, &worker->pause_queue, &worker->pause);
}

static void pause_expired(struct ph_timer *timer)
{
	struct worker *worker = ph_container_of(timer, struct worker, pause);

	if (!worker->stopping && listen_again(worker))
		pause_listening(worker);
}

/*
 * The kernel wakes exclusive waiters in the order in which they came, and so always the first one that has nothing else
 * to do. Queueing up anew now and then spreads long connections over the workers.
 */
static void queue_up_anew(struct worker *worker)
{
	if (worker->config->workers == 1 || worker->accepted < PH_ACCEPT_BATCH)
		return;
	worker->accepted = 0;
	stop_listening(worker);
	if (listen_again(worker))
		pause_listening(worker);
}

/* accept(2): an error of the connection that was to be accepted is no error of the listening socket. */
static bool is_listeners_own(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

static void accept_some(struct ph_source *source, uint32_t events)
{
	struct listener *listener = ph_container_of(source, struct listener, source);
	struct worker *worker = listener->worker;

	(void)events;
	if (!worker->listening)
		return;
	for (unsigned i = 0; i < PH_ACCEPT_BATCH; i++) {
		struct sockaddr_storage client = { 0 };
		socklen_t len = sizeof(client);
		int fd;

		if (i && worker->connections.count >= worker->limit)
			break;			/* nobody makes room before it is known that somebody waits */
		while (worker->connections.count >= worker->limit && ph_connections_make_room(&worker->connections))
			;
		if (worker->connections.count >= worker->limit) {
			ph_connections_count(&worker->connections, PH_REASON_CONNECTION_LIMIT);
			stop_listening(worker);
			worker->at_limit = true;
			if (ph_timer_first(&worker->connections.hello))	/* one that may make room */
				ph_timer_arm(&worker->events, &worker->pause_queue, &worker->pause);
			return;
		}
		fd = accept4(listener->fd, (struct sockaddr *)&client, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			ph_connection_open(&worker->connections, fd, &client);
			worker->accepted++;
		} else if (errno == EAGAIN) {
			break;
		} else if (is_listeners_own(errno)) {
			pause_listening(worker);
			return;
		}
	}
	queue_up_anew(worker);
}

/* What a connection costs at worst, times how many there may be, fits the limit of descriptors. */
static uint32_t connection_limit(void)
{
	struct rlimit limit;
	rlim_t fds;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		limit.rlim_cur = 1024;
	fds = limit.rlim_cur < UINT32_MAX ? limit.rlim_cur : UINT32_MAX;
	if (fds < PH_WORKER_FDS + PH_CONNECTION_FDS)
		return 1;
	return (uint32_t)((fds - PH_WORKER_FDS) / PH_CONNECTION_FDS);
}

/* The manager's requests. */

/* Takes the place of the domain's certificate for new connections. */
static void replace_certificate(struct worker *worker, const struct ph_message *request,
				const int fds[PH_MESSAGE_FDS], struct ph_message *answer)
{
	const struct ph_domain *domain;
	char error[PATH_MAX + 256];
	struct ph_tls *tls;

	if (request->domain >= worker->config->domain_count || fds[0] < 0 || fds[1] < 0) {
		answer->type = PH_MESSAGE_FAILED;
		strcpy(answer->text, "no such domain, or a descriptor is missing");
		return;
	}
	domain = &worker->config->domains[request->domain];
	if (ph_tls_new(domain, fds[0], fds[1], worker->tickets, false, &tls, error, sizeof(error))) {
		answer->type = PH_MESSAGE_FAILED;
		error[sizeof(answer->text) - 1] = '\0';
		strcpy(answer->text, error);
		return;
	}
	ph_tls_free(worker->connections.tls[request->domain]);
	worker->connections.tls[request->domain] = tls;
}

/* Return: true if there is an answer to it. */
static bool carry_out(struct worker *worker, const struct ph_message *request, const int fds[PH_MESSAGE_FDS],
		      struct ph_message *answer)
{
	*answer = (struct ph_message){
		.type = PH_MESSAGE_DONE,
		.worker = worker->args->index,
		.serial = request->serial,
		.ref = request->ref,
		.domain = request->domain,
	};
	switch (request->type) {
	case PH_MESSAGE_END_INSTANCE:
		answer->count = ph_connections_end_instance(&worker->connections, &request->ref);
		return true;
	case PH_MESSAGE_END_STALE:
		answer->count = ph_connections_end_stale(&worker->connections);
		return true;
	case PH_MESSAGE_END_ALL:
		answer->count = ph_connections_end_all(&worker->connections, PH_REASON_TUNNEL_GONE, false);
		return true;
	case PH_MESSAGE_CERTIFICATE:
		replace_certificate(worker, request, fds, answer);
		return true;
	default:
		ph_log(PH_LOG_WARNING, "a message of unknown type %u from the manager", request->type);
		return false;
	}
}

static void watch_channel(struct worker *worker, uint32_t mask)
{
	ph_events_remove(&worker->events, worker->args->channel_fd);
	if (ph_events_add(&worker->events, worker->args->channel_fd, mask, &worker->channel_source)) {
		ph_log(PH_LOG_ERROR, "the manager's channel can't be watched any more");
		worker->stopping = true;		/* a new worker will hear it */
	}
}

/* An answer that finds no room waits, and nothing more is read meanwhile. Return: true to go on. */
static bool send_answer(struct worker *worker)
{
	int err = ph_channel_send(worker->args->channel_fd, &worker->answer, NULL, 0);

	if (err == -EAGAIN) {
		if (!worker->answer_waits)
			watch_channel(worker, EPOLLOUT);
		worker->answer_waits = true;
		return false;
	}
	if (err)
		ph_log(PH_LOG_ERROR, "an answer to the manager is lost: %s", strerror(-err));
	if (worker->answer_waits)
		watch_channel(worker, EPOLLIN);
	worker->answer_waits = false;
	return true;
}

static void channel_happened(struct ph_source *source, uint32_t events)
{
	struct worker *worker = ph_container_of(source, struct worker, channel_source);
	struct ph_message request;
	int fds[PH_MESSAGE_FDS];

	if (events & EPOLLHUP)				/* the holder is gone, and kept the other end until then */
		worker->stopping = true;
	if (worker->answer_waits && !send_answer(worker))
		return;
	while (!worker->stopping) {
		int err = ph_channel_receive(worker->args->channel_fd, &request, fds);
		bool answers;

		if (err == -EAGAIN)
			return;
		if (err) {
			ph_log(PH_LOG_ERROR, "the manager's channel: %s", strerror(-err));
			worker->stopping = err != -EPROTO;	/* that one message is gone, the channel is not */
			continue;
		}
		answers = carry_out(worker, &request, fds, &worker->answer);
		for (int i = 0; i < PH_MESSAGE_FDS; i++) {
			if (fds[i] >= 0)
				close(fds[i]);
		}
		if (answers && !send_answer(worker))
			return;
	}
}

/* Signals and the heartbeat. */

static void signal_happened(struct ph_source *source, uint32_t events)
{
	struct worker *worker = ph_container_of(source, struct worker, signal_source);
	struct signalfd_siginfo info;

	(void)events;
	if (read(worker->signal_fd, &info, sizeof(info)) == sizeof(info))
		worker->stopping = true;
}

/* Whether it comes is the holder's to judge. */
static int say_alive(const struct worker *worker)
{
	return write(worker->args->pulse_fd, "", 1) == 1 ? 0 : -errno;
}

static void beat(struct ph_timer *timer)
{
	struct worker *worker = ph_container_of(timer, struct worker, heartbeat);
	struct ph_worker *stats = worker->connections.stats;

	*(volatile __u64 *)&stats->heartbeat_ns = worker->events.now_ns;
	say_alive(worker);
	ph_timer_arm(&worker->events, &worker->heartbeat_queue, &worker->heartbeat);
}

/* The start. Each returns 0, or -errno with the reason logged. */

static int open_certificates(struct worker *worker)
{
	const struct ph_config *config = worker->config;
	char error[PATH_MAX + 256];
	int err;

	err = ph_page_open(worker->args->tickets_fd, sizeof(*worker->tickets), (const void **)&worker->tickets);
	if (err) {
		ph_log(PH_LOG_ERROR, "the keys of session tickets: %s", strerror(-err));
		return err;
	}
	for (uint32_t i = 0; i < config->domain_count; i++) {
		err = ph_tls_open(&config->domains[i], worker->tickets, worker->args->restarted,
				      &worker->connections.tls[i], error, sizeof(error));

		if (!err)
			continue;
		ph_log(PH_LOG_ERROR, "%s", error);
		if (!worker->args->restarted)
			return err;
		/* A renewal that stopped half-way: other domains and passthrough are served all the same. */
		ph_log(PH_LOG_ERROR, "standard mode of %s is refused until SIGHUP finds it mended", config->domains[i].name);
	}
	return 0;
}

static int open_signals(struct worker *worker)
{
	sigset_t signals;
	int err;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGINT, SIG_IGN);			/* a terminal's goes to the whole group; the holder decides */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &signals, NULL))
		return -errno;
	worker->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (worker->signal_fd < 0) {
		err = -errno;
		ph_log(PH_LOG_ERROR, "signalfd: %s", strerror(-err));
		return err;
	}
	worker->signal_source.handle = signal_happened;
	return ph_events_add(&worker->events, worker->signal_fd, EPOLLIN, &worker->signal_source);
}

/* What is set on a listening socket, accepted ones inherit: a system call less for each. */
static int prepare_listeners(struct worker *worker)
{
	for (uint32_t i = 0; i < worker->args->listen_count; i++) {
		struct listener *listener = &worker->listeners[i];
		int flags, err;

		listener->source.handle = accept_some;
		listener->worker = worker;
		listener->fd = worker->args->listen_fds[i];
		flags = fcntl(listener->fd, F_GETFL);
		err = flags < 0 || fcntl(listener->fd, F_SETFL, flags | O_NONBLOCK) ? -errno : 0;
		if (!err)
			err = ph_dial_prepare(listener->fd);
		if (err) {
			ph_log(PH_LOG_ERROR, "listening socket %u: %s", i, strerror(-err));
			return err;
		}
	}
	return 0;
}

static int start(struct worker *worker)
{
	const struct ph_worker_args *args = worker->args;
	int shared[PH_LISTEN_MAX + 1] = { args->channel_fd };
	char error[PATH_MAX + 256];
	struct ph_worker *stats;
	int err;

	err = ph_maps_open(worker->config->bpf_dir, (int)args->index, &worker->maps, error, sizeof(error));
	if (err) {
		ph_log(PH_LOG_ERROR, "%s", error);
		return err;
	}
	stats = &worker->maps->workers[args->index];
	err = ph_maps_forget_relayed(worker->maps, args->index);
	if (!err)
		err = ph_connections_init(&worker->connections, worker->config, worker->maps, args->index,
					  &worker->events);
	if (err) {
		ph_log(PH_LOG_ERROR, "%s", strerror(-err));
		return err;
	}
	err = ph_ledger_new(worker->config->run_dir, args->index, &worker->connections.ledger);
	if (err)
		ph_log(PH_LOG_WARNING, "%s: no list of connections: %s", worker->config->run_dir, strerror(-err));
	err = open_certificates(worker);
	if (!err)
		err = open_signals(worker);
	if (!err)
		err = prepare_listeners(worker);
	if (err)
		return err;

	ph_events_add_queue(&worker->events, &worker->pause_queue, PH_ACCEPT_PAUSE_MS, pause_expired);
	ph_events_add_queue(&worker->events, &worker->heartbeat_queue, PH_PULSE_MS, beat);
	ph_timer_init(&worker->pause);
	ph_timer_init(&worker->heartbeat);
	worker->channel_source.handle = channel_happened;
	err = ph_events_add(&worker->events, args->channel_fd, EPOLLIN, &worker->channel_source);
	if (err) {
		ph_log(PH_LOG_ERROR, "the manager's channel: %s", strerror(-err));
		return err;
	}
	worker->limit = connection_limit();
	tzset();				/* reads a file, once: else when OpenSSL first looks at a certificate's times */
	memcpy(shared + 1, args->listen_fds, args->listen_count * sizeof(shared[0]));
	err = ph_sandbox_worker(worker->config->user, shared, 1 + args->listen_count, error, sizeof(error));
	if (err) {
		ph_log(PH_LOG_ERROR, "%s", error);
		return err;
	}
	stats->pid = (__u32)getpid();
	stats->active = 0;
	err = listen_again(worker);
	if (err)
		ph_log(PH_LOG_ERROR, "the listening sockets can't be watched: %s", strerror(-err));
	else
		beat(&worker->heartbeat);		/* the first: it is ready */
	return err;
}

static int serve(struct worker *worker)
{
	int err = 0;

	while (!worker->stopping && !err) {
		err = ph_events_turn(&worker->events);
		ph_connections_reap(&worker->connections);
		worker->connections.stats->active = worker->connections.count;
		if (worker->at_limit && worker->connections.count < worker->limit && listen_again(worker))
			pause_listening(worker);
	}
	if (err)
		ph_log(PH_LOG_ERROR, "waiting for events: %s", strerror(-err));
	return err;
}

static void stop(struct worker *worker)
{
	stop_listening(worker);
	if (worker->connections.stats) {
		ph_connections_close(&worker->connections);
		worker->connections.stats->active = 0;
	}
	if (worker->signal_fd >= 0)
		close(worker->signal_fd);
	ph_events_close(&worker->events);
	ph_maps_free(worker->maps);
	free(worker);
}

int ph_worker_main(const struct ph_config *config, const struct ph_worker_args *args)
{
	struct worker *worker = calloc(1, sizeof(*worker));
	int err;

	if (!worker)
		return 1;
	worker->config = config;
	worker->args = args;
	worker->signal_fd = -1;
	err = ph_events_init(&worker->events);
	if (err)
		ph_log(PH_LOG_ERROR, "epoll: %s", strerror(-err));
	else
		err = start(worker);
	if (!err)
		err = serve(worker);
	stop(worker);
	return err ? 1 : 0;
}
