// SPDX-License-Identifier: Apache-2.0
/*
 * parse.bpf: whatever BPF says of a stream, userspace says too; on the vectors and on a million mutated hellos.
 *
 *   test_parse_bpf [MUTATIONS [SEED]]      also PHALA_MUTATIONS and PHALA_SEED in the environment
 *
 * BPF gets each stream as packets cut at random, userspace in one piece. BPF may leave a stream longer than
 * PH_HELLO_STREAM_BPF_MAX to a worker (PH_REASON_DECLINED_LONG) and nothing else.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../bpf/parse.h"
#include "hello_rows.h"
#include "ktap.h"
#include "parse.skel.h"

#define MUTATIONS 1000000
#define ETHERNET 14
#define PACKET_MAX 3000			/* bytes of payload; BPF_PROG_TEST_RUN takes no more than about 3.6 KiB */
#define STREAM_MAX 9000			/* bytes offered: some more than BPF collects */
#define DISAGREEMENTS_MAX 5		/* then it is pointless to go on */

static struct ph_parse *parse;
static int program_fd;
static uint8_t packet[ETHERNET + PACKET_MAX] = { [12] = 0x88, [13] = 0xb5 };	/* IEEE 802 local experiments */

static uint64_t random_state;

/* splitmix64 */
static uint64_t random_bits(void)
{
	uint64_t z = (random_state += 0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint32_t below(uint32_t limit)
{
	return (random_bits() >> 32) * limit >> 32;
}

/* Runs the program on one packet. Return: nanoseconds a run, or -1. */
static int64_t run_packet(const uint8_t *payload, uint32_t len, uint32_t repeat)
{
	union bpf_attr attr = { 0 };

	memcpy(packet + ETHERNET, payload, len);
	attr.test.prog_fd = program_fd;
	attr.test.data_in = (uintptr_t)packet;
	attr.test.data_size_in = ETHERNET + len;
	attr.test.repeat = repeat;
	if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)) || (int)attr.test.retval != -1)
		return -1;
	return attr.test.duration;
}

struct answer {
	struct ph_hello hello;
	enum ph_name_verdict name_verdict;	/* if the hello is PH_HELLO_OK */
	struct ph_name name;			/* if that is PH_NAME_OK */
};

/* By enum ph_name_verdict. */
static const char *const name_words[] = {
	"ok", "bad", "bad-port", "bad-suffix", "second-dash", "label-too-long", "trailing-dot", "no-domain"
};

#define NAME_WORD_COUNT (sizeof(name_words) / sizeof(name_words[0]))

static uint64_t hello_counts[HELLO_WORD_COUNT], name_counts[NAME_WORD_COUNT], declined, packets;

static void ask_userspace(const uint8_t *stream, uint32_t len, struct answer *answer)
{
	memset(answer, 0, sizeof(*answer));
	hello_counts[ph_hello_walk(&answer->hello, stream, len)]++;
	if (answer->hello.verdict != PH_HELLO_OK)
		return;
	answer->name_verdict = ph_name_parse(answer->hello.name, answer->hello.name_len, &answer->name);
	name_counts[answer->name_verdict]++;
}

/* What BPF said is in *parse. */
static int is_same(const struct answer *want)
{
	if (parse->hello_verdict != want->hello.verdict || memcmp(&parse->hello, &want->hello, sizeof(want->hello)))
		return 0;
	if (want->hello.verdict != PH_HELLO_OK)
		return 1;
	return parse->name_verdict == want->name_verdict &&
	       (want->name_verdict != PH_NAME_OK || !memcmp(&parse->name.found, &want->name, sizeof(want->name)));
}

/* Return: 0 when they agree, 1 when not, -1 when BPF could not be asked. */
static int compare(const uint8_t *stream, uint32_t len, int cut)
{
	struct answer want;
	uint32_t at = 0;

	ask_userspace(stream, len, &want);
	parse->fresh = 1;
	do {
		uint32_t count = len - at < PACKET_MAX ? len - at : PACKET_MAX;

		if (cut && below(2))
			count = below(count + 1);
		if (run_packet(stream + at, count, 1) < 0)
			return -1;
		packets++;
		parse->fresh = 0;
		at += count;
	} while (at < len && parse->hello_verdict == PH_HELLO_MORE);
	if (parse->reason == PH_REASON_COUNT)
		return !is_same(&want);
	declined++;
	return parse->reason != PH_REASON_DECLINED_LONG || parse->hello_verdict != PH_HELLO_MORE ||
	       want.hello.at <= PH_HELLO_STREAM_BPF_MAX;
}

