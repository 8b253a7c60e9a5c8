// SPDX-License-Identifier: Apache-2.0
/*
 * tls - certificates, settings and sessions, by OpenSSL. See tls.h.
 */
#include "tls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "log.h"
#include "tickets.h"

#define TICKET_IV_LEN 16			/* of AES */
#define READS_PER_TURN 4			/* of 16 KiB */
#define RECORD_LEAST 512			/* of plaintext, in a record that more follow: RFC 6066, section 4 */
#define RECORD_COST 128				/* header, IV, MAC, padding: more than any cipher's */
#define SEALED_MAX (PH_TLS_WRITE_MAX + PH_TLS_WRITE_MAX / RECORD_LEAST * RECORD_COST)
#define NOT_READABLE_BY (S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH)

struct ph_tls {
	SSL_CTX *context;
};

struct ph_tls_session {
	SSL *ssl;
	const struct ph_tls_terms *terms;	/* NULL once the handshake is over */
	int fd;
	int error;				/* errno that the socket broke with */
	uint8_t *held;				/* sealed, but not taken by the socket; NULL most of the time */
	size_t held_at, held_len;
	bool sealing;				/* records are gathered: nothing is sent yet */
	unsigned reads_left;			/* in this turn */
	bool spent;				/* a read was refused because of that */
	bool ended;				/* the peer's FIN was read */
};

__attribute__((format(printf, 4, 5))) static int fail(int err, char *error, size_t size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, size, format, args);
	va_end(args);
	ERR_clear_error();
	return err;
}

static const char *openssl_reason(void)
{
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());

	return reason ? reason : "OpenSSL does not say why";
}

/* Files. */

/* @ret_bytes: the caller's to free, and to clear if it is a key. Return: 0 or -errno, -EFBIG over PH_PEM_MAX. */
static int read_file(int fd, char **ret_bytes, size_t *ret_len)
{
	char *bytes = malloc(PH_PEM_MAX + 1);
	size_t len = 0;
	ssize_t got;
	int err = 0;

	if (!bytes)
		return -ENOMEM;
	while ((got = pread(fd, bytes + len, PH_PEM_MAX + 1 - len, (off_t)len)) > 0)
		len += (size_t)got;
	if (got < 0)
		err = -errno;
	else if (len > PH_PEM_MAX)
		err = -EFBIG;
	if (err) {
		OPENSSL_cleanse(bytes, len);
		free(bytes);
		return err;
	}
	*ret_bytes = bytes;
	*ret_len = len;
	return 0;
}

/* Without it OpenSSL would ask whoever is at the terminal, for which a worker would be killed: it opens nothing. */
static int no_passphrase(char *out, int size, int writing, void *arg)
{
	(void)out, (void)size, (void)writing;
	*(bool *)arg = true;
	return -1;
}

/* Leaf first, then the rest of the chain. */
static int use_certificates(SSL_CTX *context, BIO *pem, const char *path, char *error, size_t error_size)
{
	bool encrypted = false;
	X509 *certificate = PEM_read_bio_X509_AUX(pem, NULL, no_passphrase, &encrypted);
	int used;

	if (!certificate && !encrypted)
		return fail(-EINVAL, error, error_size, "%s: no certificate in PEM: %s", path, openssl_reason());
	used = certificate && SSL_CTX_use_certificate(context, certificate);
	X509_free(certificate);
	while (used && (certificate = PEM_read_bio_X509(pem, NULL, no_passphrase, &encrypted))) {
		used = SSL_CTX_add1_chain_cert(context, certificate);
		X509_free(certificate);
	}
	if (encrypted)
		return fail(-EINVAL, error, error_size, "%s: the certificate has a passphrase", path);
	if (!used)
		return fail(-EINVAL, error, error_size, "%s: refused: %s", path, openssl_reason());
	if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
		return fail(-EINVAL, error, error_size, "%s: a damaged certificate in the chain: %s", path,
			    openssl_reason());
	ERR_clear_error();
	return 0;
}

static int load_certificates(SSL_CTX *context, int fd, const char *path, char *error, size_t error_size)
{
	char *bytes;
	size_t len;
	BIO *pem;
	int err;

	err = read_file(fd, &bytes, &len);
	if (err)
		return fail(err, error, error_size, "%s: %s", path, strerror(-err));
	pem = BIO_new_mem_buf(bytes, (int)len);
	err = pem ? use_certificates(context, pem, path, error, error_size)
		  : fail(-ENOMEM, error, error_size, "out of memory");
	BIO_free(pem);
	free(bytes);
	return err;
}

