// SPDX-License-Identifier: Apache-2.0
#include "wg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <linux/genetlink.h>
#include <linux/if.h>
#include <linux/time_types.h>
#include <linux/wireguard.h>

#include "netlink.h"

/* What append_peer() puts into a request at most: key, flags, endpoint, keepalive and one allowed prefix, in their nests. */
#define PEER_BYTES 144
#define CALL_S 25			/* any keepalive will do: that it becomes other than 0 is what sends one */

#define NS_PER_S 1000000000ULL

struct ph_wg {
	struct ph_netlink *netlink;
};

static int visit_family(const struct nlmsghdr *message, void *arg)
{
	const struct nlattr *attr;

	mnl_attr_for_each(attr, message, sizeof(struct genlmsghdr)) {
		if (mnl_attr_get_type(attr) == CTRL_ATTR_FAMILY_ID)
			return ph_netlink_copy(attr, arg, sizeof(uint16_t));
	}
	return 0;
}

static struct nlmsghdr *start_generic(struct ph_wg *wg, uint16_t family, uint8_t command, uint8_t version)
{
	struct nlmsghdr *request = ph_netlink_start(wg->netlink, family, 0);
	struct genlmsghdr *header = mnl_nlmsg_put_extra_header(request, sizeof(*header));

	header->cmd = command;
	header->version = version;
	return request;
}

/* Asking for the family by name also loads the module that has it. */
static int find_family(struct ph_wg *wg, uint16_t *ret_family)
{
	struct nlmsghdr *request = start_generic(wg, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1);
	uint16_t family = 0;
	int err;

	mnl_attr_put_strz(request, CTRL_ATTR_FAMILY_NAME, WG_GENL_NAME);
	err = ph_netlink_call(wg->netlink, visit_family, &family);
	if (err)
		return err == -ENOENT ? -EPROTONOSUPPORT : err;
	if (!family)
		return -EBADMSG;
	*ret_family = family;
	return 0;
}

int ph_wg_new(struct ph_wg **ret_wg)
{
	struct ph_wg *wg = calloc(1, sizeof(*wg));
	uint16_t family;
	int err;

	if (!wg)
		return -ENOMEM;
	err = ph_netlink_new(NETLINK_GENERIC, &wg->netlink);
	if (!err)
		err = find_family(wg, &family);
	if (err) {
		ph_wg_free(wg);
		return err;
	}
	*ret_wg = wg;
	return 0;
}

void ph_wg_free(struct ph_wg *wg)
{
	if (!wg)
		return;
	ph_netlink_free(wg->netlink);
	free(wg);
}

/* A module that was unloaded and loaded again has another family id, so it is asked for each time. */
static int start(struct ph_wg *wg, uint8_t command, const char *interface, struct nlmsghdr **ret_request)
{
	size_t len = strnlen(interface, IFNAMSIZ);
	struct nlmsghdr *request;
	uint16_t family;
	int err;

	if (!len || len == IFNAMSIZ)
		return -ENODEV;
	err = find_family(wg, &family);
	if (err)
		return err;
	request = start_generic(wg, family, command, WG_GENL_VERSION);
	mnl_attr_put_strz(request, WGDEVICE_A_IFNAME, interface);
	*ret_request = request;
	return 0;
}

static void reset_device(void *arg)
{
	explicit_bzero(arg, sizeof(struct ph_wg_device));
}

/* Only the first message of a dump has the device's own attributes; the others have nothing to copy. */
static int visit_device(const struct nlmsghdr *message, void *arg)
{
	struct ph_wg_device *device = arg;
	const struct nlattr *attr;
	int err = 0;

	mnl_attr_for_each(attr, message, sizeof(struct genlmsghdr)) {
		switch (mnl_attr_get_type(attr)) {
		case WGDEVICE_A_IFINDEX:
			err = ph_netlink_copy(attr, &device->ifindex, sizeof(device->ifindex));
			break;
		case WGDEVICE_A_LISTEN_PORT:
			err = ph_netlink_copy(attr, &device->listen_port, sizeof(device->listen_port));
			break;
		case WGDEVICE_A_PRIVATE_KEY:
			err = ph_netlink_copy(attr, device->private_key, PH_KEY_LEN);
			break;
		case WGDEVICE_A_PUBLIC_KEY:
			err = ph_netlink_copy(attr, device->public_key, PH_KEY_LEN);
			break;
		}
		if (err)
			return err;
	}
	return 0;
}

