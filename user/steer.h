/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steer - loads the steer programs (bpf/steer.bpf.c) over the pinned maps and puts them on devices.
 *
 * What is attached stays with the device, and what is pinned with the machine, when phalad goes.
 */
#ifndef PHALAD_STEER_H
#define PHALAD_STEER_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/abi.h>

struct ph_steer_settings {
	uint16_t ports[PH_LISTEN_MAX];	/* where the gateway listens, host order; 0 is none */
	struct in_addr address;		/* the gateway's own in the tunnel; steer's are the others of its prefix */
	uint8_t prefix_len;
	uint32_t tunnel_mtu;
	uint32_t tries;			/* instances tried for one connection */
	uint64_t idle_timeout_ms;
};

struct ph_steering;

/**
 * ph_steer_load() - load the programs over the maps that ph_maps_create() pinned in @bpf_dir.
 * @tunnel_l2: the tunnel device has Ethernet headers; WireGuard's has none.
 * @error: one line for people, set on failure.
 *
 * The timer that ends flows runs from now on, with these programs' code. Nothing is attached yet.
 *
 * Return: 0 or -errno.
 */
int ph_steer_load(const char *bpf_dir, bool tunnel_l2, struct ph_steering **ret_steering, char *error,
		  size_t error_size);
/* What is attached stays attached. */
void ph_steer_free(struct ph_steering *steering);

/*
 * Takes effect at once, for new connections. Other addresses end the flows there are, and steer is to be enabled again.
 * Return: how many flows there can be; 0 if the prefix has no address to
 * spare, and then everything is relayed.
 */
uint32_t ph_steer_set(struct ph_steering *steering, const struct ph_steer_settings *settings);

/* Steer new connections or not; those there are go on. */
void ph_steer_enable(struct ph_steering *steering, bool on);

/* Put the program on an Ethernet device's, or the tunnel's, ingress, replacing one of ours. Return: 0 or -errno. */
int ph_steer_attach_nic(struct ph_steering *steering, uint32_t ifindex);
int ph_steer_attach_tunnel(struct ph_steering *steering, uint32_t ifindex);

/* Is one of ours on it? Return: 1, 0, or -errno. */
int ph_steer_is_attached(uint32_t ifindex);

/* Takes ours off, and the clsact if nothing else is on it. Return: 0, also when there was none, or -errno. */
int ph_steer_detach(uint32_t ifindex);

/*
 * End flows, with RST at both ends: one, an instance's, or all. @generation: of the flow, of the instance. Return: how
 * many, or -errno: -EBUSY when some are left, as packets of theirs were being dealt with all the time.
 */
int ph_steer_kill_flow(struct ph_steering *steering, uint32_t slot, uint32_t generation);
int ph_steer_kill_instance(struct ph_steering *steering, struct ph_ref ref);
/* To be called every few seconds: without it, flows that were idle for too long end too, but their ends are not told. */
int ph_steer_kill_idle(struct ph_steering *steering);
int ph_steer_kill_all(struct ph_steering *steering, enum ph_reason reason);

#endif
