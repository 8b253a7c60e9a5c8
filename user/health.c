// SPDX-License-Identifier: Apache-2.0
#include "health.h"

#include <time.h>

#define NS_PER_S 1000000000ULL

static uint64_t read_clock(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

void ph_clocks_read(struct ph_clocks *ret_clocks)
{
	ret_clocks->boot_ns = read_clock(CLOCK_BOOTTIME);
	ret_clocks->wall_ns = read_clock(CLOCK_REALTIME);
}

uint64_t ph_health_handshake_ns(uint64_t known_ns, uint64_t known_stamp_ns, uint64_t stamp_ns,
				const struct ph_clocks *now, bool first)
{
	uint64_t age_ns = 0, at_ns;

	if (!stamp_ns)
		return 0;
	if (known_ns && stamp_ns == known_stamp_ns)
		return known_ns < now->boot_ns ? known_ns : now->boot_ns;
	if (!first)
		return now->boot_ns;
	if (now->wall_ns > stamp_ns)
		age_ns = now->wall_ns - stamp_ns;
	at_ns = age_ns < now->boot_ns ? now->boot_ns - age_ns : 1;
	if (at_ns < known_ns)
		at_ns = known_ns;
	return at_ns < now->boot_ns ? at_ns : now->boot_ns;
}

struct look {
	struct ph_roster *roster;
	struct ph_maps *maps;
	const struct ph_clocks *now;
	bool first;
	bool differs;
	uint32_t present;
};

static void update_instance(const struct look *look, const struct ph_cvm *cvm, uint64_t stamp_ns)
{
	struct ph_instance instance = look->maps->instances[cvm->slot];

	if (instance.generation != cvm->generation)
		return;
	instance.handshake_ns = ph_health_handshake_ns(instance.handshake_ns, instance.handshake_wall_ns, stamp_ns,
						       look->now, look->first);
	instance.handshake_wall_ns = stamp_ns;
	ph_maps_set_instance(look->maps, cvm->slot, &instance);
}

static int visit(const struct ph_wg_peer *peer, void *arg)
{
	struct look *look = arg;
	struct ph_roster_entry *entry = ph_roster_find_key(look->roster, peer->public_key);

	if (!entry) {
		look->differs |= !ph_roster_is_leaving(look->roster, peer->public_key);
		return 0;
	}
	entry->present = peer->allowed_count == 1 && peer->address.s_addr == entry->cvm.address.s_addr;
	entry->rx_bytes = peer->rx_bytes;
	entry->tx_bytes = peer->tx_bytes;
	entry->endpoint = peer->endpoint;
	look->differs |= !entry->present;
	look->present++;
	update_instance(look, &entry->cvm, peer->handshake_wall_ns);
	return 0;
}

int ph_health_read(struct ph_device *device, struct ph_roster *roster, struct ph_maps *maps,
		   const struct ph_clocks *now, bool first, bool *ret_differs)
{
	struct look look = { .roster = roster, .maps = maps, .now = now, .first = first };
	int err = ph_device_each_peer(device, visit, &look);

	if (err)
		return err;
	*ret_differs = look.differs || look.present != ph_roster_count(roster);
	return 0;
}
