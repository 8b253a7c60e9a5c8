// SPDX-License-Identifier: Apache-2.0
/*
 * reconcile: the maps made equal to a registry. Both are played here: ph_registry_each() shows the rows that a test has
 * set up, in the order it promises, and the hashes are arrays that can be made to fail.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ktap.h"
#include "reconcile.h"

#define ROWS_MAX 200

static struct ph_cvm rows[ROWS_MAX];
static unsigned row_count;

int ph_registry_each(struct ph_registry *registry, int (*visit)(const struct ph_cvm *cvm, void *arg), void *arg)
{
	int err = 0;

	(void)registry;
	for (unsigned i = 0; i < row_count && !err; i++)
		err = visit(&rows[i], arg);
	return err;
}

static struct {
	char id[PH_ID_SIZE];
	struct ph_id value;
} ids[ROWS_MAX];
static unsigned id_count, writes;
static int write_error;

static int place_of(const char *id)
{
	for (unsigned i = 0; i < id_count; i++) {
		if (!memcmp(ids[i].id, id, PH_ID_SIZE))
			return (int)i;
	}
	return -ENOENT;
}

int ph_maps_find_id(const struct ph_maps *maps, const char *id, struct ph_id *ret_id)
{
	int at = place_of(id);

	(void)maps;
	if (at < 0)
		return at;
	*ret_id = ids[at].value;
	return 0;
}

int ph_maps_set_id(struct ph_maps *maps, const char *id, const struct ph_id *value)
{
	int at = place_of(id);

	(void)maps;
	if (write_error)
		return write_error;
	if (at < 0)
		at = (int)id_count++;
	memcpy(ids[at].id, id, PH_ID_SIZE);
	ids[at].value = *value;
	writes++;
	return 0;
}

int ph_maps_remove_id(struct ph_maps *maps, const char *id)
{
	int at = place_of(id);

	(void)maps;
	if (at < 0)
		return at;
	ids[at] = ids[--id_count];
	writes++;
	return 0;
}

int ph_maps_each_id(const struct ph_maps *maps,
		    int (*visit)(const struct ph_id_key *key, const struct ph_id *value, void *arg), void *arg)
{
	struct ph_id_key keys[ROWS_MAX];
	unsigned count = id_count;
	int err = 0;

	(void)maps;
	for (unsigned i = 0; i < count; i++)
		memcpy(keys[i].id, ids[i].id, PH_ID_SIZE);
	for (unsigned i = 0; i < count && !err; i++)
		err = visit(&keys[i], &ids[place_of(keys[i].id)].value, arg);
	return err;
}

static struct {
	char name[PH_NAME_SIZE];
	uint32_t index;
} domains[PH_DOMAINS_MAX];
static unsigned domain_count;

int ph_maps_set_domain(struct ph_maps *maps, const char *name, uint32_t index)
{
	unsigned at = 0;

	(void)maps;
	while (at < domain_count && strcmp(domains[at].name, name))
		at++;
	if (at == PH_DOMAINS_MAX)
		return -E2BIG;
	domain_count += at == domain_count;
	memset(domains[at].name, 0, sizeof(domains[at].name));
	strncpy(domains[at].name, name, sizeof(domains[at].name) - 1);
	domains[at].index = index;
	return 0;
}

int ph_maps_remove_domain(struct ph_maps *maps, const char *name)
{
	(void)maps;
	for (unsigned i = 0; i < domain_count; i++) {
		if (strcmp(domains[i].name, name))
			continue;
		domains[i] = domains[--domain_count];
		return 0;
	}
	return -ENOENT;
}

int ph_maps_each_domain(const struct ph_maps *maps,
			int (*visit)(const struct ph_domain_key *key, uint32_t index, void *arg), void *arg)
{
	struct ph_domain_key key;
	int err = 0;

	(void)maps;
	for (unsigned i = domain_count; i-- && !err;) {
		memcpy(key.name, domains[i].name, sizeof(key.name));
		err = visit(&key, domains[i].index, arg);
	}
	return err;
}

void ph_maps_set_instance(struct ph_maps *maps, uint32_t slot, const struct ph_instance *instance)
{
	maps->instances[slot] = *instance;
	maps->loads[slot].generation = instance->generation;
	writes++;
}

void ph_maps_free_instance(struct ph_maps *maps, uint32_t slot)
{
	memset(&maps->instances[slot], 0, sizeof(maps->instances[slot]));
	writes++;
}

/* The test. */

static struct ph_maps maps;
static struct ph_roster *roster;
static struct ph_ref stale[ROWS_MAX];
static unsigned stale_count;

static void note_stale(struct ph_ref ref, void *arg)
{
	(void)arg;
	stale[stale_count++] = ref;
}

