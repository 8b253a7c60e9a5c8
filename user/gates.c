// SPDX-License-Identifier: Apache-2.0
/*
 * gates - where the gate is attached, and what it is told. See gates.h.
 */
#include "gates.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gate.h"
#include "link.h"
#include "lists.h"
#include "log.h"
#include "nics.h"

#define TROUBLE_SIZE 512
#define NS_PER_S 1000000000ULL
#define REST 30					/* looks, about one a second */
#define STEP_NS (2 * (int64_t)NS_PER_S)		/* of the clock, not a drift */

/* A device, by name: 0 is one that is not there, or has not got what it should have. */
struct place {
	const char *name;
	uint32_t ifindex;
	enum ph_gate_mode mode;
	uint32_t rest;				/* looks to go before a device that refused is asked again */
	char trouble[TROUBLE_SIZE];		/* the last one, so that each is logged once */
	char instead[TROUBLE_SIZE];		/* why it has another gate than its driver's default */
};

struct ph_gates {
	const struct ph_config *config;
	struct ph_link *link;
	struct ph_gating *gating;		/* NULL until it is loaded */
	bool hopeless;				/* the kernel would not have it */
	bool swept;				/* the gate is nowhere else than on these devices */
	bool lists_due;				/* not made equal to their files yet */
	bool lists_anew;			/* nor are their times right */
	int64_t clock_ns;			/* CLOCK_REALTIME less CLOCK_BOOTTIME, by which the lists' times were set */
	struct place places[PH_NICS_MAX];
	uint32_t place_count;
	struct place self;			/* trouble that is no device's */
	struct ph_gate_target *targets;		/* as they were set; PH_GATE_TARGETS_MAX of them, and as many to compare */
	uint32_t target_count;
};

int ph_gates_new(const struct ph_config *config, struct ph_gates **ret_gates)
{
	struct ph_gates *gates = calloc(1, sizeof(*gates));
	int err;

	if (!gates)
		return -ENOMEM;
	gates->config = config;
	gates->self.name = "all devices";
	for (; gates->place_count < PH_NICS_MAX && config->nics[gates->place_count][0]; gates->place_count++)
		gates->places[gates->place_count].name = config->nics[gates->place_count];
	gates->targets = calloc(2 * PH_GATE_TARGETS_MAX, sizeof(*gates->targets));
	err = gates->targets ? ph_link_new(&gates->link) : -ENOMEM;
	if (err)
		ph_gates_free(gates);
	else
		*ret_gates = gates;
	return err;
}

void ph_gates_free(struct ph_gates *gates)
{
	if (!gates)
		return;
	ph_gate_free(gates->gating);
	ph_link_free(gates->link);
	free(gates->targets);
	free(gates);
}

/* "" says that all is well again. */
static void set_trouble(struct place *place, const char *text)
{
	if (!strcmp(place->trouble, text))
		return;
	if (text[0])
		ph_log(PH_LOG_WARNING, "gate: %s: %s", place->name, text);
	snprintf(place->trouble, sizeof(place->trouble), "%s", text);
}

/* Targets */

struct collection {
	struct ph_gate_target *targets;
	uint32_t count;
	bool full;
};

static void collect(struct collection *all, const struct ph_address *address, in_port_t port_be16, uint8_t protocol)
{
	struct ph_gate_target target = { .address = *address, .port = port_be16, .protocol = protocol };

	for (uint32_t i = 0; i < all->count; i++) {
		if (!memcmp(&all->targets[i], &target, sizeof(target)))
			return;
	}
	all->full |= all->count == PH_GATE_TARGETS_MAX;
	if (!all->full)
		all->targets[all->count++] = target;
}

/* Return: whether it is an address that the gate knows. */
static bool read_address(const struct sockaddr *from, struct ph_address *ret_address, in_port_t *ret_port)
{
	const struct sockaddr_in6 *v6 = (const void *)from;
	const struct sockaddr_in *v4 = (const void *)from;

	if (from && from->sa_family == AF_INET) {
		*ret_address = (struct ph_address){ .words = { 0, 0, htonl(0xffff), v4->sin_addr.s_addr } };
		*ret_port = v4->sin_port;
		return true;
	}
	if (!from || from->sa_family != AF_INET6)
		return false;
	memcpy(ret_address, &v6->sin6_addr, sizeof(*ret_address));
	*ret_port = v6->sin6_port;
	return true;
}

