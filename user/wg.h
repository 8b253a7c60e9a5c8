/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wg - kernel WireGuard through generic netlink (include/uapi/linux/wireguard.h), one peer at a time.
 *
 * The device is never rewritten as a whole: a peer that is right is not touched, so its sessions live on.
 */
#ifndef PHALAD_WG_H
#define PHALAD_WG_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "key.h"

struct ph_wg;

struct ph_wg_device {
	uint32_t ifindex;
	uint16_t listen_port;
	uint8_t private_key[PH_KEY_LEN];	/* all zero while the device has none; the caller's to zero */
	uint8_t public_key[PH_KEY_LEN];
};

struct ph_wg_peer {
	uint8_t public_key[PH_KEY_LEN];
	struct in_addr address;			/* its one allowed /32; INADDR_ANY when it has none or another set */
	uint32_t allowed_count;			/* how many allowed prefixes it has; right is 1, a /32 */
	uint64_t handshake_wall_ns;		/* CLOCK_REALTIME of the last handshake; 0 is never */
	uint64_t rx_bytes, tx_bytes;
	struct sockaddr_storage endpoint;	/* ss_family 0 when there is none */
	uint16_t keepalive_s;
};

/*
 * Loads the kernel's module where there is one to load. Return: 0, -EPROTONOSUPPORT when this kernel has no WireGuard,
 * or -errno.
 */
int ph_wg_new(struct ph_wg **ret_wg);
void ph_wg_free(struct ph_wg *wg);

/* All below return -ENODEV when there is no such device, -EOPNOTSUPP when it is no WireGuard device. */

/* With thousands of peers this costs as much as ph_wg_each_peer(): the kernel sends them along. */
int ph_wg_get_device(struct ph_wg *wg, const char *interface, struct ph_wg_device *ret_device);

/*
 * A key and port that the device has already are left alone, and so are its sessions; another key ends them all. The
 * port of a device that is down is only noted: ph_link_set_up() is then who returns -EADDRINUSE.
 */
int ph_wg_set_device(struct ph_wg *wg, const char *interface, const uint8_t private_key[PH_KEY_LEN],
		     uint16_t listen_port);

/*
 * Adds the peer or changes it; its allowed prefixes become exactly address/32, its endpoint and sessions stay.
 *
 * An address belongs to one peer only: WireGuard takes it from whoever had it, without a word. The kernel ignores a
 * peer with the device's own public key, also without a word: refuse such a key before.
 *
 * Return: 0 or -errno.
 */
int ph_wg_set_peer(struct ph_wg *wg, const char *interface, const uint8_t public_key[PH_KEY_LEN],
		   struct in_addr address);
/* Return: 0 also when there was no such peer, or -errno. */
int ph_wg_remove_peer(struct ph_wg *wg, const char *interface, const uint8_t public_key[PH_KEY_LEN]);

/*
 * Adds, changes (to exactly address/32) @count peers in as many messages as it takes; only public_key, address and
 * endpoint of each are read. For a start with thousands of CVMs.
 *
 * A peer whose endpoint is given (ss_family not 0) has it from then on, and is called there at once: a CVM would else
 * notice only at its next rekeying, two minutes later, that the device knows no session any more. Without one the
 * endpoint stays as it is.
 *
 * They are applied in this order, and an address that two of them name ends with the later one. So: addresses differ
 * within one call, and then it does not matter who had them before, peers of this call included. The first error ends
 * it; peers before that one have been set.
 */
int ph_wg_set_peers(struct ph_wg *wg, const char *interface, const struct ph_wg_peer *peers, size_t count);

/*
 * Calls @visit once per peer, however many messages the kernel's dump takes, until it returns other than 0. All have
 * been read before the first call, so what one sees is one state of the device, and @visit may change peers.
 *
 * Return: 0, what @visit returned if not 0, -EINTR when the device changed under every attempt, or -errno.
 */
int ph_wg_each_peer(struct ph_wg *wg, const char *interface, int (*visit)(const struct ph_wg_peer *peer, void *arg),
		    void *arg);

#endif
