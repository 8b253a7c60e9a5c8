/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel - what manager and workers say to each other: fixed-size messages on one SOCK_SEQPACKET pair per worker.
 *
 * The holder keeps both ends of every pair for as long as it lives, so either side may die and come back: a worker that
 * starts finds what was sent meanwhile, and answers it truthfully (it has no such connections). @serial tells a new
 * manager its own answers from those meant for the one before.
 */
#ifndef PHALAD_CHANNEL_H
#define PHALAD_CHANNEL_H

#include <stdint.h>

#include <phala/abi.h>

enum ph_message_type {
	PH_MESSAGE_END_INSTANCE = 1,	/* to a worker: end all connections to ref; answered by DONE */
	PH_MESSAGE_END_STALE,		/* to a worker: end connections whose instance is no more; answered by DONE */
	PH_MESSAGE_END_ALL,		/* to a worker: the tunnel is gone, end all connections; answered by DONE */
	PH_MESSAGE_CERTIFICATE,		/* to a worker: domain's new pair; two descriptors: certificate, key */
	PH_MESSAGE_DONE,		/* to the manager: serial's request is carried out; count says on how many */
	PH_MESSAGE_FAILED,		/* to the manager: it is not; text says why */
};

struct ph_message {
	uint32_t type;			/* enum ph_message_type */
	uint32_t worker;		/* index, in answers */
	uint64_t serial;
	struct ph_ref ref;
	uint32_t domain;		/* index in the configuration */
	uint32_t count;
	char text[128];			/* zero terminated */
};

#define PH_MESSAGE_FDS 2

/* @fds may be NULL; they stay the caller's. Return: 0, -EAGAIN when the pair is full, or -errno. */
int ph_channel_send(int fd, const struct ph_message *message, const int *fds, unsigned fd_count);

/*
 * @ret_fds: PH_MESSAGE_FDS of them, -1 where none came; the caller's to close.
 * Return: 0, -EAGAIN when there is nothing, -EPROTO for a message of another size, with more descriptors or with a text
 * that does not end, -EPIPE when nobody holds the other end any more, or -errno. On failure nothing is set.
 */
int ph_channel_receive(int fd, struct ph_message *ret_message, int ret_fds[PH_MESSAGE_FDS]);

#endif
