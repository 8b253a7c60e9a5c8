// SPDX-License-Identifier: Apache-2.0
/*
 * server - a client reads (no request under way, nothing to send), or has a request under way, or is being sent to.
 * It is gone once its socket is closed; it is freed when it is gone and has no request under way.
 */
#include "server.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"

struct ph_client {
	struct ph_list link;			/* in the server's clients, or its gone */
	struct ph_source source;
	struct ph_timer idle;
	struct ph_server *server;
	int fd;					/* -1 when it is gone */
	uint32_t mask;				/* what epoll watches for */
	bool busy;				/* a request is under way */
	bool ended;				/* it sends no more */
	bool last;				/* close after the answer */
	void *data;				/* of a long answer */
	size_t in_len, out_len, out_at, out_size;
	char *out;
	char in[PH_SERVER_LINE_MAX + 1];	/* with the newline */
};

struct ph_server {
	struct ph_source source;
	struct ph_events *events;
	struct ph_timer_queue idle;
	struct ph_list clients, gone;
	const struct ph_server_calls *calls;
	void *arg;
	int listen_fd;
	int count;
	bool listening;
};

static void listen_while_room(struct ph_server *server)
{
	bool room = server->count < PH_SERVER_CLIENTS_MAX;

	if (room == server->listening)
		return;
	if (room ? ph_events_add(server->events, server->listen_fd, EPOLLIN, &server->source)
		 : ph_events_remove(server->events, server->listen_fd))
		ph_log(PH_LOG_ERROR, "control socket: cannot change what is watched");
	else
		server->listening = room;
}

static void drop(struct ph_client *client)
{
	struct ph_server *server = client->server;

	if (client->fd < 0)
		return;
	ph_timer_disarm(&client->idle);
	ph_events_remove(server->events, client->fd);	/* closing does not, if a child has a copy */
	close(client->fd);
	client->fd = -1;
	ph_list_remove(&client->link);
	ph_list_append(&server->gone, &client->link);
	server->count--;
	listen_while_room(server);
}

static void watch(struct ph_client *client)
{
	struct epoll_event event = { .data.ptr = &client->source };
	bool reads = !client->busy && !client->ended && !client->out_len;

	if (client->fd < 0)
		return;
	event.events = (reads ? EPOLLIN : 0) | (client->out_len || client->data ? EPOLLOUT : 0);
	if (event.events == client->mask)
		return;
	client->mask = event.events;
	if (epoll_ctl(client->server->events->epoll_fd, EPOLL_CTL_MOD, client->fd, &event))
		drop(client);
}

