// SPDX-License-Identifier: Apache-2.0
/* ledger: what a worker writes down, a reader finds; and nothing of another worker's, or half of a row. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ktap.h"
#include "ledger.h"

#define WORKER 3

static char dir[64], path[128];

struct seen {
	uint32_t count, wrong;
	struct ph_ledger_row last;
};

static int see(uint32_t row, const struct ph_ledger_row *at, void *arg)
{
	struct seen *seen = arg;

	(void)row;
	seen->count++;
	seen->last = *at;
	/* In these tests port and bytes follow from the client's port. */
	seen->wrong += at->port && (at->port != at->client_port || at->bytes_from_cvm != at->client_port);
	return 0;
}

static int look(uint32_t pid, struct seen *ret_seen)
{
	memset(ret_seen, 0, sizeof(*ret_seen));
	return ph_ledger_each(dir, WORKER, pid, see, ret_seen);
}

static struct ph_ledger_row *take(struct ph_ledger *ledger, uint16_t port)
{
	struct in6_addr client = { .s6_addr = { 0x20, 1, 0xd, 0xb8, [15] = 2 } };
	struct ph_ledger_row *row = ph_ledger_take(ledger, &client, port, 777);

	if (row) {
		row->bytes_from_cvm = port;
		__atomic_store_n(&row->port, port, __ATOMIC_RELEASE);
	}
	return row;
}

static void test_rows(void)
{
	struct ph_ledger_row *row, *other, *rows[8];
	struct ph_ledger *ledger = NULL;
	struct stat status;
	struct seen seen;
	uint32_t serial, taken = 0;

	ktap_ok(look(1, &seen) == -ENOENT, "no file: no worker");
	if (!ktap_ok(!ph_ledger_new(dir, WORKER, &ledger), "a new ledger"))
		return;
	ktap_ok(!stat(path, &status) && (status.st_mode & 0777) == 0600 && status.st_blocks * 512 >= status.st_size,
		"its file is its owner's only, and has all its room");
	ktap_ok(!look(getpid(), &seen) && !seen.count, "empty at first");
	row = take(ledger, 1000);
	serial = row->serial;
	ktap_ok(!look(getpid(), &seen) && seen.count == 1 && !seen.wrong && seen.last.begun_ns == 777 &&
		seen.last.client.s6_addr[15] == 2, "a row is seen");
	ktap_ok(look(getpid() + 1, &seen) == -ESTALE && !seen.count, "another worker's file is not read");
	other = take(ledger, 1001);
	ph_ledger_give_back(ledger, row);
	ktap_ok(!look(getpid(), &seen) && seen.count == 1 && seen.last.client_port == 1001, "one that is over is not");
	row = take(ledger, 1002);
	ktap_ok(row->serial != serial, "a row that is used again has another serial");
	ph_ledger_give_back(ledger, row);
	ph_ledger_give_back(ledger, other);
	ph_ledger_give_back(ledger, NULL);

	for (taken = 0; taken < 2 * PH_LEDGER_ROWS && (row = take(ledger, 1 + taken % 60000)); taken++)
		rows[taken % 8] = row;
	ktap_ok(taken == PH_LEDGER_ROWS && !look(getpid(), &seen) && seen.count == PH_LEDGER_ROWS && !seen.wrong,
		"as many as there is room for, and no more");
	ph_ledger_give_back(ledger, rows[0]);
	ktap_ok(take(ledger, 5) == rows[0] && !take(ledger, 6), "one given back: one more");
	ktap_ok(!ph_ledger_take(NULL, &rows[0]->client, 1, 1), "no ledger: no row");
	ph_ledger_free(ledger);

	ktap_ok(!ph_ledger_new(dir, WORKER, &ledger) && !look(getpid(), &seen) && !seen.count, "a new worker begins anew");
	ph_ledger_free(ledger);
	ktap_ok(!truncate(path, 4096) && look(getpid(), &seen) == -ESTALE, "a file that was cut is refused");
	unlink(path);
	ktap_ok(!symlink("/etc/passwd", path) && look(getpid(), &seen) == -ELOOP, "a link is not followed");
	ktap_ok(!ph_ledger_new(dir, WORKER, &ledger) && !lstat(path, &status) && S_ISREG(status.st_mode),
		"and not written through");
	ph_ledger_free(ledger);
	unlink(path);
	ktap_ok(ph_ledger_new("/nonexistent", WORKER, &ledger) == -ENOENT, "no directory: no ledger");
}

/* A writer that takes and gives back as fast as it can, and a reader beside it. */
static void test_together(void)
{
	struct ph_ledger *ledger;
	uint32_t wrong = 0, rows = 0;
	struct seen seen;
	int ready[2];
	pid_t child;
	char byte;

	if (pipe(ready))
		return;
	child = fork();
	if (!child) {
		struct ph_ledger_row *held[64] = { 0 };

		if (ph_ledger_new(dir, WORKER, &ledger) || write(ready[1], "", 1) != 1)
			_exit(1);
		for (uint32_t i = 0;; i++) {
			ph_ledger_give_back(ledger, held[i % 64]);
			held[i % 64] = take(ledger, 1 + i % 60000);
		}
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) == 1) {
		for (int i = 0; i < 300; i++) {
			wrong += look(child, &seen) || seen.wrong;
			rows += seen.count;
		}
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(ready[0]);
	unlink(path);
	ktap_ok(rows > 100 && !wrong, "beside a writer: %u rows, each whole", rows);
}

int main(void)
{
	ktap_header();
	strcpy(dir, "/tmp/phala-ledger.XXXXXX");
	if (!ktap_ok(mkdtemp(dir) != NULL, "a directory"))
		return ktap_end();
	snprintf(path, sizeof(path), "%s/worker-%d", dir, WORKER);
	test_rows();
	test_together();
	rmdir(dir);
	return ktap_end();
}
