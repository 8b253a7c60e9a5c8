// SPDX-License-Identifier: Apache-2.0
/*
 * gate.bpf: each kind of frame, list and budget, under BPF_PROG_TEST_RUN, by each of its entries: what becomes of
 * it, and which counter says so.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <phala/gate.h>

#include "gate.skel.h"
#include "ktap.h"

#define TC_UNSPEC (-1)
#define TC_REDIRECTS 7
#define XDP_DROPS 1
#define XDP_PASSES 2
#define XDP_ANSWERS 3

#define NOTHING PH_GATE_COUNT
#define FRAME_MAX 2048
#define SHORTEST 54			/* of which a test run for tc makes an skb: Ethernet and IPv6 headers */

#define OURS4 "192.0.2.1"
#define OURS6 "2001:db8::1"
#define TUNNEL6 "2001:db8::3"			/* nobody listens there but WireGuard */
#define CLIENT4 "198.51.100.7"
#define CLIENT6 "2001:db8:7::7"
#define PORT 443
#define TUNNEL_PORT 51820
#define SECOND_NS 1000000000ULL

enum flag { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16, URG = 32, ECE = 64, CWR = 128 };
enum payload { NO_PAYLOAD, HELLO, HELLO_1, HELLO_5, DATA, SERVER_HELLO, INITIATION, INITIATION_ODD, TRANSPORT };

/* What is 0 or NULL is as a client's first SYN to the gateway over IPv4 has it. */
struct shape {
	const char *from, *to;
	uint16_t from_port, to_port;		/* from_port 0xffff is 0 on the wire */
	uint8_t protocol;
	uint8_t flags, no_flags;
	enum payload payload;
	uint32_t seq;				/* as it lies in the packet */
	uint16_t ethertype;
	bool tagged;
	uint8_t options;			/* bytes of IP options; of IPv6: headers for destinations */
	uint16_t fragment;			/* as in the header, flag and offset */
	int16_t total_off;			/* added to the length that the IP header says */
	uint8_t doff;
	uint8_t version_ihl;
	uint16_t cut;				/* bytes that are left of the frame */
};

enum entry { TC, XDP, GENERIC, ENTRIES };

static const char *const entry_words[ENTRIES] = { "tc", "xdp", "generic" };
static struct ph_gate_bpf *skel;

static int entry_fd(enum entry entry)
{
	const struct bpf_program *programs[ENTRIES] = { skel->progs.gate_tc, skel->progs.gate_xdp, skel->progs.gate_generic };

	return bpf_program__fd(programs[entry]);
}

static int fd_of(const struct bpf_map *map)
{
	return bpf_map__fd(map);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static struct ph_address address_of(const char *text)
{
	struct ph_address address = { .words = { 0, 0, htonl(0xffff) } };

	if (strchr(text, ':'))
		inet_pton(AF_INET6, text, &address);
	else
		inet_pton(AF_INET, text, &address.words[3]);
	return address;
}

static void put16(uint8_t *at, uint16_t value)
{
	at[0] = value >> 8;
	at[1] = value;
}

static size_t write_payload(enum payload payload, uint8_t *at)
{
	static const uint8_t hello[] = { 22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3 };

	memset(at, 0xaa, 200);
	switch (payload) {
	case NO_PAYLOAD:
		return 0;
	case HELLO_1:
	case HELLO_5:
	case HELLO:
		memcpy(at, hello, sizeof(hello));
		return payload == HELLO ? 200 : payload == HELLO_5 ? 5 : 1;
	case SERVER_HELLO:
		memcpy(at, hello, sizeof(hello));
		at[5] = 2;
		return 200;
	case INITIATION:
	case INITIATION_ODD:
		memcpy(at, (uint8_t[]){ 1, 0, 0, 0 }, 4);
		return payload == INITIATION ? 148 : 4;
	case TRANSPORT:
		memcpy(at, (uint8_t[]){ 4, 0, 0, 0 }, 4);
		return 96;
	case DATA:
		return 200;
	}
	return 0;
}

static size_t write_l4(const struct shape *s, uint8_t *at)
{
	bool udp = s->protocol == IPPROTO_UDP;
	size_t header = udp ? 8 : 20, payload = write_payload(s->payload, at + header);

	memset(at, 0, header);
	put16(at, s->from_port == 0xffff ? 0 : s->from_port ? s->from_port : 40000);
	put16(at + 2, s->to_port ? s->to_port : udp ? TUNNEL_PORT : PORT);
	if (udp) {
		put16(at + 4, header + payload);
		return header + payload;
	}
	memcpy(at + 4, &s->seq, 4);
	at[12] = (s->doff ? s->doff : 5) << 4;
	at[13] = s->no_flags ? 0 : s->flags ? s->flags : SYN;
	put16(at + 14, 1000);
	return header + payload;
}

static size_t write_v4(const struct shape *s, uint8_t *ip)
{
	size_t header = 20 + s->options, len;

	memset(ip, 0, header);
	memset(ip + 20, 1, s->options);		/* no operation */
	len = header + write_l4(s, ip + header);
	ip[0] = s->version_ihl ? s->version_ihl : 0x40 | header / 4;
	put16(ip + 2, len + s->total_off);
	put16(ip + 6, s->fragment);
	ip[8] = 64;
	ip[9] = s->protocol ? s->protocol : IPPROTO_TCP;
	inet_pton(AF_INET, s->from ? s->from : CLIENT4, ip + 12);
	inet_pton(AF_INET, s->to ? s->to : OURS4, ip + 16);
	return len;
}

static size_t write_v6(const struct shape *s, uint8_t *ip)
{
	uint8_t protocol = s->protocol ? s->protocol : IPPROTO_TCP, *at = ip + 40, *next = &ip[6];

	memset(ip, 0, 40);
	ip[0] = s->version_ihl ? s->version_ihl : 0x60;
	ip[7] = 64;
	inet_pton(AF_INET6, s->from ? s->from : CLIENT6, ip + 8);
	inet_pton(AF_INET6, s->to, ip + 24);
	for (int i = 0; i < s->options; i++) {
		*next = 60;
		next = at;
		memcpy(at, (uint8_t[]){ 0, 0, 1, 4, 0, 0, 0, 0 }, 8);
		at += 8;
	}
	if (s->fragment) {
		*next = 44;
		next = at;
		memset(at, 0, 8);
		put16(at + 2, s->fragment);
		at += 8;
	}
	*next = protocol;
	at += write_l4(s, at);
	put16(ip + 4, at - ip - 40 + s->total_off);
	return at - ip;
}

static size_t write_frame(const struct shape *s, uint8_t *frame)
{
	bool v6 = s->to && strchr(s->to, ':');
	uint8_t *at = frame + 12;
	size_t len;

	memset(frame, 0, FRAME_MAX);
	if (s->tagged) {
		put16(at, 0x8100);
		at += 4;
	}
	put16(at, s->ethertype ? s->ethertype : v6 ? 0x86dd : 0x0800);
	at += 2;
	len = at - frame + (v6 ? write_v6(s, at) : write_v4(s, at));
	return s->cut ? s->cut : len;
}

enum verdict { PASSED, DROPPED, ANSWERED };

static uint8_t answer[FRAME_MAX];		/* what a frame became */
static size_t answer_len;

/* Return: an enum verdict, or -errno. */
static int run_frame(enum entry entry, void *frame, size_t len)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = (__u32)len, .data_out = answer,
		    .data_size_out = sizeof(answer), .repeat = 1);
	int err = bpf_prog_test_run_opts(entry_fd(entry), &opts);

	if (err)
		return err;
	answer_len = opts.data_size_out;
	switch ((int)opts.retval) {
	case XDP_ANSWERS:
	case TC_REDIRECTS:
		return ANSWERED;
	case XDP_DROPS:
		return entry == TC ? -EPROTO : DROPPED;
	case XDP_PASSES:			/* and TC_SHOT */
		return entry == TC ? DROPPED : PASSED;
	case TC_UNSPEC:
		return PASSED;
	default:
		return -EPROTO;
	}
}

