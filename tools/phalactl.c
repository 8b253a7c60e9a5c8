// SPDX-License-Identifier: Apache-2.0
/*
 * phalactl - the command line: one table of verbs, one of options.
 */
#include "phalactl.h"

#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <config.h>
#include <prefix.h>
#include <value.h>
#include <version.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define CONFIG_PATH "/etc/phala/phalad.conf"
#define RUN_DIR "/run/phala"			/* phalad.conf's defaults, for when there is no such file */
#define BPF_DIR "/sys/fs/bpf/phala"
#define STATE_DIR "/var/lib/phala"
#define SOCKET_NAME "control.sock"
#define FOR_MIN_MS 1000

enum option_index {
	OPTION_SOCKET,
	OPTION_BPF_DIR,
	OPTION_CONFIG,
	OPTION_JSON,
	OPTION_HELP,
	OPTION_VERSION,
	OPTION_APP,
	OPTION_INSTANCE,
	OPTION_PUBLIC_KEY,
	OPTION_GENERATE_KEY,
	OPTION_ENDPOINT,
	OPTION_UNDO,
	OPTION_NUMBER,
	OPTION_SECONDS,
	OPTION_PINS,
	OPTION_FOR,
	OPTION_REASON,
	OPTION_IDLE_TIMEOUT,
	OPTION_FLOWS,
	OPTION_COUNT,
};

#define BIT(option) (1u << (option))
#define EVERYWHERE (BIT(OPTION_SOCKET) | BIT(OPTION_BPF_DIR) | BIT(OPTION_CONFIG) | BIT(OPTION_JSON) | \
		    BIT(OPTION_HELP) | BIT(OPTION_VERSION))

static const struct option_row {
	const char *name;
	const char *argument;			/* NULL when it takes none */
	const char *help;
} option_rows[OPTION_COUNT] = {
	[OPTION_SOCKET] = { "socket", "PATH", "the manager's socket" },
	[OPTION_BPF_DIR] = { "bpf-dir", "DIR", "where the maps are pinned" },
	[OPTION_CONFIG] = { "config", "FILE", "take them from this file: RunDir, BpfDir, StateDir" },
	[OPTION_JSON] = { "json", NULL, "print one JSON document" },
	[OPTION_HELP] = { "help", NULL, "print this and stop; also for one verb: phalactl cvm add --help" },
	[OPTION_VERSION] = { "version", NULL, "print the version and stop" },
	[OPTION_APP] = { "app", "APP", "the app's id: lower-case letters and digits, 63 at most" },
	[OPTION_INSTANCE] = { "instance", "INSTANCE", "the instance's id: of the same form, and no app's" },
	[OPTION_PUBLIC_KEY] = { "public-key", "KEY", "its WireGuard public key, as `wg pubkey` writes it" },
	[OPTION_GENERATE_KEY] = { "generate-key", NULL, "make a key pair here; the gateway gets its public half" },
	[OPTION_ENDPOINT] = { "endpoint", "HOST:PORT", "where the CVM reaches the gateway; over [Tunnel] Endpoint" },
	[OPTION_UNDO] = { "undo", NULL, "let it have new connections again" },
	[OPTION_NUMBER] = { "count", "N", "no more than so many" },
	[OPTION_SECONDS] = { "seconds", "N", "no longer than that" },
	[OPTION_FOR] = { "for", "TIME", "no longer than that: 30s, 10min, 24h; the kernel keeps to it" },
	[OPTION_REASON] = { "reason", "TEXT", "why; kept with it, and shown" },
	[OPTION_IDLE_TIMEOUT] = { "idle-timeout", "TIME", "5s, 30min, 1h (100ms to 168h), or default: the gateway's" },
	[OPTION_FLOWS] = { "flows", "N", "connections at a time, or none: no limit, or default: the gateway's" },
	[OPTION_PINS] = { "pins", NULL, "and take the maps away: flows, counters and instances are forgotten" },
};

/* Of both lists. */
#define LISTED (BIT(OPTION_FOR) | BIT(OPTION_REASON))
#define LISTED_USAGE "[--for TIME] [--reason TEXT]"
#define LIST_ADD_HELP                                                                                                    \
	"Enforced at once, kept over restarts, and done here: works whether phalad runs or not. An address alone is\n"   \
	"a prefix too; one that is listed already is changed.\n"                                                         \
	"\n"