int ph_wg_get_device(struct ph_wg *wg, const char *interface, struct ph_wg_device *ret_device)
{
	struct ph_wg_device device;
	struct nlmsghdr *request;
	int err;

	err = start(wg, WG_CMD_GET_DEVICE, interface, &request);
	if (err)
		return err;
	err = ph_netlink_dump(wg->netlink, reset_device, visit_device, &device);
	if (!err)
		*ret_device = device;
	explicit_bzero(&device, sizeof(device));
	return err;
}

int ph_wg_set_device(struct ph_wg *wg, const char *interface, const uint8_t private_key[PH_KEY_LEN],
		     uint16_t listen_port)
{
	struct nlmsghdr *request;
	int err;

	err = start(wg, WG_CMD_SET_DEVICE, interface, &request);
	if (err)
		return err;
	/* The kernel compares both with what it has, and does nothing when they are the same. */
	mnl_attr_put_u16(request, WGDEVICE_A_LISTEN_PORT, listen_port);
	mnl_attr_put(request, WGDEVICE_A_PRIVATE_KEY, PH_KEY_LEN, private_key);
	return ph_netlink_call(wg->netlink, NULL, NULL);
}

static void append_peer(struct nlmsghdr *request, const uint8_t public_key[PH_KEY_LEN], enum wgpeer_flag flags,
			const struct in_addr *address, const struct sockaddr_storage *endpoint)
{
	struct nlattr *peer = mnl_attr_nest_start(request, 0), *list, *prefix;

	mnl_attr_put(request, WGPEER_A_PUBLIC_KEY, PH_KEY_LEN, public_key);
	mnl_attr_put_u32(request, WGPEER_A_FLAGS, flags);
	if (endpoint && endpoint->ss_family) {
		mnl_attr_put(request, WGPEER_A_ENDPOINT, endpoint->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
								: sizeof(struct sockaddr_in), endpoint);
		mnl_attr_put_u16(request, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, CALL_S);
	}
	if (address) {
		list = mnl_attr_nest_start(request, WGPEER_A_ALLOWEDIPS);
		prefix = mnl_attr_nest_start(request, 0);
		mnl_attr_put_u16(request, WGALLOWEDIP_A_FAMILY, AF_INET);
		mnl_attr_put(request, WGALLOWEDIP_A_IPADDR, sizeof(*address), address);
		mnl_attr_put_u8(request, WGALLOWEDIP_A_CIDR_MASK, 32);
		mnl_attr_nest_end(request, prefix);
		mnl_attr_nest_end(request, list);
	}
	mnl_attr_nest_end(request, peer);
}

/* Keepalives are the CVMs' to send: one of ours was enough to call them. */
static void append_quiet(struct nlmsghdr *request, const uint8_t public_key[PH_KEY_LEN])
{
	struct nlattr *peer = mnl_attr_nest_start(request, 0);

	mnl_attr_put(request, WGPEER_A_PUBLIC_KEY, PH_KEY_LEN, public_key);
	mnl_attr_put_u32(request, WGPEER_A_FLAGS, WGPEER_F_UPDATE_ONLY);
	mnl_attr_put_u16(request, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, 0);
	mnl_attr_nest_end(request, peer);
}

int ph_wg_set_peer(struct ph_wg *wg, const char *interface, const uint8_t public_key[PH_KEY_LEN],
		   struct in_addr address)
{
	struct ph_wg_peer peer = { .address = address };

	memcpy(peer.public_key, public_key, PH_KEY_LEN);
	return ph_wg_set_peers(wg, interface, &peer, 1);
}

