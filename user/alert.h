/* SPDX-License-Identifier: Apache-2.0 */
/*
 * alert - what a client is told when its connection is refused before TLS has begun.
 */
#ifndef PHALAD_ALERT_H
#define PHALAD_ALERT_H

#include <stddef.h>
#include <stdint.h>

#include <phala/reason.h>

#define PH_ALERT_LEN 7

/**
 * ph_alert_write() - a fatal alert, as the one record of the server's stream.
 *
 * Return: PH_ALERT_LEN, or 0 for reasons that TLS has no words for.
 */
size_t ph_alert_write(enum ph_reason reason, uint8_t ret_record[PH_ALERT_LEN]);

#endif
