// SPDX-License-Identifier: Apache-2.0
/*
 * netlink: what the request helper makes of answers that are long, interrupted, refused or cut short by the visitor.
 *
 * One device with so many addresses that listing them takes several messages; a second socket changes them in the
 * middle of a dump.
 */
#include "ktap.h"
#include "shell.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/if_addr.h>
#include <linux/rtnetlink.h>

#include "netlink.h"

#define ADDRESSES 2000

static char out[4096];

struct listing {
	struct ph_netlink *changer;		/* NULL: nobody changes anything */
	int interrupt;				/* attempts that are to be interrupted */
	int stop_at;				/* what the visitor returns; 0 to go on */
	int attempts, messages, addresses, others;
};

static void add_address(struct nlmsghdr *request, uint32_t host, uint8_t prefix_len)
{
	struct ifaddrmsg *header = mnl_nlmsg_put_extra_header(request, sizeof(*header));
	uint32_t address = htonl(host);

	header->ifa_family = AF_INET;
	header->ifa_index = 1;
	header->ifa_prefixlen = prefix_len;
	mnl_attr_put_u32(request, IFA_LOCAL, address);
}

static int change(struct ph_netlink *netlink, uint16_t type, uint32_t host, uint8_t prefix_len)
{
	uint16_t flags = type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_EXCL : 0;

	add_address(ph_netlink_start(netlink, type, flags), host, prefix_len);
	return ph_netlink_call(netlink, NULL, NULL);
}

static void reset(void *arg)
{
	struct listing *listing = arg;

	listing->attempts++;
	listing->messages = 0;
	listing->addresses = 0;
	listing->others = 0;
}

static int visit(const struct nlmsghdr *message, void *arg)
{
	struct listing *listing = arg;

	if (!listing->messages++ && listing->changer && listing->attempts <= listing->interrupt) {
		if (change(listing->changer, RTM_NEWADDR, 0x0a090000, 32) ||
		    change(listing->changer, RTM_DELADDR, 0x0a090000, 32))
			return -EPROTO;
	}
	if (message->nlmsg_type == RTM_NEWADDR)
		listing->addresses++;
	else
		listing->others++;
	return listing->stop_at;
}

static int list(struct ph_netlink *netlink, struct listing *listing)
{
	struct nlmsghdr *request = ph_netlink_start(netlink, RTM_GETADDR, 0);
	struct ifaddrmsg *header = mnl_nlmsg_put_extra_header(request, sizeof(*header));

	header->ifa_family = AF_INET;
	return ph_netlink_dump(netlink, reset, visit, listing);
}

static int count(const struct nlmsghdr *message, void *arg)
{
	(void)message;
	++*(int *)arg;
	return 0;
}

static void test_dump(struct ph_netlink *netlink, struct ph_netlink *changer)
{
	struct listing listing = { 0 };

	ktap_ok(!list(netlink, &listing) && listing.attempts == 1 && listing.addresses == ADDRESSES && !listing.others,
		"a dump of %d", ADDRESSES);

	for (int times = 1; times < PH_NETLINK_DUMP_TRIES; times += PH_NETLINK_DUMP_TRIES / 2) {
		listing = (struct listing){ .changer = changer, .interrupt = times };
		ktap_ok(!list(netlink, &listing) && listing.attempts == times + 1 && listing.addresses == ADDRESSES,
			"a dump that is interrupted %d times is read again until it is whole", times);
	}
	listing = (struct listing){ .changer = changer, .interrupt = 1000 };
	ktap_ok(list(netlink, &listing) == -EINTR && listing.attempts == PH_NETLINK_DUMP_TRIES,
		"a dump that is always interrupted ends: EINTR");

	listing = (struct listing){ .stop_at = 42 };
	ktap_ok(list(netlink, &listing) == 42 && listing.messages == 1, "the visitor's answer ends the visits");
	listing = (struct listing){ 0 };
	ktap_ok(!list(netlink, &listing) && listing.addresses == ADDRESSES,
		"and the next dump does not see what was left");
}

static void test_call(struct ph_netlink *netlink)
{
	struct nlmsghdr *request;
	struct ifinfomsg *header;
	int messages = 0;

	ktap_ok(change(netlink, RTM_NEWADDR, 0x0a000000, 16) == -EEXIST, "the kernel's errno: EEXIST");
	ktap_ok(change(netlink, RTM_DELADDR, 0x0b000000, 32) == -EADDRNOTAVAIL, "the kernel's errno: EADDRNOTAVAIL");
	ktap_ok(!change(netlink, RTM_NEWADDR, 0x0b000000, 32) && !change(netlink, RTM_DELADDR, 0x0b000000, 32),
		"a change is acknowledged");

	request = ph_netlink_start(netlink, RTM_GETLINK, 0);
	header = mnl_nlmsg_put_extra_header(request, sizeof(*header));
	header->ifi_index = 1;
	ktap_ok(!ph_netlink_call(netlink, count, &messages) && messages == 1, "an answer of one message");

	request = ph_netlink_start(netlink, RTM_GETLINK, 0);
	for (size_t i = 0; i < PH_NETLINK_REQUEST_BYTES / 4; i++)
		messages += ((uint8_t *)request)[NLMSG_HDRLEN + i] != 0;
	ktap_ok(messages == 1, "nothing of a request is left in the buffer");
}

int main(void)
{
	struct ph_netlink *netlink, *changer;

	ktap_header();
	if (geteuid() || unshare(CLONE_NEWNET)) {
		ktap_skip("netlink", "needs root, for a network namespace");
		return ktap_end();
	}
	if (shell_run(out, sizeof(out), "ip link set lo up; ip addr flush dev lo; seq 0 %d | awk '{ print \"addr add"
		      " 10.0.\" int($1 / 256) \".\" $1 %% 256 \"/16 dev lo\" }' | ip -batch -", ADDRESSES - 1)) {
		ktap_ok(0, "cannot set the stage: %s", out);
		return ktap_end();
	}
	if (ph_netlink_new(NETLINK_ROUTE, &netlink) || ph_netlink_new(NETLINK_ROUTE, &changer)) {
		ktap_ok(0, "request socket");
		return ktap_end();
	}
	test_dump(netlink, changer);
	test_call(netlink);
	ph_netlink_free(netlink);
	ph_netlink_free(changer);
	ph_netlink_free(NULL);
	return ktap_end();
}