static int load_private_key(SSL_CTX *context, int fd, const char *path, char *error, size_t error_size)
{
	bool encrypted = false;
	EVP_PKEY *key = NULL;
	struct stat status;
	BIO *pem = NULL;
	char *bytes;
	size_t len;
	int err;

	if (fstat(fd, &status)) {
		err = -errno;
		return fail(err, error, error_size, "%s: %s", path, strerror(-err));
	}
	if (status.st_mode & NOT_READABLE_BY)
		return fail(-EINVAL, error, error_size, "%s: mode %04o: a private key must be its owner's alone", path,
			    status.st_mode & 07777);
	/* Who has no more than root's name, as the manager at a reload, could not even read it. */
	if (status.st_uid && status.st_uid != geteuid())
		return fail(-EINVAL, error, error_size, "%s: belongs to user %u: a private key must be root's", path,
			    status.st_uid);
	err = read_file(fd, &bytes, &len);
	if (err)
		return fail(err, error, error_size, "%s: %s", path, strerror(-err));
	pem = BIO_new_mem_buf(bytes, (int)len);
	if (pem)
		key = PEM_read_bio_PrivateKey(pem, NULL, no_passphrase, &encrypted);
	if (encrypted)
		err = fail(-EINVAL, error, error_size, "%s: the key has a passphrase", path);
	else if (!key)
		err = fail(-EINVAL, error, error_size, "%s: no private key in PEM", path);
	else if (X509_check_private_key(SSL_CTX_get0_certificate(context), key) != 1)
		err = fail(-EINVAL, error, error_size, "%s: not the key of the certificate", path);
	else if (SSL_CTX_use_PrivateKey(context, key) != 1)
		err = fail(-EINVAL, error, error_size, "%s: refused: %s", path, openssl_reason());
	EVP_PKEY_free(key);
	BIO_free(pem);
	OPENSSL_cleanse(bytes, len);
	free(bytes);
	return err;
}

/* OpenSSL's host name check takes a literal star for covered by a wildcard only. */
static int judge_certificate(SSL_CTX *context, const struct ph_domain *domain, bool allow_expired, char *error,
			     size_t error_size)
{
	X509 *certificate = SSL_CTX_get0_certificate(context);
	const char *path = domain->certificate_path, *wrong = NULL;
	char wildcard[PH_NAME_SIZE + 2];

	snprintf(wildcard, sizeof(wildcard), "*.%s", domain->name);
	if (X509_check_host(certificate, wildcard, 0,
			    X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL) != 1)
		return fail(-EINVAL, error, error_size, "%s: does not cover %s", path, wildcard);
	if (X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0)
		wrong = "has expired";
	else if (X509_cmp_current_time(X509_get0_notBefore(certificate)) >= 0)
		wrong = "is not valid yet";
	if (!wrong)
		return 0;
	if (!allow_expired)
		return fail(-EINVAL, error, error_size, "%s: the certificate %s", path, wrong);
	ph_log(PH_LOG_WARNING, "%s: the certificate %s", path, wrong);
	return 0;
}

/* Settings. */

static const struct ph_tls_terms *terms_of(const SSL *ssl)
{
	const struct ph_tls_session *session = SSL_get_app_data(ssl);

	return session->terms;
}

/*
 * The connection was routed by the name that our own parser found, before OpenSSL saw a byte. A second ClientHello
 * after a HelloRetryRequest could have another one.
 */
static int judge_name(SSL *ssl, int *alert, void *arg)
{
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);

	(void)arg;
	if (name && !strcasecmp(name, terms_of(ssl)->name))
		return SSL_TLSEXT_ERR_OK;
	*alert = SSL_AD_UNRECOGNIZED_NAME;
	return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* h2 on a wildcard certificate would let browsers use one app's connection for another, so it has names of its own. */
