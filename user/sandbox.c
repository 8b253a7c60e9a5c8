// SPDX-License-Identifier: Apache-2.0
/*
 * sandbox - capabilities, identity and system calls. See sandbox.h.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cap-ng.h>
#include <linux/bpf.h>
#include <seccomp.h>

#include <phala/limits.h>

#include "log.h"

#define SOCK_TYPE_BITS 0xf			/* SOCK_TYPE_MASK of the kernel's linux/net.h: the rest are flags */

__attribute__((format(printf, 4, 5))) static int fail(int err, char *error, size_t size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, size, format, args);
	va_end(args);
	return err;
}

/* Changing identity clears the signal at the parent's death (prctl(2)), and the parent may have died meanwhile. */
static int become(const struct passwd *who, char *error, size_t error_size)
{
	pid_t parent = getppid();
	int death_signal = 0;

	prctl(PR_GET_PDEATHSIG, &death_signal);
	capng_clear(CAPNG_SELECT_ALL);
	if (capng_change_id((int)who->pw_uid, (int)who->pw_gid,
			    CAPNG_DROP_SUPP_GRP | CAPNG_CLEAR_BOUNDING | CAPNG_CLEAR_AMBIENT))
		return fail(-EPERM, error, error_size, "cannot become user %s: %s", who->pw_name, strerror(errno));
	if (death_signal && (prctl(PR_SET_PDEATHSIG, death_signal) || getppid() != parent))
		return fail(-ESRCH, error, error_size, "the parent process is gone");
	return 0;
}

/* What the libraries say they did is looked at, not believed. */
static int verify_nothing_left(const struct passwd *who, char *error, size_t error_size)
{
	capng_clear(CAPNG_SELECT_ALL);
	if (capng_get_caps_process() || capng_have_capabilities(CAPNG_SELECT_CAPS) > CAPNG_NONE ||
	    capng_have_capabilities(CAPNG_SELECT_BOUNDS) > CAPNG_NONE)
		return fail(-EPERM, error, error_size, "capabilities are left after giving them up");
	if (getuid() != who->pw_uid || geteuid() != who->pw_uid || (who->pw_uid && !setuid(0)))
		return fail(-EPERM, error, error_size, "user %s can become root again", who->pw_name);
	return 0;
}

#ifndef __SANITIZE_ADDRESS__

struct option {
	int level, name;
};

/* A map whose descriptor may only read is not changed by any of them. */
static const uint32_t map_commands[] = { BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM };

static const struct option settable[] = {
	{ SOL_SOCKET, SO_BINDTOIFINDEX },
	{ SOL_SOCKET, SO_KEEPALIVE },
	{ SOL_SOCKET, SO_LINGER },
	{ SOL_SOCKET, SO_RCVLOWAT },
	{ IPPROTO_TCP, TCP_KEEPIDLE },
	{ IPPROTO_TCP, TCP_KEEPINTVL },
	{ IPPROTO_TCP, TCP_NODELAY },
	{ IPPROTO_TCP, TCP_NOTSENT_LOWAT },
};

/* Whatever the arguments. The last three rows are for clocks that the vDSO does not serve on every machine. */
static const int allowed[] = {
	/* relaying */
	SCMP_SYS(accept4), SCMP_SYS(close), SCMP_SYS(connect), SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_pwait),
	SCMP_SYS(epoll_wait), SCMP_SYS(pipe2), SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(shutdown),
	SCMP_SYS(splice),
	/* signals, the manager's channel, new certificates, log lines */
	SCMP_SYS(read), SCMP_SYS(recvmsg), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(pread64),
	SCMP_SYS(write),
	/* libc and OpenSSL: memory, randomness, and whether the process has forked */
	SCMP_SYS(brk), SCMP_SYS(madvise), SCMP_SYS(mremap), SCMP_SYS(munmap), SCMP_SYS(futex), SCMP_SYS(getrandom),
	SCMP_SYS(getpid), SCMP_SYS(gettid),
	/* the end: by return, by abort() */
	SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rt_sigprocmask), SCMP_SYS(restart_syscall),
	SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time),
};

/* The kernel takes these arguments for ints: what is in the upper half of a register does not count. */
static struct scmp_arg_cmp masked(unsigned argument, uint32_t mask, uint32_t value)
{
	return (struct scmp_arg_cmp){ argument, SCMP_CMP_MASKED_EQ, mask, value };
}

static struct scmp_arg_cmp is(unsigned argument, uint32_t value)
{
	return masked(argument, UINT32_MAX, value);
}

