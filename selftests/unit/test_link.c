// SPDX-License-Identifier: Apache-2.0
/*
 * link: devices, addresses, routes and notices, in a network namespace of this process's own.
 *
 *	v0 ---- v1	two ends of a veth pair, in the same namespace: any device will do
 *
 * "Not touched" is shown by the kernel sending no notice of a change.
 */
#include "ktap.h"
#include "shell.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "link.h"

#define OTHER_ROUTES 2000			/* so many that a dump of them takes several messages */

static struct ph_link *subject;
static int changes_fd;				/* notices of every change to devices, IPv4 addresses and routes */
static char out[65536];				/* what the last tool said */

#define ip(...) shell_run(out, sizeof(out), "ip " __VA_ARGS__)

static struct in_addr ipv4(const char *text)
{
	struct in_addr address = { 0 };

	inet_pton(AF_INET, text, &address);
	return address;
}

static uint32_t index_of(const char *interface)
{
	struct ph_link_info info = { 0 };

	return ph_link_get(subject, interface, &info) ? 0 : info.ifindex;
}

static int watch_changes(void)
{
	struct sockaddr_nl address = {
		.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE,
	};

	changes_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	return bind(changes_fd, (struct sockaddr *)&address, sizeof(address));
}

/* The kernel queues notices before it answers a request, so what a call changed is here when it returns. */
static int count_changes(void)
{
	char buffer[16384];
	int count = 0;

	while (recv(changes_fd, buffer, sizeof(buffer), 0) > 0 || errno == ENOBUFS)
		count++;
	return count;
}

static int make_pair(void)
{
	return ip("link add v0 type veth peer name v1 && ip link set v1 up");
}

static void test_get(void)
{
	struct ph_link_info info;
	int err;

	err = ph_link_get(subject, "lo", &info);
	ktap_ok(!err && info.ifindex == 1 && !info.up && !*info.kind && info.mtu == 65536,
		"lo: no kind, down, MTU 65536");
	err = ph_link_get(subject, "v0", &info);
	ktap_ok(!err && !strcmp(info.kind, "veth") && !info.up && info.mtu == 1500, "v0: veth, down, MTU 1500");
	info.mtu = 7;
	ktap_ok(ph_link_get(subject, "v9", &info) == -ENODEV && info.mtu == 7, "no device: ENODEV, nothing written");
	ktap_ok(ph_link_get(subject, "", &info) == -EINVAL, "empty name: EINVAL");
	ktap_ok(ph_link_get(subject, "sixteen-is-long!", &info) == -EINVAL, "name of 16 characters: EINVAL");
	ktap_ok(ph_link_create_wireguard(subject, "v0") == -EEXIST && !ph_link_get(subject, "v0", &info) &&
			!strcmp(info.kind, "veth"), "create: a device of another kind is left alone, EEXIST");
	ktap_ok(ph_link_create_wireguard(subject, "sixteen-is-long!") == -EINVAL,
		"create: name of 16 characters: EINVAL");
}

static void test_set_up(void)
{
	struct ph_link_info info;
	uint32_t v0 = index_of("v0");

	ktap_ok(!ph_link_set_up(subject, v0, 1420) && !ph_link_get(subject, "v0", &info) && info.up && info.mtu == 1420,
		"set up, MTU 1420");
	/* The carrier comes later, and by itself (net/core/link_watch.c). */
	for (int i = 0; i < 1000 && ip("-br link show v0 | grep -q '^v0[^ ]* *UP ' && ip -br link show v1 | grep -q '^v1[^ ]* *UP '"); i++)
		usleep(10000);
	count_changes();
	ktap_ok(!ph_link_set_up(subject, v0, 1420) && !count_changes(), "set up again: not touched");
	ktap_ok(!ph_link_set_up(subject, v0, 1300) && !ph_link_get(subject, "v0", &info) && info.up && info.mtu == 1300,
		"another MTU");
	ktap_ok(ph_link_set_up(subject, v0, 20) < 0 && !ph_link_get(subject, "v0", &info) && info.mtu == 1300,
		"an MTU that the device refuses");
	ktap_ok(ph_link_set_up(subject, 4242, 1420) == -ENODEV, "set up: no such device");
}

