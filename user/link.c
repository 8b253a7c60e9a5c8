// SPDX-License-Identifier: Apache-2.0
#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>

#include "netlink.h"

#define WIREGUARD_KIND "wireguard"
#define ADDRESSES_MAX 1024			/* to take off one device; more is somebody adding as we remove */
#define ROUTES_MAX 1024				/* the same for routes of ours for one range */

struct ph_link {
	struct ph_netlink *netlink;
};

int ph_link_new(struct ph_link **ret_link)
{
	struct ph_link *link = calloc(1, sizeof(*link));
	int err;

	if (!link)
		return -ENOMEM;
	err = ph_netlink_new(NETLINK_ROUTE, &link->netlink);
	if (err) {
		ph_link_free(link);
		return err;
	}
	*ret_link = link;
	return 0;
}

void ph_link_free(struct ph_link *link)
{
	if (!link)
		return;
	ph_netlink_free(link->netlink);
	free(link);
}

static bool is_name(const char *interface)
{
	size_t len = strnlen(interface, IFNAMSIZ);

	return len > 0 && len < IFNAMSIZ;
}

static struct nlmsghdr *start_link(struct ph_link *link, uint16_t type, uint16_t flags, uint32_t ifindex,
				   struct ifinfomsg **ret_info)
{
	struct nlmsghdr *request = ph_netlink_start(link->netlink, type, flags);
	struct ifinfomsg *info = mnl_nlmsg_put_extra_header(request, sizeof(*info));

	info->ifi_family = AF_UNSPEC;
	info->ifi_index = ifindex;
	if (ret_info)
		*ret_info = info;
	return request;
}

static void read_kind(const struct nlattr *link_info, char *ret_kind, size_t size)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, link_info) {
		if (mnl_attr_get_type(attr) == IFLA_INFO_KIND && mnl_attr_get_payload_len(attr) <= size)
			memcpy(ret_kind, mnl_attr_get_payload(attr), mnl_attr_get_payload_len(attr));
	}
	ret_kind[size - 1] = 0;
}

static int visit_link(const struct nlmsghdr *message, void *arg)
{
	const struct ifinfomsg *header = mnl_nlmsg_get_payload(message);
	struct ph_link_info *info = arg;
	const struct nlattr *attr;
	int err = 0;

	if (message->nlmsg_type != RTM_NEWLINK || mnl_nlmsg_get_payload_len(message) < sizeof(*header))
		return -EBADMSG;
	memset(info, 0, sizeof(*info));
	info->ifindex = header->ifi_index;
	info->up = header->ifi_flags & IFF_UP;
	info->hardware = header->ifi_type;
	mnl_attr_for_each(attr, message, sizeof(*header)) {
		if (mnl_attr_get_type(attr) == IFLA_MTU)
			err = ph_netlink_copy(attr, &info->mtu, sizeof(info->mtu));
		else if (mnl_attr_get_type(attr) == IFLA_LINKINFO)
			read_kind(attr, info->kind, sizeof(info->kind));
	}
	return err;
}

/* By name, or by index when @interface is NULL. */
static int get_link(struct ph_link *link, const char *interface, uint32_t ifindex, struct ph_link_info *ret_info)
{
	struct nlmsghdr *request = start_link(link, RTM_GETLINK, 0, ifindex, NULL);
	struct ph_link_info info = { 0 };
	int err;

	if (interface)
		mnl_attr_put_strz(request, IFLA_IFNAME, interface);
	err = ph_netlink_call(link->netlink, visit_link, &info);
	if (err)
		return err;
	*ret_info = info;
	return 0;
}

int ph_link_get(struct ph_link *link, const char *interface, struct ph_link_info *ret_info)
{
	return is_name(interface) ? get_link(link, interface, 0, ret_info) : -EINVAL;
}

int ph_link_create_wireguard(struct ph_link *link, const char *interface)
{
	struct ph_link_info info;
	struct nlmsghdr *request;
	struct nlattr *nest;
	int err;

	err = ph_link_get(link, interface, &info);
	if (!err)
		return strcmp(info.kind, WIREGUARD_KIND) ? -EEXIST : 0;
	if (err != -ENODEV)
		return err;
	request = start_link(link, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, NULL);
	mnl_attr_put_strz(request, IFLA_IFNAME, interface);
	nest = mnl_attr_nest_start(request, IFLA_LINKINFO);
	mnl_attr_put_strz(request, IFLA_INFO_KIND, WIREGUARD_KIND);
	mnl_attr_nest_end(request, nest);
	err = ph_netlink_call(link->netlink, NULL, NULL);
	/* So does rtnetlink answer to a kind that neither kernel nor modules have. */
	return err == -EOPNOTSUPP ? -EPROTONOSUPPORT : err;
}

