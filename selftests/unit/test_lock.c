// SPDX-License-Identifier: Apache-2.0
/* lock: who has it, who is refused and told why, and how it ends. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ktap.h"
#include "lock.h"

int main(void)
{
	char directory[] = "/tmp/phala-lock-XXXXXX", run_dir[64], path[80], target[80], pid[32], error[PATH_MAX + 128] = "";
	int fd = -1, other = -7;
	struct stat status;

	ktap_header();
	if (!mkdtemp(directory))
		return 1;
	snprintf(run_dir, sizeof(run_dir), "%s/run", directory);
	snprintf(path, sizeof(path), "%s/phalad.lock", run_dir);
	snprintf(pid, sizeof(pid), "as process %d", getpid());
	ktap_ok(!ph_lock_take(run_dir, &fd, error, sizeof(error)) && fd >= 0, "taken, the directory made%s", error);
	ktap_ok(!stat(path, &status) && (status.st_mode & 07777) == 0600, "only its owner may open the file, and so lock it");
	ktap_ok(ph_lock_take(run_dir, &other, error, sizeof(error)) == -EWOULDBLOCK && other == -7 && strstr(error, path) &&
			strstr(error, pid),
		"a second time it is refused: %s", error);
	close(fd);
	ktap_ok(!ph_lock_take(run_dir, &other, error, sizeof(error)), "free again when its holder is gone");
	close(other);
	snprintf(target, sizeof(target), "%s/target", directory);
	unlink(path);
	ktap_ok(!symlink(target, path) && ph_lock_take(run_dir, &other, error, sizeof(error)) == -ELOOP && access(target, F_OK),
		"a link in its place is not followed: %s", error);
	ktap_ok(ph_lock_take("/proc/nowhere", &other, error, sizeof(error)) == -ENOENT && strstr(error, "/proc/nowhere"),
		"where it cannot be, the error says where: %s", error);
	unlink(path);
	rmdir(run_dir);
	rmdir(directory);
	return ktap_end();
}
