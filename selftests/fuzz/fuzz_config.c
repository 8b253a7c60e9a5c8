// SPDX-License-Identifier: Apache-2.0
/* config: whatever is in the file, it is refused in one line that names it, or every value is within its bounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "broken: %s\n", what);
	abort();
}

static void check(const struct ph_config *config)
{
	const struct ph_tunnel *tunnel = &config->tunnel;

	must(config->listen_count >= 1 && config->listen_count <= PH_LISTEN_MAX, "listening addresses");
	for (uint32_t i = 0; i < PH_LISTEN_MAX; i++)
		must(!config->listen[i].address_len == (i >= config->listen_count), "as many addresses as counted");
	must(config->domain_count >= 1 && config->domain_count <= PH_DOMAINS_MAX, "domains");
	for (uint32_t i = 0; i < config->domain_count; i++) {
		must(memchr(config->domains[i].name, 0, PH_NAME_SIZE) && *config->domains[i].name, "name of a domain");
		must(*config->domains[i].certificate_path == '/' && *config->domains[i].private_key_path == '/',
		     "both files of a domain");
	}
	must(config->workers >= 1 && config->workers <= PH_WORKERS_MAX, "workers");
	must(*config->user && memchr(config->user, 0, sizeof(config->user)), "user");
	must(*config->state_dir == '/' && *config->run_dir == '/' && *config->bpf_dir == '/', "directories");
	must(config->hello_timeout_ms && config->connect_timeout_ms && config->connect_tries && config->idle_timeout_ms &&
	     config->healthy_for_ms && config->manager_grace_ms, "times");
	must(*tunnel->interface && memchr(tunnel->interface, 0, sizeof(tunnel->interface)), "interface");
	must(tunnel->range_len >= 8 && tunnel->range_len <= 30 && tunnel->prefix_len <= 32, "prefixes");
	must(tunnel->address.s_addr && tunnel->range.s_addr, "addresses");
	must((tunnel->type == PH_TUNNEL_WIREGUARD) == (tunnel->listen_port && *tunnel->private_key_path == '/'),
	     "WireGuard's port and key, and nobody else's");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ph_config *config = NULL;
	char path[32], error[256];
	int fd, err;

	fd = memfd_create("config", MFD_CLOEXEC);
	must(fd >= 0 && write(fd, data, size) == (ssize_t)size, "memory for the file");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	error[0] = '\0';
	err = ph_config_load(path, &config, error, sizeof(error));
	must(!err == !!config, "a configuration or an error");
	if (err)
		must(!strncmp(error, path, strlen(path)) && !strpbrk(error, "\n\r\033"), "one line that names the file");
	else
		check(config);
	ph_config_free(config);
	close(fd);
	return 0;
}
