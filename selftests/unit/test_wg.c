// SPDX-License-Identifier: Apache-2.0
/*
 * wg: kernel WireGuard, in network namespaces of this process's own.
 *
 *	gateway namespace                        CVM namespace
 *	wg0  10.0.0.1/24, UDP 51820              wgc  10.0.1.1/32
 *	  |                                        |
 *	  +--- 127.0.0.1:51820 === 127.0.0.1:51821 +
 *
 * wgc was made beside wg0 and then moved, which leaves its UDP socket behind: so the two speak over the gateway's
 * loopback. wg0 has PEERS other peers that never speak.
 */
#include "ktap.h"
#include "shell.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <phala/limits.h>

#include "link.h"
#include "wg.h"

#define PEERS 3000
#define GATEWAY_PORT 51820
#define CVM_PORT 51821
#define UDP_PORT 4000
#define PATIENCE_MS 5000			/* for one packet; WireGuard itself repeats a handshake after 5 s */
#define PACKET_TRIES 6
#define FEW 50					/* peers to delete a device with */
#define DUMPS 30				/* while peers change */

#define FIRST 0x0a010200			/* 10.1.2.0: peer n has FIRST + n */

static struct ph_wg *wg;
static struct ph_link *subject;
static int gateway_ns, cvm_ns;
static int gateway_udp = -1, cvm_udp = -1;
static uint8_t gateway_private[PH_KEY_LEN], gateway_public[PH_KEY_LEN], cvm_private[PH_KEY_LEN], cvm_public[PH_KEY_LEN];
static struct ph_wg_peer peers[PEERS];
static char out[1 << 20];			/* what the last tool said */

#define shell(...) shell_run(out, sizeof(out), __VA_ARGS__)

static struct in_addr host(uint32_t number)
{
	return (struct in_addr){ htonl(number) };
}

/* Peer @n's key: no private key is known for it; the number is in it, for finding it again. */
static void make_key(uint32_t n, uint8_t ret_key[PH_KEY_LEN])
{
	memset(ret_key, 0xa5, PH_KEY_LEN);
	memcpy(ret_key, &n, sizeof(n));
	ret_key[PH_KEY_LEN - 1] = 0x25;
}

/* What a walk over all peers found, against what is expected. */
struct census {
	size_t total, right, wrong, unknown;
	int seen[PEERS];
	struct ph_wg_peer cvm;
	struct ph_wg_peer picked;		/* the one with the key below */
	uint8_t pick[PH_KEY_LEN];
	int picks;
	int stop_after;				/* 0: never */
};

static int visit(const struct ph_wg_peer *peer, void *arg)
{
	struct census *census = arg;
	uint8_t key[PH_KEY_LEN];
	uint32_t n;

	census->total++;
	memcpy(&n, peer->public_key, sizeof(n));
	make_key(n, key);
	if (!memcmp(peer->public_key, cvm_public, PH_KEY_LEN)) {
		census->cvm = *peer;
	} else if (n >= PEERS || memcmp(peer->public_key, key, PH_KEY_LEN)) {
		census->unknown++;
	} else {
		census->seen[n]++;
		if (peer->address.s_addr == peers[n].address.s_addr && peer->allowed_count == 1 &&
		    !peer->handshake_wall_ns && !peer->endpoint.ss_family)
			census->right++;
		else
			census->wrong++;
	}
	if (!memcmp(peer->public_key, census->pick, PH_KEY_LEN)) {
		census->picked = *peer;
		census->picks++;
	}
	return census->stop_after && (int)census->total >= census->stop_after ? 77 : 0;
}

/* Every one of the PEERS was seen once, and is as expected. */
static bool is_complete(const struct census *census)
{
	for (int i = 0; i < PEERS; i++) {
		if (census->seen[i] != 1)
			return false;
	}
	return census->right == PEERS && !census->wrong;
}

static struct census *take_census(const uint8_t *pick)
{
	static struct census census;

