// SPDX-License-Identifier: Apache-2.0
/*
 * main - the command line of phalad, and which of its roles this process is.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config.h"
#include "holder.h"
#include "key.h"
#include "log.h"
#include "manager.h"
#include "tls.h"
#include "version.h"
#include "worker.h"

#define DEFAULT_CONFIG "/etc/phala/phalad.conf"
#define USAGE 2
#define NOBODY_UID 65534		/* Debian's, and nearly everybody's */

enum role {
	ROLE_HOLDER,
	ROLE_MANAGER,
	ROLE_WORKER,
};

struct arguments {
	const char *config_path;
	bool check;
	bool fresh;
	enum role role;
	uint32_t worker;			/* which */
	bool again;				/* not the first start of this role */
	int fds[PH_ROLE_FDS_MAX];
	uint32_t fd_count;
};

static const char help[] =
	"usage: phalad [-c FILE] [--check] [--fresh]\n"
	"\n"
	"  -c, --config FILE  configuration (" DEFAULT_CONFIG ")\n"
	"      --check        read configuration, certificates and keys, say what is wrong with them, and stop\n"
	"      --fresh        begin with new maps: those that another version pinned are removed\n"
	"      --version      print the version and stop\n"
	"  -h, --help         print this and stop\n"
	"\n"
	"SIGTERM stops, SIGHUP reads the certificates again and makes a new key for\n"
	"session tickets. Exit status: 0 done, 1 failed, 2 usage.\n";

enum option_value {
	OPTION_CHECK = 256,
	OPTION_FRESH,
	OPTION_VERSION,
	OPTION_ROLE,				/* this and the next two are the holder's, for its children */
	OPTION_FDS,
	OPTION_AGAIN,
};

static const struct option options[] = {
	{ "config", required_argument, NULL, 'c' },
	{ "check", no_argument, NULL, OPTION_CHECK },
	{ "fresh", no_argument, NULL, OPTION_FRESH },
	{ "version", no_argument, NULL, OPTION_VERSION },
	{ "help", no_argument, NULL, 'h' },
	{ "role", required_argument, NULL, OPTION_ROLE },
	{ "fds", required_argument, NULL, OPTION_FDS },
	{ "again", no_argument, NULL, OPTION_AGAIN },
	{ NULL, 0, NULL, 0 },
};

static int parse_uint(const char **text, uint32_t max, uint32_t *ret_number)
{
	unsigned long number;
	char *end;

	if (**text < '0' || **text > '9')
		return -EINVAL;
	errno = 0;
	number = strtoul(*text, &end, 10);
	if (errno || number > max)
		return -EINVAL;
	*ret_number = (uint32_t)number;
	*text = end;
	return 0;
}

/* Numbers with commas between them. */
static int parse_fds(const char *text, struct arguments *arguments)
{
	uint32_t fd;

	for (;;) {
		if (arguments->fd_count == PH_ROLE_FDS_MAX || parse_uint(&text, INT_MAX, &fd))
			return -EINVAL;
		arguments->fds[arguments->fd_count++] = (int)fd;
		if (!*text)
			return 0;
		if (*text++ != ',')
			return -EINVAL;
	}
}

static int parse_role(const char *text, enum role *ret_role)
{
	if (!strcmp(text, "manager"))
		*ret_role = ROLE_MANAGER;
	else if (!strcmp(text, "worker"))
		*ret_role = ROLE_WORKER;
	else
		return -EINVAL;
	return 0;
}

/* Return: -1 to go on, else the exit status. */
static int parse_arguments(int argc, char **argv, struct arguments *ret)
{
	int option, wrong = 0;
	const char *index;

	while ((option = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			ret->config_path = optarg;
			break;
		case OPTION_CHECK:
			ret->check = true;
			break;
		case OPTION_FRESH:
			ret->fresh = true;
			break;
		case OPTION_ROLE:
			wrong |= parse_role(optarg, &ret->role);
			break;
		case OPTION_FDS:
			wrong |= parse_fds(optarg, ret);
			break;
		case OPTION_AGAIN:
			ret->again = true;
			break;
		case OPTION_VERSION:
			puts("phalad " PH_VERSION);
			return 0;
		case 'h':
			fputs(help, stdout);
			return 0;
		default:
			wrong = 1;
		}
	}
	if (ret->role == ROLE_WORKER && optind < argc) {
		index = argv[optind++];
		wrong |= parse_uint(&index, PH_WORKERS_MAX - 1, &ret->worker) || *index;
	}
	if (wrong || optind < argc) {
		fputs(help, stderr);
		return USAGE;
	}
	return -1;
}

