/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ledger - the connections that a worker carries just now, row by row, in a file that phalactl reads.
 *
 * In RunDir, for root only; the worker has it mapped before it gives up everything, and keeps it up by plain stores. The
 * file has all its room from the start. Connections beyond that are carried like others, but only counted.
 *
 * A reader takes no lock: a copy of a row is whole if the serial is the same before and after it. The file is the worker's: what it says
 * is believed for showing, and for nothing else.
 */
#ifndef PHALAD_LEDGER_H
#define PHALAD_LEDGER_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#include <phala/abi.h>

#define PH_LEDGER_ROWS 16384

enum ph_ledger_state {
	PH_LEDGER_HELLO,		/* nobody knows yet where it wants to go */
	PH_LEDGER_DIALING,
	PH_LEDGER_HANDSHAKE,
	PH_LEDGER_RELAYING,
	PH_LEDGER_REFUSED,
	PH_LEDGER_STATES,
};

struct ph_ledger_row {
	uint32_t serial;		/* 0: free */
	uint8_t state;			/* enum ph_ledger_state */
	uint8_t mode;			/* enum ph_mode, once it is known where to */
	uint8_t reason;			/* enum ph_reason: why it is not the kernel's; 0 is not known */
	uint8_t domain;			/* index */
	struct in6_addr client;		/* IPv4: mapped */
	uint16_t client_port;
	uint16_t port;			/* the CVM's; 0 while it is not known */
	uint8_t by_instance;		/* the name had an instance-id */
	uint8_t reserved[3];
	struct ph_ref instance;		/* generation 0 while there is none */
	uint64_t begun_ns, moved_ns;	/* CLOCK_BOOTTIME */
	uint64_t bytes_from_client, bytes_from_cvm;
};

struct ph_ledger;

/* Makes the file anew. Return: 0 or -errno. */
int ph_ledger_new(const char *run_dir, uint32_t worker, struct ph_ledger **ret_ledger);
void ph_ledger_free(struct ph_ledger *ledger);

/* Return: a row with @client and @now_ns in it, all else zero; NULL when there is none left, or no ledger. */
struct ph_ledger_row *ph_ledger_take(struct ph_ledger *ledger, const struct in6_addr *client, uint16_t client_port,
				     uint64_t now_ns);
void ph_ledger_give_back(struct ph_ledger *ledger, struct ph_ledger_row *row);

/**
 * ph_ledger_each() - what the file of a worker holds.
 * @pid: the worker's; another one's file is left alone.
 *
 * Return: 0, -ENOENT when there is no such file, -ESTALE when it is another worker's or version's, what @visit returned if
 * not 0, or -errno.
 */
int ph_ledger_each(const char *run_dir, uint32_t worker, uint32_t pid,
		   int (*visit)(uint32_t row, const struct ph_ledger_row *at, void *arg), void *arg);

#endif
