// SPDX-License-Identifier: Apache-2.0
#include "keeper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gate.h"
#include "log.h"
#include "reconcile.h"
#include "value.h"
#include "version.h"

#define NS_PER_MS 1000000ULL
#define NS_PER_S 1000000000ULL
#define SEEN_EVERY_NS (60 * NS_PER_S)
#define SEEN_PER_TICK 4096			/* rows in one transaction, so that a tick does not take long */
#define PEER_STAYS_NS (2 * NS_PER_S)		/* a CVM that is reset has a round trip to protest, and to be told again */
#define LEFT_PER_TICK 256			/* peers removed in one: the kernel waits for its CPUs at each */
#define LEFT_AT_END 1024
#define STALE_MAX 64				/* of so many instances flows are ended by a walk each; others' at their next packet */

/* Logs @text unless it was the last thing logged here; "" says that all is well again. */
static void set_trouble(struct ph_keeper *keeper, const char *text)
{
	if (!strcmp(keeper->trouble, text))
		return;
	if (text[0])
		ph_log(PH_LOG_ERROR, "%s", text);
	else
		ph_log(PH_LOG_INFO, "mended: %s", keeper->trouble);
	snprintf(keeper->trouble, sizeof(keeper->trouble), "%s", text);
}

static void end_all(struct ph_keeper *keeper)
{
	struct ph_message message = { .type = PH_MESSAGE_END_ALL };
	int err = ph_fanout_send(keeper->fanout, &message, NULL, 0, NULL, NULL, NULL, NULL);

	ph_nics_end_all(keeper->nics);
	if (err)
		ph_log(PH_LOG_ERROR, "cannot tell workers to end their connections: %s", strerror(-err));
}

static void change_device(struct ph_keeper *keeper, uint32_t was, uint32_t now)
{
	const char *interface = keeper->config->tunnel.interface;
	char name[IF_NAMESIZE];

	__atomic_store_n(&keeper->maps->gateway->tunnel_ifindex, now, __ATOMIC_RELEASE);
	if (was) {
		/* It may be there, and the configuration be another than at the last start. */
		ph_log(PH_LOG_WARNING, "%s: interface %u is %s, its connections end", interface, was,
		       if_indextoname(was, name) ? "the tunnel no more" : "gone");
		end_all(keeper);
	}
	if (now)
		ph_log(PH_LOG_INFO, "%s: interface %u is in use", interface, now);
}

/* The device's index into ph_gateway, and steer onto it. Connections over a device that is no more are ended. */
static void publish_device(struct ph_keeper *keeper)
{
	uint32_t was = keeper->maps->gateway->tunnel_ifindex, now = ph_device_state(keeper->device)->ifindex;

	if (was != now)
		change_device(keeper, was, now);
	ph_nics_ensure(keeper->nics, now);
}

static void publish_settings(struct ph_keeper *keeper)
{
	const struct ph_config *config = keeper->config;
	struct ph_gateway *gateway = keeper->maps->gateway;

	gateway->flags = config->tunnel.type == PH_TUNNEL_EXTERNAL ? PH_GATEWAY_EXTERNAL : 0;
	gateway->healthy_for_ns = config->healthy_for_ms * NS_PER_MS;
	gateway->manager_grace_ns = config->manager_grace_ms * NS_PER_MS;
	gateway->workers = config->workers;
	gateway->app_limit = config->flows_per_app;
	gateway->source_limit = config->flows_per_source;
}

static int reconcile_peers(struct ph_keeper *keeper, char *error, size_t error_size)
{
	struct ph_device_changes changes;
	int err = ph_device_reconcile(keeper->device, keeper->roster, &changes);

	if (err)
		snprintf(error, error_size, "%s: peers: %s", keeper->config->tunnel.interface, strerror(-err));
	else if (changes.set || changes.removed)
		ph_log(PH_LOG_INFO, "peers: %u kept, %u set, %u removed", changes.kept, changes.set, changes.removed);
	return err;
}

static int configure_device(struct ph_keeper *keeper, char *error, size_t error_size)
{
	int err = ph_device_ensure(keeper->device, error, error_size);

	if (!err)
		err = reconcile_peers(keeper, error, error_size);
	publish_device(keeper);
	return err;
}

