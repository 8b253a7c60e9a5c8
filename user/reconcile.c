// SPDX-License-Identifier: Apache-2.0
#include "reconcile.h"

#include <errno.h>
#include <string.h>

static struct ph_ref ref_of(const struct ph_cvm *cvm)
{
	return (struct ph_ref){ .slot = cvm->slot, .generation = cvm->generation };
}

/* The slot's value for @cvm; a handshake stays as long as the generation. */
static struct ph_instance instance_of(const struct ph_maps *maps, const struct ph_cvm *cvm)
{
	const struct ph_instance *known = &maps->instances[cvm->slot];
	struct ph_instance instance = {
		.generation = cvm->generation,
		.state = cvm->draining ? PH_INSTANCE_DRAINING : PH_INSTANCE_READY,
		.address = cvm->address.s_addr,
	};

	memcpy(instance.app_id, cvm->app_id, sizeof(instance.app_id));
	memcpy(instance.instance_id, cvm->instance_id, sizeof(instance.instance_id));
	if (known->generation == cvm->generation) {
		instance.handshake_ns = known->handshake_ns;
		instance.handshake_wall_ns = known->handshake_wall_ns;
	}
	return instance;
}

/* Ids are compared as words, and written whole: padding in a map value is zero. */
static bool is_same_id(const struct ph_id *a, const struct ph_id *b)
{
	return a->kind == b->kind && a->count == b->count && a->idle_ms == b->idle_ms &&
	       a->flow_limit == b->flow_limit && !memcmp(a->refs, b->refs, a->count * sizeof(a->refs[0]));
}

/* Return: 1 when it had to be written, 0 when it was right, or -errno. */
static int set_id(struct ph_maps *maps, const char *id, const struct ph_id *value)
{
	struct ph_id known;
	int err = ph_maps_find_id(maps, id, &known);

	if (!err && known.count <= PH_APP_INSTANCES_MAX && is_same_id(&known, value))
		return 0;
	err = ph_maps_set_id(maps, id, value);
	return err ? err : 1;
}

static int set_instance_id(struct ph_maps *maps, const struct ph_cvm *cvm)
{
	struct ph_id value = {
		.kind = PH_ID_INSTANCE,
		.count = 1,
		.idle_ms = cvm->idle_ms,
		.flow_limit = cvm->flow_limit,
		.refs = { ref_of(cvm) },
	};

	return set_id(maps, cvm->instance_id, &value);
}

struct pass {
	struct ph_roster *roster;
	struct ph_maps *maps;
	void (*stale)(struct ph_ref ref, void *arg);
	void *arg;
	char app_id[PH_ID_SIZE] __attribute__((aligned(8)));	/* whose instances are being collected */
	struct ph_id app;
	struct ph_reconciled result;
};

static int count_change(struct pass *pass, int written)
{
	if (written < 0)
		return written;
	pass->result.changed += written;
	return 0;
}

static int finish_app(struct pass *pass)
{
	int err = 0;

	if (pass->app.count) {
		pass->result.apps++;
		err = count_change(pass, set_id(pass->maps, pass->app_id, &pass->app));
	}
	memset(&pass->app, 0, sizeof(pass->app));
	return err;
}

static int fill_roster(const struct ph_cvm *cvm, void *arg)
{
	return ph_roster_set(((struct pass *)arg)->roster, cvm);
}

/* CVMs come in the order of their apps. */
static int set_cvm(const struct ph_cvm *cvm, void *arg)
{
	struct pass *pass = arg;
	const struct ph_instance *known = &pass->maps->instances[cvm->slot];
	struct ph_instance wanted = instance_of(pass->maps, cvm);
	int err;

	if (memcmp(known, &wanted, sizeof(wanted)) || pass->maps->loads[cvm->slot].generation != cvm->generation) {
		ph_maps_set_instance(pass->maps, cvm->slot, &wanted);
		pass->result.changed++;
	}
	err = count_change(pass, set_instance_id(pass->maps, cvm));
	if (!err && memcmp(pass->app_id, cvm->app_id, sizeof(pass->app_id)))
		err = finish_app(pass);
	if (err)
		return err;
	if (pass->app.count == PH_APP_INSTANCES_MAX)
		return -EMLINK;
	memcpy(pass->app_id, cvm->app_id, sizeof(pass->app_id));
	pass->app.kind = PH_ID_APP;
	pass->app.idle_ms = cvm->idle_ms;
	pass->app.flow_limit = cvm->flow_limit;
	pass->app.refs[pass->app.count++] = ref_of(cvm);
	return 0;
}

/*
 * By now every id that the registry knows has the right value, so an id is known just when its first reference leads to
 * a CVM with that id.
 */
static int remove_stale_id(const struct ph_id_key *key, const struct ph_id *value, void *arg)
{
	struct pass *pass = arg;
	const struct ph_roster_entry *entry = value->count ? ph_roster_at(pass->roster, value->refs[0].slot) : NULL;
	int err;

	if (entry && entry->cvm.generation == value->refs[0].generation &&
	    !memcmp(value->kind == PH_ID_APP ? entry->cvm.app_id : entry->cvm.instance_id, key->id, PH_ID_SIZE))
		return 0;
	err = ph_maps_remove_id(pass->maps, key->id);
	return count_change(pass, err && err != -ENOENT ? err : 1);
}

