/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ktap - test results in the kernel's form of TAP (Documentation/dev-tools/ktap.rst).
 *
 * The plan is printed at the end, when the number of rows is known; a program that dies before it has no plan, which
 * the runner takes for a failure.
 */
#ifndef KTAP_H
#define KTAP_H

#include <stdarg.h>
#include <stdio.h>

static int ktap_count, ktap_failed;

static inline void ktap_header(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n");
}

/* One row, one fact, one name. Return: @passed. */
__attribute__((format(printf, 2, 3))) static inline int ktap_ok(int passed, const char *format, ...)
{
	va_list args;

	printf("%sok %d - ", passed ? "" : "not ", ++ktap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	ktap_failed += !passed;
	return passed;
}

static inline void ktap_skip(const char *name, const char *why)
{
	printf("ok %d - %s # SKIP %s\n", ++ktap_count, name, why);
}

/* Return: the exit status of a kselftest: 0 passed, 1 failed. */
static inline int ktap_end(void)
{
	printf("1..%d\n", ktap_count);
	return ktap_failed ? 1 : 0;
}

#endif
