// SPDX-License-Identifier: Apache-2.0
/*
 * load VERB ADDRESS:PORT HEAD-FILE SECONDS STREAMS PROCESSES [TLS-NAME] - the client's side of the benchmarks.
 *
 * VERB source, sink     so many streams at once, of as many bytes as go through
 *      answer           so many connections at a time, each asked once, one after the other
 *      ask              so many connections, each asked again and again
 *      hold             so many connections, each asked once; prints "held", and asks again when its input ends
 *      try              so many connections a second, each asked once; those that fail are counted
 *
 * What a stream is stands in stream.h. Prints what happened as one line of JSON; a single thing out of order, but for
 * try's connections, ends it with status 1 and a word instead.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "trial.h"

#define STREAMS_MAX 20000
#define PROCESSES_MAX 64

static const char *const verbs[CLIENT_VERBS] = { "source", "sink", "answer", "ask", "hold", "try" };

static struct client_task task;

static int compare(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void print(struct client_result *results, uint32_t processes)
{
	uint64_t begun_ns = UINT64_MAX, ended_ns = 0, connections = 0, answers = 0, bytes = 0;
	uint32_t count = 0, *all, at = 0;

	for (uint32_t i = 0; i < processes; i++) {
		begun_ns = results[i].begun_ns < begun_ns ? results[i].begun_ns : begun_ns;
		ended_ns = results[i].ended_ns > ended_ns ? results[i].ended_ns : ended_ns;
		connections += results[i].connections;
		answers += results[i].answers;
		bytes += results[i].bytes;
		count += results[i].latency_count;
	}
	printf("{\"seconds\": %.6f, \"connections\": %llu, \"answers\": %llu, \"bytes\": %llu",
	       (double)(ended_ns - begun_ns) / 1e9, (unsigned long long)connections, (unsigned long long)answers,
	       (unsigned long long)bytes);
	all = calloc(count + 1, sizeof(*all));
	if (!all)
		client_fail("out of memory");
	for (uint32_t i = 0; i < processes; i++) {
		memcpy(all + at, results[i].latencies_us, results[i].latency_count * sizeof(*all));
		at += results[i].latency_count;
	}
	qsort(all, count, sizeof(*all), compare);
	if (count)
		printf(", \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f", all[count / 2] / 1e3,
		       all[(uint64_t)count * 99 / 100] / 1e3, all[count - 1] / 1e3);
	printf("}\n");
	free(all);
}

static void read_head(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, task.head, sizeof(task.head));

	if (got < STREAM_RECORD_HEADER_LEN || stream_head_len(task.head, (size_t)got) != (size_t)got)
		client_fail("%s: not one TLS record of at most %u bytes", path, STREAM_HEAD_MAX);
	close(fd);
	task.head_len = (size_t)got;
}

/* Return: 0, or -EINVAL. */
static int parse(char **argv, uint32_t *ret_streams, uint32_t *ret_processes)
{
	char *colon = strchr(argv[2], ':');
	double seconds = atof(argv[4]);
	int streams = atoi(argv[5]), processes = atoi(argv[6]);
	uint32_t verb;

	for (verb = 0; verb < CLIENT_VERBS && strcmp(argv[1], verbs[verb]); verb++)
		;
	if (verb == CLIENT_VERBS || !colon || seconds <= 0 || streams < 1 || streams > STREAMS_MAX || processes < 1 ||
	    processes > PROCESSES_MAX || ((verb == CLIENT_SINK || verb == CLIENT_TRY) && argv[7]))
		return -EINVAL;
	*colon = '\0';
	task.verb = verb;
	task.duration_ns = (uint64_t)(seconds * 1e9);
	task.tls_name = argv[7];
	task.to.sin_family = AF_INET;
	task.to.sin_port = htons((uint16_t)atoi(colon + 1));
	if (inet_pton(AF_INET, argv[2], &task.to.sin_addr) != 1)
		return -EINVAL;
	*ret_streams = (uint32_t)streams;
	*ret_processes = verb == CLIENT_HOLD || verb == CLIENT_TRY ? 1 : (uint32_t)(processes < streams ? processes : streams);
	return 0;
}

static int run(struct client_result *results, uint32_t streams, uint32_t processes)
{
	int status, worst = 0;

	for (uint32_t i = 0; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			client_fail("fork: %s", strerror(errno));
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (task.verb == CLIENT_TRY)
			trial_run(&task, streams, &results[i]);
		else
			client_run(&task, streams / processes + (i < streams % processes), &results[i]);
		_exit(0);
	}
	while (wait(&status) > 0)
		worst |= status;
	return worst ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct rlimit descriptors;
	struct client_result *results;
	uint32_t streams, processes;

	if (argc < 7 || argc > 8 || parse(argv, &streams, &processes)) {
		fprintf(stderr, "usage: load VERB ADDRESS:PORT HEAD-FILE SECONDS STREAMS PROCESSES [TLS-NAME]\n");
		return 2;
	}
	stream_init();
	read_head(argv[3]);
	if (getrlimit(RLIMIT_NOFILE, &descriptors))
		client_fail("RLIMIT_NOFILE: %s", strerror(errno));
	descriptors.rlim_cur = descriptors.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &descriptors))
		client_fail("RLIMIT_NOFILE: %s", strerror(errno));
	results = mmap(NULL, processes * sizeof(*results), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (results == MAP_FAILED)
		client_fail("out of memory");
	if (run(results, streams, processes))
		return 1;
	print(results, processes);
	return 0;
}
