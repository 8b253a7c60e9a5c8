/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls_raw - a client's records as no library sends them: RFC 8446, sections 5.2 and 7, with TLS_AES_128_GCM_SHA256.
 *
 * Set raw_keylog() as the context's keylog callback, and have sent nothing but the handshake by OpenSSL.
 */
#ifndef SELFTESTS_TLS_RAW_H
#define SELFTESTS_TLS_RAW_H

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>

#define RAW_SECRET_LEN 32
#define RAW_TAG_LEN 16
#define RAW_HEADER_LEN 5
#define RAW_MOST 64				/* of what a record says */

enum raw_type { RAW_HANDSHAKE = 22, RAW_DATA = 23 };

static uint8_t raw_secret[RAW_SECRET_LEN];
static uint8_t raw_sequence;			/* of records under it */

/* "CLIENT_TRAFFIC_SECRET_0 <client random> <secret>", both in hex. */
static void raw_keylog(const SSL *ssl, const char *line)
{
	const char *at = strrchr(line, ' ');

	(void)ssl;
	if (strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24) || !at)
		return;
	for (int i = 0; i < RAW_SECRET_LEN; i++)
		sscanf(at + 1 + 2 * i, "%2hhx", &raw_secret[i]);
	raw_sequence = 0;
}

static int raw_expand(const char *label, uint8_t *out, size_t len)
{
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, NULL);
	uint8_t info[32] = { 0, (uint8_t)len, (uint8_t)(6 + strlen(label)) };
	size_t info_len = 3 + 6 + strlen(label) + 1;
	int done;

	memcpy(info + 3, "tls13 ", 6);
	memcpy(info + 9, label, strlen(label));
	done = EVP_PKEY_derive_init(context) == 1 &&
	       EVP_PKEY_CTX_hkdf_mode(context, EVP_PKEY_HKDEF_MODE_EXPAND_ONLY) == 1 &&
	       EVP_PKEY_CTX_set_hkdf_md(context, EVP_sha256()) == 1 &&
	       EVP_PKEY_CTX_set1_hkdf_key(context, raw_secret, RAW_SECRET_LEN) == 1 &&
	       EVP_PKEY_CTX_add1_hkdf_info(context, info, (int)info_len) == 1 && EVP_PKEY_derive(context, out, &len) == 1;
	EVP_PKEY_CTX_free(context);
	return done ? 0 : -1;
}

/* A record of @len bytes, RAW_MOST at most. Return: 0 or -1. */
static int raw_send(int fd, enum raw_type type, const void *bytes, size_t len)
{
	uint8_t record[RAW_HEADER_LEN + RAW_MOST + 1 + RAW_TAG_LEN] = { RAW_DATA, 3, 3, 0, (uint8_t)(len + 1 + RAW_TAG_LEN) };
	uint8_t key[16], iv[12], inner[RAW_MOST + 1], *body = record + RAW_HEADER_LEN;
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	int out, done;

	memcpy(inner, bytes, len);
	inner[len++] = (uint8_t)type;
	done = !raw_expand("key", key, sizeof(key)) && !raw_expand("iv", iv, sizeof(iv));
	iv[sizeof(iv) - 1] ^= raw_sequence++;
	done = done && EVP_EncryptInit_ex(context, EVP_aes_128_gcm(), NULL, key, iv) == 1 &&
	       EVP_EncryptUpdate(context, NULL, &out, record, RAW_HEADER_LEN) == 1 &&
	       EVP_EncryptUpdate(context, body, &out, inner, (int)len) == 1 &&
	       EVP_EncryptFinal_ex(context, body + len, &out) == 1 &&
	       EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, RAW_TAG_LEN, body + len) == 1;
	EVP_CIPHER_CTX_free(context);
	len += RAW_HEADER_LEN + RAW_TAG_LEN;
	return done && send(fd, record, len, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -1;
}

/* Behind a KeyUpdate. Return: 0 or -1. */
static int raw_next_secret(void)
{
	uint8_t next[RAW_SECRET_LEN];

	if (raw_expand("traffic upd", next, sizeof(next)))
		return -1;
	memcpy(raw_secret, next, sizeof(next));
	raw_sequence = 0;
	return 0;
}

#endif