#define LIST_REMOVE_HELP "Just that prefix: others that are within it, or hold it, stay.\n"
#define LIST_IMPORT_HELP                                                                                                 \
	"A prefix a line, perhaps with `until 2026-11-30T12:00:00Z`, and behind a # why; - is standard input. If one\n"  \
	"line is wrong nothing is imported. --for and --reason are for lines that do not say. What is listed already\n"  \
	"and not in the file stays.\n"

static const struct verb {
	const char *object;
	const char *verb;			/* NULL when the object stands alone */
	int (*run)(const struct ph_ctl *ctl);
	const char *operand;			/* NULL when it takes none */
	unsigned needed, allowed;		/* bits of options, besides EVERYWHERE */
	const char *usage;
	const char *summary;
	const char *help;
} verbs[] = {
	{ "status", NULL, ph_ctl_status, NULL, 0, 0,
	  "", "processes, tunnel, CVMs, counters by reason",
	  "Asks the manager how the gateway is. When it does not answer, says so, prints what the pinned maps still\n"
	  "tell (workers and their heartbeats, counters), and exits with 1.\n" },
	{ "cvm", "add", ph_ctl_cvm_add, NULL, BIT(OPTION_APP) | BIT(OPTION_INSTANCE),
	  BIT(OPTION_PUBLIC_KEY) | BIT(OPTION_GENERATE_KEY) | BIT(OPTION_ENDPOINT),
	  "--app APP --instance INSTANCE (--public-key KEY | --generate-key) [--endpoint HOST:PORT]",
	  "register an instance of an app; prints its wg-quick configuration",
	  "Registers a CVM and prints a wg-quick configuration that works as it is in there: save it as\n"
	  "/etc/wireguard/phala.conf and `wg-quick up phala`. With --public-key the private key stays where it\n"
	  "is, and the configuration takes it from /etc/wireguard/<interface>.key. With --generate-key the\n"
	  "configuration holds the private key, which is kept nowhere else: send it to the CVM, and only there.\n"
	  "\n"
	  "An instance that is registered already keeps its address, and no longer drains. With another key it is\n"
	  "another CVM: connections to the one before end.\n"
	  "\n"
	  "  phalactl cvm add --app shop --instance shop1 --public-key \"$(cat shop1.pub)\" > phala.conf\n" },
	{ "cvm", "list", ph_ctl_cvm_list, NULL, 0, BIT(OPTION_APP),
	  "[--app APP]", "all instances, or those of one app",
	  "One line an instance: address, state (ready, draining), health and age of the last WireGuard handshake,\n"
	  "bytes received from it and sent to it through the tunnel.\n" },
	{ "cvm", "show", ph_ctl_cvm_show, "INSTANCE", 0, 0,
	  "INSTANCE", "all about one instance", "" },
	{ "cvm", "remove", ph_ctl_cvm_remove, "INSTANCE", 0, 0,
	  "INSTANCE", "forget an instance, and end its connections",
	  "Returns when all its connections are ended. Its tunnel closes two to three seconds later, so that what the CVM\n"
	  "says to connections that were reset is answered. Its address rests for AddressQuarantine before another\n"
	  "instance may have it.\n" },
	{ "cvm", "drain", ph_ctl_cvm_drain, "INSTANCE", 0, BIT(OPTION_UNDO),
	  "INSTANCE [--undo]", "no new connections for an instance; those it has go on", "" },
	{ "app", "list", ph_ctl_app_list, NULL, 0, 0,
	  "", "all apps: instances, flows, limits",
	  "Reads the pinned maps: works whether phalad runs or not. FLOWS are those of the kernel path, RELAYED those of\n"
	  "workers, which are counted by app only where there is a limit; BEGUN counts flows of the kernel path to\n"
	  "instances that there are now.\n" },
	{ "app", "show", ph_ctl_app_show, "APP", 0, 0,
	  "APP", "one app, with what became of its flows, by reason and instance", "" },
	{ "app", "set", ph_ctl_app_set, "APP", 0, BIT(OPTION_IDLE_TIMEOUT) | BIT(OPTION_FLOWS),
	  "APP [--idle-timeout TIME|default] [--flows N|none|default]", "an idle time-out and a limit of its own for an app",
	  "They hold on both paths, whatever the instance, and are kept when the app has none any more. The limit is for\n"
	  "connections that want to begin, the time-out for those that begin from now on. Over the limit the client is\n"
	  "refused.\n"
	  "\n"
	  "  phalactl app set shop --idle-timeout 30min --flows 1000\n" },
	{ "map", "list", ph_ctl_map_list, NULL, 0, 0,
	  "", "the pinned maps",
	  "Reads the maps themselves: works whether phalad runs or not. ENTRIES counts those that mean something, of\n"
	  "those there is room for; MEMORY is what the kernel charges for the map, before 6.4\n"
	  "what it could come to.\n" },
	{ "map", "dump", ph_ctl_map_dump, "NAME", 0, 0,
	  "NAME", "what a pinned map holds, in words",
	  "NAME is one of those that `map list` shows. Empty slots and counters that are zero are left out. Ages are\n"
	  "those by which health is judged: when no manager lives, they stand still.\n" },
	{ "route", NULL, ph_ctl_route, "NAME", 0, 0,
	  "NAME", "what would happen to a connection for that name, and why",
	  "Reads the pinned maps with the code that workers use, and changes nothing: works whether phalad runs\n"
	  "or not.\n"
	  "Exits with 0 when the connection would be routed, with 1 when it would be refused. For a passthrough name\n"
	  "PATH is whether it would stay in the kernel, and if not, why.\n"
	  "\n"
	  "  phalactl route shop-8080.example.com\n" },
	{ "flow", "list", ph_ctl_flow_list, NULL, 0, BIT(OPTION_APP) | BIT(OPTION_INSTANCE) | BIT(OPTION_NUMBER),
	  "[--app APP] [--instance INSTANCE] [--count N]", "connections: the kernel path's, then the workers'",
	  "Reads the pinned maps and the workers' ledgers: works whether phalad runs or not. One line a flow, the\n"
	  "oldest first: FLOW is what `flow show` and `flow kill` take, IDLE the time since the last packet either way.\n"
	  "A flow that is over stays for some seconds, and REASON is why it ended; one that is declined was left to a\n"
	  "worker, and REASON is why. What workers carry has no FLOW, and PATH relay: REASON is why it is not the\n"
	  "kernel's. A worker shows the first 16,384 of its connections.\n" },
	{ "flow", "show", ph_ctl_flow_show, "FLOW", 0, 0,
	  "SLOT[.GENERATION] | CLIENT:PORT", "all about one flow, or a client's relayed connection",
	  "Sequence numbers are as the client knows them; `plus` is what they, and timestamps, grow by on the way.\n"
	  "\n"
	  "  phalactl flow show 192.0.2.2:40000\n" },
	{ "flow", "kill", ph_ctl_flow_kill, "FLOW", 0, 0,
	  "SLOT.GENERATION", "end a flow, with RST at both ends",
	  "The generation keeps it from hitting another connection, which may have the slot by now.\n" },
	{ "flow", "watch", ph_ctl_flow_watch, NULL, 0, BIT(OPTION_NUMBER) | BIT(OPTION_SECONDS),
	  "[--count N] [--seconds N]", "a line for each flow that begins, ends, or is declined",
	  "Until it is interrupted, has shown N, or that many seconds are over. One can watch at a time. What comes\n"
	  "faster than it is read is lost, but counted (`status`). With --json each line is a document.\n" },
	{ "guard", "show", ph_ctl_guard_show, NULL, 0, 0,
	  "", "what guard dropped of each CVM's packets, and why",
	  "Reads the pinned maps: works whether phalad runs or not. First all packets on the tunnel device by what\n"
	  "became of them, then those that were dropped, a line for each CVM and reason. A CVM that scans has a large\n"
	  "number beside `uncalled` or `protocol`; a few are the ends of connections. What is forgotten with a CVM that\n"
	  "is removed stays in the first part.\n" },
	{ "guard", "watch", ph_ctl_guard_watch, NULL, 0, BIT(OPTION_NUMBER) | BIT(OPTION_SECONDS),
	  "[--count N] [--seconds N]", "a line for each packet that guard drops",
	  "Until it is interrupted, has shown N, or that many seconds are over. One can watch at a time. Of one CVM no\n"
	  "more than 16 are told in a second, so that a scanner does not drown others; all are counted, and the last\n"
	  "number is how many of this CVM's were dropped for this reason. With --json each line is a document.\n" },
	{ "deny", "add", ph_ctl_list_add, "PREFIX", 0, LISTED,
	  "PREFIX " LISTED_USAGE, "drop what comes from a prefix",
	  "Drops what comes from there to the gateway's listening ports, also of connections that are under way, and\n"
	  "WireGuard handshakes. All else of this machine is reached as before.\n"
	  LIST_ADD_HELP
	  "  phalactl deny add 192.0.2.0/24 --for 10min --reason \"scans\"\n" },
	{ "deny", "remove", ph_ctl_list_remove, "PREFIX", 0, 0,
	  "PREFIX", "take a prefix off the deny list", LIST_REMOVE_HELP },
	{ "deny", "list", ph_ctl_list_list, NULL, 0, BIT(OPTION_NUMBER),
	  "[--count N]", "the deny list, as `deny import` reads it", "" },
	{ "deny", "import", ph_ctl_list_import, "FILE", 0, LISTED,
	  "FILE " LISTED_USAGE, "add all prefixes of a file to the deny list",
	  LIST_IMPORT_HELP },
	{ "allow", "add", ph_ctl_list_add, "PREFIX", 0, LISTED,
	  "PREFIX " LISTED_USAGE, "let a prefix in: never denied, never over budget",
	  "For load balancers, large NATs and one's own monitoring: the deny list and budgets do not count for them.\n"
	  LIST_ADD_HELP
	  "  phalactl allow add 192.0.2.0/24 --for 10min --reason \"our monitoring\"\n" },
	{ "allow", "remove", ph_ctl_list_remove, "PREFIX", 0, 0,
	  "PREFIX", "take a prefix off the allow list", LIST_REMOVE_HELP },
	{ "allow", "list", ph_ctl_list_list, NULL, 0, BIT(OPTION_NUMBER),
	  "[--count N]", "the allow list, as `allow import` reads it", "" },
	{ "allow", "import", ph_ctl_list_import, "FILE", 0, LISTED,
	  "FILE " LISTED_USAGE, "add all prefixes of a file to the allow list",
	  LIST_IMPORT_HELP },
	{ "gate", "show", ph_ctl_gate_show, NULL, 0, 0,
	  "", "how the gate is attached, its budgets, what it let in and dropped",
	  "Reads the pinned maps: works whether phalad runs or not; only what went wrong with a device is the\n"
	  "manager's to say. Of connections that are under way only the packets that are dropped are counted, but all\n"
	  "packets of sources on the allow list. OVER BUDGET are the sources that lost most.\n" },
	{ "detach", NULL, ph_ctl_detach, NULL, 0, BIT(OPTION_PINS),
	  "[--pins]", "take the kernel path and the gate off all devices",
	  "For when phalad is not to come back: they stay attached without it. Flows that are spliced are cut;\n"
	  "what others have attached stays, and so does the guard of the tunnel device. A phalad that runs puts\n"
	  "them back.\n" },
};

