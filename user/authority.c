// SPDX-License-Identifier: Apache-2.0
/*
 * authority - h2 frames both ways, as far as it takes. See authority.h.
 */
#include "authority.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <phala/limits.h>

#include "headers.h"

/* PH_REASON_COUNT: nothing has ended. */
#define GOING_ON PH_REASON_COUNT

#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"	/* RFC 9113, section 3.4 */
#define PREFACE_LEN (sizeof(PREFACE) - 1)
#define HEAD_LEN 9				/* length 3, type 1, flags 1, stream 4: section 4.1 */
#define PRIORITY_LEN 5
#define REFUSAL_LEN_MAX 27			/* HEADERS and RST_STREAM */
#define STREAM_MASK 0x7fffffff
#define WINDOW_MAX 0x7fffffff

enum type {
	TYPE_DATA = 0x0,
	TYPE_HEADERS = 0x1,
	TYPE_RST_STREAM = 0x3,
	TYPE_PUSH_PROMISE = 0x5,
	TYPE_WINDOW_UPDATE = 0x8,
	TYPE_CONTINUATION = 0x9,
};

enum {
	FLAG_END_STREAM = 0x01,
	FLAG_END_HEADERS = 0x04,
	FLAG_PADDED = 0x08,
	FLAG_PRIORITY = 0x20,
};

/*
 * Where the client's stream is:
 *   PREFACE    within its first bytes
 *   HEAD       within a frame's header
 *   PASS       in a payload that goes on as it is
 *   SKIP       in one that does not: a refused request's, or padding
 *   PREFIX     in the pad length and priority in front of a header block
 *   FRAGMENT   in a part of a header block
 *   WRITE      behind a header block that goes on, and has not gone whole
 *
 * PREFACE -> HEAD -> PASS | SKIP | [PREFIX ->] FRAGMENT [-> SKIP] [-> WRITE] -> HEAD
 */
enum state {
	STATE_PREFACE,
	STATE_HEAD,
	STATE_PASS,
	STATE_SKIP,
	STATE_PREFIX,
	STATE_FRAGMENT,
	STATE_WRITE,
};

struct frame {
	uint32_t len;
	uint8_t type, flags;
	uint32_t stream;
};

/* A request that was refused: the CVM does not know it. Stream 0: none. */
struct refusal {
	uint32_t stream;
	bool is_whole;				/* the client sends no more of it */
	bool is_told;
};

struct ph_authority {
	char name[PH_NAME_SIZE];
	__u64 *count;
	struct ph_headers headers;
	uint32_t last_stream;			/* the highest that was asked on */
	struct refusal refusals[PH_H2_REFUSED_MAX];	/* a ring */
	uint32_t refused, untold;		/* ever; still to be told */
	uint32_t credit;			/* bytes of refused requests that no CVM will acknowledge */

	/* the client's stream */
	enum state state;
	uint8_t start[PREFACE_LEN];		/* of the stream, of a frame, or of a payload */
	uint32_t started;			/* bytes of it */
	struct frame frame;
	uint32_t left;				/* bytes of the payload, or of what the state is about */
	uint32_t padding;			/* behind the fragment */
	bool in_block;				/* only a CONTINUATION may follow */
	struct frame block;			/* the frame that it began with */
	uint8_t priority[PRIORITY_LEN];
	uint32_t written;			/* bytes of the block */

	/* the CVM's */
	uint8_t answer_head[HEAD_LEN];
	uint32_t answer_started, answer_left;
	bool answer_in_block;
	bool has_answered;			/* its first frame, SETTINGS, must be the client's first */
};

int ph_authority_new(const char *name, __u64 *count, struct ph_authority **ret_authority)
{
	struct ph_authority *authority = calloc(1, sizeof(*authority));

	if (!authority || strlen(name) >= sizeof(authority->name) || ph_headers_init(&authority->headers)) {
		free(authority);
		return -ENOMEM;
	}
	strcpy(authority->name, name);
	authority->count = count;
	*ret_authority = authority;
	return 0;
}

