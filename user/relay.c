// SPDX-License-Identifier: Apache-2.0
/*
 * relay - splice(2) both ways. See relay.h.
 */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/socket.h>

/* How moving in one direction came to a stop. */
enum pump_result {
	PUMP_WAIT,
	PUMP_AGAIN,
	PUMP_SOURCE_FAILED,
	PUMP_SINK_FAILED,
};

void ph_relay_init(struct ph_relay *relay)
{
	*relay = (struct ph_relay){ .to_cvm.pipe = PH_PIPE_NONE, .to_client.pipe = PH_PIPE_NONE };
}

/* Return: bytes that left, 0 when the sink takes nothing now, -1 when it failed. */
static ssize_t drain(struct ph_stream *flow, struct ph_end *sink)
{
	ssize_t moved;

	if (!sink->writable)
		return 0;
	moved = splice(flow->pipe.out, NULL, sink->fd, NULL, flow->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	if (moved > 0) {
		flow->in_pipe -= (uint32_t)moved;
		return moved;
	}
	if (moved < 0 && errno != EAGAIN)
		return -1;
	sink->writable = false;
	return 0;
}

/*
 * Without a descriptor left for a pipe: look, send what the sink takes, and only then take it out of the source's
 * queue. Return: as fill().
 */
static ssize_t copy(struct ph_end *source, struct ph_end *sink, const struct ph_relay_means *means)
{
	ssize_t seen, sent;

	if (!sink->writable)
		return -EBUSY;
	seen = recv(source->fd, means->scratch, means->scratch_size, MSG_PEEK);
	if (seen <= 0)
		return seen ? -errno : 0;
	sent = send(sink->fd, means->scratch, (size_t)seen, MSG_NOSIGNAL);
	if (sent < 0) {
		if (errno != EAGAIN)
			return -EPIPE;
		sink->writable = false;
		return -EBUSY;
	}
	return recv(source->fd, NULL, (size_t)sent, MSG_TRUNC);
}

/* Return: bytes read, 0 at the end of the stream, -EBUSY or -EPIPE for the sink's sake, or -errno of the source. */
static ssize_t fill(struct ph_stream *flow, struct ph_end *source, struct ph_end *sink, struct ph_relay_means *means)
{
	ssize_t moved;

	if (flow->pipe.in < 0 && ph_pipes_take(&means->pipes, &flow->pipe))
		return copy(source, sink, means);
	moved = splice(source->fd, NULL, flow->pipe.in, NULL, PH_PIPE_WIDE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	/* It stops at urgent data, and with a FIN behind that calls it the end of the stream. */
	if (!moved && recv(source->fd, means->scratch, 1, MSG_PEEK) > 0)
		return -ECONNRESET;
	if (moved < 0)
		return errno == EPIPE ? -ECONNRESET : -errno;	/* a reset after the peer's FIN (tcp_reset()) */
	flow->in_pipe = (uint32_t)moved;
	return moved;
}

static enum pump_result pump(struct ph_stream *flow, struct ph_end *source, struct ph_end *sink,
			     struct ph_relay_means *means, __u64 *bytes)
{
	ssize_t moved;

	for (int rounds = 0; rounds < PH_TURN_ROUNDS;) {
		if (flow->in_pipe) {
			moved = drain(flow, sink);
			if (moved < 0)
				return PUMP_SINK_FAILED;
			if (!moved)
				return PUMP_WAIT;
			continue;
		}
		if (flow->ended || !source->readable)
			return PUMP_WAIT;
		moved = fill(flow, source, sink, means);
		if (moved > 0) {
			*bytes += (__u64)moved;
			rounds += 1 + (int)((moved - 1) / PH_PIPE_BYTES);
		} else if (!moved) {
			flow->ended = true;
		} else if (moved == -EBUSY) {
			return PUMP_WAIT;
		} else if (moved == -EPIPE) {
			return PUMP_SINK_FAILED;
		} else if (moved == -EAGAIN) {
			source->readable = false;
		} else {
			return PUMP_SOURCE_FAILED;
		}
	}
	return PUMP_AGAIN;
}

/* The last thing in a direction. The very last of both is left to close(), which sends the same FIN. */
static void pass_fin(struct ph_stream *flow, const struct ph_stream *other, const struct ph_end *sink)
{
	if (!flow->ended || flow->in_pipe || flow->finished)
		return;
	flow->finished = true;
	if (!other->finished)
		shutdown(sink->fd, SHUT_WR);
}

/*
 * @broken: writing to the source has failed. What it had sent is passed on all the same; but a socket tells its error
 * once, and what then looks like the end of the stream is none.
 */
static enum pump_result run_flow(struct ph_stream *flow, const struct ph_stream *other, struct ph_end *source,
				 struct ph_end *sink, bool broken, struct ph_relay_means *means, __u64 *bytes)
{
	enum pump_result result = pump(flow, source, sink, means, bytes);

	if (!flow->in_pipe)
		ph_pipes_give(&means->pipes, &flow->pipe);
	if (!broken)
		pass_fin(flow, other, sink);
	return result;
}

enum ph_progress ph_relay_run(struct ph_relay *relay, struct ph_end *client, struct ph_end *cvm,
			      struct ph_relay_means *means, enum ph_reason *ret_reason)
{
	struct ph_worker *stats = means->stats;
	enum pump_result to_cvm, to_client;

	to_cvm = run_flow(&relay->to_cvm, &relay->to_client, client, cvm, false, means,
			  &stats->bytes_from_clients);
	to_client = run_flow(&relay->to_client, &relay->to_cvm, cvm, client, to_cvm == PUMP_SINK_FAILED, means,
			     &stats->bytes_from_cvms);

	*ret_reason = PH_REASON_CLOSED;
	if (relay->to_cvm.finished && relay->to_client.finished)
		return PH_PROGRESS_OVER;
	*ret_reason = PH_REASON_CLIENT_RESET;
	if (to_cvm == PUMP_SOURCE_FAILED || to_client == PUMP_SINK_FAILED)
		return PH_PROGRESS_OVER;
	*ret_reason = PH_REASON_CVM_RESET;
	if (to_cvm == PUMP_SINK_FAILED || to_client == PUMP_SOURCE_FAILED)
		return PH_PROGRESS_OVER;
	return to_cvm == PUMP_AGAIN || to_client == PUMP_AGAIN ? PH_PROGRESS_AGAIN : PH_PROGRESS_WAIT;
}

static void close_flow(struct ph_stream *flow, struct ph_relay_means *means)
{
	if (flow->in_pipe)
		ph_pipes_drop(&means->pipes, &flow->pipe);	/* never another connection's bytes */
	else
		ph_pipes_give(&means->pipes, &flow->pipe);
	flow->in_pipe = 0;
}

void ph_relay_close(struct ph_relay *relay, struct ph_relay_means *means)
{
	close_flow(&relay->to_cvm, means);
	close_flow(&relay->to_client, means);
}