	memset(&census, 0, sizeof(census));
	if (pick)
		memcpy(census.pick, pick, PH_KEY_LEN);
	if (ph_wg_each_peer(wg, "wg0", visit, &census))
		census.total = 0;
	return &census;
}

static uint64_t wall_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void test_no_device(void)
{
	struct ph_wg_device device;

	ktap_ok(ph_wg_get_device(wg, "wg0", &device) == -ENODEV, "no device: get: ENODEV");
	ktap_ok(ph_wg_set_device(wg, "wg0", gateway_private, 1) == -ENODEV, "no device: set: ENODEV");
	ktap_ok(ph_wg_set_peer(wg, "wg0", cvm_public, host(FIRST)) == -ENODEV, "no device: set peer: ENODEV");
	ktap_ok(ph_wg_remove_peer(wg, "wg0", cvm_public) == -ENODEV, "no device: remove peer: ENODEV");
	ktap_ok(ph_wg_each_peer(wg, "wg0", visit, NULL) == -ENODEV, "no device: walk: ENODEV");
	ktap_ok(ph_wg_get_device(wg, "sixteen-is-long!", &device) == -ENODEV, "name of 16 characters: ENODEV");
	ktap_ok(ph_wg_get_device(wg, "lo", &device) == -EOPNOTSUPP, "a device of another kind: EOPNOTSUPP");
}

static void test_device(void)
{
	struct ph_link_info info = { 0 }, again = { 0 };
	struct ph_wg_device device;
	char text[PH_KEY_BASE64_SIZE];
	int err;

	err = ph_link_create_wireguard(subject, "wg0");
	ktap_ok(!err && !ph_link_get(subject, "wg0", &info) && !strcmp(info.kind, "wireguard") && !info.up,
		"create: wg0 is a WireGuard device");
	ktap_ok(!ph_link_create_wireguard(subject, "wg0") && !ph_link_get(subject, "wg0", &again) &&
			again.ifindex == info.ifindex, "create again: the same device is adopted");
	memset(&device, 7, sizeof(device));
	ktap_ok(!ph_wg_get_device(wg, "wg0", &device) && device.ifindex == info.ifindex && !device.private_key[0] &&
			!device.public_key[31], "a new device has no key");
	ktap_ok(!ph_wg_set_device(wg, "wg0", gateway_private, GATEWAY_PORT) && !ph_wg_get_device(wg, "wg0", &device) &&
			device.listen_port == GATEWAY_PORT &&
			!memcmp(device.private_key, gateway_private, PH_KEY_LEN) &&
			!memcmp(device.public_key, gateway_public, PH_KEY_LEN), "key and port are set and read back");
	ph_key_encode(gateway_private, text);
	ktap_ok(!shell("wg show wg0 private-key") && !strncmp(out, text, strlen(text)), "`wg` sees the private key");
	ph_key_encode(gateway_public, text);
	ktap_ok(!shell("wg show wg0 public-key") && !strncmp(out, text, strlen(text)), "`wg` sees the public key");
	ktap_ok(!shell("wg show wg0 listen-port") && atoi(out) == GATEWAY_PORT, "`wg` sees the port");
	ktap_ok(!ph_link_set_up(subject, 1, 65536) && !ph_link_set_up(subject, info.ifindex, PH_TUNNEL_MTU) &&
			!ph_link_set_address(subject, info.ifindex, host(0x0a000001), 24) &&
			!ph_link_set_blackhole(subject, host(0x0a000000), 8) &&
			!ph_link_set_route(subject, host(0x0a000000), 8, info.ifindex), "up, address and routes");

	if (ph_link_create_wireguard(subject, "wg1") || ph_wg_set_device(wg, "wg1", cvm_private, GATEWAY_PORT) ||
	    ph_link_get(subject, "wg1", &again))
		ktap_ok(0, "cannot make wg1");
	ktap_ok(ph_link_set_up(subject, again.ifindex, PH_TUNNEL_MTU) == -EADDRINUSE,
		"a port that another device has: EADDRINUSE when the device goes up");
	ph_link_delete(subject, again.ifindex);
}

