// SPDX-License-Identifier: Apache-2.0
/*
 * allot - which address inside the tunnel a new instance gets. See allot.h; the tables are in database.c.
 *
 * Nothing here costs more with more addresses: rested ones are found by an index, unused ones by walking up from where
 * the last walk ended, since an address never becomes unused again.
 *
 * Time is the wall clock, because a rest must outlast a reboot: a clock that is set forward ends rests early, and for a
 * clock that was set back they begin anew rather than last for ages.
 */
#include "allot.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include <sqlite3.h>

#include "database.h"
#include "registry.h"
#include "value.h"

enum query {
	REST,
	REST_ANEW,
	END_RESTS,
	FORGET,
	OLD_ADDRESSES,
	LOWEST_RESTED,
	WALK,
	QUERY_COUNT,
};

static const char *const queries[QUERY_COUNT] = {
	[REST] = ("INSERT INTO rest (address, instance_id, app_id, freed_ms)"
		  " SELECT address, instance_id, app_id, ?2 FROM cvm WHERE instance_id = ?1"),
	[REST_ANEW] = "UPDATE rest SET freed_ms = ?1 WHERE freed_ms > ?1",
	[END_RESTS] = "UPDATE rest SET freed_ms = 0 WHERE freed_ms BETWEEN 1 AND ?1",
	[FORGET] = "DELETE FROM rest WHERE address = ?1",
	[OLD_ADDRESSES] = "SELECT address FROM rest WHERE instance_id = ?1 AND app_id = ?2 ORDER BY freed_ms DESC",
	[LOWEST_RESTED] = "SELECT min(address) FROM rest WHERE freed_ms = 0 AND address BETWEEN ?1 AND ?2",
	[WALK] = ("SELECT address FROM cvm WHERE address BETWEEN ?1 AND ?2 UNION ALL"
		  " SELECT address FROM rest WHERE address BETWEEN ?1 AND ?2 ORDER BY 1"),
};

/* Addresses that may be given away, in host order, first to last. */
struct span {
	uint32_t first, last;
	uint64_t walked;			/* nothing below it is unused; last + 1 when nothing at all is */
};

struct ph_allot {
	sqlite3_stmt *statements[QUERY_COUNT];
	struct span spans[2];			/* below and above the gateway's own prefix */
	unsigned span_count;
	int64_t quarantine_ms;
};

static void add_span(struct ph_allot *allot, uint32_t first, uint32_t last)
{
	allot->spans[allot->span_count++] = (struct span){ .first = first, .last = last, .walked = first };
}

/* What hosts of the range may have, less the gateway's own prefix. */
static void set_spans(struct ph_allot *allot, const struct ph_registry_options *options)
{
	uint32_t range_mask = ntohl(ph_value_netmask(options->range_len));
	uint32_t own_mask = ntohl(ph_value_netmask(options->gateway_len));
	uint32_t first = (ntohl(options->range.s_addr) & range_mask) + 1;
	uint32_t last = (ntohl(options->range.s_addr) | ~range_mask) - 1;
	uint32_t own_first = ntohl(options->gateway.s_addr) & own_mask;
	uint32_t own_last = own_first | ~own_mask;

	if (own_last < first || own_first > last) {
		add_span(allot, first, last);
		return;
	}
	if (own_first > first)
		add_span(allot, first, own_first - 1);
	if (own_last < last)
		add_span(allot, own_last + 1, last);
}

int ph_allot_new(struct sqlite3 *db, const struct ph_registry_options *options, struct ph_allot **ret_allot)
{
	struct ph_allot *allot = calloc(1, sizeof(*allot));
	int err;

	if (!allot)
		return -ENOMEM;
	allot->quarantine_ms = options->quarantine_ms;
	set_spans(allot, options);
	err = ph_database_prepare(db, queries, QUERY_COUNT, allot->statements);
	if (err) {
		ph_allot_free(allot);
		return err;
	}
	*ret_allot = allot;
	return 0;
}

void ph_allot_free(struct ph_allot *allot)
{
	if (!allot)
		return;
	for (size_t i = 0; i < QUERY_COUNT; i++)
		sqlite3_finalize(allot->statements[i]);
	free(allot);
}

void ph_allot_reset(struct ph_allot *allot)
{
	for (unsigned i = 0; i < allot->span_count; i++)
		allot->spans[i].walked = allot->spans[i].first;
}

bool ph_allot_covers(const struct ph_allot *allot, uint32_t address)
{
	for (unsigned i = 0; i < allot->span_count; i++) {
		if (address >= allot->spans[i].first && address <= allot->spans[i].last)
			return true;
	}
	return false;
}

