// SPDX-License-Identifier: Apache-2.0
#include "fanout.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "log.h"

#define ANSWERS_PER_TURN 64			/* from one worker, so that a flood of them does not stop the others */

_Static_assert(PH_WORKERS_MAX <= 64, "a bit per worker");

struct channel {
	struct ph_source source;
	struct ph_fanout *fanout;
	int fd;
};

struct job {
	struct ph_list link;
	struct ph_timer timer;
	struct ph_fanout *fanout;
	struct ph_message message;
	struct ph_fanout_result result;
	int fds[PH_MESSAGE_FDS];
	unsigned fd_count;
	uint64_t unsent;			/* a bit per worker */
	bool reported;
	void (*sent)(const struct ph_message *message, void *arg);
	void *sent_arg;
	void (*done)(const struct ph_message *message, const struct ph_fanout_result *result, void *arg);
	void *done_arg;
};

struct ph_fanout {
	struct ph_events *events;
	struct ph_timer_queue deadlines;
	struct ph_list jobs;
	uint64_t serial;
	uint32_t count;
	struct channel channels[PH_WORKERS_MAX];
};

static void free_job(struct job *job)
{
	ph_list_remove(&job->link);
	ph_timer_disarm(&job->timer);
	for (unsigned i = 0; i < job->fd_count; i++)
		close(job->fds[i]);
	free(job);
}

/* A job lives until it is both on its way to everybody and reported. */
static void settle(struct job *job)
{
	if (!job->result.silent && !job->reported) {
		job->reported = true;
		if (job->done)
			job->done(&job->message, &job->result, job->done_arg);
	}
	if (job->reported && !job->unsent)
		free_job(job);
}

/* @behind: workers that have yet to take an earlier one; to each they go in order. */
static void try_send(struct job *job, uint64_t behind)
{
	uint64_t before = job->unsent;

	for (uint32_t i = 0; i < job->fanout->count; i++) {
		uint64_t bit = (uint64_t)1 << i;
		int err;

		if (!(job->unsent & ~behind & bit))
			continue;
		err = ph_channel_send(job->fanout->channels[i].fd, &job->message, job->fds, job->fd_count);
		if (!err)
			job->unsent &= ~bit;
		else if (err != -EAGAIN)
			ph_log(PH_LOG_ERROR, "channel of worker %u: %s", i, strerror(-err));
	}
	if (before && !job->unsent && job->sent)
		job->sent(&job->message, job->sent_arg);
}

static void expire(struct ph_timer *timer)
{
	struct job *job = ph_container_of(timer, struct job, timer);

	job->reported = true;
	if (job->done)
		job->done(&job->message, &job->result, job->done_arg);
	if (job->fd_count)
		job->unsent = 0;
	settle(job);
}

static struct job *find_job(struct ph_fanout *fanout, uint64_t serial)
{
	for (struct ph_list *link = fanout->jobs.next; link != &fanout->jobs; link = link->next) {
		struct job *job = ph_container_of(link, struct job, link);

		if (job->message.serial == serial)
			return job;
	}
	return NULL;
}

/* An answer to a manager that is no more, or to a job that was given up, has no job here. */
static void take_answer(struct ph_fanout *fanout, uint32_t worker, const struct ph_message *answer)
{
	struct job *job = find_job(fanout, answer->serial);
	uint64_t bit = (uint64_t)1 << worker;

	if (!job || !(job->result.silent & bit) || job->unsent & bit || job->reported)
		return;
	if (answer->type != PH_MESSAGE_DONE && answer->type != PH_MESSAGE_FAILED)
		return;
	job->result.silent &= ~bit;
	if (answer->type == PH_MESSAGE_DONE) {
		job->result.count += answer->count;
	} else {
		if (!job->result.failed)
			ph_log_escape(job->result.text, sizeof(job->result.text), answer->text, strlen(answer->text));
		job->result.failed |= bit;
	}
	settle(job);
}

static void handle(struct ph_source *source, uint32_t events)
{
	struct channel *channel = ph_container_of(source, struct channel, source);
	struct ph_fanout *fanout = channel->fanout;
	uint32_t worker = (uint32_t)(channel - fanout->channels);
	struct ph_message answer;
	int fds[PH_MESSAGE_FDS], err = 0;

	(void)events;
	for (int i = 0; i < ANSWERS_PER_TURN && err != -EAGAIN; i++) {
		err = ph_channel_receive(channel->fd, &answer, fds);
		if (err == -EPIPE) {
			/* Only without a holder; then this process is about to end as well. */
			ph_events_remove(fanout->events, channel->fd);
			return;
		}
		if (err)
			continue;
		for (int j = 0; j < PH_MESSAGE_FDS; j++) {
			if (fds[j] >= 0)
				close(fds[j]);
		}
		take_answer(fanout, worker, &answer);
	}
}

