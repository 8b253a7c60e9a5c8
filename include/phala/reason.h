/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * reason - why a connection was refused, declined, or ended: enum, name and text from one table.
 *
 * Whatever a peer can make happen has a row here; every row is a counter that phalactl shows. The order is part of the
 * ABI: new rows go to the end.
 */
#ifndef PHALA_REASON_H
#define PHALA_REASON_H

#define PH_REASONS(X)                                                                                        \
	/* what became of connections that were served */                                                    \
	X(ACCEPTED, "accepted", "a client's connection was accepted")                                        \
	X(ROUTED_STANDARD, "routed-standard", "connected to an instance, TLS ends here")                     \
	X(ROUTED_PASSTHROUGH, "routed-passthrough", "connected to an instance, TLS passed on by relay")      \
	X(CLOSED, "closed", "both sides finished in order")                                                  \
	/* before a name was known */                                                                        \
	X(SILENT, "silent", "the client sent nothing within the hello time-out")                             \
	X(HELLO_TIMEOUT, "hello-timeout", "the ClientHello was not complete within the hello time-out")      \
	X(HELLO_EOF, "hello-eof", "the client closed or reset before its ClientHello was complete")          \
	X(NOT_TLS, "not-tls", "the first bytes are neither TLS nor a PostgreSQL SSLRequest")                 \
	X(NO_SNI, "no-sni", "the ClientHello names no server")                                               \
	X(MALFORMED, "malformed", "the ClientHello breaks its own lengths or the protocol")                  \
	X(AMBIGUOUS, "ambiguous", "the ClientHello names more than one server")                              \
	X(HELLO_TOO_LONG, "hello-too-long", "the ClientHello is longer than the limit")                      \
	/* the name */                                                                                       \
	X(BAD_NAME, "bad-name", "the label is empty or has a character that no id has")                      \
	X(BAD_PORT, "bad-port", "the port is not 1-65535 in plain decimal")                                  \
	X(BAD_SUFFIX, "bad-suffix", "something follows the s or g suffix")                                   \
	X(SECOND_DASH, "second-dash", "the label has a second dash")                                         \
	X(LABEL_TOO_LONG, "label-too-long", "the label is longer than 63 characters")                        \
	X(TRAILING_DOT, "trailing-dot", "the name ends in a dot")                                            \
	X(OTHER_DOMAIN, "other-domain", "what follows the first label is not a base domain of this gateway") \
	/* the route */                                                                                      \
	X(UNKNOWN_ID, "unknown-id", "no app and no instance has this id")                                    \
	X(NO_HEALTHY, "no-healthy", "the app has no healthy instance that takes connections")                \
	X(MANAGER_STALE, "manager-stale", "no manager has refreshed health for longer than ManagerGrace")    \
	/* the way to the CVM */                                                                             \
	X(CVM_REFUSED, "cvm-refused", "an instance refused the connection")                                  \
	X(CVM_UNREACHABLE, "cvm-unreachable", "an instance is unreachable, or the tunnel is gone or down")   \
	X(CVM_TIMEOUT, "cvm-timeout", "an instance did not answer within the connect time-out")              \
	X(CVM_NO_TLS, "cvm-no-tls", "the CVM's server declined the PostgreSQL SSLRequest")                   \
	X(NO_INSTANCE_ANSWERED, "no-instance-answered", "every instance that was tried failed")              \
	/* TLS on our side */                                                                                \
	X(TLS_FAILED, "tls-failed", "the TLS handshake with the client failed")                              \
	X(TLS_TIMEOUT, "tls-timeout", "the TLS handshake was not done within the hello time-out")            \
	X(TLS_TRUNCATED, "tls-truncated", "the client's TLS stream ended without close_notify")              \
	X(TLS_ERROR, "tls-error", "a TLS error after the handshake")                                         \
	/* the end */                                                                                        \
	X(CLIENT_RESET, "client-reset", "the client reset the connection")                                   \
	X(CVM_RESET, "cvm-reset", "the CVM reset the connection")                                            \
	X(IDLE, "idle", "no byte either way for the idle time-out")                                          \
	X(INSTANCE_REMOVED, "instance-removed", "the instance was removed, or is another CVM's now")         \
	X(TUNNEL_GONE, "tunnel-gone", "the tunnel device disappeared")                                       \
	X(SHUTDOWN, "shutdown", "the gateway was stopped")                                                   \
	/* ourselves */                                                                                      \
	X(NO_DESCRIPTORS, "no-descriptors", "accept paused: the process or the system is out of descriptors") \
	X(CONNECTION_LIMIT, "connection-limit", "accept paused: the worker is at its connection limit")      \
	X(NO_MEMORY, "no-memory", "out of memory or another resource for a connection")                      \
	/* left to a worker by BPF */                                                                        \
	X(DECLINED_LONG, "declined-long", "the ClientHello is longer than BPF collects")                     \
	X(DECLINED_IPV6, "declined-ipv6", "a ClientHello over IPv6: relayed")                                \
	X(DECLINED_ACCEPTED, "declined-accepted", "the kernel had a socket before the ClientHello: SYN cookies, or it came late") \
	X(DECLINED_OPTIONS, "declined-options", "IP or TCP options, flags or timestamps that steer does not carry") \
	X(DECLINED_CHECKSUM, "declined-checksum", "part of a ClientHello with a wrong TCP checksum")         \
	X(DECLINED_PIECES, "declined-pieces", "a ClientHello in too many pieces or repeats")                 \
	X(DECLINED_SLOW, "declined-slow", "a ClientHello that did not become whole in time")                 \
	X(DECLINED_FULL, "declined-full", "no free flow, or no room for another ClientHello")                \
	X(DECLINED_TIMER, "declined-timer", "the timer has stopped: the pins of the maps are gone")             \
	X(DECLINED_LIMIT, "declined-limit", "the app's or the client's limit of flows is reached")           \
	X(DECLINED_UNANSWERED, "declined-unanswered", "no instance answered steer: left to a worker")        \
	/* the kernel path */                                                                                \
	X(SPLICED, "spliced", "connected to an instance, TLS passed on by the kernel")                       \
	X(CVM_NO_TIMESTAMPS, "cvm-no-timestamps", "an instance declined timestamps that the client has")     \
	X(CVM_NO_SACK, "cvm-no-sack", "an instance declined SACK: its transfers suffer under loss")          \
	X(CVM_NO_SCALING, "cvm-no-scaling", "an instance declined window scaling: its transfers are slow")   \
	X(TURNED_AWAY, "turned-away", "reset: no worker lives to take it")                   \
	X(KILLED, "killed", "ended by the operator")                                                         \
	X(DROPPED_FRAGMENT, "dropped-fragment", "a fragment of a flow")                                      \
	X(DROPPED_IP_OPTIONS, "dropped-ip-options", "a packet of a flow with IP options")                    \
	X(DROPPED_TTL, "dropped-ttl", "a packet of a spliced flow whose time to live ran out")               \
	X(TOO_BIG, "too-big", "a packet of a spliced flow over the path's MTU: answered with ICMP")          \
	X(STRAY, "stray", "a packet from a CVM, of a flow that is over: answered with a reset")              \
	X(DROPPED_MALFORMED, "dropped-malformed", "a packet of a spliced flow that could not be rewritten")  \
	X(ICMP_PASSED, "icmp-passed", "an ICMP error about a spliced flow, translated")                      \
	/* limits, where a worker sees them; steer's is declined-limit */                                     \
	X(APP_LIMIT, "app-limit", "refused: the app has as many connections as it may have")                 \
	X(SOURCE_LIMIT, "source-limit", "refused: the client has as many connections as it may have")          \
	/* why a worker carries what could have been the kernel's: told of connections, not counted */        \
	X(NO_NIC, "no-nic", "no Nic is configured: everything is relayed")                                   \
	X(POSTGRES, "postgres", "PostgreSQL asks for TLS or GSS before its ClientHello: relayed")                  \
	/* h2 */                                                                                             \
	X(MISDIRECTED, "misdirected", "a request for another host than the connection's: answered with 421") \
	X(H2_MALFORMED, "h2-malformed", "the client's h2 cannot be followed")                                \
	X(H2_TOO_LONG, "h2-too-long", "the header block of an h2 request is longer than the limit")          \
	X(CVM_H2, "cvm-h2", "the CVM pushed, answered what it was not asked, or kept a refusal waiting") \
	/* the kernel path again */                                                                          \
	X(DECLINED_HELLOS, "declined-hellos", "as many ClientHellos of the client's address are held as may be") \
	X(DROPPED_EARLY, "dropped-early", "a packet of a flow that has no instance yet, and of no use to it")   \
	X(DROPPED_LATE, "dropped-late", "a packet that a flow is past: a SYN or SYN-ACK again, a reset")        \
	X(DROPPED_BUSY, "dropped-busy", "a packet of a flow that another CPU was at")                           \
	X(DROPPED_DEVICE, "dropped-device", "a packet of a flow that has no device to go on by")                \
	X(DROPPED_UNMADE, "dropped-unmade", "a packet that could not be made, or not be sent")                  \
	X(DROPPED_ICMP, "dropped-icmp", "an ICMP error about a flow, that is not to be believed")               \
	X(NOBODYS, "nobodys", "packets of no connection, of more than are answered with a reset: dropped")    \
	/* TLS on our side again */                                                                           \
	X(NO_CERTIFICATE, "no-certificate", "a worker that was restarted could not read the domain's certificate and key")

