/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json - the documents that phalactl prints and reads. The only part of it that knows jansson.
 *
 * Every verb builds a document first; --json prints it as it is, and the words for people are made from it, so that
 * the two cannot differ. What comes from the manager is not trusted to have the members it should have: readers return
 * a default for what is missing or of another type. Out of memory ends the program.
 */
#ifndef PHALACTL_JSON_H
#define PHALACTL_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct ph_json;					/* a value; freed with the one that holds it */

/* Documents. @error: one line for people, set on failure. Return: NULL on failure. */
struct ph_json *ph_json_parse(const char *text, size_t len, char *error, size_t error_size);
struct ph_json *ph_json_object(void);
struct ph_json *ph_json_array(void);
void ph_json_free(struct ph_json *json);

/* Indented, with a newline behind it. What goes wrong with @out can be asked of it (ferror). */
void ph_json_print(const struct ph_json *json, FILE *out);
/* On one line, without newline; the caller's to free(). */
char *ph_json_text(const struct ph_json *json);

/* Writing. The value becomes the holder's; NULL stands for null. */
void ph_json_set(struct ph_json *object, const char *key, struct ph_json *value);
void ph_json_set_string(struct ph_json *object, const char *key, const char *value);
void ph_json_set_number(struct ph_json *object, const char *key, uint64_t value);
void ph_json_set_real(struct ph_json *object, const char *key, double value);
void ph_json_set_bool(struct ph_json *object, const char *key, bool value);
void ph_json_add(struct ph_json *array, struct ph_json *value);
void ph_json_add_again(struct ph_json *array, struct ph_json *value);	/* @value stays its first holder's, too */
void ph_json_add_string(struct ph_json *array, const char *value);
/* Puts an array of objects in the order of their texts (strcmp) under @key. */
void ph_json_sort(struct ph_json *array, const char *key);

/* Reading; all of them take NULL for @object, which has nothing. Borrowed: valid as long as @object. */
const char *ph_json_string(const struct ph_json *object, const char *key, const char *otherwise);
double ph_json_number(const struct ph_json *object, const char *key, double otherwise);
bool ph_json_bool(const struct ph_json *object, const char *key, bool otherwise);
bool ph_json_has(const struct ph_json *object, const char *key);	/* also when it is null */
bool ph_json_is_null(const struct ph_json *object, const char *key);	/* also when it is missing */
struct ph_json *ph_json_child(const struct ph_json *object, const char *key);	/* object or array, else NULL */
size_t ph_json_count(const struct ph_json *json);	/* elements or members */
struct ph_json *ph_json_at(const struct ph_json *array, size_t index);
/* A text element of an array; NULL if it is no text. */
const char *ph_json_string_at(const struct ph_json *array, size_t index);

/* Calls @visit for each member of @object, in the order they were set. */
void ph_json_each(const struct ph_json *object,
		  void (*visit)(const char *key, const struct ph_json *value, void *arg), void *arg);
/* For @visit: the value itself as a number. */
double ph_json_value_number(const struct ph_json *value, double otherwise);

#endif
