// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * steer - passthrough connections between NIC and tunnel, without a socket.
 *
 * The kernel's listener does the client's handshake and, deferring accept, keeps only a request sock. From the first
 * data packet on the connection is steer's, if it is certain that it wants it: the ClientHello is collected, an
 * instance picked, and a SYN with the client's own options sent there; its SYN-ACK turned round into ACK + hello; and
 * then packets are rewritten both ways. Whatever it is not certain of, it leaves to the stack, and so to a worker.
 *
 * steer_nic sees what clients send, steer_tunnel what CVMs send, both at tc ingress. flow.h has the states.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "sum.h"

#include "arp.h"
#include "begin.h"
#include "bind.h"
#include "emit.h"
#include "flow.h"
#include "guard.h"
#include "icmp.h"
#include "manage.h"
#include "route.h"
#include "splice.h"

/* The request sock is done with: an in-window RST frees it silently. */
static __always_inline int client_free_request(struct __sk_buff *skb, struct packet *p, struct ph_flow *flow)
{
	struct scratch *s = scratch_get();

	if (!s)
		return TC_ACT_SHOT;
	emit_headers(s, p->ip.saddr, p->ip.daddr, p->tcp.source, p->tcp.dest);
	emit_numbers(s, flow->client_isn + 1, 0, TCP_HLEN, EMIT_RST, 0);
	bpf_skb_change_tail(skb, skb->len + 1, 0);
	return emit(skb, p->l2, s, TCP_HLEN, 0, 0) ? drop(PH_REASON_DROPPED_UNMADE) : TC_ACT_UNSPEC;
}

/*
 * The client begins anew from the same port: its packets are the stack's again. If that still has the request sock of the
 * connection before, which the SYN would be no good to, a reset goes up first.
 */
static __always_inline int client_release(struct __sk_buff *skb, struct packet *p, struct ph_flow *flow)
{
	int owes_reset = flow->splice.flags & PH_FLOW_REQUEST;

	if (flow_unkey(flow))
		return drop(PH_REASON_DROPPED_BUSY);
	if (flow->splice.state == PH_FLOW_ENDED)
		WRITE_ONCE(flow->splice.state, PH_FLOW_KILLED);
	flow->splice.flags &= ~PH_FLOW_REQUEST;
	if (!owes_reset || bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS))
		return TC_ACT_UNSPEC;
	return client_free_request(skb, p, flow);
}

/* The instance was removed: its flows end at the next packet at the latest, also those that are only answering late ones. */
__separate int splice_kill(__u32 slot, __u32 generation, __u32 reason)
{
	struct ph_flow *flow = flow_at(slot);

	if (!flow || !flow_lock(flow))
		return 0;
	if (flow->splice.generation == generation)
		flow_kill(flow, reason);
	flow_unlock(flow);
	return 0;
}

/* Does the client's next packet have to free the request sock? One packet gets a yes. */
static __always_inline int client_owes_reset(struct ph_flow *flow, const struct ph_splice *splice)
{
	int owes = 0;

	if (!(splice->flags & PH_FLOW_REQUEST) || !flow_lock(flow))
		return 0;
	if (flow->splice.generation == splice->generation && flow->splice.flags & PH_FLOW_REQUEST) {
		flow->splice.flags &= ~PH_FLOW_REQUEST;
		flow_uncount_source(flow, PH_COUNTED_HELLO);	/* if it could not be when the store was given back */
		owes = 1;
	}
	flow_unlock(flow);
	return owes;
}

/* Answers with a reset on behalf of a connection that is no more. */
static __always_inline int client_reset(struct __sk_buff *skb, struct packet *p)
{
	struct scratch *s = scratch_get();

	if (!s || emit_reset_reply(skb, p, s))
		return drop(PH_REASON_DROPPED_LATE);
	return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
}

#define NOT_SPLICED (-3)		/* look at the flow under its lock */
#define SPLICED_NOW (-4)		/* it is, since a moment ago */