static int select_alpn(SSL *ssl, const unsigned char **ret_chosen, unsigned char *ret_len,
		       const unsigned char *offered, unsigned offered_len, void *arg)
{
	static const unsigned char h2[] = "\x02h2", http[] = "\x08http/1.1";
	bool is_h2 = terms_of(ssl)->h2;

	(void)arg;
	if (SSL_select_next_proto((unsigned char **)ret_chosen, ret_len, is_h2 ? h2 : http,
				  is_h2 ? sizeof(h2) - 1 : sizeof(http) - 1, offered,
				  offered_len) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_NOACK;
	return SSL_TLSEXT_ERR_OK;
}

/*
 * SSL_CTX_set_tlsext_ticket_key_evp_cb(3): 1 to make or take a ticket, 2 to take one and give the client a newer, 0 for a
 * ticket of a key that is gone, which means a full handshake. In TLS 1.2 a newer one would hold the same master secret
 * (RFC 5077, section 3), which is to go with the key that it was first under.
 */
static int choose_ticket_key(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
			     int makes)
{
	const struct ph_tickets *tickets = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
	struct ph_ticket_key key;
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.mac, sizeof(key.mac)),
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_end(),
	};
	bool is_newest = true, done;

	if (makes) {
		ph_tickets_newest(tickets, &key);
		memcpy(name, key.name, sizeof(key.name));
		done = RAND_bytes(iv, TICKET_IV_LEN) == 1 &&
		       EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) == 1;
	} else {
		if (!ph_tickets_find(tickets, name, &key, &is_newest))
			return 0;
		done = EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) == 1;
	}
	done = done && EVP_MAC_CTX_set_params(mac, params) == 1;
	OPENSSL_cleanse(&key, sizeof(key));
	if (!done)
		return -1;
	return is_newest || SSL_version(ssl) < TLS1_3_VERSION ? 1 : 2;
}

static SSL_CTX *new_context(const struct ph_tickets *tickets)
{
	SSL_CTX *context = SSL_CTX_new(TLS_server_method());

	if (!context)
		return NULL;
	if (SSL_CTX_set_app_data(context, (void *)(uintptr_t)tickets) != 1 ||
	    SSL_CTX_set_tlsext_ticket_key_evp_cb(context, choose_ticket_key) != 1 ||
	    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1) {
		SSL_CTX_free(context);
		return NULL;
	}
	SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE |
					     SSL_OP_PRIORITIZE_CHACHA);
	SSL_CTX_clear_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_AUTO_RETRY);
	SSL_CTX_set_read_ahead(context, 1);
	SSL_CTX_set_max_early_data(context, 0);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);	/* tickets only */
	SSL_CTX_set_alpn_select_cb(context, select_alpn, NULL);
	SSL_CTX_set_tlsext_servername_callback(context, judge_name);
	return context;
}

int ph_tls_new(const struct ph_domain *domain, int certificate_fd, int private_key_fd,
	       const struct ph_tickets *tickets, bool allow_expired, struct ph_tls **ret_tls, char *error,
	       size_t error_size)
{
	struct ph_tls *tls = calloc(1, sizeof(*tls));
	int err;

	ERR_clear_error();
	if (tls)
		tls->context = new_context(tickets);
	if (!tls || !tls->context) {
		free(tls);
		return fail(-ENOMEM, error, error_size, "out of memory");
	}
	err = load_certificates(tls->context, certificate_fd, domain->certificate_path, error, error_size);
	if (!err)
		err = load_private_key(tls->context, private_key_fd, domain->private_key_path, error, error_size);
	if (!err)
		err = judge_certificate(tls->context, domain, allow_expired, error, error_size);
	if (err)
		ph_tls_free(tls);
	else
		*ret_tls = tls;
	return err;
}

int ph_tls_open(const struct ph_domain *domain, const struct ph_tickets *tickets, bool allow_expired,
		struct ph_tls **ret_tls, char *error, size_t error_size)
{
	int certificate_fd, key_fd = -1, err;