/* Return: is the client still there? */
static bool flush(struct ph_client *client)
{
	while (client->fd >= 0 && client->out_at < client->out_len) {
		ssize_t sent = send(client->fd, client->out + client->out_at, client->out_len - client->out_at,
				    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (sent < 0)
			drop(client);
		else
			client->out_at += sent;
	}
	client->out_at = client->out_len = 0;
	return client->fd >= 0;
}

/* Hands over the next line that is there, if there is one. */
static void next_line(struct ph_client *client)
{
	struct ph_server *server = client->server;
	char *newline = memchr(client->in, '\n', client->in_len);
	size_t len = newline ? (size_t)(newline - client->in) : 0;

	if (!newline && client->in_len < sizeof(client->in))
		return;
	client->busy = true;
	if (!newline) {
		client->last = true;
		client->in_len = 0;
		server->calls->too_long(client, server->arg);
		return;
	}
	server->calls->request(client, client->in, len, server->arg);
	client->in_len -= len + 1;
	memmove(client->in, newline + 1, client->in_len);
}

/*
 * Sends what there is; once it has gone out, makes more of it, or takes the next line: one step a turn, so that neither
 * a long answer nor many requests stop the others. After a step there is something to send, or a request under way.
 */
static void proceed(struct ph_client *client)
{
	if (!flush(client))
		return;
	if (client->out_len)
		;
	else if (client->data)
		client->server->calls->more(client, client->data, client->server->arg);
	else if (!client->busy && client->last)
		drop(client);
	else if (!client->busy)
		next_line(client);
	if (client->ended && !client->busy && !client->out_len)
		drop(client);
	watch(client);
}

static void receive(struct ph_client *client)
{
	ssize_t got = recv(client->fd, client->in + client->in_len, sizeof(client->in) - client->in_len, MSG_DONTWAIT);

	if (got > 0)
		client->in_len += got;
	else if (!got)
		client->ended = true;
	else if (errno != EAGAIN && errno != EINTR)
		drop(client);
}

static void handle_client(struct ph_source *source, uint32_t events)
{
	struct ph_client *client = ph_container_of(source, struct ph_client, source);

	if (client->fd < 0)
		return;
	if (events & (EPOLLHUP | EPOLLERR)) {
		drop(client);
		return;
	}
	ph_timer_arm(client->server->events, &client->server->idle, &client->idle);
	if (events & EPOLLIN && client->in_len < sizeof(client->in))
		receive(client);
	if (client->fd >= 0)
		proceed(client);
}

static void expire(struct ph_timer *timer)
{
	struct ph_client *client = ph_container_of(timer, struct ph_client, idle);

	if (client->busy && !client->out_len)
		ph_timer_arm(client->server->events, &client->server->idle, &client->idle);
	else
		drop(client);
}

static bool may_talk(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return false;
	return !peer.uid || peer.uid == geteuid();
}

/* Return: 0 or -errno; on failure @fd is still the caller's. */
static int add_client(struct ph_server *server, int fd)
{
	struct ph_client *client = malloc(sizeof(*client));
	int err;

	if (!client)
		return -ENOMEM;
	memset(client, 0, offsetof(struct ph_client, in));
	client->server = server;
	client->source.handle = handle_client;
	client->fd = fd;
	client->mask = EPOLLIN;
	err = ph_events_add(server->events, fd, client->mask, &client->source);
	if (err) {
		free(client);
		return err;
	}
	ph_list_init(&client->link);
	ph_list_append(&server->clients, &client->link);
	ph_timer_init(&client->idle);
	ph_timer_arm(server->events, &server->idle, &client->idle);
	server->count++;
	listen_while_room(server);
	return 0;
}

/* One a turn: whoever else waits makes the next turn come at once. */
static void handle_listener(struct ph_source *source, uint32_t events)
{
	struct ph_server *server = ph_container_of(source, struct ph_server, source);
	int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd < 0)
		return;
	if (!may_talk(fd))
		ph_log(PH_LOG_WARNING, "control socket: a client that is not root is refused");
	else if (!add_client(server, fd))
		return;
	close(fd);
}

int ph_server_new(struct ph_events *events, int listen_fd, const struct ph_server_calls *calls, void *arg,
		  struct ph_server **ret_server)
{
	struct ph_server *server = calloc(1, sizeof(*server));
	int err;

	if (!server)
		return -ENOMEM;
	server->source.handle = handle_listener;
	server->events = events;
	server->calls = calls;
	server->arg = arg;
	server->listen_fd = listen_fd;
	ph_list_init(&server->clients);
	ph_list_init(&server->gone);
	err = ph_events_add(events, listen_fd, EPOLLIN, &server->source);
	if (err) {
		free(server);
		return err;
	}
	server->listening = true;
	ph_events_add_queue(events, &server->idle, PH_SERVER_IDLE_MS, expire);
	*ret_server = server;
	return 0;
}

static void free_client(struct ph_client *client)
{
	ph_list_remove(&client->link);
	free(client->data);
	free(client->out);
	free(client);
}

void ph_server_sweep(struct ph_server *server)
{
	struct ph_list *link, *next;

	for (link = server->gone.next; link != &server->gone; link = next) {
		struct ph_client *client = ph_container_of(link, struct ph_client, link);

		next = link->next;
		/* Nobody will ask for more of a long answer. */
		if (client->data || !client->busy)
			free_client(client);
	}
}

void ph_server_free(struct ph_server *server)
{
	if (!server)
		return;
	while (!ph_list_is_empty(&server->clients))
		drop(ph_container_of(server->clients.next, struct ph_client, link));
	while (!ph_list_is_empty(&server->gone))
		free_client(ph_container_of(server->gone.next, struct ph_client, link));
	if (server->listening)
		ph_events_remove(server->events, server->listen_fd);
	free(server);
}

void ph_client_send(struct ph_client *client, const char *bytes, size_t len)
{
	if (client->fd < 0)
		return;
	if (client->out_size - client->out_len < len) {
		size_t size = client->out_len + len;
		char *out = realloc(client->out, size);

		if (!out) {
			drop(client);
			return;
		}
		client->out = out;
		client->out_size = size;
	}
	memcpy(client->out + client->out_len, bytes, len);
	client->out_len += len;
	watch(client);
}

void ph_client_more(struct ph_client *client, void *data)
{
	client->data = data;
	watch(client);
}

void ph_client_close(struct ph_client *client)
{
	drop(client);
}

void ph_client_done(struct ph_client *client)
{
	free(client->data);
	client->data = NULL;
	client->busy = false;
	watch(client);
}
