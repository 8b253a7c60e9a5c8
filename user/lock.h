/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lock - one phalad at a time for a RunDir: a file that is locked for as long as the holder lives, and says who it is.
 */
#ifndef PHALAD_LOCK_H
#define PHALAD_LOCK_H

#include <stddef.h>

/**
 * ph_lock_take() - make the directory if it is missing, and lock phalad.lock in it.
 * @ret_fd: the lock lasts until it is closed, by this process or its end.
 * @error: one line for people, set on failure: who has it, if somebody has.
 *
 * Return: 0, -EWOULDBLOCK when another phalad runs, or -errno.
 */
int ph_lock_take(const char *run_dir, int *ret_fd, char *error, size_t error_size);

#endif
