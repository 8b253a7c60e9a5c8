/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gates - the gate kept in place: on the configured NICs as they come and go, its targets as addresses do, its lists.
 *
 * Nothing here is needed for the gateway to work. So trouble is told, and tried again, and never stops anything.
 */
#ifndef PHALAD_GATES_H
#define PHALAD_GATES_H

#include "config.h"

struct ph_gates;

/* Nothing is loaded or attached yet. Return: 0 or -errno. */
int ph_gates_new(const struct ph_config *config, struct ph_gates **ret_gates);
/* What is attached stays, and goes on. */
void ph_gates_free(struct ph_gates *gates);

/*
 * At the start, once a second, and when devices come or go. The first time, takes the gate off where an
 * earlier configuration had it; without a Nic, does nothing else.
 */
void ph_gates_ensure(struct ph_gates *gates);

#endif
