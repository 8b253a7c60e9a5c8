// SPDX-License-Identifier: Apache-2.0
/*
 * postgres - the words before TLS. See postgres.h.
 */
#include "postgres.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

static const uint8_t ssl_request[PH_POSTGRES_REQUEST_LEN] = { 0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f };
static const uint8_t gss_request[PH_POSTGRES_REQUEST_LEN] = { 0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30 };

enum ph_postgres_request ph_postgres_parse(const uint8_t *bytes, size_t len)
{
	size_t compared = len < PH_POSTGRES_REQUEST_LEN ? len : PH_POSTGRES_REQUEST_LEN;

	if (!memcmp(bytes, ssl_request, compared))
		return len < PH_POSTGRES_REQUEST_LEN ? PH_POSTGRES_MORE : PH_POSTGRES_SSL;
	if (!memcmp(bytes, gss_request, compared))
		return len < PH_POSTGRES_REQUEST_LEN ? PH_POSTGRES_MORE : PH_POSTGRES_GSS;
	return PH_POSTGRES_NEITHER;
}

/* A new connection's send buffer has room for a few bytes; if not, there is nobody to wait for. */
static int send_all(int fd, const void *bytes, size_t len)
{
	ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);

	if (sent < 0)
		return -errno;
	return (size_t)sent == len ? 0 : -ENOBUFS;
}

int ph_postgres_answer(int fd, enum ph_postgres_request request)
{
	return send_all(fd, request == PH_POSTGRES_SSL ? "S" : "N", 1);
}

int ph_postgres_ask(int fd)
{
	return send_all(fd, ssl_request, sizeof(ssl_request));
}

int ph_postgres_read_answer(int fd)
{
	char answer[2];
	ssize_t got = recv(fd, answer, sizeof(answer), 0);

	if (got < 0)
		return -errno;
	return got == 1 && answer[0] == 'S' ? 0 : -EPROTO;
}
