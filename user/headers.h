/* SPDX-License-Identifier: Apache-2.0 */
/*
 * headers - the header blocks of an h2 client, decoded, and written again without compression.
 *
 * Blocks are hostile. Written again because HPACK has a state (RFC 7541, section 2.3.2): a block that the CVM does not
 * get would leave its table behind the client's, or hand it over what the block put there. What is written here uses no
 * table, so any block can be left out. Nothing else of the gateway knows libnghttp2.
 */
#ifndef PHALAD_HEADERS_H
#define PHALAD_HEADERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nghttp2_hd_inflater;

struct ph_headers {
	struct nghttp2_hd_inflater *inflater;	/* the client's table, for as long as the connection */
	uint8_t *bytes;				/* the block so far, written again; NULL between blocks */
	uint32_t len, size;
	bool is_foreign;			/* it names another authority */
	bool is_unwanted;			/* set at its beginning: decoded for the table's sake, not written */
};

/* Return: 0 or -ENOMEM. */
int ph_headers_init(struct ph_headers *headers);
void ph_headers_close(struct ph_headers *headers);

/**
 * ph_headers_take() - the next piece of a block. What is foreign is not written on.
 * @name: whom it may name; each :authority and host in it is compared, without regard to case and port.
 *
 * Return: 0, -EPROTO when it cannot be decoded (the connection's table is lost then), -EMSGSIZE when it comes to more
 * than PH_H2_BLOCK_MAX, or -ENOMEM.
 */
int ph_headers_take(struct ph_headers *headers, const uint8_t *bytes, size_t len, const char *name);

/* The block has ended. Return: 0, or -EPROTO when it ends within a field. */
int ph_headers_end(struct ph_headers *headers);

/* It is not needed any more; ready for the next one. */
void ph_headers_drop(struct ph_headers *headers);

#endif
