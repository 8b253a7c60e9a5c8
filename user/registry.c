// SPDX-License-Identifier: Apache-2.0
/*
 * registry - the CVMs this gateway knows, on disk. See registry.h; the tables are in database.c.
 *
 * Each change is a transaction, or a savepoint inside the caller's, so that a refused one leaves nothing behind.
 */
#include "registry.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sqlite3.h>

#include "allot.h"
#include "database.h"
#include "key.h"

#define SELECT_CVM \
	"SELECT generation, instance_id, app_id, public_key, address, slot, draining, added_s, seen_s," \
	" coalesce(idle_ms, 0), coalesce(flow_limit, 0) FROM cvm LEFT JOIN app USING (app_id) "
#define SLOT_WORDS (PH_INSTANCES_MAX / 64)

enum query {
	FIND,
	FIND_BY_KEY,
	COUNT_OF_APP,
	INSERT,
	REKEY,
	RENEW,
	DRAIN,
	SEEN,
	REMOVE,
	SET_APP,
	FORGET_APP,
	FIND_APP,
	QUERY_COUNT,
};

static const char *const queries[QUERY_COUNT] = {
	[FIND] = SELECT_CVM "WHERE instance_id = ?1",
	[FIND_BY_KEY] = SELECT_CVM "WHERE public_key = ?1",
	[COUNT_OF_APP] = "SELECT count(*) FROM cvm WHERE app_id = ?1",
	[INSERT] = ("INSERT INTO cvm (instance_id, app_id, public_key, address, slot, added_s)"
		    " VALUES (?1, ?2, ?3, ?4, ?5, ?6)"),
	[REKEY] = ("INSERT OR REPLACE INTO cvm (instance_id, app_id, public_key, address, slot, added_s)"
		   " SELECT instance_id, app_id, ?2, address, slot, added_s FROM cvm WHERE instance_id = ?1"),
	[RENEW] = "UPDATE cvm SET draining = 0 WHERE instance_id = ?1",
	[DRAIN] = "UPDATE cvm SET draining = ?2 WHERE instance_id = ?1",
	[SEEN] = "UPDATE cvm SET seen_s = ?2 WHERE instance_id = ?1",
	[REMOVE] = "DELETE FROM cvm WHERE instance_id = ?1",
	[SET_APP] = "INSERT OR REPLACE INTO app (app_id, idle_ms, flow_limit) VALUES (?1, ?2, ?3)",
	[FORGET_APP] = "DELETE FROM app WHERE app_id = ?1",
	[FIND_APP] = "SELECT idle_ms, flow_limit FROM app WHERE app_id = ?1",
};

struct ph_registry {
	sqlite3 *db;
	sqlite3_stmt *statements[QUERY_COUNT];
	struct ph_allot *allot;
	uint64_t slots[SLOT_WORDS];		/* a bit for each that is taken */
	bool nested;				/* the change that is under way is inside the caller's transaction */
};

__attribute__((format(printf, 4, 5))) static int refuse(int err, char *error, size_t error_size, const char *format,
							 ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, error_size, format, args);
	va_end(args);
	return err;
}

static int refuse_sqlite(struct ph_registry *registry, char *error, size_t error_size)
{
	return refuse(-EIO, error, error_size, "registry: %s", sqlite3_errmsg(registry->db));
}

static bool is_id(const char *id)
{
	size_t len = strnlen(id, PH_ID_SIZE);

	for (size_t i = 0; i < len; i++) {
		if (!(id[i] >= '0' && id[i] <= '9') && !(id[i] >= 'a' && id[i] <= 'z'))
			return false;
	}
	return len && len <= PH_LABEL_MAX;
}

/* A statement whose first parameter is an id. */
static sqlite3_stmt *ready_for(struct ph_registry *registry, enum query query, const char *instance_id)
{
	sqlite3_stmt *statement = ph_database_ready(registry->statements[query]);

	sqlite3_bind_text(statement, 1, instance_id, -1, SQLITE_STATIC);
	return statement;
}

