/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * loop - run a step until it says stop, the same step in BPF and in userspace.
 *
 * The verifier checks a bpf_loop() callback once, however often it runs (Linux 5.17; made a plain loop by the verifier
 * since 6.0), where it would follow an ordinary loop round by round.
 *
 * What a step changes is in a map value, never on the stack: Linux 6.1 takes the stack for what it was when the first
 * step began, and removes the code that only later ones reach. Newer kernels know better, at the price of more rounds.
 * What a step uses as an index goes through ph_below().
 */
#ifndef PHALA_LOOP_H
#define PHALA_LOOP_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#ifdef __bpf__
#include <bpf/bpf_helpers.h>

/* Calls @step(0, @arg), @step(1, @arg), ... until it returns 1, at most @count times. */
static __always_inline void ph_loop(__u32 count, long (*step)(__u32 index, void *arg), void *arg)
{
	bpf_loop(count, step, arg, 0);
}

/*
 * @index, which is known to be below @size, in a form in which the verifier sees it too. @size is a power of two. The
 * compiler would drop a mask it can prove idle, hence the two barriers.
 */
static __always_inline __u64 ph_below(__u64 index, __u32 size)
{
	__asm__ volatile("" : "+r"(index));
	index &= size - 1;
	__asm__ volatile("" : "+r"(index));
	return index;
}
#else
static inline void ph_loop(__u32 count, long (*step)(__u32 index, void *arg), void *arg)
{
	for (__u32 i = 0; i < count && !step(i, arg); i++)
		;
}

static inline __u32 ph_below(__u32 index, __u32 size)
{
	(void)size;
	return index;
}
#endif

#endif