void ph_ctl_say(const char *format, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, format);
	fputs("phalactl: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
}

int ph_ctl_fail(const char *format, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, format);
	fputs("phalactl: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	return PH_CTL_FAILED;
}

static const char *blank(const char *text)
{
	return text ? " " : "";
}

static const char *words(const char *text)
{
	return text ? text : "";
}

static void print_options(unsigned options, FILE *out)
{
	for (unsigned i = 0; i < OPTION_COUNT; i++) {
		const struct option_row *row = &option_rows[i];
		char left[40];

		if (!(options & BIT(i)))
			continue;
		snprintf(left, sizeof(left), "--%s%s%s", row->name, blank(row->argument), words(row->argument));
		fprintf(out, "  %-24s %s\n", left, row->help);
	}
}

static void print_verbs(const char *object, FILE *out)
{
	for (const struct verb *verb = verbs; verb < verbs + COUNT(verbs); verb++) {
		char left[40];

		if (object && strcmp(object, verb->object))
			continue;
		snprintf(left, sizeof(left), "%s%s%s%s%s", verb->object, blank(verb->verb), words(verb->verb),
			 blank(verb->operand), words(verb->operand));
		fprintf(out, "  %-24s %s\n", left, verb->summary);
	}
}

/* @object: NULL for all of them. */
static void print_help(const char *object, FILE *out)
{
	fprintf(out, "usage: phalactl [--socket PATH] [--bpf-dir DIR] [--config FILE] %s VERB ... [--json]\n\n",
		object ? object : "OBJECT");
	print_verbs(object, out);
	fprintf(out, "\n");
	print_options(EVERYWHERE, out);
	if (object)
		return;
	fprintf(out, "\n"
		     "Without --socket and --bpf-dir they are where " CONFIG_PATH " says, or\n"
		     RUN_DIR "/" SOCKET_NAME " and " BPF_DIR ".\n"
		     "Results go to standard output, words to standard error.\n"
		     "Exit status: 0 done, 1 failed, 2 usage.\n");
}