static bool is_registered(struct pass *pass, uint32_t slot)
{
	const struct ph_roster_entry *entry = ph_roster_at(pass->roster, slot);

	return entry && entry->cvm.generation == pass->maps->instances[slot].generation;
}

static void report_stale_instances(struct pass *pass)
{
	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX; slot++) {
		struct ph_ref ref = { .slot = slot, .generation = pass->maps->instances[slot].generation };

		if (ref.generation && !is_registered(pass, slot))
			pass->stale(ref, pass->arg);
	}
}

static void free_stale_slots(struct pass *pass)
{
	for (uint32_t slot = 0; slot < PH_INSTANCES_MAX; slot++) {
		const struct ph_instance *instance = &pass->maps->instances[slot];

		if ((instance->generation || instance->state) && !is_registered(pass, slot)) {
			ph_maps_free_instance(pass->maps, slot);
			pass->result.changed++;
		}
	}
}

int ph_reconcile_all(struct ph_registry *registry, struct ph_roster *roster, struct ph_maps *maps,
		     void (*stale)(struct ph_ref ref, void *arg), void *arg, struct ph_reconciled *ret_reconciled)
{
	struct pass pass = { .roster = roster, .maps = maps, .stale = stale, .arg = arg };
	int err;

	ph_roster_clear(roster);
	err = ph_registry_each(registry, fill_roster, &pass);
	if (err)
		return err;
	report_stale_instances(&pass);
	err = ph_registry_each(registry, set_cvm, &pass);
	if (!err)
		err = finish_app(&pass);
	if (!err)
		err = ph_maps_each_id(maps, remove_stale_id, &pass);
	if (err)
		return err;
	free_stale_slots(&pass);
	*ret_reconciled = pass.result;
	return 0;
}

struct domains {
	const struct ph_config *config;
	struct ph_maps *maps;
};

static int remove_stale_domain(const struct ph_domain_key *key, uint32_t index, void *arg)
{
	struct domains *domains = arg;
	int err;

	if (index < domains->config->domain_count &&
	    !memcmp(domains->config->domains[index].name, key->name, sizeof(key->name)))
		return 0;
	err = ph_maps_remove_domain(domains->maps, key->name);
	return err == -ENOENT ? 0 : err;
}

/* Stale ones go first: the map has room for no more than the configuration can have. */
int ph_reconcile_domains(const struct ph_config *config, struct ph_maps *maps)
{
	struct domains domains = { .config = config, .maps = maps };
	int err = ph_maps_each_domain(maps, remove_stale_domain, &domains);

	for (uint32_t i = 0; i < config->domain_count && !err; i++)
		err = ph_maps_set_domain(maps, config->domains[i].name, i);
	return err;
}

int ph_reconcile_add(struct ph_maps *maps, const struct ph_cvm *cvm, bool forget_handshake, uint32_t *apps)
{
	struct ph_instance instance = instance_of(maps, cvm);
	struct ph_id app = { 0 };
	uint32_t at;
	int err;

	if (forget_handshake)
		instance.handshake_ns = instance.handshake_wall_ns = 0;
	ph_maps_set_instance(maps, cvm->slot, &instance);
	err = set_instance_id(maps, cvm);
	if (err < 0)
		return err;
	err = ph_maps_find_id(maps, cvm->app_id, &app);
	if (err && err != -ENOENT)
		return err;
	if (err)
		++*apps;
	for (at = 0; at < app.count && app.refs[at].slot != cvm->slot; at++)
		;
	if (at >= PH_APP_INSTANCES_MAX)
		return -EMLINK;
	app.kind = PH_ID_APP;
	app.idle_ms = cvm->idle_ms;
	app.flow_limit = cvm->flow_limit;
	app.refs[at] = ref_of(cvm);
	if (at == app.count)
		app.count++;
	err = set_id(maps, cvm->app_id, &app);
	return err < 0 ? err : 0;
}

int ph_reconcile_remove(struct ph_maps *maps, const struct ph_cvm *cvm, uint32_t *apps)
{
	struct ph_instance *instance = &maps->instances[cvm->slot];
	struct ph_id app;
	uint32_t kept = 0;
	int err, result;

	if (instance->generation == cvm->generation)
		__atomic_store_n(&instance->state, PH_INSTANCE_FREE, __ATOMIC_RELEASE);
	result = ph_maps_remove_id(maps, cvm->instance_id);
	if (result == -ENOENT)
		result = 0;
	err = ph_maps_find_id(maps, cvm->app_id, &app);
	if (err)
		return result ? result : err == -ENOENT ? 0 : err;
	for (uint32_t i = 0; i < app.count && i < PH_APP_INSTANCES_MAX; i++) {
		if (app.refs[i].slot != cvm->slot)
			app.refs[kept++] = app.refs[i];
	}
	memset(&app.refs[kept], 0, (PH_APP_INSTANCES_MAX - kept) * sizeof(app.refs[0]));
	app.count = kept;
	if (kept) {
		err = ph_maps_set_id(maps, cvm->app_id, &app);
	} else {
		err = ph_maps_remove_id(maps, cvm->app_id);
		if (!err)
			--*apps;
	}
	return result ? result : err;
}
