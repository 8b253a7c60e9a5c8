/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * gate - what may pass from the NIC to the gateway's listening sockets: the checks, for XDP and for tc.
 *
 * Input is hostile. Headers are copied rather than pointed at, straight from the frame where they are in reach. In
 * order: not the gateway's, frames that no client sends, allow list, deny list, strangers (challenge.h), budgets. A packet
 * of a connection that is under way writes nothing on its way but what the lists say of its source, if there are any.
 *
 * Include after the maps, the kernel's types and bpf/bpf_helpers.h.
 */
#ifndef PH_BPF_GATE_H
#define PH_BPF_GATE_H

#include <phala/loop.h>

#define ETH_HLEN 14
#define ETH_TYPE_AT 12
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IP_MF 0x2000			/* more fragments (RFC 791, section 3.1) */
#define IP_OFFSET 0x1fff		/* of a fragment, in units of 8 bytes */
#define IPV6_MF 0x0001			/* RFC 8200, section 4.5: the offset, in bytes, is before it */
#define IPV6_OFFSET 0xfff8
#define IPV6_HOP 0
#define IPV6_ROUTING 43
#define IPV6_FRAGMENT 44
#define IPV6_DESTINATION 60
#define TCP_HLEN 20
#define UDP_HLEN 8
#define TLS_HANDSHAKE 22
#define TLS_CLIENT_HELLO 1
#define WG_INITIATION 0x01000000	/* its first four bytes: the type, and three that are reserved */

#define GATE_PASS PH_GATE_COUNT		/* nothing to count */

struct frame {
	void *ctx, *data, *data_end;
	__u32 len;			/* of all of it */
	__u32 is_xdp;			/* constant */
	__u32 is_super;			/* several packets merged: the IP header's length may be 0 */
};

#define FRAME_REACH 16384		/* all headers that are looked at end before it; a power of two */

/* Copies *@to out of the frame. Return: 0, or not 0 when it is not all there. */
#define frame_read(f, offset, to) ({							\
	__u64 _offset = ph_below(offset, FRAME_REACH);					\
	typeof(to) _at = (f)->data + _offset;						\
	long _err = 0;									\
	if ((void *)(_at + 1) <= (f)->data_end)						\
		*(to) = *_at;								\
	else										\
		_err = frame_read_slowly(f, _offset, to);				\
	_err; })

/* The same, for what is seldom there: one way through it for the verifier. */
#define frame_read_slowly(f, offset, to) \
	((f)->is_xdp ? bpf_xdp_load_bytes((f)->ctx, offset, to, sizeof(*(to))) : \
		       bpf_skb_load_bytes((f)->ctx, offset, to, sizeof(*(to))))

/* A function that the verifier looks at once, by itself (see packet.h). */
#define __separate __attribute__((noinline))

static __always_inline const struct ph_gate *gate_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ph_gate, &zero);
}

enum part {
	PART_WHOLE,
	PART_FIRST,			/* of a fragmented packet */
	PART_EARLY,			/* the next, if it may have bytes of the TCP header */
};

struct packet {
	struct ph_address source, target;
	__u32 at;			/* of TCP or UDP in the frame */
	__u32 len;			/* bytes of that, by the IP header */
	__u8 protocol;
	__u8 is_v6;
	__u8 is_broken;			/* lengths contradict each other: only addresses and protocol are to be believed */
	__u8 is_endless;		/* too many headers */
	enum part part;
	struct {
		__be16 source, target;
	} ports;
	__be32 cookie;			/* to challenge it with */
};