/*
 * Looks at the device, and where it is not as it should be makes it so. Connections over one that is gone end first:
 * none of them is of the device that follows.
 */
static int ensure_device(struct ph_keeper *keeper, char *error, size_t error_size)
{
	int state = ph_device_look(keeper->device);

	if (state > 0)
		return 0;
	publish_device(keeper);
	if (!state)
		return configure_device(keeper, error, error_size);
	snprintf(error, error_size, "%s: %s", keeper->config->tunnel.interface, strerror(-state));
	return state;
}

/* Reads all peers, and sets right what somebody else did to them. */
static int read_health(struct ph_keeper *keeper, char *error, size_t error_size)
{
	struct ph_clocks now;
	bool differs = false;
	int err;

	ph_clocks_read(&now);
	err = ph_health_read(keeper->device, keeper->roster, keeper->maps, &now, !keeper->looked, &differs);
	if (err) {
		snprintf(error, error_size, "%s: peers: %s", keeper->config->tunnel.interface, strerror(-err));
		return err;
	}
	keeper->looked = true;
	__atomic_store_n(&keeper->maps->gateway->health_now_ns, now.boot_ns, __ATOMIC_RELEASE);
	return differs ? reconcile_peers(keeper, error, error_size) : 0;
}

struct stale {
	struct ph_keeper *keeper;
	uint32_t count;
};

static void end_instance(struct ph_ref ref, void *arg)
{
	struct stale *stale = arg;

	if (stale->count++ < STALE_MAX)
		ph_nics_end_instance(stale->keeper->nics, ref);
}

/* Also where the maps were right: a manager may have died between them and its message. */
static int end_stale(struct ph_keeper *keeper)
{
	struct ph_message message = { .type = PH_MESSAGE_END_STALE };

	return ph_fanout_send(keeper->fanout, &message, NULL, 0, NULL, NULL, NULL, NULL);
}

static int reconcile_maps(struct ph_keeper *keeper, char *error, size_t error_size)
{
	struct stale stale = { .keeper = keeper };
	struct ph_reconciled done;
	int err;

	err = ph_reconcile_all(keeper->registry, keeper->roster, keeper->maps, end_instance, &stale, &done);
	if (!err)
		err = end_stale(keeper);
	if (!err)
		err = ph_reconcile_domains(keeper->config, keeper->maps);
	if (err) {
		snprintf(error, error_size, "the maps cannot be made equal to the registry: %s", strerror(-err));
		return err;
	}
	keeper->apps = done.apps;
	keeper->mend_maps = false;
	if (done.changed)
		ph_log(PH_LOG_INFO, "maps: %u ids and instances were missing or stale", done.changed);
	return 0;
}

static int open_registry(struct ph_keeper *keeper, char *error, size_t error_size)
{
	const struct ph_config *config = keeper->config;
	char path[PATH_MAX + 16];
	struct stat status;
	struct ph_registry_options options = {
		.path = path,
		.range = config->tunnel.range,
		.range_len = config->tunnel.range_len,
		.gateway = { config->tunnel.address.s_addr & ph_value_netmask(config->tunnel.prefix_len) },
		.gateway_len = config->tunnel.prefix_len,
		.quarantine_ms = config->address_quarantine_ms,
	};

	if ((mkdir(config->state_dir, 0700) && errno != EEXIST) || stat(config->state_dir, &status)) {
		int err = -errno;

		snprintf(error, error_size, "%s: %s", config->state_dir, strerror(-err));
		return err;
	}
	if (status.st_mode & S_IWOTH) {
		snprintf(error, error_size, "%s: mode %04o lets everybody replace the registry: phalad wants 0700",
			 config->state_dir, status.st_mode & 07777);
		return -EPERM;
	}
	snprintf(path, sizeof(path), "%s/registry.db", config->state_dir);
	return ph_registry_open(&options, &keeper->registry, error, error_size);
}

/* Workers' sockets are known by their user. */
static int load_guard(struct ph_keeper *keeper, char *error, size_t error_size)
{
	const struct passwd *who = getpwnam(keeper->config->user);
	int err;

	if (!who) {
		snprintf(error, error_size, "there is no user %s", keeper->config->user);
		return -ENOENT;
	}
	err = ph_guard_load(keeper->config->bpf_dir, who->pw_uid, &keeper->guard, error, error_size);
	if (!err)
		err = ph_drops_open(keeper->config->bpf_dir, &keeper->drops, error, error_size);
	if (!err && ph_scans_new(keeper->drops, keeper->maps, &keeper->scans))
		err = -ENOMEM;
	return err;
}