int ph_fanout_new(struct ph_events *events, const int *channel_fds, uint32_t worker_count,
		  struct ph_fanout **ret_fanout)
{
	struct ph_fanout *fanout;
	int err = 0;

	if (worker_count > PH_WORKERS_MAX)
		return -EINVAL;
	fanout = calloc(1, sizeof(*fanout));
	if (!fanout)
		return -ENOMEM;
	fanout->events = events;
	fanout->serial = events->now_ns;		/* never an earlier manager's */
	fanout->count = worker_count;
	ph_list_init(&fanout->jobs);
	ph_events_add_queue(events, &fanout->deadlines, PH_FANOUT_TIMEOUT_MS, expire);
	for (uint32_t i = 0; i < worker_count && !err; i++) {
		struct channel *channel = &fanout->channels[i];

		channel->source.handle = handle;
		channel->fanout = fanout;
		channel->fd = channel_fds[i];
		err = ph_events_add(events, channel->fd, EPOLLIN, &channel->source);
	}
	if (err) {
		ph_fanout_free(fanout);
		return err;
	}
	*ret_fanout = fanout;
	return 0;
}

void ph_fanout_free(struct ph_fanout *fanout)
{
	if (!fanout)
		return;
	while (!ph_list_is_empty(&fanout->jobs)) {
		struct job *job = ph_container_of(fanout->jobs.next, struct job, link);

		if (!job->reported && job->done)
			job->done(&job->message, &job->result, job->done_arg);
		free_job(job);
	}
	free(fanout);
}

int ph_fanout_send(struct ph_fanout *fanout, const struct ph_message *message, const int *fds, unsigned fd_count,
		   void (*sent)(const struct ph_message *message, void *arg), void *sent_arg,
		   void (*done)(const struct ph_message *message, const struct ph_fanout_result *result, void *arg),
		   void *done_arg)
{
	uint64_t all = fanout->count < 64 ? ((uint64_t)1 << fanout->count) - 1 : ~(uint64_t)0, behind = 0;
	struct job *job;

	if (fd_count > PH_MESSAGE_FDS)
		return -EINVAL;
	job = calloc(1, sizeof(*job));
	if (!job)
		return -ENOMEM;
	ph_list_init(&job->link);
	ph_timer_init(&job->timer);
	for (; job->fd_count < fd_count; job->fd_count++) {
		job->fds[job->fd_count] = fcntl(fds[job->fd_count], F_DUPFD_CLOEXEC, 0);
		if (job->fds[job->fd_count] < 0) {
			int err = -errno;

			free_job(job);
			return err;
		}
	}
	job->fanout = fanout;
	job->message = *message;
	job->message.serial = ++fanout->serial;
	job->unsent = job->result.silent = all;
	job->sent = sent;
	job->sent_arg = sent_arg;
	job->done = done;
	job->done_arg = done_arg;
	for (struct ph_list *link = fanout->jobs.next; link != &fanout->jobs; link = link->next)
		behind |= ph_container_of(link, struct job, link)->unsent;
	ph_list_append(&fanout->jobs, &job->link);
	ph_timer_arm(fanout->events, &fanout->deadlines, &job->timer);
	try_send(job, behind);
	return 0;
}

void ph_fanout_retry(struct ph_fanout *fanout)
{
	struct ph_list *link, *next;
	uint64_t behind = 0;

	for (link = fanout->jobs.next; link != &fanout->jobs; link = next) {
		struct job *job = ph_container_of(link, struct job, link);

		next = link->next;
		if (!job->unsent)
			continue;
		try_send(job, behind);
		behind |= job->unsent;
		settle(job);
	}
}

const char *ph_fanout_names(uint64_t workers, char *out, size_t out_size)
{
	size_t used = 0;

	if (out_size)
		out[0] = 0;
	for (int i = 0; i < PH_WORKERS_MAX && used < out_size; i++) {
		if (workers >> i & 1)
			used += snprintf(out + used, out_size - used, used ? ", worker %d" : "worker %d", i);
	}
	return out;
}
