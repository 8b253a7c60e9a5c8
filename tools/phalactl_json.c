// SPDX-License-Identifier: Apache-2.0
#include "phalactl_json.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include <log.h>

/* struct ph_json is never defined: it is jansson's value by another name. */
static json_t *in(const struct ph_json *json)
{
	return (json_t *)json;
}

static struct ph_json *out(json_t *json)
{
	return (struct ph_json *)json;
}

static void must(bool done)
{
	if (done)
		return;
	fprintf(stderr, "phalactl: out of memory\n");
	exit(1);
}

static json_t *made(json_t *json)
{
	must(json);
	return json;
}

/* What is not UTF-8, of which words on the command line may be, is escaped. */
static json_t *text_of(const char *value)
{
	json_t *json = json_string(value);
	size_t len = strlen(value), size = 4 * len + 1;
	char *text;

	if (json)
		return json;
	text = malloc(size);
	must(text);
	json = made(json_string(ph_log_escape(text, size, value, len)));
	free(text);
	return json;
}

struct ph_json *ph_json_parse(const char *text, size_t len, char *error, size_t error_size)
{
	json_error_t why;
	json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);

	if (!json)
		snprintf(error, error_size, "no JSON (character %d): %s", why.position, why.text);
	return out(json);
}

struct ph_json *ph_json_object(void)
{
	return out(made(json_object()));
}

struct ph_json *ph_json_array(void)
{
	return out(made(json_array()));
}

void ph_json_free(struct ph_json *json)
{
	json_decref(in(json));
}

void ph_json_print(const struct ph_json *json, FILE *file)
{
	must(!json_dumpf(in(json), file, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) || ferror(file));
	fputc('\n', file);
}

char *ph_json_text(const struct ph_json *json)
{
	char *text = json_dumps(in(json), JSON_COMPACT);

	must(text);
	return text;
}

void ph_json_set(struct ph_json *object, const char *key, struct ph_json *value)
{
	must(!json_object_set_new(in(object), key, value ? in(value) : json_null()));
}

void ph_json_set_string(struct ph_json *object, const char *key, const char *value)
{
	must(!json_object_set_new(in(object), key, value ? text_of(value) : json_null()));
}

void ph_json_set_number(struct ph_json *object, const char *key, uint64_t value)
{
	/* JSON's integers are signed here; a counter that has come that far has other troubles. */
	json_int_t number = value > INT64_MAX ? INT64_MAX : (json_int_t)value;

	must(!json_object_set_new(in(object), key, made(json_integer(number))));
}

void ph_json_set_real(struct ph_json *object, const char *key, double value)
{
	must(!json_object_set_new(in(object), key, made(json_real(value))));
}

void ph_json_set_bool(struct ph_json *object, const char *key, bool value)
{
	must(!json_object_set_new(in(object), key, json_boolean(value)));
}

void ph_json_add(struct ph_json *array, struct ph_json *value)
{
	must(!json_array_append_new(in(array), in(value)));
}

void ph_json_add_again(struct ph_json *array, struct ph_json *value)
{
	must(!json_array_append(in(array), in(value)));
}

void ph_json_add_string(struct ph_json *array, const char *value)
{
	must(!json_array_append_new(in(array), text_of(value)));
}

static int compare(const void *a, const void *b, void *key)
{
	const struct ph_json *left = out(*(json_t *const *)a), *right = out(*(json_t *const *)b);

	return strcmp(ph_json_string(left, key, ""), ph_json_string(right, key, ""));
}

void ph_json_sort(struct ph_json *array, const char *key)
{
	size_t count = json_array_size(in(array));
	json_t **values = calloc(count + 1, sizeof(*values));

	must(values);
	for (size_t i = 0; i < count; i++)
		values[i] = json_incref(json_array_get(in(array), i));
	qsort_r(values, count, sizeof(*values), compare, (void *)key);
	for (size_t i = 0; i < count; i++)
		must(!json_array_set_new(in(array), i, values[i]));
	free(values);
}

const char *ph_json_string(const struct ph_json *object, const char *key, const char *otherwise)
{
	const char *text = json_string_value(json_object_get(in(object), key));

	return text ? text : otherwise;
}

double ph_json_number(const struct ph_json *object, const char *key, double otherwise)
{
	return ph_json_value_number(out(json_object_get(in(object), key)), otherwise);
}

double ph_json_value_number(const struct ph_json *value, double otherwise)
{
	return json_is_number(in(value)) ? json_number_value(in(value)) : otherwise;
}

bool ph_json_bool(const struct ph_json *object, const char *key, bool otherwise)
{
	const json_t *value = json_object_get(in(object), key);

	return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

bool ph_json_has(const struct ph_json *object, const char *key)
{
	return json_object_get(in(object), key);
}

bool ph_json_is_null(const struct ph_json *object, const char *key)
{
	const json_t *value = json_object_get(in(object), key);

	return !value || json_is_null(value);
}

struct ph_json *ph_json_child(const struct ph_json *object, const char *key)
{
	json_t *value = json_object_get(in(object), key);

	return json_is_object(value) || json_is_array(value) ? out(value) : NULL;
}

size_t ph_json_count(const struct ph_json *json)
{
	return json_is_object(in(json)) ? json_object_size(in(json)) : json_array_size(in(json));
}

struct ph_json *ph_json_at(const struct ph_json *array, size_t index)
{
	return out(json_array_get(in(array), index));
}

const char *ph_json_string_at(const struct ph_json *array, size_t index)
{
	return json_string_value(json_array_get(in(array), index));
}

void ph_json_each(const struct ph_json *object,
		  void (*visit)(const char *key, const struct ph_json *value, void *arg), void *arg)
{
	json_t *value;
	const char *key;

	json_object_foreach(in(object), key, value)
		visit(key, out(value), arg);
}
