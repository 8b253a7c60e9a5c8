/* SPDX-License-Identifier: Apache-2.0 */
/*
 * phalactl - the operator's hand: what its verbs share.
 *
 * Results go to standard output, words to standard error. A verb returns its exit status, and has said why when that
 * is not PH_CTL_DONE.
 */
#ifndef PHALACTL_H
#define PHALACTL_H

#include <limits.h>
#include <netinet/in.h>
#include <stdbool.h>

#include <maps.h>

#include "phalactl_json.h"
#include "phalactl_table.h"

enum ph_ctl_status {
	PH_CTL_DONE = 0,
	PH_CTL_FAILED = 1,
	PH_CTL_USAGE = 2,
};

#define PH_CTL_LATE_S 3				/* what is written each second and is older than this has stopped */

struct ph_ctl {
	char socket_path[PATH_MAX];		/* the manager's */
	char bpf_dir[PATH_MAX];			/* where the maps are pinned */
	char state_dir[PATH_MAX];		/* where the gate's lists are */
	bool guessed;				/* these may be others: the configuration cannot be read */
	const char *object;			/* of the verb */
	char run_dir[PATH_MAX];			/* of the socket; workers' ledgers are beside it */
	bool json;
	const char *app, *instance;		/* the verb's own options; NULL when not given */
	const char *public_key, *endpoint;
	const char *idle_timeout, *flows;	/* checked */
	bool generate_key, undo, pins;
	const char *reason;
	uint32_t count, seconds, for_ms;	/* 0 when not given */
	const char *operand;			/* NULL for verbs without one */
};

int ph_ctl_app_list(const struct ph_ctl *ctl);
int ph_ctl_app_show(const struct ph_ctl *ctl);
int ph_ctl_app_set(const struct ph_ctl *ctl);
int ph_ctl_status(const struct ph_ctl *ctl);
int ph_ctl_cvm_add(const struct ph_ctl *ctl);
int ph_ctl_cvm_list(const struct ph_ctl *ctl);
int ph_ctl_cvm_show(const struct ph_ctl *ctl);
int ph_ctl_cvm_remove(const struct ph_ctl *ctl);
int ph_ctl_cvm_drain(const struct ph_ctl *ctl);
int ph_ctl_map_list(const struct ph_ctl *ctl);
int ph_ctl_map_dump(const struct ph_ctl *ctl);
int ph_ctl_route(const struct ph_ctl *ctl);
int ph_ctl_flow_list(const struct ph_ctl *ctl);
int ph_ctl_flow_show(const struct ph_ctl *ctl);
int ph_ctl_flow_kill(const struct ph_ctl *ctl);
int ph_ctl_flow_watch(const struct ph_ctl *ctl);
int ph_ctl_guard_show(const struct ph_ctl *ctl);
int ph_ctl_guard_watch(const struct ph_ctl *ctl);
int ph_ctl_detach(const struct ph_ctl *ctl);
int ph_ctl_gate_show(const struct ph_ctl *ctl);
/* Of the list that is the verb's object. */
int ph_ctl_list_add(const struct ph_ctl *ctl);
int ph_ctl_list_remove(const struct ph_ctl *ctl);
int ph_ctl_list_list(const struct ph_ctl *ctl);
int ph_ctl_list_import(const struct ph_ctl *ctl);

/* Words on standard error, with the program's name before them. */
void ph_ctl_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same. Return: PH_CTL_FAILED. */
int ph_ctl_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/**
 * ph_ctl_request() - ask the manager.
 * @request: freed here.
 * @ret_reply: the caller's to free; what was asked for is its member "result", an object or an array.
 *
 * Return: PH_CTL_DONE, or PH_CTL_FAILED when the manager cannot be reached, refuses, or does not answer in time.
 */
int ph_ctl_request(const struct ph_ctl *ctl, struct ph_json *request, struct ph_json **ret_reply);
/*
 * The same where the answer is only part of what is shown: no word of failure, and no long wait. Return: the caller's to free,
 * or NULL.
 */
struct ph_json *ph_ctl_ask(const struct ph_ctl *ctl, const char *verb);
/* Is anybody behind the control socket? Also when this cannot be told, for want of permission or time. */
bool ph_ctl_listens(const struct ph_ctl *ctl);
/* A request with nothing in it but the verb. */
struct ph_json *ph_ctl_verb(const char *verb);

/* The pinned maps, for reading. Return: PH_CTL_DONE or PH_CTL_FAILED. */
int ph_ctl_maps_open(const struct ph_ctl *ctl, struct ph_maps **ret_maps);

/* CLOCK_BOOTTIME, in which maps hold their times. */
uint64_t ph_ctl_boot_now_ns(void);
/* Seconds since @then_ns, to the millisecond; 0 when that is still to come. */
double ph_ctl_age_s(uint64_t now_ns, uint64_t then_ns);
/* Is a device of that number here, and not up? None may be another network namespace's. */
bool ph_ctl_is_down(uint32_t ifindex);

/* @id may be anything. Return: whether it is one of that kind. */
bool ph_ctl_find_id(const struct ph_maps *maps, const char *id, enum ph_id_kind kind, struct ph_id *ret_id);

/*
 * A copy of an instance that was whole at one moment.
 *
 * Return: false when the slot is free or its instance is not @ref's.
 */
bool ph_ctl_instance(const struct ph_maps *maps, const struct ph_ref *ref, struct ph_instance *ret_instance);
/* What a slot holds, whichever that is. Return: false when it is free. */
bool ph_ctl_slot(const struct ph_maps *maps, uint32_t slot, struct ph_instance *ret_instance);
/* An instance as a document: ids, address, state, health. @id: the id it is asked for by, zero padded. */
struct ph_json *ph_ctl_instance_json(const struct ph_maps *maps, const struct ph_ref *ref,
				     const struct ph_instance *instance, const char *id);

/* A word for an enum ph_mode. */
const char *ph_ctl_mode(uint8_t mode);

/* What steer counted for an instance, the non-zero ones as {word: count}. */
struct ph_json *ph_ctl_load_reasons(const struct ph_load *load);

/* "192.0.2.2" or "2001:db8::2"; returns @text, of INET6_ADDRSTRLEN bytes. */
const char *ph_ctl_address(char *text, const struct in6_addr *address);

/* A worker as a document; @key: what its index is called. Return: NULL when the slot was never used. */
struct ph_json *ph_ctl_worker_json(const struct ph_maps *maps, uint32_t index, const char *key);

/* Counters are shown by the word of what they count, and what that means. */
struct ph_ctl_word {
	const char *word, *text;
};

extern const struct ph_ctl_word ph_ctl_reasons[PH_REASON_COUNT];
extern const struct ph_ctl_word ph_ctl_guard_reasons[PH_GUARD_COUNT];
extern const struct ph_ctl_word ph_ctl_gate_reasons[PH_GATE_COUNT];

/* The non-zero ones as {word: count}; beyond @word_count, which a later phalad has written, as "reason-<number>". */
struct ph_json *ph_ctl_counters_json(const __u64 *counters, size_t count, const struct ph_ctl_word *words,
				     size_t word_count);
/* The non-zero ones of such an object as a table with @heading over the words; nothing when there are none. */
void ph_ctl_counters_print(const struct ph_json *counters, const struct ph_ctl_word *words, size_t word_count,
			   const char *heading, FILE *out);

#endif
