// SPDX-License-Identifier: Apache-2.0
/*
 * steer.bpf: each state of a flow and each kind of packet, under BPF_PROG_TEST_RUN: what becomes of the packet, which bytes
 * it has then (all checksums computed from scratch here), and the state that follows.
 *
 * The tunnel is a layer-2 one, since a test run has Ethernet headers. What needs a client's handshake is in
 * selftests/steer. In a network namespace of its own, whose loopback device is NIC and tunnel.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <phala/abi.h>

#include "hellos.h"
#include "ktap.h"
#include "shell.h"
#include "steer.skel.h"

#define UNSPEC (-1)
#define SHOT 2
#define REDIRECT 7

#define ETHERNET 14
#define IP 20
#define PACKET_SIZE 4096
#define SLOT 0x8123
#define GENERATION 77
#define LOOPBACK 1

#define CLIENT 0xc0000202		/* 192.0.2.2 */
#define GATEWAY 0xc0000201
#define ELSEWHERE 0xc6336407		/* 198.51.100.7, which the gateway forwards to */
#define CVM 0x0a400001			/* 10.64.0.1 */
#define SOURCE (0x0a000002 + SLOT / PH_FLOW_PORTS)
#define CLIENT_PORT 50000
#define GATEWAY_PORT 443
#define CVM_PORT 8443
#define SOURCE_PORT (PH_FLOW_PORTS + SLOT % PH_FLOW_PORTS)

#define CLIENT_ISN 1000000
#define GATEWAY_ISN 0xfffff000		/* numbers wrap on the way */
#define SEQ_TO_CVM 0x70000000
#define SEQ_TO_CLIENT 0x12345678
#define TIME_TO_CVM 0xf0000000
#define TIME_TO_CLIENT 555

/* Where the ends are: the client has sent 500 bytes and the CVM 9000, all acknowledged. */
#define CLIENT_NEXT (CLIENT_ISN + 501)
#define CVM_NEXT (GATEWAY_ISN + 9001)
#define WINDOW 1000

enum flag { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum form { PLAIN, TIMES, SACK, TIMES_LAST, MSS, ROUTED, FRAGMENT };	/* ROUTED: with IP options */

struct packet {
	uint32_t from, to, seq, ack;
	uint16_t from_port, to_port, window;
	uint8_t flags, ttl;
	enum form form;
	uint32_t time, echo, edge;
	uint16_t payload, mss;
	const uint8_t *start;		/* of the payload, if not NULL */
	size_t start_len;
};

static struct ph_steer_bpf *skel;

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint64_t sum_bytes(const uint8_t *at, size_t len)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += i % 2 ? at[i] : at[i] << 8;
	return sum;
}

static void put16(uint8_t *at, uint16_t value)
{
	at[0] = value >> 8;
	at[1] = value;
}

static void put32(uint8_t *at, uint32_t value)
{
	put16(at, value >> 16);
	put16(at + 2, value);
}

static void put_times(uint8_t *at, const struct packet *p)
{
	at[0] = 8;
	at[1] = 10;
	put32(at + 2, p->time);
	put32(at + 6, p->echo);
}

/* Return: bytes of TCP options. */
static size_t write_options(const struct packet *p, uint8_t *at)
{
	switch (p->form) {
	case TIMES:
		at[0] = at[1] = 1;
		put_times(at + 2, p);
		return 12;
	case SACK:			/* timestamps, then an edge pair, as Linux does */
		at[0] = at[1] = at[12] = at[13] = 1;
		put_times(at + 2, p);
		at[14] = 5;
		at[15] = 10;
		put32(at + 16, p->edge);
		put32(at + 20, p->edge + 100);
		return 24;
	case TIMES_LAST:		/* SACK first and timestamps at an odd place: legal */
		at[0] = 5;
		at[1] = 10;
		put32(at + 2, p->edge);
		put32(at + 6, p->edge + 100);
		at[10] = 1;
		put_times(at + 11, p);
		at[21] = at[22] = at[23] = 1;
		return 24;
	case MSS:			/* and timestamps, of a SYN-ACK */
		at[0] = 2;
		at[1] = 4;
		put16(at + 2, p->mss);
		at[4] = at[5] = 1;
		put_times(at + 6, p);
		return 16;
	default:
		return 0;
	}
}

/* Return: bytes of the frame. */
static size_t write_packet(const struct packet *p, uint8_t *frame)
{
	size_t ip_len = IP + (p->form == ROUTED ? 4 : 0), tcp_len;
	uint8_t *ip = frame + ETHERNET, *tcp = ip + ip_len;

	memset(frame, 0, PACKET_SIZE);
	put16(frame + 12, 0x0800);
	tcp_len = 20 + write_options(p, tcp + 20);
	put16(tcp, p->from_port);
	put16(tcp + 2, p->to_port);
	put32(tcp + 4, p->seq);
	put32(tcp + 8, p->ack);
	tcp[12] = tcp_len / 4 << 4;
	tcp[13] = p->flags;
	put16(tcp + 14, p->window);
	for (int i = 0; i < p->payload; i++)
		tcp[tcp_len + i] = i * 7 + 3;
	if (p->start)
		memcpy(tcp + tcp_len, p->start, p->start_len);
	tcp_len += p->payload;
	ip[0] = 0x40 | ip_len / 4;
	put16(ip + 2, ip_len + tcp_len);
	put16(ip + 6, p->form == FRAGMENT ? 0x2000 : 0x4000);
	ip[8] = p->ttl;
	ip[9] = 6;
	put32(ip + 12, p->from);
	put32(ip + 16, p->to);
	put16(ip + 10, ~fold(sum_bytes(ip, ip_len)));
	put16(tcp + 16, ~fold(sum_bytes(ip + 12, 8) + 6 + tcp_len + sum_bytes(tcp, tcp_len)));
	return ETHERNET + ip_len + tcp_len;
}

