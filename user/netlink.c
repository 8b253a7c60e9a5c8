// SPDX-License-Identifier: Apache-2.0
#include "netlink.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

#define ANSWER_BYTES 32768			/* the most the kernel puts into one piece of a dump */

struct ph_netlink {
	struct mnl_socket *socket;
	uint32_t serial;
	_Alignas(NLMSG_ALIGNTO) uint8_t request[PH_NETLINK_REQUEST_BYTES];
	_Alignas(NLMSG_ALIGNTO) uint8_t answer[ANSWER_BYTES];
};

int ph_netlink_new(int bus, struct ph_netlink **ret_netlink)
{
	struct ph_netlink *netlink = calloc(1, sizeof(*netlink));
	int one = 1, err = 0;

	if (!netlink)
		return -ENOMEM;
	netlink->socket = mnl_socket_open2(bus, SOCK_CLOEXEC);
	if (!netlink->socket || mnl_socket_bind(netlink->socket, 0, MNL_SOCKET_AUTOPID) < 0)
		err = -errno;
	/* Strict checking makes dumps filter; a capped error does not echo the request, which may hold a key. */
	if (!err && (mnl_socket_setsockopt(netlink->socket, NETLINK_GET_STRICT_CHK, &one, sizeof(one)) < 0 ||
		     mnl_socket_setsockopt(netlink->socket, NETLINK_EXT_ACK, &one, sizeof(one)) < 0 ||
		     mnl_socket_setsockopt(netlink->socket, NETLINK_CAP_ACK, &one, sizeof(one)) < 0))
		err = -errno;
	if (err) {
		ph_netlink_free(netlink);
		return err;
	}
	*ret_netlink = netlink;
	return 0;
}

void ph_netlink_free(struct ph_netlink *netlink)
{
	if (!netlink)
		return;
	if (netlink->socket)
		mnl_socket_close(netlink->socket);
	free(netlink);
}

struct nlmsghdr *ph_netlink_start(struct ph_netlink *netlink, uint16_t type, uint16_t flags)
{
	struct nlmsghdr *request = mnl_nlmsg_put_header(netlink->request);

	request->nlmsg_type = type;
	request->nlmsg_flags = NLM_F_REQUEST | flags;
	return request;
}

/* What the kernel says in words, beside the errno; @skip bytes into an error or the end of a dump. */
static void log_words(const struct nlmsghdr *message, size_t skip)
{
	const struct nlattr *attr;
	const char *words;
	char text[256];

	if (!(message->nlmsg_flags & NLM_F_ACK_TLVS))
		return;
	mnl_attr_for_each(attr, message, skip) {
		if (mnl_attr_get_type(attr) != NLMSGERR_ATTR_MSG || mnl_attr_validate(attr, MNL_TYPE_NUL_STRING) < 0)
			continue;
		words = mnl_attr_get_str(attr);
		ph_log(PH_LOG_DEBUG, "netlink: %s", ph_log_escape(text, sizeof(text), words, strlen(words)));
	}
}

/* Both an error and the end of a dump carry the errno first. */
static int read_result(const struct nlmsghdr *message)
{
	size_t skip = message->nlmsg_type == NLMSG_ERROR ? sizeof(struct nlmsgerr) : sizeof(int);
	int result;

	if (mnl_nlmsg_get_payload_len(message) < skip)
		return -EBADMSG;
	memcpy(&result, mnl_nlmsg_get_payload(message), sizeof(result));
	if (result)
		log_words(message, skip);
	return result;
}

/* Reads until the answer to @serial is over, also after @visit has had enough: the rest would meet the next request. */
static int receive(struct ph_netlink *netlink, uint32_t serial,
		   int (*visit)(const struct nlmsghdr *message, void *arg), void *arg)
{
	bool interrupted = false;
	int visited = 0;

	for (;;) {
		const struct nlmsghdr *message = (const void *)netlink->answer;
		ssize_t got = mnl_socket_recvfrom(netlink->socket, netlink->answer, sizeof(netlink->answer));
		int left = got;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		for (; mnl_nlmsg_ok(message, left); message = mnl_nlmsg_next(message, &left)) {
			/* Left over from a request that was given up. */
			if (message->nlmsg_seq != serial)
				continue;
			interrupted |= !!(message->nlmsg_flags & NLM_F_DUMP_INTR);
			if (message->nlmsg_type == NLMSG_ERROR || message->nlmsg_type == NLMSG_DONE) {
				int result = read_result(message);

				return result ? result : interrupted ? -EINTR : visited;
			}
			if (message->nlmsg_type >= NLMSG_MIN_TYPE && visit && !visited)
				visited = visit(message, arg);
		}
	}
}

static int exchange(struct ph_netlink *netlink, int (*visit)(const struct nlmsghdr *message, void *arg), void *arg)
{
	struct nlmsghdr *request = (void *)netlink->request;
	int err;

	request->nlmsg_seq = ++netlink->serial;
	if (mnl_socket_sendto(netlink->socket, request, request->nlmsg_len) < 0)
		return -errno;
	err = receive(netlink, request->nlmsg_seq, visit, arg);
	explicit_bzero(netlink->answer, sizeof(netlink->answer));
	return err;
}

int ph_netlink_call(struct ph_netlink *netlink, int (*visit)(const struct nlmsghdr *message, void *arg), void *arg)
{
	struct nlmsghdr *request = (void *)netlink->request;
	int err;

	request->nlmsg_flags |= NLM_F_ACK;
	err = exchange(netlink, visit, arg);
	explicit_bzero(netlink->request, sizeof(netlink->request));
	return err;
}

int ph_netlink_dump(struct ph_netlink *netlink, void (*reset)(void *arg),
		    int (*visit)(const struct nlmsghdr *message, void *arg), void *arg)
{
	struct nlmsghdr *request = (void *)netlink->request;
	int err = -EINTR;

	request->nlmsg_flags |= NLM_F_DUMP;
	for (int i = 0; i < PH_NETLINK_DUMP_TRIES && err == -EINTR; i++) {
		reset(arg);
		err = exchange(netlink, visit, arg);
	}
	explicit_bzero(netlink->request, sizeof(netlink->request));
	return err;
}

int ph_netlink_copy(const struct nlattr *attr, void *ret_value, uint16_t size)
{
	if (mnl_attr_get_payload_len(attr) != size)
		return -EBADMSG;
	memcpy(ret_value, mnl_attr_get_payload(attr), size);
	return 0;
}