static void print_verb_help(const struct verb *verb, FILE *out)
{
	fprintf(out, "usage: phalactl %s%s%s%s%s\n\n%s.\n", verb->object, blank(verb->verb), words(verb->verb),
		verb->usage[0] ? " " : "", verb->usage, verb->summary);
	if (verb->help[0])
		fprintf(out, "\n%s", verb->help);
	fprintf(out, "\n");
	print_options(verb->needed | verb->allowed, out);
	print_options(EVERYWHERE, out);
}

/* @verb may be NULL. Return: PH_CTL_USAGE. */
__attribute__((format(printf, 2, 3))) static int usage(const struct verb *verb, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("phalactl: ", stderr);
	vfprintf(stderr, format, args);
	va_end(args);
	if (verb)
		fprintf(stderr, "\nusage: phalactl %s%s%s%s%s\n", verb->object, blank(verb->verb), words(verb->verb),
			verb->usage[0] ? " " : "", verb->usage);
	else
		fprintf(stderr, " (phalactl --help)\n");
	return PH_CTL_USAGE;
}

/* Takes the object, and the verb where it has one, off the words. Return: NULL when there is no such verb. */
static const struct verb *find_verb(char **word, int count, int *ret_used)
{
	for (const struct verb *verb = verbs; count && verb < verbs + COUNT(verbs); verb++) {
		int used = verb->verb ? 2 : 1;

		if (count < used || strcmp(verb->object, word[0]) || (verb->verb && strcmp(verb->verb, word[1])))
			continue;
		*ret_used = used;
		return verb;
	}
	return NULL;
}