enum ph_reason {
#define PH_REASON_ENUM(name, word, text) PH_REASON_##name,
	PH_REASONS(PH_REASON_ENUM)
#undef PH_REASON_ENUM
	PH_REASON_COUNT
};

/* Those that steer counts for each instance too, by which an app's are told. The order is part of the ABI. */
#define PH_LOAD_REASONS(X)                                                                             \
	X(CLOSED) X(CLIENT_RESET) X(CVM_RESET) X(IDLE) X(INSTANCE_REMOVED) X(TUNNEL_GONE) X(SHUTDOWN) X(KILLED) \
	X(CVM_REFUSED) X(CVM_UNREACHABLE) X(CVM_TIMEOUT) X(CVM_NO_TIMESTAMPS) X(DECLINED_LIMIT)                 \
	X(DECLINED_UNANSWERED)

enum ph_load_reason {
#define PH_LOAD_REASON_ENUM(name) PH_LOAD_REASON_##name,
	PH_LOAD_REASONS(PH_LOAD_REASON_ENUM)
#undef PH_LOAD_REASON_ENUM
	PH_LOAD_REASON_COUNT
};

/* Return: PH_LOAD_REASON_COUNT for one that is not counted there. */
static inline enum ph_load_reason ph_load_reason(enum ph_reason reason)
{
	switch (reason) {
#define PH_LOAD_REASON_CASE(name)        \
	case PH_REASON_##name:           \
		return PH_LOAD_REASON_##name;
	PH_LOAD_REASONS(PH_LOAD_REASON_CASE)
#undef PH_LOAD_REASON_CASE
	default:
		return PH_LOAD_REASON_COUNT;
	}
}

