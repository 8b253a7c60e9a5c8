// SPDX-License-Identifier: Apache-2.0
/*
 * list - links that are part of what is listed. See list.h.
 */
#include "list.h"

void ph_list_init(struct ph_list *list)
{
	list->next = list->prev = list;
}

bool ph_list_is_empty(const struct ph_list *list)
{
	return list->next == list;
}

void ph_list_append(struct ph_list *list, struct ph_list *link)
{
	link->prev = list->prev;
	link->next = list;
	list->prev->next = link;
	list->prev = link;
}

void ph_list_remove(struct ph_list *link)
{
	link->prev->next = link->next;
	link->next->prev = link->prev;
	ph_list_init(link);
}

struct ph_list *ph_list_take(struct ph_list *list)
{
	struct ph_list *link = list->next;

	if (link == list)
		return NULL;
	ph_list_remove(link);
	return link;
}