static void print_hex(const uint8_t *stream, uint32_t len)
{
	printf("# ");
	for (uint32_t i = 0; i < len; i++)
		printf("%02x", stream[i]);
	printf("\n");
}

/* What to mutate: the vectors with what is known of their lengths. */
static struct hello_bytes *bases;
static uint32_t base_count, chromium;

static int make_bases(void)
{
	bases = calloc(HELLO_ROW_COUNT, sizeof(*bases));
	if (!bases)
		return -1;
	for (size_t i = 0; i < HELLO_ROW_COUNT; i++) {
		if (hello_make(&bases[i], &hello_rows[i]))
			return -1;
		if (!strcmp(hello_rows[i].name, "chromium"))
			chromium = i;
	}
	base_count = HELLO_ROW_COUNT;
	return 0;
}

static void copy(struct hello_bytes *out, const struct hello_bytes *in)
{
	memcpy(out, in, offsetof(struct hello_bytes, bytes) + in->len);
}

static void insert(struct hello_bytes *out, uint32_t at, const uint8_t *bytes, uint32_t count)
{
	if (out->len + count > sizeof(out->bytes))
		return;
	memmove(out->bytes + at + count, out->bytes + at, out->len - at);
	memcpy(out->bytes + at, bytes, count);
	out->len += count;
}

static void delete(struct hello_bytes *out, uint32_t at, uint32_t count)
{
	memmove(out->bytes + at, out->bytes + at + count, out->len - at - count);
	out->len -= count;
}

static void add_to_length(struct hello_bytes *out, const struct hello_length *length, int difference)
{
	if (length->at + length->width <= out->len)
		hello_set_length(out->bytes + length->at, length->width,
				 hello_get_length(out->bytes + length->at, length->width) + difference);
}

/*
 * Doubles an extension, server_name as likely as all others together, with every length right. Lengths 0, 1 and 5 of
 * a well-formed hello are those of record, message and extensions; the extensions' own follow.
 */
static void double_extension(struct hello_bytes *out)
{
	uint8_t extension[2048];
	uint32_t at = 0, len;

	hello_find_lengths(out);
	for (uint32_t tries = 0; tries < 8; tries++) {
		const struct hello_length *length;

		if (out->length_count < 7)
			return;
		length = &out->lengths[6 + below(out->length_count - 6)];
		if (length->width != 2 || length->at < 2)
			continue;
		at = length->at - 2;
		if (!hello_get_length(out->bytes + at, 2) || below(4) == 0)
			break;
	}
	len = 4 + hello_get_length(out->bytes + at + 2, 2);
	if (!at || at + len > out->len || len > sizeof(extension))
		return;
	memcpy(extension, out->bytes + at, len);
	add_to_length(out, &out->lengths[0], len);
	add_to_length(out, &out->lengths[1], len);
	add_to_length(out, &out->lengths[5], len);
	insert(out, below(2) ? at : out->len, extension, len);
}

/* In records of sizes that vary, some of them 0. */
static void cut_records(struct hello_bytes *out)
{
	static struct hello_bytes in;
	uint32_t at = 5, most = 1 + below(below(2) ? 20 : 600);

	copy(&in, out);
	out->len = 0;
	while (at < in.len && out->len < STREAM_MAX) {
		uint32_t count = below(200) ? 1 + below(most) : 0;

		if (count > in.len - at)
			count = in.len - at;
		hello_put(out, 0x16, 1);
		hello_put(out, 0x03, 2);
		hello_put(out, count >> 8, 1);
		hello_put(out, count & 0xff, 1);
		memcpy(out->bytes + out->len, in.bytes + at, count);
		out->len += count;
		at += count;
	}
}

/* A name that is near the grammar of name.h, on one side or the other. */
static uint32_t make_name(char *name)
{
	static const char id[] = "abcdefghijklmnopqrstuvwxyz0123456789ABCXYZsgsg";
	static const char near[] = "-.sgSG019_+ -:/@[`{~x\x80\xff";
	static const char *const bases_of_domains[] = { "phala.test", "a.b.c", "x", "PHALA.test", ".", "phala.test." };
	uint32_t len = 0, count = below(10) ? 1 + below(20) : below(70);

	for (uint32_t i = 0; i < count; i++)
		name[len++] = id[below(sizeof(id) - 1)];
	if (below(4)) {
		name[len++] = '-';
		switch (below(6)) {
		case 0:
			break;
		case 1:
			len += sprintf(name + len, "%u", 65530 + below(12));
			break;
		case 2:
			len += sprintf(name + len, "%0*u", 1 + below(7), below(70000));
			break;
		default:
			len += sprintf(name + len, "%u", below(66000));
			break;
		}
		for (uint32_t i = below(3) ? below(2) : below(4); i; i--)
			name[len++] = below(10) ? "sgSG"[below(4)] : near[below(sizeof(near) - 1)];
		if (!below(20))
			name[len++] = '-';
	}
	if (below(10))
		len += sprintf(name + len, ".%s", bases_of_domains[below(6)]);
	for (uint32_t i = below(3) ? 0 : 1 + below(3); i && len; i--)
		name[below(len)] = below(2) ? near[below(sizeof(near) - 1)] : id[below(sizeof(id) - 1)];
	if (!below(100))
		len = len ? below(len) : 0;
	return len;
}

