/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sum - Internet checksums (RFC 1071), computed and changed by differences (RFC 1624).
 *
 * A sum is kept in 64 bits of which the upper ones are carries; 32-bit words go in as they lie in the packet.
 */
#ifndef PH_BPF_SUM_H
#define PH_BPF_SUM_H

#include <phala/loop.h>

static __always_inline __u32 sum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u16 sum_fold16(__u64 sum)
{
	__u32 folded = sum_fold32(sum);

	folded = (folded & 0xffff) + (folded >> 16);
	return (folded & 0xffff) + (folded >> 16);
}

static __always_inline void sum_change(__u64 *sum, __u32 from, __u32 to)
{
	*sum += (__u32)~from;
	*sum += to;
}

static __always_inline __u64 sum_words(const void *from, const __u32 words)
{
	const __u32 *word = from;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

/* What TCP sums beside its own bytes (RFC 9293, section 3.1). */
static __always_inline __u64 sum_pseudo(__be32 from, __be32 to, __u32 tcp_len)
{
	return (__u64)from + to + bpf_htonl(IPPROTO_TCP) + bpf_htonl(tcp_len);
}

static __always_inline __be16 sum_ip_header(struct iphdr *ip)
{
	ip->check = 0;
	return ~sum_fold16(sum_words(ip, sizeof(*ip) / 4));
}

#define SUM_CHUNK 512			/* bpf_csum_diff() sums no more at once, and only whole words */

struct sum_run {
	const __u8 *bytes;
	__u32 from, len;
	__u64 sum;
};

static __always_inline const __u8 *sum_at(const struct sum_run *run, __u32 offset)
{
	return run->bytes + ph_below(run->from + offset, PH_HELLO_STREAM_BPF_MAX);
}

static long sum_step(__u32 index, void *arg)
{
	struct sum_run *run = arg;
	__u32 done = index * SUM_CHUNK, left;

	if (done >= run->len)
		return 1;
	left = run->len - done;
	if (left >= SUM_CHUNK) {
		run->sum = bpf_csum_diff(NULL, 0, (__be32 *)sum_at(run, done), SUM_CHUNK, run->sum);
		return 0;
	}
	left = ph_below(left, SUM_CHUNK);
	run->sum = bpf_csum_diff(NULL, 0, (__be32 *)sum_at(run, done), left & ~3, run->sum);
	done += left & ~3;
	if (left & 2)
		run->sum += sum_at(run, done)[0] | sum_at(run, done)[1] << 8;
	if (left & 1)
		run->sum += sum_at(run, done + (left & 2))[0];
	return 1;
}

/**
 * sum_hello() - sum of a part of a hello, as it would be at an even place in a packet.
 * @bytes: 2 * PH_HELLO_STREAM_BPF_MAX bytes in a map value; the part is in the first half.
 */
static __always_inline __u32 sum_hello(const __u8 *bytes, __u32 from, __u32 len)
{
	struct sum_run run = { .bytes = bytes, .from = from, .len = len };

	ph_loop(PH_HELLO_STREAM_BPF_MAX / SUM_CHUNK + 1, sum_step, &run);
	return sum_fold32(run.sum);
}

#endif