/* A packet of a client that has a flow, which is spliced, else NOT_SPLICED. */
__separate int client_splice(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct ph_gateway *gateway = gateway_config();
	struct ph_flow *flow = flow_at(slot);
	struct splice_change change;
	struct ph_client_key key;
	struct ph_splice splice;
	enum splice_news news;
	__u32 wire, mtu;

	if (!p || !flow || !gateway)
		return TC_ACT_SHOT;
	key = client_key(p);
	if (flow_snapshot(flow, &splice) || !key_equal(&splice.key, &key) ||
	    (splice.state == PH_FLOW_ENDED && p->tcp.syn))
		return NOT_SPLICED;
	if (instance_is_gone(&splice.instance)) {
		splice_kill(slot, splice.generation, PH_REASON_INSTANCE_REMOVED);
		return client_reset(skb, p);
	}
	if (p->tcp.syn && bpf_ntohl(p->tcp.seq) == flow->client_isn)
		return drop(PH_REASON_DROPPED_LATE);
	if (p->ip.ttl <= 1)
		return drop(PH_REASON_DROPPED_TTL);
	wire = mtu = packet_wire_len(p);
	if (bpf_check_mtu(skb, gateway->tunnel_ifindex, &mtu, 0, 0) < 0)
		return drop(PH_REASON_DROPPED_DEVICE);
	if (mtu > splice.cvm_mtu)
		mtu = splice.cvm_mtu;
	if (wire > mtu) {
		count(PH_REASON_TOO_BIG);
		if (icmp_too_big(skb, p, p->ip.daddr, mtu))
			return TC_ACT_SHOT;
		return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
	}
	news = splice_watch(p, &flow->client, &flow->cvm, bpf_ntohl(p->tcp.seq), bpf_ntohl(p->tcp.ack_seq),
			    splice.client_scale, splice_reset_by(flow, &splice, 0));
	if (news != SPLICE_NOTHING && splice.state == PH_FLOW_SPLICED)
		splice_end(slot, splice.generation, news, 0);
	if (splice.state == PH_FLOW_ENDED)
		splice_recount(slot, splice.generation);
	change = splice_towards_cvm(&splice);
	/*
	 * Before it has said more than its SYN-ACK: the client still echoes what the gateway sent, and from Linux 6.15 on
	 * a CVM in SYN-RECEIVED, whose hello was lost, takes no echo but its own.
	 */
	if (!READ_ONCE(flow->cvm.packets)) {
		change.sets_echo = 1;
		change.echo = flow->cvm.first_time;
	}
	if (splice_rewrite(skb, p, &change))
		return drop(PH_REASON_DROPPED_MALFORMED);
	if (client_owes_reset(flow, &splice)) {
		if (copy_to_tunnel(skb, flow->mac))
			unmade();
		return client_free_request(skb, p, flow);
	}
	return to_tunnel(skb);
}

/* A packet of a client at a flow that is not spliced, or not any more. */
__separate int client_state(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	int action = TC_ACT_UNSPEC;
	struct ph_client_key key;

	if (!p || !flow)
		return TC_ACT_SHOT;
	if (!flow_lock(flow))
		return drop(PH_REASON_DROPPED_BUSY);
	key = client_key(p);
	if (key_equal(&flow->splice.key, &key)) {
		switch (flow->splice.state) {
		case PH_FLOW_COLLECTING:
		case PH_FLOW_BINDING:
			action = begin_more(skb, p, slot);
			break;
		case PH_FLOW_SPLICED:
			action = SPLICED_NOW;
			break;
		case PH_FLOW_DECLINED:
		case PH_FLOW_ENDED:
		case PH_FLOW_KILLED:
			if (p->tcp.syn && flow->splice.state == PH_FLOW_ENDED && flow_may_go_on(flow))
				action = drop(PH_REASON_DROPPED_EARLY);
			else if (p->tcp.syn)
				action = client_release(skb, p, flow);
			else if (flow->splice.state == PH_FLOW_KILLED)
				action = client_reset(skb, p);
			break;
		}
	}
	flow_unlock(flow);
	return action;
}

