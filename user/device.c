// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if_arp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "link.h"
#include "log.h"

struct ph_device {
	const struct ph_tunnel *config;
	struct ph_guard *guard;
	struct ph_link *link;
	struct ph_wg *wg;			/* NULL for an external device */
	struct ph_device_state state;
};

__attribute__((format(printf, 4, 5))) static int fail(int err, char *error, size_t size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, size, format, args);
	va_end(args);
	return err;
}

static int no_wireguard(char *error, size_t error_size)
{
	return fail(-EPROTONOSUPPORT, error, error_size,
		    "this kernel has no WireGuard: try `modprobe wireguard`; Linux 5.6 and newer have it, Debian 12's "
		    "kernel as a module");
}

int ph_device_new(const struct ph_tunnel *config, struct ph_guard *guard, struct ph_device **ret_device, char *error,
		  size_t error_size)
{
	struct ph_device *device = calloc(1, sizeof(*device));
	int err;

	if (!device)
		return fail(-ENOMEM, error, error_size, "out of memory");
	device->config = config;
	device->guard = guard;
	err = ph_link_new(&device->link);
	if (err) {
		fail(err, error, error_size, "rtnetlink: %s", strerror(-err));
	} else if (config->type == PH_TUNNEL_WIREGUARD) {
		err = ph_wg_new(&device->wg);
		if (err == -EPROTONOSUPPORT)
			no_wireguard(error, error_size);
		else if (err)
			fail(err, error, error_size, "generic netlink: %s", strerror(-err));
	}
	if (err)
		ph_device_free(device);
	else
		*ret_device = device;
	return err;
}

void ph_device_free(struct ph_device *device)
{
	if (!device)
		return;
	ph_wg_free(device->wg);
	ph_link_free(device->link);
	free(device);
}

const struct ph_device_state *ph_device_state(const struct ph_device *device)
{
	return &device->state;
}

/* A device that somebody made, or a configuration that was changed: whoever sent to the old key or port is told here. */
static void warn_taken_over(struct ph_device *device, const uint8_t key[PH_KEY_LEN])
{
	const struct ph_tunnel *config = device->config;
	static const uint8_t none[PH_KEY_LEN];
	struct ph_wg_device was;
	bool other_key, other_port;

	if (ph_wg_get_device(device->wg, config->interface, &was))
		return;			/* setting it will say why */
	other_key = memcmp(was.private_key, key, PH_KEY_LEN);
	other_port = was.listen_port != config->listen_port;
	if (memcmp(was.private_key, none, PH_KEY_LEN) && (other_key || other_port))
		ph_log(PH_LOG_WARNING, "%s was there with %s key and UDP port %u: it is taken over, with PrivateKeyFile's "
		       "key and port %u", config->interface, other_key ? "another" : "this", was.listen_port,
		       config->listen_port);
	explicit_bzero(&was, sizeof(was));
}

static int set_key_and_port(struct ph_device *device, char *error, size_t error_size)
{
	const struct ph_tunnel *config = device->config;
	uint8_t key[PH_KEY_LEN];
	int err = ph_key_read(config->private_key_path, key, error, error_size);

	if (err)
		return err;
	err = ph_key_public(key, device->state.public_key);
	if (!err)
		warn_taken_over(device, key);
	if (!err)
		err = ph_wg_set_device(device->wg, config->interface, key, config->listen_port);
	explicit_bzero(key, sizeof(key));
	if (err == -EADDRINUSE)
		return fail(err, error, error_size, "%s: UDP port %u is in use", config->interface,
			    config->listen_port);
	if (err)
		return fail(err, error, error_size, "%s: cannot set key and port: %s", config->interface,
			    strerror(-err));
	device->state.has_key = true;
	device->state.listen_port = config->listen_port;
	return 0;
}

static int create(struct ph_device *device, struct ph_link_info *ret_info, char *error, size_t error_size)
{
	const struct ph_tunnel *config = device->config;
	int err = ph_link_create_wireguard(device->link, config->interface);

	if (!err)
		err = ph_link_get(device->link, config->interface, ret_info);
	if (!err && !strcmp(ret_info->kind, "wireguard"))
		return 0;
	if (!err || err == -EEXIST)
		return fail(-EEXIST, error, error_size, "%s exists and is no WireGuard device: not touched",
			    config->interface);
	if (err == -EPROTONOSUPPORT)
		return no_wireguard(error, error_size);
	return fail(err, error, error_size, "%s: cannot make the device: %s", config->interface, strerror(-err));
}

