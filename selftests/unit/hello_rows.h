/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hello_rows - the vectors: streams, and what has to be made of them.
 */
#ifndef HELLO_ROWS_H
#define HELLO_ROWS_H

#include "hellos.h"

#define X10(x) x x x x x x x x x x
#define LABEL63 X10("abcdef") "abc"
#define NAME253 LABEL63 "." LABEL63 "." LABEL63 "." X10("abcdef") "a"
#define PAD(bytes) "0015 2( " bytes " ) "

static const struct hello_row hello_rows[] = {
	/* Real clients. */
	{ "chromium", "@chromium", 0, PH_HELLO_OK, SERVER },
	{ "openssl", "@openssl", 0, PH_HELLO_OK, SERVER },
	{ "openssl-tls12", "@openssl-tls12", 0, PH_HELLO_OK, SERVER },
	{ "gnutls", "@gnutls", 0, PH_HELLO_OK, SERVER },
	{ "curl", "@curl", 0, PH_HELLO_OK, SERVER },

	/* Read right. */
	{ "smallest", RECORD(MESSAGE("0303 55*32 1( ) 2( 1301 ) 1( 00 ) 2( " SNI ")")), 0, PH_HELLO_OK, SERVER },
	{ "name-first", HELLO(SNI EMS VERSIONS), 0, PH_HELLO_OK, SERVER },
	{ "name-in-the-middle", HELLO(EMS SNI VERSIONS), 0, PH_HELLO_OK, SERVER },
	{ "name-last", HELLO(EMS VERSIONS SNI), 0, PH_HELLO_OK, SERVER },
	{ "upper-case", HELLO(NAMES(HOST("APP1-8443S.Phala.TEST"))), 0, PH_HELLO_OK, SERVER },
	{ "case-only-of-letters", HELLO(NAMES(HOST("@[`{AZaz09"))), 0, PH_HELLO_OK, "@[`{azaz09" },
	{ "name-of-one", HELLO(NAMES(HOST("a"))), 0, PH_HELLO_OK, "a" },
	{ "name-of-253", HELLO(NAMES(HOST(NAME253))), 0, PH_HELLO_OK, NAME253 },
	{ "name-with-high-bytes", HELLO(NAMES(HOST("caf\xc3\xa9.test"))), 0, PH_HELLO_OK, "caf\xc3\xa9.test" },
	{ "name-with-trailing-dot", HELLO(NAMES(HOST("app.phala.test."))), 0, PH_HELLO_OK, "app.phala.test." },
	{ "grease", RECORD(MESSAGE("0303 55*32 1( 77*32 ) 2( 0a0a 1301 ) 1( 00 ) 2( 1a1a 2( ) " SNI "fafa 2( 00 ) )")),
	  0, PH_HELLO_OK, SERVER },
	{ "ech", HELLO("fe0d 2( 00 0001 0001 3b 2( 42*32 ) 2( 43*144 ) ) " SNI), 0, PH_HELLO_OK, SERVER },
	{ "unknown-extension", HELLO("ffff 2( 99*700 ) " SNI "0100 2( 0000 ) "), 0, PH_HELLO_OK, SERVER },
	{ "same-extension-twice", HELLO(EMS SNI EMS), 0, PH_HELLO_OK, SERVER },
	{ "session-id-empty", RECORD(MESSAGE("0303 55*32 1( ) 2( 1301 ) 1( 00 ) 2( " SNI EMS ")")),
	  0, PH_HELLO_OK, SERVER },
	{ "two-compression-methods", RECORD(MESSAGE("0301 55*32 1( ) 2( 0035 ) 1( 01 00 ) 2( " SNI ")")),
	  0, PH_HELLO_OK, SERVER },
	{ "record-minor-4", "16 0304 2( " MESSAGE(START "2( " SNI ")") ")", 0, PH_HELLO_OK, SERVER },
	{ "record-minor-0", "16 0300 2( " MESSAGE(START "2( " SNI ")") ")", 0, PH_HELLO_OK, SERVER },
	{ "early-data-behind", HELLO(SNI) "14 0303 0001 01 17 0303 2( 66*100 )", 0, PH_HELLO_OK, SERVER },
	{ "anything-behind", HELLO(SNI) "00*20", 0, PH_HELLO_OK, SERVER },
	{ "message-of-16384", HELLO(SNI PAD("00*16269")), 0, PH_HELLO_OK, SERVER },

	/* Over TLS records. */
	{ "records-of-1", HELLO(EMS SNI VERSIONS), 1, PH_HELLO_OK, SERVER },
	{ "records-of-2", HELLO(EMS SNI VERSIONS), 2, PH_HELLO_OK, SERVER },
	{ "records-of-7", HELLO(EMS SNI VERSIONS), 7, PH_HELLO_OK, SERVER },
	{ "records-of-64", HELLO(EMS SNI VERSIONS), 64, PH_HELLO_OK, SERVER },
	{ "chromium-in-records-of-100", "@chromium", 100, PH_HELLO_OK, SERVER },
	{ "chromium-in-records-of-1", "@chromium", 1, PH_HELLO_OK, SERVER },
	{ "first-record-ends-before-extensions",
	  "16 0301 2( 01 00005d 0303 55*32 00 0002 1301 01 00 ) 16 0301 2( 0032 ffff 0010 88*16 "
	  "0000 001a 0018 00 0015 '" SERVER "' )",
	  0, PH_HELLO_OK, SERVER },
	{ "first-record-looks-empty",
	  "16 0301 2( 01 00006a 0303 55*32 00 0002 1301 01 00 003f 001d 0021 00*16 ) 16 0301 2( 00*17 "
	  "0000 0016 0014 00 0011 'app1-s.phala.test' ) ",
	  0, PH_HELLO_OK, "app1-s.phala.test" },
	{ "name-cut-by-record",
	  "16 0301 2( 01 000045 0303 55*32 00 0002 1301 01 00 001a 0000 0016 0014 00 0011 'app1-' ) "
	  "16 0301 2( 's.phala.test' )",
	  0, PH_HELLO_OK, "app1-s.phala.test" },

	/* No name, said only when all was read. */
	{ "no-extensions", RECORD(MESSAGE(START)), 0, PH_HELLO_NO_SNI, NULL },
	{ "no-extensions-tls-1.0", "16 0300 2( 01 3( 0301 55*32 1( ) 2( 0035 002f 000a ) 1( 00 ) ) )",
	  0, PH_HELLO_NO_SNI, NULL },
	{ "extensions-empty", HELLO(""), 0, PH_HELLO_NO_SNI, NULL },
	{ "extensions-without-name", HELLO(EMS VERSIONS PAD("00*20")), 0, PH_HELLO_NO_SNI, NULL },
	{ "name-only-inside-padding", HELLO(PAD(SNI)), 0, PH_HELLO_NO_SNI, NULL },
	{ "no-name-in-records-of-1", HELLO(EMS VERSIONS), 1, PH_HELLO_NO_SNI, NULL },

	/* Not TLS. */
	{ "http", "'GET / HTTP/1.1' 0d0a", 0, PH_HELLO_NOT_TLS, NULL },
	{ "ssh", "'SSH-2.0-OpenSSH_9.2' 0d0a", 0, PH_HELLO_NOT_TLS, NULL },
	{ "sslv2-hello", "80 2e 01 0301 0015 0000 0010 010080 00*40", 0, PH_HELLO_NOT_TLS, NULL },
	{ "postgresql-sslrequest", "0000 0008 04d2 162f", 0, PH_HELLO_NOT_TLS, NULL },
	{ "proxy-protocol", "'PROXY TCP4 192.0.2.1 192.0.2.2 1 2' 0d0a", 0, PH_HELLO_NOT_TLS, NULL },
	{ "alert-first", "15 0301 0002 0228", 0, PH_HELLO_NOT_TLS, NULL },
	{ "application-data-first", "17 0303 0005 00*5", 0, PH_HELLO_NOT_TLS, NULL },
	{ "record-major-2", "16 0200 0005 00*5", 0, PH_HELLO_NOT_TLS, NULL },
	{ "record-major-4", "16 0401 0005 00*5", 0, PH_HELLO_NOT_TLS, NULL },
	{ "dtls", "16 fefd 00*8", 0, PH_HELLO_NOT_TLS, NULL },

	/* Records that break the rules. */
	{ "record-empty-first", "16 0301 0000 " HELLO(SNI), 0, PH_HELLO_MALFORMED, NULL },
	{ "record-empty-in-the-middle", "16 0301 2( 01 00005d 0303 ) 16 0301 0000", 0, PH_HELLO_MALFORMED, NULL },
	{ "record-too-long", "16 0301 4001 01", 0, PH_HELLO_MALFORMED, NULL },
	{ "record-of-65535", "16 0301 ffff 01", 0, PH_HELLO_MALFORMED, NULL },
	{ "alert-in-the-middle", "16 0301 2( 01 00005d 0303 ) 15 0301 0002 0228", 0, PH_HELLO_MALFORMED, NULL },
	{ "application-data-in-the-middle", "16 0301 2( 01 00005d 0303 ) 17 0301 0003 00*3",
	  0, PH_HELLO_MALFORMED, NULL },
	{ "major-changes-in-the-middle", "16 0301 2( 01 00005d 0303 ) 16 0201 0003 00*3", 0, PH_HELLO_MALFORMED, NULL },
	{ "byte-behind-message", RECORD(MESSAGE(START "2( " SNI " )") "00"), 0, PH_HELLO_MALFORMED, NULL },
	{ "byte-behind-message-no-name", RECORD(MESSAGE(START) "00"), 0, PH_HELLO_MALFORMED, NULL },
	{ "record-one-too-many", "16 0301 2+1( " MESSAGE(START) ")", 0, PH_HELLO_MALFORMED, NULL },
	{ "record-one-too-few", "16 0301 2-1( " MESSAGE(START) ")", 0, PH_HELLO_MALFORMED, NULL },
	{ "message-one-too-many", RECORD("01 3+1( " START "2( " SNI ") )"), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-one-too-many-no-extensions", RECORD("01 3+1( " START ")"), 0, PH_HELLO_MALFORMED, NULL },
	{ "second-message-in-record", RECORD(MESSAGE(START "2( " SNI " )") MESSAGE(START "2( " SNI " )")),
	  0, PH_HELLO_MALFORMED, NULL },

	/* Messages that break the rules. */
	{ "server-hello", "16 0303 2( 02 3( 0303 55*32 1( ) 1301 00 ) )", 0, PH_HELLO_MALFORMED, NULL },
	{ "hello-request", "16 0303 2( 00 3( ) )", 0, PH_HELLO_MALFORMED, NULL },
	{ "message-type-2", RECORD("02 3( " START "2( " SNI ") )"), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-type-0", RECORD("00 3( " START "2( " SNI ") )"), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-empty", RECORD(MESSAGE("")), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-ends-in-random", RECORD(MESSAGE("0303 55*31")), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-ends-behind-random", RECORD(MESSAGE("0303 55*32")), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-ends-behind-session-id", RECORD(MESSAGE("0303 55*32 1( 77*32 )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "message-ends-behind-cipher-suites", RECORD(MESSAGE("0303 55*32 1( 77*32 ) 2( 1301 )")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "message-ends-in-extensions-length", RECORD(MESSAGE(START "00")), 0, PH_HELLO_MALFORMED, NULL },
	{ "session-id-of-33", RECORD(MESSAGE("0303 55*32 1( 77*33 ) 2( 1301 ) 1( 00 ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "session-id-one-too-many-53-bytes", RECORD(MESSAGE("0303 55*32 1+1( 77 ) 2( 1301 1302 ) 1( 00 )")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "session-id-one-too-many-and-near-miss",	/* read one byte later, all fits but the last byte */
	  RECORD(MESSAGE("0303 55*32 1+1( ) 00 0002 1301 01")), 0, PH_HELLO_MALFORMED, NULL },
	{ "session-id-one-too-many", RECORD(MESSAGE("0303 55*32 1+1( 77*31 ) 2( 1301 ) 1( 00 ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "session-id-one-too-few", RECORD(MESSAGE("0303 55*32 1-1( 77*32 ) 2( 1301 ) 1( 00 ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "cipher-suites-none", RECORD(MESSAGE("0303 55*32 1( ) 2( ) 1( 00 ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "cipher-suites-odd", RECORD(MESSAGE("0303 55*32 1( ) 2( 1301 13 ) 1( 00 ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "cipher-suites-of-1", RECORD(MESSAGE("0303 55*32 1( ) 2( 13 ) 1( 00 ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "compression-none", RECORD(MESSAGE("0303 55*32 1( ) 2( 1301 ) 1( ) 2( " SNI ")")),
	  0, PH_HELLO_MALFORMED, NULL },
	{ "extensions-one-too-many", RECORD(MESSAGE(START "2+1( " SNI ")")), 0, PH_HELLO_MALFORMED, NULL },
	{ "extensions-one-too-few", RECORD(MESSAGE(START "2-1( " SNI ")")), 0, PH_HELLO_MALFORMED, NULL },
	{ "byte-behind-extensions", RECORD(MESSAGE(START "2( " SNI ") 00")), 0, PH_HELLO_MALFORMED, NULL },
	{ "bytes-in-place-of-an-extension", HELLO(SNI "000000"), 0, PH_HELLO_MALFORMED, NULL },
	{ "last-extension-one-too-many", HELLO(SNI "0017 2+1( )"), 0, PH_HELLO_MALFORMED, NULL },
	{ "last-extension-one-too-few", HELLO(SNI "0015 2-1( 00 )"), 0, PH_HELLO_MALFORMED, NULL },
	{ "extension-overshoots-behind-name", HELLO(SNI "0015 ffff 00*20"), 0, PH_HELLO_MALFORMED, NULL },

	/* The extension server_name. */
	{ "server-name-empty", HELLO("0000 2( ) " EMS), 0, PH_HELLO_MALFORMED, NULL },
	{ "server-name-overshoots-message", HELLO(EMS "0000 0019"), 0, PH_HELLO_MALFORMED, NULL },
	{ "list-empty", HELLO(NAMES("")), 0, PH_HELLO_MALFORMED, NULL },
	{ "list-one-too-many", HELLO("0000 2( 2+1( " HOST(SERVER) " ) ) " EMS), 0, PH_HELLO_MALFORMED, NULL },
	{ "list-one-too-few", HELLO("0000 2( 2-1( " HOST(SERVER) " ) ) " EMS), 0, PH_HELLO_MALFORMED, NULL },
	{ "byte-behind-list", HELLO("0000 2( 2( " HOST(SERVER) " ) 00 ) " EMS), 0, PH_HELLO_MALFORMED, NULL },
	{ "byte-behind-name", HELLO(NAMES(HOST(SERVER) "00")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-one-too-many", HELLO(NAMES("00 2+1( '" SERVER "' )") EMS), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-one-too-few", HELLO(NAMES("00 2-1( '" SERVER "' )") EMS), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-empty", HELLO(NAMES("00 2( )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-of-254", HELLO(NAMES(HOST(NAME253 "a"))), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-with-zero", HELLO(NAMES("00 2( 'app' 00 '.phala.test' )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-ends-in-zero", HELLO(NAMES("00 2( '" SERVER "' 00 )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-with-newline", HELLO(NAMES("00 2( 'app' 0a '.phala.test' )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-with-delete", HELLO(NAMES("00 2( 'app' 7f '.phala.test' )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-type-1", HELLO(NAMES("01 2( '" SERVER "' )")), 0, PH_HELLO_MALFORMED, NULL },
	{ "name-type-255-behind-name", HELLO(NAMES(HOST(SERVER) "ff 2( 'x' )")), 0, PH_HELLO_MALFORMED, NULL },

	/* More than one name. */
	{ "two-names", HELLO(NAMES(HOST(SERVER) HOST("other.test"))), 0, PH_HELLO_AMBIGUOUS, NULL },
	{ "two-equal-names", HELLO(NAMES(HOST(SERVER) HOST(SERVER))), 0, PH_HELLO_AMBIGUOUS, NULL },
	{ "second-name-empty", HELLO(NAMES(HOST(SERVER) "00 2( )")), 0, PH_HELLO_AMBIGUOUS, NULL },
	{ "two-extensions", HELLO(SNI EMS NAMES(HOST("other.test"))), 0, PH_HELLO_AMBIGUOUS, NULL },
	{ "two-equal-extensions", HELLO(SNI SNI), 0, PH_HELLO_AMBIGUOUS, NULL },
	{ "second-extension-empty", HELLO(SNI "0000 2( ) "), 0, PH_HELLO_AMBIGUOUS, NULL },
	{ "two-names-in-records-of-1", HELLO(NAMES(HOST(SERVER) HOST("other.test"))), 1, PH_HELLO_AMBIGUOUS, NULL },

	/* Too long. */
	{ "message-of-16385", "16 0301 4000 01 003ffd 0303 55*32", 0, PH_HELLO_TOO_LONG, NULL },
	{ "message-of-16-mib", "16 0301 4000 01 ffffff 0303 55*32", 0, PH_HELLO_TOO_LONG, NULL },
	{ "message-of-16385-with-name", HELLO(SNI PAD("00*16270")), 16000, PH_HELLO_TOO_LONG, NULL },
	{ "stream-of-32768", HELLO(SNI PAD("00*16268")), 5, PH_HELLO_OK, SERVER },
	{ "stream-of-32769", HELLO(SNI PAD("00*16269")), 5, PH_HELLO_TOO_LONG, NULL },
	{ "stream-of-records-of-1", HELLO(SNI PAD("00*16269")), 1, PH_HELLO_TOO_LONG, NULL },

	/* Not all there yet. */
	{ "no-byte", "", 0, PH_HELLO_MORE, NULL },
	{ "first-byte", "16", 0, PH_HELLO_MORE, NULL },
	{ "record-header", "16 0301 0100", 0, PH_HELLO_MORE, NULL },
	{ "first-record-of-two", "16 0301 2( 01 000060 0303 55*32 00 0002 1301 01 00 )", 0, PH_HELLO_MORE, NULL },
};

#define HELLO_ROW_COUNT (sizeof(hello_rows) / sizeof(hello_rows[0]))

#endif
