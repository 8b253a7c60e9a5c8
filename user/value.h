/* SPDX-License-Identifier: Apache-2.0 */
/*
 * value - the forms in which people write numbers, times, addresses and names, read strictly.
 *
 * Each form has one spelling of each part: decimal without sign, blanks or leading zeros; no host name is looked up.
 * All of them return 0, -EINVAL when @text is not of the form, or -ERANGE when it is and its value is out of bounds;
 * outputs are untouched on failure.
 */
#ifndef PHALAD_VALUE_H
#define PHALAD_VALUE_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <phala/limits.h>

int ph_value_number(const char *text, uint32_t min, uint32_t max, uint32_t *ret_number);

/* 500ms, 5s, 10min or 10m, 1h; a bare number is seconds. Bounds are inclusive. */
int ph_value_duration(const char *text, uint32_t min_ms, uint32_t max_ms, uint32_t *ret_ms);

/* Writes @ms in the largest unit that has no remainder, as ph_value_duration() reads it. Return: @out. */
const char *ph_value_duration_text(char *out, size_t out_size, uint32_t ms);

/* 192.0.2.1/24, with the address as it is written: host bits are kept. */
int ph_value_prefix(const char *text, struct in_addr *ret_address, uint8_t *ret_len);

/* The netmask of a prefix length, 0-32, in network order. */
in_addr_t ph_value_netmask(uint8_t len);

/* 192.0.2.1:443 or [2001:db8::1]:443; the port is not 0, and IPv4 is written as IPv4, not inside IPv6. */
int ph_value_socket(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_address_len);

/* A DNS name in the preferred form of RFC 1123, section 2.1; made lower case and zero padded. */
int ph_value_domain(const char *text, char ret_name[PH_NAME_SIZE]);

/* A socket address as above, or a DNS name and a port: gateway.example.com:51820. Only judged. */
int ph_value_endpoint(const char *text);

#endif
