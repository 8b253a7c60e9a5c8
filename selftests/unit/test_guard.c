// SPDX-License-Identifier: Apache-2.0
/*
 * guard.bpf: each kind of packet, on a device with Ethernet headers and on one without, under BPF_PROG_TEST_RUN: passed or
 * dropped, counted as what and of whom, and told to whoever watches.
 *
 * What depends on the sender's socket is in selftests/net, as a test run has none; and what is shorter than IP's header,
 * which it does not take.
 */
#include <arpa/inet.h>
#include <errno.h>
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

#include "guard.skel.h"
#include "ktap.h"
#include "shell.h"

#define UNSPEC (-1)
#define SHOT 2
#define ETHERNET 14
#define FRAME_SIZE 256
#define LOOPBACK 1

/* An address whose first bytes, where a layer-3 packet has them, are those of IPv4's ethertype: a test run looks there. */
#define CVM 0x08000001			/* 8.0.0.1 */
#define OTHER 0x08000002
#define STRANGER 0x08000003		/* no CVM */
#define GATEWAY 0x0a000001		/* 10.0.0.1 */
#define SERVICE 8080			/* where the CVM is called */
#define LISTENS 9000			/* where the gateway listens */
#define RESET 9002			/* the gateway's port of a call that was reset; so was one from the unbound socket's */

static struct ph_guard_bpf *skel;
static uint16_t called_port, unbound_port;	/* of sockets that called the CVM: bound to the device, and not */

struct packet {
	uint32_t from, to;
	uint8_t protocol, first, flags;	/* first: version and header length, 0 is 0x45 */
	uint16_t from_port, to_port, fragment;
	uint8_t type, quoted_protocol;	/* of ICMP; what is quoted went from @to to @quoted_to, unless that is 0 */
	uint32_t quoted_to;
	uint16_t ethertype;
	uint16_t len;			/* of the IP packet, 0: 40 or as ICMP has it */
};

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

/* Return: bytes of the IP packet. */
static size_t write_packet(const struct packet *p, uint8_t *ip)
{
	uint8_t *next = ip + 20, *quoted = next + 8;
	size_t len = p->protocol == IPPROTO_ICMP ? 56 : 40;

	ip[0] = p->first ? p->first : 0x45;
	if (p->len)
		len = p->len;
	put16(ip + 2, len);
	put16(ip + 6, p->fragment);
	ip[8] = 64;
	ip[9] = p->protocol;
	put32(ip + 12, p->from);
	put32(ip + 16, p->to);
	if (p->protocol != IPPROTO_ICMP) {
		put16(next, p->from_port);
		put16(next + 2, p->to_port);
		next[12] = 0x50;
		next[13] = p->flags;
		return len;
	}
	next[0] = p->type;
	quoted[0] = 0x45;
	quoted[9] = p->quoted_protocol ? p->quoted_protocol : IPPROTO_TCP;
	put32(quoted + 12, p->to);
	put32(quoted + 16, p->quoted_to ? p->quoted_to : p->from);
	put16(quoted + 20, p->to_port);
	put16(quoted + 22, p->from_port);
	return len;
}

static size_t write_frame(const struct packet *p, bool l2, uint8_t frame[FRAME_SIZE])
{
	memset(frame, 0, FRAME_SIZE);
	if (!l2)
		return write_packet(p, frame);
	put16(frame + 12, p->ethertype ? p->ethertype : 0x0800);
	return ETHERNET + write_packet(p, frame + ETHERNET);
}

static int fd_of(const struct bpf_map *map)
{
	return bpf_map__fd(map);
}

static uint64_t counter(uint32_t reason)
{
	int cpus = libbpf_num_possible_cpus();
	uint64_t *values = calloc(cpus, sizeof(*values)), sum = 0;

	if (!values || bpf_map_lookup_elem(fd_of(skel->maps.ph_guard), &reason, values))
		exit(1);
	for (int i = 0; i < cpus; i++)
		sum += values[i];
	free(values);
	return sum;
}

