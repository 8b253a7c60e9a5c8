// SPDX-License-Identifier: Apache-2.0
/*
 * phalactl's side of the control socket: one line of JSON each way.
 */
#include "phalactl.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_TIMEOUT_MS 15000			/* from the request to the whole answer */
#define ASK_TIMEOUT_MS 1000			/* the same, for what can be shown without */
#define ANSWER_MAX (64u << 20)			/* bytes; a full gateway's `cvm list` is about a third of it */
#define READ_SIZE (64u << 10)

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Return: 0, -ETIMEDOUT or -errno. */
static int wait_for(int fd, short events, int64_t deadline_ms)
{
	struct pollfd poll_fd = { .fd = fd, .events = events };

	for (;;) {
		int64_t left_ms = deadline_ms - now_ms();
		int ready = poll(&poll_fd, 1, left_ms < 0 ? 0 : (int)left_ms);

		if (ready > 0)
			return 0;
		if (!ready)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

static int connect_to(const char *path, int limit_ms, int *ret_fd)
{
	/* A unix socket's connect() waits for room in the backlog, and this bounds it. */
	struct timeval limit = { .tv_sec = limit_ms / 1000 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int err, fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		err = errno == EAGAIN ? -ETIMEDOUT : -errno;
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

static int send_all(int fd, const char *text, size_t len, int64_t deadline_ms)
{
	while (len) {
		ssize_t sent = send(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int err = 0;

		if (sent < 0 && errno == EAGAIN)
			err = wait_for(fd, POLLOUT, deadline_ms);
		else if (sent < 0 && errno != EINTR)
			err = -errno;
		if (err)
			return err;
		if (sent > 0) {
			text += sent;
			len -= (size_t)sent;
		}
	}
	return 0;
}

/*
 * Reads up to a newline. @ret_line: the caller's to free(); what is behind the newline is not looked at.
 * Return: 0, -ETIMEDOUT, -EPIPE when the other side closed before, -EMSGSIZE, or -errno.
 */
static int read_line(int fd, int64_t deadline_ms, char **ret_line, size_t *ret_len)
{
	size_t len = 0, size = 0;
	char *line = NULL, *end;
	int err;

	for (;;) {
		ssize_t got;

		if (size - len < READ_SIZE) {
			char *grown = realloc(line, size ? size * 2 : READ_SIZE);

			if (!grown) {
				err = -ENOMEM;
				goto fail;
			}
			line = grown;
			size = size ? size * 2 : READ_SIZE;
		}
		err = wait_for(fd, POLLIN, deadline_ms);
		if (err)
			goto fail;
		got = recv(fd, line + len, READ_SIZE, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		err = got < 0 ? -errno : got ? 0 : -EPIPE;
		if (err)
			goto fail;
		end = memchr(line + len, '\n', (size_t)got);
		len += (size_t)got;
		if (end)
			break;
		if (len > ANSWER_MAX) {
			err = -EMSGSIZE;
			goto fail;
		}
	}
	*ret_line = line;
	*ret_len = (size_t)(end - line);
	return 0;
fail:
	free(line);
	return err;
}

static int unreachable(const char *path, int err)
{
	switch (err) {
	case -ENOENT:
	case -ECONNREFUSED:
		return ph_ctl_fail("no phalad answers at %s: %s (`flow list`, `map` and `route` work without it)", path,
				   err == -ENOENT ? "there is no such socket" : "nobody listens");
	case -EACCES:
	case -EPERM:
		return ph_ctl_fail("%s: %s: root is needed", path, strerror(-err));
	default:
		return ph_ctl_fail("%s: %s", path, strerror(-err));
	}
}

static int unanswered(const char *path, int err)
{
	switch (err) {
	case -ETIMEDOUT:
		return ph_ctl_fail("%s: no answer within %d s: what was asked for may have been done or not", path,
				   ANSWER_TIMEOUT_MS / 1000);
	case -EPIPE:
	case -ECONNRESET:
		return ph_ctl_fail("%s: closed without an answer: what was asked for may have been done or not", path);
	case -EMSGSIZE:
		return ph_ctl_fail("%s: the answer is longer than %u MiB", path, ANSWER_MAX >> 20);
	default:
		return ph_ctl_fail("%s: %s", path, strerror(-err));
	}
}

/* @text: the request, with room for a newline in place of its closing zero. Return: 0 or -errno. */
static int exchange(const char *path, char *text, int limit_ms, char **ret_line, size_t *ret_len, bool *ret_reached)
{
	int64_t deadline_ms = now_ms() + limit_ms;
	size_t len = strlen(text);
	int err, fd = -1;

	err = connect_to(path, limit_ms, &fd);
	*ret_reached = !err;
	if (err)
		return err;
	text[len] = '\n';
	err = send_all(fd, text, len + 1, deadline_ms);
	if (!err)
		err = read_line(fd, deadline_ms, ret_line, ret_len);
	close(fd);
	return err;
}

bool ph_ctl_listens(const struct ph_ctl *ctl)
{
	int fd = -1, err = connect_to(ctl->socket_path, ANSWER_TIMEOUT_MS, &fd);

	if (!err)
		close(fd);
	return err != -ENOENT && err != -ENOTDIR && err != -ECONNREFUSED;
}

int ph_ctl_request(const struct ph_ctl *ctl, struct ph_json *request, struct ph_json **ret_reply)
{
	char *text = ph_json_text(request), *line = NULL;
	struct ph_json *reply;
	char error[256];
	size_t len = 0;
	int status, err;
	bool reached;

	ph_json_free(request);
	err = exchange(ctl->socket_path, text, ANSWER_TIMEOUT_MS, &line, &len, &reached);
	free(text);
	if (err)
		return reached ? unanswered(ctl->socket_path, err) : unreachable(ctl->socket_path, err);
	reply = ph_json_parse(line, len, error, sizeof(error));
	free(line);
	if (!reply)
		return ph_ctl_fail("%s: the answer is %s", ctl->socket_path, error);
	if (!ph_json_bool(reply, "ok", false)) {
		status = ph_ctl_fail("%s", ph_json_string(reply, "error", "refused, and the manager did not say why"));
		ph_json_free(reply);
		return status;
	}
	if (!ph_json_child(reply, "result")) {
		ph_json_free(reply);
		return ph_ctl_fail("%s: the answer has no result", ctl->socket_path);
	}
	*ret_reply = reply;
	return PH_CTL_DONE;
}

struct ph_json *ph_ctl_ask(const struct ph_ctl *ctl, const char *verb)
{
	struct ph_json *request = ph_ctl_verb(verb), *reply = NULL;
	char *text = ph_json_text(request), *line = NULL;
	char error[256];
	size_t len = 0;
	bool reached;

	ph_json_free(request);
	if (!exchange(ctl->socket_path, text, ASK_TIMEOUT_MS, &line, &len, &reached))
		reply = ph_json_parse(line, len, error, sizeof(error));
	free(text);
	free(line);
	if (reply && (!ph_json_bool(reply, "ok", false) || !ph_json_child(reply, "result"))) {
		ph_json_free(reply);
		reply = NULL;
	}
	return reply;
}

struct ph_json *ph_ctl_verb(const char *verb)
{
	struct ph_json *request = ph_json_object();

	ph_json_set_string(request, "verb", verb);
	return request;
}
