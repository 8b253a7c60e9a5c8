/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * emit - turn a packet at hand into another one, and send it.
 *
 * A packet may carry a full TCP checksum or only the pseudo-header's, which the device completes later, and BPF cannot
 * ask which. But bpf_l4_csum_replace() without BPF_F_PSEUDO_HDR changes the field in the first case only: that answers
 * it (csum_is_partial), and everything else is computed from scratch.
 */
#ifndef PH_BPF_EMIT_H
#define PH_BPF_EMIT_H

#include "flow.h"
#include "packet.h"
#include "sum.h"

/* The byte of flags (RFC 9293, section 3.1; RFC 3168). */
enum emit_flags {
	EMIT_SYN = 2,
	EMIT_RST = 4,
	EMIT_PSH = 8,
	EMIT_ACK = 16,
	EMIT_ECE = 64,
	EMIT_CWR = 128,
};

/* A packet's headers under construction, and two places for options. Per CPU. */
struct scratch {
	struct iphdr ip;
	struct tcphdr tcp;
	__u8 options[TCP_OPTIONS_SIZE];
	__u8 seen[TCP_OPTIONS_SIZE];
	__u8 changed[TCP_OPTIONS_SIZE];
	struct packet packet;		/* the one at hand */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct scratch);
} steer_scratch SEC(".maps");

/* The tunnel device: layer 3 as WireGuard, or layer 2. */
const volatile __u32 tunnel_l2 = 0;

/* 0 under BPF_PROG_TEST_RUN: there every packet belongs to a socket, and a copy comes back to nobody. */
const volatile __u32 goes_around = 1;

static __always_inline __u32 tunnel_header(void)
{
	return tunnel_l2 ? ETH_HLEN : 0;
}

static __always_inline struct scratch *scratch_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&steer_scratch, &zero);
}

/* For what phalad runs: BPF_PROG_TEST_RUN does not keep softirqs off on every kernel, and a packet may come in between. */
static __always_inline struct scratch *scratch_of_manager(void)
{
	__u32 one = 1;

	return bpf_map_lookup_elem(&steer_scratch, &one);
}

/* A packet could not be made, or not be sent. Return: -1. */
static __always_inline int unmade(void)
{
	count(PH_REASON_DROPPED_UNMADE);
	return -1;
}

/*
 * Lets the packet come in once more, as a copy that belongs to no socket. From veth or tap it still belongs to its sender's,
 * and then the kernel does not count what it grows by (pskb_expand_head()): a packet longer than its truesize makes TCP's
 * estimate of the window overflow (tcp_measure_rcv_mss()), by which Linux 6.12 divides.
 */
static __always_inline int is_to_go_around(struct __sk_buff *skb)
{
	return goes_around && skb->sk;
}

static __always_inline int go_around(struct __sk_buff *skb)
{
	return bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS) ? drop(PH_REASON_DROPPED_UNMADE) : TC_ACT_SHOT;
}

/* Into the tunnel. The mark is for guard. */
static __always_inline int to_tunnel(struct __sk_buff *skb)
{
	struct ph_gateway *gateway = gateway_config();

	if (!gateway || !gateway->tunnel_ifindex)
		return drop(PH_REASON_DROPPED_DEVICE);
	skb->mark = PH_STEER_MARK;
	if (tunnel_l2)
		return bpf_redirect_neigh(gateway->tunnel_ifindex, NULL, 0, 0);
	return bpf_redirect(gateway->tunnel_ifindex, 0);
}

/* The same for a copy, while the caller keeps the packet. @mac: layer-2 tunnel: destination and source. */
static __always_inline int copy_to_tunnel(struct __sk_buff *skb, const __u8 *mac)
{
	struct ph_gateway *gateway = gateway_config();
	__be16 protocol = bpf_htons(ETH_P_IP);

	if (!gateway || !gateway->tunnel_ifindex)
		return -1;
	if (tunnel_l2 && (bpf_skb_store_bytes(skb, 0, mac, 12, 0) || bpf_skb_store_bytes(skb, 12, &protocol, 2, 0)))
		return -1;
	skb->mark = PH_STEER_MARK;
	return bpf_clone_redirect(skb, gateway->tunnel_ifindex, 0) ? -1 : 0;
}