static int open_all(struct ph_keeper *keeper, bool fresh, bool wait, char *error, size_t error_size)
{
	const struct ph_config *config = keeper->config;
	int err;

	err = ph_roster_new(&keeper->roster);
	if (err)
		snprintf(error, error_size, "roster: %s", strerror(-err));
	if (!err)
		err = ph_maps_lock(config->bpf_dir, &keeper->maps_lock_fd, error, error_size);
	if (!err)
		err = open_registry(keeper, error, error_size);
	if (!err && fresh)
		err = ph_maps_unpin(config->bpf_dir, error, error_size);
	if (!err && fresh)
		err = ph_gate_unpin(config->bpf_dir, error, error_size);
	if (!err)
		err = ph_maps_create(config->bpf_dir, &keeper->maps, error, error_size);
	if (!err && (config->tunnel.type == PH_TUNNEL_WIREGUARD || config->tunnel.guard))
		err = load_guard(keeper, error, error_size);
	if (!err)
		err = ph_device_new(&config->tunnel, keeper->guard, &keeper->device, error, error_size);
	if (!err) {
		err = ph_nics_new(config, &keeper->nics);
		if (!err)
			err = ph_gates_new(config, &keeper->gates);
		if (err)
			snprintf(error, error_size, "rtnetlink: %s", strerror(-err));
	}
	if (!err)
		err = reconcile_maps(keeper, error, error_size);
	if (err)
		return err;
	publish_settings(keeper);
	ph_gates_ensure(keeper->gates);
	err = configure_device(keeper, error, error_size);
	if (!err)
		err = read_health(keeper, error, error_size);
	if (err && wait) {
		set_trouble(keeper, error);
		err = 0;
	}
	return err;
}

int ph_keeper_open(const struct ph_config *config, struct ph_fanout *fanout, bool fresh, bool wait,
		   struct ph_keeper **ret_keeper, char *error, size_t error_size)
{
	struct ph_keeper *keeper = calloc(1, sizeof(*keeper));
	int err;

	if (!keeper) {
		snprintf(error, error_size, "out of memory");
		return -ENOMEM;
	}
	keeper->config = config;
	keeper->fanout = fanout;
	keeper->seen_slot = PH_INSTANCES_MAX;
	keeper->maps_lock_fd = -1;
	err = open_all(keeper, fresh, wait, error, error_size);
	if (err) {
		ph_keeper_free(keeper);
		return err;
	}
	ph_log(PH_LOG_INFO, "phalad " PH_VERSION ": %u CVMs in %u apps", ph_roster_count(keeper->roster),
	       keeper->apps);
	*ret_keeper = keeper;
	return 0;
}

/* A CVM's peer that was removed. One that the kernel keeps all the same, the next look at all of them finds. */
static void remove_left(const uint8_t public_key[PH_KEY_LEN], void *arg)
{
	struct ph_keeper *keeper = arg;

	ph_device_remove_peer(keeper->device, public_key);
}

void ph_keeper_free(struct ph_keeper *keeper)
{
	if (!keeper)
		return;
	/* Nobody else would before the next start; and the holder waits no longer than for so many. */
	if (keeper->roster && keeper->device)
		ph_roster_forget_left(keeper->roster, UINT64_MAX, LEFT_AT_END, remove_left, keeper);
	ph_gates_free(keeper->gates);
	ph_nics_free(keeper->nics);
	ph_device_free(keeper->device);
	ph_scans_free(keeper->scans);
	ph_drops_free(keeper->drops);
	ph_guard_free(keeper->guard);
	ph_maps_free(keeper->maps);
	ph_registry_free(keeper->registry);
	ph_roster_free(keeper->roster);
	if (keeper->maps_lock_fd >= 0)
		close(keeper->maps_lock_fd);
	free(keeper);
}

