// SPDX-License-Identifier: Apache-2.0
/*
 * detach: takes steer off every device of this network namespace. It, and nothing of anybody else's.
 */
#include "phalactl_flow.h"

#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

#include <steer.h>

/* Return: 0 or -errno, having said what of. */
static int detach_all(struct ph_json *devices)
{
	struct if_nameindex *names = if_nameindex();
	int err = 0;

	if (!names) {
		err = -errno;
		ph_ctl_say("the network devices: %s", strerror(-err));
	}
	for (struct if_nameindex *device = names; !err && device && device->if_index; device++) {
		int attached = ph_steer_is_attached(device->if_index);

		err = attached < 0 ? attached : attached ? ph_steer_detach(device->if_index) : 0;
		if (err == -ENODEV || err == -ENOENT)		/* it went, and took steer along */
			err = 0;
		else if (err)
			ph_ctl_say("%s: %s%s", device->if_name, strerror(-err), geteuid() ? ": root is needed" : "");
		else if (attached > 0)
			ph_json_add_string(devices, device->if_name);
	}
	if (names)
		if_freenameindex(names);
	return err;
}

/* Does a manager write its clock? It holds the maps, and would go on with what nobody else can see. */
static bool manager_lives(const struct ph_maps *maps)
{
	return maps && ph_ctl_age_s(ph_ctl_boot_now_ns(), maps->gateway->health_now_ns) <= PH_CTL_LATE_S;
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
	const struct ph_json *devices = ph_json_child(json, "devices");
	double cut = ph_json_number(json, "cut", 0);

	if (!ph_json_count(devices))
		printf("steer was on no device of this network namespace\n");
	for (size_t i = 0; i < ph_json_count(devices); i++)
		printf("steer is off %s\n", ph_json_string_at(devices, i));
	if (cut > 0)
		printf("%.0f flow%s cut\n", cut, cut == 1 ? " was" : "s were");
	if (ph_json_bool(json, "unpinned", false))
		printf("the maps are no longer pinned\n");
}

int ph_ctl_detach(const struct ph_ctl *ctl)
{
	struct ph_json *json, *devices = ph_json_array();
	struct ph_maps *maps = NULL;
	char error[PATH_MAX + 128];
	double carried;
	bool manager;
	int status;

	ph_maps_open(ctl->bpf_dir, -1, &maps, error, sizeof(error));
	manager = manager_lives(maps);
	ph_maps_free(maps);
	if (manager && ctl->pins) {
		ph_json_free(devices);
		return ph_ctl_fail("phalad runs: it must be stopped before its maps can go");
	}
	carried = count_carried(ctl);
	status = detach_all(devices) ? PH_CTL_FAILED : PH_CTL_DONE;
	if (!status && ctl->pins && ph_maps_unpin(ctl->bpf_dir, error, sizeof(error)))
		status = ph_ctl_fail("%s", error);
	json = ph_json_object();
	ph_json_set_number(json, "cut", ph_json_count(devices) ? (uint64_t)carried : 0);
	ph_json_set_bool(json, "unpinned", !status && ctl->pins);
	ph_json_set(json, "devices", devices);
	if (ctl->json)
		ph_json_print(json, stdout);
	else
		print_detached(json);
	if (manager && ph_json_count(devices))
		ph_ctl_say("phalad runs, and will put it back");
	ph_json_free(json);
	return status;
}