static void test_bulk(void)
{
	struct census *census;
	char text[PH_KEY_BASE64_SIZE];
	int lines = 0, listed = 0;

	for (uint32_t i = 0; i < PEERS; i++) {
		make_key(i, peers[i].public_key);
		peers[i].address = host(FIRST + i);
	}
	ktap_ok(!ph_wg_set_peers(wg, "wg0", peers, PEERS), "%d peers are set in one call", PEERS);
	census = take_census(NULL);
	ktap_ok(census->total == PEERS && is_complete(census), "all %d are listed once, each with its /32", PEERS);
	if (shell("wg show wg0 allowed-ips"))
		ktap_ok(0, "wg: %s", out);
	for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n"), lines++) {
		uint8_t key[PH_KEY_LEN];
		char want[80], address[INET_ADDRSTRLEN];
		uint32_t n;

		snprintf(text, sizeof(text), "%.44s", line);
		if (ph_key_decode(text, key))
			break;
		memcpy(&n, key, sizeof(n));
		if (n >= PEERS)
			break;
		inet_ntop(AF_INET, &peers[n].address, address, sizeof(address));
		snprintf(want, sizeof(want), "%s\t%s/32", text, address);
		listed += !strcmp(line, want);
	}
	ktap_ok(lines == PEERS && listed == PEERS, "`wg` lists the same %d", lines);
	ktap_ok(!ph_wg_set_peers(wg, "wg0", peers, PEERS) && is_complete(take_census(NULL)), "set again: the same");
	ktap_ok(!ph_wg_set_peers(wg, "wg0", NULL, 0), "none to set");
}

static int open_udp(int ns, uint32_t address)
{
	struct sockaddr_in local = { .sin_family = AF_INET, .sin_port = htons(UDP_PORT), .sin_addr = host(address) };
	int fd;

	if (setns(ns, CLONE_NEWNET))
		return -1;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (bind(fd, (struct sockaddr *)&local, sizeof(local)) || setns(gateway_ns, CLONE_NEWNET)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* The CVM's side, set up with the tools that a CVM has. */
static int make_cvm(void)
{
	char key[PH_KEY_BASE64_SIZE];
	int err;

	if (ph_link_create_wireguard(subject, "wgc") || ph_wg_set_device(wg, "wgc", cvm_private, CVM_PORT))
		return -1;
	if (shell("wg set wgc peer %s endpoint 127.0.0.1:%d allowed-ips 10.0.0.0/24 && "
		  "ip link set wgc netns /proc/%d/fd/%d",
		  ph_key_encode(gateway_public, key), GATEWAY_PORT, getpid(), cvm_ns))
		return -1;
	if (setns(cvm_ns, CLONE_NEWNET))
		return -1;
	err = shell("ip addr add 10.0.1.1/32 dev wgc && ip link set wgc up && ip route add 10.0.0.0/24 dev wgc");
	return setns(gateway_ns, CLONE_NEWNET) || err;
}

/* One datagram through the tunnel to @fd, sent again if it is late: it waits for the handshake. */
static bool pass_packet(int from_fd, uint32_t to, int fd)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(UDP_PORT), .sin_addr = host(to) };
	struct pollfd waiting = { .fd = fd, .events = POLLIN };
	char text[32];

	while (recv(fd, text, sizeof(text), MSG_DONTWAIT) >= 0)
		;
	for (int i = 0; i < PACKET_TRIES; i++) {
		if (sendto(from_fd, "through", 7, 0, (struct sockaddr *)&address, sizeof(address)) != 7)
			return false;
		if (poll(&waiting, 1, PATIENCE_MS) == 1)
			return recv(fd, text, sizeof(text), 0) == 7 && !memcmp(text, "through", 7);
	}
	return false;
}