void ph_authority_free(struct ph_authority *authority)
{
	if (!authority)
		return;
	ph_headers_close(&authority->headers);
	free(authority);
}

static struct frame parse_head(const uint8_t head[HEAD_LEN])
{
	return (struct frame){
		.len = (uint32_t)head[0] << 16 | (uint32_t)head[1] << 8 | head[2],
		.type = head[3],
		.flags = head[4],
		.stream = ((uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 | head[8]) &
			  STREAM_MASK,
	};
}

static uint8_t *put_be32(uint8_t *out, uint32_t number)
{
	*out++ = (uint8_t)(number >> 24);
	*out++ = (uint8_t)(number >> 16);
	*out++ = (uint8_t)(number >> 8);
	*out++ = (uint8_t)number;
	return out;
}

static uint8_t *put_head(uint8_t *out, uint32_t len, enum type type, uint8_t flags, uint32_t stream)
{
	put_be32(out, len << 8 | type);
	out[4] = flags;
	return put_be32(out + 5, stream);
}

static bool is_refused(const struct ph_authority *authority, uint32_t stream)
{
	for (uint32_t i = 0; stream && i < PH_H2_REFUSED_MAX; i++)
		if (authority->refusals[i].stream == stream)
			return true;
	return false;
}

/* The client has ended or reset that stream. */
static void end_request(struct ph_authority *authority, uint32_t stream)
{
	for (uint32_t i = 0; stream && i < PH_H2_REFUSED_MAX; i++)
		if (authority->refusals[i].stream == stream)
			authority->refusals[i].is_whole = true;
}

/*
 * The oldest refusal is forgotten for it, if the client knows of it and has closed that stream. Of one that is open
 * there may be more on its way, which the CVM is not to see, so there the connection ends.
 */
static enum ph_reason refuse(struct ph_authority *authority, const struct frame *request)
{
	struct refusal *refusal = &authority->refusals[authority->refused % PH_H2_REFUSED_MAX];

	if (refusal->stream && !(refusal->is_told && refusal->is_whole))
		return PH_REASON_MISDIRECTED;
	++*authority->count;
	*refusal = (struct refusal){ .stream = request->stream, .is_whole = request->flags & FLAG_END_STREAM };
	authority->refused++;
	authority->untold++;
	return GOING_ON;
}

/* The client's stream. Each step uses bytes from the front of @in, and makes what there is room for. */

struct input {
	const uint8_t *bytes;
	size_t len;
};

struct output {
	uint8_t *bytes;
	size_t room;
};

static const uint8_t *take(struct input *in, size_t len)
{
	const uint8_t *bytes = in->bytes;

	in->bytes += len;
	in->len -= len;
	return bytes;
}

static void put(struct output *out, const uint8_t *bytes, size_t len)
{
	memcpy(out->bytes, bytes, len);
	out->bytes += len;
	out->room -= len;
}

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Collects until there are @len bytes in start. Return: false when more must come. */
static bool collect(struct ph_authority *authority, struct input *in, uint32_t len)
{
	size_t more = least(len - authority->started, in->len);

	memcpy(authority->start + authority->started, take(in, more), more);
	authority->started += (uint32_t)more;
	if (authority->started < len)
		return false;
	authority->started = 0;
	return true;
}

/* @len more bytes are of that state; a payload without any is over at once. */
static void enter(struct ph_authority *authority, enum state state, uint32_t len)
{
	authority->state = len || state == STATE_FRAGMENT || state == STATE_WRITE ? state : STATE_HEAD;
	authority->left = len;
}

static enum ph_reason step_preface(struct ph_authority *authority, struct input *in, struct output *out)
{
	if (!collect(authority, in, PREFACE_LEN))
		return GOING_ON;
	if (memcmp(authority->start, PREFACE, PREFACE_LEN))
		return PH_REASON_H2_MALFORMED;
	put(out, authority->start, PREFACE_LEN);
	enter(authority, STATE_HEAD, 0);
	return GOING_ON;
}

static uint32_t prefix_len(const struct frame *frame)
{
	return (frame->flags & FLAG_PADDED ? 1 : 0) + (frame->flags & FLAG_PRIORITY ? PRIORITY_LEN : 0);
}

static enum ph_reason begin_block(struct ph_authority *authority)
{
	const struct frame *frame = &authority->frame;

