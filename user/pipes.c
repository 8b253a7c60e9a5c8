// SPDX-License-Identifier: Apache-2.0
/*
 * pipes - empty pipes at hand. See pipes.h.
 */
#include "pipes.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

void ph_pipes_init(struct ph_pipes *pipes, unsigned workers)
{
	unsigned share = PH_PIPES_SPARE_ALL / workers;

	*pipes = (struct ph_pipes){
		.count_max = share < PH_PIPES_SPARE ? share : PH_PIPES_SPARE,
		.wide_max = PH_PIPES_WIDE / workers,
	};
}

/* One that was made while there were enough of them, or while the user had too many pages, may become one later. */
static void widen(struct ph_pipes *pipes, struct ph_pipe *pipe)
{
	if (pipe->wide || pipes->wide >= pipes->wide_max || fcntl(pipe->in, F_SETPIPE_SZ, PH_PIPE_WIDE_BYTES) < 0)
		return;
	pipe->wide = true;
	pipes->wide++;
}

int ph_pipes_take(struct ph_pipes *pipes, struct ph_pipe *ret_pipe)
{
	int fds[2];

	if (pipes->count) {
		*ret_pipe = pipes->spare[--pipes->count];
	} else {
		if (pipe2(fds, O_NONBLOCK | O_CLOEXEC))
			return -errno;
		*ret_pipe = (struct ph_pipe){ .in = fds[1], .out = fds[0] };
	}
	widen(pipes, ret_pipe);
	return 0;
}

void ph_pipes_give(struct ph_pipes *pipes, struct ph_pipe *pipe)
{
	if (pipe->in < 0)
		return;
	if (pipes->count < pipes->count_max) {
		pipes->spare[pipes->count++] = *pipe;
		*pipe = PH_PIPE_NONE;
	} else {
		ph_pipes_drop(pipes, pipe);
	}
}

void ph_pipes_drop(struct ph_pipes *pipes, struct ph_pipe *pipe)
{
	if (pipe->in < 0)
		return;
	close(pipe->in);
	close(pipe->out);
	pipes->wide -= pipe->wide;
	*pipe = PH_PIPE_NONE;
}

void ph_pipes_close(struct ph_pipes *pipes)
{
	while (pipes->count)
		ph_pipes_drop(pipes, &pipes->spare[--pipes->count]);
}
