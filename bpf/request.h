/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * request - what the kernel's listener agreed with a client, read from its request sock.
 *
 * The kernel did the client's handshake; with TCP_DEFER_ACCEPT a request sock is all it keeps until data comes. So no
 * SYN need ever be watched. The fields are there from Linux 6.1 on; CO-RE finds their places.
 */
#ifndef PH_BPF_REQUEST_H
#define PH_BPF_REQUEST_H

#include <bpf/bpf_core_read.h>

#include "nobody.h"
#include "packet.h"

enum request_result {
	REQUEST_OK,
	REQUEST_NONE,			/* no connection in this state: not steer's */
	REQUEST_NOBODYS,		/* no connection at all */
	REQUEST_ACCEPTED,		/* a socket that has read nothing yet, or what will be one */
	REQUEST_ODD,			/* one with options that steer does not know */
};

static __always_inline enum request_result request_fields(const struct tcp_request_sock *rq, struct ph_hello_store *r)
{
	struct sock *listener = BPF_CORE_READ(rq, req.req.__req_common.skc_listener);

	r->client_isn = BPF_CORE_READ(rq, rcv_isn);
	r->gateway_isn = BPF_CORE_READ(rq, snt_isn);
	r->time_offset = BPF_CORE_READ(rq, ts_off);
	r->mss = BPF_CORE_READ(rq, req.req.mss);
	r->client_scale = BPF_CORE_READ_BITFIELD_PROBED(rq, req.snd_wscale);
	r->gateway_scale = BPF_CORE_READ_BITFIELD_PROBED(rq, req.rcv_wscale);
	r->flags = 0;
	if (BPF_CORE_READ_BITFIELD_PROBED(rq, req.tstamp_ok))
		r->flags |= PH_FLOW_TIMESTAMPS;
	if (BPF_CORE_READ_BITFIELD_PROBED(rq, req.sack_ok))
		r->flags |= PH_FLOW_SACK;
	if (BPF_CORE_READ_BITFIELD_PROBED(rq, req.wscale_ok))
		r->flags |= PH_FLOW_SCALING;
	if (BPF_CORE_READ_BITFIELD_PROBED(rq, req.ecn_ok))
		r->flags |= PH_FLOW_ECN;
	r->queue_fills = 0;
	if (listener)
		r->queue_fills = BPF_CORE_READ(listener, sk_ack_backlog) / 3 >=
				 BPF_CORE_READ(listener, sk_max_ack_backlog) / 4;
	if (BPF_CORE_READ(rq, is_mptcp))
		return REQUEST_ODD;
	if (bpf_core_field_exists(rq->accecn_ok) && BPF_CORE_READ(rq, accecn_ok))
		return REQUEST_ODD;
	if (bpf_core_field_exists(rq->req_usec_ts) && BPF_CORE_READ(rq, req_usec_ts))
		return REQUEST_ODD;
	if (!(r->flags & PH_FLOW_SCALING))
		r->client_scale = r->gateway_scale = 0;
	return REQUEST_OK;
}

/* Is this packet the first that the socket will read? A blind sender does not know its number. */
static __always_inline int request_reads_next(struct bpf_sock *sock, const struct packet *p)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sock);

	return tcp && !BPF_CORE_READ(tcp, bytes_received) && BPF_CORE_READ(tcp, rcv_nxt) == bpf_ntohl(p->tcp.seq);
}

/* Is there a connection whose first data this is? Asked of a packet with IP options, which steer does not take. */
__separate int request_awaits(struct __sk_buff *skb, struct packet *p)
{
	struct tcp_request_sock *rq;
	struct bpf_sock *sock;
	int awaits = 0;

	if (!p)
		return 0;
	sock = socket_find(skb, p);
	if (!sock)
		return 0;
	if (sock->state == BPF_TCP_ESTABLISHED || sock->state == BPF_TCP_SYN_RECV)
		awaits = request_reads_next(sock, p);
	if (sock->state == BPF_TCP_NEW_SYN_RECV) {
		rq = bpf_skc_to_tcp_request_sock(sock);
		awaits = rq && BPF_CORE_READ(rq, rcv_isn) + 1 == bpf_ntohl(p->tcp.seq);
	}
	bpf_sk_release(sock);
	return awaits;
}

/* What they agreed on, into @store. */
static __always_inline enum request_result request_find(struct __sk_buff *skb, struct packet *p,
							struct ph_hello_store *store)
{
	enum request_result result = REQUEST_NONE;
	struct tcp_request_sock *rq;
	struct bpf_sock *sock;

	sock = socket_find(skb, p);
	if (!sock)
		return REQUEST_NONE;
	if (sock->state == BPF_TCP_LISTEN)
		result = is_nobodys(sock, &p->ip, IP_HLEN, &p->tcp) ? REQUEST_NOBODYS : REQUEST_ACCEPTED;
	/* SYN_RECV: the handshake's last packet is with another CPU (net/ipv4/syncookies.c), or not there (Fast Open). */
	if ((sock->state == BPF_TCP_ESTABLISHED || sock->state == BPF_TCP_SYN_RECV) && request_reads_next(sock, p))
		result = REQUEST_ACCEPTED;
	if (sock->state == BPF_TCP_NEW_SYN_RECV) {
		rq = bpf_skc_to_tcp_request_sock(sock);
		if (rq)
			result = request_fields(rq, store);
	}
	bpf_sk_release(sock);
	return result;
}

#endif
