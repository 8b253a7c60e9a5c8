// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <string.h>

#define SMALL 16384
#define MAGIC 0x746f7274

struct dice {
	uint64_t state;
};

/* splitmix64 */
static uint64_t roll(struct dice *dice)
{
	uint64_t z = dice->state += 0x9e3779b97f4a7c15U;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
	z = (z ^ z >> 27) * 0x94d049bb133111ebU;
	return z ^ z >> 31;
}

static uint32_t below(struct dice *dice, uint32_t bound)
{
	return bound ? (uint32_t)(roll(dice) % bound) : 0;
}

/* Nine of ten up to 16 KiB, the tenth as likely in each octave up to the largest. */
static uint32_t size(struct dice *dice, uint32_t largest)
{
	uint32_t octaves = 0, base;

	while ((uint32_t)SMALL << (octaves + 1) <= largest)
		octaves++;
	if (below(dice, 10) || !octaves)
		return below(dice, SMALL + 1);
	base = (uint32_t)SMALL << below(dice, octaves);
	return base + below(dice, base + 1);
}

static uint32_t hello_len(struct dice *dice, enum plan_way way)
{
	uint32_t kind = below(dice, 10);

	if (way == PLAN_LONG)
		return 4200 + below(dice, 6000);
	if (kind < 5)
		return 517;
	return kind < 9 ? 1400 + below(dice, 600) : 2000 + below(dice, 1500);
}

static void cut(struct dice *dice, struct plan *plan)
{
	uint32_t at = 0, count = below(dice, 4) ? 0 : 1 + below(dice, PLAN_CUTS);

	for (uint32_t i = 0; i < count && at + 1 < plan->hello_len; i++) {
		at += 1 + below(dice, plan->hello_len - at - 1);
		plan->cuts[i] = at;
	}
}

void plan_make(const struct plan_rules *rules, uint32_t index, struct plan *ret_plan)
{
	struct dice dice = { rules->seed ^ (uint64_t)index << 32 ^ index };
	struct plan plan = { .index = index };

	plan.up = size(&dice, rules->largest);
	plan.down = size(&dice, rules->largest);
	if (below(&dice, 1000) < rules->relay)
		plan.way = below(&dice, 2) ? PLAN_POSTGRES : PLAN_LONG;
	plan.end = (enum plan_end)below(&dice, 3);
	if (below(&dice, 1000) < rules->resets) {
		plan.end = below(&dice, 2) ? PLAN_CLIENT_RESETS : PLAN_SERVER_RESETS;
		plan.reset_at = below(&dice, plan.up + plan.down);
	}
	plan.stalls = below(&dice, 1000) < rules->stalls;
	plan.hello_len = hello_len(&dice, plan.way);
	cut(&dice, &plan);
	if (!below(&dice, 4) && plan.end != PLAN_SERVER_FIRST)
		plan.early = plan.up < PLAN_EARLY_MAX ? plan.up : below(&dice, PLAN_EARLY_MAX);
	*ret_plan = plan;
}

static uint8_t *put(uint8_t *at, uint32_t value, unsigned bytes)
{
	while (bytes--)
		*at++ = (uint8_t)(value >> 8 * bytes);
	return at;
}

/*
 * RFC 8446, section 4.1.2: record header 5, message header 4, version 2, random 32, session id 1, suites 2 + 2,
 * compression 1 + 1, extensions 2: server_name, supported_versions, padding.
 */
#define RANDOM_AT 11
#define EXTENSIONS_AT 52

struct note {				/* in the random */
	uint32_t magic;
	uint32_t index;
	struct plan_rules rules;
};

size_t plan_hello(const struct plan_rules *rules, const struct plan *plan, const char *name,
		  uint8_t out[PLAN_HELLO_MAX])
{
	uint32_t name_len = (uint32_t)strlen(name), len = plan->hello_len, fixed = EXTENSIONS_AT + 9 + name_len + 7 + 4;
	struct note note = { .magic = MAGIC, .index = plan->index, .rules = *rules };
	uint8_t *at = out;

	_Static_assert(sizeof(struct note) <= 32, "the note fits the random");
	if (len < fixed)
		len = fixed;
	memset(out, 0, len);
	at = put(at, 0x160301, 3);
	at = put(at, len - 5, 2);
	at = put(at, 1, 1);
	at = put(at, len - 9, 3);
	at = put(at, 0x0303, 2);
	memcpy(at, &note, sizeof(note));
	at = out + RANDOM_AT + 32;
	at = put(at, 0, 1);
	at = put(at, 0x00021301, 4);
	at = put(at, 0x0100, 2);
	at = put(at, len - EXTENSIONS_AT, 2);
	at = put(at, 0, 2);			/* server_name (RFC 6066, section 3) */
	at = put(at, name_len + 5, 2);
	at = put(at, name_len + 3, 2);
	at = put(at, 0, 1);
	at = put(at, name_len, 2);
	memcpy(at, name, name_len);
	at += name_len;
	at = put(at, 43, 2);			/* supported_versions */
	at = put(at, 3, 2);
	at = put(at, 0x020304, 3);
	at = put(at, 21, 2);			/* padding (RFC 7685), of zeros */
	put(at, len - fixed, 2);
	return len;
}

int plan_read(const uint8_t *hello, size_t len, struct plan_rules *ret_rules, uint32_t *ret_index,
	      char ret_label[PLAN_LABEL_SIZE])
{
	size_t label_len;
	struct note note;

	if (len < EXTENSIONS_AT + 9 + 1)
		return -1;
	memcpy(&note, hello + RANDOM_AT, sizeof(note));
	if (note.magic != MAGIC)
		return -1;
	for (label_len = 0; EXTENSIONS_AT + 9 + label_len < len && label_len < PLAN_LABEL_SIZE - 1; label_len++) {
		uint8_t c = hello[EXTENSIONS_AT + 9 + label_len];

		if (c == '-' || c == '.')
			break;
		ret_label[label_len] = (char)c;
	}
	ret_label[label_len] = '\0';
	*ret_rules = note.rules;
	*ret_index = note.index;
	return 0;
}

uint64_t plan_offset(const struct plan_rules *rules, uint32_t index, const char *label, bool up)
{
	struct dice dice = { rules->seed ^ ((uint64_t)index << 1 | up) };

	for (; *label; label++)
		dice.state = roll(&dice) ^ (uint8_t)*label;
	return roll(&dice) >> 8;
}

uint64_t plan_digest(const struct plan *plan)
{
	struct dice dice = { (uint64_t)plan->up << 32 | plan->down };

	dice.state = roll(&dice) ^ plan->index;
	return roll(&dice);
}
