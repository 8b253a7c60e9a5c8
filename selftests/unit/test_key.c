// SPDX-License-Identifier: Apache-2.0
/* key: keys as text, from files, private to public; OpenSSL is the oracle for what it can do too. */
#include "ktap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "key.h"

#define ROUNDS 2000				/* random keys for each property */
#define NOBODY 65534

#define TEXT "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="	/* Alice's private key, RFC 7748, section 6.1 */

static const uint8_t alice_private[PH_KEY_LEN] = {
	0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
	0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
};
static const uint8_t alice_public[PH_KEY_LEN] = {
	0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a,
	0x0d, 0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
};

static void test_text(void)
{
	uint8_t key[PH_KEY_LEN], back[PH_KEY_LEN];
	char text[PH_KEY_BASE64_SIZE], oracle[PH_KEY_BASE64_SIZE + 3];
	int same = 0, round = 0, accepted = 0, canonical = 1;

	ktap_ok(!strcmp(ph_key_encode(alice_private, text), TEXT), "a key is written as `wg` writes it");
	for (int i = 0; i < ROUNDS; i++) {
		if (ph_key_generate(key))
			break;
		key[i % PH_KEY_LEN] = i;	/* generated keys are clamped; text may be any */
		key[31] ^= i << 7;
		EVP_EncodeBlock((uint8_t *)oracle, key, PH_KEY_LEN);
		same += !strcmp(ph_key_encode(key, text), oracle);
		round += !ph_key_decode(text, back) && !memcmp(key, back, PH_KEY_LEN);
	}
	ktap_ok(same == ROUNDS, "%d random keys are written as OpenSSL writes them", ROUNDS);
	ktap_ok(round == ROUNDS, "%d random keys are read back", ROUNDS);

	/* Every byte at every place: what is accepted is what would be written. */
	for (int at = 0; at < PH_KEY_BASE64_SIZE - 1; at++) {
		for (int c = 1; c < 256; c++) {
			char changed[PH_KEY_BASE64_SIZE];

			strcpy(changed, TEXT);
			changed[at] = c;
			if (ph_key_decode(changed, back))
				continue;
			accepted++;
			canonical &= !strcmp(ph_key_encode(back, text), changed);
		}
	}
	ktap_ok(accepted == 42 * 64 + 16 + 1, "one character changed: %d texts are accepted, 2705 are keys", accepted);
	ktap_ok(canonical, "every text that is accepted is the only one for its key");
}