static struct ph_cvm *row(const char *app, const char *instance, uint32_t slot, uint32_t generation)
{
	struct ph_cvm *made = &rows[row_count++];

	memset(made, 0, sizeof(*made));
	strcpy(made->app_id, app);
	strcpy(made->instance_id, instance);
	made->slot = slot;
	made->generation = generation;
	made->address.s_addr = 1000 + slot;
	memcpy(made->public_key, &generation, sizeof(generation));
	return made;
}

static int reconcile(struct ph_reconciled *ret)
{
	writes = stale_count = 0;
	memset(ret, 0, sizeof(*ret));
	return ph_reconcile_all(NULL, roster, &maps, note_stale, NULL, ret);
}

static const struct ph_id *find(const char *text)
{
	char id[PH_ID_SIZE] = "";
	int at;

	strcpy(id, text);
	at = place_of(id);
	return at < 0 ? NULL : &ids[at].value;
}

static void test_fill(void)
{
	struct ph_reconciled done;
	int err;

	row("alpha", "alpha1", 0, 11);
	row("alpha", "alpha2", 5, 12);
	row("beta", "beta1", 2, 13)->draining = true;
	err = reconcile(&done);
	ktap_ok(!err && done.apps == 2 && !stale_count && ph_roster_count(roster) == 3, "empty maps are filled");
	ktap_ok(id_count == 5 && find("alpha") && find("alpha")->kind == PH_ID_APP && find("alpha")->count == 2 &&
			find("alpha")->refs[1].slot == 5 && find("alpha")->refs[1].generation == 12,
		"an app leads to its instances");
	ktap_ok(find("beta1") && find("beta1")->kind == PH_ID_INSTANCE && find("beta1")->count == 1 &&
			find("beta1")->refs[0].slot == 2,
		"an instance leads to itself");
	ktap_ok(maps.instances[2].state == PH_INSTANCE_DRAINING && maps.instances[5].state == PH_INSTANCE_READY &&
			maps.instances[5].address == 1005 && !strcmp(maps.instances[5].app_id, "alpha"),
		"slots hold address, ids and state");

	maps.instances[5].handshake_ns = 77;
	maps.instances[5].handshake_wall_ns = 78;
	err = reconcile(&done);
	ktap_ok(!err && !writes && !done.changed && done.apps == 2, "what is right is not written again");
	ktap_ok(maps.instances[5].handshake_ns == 77, "a handshake stays with its generation");

	for (int i = 0; i < 2; i++) {
		rows[i].idle_ms = 1234;
		rows[i].flow_limit = 5;
	}
	err = reconcile(&done);
	ktap_ok(!err && done.changed == 3 && find("alpha")->idle_ms == 1234 && find("alpha")->flow_limit == 5 &&
			find("alpha1")->idle_ms == 1234 && find("alpha2")->flow_limit == 5 && !find("beta")->idle_ms,
		"an app's settings are in its id and its instances', and nobody else's");
	maps.loads[5].generation = 0;
	writes = 0;
	err = reconcile(&done);
	ktap_ok(!err && writes == 1 && maps.loads[5].generation == 12, "an instance that no flow could be counted at is mended");
}

static void test_changes(void)
{
	struct ph_id other = { .kind = PH_ID_APP, .count = 1, .refs = { { 9, 99 } } };
	struct ph_reconciled done;
	char id[PH_ID_SIZE] = "strange";
	int err;

	rows[1].generation = 22;			/* alpha2: removed and registered again */
	ph_maps_set_id(&maps, id, &other);
	err = reconcile(&done);
	ktap_ok(!err && stale_count == 1 && stale[0].slot == 5 && stale[0].generation == 12,
		"an instance whose generation is another's now is stale");
	ktap_ok(maps.instances[5].generation == 22 && !maps.instances[5].handshake_ns,
		"and its handshake is not the new one's");
	ktap_ok(find("alpha")->refs[1].generation == 22 && find("alpha2")->refs[0].generation == 22,
		"ids lead to the new one");
	ktap_ok(!find("strange"), "an id that nobody has is removed");

	row_count = 1;					/* only alpha1 is left */
	maps.instances[7].generation = 5;		/* and somebody was being removed when the manager died */
	err = reconcile(&done);
	ktap_ok(!err && stale_count == 3 && done.apps == 1, "whoever is gone is stale, also who was half gone");
	ktap_ok(id_count == 2 && find("alpha") && find("alpha")->count == 1 && !find("beta") && !find("alpha2"),
		"ids are gone");
	ktap_ok(!maps.instances[5].generation && !maps.instances[2].generation && !maps.instances[7].generation &&
			maps.instances[0].generation == 11,
		"slots are free, but for the one that is left");

	row("alpha", "alpha2", 5, 30);
	write_error = -ENOMEM;
	err = reconcile(&done);
	write_error = 0;
	ktap_ok(err == -ENOMEM && find("alpha"), "an error is passed on");
	err = reconcile(&done);
	ktap_ok(!err && find("alpha")->count == 2, "and made up for the next time");
}

