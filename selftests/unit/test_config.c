// SPDX-License-Identifier: Apache-2.0
/* config: the example as it stands, every default, and every mistake with its line. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "ktap.h"
#include "value.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static char dir[] = "/tmp/phala-config.XXXXXX";
static char path[64];
static char error[512];

static int load_bytes(const char *bytes, size_t len, struct ph_config **ret_config)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ssize_t written = fd < 0 ? -1 : write(fd, bytes, len);

	if (fd >= 0)
		close(fd);
	if (written != (ssize_t)len)
		return -EIO;
	snprintf(error, sizeof(error), "-");
	return ph_config_load(path, ret_config, error, sizeof(error));
}

static int load(const char *text, struct ph_config **ret_config)
{
	return load_bytes(text, strlen(text), ret_config);
}

#define GATEWAY "[Gateway]\nListen = 0.0.0.0:443\n"
#define DOMAIN "[Domain example.com]\nCertificate = /c\nPrivateKey = /k\n"
#define TUNNEL_KEYS "Interface = wg0\nAddress = 10.0.0.1/24\nPrivateKeyFile = /w\nListenPort = 51820\n"
#define TUNNEL "[Tunnel]\n" TUNNEL_KEYS
#define EXTERNAL "[Tunnel]\nType = external\nInterface = veth0\nAddress = 10.0.0.1/24\n"
#define REST DOMAIN TUNNEL
#define UNTIL_TUNNEL GATEWAY DOMAIN "[Tunnel]\n"	/* what follows is line 7 */
#define TEN "0123456789"
#define HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN

/* The error's text behind the file's name. Lines: GATEWAY is 1-2 and so a key behind it is 3. */
static const struct {
	const char *name;
	const char *text;
	const char *want;
} mistakes[] = {
	/* the file as a whole */
	{ "empty file", "", ": there is no section [Gateway]" },
	{ "comments only", "# one\n; two\n\n", ": there is no section [Gateway]" },
	{ "no domain", GATEWAY TUNNEL, ": there is no section [Domain NAME]" },
	{ "no tunnel", GATEWAY DOMAIN, ": there is no section [Tunnel]" },
	{ "key before any section", "Workers = 1\n" GATEWAY REST, ":1: Workers stands in no section" },
	{ "the first mistake is told", GATEWAY "Workers = x\nUser = root\n" REST, ":3: Workers = x: not a number" },
	/* lines */
	{ "byte order mark", "\xef\xbb\xbf" GATEWAY REST, ":1: the file begins with a byte order mark" },
	{ "no equals sign", GATEWAY "Workers\n" REST, ":3: expected [Section] or Key = value" },
	{ "colon for equals sign", GATEWAY "Workers: 4\n" REST, ":3: expected [Section] or Key = value" },
	{ "colon before equals sign", GATEWAY "Work:ers = 4\n" REST, ":3: expected [Section] or Key = value" },
	{ "continuation line", GATEWAY "StateDir = /a\n  /b\n" REST, ":4: expected [Section] or Key = value" },
	{ "comment behind a value, ;", GATEWAY "Workers = 4 ; cores\n" REST, ":3: a comment needs a line of its own" },
	{ "comment behind a value, #", GATEWAY "Workers = 4\t# cores\n" REST, ":3: a comment needs a line of its own" },
	{ "comment behind a section", "[Gateway] # x\n", ":1: a comment needs a line of its own" },
	{ "carriage return inside", GATEWAY "Workers = 4\rUser = nobody\n" REST, ":3: a control character" },
	{ "escape character", GATEWAY "StateDir = /a\033[2J\n" REST, ":3: a control character" },
	{ "199 characters", GATEWAY "StateDir = /" HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN "0123456\n" REST,
	  ":3: the line has more than 198 characters" },
	{ "long comment", GATEWAY "#" HUNDRED HUNDRED "\n" REST, ":3: the line has more than 198 characters" },
	{ "long last line without an end", GATEWAY REST "#" HUNDRED HUNDRED, ":11: the line has more than 198" },
	{ "empty key", GATEWAY "= 4\n" REST, ":3: unknown key  in [Gateway]" },
	{ "empty value", GATEWAY "StateDir =\n" REST, ":3: StateDir has no value" },
	/* sections */
	{ "unknown section", GATEWAY REST "[Tunnels]\n", ":11: unknown section [Tunnels]" },
	{ "section in another case", "[gateway]\n", ":1: unknown section [gateway]" },
	{ "blanks inside a section's brackets", "[ Gateway ]\n", ":1: unknown section [ Gateway ]" },
	{ "domain without a name", GATEWAY "[Domain]\n", ":3: unknown section [Domain]" },
	{ "section not closed", "[Gateway\n", ":1: not a section" },
	{ "section with something behind it", "[Gateway] x\n", ":1: not a section" },
	{ "section with a second bracket", "[Gateway]]\n", ":1: not a section" },
	{ "lone bracket", "[\n", ":1: not a section" },
	{ "second gateway", GATEWAY REST "[Gateway]\n", ":11: [Gateway] is there already, in line 1" },
	{ "second tunnel", GATEWAY REST "[Tunnel]\n", ":11: [Tunnel] is there already, in line 6" },
	/* keys */
	{ "unknown key", GATEWAY "Worker = 4\n" REST, ":3: unknown key Worker in [Gateway]" },
	{ "key in another case", GATEWAY "workers = 4\n" REST, ":3: unknown key workers in [Gateway]" },
	{ "key of another section", GATEWAY "Mtu = 1420\n" REST, ":3: unknown key Mtu in [Gateway]" },
	{ "strange key", GATEWAY "\x80\x01 = 4\n" REST, ":3: a control character" },
	{ "key that is not ASCII", GATEWAY "\xc3\xa4 = 4\n" REST, ":3: unknown key \\xc3\\xa4 in [Gateway]" },
	{ "key given twice", GATEWAY "Workers = 4\n\nWorkers = 4\n" REST, ":5: Workers is there already, in line 3" },
	{ "key given twice in a domain", GATEWAY DOMAIN "PrivateKey = /k\n" TUNNEL,
	  ":6: PrivateKey is there already, in line 5" },
	/* [Gateway] */
	{ "no Listen", "[Gateway]\n" REST, ":1: [Gateway] lacks Listen" },
	{ "Listen without a port", "[Gateway]\nListen = 0.0.0.0\n" REST, ":2: Listen = 0.0.0.0: not an address" },
	{ "Listen on port 0", "[Gateway]\nListen = 0.0.0.0:0\n" REST, ":2: Listen = 0.0.0.0:0: not an address" },
	{ "Listen on port 65536", "[Gateway]\nListen = 0.0.0.0:65536\n" REST, ":2: Listen = 0.0.0.0:65536: not" },
	{ "Listen on a name", "[Gateway]\nListen = localhost:443\n" REST, ":2: Listen = localhost:443: not an" },
	{ "Listen on IPv6 without brackets", "[Gateway]\nListen = :::443\n" REST, ":2: Listen = :::443: not an" },
	{ "Listen on IPv4 in brackets", "[Gateway]\nListen = [0.0.0.0]:443\n" REST, ":2: Listen = [0.0.0.0]:443: not" },
	{ "Listen on IPv4 inside IPv6", "[Gateway]\nListen = [::ffff:1.2.3.4]:443\n" REST,
	  ":2: Listen = [::ffff:1.2.3.4]:443: not an address" },
	{ "Listen on a link-local address", "[Gateway]\nListen = [fe80::1]:443\n" REST,
	  ":2: Listen = [fe80::1]:443: link-local" },
	{ "Listen on multicast", "[Gateway]\nListen = 224.0.0.1:443\n" REST, ":2: Listen = 224.0.0.1:443: link-local, multicast" },
	{ "Listen on multicast in IPv6", "[Gateway]\nListen = [ff02::1]:443\n" REST,
	  ":2: Listen = [ff02::1]:443: link-local, multicast" },
	{ "Listen on broadcast", "[Gateway]\nListen = 255.255.255.255:443\n" REST,
	  ":2: Listen = 255.255.255.255:443: link-local" },
	{ "Listen twice on one address", GATEWAY "Listen = 0.0.0.0:443\n" REST,
	  ":3: Listen: the port is taken already by line 2" },
	{ "Listen on a wildcard and one address", GATEWAY "Listen = [::]:443\nListen = 192.0.2.1:443\n" REST,
	  ":4: Listen: the port is taken already by line 2" },
	{ "Listen on IPv6 address and wildcard", GATEWAY "Listen = [2001:db8::1]:443\nListen = [::]:443\n" REST,
	  ":4: Listen: the port is taken already by line 3" },
	{ "Listen 17 times",
	  "[Gateway]\nListen=1.1.1.1:1\nListen=1.1.1.1:2\nListen=1.1.1.1:3\nListen=1.1.1.1:4\nListen=1.1.1.1:5\n"
	  "Listen=1.1.1.1:6\nListen=1.1.1.1:7\nListen=1.1.1.1:8\nListen=1.1.1.1:9\nListen=1.1.1.1:10\n"
	  "Listen=1.1.1.1:11\nListen=1.1.1.1:12\nListen=1.1.1.1:13\nListen=1.1.1.1:14\nListen=1.1.1.1:15\n"
	  "Listen=1.1.1.1:16\nListen=1.1.1.1:17\n" REST, ":18: Listen = 1.1.1.1:17: more than 16 addresses" },
	{ "a gate of another kind", GATEWAY "Gate = xdp\n" REST,
	  ":3: Gate = xdp: not one of auto, native, generic, tc, off" },
	{ "a gate in capitals", GATEWAY "Gate = TC\n" REST, ":3: Gate = TC: not one of" },
	{ "two gates", GATEWAY "Gate = tc\nGate = off\n" REST, ":4: Gate is there already, in line 3" },
	{ "too many connections", GATEWAY "ConnectionsPerSource = 1000001\n" REST,
	  ":3: ConnectionsPerSource = 1000001: not a number from 0 to 1000000" },
	{ "a burst of none", GATEWAY "HellosBurst = 0\n" REST, ":3: HellosBurst = 0: not a number from 1 to 10000000" },
	{ "handshakes in words", GATEWAY "HandshakesPerSource = none\n" REST,
	  ":3: HandshakesPerSource = none: not a number" },
	{ "an IPv4 source of 33 bits", GATEWAY "SourcePrefix4 = 33\n" REST,
	  ":3: SourcePrefix4 = 33: not a number from 8 to 32" },
	{ "an IPv6 source with a slash", GATEWAY "SourcePrefix6 = /64\n" REST, ":3: SourcePrefix6 = /64: not a number" },
	{ "no worker", GATEWAY "Workers = 0\n" REST, ":3: Workers = 0: not a number from 1 to 64" },
	{ "65 workers", GATEWAY "Workers = 65\n" REST, ":3: Workers = 65: not a number from 1 to 64" },
	{ "negative workers", GATEWAY "Workers = -1\n" REST, ":3: Workers = -1: not a number" },
	{ "2^32+1 workers", GATEWAY "Workers = 4294967297\n" REST, ":3: Workers = 4294967297: not a number" },
	{ "octal workers", GATEWAY "Workers = 010\n" REST, ":3: Workers = 010: not a number" },
	{ "words behind a number", GATEWAY "Workers = 4 cores\n" REST, ":3: Workers = 4 cores: not a number" },
	{ "root", GATEWAY "User = root\n" REST, ":3: User = root: workers never run as root" },
	{ "unknown user", GATEWAY "User = phala-nobody-has-this\n" REST,
	  ":3: User = phala-nobody-has-this: no such user" },
	{ "user name too long", GATEWAY "User = " HUNDRED "\n" REST, ":3: User = " HUNDRED ": no such user" },
	{ "relative path", GATEWAY "StateDir = lib/phala\n" REST, ":3: StateDir = lib/phala: not an absolute path" },
	{ "quoted path", GATEWAY "StateDir = \"/lib\"\n" REST, ":3: StateDir = \"/lib\": not an absolute path" },
	{ "RunDir too long for a socket", GATEWAY "RunDir = /" HUNDRED "\n" REST,
	  ":3: RunDir = /" HUNDRED ": too long for the path of a unix socket in it" },
	{ "time without a number", GATEWAY "HelloTimeout = s\n" REST, ":3: HelloTimeout = s: not a time" },
	{ "time in an unknown unit", GATEWAY "HelloTimeout = 5sec\n" REST, ":3: HelloTimeout = 5sec: not a time" },
	{ "time with a blank", GATEWAY "HelloTimeout = 5 s\n" REST, ":3: HelloTimeout = 5 s: not a time" },
	{ "time with a fraction", GATEWAY "HelloTimeout = 0.5s\n" REST, ":3: HelloTimeout = 0.5s: not a time" },
	{ "negative time", GATEWAY "HelloTimeout = -5s\n" REST, ":3: HelloTimeout = -5s: not a time" },
	{ "time too short", GATEWAY "HelloTimeout = 9ms\n" REST,
	  ":3: HelloTimeout = 9ms: out of range, which is 10ms to 5min" },
	{ "time too long", GATEWAY "HelloTimeout = 301\n" REST,
	  ":3: HelloTimeout = 301: out of range, which is 10ms to 5min" },
	{ "time over 2^32 ms", GATEWAY "IdleTimeout = 4294967295h\n" REST, ":3: IdleTimeout = 4294967295h: out of" },
	{ "time over 2^32 of anything", GATEWAY "IdleTimeout = 99999999999999999999\n" REST,
	  ":3: IdleTimeout = 99999999999999999999: out of range, which is 100ms to 168h" },
	{ "connect time", GATEWAY "ConnectTimeout = 61s\n" REST, ":3: ConnectTimeout = 61s: out of range" },
	{ "no try", GATEWAY "ConnectTries = 0\n" REST, ":3: ConnectTries = 0: not a number from 1 to 64" },
	{ "idle time", GATEWAY "IdleTimeout = 0\n" REST, ":3: IdleTimeout = 0: out of range" },
	{ "health", GATEWAY "HealthyFor = 25h\n" REST, ":3: HealthyFor = 25h: out of range, which is 1s to 24h" },
	{ "grace", GATEWAY "ManagerGrace = 999ms\n" REST, ":3: ManagerGrace = 999ms: out of range" },
	{ "quarantine", GATEWAY "AddressQuarantine = 721h\n" REST,
	  ":3: AddressQuarantine = 721h: out of range, which is 0s to 720h" },
	/* [Domain] */
	{ "no certificate", GATEWAY "[Domain a.b]\nPrivateKey = /k\n" REST, ":3: [Domain a.b] lacks Certificate" },
	{ "no key in the last section", GATEWAY TUNNEL "[Domain a.b]\nCertificate = /c\n",
	  ":8: [Domain a.b] lacks PrivateKey" },
	{ "one domain's keys are not another's", GATEWAY REST "[Domain a.b]\n", ":11: [Domain a.b] lacks Certificate" },
	{ "domain twice", GATEWAY REST DOMAIN, ":11: [Domain example.com] is there already, in line 3" },
	{ "domain twice in another case", GATEWAY REST "[Domain EXAMPLE.com]\n",
	  ":11: [Domain EXAMPLE.com] is there already, in line 3" },
	{ "domain with a dot behind", GATEWAY "[Domain example.com.]\n", ":3: [Domain example.com.]: not a base" },
	{ "domain with a dot before", GATEWAY "[Domain .example.com]\n", ":3: [Domain .example.com]: not a base" },
	{ "domain with an empty label", GATEWAY "[Domain a..b]\n", ":3: [Domain a..b]: not a base domain" },
	{ "domain with a star", GATEWAY "[Domain *.example.com]\n", ":3: [Domain *.example.com]: not a base domain" },
	{ "domain with an underscore", GATEWAY "[Domain a_b.com]\n", ":3: [Domain a_b.com]: not a base domain" },
	{ "domain with a dash before", GATEWAY "[Domain -a.com]\n", ":3: [Domain -a.com]: not a base domain" },
	{ "domain with a dash behind", GATEWAY "[Domain a-.com]\n", ":3: [Domain a-.com]: not a base domain" },
	{ "domain that is an address", GATEWAY "[Domain 10.0.0.1]\n", ":3: [Domain 10.0.0.1]: not a base domain" },
	{ "domain with a 64-byte label", GATEWAY "[Domain " TEN TEN TEN TEN TEN TEN "abcd.com]\n",
	  ":3: [Domain " TEN TEN TEN TEN TEN TEN "abcd.com]: not a base domain" },
	{ "two domains in one section", GATEWAY "[Domain a.com b.com]\n", ":3: [Domain a.com b.com]: not a base" },
	{ "domain that is an app of another", GATEWAY REST "[Domain app.example.com]\nCertificate=/c\nPrivateKey=/k\n",
	  ":11: [Domain app.example.com]: this is the name of app app under the domain of line 3" },
	{ "domain that has another for an app",
	  GATEWAY "[Domain app-8080s.example.com]\nCertificate=/c\nPrivateKey=/k\n" REST,
	  ":3: [Domain app-8080s.example.com]: this is the name of app app under the domain of line 6" },
	/* [Tunnel] */
	{ "no Interface", UNTIL_TUNNEL "Address = 10.0.0.1/24\nPrivateKeyFile = /w\nListenPort = 1\n",
	  ":6: [Tunnel] lacks Interface" },
	{ "no Address", UNTIL_TUNNEL "Interface = wg0\nPrivateKeyFile = /w\nListenPort = 1\n",
	  ":6: [Tunnel] lacks Address" },
	{ "no PrivateKeyFile", UNTIL_TUNNEL "Interface = wg0\nAddress = 10.0.0.1/24\nListenPort = 1\n",
	  ":6: [Tunnel] lacks PrivateKeyFile" },
	{ "no ListenPort", UNTIL_TUNNEL "Interface = wg0\nAddress = 10.0.0.1/24\nPrivateKeyFile = /w\n",
	  ":6: [Tunnel] lacks ListenPort" },
	{ "unknown type", GATEWAY DOMAIN TUNNEL "Type = ipsec\n", ":11: Type = ipsec: neither wireguard nor external" },
	{ "key file for another's tunnel", GATEWAY DOMAIN EXTERNAL "PrivateKeyFile = /w\n",
	  ":10: PrivateKeyFile is for Type = wireguard only" },
	{ "port for another's tunnel", UNTIL_TUNNEL "ListenPort = 1\nType = external\nInterface = v\n"
	  "Address = 10.0.0.1/24\n", ":7: ListenPort is for Type = wireguard only" },
	{ "Guard for a WireGuard device, which always is", GATEWAY DOMAIN TUNNEL "Guard = yes\n",
	  ":11: Guard is for Type = external only" },
	{ "Guard = maybe", GATEWAY DOMAIN EXTERNAL "Guard = maybe\n", ":10: Guard = maybe: neither yes nor no" },
	{ "interface name of 16", UNTIL_TUNNEL "Interface = 0123456789abcdef\n",
	  ":7: Interface = 0123456789abcdef: not a name" },
	{ "interface name with a slash", UNTIL_TUNNEL "Interface = a/b\n", ":7: Interface = a/b: not a name" },
	{ "interface name with a colon", UNTIL_TUNNEL "Interface = a:b\n", ":7: Interface = a:b: not a name" },
	{ "interface name with a blank", UNTIL_TUNNEL "Interface = a b\n", ":7: Interface = a b: not a name" },
	{ "interface name for the kernel to fill", UNTIL_TUNNEL "Interface = wg%d\n",
	  ":7: Interface = wg%d: not a name" },
	{ "interface ..", UNTIL_TUNNEL "Interface = ..\n", ":7: Interface = ..: not a name" },
	{ "UDP port 0", UNTIL_TUNNEL "ListenPort = 0\n", ":7: ListenPort = 0: not a number from 1 to 65535" },
	{ "UDP port 65536", UNTIL_TUNNEL "ListenPort = 65536\n", ":7: ListenPort = 65536: not a number" },
	{ "MTU too small", UNTIL_TUNNEL "Mtu = 575\n", ":7: Mtu = 575: not a number from 576 to 65535" },
	{ "Address without a prefix", UNTIL_TUNNEL "Address = 10.0.0.1\n", ":7: Address = 10.0.0.1: not" },
	{ "Address with prefix 33", UNTIL_TUNNEL "Address = 10.0.0.1/33\n", ":7: Address = 10.0.0.1/33: not" },
	{ "Address that is a prefix", UNTIL_TUNNEL "Address = 10.0.0.0/24\n",
	  ":7: Address = 10.0.0.0/24: the prefix's own or its broadcast address" },
	{ "Address that is a broadcast", UNTIL_TUNNEL "Address = 10.0.0.255/24\n",
	  ":7: Address = 10.0.0.255/24: the prefix's own or its broadcast address" },
	{ "Address that is multicast", UNTIL_TUNNEL "Address = 224.0.0.1/24\n", ":7: Address = 224.0.0.1/24" },
	{ "Address that is IPv6", UNTIL_TUNNEL "Address = fd00::1/64\n", ":7: Address = fd00::1/64: not" },
	{ "range with host bits", UNTIL_TUNNEL "CvmRange = 10.0.0.1/8\n",
	  ":7: CvmRange = 10.0.0.1/8: has bits set behind the prefix" },
	{ "range of two", UNTIL_TUNNEL "CvmRange = 10.0.0.0/31\n", ":7: CvmRange = 10.0.0.0/31: not a" },
	{ "range of everything", UNTIL_TUNNEL "CvmRange = 0.0.0.0/0\n", ":7: CvmRange = 0.0.0.0/0: not a" },
	{ "range of loopback", UNTIL_TUNNEL "CvmRange = 127.0.0.0/8\n", ":7: CvmRange = 127.0.0.0/8: not a" },
	{ "gateway's prefix is the range", GATEWAY REST "CvmRange = 10.0.0.0/24\n",
	  ":8: Address: the gateway's own prefix leaves nothing of CvmRange 10.0.0.0/24" },
	{ "gateway's prefix holds the range", GATEWAY REST "CvmRange = 10.0.0.128/25\n",
	  ":8: Address: the gateway's own prefix leaves nothing of CvmRange 10.0.0.128/25" },
	{ "the tunnel is a NIC too", GATEWAY "Nic = eth0\nNic = wg0\n" REST,
	  ":9: Interface = wg0: it is a Nic too" },
	{ "endpoint without a port",
	  GATEWAY REST "Endpoint = example.com\n", ":11: Endpoint = example.com: not a host" },
	{ "endpoint without a host", GATEWAY REST "Endpoint = :51820\n", ":11: Endpoint = :51820: not a host" },
	{ "endpoint that is a URL", GATEWAY REST "Endpoint = udp://example.com:1\n",
	  ":11: Endpoint = udp://example.com:1: not a host" },
	{ "endpoint in IPv6 without brackets", GATEWAY REST "Endpoint = 2001:db8::1:51820\n", ":11: Endpoint = 2001:" },
	{ "endpoint with a name in brackets", GATEWAY REST "Endpoint = [example.com]:1\n", ":11: Endpoint = [example" },
};

