// SPDX-License-Identifier: Apache-2.0
/* A line of the control socket: whatever it is, it is a request in bounds or a refusal in one line of words. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int true_thing)
{
	if (!true_thing)
		abort();
}

static void must_be_padded(const char *text, size_t size)
{
	size_t len = strnlen(text, size);

	must(len < size);
	for (; len < size; len++)
		must(!text[len]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ph_control_request request;
	char error[256] = "";

	memset(&request, 0xaa, sizeof(request));
	if (!ph_control_parse((const char *)data, size, &request, error, sizeof(error))) {
		must(request.verb <= PH_CONTROL_FLOW_KILL);		/* the last one */
		must_be_padded(request.app, sizeof(request.app));
		must_be_padded(request.instance, sizeof(request.instance));
		must_be_padded(request.public_key, sizeof(request.public_key));
	} else {
		must(error[0]);
		must((unsigned char)request.app[0] == 0xaa);
		for (const char *at = error; *at; at++)
			must(*at >= ' ' && *at <= '~');
	}
	return 0;
}
