/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fanout - a message to every worker, and who has answered.
 *
 * Workers may be in an attacker's hands: answers are believed only about the worker whose channel they came by, and
 * descriptors from a worker are closed unseen.
 */
#ifndef PHALAD_FANOUT_H
#define PHALAD_FANOUT_H

#include <stddef.h>
#include <stdint.h>

#include "channel.h"
#include "events.h"

#define PH_FANOUT_TIMEOUT_MS 5000		/* for all answers */

struct ph_fanout;

struct ph_fanout_result {
	uint64_t silent;			/* a bit per worker that did not answer in time */
	uint64_t failed;			/* a bit per worker that answered FAILED */
	uint64_t count;				/* sum over the answers DONE */
	char text[sizeof(((struct ph_message *)0)->text)];	/* what the first that failed said, escaped */
};

/* @events and the channels must outlive it. Return: 0 or -errno. */
int ph_fanout_new(struct ph_events *events, const int *channel_fds, uint32_t worker_count,
		  struct ph_fanout **ret_fanout);
/* Calls what is still to be called with the answers that came so far. */
void ph_fanout_free(struct ph_fanout *fanout);

/**
 * ph_fanout_send() - send to all, and collect the answers.
 * @message: serial is filled in.
 * @fds: copied; they stay the caller's.
 * @sent: called once every worker's channel has taken the message, perhaps from within this call: from then on it is
 *        carried out even if this process dies. NULL when nobody wants to know.
 * @done: called once, when all have answered or PH_FANOUT_TIMEOUT_MS are over, never from within this call; or NULL.
 *
 * A message without descriptors is tried until each channel has taken it; one with them is given up at the time-out.
 *
 * Return: 0 or -errno; on failure nothing was sent and nothing is called.
 */
int ph_fanout_send(struct ph_fanout *fanout, const struct ph_message *message, const int *fds, unsigned fd_count,
		   void (*sent)(const struct ph_message *message, void *arg), void *sent_arg,
		   void (*done)(const struct ph_message *message, const struct ph_fanout_result *result, void *arg),
		   void *done_arg);

/* Tries again what a full channel did not take; to be called each second. */
void ph_fanout_retry(struct ph_fanout *fanout);

/* "worker 0, worker 3". Return: @out. */
const char *ph_fanout_names(uint64_t workers, char *out, size_t out_size);

#endif