int ph_link_set_up(struct ph_link *link, uint32_t ifindex, uint32_t mtu)
{
	struct ph_link_info now;
	struct ifinfomsg *header;
	struct nlmsghdr *request;
	int err;

	err = get_link(link, NULL, ifindex, &now);
	if (err || (now.up && now.mtu == mtu))
		return err;
	request = start_link(link, RTM_NEWLINK, 0, ifindex, &header);
	header->ifi_flags = IFF_UP;
	header->ifi_change = IFF_UP;
	mnl_attr_put_u32(request, IFLA_MTU, mtu);
	return ph_netlink_call(link->netlink, NULL, NULL);
}

int ph_link_delete(struct ph_link *link, uint32_t ifindex)
{
	start_link(link, RTM_DELLINK, 0, ifindex, NULL);
	return ph_netlink_call(link->netlink, NULL, NULL);
}

struct address {
	struct in_addr local;
	struct in_addr prefix;			/* IFA_ADDRESS: the other end where there is one, else the same */
	uint8_t prefix_len;
};

/* What a dump of one device's addresses is searched for. */
struct address_search {
	uint32_t ifindex;
	struct address wanted;
	bool has_wanted;
	bool has_other;
	struct address other;			/* the first that is not wanted */
};

static void reset_addresses(void *arg)
{
	struct address_search *search = arg;

	search->has_wanted = false;
	search->has_other = false;
}

static int visit_address(const struct nlmsghdr *message, void *arg)
{
	const struct ifaddrmsg *header = mnl_nlmsg_get_payload(message);
	struct address_search *search = arg;
	struct address address = { 0 };
	const struct nlattr *attr;
	int err = 0;

	if (message->nlmsg_type != RTM_NEWADDR || mnl_nlmsg_get_payload_len(message) < sizeof(*header))
		return -EBADMSG;
	if (header->ifa_family != AF_INET || header->ifa_index != search->ifindex)
		return 0;
	address.prefix_len = header->ifa_prefixlen;
	mnl_attr_for_each(attr, message, sizeof(*header)) {
		if (mnl_attr_get_type(attr) == IFA_LOCAL)
			err = err ? err : ph_netlink_copy(attr, &address.local, sizeof(address.local));
		else if (mnl_attr_get_type(attr) == IFA_ADDRESS)
			err = err ? err : ph_netlink_copy(attr, &address.prefix, sizeof(address.prefix));
	}
	if (err)
		return err;
	if (address.local.s_addr == search->wanted.local.s_addr &&
	    address.prefix.s_addr == search->wanted.prefix.s_addr &&
	    address.prefix_len == search->wanted.prefix_len) {
		search->has_wanted = true;
	} else if (!search->has_other) {
		search->has_other = true;
		search->other = address;
	}
	return 0;
}

static struct nlmsghdr *start_address(struct ph_link *link, uint16_t type, uint16_t flags, uint32_t ifindex,
				      const struct address *address)
{
	struct nlmsghdr *request = ph_netlink_start(link->netlink, type, flags);
	struct ifaddrmsg *header = mnl_nlmsg_put_extra_header(request, sizeof(*header));

	header->ifa_family = AF_INET;
	header->ifa_index = ifindex;
	if (!address)
		return request;
	header->ifa_prefixlen = address->prefix_len;
	mnl_attr_put(request, IFA_LOCAL, sizeof(address->local), &address->local);
	mnl_attr_put(request, IFA_ADDRESS, sizeof(address->prefix), &address->prefix);
	return request;
}

static int find_addresses(struct ph_link *link, struct address_search *search)
{
	start_address(link, RTM_GETADDR, 0, search->ifindex, NULL);
	return ph_netlink_dump(link->netlink, reset_addresses, visit_address, search);
}

int ph_link_set_address(struct ph_link *link, uint32_t ifindex, struct in_addr address, uint8_t prefix_len)
{
	struct address_search search = {
		.ifindex = ifindex,
		.wanted = { .local = address, .prefix = address, .prefix_len = prefix_len },
	};
	int err;

	if (prefix_len > 32)
		return -EINVAL;
	/*
	 * Others first, looking again after each: removing one may take its secondaries along, the wanted one among
	 * them (promote_secondaries is off by default).
	 */
	for (int i = 0;; i++) {
		err = find_addresses(link, &search);
		if (err || !search.has_other)
			break;
		if (i == ADDRESSES_MAX)
			return -EBUSY;
		start_address(link, RTM_DELADDR, 0, ifindex, &search.other);
		err = ph_netlink_call(link->netlink, NULL, NULL);
		if (err && err != -EADDRNOTAVAIL)
			break;
	}
	if (err || search.has_wanted)
		return err;
	start_address(link, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, ifindex, &search.wanted);
	return ph_netlink_call(link->netlink, NULL, NULL);
}

