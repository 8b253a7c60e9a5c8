/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * name - the grammar of <id>[-<port>][s|g].<base-domain>.
 *
 * Input is hostile. Compiled into the steer program, phalad and phalactl, so that they cannot disagree; no libc, no
 * allocation, no pointer kept. Which base domains there are is the caller's to know: the grammar says where it starts.
 */
#ifndef PHALA_NAME_H
#define PHALA_NAME_H

#ifndef __VMLINUX_H__			/* BPF programs that know the kernel's own types bring these along */
#include <linux/types.h>
#endif

#include "limits.h"

enum ph_mode {
	PH_MODE_STANDARD,		/* the gateway terminates TLS */
	PH_MODE_PASSTHROUGH,		/* suffix s: the gateway never decrypts */
	PH_MODE_GRPC,			/* suffix g: standard, with ALPN h2 */
};

enum ph_name_verdict {
	PH_NAME_OK,
	PH_NAME_BAD,			/* no id, or a character that no id has */
	PH_NAME_BAD_PORT,		/* not 1-65535, a leading zero, a sign, nothing at all after the dash */
	PH_NAME_BAD_SUFFIX,		/* something follows the s or g */
	PH_NAME_SECOND_DASH,
	PH_NAME_LABEL_TOO_LONG,		/* first label over 63 characters */
	PH_NAME_TRAILING_DOT,
	PH_NAME_NO_DOMAIN,		/* no dot, or nothing behind it */
};

struct ph_name {
	char id[PH_ID_SIZE] __attribute__((aligned(8)));	/* lower case, zero padded */
	__u16 port;			/* 1-65535, host order; the default is filled in */
	__u8 mode;			/* enum ph_mode */
	__u8 base;			/* offset of the base domain in the name that was parsed */
};

/**
 * ph_name_parse() - split a server name into id, port, mode and base domain.
 * @name: PH_NAME_SIZE bytes, lower or upper case, of which @len are valid; borrowed.
 * @len: characters, without a closing zero; at most PH_NAME_MAX.
 * @ret_name: set on PH_NAME_OK, untouched otherwise.
 */
static inline enum ph_name_verdict ph_name_parse(const char *name, __u32 len, struct ph_name *ret_name);

#endif