/* What guard did with a packet on the tunnel device. */
#define PH_GUARD_REASONS(X)                                                                   \
	X(ANSWER, "answer", "from a CVM, to a connection that called it")                     \
	X(ICMP, "icmp", "from a CVM, an ICMP error about such a connection")                  \
	X(SENT, "sent", "towards a CVM, by a worker")                                         \
	X(NOT_IPV4, "not-ipv4", "dropped: not IPv4")                                          \
	X(MALFORMED, "malformed", "dropped: headers cut short or impossible")                 \
	X(FRAGMENT, "fragment", "dropped: a fragment")                                        \
	X(PROTOCOL, "protocol", "dropped: neither TCP nor an ICMP error about TCP")           \
	X(UNCALLED, "uncalled", "dropped: from a CVM, to nothing that called it")             \
	X(NOT_OURS, "not-ours", "dropped: towards a CVM, but not sent by this gateway's workers") \
	X(STEERED, "steered", "towards a CVM, by steer")                                      \
	X(IP_OPTIONS, "ip-options", "dropped: IP options")                                    \
	X(MULTICAST, "multicast", "dropped: from a CVM, to a multicast or broadcast address") \
	X(ARP, "arp", "address resolution, on a tunnel device that has Ethernet headers")     \
	X(LATE, "late", "from a CVM, to a connection that was reset: it is told once more")

enum ph_guard_reason {
#define PH_GUARD_ENUM(name, word, text) PH_GUARD_##name,
	PH_GUARD_REASONS(PH_GUARD_ENUM)
#undef PH_GUARD_ENUM
	PH_GUARD_COUNT
};

/* What the gate did with a packet for the gateway. Data that it lets pass is not counted, but for the allow list's. */
#define PH_GATE_REASONS(X)                                                                              \
	X(CONNECTION, "connection", "let in: a SYN")                                                    \
	X(HELLO, "hello", "let in: a packet that begins like a ClientHello")                            \
	X(HANDSHAKE, "handshake", "let in: a WireGuard handshake initiation")                           \
	X(ALLOWED, "allowed", "let in: any packet of a source on the allow list")                       \
	/* dropped from here on */                                                                      \
	X(BAD_LENGTH, "bad-length", "dropped: lengths that contradict each other")                      \
	X(BAD_FLAGS, "bad-flags", "dropped: SYN with FIN or RST, or none of SYN, ACK and RST")          \
	X(SYN_ACK, "syn-ack", "dropped: the answer to a SYN that was never sent")                       \
	X(LAND, "land", "dropped: from the address that it goes to")                                    \
	X(BAD_SOURCE, "bad-source", "dropped: from an address or port that no client has")              \
	X(FRAGMENT, "fragment", "dropped: a fragment with the first bytes of TCP")                      \
	X(HEADERS, "headers", "dropped: more IPv6 headers than a client sends")                         \
	X(DENIED, "denied", "dropped: from the deny list")                                              \
	X(OVER_CONNECTIONS, "over-connections", "dropped: a SYN over its source's budget")              \
	X(OVER_HELLOS, "over-hellos", "dropped: a ClientHello over its source's budget")                \
	X(OVER_HANDSHAKES, "over-handshakes", "dropped: a handshake initiation over its source's budget")   \
	X(CHALLENGED, "challenged", "answered: a SYN from a source not heard of, of too many")          \
	X(PROVEN, "proven", "taken: the answer to that; the source may come in")

enum ph_gate_reason {
#define PH_GATE_ENUM(name, word, text) PH_GATE_##name,
	PH_GATE_REASONS(PH_GATE_ENUM)
#undef PH_GATE_ENUM
	PH_GATE_COUNT
};

#define PH_GATE_DROPS PH_GATE_BAD_LENGTH	/* the first that is a drop */

#endif