static int fd_of(const struct bpf_map *map)
{
	return bpf_map__fd(map);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void set_world(void)
{
	struct ph_steer steer = {
		.flags = PH_STEER_ON, .slots = PH_FLOWS_MAX, .source = 0x0a000002, .tunnel_mtu = 1420, .tries = 3,
		.ports = { htons(GATEWAY_PORT) }, .idle_ns = 3600000000000ULL, .secret = { 1, 2, 3, 4 },
	};
	struct ph_gateway gateway = { .abi_version = PH_ABI_VERSION, .tunnel_ifindex = LOOPBACK };
	struct ph_instance instance = { .generation = 5, .state = PH_INSTANCE_READY, .address = htonl(CVM) };
	uint32_t zero = 0, slot = 3;

	bpf_map_update_elem(fd_of(skel->maps.ph_steer), &zero, &steer, 0);
	bpf_map_update_elem(fd_of(skel->maps.ph_gateway), &zero, &gateway, 0);
	bpf_map_update_elem(fd_of(skel->maps.ph_instances), &slot, &instance, 0);
}

static void set_flow(enum ph_flow_state state)
{
	struct ph_client_key key = { htonl(CLIENT), htonl(GATEWAY), htons(CLIENT_PORT), htons(GATEWAY_PORT) };
	struct ph_ref ref = { SLOT, GENERATION };
	struct ph_flow flow = {
		.splice = {
			.generation = GENERATION, .state = state, .flags = PH_FLOW_TIMESTAMPS | PH_FLOW_SACK | PH_FLOW_SCALING |
			PH_FLOW_KEYED, .client_scale = 7, .cvm_scale = 4, .shift_to_client = -3, .shift_to_cvm = 0,
			.cvm_mtu = 1420, .key = key, .cvm = htonl(CVM), .source = htonl(SOURCE), .cvm_port = htons(CVM_PORT),
			.source_port = htons(SOURCE_PORT), .seq_to_cvm = SEQ_TO_CVM, .seq_to_client = SEQ_TO_CLIENT,
			.time_to_cvm = TIME_TO_CVM, .time_to_client = TIME_TO_CLIENT, .instance = { 3, 5 }, .nic = LOOPBACK,
		},
		.client = { .end = CLIENT_NEXT, .ack = CVM_NEXT, .window_end = CVM_NEXT + (WINDOW << 7) },
		.cvm = { .packets = 1, .end = CVM_NEXT, .ack = CLIENT_NEXT, .window_end = CLIENT_NEXT + (WINDOW << 4) },
		.begun_ns = now_ns(), .ended_ns = now_ns(), .client_isn = CLIENT_ISN, .gateway_isn = GATEWAY_ISN,
	};
	uint32_t slot = SLOT, hello = 0, word = SLOT / PH_SLOTS_WORD;
	uint64_t used = 1ULL << SLOT % PH_SLOTS_WORD;
	static struct ph_hello_store store;

	if (state == PH_FLOW_COLLECTING || state == PH_FLOW_BINDING) {
		store.len = 500;
		store.piece_count = 1;
		store.pieces[0].to = 500;
		store.turn_ns = now_ns();
		store.mss = 1380;
		store.window = WINDOW;
		store.client_time = 4000;
		bpf_map_update_elem(fd_of(skel->maps.ph_hellos), &hello, &store, 0);
		flow.hello = 1;
	}
	flow.client.last_ns = flow.cvm.last_ns = now_ns();
	bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
	bpf_map_update_elem(fd_of(skel->maps.ph_used), &word, &used, 0);
	bpf_map_update_elem(fd_of(skel->maps.ph_clients), &key, &ref, 0);
}

static enum ph_flow_state flow_state(void)
{
	struct ph_flow flow = { 0 };
	uint32_t slot = SLOT;

	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	return flow.splice.state;
}

static struct packet from_client(uint8_t flags, enum form form, uint16_t payload)
{
	return (struct packet){
		.from = CLIENT, .to = GATEWAY, .from_port = CLIENT_PORT, .to_port = GATEWAY_PORT, .seq = CLIENT_NEXT,
		.ack = CVM_NEXT, .flags = flags, .form = form, .window = WINDOW, .ttl = 64, .time = 5000, .echo = 6000,
		.edge = CVM_NEXT + 2000, .payload = payload,
	};
}

static struct packet from_cvm(uint8_t flags, enum form form, uint16_t payload)
{
	return (struct packet){
		.from = CVM, .to = SOURCE, .from_port = CVM_PORT, .to_port = SOURCE_PORT, .seq = CVM_NEXT - SEQ_TO_CLIENT,
		.ack = CLIENT_NEXT + SEQ_TO_CVM, .flags = flags, .form = form, .window = WINDOW, .ttl = 64, .time = 7000,
		.echo = 8000, .edge = CLIENT_NEXT + SEQ_TO_CVM + 2000, .payload = payload,
	};
}

/* The same packet as it must be on the other side. */
static struct packet translated(const struct packet *in)
{
	struct packet out = *in;
	bool client = in->from == CLIENT;

	out.from = client ? SOURCE : GATEWAY;
	out.to = client ? CVM : CLIENT;
	out.from_port = client ? SOURCE_PORT : GATEWAY_PORT;
	out.to_port = client ? CVM_PORT : CLIENT_PORT;
	out.seq += client ? SEQ_TO_CVM : SEQ_TO_CLIENT;
	if (in->flags & ACK) {
		out.ack -= client ? SEQ_TO_CLIENT : SEQ_TO_CVM;
		out.echo -= client ? TIME_TO_CLIENT : TIME_TO_CVM;
	}
	out.time += client ? TIME_TO_CVM : TIME_TO_CLIENT;
	out.edge -= client ? SEQ_TO_CLIENT : SEQ_TO_CVM;
	if (!client && !(in->flags & SYN))
		out.window >>= 3;
	out.ttl--;
	return out;
}

/* A reset in answer. */
static struct packet reset_of(const struct packet *in)
{
	return (struct packet){
		.from = in->to, .to = in->from, .from_port = in->to_port, .to_port = in->from_port, .flags = RST, .ttl = 64,
		.seq = in->ack,
	};
}

enum outcome {
	PASSED_ON,			/* rewritten, to the other side */
	UNTOUCHED,			/* left to the stack as it came */
	DROPPED,			/* and counted */
	HELD,				/* kept for the CVM */
	RESET,				/* answered with RST */
	SENT,				/* sent as something else, which the row does not look at */
};

/* What each state makes of each kind of packet, and the state then. */
struct row {
	const char *name;
	bool by_cvm;
	uint8_t flags;
	enum form form;
	uint16_t payload;
	int32_t seq, ack;		/* away from where they are expected */
	uint8_t ttl;
	enum ph_flow_state state;
	enum outcome outcome;
	enum ph_flow_state then;
};

#define C false
#define V true
#define COLLECTING PH_FLOW_COLLECTING
#define BINDING PH_FLOW_BINDING
#define SPLICED PH_FLOW_SPLICED
#define ENDED PH_FLOW_ENDED
#define KILLED PH_FLOW_KILLED
#define DECLINED PH_FLOW_DECLINED
#define FREE PH_FLOW_FREE

static const struct row rows[] = {
	{ "data", C, ACK | PSH, TIMES, 700, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "data, odd length", C, ACK | PSH, TIMES, 701, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "bare ACK", C, ACK, TIMES, 0, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "no options", C, ACK, PLAIN, 10, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "SACK", C, ACK, SACK, 0, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "SACK, timestamps at an odd place", C, ACK, TIMES_LAST, 33, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "keepalive", C, ACK, TIMES, 0, -1, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "old data", C, ACK, TIMES, 100, -400, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "FIN", C, FIN | ACK, TIMES, 0, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "RST where it is expected", C, RST, PLAIN, 0, 0, 0, 64, SPLICED, PASSED_ON, ENDED },
	{ "RST with ACK", C, RST | ACK, TIMES, 0, 0, 0, 64, SPLICED, PASSED_ON, ENDED },
	{ "RST one further", C, RST, PLAIN, 0, 1, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "RST one before", C, RST, PLAIN, 0, -1, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "RST out of the window", C, RST, PLAIN, 0, 1 << 30, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "FIN out of the window", C, FIN | ACK, PLAIN, 0, 1 << 30, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "SYN", C, SYN, PLAIN, 0, 12345, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "its own SYN again", C, SYN, PLAIN, 0, -501, 0, 64, SPLICED, DROPPED, SPLICED },
	{ "time to live at its end", C, ACK, TIMES, 5, 0, 0, 1, SPLICED, DROPPED, SPLICED },
	{ "over the CVM's MTU", C, ACK, PLAIN, 1400, 0, 0, 64, SPLICED, SENT, SPLICED },
	{ "IP options", C, ACK, ROUTED, 5, 0, 0, 64, SPLICED, DROPPED, SPLICED },
	{ "fragment", C, ACK, FRAGMENT, 5, 0, 0, 64, SPLICED, DROPPED, SPLICED },

	{ "data", V, ACK | PSH, TIMES, 700, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "bare ACK", V, ACK, TIMES, 0, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "SACK", V, ACK, SACK, 0, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "SACK, timestamps at an odd place", V, ACK, TIMES_LAST, 33, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "FIN", V, FIN | ACK, TIMES, 0, 0, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "RST where it is expected", V, RST | ACK, PLAIN, 0, 0, 0, 64, SPLICED, PASSED_ON, ENDED },
	{ "RST one further", V, RST, PLAIN, 0, 1, 0, 64, SPLICED, PASSED_ON, SPLICED },
	{ "SYN-ACK again", V, SYN | ACK, TIMES, 0, 0, 0, 64, SPLICED, DROPPED, SPLICED },
	{ "time to live at its end", V, ACK, TIMES, 5, 0, 0, 1, SPLICED, DROPPED, SPLICED },
	{ "IP options", V, ACK, ROUTED, 5, 0, 0, 64, SPLICED, DROPPED, SPLICED },
	{ "fragment", V, ACK, FRAGMENT, 5, 0, 0, 64, SPLICED, DROPPED, SPLICED },

	{ "straggler", C, ACK, TIMES, 0, 0, 0, 64, ENDED, PASSED_ON, ENDED },
	{ "repeated FIN", V, FIN | ACK, TIMES, 0, 0, 0, 64, ENDED, PASSED_ON, ENDED },
	{ "RST", C, RST, PLAIN, 0, 0, 0, 64, ENDED, PASSED_ON, ENDED },
	{ "SYN: its port is used again", C, SYN, PLAIN, 0, 9999, 0, 64, ENDED, UNTOUCHED, KILLED },

	{ "data", C, ACK | PSH, TIMES, 50, 0, 0, 64, KILLED, RESET, KILLED },
	{ "RST", C, RST, PLAIN, 0, 0, 0, 64, KILLED, DROPPED, KILLED },
	{ "SYN", C, SYN, PLAIN, 0, 9999, 0, 64, KILLED, UNTOUCHED, KILLED },
	{ "data", V, ACK | PSH, TIMES, 50, 0, 0, 64, KILLED, RESET, KILLED },
	{ "RST", V, RST, PLAIN, 0, 0, 0, 64, KILLED, DROPPED, KILLED },

	{ "data", C, ACK | PSH, TIMES, 50, 0, 0, 64, DECLINED, UNTOUCHED, DECLINED },
	{ "bare ACK", C, ACK, TIMES, 0, 0, 0, 64, DECLINED, UNTOUCHED, DECLINED },
	{ "RST", C, RST, PLAIN, 0, 0, 0, 64, DECLINED, UNTOUCHED, DECLINED },
	{ "SYN", C, SYN, PLAIN, 0, 9999, 0, 64, DECLINED, UNTOUCHED, DECLINED },
	{ "SYN-ACK to a SYN given up", V, SYN | ACK, TIMES, 0, 0, 0, 64, DECLINED, RESET, DECLINED },

	{ "bare ACK", C, ACK, TIMES, 0, 0, -9000, 64, COLLECTING, DROPPED, COLLECTING },
	{ "data with a wrong ACK", C, ACK, TIMES, 10, 0, -8999, 64, COLLECTING, DROPPED, COLLECTING },
	{ "data with FIN", C, ACK | FIN, TIMES, 10, 0, -9000, 64, COLLECTING, DROPPED, COLLECTING },
	{ "SYN", C, SYN, PLAIN, 0, -501, 0, 64, COLLECTING, UNTOUCHED, COLLECTING },
	{ "RST in the window", C, RST, PLAIN, 0, 0, 0, 64, COLLECTING, UNTOUCHED, DECLINED },
	{ "RST out of the window", C, RST, PLAIN, 0, 1 << 30, 0, 64, COLLECTING, DROPPED, COLLECTING },
	{ "anything", V, ACK, TIMES, 5, 0, 0, 64, COLLECTING, DROPPED, COLLECTING },

	{ "the hello again: the SYN again", C, ACK | PSH, TIMES, 400, -500, -9000, 64, BINDING, SENT, BINDING },
	{ "early data", C, ACK | PSH, TIMES, 100, 0, -9000, 64, BINDING, HELD, BINDING },
	{ "more early data than there is room for", C, ACK | PSH, TIMES, 1000, 7000, -9000, 64, BINDING, DROPPED, BINDING },
	{ "bare ACK", C, ACK, TIMES, 0, 0, -9000, 64, BINDING, DROPPED, BINDING },
	{ "RST in the window", C, RST, PLAIN, 0, -500, 0, 64, BINDING, UNTOUCHED, DECLINED },
	{ "RST out of the window", C, RST, PLAIN, 0, 1 << 30, 0, 64, BINDING, DROPPED, BINDING },
	{ "SYN-ACK", V, SYN | ACK, TIMES, 0, 0, -500, 64, BINDING, SENT, SPLICED },
	{ "RST with a wrong ACK", V, RST | ACK, PLAIN, 0, 0, -499, 64, BINDING, DROPPED, BINDING },
	{ "RST without ACK", V, RST, PLAIN, 0, 0, -500, 64, BINDING, DROPPED, BINDING },
	{ "RST: refused, and there is no other", V, RST | ACK, PLAIN, 0, 0, -500, 64, BINDING, DROPPED, DECLINED },
	{ "ACK of an older connection: the SYN again", V, ACK, TIMES, 0, 0, -7777, 64, BINDING, SENT, BINDING },

	{ "IP options", C, ACK, ROUTED, 5, 0, -9000, 64, COLLECTING, DROPPED, COLLECTING },
	{ "fragment", C, ACK, FRAGMENT, 5, 0, -9000, 64, COLLECTING, DROPPED, COLLECTING },
	{ "IP options", C, ACK, ROUTED, 5, 0, -9000, 64, BINDING, DROPPED, BINDING },
	{ "fragment", C, ACK, FRAGMENT, 5, 0, -9000, 64, BINDING, DROPPED, BINDING },
	{ "IP options", V, ACK, ROUTED, 5, 0, 0, 64, BINDING, DROPPED, BINDING },
	{ "fragment", V, ACK, FRAGMENT, 5, 0, 0, 64, BINDING, DROPPED, BINDING },
	{ "IP options", C, ACK, ROUTED, 5, 0, 0, 64, DECLINED, UNTOUCHED, DECLINED },
	{ "fragment", C, ACK, FRAGMENT, 5, 0, 0, 64, DECLINED, UNTOUCHED, DECLINED },

	{ "data", C, ACK | PSH, TIMES, 50, 0, 0, 64, FREE, UNTOUCHED, FREE },
	{ "data", V, ACK | PSH, TIMES, 50, 0, 0, 64, FREE, RESET, FREE },
	{ "RST", V, RST, PLAIN, 0, 0, 0, 64, FREE, DROPPED, FREE },
	{ "SYN", V, SYN, PLAIN, 0, 0, 0, 64, FREE, DROPPED, FREE },
};

static uint64_t count_of(const struct bpf_map *map, uint32_t key)
{
	int cpus = libbpf_num_possible_cpus();
	uint64_t counts[256], sum = 0;

	if (cpus > 256 || bpf_map_lookup_elem(fd_of(map), &key, counts))
		return 0;
	for (int i = 0; i < cpus; i++)
		sum += counts[i];
	return sum;
}

static uint64_t reason_count(enum ph_reason reason)
{
	return count_of(skel->maps.ph_reasons, reason);
}

/* All there is, guard's too. */
static uint64_t counted(void)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < PH_REASON_COUNT; i++)
		sum += reason_count(i);
	for (uint32_t i = 0; i < PH_GUARD_COUNT; i++)
		sum += count_of(skel->maps.ph_guard, i);
	return sum;
}

