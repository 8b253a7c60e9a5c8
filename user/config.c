// SPDX-License-Identifier: Apache-2.0
/*
 * config - phalad.conf, read and checked. See config.h.
 *
 * inih splits the lines; the reader in front of it keeps the line number and refuses what inih would take in a way that
 * its writer may not have meant: lines cut to its buffer, ':' for '=', continuation lines, comments behind values (it
 * knows ';' but not '#'), words behind a section's bracket. Section names are read here, since inih keeps only their
 * first 49 characters.
 */
#include "config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <phala/name.h>

#include "log.h"
#include "setting.h"
#include "value.h"

static const char *const section_words[PH_SECTION_COUNT] = {
	[PH_SECTION_GATEWAY] = "Gateway",
	[PH_SECTION_DOMAIN] = "Domain",
	[PH_SECTION_TUNNEL] = "Tunnel",
};

#define DOMAIN_PREFIX "Domain "

struct parser {
	struct ph_config *config;
	FILE *file;
	char *error;
	size_t error_size;
	int err;				/* 0, or what ph_config_load() returns */
	unsigned line;				/* being read */
	enum ph_section section;		/* being read */
	unsigned section_lines[PH_SECTION_COUNT]; /* where each was opened last; 0 is never */
	unsigned setting_lines[PH_SETTING_COUNT]; /* where each was given; those of a domain in its section so far */
	unsigned listen_lines[PH_LISTEN_MAX];
	unsigned domain_lines[PH_DOMAINS_MAX];
};

/* The first mistake is the one that is told. @line 0 is the whole file. Return: what is wrong, as in parser->err. */
__attribute__((format(printf, 3, 4))) static int fail(struct parser *parser, unsigned line, const char *format, ...)
{
	char words[512], at[16] = "";
	va_list args;

	if (parser->err)
		return parser->err;
	va_start(args, format);
	vsnprintf(words, sizeof(words), format, args);
	va_end(args);
	if (line)
		snprintf(at, sizeof(at), ":%u", line);
	snprintf(parser->error, parser->error_size, "%s%s: %s", parser->config->path, at, words);
	parser->err = -EINVAL;
	return parser->err;
}

/* A section ends: has it all that it needs, and nothing that it cannot use? */
static void check_section(struct parser *parser, enum ph_section section)
{
	const struct ph_config *config = parser->config;
	bool wireguard = config->tunnel.type == PH_TUNNEL_WIREGUARD;
	const char *domain = NULL;

	if (parser->err)			/* perhaps in the name of a domain, which is not there then */
		return;
	if (section == PH_SECTION_DOMAIN)
		domain = config->domains[config->domain_count - 1].name;
	for (size_t i = 0; i < PH_SETTING_COUNT; i++) {
		const struct ph_setting *setting = &ph_settings[i];
		unsigned line = parser->setting_lines[i];

		if (setting->section != section)
			continue;
		if (setting->need == PH_NEED_FOR_WIREGUARD && !wireguard) {
			if (line)
				fail(parser, line, "%s is for Type = wireguard only", setting->name);
		} else if (setting->need == PH_NEED_NOT_EXTERNAL) {
			if (line && wireguard)
				fail(parser, line, "%s is for Type = external only", setting->name);
		} else if (setting->need != PH_NEED_NOT && !line) {
			fail(parser, parser->section_lines[section], "[%s%s%s] lacks %s", section_words[section],
			     domain ? " " : "", domain ? domain : "", setting->name);
		}
	}
}

static int open_domain(struct parser *parser, const char *text)
{
	struct ph_config *config = parser->config;
	char escaped[128], name[PH_NAME_SIZE];

	ph_log_escape(escaped, sizeof(escaped), text, strlen(text));
	if (ph_value_domain(text, name) || strlen(name) > PH_NAME_MAX - strlen("x."))
		return fail(parser, parser->line, "[Domain %s]: not a base domain such as example.com", escaped);
	for (uint32_t i = 0; i < config->domain_count; i++) {
		if (!strcmp(config->domains[i].name, name))
			return fail(parser, parser->line, "[Domain %s] is there already, in line %u", escaped,
				    parser->domain_lines[i]);
	}
	if (config->domain_count == PH_DOMAINS_MAX)
		return fail(parser, parser->line, "[Domain %s]: more than %d domains", escaped, PH_DOMAINS_MAX);
	for (size_t i = 0; i < PH_SETTING_COUNT; i++) {
		if (ph_settings[i].section == PH_SECTION_DOMAIN)
			parser->setting_lines[i] = 0;
	}
	memcpy(config->domains[config->domain_count].name, name, sizeof(name));
	parser->domain_lines[config->domain_count++] = parser->line;
	return 0;
}

