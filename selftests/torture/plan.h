/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan - what a connection will be like, decided by a seed and its number alone.
 *
 * The client's hello carries both, so each end knows what the other will do, and what it must have seen, without a word
 * between them. Bytes are a pattern (bench/stream.h) from an offset that is the connection's, the direction's, and that
 * of the label the connection was for: what is another's never matches.
 */
#ifndef TORTURE_PLAN_H
#define TORTURE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PLAN_HELLO_MAX 12288		/* bytes of a record with a ClientHello, as plan_hello() makes them */
#define PLAN_EARLY_MAX 512		/* bytes of payload that may leave together with the hello */
#define PLAN_LABEL_SIZE 64
#define PLAN_NAME_SIZE 256
#define PLAN_CUTS 3

struct plan_rules {
	uint64_t seed;
	uint32_t largest;		/* bytes each way, at least 16 KiB */
	uint16_t relay;			/* of 1000 connections, how many are such that the kernel path declines them */
	uint16_t resets;		/* of 1000: how many end by a reset of one end's */
	uint16_t stalls;		/* of 1000: how many readers stop for a while */
};

enum plan_end {
	PLAN_BOTH,			/* each end says FIN when it has sent everything */
	PLAN_CLIENT_FIRST,		/* the server begins when the client has ended */
	PLAN_SERVER_FIRST,		/* the other way round, the hello apart */
	PLAN_CLIENT_RESETS,
	PLAN_SERVER_RESETS,
};

enum plan_way {
	PLAN_KERNEL,
	PLAN_POSTGRES,			/* an SSLRequest comes first */
	PLAN_LONG,			/* a hello over what the kernel path takes */
};

struct plan {
	uint32_t index;
	uint32_t up, down;		/* bytes behind the hello */
	enum plan_end end;
	enum plan_way way;
	uint32_t reset_at;		/* the resetting end's bytes sent and read together */
	bool stalls;			/* the client stops to read at a quarter */
	uint32_t hello_len;
	uint32_t cuts[PLAN_CUTS];	/* where the hello is cut into packets; not before the last one is 0 */
	uint32_t early;			/* bytes of payload in the hello's last packet */
};

void plan_make(const struct plan_rules *rules, uint32_t index, struct plan *ret_plan);

/* A ClientHello of plan->hello_len bytes for @name, with rules and index in its random. Return: its length. */
size_t plan_hello(const struct plan_rules *rules, const struct plan *plan, const char *name,
		  uint8_t out[PLAN_HELLO_MAX]);

/* Reads one back. @ret_label: the name up to its first dash or dot. Return: 0, or -1 when it is none of ours. */
int plan_read(const uint8_t *hello, size_t len, struct plan_rules *ret_rules, uint32_t *ret_index,
	      char ret_label[PLAN_LABEL_SIZE]);

/* Where in the pattern a direction begins. */
uint64_t plan_offset(const struct plan_rules *rules, uint32_t index, const char *label, bool up);

/* To be added up: what both ends say when they have carried the same connections. */
uint64_t plan_digest(const struct plan *plan);

#endif