/* @times: the same packet so often. Return: the last action, or -1000 and less for an error. */
static int run_times(const struct row *row, const struct packet *in, int times, uint8_t *out, uint32_t *ret_len)
{
	const struct bpf_program *program = row->by_cvm ? skel->progs.steer_tunnel : skel->progs.steer_nic;
	static uint8_t frame[PACKET_SIZE];
	struct __sk_buff context = { .ifindex = LOOPBACK };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = write_packet(in, frame), .data_out = out,
		    .data_size_out = PACKET_SIZE, .ctx_in = &context, .ctx_size_in = sizeof(context), .repeat = times);
	int err = bpf_prog_test_run_opts(bpf_program__fd(program), &opts);

	*ret_len = opts.data_size_out;
	return err ? -1000 + err : (int)opts.retval;
}

static int run(const struct row *row, const struct packet *in, uint8_t *out, uint32_t *ret_len)
{
	return run_times(row, in, 1, out, ret_len);
}

static bool bytes_equal(const struct packet *wanted, const uint8_t *got, uint32_t len)
{
	static uint8_t frame[PACKET_SIZE];
	size_t wanted_len = write_packet(wanted, frame);

	if (len != wanted_len) {
		printf("# %u bytes, not %zu\n", len, wanted_len);
		return false;
	}
	for (size_t i = ETHERNET; i < wanted_len; i++) {
		/* DF and TTL aside, an answer's headers are its own */
		if (got[i] != frame[i]) {
			printf("# byte %zu of the IP packet is %02x, not %02x\n", i - ETHERNET, got[i], frame[i]);
			return false;
		}
	}
	return true;
}

