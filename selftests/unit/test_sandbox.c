// SPDX-License-Identifier: Apache-2.0
/* sandbox: what a worker can still do, what kills it, and what manager and worker are left with. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/bpf.h>

#include <phala/limits.h>

#include "ktap.h"
#include "sandbox.h"

#define WHO "nobody"

#ifdef __SANITIZE_ADDRESS__
#define HAS_SECCOMP 0
#else
#define HAS_SECCOMP 1
#endif

static int map_fd = -1, null_fd, epoll_fd;

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static void make_map(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 4, .max_entries = 4 };
	uint32_t key = 1, value = 2;

	map_fd = (int)bpf(BPF_MAP_CREATE, &attr);
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)map_fd;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)&value;
	bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

/* Return: 0 when it worked. */

static int look_up(void)
{
	uint32_t key = 1, value = 0;
	union bpf_attr attr = { .map_fd = (uint32_t)map_fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value };

	return bpf(BPF_MAP_LOOKUP_ELEM, &attr) || value != 2;
}

static int update(void)
{
	uint32_t key = 1, value = 0;
	union bpf_attr attr = { .map_fd = (uint32_t)map_fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value };

	return bpf(BPF_MAP_UPDATE_ELEM, &attr) != 0;
}

static int load_program(void)
{
	union bpf_attr attr = { 0 };

	return bpf(BPF_PROG_LOAD, &attr) != 0;
}

static int tcp_socket(void)
{
	return socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) < 0;
}

static int udp_socket(void)
{
	return socket(AF_INET, SOCK_DGRAM, 0) < 0;
}

static int raw_socket(void)
{
	return socket(AF_INET, SOCK_RAW, IPPROTO_TCP) < 0;
}

static int inet6_socket(void)
{
	return socket(AF_INET6, SOCK_STREAM, 0) < 0;
}

static int unix_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0) < 0;
}

static int netlink_socket(void)
{
	return socket(AF_NETLINK, SOCK_RAW, 0) < 0;
}

static int bind_to_device(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), lo = 1;

	return setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &lo, sizeof(lo)) != 0;
}

static int attach_filter(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, "", 0) != 0;
}

static int set_mark(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), mark = 1;

	return setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) != 0;
}

static int make_pipe(void)
{
	int fds[2];

	return pipe2(fds, O_CLOEXEC | O_NONBLOCK) || splice(fds[0], NULL, fds[1], NULL, 1, SPLICE_F_NONBLOCK) != -1;
}

static int allocate(void)
{
	void *at = malloc(1 << 24);

	if (!at)
		return 1;
	memset(at, 1, 1 << 24);
	free(at);
	return 0;
}

static int random_bytes(void)
{
	uint8_t bytes[16];

	return getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes);
}

static int map_code(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
}

static int make_code(void)
{
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mprotect(at, 4096, PROT_READ | PROT_EXEC) != 0;
}

static int open_file(void)
{
	return open("/etc/passwd", O_RDONLY | O_CLOEXEC) < 0;
}

static int execute(void)
{
	char *const argv[] = { (char[]){ "true" }, NULL };

	return execv("/bin/true", argv);
}

static int trace(void)
{
	return ptrace(PTRACE_ATTACH, getppid(), NULL, NULL) != 0;
}

static int fork_off(void)
{
	return fork() < 0;
}

static int kill_parent(void)
{
	return kill(getppid(), 0) != 0;
}

static int become_root(void)
{
	return setuid(0) != 0;
}

static int become_dumpable(void)
{
	return prctl(PR_SET_DUMPABLE, 1) != 0;
}

static int make_wide(void)
{
	int fds[2];

	return pipe2(fds, O_NONBLOCK) || fcntl(fds[1], F_SETPIPE_SZ, PH_PIPE_WIDE_BYTES) < PH_PIPE_WIDE_BYTES;
}

static int make_wider(void)
{
	int fds[2];

	return pipe2(fds, O_NONBLOCK) || fcntl(fds[1], F_SETPIPE_SZ, 4 * PH_PIPE_WIDE_BYTES) < 0;
}

