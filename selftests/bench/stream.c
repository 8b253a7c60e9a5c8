// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define PERIOD 65521			/* a prime: no buffer's size divides it, so a shifted stream never matches */
#define COMPARED 64

static uint8_t pattern[PERIOD + STREAM_CHUNK];

void stream_init(void)
{
	uint32_t state = 2463534242;

	for (size_t i = 0; i < PERIOD; i++) {
		state ^= state << 13;			/* xorshift */
		state ^= state >> 17;
		state ^= state << 5;
		pattern[i] = (uint8_t)(state >> 24);
	}
	for (size_t i = PERIOD; i < sizeof(pattern); i++)
		pattern[i] = pattern[i - PERIOD];
}

size_t stream_head_len(const uint8_t *bytes, size_t seen)
{
	if (seen < STREAM_RECORD_HEADER_LEN)
		return STREAM_RECORD_HEADER_LEN;
	return STREAM_RECORD_HEADER_LEN + ((size_t)bytes[3] << 8 | bytes[4]);
}

struct stream_answer stream_answer_to(const uint8_t *head, size_t len)
{
	struct stream_answer answer = { .head_hash = 14695981039346656037U, .head_len = len };
	uint64_t word;

	for (size_t i = 0; i < len; i += sizeof(word)) {
		word = 0;
		memcpy(&word, head + i, len - i < sizeof(word) ? len - i : sizeof(word));
		answer.head_hash = (answer.head_hash ^ word) * 1099511628211U;
		answer.head_hash ^= answer.head_hash >> 29;
	}
	memcpy(answer.padding, pattern, sizeof(answer.padding));
	return answer;
}

const uint8_t *stream_at(uint64_t position)
{
	return pattern + position % PERIOD;
}

bool stream_matches(uint64_t position, const uint8_t *bytes, size_t len)
{
	size_t compared = len < COMPARED ? len : COMPARED;

	return !memcmp(bytes, stream_at(position), compared) &&
	       !memcmp(bytes + len - compared, stream_at(position + len - compared), compared);
}

ssize_t stream_receive(int fd, uint64_t position, uint8_t *scratch)
{
	static uint32_t reads;
	bool look = reads++ % STREAM_LOOK_EVERY == 0;
	ssize_t got = recv(fd, scratch, STREAM_CHUNK, look ? 0 : MSG_TRUNC);

	if (got < 0)
		return -errno;
	return look && got && !stream_matches(position, scratch, (size_t)got) ? -EBADMSG : got;
}