static void test_address(void)
{
	static const struct {
		const char *name, *before;	/* addresses of v0 before, in this order */
	} rows[] = {
		{ "none before", "" },
		{ "another before", "10.9.0.1/16" },
		{ "three others before", "10.9.0.1/16 192.0.2.1/24 10.0.0.2/32" },
		{ "right one among others", "192.0.2.1/24 10.0.0.1/24 198.51.100.1/24" },
		{ "right one is another's secondary", "10.0.0.9/24 10.0.0.1/24" },
		{ "others are secondaries of the right one", "10.0.0.1/24 10.0.0.9/24 10.0.0.8/24" },
		{ "the same address with another prefix length", "10.0.0.1/16" },
		{ "a point-to-point address", "10.0.0.1,peer,10.0.0.7/32" },
	};
	uint32_t v0 = index_of("v0");

	if (ip("addr add 203.0.113.1/24 dev v1 && ip -6 addr add 2001:db8::1/64 dev v0 nodad"))
		ktap_ok(0, "cannot set the stage: %s", out);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int err;

		if (ip("-4 addr flush dev v0; for a in %s; do ip addr add $(echo $a | tr , ' ') dev v0 || exit 1; done",
		       rows[i].before)) {
			ktap_ok(0, "address: %s: cannot set the stage: %s", rows[i].name, out);
			continue;
		}
		err = ph_link_set_address(subject, v0, ipv4("10.0.0.1"), 24);
		ip("-4 -br addr show dev v0 | awk '{$1 = $2 = \"\"; print}'");
		ktap_ok(!err && !strcmp(out, "  10.0.0.1/24\n"), "address: %s", rows[i].name);
	}
	count_changes();
	ktap_ok(!ph_link_set_address(subject, v0, ipv4("10.0.0.1"), 24) && !count_changes(),
		"address again: not touched");
	ktap_ok(ph_link_has_address(subject, v0, ipv4("10.0.0.1"), 24) == 1 &&
			!ph_link_has_address(subject, v0, ipv4("10.0.0.1"), 25) &&
			!ph_link_has_address(subject, v0, ipv4("203.0.113.1"), 24) &&
			ph_link_has_address(subject, 4242, ipv4("10.0.0.1"), 24) == -ENODEV && !count_changes(),
		"has it the address: yes, with another prefix no, another device's no, no such device");
	ktap_ok(!ip("-br addr") && strstr(out, "203.0.113.1/24") && strstr(out, "2001:db8::1/64"),
		"addresses of another device, and IPv6 ones, stay");
	ktap_ok(ph_link_set_address(subject, 4242, ipv4("10.0.0.1"), 24) == -ENODEV, "address: no such device");
	ktap_ok(ph_link_set_address(subject, v0, ipv4("10.0.0.1"), 33) == -EINVAL && !count_changes(),
		"address: prefix of 33 bits: EINVAL, not touched");
}

#define OURS "10.0.0.0/8 dev v0 proto 177 scope link"
#define HOLE "blackhole 10.0.0.0/8 proto 177 metric 4294967295"

static int has_only(const char *range, const char *lines)
{
	ip("route show exact %s | sed 's/ *$//; s/ linkdown//'", range);
	return !strcmp(out, lines);
}

static void test_route(void)
{
	static const struct {
		const char *name, *before;	/* routes for the range before */
		int want;
		const char *after;
	} rows[] = {
		{ "none before",
		  "true", 0, OURS "\n" },
		{ "ours through another device is moved",
		  "ip route add 10.0.0.0/8 dev v1 proto 177", 0, OURS "\n" },
		{ "ours with another metric is replaced",
		  "ip route add 10.0.0.0/8 dev v0 proto 177 metric 9", 0, OURS "\n" },
		{ "ours by way of a router is replaced",
		  "ip route add 10.0.0.0/8 via 10.0.0.9 proto 177", 0, OURS "\n" },
		{ "somebody's that is the same is kept",
		  "ip route add 10.0.0.0/8 dev v0 proto static", 0, "10.0.0.0/8 dev v0 proto static scope link\n" },
		{ "somebody's through another device is kept, EEXIST",
		  "ip route add 10.0.0.0/8 dev v1 proto static", -EEXIST,
		  "10.0.0.0/8 dev v1 proto static scope link\n" },
		{ "somebody's with another metric stays beside it",
		  "ip route add 10.0.0.0/8 dev v1 proto static metric 9", 0,
		  OURS "\n10.0.0.0/8 dev v1 proto static scope link metric 9\n" },
		{ "one in another table does not count",
		  "ip route add 10.0.0.0/8 dev v0 proto 177 table 77", 0, OURS "\n" },
		{ "one for a part of the range does not count",
		  "ip route add 10.0.0.0/9 dev v0 proto 177", 0, OURS "\n" },
	};
	struct in_addr range = ipv4("10.0.0.0");
	uint32_t v0 = index_of("v0");

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int err;

		if (shell_run(out, sizeof(out), "%s", rows[i].before))
			ktap_ok(0, "route: %s: cannot set the stage: %s", rows[i].name, out);
		err = ph_link_set_route(subject, range, 8, v0);
		ktap_ok(err == rows[i].want && has_only("10.0.0.0/8", rows[i].after), "route: %s", rows[i].name);
		count_changes();
		err = ph_link_set_route(subject, range, 8, v0);
		ktap_ok(err == rows[i].want && !count_changes() && has_only("10.0.0.0/8", rows[i].after),
			"route again: not touched: %s", rows[i].name);
		ip("route flush exact 10.0.0.0/8; ip route flush exact 10.0.0.0/9; ip route flush table 77");
	}
	ktap_ok(ph_link_set_route(subject, range, 8, 4242) == -ENODEV, "route: no such device");
	ktap_ok(ph_link_set_route(subject, ipv4("10.0.0.1"), 8, v0) == -EINVAL, "route: host bits set: EINVAL");
	ip("link set v0 down");
	ktap_ok(ph_link_set_route(subject, range, 8, v0) == -ENETDOWN, "route: device down: ENETDOWN");
	ip("link set v0 up");
}