static void test(const struct row *row)
{
	struct packet in = row->by_cvm ? from_cvm(row->flags, row->form, row->payload)
				       : from_client(row->flags, row->form, row->payload);
	static const char *const states[] = { "FREE", "COLLECTING", "BINDING", "SPLICED", "ENDED", "KILLED", "DECLINED" };
	static const int actions[] = { REDIRECT, UNSPEC, SHOT, SHOT, REDIRECT, REDIRECT };
	struct packet wanted;
	static uint8_t out[PACKET_SIZE];
	uint32_t len = 0;
	bool good = true;
	uint64_t before;
	int action;

	in.seq += row->seq;
	in.ack += row->ack;
	in.ttl = row->ttl;
	set_world();
	set_flow(row->state);
	before = counted();
	action = run(row, &in, out, &len);
	if (row->outcome == DROPPED && counted() == before) {
		printf("# not counted\n");
		good = false;
	}
	if (action != actions[row->outcome]) {
		printf("# action %d, not %d\n", action, actions[row->outcome]);
		good = false;
	}
	if (row->outcome == PASSED_ON || row->outcome == UNTOUCHED || row->outcome == RESET) {
		wanted = row->outcome == PASSED_ON ? translated(&in) : row->outcome == RESET ? reset_of(&in) : in;
		good &= bytes_equal(&wanted, out, len);
	}
	if (flow_state() != row->then) {
		printf("# state %s, not %s\n", states[flow_state()], states[row->then]);
		good = false;
	}
	ktap_ok(good, "%s, from the %s: %s", states[row->state], row->by_cvm ? "CVM" : "client", row->name);
}

/* A removed instance: its flow ends at the next packet, whoever sends it. */
static void test_removed(bool by_cvm)
{
	struct row row = { "", by_cvm, ACK, TIMES, 10, 0, 0, 64, SPLICED, RESET, KILLED };
	struct packet in = by_cvm ? from_cvm(ACK, TIMES, 10) : from_client(ACK, TIMES, 10), wanted = reset_of(&in);
	struct ph_instance instance = { .generation = 6, .state = PH_INSTANCE_READY };
	static uint8_t out[PACKET_SIZE];
	uint32_t slot = 3, len;
	int action;

	set_world();
	set_flow(SPLICED);
	bpf_map_update_elem(fd_of(skel->maps.ph_instances), &slot, &instance, 0);
	action = run(&row, &in, out, &len);
	ktap_ok(action == REDIRECT && bytes_equal(&wanted, out, len) && flow_state() == KILLED,
		"the instance's slot is another's, from the %s: RST", by_cvm ? "CVM" : "client");

	instance = (struct ph_instance){ .state = PH_INSTANCE_READY };
	set_flow(SPLICED);
	bpf_map_update_elem(fd_of(skel->maps.ph_instances), &slot, &instance, 0);
	action = run(&row, &in, out, &len);
	wanted = translated(&in);
	ktap_ok(action == REDIRECT && bytes_equal(&wanted, out, len) && flow_state() == SPLICED,
		"the instance is being written to, from the %s: passed on", by_cvm ? "CVM" : "client");
}

/* The flow that was here last was another instance's, at the same address. */
static void test_removed_free(void)
{
	struct row row = { .by_cvm = V };
	struct packet in = from_cvm(ACK, TIMES, 10);
	struct ph_instance instance = { .generation = 6, .state = PH_INSTANCE_READY };
	static uint8_t out[PACKET_SIZE];
	uint32_t slot = 3, len;
	uint64_t before;

	set_world();
	set_flow(FREE);
	bpf_map_update_elem(fd_of(skel->maps.ph_instances), &slot, &instance, 0);
	before = count_of(skel->maps.ph_guard, PH_GUARD_UNCALLED);
	ktap_ok(run(&row, &in, out, &len) == SHOT && count_of(skel->maps.ph_guard, PH_GUARD_UNCALLED) == before + 1,
		"the slot is free, and its last instance's is another's, from the CVM: dropped as to where it has nothing");
}

/* FIN and its acknowledgement both ways. */
static void test_finish(void)
{
	struct row client = { .by_cvm = C }, cvm = { .by_cvm = V };
	struct packet in = from_client(FIN | ACK, TIMES, 0);
	static uint8_t out[PACKET_SIZE];
	uint32_t len;

	set_world();
	set_flow(SPLICED);
	run(&client, &in, out, &len);
	in = from_cvm(FIN | ACK, TIMES, 0);
	in.ack++;
	run(&cvm, &in, out, &len);
	ktap_ok(flow_state() == SPLICED, "two FINs, one acknowledged: not over");
	in = from_client(ACK, TIMES, 0);
	in.seq++;
	in.ack++;
	run(&client, &in, out, &len);
	ktap_ok(flow_state() == ENDED, "two FINs, both acknowledged: over");
}

/* One end's packets, or the other's; numbers as in struct row. */
enum who { NOBODY, ME, OTHER };

struct step {
	enum who who;
	uint8_t flags;
	uint16_t payload;
	int32_t seq, ack;
};

#define STEPS 4

static void do_steps(const struct step *steps, bool me_is_cvm)
{
	static uint8_t out[PACKET_SIZE];
	uint32_t len;

	for (int i = 0; i < STEPS && steps[i].who != NOBODY; i++) {
		struct row row = { .by_cvm = (steps[i].who == ME) == me_is_cvm };
		struct packet in = row.by_cvm ? from_cvm(steps[i].flags, PLAIN, steps[i].payload)
					      : from_client(steps[i].flags, PLAIN, steps[i].payload);

		in.seq += steps[i].seq;
		in.ack += steps[i].ack;
		run(&row, &in, out, &len);
	}
}

/* Where a reset counts, beside the places that the rows above have. */
static void test_resets(void)
{
	static const struct {
		const char *name;
		struct step steps[STEPS];
		enum ph_flow_state then;
	} resets[] = {
		{ "a reset overtakes data, which comes: not at once", { { ME, RST, 0, 100, 0 }, { ME, ACK, 100, 0, 0 } }, SPLICED },
		{ "a reset out of the window", { { ME, RST, 0, 1 << 24, 0 }, { ME, ACK, 0, 0, 0 } }, SPLICED },
		{ "a reset where the FIN was", { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, ACK, 0, 0, 1 }, { ME, RST, 0, 0, 0 } }, ENDED },
		{ "a reset before the FIN", { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, ACK, 0, 0, 1 }, { ME, RST, 0, -1, 0 } }, SPLICED },
		{ "a reset where the other end's FIN was", { { OTHER, FIN | ACK, 0, 0, 0 }, { ME, RST, 0, -1, 0 } }, SPLICED },
	};

	for (size_t i = 0; i < 2 * sizeof(resets) / sizeof(resets[0]); i++) {
		set_world();
		set_flow(SPLICED);
		do_steps(resets[i / 2].steps, i % 2);
		ktap_ok(flow_state() == resets[i / 2].then, "by the %s: %s", i % 2 ? "CVM" : "client", resets[i / 2].name);
	}
}

/* Whatever number is guessed before it: a burst of a client that lives ends nothing. */
static void test_planted(void)
{
	static uint8_t out[PACKET_SIZE];
	int ended = 0;
	uint32_t len;

	for (uint32_t guess = 1; guess <= 1000; guess++) {
		struct row row = { .by_cvm = false };
		struct packet in;

		set_world();
		set_flow(SPLICED);
		in = from_client(RST, PLAIN, 0);
		in.seq += guess;
		run(&row, &in, out, &len);
		for (uint32_t i = 0; i < 10; i++) {
			in = from_client(ACK | PSH, PLAIN, 100);
			in.seq += i * 100;
			run(&row, &in, out, &len);
		}
		ended += flow_state() != SPLICED;
	}
	ktap_ok(!ended, "resets ahead of a burst: of 1000 numbers %d end the flow", ended);
}

/* What an instance carries: never less than nothing, and of that instance alone. */
static void test_loads(void)
{
	static const struct {
		uint32_t generation, active, then;
	} loads[] = { { 5, 2, 1 }, { 5, 0, 0 }, { 6, 2, 2 } };
	struct packet in = from_client(RST, PLAIN, 0);
	static uint8_t out[PACKET_SIZE];
	struct row row = { .by_cvm = C };

	for (size_t i = 0; i < sizeof(loads) / sizeof(loads[0]); i++) {
		struct ph_load load = { .generation = loads[i].generation, .active = loads[i].active };
		uint32_t slot = SLOT, instance = 3, len;
		struct ph_flow flow;

		set_world();
		set_flow(SPLICED);
		bpf_map_update_elem(fd_of(skel->maps.ph_loads), &instance, &load, 0);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
		flow.counted = PH_COUNTED_INSTANCE;
		bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
		run(&row, &in, out, &len);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_loads), &instance, &load);
		ktap_ok(flow.splice.state == ENDED && !flow.counted && load.active == loads[i].then,
			"a flow of the instance's %dth ends, where %u of its %dth are counted: %u are", 5, loads[i].active,
			(int)loads[i].generation, load.active);
	}
}