static bool pass_both_ways(void)
{
	return pass_packet(cvm_udp, 0x0a000001, gateway_udp) && pass_packet(gateway_udp, 0x0a000101, cvm_udp);
}

static void test_handshake(void)
{
	const struct sockaddr_in *endpoint;
	uint64_t before_ns, after_ns, stamp_s;
	struct census *census;
	char key[PH_KEY_BASE64_SIZE];

	if (make_cvm()) {
		ktap_ok(0, "cannot make the CVM: %s", out);
		return;
	}
	gateway_udp = open_udp(gateway_ns, 0x0a000001);
	cvm_udp = open_udp(cvm_ns, 0x0a000101);
	ktap_ok(!ph_wg_set_peer(wg, "wg0", cvm_public, host(0x0a000101)), "the CVM is added");
	census = take_census(NULL);
	ktap_ok(census->total == PEERS + 1 && !census->cvm.handshake_wall_ns && !census->cvm.rx_bytes &&
			!census->cvm.endpoint.ss_family, "before it speaks: no handshake, no bytes, no endpoint");
	before_ns = wall_now_ns();
	ktap_ok(pass_packet(cvm_udp, 0x0a000001, gateway_udp), "a datagram comes through the tunnel");
	after_ns = wall_now_ns();
	census = take_census(NULL);
	endpoint = (const struct sockaddr_in *)&census->cvm.endpoint;
	ktap_ok(census->cvm.handshake_wall_ns >= before_ns && census->cvm.handshake_wall_ns <= after_ns,
		"the handshake's time is the wall clock's");
	ktap_ok(census->cvm.rx_bytes > 148 && census->cvm.tx_bytes >= 92, "bytes are counted: %llu in, %llu out",
		(unsigned long long)census->cvm.rx_bytes, (unsigned long long)census->cvm.tx_bytes);
	ktap_ok(endpoint->sin_family == AF_INET && ntohs(endpoint->sin_port) == CVM_PORT &&
			endpoint->sin_addr.s_addr == htonl(INADDR_LOOPBACK), "its endpoint has been learnt");
	stamp_s = census->cvm.handshake_wall_ns / 1000000000;
	ph_key_encode(cvm_public, key);
	ktap_ok(!shell("wg show wg0 latest-handshakes | grep -F %s | cut -f2", key) &&
			strtoull(out, NULL, 10) == stamp_s, "`wg` sees the same handshake");
}