	if (!(frame->stream & 1) || prefix_len(frame) > frame->len)
		return PH_REASON_H2_MALFORMED;
	authority->block = *frame;
	authority->in_block = true;
	authority->headers.is_unwanted = is_refused(authority, frame->stream);
	if (frame->flags & FLAG_END_STREAM)
		end_request(authority, frame->stream);
	authority->padding = 0;
	if (prefix_len(frame))
		enter(authority, STATE_PREFIX, frame->len);
	else
		enter(authority, STATE_FRAGMENT, frame->len);
	return GOING_ON;
}

static enum ph_reason step_head(struct ph_authority *authority, struct input *in, struct output *out)
{
	struct frame *frame = &authority->frame;

	if (!collect(authority, in, HEAD_LEN))
		return GOING_ON;
	*frame = parse_head(authority->start);
	if (authority->in_block != (frame->type == TYPE_CONTINUATION) ||
	    (authority->in_block && frame->stream != authority->block.stream) || frame->type == TYPE_PUSH_PROMISE)
		return PH_REASON_H2_MALFORMED;
	if (frame->type == TYPE_HEADERS)
		return begin_block(authority);
	if (frame->type == TYPE_CONTINUATION) {
		enter(authority, STATE_FRAGMENT, frame->len);
		return GOING_ON;
	}
	if (!is_refused(authority, frame->stream)) {
		put(out, authority->start, HEAD_LEN);
		enter(authority, STATE_PASS, frame->len);
		return GOING_ON;
	}
	if (frame->type == TYPE_DATA) {
		if (frame->len > WINDOW_MAX - authority->credit)
			return PH_REASON_H2_MALFORMED;
		authority->credit += frame->len;
	}
	if (frame->type == TYPE_RST_STREAM || (frame->type == TYPE_DATA && frame->flags & FLAG_END_STREAM))
		end_request(authority, frame->stream);
	enter(authority, STATE_SKIP, frame->len);
	return GOING_ON;
}

static void step_pass(struct ph_authority *authority, struct input *in, struct output *out)
{
	size_t len = least(least(authority->left, in->len), out->room);

	put(out, take(in, len), len);
	enter(authority, STATE_PASS, authority->left - (uint32_t)len);
}

static void step_skip(struct ph_authority *authority, struct input *in)
{
	size_t len = least(authority->left, in->len);

	take(in, len);
	enter(authority, STATE_SKIP, authority->left - (uint32_t)len);
}

static enum ph_reason step_prefix(struct ph_authority *authority, struct input *in)
{
	const struct frame *frame = &authority->frame;
	uint32_t len = prefix_len(frame);

	if (!collect(authority, in, len))
		return GOING_ON;
	if (frame->flags & FLAG_PADDED)
		authority->padding = authority->start[0];
	if (frame->flags & FLAG_PRIORITY)
		memcpy(authority->priority, authority->start + len - PRIORITY_LEN, PRIORITY_LEN);
	if (authority->padding > frame->len - len)
		return PH_REASON_H2_MALFORMED;
	enter(authority, STATE_FRAGMENT, frame->len - len - authority->padding);
	return GOING_ON;
}

/* What is left of the frame behind its fragment. */
static void skip_padding(struct ph_authority *authority)
{
	enter(authority, STATE_SKIP, authority->padding);
	authority->padding = 0;
}

/* Trailers name nobody (RFC 9113, section 8.1); if they do, it must be the same. */
static enum ph_reason judge_block(struct ph_authority *authority)
{
	struct ph_headers *headers = &authority->headers;
	const struct frame *block = &authority->block;
	bool is_request = block->stream > authority->last_stream, is_foreign = headers->is_foreign;
	enum ph_reason reason = GOING_ON;