static int run_shape(enum entry entry, const struct shape *s)
{
	uint8_t frame[FRAME_MAX];
	size_t len = write_frame(s, frame);

	return run_frame(entry, frame, len);
}

static void read_counters(uint64_t out[PH_GATE_COUNT])
{
	static uint64_t values[1024];

	for (uint32_t reason = 0; reason < PH_GATE_COUNT; reason++) {
		out[reason] = 0;
		if (bpf_map_lookup_elem(fd_of(skel->maps.ph_gate_reasons), &reason, values))
			continue;
		for (int cpu = 0; cpu < libbpf_num_possible_cpus(); cpu++)
			out[reason] += values[cpu];
	}
}

/* Runs it; what happened must be the drop or not, and just this counter. */
static void expect(enum entry entry, const char *name, const struct shape *s, enum ph_gate_reason reason)
{
	uint64_t before[PH_GATE_COUNT], after[PH_GATE_COUNT];
	enum verdict wanted = reason == NOTHING || reason < PH_GATE_DROPS ? PASSED :
			      reason == PH_GATE_CHALLENGED ? ANSWERED : DROPPED;
	bool as_told = true;
	int got;

	read_counters(before);
	got = run_shape(entry, s);
	read_counters(after);
	for (int i = 0; i < PH_GATE_COUNT; i++)
		as_told = as_told && after[i] - before[i] == (i == (int)reason);
	ktap_ok(got == (int)wanted && as_told, "%s: %s", entry_words[entry], name);
	for (int i = 0; !(got == (int)wanted && as_told) && i < PH_GATE_COUNT; i++) {
		if (after[i] != before[i])
			printf("# verdict %d; counted: reason %d\n", got, i);
	}
}

static struct ph_gate *config;

static void set_target(const char *address, uint16_t port, uint8_t protocol)
{
	struct ph_gate_target target = { .address = address_of(address), .port = htons(port), .protocol = protocol };
	uint8_t one = 1;

	bpf_map_update_elem(fd_of(skel->maps.ph_gate_targets), &target, &one, BPF_ANY);
}

static void set_budget(enum ph_gate_budget_kind kind, uint64_t per_second, uint64_t burst)
{
	config->budgets[kind].interval_ns = per_second ? SECOND_NS / per_second : 0;
	config->budgets[kind].tolerance_ns = burst * config->budgets[kind].interval_ns;
}

