/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * name - the grammar of <id>[-<port>][s|g].<base-domain>.
 *
 * Input is hostile. Compiled into the steer program, phalad and phalactl, so that they cannot disagree; no libc, no
 * allocation, no pointer kept. Which base domains there are is the caller's to know: the grammar says where it starts.
 *
 *   name    label "." base                   label = 1-63 characters
 *   label   id | id "-" port | id "-" port mode | id "-" mode
 *   id      1*(a-z | 0-9)
 *   port    1-65535, no leading zero         default 80, 443 with mode s
 *   mode    "s" | "g"
 */
#ifndef PHALA_NAME_H
#define PHALA_NAME_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#include "limits.h"
#include "loop.h"

enum ph_mode {
	PH_MODE_STANDARD,		/* the gateway terminates TLS */
	PH_MODE_PASSTHROUGH,		/* suffix s: the gateway never decrypts */
	PH_MODE_GRPC,			/* suffix g: standard, with ALPN h2 */
};

/* Where several apply, it is the leftmost in the name; PH_NAME_TRAILING_DOT comes last. */
enum ph_name_verdict {
	PH_NAME_OK,
	PH_NAME_BAD,			/* no id, or a character that no id has */
	PH_NAME_BAD_PORT,		/* not 1-65535, a leading zero, a sign, nothing at all after the dash */
	PH_NAME_BAD_SUFFIX,		/* something follows the s or g */
	PH_NAME_SECOND_DASH,
	PH_NAME_LABEL_TOO_LONG,		/* first label over 63 characters */
	PH_NAME_TRAILING_DOT,		/* also when nothing but a dot follows the label */
	PH_NAME_NO_DOMAIN,		/* no dot */
};

struct ph_name {
	char id[PH_ID_SIZE] __attribute__((aligned(8)));	/* lower case, zero padded */
	__u16 port;			/* 1-65535, host order; the default is filled in */
	__u8 mode;			/* enum ph_mode */
	__u8 base;			/* offset of the base domain in the name that was parsed */
};

/* What was read last. */
enum ph_name_state {
	PH_NAME_AT_ID,			/* nothing yet, or a character of the id */
	PH_NAME_AT_DASH,
	PH_NAME_AT_PORT,		/* a digit of it */
	PH_NAME_AT_MODE,
};

/* The room that a parse works in; what is in it before does not matter. */
struct ph_name_walk {
	struct ph_name found;		/* whole on PH_NAME_OK */
	__u32 state;			/* enum ph_name_state */
	__u32 verdict;			/* enum ph_name_verdict */
	__u32 port;
};

struct ph_name_run {
	struct ph_name_walk *walk;
	const char *name;
};

static inline int ph_name_is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* The label's characters from the dash on. Return: PH_NAME_OK to go on. */
static inline enum ph_name_verdict ph_name_option(struct ph_name_walk *walk, char c)
{
	if (c == '-')
		return PH_NAME_SECOND_DASH;
	if (walk->state == PH_NAME_AT_MODE)
		return PH_NAME_BAD_SUFFIX;
	if (c == 's' || c == 'g') {
		walk->found.mode = c == 's' ? PH_MODE_PASSTHROUGH : PH_MODE_GRPC;
		if (walk->state == PH_NAME_AT_DASH)
			walk->port = c == 's' ? 443 : 80;
		walk->state = PH_NAME_AT_MODE;
		return PH_NAME_OK;
	}
	if (!ph_name_is_digit(c))
		return PH_NAME_BAD_PORT;
	walk->port = walk->state == PH_NAME_AT_PORT ? walk->port * 10 + (c - '0') : (__u32)(c - '0');
	walk->state = PH_NAME_AT_PORT;
	return walk->port < 1 || walk->port > 65535 ? PH_NAME_BAD_PORT : PH_NAME_OK;
}

/* One character of the first label. Return: 1 at its end or at what is wrong, which is the verdict then. */
static inline long ph_name_step(__u32 index, void *arg)
{
	const struct ph_name_run *run = arg;
	struct ph_name_walk *walk = run->walk;
	char c = run->name[ph_below(index, PH_NAME_SIZE)];
	enum ph_name_verdict verdict = PH_NAME_OK;

	if (c >= 'A' && c <= 'Z')
		c += 'a' - 'A';
	if (c == '.') {
		if (!index)
			walk->verdict = PH_NAME_BAD;
		else
			walk->verdict = walk->state == PH_NAME_AT_DASH ? PH_NAME_BAD_PORT : PH_NAME_OK;
		walk->found.base = index + 1;
		return 1;
	}
	if (index >= PH_LABEL_MAX) {
		verdict = PH_NAME_LABEL_TOO_LONG;
	} else if (walk->state != PH_NAME_AT_ID) {
		verdict = ph_name_option(walk, c);
	} else if (ph_name_is_digit(c) || (c >= 'a' && c <= 'z')) {
		walk->found.id[ph_below(index, PH_ID_SIZE)] = c;
	} else if (c == '-' && index) {
		walk->state = PH_NAME_AT_DASH;
	} else {
		verdict = PH_NAME_BAD;
	}
	if (verdict == PH_NAME_OK)
		return 0;
	walk->verdict = verdict;
	return 1;
}

/**
 * ph_name_walk() - ph_name_parse() for BPF.
 * @walk: in a map value (see loop.h); the name is in @walk->found on PH_NAME_OK.
 */
static inline enum ph_name_verdict ph_name_walk(struct ph_name_walk *walk, const char *name, __u32 len)
{
	struct ph_name_run run = { .walk = walk, .name = name };

	__builtin_memset(walk, 0, sizeof(*walk));
	walk->port = 80;
	walk->verdict = PH_NAME_BAD;
	if (len < 1 || len > PH_NAME_MAX)
		return PH_NAME_BAD;
	walk->verdict = PH_NAME_NO_DOMAIN;
	ph_loop(len < PH_LABEL_MAX + 1 ? len : PH_LABEL_MAX + 1, ph_name_step, &run);
	if (walk->verdict == PH_NAME_OK && name[ph_below(len - 1, PH_NAME_SIZE)] == '.')
		walk->verdict = PH_NAME_TRAILING_DOT;
	walk->found.port = walk->port;
	return (enum ph_name_verdict)walk->verdict;
}

#ifndef __bpf__
/**
 * ph_name_parse() - split a server name into id, port, mode and base domain.
 * @name: PH_NAME_SIZE bytes, lower or upper case, of which @len are valid; borrowed.
 * @len: characters, without a closing zero; at most PH_NAME_MAX.
 * @ret_name: set on PH_NAME_OK, untouched otherwise.
 *
 * The base domain is not judged here, only that there is one: the caller compares all of it.
 */
static inline enum ph_name_verdict ph_name_parse(const char *name, __u32 len, struct ph_name *ret_name)
{
	struct ph_name_walk walk;
	enum ph_name_verdict verdict = ph_name_walk(&walk, name, len);

	if (verdict == PH_NAME_OK)
		*ret_name = walk.found;
	return verdict;
}
#endif

#endif
