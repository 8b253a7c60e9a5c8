// SPDX-License-Identifier: Apache-2.0
#include "key.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#define TEXT_LEN (PH_KEY_BASE64_SIZE - 1)
#define FILE_BYTES_MAX 64			/* a key and some white space */

/* One if @low <= @c <= @high, else zero; without a branch, for small numbers. */
static uint32_t within(uint32_t c, uint32_t low, uint32_t high)
{
	return 1 ^ ((c - low) >> 31 | (high - c) >> 31);
}

/* The character for 0-63: each range is reached by a jump from the one before it. */
static char letter(uint32_t value)
{
	return 'A' + value + within(value, 26, 63) * ('a' - 'Z' - 1) - within(value, 52, 63) * ('z' - '0' + 1) -
	       within(value, 62, 63) * ('9' - '+' + 1) + within(value, 63, 63) * ('/' - '+' - 1);
}

/* 0-63, or 64 and more for what is no base64. */
static uint32_t sextet(uint32_t c)
{
	return 64 - within(c, 'A', 'Z') * (64 - (c - 'A')) - within(c, 'a', 'z') * (64 - 26 - (c - 'a')) -
	       within(c, '0', '9') * (64 - 52 - (c - '0')) - within(c, '+', '+') * (64 - 62) -
	       within(c, '/', '/') * (64 - 63);
}

const char *ph_key_encode(const uint8_t key[PH_KEY_LEN], char out[PH_KEY_BASE64_SIZE])
{
	uint32_t bits = 0;
	int held = 0, at = 0;

	for (int i = 0; i < PH_KEY_LEN; i++) {
		bits = bits << 8 | key[i];
		for (held += 8; held >= 6; held -= 6)
			out[at++] = letter(bits >> (held - 6) & 63);
	}
	out[at++] = letter(bits << (6 - held) & 63);
	out[at++] = '=';
	out[at] = 0;
	return out;
}

int ph_key_decode(const char *text, uint8_t ret_key[PH_KEY_LEN])
{
	uint8_t key[PH_KEY_LEN];
	uint32_t bits = 0, bad = 0;
	int held = 0, at = 0;

	if (strnlen(text, PH_KEY_BASE64_SIZE) != TEXT_LEN || text[TEXT_LEN - 1] != '=')
		return -EINVAL;
	for (int i = 0; i < TEXT_LEN - 1; i++) {
		uint32_t value = sextet((uint8_t)text[i]);

		bad |= value >> 6;
		bits = bits << 6 | (value & 63);
		held += 6;
		if (held >= 8) {
			held -= 8;
			key[at++] = bits >> held;
		}
	}
	/* Two bits are left over: were they free, one key would have four texts. */
	bad |= bits & 3;
	if (!bad)
		memcpy(ret_key, key, sizeof(key));
	explicit_bzero(key, sizeof(key));
	return bad ? -EINVAL : 0;
}

__attribute__((format(printf, 4, 5)))
static int refuse(int err, char *error, size_t error_size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, error_size, format, args);
	va_end(args);
	return err;
}

/* May what is behind @fd be believed to be a secret of ours? */
static int check_file(int fd, const char *path, char *error, size_t error_size)
{
	struct stat status;

	if (fstat(fd, &status) < 0) {
		int err = -errno;

		return refuse(err, error, error_size, "%s: %s", path, strerror(-err));
	}
	if (!S_ISREG(status.st_mode))
		return refuse(-ENOTSUP, error, error_size, "%s: not a regular file", path);
	if (status.st_uid != 0 && status.st_uid != geteuid())
		return refuse(-EPERM, error, error_size, "%s: belongs to user %u: it must be root's or ours", path,
			      status.st_uid);
	if (status.st_mode & (S_IRWXG | S_IRWXO))
		return refuse(-EPERM, error, error_size, "%s: open to group or others (mode %04o): a key needs 0600",
			      path, status.st_mode & 07777);
	return 0;
}

/* Return: how many bytes, at most @size, or -errno. */
static ssize_t read_all(int fd, char *text, size_t size)
{
	size_t have = 0;

	while (have < size) {
		ssize_t got = read(fd, text + have, size - have);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got)
			break;
		have += got;
	}
	return have;
}

