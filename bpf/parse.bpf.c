// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * parse - the hello and name parsers under BPF_PROG_TEST_RUN.
 *
 * Never attached: it exists so that a test can ask BPF and userspace the same questions. Each run is one packet of a
 * stream, an Ethernet header and then payload, which is collected and walked as steer does it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include <phala/hello.h>
#include <phala/name.h>

#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ph_parse);
} ph_parse SEC(".maps");

/* Appends the packet's payload to the stream; what does not fit is left out. Return: 0, or 1 if that failed. */
static __always_inline int collect(struct __sk_buff *skb, struct ph_parse *parse)
{
	__u32 at = parse->len, count = skb->len - ETH_HLEN;

	parse->seen += count;
	if (at >= PH_HELLO_STREAM_BPF_MAX)
		return 0;
	if (count > PH_HELLO_STREAM_BPF_MAX - at)
		count = PH_HELLO_STREAM_BPF_MAX - at;
	if (!count)
		return 0;
	/* Both are in bounds; the verifier sees each below the maximum, hence a buffer of twice that. */
	count = ph_below(count - 1, PH_HELLO_STREAM_BPF_MAX) + 1;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, parse->stream + ph_below(at, PH_HELLO_STREAM_BPF_MAX), count))
		return 1;
	parse->len = at + count;
	return 0;
}

SEC("tc")
int ph_parse_packet(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct ph_parse *parse = bpf_map_lookup_elem(&ph_parse, &key);

	if (!parse || skb->len < ETH_HLEN)
		return TC_ACT_SHOT;
	if (parse->fresh) {
		__builtin_memset(&parse->hello, 0, sizeof(parse->hello));
		parse->seen = 0;
		parse->len = 0;
	}
	if (collect(skb, parse))
		return TC_ACT_SHOT;
	parse->hello_verdict = ph_hello_walk(&parse->hello, parse->stream, parse->len);
	parse->reason = PH_REASON_COUNT;
	if (parse->hello_verdict == PH_HELLO_MORE && parse->seen > parse->len)
		parse->reason = PH_REASON_DECLINED_LONG;
	if (parse->hello_verdict == PH_HELLO_OK)
		parse->name_verdict = ph_name_walk(&parse->name, parse->hello.name, parse->hello.name_len);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
