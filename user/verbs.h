/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verbs - the control socket's requests, carried out and answered.
 */
#ifndef PHALAD_VERBS_H
#define PHALAD_VERBS_H

#include "keeper.h"
#include "server.h"

struct ph_verbs {
	struct ph_keeper *keeper;
	const struct ph_holder_counts *holder;
	uint64_t started_ns;			/* of the manager, CLOCK_BOOTTIME */
};

/* For ph_server_new(); its arg is a struct ph_verbs. */
extern const struct ph_server_calls ph_verbs_calls;

#endif
