// SPDX-License-Identifier: Apache-2.0
/* tickets: which keys there are, for how long, and that nobody could know one. */
#include <string.h>

#include "ktap.h"
#include "tickets.h"

static bool finds(const struct ph_tickets *tickets, const struct ph_ticket_key *key, bool newest)
{
	struct ph_ticket_key found = { 0 };
	bool is_newest = !newest;

	return ph_tickets_find(tickets, key->name, &found, &is_newest) && is_newest == newest &&
	       !memcmp(&found, key, sizeof(found));
}

int main(void)
{
	static const struct ph_ticket_key zero;
	struct ph_ticket_key key, newer, found;
	struct ph_tickets tickets = { 0 };
	bool is_newest;

	ktap_header();
	ktap_ok(!ph_tickets_init(&tickets), "keys are made");
	ktap_ok(!ph_tickets_find(&tickets, zero.name, &found, &is_newest), "none of them is still zero");
	ph_tickets_newest(&tickets, &key);
	ktap_ok(finds(&tickets, &key, true), "the newest is found by its name, and said to be the newest");
	for (int i = 1; i < PH_TICKET_KEYS; i++) {
		ph_tickets_rotate(&tickets);
		ph_tickets_newest(&tickets, &newer);
		ktap_ok(finds(&tickets, &key, false) && finds(&tickets, &newer, true) && memcmp(newer.name, key.name, sizeof(key.name)) &&
				memcmp(newer.mac, key.mac, sizeof(key.mac)) && memcmp(newer.cipher, key.cipher, sizeof(key.cipher)),
			"after %d new keys it is still there, and all of the newest is another", i);
	}
	ph_tickets_rotate(&tickets);
	ktap_ok(!ph_tickets_find(&tickets, key.name, &found, &is_newest), "after %d it is gone", PH_TICKET_KEYS);
	ktap_ok(!memmem(&tickets, sizeof(tickets), key.cipher, sizeof(key.cipher)) &&
			!memmem(&tickets, sizeof(tickets), key.mac, sizeof(key.mac)),
		"and nothing of it is left");
	return ktap_end();
}
