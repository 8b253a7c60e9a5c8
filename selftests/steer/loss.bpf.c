// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * loss - a bad line, for tests on kernels without netem: drops and duplicates packets at random.
 *
 * Attached by tc at ingress, "-out" at egress. Sections by how bad the line is. Which packets of a line it hits is a
 * matter of their number alone, so that a run is like the one before.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define BASE 10000			/* probabilities are in parts of this */

static __u64 number = 1;			/* of the packet; where it begins is the seed */

/* splitmix64 of the number */
static __always_inline __u32 chance_of_next(void)
{
	__u64 z = __sync_fetch_and_add(&number, 1) * 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (__u32)(z >> 32) % BASE;
}

static __always_inline int line(struct __sk_buff *skb, __u32 lost, __u32 doubled, __u32 way)
{
	__u32 chance = chance_of_next();

	/*
	 * Stolen, because a sender is told of what is shot. A copy comes by the same device once more, and has no mark: it
	 * may be lost or doubled again.
	 */
	if (chance < lost)
		return TC_ACT_STOLEN;
	if (chance < lost + doubled)
		bpf_clone_redirect(skb, skb->ifindex, way);
	return TC_ACT_UNSPEC;
}

SEC("one")
int lose_one_percent(struct __sk_buff *skb)
{
	return line(skb, 100, 0, BPF_F_INGRESS);
}

SEC("bad")
int lose_and_double(struct __sk_buff *skb)
{
	return line(skb, 300, 300, BPF_F_INGRESS);
}

SEC("bad-out")
int lose_and_double_out(struct __sk_buff *skb)
{
	return line(skb, 300, 300, 0);
}

SEC("one-each")
int lose_one_and_double_one(struct __sk_buff *skb)
{
	return line(skb, 100, 100, BPF_F_INGRESS);
}

SEC("one-each-out")
int lose_one_and_double_one_out(struct __sk_buff *skb)
{
	return line(skb, 100, 100, 0);
}

char LICENSE[] SEC("license") = "GPL";