static struct ph_guard_cvm counted_of(uint32_t address)
{
	__be32 key = htonl(address);
	struct ph_guard_cvm cvm = { 0 };

	bpf_map_lookup_elem(fd_of(skel->maps.ph_guard_cvms), &key, &cvm);
	return cvm;
}

/* Drops of all CVMs. */
static uint64_t all_drops(void)
{
	static const uint32_t addresses[] = { 0, CVM, OTHER };
	uint64_t sum = 0;

	for (size_t i = 0; i < 3; i++) {
		struct ph_guard_cvm cvm = counted_of(addresses[i]);

		for (uint32_t reason = 0; reason < PH_GUARD_MAX; reason++)
			sum += cvm.drops[reason].count;
	}
	return sum;
}

static int run(const struct bpf_program *program, const struct packet *p, bool l2, uint32_t mark)
{
	static uint8_t frame[FRAME_SIZE];
	struct __sk_buff context = { .ifindex = LOOPBACK, .mark = mark };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = write_frame(p, l2, frame), .ctx_in = &context,
		    .ctx_size_in = sizeof(context), .repeat = 1);
	int err = bpf_prog_test_run_opts(bpf_program__fd(program), &opts);

	return err ? -1000 + err : (int)opts.retval;
}

enum where { L2 = 1, L3 = 2, BOTH = 3 };

/* One kind of packet: what becomes of it, and of whom it is counted if it is dropped. */
struct row {
	const char *name;
	enum where where;
	struct packet packet;
	enum ph_guard_reason reason;
	uint32_t of;			/* 0: of no CVM */
};

#define TCP .protocol = IPPROTO_TCP
#define ICMP .protocol = IPPROTO_ICMP
#define CALLED .from = CVM, .to = GATEWAY, .from_port = SERVICE, .to_port = 1	/* 1: stands for the port that called */
#define UNBOUND .from = CVM, .to = GATEWAY, .from_port = SERVICE, .to_port = 2	/* 2: for the one of an unbound socket */

#define LATE .from = CVM, .to = GATEWAY, .from_port = SERVICE, .to_port = RESET

