/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list - a circular list whose links are part of what is listed; nothing is allocated, everything is O(1).
 */
#ifndef PHALAD_LIST_H
#define PHALAD_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct ph_list {
	struct ph_list *next, *prev;
};

#define ph_container_of(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

/* For a list and for a link that is in none. */
void ph_list_init(struct ph_list *list);
bool ph_list_is_empty(const struct ph_list *list);

/* @link must be in no list. */
void ph_list_append(struct ph_list *list, struct ph_list *link);

/* Leaves @link in no list; nothing happens if it was in none. */
void ph_list_remove(struct ph_list *link);

/* Takes the first link off. Return: NULL when there is none. */
struct ph_list *ph_list_take(struct ph_list *list);

#endif