static void set_world(void)
{
	static const char *const addresses[] = { OURS4, OURS6 };

	for (int i = 0; i < 2; i++) {
		set_target(addresses[i], PORT, IPPROTO_TCP);
		set_target(addresses[i], 0, IPPROTO_TCP);
		set_target(addresses[i], TUNNEL_PORT, IPPROTO_UDP);
	}
	set_target(TUNNEL6, TUNNEL_PORT, IPPROTO_UDP);
	set_target(TUNNEL6, 0, IPPROTO_UDP);
	memset(&config->source4, 0xff, sizeof(config->source4));
	memset(&config->source6, 0xff, 8);
}

static struct ph_prefix prefix_of(const char *address, uint32_t bits)
{
	return (struct ph_prefix){ .bits = bits + (strchr(address, ':') ? 0 : PH_ADDRESS_V4_BITS),
				   .address = address_of(address) };
}

static void list(const struct bpf_map *map, const char *address, uint32_t bits, uint64_t until_ns)
{
	struct ph_prefix key = prefix_of(address, bits);
	struct ph_listed row = { .until_ns = until_ns, .bits = key.bits };

	bpf_map_update_elem(fd_of(map), &key, &row, BPF_ANY);
	config->lists[map == skel->maps.ph_allow ? PH_LIST_ALLOW : PH_LIST_DENY].rows++;
	config->generation++;
}

static void unlist_all(void)
{
	const struct bpf_map *maps[] = { skel->maps.ph_deny, skel->maps.ph_allow };
	struct ph_prefix key;

	for (int i = 0; i < 2; i++) {
		while (!bpf_map_get_next_key(fd_of(maps[i]), NULL, &key))
			bpf_map_delete_elem(fd_of(maps[i]), &key);
		config->lists[i].rows = 0;
	}
	config->generation++;
}

static void forget_sources(void)
{
	struct ph_address key;

	while (!bpf_map_get_next_key(fd_of(skel->maps.ph_gate_sources), NULL, &key))
		bpf_map_delete_elem(fd_of(skel->maps.ph_gate_sources), &key);
}

#define MF 0x2000
#define TO6 .to = OURS6