static int signal_on_input(void)
{
	return fcntl(STDIN_FILENO, F_SETOWN, getppid()) != 0;
}

static int raise_limit(void)
{
	struct rlimit limit = { 10, 10 };

	return setrlimit(RLIMIT_NOFILE, &limit) != 0;
}

static int listen_somewhere(void)
{
	return listen(socket(AF_INET, SOCK_STREAM, 0), 1) != 0;
}

static const struct {
	const char *name;
	int (*act)(void);
	bool allowed;
} rows[] = {
	{ "look a key up in a map", look_up, true },
	{ "open a TCP socket", tcp_socket, true },
	{ "bind it to a device", bind_to_device, true },
	{ "make a pipe and splice", make_pipe, true },
	{ "make a pipe wide", make_wide, true },
	{ "allocate and free memory", allocate, true },
	{ "fetch random bytes", random_bytes, true },
	{ "change a map that may be changed", update, true },
	{ "load a BPF program", load_program, false },
	{ "open a UDP socket", udp_socket, false },
	{ "open a raw socket", raw_socket, false },
	{ "open an IPv6 socket", inet6_socket, false },
	{ "open a unix socket", unix_socket, false },
	{ "open a netlink socket", netlink_socket, false },
	{ "attach a filter to a socket", attach_filter, false },
	{ "mark a socket", set_mark, false },
	{ "listen", listen_somewhere, false },
	{ "map executable memory", map_code, false },
	{ "make memory executable", make_code, false },
	{ "open a file", open_file, false },
	{ "execute a program", execute, false },
	{ "trace a process", trace, false },
	{ "fork", fork_off, false },
	{ "send a signal", kill_parent, false },
	{ "make a pipe wider still", make_wider, false },
	{ "have a descriptor signal somebody", signal_on_input, false },
	{ "become root", become_root, false },
	{ "become dumpable", become_dumpable, false },
	{ "change a resource limit", raise_limit, false },
};

/* In a child that is sandboxed by then. Return: its wait status. */
static int run(int (*act)(void))
{
	char error[256];
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		dup2(null_fd, STDERR_FILENO);
		if (ph_sandbox_worker(WHO, NULL, 0, error, sizeof(error)))
			_exit(99);
		_exit(act());
	}
	waitpid(pid, &status, 0);
	return status;
}

static void test_calls(void)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int status;

		if (!rows[i].allowed && !HAS_SECCOMP) {
			ktap_skip(rows[i].name, "no seccomp under the address sanitizer");
			continue;
		}
		status = run(rows[i].act);
		if (rows[i].allowed)
			ktap_ok(WIFEXITED(status) && !WEXITSTATUS(status), "allowed: %s", rows[i].name);
		else
			ktap_ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "deadly: %s", rows[i].name);
	}
}

/* One line of /proc/PID/status, without its name. */
static const char *status_line(pid_t pid, const char *name, char *out, size_t size)
{
	size_t len = strlen(name);
	char path[64], line[256];
	FILE *file;

	out[0] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, len) || line[len] != ':')
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(out, size, "%s", line + len + 1 + strspn(line + len + 1, "\t "));
	}
	if (file)
		fclose(file);
	return out;
}

/* By a call that the filter allows: epoll_wait(2), for nothing. */
__attribute__((noreturn)) static void wait_for_ever(void)
{
	struct epoll_event event;

	for (;;)
		epoll_wait(epoll_fd, &event, 1, -1);
}

/* A child that has called @sandbox and waits to be killed. Return: its pid, or -1. */
static pid_t start(int (*sandbox)(char *error, size_t error_size))
{
	char error[256], byte;
	int ready[2];
	pid_t pid;

	if (pipe(ready))
		return -1;
	fflush(stdout);
	pid = fork();
	if (!pid) {
		dup2(null_fd, STDERR_FILENO);
		close(ready[0]);
		if (sandbox(error, sizeof(error)) || write(ready[1], "x", 1) != 1)
			_exit(99);
		wait_for_ever();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1) {
		waitpid(pid, NULL, 0);
		pid = -1;
	}
	close(ready[0]);
	return pid;
}

