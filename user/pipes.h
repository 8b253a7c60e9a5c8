/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pipes - a few empty pipes at hand, so that a connection has one only while there is something in it.
 *
 * Some are wide: with four times as much in one go, a stream in bulk is twice as fast.
 */
#ifndef PHALAD_PIPES_H
#define PHALAD_PIPES_H

#include <stdbool.h>

#include <phala/limits.h>

struct ph_pipe {
	int in, out;				/* -1: none */
	bool wide;
};

struct ph_pipes {
	struct ph_pipe spare[PH_PIPES_SPARE];
	unsigned count, count_max;
	unsigned wide, wide_max;		/* those there are, at hand and in use, and those there may be */
};

#define PH_PIPE_NONE ((struct ph_pipe){ .in = -1, .out = -1 })

/* @workers: among whom what all may have is divided. */
void ph_pipes_init(struct ph_pipes *pipes, unsigned workers);

/* Return: 0 or -errno. */
int ph_pipes_take(struct ph_pipes *pipes, struct ph_pipe *ret_pipe);
/* @pipe must be empty; it is PH_PIPE_NONE afterwards. */
void ph_pipes_give(struct ph_pipes *pipes, struct ph_pipe *pipe);
/* For one that is not empty, or not needed. */
void ph_pipes_drop(struct ph_pipes *pipes, struct ph_pipe *pipe);
/* Closes those at hand. */
void ph_pipes_close(struct ph_pipes *pipes);

#endif