static bool is_object(const char *word)
{
	for (const struct verb *verb = verbs; verb < verbs + COUNT(verbs); verb++) {
		if (!strcmp(verb->object, word))
			return true;
	}
	return false;
}

static int no_verb(char **word, int count)
{
	if (!count)
		print_help(NULL, stderr);
	else if (!is_object(word[0]))
		usage(NULL, "there is no object %s", word[0]);
	else if (count < 2)
		print_help(word[0], stderr);
	else
		usage(NULL, "%s has no verb %s", word[0], word[1]);
	return PH_CTL_USAGE;
}

/*
 * Where socket and maps are: the options, else the configuration, else its defaults. A configuration that is asked for
 * must be right; one that merely lies at the usual place must not keep anybody from looking around. It is read in any
 * case: no option says where the lists are.
 */
static int resolve(struct ph_ctl *ctl, const char *const values[OPTION_COUNT])
{
	const char *path = values[OPTION_CONFIG] ? values[OPTION_CONFIG] : CONFIG_PATH;
	const char *socket_path = values[OPTION_SOCKET], *bpf_dir = values[OPTION_BPF_DIR];
	struct ph_config *config = NULL;
	const char *run_dir = RUN_DIR;
	char error[512];
	int len = 0;

	if (values[OPTION_CONFIG] || !access(path, F_OK)) {
		if (ph_config_load(path, &config, error, sizeof(error))) {
			if (values[OPTION_CONFIG])
				return ph_ctl_fail("%s", error);
			ph_ctl_say("%s; going on with the defaults", error);
			ctl->guessed = true;
		}
	}
	if (config)
		run_dir = config->run_dir;
	if (socket_path)
		len = snprintf(ctl->socket_path, sizeof(ctl->socket_path), "%s", socket_path);
	else
		len = snprintf(ctl->socket_path, sizeof(ctl->socket_path), "%s/" SOCKET_NAME, run_dir);
	if ((size_t)len < sizeof(ctl->socket_path))
		len = snprintf(ctl->bpf_dir, sizeof(ctl->bpf_dir), "%s",
			       bpf_dir ? bpf_dir : config ? config->bpf_dir : BPF_DIR);
	if (len < PATH_MAX)
		len = snprintf(ctl->state_dir, sizeof(ctl->state_dir), "%s", config ? config->state_dir : STATE_DIR);
	ph_config_free(config);
	if (len < PATH_MAX) {
		strcpy(ctl->run_dir, ctl->socket_path);
		dirname(ctl->run_dir);
	}
	return len < PATH_MAX ? PH_CTL_DONE : ph_ctl_fail("a path of %d characters is too long", len);
}