static const struct row from_cvm[] = {
	{ "an answer", BOTH, { TCP, CALLED, .flags = 0x10 }, PH_GUARD_ANSWER, 0 },
	{ "an answer, RST", BOTH, { TCP, CALLED, .flags = 4 }, PH_GUARD_ANSWER, 0 },
	{ "from another port of the one that was called", BOTH, { TCP, .from = CVM, .to = GATEWAY, .from_port = 8081, .to_port = 1 },
	  PH_GUARD_UNCALLED, CVM },
	{ "from another CVM", BOTH, { TCP, .from = OTHER, .to = GATEWAY, .from_port = SERVICE, .to_port = 1 }, PH_GUARD_UNCALLED,
	  OTHER },
	{ "from who is no CVM", BOTH, { TCP, .from = STRANGER, .to = GATEWAY, .from_port = SERVICE, .to_port = 1 },
	  PH_GUARD_UNCALLED, 0 },
	{ "to a socket that called but is not bound to the device", BOTH, { TCP, UNBOUND }, PH_GUARD_UNCALLED, CVM },
	{ "SYN to where the gateway listens", BOTH, { TCP, .from = CVM, .to = GATEWAY, .from_port = 40000, .to_port = LISTENS,
	  .flags = 2 }, PH_GUARD_UNCALLED, CVM },
	{ "SYN to where nobody listens", BOTH, { TCP, .from = CVM, .to = GATEWAY, .from_port = 40000, .to_port = 9001, .flags = 2 },
	  PH_GUARD_UNCALLED, CVM },
	{ "SYN to another CVM", BOTH, { TCP, .from = CVM, .to = OTHER, .from_port = 40000, .to_port = SERVICE, .flags = 2 },
	  PH_GUARD_UNCALLED, CVM },
	{ "SYN to an address that nobody has", BOTH, { TCP, .from = CVM, .to = 0x0a000063, .from_port = 40000, .to_port = 80,
	  .flags = 2 }, PH_GUARD_UNCALLED, CVM },
	{ "an answer to a call that was reset", BOTH, { TCP, LATE, .flags = 0x10 }, PH_GUARD_LATE, 0 },
	{ "FIN of one", BOTH, { TCP, LATE, .flags = 0x11 }, PH_GUARD_LATE, 0 },
	{ "SYN in place of one", BOTH, { TCP, LATE, .flags = 2 }, PH_GUARD_UNCALLED, CVM },
	{ "SYN-ACK in place of one", BOTH, { TCP, LATE, .flags = 0x12 }, PH_GUARD_UNCALLED, CVM },
	{ "an answer to another CVM's call that was reset", BOTH, { TCP, .from = OTHER, .to = GATEWAY, .from_port = SERVICE,
	  .to_port = RESET, .flags = 0x10 }, PH_GUARD_UNCALLED, OTHER },
	{ "an answer to a call that was reset, from another port", BOTH, { TCP, .from = CVM, .to = GATEWAY, .from_port = 8081,
	  .to_port = RESET, .flags = 0x10 }, PH_GUARD_UNCALLED, CVM },
	{ "ICMP unreachable about a call that was reset", BOTH, { ICMP, LATE, .type = 3 }, PH_GUARD_UNCALLED, CVM },
	{ "ICMP unreachable about what was called", BOTH, { ICMP, CALLED, .type = 3 }, PH_GUARD_ICMP, 0 },
	{ "ICMP time exceeded about it", BOTH, { ICMP, CALLED, .type = 11 }, PH_GUARD_ICMP, 0 },
	{ "ICMP parameter problem about it", BOTH, { ICMP, CALLED, .type = 12 }, PH_GUARD_ICMP, 0 },
	{ "ICMP unreachable about another's connection", BOTH, { ICMP, .from = OTHER, .to = GATEWAY, .from_port = SERVICE, .to_port = 1,
	  .type = 3, .quoted_to = CVM }, PH_GUARD_UNCALLED, OTHER },
	{ "ICMP unreachable about nothing", BOTH, { ICMP, .from = CVM, .to = GATEWAY, .from_port = 1, .to_port = 9, .type = 3 },
	  PH_GUARD_UNCALLED, CVM },
	{ "ICMP unreachable about UDP", BOTH, { ICMP, CALLED, .type = 3, .quoted_protocol = IPPROTO_UDP }, PH_GUARD_PROTOCOL, CVM },
	{ "ICMP echo", BOTH, { ICMP, CALLED, .type = 8 }, PH_GUARD_PROTOCOL, CVM },
	{ "ICMP echo reply", BOTH, { ICMP, CALLED, .type = 0 }, PH_GUARD_PROTOCOL, CVM },
	{ "ICMP redirect", BOTH, { ICMP, CALLED, .type = 5 }, PH_GUARD_PROTOCOL, CVM },
	{ "ICMP error that quotes too little", BOTH, { ICMP, CALLED, .type = 3, .len = 40 }, PH_GUARD_MALFORMED, CVM },
	{ "ICMP error that quotes no ports", BOTH, { ICMP, CALLED, .type = 3, .len = 51 }, PH_GUARD_MALFORMED, CVM },
	{ "ICMP cut short", L2, { ICMP, CALLED, .type = 3, .len = 27 }, PH_GUARD_MALFORMED, CVM },
	{ "UDP", BOTH, { .protocol = IPPROTO_UDP, CALLED }, PH_GUARD_PROTOCOL, CVM },
	{ "GRE", BOTH, { .protocol = 47, CALLED }, PH_GUARD_PROTOCOL, CVM },
	{ "protocol 255", BOTH, { .protocol = 255, CALLED }, PH_GUARD_PROTOCOL, CVM },
	{ "first fragment of an answer", BOTH, { TCP, CALLED, .fragment = 0x2000 }, PH_GUARD_FRAGMENT, CVM },
	{ "later fragment", BOTH, { TCP, CALLED, .fragment = 100 }, PH_GUARD_FRAGMENT, CVM },
	{ "an answer that may not be fragmented", BOTH, { TCP, CALLED, .fragment = 0x4000 }, PH_GUARD_ANSWER, 0 },
	{ "an answer with IP options", BOTH, { TCP, CALLED, .first = 0x46 }, PH_GUARD_IP_OPTIONS, CVM },
	{ "broadcast", BOTH, { .protocol = IPPROTO_UDP, .from = CVM, .to = 0xffffffff }, PH_GUARD_MULTICAST, CVM },
	{ "multicast", BOTH, { .protocol = IPPROTO_UDP, .from = CVM, .to = 0xe00000fb }, PH_GUARD_MULTICAST, CVM },
	{ "multicast, TCP", BOTH, { TCP, .from = CVM, .to = 0xefffffff }, PH_GUARD_MULTICAST, CVM },
	{ "TCP cut short", BOTH, { TCP, CALLED, .len = 39 }, PH_GUARD_MALFORMED, CVM },
	{ "header length of 16", BOTH, { TCP, CALLED, .first = 0x44 }, PH_GUARD_MALFORMED, CVM },
	{ "version 5", BOTH, { TCP, CALLED, .first = 0x55 }, PH_GUARD_MALFORMED, CVM },
	{ "IPv6", L2, { TCP, CALLED, .first = 0x60, .ethertype = 0x86dd }, PH_GUARD_NOT_IPV4, 0 },
	{ "IPv6", L3, { TCP, .from = 0x86dd0001, .to = GATEWAY, .first = 0x60, .len = 60 }, PH_GUARD_NOT_IPV4, 0 },
	{ "ARP", L2, { TCP, CALLED, .ethertype = 0x0806 }, PH_GUARD_ARP, 0 },
	{ "ARP's ethertype", L3, { TCP, .from = 0x08060001, .to = GATEWAY }, PH_GUARD_NOT_IPV4, 0 },
	{ "VLAN", L2, { TCP, CALLED, .ethertype = 0x8100 }, PH_GUARD_NOT_IPV4, 0 },
};