/* An ICMP error from somewhere between here and a client, about what a CVM sent it. */
__separate int client_icmp(struct __sk_buff *skb, struct packet *p)
{
	struct ph_client_key key;
	struct ph_splice splice;
	struct icmp_error e;
	struct ph_flow *flow;
	__u32 slot;

	if (!p || icmp_read(skb, p, &e))
		return TC_ACT_UNSPEC;
	key = (struct ph_client_key){ e.quoted.daddr, e.quoted.saddr, e.to_port, e.from_port };
	flow = flow_find(&key, &slot);
	if (!flow || flow_snapshot(flow, &splice) || !key_equal(&splice.key, &key))
		return TC_ACT_UNSPEC;
	if (p->ip.ttl <= 1)
		return drop(PH_REASON_DROPPED_TTL);
	if (icmp_rewrite(skb, p, &e, splice.source, splice.cvm, splice.cvm, splice.source, splice.cvm_port, splice.source_port,
			 -splice.seq_to_client))
		return drop(PH_REASON_DROPPED_UNMADE);
	count(PH_REASON_ICMP_PASSED);
	return to_tunnel(skb);
}

/* A hello over IPv6 is relayed; it is told here so that somebody who wonders why sees it. */
__separate int client_ipv6(struct __sk_buff *skb)
{
	const struct ph_steer *steer = steer_config();
	struct ipv6hdr ip;
	struct tcphdr tcp;
	__u32 len;

	if (!steer || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), &tcp, TCP_HLEN) || !is_our_port(steer, tcp.dest))
		return TC_ACT_UNSPEC;
	if (nobody_v6(skb, &ip, &tcp) == TC_ACT_SHOT)
		return TC_ACT_SHOT;
	len = bpf_ntohs(ip.payload_len);
	if (tcp.doff >= 5 && len > tcp.doff * 4 && is_hello(skb, ETH_HLEN + sizeof(ip) + tcp.doff * 4, len - tcp.doff * 4))
		count(PH_REASON_DECLINED_IPV6);
	return TC_ACT_UNSPEC;
}

/* A fragment, or a packet with IP options, of a flow: the stack would answer it with a reset. */
static __always_inline int drop_if_ours(struct ph_flow *flow, enum ph_reason reason)
{
	if (!flow)
		return TC_ACT_UNSPEC;
	switch (READ_ONCE(flow->splice.state)) {
	case PH_FLOW_COLLECTING:
	case PH_FLOW_BINDING:
	case PH_FLOW_SPLICED:
	case PH_FLOW_ENDED:
		return drop(reason);
	default:			/* there is none, or the stack has the client */
		return TC_ACT_UNSPEC;
	}
}

static __always_inline struct ph_flow *client_flow(const struct packet *p, __u32 *ret_slot)
{
	struct ph_client_key key = client_key(p);

	return flow_find(&key, ret_slot);
}