static bool is_reason(const char *text)
{
	for (const char *c = text; *c; c++) {
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			return false;
	}
	return strlen(text) <= PH_PREFIX_REASON_MAX;
}

static int check_app(const struct verb *verb, unsigned given, const char *const values[OPTION_COUNT])
{
	const char *idle = values[OPTION_IDLE_TIMEOUT], *flows = values[OPTION_FLOWS];
	uint32_t number;

	if (!(given & (BIT(OPTION_IDLE_TIMEOUT) | BIT(OPTION_FLOWS))))
		return usage(verb, "--idle-timeout or --flows is needed");
	if (idle && strcmp(idle, "default") && ph_value_duration(idle, PH_IDLE_MIN_MS, PH_IDLE_MAX_MS, &number))
		return usage(verb, "--idle-timeout %s: not a time from 100ms to 168h, nor default", idle);
	if (flows && strcmp(flows, "default") && strcmp(flows, "none") &&
	    ph_value_number(flows, 1, PH_FLOW_LIMIT_MAX, &number))
		return usage(verb, "--flows %s: not a number from 1 to %d, nor none, nor default", flows,
			     PH_FLOW_LIMIT_MAX);
	return PH_CTL_DONE;
}

static int check(const struct verb *verb, unsigned given, const char *const values[OPTION_COUNT], int operands)
{
	unsigned wrong = given & ~(verb->needed | verb->allowed | EVERYWHERE), lacking = verb->needed & ~given;
	const unsigned keys = given & (BIT(OPTION_PUBLIC_KEY) | BIT(OPTION_GENERATE_KEY));
	uint32_t number;

	for (unsigned i = 0; i < OPTION_COUNT; i++) {
		if (wrong & BIT(i))
			return usage(verb, "--%s has no meaning here", option_rows[i].name);
		if (lacking & BIT(i))
			return usage(verb, "--%s is needed", option_rows[i].name);
	}
	if (operands < !!verb->operand)
		return usage(verb, "%s is missing", verb->operand);
	if (operands > !!verb->operand)
		return usage(verb, "a word too many");
	if (verb->allowed & BIT(OPTION_GENERATE_KEY) && (!keys || keys & (keys - 1)))
		return usage(verb, "either --public-key or --generate-key is needed");
	for (unsigned i = OPTION_NUMBER; i <= OPTION_SECONDS; i++) {
		if (values[i] && ph_value_number(values[i], 1, UINT32_MAX, &number))
			return usage(verb, "--%s %s: not a number over 0", option_rows[i].name, values[i]);
	}
	if (values[OPTION_FOR] && ph_value_duration(values[OPTION_FOR], FOR_MIN_MS, UINT32_MAX, &number))
		return usage(verb, "--for %s: not a time from 1s to 1193h, such as 30s, 10min or 24h", values[OPTION_FOR]);
	if (values[OPTION_REASON] && !is_reason(values[OPTION_REASON]))
		return usage(verb, "--reason: not one line of at most %d characters", PH_PREFIX_REASON_MAX);
	if (verb->allowed & BIT(OPTION_FLOWS))
		return check_app(verb, given, values);
	if (values[OPTION_ENDPOINT] && ph_value_endpoint(values[OPTION_ENDPOINT]))
		return usage(verb, "--endpoint %s: not HOST:PORT", values[OPTION_ENDPOINT]);
	return PH_CTL_DONE;
}

