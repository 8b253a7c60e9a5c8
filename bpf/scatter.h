/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * scatter - an order of 0 to 2^n - 1 that tells nobody without the key how far it has come: a Feistel network, whose
 * halves are the even and the odd bits, so that every n has two that are as good as equal.
 */
#ifndef PH_BPF_SCATTER_H
#define PH_BPF_SCATTER_H

#include "siphash.h"

#define SCATTER_ROUNDS 6		/* four are a permutation like a random one (Luby and Rackoff, 1988); so small a one takes more */

/* @key: two words. @count: a power of two, above @n. */
static __always_inline __u32 scatter(const __u64 *key, __u32 n, __u32 count)
{
	__u32 half = 0x55555555;

	for (__u32 round = 0; round < SCATTER_ROUNDS; round++, half = ~half)
		n ^= siphash(key, round, n & ~half) & half & (count - 1);
	return n;
}

#endif