int ph_link_has_address(struct ph_link *link, uint32_t ifindex, struct in_addr address, uint8_t prefix_len)
{
	struct address_search search = {
		.ifindex = ifindex,
		.wanted = { .local = address, .prefix = address, .prefix_len = prefix_len },
	};
	int err = find_addresses(link, &search);

	return err ? err : search.has_wanted;
}

struct route {
	struct in_addr range;
	uint8_t range_len;
	uint8_t type;				/* RTN_UNICAST or RTN_BLACKHOLE */
	uint32_t ifindex;			/* 0 for a blackhole */
	uint32_t metric;
};

/* What a dump of routes is searched for: @wanted exactly, or one of ours for any other range. */
struct route_search {
	struct route wanted;
	bool has_wanted;
	bool has_other;
	struct route other;			/* the first of them */
};

static void reset_routes(void *arg)
{
	struct route_search *search = arg;

	search->has_wanted = false;
	search->has_other = false;
}

static bool same_range(const struct route *a, const struct route *b)
{
	return a->range.s_addr == b->range.s_addr && a->range_len == b->range_len;
}

static int visit_route(const struct nlmsghdr *message, void *arg)
{
	const struct rtmsg *header = mnl_nlmsg_get_payload(message);
	struct route_search *search = arg;
	struct route route = { 0 };
	const struct nlattr *attr;
	bool simple = true;			/* no way but a device */
	uint32_t table;
	int err = 0;

	if (message->nlmsg_type != RTM_NEWROUTE || mnl_nlmsg_get_payload_len(message) < sizeof(*header))
		return -EBADMSG;
	if (header->rtm_family != AF_INET || header->rtm_tos)
		return 0;
	route.range_len = header->rtm_dst_len;
	route.type = header->rtm_type;
	table = header->rtm_table;
	mnl_attr_for_each(attr, message, sizeof(*header)) {
		switch (mnl_attr_get_type(attr)) {
		case RTA_TABLE:
			err = err ? err : ph_netlink_copy(attr, &table, sizeof(table));
			break;
		case RTA_DST:
			err = err ? err : ph_netlink_copy(attr, &route.range, sizeof(route.range));
			break;
		case RTA_OIF:
			err = err ? err : ph_netlink_copy(attr, &route.ifindex, sizeof(route.ifindex));
			break;
		case RTA_PRIORITY:
			err = err ? err : ph_netlink_copy(attr, &route.metric, sizeof(route.metric));
			break;
		case RTA_GATEWAY:
		case RTA_VIA:
		case RTA_MULTIPATH:
		case RTA_NH_ID:
			simple = false;
			break;
		}
	}
	if (err || table != RT_TABLE_MAIN)
		return err;
	if (simple && same_range(&route, &search->wanted) && route.type == search->wanted.type &&
	    route.ifindex == search->wanted.ifindex && route.metric == search->wanted.metric)
		search->has_wanted = true;
	if (header->rtm_protocol == PH_LINK_ROUTE_PROTOCOL && !same_range(&route, &search->wanted) &&
	    (route.type == RTN_UNICAST || route.type == RTN_BLACKHOLE) && !search->has_other) {
		search->has_other = true;
		search->other = route;
	}
	return 0;
}

/* The kernel filters by protocol, type and device, so that a router's full table does not come along; 0 is any. */
static int find_routes(struct ph_link *link, uint8_t protocol, struct route_search *search)
{
	struct nlmsghdr *request = ph_netlink_start(link->netlink, RTM_GETROUTE, 0);
	struct rtmsg *header = mnl_nlmsg_put_extra_header(request, sizeof(*header));

	header->rtm_family = AF_INET;
	header->rtm_protocol = protocol;
	header->rtm_type = search->wanted.type;
	if (search->wanted.ifindex)
		mnl_attr_put_u32(request, RTA_OIF, search->wanted.ifindex);
	return ph_netlink_dump(link->netlink, reset_routes, visit_route, search);
}

static bool has_route(struct ph_link *link, const struct route *wanted, int *ret_err)
{
	struct route_search search = { .wanted = *wanted };

	*ret_err = find_routes(link, 0, &search);
	return search.has_wanted;
}

