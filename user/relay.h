/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay - move a TCP stream both ways between client and CVM without looking at it.
 *
 * Knows nothing of time-outs, names or epoll. Sockets are non-blocking and watched edge-triggered; whoever watches sets
 * @readable and @writable in an end, the relay clears them when the kernel says "not now".
 */
#ifndef PHALAD_RELAY_H
#define PHALAD_RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/abi.h>

#include "pipes.h"

/* What is known about one of the two sockets. */
struct ph_end {
	int fd;					/* -1: none */
	bool readable, writable;
	bool hangup;				/* the peer sent its FIN */
	bool failed;				/* the socket has an error; what it received before may still be read */
};

enum ph_progress {
	PH_PROGRESS_WAIT,			/* nothing more to do before a socket is ready again */
	PH_PROGRESS_AGAIN,			/* others' turn, then on */
	PH_PROGRESS_OVER,			/* the connection has ended, for a reason */
};

/* One direction. */
struct ph_stream {
	struct ph_pipe pipe;			/* none while it is empty */
	uint32_t in_pipe;			/* bytes */
	bool ended;				/* a FIN was read */
	bool finished;				/* and passed on, after everything before it */
};

struct ph_relay {
	struct ph_stream to_cvm, to_client;
};

/* What a worker's relays share. */
struct ph_relay_means {
	struct ph_pipes pipes;
	struct ph_worker *stats;		/* bytes are counted here */
	uint8_t *scratch;			/* nothing in it lasts */
	size_t scratch_size;
};

void ph_relay_init(struct ph_relay *relay);

/**
 * ph_relay_run() - move what can be moved.
 * @ret_reason: set on PH_PROGRESS_OVER: CLOSED after both FINs, CLIENT_RESET or CVM_RESET.
 *
 * A FIN is passed on as one after the last byte before it. A stopped reader costs what one pipe holds: PH_PIPE_BYTES, or,
 * for PH_PIPES_WIDE of them in all, PH_PIPE_WIDE_BYTES.
 */
enum ph_progress ph_relay_run(struct ph_relay *relay, struct ph_end *client, struct ph_end *cvm,
			      struct ph_relay_means *means, enum ph_reason *ret_reason);

/* Gives back what it holds. */
void ph_relay_close(struct ph_relay *relay, struct ph_relay_means *means);

#endif