static void test_refused_text(void)
{
	static const struct {
		const char *name, *text;
	} rows[] = {
		{ "empty", "" },
		{ "one character short", "wdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=" },
		{ "without padding", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo" },
		{ "one character long", TEXT "A" },
		{ "a newline after it", TEXT "\n" },
		{ "a space before it", " " TEXT },
		{ "33 bytes", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" },
		{ "31 bytes", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==" },
		{ "a bit that no key has", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCp=" },
		{ "URL-safe alphabet", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25L_o=" },
		{ "padding inside", "dwdtCnMYpX08FsFyUbJm=d9ML4frwJkqsXf7pR25LCo=" },
		{ "hexadecimal", "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a" },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint8_t key[PH_KEY_LEN] = { 7 };
		int err = ph_key_decode(rows[i].text, key);

		ktap_ok(err == -EINVAL && key[0] == 7 && !key[1], "text refused: %s", rows[i].name);
	}
}

static int write_file(const char *path, const char *text, size_t len, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int bad = fd < 0 || write(fd, text, len) != (ssize_t)len || fchmod(fd, mode) < 0;

	if (fd >= 0)
		close(fd);
	return bad;
}

static void test_file(const char *dir)
{
	static const struct {
		const char *name, *text;
		size_t len;			/* 0: that of @text */
		mode_t mode;
		int want;
	} rows[] = {
		{ "as `wg genkey > file` leaves it", TEXT "\n", 0, 0600, 0 },
		{ "without newline", TEXT, 0, 0600, 0 },
		{ "from another system's editor", TEXT "\r\n", 0, 0600, 0 },
		{ "read-only", TEXT "\n", 0, 0400, 0 },
		{ "readable by group", TEXT "\n", 0, 0640, -EPERM },
		{ "readable by others", TEXT "\n", 0, 0604, -EPERM },
		{ "writable by group", TEXT "\n", 0, 0620, -EPERM },
		{ "everybody's", TEXT "\n", 0, 0777, -EPERM },
		{ "empty", "", 0, 0600, -EBADMSG },
		{ "cut short", "dwdtCnMYpX08FsFyUbJm\n", 0, 0600, -EBADMSG },
		{ "two keys", TEXT "\n" TEXT "\n", 0, 0600, -EBADMSG },
		{ "a word after the key", TEXT " x\n", 0, 0600, -EBADMSG },
		{ "a space before the key", " " TEXT "\n", 0, 0600, -EBADMSG },
		{ "a zero byte after the key", TEXT "\0\n", 46, 0600, -EBADMSG },
		{ "all zero", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", 0, 0600, -EBADMSG },
		{ "not base64", "not a key, but a sentence of 44 characters..\n", 0, 0600, -EBADMSG },
	};
	uint8_t clamped[PH_KEY_LEN];
	char path[4096];

	memcpy(clamped, alice_private, PH_KEY_LEN);
	ph_key_clamp(clamped);
	snprintf(path, sizeof(path), "%s/key", dir);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		size_t len = rows[i].len ? rows[i].len : strlen(rows[i].text);
		uint8_t key[PH_KEY_LEN] = { 7 };
		char error[256] = "";
		int err;

		if (write_file(path, rows[i].text, len, rows[i].mode)) {
			ktap_ok(0, "file: %s: cannot write %s", rows[i].name, path);
			continue;
		}
		err = ph_key_read(path, key, error, sizeof(error));
		if (rows[i].want)
			ktap_ok(err == rows[i].want && strstr(error, path) && key[0] == 7 && !key[1],
				"file refused: %s (%d, \"%s\")", rows[i].name, err, error);
		else
			ktap_ok(!err && !memcmp(key, clamped, PH_KEY_LEN) && !*error, "file taken: %s", rows[i].name);
		unlink(path);
	}
}

static void test_no_file(const char *dir)
{
	uint8_t key[PH_KEY_LEN];
	char path[4096], error[256];
	int err;

	snprintf(path, sizeof(path), "%s/missing", dir);
	err = ph_key_read(path, key, error, sizeof(error));
	ktap_ok(err == -ENOENT && strstr(error, path), "file refused: missing (\"%s\")", error);
	err = ph_key_read(dir, key, error, sizeof(error));
	ktap_ok(err == -ENOTSUP && strstr(error, dir), "file refused: a directory (\"%s\")", error);
	snprintf(path, sizeof(path), "%s/fifo", dir);
	err = mkfifo(path, 0600) ? -errno : ph_key_read(path, key, error, sizeof(error));
	ktap_ok(err == -ENOTSUP && strstr(error, path), "file refused, without waiting: a FIFO");
	unlink(path);
	err = ph_key_read("/dev/zero", key, error, sizeof(error));
	ktap_ok(err == -ENOTSUP, "file refused: a device");
}

/* What ph_key_read() says when it is asked by another user. */
static int read_as(uid_t uid, const char *path)
{
	uint8_t key[PH_KEY_LEN];
	char error[256];
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(setuid(uid) ? 255 : -ph_key_read(path, key, error, sizeof(error)));
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? -WEXITSTATUS(status) : -255;
}

static void test_owner(const char *dir)
{
	char path[4096], error[256];
	uint8_t key[PH_KEY_LEN];
	int err;

	if (geteuid()) {
		ktap_skip("file: whose it is", "only root can give files away");
		return;
	}
	snprintf(path, sizeof(path), "%s/owned", dir);
	if (chmod(dir, 0755) || write_file(path, TEXT "\n", 45, 0600) || chown(path, NOBODY, NOBODY)) {
		ktap_ok(0, "file: cannot make %s another user's", path);
		return;
	}
	err = ph_key_read(path, key, error, sizeof(error));
	ktap_ok(err == -EPERM && strstr(error, "65534"), "file refused: another user's (\"%s\")", error);
	ktap_ok(read_as(NOBODY, path) == 0, "file taken: the process's own, process not root");
	if (chown(path, 0, 0) == 0)
		ktap_ok(read_as(NOBODY, path) == -EACCES, "file refused by the system: root's, process not root");
	unlink(path);
}

static void test_public(void)
{
	uint8_t key[PH_KEY_LEN], clamped[PH_KEY_LEN], from_key[PH_KEY_LEN], from_clamped[PH_KEY_LEN];
	int good = 0, different = 0;

	ktap_ok(!ph_key_public(alice_private, key) && !memcmp(key, alice_public, PH_KEY_LEN),
		"public key of RFC 7748, section 6.1");
	memset(key, 0, sizeof(key));
	for (int i = 0; i < 100; i++) {
		uint8_t before = key[8];

		if (ph_key_generate(key))
			break;
		different += key[8] != before;
		memcpy(clamped, key, PH_KEY_LEN);
		ph_key_clamp(clamped);
		good += !memcmp(clamped, key, PH_KEY_LEN) && !(key[0] & 7) && (key[31] & 192) == 64 &&
			!ph_key_public(key, from_key) && !ph_key_is_weak(from_key);
	}
	ktap_ok(good == 100 && different > 80, "generated keys are clamped, differ, and have public keys");
	memset(key, 0xff, sizeof(key));
	memcpy(clamped, key, PH_KEY_LEN);
	ph_key_clamp(clamped);
	ktap_ok(memcmp(key, clamped, PH_KEY_LEN) && !ph_key_public(key, from_key) &&
			!ph_key_public(clamped, from_clamped) && !memcmp(from_key, from_clamped, PH_KEY_LEN),
		"clamping does not change the public key");
}

/* Does OpenSSL refuse to agree on a secret with this key? It does when the secret would be all zero. */
static int is_refused(const uint8_t public_key[PH_KEY_LEN])
{
	EVP_PKEY *ours = EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, alice_private, PH_KEY_LEN);
	EVP_PKEY *theirs = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, public_key, PH_KEY_LEN);
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(ours, NULL);
	uint8_t secret[PH_KEY_LEN];
	size_t len = sizeof(secret);
	int refused = -1;

	if (theirs && context && EVP_PKEY_derive_init(context) == 1 && EVP_PKEY_derive_set_peer(context, theirs) == 1)
		refused = EVP_PKEY_derive(context, secret, &len) != 1;
	EVP_PKEY_CTX_free(context);
	EVP_PKEY_free(theirs);
	EVP_PKEY_free(ours);
	return refused;
}

static void test_weak(void)
{
	static const char *const order_8[] = {
		"4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
		"X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
	};
	uint8_t key[PH_KEY_LEN] = { 0 };
	int weak = 0, agree = 0, asked = 0;

	ktap_ok(ph_key_is_weak(key), "weak: all zero");
	ktap_ok(!ph_key_is_weak(alice_public), "not weak: a real key");
	for (int i = 0; i < 2; i++)
		ktap_ok(!ph_key_decode(order_8[i], key) && ph_key_is_weak(key) && is_refused(key) == 1,
			"weak: order 8, number %d", i + 1);

	/* All numbers that begin or end the range, with the top bit and without. */
	for (int fill = 0; fill < 2; fill++) {
		for (int low = 0; low < 256; low++) {
			for (int high = 0; high < 2; high++) {
				memset(key, fill ? 0xff : 0, sizeof(key));
				key[0] = low;
				key[31] = (fill ? 0x7f : 0) | high << 7;
				asked++;
				weak += ph_key_is_weak(key);
				agree += ph_key_is_weak(key) == is_refused(key);
			}
		}
	}
	ktap_ok(agree == asked && weak == 10, "%d of %d small and large numbers: OpenSSL agrees; %d weak", agree, asked,
		weak);
}

int main(void)
{
	char dir[] = "/tmp/test_key.XXXXXX";

	ktap_header();
	test_text();
	test_refused_text();
	if (!mkdtemp(dir)) {
		ktap_ok(0, "cannot make a directory in /tmp");
		return ktap_end();
	}
	test_file(dir);
	test_no_file(dir);
	test_owner(dir);
	rmdir(dir);
	test_public();
	test_weak();
	return ktap_end();
}