static int open_section(struct parser *parser, const char *line)
{
	enum ph_section section = PH_SECTION_NONE;
	char name[PH_NAME_SIZE + 16], escaped[128];
	size_t len = strlen(line);

	while (isspace((unsigned char)line[len - 1]))
		len--;
	if (len < 2 || len > sizeof(name) || line[len - 1] != ']' || memchr(line, ']', len - 1))
		return fail(parser, parser->line, "not a section: expected [Name] and nothing behind it");
	memcpy(name, line + 1, len - 2);
	name[len - 2] = '\0';

	if (parser->section == PH_SECTION_DOMAIN)
		check_section(parser, PH_SECTION_DOMAIN);
	if (!strncmp(name, DOMAIN_PREFIX, strlen(DOMAIN_PREFIX)))
		section = PH_SECTION_DOMAIN;
	else if (!strcmp(name, section_words[PH_SECTION_GATEWAY]))
		section = PH_SECTION_GATEWAY;
	else if (!strcmp(name, section_words[PH_SECTION_TUNNEL]))
		section = PH_SECTION_TUNNEL;
	else
		return fail(parser, parser->line, "unknown section [%s]; there are Gateway, Domain NAME and Tunnel",
			    ph_log_escape(escaped, sizeof(escaped), name, strlen(name)));
	if (section != PH_SECTION_DOMAIN && parser->section_lines[section])
		return fail(parser, parser->line, "[%s] is there already, in line %u", name,
			    parser->section_lines[section]);
	parser->section = section;
	parser->section_lines[section] = parser->line;
	return section == PH_SECTION_DOMAIN ? open_domain(parser, name + strlen(DOMAIN_PREFIX)) : 0;
}

/* Judges a line before inih sees it. Return: 0, or what fail() returned. */
static int check_line(struct parser *parser, const char *line, size_t len)
{
	if (memchr(line, 0, len))
		return fail(parser, parser->line, "a zero byte");
	if (parser->line == 1 && !strncmp(line, "\xef\xbb\xbf", 3))
		return fail(parser, parser->line, "the file begins with a byte order mark");
	if (!*line || *line == '#' || *line == ';' || !strcmp(line, "\r"))
		return 0;
	for (size_t i = 0; i < len; i++) {
		if (iscntrl((unsigned char)line[i]) && line[i] != '\t' && !(line[i] == '\r' && i == len - 1))
			return fail(parser, parser->line, "a control character");
		if (i && (line[i] == ';' || line[i] == '#') && isspace((unsigned char)line[i - 1]))
			return fail(parser, parser->line, "a comment needs a line of its own");
	}
	if (*line == '[')
		return open_section(parser, line);
	if (line[strcspn(line, "=:")] != '=')
		return fail(parser, parser->line, "expected [Section] or Key = value");
	return 0;
}

/* An ini_reader. White space in front is left out, so that no line continues the one before. */
static char *read_line(char *line, int size, void *arg)
{
	struct parser *parser = arg;
	size_t max = (size_t)size - 2;		/* inih takes a line that fills its buffer for one that was cut */
	size_t len = 0;
	int c;

	if (parser->err)
		return NULL;
	parser->line++;
	while ((c = getc(parser->file)) != EOF && c != '\n') {
		if (!len && (c == ' ' || c == '\t'))
			continue;
		if (len == max) {
			fail(parser, parser->line, "the line has more than %zu characters", max);
			return NULL;
		}
		line[len++] = (char)c;
	}
	if (c == EOF && ferror(parser->file)) {
		int err = -errno;

		fail(parser, 0, "%s", strerror(-err));
		parser->err = err;
		return NULL;
	}
	if (c == EOF && !len)
		return NULL;
	line[len] = '\0';
	return check_line(parser, line, len) ? NULL : line;
}

/* Where a file is named: whoever finds that it is not there can say so. */
static void note_line(const struct ph_setting *setting, struct ph_config *config, uint32_t line)
{
	struct ph_domain *domain = &config->domains[config->domain_count ? config->domain_count - 1 : 0];

	if (!strcmp(setting->name, "Certificate"))
		domain->certificate_line = line;
	else if (!strcmp(setting->name, "PrivateKey"))
		domain->private_key_line = line;
	else if (!strcmp(setting->name, "PrivateKeyFile"))
		config->tunnel.private_key_line = line;
}

