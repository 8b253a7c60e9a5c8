// SPDX-License-Identifier: Apache-2.0
/*
 * setting - the keys of phalad.conf. See setting.h.
 */
#include "setting.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "value.h"

#define MINUTE_MS 60000u
#define HOUR_MS (60 * MINUTE_MS)
#define DAY_MS (24 * HOUR_MS)
#define CONTROL_SOCKET "/control.sock"		/* what is put behind RunDir and has to fit into sun_path */
#define RATE_MAX 1000000u
#define BURST_MAX 10000000u
#define MTU_MIN 576				/* RFC 791: what every host must take */

__attribute__((format(printf, 3, 4))) static int refuse(char *why, size_t why_size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_size, format, args);
	va_end(args);
	return -EINVAL;
}

static int set_number(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	uint32_t number;

	if (ph_value_number(value, setting->min, setting->max, &number))
		return refuse(why, why_size, "not a number from %u to %u", setting->min, setting->max);
	if (setting->size == sizeof(uint16_t))
		*(uint16_t *)field = (uint16_t)number;
	else
		*(uint32_t *)field = number;
	return 0;
}

static int set_duration(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	char min[16], max[16];

	switch (ph_value_duration(value, setting->min, setting->max, field)) {
	case 0:
		return 0;
	case -ERANGE:
		return refuse(why, why_size, "out of range, which is %s to %s",
			      ph_value_duration_text(min, sizeof(min), setting->min),
			      ph_value_duration_text(max, sizeof(max), setting->max));
	default:
		return refuse(why, why_size, "not a time such as 500ms, 5s, 10min or 1h");
	}
}

static int set_path(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	if (*value != '/')
		return refuse(why, why_size, "not an absolute path");
	if (strlen(value) >= setting->size)
		return refuse(why, why_size, "path too long");
	strcpy(field, value);
	return 0;
}

static int set_run_dir(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	if (strlen(value) + sizeof(CONTROL_SOCKET) > sizeof(((struct sockaddr_un *)0)->sun_path))
		return refuse(why, why_size, "too long for the path of a unix socket in it");
	return set_path(setting, field, value, why, why_size);
}

static int set_user(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	const struct passwd *user = strlen(value) < setting->size ? getpwnam(value) : NULL;

	if (!user)
		return refuse(why, why_size, "no such user");
	if (!user->pw_uid)
		return refuse(why, why_size, "workers never run as root");
	strcpy(field, value);
	return 0;
}

/* A link-local one needs a device, which has no place here; multicast is taken by bind(2), and reached by nobody. */
static bool is_listenable(const struct sockaddr_storage *address)
{
	const struct sockaddr_in6 *v6 = (const void *)address;
	const struct sockaddr_in *v4 = (const void *)address;

	if (address->ss_family == AF_INET6)
		return !IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr) && !IN6_IS_ADDR_MULTICAST(&v6->sin6_addr);
	return ntohl(v4->sin_addr.s_addr) >> 24 < 224;
}

/* Fills the first of the listening addresses that is free. */
static int set_listen(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	struct ph_listen *listen = field;
	size_t count = setting->size / sizeof(*listen), i = 0;

	while (i < count && listen[i].address_len)
		i++;
	if (i == count)
		return refuse(why, why_size, "more than %zu addresses", count);
	if (ph_value_socket(value, &listen[i].address, &listen[i].address_len))
		return refuse(why, why_size, "not an address and port such as 0.0.0.0:443 or [::]:443");
	if (!is_listenable(&listen[i].address))
		return refuse(why, why_size, "link-local, multicast or broadcast: no address that clients connect to");
	return 0;
}

static int set_type(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	enum ph_tunnel_type *type = field;

	(void)setting;
	if (!strcmp(value, "wireguard"))
		*type = PH_TUNNEL_WIREGUARD;
	else if (!strcmp(value, "external"))
		*type = PH_TUNNEL_EXTERNAL;
	else
		return refuse(why, why_size, "neither wireguard nor external");
	return 0;
}

static int set_yes_no(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	bool *yes = field;

	(void)setting;
	if (strcmp(value, "yes") && strcmp(value, "no"))
		return refuse(why, why_size, "neither yes nor no");
	*yes = *value == 'y';
	return 0;
}

