// SPDX-License-Identifier: Apache-2.0
/*
 * alert - the alert that fits a reason. See alert.h.
 */
#include "alert.h"

/* RFC 8446, section 6, and RFC 6066, section 3. */
enum description {
	NO_ALERT = 0,				/* close_notify is never sent here */
	ILLEGAL_PARAMETER = 47,
	DECODE_ERROR = 50,
	INTERNAL_ERROR = 80,
	MISSING_EXTENSION = 109,
	UNRECOGNIZED_NAME = 112,
};

static enum description describe(enum ph_reason reason)
{
	switch (reason) {
	case PH_REASON_NO_SNI:			/* RFC 8446, section 9.2 */
		return MISSING_EXTENSION;
	case PH_REASON_MALFORMED:
	case PH_REASON_HELLO_TIMEOUT:		/* shorter than its own length says, as far as we can wait */
		return DECODE_ERROR;
	case PH_REASON_AMBIGUOUS:
	case PH_REASON_HELLO_TOO_LONG:		/* as OpenSSL does */
		return ILLEGAL_PARAMETER;
	case PH_REASON_BAD_NAME:
	case PH_REASON_BAD_PORT:
	case PH_REASON_BAD_SUFFIX:
	case PH_REASON_SECOND_DASH:
	case PH_REASON_LABEL_TOO_LONG:
	case PH_REASON_TRAILING_DOT:
	case PH_REASON_OTHER_DOMAIN:
	case PH_REASON_UNKNOWN_ID:
		return UNRECOGNIZED_NAME;
	case PH_REASON_NO_HEALTHY:
	case PH_REASON_MANAGER_STALE:
	case PH_REASON_CVM_NO_TLS:
	case PH_REASON_NO_INSTANCE_ANSWERED:
	case PH_REASON_NO_MEMORY:
	case PH_REASON_APP_LIMIT:
	case PH_REASON_SOURCE_LIMIT:
	case PH_REASON_NO_CERTIFICATE:
		return INTERNAL_ERROR;
	default:
		return NO_ALERT;
	}
}

size_t ph_alert_write(enum ph_reason reason, uint8_t ret_record[PH_ALERT_LEN])
{
	enum description description = describe(reason);

	if (description == NO_ALERT)
		return 0;
	ret_record[0] = 21;			/* content type: alert */
	ret_record[1] = 3;			/* 0x0303 from every server (RFC 8446, section 5.1) */
	ret_record[2] = 3;
	ret_record[3] = 0;			/* length */
	ret_record[4] = 2;
	ret_record[5] = 2;			/* level: fatal */
	ret_record[6] = description;
	return PH_ALERT_LEN;
}
