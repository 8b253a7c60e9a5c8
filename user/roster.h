/* SPDX-License-Identifier: Apache-2.0 */
/*
 * roster - the registry's CVMs in memory, by slot and by public key, with what the last dump said of their peers; and
 * those that were removed a moment ago, whose peers are still there.
 *
 * The manager looks at every peer each second: that must not cost a query each.
 */
#ifndef PHALAD_ROSTER_H
#define PHALAD_ROSTER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "key.h"
#include "registry.h"

struct ph_roster_entry {
	struct ph_cvm cvm;			/* generation 0: nobody has this slot */
	bool present;				/* the device has the peer, with exactly this address */
	uint64_t rx_bytes, tx_bytes;
	struct sockaddr_storage endpoint;	/* ss_family 0 when it is not known */
};

struct ph_roster;
struct ph_leaving;

/* Return: 0 or -errno. */
int ph_roster_new(struct ph_roster **ret_roster);
void ph_roster_free(struct ph_roster *roster);

/* Forgets everybody but those that are leaving. */
void ph_roster_clear(struct ph_roster *roster);

/*
 * Puts @cvm into its slot. What is known of the peer stays if generation and key do.
 * Return: 0, -EINVAL for a slot or generation that there is none, -EEXIST when another slot has this key.
 */
int ph_roster_set(struct ph_roster *roster, const struct ph_cvm *cvm);
void ph_roster_remove(struct ph_roster *roster, uint32_t slot);

/*
 * A CVM was removed, and its peer stays for a while: what the CVM says to connections that were reset is answered.
 * Return: what says later, by @until_ns, how long; or NULL without memory.
 */
struct ph_leaving *ph_roster_leave(struct ph_roster *roster, const uint8_t public_key[PH_KEY_LEN]);
/* To be called once; @leaving is the roster's from then on. */
void ph_roster_leave_by(struct ph_leaving *leaving, uint64_t until_ns);

bool ph_roster_is_leaving(const struct ph_roster *roster, const uint8_t public_key[PH_KEY_LEN]);

/*
 * Forgets up to @max whose time is over by @now_ns, and calls @left for each whose key nobody has again. UINT64_MAX is the
 * end of time for all.
 */
void ph_roster_forget_left(struct ph_roster *roster, uint64_t now_ns, unsigned max,
			   void (*left)(const uint8_t public_key[PH_KEY_LEN], void *arg), void *arg);

uint32_t ph_roster_count(const struct ph_roster *roster);

/* Good until the next set, remove or clear. Return: NULL when there is none. */
struct ph_roster_entry *ph_roster_at(struct ph_roster *roster, uint32_t slot);
struct ph_roster_entry *ph_roster_find_key(struct ph_roster *roster, const uint8_t public_key[PH_KEY_LEN]);

#endif
