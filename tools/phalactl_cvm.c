// SPDX-License-Identifier: Apache-2.0
/*
 * CVMs: what the manager is asked to do with them, and the wg-quick configuration that a CVM is given.
 */
#include "phalactl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <key.h>

static const struct ph_column list_columns[] = {
	{ "instance", "INSTANCE", PH_CELL_TEXT },
	{ "app", "APP", PH_CELL_TEXT },
	{ "address", "ADDRESS", PH_CELL_TEXT },
	{ "state", "STATE", PH_CELL_TEXT },
	{ "health", "HEALTH", PH_CELL_TEXT },
	{ "handshake_age_s", "HANDSHAKE", PH_CELL_AGE },
	{ "rx_bytes", "RECEIVED", PH_CELL_BYTES },
	{ "tx_bytes", "SENT", PH_CELL_BYTES },
	{ 0 },
};

static const struct ph_column show_columns[] = {
	{ "instance", "instance", PH_CELL_TEXT },
	{ "app", "app", PH_CELL_TEXT },
	{ "public_key", "public key", PH_CELL_TEXT },
	{ "address", "address", PH_CELL_TEXT },
	{ "state", "state", PH_CELL_TEXT },
	{ "health", "health", PH_CELL_TEXT },
	{ "handshake_age_s", "latest handshake", PH_CELL_AGE },
	{ "endpoint", "endpoint", PH_CELL_TEXT },
	{ "rx_bytes", "received", PH_CELL_BYTES },
	{ "tx_bytes", "sent", PH_CELL_BYTES },
	{ "added", "added", PH_CELL_TIME },
	{ "slot", "slot", PH_CELL_NUMBER },
	{ "generation", "generation", PH_CELL_NUMBER },
	{ 0 },
};

/* Everything the CVM needs is in @cvm; @private_key is NULL when the CVM has its own. */
static void write_wg_quick(const struct ph_json *cvm, const char *private_key, const char *endpoint, FILE *out)
{
	const char *gateway_key = ph_json_string(cvm, "gateway_public_key", NULL);

	fprintf(out, "# instance %s of app %s\n", ph_json_string(cvm, "instance", ""), ph_json_string(cvm, "app", ""));
	if (!gateway_key) {
		fprintf(out, "# The gateway's tunnel is external: whoever keeps it gives this CVM the address %s.\n",
			ph_json_string(cvm, "address", ""));
		if (private_key)
			fprintf(out, "# PrivateKey = %s\n", private_key);
		return;
	}
	fprintf(out, "[Interface]\n");
	if (private_key)
		fprintf(out, "PrivateKey = %s\n", private_key);
	else
		fprintf(out, "# The private key of %s, mode 0600:\n"
			     "PostUp = wg set %%i private-key /etc/wireguard/%%i.key\n",
			ph_json_string(cvm, "public_key", ""));
	fprintf(out, "Address = %s/32\n", ph_json_string(cvm, "address", ""));
	fprintf(out, "MTU = %.0f\n", ph_json_number(cvm, "mtu", PH_TUNNEL_MTU));
	fprintf(out, "\n[Peer]\nPublicKey = %s\n", gateway_key);
	fprintf(out, "AllowedIPs = %s\n", ph_json_string(cvm, "allowed_ips", ""));
	if (endpoint)
		fprintf(out, "Endpoint = %s\n", endpoint);
	else
		fprintf(out, "# Not configured: the gateway's public address goes here.\n# Endpoint = HOST:%.0f\n",
			ph_json_number(cvm, "listen_port", 0));
	fprintf(out, "PersistentKeepalive = %.0f\n", ph_json_number(cvm, "keepalive_s", PH_KEEPALIVE_S));
}

static int print_added(const struct ph_ctl *ctl, struct ph_json *cvm, const char *private_key)
{
	const char *endpoint = ctl->endpoint ? ctl->endpoint : ph_json_string(cvm, "endpoint", NULL);
	const char *gateway_key = ph_json_string(cvm, "gateway_public_key", NULL);
	char *text = NULL;
	FILE *out;
	size_t len;

	if (endpoint && !endpoint[0])
		endpoint = NULL;
	if (gateway_key && !endpoint)
		ph_ctl_say("no endpoint: give --endpoint, or set Endpoint in the gateway's [Tunnel]; until one is filled "
			   "in the CVM cannot find the gateway");
	if (!ctl->json) {
		write_wg_quick(cvm, private_key, endpoint, stdout);
		return PH_CTL_DONE;
	}
	out = open_memstream(&text, &len);
	if (!out)
		return ph_ctl_fail("%s", strerror(errno));
	write_wg_quick(cvm, private_key, endpoint, out);
	if (!fclose(out)) {
		ph_json_set_string(cvm, "endpoint", endpoint);
		if (private_key)
			ph_json_set_string(cvm, "private_key", private_key);
		ph_json_set_string(cvm, "wg_quick", text);
		ph_json_print(cvm, stdout);
	}
	if (text)
		explicit_bzero(text, len);
	free(text);
	return PH_CTL_DONE;
}