/* Return: -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, unsigned *ret_given, const char *values[OPTION_COUNT])
{
	struct option long_options[OPTION_COUNT + 1] = { 0 };
	unsigned given = 0;
	int found;

	for (unsigned i = 0; i < OPTION_COUNT; i++) {
		long_options[i].name = option_rows[i].name;
		long_options[i].has_arg = option_rows[i].argument ? required_argument : no_argument;
		long_options[i].val = (int)i + 256;
	}
	while ((found = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		unsigned option = found == 'h' ? OPTION_HELP : (unsigned)found - 256;

		if (found == '?') {		/* getopt has said what is wrong */
			fprintf(stderr, "usage: phalactl --help\n");
			return PH_CTL_USAGE;
		}
		if (given & BIT(option))
			return usage(NULL, "--%s is given twice", option_rows[option].name);
		given |= BIT(option);
		values[option] = optarg;
	}
	*ret_given = given;
	return -1;
}

static int run(const struct verb *verb, unsigned given, const char *const values[OPTION_COUNT], const char *operand)
{
	struct ph_ctl *ctl = calloc(1, sizeof(*ctl));
	int status;

	if (!ctl)
		return ph_ctl_fail("out of memory");
	ctl->json = given & BIT(OPTION_JSON);
	ctl->app = values[OPTION_APP];
	ctl->instance = values[OPTION_INSTANCE];
	ctl->public_key = values[OPTION_PUBLIC_KEY];
	ctl->endpoint = values[OPTION_ENDPOINT];
	ctl->idle_timeout = values[OPTION_IDLE_TIMEOUT];
	ctl->flows = values[OPTION_FLOWS];
	ctl->generate_key = given & BIT(OPTION_GENERATE_KEY);
	ctl->undo = given & BIT(OPTION_UNDO);
	ctl->pins = given & BIT(OPTION_PINS);
	ctl->reason = values[OPTION_REASON];
	ctl->object = verb->object;
	if (values[OPTION_FOR])
		ph_value_duration(values[OPTION_FOR], FOR_MIN_MS, UINT32_MAX, &ctl->for_ms);
	if (values[OPTION_NUMBER])
		ph_value_number(values[OPTION_NUMBER], 1, UINT32_MAX, &ctl->count);
	if (values[OPTION_SECONDS])
		ph_value_number(values[OPTION_SECONDS], 1, UINT32_MAX, &ctl->seconds);
	ctl->operand = operand;
	status = resolve(ctl, values);
	if (!status)
		status = verb->run(ctl);
	free(ctl);
	return status;
}

static int command(int argc, char **argv)
{
	const char *values[OPTION_COUNT] = { 0 };
	const struct verb *verb;
	int status, count, used;
	unsigned given = 0;
	char **word;

	if (argc)
		argv[0] = (char *)"phalactl";	/* what getopt puts before its words */
	status = parse_options(argc, argv, &given, values);
	if (status >= 0)
		return status;
	if (given & BIT(OPTION_VERSION)) {
		printf("phalactl " PH_VERSION "\n");
		return PH_CTL_DONE;
	}
	word = argv + optind;
	count = argc - optind;
	verb = find_verb(word, count, &used);
	if (given & BIT(OPTION_HELP) && (verb || !count || (count == 1 && is_object(word[0])))) {
		if (verb)
			print_verb_help(verb, stdout);
		else
			print_help(count ? word[0] : NULL, stdout);
		return PH_CTL_DONE;
	}
	if (!verb)
		return no_verb(word, count);
	status = check(verb, given, values, count - used);
	return status ? status : run(verb, given, values, verb->operand ? word[used] : NULL);
}

int main(int argc, char **argv)
{
	int status = command(argc, argv);

	/* A result that did not arrive is none: a full disk must not look like success. */
	if ((fflush(stdout) || ferror(stdout)) && !status)
		status = ph_ctl_fail("standard output: %s", strerror(errno));
	return status;
}