/* As the kernel's dev_valid_name(), and no '%', which it would fill in with a number. */
static int set_interface(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	size_t len = strlen(value);
	bool valid = len < setting->size && strcmp(value, ".") && strcmp(value, "..");

	for (size_t i = 0; i < len; i++)
		valid = valid && isgraph((unsigned char)value[i]) && !strchr("/:%", value[i]);
	if (!valid)
		return refuse(why, why_size, "not a name that a network interface can have");
	strcpy(field, value);
	return 0;
}

/* Fills the first of the NICs that is free. */
static int set_nic(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	struct ph_setting one = { .size = sizeof(((struct ph_config *)0)->nics[0]) };
	char(*nics)[16] = field;
	size_t count = setting->size / sizeof(*nics), i = 0;

	for (; i < count && nics[i][0]; i++) {
		if (!strcmp(nics[i], value))
			return refuse(why, why_size, "stands here twice");
	}
	if (i == count)
		return refuse(why, why_size, "more than %zu devices", count);
	return set_interface(&one, nics[i], value, why, why_size);
}

static int set_gate(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	static const struct {
		const char *word;
		enum ph_gate_mode mode;
	} modes[] = { { "auto", PH_GATE_AUTO }, { "off", PH_GATE_OFF }, { "tc", PH_GATE_TC },
		      { "generic", PH_GATE_GENERIC }, { "native", PH_GATE_NATIVE } };

	(void)setting;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (!strcmp(modes[i].word, value)) {
			*(enum ph_gate_mode *)field = modes[i].mode;
			return 0;
		}
	}
	return refuse(why, why_size, "not one of auto, native, generic, tc, off");
}

static bool is_unicast(struct in_addr address)
{
	uint32_t first = ntohl(address.s_addr) >> 24;

	return first && first != 127 && first < 224;
}

/* Address and prefix length of the tunnel stand in one value. */
static int set_address(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	struct ph_tunnel *tunnel = field;
	struct in_addr address;
	in_addr_t host;
	uint8_t len;

	(void)setting;
	if (ph_value_prefix(value, &address, &len) || len < 8 || !is_unicast(address))
		return refuse(why, why_size, "not a host's address and prefix such as 10.0.0.1/24");
	host = address.s_addr & ~ph_value_netmask(len);
	if (len < 31 && (!host || host == (in_addr_t)~ph_value_netmask(len)))
		return refuse(why, why_size, "the prefix's own or its broadcast address, not a host's");
	tunnel->address = address;
	tunnel->prefix_len = len;
	return 0;
}

static int set_range(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	struct ph_tunnel *tunnel = field;
	struct in_addr range;
	uint8_t len;

	(void)setting;
	if (ph_value_prefix(value, &range, &len) || len < 8 || len > 30 || !is_unicast(range))
		return refuse(why, why_size, "not a prefix from /8 to /30 for hosts, such as 10.0.0.0/8");
	if (range.s_addr & ~ph_value_netmask(len))
		return refuse(why, why_size, "has bits set behind the prefix");
	tunnel->range = range;
	tunnel->range_len = len;
	return 0;
}

static int set_endpoint(const struct ph_setting *setting, void *field, const char *value, char *why, size_t why_size)
{
	if (strlen(value) >= setting->size || ph_value_endpoint(value))
		return refuse(why, why_size, "not a host and port such as 192.0.2.1:51820 or vpn.example.com:51820");
	strcpy(field, value);
	return 0;
}

