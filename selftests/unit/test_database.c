// SPDX-License-Identifier: Apache-2.0
/*
 * database: how the registry's file comes to be, what happens to it when its writer is killed, and that a file which is
 * refused is not touched, nor anything beside it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "registry_lab.h"

/*
 * Name, size, time of change and bytes of the directory and everything in it; the caller's to free. The time at which
 * the inode changed is left out: SQLite gives a log to the file's owner, also when it is that one's already.
 */
static char *snapshot(void)
{
	struct dirent **names = NULL;
	int count = scandir(lab_dir, &names, NULL, alphasort);
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	for (int i = 0; i < count; i++) {
		int dir = open(lab_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		int fd = openat(dir, names[i]->d_name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		uint64_t sum = 14695981039346656037ULL;		/* FNV-1a */
		unsigned char bytes[4096];
		struct stat status;
		ssize_t len;

		if (!strcmp(names[i]->d_name, "..")) {
			close(fd);
			close(dir);
			free(names[i]);
			continue;
		}
		fstat(fd, &status);
		while ((len = read(fd, bytes, sizeof(bytes))) > 0) {
			for (ssize_t j = 0; j < len; j++)
				sum = (sum ^ bytes[j]) * 1099511628211ULL;
		}
		fprintf(out, "# %s inode %llu mode %o size %lld changed %lld.%09ld sum %016llx\n",
			names[i]->d_name, (unsigned long long)status.st_ino, status.st_mode, (long long)status.st_size,
			(long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec, (unsigned long long)sum);
		close(fd);
		close(dir);
		free(names[i]);
	}
	free(names);
	fclose(out);
	return text;
}

static int meddle(const char *sql)
{
	sqlite3 *db = NULL;
	int code = sqlite3_open_v2(lab_path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_exec(db, sql, NULL, NULL, NULL);
	if (code != SQLITE_OK)
		printf("# %s\n", sqlite3_errmsg(db));
	sqlite3_close(db);
	return code;
}

static int overwrite(long at, const void *bytes, size_t len)
{
	int fd = open(lab_path, O_WRONLY | O_CLOEXEC);
	ssize_t written = fd < 0 ? -1 : pwrite(fd, bytes, len, at);

	if (fd >= 0)
		close(fd);
	return written == (ssize_t)len ? 0 : -1;
}

static int fill_file(struct ph_registry *registry)
{
	struct ph_cvm cvm;
	char app[16], id[16];
	int failed = 0;

	for (uint32_t i = 0; i < 200; i++) {
		snprintf(app, sizeof(app), "app%u", i / 50);
		snprintf(id, sizeof(id), "i%u", i);
		failed += !!lab_add(registry, app, id, i, &cvm);
	}
	for (uint32_t i = 0; i < 20; i++) {
		snprintf(id, sizeof(id), "i%u", i);
		failed += !!lab_remove(registry, id);
	}
	return failed;
}

/* A registry whose manager stopped in order, or was killed and left a log behind. */
static void make_file(bool killed)
{
	struct ph_registry *registry;
	pid_t child;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	if (!killed) {
		registry = lab_open();
		ktap_ok(!fill_file(registry), "(a registry, closed in order)");
		ph_registry_free(registry);
		return;
	}
	child = fork();
	if (!child) {
		if (!ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error)) && !fill_file(registry))
			raise(SIGKILL);
		_exit(1);
	}
	waitpid(child, NULL, 0);
	registry = NULL;
	snprintf(lab_error, sizeof(lab_error), "%s-wal", lab_path);
	ktap_ok(!access(lab_error, F_OK), "(a registry, its writer killed: there is a log)");
}

enum damage {
	NONE,
	EMPTY,
	SHORT,
	PLAIN_TEXT,
	OTHER_DATABASE,
	OTHER_APPLICATION,
	NEWER,
	NEWER_IN_LOG,
	VERSION_ZERO,
	CUT,
	PAGES_OVERWRITTEN,
	INDEX_ELSEWHERE,
	OTHER_SCHEMA,
	TABLE_MISSING,
	BAD_ID,
	APP_IS_INSTANCE,
	USED_AND_FREE,
	FULL_APP,
	BAD_SETTING,
	DIRECTORY,
	FIFO,
};

static const struct {
	const char *name;
	enum damage damage;
	int want;
	const char *say;
} damages[] = {
	{ "an empty file", EMPTY, -EUCLEAN, "not an SQLite database" },
	{ "the first 50 bytes", SHORT, -EUCLEAN, "not an SQLite database" },
	{ "a text", PLAIN_TEXT, -EUCLEAN, "not an SQLite database" },
	{ "another program's database", OTHER_DATABASE, -EUCLEAN, "not a registry" },
	{ "another application's id", OTHER_APPLICATION, -EUCLEAN, "not a registry" },
	{ "a newer version", NEWER, -EPROTONOSUPPORT, "version 3, written by a newer phalad" },
	{ "a newer version that only the log knows", NEWER_IN_LOG, -EPROTONOSUPPORT, "version 3, written by a newer" },
	{ "version 0", VERSION_ZERO, -EUCLEAN, "version 0 never was one" },
	{ "the second half cut off", CUT, -EUCLEAN, "" },
	{ "pages overwritten", PAGES_OVERWRITTEN, -EUCLEAN, "" },
	{ "an index that is another one", INDEX_ELSEWHERE, -EUCLEAN, "" },
	{ "a column more", OTHER_SCHEMA, -EUCLEAN, "cvm is not as version 2 has it" },
	{ "a table less", TABLE_MISSING, -EUCLEAN, "rest is not as version 2 has it" },
	{ "an id that is none", BAD_ID, -EUCLEAN, "damaged: " },
	{ "an app-id that is an instance-id", APP_IS_INSTANCE, -EUCLEAN, "an app-id is also an instance-id" },
	{ "an address that is used and free", USED_AND_FREE, -EUCLEAN, "both used and free" },
	{ "65 instances of an app", FULL_APP, -EUCLEAN, "more than 64 instances" },
	{ "a setting that is none", BAD_SETTING, -EUCLEAN, "damaged: " },
	{ "a directory", DIRECTORY, -EUCLEAN, "not a regular file" },
	{ "a named pipe", FIFO, -EUCLEAN, "not a regular file" },
};

/* In a child that is killed, so that the change stays in the log. */
static int meddle_in_log(const char *sql)
{
	pid_t child = fork();
	int status;

	if (!child) {
		sqlite3 *db = NULL;

		if (sqlite3_open_v2(lab_path, &db, SQLITE_OPEN_READWRITE, NULL) == SQLITE_OK &&
		    sqlite3_exec(db, "PRAGMA wal_autocheckpoint = 0", NULL, NULL, NULL) == SQLITE_OK &&
		    sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK)
			raise(SIGKILL);
		_exit(1);
	}
	return waitpid(child, &status, 0) == child && WIFSIGNALED(status) ? SQLITE_OK : SQLITE_ERROR;
}

/* Return: 0 when it is done. */
static int damage_file(enum damage damage, bool in_log)
{
	static const char junk[4096 * 3] = "junk";
	int (*change)(const char *sql) = in_log ? meddle_in_log : meddle;
	struct stat status;
	switch (damage) {
	case NONE:
		return 0;
	case EMPTY:
		return truncate(lab_path, 0);
	case SHORT:
		return truncate(lab_path, 50);
	case PLAIN_TEXT:
		return truncate(lab_path, 0) || overwrite(0, "SQLite format 2, or what?", 25) ||
		       truncate(lab_path, 4096);
	case OTHER_DATABASE:
		unlink(lab_path);
		return meddle("CREATE TABLE cvm (a, b); INSERT INTO cvm VALUES (1, 2)");
	case OTHER_APPLICATION:
		return overwrite(68, "\0\0\0\1", 4);
	case NEWER:
		return change("PRAGMA user_version = 3");
	case NEWER_IN_LOG:
		return meddle_in_log("PRAGMA user_version = 3");
	case VERSION_ZERO:
		return change("PRAGMA user_version = 0");
	case CUT:
		return stat(lab_path, &status) || truncate(lab_path, status.st_size / 2 / 4096 * 4096);
	case PAGES_OVERWRITTEN:
		/* The log has pages of its own: with one, all but the first are overwritten. */
		for (long at = 4096 * (in_log ? 1 : 3); in_log && !stat(lab_path, &status) && at < status.st_size;
		     at += (long)sizeof(junk)) {
			if (overwrite(at, junk, sizeof(junk)))
				return -1;
		}
		return in_log ? 0 : overwrite(4096 * 3, junk, sizeof(junk));
	case INDEX_ELSEWHERE:
		/* It is given the pages of another index. */
		return change("PRAGMA writable_schema = ON;"
			      "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name ="
			      " 'rest_by_age') WHERE name = 'rest_by_instance'");
	case OTHER_SCHEMA:
		return change("ALTER TABLE cvm ADD COLUMN more INTEGER");
	case TABLE_MISSING:
		return change("DROP TABLE rest");
	case BAD_ID:
		return change("PRAGMA ignore_check_constraints = ON;"
			      "UPDATE cvm SET app_id = 'A-b' WHERE instance_id = 'i77'");
	case APP_IS_INSTANCE:
		return change("UPDATE cvm SET app_id = 'i78' WHERE instance_id = 'i77'");
	case USED_AND_FREE:
		return change("UPDATE rest SET address = (SELECT max(address) FROM cvm) WHERE instance_id = 'i3'");
	case FULL_APP:
		return change("UPDATE cvm SET app_id = 'app1'");
	case BAD_SETTING:
		return change("PRAGMA ignore_check_constraints = ON; INSERT INTO app VALUES ('shop', -1, 0)");
	case DIRECTORY:
		return unlink(lab_path) || mkdir(lab_path, 0700);
	case FIFO:
		return unlink(lab_path) || mkfifo(lab_path, 0600);
	}
	return -1;
}

static void test_refused(bool killed)
{
	for (size_t i = 0; i < COUNT(damages); i++) {
		struct ph_registry *registry = NULL;
		char *before, *after;
		int err;

		make_file(killed);
		if (!ktap_ok(!damage_file(damages[i].damage, killed), "(%s)", damages[i].name))
			printf("# %s\n", strerror(errno));
		before = snapshot();
		*lab_error = '\0';
		err = ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error));
		after = snapshot();
		if (!ktap_ok(err == damages[i].want && !registry && strstr(lab_error, damages[i].say) &&
			     strstr(lab_error, lab_path), "refused, %s: %s",
			     killed ? "with a log beside it" : "closed in order", damages[i].name))
			printf("# %d %s\n", err, lab_error);
		if (!ktap_ok(!strcmp(before, after), "not touched: %s", damages[i].name))
			printf("# before\n%s# after\n%s", before, after);
		if (damages[i].damage == DIRECTORY)
			rmdir(lab_path);
		free(before);
		free(after);
		ph_registry_free(registry);
		lab_end();
	}
}

