// SPDX-License-Identifier: Apache-2.0
#include "steer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "pins.h"
#include "steer.skel.h"

/*
 * Ours among the filters of a clsact: nobody else's is touched. On NICs behind the gate (1), on the tunnel device before
 * guard (2), which lets spliced packets through.
 */
#define STEER_HANDLE 0x70687374
#define STEER_NIC_PRIORITY 2
#define STEER_TUNNEL_PRIORITY 1
#define KILL_TRIES 16			/* each waits for a lock as long as a packet does */

struct ph_steering {
	struct ph_steer_bpf *skel;
	struct ph_steer *config;	/* mapped */
};

static int run_program(const struct bpf_program *program, struct __sk_buff *context)
{
	unsigned char packet[64] = { [12] = 8, [14] = 0x45 };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = packet, .data_size_in = sizeof(packet), .ctx_in = context,
		    .ctx_size_in = sizeof(*context), .repeat = 1);
	int err = bpf_prog_test_run_opts(bpf_program__fd(program), &opts);

	return err ? err : (int)opts.retval;
}

/* The keys are made once, and stay with the maps: sequence numbers go on where they were after a restart. */
static int make_secret(struct ph_steer *config)
{
	uint64_t secret[4];

	if (config->secret[0] || config->secret[1])
		return 0;
	if (getrandom(secret, sizeof(secret), 0) != sizeof(secret))
		return -EIO;
	memcpy(config->secret, secret, sizeof(secret));
	explicit_bzero(secret, sizeof(secret));
	return 0;
}

/* What to look for when the kernel refuses the programs; libbpf and the verifier each have their errors for it. */
static const char *kernel_lacks(int err)
{
	return err == -EINVAL || err == -ENOTSUP || err == -ENOENT || err == -ESRCH || err == -ENOSYS || err == -EACCES ?
	       "; Linux 6.1 (Debian 12) with CONFIG_DEBUG_INFO_BTF and CONFIG_NET_CLS_ACT has what they need" : "";
}

int ph_steer_load(const char *bpf_dir, bool tunnel_l2, struct ph_steering **ret_steering, char *error,
		  size_t error_size)
{
	struct ph_steering *steering = calloc(1, sizeof(*steering));
	struct __sk_buff context = { 0 };
	void *at;
	int err;

	if (!steering)
		return -ENOMEM;
	steering->skel = ph_steer_bpf__open();
	if (!steering->skel) {
		err = -errno;
		snprintf(error, error_size, "steer: cannot open the programs: %s", strerror(-err));
		goto fail;
	}
	steering->skel->rodata->tunnel_l2 = tunnel_l2;
	err = ph_pins_reuse(steering->skel->obj, bpf_dir, "steer", error, error_size);
	if (err)
		goto fail;
	err = ph_steer_bpf__load(steering->skel);
	if (err) {
		snprintf(error, error_size, "steer: cannot load the programs: %s%s", strerror(-err), kernel_lacks(err));
		goto fail;
	}
	at = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED,
		  bpf_map__fd(steering->skel->maps.ph_steer), 0);
	if (at == MAP_FAILED) {
		err = -errno;
		snprintf(error, error_size, "steer: mapping ph_steer: %s", strerror(-err));
		goto fail;
	}
	steering->config = at;
	err = make_secret(steering->config);
	if (!err)
		err = run_program(steering->skel->progs.steer_begin, &context);
	if (err > 0)
		err = -ENOMEM;
	if (err) {
		snprintf(error, error_size, "steer: setting the timer: %s", strerror(-err));
		goto fail;
	}
	*ret_steering = steering;
	return 0;
fail:
	ph_steer_free(steering);
	return err;
}

void ph_steer_free(struct ph_steering *steering)
{
	if (!steering)
		return;
	if (steering->config)
		munmap(steering->config, sysconf(_SC_PAGESIZE));
	ph_steer_bpf__destroy(steering->skel);
	free(steering);
}