static void start_route(struct ph_link *link, uint16_t type, uint16_t flags, const struct route *route)
{
	struct nlmsghdr *request = ph_netlink_start(link->netlink, type, flags);
	struct rtmsg *header = mnl_nlmsg_put_extra_header(request, sizeof(*header));

	header->rtm_family = AF_INET;
	header->rtm_dst_len = route->range_len;
	header->rtm_table = RT_TABLE_MAIN;
	header->rtm_protocol = PH_LINK_ROUTE_PROTOCOL;
	header->rtm_type = route->type;
	header->rtm_scope = type == RTM_DELROUTE ? RT_SCOPE_NOWHERE :
			    route->type == RTN_UNICAST ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
	mnl_attr_put(request, RTA_DST, sizeof(route->range), &route->range);
	if (route->ifindex)
		mnl_attr_put_u32(request, RTA_OIF, route->ifindex);
	if (route->metric)
		mnl_attr_put_u32(request, RTA_PRIORITY, route->metric);
}

/* The protocol number in the request keeps the kernel to ours; device and metric 0 stand for any. */
static int remove_routes(struct ph_link *link, const struct route *route)
{
	int err = 0;

	for (int i = 0; i < ROUTES_MAX && !err; i++) {
		start_route(link, RTM_DELROUTE, 0, route);
		err = ph_netlink_call(link->netlink, NULL, NULL);
	}
	return err == -ESRCH ? 0 : err ? err : -EBUSY;
}

int ph_link_set_route(struct ph_link *link, struct in_addr range, uint8_t range_len, uint32_t ifindex)
{
	const struct route route = { .range = range, .range_len = range_len, .type = RTN_UNICAST, .ifindex = ifindex };
	int err;

	if (has_route(link, &route, &err) || err)
		return err;
	err = remove_routes(link, &(struct route){ .range = range, .range_len = range_len, .type = RTN_UNICAST });
	if (err)
		return err;
	start_route(link, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route);
	return ph_netlink_call(link->netlink, NULL, NULL);
}

int ph_link_set_blackhole(struct ph_link *link, struct in_addr range, uint8_t range_len)
{
	const struct route route = {
		.range = range, .range_len = range_len, .type = RTN_BLACKHOLE, .metric = PH_LINK_BLACKHOLE_METRIC,
	};
	int err;

	if (has_route(link, &route, &err) || err)
		return err;
	start_route(link, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route);
	return ph_netlink_call(link->netlink, NULL, NULL);
}

int ph_link_keep_only_route(struct ph_link *link, struct in_addr range, uint8_t range_len)
{
	struct route_search search = { .wanted = { .range = range, .range_len = range_len } };

	for (int i = 0; i < ROUTES_MAX; i++) {
		int err = find_routes(link, PH_LINK_ROUTE_PROTOCOL, &search);

		if (err || !search.has_other)
			return err;
		/* By range and type: whatever device and metric it has, it is of the old range. */
		search.other.ifindex = 0;
		search.other.metric = 0;
		err = remove_routes(link, &search.other);
		if (err)
			return err;
	}
	return -EBUSY;
}

int ph_link_watch(int *ret_fd)
{
	const struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	int err;

	if (fd < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

/* Return: is it a notice? */
static bool read_notice(const struct nlmsghdr *message,
			void (*notice)(uint32_t ifindex, const char *interface, bool gone, void *arg), void *arg)
{
	const struct ifinfomsg *header = mnl_nlmsg_get_payload(message);
	const struct nlattr *attr;
	char interface[IFNAMSIZ] = "";

	if (message->nlmsg_type != RTM_NEWLINK && message->nlmsg_type != RTM_DELLINK)
		return false;
	/* A bridge's family says that a device is no longer its port, not that it is gone. */
	if (mnl_nlmsg_get_payload_len(message) < sizeof(*header) || header->ifi_family != AF_UNSPEC)
		return false;
	mnl_attr_for_each(attr, message, sizeof(*header)) {
		if (mnl_attr_get_type(attr) == IFLA_IFNAME && mnl_attr_get_payload_len(attr) <= sizeof(interface))
			memcpy(interface, mnl_attr_get_payload(attr), mnl_attr_get_payload_len(attr));
	}
	interface[sizeof(interface) - 1] = 0;
	notice(header->ifi_index, interface, message->nlmsg_type == RTM_DELLINK, arg);
	return true;
}

int ph_link_watch_drain(int fd, void (*notice)(uint32_t ifindex, const char *interface, bool gone, void *arg),
			void *arg)
{
	_Alignas(NLMSG_ALIGNTO) uint8_t buffer[8192];
	bool lost = false;
	int count = 0;

	for (;;) {
		const struct nlmsghdr *message = (const void *)buffer;
		ssize_t got = recv(fd, buffer, sizeof(buffer), MSG_TRUNC);
		int left = got;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return lost ? -ENOBUFS : count;
		if (got < 0 && errno != ENOBUFS)
			return -errno;
		if (got < 0 || (size_t)got > sizeof(buffer)) {
			lost = true;
			continue;
		}
		for (; mnl_nlmsg_ok(message, left); message = mnl_nlmsg_next(message, &left))
			count += read_notice(message, notice, arg);
	}
}