/* @out: PH_KEY_BASE64_SIZE bytes each. Return: PH_CTL_DONE or PH_CTL_FAILED. */
static int generate(char *ret_private, char *ret_public)
{
	uint8_t private_key[PH_KEY_LEN], public_key[PH_KEY_LEN];
	int err = ph_key_generate(private_key);

	if (!err)
		err = ph_key_public(private_key, public_key);
	if (!err) {
		ph_key_encode(private_key, ret_private);
		ph_key_encode(public_key, ret_public);
	}
	explicit_bzero(private_key, sizeof(private_key));
	return err ? ph_ctl_fail("cannot make a key pair: %s", strerror(-err)) : PH_CTL_DONE;
}

/* As `wg genkey` does. */
static void warn_of_readers(void)
{
	struct stat status;

	if (!fstat(STDOUT_FILENO, &status) && S_ISREG(status.st_mode) && status.st_mode & (S_IRWXG | S_IRWXO))
		ph_ctl_say("the private key goes into a file of mode %04o, which others can open: umask 077 makes it 0600",
			   status.st_mode & 07777);
}

int ph_ctl_cvm_add(const struct ph_ctl *ctl)
{
	char private_key[PH_KEY_BASE64_SIZE], public_key[PH_KEY_BASE64_SIZE];
	struct ph_json *request, *reply, *cvm;
	int status = PH_CTL_DONE;

	if (ctl->generate_key) {
		warn_of_readers();
		status = generate(private_key, public_key);
	}
	if (status)
		return status;
	request = ph_ctl_verb("cvm add");
	ph_json_set_string(request, "app", ctl->app);
	ph_json_set_string(request, "instance", ctl->instance);
	ph_json_set_string(request, "public_key", ctl->generate_key ? public_key : ctl->public_key);
	status = ph_ctl_request(ctl, request, &reply);
	if (status)
		goto out;
	cvm = ph_json_child(reply, "result");
	if (cvm && ph_json_string(cvm, "address", NULL))
		status = print_added(ctl, cvm, ctl->generate_key ? private_key : NULL);
	else
		status = ph_ctl_fail("the manager's answer lacks the address");
	ph_json_free(reply);
out:
	explicit_bzero(private_key, sizeof(private_key));
	return status;
}

/* Those of @app, in the order they came in; all when it is NULL. */
static struct ph_json *of_app(const struct ph_json *list, const char *app)
{
	struct ph_json *some = ph_json_array();

	for (size_t i = 0; i < ph_json_count(list); i++) {
		struct ph_json *cvm = ph_json_at(list, i);

		if (!app || !strcmp(ph_json_string(cvm, "app", ""), app))
			ph_json_add_again(some, cvm);
	}
	return some;
}

int ph_ctl_cvm_list(const struct ph_ctl *ctl)
{
	struct ph_json *reply, *list;
	int status;

	status = ph_ctl_request(ctl, ph_ctl_verb("cvm list"), &reply);
	if (status)
		return status;
	list = of_app(ph_json_child(reply, "result"), ctl->app);
	if (ctl->json)
		ph_json_print(list, stdout);
	else if (ph_json_count(list))
		ph_table_print(list, list_columns, stdout);
	else
		ph_ctl_say("no instance is registered%s%s", ctl->app ? " for app " : "", ctl->app ? ctl->app : "");
	ph_json_free(list);
	ph_json_free(reply);
	return PH_CTL_DONE;
}

/* Asks for the verb with the operand as instance. */
static int request_instance(const struct ph_ctl *ctl, struct ph_json *request, struct ph_json **ret_reply)
{
	ph_json_set_string(request, "instance", ctl->operand);
	return ph_ctl_request(ctl, request, ret_reply);
}

int ph_ctl_cvm_show(const struct ph_ctl *ctl)
{
	struct ph_json *reply;
	int status;

	status = request_instance(ctl, ph_ctl_verb("cvm show"), &reply);
	if (status)
		return status;
	if (ctl->json)
		ph_json_print(ph_json_child(reply, "result"), stdout);
	else
		ph_table_print_record(ph_json_child(reply, "result"), show_columns, stdout);
	ph_json_free(reply);
	return PH_CTL_DONE;
}

int ph_ctl_cvm_remove(const struct ph_ctl *ctl)
{
	const struct ph_json *result;
	struct ph_json *reply;
	double ended;
	int status;

	status = request_instance(ctl, ph_ctl_verb("cvm remove"), &reply);
	if (status)
		return status;
	result = ph_json_child(reply, "result");
	ended = ph_json_number(result, "ended", 0);
	if (ctl->json)
		ph_json_print(result, stdout);
	else
		ph_ctl_say("%s is removed; %.0f connection%s ended", ctl->operand, ended, ended == 1 ? "" : "s");
	ph_json_free(reply);
	return PH_CTL_DONE;
}

int ph_ctl_cvm_drain(const struct ph_ctl *ctl)
{
	struct ph_json *request = ph_ctl_verb("cvm drain"), *reply;
	int status;

	ph_json_set_bool(request, "drain", !ctl->undo);
	status = request_instance(ctl, request, &reply);
	if (status)
		return status;
	if (ctl->json)
		ph_json_print(ph_json_child(reply, "result"), stdout);
	else
		ph_ctl_say("%s gets %s", ctl->operand, ctl->undo ? "new connections again" : "no new connections");
	ph_json_free(reply);
	return PH_CTL_DONE;
}