/* Never 0, which means rested. */
static int64_t now_ms(void)
{
	struct timespec now;
	int64_t ms;

	clock_gettime(CLOCK_REALTIME, &now);
	ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	return ms > 0 ? ms : 1;
}

int ph_allot_rest(struct ph_allot *allot, const char *instance_id)
{
	sqlite3_stmt *statement = ph_database_ready(allot->statements[REST]);

	sqlite3_bind_text(statement, 1, instance_id, -1, SQLITE_STATIC);
	sqlite3_bind_int64(statement, 2, now_ms());
	return ph_database_run(statement);
}

int ph_allot_age(struct ph_allot *allot)
{
	int64_t now = now_ms();
	sqlite3_stmt *statement = ph_database_ready(allot->statements[REST_ANEW]);
	int err;

	sqlite3_bind_int64(statement, 1, now);
	err = ph_database_run(statement);
	if (err)
		return err;
	statement = ph_database_ready(allot->statements[END_RESTS]);
	sqlite3_bind_int64(statement, 1, now - allot->quarantine_ms);
	return ph_database_run(statement);
}

/* Return: 0, -ENOENT or -EIO. */
static int find_old(struct ph_allot *allot, const char *app_id, const char *instance_id, uint32_t *ret_address)
{
	sqlite3_stmt *statement = ph_database_ready(allot->statements[OLD_ADDRESSES]);
	int err = -ENOENT, code;

	sqlite3_bind_text(statement, 1, instance_id, -1, SQLITE_STATIC);
	sqlite3_bind_text(statement, 2, app_id, -1, SQLITE_STATIC);
	while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
		uint32_t address = (uint32_t)sqlite3_column_int64(statement, 0);

		if (!ph_allot_covers(allot, address))
			continue;
		*ret_address = address;
		err = 0;
		break;
	}
	sqlite3_reset(statement);
	return code == SQLITE_ROW || code == SQLITE_DONE ? err : -EIO;
}

/* Return: 0, -ENOENT or -EIO. */
static int find_rested(struct ph_allot *allot, const struct span *span, uint32_t *ret_address)
{
	sqlite3_stmt *statement = ph_database_ready(allot->statements[LOWEST_RESTED]);
	int64_t address;
	int err;

	sqlite3_bind_int64(statement, 1, span->first);
	sqlite3_bind_int64(statement, 2, span->last);
	err = ph_database_number(statement, &address);
	if (!err)
		*ret_address = (uint32_t)address;
	return err;
}

/* Return: 0, -ENOENT or -EIO. */
static int find_unused(struct ph_allot *allot, struct span *span, uint32_t *ret_address)
{
	sqlite3_stmt *statement = ph_database_ready(allot->statements[WALK]);
	int code;

	sqlite3_bind_int64(statement, 1, (int64_t)span->walked);
	sqlite3_bind_int64(statement, 2, span->last);
	while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
		if (sqlite3_column_int64(statement, 0) != (int64_t)span->walked)
			break;
		span->walked++;
	}
	sqlite3_reset(statement);
	if (code != SQLITE_ROW && code != SQLITE_DONE)
		return -EIO;
	if (span->walked > span->last)
		return -ENOENT;
	*ret_address = (uint32_t)span->walked;
	return 0;
}

/* Return: 0, -ENOSPC or -EIO. */
static int find_lowest(struct ph_allot *allot, uint32_t *ret_address)
{
	for (unsigned i = 0; i < allot->span_count; i++) {
		uint32_t rested = UINT32_MAX, unused = UINT32_MAX;

		if (find_rested(allot, &allot->spans[i], &rested) == -EIO ||
		    find_unused(allot, &allot->spans[i], &unused) == -EIO)
			return -EIO;
		if (rested == UINT32_MAX && unused == UINT32_MAX)
			continue;
		*ret_address = rested < unused ? rested : unused;
		return 0;
	}
	return -ENOSPC;
}

int ph_allot_take(struct ph_allot *allot, const char *app_id, const char *instance_id, uint32_t *ret_address)
{
	sqlite3_stmt *statement;
	uint32_t address;
	int err;

	err = find_old(allot, app_id, instance_id, &address);
	if (err == -ENOENT)
		err = find_lowest(allot, &address);
	if (err)
		return err;
	statement = ph_database_ready(allot->statements[FORGET]);
	sqlite3_bind_int64(statement, 1, address);
	err = ph_database_run(statement);
	if (!err)
		*ret_address = address;
	return err;
}
