/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control - the language of the control socket: a JSON object a line, one answer a request.
 *
 *   {"verb":"status"}
 *   {"verb":"cvm add","app":APP,"instance":INSTANCE,"public_key":BASE64}
 *   {"verb":"cvm list"}
 *   {"verb":"cvm show","instance":INSTANCE}
 *   {"verb":"cvm remove","instance":INSTANCE}
 *   {"verb":"cvm drain","instance":INSTANCE,"drain":true or false}
 *   {"verb":"app set","app":APP,"idle_ms":MILLISECONDS,"flow_limit":CONNECTIONS}	either may be left out
 *   {"verb":"flow kill","flow":SLOT,"generation":GENERATION}
 *
 *   {"ok":true,"result":...}
 *   {"ok":false,"code":"EBUSY","error":"one line"}
 *
 * Requests come from root, and are taken as strictly as if they did not. The only part of phalad that knows jansson.
 */
#ifndef PHALAD_CONTROL_H
#define PHALAD_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "device.h"
#include "gates.h"
#include "holder.h"
#include "maps.h"
#include "roster.h"

#define PH_CONTROL_LINE_MAX 65536		/* bytes of a request, without its newline */

enum ph_control_verb {
	PH_CONTROL_STATUS,
	PH_CONTROL_CVM_ADD,
	PH_CONTROL_CVM_LIST,
	PH_CONTROL_CVM_SHOW,
	PH_CONTROL_CVM_REMOVE,
	PH_CONTROL_CVM_DRAIN,
	PH_CONTROL_APP_SET,
	PH_CONTROL_FLOW_KILL,
};

/* What a verb does not take is empty. Texts are no longer than they may be; whether they make sense is not judged. */
struct ph_control_request {
	enum ph_control_verb verb;
	char app[PH_ID_SIZE];			/* zero padded, as the next */
	char instance[PH_ID_SIZE];
	char public_key[PH_KEY_BASE64_SIZE];
	bool drain;
	uint32_t flow, generation;		/* slot in ph_flows, and its generation */
	bool has_idle_ms, has_flow_limit;
	uint32_t idle_ms, flow_limit;		/* as in struct ph_id */
};

/**
 * ph_control_parse() - a request from its line.
 * @line: @len bytes, without the newline; borrowed.
 * @ret_request: untouched on failure.
 * @error: one line for people, set on failure.
 *
 * Unknown, missing, doubled and wrongly typed members are errors, and so is anything behind the object.
 *
 * Return: 0 or -EINVAL.
 */
int ph_control_parse(const char *line, size_t len, struct ph_control_request *ret_request, char *error,
		     size_t error_size);

/*
 * Answers, each a whole line with its newline, the caller's to free(); NULL when memory is short. A list may be long,
 * so it is made in pieces: PH_CONTROL_LIST_BEGIN, rows with commas between them, PH_CONTROL_LIST_END.
 */
char *ph_control_error(int err, const char *error);

struct ph_control_cvm {
	const struct ph_roster_entry *entry;
	enum ph_health health;
	int64_t handshake_age_s;		/* -1 when there was none */
};

char *ph_control_cvm(const struct ph_control_cvm *cvm);

/* With what a CVM needs for its own side of the tunnel. */
char *ph_control_added(const struct ph_control_cvm *cvm, const struct ph_tunnel *tunnel,
		       const struct ph_device_state *device);
char *ph_control_removed(const char *instance, uint64_t ended);
char *ph_control_killed(uint64_t killed);
char *ph_control_app(const char *app);

#define PH_CONTROL_LIST_BEGIN "{\"ok\":true,\"result\":["
#define PH_CONTROL_LIST_END "]}\n"
char *ph_control_list_row(const struct ph_control_cvm *cvm);	/* without a newline */

struct ph_control_status {
	uint64_t now_ns, started_ns;		/* CLOCK_BOOTTIME */
	const struct ph_tunnel *tunnel;
	const struct ph_device_state *device;
	const struct ph_maps *maps;
	uint32_t cvms, apps, healthy, draining;
	const struct ph_holder_counts *holder;
	const __u64 *guard;			/* PH_GUARD_MAX counters; NULL when there are none */
	const struct ph_gates_row *gate;
	uint32_t gate_rows;
	const char *trouble;			/* what cannot be put right just now; empty when all is well */
};

char *ph_control_status(const struct ph_control_status *status);

#endif