/* Up to SEEN_PER_TICK changed stamps, from where the last call stopped, in one transaction. */
static int write_seen_rows(struct ph_keeper *keeper)
{
	uint32_t written = 0;
	int err = 0, end_err = 0;

	for (; keeper->seen_slot < PH_INSTANCES_MAX && written < SEEN_PER_TICK && !err; keeper->seen_slot++) {
		struct ph_roster_entry *entry = ph_roster_at(keeper->roster, keeper->seen_slot);
		int64_t seen_s = keeper->maps->instances[keeper->seen_slot].handshake_wall_ns / NS_PER_S;

		if (!entry || !seen_s || seen_s == entry->cvm.seen_s)
			continue;
		if (!written) {
			err = ph_registry_begin(keeper->registry);
			if (err)
				return err;
		}
		written++;
		err = ph_registry_seen(keeper->registry, entry->cvm.instance_id, seen_s);
		entry->cvm.seen_s = seen_s;
	}
	/* Whatever happened, no transaction stays open: what is acknowledged next must be on disk. */
	if (written)
		end_err = ph_registry_commit(keeper->registry);
	return err ? err : end_err;
}

/* Stamps go into the registry once a minute. They are only for people to read: an error costs no more than a line. */
static void write_seen(struct ph_keeper *keeper)
{
	uint64_t now_ns = keeper->maps->gateway->health_now_ns;
	int err;

	if (keeper->seen_slot == PH_INSTANCES_MAX) {
		if (keeper->seen_pass_ns && now_ns - keeper->seen_pass_ns < SEEN_EVERY_NS)
			return;
		keeper->seen_pass_ns = now_ns;
		keeper->seen_slot = 0;
	}
	err = write_seen_rows(keeper);
	if (err)
		ph_log(PH_LOG_WARNING, "registry: cannot write down when CVMs were seen: %s", strerror(-err));
}

void ph_keeper_tick(struct ph_keeper *keeper)
{
	char maps_error[256] = "", device_error[256] = "";
	struct ph_clocks now;

	ph_fanout_retry(keeper->fanout);
	ph_clocks_read(&now);
	ph_roster_forget_left(keeper->roster, now.boot_ns, LEFT_PER_TICK, remove_left, keeper);
	if (keeper->mend_maps)
		reconcile_maps(keeper, maps_error, sizeof(maps_error));
	if (!ensure_device(keeper, device_error, sizeof(device_error)) ||
	    keeper->config->tunnel.type == PH_TUNNEL_EXTERNAL)
		read_health(keeper, device_error, sizeof(device_error));
	ph_gates_ensure(keeper->gates);
	ph_nics_ensure(keeper->nics, ph_device_state(keeper->device)->ifindex);
	set_trouble(keeper, maps_error[0] ? maps_error : device_error);
	if (keeper->scans)
		ph_scans_look(keeper->scans);
	write_seen(keeper);
}

void ph_keeper_check_device(struct ph_keeper *keeper)
{
	char error[256];

	/* That all is well again is for the tick to say, which looks at everything. */
	if (ensure_device(keeper, error, sizeof(error)))
		set_trouble(keeper, error);
}

/* After the registry has changed, nothing is undone: what failed is logged, and done again from the registry. */
static void carry_out(struct ph_keeper *keeper, const char *what, const struct ph_cvm *cvm, int err)
{
	if (!err)
		return;
	ph_log(PH_LOG_ERROR, "%s: %s: %s; to be mended", cvm->instance_id, what, strerror(-err));
	keeper->mend_maps = true;
}

/* The audit trail: who was let in, and when. */
static void log_change(const char *what, const struct ph_cvm *cvm)
{
	char address[INET_ADDRSTRLEN] = "";

	inet_ntop(AF_INET, &cvm->address, address, sizeof(address));
	ph_log(PH_LOG_INFO, "cvm %s of app %s at %s: %s", cvm->instance_id, cvm->app_id, address, what);
}

static bool is_own_key(const struct ph_keeper *keeper, const uint8_t public_key[PH_KEY_LEN])
{
	const struct ph_device_state *state = ph_device_state(keeper->device);

	return state->has_key && !memcmp(state->public_key, public_key, PH_KEY_LEN);
}

/*
 * @old has gone, and @cvm has its slot: from then on what is @old's ends at its next packet at the latest, and nobody picks
 * the instance before the new tunnel's first handshake.
 */
