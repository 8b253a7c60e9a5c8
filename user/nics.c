// SPDX-License-Identifier: Apache-2.0
/*
 * nics - where steer is attached. See nics.h.
 */
#include "nics.h"

#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "link.h"
#include "log.h"
#include "steer.h"

#define TROUBLE_SIZE 512
#define IDLE_EVERY 5			/* looks at the devices, about one a second, to one at idle flows */

/* A device, by name: 0 is one that steer is not on. */
struct place {
	const char *name;
	uint32_t ifindex;
	char trouble[TROUBLE_SIZE];		/* the last one, so that each is logged once */
};

struct ph_nics {
	const struct ph_config *config;
	struct ph_link *link;
	struct ph_steering *steering;		/* NULL until there is a tunnel device: its kind is compiled in */
	struct place places[PH_NICS_MAX];
	uint32_t place_count;
	struct place tunnel;
	uint32_t looks;
	bool swept;				/* steer is nowhere else */
};

int ph_nics_new(const struct ph_config *config, struct ph_nics **ret_nics)
{
	struct ph_nics *nics = calloc(1, sizeof(*nics));
	int err;

	if (!nics)
		return -ENOMEM;
	nics->config = config;
	nics->tunnel.name = config->tunnel.interface;
	for (; nics->place_count < PH_NICS_MAX && config->nics[nics->place_count][0]; nics->place_count++)
		nics->places[nics->place_count].name = config->nics[nics->place_count];
	err = ph_link_new(&nics->link);
	if (err)
		ph_nics_free(nics);
	else
		*ret_nics = nics;
	return err;
}

void ph_nics_free(struct ph_nics *nics)
{
	if (!nics)
		return;
	ph_steer_free(nics->steering);
	ph_link_free(nics->link);
	free(nics);
}

/* "" says that all is well again. */
static void set_trouble(struct place *place, const char *text)
{
	if (!strcmp(place->trouble, text))
		return;
	if (text[0])
		ph_log(PH_LOG_WARNING, "kernel path: %s: %s", place->name, text);
	snprintf(place->trouble, sizeof(place->trouble), "%s", text);
}

static uint16_t port_of(const struct ph_listen *listen)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)&listen->address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&listen->address;

	return ntohs(listen->address.ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
}

static void set(struct ph_nics *nics)
{
	const struct ph_config *config = nics->config;
	struct ph_steer_settings settings = {
		.address = config->tunnel.address,
		.prefix_len = config->tunnel.prefix_len,
		.tunnel_mtu = config->tunnel.mtu,
		.tries = config->connect_tries,
		.idle_timeout_ms = config->idle_timeout_ms,
	};
	uint32_t flows;

	for (uint32_t i = 0; i < config->listen_count; i++)
		settings.ports[i] = port_of(&config->listen[i]);
	flows = ph_steer_set(nics->steering, &settings);
	if (flows)
		ph_log(PH_LOG_INFO, "kernel path: room for %u connections", flows);
	else
		set_trouble(&nics->tunnel, "the gateway's prefix has no address to spare: everything is relayed");
}

/* Once there is a tunnel device. Return: 0 or -errno. */
static int load(struct ph_nics *nics, char *trouble)
{
	struct ph_link_info info;
	int err = ph_link_get(nics->link, nics->tunnel.name, &info);

	if (err) {
		snprintf(trouble, TROUBLE_SIZE, "%s", strerror(-err));
		return err;
	}
	err = ph_steer_load(nics->config->bpf_dir, info.hardware == ARPHRD_ETHER, &nics->steering, trouble,
			    TROUBLE_SIZE);
	if (!err)
		set(nics);
	return err;
}

/* Return: 1 if steer was on it already, 0 if it is now, or -errno. */
static int put(struct ph_nics *nics, struct place *place, uint32_t ifindex)
{
	int err;

	if (place->ifindex == ifindex && ph_steer_is_attached(ifindex) > 0)
		return 1;
	err = place == &nics->tunnel ? ph_steer_attach_tunnel(nics->steering, ifindex)
				     : ph_steer_attach_nic(nics->steering, ifindex);
	if (err)
		return err;
	place->ifindex = ifindex;
	ph_log(PH_LOG_INFO, "kernel path: on %s (interface %u)", place->name, ifindex);
	return 0;
}

