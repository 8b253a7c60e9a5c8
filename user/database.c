// SPDX-License-Identifier: Apache-2.0
/*
 * database - the registry's file and its statements. See database.h.
 *
 * Opening a database in WAL mode makes files beside it and may move what is in the log into it, so judging comes first
 * and in a way that cannot write: the header is read as bytes; then, when there is no log, SQLite is told that the file
 * is immutable; when there is one (the last manager was killed), SQLite has to read it, which an exclusive connection
 * does with an index of its own memory, and is kept from moving it when that connection closes.
 */
#include "database.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#define APPLICATION_ID 0x7068616c		/* "phal" */
#define VERSION_NUMBER 2
#define VERSION (VERSION_NUMBER + 0u)
#define STRING(x) #x
#define TEXT(x) STRING(x)

/* The format of the first page: https://www.sqlite.org/fileformat2.html, section 1.3. */
#define HEADER_LEN 100
#define HEADER_MAGIC "SQLite format 3"		/* with its closing zero */
#define HEADER_VERSION 60			/* user_version, 4 bytes, big endian */
#define HEADER_APPLICATION 68			/* application_id, likewise */

#define IS_ID(column) "length(" column ") BETWEEN 1 AND 63 AND " column " NOT GLOB '*[^a-z0-9]*'"
#define IS_ADDRESS "address BETWEEN 1 AND 4294967294"
#define CVM_IS_SOUND \
	"generation BETWEEN 1 AND 4294967295 AND " IS_ID("instance_id") " AND " IS_ID("app_id") \
	" AND length(public_key) = 32 AND " IS_ADDRESS " AND slot BETWEEN 0 AND 65535 AND draining IN (0, 1)"
#define APP_IS_SOUND \
	IS_ID("app_id") " AND idle_ms BETWEEN 0 AND 4294967295 AND flow_limit BETWEEN 0 AND 4294967295"
#define REST_IS_SOUND IS_ADDRESS " AND " IS_ID("instance_id") " AND " IS_ID("app_id") " AND freed_ms >= 0"

/*
 * AUTOINCREMENT never gives a number twice, also not one of a row that is gone. In rest are the addresses that belonged
 * to an instance that was removed: none of them is in cvm, and each stays until somebody gets it. Addresses are numbers
 * in host order, so that the lowest comes first. In app is what an operator set for one, which may have no CVM just now.
 */
static const struct {
	uint32_t since;				/* the version that has it first */
	const char *name;
	const char *sql;
} schema[] = {
	{ 1, "cvm",
	  "CREATE TABLE cvm (\n"
	  "  generation INTEGER PRIMARY KEY AUTOINCREMENT,\n"
	  "  instance_id TEXT NOT NULL UNIQUE,\n"
	  "  app_id TEXT NOT NULL,\n"
	  "  public_key BLOB NOT NULL UNIQUE,\n"
	  "  address INTEGER NOT NULL UNIQUE,\n"
	  "  slot INTEGER NOT NULL UNIQUE,\n"
	  "  draining INTEGER NOT NULL DEFAULT 0,\n"
	  "  added_s INTEGER NOT NULL,\n"
	  "  seen_s INTEGER NOT NULL DEFAULT 0,\n"
	  "  CHECK (" CVM_IS_SOUND ")\n"
	  ") STRICT" },
	{ 1, "cvm_by_app", "CREATE INDEX cvm_by_app ON cvm (app_id, instance_id)" },
	{ 1, "rest",
	  "CREATE TABLE rest (\n"
	  "  address INTEGER PRIMARY KEY,\n"
	  "  instance_id TEXT NOT NULL,\n"
	  "  app_id TEXT NOT NULL,\n"
	  "  freed_ms INTEGER NOT NULL, -- Unix time; 0 once it has rested\n"
	  "  CHECK (" REST_IS_SOUND ")\n"
	  ") STRICT" },
	{ 1, "rest_by_age", "CREATE INDEX rest_by_age ON rest (freed_ms, address)" },
	{ 1, "rest_by_instance", "CREATE INDEX rest_by_instance ON rest (instance_id, app_id)" },
	{ 2, "app",
	  "CREATE TABLE app (\n"
	  "  app_id TEXT PRIMARY KEY,\n"
	  "  idle_ms INTEGER NOT NULL, -- 0: the gateway's, as the next\n"
	  "  flow_limit INTEGER NOT NULL, -- 4294967295: none\n"
	  "  CHECK (" APP_IS_SOUND ")\n"
	  ") STRICT" },
};

/*
 * Each returns rows only if something is wrong. The constraints of the tables are here too: SQLite does not look at them
 * in a database that it cannot write.
 */
