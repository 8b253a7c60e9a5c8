// SPDX-License-Identifier: Apache-2.0
#include "page.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int ph_page_new(const char *name, size_t size, int *ret_fd, void **ret_memory)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), err = 0;
	void *memory = MAP_FAILED;

	if (fd < 0)
		return -errno;
	if (!ftruncate(fd, (off_t)size))
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	/* The mapping from before F_SEAL_FUTURE_WRITE stays writable, and is the only one (fcntl(2)). */
	if (memory == MAP_FAILED || madvise(memory, size, MADV_DONTDUMP) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)) {
		err = -errno;
		if (memory != MAP_FAILED)
			munmap(memory, size);
		close(fd);
		return err;
	}
	*ret_fd = fd;
	*ret_memory = memory;
	return 0;
}

int ph_page_open(int fd, size_t size, const void **ret_memory)
{
	struct stat status;
	void *memory;

	if (fstat(fd, &status))
		return -errno;
	if (status.st_size < (off_t)size)
		return -EINVAL;
	memory = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return -errno;
	*ret_memory = memory;
	return 0;
}