/* One message: sets as many of @peers as fit, from @from on. @ret_next: behind the last. */
static int set_some(struct ph_wg *wg, const char *interface, const struct ph_wg_peer *peers, size_t count, size_t from,
		    size_t *ret_next)
{
	struct nlmsghdr *request;
	struct nlattr *list;
	bool called = false;
	size_t i;
	int err = start(wg, WG_CMD_SET_DEVICE, interface, &request);

	if (err)
		return err;
	list = mnl_attr_nest_start(request, WGDEVICE_A_PEERS);
	for (i = from; i < count && request->nlmsg_len + PEER_BYTES <= PH_NETLINK_REQUEST_BYTES; i++) {
		append_peer(request, peers[i].public_key, WGPEER_F_REPLACE_ALLOWEDIPS, &peers[i].address,
			    &peers[i].endpoint);
		called |= peers[i].endpoint.ss_family != 0;
	}
	mnl_attr_nest_end(request, list);
	*ret_next = i;
	err = ph_netlink_call(wg->netlink, NULL, NULL);
	if (err || !called)
		return err;
	err = start(wg, WG_CMD_SET_DEVICE, interface, &request);
	if (err)
		return err;
	list = mnl_attr_nest_start(request, WGDEVICE_A_PEERS);
	for (i = from; i < *ret_next; i++) {
		if (peers[i].endpoint.ss_family)
			append_quiet(request, peers[i].public_key);
	}
	mnl_attr_nest_end(request, list);
	return ph_netlink_call(wg->netlink, NULL, NULL);
}

int ph_wg_set_peers(struct ph_wg *wg, const char *interface, const struct ph_wg_peer *peers, size_t count)
{
	int err = 0;

	for (size_t next = 0; next < count && !err;)
		err = set_some(wg, interface, peers, count, next, &next);
	return err;
}

int ph_wg_remove_peer(struct ph_wg *wg, const char *interface, const uint8_t public_key[PH_KEY_LEN])
{
	struct nlmsghdr *request;
	struct nlattr *list;
	int err;

	err = start(wg, WG_CMD_SET_DEVICE, interface, &request);
	if (err)
		return err;
	list = mnl_attr_nest_start(request, WGDEVICE_A_PEERS);
	append_peer(request, public_key, WGPEER_F_REMOVE_ME, NULL, NULL);
	mnl_attr_nest_end(request, list);
	return ph_netlink_call(wg->netlink, NULL, NULL);
}

/* Peers as a dump brings them. */
struct collection {
	struct ph_wg_peer *peers;
	size_t count;
	size_t room;
};

static void reset_collection(void *arg)
{
	struct collection *collection = arg;

	collection->count = 0;
}

/* The element for @public_key: the last one if the kernel goes on with it in another message, else a new one. */
static struct ph_wg_peer *find_element(struct collection *collection, const uint8_t public_key[PH_KEY_LEN])
{
	struct ph_wg_peer *peer = collection->count ? &collection->peers[collection->count - 1] : NULL;

	if (peer && !memcmp(peer->public_key, public_key, PH_KEY_LEN))
		return peer;
	if (collection->count == collection->room) {
		size_t room = collection->room ? collection->room * 2 : 256;
		struct ph_wg_peer *peers = reallocarray(collection->peers, room, sizeof(*peers));

		if (!peers)
			return NULL;
		collection->peers = peers;
		collection->room = room;
	}
	peer = &collection->peers[collection->count++];
	memset(peer, 0, sizeof(*peer));
	memcpy(peer->public_key, public_key, PH_KEY_LEN);
	return peer;
}

/* Counts all prefixes; keeps the address only while it is the one and a /32. */
static int read_allowed(const struct nlattr *list, struct ph_wg_peer *peer)
{
	const struct nlattr *prefix, *attr;

	mnl_attr_for_each_nested(prefix, list) {
		struct in_addr address = { INADDR_ANY };
		uint16_t family = AF_UNSPEC;
		uint8_t len = 0;
		int err = 0;

		mnl_attr_for_each_nested(attr, prefix) {
			if (mnl_attr_get_type(attr) == WGALLOWEDIP_A_FAMILY)
				err = err ? err : ph_netlink_copy(attr, &family, sizeof(family));
			else if (mnl_attr_get_type(attr) == WGALLOWEDIP_A_CIDR_MASK)
				err = err ? err : ph_netlink_copy(attr, &len, sizeof(len));
			else if (mnl_attr_get_type(attr) == WGALLOWEDIP_A_IPADDR &&
				 mnl_attr_get_payload_len(attr) == sizeof(address))
				memcpy(&address, mnl_attr_get_payload(attr), sizeof(address));
		}
		if (err)
			return err;
		peer->allowed_count++;
		if (peer->allowed_count > 1 || family != AF_INET || len != 32)
			address.s_addr = INADDR_ANY;
		peer->address = address;
	}
	return 0;
}