/* Drops that are no peer's doing. */
static void test_drops(void)
{
	static const struct {
		const char *name;
		bool by_cvm;
		enum ph_flow_state state;
		bool busy;
		uint32_t tunnel, nic;
		enum ph_reason reason;
	} drops[] = {
		{ "the flow's lock is held", C, BINDING, true, LOOPBACK, LOOPBACK, PH_REASON_DROPPED_BUSY },
		{ "the flow's lock is held", V, BINDING, true, LOOPBACK, LOOPBACK, PH_REASON_DROPPED_BUSY },
		{ "the tunnel device is gone", C, SPLICED, false, 99999, LOOPBACK, PH_REASON_DROPPED_DEVICE },
		{ "the client's device is gone", V, SPLICED, false, LOOPBACK, 99999, PH_REASON_DROPPED_DEVICE },
	};
	static uint8_t out[PACKET_SIZE];

	for (size_t i = 0; i < sizeof(drops) / sizeof(drops[0]); i++) {
		struct packet in = drops[i].by_cvm ? from_cvm(ACK, TIMES, 10) : from_client(ACK, TIMES, 10);
		struct ph_gateway gateway = { .abi_version = PH_ABI_VERSION, .tunnel_ifindex = drops[i].tunnel };
		struct row row = { .by_cvm = drops[i].by_cvm };
		uint32_t zero = 0, slot = SLOT, len;
		struct ph_flow flow;
		uint64_t before;
		int action;

		set_world();
		set_flow(drops[i].state);
		bpf_map_update_elem(fd_of(skel->maps.ph_gateway), &zero, &gateway, 0);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
		flow.lock = drops[i].busy;
		flow.splice.nic = drops[i].nic;
		bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
		before = reason_count(drops[i].reason);
		action = run(&row, &in, out, &len);
		ktap_ok(action == SHOT && reason_count(drops[i].reason) == before + 1, "%s, from the %s: dropped, counted",
			drops[i].name, drops[i].by_cvm ? "CVM" : "client");
	}
}

/* What a CVM's large MTU leaves in one piece is more than one step can copy: all of the hello is sent, in the right bytes. */
static void test_hello_sent(void)
{
	static const struct {
		uint32_t mtu, len;
	} hellos[] = { { 1420, 500 }, { 1420, 7800 }, { 2104, 3000 }, { 9000, 2048 }, { 9000, 3000 }, { 9000, 7800 } };
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = LOOPBACK };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	static struct ph_hello_store store;
	static uint8_t out[PACKET_SIZE];
	struct row row = { .by_cvm = V };

	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at))) {
		ktap_ok(0, "a packet socket: %s", strerror(errno));
		return;
	}
	for (size_t i = 0; i < sizeof(hellos) / sizeof(hellos[0]); i++) {
		struct packet in = from_cvm(SYN | ACK, MSS, 0), wanted;
		uint32_t zero = 0, done = 0, left = hellos[i].len, got, len = 0;
		socklen_t at_len = sizeof(at);
		struct ph_steer steer;
		bool good, last = false;
		uint64_t before;
		ssize_t count;
		int action;

		set_world();
		set_flow(BINDING);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_steer), &zero, &steer);
		steer.tunnel_mtu = hellos[i].mtu;
		bpf_map_update_elem(fd_of(skel->maps.ph_steer), &zero, &steer, 0);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_hellos), &zero, &store);
		store.len = store.pieces[0].to = left;
		for (uint32_t j = 0; j < left; j++)
			store.data[j] = j * 11 + (j >> 8);
		bpf_map_update_elem(fd_of(skel->maps.ph_hellos), &zero, &store, 0);
		in.mss = hellos[i].mtu - 40;
		in.ack -= 500;
		wanted = (struct packet){
			.from = SOURCE, .to = CVM, .from_port = SOURCE_PORT, .to_port = CVM_PORT, .ack = in.seq + 1, .form = TIMES,
			.window = 65535, .ttl = 64, .time = 4000 + TIME_TO_CVM, .echo = in.time,
		};
		before = reason_count(PH_REASON_DROPPED_UNMADE);
		action = run(&row, &in, out, &len);
		good = action == REDIRECT && flow_state() == SPLICED && reason_count(PH_REASON_DROPPED_UNMADE) == before;
		/* Those before the last one have gone by here; that is what became of the packet. */
		while (good && !last) {
			static uint8_t frame[PACKET_SIZE];

			count = recvfrom(fd, frame, sizeof(frame), MSG_DONTWAIT, (struct sockaddr *)&at, &at_len);
			last = count < 0;
			if (!last && at.sll_pkttype != PACKET_OUTGOING)
				continue;
			got = (last ? len : (uint32_t)count) - ETHERNET - IP - 32;
			wanted.seq = CLIENT_ISN + SEQ_TO_CVM + 1 + done;
			wanted.flags = last ? ACK | PSH : ACK;
			wanted.payload = wanted.start_len = got;
			wanted.start = store.data + done;
			good = got <= left && got + IP + 32 <= hellos[i].mtu && bytes_equal(&wanted, last ? out : frame, got + ETHERNET + IP + 32);
			done += got;
			left -= got;
		}
		ktap_ok(good && !left, "a tunnel MTU of %u, a hello of %u bytes: all of it is sent", hellos[i].mtu, hellos[i].len);
	}
	close(fd);
}

/*
 * What is of no connection: so many a second go up to the stack, which answers with a reset, whatever they look like. What
 * is forwarded is none of it, though the listener that is found has its address too.
 */
static void test_nobodys(void)
{
	static const struct {
		const char *name;
		uint32_t to;
		enum form form;
		uint8_t flags;
		uint16_t payload;
		bool limited;
	} kinds[] = {
		{ "ACKs to another host", ELSEWHERE, TIMES, ACK, 0, false },
		{ "data to another host", ELSEWHERE, TIMES, ACK | PSH, 10, false },
		{ "ACKs with IP options to another host", ELSEWHERE, ROUTED, ACK, 0, false },
		{ "SYN-ACKs to another host", ELSEWHERE, PLAIN, SYN | ACK, 0, false },
		{ "ACKs", GATEWAY, TIMES, ACK, 0, true },
		{ "data", GATEWAY, TIMES, ACK | PSH, 10, true },
		{ "FINs", GATEWAY, TIMES, FIN | ACK, 0, true },
		{ "resets", GATEWAY, PLAIN, RST | ACK, 0, false },	/* whose flags are not the next ones' */
		{ "ACKs with IP options", GATEWAY, ROUTED, ACK, 0, true },
		{ "data with IP options", GATEWAY, ROUTED, ACK | PSH, 10, true },
		{ "SYN-ACKs", GATEWAY, PLAIN, SYN | ACK, 0, true },
		{ "ACKs to another host, afterwards", ELSEWHERE, TIMES, ACK, 0, false },
	};
	const uint64_t times = 4 * PH_RESETS_S;
	struct row row = { .by_cvm = C };
	uint64_t begun = now_ns(), due = PH_RESETS_S;
	static uint8_t out[PACKET_SIZE];

	set_world();
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct packet in = from_client(kinds[i].flags, kinds[i].form, kinds[i].payload);
		uint64_t dropped = reason_count(PH_REASON_NOBODYS), up, most;
		uint32_t len;
		int action;

		in.to = kinds[i].to;
		in.from_port = CLIENT_PORT + 1;		/* one that has no flow */
		action = run_times(&row, &in, times, out, &len);
		dropped = reason_count(PH_REASON_NOBODYS) - dropped;
		if (!kinds[i].limited) {
			ktap_ok(action == UNSPEC && !dropped && bytes_equal(&in, out, len), "of no connection: %s: all pass",
				kinds[i].name);
			continue;
		}
		/* The first ones find it unused, and leave nothing but what time brings. */
		up = times - dropped;
		most = due + (now_ns() - begun) / (1000000000 / PH_RESETS_S) + 1;
		if (up < due || up > most)
			printf("# %llu passed, of %llu to %llu\n", (unsigned long long)up, (unsigned long long)due,
			       (unsigned long long)most);
		ktap_ok((action == UNSPEC || action == SHOT) && up >= due && up <= most,
			"of no connection: %s share the limit of resets", kinds[i].name);
		due = 0;
	}
}