	authority->in_block = false;
	if (is_request)
		authority->last_stream = block->stream;
	if (is_foreign)
		reason = is_request ? refuse(authority, block) : PH_REASON_H2_MALFORMED;
	if (is_foreign || headers->is_unwanted) {
		ph_headers_drop(headers);
		skip_padding(authority);
	} else {
		authority->written = 0;
		enter(authority, STATE_WRITE, 0);
	}
	return reason;
}

static enum ph_reason step_fragment(struct ph_authority *authority, struct input *in)
{
	size_t len = least(authority->left, in->len);
	int err = ph_headers_take(&authority->headers, take(in, len), len, authority->name);

	authority->left -= (uint32_t)len;
	if (!err && !authority->left && authority->frame.flags & FLAG_END_HEADERS)
		err = ph_headers_end(&authority->headers);
	switch (err) {
	case 0:
		break;
	case -EMSGSIZE:
		return PH_REASON_H2_TOO_LONG;
	case -ENOMEM:
		return PH_REASON_NO_MEMORY;
	default:
		return PH_REASON_H2_MALFORMED;
	}
	if (authority->left)
		return GOING_ON;
	if (authority->frame.flags & FLAG_END_HEADERS)
		return judge_block(authority);
	skip_padding(authority);
	return GOING_ON;
}

/* The block in frames of its own, without padding, each as large as there is room and any server takes. */
static void step_write(struct ph_authority *authority, struct output *out)
{
	const struct ph_headers *headers = &authority->headers;
	bool is_first = !authority->written;
	uint8_t flags = is_first ? authority->block.flags & (FLAG_END_STREAM | FLAG_PRIORITY) : 0;
	uint32_t extra = flags & FLAG_PRIORITY ? PRIORITY_LEN : 0;
	size_t len = least(least(headers->len - authority->written, PH_H2_FRAME_BYTES - extra),
			   out->room - HEAD_LEN - extra);
	uint8_t head[HEAD_LEN];

	if (authority->written + len == headers->len)
		flags |= FLAG_END_HEADERS;
	put_head(head, (uint32_t)len + extra, is_first ? TYPE_HEADERS : TYPE_CONTINUATION, flags,
		 authority->block.stream);
	put(out, head, HEAD_LEN);
	put(out, authority->priority, extra);
	if (len)
		put(out, headers->bytes + authority->written, len);
	authority->written += (uint32_t)len;
	if (authority->written < headers->len)
		return;
	ph_headers_drop(&authority->headers);
	skip_padding(authority);
}

static enum ph_reason step(struct ph_authority *authority, struct input *in, struct output *out)
{
	switch (authority->state) {
	case STATE_PREFACE:
		return step_preface(authority, in, out);
	case STATE_HEAD:
		return step_head(authority, in, out);
	case STATE_PASS:
		step_pass(authority, in, out);
		return GOING_ON;
	case STATE_SKIP:
		step_skip(authority, in);
		return GOING_ON;
	case STATE_PREFIX:
		return step_prefix(authority, in);
	case STATE_FRAGMENT:
		return step_fragment(authority, in);
	case STATE_WRITE:
		step_write(authority, out);
		return GOING_ON;
	}
	return PH_REASON_H2_MALFORMED;
}

/* A fragment of no bytes needs none to be over. */
static bool is_due(const struct ph_authority *authority)
{
	return authority->state == STATE_WRITE || (authority->state == STATE_FRAGMENT && !authority->left);
}

enum ph_reason ph_authority_requests(struct ph_authority *authority, const uint8_t *bytes, size_t len, size_t *ret_used,
				     uint8_t *out, size_t size, size_t *ret_made)
{
	struct input input = { bytes, len };
	struct output output = { out, size };
	enum ph_reason reason;

	while ((input.len || is_due(authority)) && output.room >= PH_H2_ROOM_LEAST) {
		reason = step(authority, &input, &output);
		if (reason != GOING_ON)
			return reason;
	}
	*ret_used = len - input.len;
	*ret_made = size - output.room;
	return GOING_ON;
}

bool ph_authority_is_holding(const struct ph_authority *authority)
{
	return is_due(authority);
}

/* The CVM's stream, and what is put in between its frames. */

static bool has_to_say(const struct ph_authority *authority)
{
	return authority->untold || authority->credit;
}

size_t ph_authority_room(const struct ph_authority *authority, size_t most)
{
	if (!has_to_say(authority))
		return most;
	return least(most, authority->answer_left ? authority->answer_left : HEAD_LEN - authority->answer_started);
}

static enum ph_reason judge_answer(struct ph_authority *authority, const struct frame *frame)
{
	if (frame->type == TYPE_PUSH_PROMISE)
		return PH_REASON_CVM_H2;
	if (frame->stream && (!(frame->stream & 1) || frame->stream > authority->last_stream ||
			      is_refused(authority, frame->stream)))
		return PH_REASON_CVM_H2;
	if (frame->type == TYPE_HEADERS || frame->type == TYPE_CONTINUATION)
		authority->answer_in_block = !(frame->flags & FLAG_END_HEADERS);
	authority->answer_left = frame->len;
	authority->has_answered = true;
	return GOING_ON;
}

enum ph_reason ph_authority_answers(struct ph_authority *authority, const uint8_t *bytes, size_t len)
{
	while (len) {
		size_t part;
		struct frame frame;
		enum ph_reason reason;

		if (authority->answer_left) {
			part = least(authority->answer_left, len);
			authority->answer_left -= (uint32_t)part;
		} else {
			part = least(HEAD_LEN - authority->answer_started, len);
			memcpy(authority->answer_head + authority->answer_started, bytes, part);
			authority->answer_started += (uint32_t)part;
		}
		bytes += part;
		len -= part;
		if (authority->answer_started < HEAD_LEN)
			continue;
		authority->answer_started = 0;
		frame = parse_head(authority->answer_head);
		reason = judge_answer(authority, &frame);
		if (reason != GOING_ON)
			return reason;
	}
	return GOING_ON;
}

/*
 * :status 421 as a literal that touches no table, the name from the static one (RFC 7541, appendix A), and the end of
 * the answer. A client that would send more of the request is asked not to (RFC 9113, section 8.1).
 */
static uint8_t *put_refusal(uint8_t *out, const struct refusal *refusal)
{
	static const uint8_t block[] = { 0x08, 3, '4', '2', '1' };

	out = put_head(out, sizeof(block), TYPE_HEADERS, FLAG_END_HEADERS | FLAG_END_STREAM, refusal->stream);
	memcpy(out, block, sizeof(block));
	out += sizeof(block);
	if (!refusal->is_whole)
		out = put_be32(put_head(out, 4, TYPE_RST_STREAM, 0, refusal->stream), 0);
	return out;
}

size_t ph_authority_speak(struct ph_authority *authority, uint8_t *out, size_t size)
{
	uint8_t *at = out;

	if (!has_to_say(authority) || !authority->has_answered || authority->answer_started || authority->answer_left ||
	    authority->answer_in_block)
		return 0;
	if (authority->credit) {
		at = put_be32(put_head(at, 4, TYPE_WINDOW_UPDATE, 0, 0), authority->credit);
		authority->credit = 0;
	}
	while (authority->untold && size - (size_t)(at - out) >= REFUSAL_LEN_MAX) {
		struct refusal *refusal =
			&authority->refusals[(authority->refused - authority->untold) % PH_H2_REFUSED_MAX];

		at = put_refusal(at, refusal);
		refusal->is_told = true;
		authority->untold--;
	}
	return (size_t)(at - out);
}

uint32_t ph_authority_owed(const struct ph_authority *authority)
{
	return authority->untold ? authority->refused - authority->untold + 1 : 0;
}
