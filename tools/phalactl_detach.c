// SPDX-License-Identifier: Apache-2.0
/*
 * detach: takes steer and the gate off every device of this network namespace. Them, and nothing of anybody else's.
 */
#include "phalactl_flow.h"

#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

#include <gate.h>
#include <steer.h>

static int detach_steer(const struct ph_ctl *ctl, uint32_t ifindex)
{
	int attached = ph_steer_is_attached(ifindex), err;

	(void)ctl;
	err = attached > 0 ? ph_steer_detach(ifindex) : attached;
	return err ? err : attached;
}

static int detach_gate(const struct ph_ctl *ctl, uint32_t ifindex)
{
	enum ph_gate_mode mode = PH_GATE_OFF;
	int err = ph_gate_attached(ctl->bpf_dir, ifindex, &mode);

	if (!err && mode != PH_GATE_OFF)
		err = ph_gate_detach(ctl->bpf_dir, ifindex);
	return err ? err : mode != PH_GATE_OFF;
}

/* @detach: 1 it was on, 0 it was not, or -errno. Return: 0 or -errno, having said what of. */
static int detach_all(const struct ph_ctl *ctl, int (*detach)(const struct ph_ctl *ctl, uint32_t ifindex),
		      struct ph_json *devices)
{
	struct if_nameindex *names = if_nameindex();
	int err = 0;

	if (!names) {
		err = -errno;
		ph_ctl_say("the network devices: %s", strerror(-err));
	}
	for (struct if_nameindex *device = names; !err && device && device->if_index; device++) {
		int was = detach(ctl, device->if_index);

		if (was == -ENODEV || was == -ENOENT)		/* it went, and took ours along */
			continue;
		err = was < 0 ? was : 0;
		if (err)
			ph_ctl_say("%s: %s%s", device->if_name, strerror(-err), geteuid() ? ": root is needed" : "");
		else if (was)
			ph_json_add_string(devices, device->if_name);
	}
	if (names)
		if_freenameindex(names);
	return err;
}

static double count_carried(const struct ph_ctl *ctl)
{
	struct ph_flows *flows = NULL;
	struct ph_json *states;
	uint64_t used;
	double count = 0;
	char error[512];

	/* Also has libbpf keep its words to itself. */
	if (!ph_flows_open(ctl->bpf_dir, &flows, error, sizeof(error)) && !ph_ctl_flow_counts(flows, &states, &used)) {
		count = ph_json_number(states, ph_ctl_flow_state(PH_FLOW_SPLICED), 0);
		ph_json_free(states);
	}
	ph_flows_free(flows);
	return count;
}

static void print_detached(const struct ph_json *json)
{
	const struct ph_json *devices = ph_json_child(json, "devices"), *gates = ph_json_child(json, "gates");
	double cut = ph_json_number(json, "cut", 0);

	if (!ph_json_count(devices))
		printf("steer was on no device of this network namespace\n");
	for (size_t i = 0; i < ph_json_count(devices); i++)
		printf("steer is off %s\n", ph_json_string_at(devices, i));
	for (size_t i = 0; i < ph_json_count(gates); i++)
		printf("the gate is off %s\n", ph_json_string_at(gates, i));
	if (cut > 0)
		printf("%.0f flow%s cut\n", cut, cut == 1 ? " was" : "s were");
	if (ph_json_bool(json, "unpinned", false))
		printf("the maps are no longer pinned\n");
}

int ph_ctl_detach(const struct ph_ctl *ctl)
{
	struct ph_json *json, *devices = ph_json_array(), *gates = ph_json_array();
	/* It holds the maps, and would go on with what nobody else can see. */
	bool manager = ph_ctl_listens(ctl);
	char error[PATH_MAX + 128];
	double carried;
	int status;

	if (manager && ctl->pins) {
		ph_json_free(devices);
		ph_json_free(gates);
		return ph_ctl_fail("phalad runs: it must be stopped before its maps can go");
	}
	carried = count_carried(ctl);
	status = detach_all(ctl, detach_steer, devices) || detach_all(ctl, detach_gate, gates) ? PH_CTL_FAILED :
												PH_CTL_DONE;
	if (!status && ctl->pins && (ph_maps_unpin(ctl->bpf_dir, error, sizeof(error)) ||
				     ph_gate_unpin(ctl->bpf_dir, error, sizeof(error))))
		status = ph_ctl_fail("%s", error);
	json = ph_json_object();
	ph_json_set_number(json, "cut", ph_json_count(devices) ? (uint64_t)carried : 0);
	ph_json_set_bool(json, "unpinned", !status && ctl->pins);
	ph_json_set(json, "devices", devices);
	ph_json_set(json, "gates", gates);
	if (ctl->json)
		ph_json_print(json, stdout);
	else
		print_detached(json);
	if (manager && (ph_json_count(devices) || ph_json_count(gates)))
		ph_ctl_say("phalad runs, and will put back what it needs");
	ph_json_free(json);
	return status;
}