static int add_rules(scmp_filter_ctx filter)
{
	int err = 0;

	for (size_t i = 0; !err && i < sizeof(allowed) / sizeof(allowed[0]); i++)
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
	for (size_t i = 0; !err && i < sizeof(settable) / sizeof(settable[0]); i++)
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(setsockopt), 2,
				       is(1, (uint32_t)settable[i].level), is(2, (uint32_t)settable[i].name));
	if (!err)
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(getsockopt), 2, is(1, SOL_SOCKET),
				       is(2, SO_ERROR));
	if (!err)
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 3, is(0, AF_INET),
				       masked(1, SOCK_TYPE_BITS, SOCK_STREAM), is(2, 0));
	if (!err)				/* pipes are made wide; no descriptor is set or doubled */
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 2, is(1, F_SETPIPE_SZ),
				       is(2, PH_PIPE_WIDE_BYTES));
	if (!err)				/* abort(), not other workers, whose user is the same */
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, is(0, (uint32_t)getpid()));
	for (size_t i = 0; !err && i < sizeof(map_commands) / sizeof(map_commands[0]); i++)
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(bpf), 1, is(0, map_commands[i]));
	if (!err)
		err = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, masked(2, PROT_EXEC, 0));
	return err;
}

/*
 * What would outlast this process, and reach others: shared sockets (standard error may be the journal's) are not shut
 * down, disconnected, or set. A filter of its own, because of several that match, the strictest counts.
 */
static int add_shared(scmp_filter_ctx filter, int fd)
{
	static const int changing[] = { SCMP_SYS(connect), SCMP_SYS(setsockopt), SCMP_SYS(shutdown) };
	int err = 0;

	for (size_t i = 0; !err && i < sizeof(changing) / sizeof(changing[0]); i++)
		err = seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, changing[i], 1, is(0, (uint32_t)fd));
	return err;
}

static int protect(const int *shared, unsigned count)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
	int err = filter ? 0 : -ENOMEM;

	for (int fd = STDIN_FILENO; !err && fd <= STDERR_FILENO; fd++)
		err = add_shared(filter, fd);
	for (unsigned i = 0; !err && i < count; i++)
		err = add_shared(filter, shared[i]);
	if (!err)
		err = seccomp_load(filter);
	seccomp_release(filter);
	return err;
}

static int restrict_calls(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int err = filter ? 0 : -ENOMEM;

	if (!err)
		err = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);	/* a tree, not a list */
	if (!err)
		err = add_rules(filter);
	if (!err)
		err = seccomp_load(filter);
	seccomp_release(filter);
	return err;
}

static int restrict_reach(const int *shared, unsigned count, char *error, size_t error_size)
{
	int err;

	if (prctl(PR_SET_DUMPABLE, 0))
		return fail(-errno, error, error_size, "cannot become undumpable: %s", strerror(errno));
	err = protect(shared, count);
	if (!err)
		err = restrict_calls();
	return err ? fail(err, error, error_size, "cannot load a seccomp filter: %s", strerror(-err)) : 0;
}

#else

/* The address sanitizer needs ptrace of its own process, and files, to report. */
static int restrict_reach(const int *shared, unsigned count, char *error, size_t error_size)
{
	(void)shared, (void)count, (void)error, (void)error_size;
	ph_log(PH_LOG_WARNING, "built with the address sanitizer: no seccomp, and dumpable");
	return 0;
}

#endif

int ph_sandbox_worker(const char *user, const int *shared, unsigned count, char *error, size_t error_size)
{
	struct passwd *who;
	int err;

	errno = 0;
	who = getpwnam(user);
	if (!who && errno)
		return fail(-errno, error, error_size, "user %s: %s", user, strerror(errno));
	if (!who)
		return fail(-ENOENT, error, error_size, "there is no user %s", user);
	err = become(who, error, error_size);
	if (!err)
		err = verify_nothing_left(who, error, error_size);
	if (err)
		return err;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return fail(-errno, error, error_size, "no_new_privs: %s", strerror(errno));
	return restrict_reach(shared, count, error, error_size);
}

int ph_sandbox_manager(char *error, size_t error_size)
{
	capng_clear(CAPNG_SELECT_ALL);
	if (capng_updatev(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_BOUNDING_SET, CAP_NET_ADMIN, CAP_BPF,
			  CAP_PERFMON, -1) ||
	    capng_apply(CAPNG_SELECT_ALL))
		return fail(-EPERM, error, error_size, "cannot give up capabilities: %s", strerror(errno));
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return fail(-errno, error, error_size, "no_new_privs: %s", strerror(errno));
	return 0;
}