SEC("tc")
int steer_nic(struct __sk_buff *skb)
{
	struct ph_steer *steer = steer_config();
	struct scratch *s = scratch_get();
	enum packet_kind kind;
	struct ph_flow *flow;
	struct packet *p;
	int action;
	__u32 slot;

	/* A tag would go along into the tunnel, and answers without one. The VLAN's own device has no tags. */
	if (!s || !steer || !steer->slots || skb->vlan_present)
		return TC_ACT_UNSPEC;
	p = &s->packet;
	kind = packet_read(skb, ETH_HLEN, p);
	if (kind == PACKET_ICMP)
		return client_icmp(skb, p);
	if (kind == PACKET_IPV6)
		return client_ipv6(skb);
	if (kind == PACKET_OTHER)
		return TC_ACT_UNSPEC;
	flow = client_flow(p, &slot);
	if (kind == PACKET_TCP_OPTIONS && flow)
		return drop_if_ours(flow, PH_REASON_DROPPED_IP_OPTIONS);
	if (kind == PACKET_TCP_FRAGMENT)
		return drop_if_ours(flow, PH_REASON_DROPPED_FRAGMENT);
	if (!flow) {
		action = begin(skb, p);
		if (action != BEGIN_AGAIN)
			return action;
		flow = client_flow(p, &slot);
		if (!flow)
			return drop(PH_REASON_DROPPED_BUSY);
	}
	action = client_splice(skb, p, slot);
	if (action == NOT_SPLICED)
		action = client_state(skb, p, slot);
	if (action == SPLICED_NOW)
		action = client_splice(skb, p, slot);
	return action == NOT_SPLICED ? drop(PH_REASON_DROPPED_BUSY) : action;
}

/*
 * A CVM's packet to an address and port of steer's at which this CVM has nothing. There is no answer, as there is none at
 * addresses that nobody has: who else talks here, and how much, is not for it to learn.
 */
static __always_inline int cvm_refuse(struct __sk_buff *skb, enum ph_guard_reason reason)
{
	return guard_drop(skb, tunnel_header(), reason);
}

/* Of a flow of this CVM's that ended, or was given up: told so. The reset that it should have had may have been lost. */
static __always_inline int cvm_stray(struct __sk_buff *skb, struct packet *p)
{
	struct scratch *s = scratch_get();

	count(PH_REASON_STRAY);
	if (!s || emit_reset_reply(skb, p, s))
		return TC_ACT_SHOT;
	return to_tunnel(skb);
}

/* Is this flow's CVM the one that sends from @cvm and @port? */
static __always_inline int flow_is_of(const struct ph_splice *splice, __be32 cvm, __be16 port)
{
	return splice->cvm == cvm && splice->cvm_port == port;
}

/* A CVM's packet at a flow that is spliced, else NOT_SPLICED. */
__separate int cvm_splice(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	struct splice_change change;
	struct ph_splice splice;
	enum splice_news news;
	__u32 wire, mtu;

	if (!p || !flow)
		return TC_ACT_SHOT;
	if (flow_snapshot(flow, &splice) || !flow_is_of(&splice, p->ip.saddr, p->tcp.source))
		return NOT_SPLICED;
	if (instance_is_gone(&splice.instance)) {
		splice_kill(slot, splice.generation, PH_REASON_INSTANCE_REMOVED);
		return cvm_stray(skb, p);
	}
	if (p->tcp.syn)			/* a repeated SYN-ACK: the client's packets answer it */
		return drop(PH_REASON_DROPPED_LATE);
	if (p->ip.ttl <= 1)
		return drop(PH_REASON_DROPPED_TTL);
	wire = mtu = packet_wire_len(p);
	if (bpf_check_mtu(skb, splice.nic, &mtu, 0, 0) < 0)
		return drop(PH_REASON_DROPPED_DEVICE);
	if (wire > mtu) {
		count(PH_REASON_TOO_BIG);
		if (icmp_too_big(skb, p, splice.source, mtu))
			return TC_ACT_SHOT;
		return to_tunnel(skb);
	}
	news = splice_watch(p, &flow->cvm, &flow->client, bpf_ntohl(p->tcp.seq) + splice.seq_to_client,
			    bpf_ntohl(p->tcp.ack_seq) - splice.seq_to_cvm, splice.cvm_scale,
			    splice_reset_by(flow, &splice, 1));
	if (news != SPLICE_NOTHING && splice.state == PH_FLOW_SPLICED)
		splice_end(slot, splice.generation, news, 1);
	if (splice.state == PH_FLOW_ENDED)
		splice_recount(slot, splice.generation);
	change = splice_towards_client(&splice);
	if (splice_rewrite(skb, p, &change))
		return drop(PH_REASON_DROPPED_MALFORMED);
	return to_client(skb, splice.nic);
}