static void replace(struct ph_keeper *keeper, const struct ph_cvm *old, const struct ph_cvm *cvm)
{
	struct ph_message message = { .type = PH_MESSAGE_END_INSTANCE, .ref = { old->slot, old->generation } };
	int err;

	carry_out(keeper, "routing", cvm, ph_reconcile_add(keeper->maps, cvm, true, &keeper->apps));
	ph_nics_end_instance(keeper->nics, message.ref);
	err = ph_fanout_send(keeper->fanout, &message, NULL, 0, NULL, NULL, NULL, NULL);
	if (err)
		ph_log(PH_LOG_ERROR, "%s: cannot tell workers to end connections to the old one: %s", cvm->instance_id,
		       strerror(-err));
}

int ph_keeper_add(struct ph_keeper *keeper, const char *app_id, const char *instance_id,
		  const uint8_t public_key[PH_KEY_LEN], struct ph_cvm *ret_cvm, char *error, size_t error_size)
{
	const struct ph_roster_entry *entry;
	struct ph_cvm cvm, old;
	bool known, same_key;
	int err;

	if (is_own_key(keeper, public_key)) {
		snprintf(error, error_size, "this is the gateway's own public key");
		return -EINVAL;
	}
	known = !ph_registry_find(keeper->registry, instance_id, &old);
	err = ph_registry_add(keeper->registry, app_id, instance_id, public_key, &cvm, error, error_size);
	if (err)
		return err;

	same_key = known && !memcmp(old.public_key, public_key, PH_KEY_LEN);
	if (known && !same_key) {
		replace(keeper, &old, &cvm);
		carry_out(keeper, "removing the old peer", &cvm, ph_device_remove_peer(keeper->device, old.public_key));
	}
	/* One that stays for a while since its CVM was removed has a handshake of that one's. */
	if (!same_key && ph_roster_is_leaving(keeper->roster, public_key))
		carry_out(keeper, "removing the peer that was", &cvm, ph_device_remove_peer(keeper->device, public_key));
	carry_out(keeper, "noting", &cvm, ph_roster_set(keeper->roster, &cvm));
	entry = ph_roster_at(keeper->roster, cvm.slot);
	if (!same_key || !entry || !entry->present)
		carry_out(keeper, "setting the peer", &cvm,
			  ph_device_set_peer(keeper->device, cvm.public_key, cvm.address));
	carry_out(keeper, "routing", &cvm, ph_reconcile_add(keeper->maps, &cvm, !same_key, &keeper->apps));
	log_change(!known ? "added" : same_key ? "added again" : "added again, with another key", &cvm);
	*ret_cvm = cvm;
	return 0;
}

int ph_keeper_find(struct ph_keeper *keeper, const char *instance_id, struct ph_cvm *ret_cvm, char *error,
		   size_t error_size)
{
	int err = ph_registry_find(keeper->registry, instance_id, ret_cvm);
	char text[PH_ID_SIZE * 4];

	ph_log_escape(text, sizeof(text), instance_id, strnlen(instance_id, PH_ID_SIZE));
	if (err == -ENOENT)
		snprintf(error, error_size, "there is no instance %s", text);
	else if (err)
		snprintf(error, error_size, "registry: %s", strerror(-err));
	return err;
}

int ph_keeper_drain(struct ph_keeper *keeper, const char *instance_id, bool drain, struct ph_cvm *ret_cvm, char *error,
		    size_t error_size)
{
	struct ph_cvm cvm;
	int err = ph_keeper_find(keeper, instance_id, &cvm, error, error_size);

	if (!err)
		err = ph_registry_drain(keeper->registry, instance_id, drain, error, error_size);
	if (err)
		return err;
	cvm.draining = drain;
	carry_out(keeper, "noting", &cvm, ph_roster_set(keeper->roster, &cvm));
	carry_out(keeper, "routing", &cvm, ph_reconcile_add(keeper->maps, &cvm, false, &keeper->apps));
	log_change(drain ? "drains" : "drains no longer", &cvm);
	*ret_cvm = cvm;
	return 0;
}