static void test_create(void)
{
	struct ph_registry *registry, *second = NULL;
	char name[200], *text, *again;
	struct stat status;
	mode_t mask;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	mask = umask(0);
	registry = lab_open();
	umask(mask);
	ktap_ok(!stat(lab_path, &status) && (status.st_mode & 0777) == 0600, "the file is its owner's only");
	snprintf(name, sizeof(name), "%s-wal", lab_path);
	fill_file(registry);
	ktap_ok(!stat(name, &status) && (status.st_mode & 0777) == 0600, "and so is its log");
	ktap_ok(ph_registry_open(&lab_options, &second, lab_error, sizeof(lab_error)) == -EBUSY && !second &&
		strstr(lab_error, "another process"), "a second opener is refused");
	text = lab_dump(registry);
	ph_registry_free(registry);
	ktap_ok(access(name, F_OK), "closed in order, there is no log");

	lab_options.path = name;
	snprintf(name, sizeof(name), "%s/no/registry.db", lab_dir);
	ktap_ok(ph_registry_open(&lab_options, &second, lab_error, sizeof(lab_error)) == -ENOENT && !second &&
		strstr(lab_error, name), "a directory that is missing is told");
	memset(name, 'n', sizeof(name));
	memcpy(name, lab_dir, strlen(lab_dir));
	name[strlen(lab_dir)] = '/';
	strcpy(name + 100, "?a=b&c#d%20e.db");
	registry = lab_open();
	ph_registry_free(registry);
	registry = lab_open();
	ktap_ok(registry && !access(name, F_OK), "a path with ?, # and %% is only a path");
	ph_registry_free(registry);
	unlink(name);
	lab_options.path = lab_path;

	snprintf(name, sizeof(name), "%s.new", lab_path);
	close(open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	registry = lab_open();
	again = lab_dump(registry);
	ktap_ok(!strcmp(text, again), "what a killed creator left is not in the way");
	ph_registry_free(registry);
	free(again);
	free(text);
	unlink(name);

	unlink(lab_path);
	ktap_ok(!symlink("/nonexistent/registry.db", lab_path) &&
		ph_registry_open(&lab_options, &second, lab_error, sizeof(lab_error)) == -ENOENT && !second &&
		strstr(lab_error, lab_path) && !lstat(lab_path, &status) && S_ISLNK(status.st_mode),
		"a link to a file that is not there is refused, and not replaced");

	unlink(lab_path);
	snprintf(name, sizeof(name), "%s-wal", lab_path);
	close(open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	text = snapshot();
	ktap_ok(ph_registry_open(&lab_options, &second, lab_error, sizeof(lab_error)) == -EUCLEAN && !second &&
		strstr(lab_error, "is there without"), "a log without its file is refused");
	again = snapshot();
	ktap_ok(!strcmp(text, again), "and not touched");
	free(again);
	free(text);
	lab_end();
}

/* A backup that came back by way of VACUUM INTO is no longer in WAL mode. */
static void test_restored(void)
{
	struct ph_registry *registry;
	struct ph_cvm cvm;

	make_file(false);
	ktap_ok(meddle("PRAGMA journal_mode = DELETE") == SQLITE_OK, "(a file with a rollback journal)");
	registry = lab_open();
	ktap_ok(registry && !ph_registry_find(registry, "i50", &cvm) && !lab_add(registry, "app9", "x", 999, &cvm),
		"it is taken back into use");
	ph_registry_free(registry);
	lab_end();
}

/* A file of version 1, which had no settings of apps. */
static void test_older(bool killed)
{
	static const char as_it_was[] = "DROP TABLE app; PRAGMA user_version = 1";
	struct ph_registry *registry;
	uint32_t idle_ms, limit;
	char *before, *after;

	make_file(killed);
	ktap_ok((killed ? meddle_in_log(as_it_was) : meddle(as_it_was)) == SQLITE_OK, "(of version 1%s)",
		killed ? ", with a log" : "");
	registry = lab_open();
	before = lab_dump(registry);
	ktap_ok(registry && !ph_registry_set_app(registry, "app1", 5000, 7, lab_error, sizeof(lab_error)),
		"it is taken into use, and an app gets a setting");
	ph_registry_free(registry);
	registry = lab_open();
	after = lab_dump(registry);
	ktap_ok(registry && !ph_registry_app(registry, "app1", &idle_ms, &limit) && idle_ms == 5000 && limit == 7,
		"which is there the next time");
	ktap_ok(strlen(before) > 1000 && !strcmp(before, after), "and so is everybody that was in it");
	ph_registry_free(registry);
	free(before);
	free(after);
	lab_end();
}

/* What a writer says it did, once the call has returned. */
struct note {
	uint32_t what, number;
	struct in_addr address;
};

enum { ADDED = 1, REMOVED, KILLS = 24, NOTES_MAX = 4096 };

static void tell(int fd, uint32_t what, uint32_t number, struct in_addr address)
{
	struct note note = { what, number, address };

	if (write(fd, &note, sizeof(note)) != sizeof(note))
		_exit(1);
}

/* Adds from @from on for ever, and removes every third again. */
static void write_until_killed(int fd, uint32_t from)
{
	struct ph_registry *registry = NULL;
	struct in_addr none = { 0 };
	struct ph_cvm cvm;
	char app[16], id[16];

	if (ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error)))
		_exit(2);
	for (uint32_t i = from; ; i++) {
		snprintf(app, sizeof(app), "app%u", i / 32);
		snprintf(id, sizeof(id), "i%u", i);
		if (lab_add(registry, app, id, i, &cvm))
			_exit(3);
		tell(fd, ADDED, i, cvm.address);
		if (i % 3)
			continue;
		if (lab_remove(registry, id))
			_exit(4);
		tell(fd, REMOVED, i, none);
	}
}

