// SPDX-License-Identifier: Apache-2.0
/*
 * gate: loaded, adopted, refused by a kernel that lacks something, and what is told then. Needs root, for BPF and for a
 * bpffs and devices of its own in namespaces of its own.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "gate.h"
#include "ktap.h"
#include "lacking.h"
#include "shell.h"

static char top[] = "/tmp/phala-test-gate.XXXXXX";
static char error[1024];

static int load(struct ph_gating **ret_gating)
{
	*ret_gating = NULL;
	error[0] = '\0';
	return ph_gate_load(top, ret_gating, error, sizeof(error));
}

static int count_pins(void)
{
	char out[1024];

	return shell_run(out, sizeof(out), "ls %s | grep -Ec '^(ph_|gate_)'", top) > 1 ? -1 : atoi(out);
}

static int load_any(void)
{
	struct ph_gating *gating;

	return load(&gating);
}

static bool refused(int command, int err, const char *want)
{
	return lacking_refused(command, err, load_any, error, want);
}

static void test_refusals(void)
{
	ktap_ok(refused(BPF_PROG_LOAD, EINVAL, "Invalid argument; Linux 6.1 (Debian 12)"),
		"a kernel that does not know a helper: told which one does");
	ktap_ok(refused(BPF_PROG_LOAD, EACCES, "Linux 6.1 (Debian 12)"), "a verifier that refuses: likewise");
	ktap_ok(refused(BPF_MAP_CREATE, EINVAL, "Linux 6.1 (Debian 12)"), "a kernel that does not know a map: likewise");
	ktap_ok(refused(BPF_MAP_CREATE, EPERM, "Operation not permitted"), "no permission: that is told");
	ktap_ok(!count_pins(), "nothing is left behind");
}

static void test_adoption(void)
{
	struct ph_gate_config settings = { .connections = 7, .prefix4 = 24, .prefix6 = 48 };
	struct ph_gating *gating, *again;
	struct ph_gate gate, other;
	char path[128];
	int fd;

	if (!ktap_ok(!load(&gating) && count_pins() == 8, "it loads, and its eight maps are pinned")) {
		printf("# %s\n", error);
		return;
	}
	ph_gate_set(gating, &settings);
	ktap_ok(!ph_gate_read(top, &gate) && gate.budgets[PH_GATE_BUDGET_CONNECTIONS].interval_ns == 1000000000 / 7 &&
		gate.budgets[PH_GATE_BUDGET_CONNECTIONS].tolerance_ns == 1000000000 / 7 * 35ULL &&
		!gate.budgets[PH_GATE_BUDGET_HELLOS].interval_ns, "budgets, and five times as many at once");
	ktap_ok(gate.source4.words[3] == htonl(0xffffff00) && gate.source4.words[2] == UINT32_MAX &&
		gate.source6.words[1] == htonl(0xffff0000) && !gate.source6.words[2], "what a source is");
	ktap_ok(!load(&again) && !ph_gate_read(top, &other) && !memcmp(&gate, &other, sizeof(gate)),
		"another one adopts the maps as they are, its secret too");
	ph_gate_free(again);
	snprintf(path, sizeof(path), "%s/ph_gate_proven", top);
	fd = bpf_map_create(BPF_MAP_TYPE_HASH, "other", 8, 8, 4, NULL);
	ktap_ok(fd >= 0 && !unlink(path) && !bpf_obj_pin(fd, path) && !load(&again) && !ph_gate_read(top, &other) &&
		!other.budgets[PH_GATE_BUDGET_CONNECTIONS].interval_ns, "where one map is not as it should be all are made anew");
	close(fd);
	ph_gate_free(again);
	ph_gate_free(gating);
}

static void test_attach(void)
{
	enum ph_gate_mode mode = PH_GATE_NATIVE;
	struct ph_gating *gating;
	uint32_t ifindex, bridge;
	char out[256], driver[32];

	if (!ktap_ok(!load(&gating) && !shell_run(out, sizeof(out), "ip link add g0 type veth peer name g1"), "a device"))
		return;
	ifindex = if_nametoindex("g0");
	ktap_ok(!ph_gate_driver(ifindex, driver) && !strcmp(driver, "veth") && ph_gate_default_mode(driver) == PH_GATE_TC,
		"its driver, and what is best for that");
	ktap_ok(ph_gate_default_mode("ice") == PH_GATE_NATIVE && ph_gate_default_mode("virtio_net") == PH_GATE_TC &&
		ph_gate_default_mode("ena") == PH_GATE_TC && ph_gate_default_mode("") == PH_GATE_TC, "and for others");
	ktap_ok(!ph_gate_attached(top, ifindex, &mode) && mode == PH_GATE_OFF && !ph_gate_detach(top, ifindex),
		"nothing is on it, and to take that off is no error");
	for (enum ph_gate_mode wanted = PH_GATE_TC; wanted <= PH_GATE_NATIVE; wanted++)
		ktap_ok(!ph_gate_attach(gating, ifindex, wanted, error, sizeof(error)) &&
			!ph_gate_attached(top, ifindex, &mode) && mode == wanted, "attached as %s", ph_gate_mode_word(wanted));
	ktap_ok(!shell_run(out, sizeof(out), "ip link add b0 type bridge") && (bridge = if_nametoindex("b0")) &&
		!ph_gate_attach(gating, bridge, PH_GATE_GENERIC, error, sizeof(error)) &&
		ph_gate_attach(gating, bridge, PH_GATE_NATIVE, error, sizeof(error)) == -EOPNOTSUPP &&
		!ph_gate_attached(top, bridge, &mode) && mode == PH_GATE_GENERIC,
		"another way that the driver has not got: what was attached stays");
	if (!ktap_ok(ph_gate_attach(gating, 4711, PH_GATE_NATIVE, error, sizeof(error)) == -ENODEV &&
		     strstr(error, "No such device"), "a device that is not there: told"))
		printf("# %s\n", error);
	ktap_ok(!shell_run(out, sizeof(out), "ip link del g0") && !ph_gate_attached(top, ifindex, &mode) && mode == PH_GATE_OFF &&
		!ph_gate_detach(top, ifindex), "a device that went: nothing is on it");
	ktap_ok(!ph_gate_unpin(top, error, sizeof(error)) && !count_pins(), "unpinned, nothing is left");
	ktap_ok(ph_gate_read(top, &(struct ph_gate){ 0 }) == -ENOENT, "and nothing can be read");
	ph_gate_free(gating);
}

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level, (void)format, (void)args;
	return 0;
}

int main(void)
{
	ktap_header();
	libbpf_set_print(quiet);
	if (!mkdtemp(top) || unshare(CLONE_NEWNS | CLONE_NEWNET) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("bpf", top, "bpf", 0, "mode=0700")) {
		ktap_ok(0, "namespaces and a bpffs to test in (root is needed)");
		return ktap_end();
	}
	test_refusals();
	test_adoption();
	test_attach();
	umount2(top, MNT_DETACH);
	rmdir(top);
	return ktap_end();
}