/* Single peers change; neither the others nor the CVM's session notice. */
static void test_change(void)
{
	struct ph_wg_peer cvm = take_census(NULL)->cvm, pair[2];
	struct census *census;
	uint8_t key[PH_KEY_LEN];

	peers[7].address = host(FIRST + PEERS + 7);
	ktap_ok(!ph_wg_set_peer(wg, "wg0", peers[7].public_key, peers[7].address) && is_complete(take_census(NULL)),
		"one peer gets another address, and has no other");
	ktap_ok(!ph_wg_set_peer(wg, "wg0", peers[8].public_key, peers[9].address), "one peer gets another's address");
	census = take_census(peers[9].public_key);
	ktap_ok(census->right == PEERS - 2 && census->picks == 1 && !census->picked.allowed_count &&
			census->picked.address.s_addr == INADDR_ANY, "which the other has no longer");
	ktap_ok(!ph_wg_set_peer(wg, "wg0", peers[9].public_key, peers[9].address) &&
			!ph_wg_set_peer(wg, "wg0", peers[8].public_key, peers[8].address) &&
			is_complete(take_census(NULL)), "and back");

	memcpy(pair, &peers[10], sizeof(pair));
	pair[0].address = peers[11].address;
	pair[1].address = peers[10].address;
	memcpy(&peers[10], pair, sizeof(pair));
	ktap_ok(!ph_wg_set_peers(wg, "wg0", pair, 2) && is_complete(take_census(NULL)),
		"two swap addresses in one call");
	pair[0].address = pair[1].address;
	ktap_ok(!ph_wg_set_peers(wg, "wg0", pair, 2), "two with one address in one call");
	census = take_census(pair[0].public_key);
	ktap_ok(census->right == PEERS - 1 && !census->picked.allowed_count, "the later has it");
	ktap_ok(!ph_wg_set_peers(wg, "wg0", peers, PEERS) && is_complete(take_census(NULL)), "all as they were");

	ktap_ok(!ph_wg_remove_peer(wg, "wg0", peers[5].public_key), "one peer is removed");
	census = take_census(peers[5].public_key);
	ktap_ok(census->total == PEERS && census->right == PEERS - 1 && !census->picks,
		"it is gone, the others are not");
	ktap_ok(!ph_wg_remove_peer(wg, "wg0", peers[5].public_key) && take_census(NULL)->total == PEERS,
		"removed again: nothing more");
	ktap_ok(!ph_wg_set_peers(wg, "wg0", &peers[5], 1) && is_complete(take_census(NULL)), "and added again");

	memset(key, 0, sizeof(key));
	ktap_ok(!ph_wg_set_peer(wg, "wg0", gateway_public, host(FIRST - 1)) && take_census(NULL)->total == PEERS + 1,
		"the device's own key: ignored by the kernel without a word");
	census = ph_wg_set_peer(wg, "wg0", key, host(FIRST - 1)) ? NULL : take_census(key);
	ktap_ok(census && census->picks == 1 && !ph_wg_remove_peer(wg, "wg0", key), "a weak key: taken by the kernel");

	/* What must not end a session. */
	ktap_ok(!ph_wg_set_peer(wg, "wg0", cvm_public, host(0x0a000101)) &&
			!ph_wg_set_device(wg, "wg0", gateway_private, GATEWAY_PORT),
		"the CVM, key and port are set again");
	census = take_census(NULL);
	ktap_ok(census->cvm.handshake_wall_ns == cvm.handshake_wall_ns && census->cvm.rx_bytes >= cvm.rx_bytes &&
			census->cvm.tx_bytes >= cvm.tx_bytes && cvm.rx_bytes,
		"the CVM keeps its handshake and counters");
	ktap_ok(pass_both_ways(), "datagrams pass both ways");
	census = take_census(NULL);
	ktap_ok(census->cvm.handshake_wall_ns == cvm.handshake_wall_ns && census->cvm.rx_bytes > cvm.rx_bytes &&
			census->cvm.tx_bytes > cvm.tx_bytes, "in the same session");
}

/* Allowed prefixes that others set on a peer of ours. */
static void test_foreign(void)
{
	static const struct {
		const char *name, *allowed;
		uint32_t count, address;
	} rows[] = {
		{ "none", "''", 0, INADDR_ANY },
		{ "a /32", "10.7.0.1/32", 1, 0x0a070001 },
		{ "a /24", "10.7.0.0/24", 1, INADDR_ANY },
		{ "IPv6", "2001:db8::1/128", 1, INADDR_ANY },
		{ "two /32", "10.7.0.1/32,10.7.0.2/32", 2, INADDR_ANY },
		{ "a /32 and IPv6", "10.7.0.1/32,2001:db8::1/128", 2, INADDR_ANY },
		{ "3000, over several messages",
		  "$(seq 3000 | awk '{ printf \"%s10.7.%d.%d/32\", NR == 1 ? \"\" : \",\","
		  " $1 / 256, $1 % 256 }')", 3000, INADDR_ANY },
	};
	char key[PH_KEY_BASE64_SIZE];

	ph_key_encode(peers[1500].public_key, key);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct census *census;

		if (shell("wg set wg0 peer %s allowed-ips %s", key, rows[i].allowed))
			ktap_ok(0, "cannot set %s: %s", rows[i].name, out);
		census = take_census(peers[1500].public_key);
		ktap_ok(census->picks == 1 && census->picked.allowed_count == rows[i].count &&
				census->picked.address.s_addr == htonl(rows[i].address) && census->right == PEERS - 1,
			"allowed prefixes: %s", rows[i].name);
	}
	ktap_ok(!ph_wg_set_peer(wg, "wg0", peers[1500].public_key, peers[1500].address) &&
			is_complete(take_census(NULL)), "allowed prefixes: set right again");
}