/* How much of what was told is not true? The last one may be removed already without a note: this is noted then. */
static int count_wrong(struct ph_registry *registry, struct note *notes, const bool *told, uint32_t next)
{
	struct ph_cvm cvm;
	char id[16];
	int wrong = 0;

	for (uint32_t i = 0; i < next; i++) {
		int err;

		snprintf(id, sizeof(id), "i%u", i);
		err = ph_registry_find(registry, id, &cvm);
		if (!told[i])
			continue;
		if (notes[i].what == ADDED && err == -ENOENT && i % 3 == 0 && i + 1 == next)
			notes[i].what = REMOVED;
		if (notes[i].what == ADDED)
			wrong += err || cvm.address.s_addr != notes[i].address.s_addr;
		else
			wrong += err != -ENOENT;
	}
	return wrong;
}

static void test_killed_writing(void)
{
	static struct note notes[NOTES_MAX];
	static bool told[NOTES_MAX];
	int wrong = 0, unopened = 0, died = 0;
	uint32_t next = 0, total = 0;

	lab_start("10.0.0.0/8", "10.0.0.0/24");
	srandom(20240601);
	for (int round = 0; round < KILLS; round++) {
		long limit = random() % 40;
		struct ph_registry *registry = NULL;
		struct note note;
		int pipe_fds[2], status;
		pid_t child;

		if (pipe2(pipe_fds, O_CLOEXEC))
			break;
		child = fork();
		if (!child) {
			close(pipe_fds[0]);
			write_until_killed(pipe_fds[1], next);
		}
		close(pipe_fds[1]);
		for (long seen = 0; read(pipe_fds[0], &note, sizeof(note)) == sizeof(note); seen++) {
			if (note.number >= NOTES_MAX)
				break;
			notes[note.number] = note;
			told[note.number] = true;
			next = note.number + 1;
			total++;
			if (seen == limit) {		/* at whatever it is doing now; its notes are read on */
				struct timespec moment = { .tv_nsec = random() % 2000000 };

				nanosleep(&moment, NULL);
				kill(child, SIGKILL);
			}
		}
		close(pipe_fds[0]);
		waitpid(child, &status, 0);
		died += !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

		if (ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error))) {
			printf("# round %d: %s\n", round, lab_error);
			unopened++;
			continue;
		}
		wrong += count_wrong(registry, notes, told, next);
		next++;			/* may have been added without a note */
		ph_registry_free(registry);
	}
	ktap_ok(!died && total > KILLS, "a writer was killed %d times while it made %u changes", KILLS, total);
	ktap_ok(!unopened, "the file was whole each time");
	ktap_ok(!wrong, "and what had been acknowledged was true");
	lab_end();
}

static void test_killed_creating(void)
{
	int unopened = 0, created = 0;

	srandom(7);
	for (int round = 0; round < 40; round++) {
		struct timespec moment = { .tv_nsec = random() % 6000000 };
		struct ph_registry *registry = NULL;
		pid_t child;

		lab_start("10.0.0.0/8", "10.0.0.0/24");
		child = fork();
		if (!child) {
			if (ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error)))
				_exit(1);
			for (;;)
				pause();
		}
		nanosleep(&moment, NULL);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		created += !access(lab_path, F_OK);
		if (ph_registry_open(&lab_options, &registry, lab_error, sizeof(lab_error))) {
			printf("# round %d: %s\n", round, lab_error);
			unopened++;
		}
		ph_registry_free(registry);
		lab_end();
	}
	ktap_ok(!unopened, "killed while it was created: opened 40 times (%d times it had its name)", created);
}

int main(void)
{
	ktap_header();
	test_create();
	test_restored();
	test_older(false);
	test_older(true);
	test_refused(false);
	test_refused(true);
	test_killed_writing();
	test_killed_creating();
	return ktap_end();
}
