/* SPDX-License-Identifier: Apache-2.0 */
/*
 * page - a little memory that one process writes and its children, which get the descriptor, can only read.
 */
#ifndef PHALAD_PAGE_H
#define PHALAD_PAGE_H

#include <stddef.h>

/**
 * ph_page_new() - zeroed memory, and what its readers open it by.
 * @name: for people who look at /proc/PID/fd.
 * @ret_fd: the caller's to close; nobody can write by it, nor map it for writing, any more.
 * @ret_memory: @size bytes, not part of a core dump; munmap() ends it.
 *
 * Return: 0 or -errno.
 */
int ph_page_new(const char *name, size_t size, int *ret_fd, void **ret_memory);

/* @fd: as above; stays the caller's. Return: 0, -EINVAL when it is shorter than @size, or -errno. */
int ph_page_open(int fd, size_t size, const void **ret_memory);

#endif