static void test_mistakes(void)
{
	struct ph_config *untouched = (struct ph_config *)&untouched;

	for (size_t i = 0; i < COUNT(mistakes); i++) {
		struct ph_config *config = untouched;
		int err = load(mistakes[i].text, &config);
		size_t path_len = strlen(path);
		bool told = !strncmp(error, path, path_len) &&
			    !strncmp(error + path_len, mistakes[i].want, strlen(mistakes[i].want));

		if (!ktap_ok(err == -EINVAL && config == untouched && told, "mistake: %s", mistakes[i].name))
			printf("# %d %s\n", err, error);
		if (!err)
			ph_config_free(config);
	}
}

static const struct {
	const char *name;
	const char *text;
} fine[] = {
	{ "the least there can be", GATEWAY REST },
	{ "sections in another order", TUNNEL DOMAIN GATEWAY },
	{ "an external tunnel", GATEWAY DOMAIN EXTERNAL },
	{ "a guarded one", GATEWAY DOMAIN EXTERNAL "Guard = yes\n" },
	{ "one that is said not to be", GATEWAY DOMAIN EXTERNAL "Guard = no\n" },
	{ "no blanks at all", "[Gateway]\nListen=0.0.0.0:443\n" REST },
	{ "indented lines", "  [Gateway]\n\tListen = 0.0.0.0:443\n  Workers = 4\n" REST },
	{ "carriage returns", "[Gateway]\r\n\r\nListen = 0.0.0.0:443\r\n" REST },
	{ "no newline at the end", GATEWAY TUNNEL "[Domain a.b]\nCertificate = /c\nPrivateKey = /k" },
	{ "198 characters", GATEWAY "StateDir = /" HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN "012345\n" REST },
	{ "198 characters without a newline at the end",
	  GATEWAY REST "#" HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN "0123456" },
	{ "a semicolon and a hash inside a path", GATEWAY "StateDir = /a;b#c\n" REST },
	{ "an equals sign and a colon inside a path", GATEWAY "StateDir = /a=b:c\n" REST },
	{ "one port on both families", GATEWAY "Listen = [::]:443\n" REST },
	{ "two ports on one address", GATEWAY "Listen = 0.0.0.0:8443\n" REST },
	{ "two addresses on one port", "[Gateway]\nListen = 192.0.2.1:443\nListen = 192.0.2.2:443\n" REST },
	{ "a domain two labels under another",
	  GATEWAY REST "[Domain a.b.example.com]\nCertificate=/c\nPrivateKey=/k\n" },
	{ "a domain under another that is no app's name",
	  GATEWAY REST "[Domain eu-west.example.com]\nCertificate=/c\nPrivateKey=/k\n" },
	{ "a domain of one label", GATEWAY REST "[Domain lab]\nCertificate=/c\nPrivateKey=/k\n" },
	{ "gateway outside the range", GATEWAY REST "CvmRange = 172.16.0.0/12\n" },
	{ "the smallest range", GATEWAY REST "CvmRange = 10.0.1.0/30\n" },
	{ "half of the smallest range", UNTIL_TUNNEL "Type = external\nInterface = v\n"
	  "Address = 10.0.1.0/31\nCvmRange = 10.0.1.0/30\n" },
	{ "no quarantine", GATEWAY "AddressQuarantine = 0\n" REST },
	{ "endpoint in IPv6", GATEWAY REST "Endpoint = [2001:db8::1]:51820\n" },
	{ "endpoint in IPv4", GATEWAY REST "Endpoint = 192.0.2.1:51820\n" },
};