/*
 * The blackhole comes first and the route last, so that there is no moment at which a packet for the range leaves by
 * another way; and the guard stands before the device is up.
 */
static int configure(struct ph_device *device, char *error, size_t error_size)
{
	const struct ph_tunnel *config = device->config;
	char range[INET_ADDRSTRLEN];
	struct ph_link_info info;
	const char *what;
	int err;

	what = "blackhole route";
	err = ph_link_set_blackhole(device->link, config->range, config->range_len);
	if (err)
		goto out;
	what = "routes of another CvmRange";
	err = ph_link_keep_only_route(device->link, config->range, config->range_len);
	if (err)
		goto out;
	err = create(device, &info, error, error_size);
	if (err)
		return err;
	what = "guard";
	err = ph_guard_attach(device->guard, info.ifindex, false);
	if (err)
		goto out;
	err = set_key_and_port(device, error, error_size);
	if (err)
		return err;
	what = "address";
	err = ph_link_set_address(device->link, info.ifindex, config->address, config->prefix_len);
	if (err)
		goto out;
	what = "bringing it up";
	err = ph_link_set_up(device->link, info.ifindex, config->mtu);
	if (err)
		goto out;
	what = "route";
	err = ph_link_set_route(device->link, config->range, config->range_len, info.ifindex);
	if (err == -EEXIST) {
		inet_ntop(AF_INET, &config->range, range, sizeof(range));
		return fail(err, error, error_size, "%s: somebody else has a route for CvmRange, %s/%u: see `ip route`; the range "
			    "must not overlap a network of this machine's", config->interface, range, config->range_len);
	}
	if (err)
		goto out;
	device->state.ifindex = info.ifindex;
	device->state.up = true;
	device->state.mtu = config->mtu;
	return 0;
out:
	if (err == -EADDRINUSE)
		return fail(err, error, error_size, "%s: UDP port %u is in use", config->interface,
			    config->listen_port);
	return fail(err, error, error_size, "%s: %s: %s", config->interface, what, strerror(-err));
}

/* Whoever may take it off could do worse, and perhaps meant no harm: somebody's script that begins with a bare clsact. */
static bool has_guard(const struct ph_device *device)
{
	if (!device->guard || ph_guard_is_attached(device->guard, device->state.ifindex) > 0)
		return true;
	ph_log(PH_LOG_WARNING, "%s: somebody took the guard off: it is put back", device->config->interface);
	return false;
}

/* Without it workers' packets would have another source, which CVMs take from nobody; and the range's route went with it. */
static int has_address(const struct ph_device *device)
{
	const struct ph_tunnel *config = device->config;
	int has = ph_link_has_address(device->link, device->state.ifindex, config->address, config->prefix_len);

	if (!has)
		ph_log(PH_LOG_WARNING, "%s: somebody took its address off: it is put back", config->interface);
	return has == -ENODEV ? 0 : has;
}

int ph_device_look(struct ph_device *device)
{
	struct ph_device_state *state = &device->state;
	struct ph_link_info info = { 0 };
	int err = ph_link_get(device->link, device->config->interface, &info);

	if (err && err != -ENODEV)
		return err;
	if (err || info.ifindex != state->ifindex)
		state->ifindex = 0;
	state->up = info.up;
	state->mtu = info.mtu;
	if (!state->ifindex || !has_guard(device))
		return 0;
	if (device->config->type == PH_TUNNEL_EXTERNAL)
		return 1;
	return info.up && info.mtu == device->config->mtu ? has_address(device) : 0;
}

/* Without Guard = yes there is none, also if the configuration was another yesterday. */
static int guard_external(struct ph_device *device, const struct ph_link_info *info)
{
	int result;

	if (device->guard)
		return ph_guard_attach(device->guard, info->ifindex, info->hardware == ARPHRD_ETHER);
	result = ph_guard_detach(info->ifindex);
	if (result > 0)
		ph_log(PH_LOG_WARNING, "%s: without Guard = yes, the guard that was there is taken off",
		       device->config->interface);
	return result < 0 ? result : 0;
}

