/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tickets - the keys of session tickets (RFC 5077, section 4): the holder makes them, in a page (see page.h) that all
 * workers read, so that each takes the others' tickets. They are nowhere else, least of all on a disk.
 *
 * New tickets are made with the newest key. A ticket is good for as long as its key is kept, which is until
 * PH_TICKET_KEYS newer ones were made: whoever gets hold of the keys can read no session that is older.
 */
#ifndef PHALAD_TICKETS_H
#define PHALAD_TICKETS_H

#include <stdbool.h>
#include <stdint.h>

#include <phala/limits.h>

#define PH_TICKET_NAME_LEN 16

struct ph_ticket_key {
	uint8_t name[PH_TICKET_NAME_LEN];	/* at the start of each ticket */
	uint8_t mac[32];			/* HMAC-SHA-256 */
	uint8_t cipher[32];			/* AES-256 */
};

struct ph_tickets {
	struct ph_ticket_key keys[PH_TICKET_KEYS];
	uint32_t newest;			/* of keys; stored once the key is whole */
};

/*
 * All keys anew, as before the first ticket; one key anew, in place of the oldest. Return: 0, or -errno when there is no
 * randomness, and then the keys are as they were.
 */
int ph_tickets_init(struct ph_tickets *tickets);
int ph_tickets_rotate(struct ph_tickets *tickets);

/*
 * For a new ticket; for one that a client shows, by its name. A key that is going at this moment may be found half
 * overwritten: no ticket is authentic then. The copy is the caller's to clear. Return: is there one?
 */
void ph_tickets_newest(const struct ph_tickets *tickets, struct ph_ticket_key *ret_key);
bool ph_tickets_find(const struct ph_tickets *tickets, const uint8_t name[PH_TICKET_NAME_LEN],
		     struct ph_ticket_key *ret_key, bool *ret_is_newest);

#endif