static void test_fine(void)
{
	for (size_t i = 0; i < COUNT(fine); i++) {
		struct ph_config *config = NULL;
		int err = load(fine[i].text, &config);

		if (!ktap_ok(!err && !strcmp(config->path, path), "taken: %s", fine[i].name))
			printf("# %d %s\n", err, error);
		ph_config_free(config);
	}
}

static bool listens_on(const struct ph_listen *listen, const char *want)
{
	struct sockaddr_storage address;
	socklen_t len;

	return !ph_value_socket(want, &address, &len) && len == listen->address_len &&
	       !memcmp(&address, &listen->address, sizeof(address));
}

static bool is_address(struct in_addr address, const char *want)
{
	return address.s_addr == inet_addr(want);
}

/* Defaults first, then each key's effect. */
static bool is_default_gate(const struct ph_gate_config *gate)
{
	return gate->mode == PH_GATE_AUTO && gate->connections == 1000 && gate->hellos == 1000 && gate->handshakes == 500 && gate->unproven == 4000 &&
	       !gate->connections_burst && !gate->hellos_burst && !gate->handshakes_burst && gate->prefix4 == 32 &&
	       gate->prefix6 == 64;
}

static void test_values(void)
{
	struct ph_config *c = NULL;

	if (!ktap_ok(!load(GATEWAY DOMAIN TUNNEL, &c), "the least configuration loads")) {
		printf("# %s\n", error);
		return;
	}
	ktap_ok(c->listen_count == 1 && listens_on(&c->listen[0], "0.0.0.0:443"), "Listen");
	ktap_ok(c->workers >= 1 && c->workers <= PH_WORKERS_MAX, "default: a worker for each core (%u)", c->workers);
	ktap_ok(!strcmp(c->user, "phala"), "default: User");
	ktap_ok(!strcmp(c->state_dir, "/var/lib/phala"), "default: StateDir");
	ktap_ok(!strcmp(c->run_dir, "/run/phala"), "default: RunDir");
	ktap_ok(!strcmp(c->bpf_dir, "/sys/fs/bpf/phala"), "default: BpfDir");
	ktap_ok(c->hello_timeout_ms == 5000 && c->connect_timeout_ms == 1000 && c->connect_tries == 3 &&
		c->idle_timeout_ms == 3600000, "default: time-outs");
	ktap_ok(!c->flows_per_app && !c->flows_per_source, "default: no limit of connections");
	ktap_ok(c->healthy_for_ms == 300000 && c->manager_grace_ms == 3600000 && c->address_quarantine_ms == 3600000,
		"default: health, grace, quarantine");
	ktap_ok(c->tunnel.type == PH_TUNNEL_WIREGUARD && c->tunnel.mtu == 1420 && !*c->tunnel.endpoint,
		"default: Type, Mtu, Endpoint");
	ktap_ok(is_address(c->tunnel.range, "10.0.0.0") && c->tunnel.range_len == 8, "default: CvmRange");
	ktap_ok(is_default_gate(&c->gate), "default: Gate and its budgets");
	ph_config_free(c);

	c = NULL;
	if (!ktap_ok(!load("[Gateway]\nListen = [2001:db8::1]:8443\nHelloTimeout = 500ms\nConnectTimeout = 2\n"
			   "ConnectTries = 64\nIdleTimeout = 10m\nHealthyFor = 10min\nManagerGrace = 2h\n"
			   "AddressQuarantine = 720h\nUser = daemon\nFlowsPerApp = 1000\nFlowsPerSource = 1\n"
			   "Gate = native\nConnectionsPerSource = 0\nConnectionsBurst = 10000000\nHellosPerSource = 7\n"
			   "SourcePrefix4 = 24\nSourcePrefix6 = 48\nUnprovenConnections = 0\n"
			   "[Domain EXAMPLE.Com]\nCertificate = /a b\nPrivateKey = /k\n" EXTERNAL
			   "Mtu = 65535\nCvmRange = 172.16.0.0/12\n", &c), "one unlike the defaults loads")) {
		printf("# %s\n", error);
		return;
	}
	ktap_ok(c->listen_count == 1 && listens_on(&c->listen[0], "[2001:db8::1]:8443"), "Listen in IPv6");
	ktap_ok(c->hello_timeout_ms == 500, "ms");
	ktap_ok(c->connect_timeout_ms == 2000, "a bare number is seconds");
	ktap_ok(c->connect_tries == 64, "ConnectTries");
	ktap_ok(c->flows_per_app == 1000 && c->flows_per_source == 1, "FlowsPerApp, FlowsPerSource");
	ktap_ok(c->idle_timeout_ms == 600000 && c->healthy_for_ms == 600000, "m and min");
	ktap_ok(c->gate.mode == PH_GATE_NATIVE && !c->gate.connections && c->gate.connections_burst == 10000000 &&
		c->gate.hellos == 7 && c->gate.handshakes == 500 && c->gate.prefix4 == 24 && c->gate.prefix6 == 48 && !c->gate.unproven,
		"a gate and its budgets");
	ktap_ok(c->manager_grace_ms == 7200000 && c->address_quarantine_ms == 2592000000u, "h");
	ktap_ok(!strcmp(c->user, "daemon"), "User");
	ktap_ok(c->domain_count == 1 && !strcmp(c->domains[0].name, "example.com"), "a domain becomes lower case");
	ktap_ok(!strcmp(c->domains[0].certificate_path, "/a b"), "a path may have a blank inside");
	ktap_ok(c->tunnel.type == PH_TUNNEL_EXTERNAL && !strcmp(c->tunnel.interface, "veth0"), "external tunnel");
	ktap_ok(is_address(c->tunnel.range, "172.16.0.0") && c->tunnel.range_len == 12 && c->tunnel.mtu == 65535,
		"CvmRange and Mtu");
	ph_config_free(c);
}