static const struct {
	const char *name;
	struct shape shape;
	enum ph_gate_reason reason;
} frames[] = {
	/* what is the gateway's, and good */
	{ "a SYN", { 0 }, PH_GATE_CONNECTION },
	{ "a SYN, IPv6", { TO6 }, PH_GATE_CONNECTION },
	{ "a SYN that asks for ECN", { .flags = SYN | ECE | CWR }, PH_GATE_CONNECTION },
	{ "a SYN with data", { .payload = DATA }, PH_GATE_CONNECTION },
	{ "a SYN with IP options", { .options = 8 }, PH_GATE_CONNECTION },
	{ "a SYN behind IPv6 headers", { TO6, .options = 3 }, PH_GATE_CONNECTION },
	{ "a SYN behind as many IPv6 headers as there may be", { TO6, .options = 6 }, PH_GATE_CONNECTION },
	{ "a SYN in an IPv6 fragment that is all there is", { TO6, .fragment = 0x0006 }, PH_GATE_CONNECTION },
	{ "an ACK", { .flags = ACK }, NOTHING },
	{ "an ACK, IPv6", { TO6, .flags = ACK }, NOTHING },
	{ "a FIN", { .flags = FIN | ACK }, NOTHING },
	{ "a RST", { .flags = RST }, NOTHING },
	{ "data", { .flags = ACK | PSH, .payload = DATA }, NOTHING },
	{ "data, IPv6", { TO6, .flags = ACK | PSH, .payload = DATA }, NOTHING },
	{ "data that is TLS, and no ClientHello", { .flags = ACK, .payload = SERVER_HELLO }, NOTHING },
	{ "a ClientHello", { .flags = ACK | PSH, .payload = HELLO }, PH_GATE_HELLO },
	{ "a ClientHello, IPv6", { TO6, .flags = ACK | PSH, .payload = HELLO }, PH_GATE_HELLO },
	{ "a ClientHello behind IP options", { .options = 40, .flags = ACK, .payload = HELLO }, PH_GATE_HELLO },
	{ "the first byte of a ClientHello", { .flags = ACK, .payload = HELLO_1 }, PH_GATE_HELLO },
	{ "the first five bytes of one", { .flags = ACK, .payload = HELLO_5 }, PH_GATE_HELLO },
	{ "padding behind the packet", { .flags = ACK, .payload = DATA, .total_off = -100 }, NOTHING },
	{ "WireGuard, an initiation", { .protocol = IPPROTO_UDP, .payload = INITIATION }, PH_GATE_HANDSHAKE },
	{ "WireGuard, an initiation, IPv6", { TO6, .protocol = IPPROTO_UDP, .payload = INITIATION }, PH_GATE_HANDSHAKE },
	{ "WireGuard, a short initiation", { .protocol = IPPROTO_UDP, .payload = INITIATION_ODD }, PH_GATE_HANDSHAKE },
	{ "WireGuard, data", { .protocol = IPPROTO_UDP, .payload = TRANSPORT }, NOTHING },
	{ "WireGuard, data in fragments", { .protocol = IPPROTO_UDP, .payload = TRANSPORT, .fragment = MF }, NOTHING },
	{ "WireGuard, a later fragment", { .protocol = IPPROTO_UDP, .payload = TRANSPORT, .fragment = 1 }, NOTHING },
	/* what is not the gateway's: untouched, however odd it is */
	{ "another port", { .to_port = 22 }, NOTHING },
	{ "another port, SYN and FIN", { .to_port = 22, .flags = SYN | FIN }, NOTHING },
	{ "another port, from its own address", { .to_port = 22, .from = OURS4 }, NOTHING },
	{ "another port, IPv6", { TO6, .to_port = 22, .flags = SYN | RST }, NOTHING },
	{ "another address", { .to = "192.0.2.2", .flags = SYN | FIN }, NOTHING },
	{ "another address, IPv6", { .to = "2001:db8::2", .flags = SYN | FIN }, NOTHING },
	{ "another address, one IPv6 header more than there may be", { .to = "2001:db8::2", .options = 7 }, NOTHING },
	{ "another address, a first fragment", { .to = "192.0.2.2", .fragment = MF }, NOTHING },
	{ "another address, a length that is wrong", { .to = "192.0.2.2", .total_off = 1000 }, NOTHING },
	{ "another port, a first fragment", { .to_port = 22, .fragment = MF }, NOTHING },
	{ "our port number, UDP", { .protocol = IPPROTO_UDP, .to_port = PORT, .payload = DATA }, NOTHING },
	{ "the tunnel's port number, TCP", { .to_port = TUNNEL_PORT }, NOTHING },
	{ "ICMP", { .protocol = IPPROTO_ICMP }, NOTHING },
	{ "ICMPv6", { TO6, .protocol = IPPROTO_ICMPV6 }, NOTHING },
	{ "ICMPv6 behind a header", { TO6, .protocol = IPPROTO_ICMPV6, .options = 1 }, NOTHING },
	{ "a later fragment, which may be anybody's", { .fragment = 3 }, NOTHING },
	{ "ARP", { .ethertype = 0x0806 }, NOTHING },
	{ "an ethertype nobody has", { .ethertype = 0x88b5 }, NOTHING },
	{ "a tagged frame", { .tagged = true, .flags = SYN | FIN }, NOTHING },
	{ "a frame that ends in its IP header", { .cut = 30 }, NOTHING },
	/* what no client sends */
	{ "SYN and FIN", { .flags = SYN | FIN }, PH_GATE_BAD_FLAGS },
	{ "SYN and RST", { .flags = SYN | RST }, PH_GATE_BAD_FLAGS },
	{ "SYN and FIN, IPv6", { TO6, .flags = SYN | FIN }, PH_GATE_BAD_FLAGS },
	{ "all flags", { .flags = 0xff }, PH_GATE_BAD_FLAGS },
	{ "no flags", { .no_flags = 1 }, PH_GATE_BAD_FLAGS },
	{ "no flags, IPv6", { TO6, .no_flags = 1 }, PH_GATE_BAD_FLAGS },
	{ "FIN alone", { .flags = FIN }, PH_GATE_BAD_FLAGS },
	{ "FIN, PSH, URG", { .flags = FIN | PSH | URG }, PH_GATE_BAD_FLAGS },
	{ "SYN and ACK", { .flags = SYN | ACK }, PH_GATE_SYN_ACK },
	{ "SYN and ACK, IPv6", { TO6, .flags = SYN | ACK }, PH_GATE_SYN_ACK },
	{ "from the address that it goes to", { .from = OURS4 }, PH_GATE_LAND },
	{ "from the address that it goes to, IPv6", { TO6, .from = OURS6, .flags = ACK }, PH_GATE_LAND },
	{ "an initiation from the tunnel's own address",
	  { .from = OURS4, .protocol = IPPROTO_UDP, .payload = INITIATION }, PH_GATE_LAND },
	{ "from port 0", { .from_port = 0xffff }, PH_GATE_BAD_SOURCE },
	{ "from 0.0.0.0", { .from = "0.0.0.0" }, PH_GATE_BAD_SOURCE },
	{ "from loopback", { .from = "127.0.0.1" }, PH_GATE_BAD_SOURCE },
	{ "from a multicast address", { .from = "224.0.0.1" }, PH_GATE_BAD_SOURCE },
	{ "from the broadcast address", { .from = "255.255.255.255" }, PH_GATE_BAD_SOURCE },
	{ "from the highest address there may be", { .from = "255.255.255.254" }, PH_GATE_CONNECTION },
	{ "from ::", { TO6, .from = "::" }, PH_GATE_BAD_SOURCE },
	{ "from ::1", { TO6, .from = "::1" }, PH_GATE_BAD_SOURCE },
	{ "from ff02::1", { TO6, .from = "ff02::1" }, PH_GATE_BAD_SOURCE },
	{ "from IPv4 inside IPv6", { TO6, .from = "::ffff:198.51.100.7" }, PH_GATE_BAD_SOURCE },
	{ "an initiation from loopback", { .from = "127.0.0.1", .protocol = IPPROTO_UDP, .payload = INITIATION },
	  PH_GATE_BAD_SOURCE },
	{ "an IP length over the frame's", { .total_off = 1 }, PH_GATE_BAD_LENGTH },
	{ "an IP length over the frame's, IPv6", { TO6, .total_off = 1 }, PH_GATE_BAD_LENGTH },
	{ "an IP length within TCP's header", { .total_off = -1 }, PH_GATE_BAD_LENGTH },
	{ "an IP length within its own header", { .total_off = -30 }, PH_GATE_BAD_LENGTH },
	{ "an IP length of 0", { .total_off = -40 }, PH_GATE_BAD_LENGTH },
	{ "an IP header shorter than there are", { .version_ihl = 0x44 }, PH_GATE_BAD_LENGTH },
	{ "another version of IP", { .version_ihl = 0x55 }, PH_GATE_BAD_LENGTH },
	{ "another version of IP, IPv6", { TO6, .version_ihl = 0x40 }, PH_GATE_BAD_LENGTH },
	{ "a TCP header shorter than there are", { .doff = 4 }, PH_GATE_BAD_LENGTH },
	{ "a TCP header that ends behind the packet", { .doff = 6 }, PH_GATE_BAD_LENGTH },
	{ "the same, IPv6", { TO6, .doff = 15 }, PH_GATE_BAD_LENGTH },
	{ "no room for a UDP header", { .protocol = IPPROTO_UDP, .total_off = -1 }, PH_GATE_BAD_LENGTH },
	{ "a first fragment", { .payload = DATA, .flags = ACK, .fragment = MF }, PH_GATE_FRAGMENT },
	{ "a first fragment with no more than ports", { .fragment = MF, .total_off = -16 }, PH_GATE_FRAGMENT },
	{ "a first fragment of WireGuard's that has no type", { .protocol = IPPROTO_UDP, .fragment = MF }, PH_GATE_FRAGMENT },
	{ "the same, IPv6", { TO6, .protocol = IPPROTO_UDP, .fragment = 0x0001 }, PH_GATE_FRAGMENT },
	{ "a first fragment, IPv6", { TO6, .fragment = 0x0001 }, PH_GATE_FRAGMENT },
	{ "a fragment that begins in TCP's header", { .fragment = 1 }, PH_GATE_FRAGMENT },
	{ "a fragment that begins in TCP's last options", { .fragment = MF | 2 }, PH_GATE_FRAGMENT },
	{ "a fragment that begins in TCP's header, IPv6", { TO6, .fragment = 0x0008 }, PH_GATE_FRAGMENT },
	{ "one IPv6 header more than there may be", { TO6, .options = 7 }, PH_GATE_HEADERS },
	{ "the same before an initiation, where only WireGuard is",
	  { .to = TUNNEL6, .options = 7, .protocol = IPPROTO_UDP, .payload = INITIATION }, PH_GATE_HEADERS },
};

