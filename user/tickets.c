// SPDX-License-Identifier: Apache-2.0
#include "tickets.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

int ph_tickets_rotate(struct ph_tickets *tickets)
{
	uint32_t place = (tickets->newest + 1) % PH_TICKET_KEYS;
	struct ph_ticket_key key;

	if (getrandom(&key, sizeof(key), 0) != sizeof(key))
		return errno ? -errno : -EIO;
	tickets->keys[place] = key;
	__atomic_store_n(&tickets->newest, place, __ATOMIC_RELEASE);
	explicit_bzero(&key, sizeof(key));
	return 0;
}

/* A slot without a key would be one that everybody knows. */
int ph_tickets_init(struct ph_tickets *tickets)
{
	int err = 0;

	for (int i = 0; !err && i < PH_TICKET_KEYS; i++)
		err = ph_tickets_rotate(tickets);
	return err;
}

void ph_tickets_newest(const struct ph_tickets *tickets, struct ph_ticket_key *ret_key)
{
	*ret_key = tickets->keys[__atomic_load_n(&tickets->newest, __ATOMIC_ACQUIRE) % PH_TICKET_KEYS];
}

bool ph_tickets_find(const struct ph_tickets *tickets, const uint8_t name[PH_TICKET_NAME_LEN],
		     struct ph_ticket_key *ret_key, bool *ret_is_newest)
{
	uint32_t newest = __atomic_load_n(&tickets->newest, __ATOMIC_ACQUIRE);

	for (uint32_t i = 0; i < PH_TICKET_KEYS; i++) {
		if (memcmp(tickets->keys[i].name, name, PH_TICKET_NAME_LEN))
			continue;
		*ret_key = tickets->keys[i];
		*ret_is_newest = i == newest;
		return true;
	}
	return false;
}
