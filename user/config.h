/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config - phalad.conf, read and checked.
 *
 * The file is the operator's: trusted to mean what it says, not to be free of mistakes. Every mistake is reported with
 * file and line, and a configuration with one is not used at all.
 */
#ifndef PHALAD_CONFIG_H
#define PHALAD_CONFIG_H

#include <limits.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include <phala/limits.h>

struct ph_listen {
	struct sockaddr_storage address;
	socklen_t address_len;
};

struct ph_domain {
	char name[PH_NAME_SIZE];		/* lower case, zero padded */
	char certificate_path[PATH_MAX];	/* PEM chain, leaf first */
	char private_key_path[PATH_MAX];	/* PEM */
	uint32_t certificate_line, private_key_line;	/* where the file says so */
};

enum ph_tunnel_type {
	PH_TUNNEL_WIREGUARD,			/* a kernel WireGuard device that phalad makes and keeps */
	PH_TUNNEL_EXTERNAL,			/* an interface that is somebody else's; health is always yes */
};

struct ph_tunnel {
	enum ph_tunnel_type type;
	char interface[16];			/* IFNAMSIZ */
	char private_key_path[PATH_MAX];	/* base64, as `wg genkey` writes it; mode 0600 or stricter */
	uint32_t private_key_line;		/* where the file says so */
	uint16_t listen_port;			/* UDP, host order */
	struct in_addr address;			/* the gateway's own, inside the tunnel */
	uint8_t prefix_len;			/* the gateway's own prefix: splice and relay source addresses */
	uint32_t mtu;
	struct in_addr range;			/* CVM addresses come from here ... */
	uint8_t range_len;			/* ... less the gateway's own prefix */
	bool guard;				/* on an external interface, too */
	char endpoint[PH_NAME_SIZE + 8];	/* host:port that CVMs are told; may be empty */
};

enum ph_gate_mode {
	PH_GATE_AUTO,				/* as the device's driver has it best */
	PH_GATE_OFF,
	PH_GATE_TC,
	PH_GATE_GENERIC,			/* XDP, behind the making of skbs */
	PH_GATE_NATIVE,				/* XDP in the driver */
};

struct ph_gate_config {
	enum ph_gate_mode mode;
	uint32_t connections, hellos, handshakes;	/* for a source, a second; 0 is no limit */
	uint32_t connections_burst, hellos_burst, handshakes_burst;	/* at once; 0 is PH_GATE_BURST times as many */
	uint32_t unproven;			/* connections of all sources not heard of, a second; 0 is no limit */
	uint32_t prefix4, prefix6;		/* bits of an address that are a source */
};

struct ph_config {
	char path[PATH_MAX];
	struct ph_listen listen[PH_LISTEN_MAX];
	uint32_t listen_count;
	char nics[PH_NICS_MAX][16];		/* IFNAMSIZ; where steer looks for clients; unused ones are empty */
	struct ph_gate_config gate;
	struct ph_domain domains[PH_DOMAINS_MAX];
	uint32_t domain_count;
	struct ph_tunnel tunnel;
	uint32_t workers;			/* 1-PH_WORKERS_MAX; the default is one per core */
	char user[33];				/* whom workers run as */
	char state_dir[PATH_MAX];		/* registry.db lives here */
	char run_dir[PATH_MAX];			/* control.sock and phalad.lock live here */
	char bpf_dir[PATH_MAX];			/* pins; on a bpffs */
	uint32_t hello_timeout_ms;
	uint32_t connect_timeout_ms;
	uint32_t connect_tries;
	uint32_t idle_timeout_ms;
	uint32_t flows_per_app;			/* connections at a time, both paths; 0 is no limit */
	uint32_t flows_per_source;		/* the same of one client address */
	uint32_t healthy_for_ms;
	uint32_t manager_grace_ms;
	uint32_t address_quarantine_ms;
};

/**
 * ph_config_load() - read and check a configuration file.
 * @path: the file.
 * @ret_config: caller's to ph_config_free(); untouched on failure.
 * @error: one line for people, "file:line: what is wrong", set on failure.
 * @error_size: bytes of @error.
 *
 * Files that the configuration names (certificates, keys) are not opened here.
 *
 * Return: 0, -EINVAL for a mistake in it, or -errno from opening or reading it.
 */
int ph_config_load(const char *path, struct ph_config **ret_config, char *error, size_t error_size);
void ph_config_free(struct ph_config *config);

#endif