static void test_frames(enum entry entry)
{
	/* A test run for tc makes no skb of a frame that has no whole IP header. */
	for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
		if (entry != TC || !frames[i].shape.cut)
			expect(entry, frames[i].name, &frames[i].shape, frames[i].reason);
	}
}

static void test_lists(enum entry entry)
{
	const struct bpf_map *deny = skel->maps.ph_deny, *allow = skel->maps.ph_allow;
	const struct shape syn = { 0 }, ack = { .flags = ACK }, syn6 = { TO6 }, bad = { .flags = SYN | FIN },
			   initiation = { .protocol = IPPROTO_UDP, .payload = INITIATION },
			   data = { .protocol = IPPROTO_UDP, .payload = TRANSPORT };
	uint64_t now = now_ns(), hour = 3600 * SECOND_NS, deadline;
	uint64_t soon;

	list(deny, CLIENT4, 32, 0);
	expect(entry, "denied: a SYN", &syn, PH_GATE_DENIED);
	expect(entry, "denied: an ACK of a connection that is under way", &ack, PH_GATE_DENIED);
	expect(entry, "denied: an ACK once more, from the cache", &ack, PH_GATE_DENIED);
	expect(entry, "denied: a handshake initiation", &initiation, PH_GATE_DENIED);
	expect(entry, "denied: WireGuard's data passes", &data, NOTHING);
	expect(entry, "denied: a frame that no client sends is that first", &bad, PH_GATE_BAD_FLAGS);
	expect(entry, "denied: somebody else", &(struct shape){ .from = "198.51.100.8" }, PH_GATE_CONNECTION);
	expect(entry, "denied: over IPv6 somebody else", &syn6, PH_GATE_CONNECTION);
	expect(entry, "denied: not what is not the gateway's", &(struct shape){ .to_port = 22 }, NOTHING);
	list(allow, "198.51.100.0", 24, 0);
	expect(entry, "allowed and denied: allowed", &syn, PH_GATE_ALLOWED);
	expect(entry, "allowed: a handshake initiation", &initiation, PH_GATE_ALLOWED);
	expect(entry, "allowed: a frame that no client sends is that first", &bad, PH_GATE_BAD_FLAGS);
	unlist_all();
	expect(entry, "no longer listed, cached as it was", &syn, PH_GATE_CONNECTION);

	list(deny, "2001:db8:7::", 48, 0);
	expect(entry, "an IPv6 prefix denied", &syn6, PH_GATE_DENIED);
	expect(entry, "an IPv6 address beside it", &(struct shape){ TO6, .from = "2001:db8:8::7" }, PH_GATE_CONNECTION);
	expect(entry, "an IPv6 prefix denied: IPv4", &syn, PH_GATE_CONNECTION);
	unlist_all();
	list(deny, "0.0.0.0", 0, 0);
	expect(entry, "all of IPv4 denied", &syn, PH_GATE_DENIED);
	expect(entry, "all of IPv4 denied: IPv6", &syn6, PH_GATE_CONNECTION);
	unlist_all();
	list(deny, "::", 0, 0);
	expect(entry, "all of IPv6 denied", &syn6, PH_GATE_DENIED);
	expect(entry, "all of IPv6 denied: IPv4, though it is kept inside", &syn, PH_GATE_CONNECTION);
	unlist_all();

	list(deny, CLIENT4, 32, now + hour);
	expect(entry, "denied for an hour", &syn, PH_GATE_DENIED);
	list(deny, CLIENT4, 32, now - 1);
	expect(entry, "denied until a moment ago", &syn, PH_GATE_CONNECTION);
	list(deny, "198.51.100.0", 25, now - 1);
	list(deny, "198.51.0.0", 16, 0);
	expect(entry, "two prefixes that have expired within one that has not", &syn, PH_GATE_DENIED);
	list(allow, CLIENT4, 32, now - 1);
	expect(entry, "allowed until a moment ago, and denied", &syn, PH_GATE_DENIED);
	unlist_all();
	soon = now_ns() + 2 * SECOND_NS;
	list(deny, CLIENT4, 32, soon);
	expect(entry, "denied for a moment", &syn, PH_GATE_DENIED);
	deadline = now_ns() + 5 * SECOND_NS;
	while (run_shape(entry, &syn) != PASSED && now_ns() < deadline)
		;
	ktap_ok(now_ns() >= soon && now_ns() < deadline, "%s: it passes once that is over, though it was cached",
		entry_words[entry]);
	unlist_all();
}