/* From the tunnel to a client. WireGuard's packets have no link-layer header; bpf_redirect_neigh() wants room for one. */
static __always_inline int to_client(struct __sk_buff *skb, __u32 nic)
{
	__u8 header[ETH_HLEN] = { [12] = ETH_P_IP >> 8, [13] = ETH_P_IP & 0xff };

	if (!tunnel_l2 && (bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, 0, header, ETH_HLEN, 0)))
		return drop(PH_REASON_DROPPED_UNMADE);
	return bpf_redirect_neigh(nic, NULL, 0, 0);
}

/* @at: of the checksum, which is overwritten. */
static __always_inline int csum_is_partial(struct __sk_buff *skb, __u32 at)
{
	__u16 field = 0;

	if (bpf_skb_store_bytes(skb, at, &field, 2, 0) || bpf_l4_csum_replace(skb, at, 0, 1, 0) ||
	    bpf_skb_load_bytes(skb, at, &field, 2))
		return 0;
	return !field;
}

static __always_inline void emit_headers(struct scratch *s, __be32 from, __be32 to, __be16 from_port, __be16 to_port)
{
	__builtin_memset(s, 0, sizeof(s->ip) + sizeof(s->tcp));
	s->ip.version = 4;
	s->ip.ihl = 5;
	s->ip.frag_off = bpf_htons(IP_DF);
	s->ip.ttl = 64;
	s->ip.protocol = IPPROTO_TCP;
	s->ip.saddr = from;
	s->ip.daddr = to;
	s->tcp.source = from_port;
	s->tcp.dest = to_port;
}

static __always_inline void emit_numbers(struct scratch *s, __u32 seq, __u32 ack, __u32 header_len, __u32 flags,
					 __u16 window)
{
	s->tcp.seq = bpf_htonl(seq);
	s->tcp.ack_seq = bpf_htonl(ack);
	((__u8 *)&s->tcp)[12] = header_len / 4 << 4;
	((__u8 *)&s->tcp)[13] = flags;
	s->tcp.window = bpf_htons(window);
}

/**
 * emit() - make @skb the packet of @s.
 * @l2: bytes before the IP header; they stay.
 * @header_len: of TCP with its options: 20, 32 or 40, a constant.
 * @payload_sum: of the @payload_len bytes that the caller stores behind the headers afterwards.
 *
 * Lengths and checksums are filled in here. Return: 0 or -1.
 */
static __always_inline int emit(struct __sk_buff *skb, __u32 l2, struct scratch *s, const __u32 header_len,
				__u32 payload_len, __u32 payload_sum)
{
	__u32 at = l2 + IP_HLEN + __builtin_offsetof(struct tcphdr, check), tcp_len = header_len + payload_len;
	__u64 sum = sum_pseudo(s->ip.saddr, s->ip.daddr, tcp_len);

	if (bpf_skb_change_tail(skb, l2 + IP_HLEN + tcp_len, 0))
		return -1;
	s->ip.tot_len = bpf_htons(IP_HLEN + tcp_len);
	s->ip.check = sum_ip_header(&s->ip);
	s->tcp.check = 0;
	if (csum_is_partial(skb, at))
		s->tcp.check = sum_fold16(sum);
	else
		s->tcp.check = ~sum_fold16(sum + sum_words(&s->tcp, header_len / 4) + payload_sum);
	return bpf_skb_store_bytes(skb, l2, s, IP_HLEN + header_len, BPF_F_RECOMPUTE_CSUM) ? -1 : 0;
}

/* Answers a packet with a reset (RFC 9293, section 3.10.7.1). Return: 0, or -1 when it must not or cannot be. */
static __always_inline int emit_reset_reply(struct __sk_buff *skb, const struct packet *p, struct scratch *s)
{
	if (p->tcp.rst)
		return -1;
	emit_headers(s, p->ip.daddr, p->ip.saddr, p->tcp.dest, p->tcp.source);
	if (p->tcp.ack)
		emit_numbers(s, bpf_ntohl(p->tcp.ack_seq), 0, TCP_HLEN, EMIT_RST, 0);
	else
		emit_numbers(s, 0, bpf_ntohl(p->tcp.seq) + p->payload + p->tcp.syn + p->tcp.fin, TCP_HLEN,
			   EMIT_RST | EMIT_ACK, 0);
	return emit(skb, p->l2, s, TCP_HLEN, 0, 0);
}

#endif
