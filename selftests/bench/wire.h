/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire - a client's connection, in clear or under TLS 1.3, non-blocking.
 *
 * The only file of the load generator that knows OpenSSL. Certificates are not verified, nor sessions resumed: every
 * handshake is a full one, and wire_ready() fails on one that is not.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct ssl_st;

struct wire {
	int fd;				/* -1: none */
	struct ssl_st *ssl;		/* NULL: in clear */
	uint32_t wants;			/* EPOLLIN or EPOLLOUT, after -EAGAIN */
};

/* @tls_name: the server name to ask for, or NULL. All functions return 0 or a count, or -errno. */
int wire_open(struct wire *wire, const struct sockaddr_in *to, const char *tls_name);

/* Connected, and the TLS handshake done? 0 is yes, -EAGAIN not yet. */
int wire_ready(struct wire *wire);

/* 0 is the end of the stream, in order: under TLS, close_notify. */
ssize_t wire_read(struct wire *wire, void *bytes, size_t size);
ssize_t wire_write(struct wire *wire, const void *bytes, size_t len);

/* Says that nothing more comes; in clear only. */
int wire_finish(struct wire *wire);

void wire_close(struct wire *wire);

#endif