/* How many of @count pass. */
static int passing(enum entry entry, const struct shape *shape, int count)
{
	int passed = 0;

	for (int i = 0; i < count; i++)
		passed += run_shape(entry, shape) == PASSED;
	return passed;
}

#define SLOW_NS (3600 * SECOND_NS)

/* One an hour: nothing comes back while this runs. */
static void set_slow_budget(enum ph_gate_budget_kind kind, uint32_t burst)
{
	config->budgets[kind].tolerance_ns = burst * SLOW_NS;
	config->budgets[kind].interval_ns = SLOW_NS;
}

/* As if so much time had gone by. */
static void rewind_source(const char *address, enum ph_gate_budget_kind kind, uint64_t by_ns)
{
	struct ph_address key = address_of(address);
	struct ph_gate_source source;

	if (bpf_map_lookup_elem(fd_of(skel->maps.ph_gate_sources), &key, &source))
		return;
	source.due_ns[kind] -= by_ns < source.due_ns[kind] ? by_ns : source.due_ns[kind];
	bpf_map_update_elem(fd_of(skel->maps.ph_gate_sources), &key, &source, BPF_EXIST);
}

static void test_budgets(enum entry entry)
{
	static const struct {
		const char *name;
		enum ph_gate_budget_kind kind;
		struct shape shape;
		enum ph_gate_reason within, over;
	} rows[] = {
		{ "SYNs", PH_GATE_BUDGET_CONNECTIONS, { 0 }, PH_GATE_CONNECTION, PH_GATE_OVER_CONNECTIONS },
		{ "ClientHellos", PH_GATE_BUDGET_HELLOS, { .flags = ACK, .payload = HELLO }, PH_GATE_HELLO,
		  PH_GATE_OVER_HELLOS },
		{ "initiations", PH_GATE_BUDGET_HANDSHAKES, { .protocol = IPPROTO_UDP, .payload = INITIATION },
		  PH_GATE_HANDSHAKE, PH_GATE_OVER_HANDSHAKES },
	};
	const char *way = entry_words[entry];
	struct ph_gate_source source = { 0 };
	struct ph_address key = address_of(CLIENT4);
	struct shape shape;
	char name[128];

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		shape = rows[i].shape;
		set_slow_budget(rows[i].kind, 5);
		forget_sources();
		ktap_ok(passing(entry, &shape, 9) == 5, "%s: %s: as many as the burst", way, rows[i].name);
		snprintf(name, sizeof(name), "%s: over budget", rows[i].name);
		expect(entry, name, &shape, rows[i].over);
		rewind_source(CLIENT4, rows[i].kind, 2 * SLOW_NS);
		ktap_ok(passing(entry, &shape, 9) == 2, "%s: %s: two more after two intervals", way, rows[i].name);
		rewind_source(CLIENT4, rows[i].kind, 3600 * SLOW_NS);
		ktap_ok(passing(entry, &shape, 9) == 5, "%s: %s: the burst, and no more, after many", way, rows[i].name);
		shape.from = "198.51.100.8";
		snprintf(name, sizeof(name), "%s: another source", rows[i].name);
		expect(entry, name, &shape, rows[i].within);
		list(skel->maps.ph_allow, CLIENT4, 32, 0);
		shape.from = NULL;
		snprintf(name, sizeof(name), "%s: over budget, and allowed", rows[i].name);
		expect(entry, name, &shape, PH_GATE_ALLOWED);
		unlist_all();
		set_budget(rows[i].kind, 1000, 5);
		ktap_ok(!passing(entry, &shape, 1), "%s: %s: still over, but no deeper in debt than the new burst", way,
			rows[i].name);
		bpf_map_lookup_elem(fd_of(skel->maps.ph_gate_sources), &key, &source);
		ktap_ok(source.due_ns[rows[i].kind] < now_ns() + SECOND_NS / 100 && source.dropped,
			"%s: %s: the source is known by its drops", way, rows[i].name);
		set_budget(rows[i].kind, 0, 0);
		ktap_ok(passing(entry, &shape, 9) == 9, "%s: %s: without a budget all pass", way, rows[i].name);
	}
}