/* Ascends from where this program lies to the top of the tree. */
static int find_example(char *ret_path, size_t size)
{
	char exe[PATH_MAX - 64];
	ssize_t len = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	exe[len > 0 ? len : 0] = '\0';
	for (char *slash; (slash = strrchr(exe, '/')); ) {
		*slash = '\0';
		snprintf(ret_path, size, "%s/tools/phalad.conf.example", exe);
		if (!access(ret_path, R_OK))
			return 0;
	}
	return -ENOENT;
}

/* As the configuration has it without the key. */
static uint32_t default_workers(void)
{
	struct ph_config *c;
	uint32_t workers = 0;

	if (!load(GATEWAY REST, &c)) {
		workers = c->workers;
		ph_config_free(c);
	}
	return workers;
}

static void test_example(void)
{
	struct ph_config *c = NULL;
	char example[PATH_MAX];

	if (!ktap_ok(!find_example(example, sizeof(example)), "the example is there"))
		return;
	if (!ktap_ok(!ph_config_load(example, &c, error, sizeof(error)), "the example loads as it is")) {
		printf("# %s\n", error);
		return;
	}
	ktap_ok(!strcmp(c->path, example), "example: path");
	ktap_ok(c->listen_count == 2 && listens_on(&c->listen[0], "0.0.0.0:443") &&
		listens_on(&c->listen[1], "[::]:443"), "example: Listen");
	ktap_ok(!c->nics[0][0], "example: no Nic, whose name only its reader knows");
	ktap_ok(is_default_gate(&c->gate), "example: Gate and its budgets are the defaults, as it says");
	ktap_ok(c->workers == default_workers(), "example: Workers is the default, one for each core");
	ktap_ok(!strcmp(c->user, "phala"), "example: User");
	ktap_ok(!strcmp(c->state_dir, "/var/lib/phala") && !strcmp(c->run_dir, "/run/phala") &&
		!strcmp(c->bpf_dir, "/sys/fs/bpf/phala"), "example: directories");
	ktap_ok(c->hello_timeout_ms == PH_HELLO_TIMEOUT_MS && c->connect_timeout_ms == PH_CONNECT_TIMEOUT_MS &&
		c->connect_tries == PH_CONNECT_TRIES && c->idle_timeout_ms == PH_IDLE_TIMEOUT_MS,
		"example: time-outs are the defaults, as it says");
	ktap_ok(c->healthy_for_ms == PH_HEALTHY_FOR_MS && c->manager_grace_ms == PH_MANAGER_GRACE_MS &&
		c->address_quarantine_ms == PH_ADDRESS_QUARANTINE_MS, "example: health, grace, quarantine likewise");
	ktap_ok(c->domain_count == 1 && !strcmp(c->domains[0].name, "example.com") &&
		!strcmp(c->domains[0].certificate_path, "/etc/phala/example.com.pem") &&
		!strcmp(c->domains[0].private_key_path, "/etc/phala/example.com.key"), "example: Domain");
	ktap_ok(c->tunnel.type == PH_TUNNEL_WIREGUARD && !strcmp(c->tunnel.interface, "wg0") &&
		!strcmp(c->tunnel.private_key_path, "/etc/phala/wireguard.key") && c->tunnel.listen_port == 51820,
		"example: WireGuard");
	ktap_ok(is_address(c->tunnel.address, "10.0.0.1") && c->tunnel.prefix_len == 24 &&
		is_address(c->tunnel.range, "10.0.0.0") && c->tunnel.range_len == 8, "example: addresses");
	ktap_ok(c->tunnel.mtu == PH_TUNNEL_MTU && !strcmp(c->tunnel.endpoint, "gateway.example.com:51820"),
		"example: Mtu and Endpoint");
	ph_config_free(c);
}

