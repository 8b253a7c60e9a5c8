/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls_lab - certificates made to order, a TLS client, and TCP connections on loopback. One of the few places outside
 * user/tls.c that know OpenSSL: somebody must be the other side.
 */
#ifndef TLS_LAB_H
#define TLS_LAB_H

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "tls.h"

#define DAY_S 86400

static char lab_dir[] = "/tmp/phala-tls-XXXXXX";

/* A certificate's wishes. */
struct lab_certificate {
	const char *common_name;
	const char *san;			/* "DNS:a,DNS:b", NULL for none */
	long from_s, to_s;			/* relative to now */
};

__attribute__((noreturn)) static inline void lab_die(const char *what)
{
	perror(what);
	ERR_print_errors_fp(stderr);
	exit(1);
}

static inline const char *lab_path(const char *name)
{
	static char paths[8][64];
	static unsigned next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", lab_dir, name);
	return path;
}

static inline FILE *lab_create(const char *name, mode_t mode)
{
	FILE *file = fopen(lab_path(name), "we");

	if (!file || fchmod(fileno(file), mode))
		lab_die(name);
	return file;
}

static inline void lab_write(const char *name, const char *text)
{
	FILE *file = lab_create(name, 0600);

	fputs(text, file);
	fclose(file);
}

static inline X509 *lab_sign(const struct lab_certificate *wish, EVP_PKEY *key)
{
	X509 *certificate = X509_new();
	X509_NAME *name = X509_get_subject_name(certificate);
	X509_EXTENSION *extension;

	X509_set_version(certificate, X509_VERSION_3);
	ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
	X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)wish->common_name, -1, -1, 0);
	X509_set_issuer_name(certificate, name);
	X509_gmtime_adj(X509_getm_notBefore(certificate), wish->from_s);
	X509_gmtime_adj(X509_getm_notAfter(certificate), wish->to_s);
	X509_set_pubkey(certificate, key);
	if (wish->san) {
		extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, wish->san);
		if (!extension || !X509_add_ext(certificate, extension, -1))
			lab_die(wish->san);
		X509_EXTENSION_free(extension);
	}
	if (!X509_sign(certificate, key, EVP_sha256()))
		lab_die("X509_sign");
	return certificate;
}

/* NAME.crt and NAME.key; the key's mode is 0600. */
static inline void lab_make_pair(const char *name, const struct lab_certificate *wish)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *certificate;
	char file_name[32];
	FILE *file;

	if (!key)
		lab_die("EVP_EC_gen");
	certificate = lab_sign(wish, key);
	snprintf(file_name, sizeof(file_name), "%s.crt", name);
	file = lab_create(file_name, 0644);
	PEM_write_X509(file, certificate);
	fclose(file);
	snprintf(file_name, sizeof(file_name), "%s.key", name);
	file = lab_create(file_name, 0600);
	PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
	fclose(file);
	X509_free(certificate);
	EVP_PKEY_free(key);
}

static inline void lab_set_up(void)
{
	if (!mkdtemp(lab_dir))
		lab_die(lab_dir);
}

static inline void lab_tear_down(void)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", lab_dir);
	if (system(command))
		perror(command);
}

static inline void lab_domain(struct ph_domain *ret, const char *name, const char *certificate, const char *key)
{
	memset(ret, 0, sizeof(*ret));
	strcpy(ret->name, name);
	strcpy(ret->certificate_path, lab_path(certificate));
	strcpy(ret->private_key_path, lab_path(key));
}

/* @ret_near is non-blocking; @ret_far connected to it. */
static inline void lab_tcp_pair(int *ret_near, int *ret_far)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*ret_far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || *ret_far < 0 || bind(listener, (struct sockaddr *)&address, len) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &len) ||
	    connect(*ret_far, (struct sockaddr *)&address, len))
		lab_die("loopback");
	*ret_near = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	close(listener);
}

static inline void lab_reset(int fd)
{
	const struct linger at_once = { .l_onoff = 1 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
}

static inline SSL_CTX *lab_client(int version)
{
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());

	if (!context)
		lab_die("SSL_CTX_new");
	if (version < TLS1_2_VERSION)
		SSL_CTX_set_security_level(context, 0);
	SSL_CTX_set_min_proto_version(context, version);
	SSL_CTX_set_max_proto_version(context, version);
	SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	return context;
}

/* The client's side of a connection; @fd becomes non-blocking, and is closed with it. */
static inline SSL *lab_connect(SSL_CTX *context, int fd, const char *name)
{
	SSL *ssl = SSL_new(context);
	const int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (!ssl || !BIO_socket_nbio(fd, 1) || !SSL_set_fd(ssl, fd) || !SSL_set_tlsext_host_name(ssl, name))
		lab_die("SSL_new");
	SSL_set_connect_state(ssl);
	return ssl;
}

/* Sends nothing more. OpenSSL would else think the session too bad to be resumed. */
static inline void lab_disconnect(SSL *ssl)
{
	SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	close(SSL_get_fd(ssl));
	SSL_free(ssl);
}

/* Both sides by turns, until neither goes on. Return: how it ended for the server; @ret_client: SSL_get_error(). */
static inline enum ph_tls_result lab_handshake(struct ph_tls_session *server, SSL *client, int *ret_client)
{
	enum ph_tls_result result = PH_TLS_WANT_READ;

	*ret_client = SSL_ERROR_WANT_READ;
	for (int i = 0; i < 100000; i++) {
		if (*ret_client == SSL_ERROR_WANT_READ) {
			ERR_clear_error();
			*ret_client = SSL_get_error(client, SSL_do_handshake(client));
		}
		if (result == PH_TLS_WANT_READ || result == PH_TLS_WANT_WRITE) {
			ph_tls_session_turn(server);
			result = ph_tls_handshake(server);
		}
		if (result != PH_TLS_WANT_READ && result != PH_TLS_WANT_WRITE && *ret_client != SSL_ERROR_WANT_READ)
			break;
	}
	return result;
}

#endif
