/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * arp - answers for steer's addresses on a layer-2 tunnel: the kernel does not have them, so it would not (RFC 826).
 */
#ifndef PH_BPF_ARP_H
#define PH_BPF_ARP_H

#include "flow.h"

#define ETH_P_ARP 0x0806
#define ARP_REQUEST 1
#define ARP_REPLY 2

struct arp_packet {
	__u8 to[6], from[6];
	__be16 protocol;
	__be16 hardware, type;
	__u8 hardware_len, address_len;
	__be16 operation;
	__u8 sender_mac[6], sender[4];
	__u8 target_mac[6], target[4];
};

static __always_inline __be32 arp_address(const __u8 *at)
{
	return bpf_htonl((__u32)at[0] << 24 | (__u32)at[1] << 16 | (__u32)at[2] << 8 | at[3]);
}

/* By itself, for its stack. Return: 1 when @skb has become the answer. */
__separate int arp_answer(struct __sk_buff *skb)
{
	const struct ph_steer *steer = steer_config();
	struct arp_packet arp;
	__u8 target[4];
	__u32 index;

	if (!steer || bpf_skb_load_bytes(skb, 0, &arp, sizeof(arp)) || arp.operation != bpf_htons(ARP_REQUEST) ||
	    arp.hardware != bpf_htons(1) || arp.type != bpf_htons(ETH_P_IP) || arp.hardware_len != 6 ||
	    arp.address_len != 4)
		return 0;
	index = bpf_ntohl(arp_address(arp.target)) - steer->source;
	if (index >= (steer->slots + PH_FLOW_PORTS - 1) / PH_FLOW_PORTS)
		return 0;
	__builtin_memcpy(target, arp.target, 4);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 6);
	__builtin_memcpy(arp.target, arp.sender, 4);
	__builtin_memcpy(arp.to, arp.sender_mac, 6);
	__builtin_memcpy(arp.sender_mac, steer->tunnel_mac, 6);
	__builtin_memcpy(arp.sender, target, 4);
	__builtin_memcpy(arp.from, steer->tunnel_mac, 6);
	arp.operation = bpf_htons(ARP_REPLY);
	return !bpf_skb_store_bytes(skb, 0, &arp, sizeof(arp), 0);
}

#endif
