/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pipes - a few empty pipes at hand, so that a connection has one only while there is something in it.
 */
#ifndef PHALAD_PIPES_H
#define PHALAD_PIPES_H

#include <phala/limits.h>

struct ph_pipe {
	int in, out;				/* -1: none */
};

struct ph_pipes {
	struct ph_pipe spare[PH_PIPES_SPARE];
	unsigned count;
};

#define PH_PIPE_NONE ((struct ph_pipe){ -1, -1 })

/* @pipes may be filled by zeros. Return: 0 or -errno. */
int ph_pipes_take(struct ph_pipes *pipes, struct ph_pipe *ret_pipe);
/* @pipe must be empty; it is PH_PIPE_NONE afterwards. */
void ph_pipes_give(struct ph_pipes *pipes, struct ph_pipe *pipe);
/* For one that is not empty, or not needed. */
void ph_pipe_close(struct ph_pipe *pipe);
/* Closes those at hand. */
void ph_pipes_close(struct ph_pipes *pipes);

#endif
