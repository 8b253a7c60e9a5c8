/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setting - the keys of phalad.conf: where each stands, whether it must, what it may hold, and where it is kept.
 *
 * Knows nothing of files and lines: that is config.c.
 */
#ifndef PHALAD_SETTING_H
#define PHALAD_SETTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"

enum ph_section {
	PH_SECTION_NONE,
	PH_SECTION_GATEWAY,
	PH_SECTION_DOMAIN,			/* one for each base domain */
	PH_SECTION_TUNNEL,
	PH_SECTION_COUNT,
};

enum ph_need {
	PH_NEED_NOT,
	PH_NEED_ALWAYS,
	PH_NEED_FOR_WIREGUARD,			/* and meaningless with another tunnel */
	PH_NEED_NOT_EXTERNAL,			/* not; and meaningless with a tunnel that is not external */
};

struct ph_setting {
	enum ph_section section;
	const char *name;
	enum ph_need need;
	/* Return: 0, or -EINVAL with @why set. */
	int (*set)(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size);
	size_t offset;				/* of the field in struct ph_config, or in struct ph_domain */
	size_t size;
	uint32_t min, max;			/* of numbers; of durations, in ms */
};

#define PH_SETTING_COUNT 37

extern const struct ph_setting ph_settings[PH_SETTING_COUNT];

/**
 * ph_setting_set() - read a value into its place.
 * @config: the place; a key of a domain goes into its last domain.
 * @why: what is wrong with the value, set on failure.
 *
 * Return: 0, or -EINVAL and @config is unchanged.
 */
int ph_setting_set(const struct ph_setting *setting, struct ph_config *config, const char *value, char *why,
		   size_t why_size);

/* May it be given more than once? */
bool ph_setting_repeats(const struct ph_setting *setting);

#endif