/* The same over IPv6, for which headers are enough. */
static void test_nobodys_v6(void)
{
	static const struct {
		const char *name, *to;
		uint8_t flags;
		bool limited;
	} kinds[] = {
		{ "ACKs", "2001:db8::1", ACK, true },
		{ "SYN-ACKs", "2001:db8::1", SYN | ACK, true },
		{ "ACKs to another host", "2001:db8:7::7", ACK, false },
	};
	const uint64_t times = 4 * PH_RESETS_S;

	set_world();
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct __sk_buff context = { .ifindex = LOOPBACK };
		static uint8_t frame[ETHERNET + 40 + 20];
		LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = sizeof(frame), .ctx_in = &context,
			    .ctx_size_in = sizeof(context), .repeat = times);
		uint64_t dropped = reason_count(PH_REASON_NOBODYS), begun = now_ns(), most;
		uint8_t *ip = frame + ETHERNET, *tcp = ip + 40;
		int err;

		put16(frame + 12, ETH_P_IPV6);
		ip[0] = 0x60;
		ip[5] = 20;
		ip[6] = IPPROTO_TCP;
		ip[7] = 64;
		inet_pton(AF_INET6, "2001:db8::2", ip + 8);
		inet_pton(AF_INET6, kinds[i].to, ip + 24);
		put16(tcp, CLIENT_PORT);
		put16(tcp + 2, GATEWAY_PORT);
		tcp[12] = 20 / 4 << 4;
		tcp[13] = kinds[i].flags;
		err = bpf_prog_test_run_opts(bpf_program__fd(skel->progs.steer_nic), &opts);
		dropped = reason_count(PH_REASON_NOBODYS) - dropped;
		most = PH_RESETS_S + (now_ns() - begun) / (1000000000 / PH_RESETS_S) + 1;
		ktap_ok(!err && (kinds[i].limited ? times - dropped <= most : !dropped && (int)opts.retval == UNSPEC),
			"of no connection, over IPv6: %s: %s", kinds[i].name, kinds[i].limited ? "limited" : "all pass");
	}
}

/* All of them: which one is the client's is steer's to know. */
static void set_source_locks(uint32_t held)
{
	for (uint32_t i = 0; i < PH_SOURCE_LOCKS; i++)
		bpf_map_update_elem(fd_of(skel->maps.ph_source_locks), &i, &held, 0);
}

/* A flow with a hello that is counted. */
static void set_counted(enum ph_flow_state state)
{
	struct ph_client_count one = { .hellos = 1 };
	uint32_t slot = SLOT, client = htonl(CLIENT);
	struct ph_flow flow;

	set_world();
	set_flow(state);
	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	flow.counted = PH_COUNTED_HELLO;
	flow.ended_ns = 0;
	bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
	bpf_map_update_elem(fd_of(skel->maps.ph_sources), &client, &one, 0);
}

/* Is it as @wanted in both places, the flow's and the address's? */
static bool hello_is_counted(bool wanted)
{
	uint32_t slot = SLOT, client = htonl(CLIENT);
	struct ph_client_count count;
	struct ph_flow flow;

	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	if (bpf_map_lookup_elem(fd_of(skel->maps.ph_sources), &client, &count))
		count.hellos = 0;
	return flow.counted == (wanted ? PH_COUNTED_HELLO : 0) && count.hellos == wanted;
}

/* Return: how many there were. */
static unsigned int drain_hellos(void)
{
	unsigned int count = 0;
	uint32_t slot;

	while (!bpf_map_lookup_and_delete_elem(fd_of(skel->maps.ph_free_hellos), NULL, &slot))
		count++;
	return count;
}

/* Turns the timer on, for good. Return: whether the flow's slot becomes free. */
static bool sweep_frees(void)
{
	static uint8_t frame[64];
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = sizeof(frame), .repeat = 1);
	uint64_t until = now_ns() + 10000000000ULL;
	struct timespec moment = { .tv_nsec = 1000000 };

	if (bpf_prog_test_run_opts(bpf_program__fd(skel->progs.steer_begin), &opts) || opts.retval)
		return false;
	while (flow_state() != FREE && now_ns() < until)
		nanosleep(&moment, NULL);
	return flow_state() == FREE;
}

/* As if @ms had gone by since everything that happened to the flow. */
static void grow_old(struct ph_flow *flow, uint64_t ms)
{
	flow->ended_ns -= ms * 1000000;
	flow->client.last_ns -= ms * 1000000;
	flow->cvm.last_ns -= ms * 1000000;
}

static struct ph_flow get_flow(void)
{
	uint32_t slot = SLOT;
	struct ph_flow flow;

	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	return flow;
}

/* The timer is on. Return: whether it comes by the slot, and frees it. */
static bool sweep_passes(uint32_t slot)
{
	struct ph_flow flow = { .splice = { .generation = GENERATION, .state = KILLED } };
	struct timespec moment = { .tv_nsec = 1000000 };
	uint64_t until = now_ns() + 10000000000ULL;

	bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
	while (flow.splice.state != FREE && now_ns() < until) {
		nanosleep(&moment, NULL);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	}
	return flow.splice.state == FREE;
}

/* What the timer makes of the @count flows, fewer than slots of a word. Return: whether it has seen all of them. */
static bool sweep_all(struct ph_flow *flows, uint32_t count)
{
	uint32_t first = SLOT / PH_SLOTS_WORD * PH_SLOTS_WORD, last = first + count, word = SLOT / PH_SLOTS_WORD;
	uint64_t used = (2ULL << count) - 1;
	bool good = true;

	for (uint32_t slot = first; slot < last; slot++)
		bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flows[slot - first], 0);
	/* Twice: at first it may have been in the midst of them. */
	for (int i = 0; i < 2; i++) {
		bpf_map_update_elem(fd_of(skel->maps.ph_used), &word, &used, 0);
		good &= sweep_passes(last);
	}
	for (uint32_t slot = first; slot < last; slot++)
		bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flows[slot - first]);
	return good;
}

/* One end has reset the flow, or somebody in its name: what comes later shows whether it lives. */
static void test_life(void)
{
	static const struct {
		const char *name;
		struct step steps[STEPS];
		bool lives;
	} lives[] = {
		{ "nothing", { { NOBODY, 0, 0, 0, 0 } }, false },
		{ "its data again", { { ME, ACK | PSH, 100, -400, 0 } }, false },
		{ "its last data again", { { ME, ACK | PSH, 100, -100, 0 } }, false },
		{ "an acknowledgement of before", { { ME, ACK, 0, 0, -5000 } }, false },
		{ "an acknowledgement of all before", { { ME, ACK, 0, 0, 0 } }, false },
		{ "a keepalive", { { ME, ACK, 0, -1, 0 } }, false },
		{ "the reset again", { { ME, RST, 0, 0, 0 } }, false },
		{ "a reset further on, and its data again", { { ME, RST, 0, 100, 0 }, { ME, ACK, 100, -100, 0 } }, false },
		{ "the other end's data", { { OTHER, ACK | PSH, 100, 0, 0 }, { ME, ACK, 0, 0, 0 } }, false },
		{ "an acknowledgement of what never came", { { ME, ACK, 0, 0, 1 } }, false },
		{ "more data", { { ME, ACK | PSH, 1, 0, 0 } }, true },
		{ "more data behind a reset further on", { { ME, RST, 0, 100, 0 }, { ME, ACK | PSH, 1, 0, 0 } }, true },
		{ "FIN", { { ME, FIN | ACK, 0, 0, 0 } }, true },
		{ "an acknowledgement of what came since", { { OTHER, ACK | PSH, 100, 0, 0 }, { ME, ACK, 0, 0, 1 } }, true },
	};
	static const struct step reset[STEPS] = { { ME, RST, 0, 0, 0 } };
	enum { COUNT = 2 * sizeof(lives) / sizeof(lives[0]) };
	struct timespec moment = { .tv_nsec = 10000000 };
	struct ph_flow flows[COUNT];
	uint32_t slot = SLOT;

	/* A machine that was started just now has no time for that behind it. */
	while (now_ns() < 2 * PH_FLOW_REST_MS * 1000000ULL)
		nanosleep(&moment, NULL);
	for (int i = 0; i < COUNT; i++) {
		set_world();
		set_flow(SPLICED);
		do_steps(reset, i % 2);
		flows[i] = get_flow();
		grow_old(&flows[i], PH_FLOW_REVIVE_MS + 100);
		bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flows[i], 0);
		do_steps(lives[i / 2].steps, i % 2);
		flows[i] = get_flow();
		grow_old(&flows[i], PH_FLOW_REST_MS);
	}
	ktap_ok(sweep_all(flows, COUNT), "the timer passes by");
	for (int i = 0; i < COUNT; i++)
		ktap_ok(flows[i].splice.state == (lives[i / 2].lives ? SPLICED : FREE), "reset by the %s, and then %s: %s",
			i % 2 ? "CVM" : "client", lives[i / 2].name, lives[i / 2].lives ? "it lives" : "it is over");
}

