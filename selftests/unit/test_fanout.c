// SPDX-License-Identifier: Apache-2.0
/*
 * fanout: messages to three workers, who are played here: they answer, refuse, keep silent, lie, have full channels.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fanout.h"
#include "ktap.h"

#define WORKERS 3

static struct ph_events events;
static struct ph_fanout *fanout;
static int ours[WORKERS], theirs[WORKERS];

static struct {
	int sent, done;
	struct ph_fanout_result result;
	struct ph_message message;
} seen;

static void note_sent(const struct ph_message *message, void *arg)
{
	(void)message;
	*(int *)arg += 1;
}

static void note_done(const struct ph_message *message, const struct ph_fanout_result *result, void *arg)
{
	(void)arg;
	seen.done++;
	seen.result = *result;
	seen.message = *message;
}

static int send_out(enum ph_message_type type, const int *fds, unsigned fd_count)
{
	struct ph_message message = { .type = type, .ref = { .slot = 3, .generation = 4 } };

	memset(&seen, 0, sizeof(seen));
	return ph_fanout_send(fanout, &message, fds, fd_count, note_sent, &seen.sent, note_done, NULL);
}

/* What worker @i finds; a type of 0 is nothing. Descriptors are closed, and counted in domain. */
static struct ph_message find(int i)
{
	struct ph_message message = { 0 };
	int fds[PH_MESSAGE_FDS];

	if (ph_channel_receive(theirs[i], &message, fds))
		return (struct ph_message){ 0 };
	message.domain = 0;
	for (int j = 0; j < PH_MESSAGE_FDS; j++) {
		if (fds[j] < 0)
			continue;
		close(fds[j]);
		message.domain++;
	}
	return message;
}

static int answer(int i, enum ph_message_type type, uint64_t serial, uint32_t count, const char *text)
{
	struct ph_message message = { .type = type, .worker = (uint32_t)i, .serial = serial, .count = count };

	strncpy(message.text, text, sizeof(message.text) - 1);
	return ph_channel_send(theirs[i], &message, NULL, 0);
}

/* Takes up what was sent, or waits for the next time-out. */
static void turn(void)
{
	ph_events_turn(&events);
}

static void test_answers(void)
{
	struct ph_message got[WORKERS];

	ktap_ok(!send_out(PH_MESSAGE_END_INSTANCE, NULL, 0) && seen.sent == 1 && !seen.done,
		"a message goes out to all at once");
	for (int i = 0; i < WORKERS; i++)
		got[i] = find(i);
	ktap_ok(got[0].type == PH_MESSAGE_END_INSTANCE && got[0].ref.slot == 3 && got[2].serial == got[0].serial &&
			got[0].serial,
		"each finds it, with a serial");
	answer(0, PH_MESSAGE_DONE, got[0].serial, 5, "");
	turn();
	answer(1, PH_MESSAGE_DONE, got[0].serial, 6, "");
	turn();
	ktap_ok(!seen.done, "two of three are not all");
	answer(1, PH_MESSAGE_DONE, got[0].serial, 6, "");
	turn();
	ktap_ok(!seen.done, "who answers twice answers for nobody else");
	answer(2, PH_MESSAGE_DONE, got[0].serial + 1, 7, "");
	turn();
	ktap_ok(!seen.done, "an answer to something else is none");
	answer(2, PH_MESSAGE_END_ALL, got[0].serial, 7, "");
	turn();
	ktap_ok(!seen.done, "what is no answer is none");
	answer(2, PH_MESSAGE_DONE, got[0].serial, 7, "");
	turn();
	ktap_ok(seen.done == 1 && seen.result.count == 18 && !seen.result.silent && !seen.result.failed &&
			seen.message.ref.slot == 3,
		"all have answered: their counts are summed");
	answer(2, PH_MESSAGE_DONE, got[0].serial, 7, "");
	turn();
	ktap_ok(seen.done == 1, "and it is reported once");
}

static void test_refusal(void)
{
	struct ph_message got = { 0 };

	send_out(PH_MESSAGE_CERTIFICATE, NULL, 0);
	for (int i = 0; i < WORKERS; i++)
		got = find(i);
	answer(1, PH_MESSAGE_FAILED, got.serial, 0, "bad\nkey");
	turn();
	answer(0, PH_MESSAGE_DONE, got.serial, 0, "");
	turn();
	answer(2, PH_MESSAGE_FAILED, got.serial, 0, "other words");
	turn();
	ktap_ok(seen.done == 1 && seen.result.failed == 6 && !strcmp(seen.result.text, "bad\\x0akey"),
		"refusals are told, and the first one's words escaped");
}

