/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key - Curve25519 keys: as text, from a file, private to public.
 *
 * Text may come from anybody and is taken only in the one form that `wg` writes. What touches a private key neither
 * branches nor looks anything up by it, and leaves no copy behind.
 */
#ifndef PHALAD_KEY_H
#define PHALAD_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PH_KEY_LEN 32				/* bytes of a Curve25519 key */
#define PH_KEY_BASE64_SIZE 45			/* the same as base64, with its closing zero */

/**
 * ph_key_encode() - a key as base64.
 * @out: PH_KEY_BASE64_SIZE bytes; as secret as the key.
 *
 * Return: @out.
 */
const char *ph_key_encode(const uint8_t key[PH_KEY_LEN], char out[PH_KEY_BASE64_SIZE]);

/**
 * ph_key_decode() - a key from base64.
 * @text: zero terminated; exactly 44 characters, the last '=', no bit set that the key does not have.
 * @ret_key: untouched on failure.
 *
 * Return: 0, or -EINVAL.
 */
int ph_key_decode(const char *text, uint8_t ret_key[PH_KEY_LEN]);

/**
 * ph_key_read() - a private key from a file as `wg genkey` writes it.
 * @ret_key: clamped, so that it equals what the kernel says the device has; the caller's to zero; untouched on failure.
 * @error: one line for people, with the path, set on failure.
 *
 * Return: 0, or
 *   -EPERM      the file can be opened but should not be trusted: readable or writable by group or others, or neither
 *               root's nor ours
 *   -ENOTSUP    not a regular file
 *   -EBADMSG    not a key: other text, more text, or all zero
 *   -errno      from opening or reading it
 */
int ph_key_read(const char *path, uint8_t ret_key[PH_KEY_LEN], char *error, size_t error_size);

/* The bits that every Curve25519 private key has (RFC 7748, section 5). */
void ph_key_clamp(uint8_t key[PH_KEY_LEN]);

/* A new private key, clamped; the caller's to zero. Return: 0 or -errno. */
int ph_key_generate(uint8_t ret_private[PH_KEY_LEN]);

/* Return: 0, or -EIO when OpenSSL failed. */
int ph_key_public(const uint8_t private_key[PH_KEY_LEN], uint8_t ret_public[PH_KEY_LEN]);

/*
 * Is this public key all zero, or another point of low order? A peer with such a key has a secret that everybody knows;
 * the kernel takes the peer and never completes a handshake with it.
 */
bool ph_key_is_weak(const uint8_t public_key[PH_KEY_LEN]);

#endif