/* A hello of our own around a generated name. */
static void make_named(struct hello_bytes *out)
{
	struct hello_length record, message, extensions, extension, list, entry;
	char name[256];
	uint32_t len = make_name(name), before = below(4), behind = below(4);

	hello_write(out, "16 0301");
	record = hello_open(out, 2);
	hello_put(out, 1, 1);
	message = hello_open(out, 3);
	hello_put(out, 3, 2);
	hello_put(out, below(256), 32);
	hello_close(out, hello_open(out, 1), 0);
	hello_put(out, 0, 1);
	hello_put(out, 2, 1);
	hello_put(out, 0x13, 2);
	hello_put(out, 1, 1);
	hello_put(out, 0, 1);
	extensions = hello_open(out, 2);
	for (uint32_t i = 0; i <= before + behind; i++) {
		hello_put(out, 0, 1);
		hello_put(out, i == before ? 0 : 1 + below(100), 1);
		extension = hello_open(out, 2);
		if (i == before) {
			list = hello_open(out, 2);
			hello_put(out, 0, 1);
			entry = hello_open(out, 2);
			for (uint32_t c = 0; c < len; c++)
				hello_put(out, (uint8_t)name[c], 1);
			hello_close(out, entry, 0);
			hello_close(out, list, 0);
		} else {
			hello_put(out, below(256), below(40));
		}
		hello_close(out, extension, 0);
	}
	hello_close(out, extensions, 0);
	hello_close(out, message, 0);
	hello_close(out, record, 0);
}

/* Puts off the end of the hello, or its name, behind what BPF collects. */
static void pad(struct hello_bytes *out)
{
	static const uint8_t zeros[8000];
	uint32_t count = 1 + below(sizeof(zeros) - 4), at;
	uint8_t header[4] = { 0, 21, count >> 8, count & 0xff };

	hello_find_lengths(out);
	if (out->length_count < 6)
		return;
	at = below(2) ? out->lengths[5].at + 2 : out->len;
	if (at > out->len)
		return;
	insert(out, at, zeros, count);
	insert(out, at, header, sizeof(header));
	add_to_length(out, &out->lengths[0], count + 4);
	add_to_length(out, &out->lengths[1], count + 4);
	add_to_length(out, &out->lengths[5], count + 4);
}

