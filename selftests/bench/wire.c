// SPDX-License-Identifier: Apache-2.0
#include "wire.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static SSL_CTX *context;

static int begin_tls(struct wire *wire, const char *name)
{
	if (!context) {
		context = SSL_CTX_new(TLS_client_method());
		if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION))
			return -ENOMEM;
		SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	}
	wire->ssl = SSL_new(context);
	if (!wire->ssl || !SSL_set_fd(wire->ssl, wire->fd) || !SSL_set_tlsext_host_name(wire->ssl, name))
		return -ENOMEM;
	SSL_set_connect_state(wire->ssl);
	return 0;
}

int wire_open(struct wire *wire, const struct sockaddr_in *to, const char *tls_name)
{
	const int on = 1;
	int err = 0;

	*wire = (struct wire){ .wants = EPOLLOUT };
	wire->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (wire->fd < 0)
		return -errno;
	/* Else a request waits for the delayed acknowledgement of the handshake's last message. */
	if (tls_name && setsockopt(wire->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		err = -errno;
	if (!err && connect(wire->fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS)
		err = -errno;
	if (!err && tls_name)
		err = begin_tls(wire, tls_name);
	if (err)
		wire_close(wire);
	return err;
}

/* What a call into OpenSSL that did not succeed means. */
static int tls_error(struct wire *wire, int result)
{
	int saved = errno;

	switch (SSL_get_error(wire->ssl, result)) {
	case SSL_ERROR_WANT_READ:
		wire->wants = EPOLLIN;
		return -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		wire->wants = EPOLLOUT;
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	case SSL_ERROR_SYSCALL:
		return saved ? -saved : -ECONNRESET;
	default:
		return -EPROTO;
	}
}

int wire_ready(struct wire *wire)
{
	int error = 0, result;
	socklen_t len = sizeof(error);

	if (!wire->ssl)
		return getsockopt(wire->fd, SOL_SOCKET, SO_ERROR, &error, &len) ? -errno : -error;
	result = SSL_do_handshake(wire->ssl);
	if (result == 1)
		return SSL_session_reused(wire->ssl) ? -EPROTO : 0;
	result = tls_error(wire, result);
	return result ? result : -ECONNRESET;
}

ssize_t wire_read(struct wire *wire, void *bytes, size_t size)
{
	ssize_t got;
	size_t len;
	int result;

	if (wire->ssl) {
		result = SSL_read_ex(wire->ssl, bytes, size, &len);
		return result == 1 ? (ssize_t)len : tls_error(wire, result);
	}
	got = recv(wire->fd, bytes, size, 0);
	wire->wants = EPOLLIN;
	return got < 0 ? -errno : got;
}

ssize_t wire_write(struct wire *wire, const void *bytes, size_t len)
{
	ssize_t sent;
	size_t written;
	int result;

	if (wire->ssl) {
		result = SSL_write_ex(wire->ssl, bytes, len, &written);
		if (result == 1)
			return (ssize_t)written;
		result = tls_error(wire, result);
		return result ? result : -EPIPE;
	}
	sent = send(wire->fd, bytes, len, MSG_NOSIGNAL);
	wire->wants = EPOLLOUT;
	return sent < 0 ? -errno : sent;
}

int wire_finish(struct wire *wire)
{
	return shutdown(wire->fd, SHUT_WR) ? -errno : 0;
}

void wire_close(struct wire *wire)
{
	if (wire->ssl) {
		SSL_shutdown(wire->ssl);
		SSL_free(wire->ssl);
		ERR_clear_error();
	}
	if (wire->fd >= 0)
		close(wire->fd);
	*wire = (struct wire){ .fd = -1 };
}