/* An ini_handler: 1 to go on, 0 for an error. */
static int take_key(void *arg, const char *section, const char *name, const char *value)
{
	struct parser *parser = arg;
	struct ph_config *config = parser->config;
	char escaped[128], why[128];

	(void)section;				/* may be cut */
	ph_log_escape(escaped, sizeof(escaped), name, strlen(name));
	if (parser->section == PH_SECTION_NONE)
		return !fail(parser, parser->line, "%s stands in no section", escaped);
	for (size_t i = 0; i < PH_SETTING_COUNT; i++) {
		const struct ph_setting *setting = &ph_settings[i];

		if (setting->section != parser->section || strcmp(setting->name, name))
			continue;
		if (parser->setting_lines[i] && !ph_setting_repeats(setting))
			return !fail(parser, parser->line, "%s is there already, in line %u", name,
				     parser->setting_lines[i]);
		parser->setting_lines[i] = parser->line;
		if (!*value)
			return !fail(parser, parser->line, "%s has no value", name);
		if (ph_setting_set(setting, config, value, why, sizeof(why)))
			return !fail(parser, parser->line, "%s = %s: %s", name,
				     ph_log_escape(escaped, sizeof(escaped), value, strlen(value)), why);
		note_line(setting, config, parser->line);
		if (config->listen_count < PH_LISTEN_MAX && config->listen[config->listen_count].address_len)
			parser->listen_lines[config->listen_count++] = parser->line;
		return 1;
	}
	return !fail(parser, parser->line, "unknown key %s in [%s]", escaped, section_words[parser->section]);
}

/* Would the kernel refuse to listen on both? A wildcard takes the port on all addresses of its family. */
static bool listen_clashes(const struct ph_listen *a, const struct ph_listen *b)
{
	const struct sockaddr_in *a4 = (const void *)&a->address, *b4 = (const void *)&b->address;
	const struct sockaddr_in6 *a6 = (const void *)&a->address, *b6 = (const void *)&b->address;

	if (a->address.ss_family != b->address.ss_family)
		return false;
	if (a->address.ss_family == AF_INET)
		return a4->sin_port == b4->sin_port &&
		       (a4->sin_addr.s_addr == b4->sin_addr.s_addr || !a4->sin_addr.s_addr || !b4->sin_addr.s_addr);
	return a6->sin6_port == b6->sin6_port &&
	       (IN6_ARE_ADDR_EQUAL(&a6->sin6_addr, &b6->sin6_addr) || IN6_IS_ADDR_UNSPECIFIED(&a6->sin6_addr) ||
		IN6_IS_ADDR_UNSPECIFIED(&b6->sin6_addr));
}

static void check_listen(struct parser *parser)
{
	const struct ph_config *config = parser->config;

	for (uint32_t i = 0; i < config->listen_count; i++) {
		for (uint32_t j = 0; j < i; j++) {
			if (listen_clashes(&config->listen[i], &config->listen[j]))
				fail(parser, parser->listen_lines[i], "Listen: the port is taken already by line %u",
				     parser->listen_lines[j]);
		}
	}
}

/*
 * A base domain that is also a name under another one would belong to an app of that id, and with it the cookies of
 * everybody below.
 */
static void check_domains(struct parser *parser)
{
	const struct ph_config *config = parser->config;

	for (uint32_t i = 0; i < config->domain_count; i++) {
		const char *name = config->domains[i].name;
		struct ph_name parsed;

		if (ph_name_parse(name, (uint32_t)strlen(name), &parsed) != PH_NAME_OK)
			continue;
		for (uint32_t j = 0; j < config->domain_count; j++) {
			if (!strcmp(name + parsed.base, config->domains[j].name))
				fail(parser, parser->domain_lines[i],
				     "[Domain %s]: this is the name of app %s under the domain of line %u", name,
				     parsed.id, parser->domain_lines[j]);
		}
	}
}

/* Where a key of [Tunnel] was given. */
static unsigned tunnel_line(const struct parser *parser, const char *name)
{
	size_t i = 0;

	while (i < PH_SETTING_COUNT && (ph_settings[i].section != PH_SECTION_TUNNEL || strcmp(ph_settings[i].name, name)))
		i++;
	return i < PH_SETTING_COUNT ? parser->setting_lines[i] : 0;
}

