/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server - lines over a unix socket: one request a line, answered in order, each before the next is looked at.
 *
 * Who may talk is root, and whoever this process is. Everything is bounded: clients, lines, what is kept to be sent,
 * and how long a client may do nothing.
 */
#ifndef PHALAD_SERVER_H
#define PHALAD_SERVER_H

#include <stddef.h>
#include <stdint.h>

#include "events.h"

#define PH_SERVER_CLIENTS_MAX 64
#define PH_SERVER_LINE_MAX 65536		/* bytes, without the newline */
#define PH_SERVER_IDLE_MS 60000			/* without a byte either way, and without a request under way */

struct ph_server;
struct ph_client;

struct ph_server_calls {
	/*
	 * A line has come; @len bytes, borrowed. To be answered with ph_client_send() and then ph_client_done(), now or
	 * later. @client stays valid until then, even if it goes away.
	 */
	void (*request)(struct ph_client *client, const char *line, size_t len, void *arg);
	/* A longer line has come than PH_SERVER_LINE_MAX. To be answered likewise; the client is closed after that. */
	void (*too_long)(struct ph_client *client, void *arg);
	/* ph_client_more() was called, and what was sent has gone out. */
	void (*more)(struct ph_client *client, void *data, void *arg);
};

/* @listen_fd: non-blocking; it and @events and @calls are the caller's and outlive the server. Return: 0 or -errno. */
int ph_server_new(struct ph_events *events, int listen_fd, const struct ph_server_calls *calls, void *arg,
		  struct ph_server **ret_server);
void ph_server_free(struct ph_server *server);

/* Frees clients that are gone; to be called between turns, because events of them may be in hand during one. */
void ph_server_sweep(struct ph_server *server);

/* @bytes are copied. A client that is gone, or for whom memory is short, gets nothing and is closed. */
void ph_client_send(struct ph_client *client, const char *bytes, size_t len);

/*
 * The answer is long: go on with it in calls.more(), with @data. It is free()d when the answer is done, or after the
 * client has gone, but never within a call of calls.more().
 */
void ph_client_more(struct ph_client *client, void *data);

/* Give up: no answer, or no more of it. ph_client_done() is still to be called, save from calls.more(). */
void ph_client_close(struct ph_client *client);

/* The request is answered; @client is no longer the caller's. */
void ph_client_done(struct ph_client *client);

#endif
