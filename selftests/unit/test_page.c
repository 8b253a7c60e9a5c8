// SPDX-License-Identifier: Apache-2.0
/* page: what the writer stores is read by others, and they can do nothing to it. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ktap.h"
#include "page.h"

int main(void)
{
	const uint64_t *reader = NULL;
	uint64_t *writer = NULL;
	char path[32];
	int fd = -1, writable;

	ktap_header();
	ktap_ok(!ph_page_new("test", sizeof(*writer), &fd, (void **)&writer) && !*writer, "a new page is zeroed");
	ktap_ok(!ph_page_open(fd, sizeof(*reader), (const void **)&reader), "a reader opens it");
	*(volatile uint64_t *)writer = 42;
	ktap_ok(*(const volatile uint64_t *)reader == 42, "what is written later is read");
	ktap_ok(mprotect((void *)(uintptr_t)reader, sizeof(*reader), PROT_READ | PROT_WRITE) && errno == EACCES,
		"a reader's memory cannot become writable");
	ktap_ok(mmap(NULL, sizeof(*reader), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM,
		"nor be mapped for writing");
	ktap_ok(pwrite(fd, "x", 1, 0) == -1 && errno == EPERM, "nor be written to");
	ktap_ok(ftruncate(fd, 0) && errno == EPERM, "nor become shorter, which would kill the readers");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	writable = open(path, O_RDWR | O_CLOEXEC);
	ktap_ok(writable >= 0 && mmap(NULL, sizeof(*reader), PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0) == MAP_FAILED,
		"opened anew, it is the same");
	ktap_ok(ph_page_open(fd, sizeof(*reader) + 1, (const void **)&reader) == -EINVAL, "a page that is too short is refused");
	return ktap_end();
}
