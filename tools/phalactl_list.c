// SPDX-License-Identifier: Apache-2.0
/*
 * deny, allow: the gate's lists. Changed here, whether phalad runs or not: see lists.h.
 */
#include "phalactl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <lists.h>

#define ERROR_SIZE (PATH_MAX + 512)

static enum ph_list_kind kind_of(const struct ph_ctl *ctl)
{
	return !strcmp(ctl->object, ph_list_word(PH_LIST_ALLOW)) ? PH_LIST_ALLOW : PH_LIST_DENY;
}

static struct ph_lists_place place_of(const struct ph_ctl *ctl)
{
	return (struct ph_lists_place){ ctl->state_dir, ctl->bpf_dir };
}

/* The first second that is wholly behind the time given; 0 when none is. */
static int64_t end_of(const struct ph_ctl *ctl)
{
	struct timespec now;

	if (!ctl->for_ms)
		return 0;
	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec + (now.tv_nsec / 1000000 + (int64_t)ctl->for_ms + 999) / 1000;
}

static int fail(const char *error, int err)
{
	return ph_ctl_fail("%s%s", error, (err == -EACCES || err == -EPERM) && geteuid() ? ": root is needed" : "");
}

/* @list: "deny", as people say it. */
static void print_result(const struct ph_ctl *ctl, const struct ph_lists_result *result)
{
	struct ph_json *json;

	if (ctl->json) {
		json = ph_json_object();
		ph_json_set_number(json, "added", result->added);
		ph_json_set_number(json, "changed", result->changed);
		ph_json_set_number(json, "removed", result->removed);
		ph_json_set_number(json, "prefixes", result->rows);
		ph_json_set_bool(json, "enforced", result->enforced);
		ph_json_print(json, stdout);
		ph_json_free(json);
	} else {
		ph_ctl_say("%s list: %zu added, %zu changed, %zu removed; it has %zu now", ctl->object, result->added,
			   result->changed, result->removed, result->rows);
	}
	if (!result->enforced)
		ph_ctl_say("there is no gate in %s: the list is enforced once phalad has made one (Nic, and not Gate = off)",
			   ctl->bpf_dir);
}

/* What another list holds would take the place of what the kernel enforces. Return: an enum ph_ctl_status. */
static int check_place(const struct ph_ctl *ctl)
{
	return ctl->guessed ? ph_ctl_fail("without its configuration the lists may be others than phalad's; nothing is "
					  "changed") : PH_CTL_DONE;
}

static int add(const struct ph_ctl *ctl, struct ph_prefix_list *list)
{
	struct ph_lists_place place = place_of(ctl);
	struct ph_lists_result result;
	char error[ERROR_SIZE];
	int err;

	if (check_place(ctl))
		return PH_CTL_FAILED;
	for (size_t i = 0; i < list->count; i++) {
		if (ctl->for_ms && !list->rows[i].until_s)
			list->rows[i].until_s = end_of(ctl);
		if (ctl->reason && !list->rows[i].reason[0])
			list->rows[i].reason = ctl->reason;
	}
	err = ph_lists_add(&place, kind_of(ctl), list, &result, error, sizeof(error));
	if (err)
		return fail(error, err);
	print_result(ctl, &result);
	return PH_CTL_DONE;
}

int ph_ctl_list_add(const struct ph_ctl *ctl)
{
	struct ph_prefix_row row = { .reason = "" };
	struct ph_prefix_list list = { .rows = &row, .count = 1 };
	char error[256];

	if (ph_prefix_read(ctl->operand, &row.prefix, error, sizeof(error)))
		return ph_ctl_fail("%s", error);
	return add(ctl, &list);
}

int ph_ctl_list_remove(const struct ph_ctl *ctl)
{
	struct ph_prefix_row row = { .reason = "" };
	struct ph_prefix_list list = { .rows = &row, .count = 1 };
	struct ph_lists_place place = place_of(ctl);
	struct ph_lists_result result;
	char error[ERROR_SIZE];
	int err;

	if (ph_prefix_read(ctl->operand, &row.prefix, error, sizeof(error)))
		return ph_ctl_fail("%s", error);
	if (check_place(ctl))
		return PH_CTL_FAILED;
	err = ph_lists_remove(&place, kind_of(ctl), &list, &result, error, sizeof(error));
	if (err)
		return fail(error, err);
	print_result(ctl, &result);
	return PH_CTL_DONE;
}

int ph_ctl_list_import(const struct ph_ctl *ctl)
{
	bool in = !strcmp(ctl->operand, "-");
	FILE *file = in ? stdin : fopen(ctl->operand, "re");
	const char *name = in ? "standard input" : ctl->operand;
	struct ph_prefix_list list = { 0 };
	char error[ERROR_SIZE];
	int err, status;

	if (!file)
		return ph_ctl_fail("%s: %s", name, strerror(errno));
	err = ph_prefix_list_read(file, name, PH_GATE_PREFIXES_MAX, &list, error, sizeof(error));
	if (!in)
		fclose(file);
	if (err)
		return ph_ctl_fail("%s; nothing is imported", error);
	status = add(ctl, &list);
	ph_prefix_list_free(&list);
	return status;
}

/* A million rows are printed as they come: a document of all of them would take half a gigabyte. */
static void print_row(const struct ph_ctl *ctl, const struct ph_prefix_row *row, size_t index)
{
	char prefix[PH_PREFIX_TEXT_SIZE], until[PH_TIME_TEXT_SIZE], *text;
	struct ph_json *json;

	if (!ctl->json) {
		ph_prefix_row_write(row, stdout);
		return;
	}
	json = ph_json_object();
	ph_json_set_string(json, "prefix", ph_prefix_text(prefix, &row->prefix));
	if (row->until_s)
		ph_json_set_string(json, "until", ph_time_text(until, row->until_s));
	else
		ph_json_set(json, "until", NULL);
	ph_json_set_string(json, "reason", row->reason);
	text = ph_json_text(json);
	printf("%s%s", index ? ",\n " : "", text);
	free(text);
	ph_json_free(json);
}

int ph_ctl_list_list(const struct ph_ctl *ctl)
{
	struct ph_lists_place place = place_of(ctl);
	struct ph_prefix_list list = { 0 };
	int64_t now_s = time(NULL);
	char error[ERROR_SIZE];
	size_t shown = 0;
	int err = ph_lists_read(&place, kind_of(ctl), &list, error, sizeof(error));

	if (err)
		return fail(error, err);
	if (ctl->json)
		printf("[");
	for (size_t i = 0; i < list.count && (!ctl->count || shown < ctl->count); i++) {
		if (!list.rows[i].until_s || list.rows[i].until_s > now_s)
			print_row(ctl, &list.rows[i], shown++);
	}
	if (ctl->json)
		printf("]\n");
	ph_prefix_list_free(&list);
	return PH_CTL_DONE;
}
