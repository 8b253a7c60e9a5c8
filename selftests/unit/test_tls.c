// SPDX-License-Identifier: Apache-2.0
/* tls: which certificates and keys are taken, and how sessions turn out with clients of every kind. */
#include <errno.h>

#include "ktap.h"
#include "tickets.h"
#include "tls_lab.h"

#define DOMAIN "example.test"
#define NAME "app-8080." DOMAIN

static struct ph_tickets tickets, other_tickets;
static struct ph_tls *tls;

static void make_files(void)
{
	char command[1024];
	FILE *file;

	lab_make_pair("good", &(struct lab_certificate){ "gw", "DNS:*." DOMAIN, -DAY_S, DAY_S });
	lab_make_pair("several", &(struct lab_certificate){ "gw", "DNS:a.example,DNS:*.EXAMPLE.test", -DAY_S, DAY_S });
	lab_make_pair("expired", &(struct lab_certificate){ "gw", "DNS:*." DOMAIN, -2 * DAY_S, -DAY_S });
	lab_make_pair("early", &(struct lab_certificate){ "gw", "DNS:*." DOMAIN, DAY_S, 2 * DAY_S });
	lab_make_pair("other", &(struct lab_certificate){ "gw", "DNS:*.example.org", -DAY_S, DAY_S });
	lab_make_pair("exact", &(struct lab_certificate){ "gw", "DNS:" DOMAIN ",DNS:a." DOMAIN, -DAY_S, DAY_S });
	lab_make_pair("deeper", &(struct lab_certificate){ "gw", "DNS:*.a." DOMAIN, -DAY_S, DAY_S });
	lab_make_pair("partial", &(struct lab_certificate){ "gw", "DNS:a*." DOMAIN, -DAY_S, DAY_S });
	lab_make_pair("common", &(struct lab_certificate){ "*." DOMAIN, NULL, -DAY_S, DAY_S });
	lab_write("empty.key", "");
	lab_write("text.key", "no PEM at all\n");
	snprintf(command, sizeof(command),
		 "cd %s && cp good.key group.key && chmod 640 group.key &&"
		 "cp good.key others.key && chmod 604 others.key && cp good.key owner.key && chmod 400 owner.key &&"
		 "cat good.crt expired.crt > chain.crt &&"
		 "(cat good.crt; sed '3s/^..../####/' expired.crt) > damaged.crt && mkfifo fifo.crt &&"
		 "sed '1aProc-Type: 4,ENCRYPTED\\nDEK-Info: AES-128-CBC,00112233445566778899aabbccddeeff\\n' good.crt > sealed.crt &&"
		 "cat good.crt sealed.crt > half.crt &&"
		 "openssl ec -aes128 -passout pass:x -in good.key -out locked.key 2>/dev/null", lab_dir);
	if (system(command))
		lab_die(command);
	snprintf(command, sizeof(command),
		 "cd %s && n=$((92000 / $(openssl x509 -in good.crt -outform DER | wc -c))) &&"
		 "for i in $(seq $n); do cat good.crt; done > many.crt", lab_dir);
	if (system(command))
		lab_die(command);
	file = lab_create("long.crt", 0600);
	for (int i = 0; i < PH_PEM_MAX / 16 + 1; i++)
		fputs("0123456789abcde\n", file);
	fclose(file);
}

struct file_row {
	const char *name;
	const char *certificate, *key;
	int want;
	const char *says;			/* part of the error; the file at fault is always named */
	const char *names;
	bool allow_expired;
};

