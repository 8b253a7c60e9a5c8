/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gates - the gate kept in place: on the configured NICs as they come and go, its targets as addresses do, its lists.
 *
 * Nothing here is needed for the gateway to work. So trouble is told, and tried again, and never stops anything.
 */
#ifndef PHALAD_GATES_H
#define PHALAD_GATES_H

#include "config.h"
#include "gate.h"

struct ph_gates;

/* A Nic, or all of them where it is no device's. */
struct ph_gates_row {
	const char *device;			/* NULL for all */
	enum ph_gate_mode mode;			/* PH_GATE_OFF: not on it */
	const char *trouble;			/* why not, or why not as it should be; "" when all is well */
};

#define PH_GATES_ROWS (PH_NICS_MAX + 1)

/* Nothing is loaded or attached yet. Return: 0 or -errno. */
int ph_gates_new(const struct ph_config *config, struct ph_gates **ret_gates);
/* What is attached stays, and goes on. */
void ph_gates_free(struct ph_gates *gates);

/*
 * At the start, once a second, and when devices come or go. The first time, takes the gate off where an
 * earlier configuration had it; without a Nic, does nothing else.
 */
void ph_gates_ensure(struct ph_gates *gates);

/* How it stands; what is pointed at is good until the next ph_gates_ensure(). Return: how many. */
uint32_t ph_gates_rows(const struct ph_gates *gates, struct ph_gates_row ret_rows[PH_GATES_ROWS]);

#endif