static bool is_wildcard(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
		return ((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr == INADDR_ANY;
	return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

/* What may be reached at one of this machine's addresses. */
static void collect_local(const struct ph_config *config, const struct sockaddr *local, struct collection *all)
{
	struct ph_address address;
	in_port_t port;

	if (!read_address(local, &address, &port))
		return;
	for (uint32_t i = 0; i < config->listen_count; i++) {
		const struct sockaddr *listen = (const void *)&config->listen[i].address;
		struct ph_address any;

		if (listen->sa_family != local->sa_family || !is_wildcard(listen) || !read_address(listen, &any, &port))
			continue;
		collect(all, &address, port, IPPROTO_TCP);
		collect(all, &address, 0, IPPROTO_TCP);
	}
	if (config->tunnel.type != PH_TUNNEL_WIREGUARD)
		return;
	collect(all, &address, htons(config->tunnel.listen_port), IPPROTO_UDP);
	if (local->sa_family == AF_INET6)	/* behind more headers than are looked at, no port can be told */
		collect(all, &address, 0, IPPROTO_UDP);
}

/* Return: 0 or -errno. */
static int collect_all(const struct ph_config *config, struct collection *all)
{
	struct ifaddrs *locals;
	struct ph_address address;
	in_port_t port;

	if (getifaddrs(&locals))
		return -errno;
	for (uint32_t i = 0; i < config->listen_count; i++) {
		const struct sockaddr *listen = (const void *)&config->listen[i].address;

		if (is_wildcard(listen) || !read_address(listen, &address, &port))
			continue;
		collect(all, &address, port, IPPROTO_TCP);
		collect(all, &address, 0, IPPROTO_TCP);
	}
	for (struct ifaddrs *local = locals; local; local = local->ifa_next)
		collect_local(config, local->ifa_addr, all);
	freeifaddrs(locals);
	return 0;
}

static void ensure_targets(struct ph_gates *gates, char *trouble)
{
	struct collection all = { .targets = gates->targets + PH_GATE_TARGETS_MAX };
	int err = collect_all(gates->config, &all);

	if (!err && (all.count != gates->target_count ||
		     memcmp(all.targets, gates->targets, all.count * sizeof(*all.targets)))) {
		err = ph_gate_set_targets(gates->gating, all.targets, all.count);
		if (!err) {
			memcpy(gates->targets, all.targets, all.count * sizeof(*all.targets));
			gates->target_count = all.count;
		}
	}
	if (err)
		snprintf(trouble, TROUBLE_SIZE, "this machine's addresses: %s", strerror(-err));
	else if (all.full)
		snprintf(trouble, TROUBLE_SIZE, "more than %d addresses and ports: the rest is not watched",
			 PH_GATE_TARGETS_MAX);
}

/* Lists */

static uint64_t clock_now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* Files say when a prefix expires by the time of day, maps by the time since boot. */
static void look_at_clock(struct ph_gates *gates)
{
	int64_t clock_ns = (int64_t)(clock_now_ns(CLOCK_REALTIME) - clock_now_ns(CLOCK_BOOTTIME));
	int64_t step_ns = gates->clock_ns ? clock_ns - gates->clock_ns : 0;

	if (gates->clock_ns && step_ns > -STEP_NS && step_ns < STEP_NS)
		return;
	gates->clock_ns = clock_ns;
	if (!step_ns)
		return;
	gates->lists_due = gates->lists_anew = true;
	ph_log(PH_LOG_INFO, "gate: the clock was set by %+.1f s, so are the ends of what is listed", (double)step_ns / 1e9);
}

static bool is_expiry_due(const struct ph_gates *gates)
{
	struct ph_gate gate;

	if (ph_gate_read(gates->config->bpf_dir, &gate))
		return false;
	for (int kind = 0; kind < PH_LISTS; kind++) {
		if (gate.lists[kind].expires_ns && gate.lists[kind].expires_ns <= clock_now_ns(CLOCK_BOOTTIME))
			return true;
	}
	return false;
}

static void sync_lists(struct ph_gates *gates, char *trouble)
{
	struct ph_lists_place place = { gates->config->state_dir, gates->config->bpf_dir };
	int err = ph_lists_sync(&place, false, gates->lists_anew, trouble, TROUBLE_SIZE);

	gates->lists_due = err;
	gates->lists_anew = gates->lists_anew && err;
	if (err == -EAGAIN)			/* phalactl is at it */
		trouble[0] = '\0';
}

static int load(struct ph_gates *gates, char *trouble)
{
	int err = ph_gate_load(gates->config->bpf_dir, &gates->gating, trouble, TROUBLE_SIZE);

	if (err) {
		gates->hopeless = true;
		return err;
	}
	ph_gate_set(gates->gating, &gates->config->gate);
	gates->lists_due = true;
	return 0;
}

/* Devices */

static enum ph_gate_mode wanted_mode(const struct ph_gates *gates, uint32_t ifindex)
{
	char driver[32] = "";

	if (gates->config->gate.mode != PH_GATE_AUTO)
		return gates->config->gate.mode;
	ph_gate_driver(ifindex, driver);
	return ph_gate_default_mode(driver);
}

/* Where nobody asked for it, native XDP that is refused is no loss, and told in @instead. */
static int attach(struct ph_gates *gates, uint32_t ifindex, enum ph_gate_mode *mode, char *instead, char *trouble)
{
	int err = ph_gate_attach(gates->gating, ifindex, *mode, trouble, TROUBLE_SIZE);

	instead[0] = '\0';
	if (!err || gates->config->gate.mode != PH_GATE_AUTO || *mode == PH_GATE_TC)
		return err;
	snprintf(instead, TROUBLE_SIZE, "%s", trouble);
	trouble[0] = '\0';
	*mode = PH_GATE_TC;
	return ph_gate_attach(gates->gating, ifindex, *mode, trouble, TROUBLE_SIZE);
}

/* Return: 0 or -errno, with @trouble set. */
static int put(struct ph_gates *gates, struct place *place, uint32_t ifindex, char *trouble)
{
	enum ph_gate_mode is, mode = place->mode;
	int err;

	if (place->rest) {
		place->rest--;
		snprintf(trouble, TROUBLE_SIZE, "%s", place->trouble);
		return -EAGAIN;
	}
	if (place->ifindex == ifindex && !ph_gate_attached(gates->config->bpf_dir, ifindex, &is) && is == mode)
		return 0;
	mode = wanted_mode(gates, ifindex);
	err = attach(gates, ifindex, &mode, place->instead, trouble);
	if (err) {
		place->rest = REST;
		return err;
	}
	place->ifindex = ifindex;
	place->mode = mode;
	ph_log(PH_LOG_INFO, "gate: on %s (interface %u) as %s%s%s", place->name, ifindex, ph_gate_mode_word(mode),
	       place->instead[0] ? ": " : "", place->instead);
	return 0;
}

static void ensure_place(struct ph_gates *gates, struct place *place)
{
	struct ph_link_info info;
	char trouble[TROUBLE_SIZE] = "";
	int err = ph_link_get(gates->link, place->name, &info);

	if (!err && info.hardware != ARPHRD_ETHER)
		snprintf(trouble, sizeof(trouble), "not an Ethernet device: what comes in there is not looked at");
	else if (!err)
		err = put(gates, place, info.ifindex, trouble);
	if (err == -ENODEV) {
		snprintf(trouble, sizeof(trouble), "no such device; waiting for it");
		place->rest = 0;
		if (place->ifindex)
			gates->swept = false;		/* it may have another name now */
	}
	if (err < 0 && !trouble[0])
		snprintf(trouble, sizeof(trouble), "%s", strerror(-err));
	if (err < 0)
		place->ifindex = 0;
	set_trouble(place, trouble);
}

/* Gate = off: what an earlier configuration attached is taken away, once. */
static void take_off(struct ph_gates *gates)
{
	for (uint32_t i = 0; i < gates->place_count; i++) {
		struct place *place = &gates->places[i];
		uint32_t ifindex = if_nametoindex(place->name);
		enum ph_gate_mode is = PH_GATE_OFF;
		int err = 0;

		if (!ifindex || ifindex == place->ifindex)
			continue;
		if (!ph_gate_attached(gates->config->bpf_dir, ifindex, &is) && is != PH_GATE_OFF)
			err = ph_gate_detach(gates->config->bpf_dir, ifindex);
		if (!err)
			place->ifindex = ifindex;
		set_trouble(place, err ? strerror(-err) : "");
	}
}

static void take_off_other(const char *name, uint32_t ifindex, void *arg)
{
	const char *bpf_dir = ((const struct ph_gates *)arg)->config->bpf_dir;
	enum ph_gate_mode is;
	int err;

	if (ph_gate_attached(bpf_dir, ifindex, &is) || is == PH_GATE_OFF)
		return;
	err = ph_gate_detach(bpf_dir, ifindex);
	if (err)
		ph_log(PH_LOG_WARNING, "gate: %s, which is no longer a Nic: %s", name, strerror(-err));
	else
		ph_log(PH_LOG_INFO, "gate: off %s, which is no longer a Nic", name);
}

void ph_gates_ensure(struct ph_gates *gates)
{
	char trouble[TROUBLE_SIZE] = "";
	int err = 0;

	if (!gates->swept)
		ph_nics_each_other(gates->config, take_off_other, gates);
	gates->swept = true;
	if (!gates->place_count || gates->hopeless)
		return;
	if (gates->config->gate.mode == PH_GATE_OFF) {
		take_off(gates);
		return;
	}
	/* Lists before devices: from its first packet on the gate knows them. */
	if (!gates->gating)
		err = load(gates, trouble);
	look_at_clock(gates);
	if (!err && (gates->lists_due || is_expiry_due(gates)))
		sync_lists(gates, trouble);
	if (!err)
		ensure_targets(gates, trouble);
	set_trouble(&gates->self, trouble);
	for (uint32_t i = 0; !err && i < gates->place_count; i++)
		ensure_place(gates, &gates->places[i]);
}

uint32_t ph_gates_rows(const struct ph_gates *gates, struct ph_gates_row ret_rows[PH_GATES_ROWS])
{
	uint32_t count = 0;

	if (gates->self.trouble[0])
		ret_rows[count++] = (struct ph_gates_row){ .mode = PH_GATE_OFF, .trouble = gates->self.trouble };
	for (uint32_t i = 0; i < gates->place_count; i++) {
		const struct place *place = &gates->places[i];

		ret_rows[count++] = (struct ph_gates_row){
			.device = place->name,
			.mode = place->ifindex && gates->gating ? place->mode : PH_GATE_OFF,
			.trouble = place->trouble[0] ? place->trouble : place->instead,
		};
	}
	return count;
}