static void test_files(void)
{
	static const char zero[] = "[Gateway]\nWork\0ers = 4\n";
	char *long_path = malloc(2 * PATH_MAX);
	struct ph_config *config = NULL;
	char small[8];

	ktap_ok(load_bytes(zero, sizeof(zero) - 1, &config) == -EINVAL && strstr(error, ":2: a zero byte"),
		"a zero byte is a mistake, with its line");
	unlink(path);
	ktap_ok(ph_config_load(path, &config, error, sizeof(error)) == -ENOENT && strstr(error, path) &&
		strstr(error, "No such file"), "a file that is missing");
	ktap_ok(ph_config_load(dir, &config, error, sizeof(error)) == -EISDIR && strstr(error, "Is a directory"),
		"a directory");
	if (long_path) {
		memset(long_path, 'a', 2 * PATH_MAX - 1);
		long_path[2 * PATH_MAX - 1] = '\0';
		ktap_ok(ph_config_load(long_path, &config, error, sizeof(error)) == -ENAMETOOLONG,
			"a path that is too long");
	}
	memset(small, '#', sizeof(small));
	ktap_ok(ph_config_load("/dev/null", &config, small, 4) == -EINVAL && !strcmp(small, "/de") && small[4] == '#',
		"an error is cut to its buffer");
	ktap_ok(!config, "and nothing was returned");
	free(long_path);
}