	certificate_fd = open(domain->certificate_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (certificate_fd < 0) {
		err = -errno;
		return fail(err, error, error_size, "%s: %s", domain->certificate_path, strerror(-err));
	}
	key_fd = open(domain->private_key_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (key_fd < 0) {
		err = -errno;
		fail(err, error, error_size, "%s: %s", domain->private_key_path, strerror(-err));
	} else {
		err = ph_tls_new(domain, certificate_fd, key_fd, tickets, allow_expired, ret_tls, error, error_size);
		close(key_fd);
	}
	close(certificate_fd);
	return err;
}

void ph_tls_free(struct ph_tls *tls)
{
	if (!tls)
		return;
	SSL_CTX_free(tls->context);
	free(tls);
}

int ph_tls_check(const struct ph_config *config, char *error, size_t error_size)
{
	static const struct ph_tickets tickets;			/* no session is ever made with them */

	for (uint32_t i = 0; i < config->domain_count; i++) {
		struct ph_tls *tls;
		int err = ph_tls_open(&config->domains[i], &tickets, false, &tls, error, error_size);

		if (err)
			return err;
		ph_tls_free(tls);
	}
	return 0;
}

/*
 * Sessions. The socket is read through a BIO of our own: it knows how the connection broke, and it says "later" once
 * the turn's share is used up. Else OpenSSL would go on for as long as a peer keeps it busy with messages that carry no
 * data (KeyUpdate), while all other connections wait.
 */

static int bio_read(BIO *bio, char *out, int size)
{
	struct ph_tls_session *session = BIO_get_data(bio);
	ssize_t got;

	BIO_clear_retry_flags(bio);
	if (!session->reads_left) {
		session->spent = true;
		BIO_set_retry_read(bio);
		return -1;
	}
	session->reads_left--;
	got = recv(session->fd, out, (size_t)size, 0);
	if (!got)
		session->ended = true;
	else if (got < 0 && errno == EAGAIN)
		BIO_set_retry_read(bio);
	else if (got < 0)
		session->error = errno;
	return (int)got;
}

/* Return: bytes that the socket took, 0 when it takes nothing now, -1 when it broke. */
static ssize_t send_some(struct ph_tls_session *session, const void *bytes, size_t len)
{
	ssize_t sent = send(session->fd, bytes, len, MSG_NOSIGNAL);

	if (sent < 0 && errno == EAGAIN)
		return 0;
	if (sent < 0)
		session->error = errno;
	return sent;
}

/* A process's, and one session's at a time: what one call into OpenSSL writes. */
static uint8_t sealed[SEALED_MAX];
static size_t sealed_len;

static void begin_sealing(struct ph_tls_session *session)
{
	sealed_len = 0;
	session->sealing = true;
}

static enum ph_tls_result hold(struct ph_tls_session *session, const uint8_t *bytes, size_t len)
{
	session->held = malloc(len);
	if (!session->held)
		return PH_TLS_NO_MEMORY;
	memcpy(session->held, bytes, len);
	session->held_at = 0;
	session->held_len = len;
	return PH_TLS_OK;
}

/* In one packet, or as few as can be. What is not taken is held. */
static enum ph_tls_result send_sealed(struct ph_tls_session *session)
{
	ssize_t sent;

	if (!session->sealing)
		return PH_TLS_OK;
	session->sealing = false;
	sent = sealed_len ? send_some(session, sealed, sealed_len) : 0;
	if (sent < 0)
		return PH_TLS_RESET;
	return (size_t)sent < sealed_len ? hold(session, sealed + sent, sealed_len - (size_t)sent) : PH_TLS_OK;
}

static int bio_write(BIO *bio, const char *bytes, int len)
{
	struct ph_tls_session *session = BIO_get_data(bio);
	enum ph_tls_result result;
	ssize_t sent = 0;

	BIO_clear_retry_flags(bio);
	if (session->sealing && (size_t)len <= sizeof(sealed) - sealed_len) {
		memcpy(sealed + sealed_len, bytes, (size_t)len);
		sealed_len += (size_t)len;
		return len;
	}
	/* It does not fit, as with a chain of very many certificates; or it is an answer, an alert, close_notify. */
	result = send_sealed(session);
	if (result == PH_TLS_OK)
		result = ph_tls_flush(session);
	if (result == PH_TLS_OK)
		sent = send_some(session, bytes, (size_t)len);
	if (sent > 0)
		return (int)sent;
	if (!session->error && result != PH_TLS_NO_MEMORY)
		BIO_set_retry_write(bio);
	return -1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
	const struct ph_tls_session *session = BIO_get_data(bio);

	(void)number, (void)pointer;
	switch (command) {
	case BIO_CTRL_EOF:
		return session->ended;
	case BIO_CTRL_FLUSH:
		return 1;
	default:
		return 0;
	}
}

static BIO_METHOD *bio_method(void)
{
	static BIO_METHOD *method;

	if (method)
		return method;
	method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "connection");
	if (!method)
		return NULL;
	BIO_meth_set_read(method, bio_read);
	BIO_meth_set_write(method, bio_write);
	BIO_meth_set_ctrl(method, bio_ctrl);
	return method;
}

/* RFC 6066, section 3: no resumption under another name. The context of a session is made from its name. */
static int bind_to_name(SSL *ssl, const char *name)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned len;

	return EVP_Digest(name, strlen(name), digest, &len, EVP_sha256(), NULL) == 1 &&
	       SSL_set_session_id_context(ssl, digest, len) == 1;
}

int ph_tls_session_new(struct ph_tls *tls, int fd, const struct ph_tls_terms *terms,
		       struct ph_tls_session **ret_session)
{
	struct ph_tls_session *session = calloc(1, sizeof(*session));
	BIO *bio = NULL;