static int remove_low(const struct ph_wg_peer *peer, void *arg)
{
	uint32_t n;

	memcpy(&n, peer->public_key, sizeof(n));
	++*(int *)arg;
	return n < 100 ? ph_wg_remove_peer(wg, "wg0", peer->public_key) : 0;
}

static void test_walk(void)
{
	static struct census census;
	int visited = 0;

	census.stop_after = 10;
	ktap_ok(ph_wg_each_peer(wg, "wg0", visit, &census) == 77 && census.total == 10,
		"the visitor can stop the walk");
	ktap_ok(!ph_wg_each_peer(wg, "wg0", remove_low, &visited) && visited == PEERS + 1 &&
			take_census(NULL)->total == PEERS + 1 - 100, "the visitor can remove peers");
	ktap_ok(!ph_wg_set_peers(wg, "wg0", peers, 100) && is_complete(take_census(NULL)),
		"and they can be added again");
}

/* For every byte from the pipe, one more peer comes or goes: somewhere in the dump that starts at the same time. */
static void toggle(int fd)
{
	uint8_t key[PH_KEY_LEN];
	struct ph_wg *own;
	int err = ph_wg_new(&own);
	char byte;

	make_key(PEERS, key);
	for (int i = 0; !err && read(fd, &byte, 1) == 1; i++)
		err = i & 1 ? ph_wg_remove_peer(own, "wg0", key) : ph_wg_set_peer(own, "wg0", key, host(FIRST - 2));
	_exit(!!err);
}

static void test_changing(void)
{
	int ends[2], whole = 0, status = -1;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC)) {
		ktap_ok(0, "pipe");
		return;
	}
	fflush(stdout);
	pid = fork();
	if (!pid) {
		close(ends[1]);
		toggle(ends[0]);
	}
	close(ends[0]);
	for (int i = 0; i < DUMPS && write(ends[1], "", 1) == 1; i++) {
		struct census *census = take_census(NULL);

		whole += is_complete(census) && census->total == PEERS + 1 + census->unknown && census->unknown <= 1;
	}
	close(ends[1]);
	waitpid(pid, &status, 0);
	ktap_ok(whole == DUMPS && status == 0, "%d of %d walks are whole while a peer comes and goes", whole, DUMPS);
}

static int remove_most(const struct ph_wg_peer *peer, void *arg)
{
	if (!memcmp(peer->public_key, cvm_public, PH_KEY_LEN))
		return 0;
	return ++*(int *)arg > FEW ? ph_wg_remove_peer(wg, "wg0", peer->public_key) : 0;
}

/* No device is left, so the module can go; one that is loaded later has another family id. */
static void test_reload(void)
{
	struct ph_wg_device device;

	if (syscall(SYS_delete_module, "wireguard", O_NONBLOCK)) {
		ktap_skip("the module is unloaded, and loaded again by asking", strerror(errno));
		return;
	}
	ktap_ok(shell("grep -q ^wireguard /proc/modules") == 1 && ph_wg_get_device(wg, "wg0", &device) == -ENODEV &&
			!shell("grep -q ^wireguard /proc/modules"),
		"the module is unloaded, and loaded again by asking");
}

static void notice(uint32_t ifindex, const char *interface, bool gone, void *arg)
{
	if (gone && !strcmp(interface, "wg0"))
		*(uint32_t *)arg = ifindex;
}