static const struct {
	uint32_t since;
	const char *sql;
	const char *wrong;
} invariants[] = {
	{ 1, "SELECT 1 FROM cvm WHERE NOT (" CVM_IS_SOUND ") LIMIT 1", "a CVM has a value that none can have" },
	{ 1, "SELECT 1 FROM rest WHERE NOT (" REST_IS_SOUND ") LIMIT 1", "a free address has a value that none can have" },
	{ 1, "SELECT 1 FROM cvm a JOIN cvm b ON a.app_id = b.instance_id LIMIT 1", "an app-id is also an instance-id" },
	{ 1, "SELECT 1 FROM cvm GROUP BY app_id HAVING count(*) > 64 LIMIT 1", "an app has more than 64 instances" },
	{ 1, "SELECT 1 FROM cvm JOIN rest USING (address) LIMIT 1", "an address is both used and free" },
	{ 2, "SELECT 1 FROM app WHERE NOT (" APP_IS_SOUND ") LIMIT 1", "an app has a setting that none can have" },
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

static int refuse_sqlite(sqlite3 *db, int code, const char *path, char *error, size_t error_size)
{
	int err = -EIO;

	switch (code & 0xff) {
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_ERROR:			/* no such table, no such column */
		err = -EUCLEAN;
		break;
	case SQLITE_BUSY:
		return refuse(-EBUSY, error, error_size, "%s: another process has it open", path);
	case SQLITE_FULL:
		err = -ENOSPC;
		break;
	case SQLITE_NOMEM:
		err = -ENOMEM;
		break;
	case SQLITE_READONLY:
		err = -EROFS;
		break;
	}
	return refuse(err, error, error_size, "%s: %s", path, db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
}

static uint32_t big_endian(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* Return: 0, or why the file is refused. */
static int check_header(const char *path, char *error, size_t error_size)
{
	uint8_t header[HEADER_LEN] = { 0 };
	struct stat status;
	int fd, err = 0;
	ssize_t len;

	fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) < 0)
		err = -errno;
	if (!err && !S_ISREG(status.st_mode))
		err = -EUCLEAN;
	len = err ? 0 : pread(fd, header, sizeof(header), 0);
	if (len < 0)
		err = -errno;
	if (fd >= 0)
		close(fd);
	if (err == -EUCLEAN)
		return refuse(err, error, error_size, "%s: not a regular file", path);
	if (err)
		return refuse(err, error, error_size, "%s: %s", path, strerror(-err));
	if (len < HEADER_LEN || memcmp(header, HEADER_MAGIC, sizeof(HEADER_MAGIC)))
		return refuse(-EUCLEAN, error, error_size, "%s: not an SQLite database", path);
	if (big_endian(header + HEADER_APPLICATION) != APPLICATION_ID)
		return refuse(-EUCLEAN, error, error_size, "%s: a database, but not a registry of phalad", path);
	return 0;
}

/* The first column of the first row. Return: SQLITE_ROW, SQLITE_DONE when there is none, or what went wrong. */
static int ask_number(sqlite3 *db, const char *sql, int64_t *ret_number)
{
	sqlite3_stmt *statement = NULL;
	int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_step(statement);
	if (code == SQLITE_ROW)
		*ret_number = sqlite3_column_int64(statement, 0);
	sqlite3_finalize(statement);
	return code;
}

static int check_version(sqlite3 *db, const char *path, uint32_t *ret_version, char *error, size_t error_size)
{
	int64_t version;
	int code = ask_number(db, "PRAGMA user_version", &version);

	if (code != SQLITE_ROW)
		return refuse_sqlite(db, code, path, error, error_size);
	if (version > (int64_t)VERSION)
		return refuse(-EPROTONOSUPPORT, error, error_size,
			      "%s: version %lld, written by a newer phalad; this one knows %u", path,
			      (long long)version, VERSION);
	if (version < 1)
		return refuse(-EUCLEAN, error, error_size, "%s: version %lld never was one", path, (long long)version);
	*ret_version = (uint32_t)version;
	return 0;
}

static int check_pages(sqlite3 *db, const char *path, char *error, size_t error_size)
{
	sqlite3_stmt *statement = NULL;
	const char *verdict = "nothing";
	int err = 0, code;

	code = sqlite3_prepare_v2(db, "PRAGMA integrity_check(1)", -1, &statement, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_step(statement);
	if (code != SQLITE_ROW) {
		err = refuse_sqlite(db, code, path, error, error_size);
	} else {
		verdict = (const char *)sqlite3_column_text(statement, 0);
		if (!verdict || strcmp(verdict, "ok"))
			err = refuse(-EUCLEAN, error, error_size, "%s: damaged: %s", path, verdict ? verdict : "?");
	}
	sqlite3_finalize(statement);
	return err;
}

static int check_schema(sqlite3 *db, const char *path, uint32_t version, char *error, size_t error_size)
{
	sqlite3_stmt *statement = NULL;
	int err = 0, code;

	code = sqlite3_prepare_v2(db, "SELECT sql FROM sqlite_schema WHERE name = ?1", -1, &statement, NULL);
	for (size_t i = 0; code == SQLITE_OK && i < sizeof(schema) / sizeof(schema[0]) && !err; i++) {
		const char *sql;

		if (schema[i].since > version)
			continue;
		sqlite3_bind_text(statement, 1, schema[i].name, -1, SQLITE_STATIC);
		code = sqlite3_step(statement);
		sql = code == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
		if ((code == SQLITE_ROW || code == SQLITE_DONE) && (!sql || strcmp(sql, schema[i].sql)))
			err = refuse(-EUCLEAN, error, error_size, "%s: %s is not as version %u has it", path,
				     schema[i].name, version);
		code = sqlite3_reset(statement);
	}
	if (!err && code != SQLITE_OK)
		err = refuse_sqlite(db, code, path, error, error_size);
	sqlite3_finalize(statement);
	return err;
}

static int check_invariants(sqlite3 *db, const char *path, uint32_t version, char *error, size_t error_size)
{
	for (size_t i = 0; i < sizeof(invariants) / sizeof(invariants[0]); i++) {
		int64_t number;
		int code = SQLITE_DONE;

		if (invariants[i].since <= version)
			code = ask_number(db, invariants[i].sql, &number);
		if (code == SQLITE_ROW)
			return refuse(-EUCLEAN, error, error_size, "%s: damaged: %s", path, invariants[i].wrong);
		if (code != SQLITE_DONE)
			return refuse_sqlite(db, code, path, error, error_size);
	}
	return 0;
}

/* @out has room for three times @path and 32 more. */
static void make_uri(const char *path, const char *query, char *out)
{
	out += sprintf(out, "file:");
	for (; *path; path++) {
		if (strchr("?#%", *path))
			out += sprintf(out, "%%%02x", (unsigned char)*path);
		else
			*out++ = *path;
	}
	strcpy(out, query);
}

/* Everything about what is there, from a connection that leaves no trace. */
static int inspect(const char *path, bool has_log, uint32_t *ret_version, char *error, size_t error_size)
{
	char uri[3 * PATH_MAX + 32];
	sqlite3 *db = NULL;
	int err = 0, code, keep = 1;

	make_uri(path, has_log ? "" : "?immutable=1", uri);
	code = sqlite3_open_v2(uri, &db, SQLITE_OPEN_URI | (has_log ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY),
			       NULL);
	if (code == SQLITE_OK)
		code = sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &keep);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA query_only = ON;"
				    "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON", NULL, NULL, NULL);
	if (code != SQLITE_OK)
		err = refuse_sqlite(db, code, path, error, error_size);
	if (!err)
		err = check_version(db, path, ret_version, error, error_size);
	if (!err)
		err = check_pages(db, path, error, error_size);
	if (!err)
		err = check_schema(db, path, *ret_version, error, error_size);
	if (!err)
		err = check_invariants(db, path, *ret_version, error, error_size);
	sqlite3_close(db);
	return err;
}