static void test_one_by_one(void)
{
	struct ph_cvm one, two;
	struct ph_reconciled done;
	uint32_t apps;

	row_count = 0;
	reconcile(&done);
	apps = done.apps;
	one = *row("gamma", "gamma1", 3, 41);
	two = *row("gamma", "gamma2", 4, 42);
	ktap_ok(!apps && !ph_reconcile_add(&maps, &one, true, &apps) && !ph_reconcile_add(&maps, &two, true, &apps) &&
			apps == 1,
		"two are added to an app");
	reconcile(&done);
	ktap_ok(!writes && done.apps == 1, "as if all had been reconciled");
	maps.instances[3].handshake_ns = 8;
	one.draining = rows[0].draining = true;
	ktap_ok(!ph_reconcile_add(&maps, &one, false, &apps) && apps == 1 && find("gamma")->count == 2 &&
			maps.instances[3].state == PH_INSTANCE_DRAINING && maps.instances[3].handshake_ns == 8,
		"draining changes the state and nothing else");
	ktap_ok(!ph_reconcile_add(&maps, &one, true, &apps) && !maps.instances[3].handshake_ns,
		"with another key the handshake is forgotten");

	ktap_ok(!ph_reconcile_remove(&maps, &one, &apps) && apps == 1 && !find("gamma1") && find("gamma")->count == 1 &&
			find("gamma")->refs[0].slot == 4,
		"one is taken off its app");
	ktap_ok(maps.instances[3].state == PH_INSTANCE_FREE && maps.instances[3].generation == 41,
		"its slot takes no connection, but is known until it is freed");
	rows[0] = rows[1];
	row_count = 1;
	reconcile(&done);
	ktap_ok(stale_count == 1 && stale[0].generation == 41,
		"a manager that starts then knows whose connections must end");
	ktap_ok(!ph_reconcile_remove(&maps, &two, &apps) && !apps && !find("gamma"),
		"with the last one the app is gone");
	ktap_ok(!ph_reconcile_remove(&maps, &two, &apps) && !apps, "removing it again is no error");
}

static void test_many(void)
{
	struct ph_reconciled done;
	char name[16];
	uint32_t apps;
	int err;

	row_count = 0;
	for (unsigned i = 0; i < PH_APP_INSTANCES_MAX; i++) {
		snprintf(name, sizeof(name), "many%02u", i);
		row("many", name, i, 100 + i);
	}
	err = reconcile(&done);
	apps = done.apps;
	ktap_ok(!err && find("many")->count == PH_APP_INSTANCES_MAX, "an app may have 64 instances");
	row("many", "many64", 64, 164);
	ktap_ok(ph_reconcile_add(&maps, &rows[64], true, &apps) == -EMLINK &&
			find("many")->count == PH_APP_INSTANCES_MAX,
		"but not one more, added by itself");
	ktap_ok(reconcile(&done) == -EMLINK, "nor with all");
}

static void test_domains(void)
{
	struct ph_config *config = calloc(1, sizeof(*config));

	config->domain_count = 2;
	strcpy(config->domains[0].name, "a.example");
	strcpy(config->domains[1].name, "b.example");
	ktap_ok(!ph_reconcile_domains(config, &maps) && domain_count == 2 && domains[1].index == 1, "domains are set");
	strcpy(config->domains[0].name, "b.example");
	strcpy(config->domains[1].name, "c.example");
	ktap_ok(!ph_reconcile_domains(config, &maps) && domain_count == 2 && !strcmp(domains[0].name, "b.example") &&
			!domains[0].index && !strcmp(domains[1].name, "c.example") && domains[1].index == 1,
		"others replace them, with their own index");
	for (int i = 0; i < PH_DOMAINS_MAX; i++)
		snprintf(config->domains[i].name, sizeof(config->domains[i].name), "%d.example", i);
	config->domain_count = PH_DOMAINS_MAX;
	ktap_ok(!ph_reconcile_domains(config, &maps) && domain_count == PH_DOMAINS_MAX, "as many as there may be fit");
	free(config);
}

int main(void)
{
	ktap_header();
	maps.instances = calloc(PH_INSTANCES_MAX, sizeof(*maps.instances));
	maps.loads = calloc(PH_INSTANCES_MAX, sizeof(*maps.loads));
	if (!ktap_ok(maps.instances && maps.loads && !ph_roster_new(&roster), "a roster and slots"))
		return ktap_end();
	test_fill();
	test_changes();
	test_one_by_one();
	test_many();
	test_domains();
	ph_roster_free(roster);
	free(maps.instances);
	free(maps.loads);
	return ktap_end();
}