static void test_sources(enum entry entry)
{
	const char *way = entry_words[entry];
	struct shape one = { 0 }, neighbour = { .from = "198.51.100.200" }, six = { TO6 },
		     near = { TO6, .from = "2001:db8:7::ffff:1" }, far = { TO6, .from = "2001:db8:7:1::7" };

	set_slow_budget(PH_GATE_BUDGET_CONNECTIONS, 3);
	forget_sources();
	ktap_ok(passing(entry, &six, 5) == 3 && !passing(entry, &near, 1) && passing(entry, &far, 1),
		"%s: an IPv6 source is a /64", way);
	ktap_ok(passing(entry, &one, 5) == 3 && passing(entry, &neighbour, 1), "%s: an IPv4 source is a /32", way);
	config->source4.words[3] = htonl(0xffffff00);
	forget_sources();
	ktap_ok(passing(entry, &one, 5) == 3 && !passing(entry, &neighbour, 1), "%s: an IPv4 source is a /24, if so set", way);
	config->source4.words[3] = htonl(0xffffffff);
	set_budget(PH_GATE_BUDGET_CONNECTIONS, 0, 0);
	forget_sources();
}

static uint64_t sum_bytes(const uint8_t *at, size_t len)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += i % 2 ? at[i] : at[i] << 8;
	return sum;
}

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint32_t word_at(const uint8_t *at)
{
	uint32_t word;

	memcpy(&word, at, 4);
	return word;
}

/* TCP's checksum as it should be, summed from scratch. */
static uint16_t sum_tcp(const uint8_t *ip, const uint8_t *tcp, size_t len)
{
	bool v6 = ip[0] >> 4 == 6;

	return fold(sum_bytes(ip + (v6 ? 8 : 12), v6 ? 32 : 8) + 6 + len + sum_bytes(tcp, len));
}

/* Is @answer a SYN-ACK to @frame's sender, right in every field? */
static bool is_challenge(const uint8_t *frame, const uint8_t *tcp, size_t len)
{
	const uint8_t *ip = answer + 14, *to = answer + (tcp - frame);
	bool v6 = ip[0] >> 4 == 6;
	size_t address = v6 ? 16 : 4, at = v6 ? 8 : 12, tcp_len = answer_len - (to - answer);

	return answer_len <= len && !memcmp(answer, frame + 6, 6) && !memcmp(answer + 6, frame, 6) &&
	       !memcmp(ip + at, frame + 14 + at + address, address) && !memcmp(ip + at + address, frame + 14 + at, address) &&
	       ip[v6 ? 7 : 8] == 64 && (v6 || fold(sum_bytes(ip, 20)) == 0xffff) && !memcmp(to, tcp + 2, 2) && !memcmp(to + 2, tcp, 2) &&
	       (to[13] & 0x3f) == (SYN | ACK) && sum_tcp(ip, to, tcp_len) == 0xffff &&
	       (v6 ? ip[4] << 8 | ip[5] : (ip[2] << 8 | ip[3]) - 20) == (int)tcp_len;
}

