// SPDX-License-Identifier: Apache-2.0
/*
 * headers - HPACK in, by libnghttp2, and plain literals out. See headers.h.
 */
#include "headers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <nghttp2/nghttp2.h>
#include <phala/limits.h>

/* RFC 7541, sections 6.2.2, 6.2.3 and 6.3. */
#define LITERAL 0x00
#define LITERAL_NEVER_INDEXED 0x10
#define TABLE_SIZE_ZERO 0x20
#define LENGTH_BYTES_MAX 4			/* of a string of up to 64 KiB, which is all that libnghttp2 takes */
#define LENGTH_PREFIX 127
#define SIZE_LEAST 1024

/*
 * A CVM may offer the client a larger table than the default, and the client says so in its blocks; a smaller one needs
 * no word from here. Raising the limit alone asks for no update (RFC 7541, section 4.2).
 */
int ph_headers_init(struct ph_headers *headers)
{
	*headers = (struct ph_headers){ 0 };
	if (nghttp2_hd_inflate_new(&headers->inflater))
		return -ENOMEM;
	if (nghttp2_hd_inflate_change_table_size(headers->inflater, PH_H2_TABLE_MAX)) {
		nghttp2_hd_inflate_del(headers->inflater);
		return -ENOMEM;
	}
	return 0;
}

void ph_headers_close(struct ph_headers *headers)
{
	nghttp2_hd_inflate_del(headers->inflater);
	free(headers->bytes);
	*headers = (struct ph_headers){ 0 };
}

void ph_headers_drop(struct ph_headers *headers)
{
	free(headers->bytes);
	headers->bytes = NULL;
	headers->len = headers->size = 0;
	headers->is_foreign = headers->is_unwanted = false;
}

static int make_room(struct ph_headers *headers, size_t more)
{
	size_t size = headers->size ? headers->size : SIZE_LEAST;
	uint8_t *bytes;

	if (more > PH_H2_BLOCK_MAX - headers->len)
		return -EMSGSIZE;
	if (headers->len + more <= headers->size)
		return 0;
	while (size < headers->len + more)
		size *= 2;
	bytes = realloc(headers->bytes, size);
	if (!bytes)
		return -ENOMEM;
	headers->bytes = bytes;
	headers->size = (uint32_t)size;
	return 0;
}

/* An integer with a prefix of 7 bits (RFC 7541, section 5.1), and the string of that length, not Huffman coded. */
static void put_string(struct ph_headers *headers, const uint8_t *bytes, size_t len)
{
	uint8_t *out = headers->bytes + headers->len;
	size_t rest = len;

	if (len < LENGTH_PREFIX) {
		*out++ = (uint8_t)len;
	} else {
		*out++ = LENGTH_PREFIX;
		for (rest -= LENGTH_PREFIX; rest >= 0x80; rest >>= 7)
			*out++ = (uint8_t)(0x80 | (rest & 0x7f));
		*out++ = (uint8_t)rest;
	}
	memcpy(out, bytes, len);
	headers->len = (uint32_t)(out + len - headers->bytes);
}

static int put_field(struct ph_headers *headers, const nghttp2_nv *field)
{
	int err = make_room(headers, 1 + 2 * LENGTH_BYTES_MAX + field->namelen + field->valuelen);

	if (err)
		return err;
	headers->bytes[headers->len++] = field->flags & NGHTTP2_NV_FLAG_NO_INDEX ? LITERAL_NEVER_INDEXED : LITERAL;
	put_string(headers, field->name, field->namelen);
	put_string(headers, field->value, field->valuelen);
	return 0;
}

static bool is_called(const nghttp2_nv *field, const char *name)
{
	return field->namelen == strlen(name) && !memcmp(field->name, name, field->namelen);
}

static bool is_host(const uint8_t *value, size_t len, const char *host)
{
	size_t end = len;

	while (end && value[end - 1] >= '0' && value[end - 1] <= '9')
		end--;
	if (end && end < len && value[end - 1] == ':')
		len = end - 1;
	return len == strlen(host) && !strncasecmp((const char *)value, host, len);
}

/* Both are compared, for servers do not agree which of the two they believe (RFC 9113, section 8.3.1). */
static bool names_other(const nghttp2_nv *field, const char *name)
{
	return (is_called(field, ":authority") || is_called(field, "host")) &&
	       !is_host(field->value, field->valuelen, name);
}

/* Again in each block: whatever the CVM's SETTINGS made of its table, this answers them. */
static int put_table_size(struct ph_headers *headers)
{
	int err = make_room(headers, 1);

	if (!err)
		headers->bytes[headers->len++] = TABLE_SIZE_ZERO;
	return err;
}

int ph_headers_take(struct ph_headers *headers, const uint8_t *bytes, size_t len, const char *name)
{
	int err = headers->len ? 0 : put_table_size(headers);

	if (err)
		return err;
	while (len) {
		nghttp2_nv field;
		int flags = 0;
		ssize_t used = nghttp2_hd_inflate_hd2(headers->inflater, &field, &flags, bytes, len, 0);

		if (used < 0)
			return used == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPROTO;
		bytes += used;
		len -= (size_t)used;
		if (!(flags & NGHTTP2_HD_INFLATE_EMIT))
			continue;
		headers->is_foreign |= names_other(&field, name);
		if (!headers->is_foreign && !headers->is_unwanted)
			err = put_field(headers, &field);
		if (err)
			return err;
	}
	return 0;
}

int ph_headers_end(struct ph_headers *headers)
{
	static const uint8_t nothing[1];
	nghttp2_nv field;
	int flags = 0;

	if (nghttp2_hd_inflate_hd2(headers->inflater, &field, &flags, nothing, 0, 1) ||
	    nghttp2_hd_inflate_end_headers(headers->inflater))
		return -EPROTO;
	return 0;
}
