// SPDX-License-Identifier: Apache-2.0
/*
 * insns - what the verifier makes of each BPF program, against a budget.
 *
 *   insns BUDGETFILE OBJECT...
 *
 * Loads every object as it is, attaches and pins nothing, and prints for each program how many instructions the
 * verifier walked. The budget file has "program instructions" lines; # begins a comment. A program over its budget,
 * without one, or refused is a failure, exit status 1. Where programs may not be loaded at all, says so, exit status 4:
 * building needs no privilege, but what was not looked at is not within its budget either.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUDGETS_MAX 64
#define PROGRAM_SIZE 64
#define EXIT_NOT_CHECKED 4

struct budget {
	char program[PROGRAM_SIZE];
	unsigned int insns;
};

static struct budget budgets[BUDGETS_MAX];
static size_t budget_count;

/* Return: 0 or -errno; what is wrong is printed. */
static int read_budgets(const char *path)
{
	FILE *file = fopen(path, "re");
	char line[256];
	int number = 0, err = 0;

	if (!file) {
		err = -errno;
		fprintf(stderr, "%s: %s\n", path, strerror(-err));
		return err;
	}
	while (!err && fgets(line, sizeof(line), file)) {
		struct budget *budget = &budgets[budget_count];
		char rest[2];
		int fields;

		number++;
		line[strcspn(line, "#\n")] = 0;
		if (!line[strspn(line, " \t")])
			continue;
		if (budget_count == BUDGETS_MAX) {
			fprintf(stderr, "%s:%d: more than %d programs\n", path, number, BUDGETS_MAX);
			err = -E2BIG;
			break;
		}
		fields = sscanf(line, "%63s %u %1s", budget->program, &budget->insns, rest);
		if (fields != 2) {
			fprintf(stderr, "%s:%d: not \"program instructions\"\n", path, number);
			err = -EINVAL;
		}
		budget_count++;
	}
	fclose(file);
	return err;
}

static const struct budget *find_budget(const char *program)
{
	for (size_t i = 0; i < budget_count; i++)
		if (!strcmp(budgets[i].program, program))
			return &budgets[i];
	return NULL;
}

/* Return: 1 when the program is within its budget. */
static int judge(const struct bpf_program *program)
{
	const char *name = bpf_program__name(program);
	const struct budget *budget = find_budget(name);
	struct bpf_prog_info info = { 0 };
	__u32 size = sizeof(info);

	if (bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &size)) {
		fprintf(stderr, "%s: no information from the kernel: %s\n", name, strerror(errno));
		return 0;
	}
	if (!budget) {
		printf("%-24s %7u instructions verified, no budget\n", name, info.verified_insns);
		return 0;
	}
	printf("%-24s %7u instructions verified, budget %u%s\n", name, info.verified_insns, budget->insns,
	       info.verified_insns > budget->insns ? ": over" : "");
	return info.verified_insns <= budget->insns;
}

/* Return: 1 all within budget, 0 not, -EPERM when this process may not load programs. */
static int judge_object(const char *path)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program;
	struct bpf_map *map;
	char text[128];
	int err, good = 1;

	if (!object) {
		libbpf_strerror(errno, text, sizeof(text));
		fprintf(stderr, "%s: %s\n", path, text);
		return 0;
	}
	bpf_object__for_each_map(map, object)
		bpf_map__set_pin_path(map, NULL);
	err = bpf_object__next_program(object, NULL) ? bpf_object__load(object) : 0;
	if (err == -EPERM) {
		good = err;
	} else if (err) {
		libbpf_strerror(err, text, sizeof(text));
		fprintf(stderr, "%s: not loaded: %s\n", path, text);
		good = 0;
	} else {
		bpf_object__for_each_program(program, object)
			good &= judge(program);
	}
	bpf_object__close(object);
	return good;
}

/* libbpf's words about an object, the verifier's log among them: kept until it is known whether they matter. */
static FILE *words_file;

__attribute__((format(printf, 2, 0)))
static int keep_words(enum libbpf_print_level level, const char *format, va_list args)
{
	return level <= LIBBPF_WARN ? vfprintf(words_file, format, args) : 0;
}

int main(int argc, char **argv)
{
	int status = 0, good = 1;

	if (argc < 2) {
		fprintf(stderr, "usage: insns BUDGETFILE OBJECT...\n");
		return 2;
	}
	if (read_budgets(argv[1]))
		return 1;
	for (int i = 2; i < argc && good != -EPERM; i++) {
		char *words = NULL;
		size_t size = 0;

		words_file = open_memstream(&words, &size);
		if (!words_file) {
			perror("insns");
			return 1;
		}
		libbpf_set_print(keep_words);
		good = judge_object(argv[i]);
		libbpf_set_print(NULL);
		fclose(words_file);
		if (!good) {
			fputs(words, stderr);
			status = 1;
		}
		free(words);
	}
	if (good == -EPERM) {
		printf("BPF programs not checked: loading them needs CAP_BPF and CAP_NET_ADMIN\n");
		return status ? status : EXIT_NOT_CHECKED;
	}
	return status;
}