static int sync_path(const char *path, int flags)
{
	int fd = open(path, flags | O_RDONLY | O_CLOEXEC);
	int err = 0;

	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0)
		err = -errno;
	close(fd);
	return err;
}

static int fill(const char *path, char *error, size_t error_size)
{
	sqlite3 *db = NULL;
	int err = 0, code;

	code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA synchronous = FULL; BEGIN IMMEDIATE;"
				    "PRAGMA application_id = " TEXT(APPLICATION_ID) ";", NULL, NULL, NULL);
	for (size_t i = 0; code == SQLITE_OK && i < sizeof(schema) / sizeof(schema[0]); i++)
		code = sqlite3_exec(db, schema[i].sql, NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA user_version = " TEXT(VERSION_NUMBER) "; COMMIT; PRAGMA locking_mode = EXCLUSIVE;"
				    "PRAGMA journal_mode = WAL", NULL, NULL, NULL);
	if (code != SQLITE_OK)
		err = refuse_sqlite(db, code, path, error, error_size);
	code = sqlite3_close(db);
	if (!err && code != SQLITE_OK)
		err = refuse_sqlite(NULL, code, path, error, error_size);
	return err;
}

/* Under another name, from the start if a former attempt was killed, and renamed once it is whole and on disk. */
static int create(const char *path, char *error, size_t error_size)
{
	static const char *const leftovers[] = { "", "-journal", "-wal", "-shm" };
	char temporary[PATH_MAX + 8], name[PATH_MAX + 16], directory[PATH_MAX];
	int err = 0, fd;

	snprintf(temporary, sizeof(temporary), "%s.new", path);
	for (size_t i = 0; i < sizeof(leftovers) / sizeof(leftovers[0]); i++) {
		snprintf(name, sizeof(name), "%s%s", temporary, leftovers[i]);
		if (unlink(name) && errno != ENOENT)
			return refuse(-errno, error, error_size, "%s: %s", name, strerror(errno));
	}
	fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return refuse(-errno, error, error_size, "%s: %s", temporary, strerror(errno));
	close(fd);
	err = fill(temporary, error, error_size);
	if (err)
		return err;
	err = sync_path(temporary, 0);
	if (!err && rename(temporary, path))
		err = -errno;
	snprintf(directory, sizeof(directory), "%s", path);
	if (!err)
		err = sync_path(dirname(directory), O_DIRECTORY);
	if (err)
		refuse(err, error, error_size, "%s: %s", path, strerror(-err));
	return err;
}

