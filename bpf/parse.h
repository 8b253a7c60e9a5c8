/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * parse - what parse.bpf.c and its test exchange, in the one element of the map ph_parse.
 */
#ifndef PHALA_PARSE_H
#define PHALA_PARSE_H

#include <phala/hello.h>
#include <phala/name.h>
#include <phala/reason.h>

struct ph_parse {
	__u32 fresh;			/* in: each packet begins a new stream */
	__u32 len;			/* bytes of the stream that are collected */
	__u32 seen;			/* bytes of the stream that came */
	__u32 hello_verdict;		/* enum ph_hello_verdict */
	__u32 name_verdict;		/* enum ph_name_verdict; if the hello is PH_HELLO_OK */
	__u32 reason;			/* enum ph_reason for declining, or PH_REASON_COUNT */
	struct ph_hello hello;
	struct ph_name_walk name;
	__u8 stream[2 * PH_HELLO_STREAM_BPF_MAX];
};

#endif