/* The app's instances as the registry has them now, into roster and maps. */
static void renew_app(struct ph_keeper *keeper, const char *app_id)
{
	char id[PH_ID_SIZE] __attribute__((aligned(8))) = "";
	struct ph_id app = { 0 };

	memcpy(id, app_id, strnlen(app_id, sizeof(id) - 1));
	if (ph_maps_find_id(keeper->maps, id, &app))
		keeper->mend_maps = true;
	for (uint32_t i = 0; i < app.count && i < PH_APP_INSTANCES_MAX; i++) {
		const struct ph_roster_entry *entry = ph_roster_at(keeper->roster, app.refs[i].slot);
		struct ph_cvm cvm;

		if (!entry || ph_registry_find(keeper->registry, entry->cvm.instance_id, &cvm)) {
			keeper->mend_maps = true;
			continue;
		}
		carry_out(keeper, "noting", &cvm, ph_roster_set(keeper->roster, &cvm));
		carry_out(keeper, "routing", &cvm, ph_reconcile_add(keeper->maps, &cvm, false, &keeper->apps));
	}
}

int ph_keeper_set_app(struct ph_keeper *keeper, const char *app_id, const uint32_t *idle_ms, const uint32_t *flow_limit,
		      char *error, size_t error_size)
{
	uint32_t idle = 0, limit = 0;
	int err = ph_registry_app(keeper->registry, app_id, &idle, &limit);

	if (err)
		snprintf(error, error_size, "registry: %s", strerror(-err));
	idle = idle_ms ? *idle_ms : idle;
	limit = flow_limit ? *flow_limit : limit;
	if (!err && idle && (idle < PH_IDLE_MIN_MS || idle > PH_IDLE_MAX_MS)) {
		err = -EINVAL;
		snprintf(error, error_size, "an idle time-out is %d to %d ms", PH_IDLE_MIN_MS, PH_IDLE_MAX_MS);
	}
	if (!err && limit > PH_FLOW_LIMIT_MAX && limit != PH_LIMIT_NONE) {
		err = -EINVAL;
		snprintf(error, error_size, "a limit of connections is at most %d", PH_FLOW_LIMIT_MAX);
	}
	if (!err)
		err = ph_registry_set_app(keeper->registry, app_id, idle, limit, error, error_size);
	if (err)
		return err;
	renew_app(keeper, app_id);
	ph_log(PH_LOG_INFO, "app %s: idle time-out %u ms, %u connections (0: the gateway's)", app_id, idle, limit);
	return 0;
}

/* Every worker has the message, or will find it when it starts: the slot need not remember any more. */
static void free_slot(const struct ph_message *message, void *arg)
{
	struct ph_keeper *keeper = arg;

	if (keeper->maps->instances[message->ref.slot].generation == message->ref.generation)
		ph_maps_free_instance(keeper->maps, message->ref.slot);
}

/* A CVM that was removed, until all its connections have ended: from then on its peer stays for a while. */
struct removal {
	struct ph_keeper *keeper;
	struct ph_leaving *leaving;
	bool left;				/* the kernel path has some whose locks were not to be had */
	void (*done)(const struct ph_message *message, const struct ph_fanout_result *result, void *arg);
	void *arg;
};

static void begin_stay(struct ph_leaving *leaving)
{
	struct ph_clocks now;

	ph_clocks_read(&now);
	if (leaving)
		ph_roster_leave_by(leaving, now.boot_ns + PEER_STAYS_NS);
}

static void end_removal(const struct ph_message *message, const struct ph_fanout_result *result, void *arg)
{
	struct ph_message told = *message;
	struct removal *removal = arg;
	int ended = removal->left ? ph_nics_end_instance(removal->keeper->nics, message->ref) : 0;

	told.count += ended > 0 ? (uint32_t)ended : 0;	/* what is left even now ends at its next packet */
	begin_stay(removal->leaving);
	removal->done(&told, result, removal->arg);
	free(removal);
}

