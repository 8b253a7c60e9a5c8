/* SPDX-License-Identifier: Apache-2.0 */
/*
 * database - the registry's file: made whole, or judged before anything in it is touched; and its statements.
 *
 * Used by registry.c and allot.c only; the three are all that knows SQLite.
 */
#ifndef PHALAD_DATABASE_H
#define PHALAD_DATABASE_H

#include <stddef.h>
#include <stdint.h>

struct sqlite3;
struct sqlite3_stmt;

/**
 * ph_database_open() - open the file for reading and writing, or create it.
 * @ret_db: in WAL mode, synchronous FULL, locked against every other process; the caller's to close.
 * @error: one line for people, set on failure.
 *
 * Created as a whole under another name, so what carries @path's name is a registry from its first moment on. A file
 * that is refused keeps its bytes and its time of change, and so does what lies beside it.
 *
 * Return: 0, or
 *   -EUCLEAN           damaged, or not a registry
 *   -EPROTONOSUPPORT   of a newer phalad
 *   -EBUSY             another process has it
 *   -errno             from the file system; -EIO when SQLite says no more than that
 */
int ph_database_open(const char *path, struct sqlite3 **ret_db, char *error, size_t error_size);

/* Statements that live as long as the connection; finalize each, also after a failure. Return: 0 or -EIO. */
int ph_database_prepare(struct sqlite3 *db, const char *const queries[], size_t count,
			struct sqlite3_stmt *statements[]);

/* Makes a statement ready for its parameters; what it is given must live until it is run. Return: @statement. */
struct sqlite3_stmt *ph_database_ready(struct sqlite3_stmt *statement);

/* Runs what has no rows. Return: 0 or -EIO. */
int ph_database_run(struct sqlite3_stmt *statement);

/* Runs what has one number. Return: 0, -ENOENT when there is no row or it holds NULL, or -EIO. */
int ph_database_number(struct sqlite3_stmt *statement, int64_t *ret_number);

#endif