static void mutate(struct hello_bytes *out)
{
	uint8_t noise[16];
	uint32_t i;

	if (below(3) == 0)
		make_named(out);
	else
		copy(out, &bases[below(base_count)]);
	if (!out->len)
		return;
	for (uint32_t rounds = below(3); rounds && out->len; rounds--) {
		switch (below(10)) {
		case 0:
			for (i = 1 + below(3); i; i--)
				out->bytes[below(out->len)] ^= 1 << below(8);
			break;
		case 1:
			out->bytes[below(out->len < 100 ? out->len : 100)] = below(256);
			break;
		case 2:
			out->len = below(out->len + 1);
			break;
		case 3:
		case 4:
			if (out->length_count)
				add_to_length(out, &out->lengths[below(out->length_count)],
					      below(4) ? (int)below(2) * 2 - 1 : (int)below(65536));
			break;
		case 5:
			for (i = 0; i < sizeof(noise); i++)
				noise[i] = random_bits();
			insert(out, below(out->len + 1), noise, 1 + below(sizeof(noise)));
			break;
		case 6:
			i = below(out->len);
			delete(out, i, 1 + below(out->len - i < 16 ? out->len - i : 16));
			break;
		case 7:
			double_extension(out);
			break;
		case 8:
			pad(out);
			break;
		case 9:
			cut_records(out);
			break;
		}
	}
	if (out->len > STREAM_MAX)
		out->len = STREAM_MAX;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void test_mutations(uint64_t count)
{
	static struct hello_bytes mutated;
	uint64_t disagreed = 0, failed = 0, done;
	double begin = seconds();

	memset(hello_counts, 0, sizeof(hello_counts));
	memset(name_counts, 0, sizeof(name_counts));
	declined = packets = 0;
	for (done = 0; done < count && disagreed + failed < DISAGREEMENTS_MAX; done++) {
		int result;

		mutate(&mutated);
		result = compare(mutated.bytes, mutated.len, 1);
		if (!result)
			continue;
		disagreed += result > 0;
		failed += result < 0;
		printf("# stream %llu: BPF %s: verdict %u at %u, name %u, reason %u\n", (unsigned long long)done,
		       result < 0 ? strerror(errno) : "disagrees", parse->hello_verdict, parse->hello.at,
		       parse->name_verdict, parse->reason);
		print_hex(mutated.bytes, mutated.len);
	}
	printf("# %llu streams, %llu packets, %.1f s\n", (unsigned long long)done, (unsigned long long)packets,
	       seconds() - begin);
	ktap_ok(!failed && done == count, "%llu mutated hellos were all walked by BPF", (unsigned long long)count);
	ktap_ok(!disagreed, "%llu mutated hellos: BPF and userspace agree", (unsigned long long)count);
	for (uint32_t i = 0; i < HELLO_WORD_COUNT; i++)
		ktap_ok(hello_counts[i] > 0, "hello verdict %s occurred (%llu times)", hello_words[i],
			(unsigned long long)hello_counts[i]);
	for (uint32_t i = 0; i < NAME_WORD_COUNT; i++)
		ktap_ok(name_counts[i] > 0, "name verdict %s occurred (%llu times)", name_words[i],
			(unsigned long long)name_counts[i]);
	ktap_ok(declined > 0, "BPF left streams longer than it collects to a worker (%llu)",
		(unsigned long long)declined);
}

static void test_vectors(void)
{
	for (size_t i = 0; i < HELLO_ROW_COUNT; i++) {
		uint32_t len = bases[i].len < STREAM_MAX ? bases[i].len : STREAM_MAX;

		ktap_ok(!compare(bases[i].bytes, len, 0), "vector %s: BPF and userspace agree", hello_rows[i].name);
	}
}

static void test_speed(void)
{
	const struct hello_bytes *hello = &bases[chromium];
	uint8_t other[PACKET_MAX];
	int64_t whole, idle;

	parse->fresh = 1;
	whole = run_packet(hello->bytes, hello->len, 100000);
	memcpy(other, hello->bytes, hello->len);
	other[0] = 0x17;
	idle = run_packet(other, hello->len, 100000);
	printf("# chromium's hello: %lld ns a run; %lld ns when its first byte is not TLS\n", (long long)whole,
	       (long long)idle);
	ktap_ok(whole > 0 && idle >= 0, "chromium's hello, 100,000 times");
}

static uint64_t choose(int argc, char **argv, int index, const char *variable, uint64_t otherwise)
{
	const char *text = argc > index ? argv[index] : getenv(variable);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

static struct ph_parse_bpf *load(void)
{
	struct ph_parse_bpf *skeleton = ph_parse_bpf__open_and_load();
	size_t page = sysconf(_SC_PAGESIZE), size = (sizeof(*parse) + page - 1) / page * page;

	if (!skeleton)
		return NULL;
	program_fd = bpf_program__fd(skeleton->progs.ph_parse_packet);
	parse = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(skeleton->maps.ph_parse), 0);
	if (parse != MAP_FAILED)
		return skeleton;
	ph_parse_bpf__destroy(skeleton);
	return NULL;
}

int main(int argc, char **argv)
{
	struct ph_parse_bpf *skeleton;
	uint64_t count = choose(argc, argv, 1, "PHALA_MUTATIONS", MUTATIONS), seed;

	ktap_header();
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		seed = time(NULL);
	random_state = choose(argc, argv, 2, "PHALA_SEED", seed);
	printf("# seed %llu\n", (unsigned long long)random_state);
	skeleton = load();
	if (!skeleton && errno == EPERM) {
		ktap_skip("BPF and userspace agree", "loading BPF programs needs CAP_BPF");
		return ktap_end();
	}
	if (!ktap_ok(skeleton != NULL, "the program loads"))
		return ktap_end();
	if (ktap_ok(!make_bases(), "the vectors are there")) {
		test_vectors();
		test_mutations(count);
		test_speed();
	}
	free(bases);
	ph_parse_bpf__destroy(skeleton);
	return ktap_end();
}
