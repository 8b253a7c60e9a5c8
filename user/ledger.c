// SPDX-License-Identifier: Apache-2.0
#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define READ_ROWS 256

struct header {
	uint32_t version;			/* PH_ABI_VERSION */
	uint32_t row_size;
	uint32_t rows;
	uint32_t pid;
	uint8_t reserved[sizeof(struct ph_ledger_row) - 16];
};

_Static_assert(sizeof(struct header) == sizeof(struct ph_ledger_row), "the header takes the place of a row");

#define FILE_BYTES ((PH_LEDGER_ROWS + 1) * sizeof(struct ph_ledger_row))

struct ph_ledger {
	struct header *header;			/* mapped */
	struct ph_ledger_row *rows;		/* behind it */
	uint32_t serial;
	uint32_t free_count;
	uint32_t free[PH_LEDGER_ROWS];		/* a stack, so that the file's first pages are used most */
};

static int file_path(char path[PATH_MAX], const char *run_dir, uint32_t worker)
{
	return snprintf(path, PATH_MAX, "%s/worker-%u", run_dir, worker) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

/* All its room at once: a store into a page that there is no room for would be fatal. */
static int make_file(const char *path)
{
	int fd, err;

	if (unlink(path) && errno != ENOENT)
		return -errno;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	err = -posix_fallocate(fd, 0, FILE_BYTES);
	if (!err)
		return fd;
	close(fd);
	unlink(path);
	return err;
}

int ph_ledger_new(const char *run_dir, uint32_t worker, struct ph_ledger **ret_ledger)
{
	struct ph_ledger *ledger;
	char path[PATH_MAX];
	int err = file_path(path, run_dir, worker), fd;
	void *at;

	if (err)
		return err;
	fd = make_file(path);
	if (fd < 0)
		return fd;
	at = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = at == MAP_FAILED ? -errno : 0;
	close(fd);
	if (err)
		return err;
	ledger = calloc(1, sizeof(*ledger));
	if (!ledger) {
		munmap(at, FILE_BYTES);
		return -ENOMEM;
	}
	ledger->header = at;
	ledger->rows = (struct ph_ledger_row *)at + 1;
	for (uint32_t i = PH_LEDGER_ROWS; i--;)
		ledger->free[ledger->free_count++] = i;
	*ledger->header = (struct header){ PH_ABI_VERSION, sizeof(struct ph_ledger_row), PH_LEDGER_ROWS,
					   (uint32_t)getpid(), { 0 } };
	*ret_ledger = ledger;
	return 0;
}

void ph_ledger_free(struct ph_ledger *ledger)
{
	if (!ledger)
		return;
	munmap(ledger->header, FILE_BYTES);
	free(ledger);
}

struct ph_ledger_row *ph_ledger_take(struct ph_ledger *ledger, const struct in6_addr *client, uint16_t client_port,
				     uint64_t now_ns)
{
	struct ph_ledger_row *row;

	if (!ledger || !ledger->free_count)
		return NULL;
	row = &ledger->rows[ledger->free[--ledger->free_count]];
	*row = (struct ph_ledger_row){
		.client = *client,
		.client_port = client_port,
		.begun_ns = now_ns,
		.moved_ns = now_ns,
	};
	if (!++ledger->serial)
		ledger->serial = 1;
	__atomic_store_n(&row->serial, ledger->serial, __ATOMIC_RELEASE);
	return row;
}

void ph_ledger_give_back(struct ph_ledger *ledger, struct ph_ledger_row *row)
{
	if (!row)
		return;
	__atomic_store_n(&row->serial, 0, __ATOMIC_RELEASE);
	ledger->free[ledger->free_count++] = (uint32_t)(row - ledger->rows);
}

/* Three copies of the same rows, one after the other: what has one serial in all of them did not change in the second. */
static int visit_rows(int fd, uint32_t first, struct ph_ledger_row copies[3][READ_ROWS],
		      int (*visit)(uint32_t row, const struct ph_ledger_row *at, void *arg), void *arg)
{
	off_t at = (off_t)((first + 1) * sizeof(copies[0][0]));
	int err = 0;

	for (int i = 0; i < 3; i++)
		if (pread(fd, copies[i], sizeof(copies[i]), at) != sizeof(copies[i]))
			return -ESTALE;
	for (uint32_t i = 0; i < READ_ROWS && !err; i++) {
		uint32_t serial = copies[0][i].serial;

		if (serial && copies[1][i].serial == serial && copies[2][i].serial == serial)
			err = visit(first + i, &copies[1][i], arg);
	}
	return err;
}

int ph_ledger_each(const char *run_dir, uint32_t worker, uint32_t pid,
		   int (*visit)(uint32_t row, const struct ph_ledger_row *at, void *arg), void *arg)
{
	static struct ph_ledger_row copies[3][READ_ROWS];
	struct header header;
	char path[PATH_MAX];
	int err = file_path(path, run_dir, worker), fd;

	if (err)
		return err;
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (pread(fd, &header, sizeof(header), 0) != sizeof(header) || header.version != PH_ABI_VERSION ||
	    header.row_size != sizeof(copies[0][0]) || header.rows != PH_LEDGER_ROWS || header.pid != pid)
		err = -ESTALE;
	for (uint32_t i = 0; i < PH_LEDGER_ROWS && !err; i += READ_ROWS)
		err = visit_rows(fd, i, copies, visit, arg);
	close(fd);
	return err;
}