/* The row that @statement is at, of SELECT_CVM. Constraints of the table were checked when the file was opened. */
static int read_cvm(sqlite3_stmt *statement, struct ph_cvm *ret_cvm)
{
	const char *instance_id = (const char *)sqlite3_column_text(statement, 1);
	const char *app_id = (const char *)sqlite3_column_text(statement, 2);
	const void *key = sqlite3_column_blob(statement, 3);
	struct ph_cvm cvm = { .generation = (uint32_t)sqlite3_column_int64(statement, 0) };

	if (!instance_id || !app_id || !key || sqlite3_column_bytes(statement, 3) != PH_KEY_LEN ||
	    !is_id(instance_id) || !is_id(app_id))
		return -EIO;
	memcpy(cvm.instance_id, instance_id, strlen(instance_id));
	memcpy(cvm.app_id, app_id, strlen(app_id));
	memcpy(cvm.public_key, key, PH_KEY_LEN);
	cvm.address.s_addr = htonl((uint32_t)sqlite3_column_int64(statement, 4));
	cvm.slot = (uint32_t)sqlite3_column_int64(statement, 5);
	cvm.draining = sqlite3_column_int(statement, 6);
	cvm.added_s = sqlite3_column_int64(statement, 7);
	cvm.seen_s = sqlite3_column_int64(statement, 8);
	cvm.idle_ms = (uint32_t)sqlite3_column_int64(statement, 9);
	cvm.flow_limit = (uint32_t)sqlite3_column_int64(statement, 10);
	*ret_cvm = cvm;
	return 0;
}

/* Return: 0, -ENOENT or -EIO. */
static int run_cvm(sqlite3_stmt *statement, struct ph_cvm *ret_cvm)
{
	int code = sqlite3_step(statement);
	int err = code == SQLITE_DONE ? -ENOENT : -EIO;

	if (code == SQLITE_ROW)
		err = read_cvm(statement, ret_cvm);
	sqlite3_reset(statement);
	return err;
}

int ph_registry_each(struct ph_registry *registry, int (*visit)(const struct ph_cvm *cvm, void *arg), void *arg)
{
	sqlite3_stmt *statement = NULL;		/* its own, so that one visit may look for another CVM */
	int err = 0, code;

	code = sqlite3_prepare_v2(registry->db, SELECT_CVM "ORDER BY app_id, instance_id", -1,
				  &statement, NULL);
	if (code != SQLITE_OK)
		return -EIO;
	while (!err && (code = sqlite3_step(statement)) == SQLITE_ROW) {
		struct ph_cvm cvm;

		err = read_cvm(statement, &cvm);
		if (!err)
			err = visit(&cvm, arg);
	}
	if (!err && code != SQLITE_DONE)
		err = -EIO;
	sqlite3_finalize(statement);
	return err;
}

struct load {
	struct ph_registry *registry;
	struct ph_cvm outside;			/* a CVM whose address is not to be given away */
	bool found;
};

static int load_cvm(const struct ph_cvm *cvm, void *arg)
{
	struct load *load = arg;

	load->registry->slots[cvm->slot / 64] |= 1ULL << cvm->slot % 64;
	if (!ph_allot_covers(load->registry->allot, ntohl(cvm->address.s_addr))) {
		load->outside = *cvm;
		load->found = true;
	}
	return 0;
}

/* What is kept in memory, from the file: at the start, and when a transaction did not come to its end. */
static int load(struct ph_registry *registry, struct load *ret_load)
{
	memset(registry->slots, 0, sizeof(registry->slots));
	ph_allot_reset(registry->allot);
	memset(ret_load, 0, sizeof(*ret_load));
	ret_load->registry = registry;
	return ph_registry_each(registry, load_cvm, ret_load);
}