static __always_inline int is_served(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/* Return: 0, or -1 for what is not for the gate. */
static __always_inline int packet_read_v4(const struct frame *f, struct packet *p)
{
	__u32 header_len, total, offset;
	struct iphdr ip;

	if (frame_read(f, ETH_HLEN, &ip) || !is_served(ip.protocol))
		return -1;
	p->source = (struct ph_address){ .words = { 0, 0, bpf_htonl(0xffff), ip.saddr } };
	p->target = (struct ph_address){ .words = { 0, 0, bpf_htonl(0xffff), ip.daddr } };
	p->protocol = ip.protocol;
	header_len = ip.ihl * 4;
	total = bpf_ntohs(ip.tot_len);
	if (!total && f->is_super)
		total = f->len - ETH_HLEN;
	p->at = ETH_HLEN + header_len;
	p->len = total - header_len;
	p->is_broken = ip.version != 4 || header_len < sizeof(ip) || total < header_len || ETH_HLEN + total > f->len;
	offset = bpf_ntohs(ip.frag_off) & IP_OFFSET;
	if (offset * 8 >= TCP_HLEN || (offset && p->protocol != IPPROTO_TCP))
		return -1;
	p->part = offset ? PART_EARLY : ip.frag_off & bpf_htons(IP_MF) ? PART_FIRST : PART_WHOLE;
	return 0;
}

/* What all extension headers begin with; the fragment header has its offset next. */
struct extension {
	__u8 next;
	__u8 len;			/* in units of 8 bytes, less one */
	__be16 offset;
};

static __always_inline int packet_read_v6(const struct frame *f, struct packet *p)
{
	struct extension extension;
	struct ipv6hdr ip;
	__u32 at = ETH_HLEN + sizeof(ip), total, offset;
	__u8 next;

	if (frame_read(f, ETH_HLEN, &ip))
		return -1;
	__builtin_memcpy(&p->source, &ip.saddr, sizeof(p->source));
	__builtin_memcpy(&p->target, &ip.daddr, sizeof(p->target));
	total = bpf_ntohs(ip.payload_len) + sizeof(ip);
	if (!ip.payload_len && f->is_super)
		total = f->len - ETH_HLEN;
	next = ip.nexthdr;
	for (int i = 0; i < PH_GATE_HEADERS_MAX; i++) {
		if (next != IPV6_HOP && next != IPV6_ROUTING && next != IPV6_FRAGMENT && next != IPV6_DESTINATION)
			break;
		if (frame_read_slowly(f, at, &extension))
			return -1;
		if (next == IPV6_FRAGMENT) {
			offset = bpf_ntohs(extension.offset) & IPV6_OFFSET;
			if (offset >= TCP_HLEN || (offset && extension.next != IPPROTO_TCP))
				return -1;
			p->part = offset ? PART_EARLY : extension.offset & bpf_htons(IPV6_MF) ? PART_FIRST : PART_WHOLE;
			at += sizeof(struct extension) + sizeof(__be32);
		} else {
			at += (extension.len + 1) * 8;
		}
		next = extension.next;
		if (p->part == PART_EARLY)
			break;
	}
	p->is_endless = next == IPV6_HOP || next == IPV6_ROUTING || next == IPV6_FRAGMENT || next == IPV6_DESTINATION;
	if (!is_served(next) && !p->is_endless)
		return -1;
	p->protocol = p->is_endless ? IPPROTO_TCP : next;
	p->is_v6 = 1;
	p->at = at;
	p->len = ETH_HLEN + total - at;
	p->is_broken = ip.version != 6 || ETH_HLEN + total < at || ETH_HLEN + total > f->len;
	return 0;
}

static __always_inline int is_target(const struct packet *p, __be16 port)
{
	struct ph_gate_target target = { .address = p->target, .port = port, .protocol = p->protocol };

	return bpf_map_lookup_elem(&ph_gate_targets, &target) != NULL;
}

/* Multicast, broadcast, loopback, the unspecified one; IPv4 inside IPv6 is never on the wire (RFC 4291, 2.5). */
static __always_inline int is_bad_source(const struct packet *p)
{
	const __be32 *words = p->source.words;
	__u32 first;

	if (!p->is_v6) {
		first = bpf_ntohl(words[3]) >> 24;
		return !first || first == 127 || (first >= 224 && first < 240) || words[3] == 0xffffffff;
	}
	if ((words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
		return 1;
	return !words[0] && !words[1] && (words[2] == bpf_htonl(0xffff) || (!words[2] && bpf_ntohl(words[3]) <= 1));
}

static __always_inline int is_same(const struct ph_address *a, const struct ph_address *b)
{
	return !((a->words[0] ^ b->words[0]) | (a->words[1] ^ b->words[1]) | (a->words[2] ^ b->words[2]) |
		 (a->words[3] ^ b->words[3]));
}

static __always_inline int is_v4_inside(const struct ph_address *address)
{
	return !address->words[0] && !address->words[1] && address->words[2] == bpf_htonl(0xffff);
}

/* The longest prefix of @source in a list that has not expired. One of IPv6's holds no IPv4, also if it is ::/0. */
static __always_inline int is_listed(void *list, const struct ph_address *source, __u64 now_ns, __u64 *ret_until_ns)
{
	struct ph_prefix key = { .bits = 128, .address = *source };
	__u32 least = is_v4_inside(source) ? PH_ADDRESS_V4_BITS : 0;
	const struct ph_listed *row;

	for (int i = 0; i < PH_GATE_EXPIRED_MAX; i++) {
		row = bpf_map_lookup_elem(list, &key);
		if (!row || row->bits < least)
			return 0;
		if (!row->until_ns || row->until_ns > now_ns) {
			*ret_until_ns = row->until_ns;
			return 1;
		}
		if (!row->bits || row->bits > key.bits)
			return 0;
		key.bits = row->bits - 1;
	}
	return 0;
}

static __always_inline struct ph_gate_cached *cache_slot(const struct ph_address *source)
{
	const __be32 *words = source->words;
	__u32 slot = (words[0] * 3 ^ words[1] * 5 ^ words[2] * 7 ^ words[3]) * 0x9e3779b1;

	slot = (slot >> 16 ^ slot) & (PH_GATE_CACHE_SLOTS - 1);
	return bpf_map_lookup_elem(&ph_gate_cache, &slot);
}

/*
 * What the lists say. A trie of a million prefixes is looked at in up to a microsecond, so the answer is kept, on each
 * CPU by itself: whoever changes a list takes the next generation afterwards.
 */
__separate int listing(struct ph_address *source)
{
	const struct ph_gate *gate = gate_config();
	struct ph_gate_cached *cached, fresh = { 0 };
	__u64 now_ns;

	if (!gate || !source)
		return PH_GATE_UNLISTED;
	fresh.generation = gate->generation;
	cached = cache_slot(source);
	if (!cached)
		return PH_GATE_UNLISTED;
	if (cached->generation == fresh.generation && is_same(&cached->address, source) &&
	    (!cached->until_ns || cached->until_ns > bpf_ktime_get_boot_ns()))
		return cached->verdict;
	now_ns = bpf_ktime_get_boot_ns();
	fresh.address = *source;
	if (is_listed(&ph_allow, source, now_ns, &fresh.until_ns))
		fresh.verdict = PH_GATE_LISTED_ALLOW;
	else if (is_listed(&ph_deny, source, now_ns, &fresh.until_ns))
		fresh.verdict = PH_GATE_LISTED_DENY;
	*cached = fresh;
	return fresh.verdict;
}

/* Return: 1 when the source may. */
static __always_inline int budget_take(const struct ph_gate_budget *budget, __u64 *due_ns, __u64 now_ns)
{
	__u64 limit_ns = now_ns + budget->tolerance_ns, was_ns, due;

	for (int i = 0; i < 4; i++) {
		was_ns = *(volatile __u64 *)due_ns;
		due = (was_ns > now_ns ? was_ns : now_ns) + budget->interval_ns;
		if (due > limit_ns) {
			if (was_ns > limit_ns)	/* of a budget that was another once: no debt for ever */
				*due_ns = limit_ns;
			return 0;
		}
		if (__sync_val_compare_and_swap(due_ns, was_ns, due) == was_ns)
			break;
	}
	return 1;
}

/* What of an address is a source. */
static __always_inline struct ph_address source_key(const struct ph_gate *gate, const struct ph_address *address,
						    __u32 is_v6)
{
	const struct ph_address *mask = is_v6 ? &gate->source6 : &gate->source4;
	struct ph_address key;

	for (int i = 0; i < 4; i++)
		key.words[i] = address->words[i] & mask->words[i];
	return key;
}

/* Return: 1 when the packet's source has some of its budget left; also when there is no room to remember it. */
__separate int is_within(struct ph_address *address, __u32 is_v6, __u32 kind)
{
	const struct ph_gate *gate = gate_config();
	struct ph_gate_source *source, first = { 0 };
	const struct ph_gate_budget *budget;
	struct ph_address key;

	if (!gate || !address || kind >= PH_GATE_BUDGETS)
		return 1;
	budget = &gate->budgets[kind];
	if (!budget->interval_ns)
		return 1;
	key = source_key(gate, address, is_v6);
	source = bpf_map_lookup_elem(&ph_gate_sources, &key);
	if (!source) {
		bpf_map_update_elem(&ph_gate_sources, &key, &first, BPF_NOEXIST);
		source = bpf_map_lookup_elem(&ph_gate_sources, &key);
	}
	if (!source || budget_take(budget, &source->due_ns[kind], bpf_ktime_get_boot_ns()))
		return 1;
	__sync_fetch_and_add(&source->dropped, 1);
	return 0;
}

/*
 * Does a ClientHello begin here (RFC 8446, 5.1 and 4)? Also if it is cut within the six bytes that tell. Of data that is
 * under way, few packets look so by chance, and each costs its source what a hello does.
 */
static __always_inline int is_hello(const struct frame *f, __u32 at, __u32 len)
{
	struct {
		__u8 type, major;
		__u8 more[4];
	} whole = { 0 };
	__u8 first;

	if (!len)
		return 0;
	if (len >= sizeof(whole))
		return !frame_read(f, at, &whole) && whole.type == TLS_HANDSHAKE && whole.major == 3 &&
		       whole.more[3] == TLS_CLIENT_HELLO;
	return !frame_read(f, at, &first) && first == TLS_HANDSHAKE;
}

#include "challenge.h"

static __always_inline int is_drop(enum ph_gate_reason reason)
{
	return reason != GATE_PASS && reason >= PH_GATE_DROPS;
}

static __always_inline enum ph_gate_reason judge_list(struct packet *p)
{
	const struct ph_gate *gate = gate_config();

	if (!gate || (!gate->lists[PH_LIST_DENY].rows && !gate->lists[PH_LIST_ALLOW].rows))
		return GATE_PASS;
	switch (listing(&p->source)) {
	case PH_GATE_LISTED_ALLOW:
		return PH_GATE_ALLOWED;
	case PH_GATE_LISTED_DENY:
		return PH_GATE_DENIED;
	default:
		return GATE_PASS;
	}
}

static __always_inline enum ph_gate_reason judge_tcp(const struct frame *f, struct packet *p)
{
	enum ph_gate_reason reason;
	__u32 header_len, ports;
	struct tcphdr tcp;

	if (p->len < TCP_HLEN || frame_read(f, p->at, &tcp))
		return PH_GATE_BAD_LENGTH;
	header_len = tcp.doff * 4;
	if (header_len < TCP_HLEN || header_len > p->len)
		return PH_GATE_BAD_LENGTH;
	if (!(tcp.syn | tcp.ack | tcp.rst) || (tcp.syn && (tcp.fin | tcp.rst)))
		return PH_GATE_BAD_FLAGS;
	if (tcp.syn && tcp.ack)
		return PH_GATE_SYN_ACK;
	if (is_same(&p->source, &p->target))
		return PH_GATE_LAND;
	if (!tcp.source || is_bad_source(p))
		return PH_GATE_BAD_SOURCE;
	reason = judge_list(p);
	if (reason != GATE_PASS)
		return reason;
	ports = (__u32)p->ports.source << 16 | p->ports.target;
	if (tcp.syn && !is_expected(&p->source, p->is_v6)) {
		p->cookie = cookie_now(&p->source, ports);
		return PH_GATE_CHALLENGED;
	}
	if (tcp.syn)
		return is_within(&p->source, p->is_v6, PH_GATE_BUDGET_CONNECTIONS) ? PH_GATE_CONNECTION : PH_GATE_OVER_CONNECTIONS;
	if (tcp.rst && !tcp.ack && is_proof(&p->source, p->is_v6, ports, tcp.seq))
		return PH_GATE_PROVEN;
	if (is_hello(f, p->at + header_len, p->len - header_len))
		return is_within(&p->source, p->is_v6, PH_GATE_BUDGET_HELLOS) ? PH_GATE_HELLO : PH_GATE_OVER_HELLOS;
	return GATE_PASS;
}

/* Initiations cost the tunnel's owner a computation each; data, which only a peer can send, is left alone. */
static __always_inline enum ph_gate_reason judge_wireguard(const struct frame *f, struct packet *p)
{
	enum ph_gate_reason reason;
	__be32 type;

	if (p->len < UDP_HLEN)
		return PH_GATE_BAD_LENGTH;
	if (p->part == PART_FIRST && p->len < UDP_HLEN + sizeof(type))
		return PH_GATE_FRAGMENT;
	if (p->len < UDP_HLEN + sizeof(type) || frame_read(f, p->at + UDP_HLEN, &type) ||
	    type != bpf_htonl(WG_INITIATION))
		return GATE_PASS;
	if (is_same(&p->source, &p->target))
		return PH_GATE_LAND;
	if (is_bad_source(p))
		return PH_GATE_BAD_SOURCE;
	reason = judge_list(p);
	if (reason != GATE_PASS)
		return reason;
	return is_within(&p->source, p->is_v6, PH_GATE_BUDGET_HANDSHAKES) ? PH_GATE_HANDSHAKE : PH_GATE_OVER_HANDSHAKES;
}

/*
 * @p: zeroed; all that is to be known of it, if it is PH_GATE_CHALLENGED.
 *
 * Return: GATE_PASS, or what is to be counted; from PH_GATE_DROPS on, what is not to go on.
 */
static __always_inline enum ph_gate_reason judge(const struct frame *f, struct packet *p)
{
	__be16 type;

	if (frame_read(f, ETH_TYPE_AT, &type))
		return GATE_PASS;
	if (type == bpf_htons(ETH_P_IP)) {
		if (packet_read_v4(f, p))
			return GATE_PASS;
	} else if (type != bpf_htons(ETH_P_IPV6) || packet_read_v6(f, p)) {
		return GATE_PASS;
	}
	if (p->is_endless) {			/* TCP or UDP: nobody knows */
		if (is_target(p, 0))
			return PH_GATE_HEADERS;
		p->protocol = IPPROTO_UDP;
		return is_target(p, 0) ? PH_GATE_HEADERS : GATE_PASS;
	}
	if (p->part == PART_EARLY)
		return is_target(p, 0) ? PH_GATE_FRAGMENT : GATE_PASS;
	if (p->is_broken || p->len < sizeof(p->ports) || frame_read(f, p->at, &p->ports))
		return p->protocol == IPPROTO_TCP && is_target(p, 0) ? PH_GATE_BAD_LENGTH : GATE_PASS;
	if (!is_target(p, p->ports.target))
		return GATE_PASS;
	if (p->protocol == IPPROTO_UDP)
		return judge_wireguard(f, p);
	if (p->part == PART_FIRST)
		return PH_GATE_FRAGMENT;
	return judge_tcp(f, p);
}

#endif