static void end(pid_t pid)
{
	if (pid < 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static int as_worker(char *error, size_t error_size)
{
	return ph_sandbox_worker(WHO, NULL, 0, error, error_size);
}

static void test_worker_state(void)
{
	static const char *const sets[] = { "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" };
	char line[256], path[64];
	struct stat status;
	pid_t pid = start(as_worker);

	ktap_ok(pid > 0, "worker: sandboxed");
	if (pid < 0)
		return;
	for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		ktap_ok(strtoull(status_line(pid, sets[i], line, sizeof(line)), NULL, 16) == 0 && *line,
			"worker: %s is empty", sets[i]);
	ktap_ok(!strcmp(status_line(pid, "NoNewPrivs", line, sizeof(line)), "1"), "worker: no new privileges");
	ktap_ok(!strcmp(status_line(pid, "Uid", line, sizeof(line)), "65534\t65534\t65534\t65534"),
		"worker: is " WHO);
	ktap_ok(!*status_line(pid, "Groups", line, sizeof(line)), "worker: no supplementary groups");
	if (HAS_SECCOMP) {
		ktap_ok(!strcmp(status_line(pid, "Seccomp", line, sizeof(line)), "2"), "worker: a filter is loaded");
		/* What belongs to an undumpable process in /proc is root's (proc(5)). */
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		ktap_ok(!stat(path, &status) && !status.st_uid, "worker: not dumpable");
	}
	end(pid);
}

static void test_manager_state(void)
{
	const unsigned long long want = 1ULL << 12 | 1ULL << 38 | 1ULL << 39;	/* NET_ADMIN, PERFMON, BPF */
	static const char *const sets[] = { "CapPrm", "CapEff", "CapBnd" };
	char line[256];
	pid_t pid = start(ph_sandbox_manager);

	ktap_ok(pid > 0, "manager: sandboxed");
	if (pid < 0)
		return;
	for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		ktap_ok(strtoull(status_line(pid, sets[i], line, sizeof(line)), NULL, 16) == want,
			"manager: %s is NET_ADMIN, BPF, PERFMON: %s", sets[i], line);
	ktap_ok(strtoull(status_line(pid, "CapInh", line, sizeof(line)), NULL, 16) == 0, "manager: CapInh is empty");
	ktap_ok(!strcmp(status_line(pid, "NoNewPrivs", line, sizeof(line)), "1"), "manager: no new privileges");
	end(pid);
}

/* The end of @fd's pipe is kept open by the worker alone: it is read as the end of the file once the worker is dead. */
static void test_death_with_parent(void)
{
	struct pollfd gone;
	char error[256], byte;
	int life[2], ready[2];
	pid_t parent;

	if (pipe(life) || pipe(ready))
		return;
	fflush(stdout);
	parent = fork();
	if (!parent) {
		if (!fork()) {
			dup2(null_fd, STDERR_FILENO);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (ph_sandbox_worker(WHO, NULL, 0, error, sizeof(error)) || write(ready[1], "x", 1) != 1)
				_exit(99);
			wait_for_ever();
		}
		close(life[1]);
		_exit(read(ready[0], &byte, 1) != 1);
	}
	close(life[1]);
	waitpid(parent, NULL, 0);
	gone = (struct pollfd){ .fd = life[0], .events = POLLIN };
	ktap_ok(poll(&gone, 1, 10000) == 1 && gone.revents & POLLHUP, "worker: dies with its parent all the same");
}

static void test_errors(void)
{
	char error[256] = "";

	ktap_ok(ph_sandbox_worker("no-such-user", NULL, 0, error, sizeof(error)) == -ENOENT && strstr(error, "no-such-user"),
		"errors: no such user: %s", error);
	ktap_ok(geteuid() == 0, "errors: nothing was given up");
}

int main(void)
{
	ktap_header();
	null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (geteuid()) {
		ktap_skip("sandbox", "needs root");
		return ktap_end();
	}
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	make_map();
	test_errors();
	test_calls();
	test_worker_state();
	test_manager_state();
	test_death_with_parent();
	return ktap_end();
}
