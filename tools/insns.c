// SPDX-License-Identifier: Apache-2.0
/*
 * insns - what the verifier makes of each BPF program, against a budget.
 *
 *   insns BUDGETFILE OBJECT...
 *
 * Loads every object as it is, attaches and pins nothing, and prints for each program how many instructions the
 * verifier walked, and the stack of its deepest chain of calls as Linux 6.1 counts it, whichever kernel this one is: each
 * frame in steps of 32 bytes, where later kernels count in steps of 16. The budget file has "program instructions" lines;
 * # begins a comment. A program over its budget, without one, over 6.1's stack, or refused is a failure, exit status 1.
 * Where programs may not be loaded at all, says so, exit status 4: building needs no privilege, but what was not looked
 * at is not within its budget either.
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
#define STACK_MAX 512			/* MAX_BPF_STACK, of a whole chain */
#define STACK_STEP 32
#define FUNCTIONS_MAX 256

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

/*
 * Stack: Linux 6.1's check_max_stack_depth(). A function that is handed to bpf_loop() counts as called where its address
 * is taken; a timer's callback begins a chain of its own.
 *
 * A frame's size is read off the instructions: how far below r10 the function reaches. It is never less than what the
 * verifier found used, and with clang 14 the same for every function here. The verifier's own figures (its log's "stack
 * depth") are no better: they come after it has inlined bpf_loop(), for 24 bytes more, and without the functions it
 * removed.
 */
struct functions {
	const struct bpf_insn *insns;
	size_t insn_count;
	unsigned int count;
	size_t begin[FUNCTIONS_MAX + 1];
	unsigned int frame[FUNCTIONS_MAX];
	unsigned int chain[FUNCTIONS_MAX];	/* of it and what it calls; 0 is not known yet */
	unsigned int next[FUNCTIONS_MAX];	/* the callee with the deepest chain, or FUNCTIONS_MAX */
};

static int is_call(const struct bpf_insn *insn)
{
	return insn->code == (BPF_JMP | BPF_CALL) && insn->src_reg == BPF_PSEUDO_CALL;
}

static int is_address(const struct bpf_insn *insn)
{
	return insn->code == (BPF_LD | BPF_IMM | BPF_DW) && insn->src_reg == BPF_PSEUDO_FUNC;
}

/* Is the address taken at @at a timer's callback? That is what the next helper called says. */
static int is_timers(const struct functions *f, size_t at)
{
	while (at < f->insn_count && f->insns[at].code != (BPF_JMP | BPF_CALL))
		at++;
	return at < f->insn_count && !f->insns[at].src_reg && f->insns[at].imm == BPF_FUNC_timer_set_callback;
}

/* Return: bytes below r10 that the instruction at @at reaches, or -1 when it does what is not followed here. */
static int insn_reach(const struct functions *f, size_t at)
{
	const struct bpf_insn *insn = &f->insns[at], *next = insn + 1;
	__u8 class = BPF_CLASS(insn->code);

	if ((class == BPF_LDX && insn->src_reg == BPF_REG_10) ||
	    ((class == BPF_ST || class == BPF_STX) && insn->dst_reg == BPF_REG_10))
		return -insn->off;
	if ((class != BPF_ALU64 && class != BPF_STX) || BPF_SRC(insn->code) != BPF_X || insn->src_reg != BPF_REG_10)
		return 0;
	/* An address in the frame: a copy of r10, and right behind it how far it lies below. */
	if (insn->code != (BPF_ALU64 | BPF_MOV | BPF_X) || at + 1 == f->insn_count ||
	    next->code != (BPF_ALU64 | BPF_ADD | BPF_K) || next->dst_reg != insn->dst_reg)
		return -1;
	return -next->imm;
}

/* Finds the functions and their frames. Return: 0, or -1, which was told. */
static int functions_read(const char *name, const struct bpf_program *program, struct functions *f)
{
	size_t at, count = bpf_program__insn_cnt(program);
	unsigned char *begins = calloc(1, count + 1);
	int reach;

	if (!begins) {
		fprintf(stderr, "%s: out of memory\n", name);
		return -1;
	}
	memset(f, 0, sizeof(*f));
	f->insns = bpf_program__insns(program);
	f->insn_count = count;
	begins[0] = 1;
	for (at = 0; at < count; at++)
		if (is_call(&f->insns[at]) || is_address(&f->insns[at]))
			begins[at + f->insns[at].imm + 1] = 1;
	for (at = 0; at < count; at++) {
		if (begins[at] && f->count == FUNCTIONS_MAX) {
			fprintf(stderr, "%s: more than %d functions\n", name, FUNCTIONS_MAX);
			break;
		}
		if (begins[at])
			f->begin[f->count++] = at;
		reach = insn_reach(f, at);
		if (reach < 0) {
			fprintf(stderr, "%s: instruction %zu: not known how far it reaches into the frame\n", name, at);
			break;
		}
		if ((unsigned int)reach > f->frame[f->count - 1])
			f->frame[f->count - 1] = reach;
	}
	f->begin[f->count] = count;
	free(begins);
	return at == count ? 0 : -1;
}

static unsigned int function_at(const struct functions *f, size_t at)
{
	unsigned int i = 0;

	while (f->begin[i] != at)
		i++;
	return i;
}

/* The kernel refuses recursion, so this ends. */
static unsigned int chain_of(struct functions *f, unsigned int function)
{
	unsigned int deepest = 0, frame = f->frame[function] ? f->frame[function] : 1, callee;

	if (f->chain[function])
		return f->chain[function];
	f->next[function] = FUNCTIONS_MAX;
	for (size_t at = f->begin[function]; at < f->begin[function + 1]; at++) {
		if (!is_call(&f->insns[at]) && (!is_address(&f->insns[at]) || is_timers(f, at)))
			continue;
		callee = function_at(f, at + f->insns[at].imm + 1);
		if (chain_of(f, callee) > deepest) {
			deepest = chain_of(f, callee);
			f->next[function] = callee;
		}
	}
	f->chain[function] = deepest + (frame + STACK_STEP - 1) / STACK_STEP * STACK_STEP;
	return f->chain[function];
}

/* Prints the deepest chain. Return: 1 when Linux 6.1 takes it. */
static int judge_stack(const char *name, const struct bpf_program *program)
{
	static struct functions f;
	unsigned int deepest = 0;

	if (functions_read(name, program, &f))
		return 0;
	for (unsigned int i = 0; i < f.count; i++)
		if (chain_of(&f, i) > chain_of(&f, deepest))
			deepest = i;
	printf("%-24s %7u bytes of stack on Linux 6.1, of %d (frames of %u", "", f.chain[deepest], STACK_MAX, f.frame[deepest]);
	for (unsigned int i = f.next[deepest]; i != FUNCTIONS_MAX; i = f.next[i])
		printf(" + %u", f.frame[i]);
	printf(")%s\n", f.chain[deepest] > STACK_MAX ? ": over" : "");
	return f.chain[deepest] <= STACK_MAX;
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
	return judge_stack(name, program) && info.verified_insns <= budget->insns;
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