/* @text is zero terminated; white space after the key is what editors and `wg genkey` leave there. */
static int parse_file(char *text, size_t len, uint8_t ret_key[PH_KEY_LEN])
{
	uint8_t any = 0;

	if (len < TEXT_LEN || strlen(text) != len || strspn(text + TEXT_LEN, " \t\r\n") != len - TEXT_LEN)
		return -EBADMSG;
	text[TEXT_LEN] = 0;
	if (ph_key_decode(text, ret_key) < 0)
		return -EBADMSG;
	for (int i = 0; i < PH_KEY_LEN; i++)
		any |= ret_key[i];
	return any ? 0 : -EBADMSG;
}

int ph_key_read(const char *path, uint8_t ret_key[PH_KEY_LEN], char *error, size_t error_size)
{
	/* A FIFO must not hold us up: it is refused once open. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	char text[FILE_BYTES_MAX + 1];
	uint8_t key[PH_KEY_LEN];
	ssize_t len;
	int err;

	if (fd < 0) {
		err = -errno;
		return refuse(err, error, error_size, "%s: %s", path, strerror(-err));
	}
	err = check_file(fd, path, error, error_size);
	if (err)
		goto out;
	len = read_all(fd, text, sizeof(text));
	if (len < 0) {
		err = refuse(len, error, error_size, "%s: %s", path, strerror(-len));
		goto out;
	}
	if (len > FILE_BYTES_MAX) {
		err = refuse(-EBADMSG, error, error_size, "%s: more than a key: one line of %d characters is expected",
			     path, TEXT_LEN);
		goto out;
	}
	text[len] = 0;
	err = parse_file(text, len, key);
	if (err) {
		refuse(err, error, error_size, "%s: not a private key (%d characters of base64, as `wg genkey` writes)",
		       path, TEXT_LEN);
		goto out;
	}
	ph_key_clamp(key);
	memcpy(ret_key, key, sizeof(key));
out:
	explicit_bzero(text, sizeof(text));
	explicit_bzero(key, sizeof(key));
	close(fd);
	return err;
}

void ph_key_clamp(uint8_t key[PH_KEY_LEN])
{
	key[0] &= 248;
	key[31] = (key[31] & 127) | 64;
}

int ph_key_generate(uint8_t ret_private[PH_KEY_LEN])
{
	/* A request this small is never cut short once the pool is ready (getrandom(2)). */
	if (getrandom(ret_private, PH_KEY_LEN, 0) != PH_KEY_LEN)
		return -errno;
	ph_key_clamp(ret_private);
	return 0;
}

int ph_key_public(const uint8_t private_key[PH_KEY_LEN], uint8_t ret_public[PH_KEY_LEN])
{
	EVP_PKEY *pair = EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, private_key, PH_KEY_LEN);
	uint8_t public_key[PH_KEY_LEN];
	size_t len = sizeof(public_key);
	int err = -EIO;

	if (pair && EVP_PKEY_get_raw_public_key(pair, public_key, &len) == 1 && len == sizeof(public_key)) {
		memcpy(ret_public, public_key, sizeof(public_key));
		err = 0;
	}
	EVP_PKEY_free(pair);
	return err;
}

/*
 * Every u-coordinate below 2^255 of a point whose order divides 8, on the curve or its twist: 0 and 1, the two of order
 * 8, and around p = 2^255 - 19 what is -1, 0 and 1 modulo p. The top bit does not count (RFC 7748, section 5).
 */
static const uint8_t weak_keys[][PH_KEY_LEN] = {
	{ 0 },
	{ 1 },
	{ 0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
	  0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00 },
	{ 0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
	  0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57 },
	{ 0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f },
	{ 0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f },
	{ 0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f },
};

bool ph_key_is_weak(const uint8_t public_key[PH_KEY_LEN])
{
	uint8_t key[PH_KEY_LEN];

	memcpy(key, public_key, sizeof(key));
	key[31] &= 127;
	for (size_t i = 0; i < sizeof(weak_keys) / sizeof(weak_keys[0]); i++) {
		if (!memcmp(key, weak_keys[i], sizeof(key)))
			return true;
	}
	return false;
}