static void ensure_nic(struct ph_nics *nics, struct place *place)
{
	struct ph_link_info info;
	char trouble[TROUBLE_SIZE] = "";
	int err = ph_link_get(nics->link, place->name, &info);

	if (!err && info.hardware != ARPHRD_ETHER)
		snprintf(trouble, sizeof(trouble), "not an Ethernet device: what comes in there is relayed");
	else if (!err)
		err = put(nics, place, info.ifindex);
	if (err == -ENODEV)
		snprintf(trouble, sizeof(trouble), "no such device; waiting for it");
	else if (err < 0)
		snprintf(trouble, sizeof(trouble), "%s", strerror(-err));
	if (err == -ENODEV && place->ifindex)
		nics->swept = false;			/* it may have another name now */
	if (err < 0)
		place->ifindex = 0;
	set_trouble(place, trouble);
}

static bool is_configured(const struct ph_config *config, const char *name)
{
	for (int i = 0; i < PH_NICS_MAX && config->nics[i][0]; i++) {
		if (!strcmp(config->nics[i], name))
			return true;
	}
	return !strcmp(config->tunnel.interface, name);
}

void ph_nics_each_other(const struct ph_config *config, void (*visit)(const char *name, uint32_t ifindex, void *arg),
			void *arg)
{
	struct if_nameindex *devices = if_nameindex();

	for (struct if_nameindex *device = devices; device && device->if_index; device++) {
		if (!is_configured(config, device->if_name))
			visit(device->if_name, device->if_index, arg);
	}
	if (devices)
		if_freenameindex(devices);
}

static void take_off(const char *name, uint32_t ifindex, void *arg)
{
	int err;

	(void)arg;
	if (ph_steer_is_attached(ifindex) <= 0)
		return;
	err = ph_steer_detach(ifindex);
	if (err)
		ph_log(PH_LOG_WARNING, "kernel path: %s, which is no longer a Nic: %s", name, strerror(-err));
	else
		ph_log(PH_LOG_INFO, "kernel path: off %s, which is no longer a Nic", name);
}

void ph_nics_ensure(struct ph_nics *nics, uint32_t tunnel_ifindex)
{
	char trouble[TROUBLE_SIZE] = "";
	int err = 0;

	if (!nics->swept)
		ph_nics_each_other(nics->config, take_off, NULL);
	nics->swept = true;
	if (!nics->place_count)
		return;
	if (!tunnel_ifindex) {
		nics->tunnel.ifindex = 0;
		if (nics->steering)
			ph_steer_enable(nics->steering, false);
		return;
	}
	if (!nics->steering)
		err = load(nics, trouble);
	if (!err) {
		err = put(nics, &nics->tunnel, tunnel_ifindex);
		if (err < 0)
			snprintf(trouble, sizeof(trouble), "%s", strerror(-err));
	}
	if (err < 0) {
		nics->tunnel.ifindex = 0;
		set_trouble(&nics->tunnel, trouble);
		return;
	}
	for (uint32_t i = 0; i < nics->place_count; i++)
		ensure_nic(nics, &nics->places[i]);
	ph_steer_enable(nics->steering, true);
	if (nics->looks++ % IDLE_EVERY == 0)
		ph_steer_kill_idle(nics->steering);
}

bool ph_nics_has(const struct ph_nics *nics, uint32_t ifindex)
{
	for (uint32_t i = 0; i < nics->place_count; i++) {
		if (nics->places[i].ifindex == ifindex)
			return true;
	}
	return false;
}

static int ended(int result)
{
	if (result < 0)
		ph_log(PH_LOG_ERROR, "kernel path: connections cannot be ended: %s", strerror(-result));
	return result;
}

int ph_nics_end_instance(struct ph_nics *nics, struct ph_ref ref)
{
	return nics->steering ? ended(ph_steer_kill_instance(nics->steering, ref)) : 0;
}

int ph_nics_end_all(struct ph_nics *nics)
{
	return nics->steering ? ended(ph_steer_kill_all(nics->steering, PH_REASON_TUNNEL_GONE)) : 0;
}

int ph_nics_end_flow(struct ph_nics *nics, uint32_t slot, uint32_t generation)
{
	return nics->steering ? ended(ph_steer_kill_flow(nics->steering, slot, generation)) : 0;
}