int ph_keeper_remove(struct ph_keeper *keeper, const char *instance_id,
		     void (*done)(const struct ph_message *message, const struct ph_fanout_result *result, void *arg),
		     void *arg, char *error, size_t error_size)
{
	struct ph_message message = { .type = PH_MESSAGE_END_INSTANCE };
	struct removal *removal;
	struct ph_cvm cvm;
	int err = ph_keeper_find(keeper, instance_id, &cvm, error, error_size), ended;

	if (err)
		return err;
	removal = malloc(sizeof(*removal));
	if (!removal) {
		snprintf(error, error_size, "out of memory");
		return -ENOMEM;
	}
	*removal = (struct removal){ .keeper = keeper, .done = done, .arg = arg };
	carry_out(keeper, "taking it off the maps", &cvm, ph_reconcile_remove(keeper->maps, &cvm, &keeper->apps));
	err = ph_registry_remove(keeper->registry, instance_id, error, error_size);
	if (err) {
		carry_out(keeper, "routing", &cvm, ph_reconcile_add(keeper->maps, &cvm, false, &keeper->apps));
		free(removal);
		return err;
	}
	log_change("removed", &cvm);
	ph_roster_remove(keeper->roster, cvm.slot);
	removal->leaving = ph_roster_leave(keeper->roster, cvm.public_key);	/* without memory it goes at the next look */
	message.ref.slot = cvm.slot;
	message.ref.generation = cvm.generation;
	ended = ph_nics_end_instance(keeper->nics, message.ref);
	removal->left = ended < 0;
	message.count = ended < 0 ? 0 : (uint32_t)ended;
	err = ph_fanout_send(keeper->fanout, &message, NULL, 0, free_slot, keeper, end_removal, removal);
	if (err) {
		begin_stay(removal->leaving);
		free(removal);
		keeper->mend_maps = true;		/* finds the slot, and ends its connections */
		snprintf(error, error_size, "%s is removed, but its connections are yet to end: %s", cvm.instance_id,
			 strerror(-err));
	}
	return err;
}

enum ph_health ph_keeper_health(const struct ph_keeper *keeper, const struct ph_cvm *cvm)
{
	struct ph_ref ref = { .slot = cvm->slot, .generation = cvm->generation };
	char id[PH_ID_SIZE] __attribute__((aligned(8)));
	__be32 address;

	memcpy(id, cvm->instance_id, sizeof(id));
	return ph_instance_health(keeper->maps->gateway, &keeper->maps->instances[cvm->slot], &ref, id, &address);
}

int ph_keeper_end_flow(struct ph_keeper *keeper, uint32_t slot, uint32_t generation, char *error, size_t error_size)
{
	int ended = ph_nics_end_flow(keeper->nics, slot, generation);

	if (ended > 0)
		return 0;
	if (!ended)
		ended = -ENOENT;
	if (ended == -ENOENT)
		snprintf(error, error_size, "there is no flow %u.%u", slot, generation);
	else
		snprintf(error, error_size, "flow %u.%u: %s", slot, generation, strerror(-ended));
	return ended;
}

static void reloaded(const struct ph_message *message, const struct ph_fanout_result *result, void *arg)
{
	const struct ph_keeper *keeper = arg;
	const char *name = keeper->config->domains[message->domain].name;
	char names[1024];

	if (result->failed)
		ph_log(PH_LOG_ERROR, "certificate of %s: refused by %s: %s", name,
		       ph_fanout_names(result->failed, names, sizeof(names)), result->text);
	if (result->silent)
		ph_log(PH_LOG_WARNING, "certificate of %s: no answer from %s", name,
		       ph_fanout_names(result->silent, names, sizeof(names)));
	if (!result->failed && !result->silent)
		ph_log(PH_LOG_INFO, "certificate of %s: read anew by all workers", name);
}

static int reload_domain(struct ph_keeper *keeper, uint32_t index, const char **ret_path)
{
	const struct ph_domain *domain = &keeper->config->domains[index];
	struct ph_message message = { .type = PH_MESSAGE_CERTIFICATE, .domain = index };
	int fds[PH_MESSAGE_FDS];
	int err = 0;

	*ret_path = domain->certificate_path;
	fds[0] = open(*ret_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fds[0] < 0)
		return -errno;
	*ret_path = domain->private_key_path;
	fds[1] = open(*ret_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fds[1] < 0) {
		err = -errno;
	} else {
		err = ph_fanout_send(keeper->fanout, &message, fds, PH_MESSAGE_FDS, NULL, NULL, reloaded, keeper);
		close(fds[1]);
	}
	close(fds[0]);
	return err;
}

void ph_keeper_reload(struct ph_keeper *keeper)
{
	const char *path = "";

	for (uint32_t i = 0; i < keeper->config->domain_count; i++) {
		int err = reload_domain(keeper, i, &path);

		if (err)
			ph_log(PH_LOG_ERROR, "%s: %s: the certificate of %s stays as it was", path, strerror(-err),
			       keeper->config->domains[i].name);
	}
}