static void test_delete(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr = host(0x0a000101) };
	int watch, count = 0, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ph_link_info info = { 0 };
	struct ph_wg_device device;
	uint32_t gone = 0;

	/* See ph_link_delete(): with all of them it would take a minute in an emulated guest. */
	ktap_ok(!ph_wg_each_peer(wg, "wg0", remove_most, &count) && take_census(NULL)->total == FEW + 1,
		"all but %d peers and the CVM are removed, one by one", FEW);
	if (ph_link_watch(&watch) || ph_link_get(subject, "wg0", &info)) {
		ktap_ok(0, "cannot watch");
		return;
	}
	ktap_ok(!sendto(fd, "", 0, 0, (struct sockaddr *)&to, sizeof(to)), "something can be sent to a CVM");
	ktap_ok(!ph_link_delete(subject, info.ifindex), "wg0 is deleted");
	ktap_ok(ph_link_watch_drain(watch, notice, &gone) > 0 && gone == info.ifindex,
		"the watch says that it is gone");
	shell("ip route show exact 10.0.0.0/8 | sed 's/ *$//'");
	ktap_ok(!strcmp(out, "blackhole 10.0.0.0/8 proto 177 metric 4294967295\n"), "the blackhole stays");
	ktap_ok(sendto(fd, "", 0, 0, (struct sockaddr *)&to, sizeof(to)) && errno == EINVAL,
		"and nothing can be sent to a CVM any more");
	ktap_ok(ph_wg_get_device(wg, "wg0", &device) == -ENODEV, "no device any more: ENODEV");
	if (setns(cvm_ns, CLONE_NEWNET) || shell("ip link delete wgc") || setns(gateway_ns, CLONE_NEWNET))
		ktap_ok(0, "cannot delete the CVM's device: %s", out);
	test_reload();
	ktap_ok(!ph_link_create_wireguard(subject, "wg0") &&
			!ph_wg_set_device(wg, "wg0", gateway_private, GATEWAY_PORT) &&
			!ph_wg_set_peers(wg, "wg0", peers, FEW) && take_census(NULL)->right == FEW,
		"it can be made anew");
	close(watch);
	close(fd);
}

static const char *const skipped[] = {
	"device", "peers in bulk", "handshake", "single peers change", "foreign prefixes", "walk",
	"walk while peers change", "deletion",
};

static int skip_all(const char *why)
{
	for (size_t i = 0; i < sizeof(skipped) / sizeof(skipped[0]); i++)
		ktap_skip(skipped[i], why);
	return ktap_end();
}

int main(void)
{
	int err;

	ktap_header();
	if (geteuid())
		return skip_all("needs root, for network namespaces");
	if (unshare(CLONE_NEWNET) || (cvm_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0 ||
	    unshare(CLONE_NEWNET) || (gateway_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0 ||
	    ph_link_new(&subject) || ph_key_generate(gateway_private) || ph_key_generate(cvm_private) ||
	    ph_key_public(gateway_private, gateway_public) || ph_key_public(cvm_private, cvm_public)) {
		ktap_ok(0, "cannot set the stage");
		return ktap_end();
	}
	err = ph_wg_new(&wg);
	if (err == -EPROTONOSUPPORT) {
		ktap_ok(ph_link_create_wireguard(subject, "wg0") == -EPROTONOSUPPORT,
			"a kernel without WireGuard: both requests say so");
		return skip_all("this kernel has no WireGuard");
	}
	if (!ktap_ok(!err, "the family is found before any device is"))
		return ktap_end();
	test_no_device();
	test_device();
	test_bulk();
	test_handshake();
	test_change();
	test_foreign();
	test_walk();
	test_changing();
	test_delete();
	ph_wg_free(wg);
	ph_wg_free(NULL);
	ph_link_free(subject);
	close(gateway_udp);
	close(cvm_udp);
	return ktap_end();
}
