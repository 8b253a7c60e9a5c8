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

#define PH_KEY_LEN 32				/* bytes of a Curve25519 key */
#define PH_KEY_BASE64_SIZE 45			/* the same as base64, with its closing zero */

struct ph_wg;

struct ph_wg_device {
	uint32_t ifindex;
	uint16_t listen_port;
	uint8_t private_key[PH_KEY_LEN];
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

/* Return: 0, -EPROTONOSUPPORT when this kernel has no WireGuard, or -errno. */
int ph_wg_new(struct ph_wg **ret_wg);
void ph_wg_free(struct ph_wg *wg);

int ph_wg_get_device(struct ph_wg *wg, const char *interface, struct ph_wg_device *ret_device);
int ph_wg_set_device(struct ph_wg *wg, const char *interface, const uint8_t private_key[PH_KEY_LEN],
		     uint16_t listen_port);

/* Adds the peer or changes it; its allowed prefixes become exactly address/32. Return: 0 or -errno. */
int ph_wg_set_peer(struct ph_wg *wg, const char *interface, const uint8_t public_key[PH_KEY_LEN],
		   struct in_addr address);
int ph_wg_remove_peer(struct ph_wg *wg, const char *interface, const uint8_t public_key[PH_KEY_LEN]);

/*
 * Adds, changes (to exactly address/32) @count peers in as many messages as it takes; only public_key and address of
 * each are read. For a start with thousands of CVMs.
 */
int ph_wg_set_peers(struct ph_wg *wg, const char *interface, const struct ph_wg_peer *peers, size_t count);

/* Calls @visit once per peer, however many messages the kernel's dump takes, until it returns other than 0. */
int ph_wg_each_peer(struct ph_wg *wg, const char *interface, int (*visit)(const struct ph_wg_peer *peer, void *arg),
		    void *arg);

#endif