/* By its own ends, and not for being idle. It may have rested too, meanwhile. */
static bool has_ended(const struct ph_flow *flow)
{
	return (flow->splice.state == ENDED || flow->splice.state == FREE) && flow->reason != PH_REASON_IDLE;
}

/* Behind both FINs silence is an end, of a flow that may be idle for an hour. */
static void test_closing(void)
{
	static const struct {
		const char *name;
		struct step steps[STEPS];
		uint32_t silent_ms;
		enum ph_flow_state then;
	} closings[] = {
		{ "both FINs, one acknowledged, and silence",
		  { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, FIN | ACK, 0, 0, 0 }, { ME, ACK, 0, 1, 1 } }, PH_FLOW_CLOSING_MS, ENDED },
		{ "the same, but not for long enough",
		  { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, FIN | ACK, 0, 0, 0 }, { ME, ACK, 0, 1, 1 } }, PH_FLOW_CLOSING_MS / 2, SPLICED },
		{ "a reset overtakes data, which comes", { { ME, RST, 0, 100, 0 }, { ME, ACK, 100, 0, 0 } }, PH_FLOW_CLOSING_MS, ENDED },
		{ "... but not for long enough", { { ME, RST, 0, 100, 0 }, { ME, ACK, 100, 0, 0 } }, PH_FLOW_CLOSING_MS / 2, SPLICED },
		{ "... in two, the first late",
		  { { ME, RST, 0, 100, 0 }, { ME, ACK, 50, 50, 0 }, { ME, ACK, 50, 0, 0 } }, PH_FLOW_CLOSING_MS, ENDED },
		{ "... and some is missing", { { ME, RST, 0, 100, 0 }, { ME, ACK, 50, 0, 0 } }, PH_FLOW_CLOSING_MS, SPLICED },
		{ "a reset overtakes FIN, which comes",
		  { { ME, RST, 0, 1, 0 }, { ME, FIN | ACK, 0, 0, 0 } }, PH_FLOW_CLOSING_MS, ENDED },
		{ "a reset within what comes",
		  { { ME, RST, 0, 100, 0 }, { ME, ACK, 101, 0, 0 }, { ME, ACK, 0, 100, 0 } }, PH_FLOW_CLOSING_MS, SPLICED },
		{ "more comes than what a reset has overtaken",
		  { { ME, RST, 0, 100, 0 }, { ME, ACK, 100, 0, 0 }, { ME, ACK, 100, 100, 0 } }, PH_FLOW_CLOSING_MS, SPLICED },
		{ "another reset since",
		  { { ME, RST, 0, 100, 0 }, { ME, RST, 0, 200, 0 }, { ME, ACK, 100, 0, 0 } }, PH_FLOW_CLOSING_MS, SPLICED },
		{ "one FIN, acknowledged, and silence",
		  { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, ACK, 0, 0, 1 } }, PH_FLOW_CLOSING_MS, SPLICED },
	};
	enum { COUNT = 2 * sizeof(closings) / sizeof(closings[0]) };
	struct ph_flow flows[COUNT];

	for (int i = 0; i < COUNT; i++) {
		set_world();
		set_flow(SPLICED);
		do_steps(closings[i / 2].steps, i % 2);
		flows[i] = get_flow();
		grow_old(&flows[i], closings[i / 2].silent_ms);
	}
	ktap_ok(sweep_all(flows, COUNT), "the timer passes by");
	for (int i = 0; i < COUNT; i++)
		ktap_ok(closings[i / 2].then == SPLICED ? flows[i].splice.state == SPLICED : has_ended(&flows[i]), "closing, the %s first: %s: %s", i % 2 ? "CVM" : "client",
			closings[i / 2].name, closings[i / 2].then == ENDED ? "over" : "open");
}

/* An end that nobody was told of, for the flow's lock was not to be had: the timer makes up for it. */
static void test_missed(void)
{
	static const struct {
		const char *name;
		struct step before[STEPS], held[STEPS], after[STEPS];
		uint32_t silent_ms;
		bool lives;
	} missed[] = {
		{ "FIN and its acknowledgement both ways",
		  { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, FIN | ACK, 0, 0, 0 }, { ME, ACK, 0, 1, 1 } }, { { OTHER, ACK, 0, 1, 1 } },
		  { { 0 } }, 0, false },
		{ "the same, but the last one is lost",
		  { { ME, FIN | ACK, 0, 0, 0 }, { OTHER, FIN | ACK, 0, 0, 0 }, { ME, ACK, 0, 1, 1 } }, { { 0 } }, { { 0 } }, 0, true },
		{ "a reset, and silence", { { 0 } }, { { ME, RST, 0, 0, 0 } }, { { 0 } }, PH_FLOW_CLOSING_MS, false },
		{ "a reset, but not for long enough", { { 0 } }, { { ME, RST, 0, 0, 0 } }, { { 0 } }, PH_FLOW_CLOSING_MS / 2, true },
		{ "a reset, and then more data", { { 0 } }, { { ME, RST, 0, 0, 0 } }, { { ME, ACK, 100, 0, 0 } }, PH_FLOW_CLOSING_MS,
		  true },
	};
	enum { COUNT = 2 * sizeof(missed) / sizeof(missed[0]) };
	struct ph_flow flows[COUNT];
	uint32_t slot = SLOT;

	for (int i = 0; i < COUNT; i++) {
		set_world();
		set_flow(SPLICED);
		do_steps(missed[i / 2].before, i % 2);
		flows[i] = get_flow();
		flows[i].lock = 1;
		bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flows[i], 0);
		do_steps(missed[i / 2].held, i % 2);
		flows[i] = get_flow();
		flows[i].lock = 0;
		if (missed[i / 2].after[0].who != NOBODY) {	/* else sweep might come by now */
			bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flows[i], 0);
			do_steps(missed[i / 2].after, i % 2);
			flows[i] = get_flow();
		}
		ktap_ok(flows[i].splice.state == SPLICED, "missed, of the %s: %s: nobody knows yet", i % 2 ? "CVM" : "client", missed[i / 2].name);
		grow_old(&flows[i], missed[i / 2].silent_ms);
	}
	ktap_ok(sweep_all(flows, COUNT), "the timer passes by");
	for (int i = 0; i < COUNT; i++)
		ktap_ok(missed[i / 2].lives ? flows[i].splice.state == SPLICED : has_ended(&flows[i]) &&
			flows[i].reason == (missed[i / 2].before[0].who != NOBODY ? PH_REASON_CLOSED :
					    i % 2 ? PH_REASON_CVM_RESET : PH_REASON_CLIENT_RESET), "missed, of the %s: %s: %s", i % 2 ? "CVM" : "client",
			missed[i / 2].name, missed[i / 2].lives ? "open" : "over");
}

