// SPDX-License-Identifier: Apache-2.0
/*
 * bpf/scatter.h: SipHash as its authors have it, an order that leaves nothing out, and nothing in it that shows the way.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../../bpf/scatter.h"
#include "ktap.h"

#define BITS 18

static const __u64 key[2] = { 0x0706050403020100ULL, 0x0f0e0d0c0b0a0908ULL };
static const __u64 other[2] = { 0x0706050403020100ULL, 0x0f0e0d0c0b0a0909ULL };

static bool is_order(__u32 count)
{
	bool *seen = calloc(count, sizeof(*seen)), good = seen;

	for (__u32 n = 0; good && n < count; n++) {
		__u32 at = scatter(key, n, count);

		good = at < count && !seen[at];
		if (good)
			seen[at] = true;
	}
	free(seen);
	return good;
}

/* Return: how many of 1,000 numbers change output bit @out when input bit @in changes, at least or most, of all bits. */
static void avalanche(int *ret_least, int *ret_most)
{
	*ret_least = 1000;
	*ret_most = 0;
	for (int in = 0; in < BITS; in++) {
		int changed[BITS] = { 0 };

		for (__u32 i = 0; i < 1000; i++) {
			__u32 n = i * 262, both = scatter(key, n, 1 << BITS) ^ scatter(key, n ^ 1U << in, 1 << BITS);

			for (int out = 0; out < BITS; out++)
				changed[out] += both >> out & 1;
		}
		for (int out = 0; out < BITS; out++) {
			*ret_least = changed[out] < *ret_least ? changed[out] : *ret_least;
			*ret_most = changed[out] > *ret_most ? changed[out] : *ret_most;
		}
	}
}

int main(void)
{
	int least, most, same = 0;

	ktap_header();
	/* The 16-byte message of the paper's vectors is 00 01 ... 0f. */
	ktap_ok(siphash(key, 0x0706050403020100ULL, 0x0f0e0d0c0b0a0908ULL) == 0x3f2acc7f57c29bdbULL, "SipHash-2-4 of 16 bytes");
	for (int bits = 0; bits <= BITS; bits++)
		ktap_ok(is_order(1U << bits), "each of 2^%d just once", bits);
	for (__u32 n = 0; n < 1 << BITS; n++)
		same += scatter(key, n, 1 << BITS) == scatter(other, n, 1 << BITS);
	ktap_ok(same < 20, "another key, another order: %d in the same place", same);
	avalanche(&least, &most);
	ktap_ok(least > 400 && most < 600, "each bit decides over each half the time: %d to %d of 1000", least, most);
	return ktap_end();
}