/* The longer run of host addresses beside the gateway's own. */
static uint32_t spare_addresses(const struct ph_steer_settings *settings, uint32_t *ret_first)
{
	uint32_t own = ntohl(settings->address.s_addr), mask, first, last;

	if (settings->prefix_len < 1 || settings->prefix_len > 31)
		return 0;
	mask = ~0u << (32 - settings->prefix_len);
	first = own & mask;
	last = first | ~mask;
	if (settings->prefix_len < 31) {	/* network and broadcast (RFC 3021 has neither) */
		first++;
		last--;
	}
	if (own < first || own > last)
		return 0;
	if (last - own >= own - first) {
		*ret_first = own + 1;
		return last - own;
	}
	*ret_first = first;
	return own - first;
}

/*
 * All slots are as if never used, in a new order: in the old one the first would be those of flows that have not had their
 * rest. These give theirs back all the same; steer forgets what it finds in use.
 */
static void begin_slots(struct ph_steering *steering)
{
	int fd = bpf_map__fd(steering->skel->maps.ph_free);
	uint64_t order;
	uint32_t slot;

	if (getrandom(&order, sizeof(order), 0) == sizeof(order))
		steering->config->secret[2] = order;
	for (int i = 0; i < PH_FLOWS_MAX && !bpf_map_lookup_and_delete_elem(fd, NULL, &slot); i++)
		;
	__atomic_store_n(&steering->config->fresh, 0, __ATOMIC_RELEASE);
}

uint32_t ph_steer_set(struct ph_steering *steering, const struct ph_steer_settings *settings)
{
	struct ph_steer *config = steering->config;
	uint32_t first = 0, count = spare_addresses(settings, &first), slots = PH_FLOWS_MAX;

	while (slots && slots / PH_FLOW_PORTS > count)
		slots /= 2;
	if (slots < PH_FLOW_PORTS)
		slots = 0;
	/* A slot's address is its number's: with others, flows that are there would be lost. Who set it off puts it on. */
	if (config->source != first || config->slots != slots) {
		ph_steer_enable(steering, false);
		if (config->slots)
			ph_steer_kill_all(steering, PH_REASON_SHUTDOWN);
		config->source = first;
		config->slots = slots;
		begin_slots(steering);
	}
	config->tunnel_mtu = settings->tunnel_mtu;
	config->tries = settings->tries < PH_BIND_TRIES_MAX ? settings->tries : PH_BIND_TRIES_MAX;
	config->idle_ns = settings->idle_timeout_ms * 1000000ULL;
	for (int i = 0; i < PH_LISTEN_MAX; i++)
		config->ports[i] = htons(settings->ports[i]);
	return slots;
}

void ph_steer_enable(struct ph_steering *steering, bool on)
{
	struct ph_steer *config = steering->config;

	if (on && config->slots)
		__atomic_fetch_or(&config->flags, PH_STEER_ON, __ATOMIC_RELEASE);
	else
		__atomic_fetch_and(&config->flags, ~PH_STEER_ON, __ATOMIC_RELEASE);
}

static int query(uint32_t ifindex, uint32_t priority)
{
	LIBBPF_OPTS(bpf_tc_hook, ingress, .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = STEER_HANDLE, .priority = priority);
	int err = bpf_tc_query(&ingress, &opts);

	if (!err)
		return 1;
	return err == -ENOENT || err == -EINVAL || err == -ENODEV ? 0 : err;
}

static int detach(uint32_t ifindex, uint32_t priority)
{
	LIBBPF_OPTS(bpf_tc_hook, ingress, .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = STEER_HANDLE, .priority = priority);
	int attached = query(ifindex, priority);

	return attached > 0 ? bpf_tc_detach(&ingress, &opts) : attached;
}