static bool passes(enum ph_guard_reason reason)
{
	return reason == PH_GUARD_ANSWER || reason == PH_GUARD_ICMP || reason == PH_GUARD_SENT || reason == PH_GUARD_STEERED ||
	       reason == PH_GUARD_ARP || reason == PH_GUARD_LATE;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void test(const struct row *row, const struct bpf_program *program, bool l2, uint32_t mark, const char *side)
{
	uint64_t before[PH_GUARD_COUNT], drops = all_drops(), of_it = counted_of(row->of).drops[row->reason].count;
	bool good = true, dropped = !passes(row->reason);
	struct packet packet = row->packet;
	struct ph_guard_cvm after;
	int action;

	if (packet.to_port == 1 || packet.to_port == 2)
		packet.to_port = packet.to_port == 1 ? called_port : unbound_port;
	for (uint32_t i = 0; i < PH_GUARD_COUNT; i++)
		before[i] = counter(i);
	action = run(program, &packet, l2, mark);
	if (action != (dropped ? SHOT : UNSPEC)) {
		printf("# action %d\n", action);
		good = false;
	}
	for (uint32_t i = 0; i < PH_GUARD_COUNT; i++) {
		if (counter(i) - before[i] == (i == row->reason))
			continue;
		printf("# counter %u went up by %llu\n", i, (unsigned long long)(counter(i) - before[i]));
		good = false;
	}
	after = counted_of(row->of);
	if (all_drops() - drops != dropped || (dropped && after.drops[row->reason].count != of_it + 1) ||
	    (dropped && now_ns() - after.drops[row->reason].seen_ns > 60000000000ULL)) {
		printf("# counted of somebody else, or not\n");
		good = false;
	}
	ktap_ok(good, "%s, layer %d: %s", side, l2 ? 2 : 3, row->name);
}

static void test_to_cvm(bool l2)
{
	struct row row = { "of no socket, without mark", BOTH, { TCP, .from = GATEWAY, .to = CVM }, PH_GUARD_NOT_OURS, CVM };
	const struct bpf_program *program = skel->progs.guard_to_cvm;

	if (!l2)
		row.packet.from = 0x0800000a;	/* for the ethertype */
	test(&row, program, l2, 0, "to a CVM");
	row.name = "with another mark";
	test(&row, program, l2, PH_STEER_MARK + 1, "to a CVM");
	row.name = "to who is no CVM";
	row.packet.to = STRANGER;
	row.of = 0;
	test(&row, program, l2, 0, "to a CVM");
	row = (struct row){ "with steer's mark", BOTH, { TCP, .from = row.packet.from, .to = CVM }, PH_GUARD_STEERED, 0 };
	test(&row, program, l2, PH_STEER_MARK, "to a CVM");
	if (!l2)
		return;
	row = (struct row){ "ARP", L2, { TCP, .from = GATEWAY, .to = CVM, .ethertype = 0x0806 }, PH_GUARD_ARP, 0 };
	test(&row, program, l2, 0, "to a CVM");
	row = (struct row){ "IPv6", L2, { TCP, .from = GATEWAY, .to = CVM, .ethertype = 0x86dd }, PH_GUARD_NOT_OURS, 0 };
	test(&row, program, l2, 0, "to a CVM");
}

struct told {
	unsigned int of_cvm, of_other;
	struct ph_guard_event last;
};

static int take(void *arg, void *data, size_t size)
{
	const struct ph_guard_event *event = data;
	struct told *told = arg;

	if (size != sizeof(*event))
		return -1;
	told->of_cvm += event->instance.slot == 3;
	told->of_other += event->instance.slot == 4;
	told->last = *event;
	return 0;
}

/* One that floods, and another in between. */
static void test_events(bool l2)
{
	struct packet flood = { TCP, .from = CVM, .to = OTHER, .from_port = 40000, .to_port = 22, .flags = 2 };
	struct packet few = { ICMP, .from = OTHER, .to = GATEWAY, .type = 8 };
	struct ph_guard_watch watch = { 0 };
	struct told told = { 0 };
	struct ring_buffer *ring = ring_buffer__new(fd_of(skel->maps.ph_guard_events), take, &told, NULL);
	const struct bpf_program *program = skel->progs.guard_from_cvm;
	uint64_t begun_ns = now_ns();
	uint32_t zero = 0;

	if (!ktap_ok(!!ring, "the ring buffer"))
		return;
	bpf_map_update_elem(fd_of(skel->maps.ph_guard_watch), &zero, &watch, 0);
	for (int i = 0; i < 100; i++)
		run(program, &flood, l2, 0);
	ring_buffer__consume(ring);
	ktap_ok(!told.of_cvm && !told.of_other, "nobody watches: nothing is told");
	watch.until_ns = now_ns() + 60000000000ULL;
	bpf_map_update_elem(fd_of(skel->maps.ph_guard_watch), &zero, &watch, 0);
	for (int i = 0; i < 300; i++) {
		run(program, &flood, l2, 0);
		if (i % 100 == 50)
			run(program, &few, l2, 0);
	}
	ring_buffer__consume(ring);
	/* In each second that this took so many, and one in the second that began before. */
	ktap_ok(told.of_cvm >= PH_GUARD_EVENTS_S &&
			told.of_cvm <= PH_GUARD_EVENTS_S * (2 + (now_ns() - begun_ns) / 1000000000),
		"of 300 drops of one CVM's, %u are told", told.of_cvm);
	ktap_ok(told.of_other == 3, "of 3 of another's beside it, %u", told.of_other);
	run(program, &few, l2, 0);
	ring_buffer__consume(ring);
	ktap_ok(told.last.reason == PH_GUARD_PROTOCOL && told.last.from == htonl(OTHER) && told.last.to == htonl(GATEWAY) &&
			told.last.protocol == IPPROTO_ICMP && told.last.detail == 8 && !told.last.from_port &&
			told.last.len == 56 && told.last.ethertype == htons(0x0800) && told.last.instance.generation == 6 &&
			told.last.count == counted_of(OTHER).drops[PH_GUARD_PROTOCOL].count,
		"what is told of it");
	ring_buffer__free(ring);
	watch.until_ns = 0;
	bpf_map_update_elem(fd_of(skel->maps.ph_guard_watch), &zero, &watch, 0);
}

static void set_world(void)
{
	static const struct {
		uint32_t address;
		struct ph_ref ref;
	} cvms[] = { { 0, { 0, 0 } }, { CVM, { 3, 5 } }, { OTHER, { 4, 6 } } };

	for (size_t i = 0; i < 3; i++) {
		struct ph_guard_cvm cvm = { .instance = cvms[i].ref };
		__be32 key = htonl(cvms[i].address);

		bpf_map_update_elem(fd_of(skel->maps.ph_guard_cvms), &key, &cvm, 0);
	}
	/* The unbound socket's has been reset too: that there is somebody's socket now counts for more. */
	for (size_t i = 0; i < 2; i++) {
		const struct {
			__be32 cvm, gateway;
			__be16 cvm_port, gateway_port;
		} call = { htonl(CVM), htonl(GATEWAY), htons(SERVICE), htons(i ? unbound_port : RESET) };
		const __u8 yes = 1;

		bpf_map_update_elem(fd_of(skel->maps.guard_resets), &call, &yes, 0);
	}
}

static void test_layer(bool l2)
{
	skel = ph_guard_bpf__open();
	if (skel)
		skel->rodata->device_l2 = l2;
	if (!skel || ph_guard_bpf__load(skel)) {
		if (errno == EPERM)
			ktap_skip("guard", "loading BPF programs needs CAP_BPF");
		else
			ktap_ok(0, "the programs load: %s", strerror(errno));
		return;
	}
	set_world();
	for (size_t i = 0; i < sizeof(from_cvm) / sizeof(from_cvm[0]); i++)
		if (from_cvm[i].where & (l2 ? L2 : L3))
			test(&from_cvm[i], skel->progs.guard_from_cvm, l2, 0, "from a CVM");
	test_to_cvm(l2);
	test_events(l2);
	ph_guard_bpf__destroy(skel);
}

static int listen_at(uint32_t address, uint16_t port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(address), .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	return fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 16) ? -1 : fd;
}