static int execute(struct ph_registry *registry, const char *sql)
{
	return sqlite3_exec(registry->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : -EIO;
}

static int change_begin(struct ph_registry *registry, char *error, size_t error_size)
{
	registry->nested = !sqlite3_get_autocommit(registry->db);
	if (execute(registry, registry->nested ? "SAVEPOINT change" : "BEGIN IMMEDIATE"))
		return refuse_sqlite(registry, error, error_size);
	return 0;
}

/* Makes the change or, when @err is set, undoes it. Return: @err, or -EIO when it could not be made. */
static int change_end(struct ph_registry *registry, int err, char *error, size_t error_size)
{
	if (!err && execute(registry, registry->nested ? "RELEASE change" : "COMMIT"))
		err = refuse_sqlite(registry, error, error_size);
	/* SQLite itself may have ended the whole transaction by now; there is nothing left to undo then. */
	if (err && !sqlite3_get_autocommit(registry->db))
		execute(registry, registry->nested ? "ROLLBACK TO change; RELEASE change" : "ROLLBACK");
	return err;
}

int ph_registry_begin(struct ph_registry *registry)
{
	return execute(registry, "BEGIN IMMEDIATE");
}

int ph_registry_commit(struct ph_registry *registry)
{
	struct load ignored;
	int err = execute(registry, "COMMIT");

	if (!err)
		return 0;
	if (!sqlite3_get_autocommit(registry->db))
		execute(registry, "ROLLBACK");
	load(registry, &ignored);
	return err;
}

static int check_outside(const struct load *load, const struct ph_registry_options *options, char *error,
			 size_t error_size)
{
	char address[INET_ADDRSTRLEN], range[INET_ADDRSTRLEN], own[INET_ADDRSTRLEN];

	if (!load->found)
		return 0;
	inet_ntop(AF_INET, &load->outside.address, address, sizeof(address));
	inet_ntop(AF_INET, &options->range, range, sizeof(range));
	inet_ntop(AF_INET, &options->gateway, own, sizeof(own));
	return refuse(-ERANGE, error, error_size,
		      "%s: instance %s has address %s, which is not in CvmRange %s/%u less the gateway's own %s/%u",
		      options->path, load->outside.instance_id, address, range, options->range_len, own,
		      options->gateway_len);
}

int ph_registry_open(const struct ph_registry_options *options, struct ph_registry **ret_registry, char *error,
		     size_t error_size)
{
	struct ph_registry *registry = calloc(1, sizeof(*registry));
	struct load loaded;
	int err;

	if (!registry)
		return refuse(-ENOMEM, error, error_size, "%s: %s", options->path, strerror(ENOMEM));
	err = ph_database_open(options->path, &registry->db, error, error_size);
	if (!err && (ph_database_prepare(registry->db, queries, QUERY_COUNT, registry->statements) ||
		     ph_allot_new(registry->db, options, &registry->allot) || load(registry, &loaded)))
		err = refuse_sqlite(registry, error, error_size);
	if (!err)
		err = check_outside(&loaded, options, error, error_size);
	if (err) {
		ph_registry_free(registry);
		return err;
	}
	*ret_registry = registry;
	return 0;
}

void ph_registry_free(struct ph_registry *registry)
{
	if (!registry)
		return;
	ph_allot_free(registry->allot);
	for (size_t i = 0; i < QUERY_COUNT; i++)
		sqlite3_finalize(registry->statements[i]);
	sqlite3_close(registry->db);
	free(registry);
}

int ph_registry_find(struct ph_registry *registry, const char *instance_id, struct ph_cvm *ret_cvm)
{
	return is_id(instance_id) ? run_cvm(ready_for(registry, FIND, instance_id), ret_cvm) : -ENOENT;
}

/* Return: 0 or -ENOSPC. */
static int find_slot(const struct ph_registry *registry, uint32_t *ret_slot)
{
	for (uint32_t i = 0; i < SLOT_WORDS; i++) {
		if (registry->slots[i] == UINT64_MAX)
			continue;
		*ret_slot = i * 64 + (uint32_t)__builtin_ctzll(~registry->slots[i]);
		return 0;
	}
	return -ENOSPC;
}

/* A row, and with it a generation, could not be made. */
static int refuse_row(struct ph_registry *registry, char *error, size_t error_size)
{
	if (sqlite3_extended_errcode(registry->db) == SQLITE_CONSTRAINT_CHECK)
		return refuse(-ENOSPC, error, error_size, "every generation that 32 bits can count has been given");
	return refuse_sqlite(registry, error, error_size);
}

static int insert(struct ph_registry *registry, const char *app_id, const char *instance_id,
		  const uint8_t public_key[PH_KEY_LEN], char *error, size_t error_size)
{
	sqlite3_stmt *statement;
	uint32_t address, slot;
	int err;

	if (find_slot(registry, &slot))
		return refuse(-ENOSPC, error, error_size, "there are %d instances already", PH_INSTANCES_MAX);
	err = ph_allot_take(registry->allot, app_id, instance_id, &address);
	if (err == -ENOSPC)
		return refuse(err, error, error_size, "every address of CvmRange is used or resting");
	if (!err) {
		statement = ready_for(registry, INSERT, instance_id);
		sqlite3_bind_text(statement, 2, app_id, -1, SQLITE_STATIC);
		sqlite3_bind_blob(statement, 3, public_key, PH_KEY_LEN, SQLITE_STATIC);
		sqlite3_bind_int64(statement, 4, address);
		sqlite3_bind_int64(statement, 5, slot);
		sqlite3_bind_int64(statement, 6, time(NULL));
		err = ph_database_run(statement);
	}
	return err ? refuse_row(registry, error, error_size) : 0;
}

/* Is there room for a new instance, and does nobody else go by these names? */
static int check_new(struct ph_registry *registry, const char *app_id, const char *instance_id, char *error,
		     size_t error_size)
{
	int64_t same_id, same_app;
	struct ph_cvm cvm;
	int err;

	err = ph_database_number(ready_for(registry, COUNT_OF_APP, instance_id), &same_id);
	if (!err)
		err = ph_database_number(ready_for(registry, COUNT_OF_APP, app_id), &same_app);
	if (err)
		return refuse_sqlite(registry, error, error_size);
	if (same_id)
		return refuse(-EBUSY, error, error_size, "%s is an app's id", instance_id);
	err = run_cvm(ready_for(registry, FIND, app_id), &cvm);
	if (!err)
		return refuse(-EBUSY, error, error_size, "%s is an instance's id", app_id);
	if (err != -ENOENT)
		return refuse_sqlite(registry, error, error_size);
	if (same_app >= PH_APP_INSTANCES_MAX)
		return refuse(-EMLINK, error, error_size, "app %s has %d instances already", app_id,
			      PH_APP_INSTANCES_MAX);
	return 0;
}

/* Return: 0 when nobody else has the key. */
static int check_key(struct ph_registry *registry, const char *instance_id, const uint8_t public_key[PH_KEY_LEN],
		     char *error, size_t error_size)
{
	sqlite3_stmt *statement = ph_database_ready(registry->statements[FIND_BY_KEY]);
	struct ph_cvm owner;
	int err;

	sqlite3_bind_blob(statement, 1, public_key, PH_KEY_LEN, SQLITE_STATIC);
	err = run_cvm(statement, &owner);
	if (err == -ENOENT || (!err && !strcmp(owner.instance_id, instance_id)))
		return 0;
	if (err)
		return refuse_sqlite(registry, error, error_size);
	return refuse(-EEXIST, error, error_size, "this is the public key of instance %s", owner.instance_id);
}

static int add(struct ph_registry *registry, const char *app_id, const char *instance_id,
	       const uint8_t public_key[PH_KEY_LEN], struct ph_cvm *cvm, char *error, size_t error_size)
{
	sqlite3_stmt *statement;
	bool is_new;
	int err;

	err = run_cvm(ready_for(registry, FIND, instance_id), cvm);
	is_new = err == -ENOENT;
	if (err && !is_new)
		return refuse_sqlite(registry, error, error_size);
	if (!is_new && strcmp(cvm->app_id, app_id))
		return refuse(-EBUSY, error, error_size, "instance %s is of app %s", instance_id, cvm->app_id);
	err = is_new ? check_new(registry, app_id, instance_id, error, error_size) : 0;
	if (!err)
		err = check_key(registry, instance_id, public_key, error, error_size);
	if (err)
		return err;

	if (is_new) {
		err = insert(registry, app_id, instance_id, public_key, error, error_size);
		if (err)
			return err;
	} else if (memcmp(cvm->public_key, public_key, PH_KEY_LEN)) {	/* another CVM, and another generation */
		statement = ready_for(registry, REKEY, instance_id);
		sqlite3_bind_blob(statement, 2, public_key, PH_KEY_LEN, SQLITE_STATIC);
		if (ph_database_run(statement))
			return refuse_row(registry, error, error_size);
	} else if (cvm->draining) {
		if (ph_database_run(ready_for(registry, RENEW, instance_id)))
			return refuse_sqlite(registry, error, error_size);
	}
	if (run_cvm(ready_for(registry, FIND, instance_id), cvm))
		return refuse_sqlite(registry, error, error_size);
	return 0;
}

int ph_registry_add(struct ph_registry *registry, const char *app_id, const char *instance_id,
		    const uint8_t public_key[PH_KEY_LEN], struct ph_cvm *ret_cvm, char *error, size_t error_size)
{
	struct ph_cvm cvm;
	int err;

	if (!is_id(app_id) || !is_id(instance_id))
		return refuse(-EINVAL, error, error_size, "the %s-id is not 1 to %d characters of a-z and 0-9",
			      is_id(app_id) ? "instance" : "app", PH_LABEL_MAX);
	if (!strcmp(app_id, instance_id))
		return refuse(-EBUSY, error, error_size, "%s cannot be both an app and an instance", app_id);
	if (ph_key_is_weak(public_key))
		return refuse(-EINVAL, error, error_size, "this public key gives no secret: zero or of low order");

	if (ph_allot_age(registry->allot))
		return refuse_sqlite(registry, error, error_size);
	err = change_begin(registry, error, error_size);
	if (err)
		return err;
	err = add(registry, app_id, instance_id, public_key, &cvm, error, error_size);
	err = change_end(registry, err, error, error_size);
	if (err)
		return err;
	registry->slots[cvm.slot / 64] |= 1ULL << cvm.slot % 64;
	*ret_cvm = cvm;
	return 0;
}

/* Return: 0, or -ENOENT or -EIO with @error set. */
static int find_or_refuse(struct ph_registry *registry, const char *instance_id, struct ph_cvm *ret_cvm, char *error,
			  size_t error_size)
{
	int err = ph_registry_find(registry, instance_id, ret_cvm);

	if (err == -ENOENT)
		return refuse(err, error, error_size, "there is no such instance");
	return err ? refuse_sqlite(registry, error, error_size) : 0;
}

int ph_registry_remove(struct ph_registry *registry, const char *instance_id, char *error, size_t error_size)
{
	struct ph_cvm cvm;
	int err;

	err = find_or_refuse(registry, instance_id, &cvm, error, error_size);
	if (!err)
		err = change_begin(registry, error, error_size);
	if (err)
		return err;
	if (ph_allot_rest(registry->allot, instance_id) ||
	    ph_database_run(ready_for(registry, REMOVE, instance_id)))
		err = refuse_sqlite(registry, error, error_size);
	err = change_end(registry, err, error, error_size);
	if (err)
		return err;
	registry->slots[cvm.slot / 64] &= ~(1ULL << cvm.slot % 64);
	return 0;
}

int ph_registry_drain(struct ph_registry *registry, const char *instance_id, bool drain, char *error,
		      size_t error_size)
{
	sqlite3_stmt *statement;
	struct ph_cvm cvm;
	int err;

	err = find_or_refuse(registry, instance_id, &cvm, error, error_size);
	if (err || cvm.draining == drain)
		return err;
	statement = ready_for(registry, DRAIN, instance_id);
	sqlite3_bind_int(statement, 2, drain);
	return ph_database_run(statement) ? refuse_sqlite(registry, error, error_size) : 0;
}

int ph_registry_set_app(struct ph_registry *registry, const char *app_id, uint32_t idle_ms, uint32_t flow_limit,
			char *error, size_t error_size)
{
	sqlite3_stmt *statement;
	int64_t count = 0;

	if (is_id(app_id) && ph_database_number(ready_for(registry, COUNT_OF_APP, app_id), &count))
		return refuse_sqlite(registry, error, error_size);
	if (!count)
		return refuse(-ENOENT, error, error_size, "there is no such app");
	if (!idle_ms && !flow_limit) {
		statement = ready_for(registry, FORGET_APP, app_id);
	} else {
		statement = ready_for(registry, SET_APP, app_id);
		sqlite3_bind_int64(statement, 2, idle_ms);
		sqlite3_bind_int64(statement, 3, flow_limit);
	}
	return ph_database_run(statement) ? refuse_sqlite(registry, error, error_size) : 0;
}

int ph_registry_app(struct ph_registry *registry, const char *app_id, uint32_t *ret_idle_ms, uint32_t *ret_flow_limit)
{
	sqlite3_stmt *statement = ready_for(registry, FIND_APP, app_id);
	int code = sqlite3_step(statement);

	*ret_idle_ms = *ret_flow_limit = 0;
	if (code == SQLITE_ROW) {
		*ret_idle_ms = (uint32_t)sqlite3_column_int64(statement, 0);
		*ret_flow_limit = (uint32_t)sqlite3_column_int64(statement, 1);
	}
	sqlite3_reset(statement);
	return code == SQLITE_ROW || code == SQLITE_DONE ? 0 : -EIO;
}

int ph_registry_seen(struct ph_registry *registry, const char *instance_id, int64_t seen_s)
{
	sqlite3_stmt *statement = ready_for(registry, SEEN, instance_id);
	int err;

	sqlite3_bind_int64(statement, 2, seen_s);
	err = ph_database_run(statement);
	return err || sqlite3_changes(registry->db) ? err : -ENOENT;
}