static const struct {
	uint32_t ms;
	const char *want;
} durations[] = {
	{ 0, "0s" }, { 1, "1ms" }, { 1500, "1500ms" }, { 90000, "90s" }, { 60000, "1min" }, { 5400000, "90min" },
	{ 86400000, "24h" }, { UINT32_MAX, "4294967295ms" },
};

static void test_values_alone(void)
{
	char text[32], name[PH_NAME_SIZE], longest[PH_NAME_MAX + 2];
	uint32_t back;

	for (size_t i = 0; i < COUNT(durations); i++) {
		ph_value_duration_text(text, sizeof(text), durations[i].ms);
		ktap_ok(!strcmp(text, durations[i].want) && !ph_value_duration(text, 0, UINT32_MAX, &back) &&
			back == durations[i].ms, "a time is written and read back: %s", durations[i].want);
	}
	memset(longest, 'a', sizeof(longest));
	for (size_t i = PH_LABEL_MAX; i < PH_NAME_MAX; i += PH_LABEL_MAX + 1)
		longest[i] = '.';
	longest[PH_NAME_MAX] = '\0';
	ktap_ok(!ph_value_domain(longest, name) && !strcmp(name, longest), "a name of 253 characters is one");
	longest[PH_NAME_MAX] = 'a';
	longest[PH_NAME_MAX + 1] = '\0';
	ktap_ok(ph_value_domain(longest, name) == -EINVAL, "a name of 254 characters is none");
	ktap_ok(ph_value_netmask(0) == 0 && ph_value_netmask(8) == htonl(0xff000000) &&
		ph_value_netmask(32) == UINT32_MAX, "netmasks");
}

int main(void)
{
	ktap_header();
	if (!mkdtemp(dir)) {
		ktap_ok(0, "a directory for the tests: %m");
		return ktap_end();
	}
	snprintf(path, sizeof(path), "%s/phalad.conf", dir);
	test_example();
	test_values();
	test_fine();
	test_mistakes();
	test_files();
	test_values_alone();
	unlink(path);
	rmdir(dir);
	return ktap_end();
}