static int find_external(struct ph_device *device, char *error, size_t error_size)
{
	struct ph_device_state *state = &device->state;
	const char *interface = device->config->interface;
	struct ph_link_info info = { 0 };
	int err = ph_link_get(device->link, interface, &info);

	state->ifindex = 0;
	state->up = info.up;
	state->mtu = info.mtu;
	if (err == -ENODEV)
		return fail(err, error, error_size,
			    "%s does not exist, and with Type = external phalad does not make it", interface);
	if (err)
		return fail(err, error, error_size, "%s: %s", interface, strerror(-err));
	err = guard_external(device, &info);
	if (err)
		return fail(err, error, error_size, "%s: guard: %s", interface, strerror(-err));
	state->ifindex = info.ifindex;
	return 0;
}

int ph_device_ensure(struct ph_device *device, char *error, size_t error_size)
{
	int err;

	if (device->config->type == PH_TUNNEL_EXTERNAL)
		return find_external(device, error, error_size);
	err = configure(device, error, error_size);
	if (err)
		device->state.ifindex = 0;
	return err;
}

int ph_device_set_peer(struct ph_device *device, const uint8_t public_key[PH_KEY_LEN], struct in_addr address)
{
	return device->wg ? ph_wg_set_peer(device->wg, device->config->interface, public_key, address) : 0;
}

int ph_device_remove_peer(struct ph_device *device, const uint8_t public_key[PH_KEY_LEN])
{
	return device->wg ? ph_wg_remove_peer(device->wg, device->config->interface, public_key) : 0;
}

int ph_device_each_peer(struct ph_device *device, int (*visit)(const struct ph_wg_peer *peer, void *arg), void *arg)
{
	return device->wg ? ph_wg_each_peer(device->wg, device->config->interface, visit, arg) : 0;
}

struct comparison {
	struct ph_device *device;
	struct ph_roster *roster;
	struct ph_device_changes changes;
	bool there[PH_INSTANCES_MAX], right[PH_INSTANCES_MAX];	/* by slot */
};

/* Removes at once whom the roster does not know; ph_wg_each_peer() has read them all before. */
static int compare(const struct ph_wg_peer *peer, void *arg)
{
	struct comparison *comparison = arg;
	const struct ph_roster_entry *entry = ph_roster_find_key(comparison->roster, peer->public_key);

	if (!entry && ph_roster_is_leaving(comparison->roster, peer->public_key))
		return 0;
	if (!entry) {
		comparison->changes.removed++;
		return ph_device_remove_peer(comparison->device, peer->public_key);
	}
	comparison->there[entry->cvm.slot] = true;
	if (peer->allowed_count == 1 && peer->address.s_addr == entry->cvm.address.s_addr) {
		comparison->changes.kept++;
		comparison->right[entry->cvm.slot] = true;
	}
	return 0;
}

static int set_others(struct comparison *comparison)
{
	uint32_t count = ph_roster_count(comparison->roster), missing = 0;
	struct ph_device *device = comparison->device;
	struct ph_wg_peer *peers = calloc(count ? count : 1, sizeof(*peers));
	int err = 0;

	if (!peers)
		return -ENOMEM;
	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX; slot++) {
		const struct ph_roster_entry *entry = ph_roster_at(comparison->roster, slot);

		if (!entry || comparison->right[slot])
			continue;
		memcpy(peers[missing].public_key, entry->cvm.public_key, PH_KEY_LEN);
		if (!comparison->there[slot])
			peers[missing].endpoint = entry->endpoint;
		peers[missing++].address = entry->cvm.address;
	}
	if (missing)
		err = ph_wg_set_peers(device->wg, device->config->interface, peers, missing);
	comparison->changes.set = missing;
	free(peers);
	return err;
}

int ph_device_reconcile(struct ph_device *device, struct ph_roster *roster, struct ph_device_changes *ret_changes)
{
	struct comparison *comparison;
	int err;

	memset(ret_changes, 0, sizeof(*ret_changes));
	if (!device->wg)
		return 0;
	comparison = calloc(1, sizeof(*comparison));
	if (!comparison)
		return -ENOMEM;
	comparison->device = device;
	comparison->roster = roster;
	err = ph_device_each_peer(device, compare, comparison);
	if (!err)
		err = set_others(comparison);
	if (!err)
		*ret_changes = comparison->changes;
	free(comparison);
	return err;
}