#define FIELD(type, name) offsetof(struct type, name), sizeof(((struct type *)0)->name)
#define GATEWAY(key, need, set, name, min, max) \
	{ PH_SECTION_GATEWAY, key, PH_NEED_##need, set, FIELD(ph_config, name), min, max }
#define DOMAIN(key, need, set, name) { PH_SECTION_DOMAIN, key, PH_NEED_##need, set, FIELD(ph_domain, name), 0, 0 }
#define TUNNEL(key, need, set, name, min, max) \
	{ PH_SECTION_TUNNEL, key, PH_NEED_##need, set, FIELD(ph_config, name), min, max }

const struct ph_setting ph_settings[PH_SETTING_COUNT] = {
	GATEWAY("Listen", ALWAYS, set_listen, listen, 0, 0),
	GATEWAY("Nic", NOT, set_nic, nics, 0, 0),
	GATEWAY("Gate", NOT, set_gate, gate.mode, 0, 0),
	GATEWAY("ConnectionsPerSource", NOT, set_number, gate.connections, 0, RATE_MAX),
	GATEWAY("ConnectionsBurst", NOT, set_number, gate.connections_burst, 1, BURST_MAX),
	GATEWAY("HellosPerSource", NOT, set_number, gate.hellos, 0, RATE_MAX),
	GATEWAY("HellosBurst", NOT, set_number, gate.hellos_burst, 1, BURST_MAX),
	GATEWAY("HandshakesPerSource", NOT, set_number, gate.handshakes, 0, RATE_MAX),
	GATEWAY("HandshakesBurst", NOT, set_number, gate.handshakes_burst, 1, BURST_MAX),
	GATEWAY("UnprovenConnections", NOT, set_number, gate.unproven, 0, RATE_MAX),
	GATEWAY("SourcePrefix4", NOT, set_number, gate.prefix4, 8, 32),
	GATEWAY("SourcePrefix6", NOT, set_number, gate.prefix6, 16, 128),
	GATEWAY("Workers", NOT, set_number, workers, 1, PH_WORKERS_MAX),
	GATEWAY("User", NOT, set_user, user, 0, 0),
	GATEWAY("StateDir", NOT, set_path, state_dir, 0, 0),
	GATEWAY("RunDir", NOT, set_run_dir, run_dir, 0, 0),
	GATEWAY("BpfDir", NOT, set_path, bpf_dir, 0, 0),
	GATEWAY("HelloTimeout", NOT, set_duration, hello_timeout_ms, 10, 5 * MINUTE_MS),
	GATEWAY("ConnectTimeout", NOT, set_duration, connect_timeout_ms, 10, MINUTE_MS),
	GATEWAY("ConnectTries", NOT, set_number, connect_tries, 1, PH_APP_INSTANCES_MAX),
	GATEWAY("IdleTimeout", NOT, set_duration, idle_timeout_ms, PH_IDLE_MIN_MS, PH_IDLE_MAX_MS),
	GATEWAY("FlowsPerApp", NOT, set_number, flows_per_app, 0, PH_FLOW_LIMIT_MAX),
	GATEWAY("FlowsPerSource", NOT, set_number, flows_per_source, 0, PH_FLOW_LIMIT_MAX),
	GATEWAY("HealthyFor", NOT, set_duration, healthy_for_ms, 1000, DAY_MS),
	GATEWAY("ManagerGrace", NOT, set_duration, manager_grace_ms, 1000, 30 * DAY_MS),
	GATEWAY("AddressQuarantine", NOT, set_duration, address_quarantine_ms, 0, 30 * DAY_MS),
	DOMAIN("Certificate", ALWAYS, set_path, certificate_path),
	DOMAIN("PrivateKey", ALWAYS, set_path, private_key_path),
	TUNNEL("Type", NOT, set_type, tunnel.type, 0, 0),
	TUNNEL("Interface", ALWAYS, set_interface, tunnel.interface, 0, 0),
	TUNNEL("PrivateKeyFile", FOR_WIREGUARD, set_path, tunnel.private_key_path, 0, 0),
	TUNNEL("ListenPort", FOR_WIREGUARD, set_number, tunnel.listen_port, 1, UINT16_MAX),
	TUNNEL("Address", ALWAYS, set_address, tunnel, 0, 0),
	TUNNEL("Mtu", NOT, set_number, tunnel.mtu, MTU_MIN, UINT16_MAX),
	TUNNEL("CvmRange", NOT, set_range, tunnel, 0, 0),
	TUNNEL("Guard", NOT_EXTERNAL, set_yes_no, tunnel.guard, 0, 0),
	TUNNEL("Endpoint", NOT, set_endpoint, tunnel.endpoint, 0, 0),
};

int ph_setting_set(const struct ph_setting *setting, struct ph_config *config, const char *value, char *why,
		   size_t why_size)
{
	char *base = (char *)config;

	if (setting->section == PH_SECTION_DOMAIN)
		base = (char *)&config->domains[config->domain_count - 1];
	return setting->set(setting, base + setting->offset, value, why, why_size);
}

bool ph_setting_repeats(const struct ph_setting *setting)
{
	return setting->set == set_listen || setting->set == set_nic;
}