/* The files that the configuration names. Return: 0 or -errno, with @error set. */
#define FILE_ERROR_SIZE (2 * PATH_MAX + 256)	/* a line that names two paths */

static int check_file(const struct ph_config *config, uint32_t line, const char *key, const char *path, char *error,
		      size_t error_size)
{
	struct stat status;
	int err;

	if (!stat(path, &status))
		return 0;
	err = -errno;
	snprintf(error, error_size, "%s:%u: %s = %s: %s", config->path, line, key, path, strerror(-err));
	return err;
}

/* Files, and a user, that are not there are a mistake of the configuration's, and told with its line. */
static int find_files(const struct ph_config *config, char *error, size_t error_size)
{
	const struct ph_tunnel *tunnel = &config->tunnel;
	int err = 0;

	/* One that is set was looked for when the file was read. */
	if (!getpwnam(config->user)) {
		err = -ENOENT;
		snprintf(error, error_size, "%s: User is not set, and there is no user %s, its default: make one with "
			 "systemd-sysusers (see README), or set it", config->path, config->user);
	}
	for (uint32_t i = 0; !err && i < config->domain_count; i++) {
		const struct ph_domain *domain = &config->domains[i];

		err = check_file(config, domain->certificate_line, "Certificate", domain->certificate_path, error, error_size);
		if (!err)
			err = check_file(config, domain->private_key_line, "PrivateKey", domain->private_key_path, error,
					 error_size);
	}
	if (!err && tunnel->type == PH_TUNNEL_WIREGUARD)
		err = check_file(config, tunnel->private_key_line, "PrivateKeyFile", tunnel->private_key_path, error,
				 error_size);
	return err;
}

static int check_files(const struct ph_config *config, char *error, size_t error_size)
{
	uint8_t key[PH_KEY_LEN];
	int err = find_files(config, error, error_size);

	if (!err)
		err = ph_tls_check(config, error, error_size);

	if (!err && config->tunnel.type == PH_TUNNEL_WIREGUARD) {
		err = ph_key_read(config->tunnel.private_key_path, key, error, error_size);
		explicit_bzero(key, sizeof(key));
	}
	return err;
}

/* Return: what works and is not wise, or NULL. */
static const char *find_doubt(const struct ph_config *config)
{
	const struct passwd *user = getpwnam(config->user);

	if (user && user->pw_uid == NOBODY_UID)
		return "User = nobody is other services' user too: whatever runs as it may send to CVMs as workers do; "
		       "the default, phala, is made by systemd-sysusers";
	return NULL;
}

static int check(const struct ph_config *config, const char *path)
{
	const char *doubt = find_doubt(config);
	char error[FILE_ERROR_SIZE];

	if (doubt)
		fprintf(stderr, "%s: %s\n", path, doubt);
	if (check_files(config, error, sizeof(error))) {
		fprintf(stderr, "%s\n", error);
		return 1;
	}
	printf("%s: OK\n", path);
	return 0;
}

/*
 * The same before a start, so that a mistake in a file is found before anything is touched. In a process of its own:
 * the holder is to read no certificate and no key. Return: true when all is well, else the error is logged.
 */