static int read_handshake(const struct nlattr *attr, uint64_t *ret_wall_ns)
{
	struct __kernel_timespec stamp;
	int err;

	err = ph_netlink_copy(attr, &stamp, sizeof(stamp));
	if (!err)
		*ret_wall_ns = stamp.tv_sec * NS_PER_S + stamp.tv_nsec;
	return err;
}

static int read_endpoint(const struct nlattr *attr, struct sockaddr_storage *ret_endpoint)
{
	size_t len = mnl_attr_get_payload_len(attr);

	if (len > sizeof(*ret_endpoint))
		return -EBADMSG;
	memcpy(ret_endpoint, mnl_attr_get_payload(attr), len);
	return 0;
}

static int read_attribute(const struct nlattr *attr, struct ph_wg_peer *peer)
{
	switch (mnl_attr_get_type(attr)) {
	case WGPEER_A_ENDPOINT:
		return read_endpoint(attr, &peer->endpoint);
	case WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL:
		return ph_netlink_copy(attr, &peer->keepalive_s, sizeof(peer->keepalive_s));
	case WGPEER_A_LAST_HANDSHAKE_TIME:
		return read_handshake(attr, &peer->handshake_wall_ns);
	case WGPEER_A_RX_BYTES:
		return ph_netlink_copy(attr, &peer->rx_bytes, sizeof(peer->rx_bytes));
	case WGPEER_A_TX_BYTES:
		return ph_netlink_copy(attr, &peer->tx_bytes, sizeof(peer->tx_bytes));
	case WGPEER_A_ALLOWEDIPS:
		return read_allowed(attr, peer);
	default:
		return 0;
	}
}

static int read_peer(const struct nlattr *nest, struct collection *collection)
{
	const uint8_t *public_key = NULL;
	const struct nlattr *attr;
	struct ph_wg_peer *peer;
	int err = 0;

	mnl_attr_for_each_nested(attr, nest) {
		if (mnl_attr_get_type(attr) == WGPEER_A_PUBLIC_KEY && mnl_attr_get_payload_len(attr) == PH_KEY_LEN)
			public_key = mnl_attr_get_payload(attr);
	}
	if (!public_key)
		return -EBADMSG;
	peer = find_element(collection, public_key);
	if (!peer)
		return -ENOMEM;
	mnl_attr_for_each_nested(attr, nest) {
		err = read_attribute(attr, peer);
		if (err)
			break;
	}
	return err;
}

static int visit_peers(const struct nlmsghdr *message, void *arg)
{
	const struct nlattr *list, *peer;
	int err;

	mnl_attr_for_each(list, message, sizeof(struct genlmsghdr)) {
		if (mnl_attr_get_type(list) != WGDEVICE_A_PEERS)
			continue;
		mnl_attr_for_each_nested(peer, list) {
			err = read_peer(peer, arg);
			if (err)
				return err;
		}
	}
	return 0;
}

int ph_wg_each_peer(struct ph_wg *wg, const char *interface, int (*visit)(const struct ph_wg_peer *peer, void *arg),
		    void *arg)
{
	struct collection collection = { 0 };
	struct nlmsghdr *request;
	int result;

	result = start(wg, WG_CMD_GET_DEVICE, interface, &request);
	if (!result)
		result = ph_netlink_dump(wg->netlink, reset_collection, visit_peers, &collection);
	for (size_t i = 0; i < collection.count && !result; i++)
		result = visit(&collection.peers[i], arg);
	free(collection.peers);
	return result;
}