/* A CVM's packet at a flow that is not spliced, or is another's. */
__separate int cvm_state(struct __sk_buff *skb, struct packet *p, __u32 slot)
{
	struct ph_flow *flow = flow_at(slot);
	int action = TC_ACT_SHOT, stray = 0, refuse = 0;

	if (!p || !flow)
		return TC_ACT_SHOT;
	/* Looked at before the lock, which is not for one CVM to hold against another's flow. */
	if (!flow_is_of(&flow->splice, p->ip.saddr, p->tcp.source))
		return cvm_refuse(skb, PH_GUARD_UNCALLED);
	if (!flow_lock(flow))
		return drop(PH_REASON_DROPPED_BUSY);
	if (!flow_is_of(&flow->splice, p->ip.saddr, p->tcp.source)) {
		refuse = 1;
	} else {
		switch (flow->splice.state) {
		case PH_FLOW_BINDING:
			action = bind_from_cvm(skb, p, slot);
			break;
		case PH_FLOW_SPLICED:
			action = SPLICED_NOW;
			break;
		case PH_FLOW_ENDED:
		case PH_FLOW_KILLED:
		case PH_FLOW_DECLINED:
			stray = 1;
			break;
		case PH_FLOW_FREE:	/* the last flow here was its own, and may not have ended for it */
			stray = !p->tcp.syn && !instance_is_gone(&flow->splice.instance) &&
				bpf_ktime_get_ns() < flow->ended_ns + PH_FLOW_CLOSING_MS * NSEC_PER_MSEC;
			refuse = !stray;
			break;
		default:
			refuse = 1;
		}
	}
	flow_unlock(flow);
	if (refuse)
		return cvm_refuse(skb, PH_GUARD_UNCALLED);
	return stray ? cvm_stray(skb, p) : action;
}

/*
 * An ICMP error from a CVM, or from a router on the way to it, about what a client sent; NOT_SPLICED if about something
 * else. From another CVM never, or one tenant could narrow another's path, or break it.
 */
__separate int cvm_icmp(struct __sk_buff *skb, struct packet *p)
{
	struct ph_steer *steer = steer_config();
	struct ph_splice splice;
	struct icmp_error e;
	struct ph_flow *flow;

	if (!p || !steer || icmp_read(skb, p, &e))
		return TC_ACT_UNSPEC;
	flow = flow_at(slot_of(steer, e.quoted.saddr, e.from_port));
	if (!flow)
		return TC_ACT_UNSPEC;
	if (e.quoted.saddr != p->ip.daddr || !flow_is_of(&flow->splice, e.quoted.daddr, e.to_port) ||
	    (e.quoted.daddr != p->ip.saddr && guard_knows(p->ip.saddr)))
		return cvm_refuse(skb, PH_GUARD_UNCALLED);
	if (flow_snapshot(flow, &splice) || !flow_is_of(&splice, e.quoted.daddr, e.to_port))
		return NOT_SPLICED;
	/* The client takes it for the path to the gateway, and so for other tenants' connections too: none below what is sane. */
	if (e.icmp.type == ICMP_DEST_UNREACH && e.icmp.code == ICMP_FRAG_NEEDED && bpf_ntohs(e.icmp.un.frag.mtu) < ICMP_MTU_LEAST)
		return drop(PH_REASON_DROPPED_ICMP);
	if (p->ip.ttl <= 1)
		return drop(PH_REASON_DROPPED_TTL);
	if (icmp_rewrite(skb, p, &e, splice.key.gateway, splice.key.client, splice.key.client, splice.key.gateway,
			 splice.key.client_port, splice.key.gateway_port, -splice.seq_to_cvm))
		return drop(PH_REASON_DROPPED_UNMADE);
	count(PH_REASON_ICMP_PASSED);
	return to_client(skb, splice.nic);
}

