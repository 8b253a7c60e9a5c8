/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * hello - find the server name in a TLS ClientHello.
 *
 * Input is hostile. Compiled into both the steer program and phalad, so the two cannot disagree; no libc, no
 * allocation, no pointer kept. Ambiguous input is refused rather than guessed (RFC 6066, section 3).
 */
#ifndef PHALA_HELLO_H
#define PHALA_HELLO_H

#ifndef __VMLINUX_H__			/* BPF programs that know the kernel's own types bring these along */
#include <linux/types.h>
#endif

#include "limits.h"

enum ph_hello_verdict {
	PH_HELLO_MORE,			/* no refusal: call again with more bytes */
	PH_HELLO_OK,
	PH_HELLO_NOT_TLS,
	PH_HELLO_NO_SNI,
	PH_HELLO_MALFORMED,
	PH_HELLO_AMBIGUOUS,
	PH_HELLO_TOO_LONG,
};

/* A walk that can be continued: zero it for a new stream. */
struct ph_hello {
	char name[PH_NAME_SIZE] __attribute__((aligned(8)));	/* lower case, zero padded; meaningful on PH_HELLO_OK */
	__u32 name_len;			/* characters */
	__u32 at;			/* bytes of the stream that are consumed; on a verdict, where it fell */
	/* to be designed: the state of the walk */
};

/**
 * ph_hello_walk() - continue the walk over the start of a TCP stream.
 * @hello: state; zeroed before the first call.
 * @stream: the stream from its first byte on (also on later calls); borrowed.
 * @len: bytes seen so far.
 *
 * Return: enum ph_hello_verdict; once it is not PH_HELLO_MORE it never changes.
 */
static inline enum ph_hello_verdict ph_hello_walk(struct ph_hello *hello, const __u8 *stream, __u32 len);

#endif
