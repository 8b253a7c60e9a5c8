// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * loss - a bad line, for tests on kernels without netem: drops and duplicates packets at random.
 *
 * Attached by tc at ingress. Sections by how bad the line is.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define BASE 10000			/* probabilities are in parts of this */

static __always_inline int line(struct __sk_buff *skb, __u32 lost, __u32 doubled)
{
	__u32 chance = bpf_get_prandom_u32() % BASE;

	/* A copy comes in by the same device once more, and has no mark: it may be lost or doubled again. */
	if (chance < lost)
		return TC_ACT_SHOT;
	if (chance < lost + doubled)
		bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	return TC_ACT_UNSPEC;
}

SEC("one")
int lose_one_percent(struct __sk_buff *skb)
{
	return line(skb, 100, 0);
}

SEC("bad")
int lose_and_double(struct __sk_buff *skb)
{
	return line(skb, 300, 300);
}

char LICENSE[] SEC("license") = "GPL";