static const struct file_row file_rows[] = {
	{ "a good pair", "good.crt", "good.key", 0, NULL, NULL, false },
	{ "the wildcard is one of several names", "several.crt", "several.key", 0, NULL, NULL, false },
	{ "a chain", "chain.crt", "good.key", 0, NULL, NULL, false },
	{ "key readable by its owner only", "good.crt", "owner.key", 0, NULL, NULL, false },
	{ "expired, but allowed", "expired.crt", "expired.key", 0, NULL, NULL, true },
	{ "expired", "expired.crt", "expired.key", -EINVAL, "expired", "expired.crt", false },
	{ "not valid yet", "early.crt", "early.key", -EINVAL, "not valid yet", "early.crt", false },
	{ "another pair's key", "good.crt", "other.key", -EINVAL, "not the key of", "other.key", false },
	{ "another domain", "other.crt", "other.key", -EINVAL, "does not cover *." DOMAIN, "other.crt", false },
	{ "no wildcard", "exact.crt", "exact.key", -EINVAL, "does not cover", "exact.crt", false },
	{ "wildcard a level too deep", "deeper.crt", "deeper.key", -EINVAL, "does not cover", "deeper.crt", false },
	{ "wildcard for half a label", "partial.crt", "partial.key", -EINVAL, "does not cover", "partial.crt", false },
	{ "wildcard as common name", "common.crt", "common.key", -EINVAL, "does not cover", "common.crt", false },
	{ "another domain's, expired allowed", "other.crt", "other.key", -EINVAL, "does not cover", "other.crt", true },
	{ "key readable by the group", "good.crt", "group.key", -EINVAL, "mode 0640", "group.key", false },
	{ "key readable by others", "good.crt", "others.key", -EINVAL, "mode 0604", "others.key", false },
	{ "key with a passphrase", "good.crt", "locked.key", -EINVAL, "passphrase", "locked.key", false },
	{ "key file empty", "good.crt", "empty.key", -EINVAL, "no private key", "empty.key", false },
	{ "key not PEM", "good.crt", "text.key", -EINVAL, "no private key", "text.key", false },
	{ "certificate in place of the key", "good.crt", "expired.crt", -EINVAL, "mode 0644", "expired.crt", false },
	{ "key in place of the certificate", "good.key", "good.key", -EINVAL, "no certificate", "good.key", false },
	{ "certificate not PEM", "text.key", "good.key", -EINVAL, "no certificate", "text.key", false },
	{ "second of the chain damaged", "damaged.crt", "good.key", -EINVAL, "damaged", "damaged.crt", false },
	{ "certificate with a passphrase", "sealed.crt", "good.key", -EINVAL, "passphrase", "sealed.crt", false },
	{ "second of the chain with one", "half.crt", "good.key", -EINVAL, "passphrase", "half.crt", false },
	{ "certificate missing", "nowhere.crt", "good.key", -ENOENT, "No such file", "nowhere.crt", false },
	{ "key missing", "good.crt", "nowhere.key", -ENOENT, "No such file", "nowhere.key", false },
	{ "certificate file too long", "long.crt", "good.key", -EFBIG, "", "long.crt", false },
	{ "certificate a pipe", "fifo.crt", "good.key", -ESPIPE, "", "fifo.crt", false },
	{ "certificate a directory", ".", "good.key", -EISDIR, "", "", false },
};

static void test_files(void)
{
	for (size_t i = 0; i < sizeof(file_rows) / sizeof(file_rows[0]); i++) {
		const struct file_row *row = &file_rows[i];
		struct ph_tls *made = NULL;
		struct ph_domain domain;
		char error[512] = "";
		int err;

		lab_domain(&domain, DOMAIN, row->certificate, row->key);
		err = ph_tls_open(&domain, &tickets, row->allow_expired, &made, error, sizeof(error));
		if (!row->want)
			ktap_ok(!err && made, "files: %s%s%s", row->name, *error ? ": " : "", error);
		else
			ktap_ok(err == row->want && !made && strstr(error, row->says) &&
					strstr(error, lab_path(row->names)) && !strchr(error, '\n'),
				"files: %s: %s", row->name, error);
		ph_tls_free(made);
	}
}