static bool is_checked(const struct ph_config *config)
{
	const char *doubt = find_doubt(config);
	char error[FILE_ERROR_SIZE];
	int status = 0;
	pid_t pid;

	if (doubt)
		ph_log(PH_LOG_WARNING, "%s", doubt);
	pid = fork();
	if (!pid) {
		if (!check_files(config, error, sizeof(error)))
			_exit(0);
		ph_log(PH_LOG_ERROR, "%s", error);
		_exit(1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) {
		ph_log(PH_LOG_ERROR, "cannot check the files that the configuration names");
		return false;
	}
	return !WEXITSTATUS(status);
}

/*
 * A copy of the file that nobody can change: manager and workers start from it again and again, whatever somebody does
 * to the file meanwhile.
 */
static int snapshot(const char *path, int *ret_fd)
{
	int from = open(path, O_RDONLY | O_CLOEXEC), to = -1, err = 0;
	char buffer[4096];
	ssize_t got;

	if (from < 0)
		return -errno;
	to = memfd_create("phalad.conf", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (to < 0)
		err = -errno;
	while (!err && (got = read(from, buffer, sizeof(buffer)))) {
		if (got < 0 || write(to, buffer, got) != got)
			err = -errno;
	}
	if (!err && fcntl(to, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
		err = -errno;
	close(from);
	if (!err)
		*ret_fd = to;
	else if (to >= 0)
		close(to);
	return err;
}

static int hold(struct arguments *arguments)
{
	char copy_path[32], error[1024];
	struct ph_config *config;
	int fd = -1, err, status;

	/* By its own name first, for an error that says where; what counts is the copy. */
	if (ph_config_load(arguments->config_path, &config, error, sizeof(error))) {
		ph_log(PH_LOG_ERROR, "%s", error);
		return 1;
	}
	if (arguments->check) {
		status = check(config, arguments->config_path);
		ph_config_free(config);
		return status;
	}
	ph_config_free(config);
	err = snapshot(arguments->config_path, &fd);
	if (err) {
		ph_log(PH_LOG_ERROR, "%s: %s", arguments->config_path, strerror(-err));
		return 1;
	}
	snprintf(copy_path, sizeof(copy_path), "/proc/self/fd/%d", fd);
	if (ph_config_load(copy_path, &config, error, sizeof(error))) {
		ph_log(PH_LOG_ERROR, "%s has just changed: %s", arguments->config_path, error);
		close(fd);
		return 1;
	}
	snprintf(config->path, sizeof(config->path), "%s", arguments->config_path);	/* as people know it */
	status = is_checked(config) ? ph_holder_main(config, fd, arguments->fresh) : 1;
	ph_config_free(config);
	return status;
}

static int manage(const struct ph_config *config, const struct arguments *arguments)
{
	struct ph_manager_args args = {
		.channel_fds = arguments->fds + PH_MANAGER_FD_CHANNELS,
		.worker_count = config->workers,
		.control_fd = arguments->fds[PH_MANAGER_FD_CONTROL],
		.pulse_fd = arguments->fds[PH_MANAGER_FD_PULSE],
		.counts_fd = arguments->fds[PH_MANAGER_FD_COUNTS],
		.fresh = arguments->fresh,
		.restarted = arguments->again,
	};

	return arguments->fd_count == PH_MANAGER_FD_CHANNELS + config->workers ? ph_manager_main(config, &args) : USAGE;
}

static int work(const struct ph_config *config, const struct arguments *arguments)
{
	struct ph_worker_args args = {
		.index = arguments->worker,
		.listen_fds = arguments->fds + PH_WORKER_FD_LISTEN,
		.listen_count = config->listen_count,
		.channel_fd = arguments->fds[PH_WORKER_FD_CHANNEL],
		.pulse_fd = arguments->fds[PH_WORKER_FD_PULSE],
		.tickets_fd = arguments->fds[PH_WORKER_FD_TICKETS],
		.restarted = arguments->again,
	};

	if (arguments->fd_count != PH_WORKER_FD_LISTEN + config->listen_count || arguments->worker >= config->workers)
		return USAGE;
	return ph_worker_main(config, &args);
}

/* A child: everything it needs was checked and opened by the holder. */
static int play(struct arguments *arguments)
{
	struct ph_config *config;
	char error[1024];
	int status;

	for (uint32_t i = 0; i < arguments->fd_count; i++)
		fcntl(arguments->fds[i], F_SETFD, FD_CLOEXEC);
	/* Run from /proc/self/exe, it would be called "exe". */
	prctl(PR_SET_NAME, arguments->role == ROLE_MANAGER ? "phalad-manager" : "phalad-worker");
	if (ph_config_load(arguments->config_path, &config, error, sizeof(error))) {
		ph_log(PH_LOG_ERROR, "%s", error);
		return 1;
	}
	status = arguments->role == ROLE_MANAGER ? manage(config, arguments) : work(config, arguments);
	ph_config_free(config);
	return status;
}

int main(int argc, char **argv)
{
	struct arguments arguments = { .config_path = DEFAULT_CONFIG };
	char role[16] = "holder";
	int status = parse_arguments(argc, argv, &arguments);

	if (status >= 0)
		return status;
	signal(SIGPIPE, SIG_IGN);
	if (arguments.role == ROLE_MANAGER)
		snprintf(role, sizeof(role), "manager");
	else if (arguments.role == ROLE_WORKER)
		snprintf(role, sizeof(role), "worker %u", arguments.worker % PH_WORKERS_MAX);
	ph_log_init(arguments.check ? "phalad" : role, PH_LOG_INFO);
	return arguments.role == ROLE_HOLDER ? hold(&arguments) : play(&arguments);
}