static void test_blackhole(void)
{
	struct in_addr range = ipv4("10.0.0.0");
	uint32_t v0 = index_of("v0");

	ktap_ok(!ph_link_set_blackhole(subject, range, 8) && has_only("10.0.0.0/8", HOLE "\n"), "blackhole");
	count_changes();
	ktap_ok(!ph_link_set_blackhole(subject, range, 8) && !count_changes(), "blackhole again: not touched");
	ktap_ok(ip("route get 10.1.2.3") && strstr(out, "Invalid argument"), "without a route the blackhole swallows");
	ktap_ok(!ph_link_set_route(subject, range, 8, v0) && has_only("10.0.0.0/8", OURS "\n" HOLE "\n"),
		"the route goes before the blackhole");
	ktap_ok(!ip("route get 10.1.2.3") && strstr(out, "dev v0"), "with the route packets take it");
}

static void test_full_table(void)
{
	struct in_addr range = ipv4("10.0.0.0");
	uint32_t v0 = index_of("v0");

	if (shell_run(out, sizeof(out), "seq 0 %d | awk '{ print \"route add 5.\" int($1 / 256) \".\" $1 %% 256"
		      " \".0/24 dev v0\" }' | ip -batch -", OTHER_ROUTES - 1))
		ktap_ok(0, "cannot set the stage: %s", out);
	count_changes();
	ktap_ok(!ph_link_set_route(subject, range, 8, v0) && !ph_link_set_blackhole(subject, range, 8) &&
			!count_changes(), "both are found behind %d other routes", OTHER_ROUTES);
	ip("route flush root 5.0.0.0/8");
}


static void test_keep_only(void)
{
	static const struct {
		const char *name, *before;	/* routes beside those for the range that is kept */
		const char *after;		/* what is left of them */
	} rows[] = {
		{ "none else", "", "" },
		{ "ours for the wider range before",
		  "10.0.0.0/8 dev v0 proto 177;blackhole 10.0.0.0/8 proto 177 metric 4294967295", "" },
		{ "ours for a narrower one", "10.64.0.0/16 dev v0 proto 177;blackhole 10.64.0.0/16 proto 177 metric 9", "" },
		{ "ours for several, through another device, by way of a router",
		  "172.16.0.0/12 dev v1 proto 177;172.16.0.0/12 dev v1 proto 177 metric 9;192.168.0.0/16 via 203.0.113.9 proto 177",
		  "" },
		{ "somebody's for the wider range", "10.0.0.0/8 dev v1 proto static;blackhole 10.0.0.0/8 proto static metric 9",
		  "10.0.0.0/8 dev v1 proto static scope link\nblackhole 10.0.0.0/8 proto static metric 9\n" },
		{ "somebody's beside ours",
		  "10.0.0.0/8 dev v1 proto static metric 9;10.0.0.0/8 dev v0 proto 177",
		  "10.0.0.0/8 dev v1 proto static scope link metric 9\n" },
	};
	struct in_addr range = ipv4("10.64.0.0");
	uint32_t v0 = index_of("v0");

	ip("route flush root 10.0.0.0/8");
	if (ph_link_set_blackhole(subject, range, 12) || ph_link_set_route(subject, range, 12, v0))
		ktap_ok(0, "keep only: cannot set the stage");
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		if (shell_run(out, sizeof(out), "echo '%s' | tr ';' '\\n' | sed '/./s/^/route add /' | ip -batch -",
			      rows[i].before)) {
			ktap_ok(0, "keep only: %s: cannot set the stage: %s", rows[i].name, out);
			continue;
		}
		ktap_ok(!ph_link_keep_only_route(subject, range, 12) &&
			has_only("10.64.0.0/12", "10.64.0.0/12 dev v0 proto 177 scope link\n"
						 "blackhole 10.64.0.0/12 proto 177 metric 4294967295\n"),
			"keep only: what is for the range stays: %s", rows[i].name);
		ip("route show | grep -v -e '10\\.64\\.0\\.0/12' -e 'proto kernel' | sed 's/ *$//; s/ linkdown//'");
		ktap_ok(!strcmp(out, rows[i].after), "keep only: and of the others what is not ours: %s", rows[i].name);
		count_changes();
		ktap_ok(!ph_link_keep_only_route(subject, range, 12) && !count_changes(),
			"keep only again: not touched: %s", rows[i].name);
		ip("route flush exact 10.0.0.0/8");
	}
	ip("route add 10.9.0.0/16 dev v0 proto 177 table 77");
	ktap_ok(!ph_link_keep_only_route(subject, range, 12) && !ip("route show table 77") && strstr(out, "10.9.0.0/16"),
		"keep only: another table is not looked at");
	ip("route flush table 77; ip route flush exact 10.64.0.0/12");
}