static void test_check(void)
{
	struct ph_config *config = calloc(1, sizeof(*config));
	char error[512] = "";

	config->domain_count = 2;
	lab_domain(&config->domains[0], DOMAIN, "good.crt", "good.key");
	lab_domain(&config->domains[1], "example.org", "other.crt", "other.key");
	ktap_ok(!ph_tls_check(config, error, sizeof(error)), "check: all domains good");
	lab_domain(&config->domains[1], "example.org", "expired.crt", "expired.key");
	ktap_ok(ph_tls_check(config, error, sizeof(error)) == -EINVAL && strstr(error, "expired.crt"),
		"check: the second is not: %s", error);
	free(config);
}

/* One connection of a server and a client. */
struct meeting {
	struct ph_tls_terms terms;
	struct ph_tls_session *server;
	int server_fd;
	SSL *client;
};

static void meet(struct meeting *meeting, struct ph_tls *with, SSL_CTX *context, const char *name, bool h2)
{
	int far;

	memset(meeting, 0, sizeof(*meeting));
	meeting->terms = (struct ph_tls_terms){ .name = name, .h2 = h2 };
	lab_tcp_pair(&meeting->server_fd, &far);
	if (ph_tls_session_new(with, meeting->server_fd, &meeting->terms, &meeting->server))
		lab_die("ph_tls_session_new");
	meeting->client = lab_connect(context, far, name);
}

static void part(struct meeting *meeting)
{
	lab_disconnect(meeting->client);
	ph_tls_session_free(meeting->server);
	close(meeting->server_fd);
}

/* Return: what the client read, or -1; why is in OpenSSL's queue. */
static int client_reads(SSL *client, char *out, int size)
{
	int got;

	ERR_clear_error();
	for (int i = 0; i < 100000; i++) {
		got = SSL_read(client, out, size);
		if (got > 0 || SSL_get_error(client, got) != SSL_ERROR_WANT_READ)
			break;
	}
	return got > 0 ? got : -1;
}

static enum ph_tls_result server_reads(struct ph_tls_session *server, uint8_t *out, size_t size, size_t *ret_len)
{
	enum ph_tls_result result = PH_TLS_WANT_READ;

	for (int i = 0; i < 100000 && result == PH_TLS_WANT_READ; i++) {
		ph_tls_session_turn(server);
		result = ph_tls_read(server, out, size, ret_len);
	}
	return result;
}

static void test_versions(void)
{
	static const struct {
		const char *name;
		int version;
		enum ph_tls_result want;
	} rows[] = {
		{ "TLS 1.3", TLS1_3_VERSION, PH_TLS_OK },
		{ "TLS 1.2", TLS1_2_VERSION, PH_TLS_OK },
		{ "TLS 1.1 is refused", TLS1_1_VERSION, PH_TLS_FAILED },
		{ "TLS 1.0 is refused", TLS1_VERSION, PH_TLS_FAILED },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		SSL_CTX *context = lab_client(rows[i].version);
		struct meeting meeting;
		enum ph_tls_result result;
		int client;

		meet(&meeting, tls, context, NAME, false);
		result = lab_handshake(meeting.server, meeting.client, &client);
		ktap_ok(result == rows[i].want && (client == SSL_ERROR_NONE) == (result == PH_TLS_OK), "handshake: %s",
			rows[i].name);
		part(&meeting);
		SSL_CTX_free(context);
	}
}