/* Calls the CVM from the gateway. Return: the port it calls from, or 0. */
static uint16_t call(bool bound)
{
	struct sockaddr_in from = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(GATEWAY) };
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(CVM), .sin_port = htons(SERVICE) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), device = LOOPBACK;
	socklen_t len = sizeof(from);

	if (fd < 0 || bind(fd, (struct sockaddr *)&from, sizeof(from)) ||
	    (bound && setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &device, sizeof(device))) ||
	    connect(fd, (struct sockaddr *)&to, sizeof(to)) || getsockname(fd, (struct sockaddr *)&from, &len))
		return 0;
	return ntohs(from.sin_port);
}

int main(void)
{
	char out[512];

	ktap_header();
	if (geteuid() || unshare(CLONE_NEWNET)) {
		ktap_skip("guard", "needs root, for a network namespace");
		return ktap_end();
	}
	if (!ktap_ok(!shell_run(out, sizeof(out), "ip link set lo up && ip addr add 8.0.0.1/32 dev lo && "
					"ip addr add 10.0.0.1/32 dev lo") &&
			     listen_at(CVM, SERVICE) >= 0 && listen_at(GATEWAY, LISTENS) >= 0 &&
			     (called_port = call(true)) && (unbound_port = call(false)),
		     "a gateway that called its CVM"))
		return ktap_end();
	test_layer(true);
	test_layer(false);
	return ktap_end();
}
