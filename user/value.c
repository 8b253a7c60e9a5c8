// SPDX-License-Identifier: Apache-2.0
/*
 * value - the forms in which people write numbers, times, addresses and names. See value.h.
 */
#include "value.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *word;
	uint32_t ms;
} units[] = {					/* largest first: the first that divides is the one to write */
	{ "h", 3600000 },
	{ "min", 60000 },
	{ "m", 60000 },
	{ "s", 1000 },
	{ "ms", 1 },
	{ "", 1000 },
};

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Reads a number at *@at and moves it behind the last digit. Return: 0, -EINVAL, or -ERANGE above 2^32-1. */
static int take_number(const char **at, uint32_t *ret_number)
{
	uint64_t number = 0;
	const char *c = *at;

	if (!is_digit(*c) || (*c == '0' && is_digit(c[1])))
		return -EINVAL;
	for (; is_digit(*c); c++) {
		if (number <= UINT32_MAX)
			number = number * 10 + (uint64_t)(*c - '0');
	}
	*at = c;
	if (number > UINT32_MAX)
		return -ERANGE;
	*ret_number = (uint32_t)number;
	return 0;
}

int ph_value_number(const char *text, uint32_t min, uint32_t max, uint32_t *ret_number)
{
	uint32_t number;
	int err = take_number(&text, &number);

	if (err == -EINVAL || *text)
		return -EINVAL;
	if (err || number < min || number > max)
		return -ERANGE;
	*ret_number = number;
	return 0;
}

int ph_value_duration(const char *text, uint32_t min_ms, uint32_t max_ms, uint32_t *ret_ms)
{
	uint32_t number;
	int err = take_number(&text, &number);

	if (err == -EINVAL)
		return err;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		uint64_t ms;

		if (strcmp(text, units[i].word))
			continue;
		ms = err ? UINT64_MAX : (uint64_t)number * units[i].ms;
		if (ms < min_ms || ms > max_ms)
			return -ERANGE;
		*ret_ms = (uint32_t)ms;
		return 0;
	}
	return -EINVAL;
}

const char *ph_value_duration_text(char *out, size_t out_size, uint32_t ms)
{
	size_t i = 0;

	if (!ms) {
		snprintf(out, out_size, "0s");
		return out;
	}
	while (ms % units[i].ms)
		i++;
	snprintf(out, out_size, "%u%s", ms / units[i].ms, units[i].word);
	return out;
}

in_addr_t ph_value_netmask(uint8_t len)
{
	return len ? htonl(UINT32_MAX << (32 - len)) : 0;
}

int ph_value_prefix(const char *text, struct in_addr *ret_address, uint8_t *ret_len)
{
	const char *slash = strchr(text, '/');
	char number[INET_ADDRSTRLEN];
	struct in_addr address;
	uint32_t len;
	int err;

	if (!slash || (size_t)(slash - text) >= sizeof(number))
		return -EINVAL;
	memcpy(number, text, (size_t)(slash - text));
	number[slash - text] = '\0';
	if (inet_pton(AF_INET, number, &address) != 1)
		return -EINVAL;
	err = ph_value_number(slash + 1, 0, 32, &len);
	if (err)
		return err;
	*ret_address = address;
	*ret_len = (uint8_t)len;
	return 0;
}

/* Splits "host:port" or "[host]:port" at its last colon. Return: 0, -EINVAL or -ERANGE. */
static int split_port(const char *text, char *host, size_t host_size, bool *ret_bracketed, uint16_t *ret_port)
{
	const char *colon = strrchr(text, ':');
	bool bracketed = *text == '[';
	uint32_t port;
	size_t len;
	int err;

	if (!colon)
		return -EINVAL;
	len = (size_t)(colon - text);
	if (bracketed) {
		if (len < 2 || colon[-1] != ']')
			return -EINVAL;
		text++;
		len -= 2;
	}
	if (!len || len >= host_size)
		return -EINVAL;
	err = ph_value_number(colon + 1, 1, UINT16_MAX, &port);
	if (err)
		return err;
	memcpy(host, text, len);
	host[len] = '\0';
	*ret_bracketed = bracketed;
	*ret_port = (uint16_t)port;
	return 0;
}

int ph_value_socket(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_address_len)
{
	struct sockaddr_in in = { .sin_family = AF_INET };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };
	char host[INET6_ADDRSTRLEN];
	bool bracketed;
	uint16_t port;
	int err;

	err = split_port(text, host, sizeof(host), &bracketed, &port);
	if (err)
		return err;
	in.sin_port = in6.sin6_port = htons(port);
	if (bracketed) {
		if (inet_pton(AF_INET6, host, &in6.sin6_addr) != 1 || IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr))
			return -EINVAL;
		memset(ret_address, 0, sizeof(*ret_address));
		memcpy(ret_address, &in6, sizeof(in6));
		*ret_address_len = sizeof(in6);
		return 0;
	}
	if (inet_pton(AF_INET, host, &in.sin_addr) != 1)
		return -EINVAL;
	memset(ret_address, 0, sizeof(*ret_address));
	memcpy(ret_address, &in, sizeof(in));
	*ret_address_len = sizeof(in);
	return 0;
}

int ph_value_domain(const char *text, char ret_name[PH_NAME_SIZE])
{
	size_t len = strlen(text), label = 0;
	char name[PH_NAME_SIZE] = "";
	bool numeric = true;			/* a last label of digits only would be an address */

	if (len > PH_NAME_MAX)
		return -EINVAL;
	for (size_t i = 0; i <= len; i++) {
		char c = text[i];

		if (c == '.' || !c) {
			if (!label || label > PH_LABEL_MAX || text[i - 1] == '-')
				return -EINVAL;
			if (!c)
				break;
			label = 0;
			numeric = true;
			name[i] = c;
			continue;
		}
		if (c >= 'A' && c <= 'Z')
			c = (char)(c - 'A' + 'a');
		if (!is_digit(c) && !(c >= 'a' && c <= 'z') && (c != '-' || !label))
			return -EINVAL;
		numeric = numeric && is_digit(c);
		name[i] = c;
		label++;
	}
	if (numeric)
		return -EINVAL;
	memcpy(ret_name, name, sizeof(name));
	return 0;
}

int ph_value_endpoint(const char *text)
{
	struct sockaddr_storage address;
	socklen_t address_len;
	char host[PH_NAME_SIZE], name[PH_NAME_SIZE];
	bool bracketed;
	uint16_t port;
	int err;

	err = ph_value_socket(text, &address, &address_len);
	if (err != -EINVAL)
		return err;
	err = split_port(text, host, sizeof(host), &bracketed, &port);
	if (err)
		return err;
	return bracketed ? -EINVAL : ph_value_domain(host, name);
}