/* Two prefixes nest or have nothing in common. */
static void check_tunnel(struct parser *parser)
{
	const struct ph_config *config = parser->config;
	const struct ph_tunnel *tunnel = &config->tunnel;
	char range[INET_ADDRSTRLEN];

	if (tunnel->prefix_len <= tunnel->range_len &&
	    !((tunnel->address.s_addr ^ tunnel->range.s_addr) & ph_value_netmask(tunnel->prefix_len))) {
		inet_ntop(AF_INET, &tunnel->range, range, sizeof(range));
		fail(parser, tunnel_line(parser, "Address"),
		     "Address: the gateway's own prefix leaves nothing of CvmRange %s/%u", range, tunnel->range_len);
	}
	for (uint32_t i = 0; i < PH_NICS_MAX && config->nics[i][0]; i++) {
		if (!strcmp(config->nics[i], tunnel->interface))
			fail(parser, tunnel_line(parser, "Interface"),
			     "Interface = %s: it is a Nic too, and clients do not come in by the tunnel", tunnel->interface);
	}
}

static void parse(struct parser *parser)
{
	int line = ini_parse_stream(read_line, parser, take_key, parser);

	if (line)
		fail(parser, line > 0 ? (unsigned)line : 0, "not understood");
	if (parser->section == PH_SECTION_DOMAIN)
		check_section(parser, PH_SECTION_DOMAIN);
	for (enum ph_section section = PH_SECTION_GATEWAY; section < PH_SECTION_COUNT; section++) {
		if (!parser->section_lines[section])
			fail(parser, 0, "there is no section [%s%s]", section_words[section],
			     section == PH_SECTION_DOMAIN ? " NAME" : "");
		else if (section != PH_SECTION_DOMAIN)
			check_section(parser, section);
	}
	check_listen(parser);
	check_domains(parser);
	check_tunnel(parser);
}

static uint32_t core_count(void)
{
	cpu_set_t set;
	int count;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	count = CPU_COUNT(&set);
	return count > PH_WORKERS_MAX ? PH_WORKERS_MAX : (uint32_t)count;
}

static struct ph_config *new_config(const char *path)
{
	struct ph_config *config = calloc(1, sizeof(*config));

	if (!config)
		return NULL;
	snprintf(config->path, sizeof(config->path), "%s", path);
	config->workers = core_count();
	strcpy(config->user, "phala");
	strcpy(config->state_dir, "/var/lib/phala");
	strcpy(config->run_dir, "/run/phala");
	strcpy(config->bpf_dir, "/sys/fs/bpf/phala");
	config->gate.connections = PH_GATE_CONNECTIONS;
	config->gate.hellos = PH_GATE_HELLOS;
	config->gate.handshakes = PH_GATE_HANDSHAKES;
	config->gate.unproven = PH_GATE_UNPROVEN;
	config->gate.prefix4 = 32;
	config->gate.prefix6 = 64;
	config->hello_timeout_ms = PH_HELLO_TIMEOUT_MS;
	config->connect_timeout_ms = PH_CONNECT_TIMEOUT_MS;
	config->connect_tries = PH_CONNECT_TRIES;
	config->idle_timeout_ms = PH_IDLE_TIMEOUT_MS;
	config->healthy_for_ms = PH_HEALTHY_FOR_MS;
	config->manager_grace_ms = PH_MANAGER_GRACE_MS;
	config->address_quarantine_ms = PH_ADDRESS_QUARANTINE_MS;
	config->tunnel.mtu = PH_TUNNEL_MTU;
	config->tunnel.range.s_addr = htonl(0x0a000000);
	config->tunnel.range_len = 8;
	return config;
}

int ph_config_load(const char *path, struct ph_config **ret_config, char *error, size_t error_size)
{
	struct parser parser = { .error = error, .error_size = error_size };
	int err = 0;

	if (strlen(path) >= sizeof(parser.config->path)) {
		snprintf(error, error_size, "%.64s...: %s", path, strerror(ENAMETOOLONG));
		return -ENAMETOOLONG;
	}
	parser.file = fopen(path, "re");
	if (!parser.file)
		err = -errno;
	else if (!(parser.config = new_config(path)))
		err = -ENOMEM;
	if (err) {
		snprintf(error, error_size, "%s: %s", path, strerror(-err));
	} else {
		parse(&parser);
		err = parser.err;
	}
	if (parser.file)
		fclose(parser.file);
	if (err) {
		ph_config_free(parser.config);
		return err;
	}
	*ret_config = parser.config;
	return 0;
}

void ph_config_free(struct ph_config *config)
{
	free(config);
}
