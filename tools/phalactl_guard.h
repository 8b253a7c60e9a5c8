/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guard - what guard dropped, as several verbs show it.
 */
#ifndef PHALACTL_GUARD_H
#define PHALACTL_GUARD_H

#include "phalactl.h"

/*
 * Makes a row for each CVM and reason for which something was dropped; @add takes it over. A CVM that is gone has no
 * rows, and what is of no CVM has neither app nor instance nor address. Return: 0 or -errno.
 */
int ph_ctl_drop_rows(const struct ph_ctl *ctl, const struct ph_maps *maps,
		     void (*add)(struct ph_json *row, void *arg), void *arg);
extern const struct ph_column ph_ctl_drop_columns[];

#endif