struct seen {
	int notices, gone;
	uint32_t gone_index;
	char gone_name[16];
};

static void notice(uint32_t ifindex, const char *interface, bool gone, void *arg)
{
	struct seen *seen = arg;

	seen->notices++;
	if (!gone)
		return;
	seen->gone++;
	seen->gone_index = ifindex;
	snprintf(seen->gone_name, sizeof(seen->gone_name), "%s", interface);
}

static void test_bridge(int fd)
{
	struct seen seen = { 0 };

	if (ip("link add b0 type bridge && ip link set v1 master b0")) {
		ktap_skip("watch: a bridge's port that is taken off it is not gone", "no bridge in this kernel");
		return;
	}
	ph_link_watch_drain(fd, notice, &(struct seen){ 0 });
	ip("link set v1 nomaster");
	ktap_ok(ph_link_watch_drain(fd, notice, &seen) == seen.notices && seen.notices && !seen.gone,
		"watch: a bridge's port that is taken off it is not gone");
	ip("link delete b0");
	ph_link_watch_drain(fd, notice, &(struct seen){ 0 });
}

static void test_watch(void)
{
	struct in_addr range = ipv4("10.0.0.0");
	struct seen seen = { 0 };
	uint32_t v0 = index_of("v0");
	int fd, one = 1;

	if (ph_link_set_route(subject, range, 8, v0) || ph_link_set_blackhole(subject, range, 8) ||
	    ph_link_watch(&fd)) {
		ktap_ok(0, "watch: cannot set the stage");
		return;
	}
	ktap_ok(ph_link_watch_drain(fd, notice, &seen) == 0 && !seen.notices, "watch: nothing happened");
	test_bridge(fd);
	ip("link set v0 mtu 1400");
	ktap_ok(ph_link_watch_drain(fd, notice, &seen) == seen.notices && seen.notices && !seen.gone,
		"watch: a change");
	ktap_ok(!ph_link_delete(subject, v0), "delete");
	memset(&seen, 0, sizeof(seen));
	/* A veth pair goes together; the end that was named goes last. */
	ktap_ok(ph_link_watch_drain(fd, notice, &seen) == seen.notices && seen.gone == 2 &&
			(seen.gone_index == v0 || !strcmp(seen.gone_name, "v1")), "watch: both ends are gone");
	ktap_ok(has_only("10.0.0.0/8", HOLE "\n"), "the blackhole stays when the device goes");
	ktap_ok(ip("route get 10.1.2.3") && strstr(out, "Invalid argument"), "and swallows what was meant for it");
	ktap_ok(ph_link_delete(subject, v0) == -ENODEV, "delete again: ENODEV");

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &one, sizeof(one));
	ip("link add v0 type veth peer name v1 && for i in 1 2 3 4 5 6 7 8; do ip link set v0 mtu 140$i; done");
	ktap_ok(ph_link_watch_drain(fd, notice, &seen) == -ENOBUFS, "watch: lost notices are owned up to");
	ktap_ok(ph_link_watch_drain(fd, notice, &seen) == 0, "watch: then it goes on");
	close(fd);
	ip("link delete v0");
}

int main(void)
{
	ktap_header();
	if (geteuid() || unshare(CLONE_NEWNET)) {
		ktap_skip("link", "needs root, for a network namespace");
		return ktap_end();
	}
	if (make_pair()) {
		ktap_skip("link", "needs `ip` and veth, to set the stage");
		return ktap_end();
	}
	if (watch_changes() || ph_link_new(&subject)) {
		ktap_ok(0, "request socket");
		return ktap_end();
	}
	test_get();
	test_set_up();
	test_address();
	test_route();
	test_blackhole();
	test_full_table();
	test_keep_only();
	test_watch();
	ph_link_free(subject);
	ph_link_free(NULL);
	close(changes_fd);
	return ktap_end();
}