static void test_words(int version, const char *version_name)
{
	SSL_CTX *context = lab_client(version);
	struct meeting meeting;
	uint8_t bytes[100];
	size_t len = 0;
	int client;
	bool right;

	meet(&meeting, tls, context, NAME, false);
	lab_handshake(meeting.server, meeting.client, &client);
	ktap_ok(ph_tls_read(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_WANT_READ, "%s: nothing to read yet",
		version_name);
	right = SSL_write(meeting.client, "hello", 5) == 5 &&
		server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_OK && len == 5 &&
		!memcmp(bytes, "hello", 5);
	right = right && ph_tls_write(meeting.server, (const uint8_t *)"world", 5) == PH_TLS_OK &&
		client_reads(meeting.client, (char *)bytes, sizeof(bytes)) == 5 && !memcmp(bytes, "world", 5);
	ktap_ok(right, "%s: plaintext both ways", version_name);

	right = ph_tls_close(meeting.server) == PH_TLS_OK && SSL_write(meeting.client, "more", 4) == 4 &&
		server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_OK && len == 4;
	ktap_ok(right, "%s: reading goes on after close_notify", version_name);
	client_reads(meeting.client, (char *)bytes, sizeof(bytes));
	ktap_ok(SSL_get_shutdown(meeting.client) & SSL_RECEIVED_SHUTDOWN, "%s: close_notify arrives", version_name);
	SSL_shutdown(meeting.client);
	ktap_ok(server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_CLOSED, "%s: the peer's is told",
		version_name);
	part(&meeting);
	SSL_CTX_free(context);
}

/* How a connection can break after the handshake. */
static void test_breaks(void)
{
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	struct meeting meeting;
	uint8_t bytes[100];
	size_t len;
	int client;

	meet(&meeting, tls, context, NAME, false);
	lab_handshake(meeting.server, meeting.client, &client);
	shutdown(SSL_get_fd(meeting.client), SHUT_WR);
	ktap_ok(server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_TRUNCATED,
		"breaks: FIN without close_notify");
	part(&meeting);

	meet(&meeting, tls, context, NAME, false);
	lab_handshake(meeting.server, meeting.client, &client);
	lab_reset(SSL_get_fd(meeting.client));
	ktap_ok(server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_RESET,
		"breaks: RST, seen by reading");
	SSL_free(meeting.client);
	ph_tls_session_free(meeting.server);
	close(meeting.server_fd);

	meet(&meeting, tls, context, NAME, false);
	lab_handshake(meeting.server, meeting.client, &client);
	ktap_ok(write(SSL_get_fd(meeting.client), "\x17\x03\x03\x00\x20 garbage garbage garbage garbage", 37) == 37 &&
			server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_FAILED,
		"breaks: a record that does not decrypt");
	part(&meeting);
	SSL_CTX_free(context);
}

static void test_alpn(void)
{
	static const struct {
		const char *name;
		const char *offer;
		bool h2;
		const char *want;
	} rows[] = {
		{ "http/1.1 on a plain name", "\x08http/1.1", false, "http/1.1" },
		{ "h2 first, on a plain name", "\x02h2\x08http/1.1", false, "http/1.1" },
		{ "h2 alone, on a plain name: none", "\x02h2", false, "" },
		{ "h2 on a g name", "\x08http/1.1\x02h2", true, "h2" },
		{ "http/1.1 alone, on a g name: none", "\x08http/1.1", true, "" },
		{ "something else: none", "\x03" "foo", false, "" },
		{ "nothing offered", "", false, "" },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		SSL_CTX *context = lab_client(TLS1_3_VERSION);
		const unsigned char *chosen;
		struct meeting meeting;
		enum ph_tls_result result;
		unsigned len;
		int client;

		if (*rows[i].offer)
			SSL_CTX_set_alpn_protos(context, (const unsigned char *)rows[i].offer,
						(unsigned)strlen(rows[i].offer));
		meet(&meeting, tls, context, NAME, rows[i].h2);
		result = lab_handshake(meeting.server, meeting.client, &client);
		SSL_get0_alpn_selected(meeting.client, &chosen, &len);
		ktap_ok(result == PH_TLS_OK && len == strlen(rows[i].want) &&
				(!len || !memcmp(chosen, rows[i].want, len)),
			"alpn: %s", rows[i].name);
		part(&meeting);
		SSL_CTX_free(context);
	}
}

static void test_name(void)
{
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	struct meeting meeting;
	enum ph_tls_result result;
	int client;

	meet(&meeting, tls, context, NAME, false);
	meeting.terms.name = "other-8080." DOMAIN;
	result = lab_handshake(meeting.server, meeting.client, &client);
	ktap_ok(result == PH_TLS_FAILED && ERR_GET_REASON(ERR_peek_last_error()) ==
						   SSL_AD_REASON_OFFSET + SSL_AD_UNRECOGNIZED_NAME,
		"name: another one than the connection was routed by");
	part(&meeting);

	meet(&meeting, tls, context, NAME, false);
	SSL_set_tlsext_host_name(meeting.client, "APP-8080.Example.TEST");
	ktap_ok(lab_handshake(meeting.server, meeting.client, &client) == PH_TLS_OK, "name: case means nothing");
	part(&meeting);
	SSL_CTX_free(context);
}

/*
 * A connection that resumes @from, if that is not NULL. Return: the session that the client keeps; the tickets of TLS 1.3
 * come with the first answer. NULL when it was not resumed.
 */
static SSL_SESSION *resume(struct ph_tls *with, SSL_CTX *context, SSL_SESSION *from)
{
	struct meeting meeting;
	SSL_SESSION *session;
	char bytes[8];
	int client;

	meet(&meeting, with, context, NAME, false);
	if (from)
		SSL_set_session(meeting.client, from);
	if (lab_handshake(meeting.server, meeting.client, &client) != PH_TLS_OK)
		lab_die("handshake");
	ph_tls_write(meeting.server, (const uint8_t *)"x", 1);
	client_reads(meeting.client, bytes, sizeof(bytes));
	SSL_shutdown(meeting.client);
	session = from && !SSL_session_reused(meeting.client) ? NULL : SSL_get1_session(meeting.client);
	part(&meeting);
	return session;
}

/* Is the ticket one of another key? */
static bool is_renewed(const SSL_SESSION *session, const SSL_SESSION *renewed)
{
	const unsigned char *old, *new;
	size_t old_len, new_len;

	SSL_SESSION_get0_ticket(session, &old, &old_len);
	SSL_SESSION_get0_ticket(renewed, &new, &new_len);
	return old_len > PH_TICKET_NAME_LEN && new_len > PH_TICKET_NAME_LEN && memcmp(old, new, PH_TICKET_NAME_LEN);
}

static bool is_resumed(struct ph_tls *with, SSL_CTX *context, const char *name, SSL_SESSION *session)
{
	struct meeting meeting;
	bool resumed;
	int client;

	meet(&meeting, with, context, name, false);
	SSL_set_session(meeting.client, session);
	resumed = lab_handshake(meeting.server, meeting.client, &client) == PH_TLS_OK &&
		  SSL_session_reused(meeting.client);
	part(&meeting);
	return resumed;
}

static void test_resumption(int version, const char *version_name)
{
	SSL_CTX *context = lab_client(version);
	struct ph_tls *other_worker, *stranger;
	struct ph_domain domain;
	SSL_SESSION *session, *renewed;
	char error[256];

	lab_domain(&domain, DOMAIN, "good.crt", "good.key");
	if (ph_tls_open(&domain, &tickets, false, &other_worker, error, sizeof(error)) ||
	    ph_tls_open(&domain, &other_tickets, false, &stranger, error, sizeof(error)))
		lab_die(error);
	session = resume(tls, context, NULL);
	ktap_ok(is_resumed(tls, context, NAME, session), "%s: resumed", version_name);
	ktap_ok(is_resumed(other_worker, context, NAME, session), "%s: resumed at another worker", version_name);
	ktap_ok(!is_resumed(tls, context, "app-8081." DOMAIN, session), "%s: not under another name", version_name);
	ktap_ok(!is_resumed(stranger, context, NAME, session), "%s: not with other keys", version_name);
	ktap_ok(!SSL_SESSION_get_max_early_data(session), "%s: no early data", version_name);
	for (int i = 1; i < PH_TICKET_KEYS; i++) {
		ph_tickets_rotate(&tickets);
		ktap_ok(is_resumed(i % 2 ? other_worker : tls, context, NAME, session), "%s: resumed after %d new keys",
			version_name, i);
	}
	renewed = resume(tls, context, session);
	ktap_ok(renewed && is_renewed(session, renewed) == (version == TLS1_3_VERSION),
		"%s: given a ticket of the newest, if that has another secret", version_name);
	ph_tickets_rotate(&tickets);
	ktap_ok(!is_resumed(tls, context, NAME, session) && !is_resumed(other_worker, context, NAME, session),
		"%s: not when the key is gone", version_name);
	ktap_ok(renewed && is_resumed(other_worker, context, NAME, renewed) == (version == TLS1_3_VERSION),
		"%s: but with the newer ticket, if there is one", version_name);
	SSL_SESSION_free(renewed);
	SSL_SESSION_free(session);
	ph_tls_free(other_worker);
	ph_tls_free(stranger);
	SSL_CTX_free(context);
}

static void test_renegotiation(void)
{
	SSL_CTX *context = lab_client(TLS1_2_VERSION);
	struct meeting meeting;
	uint8_t bytes[16];
	size_t len = 0;
	int client;

	meet(&meeting, tls, context, NAME, false);
	lab_handshake(meeting.server, meeting.client, &client);
	SSL_renegotiate(meeting.client);
	SSL_do_handshake(meeting.client);		/* sends a ClientHello */
	for (int i = 0; i < 100; i++) {
		ph_tls_session_turn(meeting.server);
		ph_tls_read(meeting.server, bytes, sizeof(bytes), &len);
	}
	ktap_ok(client_reads(meeting.client, (char *)bytes, sizeof(bytes)) < 0 &&
			ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_NO_RENEGOTIATION,
		"renegotiation: refused");
	part(&meeting);
	SSL_CTX_free(context);
}

/* A peer that sends nothing but KeyUpdates must not keep a worker inside one read. */
static void test_turn(void)
{
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	struct meeting meeting;
	enum ph_tls_result result = PH_TLS_AGAIN;
	uint8_t bytes[16];
	size_t len = 0;
	int client, turns = 0, sent = 0;

	meet(&meeting, tls, context, NAME, false);
	lab_handshake(meeting.server, meeting.client, &client);
	while (sent < 10000 && SSL_key_update(meeting.client, SSL_KEY_UPDATE_NOT_REQUESTED) == 1 &&
	       SSL_do_handshake(meeting.client) == 1)
		sent++;
	while (result == PH_TLS_AGAIN && turns < 1000) {
		ph_tls_session_turn(meeting.server);
		result = ph_tls_read(meeting.server, bytes, sizeof(bytes), &len);
		turns += result == PH_TLS_AGAIN;
	}
	ktap_ok(sent > 5000 && turns >= 2, "turn: %d KeyUpdates took %d turns", sent, turns + 1);
	ktap_ok(SSL_write(meeting.client, "x", 1) == 1 &&
			server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_OK && len == 1,
		"turn: the session goes on");
	part(&meeting);
	SSL_CTX_free(context);
}

/* The session tickets find nobody any more; that is no reason to lose what was said before. */
static void test_reset_after_request(void)
{
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	struct meeting meeting;
	uint8_t bytes[16];
	size_t len = 0;
	bool done;

	meet(&meeting, tls, context, NAME, false);
	SSL_do_handshake(meeting.client);
	ph_tls_handshake(meeting.server);
	done = SSL_do_handshake(meeting.client) == 1 && SSL_write(meeting.client, "request", 7) == 7;
	lab_reset(dup(SSL_get_fd(meeting.client)));
	lab_disconnect(meeting.client);			/* the last descriptor of it */
	done = done && ph_tls_handshake(meeting.server) == PH_TLS_OK;
	ph_tls_session_turn(meeting.server);
	done = done && ph_tls_read(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_OK && len == 7;
	ktap_ok(done && ph_tls_read(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_RESET,
		"handshake: a request and a reset behind it: both are read");
	ph_tls_session_free(meeting.server);
	close(meeting.server_fd);
	SSL_CTX_free(context);
}

static unsigned packets_sent(int fd)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);

	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	return info.tcpi_data_segs_out;
}

/* Packets are what they cost, so they are counted: the flight, both tickets, and then 128 small records. */
static void test_packets(void)
{
	static uint8_t bytes[PH_TLS_WRITE_MAX];
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	unsigned handshake, written;
	struct meeting meeting;
	const int on = 1;
	bool done;
	int client;

	SSL_CTX_set_tlsext_max_fragment_length(context, TLSEXT_max_fragment_length_512);
	meet(&meeting, tls, context, NAME, false);
	setsockopt(meeting.server_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	done = lab_handshake(meeting.server, meeting.client, &client) == PH_TLS_OK;
	handshake = packets_sent(meeting.server_fd);
	ktap_ok(done && handshake == 2, "packets: a handshake takes %u of the server's", handshake);
	done = ph_tls_write(meeting.server, bytes, sizeof(bytes)) == PH_TLS_OK;
	for (size_t got = 0, part; done && got < sizeof(bytes); got += part) {
		if (ph_tls_flush(meeting.server) == PH_TLS_RESET)
			break;
		part = 0;
		SSL_read_ex(meeting.client, bytes, sizeof(bytes), &part);
	}
	written = packets_sent(meeting.server_fd) - handshake;
	ktap_ok(done && !ph_tls_held(meeting.server) && written <= 8, "packets: %zu bytes take %u more", sizeof(bytes),
		written);
	part(&meeting);
	SSL_CTX_free(context);
}

/* More certificates than are sent at once, to a client that is slow to take them. */
static void test_long_chain(void)
{
	SSL_CTX *context = lab_client(TLS1_3_VERSION);
	const int small = 4096;
	struct ph_domain domain;
	struct meeting meeting;
	struct ph_tls *many;
	char error[512];
	uint8_t bytes[4];
	size_t len = 0;
	int client;
	bool done;

	lab_domain(&domain, DOMAIN, "many.crt", "good.key");
	if (ph_tls_open(&domain, &tickets, false, &many, error, sizeof(error)))
		lab_die(error);
	meet(&meeting, many, context, NAME, false);
	setsockopt(meeting.server_fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	done = lab_handshake(meeting.server, meeting.client, &client) == PH_TLS_OK &&
	       SSL_write(meeting.client, "hello", 4) == 4 &&
	       server_reads(meeting.server, bytes, sizeof(bytes), &len) == PH_TLS_OK && len == 4;
	ktap_ok(done, "handshake: a chain of 92 KB");
	part(&meeting);
	ph_tls_free(many);
	SSL_CTX_free(context);
}

int main(void)
{
	struct ph_domain domain;
	char error[256];

	ktap_header();
	lab_set_up();
	make_files();
	ph_tickets_init(&tickets);
	ph_tickets_init(&other_tickets);
	test_files();
	test_check();
	lab_domain(&domain, DOMAIN, "good.crt", "good.key");
	if (ph_tls_open(&domain, &tickets, false, &tls, error, sizeof(error)))
		lab_die(error);
	test_versions();
	test_words(TLS1_2_VERSION, "TLS 1.2");
	test_words(TLS1_3_VERSION, "TLS 1.3");
	test_breaks();
	test_alpn();
	test_name();
	test_resumption(TLS1_2_VERSION, "TLS 1.2");
	test_resumption(TLS1_3_VERSION, "TLS 1.3");
	test_renegotiation();
	test_turn();
	test_reset_after_request();
	test_packets();
	test_long_chain();
	ph_tls_free(tls);
	lab_tear_down();
	return ktap_end();
}