/* Adds what later versions have. All of it or, if this is cut short, nothing. Return: an SQLite code. */
static int upgrade(sqlite3 *db, uint32_t version)
{
	int code = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);

	for (size_t i = 0; code == SQLITE_OK && i < sizeof(schema) / sizeof(schema[0]); i++)
		if (schema[i].since > version)
			code = sqlite3_exec(db, schema[i].sql, NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA user_version = " TEXT(VERSION_NUMBER) "; COMMIT", NULL, NULL, NULL);
	return code;
}

int ph_database_open(const char *path, struct sqlite3 **ret_db, char *error, size_t error_size)
{
	char log[PATH_MAX + 8];
	struct stat status;
	uint32_t version = VERSION;
	sqlite3 *db = NULL;
	bool is_new, has_log;
	int err, code;

	if (strlen(path) >= PATH_MAX)
		return refuse(-ENAMETOOLONG, error, error_size, "%.64s...: %s", path, strerror(ENAMETOOLONG));
	snprintf(log, sizeof(log), "%s-wal", path);
	is_new = lstat(path, &status) && errno == ENOENT;	/* a link to what is not there, or not mounted, is not new */
	has_log = !access(log, F_OK);
	if (is_new && has_log)			/* SQLite would take it for the new file's */
		return refuse(-EUCLEAN, error, error_size, "%s: is there without %s", log, path);
	err = is_new ? create(path, error, error_size) : check_header(path, error, error_size);
	if (!err && !is_new)
		err = inspect(path, has_log, &version, error, error_size);
	if (err)
		return err;

	code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;"
				    "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
				    "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON", NULL, NULL, NULL);
	if (code == SQLITE_OK && version < VERSION)
		code = upgrade(db, version);
	if (code != SQLITE_OK) {
		err = refuse_sqlite(db, code, path, error, error_size);
		sqlite3_close(db);
		return err;
	}
	*ret_db = db;
	return 0;
}

int ph_database_prepare(struct sqlite3 *db, const char *const queries[], size_t count,
			struct sqlite3_stmt *statements[])
{
	for (size_t i = 0; i < count; i++) {
		if (sqlite3_prepare_v3(db, queries[i], -1, SQLITE_PREPARE_PERSISTENT, &statements[i], NULL) !=
		    SQLITE_OK)
			return -EIO;
	}
	return 0;
}

struct sqlite3_stmt *ph_database_ready(struct sqlite3_stmt *statement)
{
	sqlite3_reset(statement);
	sqlite3_clear_bindings(statement);
	return statement;
}

int ph_database_run(struct sqlite3_stmt *statement)
{
	int code = sqlite3_step(statement);

	sqlite3_reset(statement);
	return code == SQLITE_DONE ? 0 : -EIO;
}

int ph_database_number(struct sqlite3_stmt *statement, int64_t *ret_number)
{
	int code = sqlite3_step(statement);
	int err = code == SQLITE_DONE ? -ENOENT : -EIO;

	if (code == SQLITE_ROW && sqlite3_column_type(statement, 0) == SQLITE_NULL) {
		err = -ENOENT;
	} else if (code == SQLITE_ROW) {
		*ret_number = sqlite3_column_int64(statement, 0);
		err = 0;
	}
	sqlite3_reset(statement);
	return err;
}
