/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch - a line, or a document on one line, for each event, until there were enough or it is interrupted.
 */
#ifndef PHALACTL_WATCH_H
#define PHALACTL_WATCH_H

#include <watch.h>

#include "phalactl.h"

struct ph_ctl_watching {
	enum ph_watch_what what;
	struct ph_json *(*json)(const void *event, const struct ph_maps *maps);
	void (*print)(const struct ph_json *json);	/* in words, of such a document */
};

/* Return: PH_CTL_DONE or PH_CTL_FAILED. */
int ph_ctl_watch(const struct ph_ctl *ctl, const struct ph_ctl_watching *watching);

/* Wall clock of a CLOCK_MONOTONIC time, to the millisecond; and as "12:34:56.789" in @text, which is returned. */
double ph_ctl_unix_s(uint64_t monotonic_ns);
const char *ph_ctl_clock(char *text, size_t size, double unix_s);

#endif