static void test_challenge(enum entry entry)
{
	static const struct {
		const char *name;
		struct shape shape;
	} rows[] = {
		{ "IPv4", { .from = CLIENT4 } },
		{ "IPv6", { TO6, .from = CLIENT6 } },
		{ "a SYN with data", { .from = "198.51.100.9", .payload = DATA } },
		{ "a SYN with data, IPv6", { TO6, .from = "2001:db8:9::9", .payload = DATA } },
	};
	const char *way = entry_words[entry];
	struct shape syn, reset;
	uint8_t frame[FRAME_MAX], *tcp;
	uint32_t cookie;
	size_t len;

	config->secret[0] = 1;
	config->secret[1] = 2;
	config->unproven.interval_ns = 3600 * SECOND_NS;
	config->unproven.tolerance_ns = 2 * config->unproven.interval_ns;
	config->unproven_due_ns = 0;
	ktap_ok(passing(entry, &rows[0].shape, 1) && passing(entry, &rows[1].shape, 1), "%s: as many strangers as may get in",
		way);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		syn = rows[i].shape;
		len = write_frame(&syn, frame);
		tcp = frame + 14 + (syn.to ? 40 : 20);
		memcpy(frame + 6, "\2\0\0\0\0\2", 6);	/* to MAC 0, which is loopback's, where a test run is */
		frame[14 + (syn.to ? 7 : 8)] = 9;	/* hops left */
		put16(tcp + 16, ~sum_tcp(frame + 14, tcp, len - (tcp - frame)));
		if (!syn.to)
			put16(frame + 24, ~fold(sum_bytes(frame + 14, 20)));
		ktap_ok(run_frame(entry, frame, len) == ANSWERED && is_challenge(frame, tcp, len), "%s: challenged: %s", way,
			rows[i].name);
		cookie = word_at(answer + (tcp - frame) + 8);
		frame[5] = 1;
		if (entry == TC)
			ktap_ok(run_frame(entry, frame, len) == PASSED, "%s: to another MAC: left to the stack, which drops it", way);
		expect(entry, "one that has not answered", &syn, PH_GATE_CHALLENGED);
		reset = syn;
		reset.payload = NO_PAYLOAD;
		reset.flags = RST;
		reset.seq = cookie + 1;
		expect(entry, "a RST with another number", &reset, NOTHING);
		reset.seq = cookie;
		reset.from_port = 40001;
		expect(entry, "a RST from another port", &reset, NOTHING);
		reset.from_port = 0;
		reset.flags = RST | ACK;
		expect(entry, "a RST that acknowledges", &reset, NOTHING);
		expect(entry, "it is still a stranger", &syn, PH_GATE_CHALLENGED);
		reset.flags = RST;
		expect(entry, "the RST that was asked for", &reset, PH_GATE_PROVEN);
		expect(entry, "its next SYN", &syn, PH_GATE_CONNECTION);
		syn.from_port = 50000;
		expect(entry, "and from another port", &syn, PH_GATE_CONNECTION);
	}
	expect(entry, "somebody else", &(struct shape){ .from = "203.0.113.1" }, PH_GATE_CHALLENGED);
	list(skel->maps.ph_allow, "203.0.113.1", 32, 0);
	expect(entry, "who is allowed", &(struct shape){ .from = "203.0.113.1" }, PH_GATE_ALLOWED);
	unlist_all();
	ktap_ok(run_shape(entry, &(struct shape){ .from = "203.0.113.1", .options = 8 }) == DROPPED,
		"%s: a SYN with IP options is not answered", way);
	expect(entry, "data of a stranger", &(struct shape){ .from = "203.0.113.1", .flags = ACK, .payload = DATA }, NOTHING);
	config->unproven_due_ns = 0;
	expect(entry, "once there is room again", &(struct shape){ .from = "203.0.113.1" }, PH_GATE_CONNECTION);
	memset(&config->unproven, 0, sizeof(config->unproven));
	ktap_ok(passing(entry, &(struct shape){ .from = "203.0.113.2" }, 9) == 9, "%s: without a limit nobody is a stranger", way);
	for (struct ph_address key; !bpf_map_get_next_key(fd_of(skel->maps.ph_gate_proven), NULL, &key);)
		bpf_map_delete_elem(fd_of(skel->maps.ph_gate_proven), &key);
}

/* Nothing is out of reach: random bytes, and good frames with some of them changed, never hurt. */
static void test_noise(enum entry entry)
{
	uint8_t frame[FRAME_MAX];
	int wrong = 0;

	srandom(1);
	for (int i = 0; i < 20000; i++) {
		size_t len = write_frame(&frames[random() % (sizeof(frames) / sizeof(frames[0]))].shape, frame);

		for (long change = random() % 6; change > 0; change--)
			frame[random() % len] = random();
		if (random() % 4 == 0)
			len = SHORTEST + random() % (len > SHORTEST ? len - SHORTEST : 1);
		wrong += run_frame(entry, frame, len < SHORTEST ? SHORTEST : len) < 0;
	}
	ktap_ok(!wrong, "%s: 20,000 frames with bytes changed: each passes or is dropped", entry_words[entry]);
}

/* For people: what a packet costs, the least of some runs. */
static void tell_cost(enum entry entry, const char *what, const struct shape *shape)
{
	uint8_t frame[FRAME_MAX];
	size_t len = write_frame(shape, frame);
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = (__u32)len, .repeat = 10000);
	uint32_t least = UINT32_MAX;

	for (int i = 0; i < 30; i++) {
		if (bpf_prog_test_run_opts(entry_fd(entry), &opts))
			return;
		least = opts.duration < least ? opts.duration : least;
	}
	printf("# %s: %s: %u ns\n", entry_words[entry], what, least);
}

static void tell_costs(enum entry entry)
{
	const struct shape data = { .flags = ACK | PSH, .payload = DATA }, syn = { 0 }, other = { .to_port = 22 };

	tell_cost(entry, "ARP", &(struct shape){ .ethertype = 0x0806 });
	tell_cost(entry, "data", &data);
	tell_cost(entry, "data, IPv6", &(struct shape){ TO6, .flags = ACK | PSH, .payload = DATA });
	tell_cost(entry, "not ours", &other);
	set_budget(PH_GATE_BUDGET_CONNECTIONS, 10000000, 10000000);
	tell_cost(entry, "a SYN", &syn);
	set_budget(PH_GATE_BUDGET_CONNECTIONS, 0, 0);
	list(skel->maps.ph_deny, "203.0.113.0", 24, 0);
	tell_cost(entry, "data, with a deny list", &data);
	unlist_all();
	forget_sources();
}

int main(void)
{
	ktap_header();
	skel = ph_gate_bpf__open_and_load();
	if (!ktap_ok(skel != NULL, "the programs load"))
		return ktap_end();
	config = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd_of(skel->maps.ph_gate), 0);
	if (!ktap_ok(config != MAP_FAILED, "the configuration is mapped"))
		return ktap_end();
	set_world();
	for (enum entry entry = 0; entry < ENTRIES; entry++) {
		test_frames(entry);
		test_lists(entry);
		test_budgets(entry);
		test_sources(entry);
		test_challenge(entry);
		test_noise(entry);
		tell_costs(entry);
	}
	ph_gate_bpf__destroy(skel);
	return ktap_end();
}
