/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sandbox - give up what a process does not need, for good, before a peer's first byte.
 */
#ifndef PHALAD_SANDBOX_H
#define PHALAD_SANDBOX_H

#include <stddef.h>

/**
 * ph_sandbox_worker() - what is left is relaying between descriptors that are there or are accepted, and connecting.
 * @user: whom to become; no supplementary groups, no capability, none to be had by any means.
 * @shared: sockets that other processes have too; they may be used, but not set, shut down or disconnected.
 * @error: one line for people, set on failure.
 *
 * Not dumpable, so keys are in no core file and no debugger's reach; no new privileges; a system call outside the list
 * in sandbox.c kills the process. The signal at the parent's death stays set, if there was one.
 *
 * Call it last before serving: descriptors, maps, certificates and OpenSSL must be open, mapped, read and initialised.
 *
 * Return: 0 or -errno.
 */
int ph_sandbox_worker(const char *user, const int *shared, unsigned count, char *error, size_t error_size);

/* Only CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON stay, and no new privileges. Return: 0 or -errno. */
int ph_sandbox_manager(char *error, size_t error_size);

#endif