	if (!session)
		return -ENOMEM;
	session->fd = fd;
	session->terms = terms;
	session->ssl = SSL_new(tls->context);
	if (session->ssl && bio_method())
		bio = BIO_new(bio_method());
	if (!bio || !bind_to_name(session->ssl, terms->name)) {
		BIO_free(bio);
		ph_tls_session_free(session);
		return -ENOMEM;
	}
	BIO_set_data(bio, session);
	BIO_set_init(bio, 1);
	SSL_set_bio(session->ssl, bio, bio);
	SSL_set_app_data(session->ssl, session);
	SSL_set_accept_state(session->ssl);
	ph_tls_session_turn(session);
	*ret_session = session;
	return 0;
}

void ph_tls_session_free(struct ph_tls_session *session)
{
	if (!session)
		return;
	SSL_free(session->ssl);
	free(session->held);
	free(session);
}

void ph_tls_session_turn(struct ph_tls_session *session)
{
	session->reads_left = READS_PER_TURN;
	session->spent = false;
}

static enum ph_tls_result result_of(struct ph_tls_session *session, int returned)
{
	switch (SSL_get_error(session->ssl, returned)) {
	case SSL_ERROR_NONE:
		return PH_TLS_OK;
	case SSL_ERROR_WANT_READ:
		return session->spent ? PH_TLS_AGAIN : PH_TLS_WANT_READ;
	case SSL_ERROR_WANT_WRITE:
		return PH_TLS_WANT_WRITE;
	case SSL_ERROR_ZERO_RETURN:			/* also when close_notify in return found nobody */
		return session->error ? PH_TLS_RESET : PH_TLS_CLOSED;
	}
	if (session->error)
		return PH_TLS_RESET;
	return session->ended ? PH_TLS_TRUNCATED : PH_TLS_FAILED;
}

enum ph_tls_result ph_tls_handshake(struct ph_tls_session *session)
{
	enum ph_tls_result result = ph_tls_flush(session), sent;

	if (result != PH_TLS_OK)
		return result;
	ERR_clear_error();
	begin_sealing(session);
	result = result_of(session, SSL_do_handshake(session->ssl));
	sent = send_sealed(session);
	if (result == PH_TLS_OK) {
		session->terms = NULL;
		/* Who has reset it may have said something before: reading tells both. */
		return sent == PH_TLS_RESET ? PH_TLS_OK : sent;
	}
	return sent == PH_TLS_OK ? result : sent;
}

bool ph_tls_session_is_h2(const struct ph_tls_session *session)
{
	const unsigned char *chosen;
	unsigned len;

	SSL_get0_alpn_selected(session->ssl, &chosen, &len);
	return len == 2 && !memcmp(chosen, "h2", 2);
}

enum ph_tls_result ph_tls_read(struct ph_tls_session *session, uint8_t *bytes, size_t size, size_t *ret_len)
{
	ERR_clear_error();
	return result_of(session, SSL_read_ex(session->ssl, bytes, size, ret_len));
}

enum ph_tls_result ph_tls_write(struct ph_tls_session *session, const uint8_t *bytes, size_t len)
{
	enum ph_tls_result result = PH_TLS_OK, sent;
	size_t taken;

	ERR_clear_error();
	begin_sealing(session);
	for (size_t at = 0; at < len && result == PH_TLS_OK; at += taken) {
		taken = 0;
		result = result_of(session, SSL_write_ex(session->ssl, bytes + at, len - at, &taken));
	}
	sent = send_sealed(session);
	return result == PH_TLS_OK ? sent : PH_TLS_FAILED;
}

bool ph_tls_can_write(const struct ph_tls_session *session)
{
	return !SSL_in_init(session->ssl);
}

size_t ph_tls_held(const struct ph_tls_session *session)
{
	return session->held ? session->held_len - session->held_at : 0;
}

enum ph_tls_result ph_tls_flush(struct ph_tls_session *session)
{
	ssize_t sent;

	if (!session->held)
		return PH_TLS_OK;
	sent = send_some(session, session->held + session->held_at, ph_tls_held(session));
	if (sent < 0)
		return PH_TLS_RESET;
	session->held_at += (size_t)sent;
	if (ph_tls_held(session))
		return PH_TLS_WANT_WRITE;
	free(session->held);
	session->held = NULL;
	return PH_TLS_OK;
}

enum ph_tls_result ph_tls_close(struct ph_tls_session *session)
{
	int returned;

	ERR_clear_error();
	returned = SSL_shutdown(session->ssl);
	return returned >= 0 ? PH_TLS_OK : result_of(session, returned);
}