/* The same about a SYN of ours: the next instance's turn. */
__separate int cvm_unreachable(struct __sk_buff *skb, struct packet *p)
{
	struct ph_steer *steer = steer_config();
	int action = TC_ACT_SHOT;
	struct icmp_error e;
	struct ph_flow *flow;
	__u32 slot;

	if (!p || !steer || icmp_read(skb, p, &e))
		return TC_ACT_SHOT;
	slot = slot_of(steer, e.quoted.saddr, e.from_port);
	flow = flow_at(slot);
	if (!flow)
		return TC_ACT_SHOT;
	if (!flow_lock(flow))
		return drop(PH_REASON_DROPPED_BUSY);
	if (flow->splice.state == PH_FLOW_BINDING && flow_is_of(&flow->splice, e.quoted.daddr, e.to_port) &&
	    bpf_ntohl(e.seq) == flow->client_isn + flow->splice.seq_to_cvm && e.icmp.type == ICMP_DEST_UNREACH &&
	    e.icmp.code != ICMP_FRAG_NEEDED) {
		count_instance(flow, PH_REASON_CVM_UNREACHABLE);
		action = bind_next_or_drop(skb, p->l2, flow, slot);
	} else {
		count(PH_REASON_DROPPED_ICMP);
	}
	flow_unlock(flow);
	return action;
}

/* A fragment, or a packet with IP options. */
static __always_inline int cvm_odd(struct __sk_buff *skb, const struct packet *p, struct ph_flow *flow,
				   enum ph_reason reason, enum ph_guard_reason refusal)
{
	if (!flow_is_of(&flow->splice, p->ip.saddr, p->tcp.source))
		return cvm_refuse(skb, refusal);
	return drop_if_ours(flow, reason) == TC_ACT_SHOT ? TC_ACT_SHOT : cvm_refuse(skb, refusal);
}

SEC("tc")
int steer_tunnel(struct __sk_buff *skb)
{
	struct ph_steer *steer = steer_config();
	struct scratch *s = scratch_get();
	enum packet_kind kind;
	struct ph_flow *flow;
	struct packet *p;
	__u32 slot;
	int action;

	if (!s || !steer || !steer->slots)
		return TC_ACT_UNSPEC;
	if (tunnel_l2 && skb->protocol == bpf_htons(ETH_P_ARP))
		return arp_answer(skb) ? bpf_redirect(skb->ifindex, 0) : TC_ACT_UNSPEC;
	p = &s->packet;
	kind = packet_read(skb, tunnel_header(), p);
	if (kind == PACKET_ICMP) {
		action = cvm_icmp(skb, p);
		return action == NOT_SPLICED ? cvm_unreachable(skb, p) : action;
	}
	if (kind == PACKET_OTHER || kind == PACKET_IPV6)
		return TC_ACT_UNSPEC;
	slot = slot_of(steer, p->ip.daddr, p->tcp.dest);
	flow = flow_at(slot);
	if (!flow)
		return TC_ACT_UNSPEC;
	if (kind == PACKET_TCP_OPTIONS)
		return cvm_odd(skb, p, flow, PH_REASON_DROPPED_IP_OPTIONS, PH_GUARD_IP_OPTIONS);
	if (kind == PACKET_TCP_FRAGMENT)
		return cvm_odd(skb, p, flow, PH_REASON_DROPPED_FRAGMENT, PH_GUARD_FRAGMENT);
	action = cvm_splice(skb, p, slot);
	if (action == NOT_SPLICED)
		action = cvm_state(skb, p, slot);
	if (action == SPLICED_NOW)
		action = cvm_splice(skb, p, slot);
	return action == NOT_SPLICED ? drop(PH_REASON_DROPPED_BUSY) : action;
}

char LICENSE[] SEC("license") = "GPL";