static int attach(uint32_t ifindex, const struct bpf_program *program, uint32_t priority)
{
	LIBBPF_OPTS(bpf_tc_hook, both, .ifindex = (int)ifindex,
		    .attach_point = (enum bpf_tc_attach_point)(BPF_TC_INGRESS | BPF_TC_EGRESS));
	LIBBPF_OPTS(bpf_tc_hook, ingress, .ifindex = (int)ifindex, .attach_point = BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = STEER_HANDLE, .priority = priority,
		    .prog_fd = bpf_program__fd(program), .flags = BPF_TC_F_REPLACE);
	int err = bpf_tc_hook_create(&both);

	if (err && err != -EEXIST)
		return err;
	return bpf_tc_attach(&ingress, &opts);
}

int ph_steer_attach_nic(struct ph_steering *steering, uint32_t ifindex)
{
	int err = attach(ifindex, steering->skel->progs.steer_nic, STEER_NIC_PRIORITY);

	return err ? err : detach(ifindex, STEER_TUNNEL_PRIORITY);	/* where an older phalad had it */
}

/* Return: 0 or -errno. A layer-3 device has none, and that is no error. */
static int read_mac(uint32_t ifindex, uint8_t ret_mac[6])
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), err = 0;
	struct ifreq request = { 0 };

	if (fd < 0)
		return -errno;
	if (!if_indextoname(ifindex, request.ifr_name) || ioctl(fd, SIOCGIFHWADDR, &request))
		err = -errno;
	else if (request.ifr_hwaddr.sa_family == ARPHRD_ETHER)
		memcpy(ret_mac, request.ifr_hwaddr.sa_data, 6);
	close(fd);
	return err;
}

int ph_steer_attach_tunnel(struct ph_steering *steering, uint32_t ifindex)
{
	int err = read_mac(ifindex, steering->config->tunnel_mac);

	if (err)
		return err;
	return attach(ifindex, steering->skel->progs.steer_tunnel, STEER_TUNNEL_PRIORITY);
}

int ph_steer_is_attached(uint32_t ifindex)
{
	int attached = query(ifindex, STEER_NIC_PRIORITY);

	return attached ? attached : query(ifindex, STEER_TUNNEL_PRIORITY);
}

int ph_steer_detach(uint32_t ifindex)
{
	int err = detach(ifindex, STEER_NIC_PRIORITY);

	return err ? err : detach(ifindex, STEER_TUNNEL_PRIORITY);
}

static int kill_flows(struct ph_steering *steering, uint32_t what, uint32_t slot, uint32_t generation,
		      enum ph_reason reason)
{
	struct __sk_buff context = { .cb = { what, slot, generation, reason } };
	int tries = what == PH_KILL_IDLE ? 1 : KILL_TRIES;	/* that one is done again anyway */
	int ended = 0, result;

	for (int i = 0; i < tries; i++) {
		result = run_program(steering->skel->progs.steer_kill, &context);
		if (result < 0)
			return result;
		ended += result & ~PH_KILL_AGAIN;
		if (!(result & PH_KILL_AGAIN))
			return ended;
	}
	return what == PH_KILL_IDLE ? ended : -EBUSY;
}

int ph_steer_kill_flow(struct ph_steering *steering, uint32_t slot, uint32_t generation)
{
	return kill_flows(steering, PH_KILL_FLOW, slot, generation, PH_REASON_KILLED);
}

int ph_steer_kill_instance(struct ph_steering *steering, struct ph_ref ref)
{
	return kill_flows(steering, PH_KILL_INSTANCE, ref.slot, ref.generation, PH_REASON_INSTANCE_REMOVED);
}

int ph_steer_kill_idle(struct ph_steering *steering)
{
	return kill_flows(steering, PH_KILL_IDLE, 0, 0, PH_REASON_IDLE);
}

int ph_steer_kill_all(struct ph_steering *steering, enum ph_reason reason)
{
	return kill_flows(steering, PH_KILL_ALL, 0, 0, reason);
}
