// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * deep - chains of calls at the edge of the stack, for tools/insns: this kernel loads both, Linux 6.1 only the first.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* A frame of just so many bytes. */
#define FRAME(name, bytes, callee)                                   \
	static __attribute__((noinline)) int name(int x)             \
	{                                                            \
		volatile __u64 frame[(bytes) / 8];                   \
                                                                     \
		__asm__ volatile("" : : "r"(frame) : "memory");      \
		frame[0] = x;                                        \
		return callee(x + 1) + frame[0];                     \
	}

static __always_inline int nothing(int x)
{
	return x;
}

FRAME(level3, 160, nothing)
FRAME(level2, 160, level3)
FRAME(level1, 160, level2)

/* 32 + 160 + 160 + 160 */
SEC("tc")
int deep_fits(struct __sk_buff *skb)
{
	return level1(skb->len);
}

FRAME(odd3, 152, nothing)
FRAME(odd2, 168, odd3)
FRAME(odd1, 152, odd2)

/* 16 + 160 + 176 + 160 in steps of 16, 32 + 160 + 192 + 160 in steps of 32 */
SEC("tc")
int deep_over(struct __sk_buff *skb)
{
	return odd1(skb->len);
}

char LICENSE[] SEC("license") = "GPL";