/* The second packet of a hello that is a worker's, while others hold the lock of the client's address, or not. */
static void test_workers(bool held)
{
	const char *when = held ? ", while its client cannot be counted" : "";
	const uint32_t first = 60;
	static struct hello_bytes hello;
	static struct ph_hello_store store;
	static const struct {
		const char *name;
		uint8_t flags;
		uint16_t payload;
	} next[] = { { "ACK", ACK, 0 }, { "data", ACK | PSH, 80 } };
	struct packet in = from_client(ACK | PSH, TIMES, 0), wanted;
	struct row row = { .by_cvm = C };
	static uint8_t out[PACKET_SIZE];
	uint32_t zero = 0, slot = SLOT, len;
	struct ph_flow flow;
	bool good;

	hello_write(&hello, HELLO(SNI));		/* of no domain of ours */
	set_counted(COLLECTING);
	bpf_map_lookup_elem(fd_of(skel->maps.ph_hellos), &zero, &store);
	store.len = store.pieces[0].to = first;
	memcpy(store.data, hello.bytes, first);
	bpf_map_update_elem(fd_of(skel->maps.ph_hellos), &zero, &store, 0);
	drain_hellos();
	set_source_locks(held);
	in.seq = CLIENT_ISN + 1 + first;
	in.ack = GATEWAY_ISN + 1;
	in.payload = in.start_len = hello.len - first;
	in.start = hello.bytes + first;
	wanted = in;
	wanted.seq = CLIENT_ISN + 1;
	wanted.payload = wanted.start_len = hello.len;
	wanted.start = hello.bytes;
	good = run(&row, &in, out, &len) == UNSPEC && bytes_equal(&wanted, out, len);
	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	ktap_ok(good && flow.splice.state == (held ? DECLINED : FREE), "a worker's hello of two packets%s: all of it is passed on",
		when);
	ktap_ok(!flow.hello && drain_hellos() == 1, "a worker's hello%s: its store is free", when);
	ktap_ok(hello_is_counted(held), "a worker's hello%s: it %s counted", when, held ? "is still" : "is not");
	if (!held)
		return;
	ktap_ok(now_ns() - flow.ended_ns < PH_FLOW_REST_MS * 1000000ULL, "a worker's hello%s: its flow rests from now on", when);
	for (size_t i = 0; i < sizeof(next) / sizeof(next[0]); i++) {
		in = from_client(next[i].flags, TIMES, next[i].payload);
		in.seq = CLIENT_ISN + 1 + hello.len;
		ktap_ok(run(&row, &in, out, &len) == UNSPEC && bytes_equal(&in, out, len),
			"a worker's hello%s: the client's next %s passes", when, next[i].name);
	}
	set_source_locks(false);
	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	flow.ended_ns -= PH_FLOW_REST_MS * 1000000ULL;
	bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
	ktap_ok(sweep_frees() && hello_is_counted(false), "a worker's hello%s: once that can be, it is not any more", when);
}

/* The CVM answers while others hold the lock of the client's address: the client's next packet makes up for it. */
static void test_spliced_late(void)
{
	struct row client = { .by_cvm = C }, cvm = { .by_cvm = V };
	struct packet in = from_cvm(SYN | ACK, TIMES, 0);
	static uint8_t out[PACKET_SIZE];
	uint32_t len;

	set_counted(BINDING);
	set_source_locks(true);
	in.ack -= 500;
	ktap_ok(run(&cvm, &in, out, &len) == REDIRECT && flow_state() == SPLICED && hello_is_counted(true),
		"spliced while its client cannot be counted: the hello is still counted");
	set_source_locks(false);
	in = from_client(ACK, TIMES, 0);
	in.ack = GATEWAY_ISN + 1;
	ktap_ok(run(&client, &in, out, &len) == UNSPEC && flow_state() == SPLICED && hello_is_counted(false),
		"spliced while its client cannot be counted: not any more after the client's next packet");
}

static uint32_t kill_all(void)
{
	struct __sk_buff context = { .cb = { PH_KILL_ALL, 0, 0, PH_REASON_KILLED } };
	uint8_t frame[64] = { [12] = 8, [14] = 0x45 };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = sizeof(frame), .ctx_in = &context,
		    .ctx_size_in = sizeof(context), .repeat = 1);

	return bpf_prog_test_run_opts(bpf_program__fd(skel->progs.steer_kill), &opts) ? UINT32_MAX : opts.retval;
}

static void test_kill_held(void)
{
	uint32_t slot = SLOT;
	struct ph_flow flow;

	set_world();
	set_flow(SPLICED);
	bpf_map_lookup_elem(fd_of(skel->maps.ph_flows), &slot, &flow);
	flow.lock = 1;
	bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
	ktap_ok(kill_all() == PH_KILL_AGAIN && flow_state() == SPLICED, "killed while its lock is held: says so, and is as it was");
	flow.lock = 0;
	bpf_map_update_elem(fd_of(skel->maps.ph_flows), &slot, &flow, 0);
	ktap_ok(kill_all() == 1 && flow_state() != SPLICED, "killed once the lock is free");
}

/* No room for another hello: told of hellos alone, and whatever else comes by does not push that out. */
static void test_full(void)
{
	struct ph_decline_key key = { .client = htonl(CLIENT), .client_port = htons(CLIENT_PORT + 1) };
	static const uint8_t hello[6] = { 22, 3, 1, 2, 0, 1 };
	struct packet in = from_client(ACK | PSH, PLAIN, 100);
	int declines = fd_of(skel->maps.ph_declines);
	struct row row = { .by_cvm = C };
	static uint8_t out[PACKET_SIZE];
	struct ph_decline decline;
	struct ph_steer steer;
	uint32_t zero = 0, len;
	uint64_t before;

	drain_hellos();
	in.from_port = CLIENT_PORT + 1;		/* one that has no flow */
	set_world();
	bpf_map_lookup_elem(fd_of(skel->maps.ph_steer), &zero, &steer);
	steer.fresh_hellos = PH_HELLOS_MAX;
	bpf_map_update_elem(fd_of(skel->maps.ph_steer), &zero, &steer, 0);
	ktap_ok(run(&row, &in, out, &len) == UNSPEC && !reason_count(PH_REASON_DECLINED_FULL) &&
		bpf_map_lookup_elem(declines, &key, &decline), "no hello store is free: data is no news");
	in.start = hello;
	in.start_len = sizeof(hello);
	ktap_ok(run(&row, &in, out, &len) == UNSPEC && reason_count(PH_REASON_DECLINED_FULL) == 1 &&
		!bpf_map_lookup_elem(declines, &key, &decline) && decline.reason == PH_REASON_DECLINED_FULL,
		"no hello store is free: a hello is told of");
	before = reason_count(PH_REASON_NOBODYS);
	run_times(&row, &in, 4 * PH_RESETS_S, out, &len);
	ktap_ok(reason_count(PH_REASON_NOBODYS) > before, "no hello store is free: of no connection there are too many all the same");
}

/* At all addresses, of both kinds. */
static int listen_at(uint16_t port)
{
	struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 16) ? -1 : fd;
}

int main(void)
{
	char words[512];

	ktap_header();
	if (geteuid() || unshare(CLONE_NEWNET)) {
		ktap_skip("steer", "needs root, for a network namespace");
		return ktap_end();
	}
	if (!ktap_ok(!shell_run(words, sizeof(words), "ip link set lo up && ip addr add 192.0.2.1/32 dev lo && "
					"ip addr add 2001:db8::1/128 dev lo && ip link add v0 type veth peer name v1 && "
					"ip link set v0 up && ip link set v1 up && ip route add 198.51.100.0/24 dev v0 && "
					"ip route add 2001:db8:7::/48 dev v0 && echo 1 > /proc/sys/net/ipv4/ip_forward && "
					"echo 1 > /proc/sys/net/ipv6/conf/all/forwarding") &&
			     listen_at(GATEWAY_PORT) >= 0,
		     "a gateway that forwards, and listens at all its addresses"))
		return ktap_end();
	skel = ph_steer_bpf__open();
	if (skel) {
		skel->rodata->tunnel_l2 = 1;
		skel->rodata->goes_around = 0;
	}
	if (!skel || ph_steer_bpf__load(skel)) {
		ktap_skip("steer", errno == EPERM ? "loading BPF programs needs CAP_BPF" : strerror(errno));
		return ktap_end();
	}
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		test(&rows[i]);
	test_removed(false);
	test_removed(true);
	test_removed_free();
	test_finish();
	test_resets();
	test_planted();
	test_loads();
	test_drops();
	test_hello_sent();
	test_nobodys();
	test_nobodys_v6();
	test_spliced_late();
	test_workers(false);
	test_workers(true);
	test_life();
	test_closing();
	test_missed();
	test_kill_held();
	test_full();
	ph_steer_bpf__destroy(skel);
	return ktap_end();
}