static int open_fds(void)
{
	int count = 0;

	for (int fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static void test_descriptors(void)
{
	int pair[2] = { open("/dev/null", O_RDONLY | O_CLOEXEC), open("/dev/null", O_RDONLY | O_CLOEXEC) };
	struct ph_message got = { .type = PH_MESSAGE_DONE };
	int before = open_fds();

	ktap_ok(!send_out(PH_MESSAGE_CERTIFICATE, pair, 2), "descriptors go along");
	for (int i = 0; i < WORKERS; i++) {
		got = find(i);
		ktap_ok(got.domain == 2, "worker %d gets two of its own", i);
	}
	for (int i = 0; i < WORKERS; i++) {
		answer(i, PH_MESSAGE_DONE, got.serial, 0, "");
		turn();
	}
	ktap_ok(seen.done == 1 && open_fds() == before, "afterwards none is left open");

	got.serial++;
	got.type = PH_MESSAGE_DONE;
	ph_channel_send(theirs[0], &got, pair, 2);
	turn();
	ktap_ok(open_fds() == before, "descriptors that a worker sends are closed");
	close(pair[0]);
	close(pair[1]);
	ktap_ok(send_out(PH_MESSAGE_CERTIFICATE, pair, 2) == -EBADF && open_fds() == before - 2,
		"with a bad descriptor nothing is sent");
	ktap_ok(!find(0).type, "to anybody");
}

static void test_silence(void)
{
	char names[64];
	uint64_t start_ms;

	send_out(PH_MESSAGE_END_INSTANCE, NULL, 0);
	for (int i = 0; i < WORKERS; i++) {
		struct ph_message got = find(i);

		if (i == 1)
			answer(i, PH_MESSAGE_DONE, got.serial, 2, "");
	}
	start_ms = events.now_ms;
	while (!seen.done && events.now_ms - start_ms < 60000)
		turn();
	ktap_ok(seen.done == 1 && seen.result.silent == 5 && seen.result.count == 2 &&
			events.now_ms - start_ms >= PH_FANOUT_TIMEOUT_MS - 100,
		"who does not answer in time is told");
	ktap_ok(!strcmp(ph_fanout_names(seen.result.silent, names, sizeof(names)), "worker 0, worker 2"), "by name");
	ktap_ok(!strncmp(ph_fanout_names(~(uint64_t)0, names, 20), "worker 0, worker 1,", 19) && strlen(names) == 19,
		"names are cut to fit");
}

static void test_full(void)
{
	struct ph_message filler = { .type = PH_MESSAGE_END_ALL, .serial = 1 }, got = { 0 };
	int queued = 0;

	while (!ph_channel_send(ours[1], &filler, NULL, 0))
		queued++;
	send_out(PH_MESSAGE_END_INSTANCE, NULL, 0);
	ktap_ok(queued && !seen.sent, "while a channel is full, it is not said to be sent");
	ktap_ok(find(0).type == PH_MESSAGE_END_INSTANCE && find(2).type == PH_MESSAGE_END_INSTANCE,
		"the others have it");
	ph_fanout_retry(fanout);
	ktap_ok(!seen.sent && !find(0).type, "trying again sends it to nobody twice");
	for (; queued; queued--)
		find(1);
	ph_fanout_retry(fanout);
	got = find(1);
	ktap_ok(seen.sent == 1 && got.type == PH_MESSAGE_END_INSTANCE, "once there is room, it goes out");
	for (int i = 0; i < WORKERS; i++) {
		answer(i, PH_MESSAGE_DONE, got.serial, 1, "");
		turn();
	}
	ktap_ok(seen.done == 1 && seen.result.count == 3, "and is answered");

	while (!ph_channel_send(ours[1], &filler, NULL, 0))
		queued++;
	send_out(PH_MESSAGE_CERTIFICATE, NULL, 0);
	for (; queued; queued--)
		find(1);
	send_out(PH_MESSAGE_END_INSTANCE, NULL, 0);
	ktap_ok(!find(1).type, "behind one that waits the next one does too");
	ph_fanout_retry(fanout);
	got = find(1);
	ktap_ok(got.type == PH_MESSAGE_CERTIFICATE && find(1).type == PH_MESSAGE_END_INSTANCE && seen.sent == 2,
		"and so they arrive in order");
	for (int i = 0; i < WORKERS; i++) {
		for (int j = 0; j < 2; j++)
			answer(i, PH_MESSAGE_DONE, got.serial + (uint64_t)j, 1, "");
		turn();
		find(i), find(i);
	}
	ktap_ok(seen.done == 2, "both are answered");
}

int main(void)
{
	int pair[2];

	ktap_header();
	ph_events_init(&events);
	for (int i = 0; i < WORKERS; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair)) {
			ktap_ok(0, "a channel: %m");
			return ktap_end();
		}
		ours[i] = pair[0];
		theirs[i] = pair[1];
	}
	if (!ktap_ok(!ph_fanout_new(&events, ours, WORKERS, &fanout), "a fanout to three workers"))
		return ktap_end();
	test_answers();
	test_refusal();
	test_descriptors();
	test_full();
	test_silence();
	send_out(PH_MESSAGE_END_ALL, NULL, 0);
	ph_fanout_free(fanout);
	ktap_ok(seen.done == 1 && seen.result.silent == 7, "what is under way at the end is reported");
	return ktap_end();
}
