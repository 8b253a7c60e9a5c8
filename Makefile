# SPDX-License-Identifier: Apache-2.0
#
# make            phalad and phalactl, in build/
# make check      everything there is to test (root); make asan check: the same with sanitizers, without the VMs
# make bench      what it carries, beside forwarding and other proxies (root); ONLY=row,... QUICK=1
# make torture    N=100000 connections, and the long versions of what tortures the kernel path (root)
# make demo       a lab with real clients, CVMs and WireGuard (root)
# make deps       install what building and testing needs, from Debian's packages (root)
# make install    DESTDIR= PREFIX=/usr/local UNITDIR=$PREFIX/lib/systemd/system SYSUSERSDIR=$PREFIX/lib/sysusers.d;
#                 make uninstall takes it away
# make fuzz       FUZZ_SECONDS=60 a target
# make clean

BUILD_TOP := build
ifneq ($(filter asan,$(MAKECMDGOALS)),)
BUILD := $(BUILD_TOP)/asan
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
CHECK_FLAGS := --native
else
BUILD := $(BUILD_TOP)
endif

PREFIX ?= /usr/local
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
CC := gcc
CLANG ?= clang
BPFTOOL ?= $(firstword $(wildcard /usr/sbin/bpftool) bpftool)
ARCH := $(shell uname -m | sed 's/x86_64/x86/; s/aarch64/arm64/')

PKGS := libbpf libmnl openssl sqlite3 jansson inih libseccomp libcap-ng libnghttp2
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith \
	-Wwrite-strings -Wundef -Wvla -Wformat=2 -Wimplicit-fallthrough
OPT ?= -O2 -g
CPPFLAGS := -Iinclude -Iuser -Iselftests -I$(BUILD_TOP)/bpf -D_GNU_SOURCE
CFLAGS := -std=gnu11 $(OPT) $(WARN) -fPIE -fstack-protector-strong $(SANITIZE)
ifeq ($(SANITIZE),)
CPPFLAGS += -D_FORTIFY_SOURCE=2
endif
LDFLAGS := -pie -Wl,-z,relro,-z,now $(SANITIZE)
LDLIBS = $(shell pkg-config --libs $(PKGS))

BPF_CFLAGS := -target bpf -O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Wextra -Wshadow -Wno-unused-parameter -Iinclude -Ibpf -I$(BUILD_TOP)/bpf \
	-D__TARGET_ARCH_$(ARCH) -idirafter /usr/include/$(shell uname -m)-linux-gnu

USER_SRC := $(wildcard user/*.c)
CTL_SRC := $(wildcard tools/phalactl*.c)
BPF_SRC := $(wildcard bpf/*.bpf.c)
UNIT_SRC := $(wildcard selftests/unit/test_*.c)
FUZZ_SRC := $(wildcard selftests/fuzz/fuzz_*.c)
BENCH_SRC := $(wildcard selftests/bench/*.c)
STEER_SRC := selftests/steer/stand.c
TORTURE_SRC := $(wildcard selftests/torture/*.c)
CHECKED_SRC := $(USER_SRC) $(CTL_SRC) tools/insns.c $(UNIT_SRC) $(FUZZ_SRC) $(STEER_SRC) $(BENCH_SRC) $(TORTURE_SRC)

USER_OBJ := $(USER_SRC:%.c=$(BUILD)/%.o)
LIB_OBJ := $(filter-out $(BUILD)/user/main.o,$(USER_OBJ))
CTL_OBJ := $(CTL_SRC:%.c=$(BUILD)/%.o)
BPF_OBJ := $(BPF_SRC:bpf/%.bpf.c=$(BUILD_TOP)/bpf/%.bpf.o)
SKEL := $(BPF_OBJ:.bpf.o=.skel.h)
UNIT_BIN := $(UNIT_SRC:selftests/unit/%.c=$(BUILD)/unit/%)
STEER_BIN := $(BUILD)/steer/stand $(BUILD)/steer/loss.bpf.o $(BUILD)/steer/deep.bpf.o
TORTURE_BIN := $(BUILD)/torture/crowd $(BUILD)/torture/host
FUZZ_BIN := $(FUZZ_SRC:selftests/fuzz/%.c=$(BUILD)/fuzz/%)
FUZZ_LIB_OBJ := $(patsubst %.c,$(BUILD)/fuzz/obj/%.o,$(filter-out user/main.c,$(USER_SRC)))
FUZZ_OBJ := $(FUZZ_LIB_OBJ) $(FUZZ_SRC:%.c=$(BUILD)/fuzz/obj/%.o)
FUZZ_SANITIZE := -fsanitize=address,undefined

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all asan check demo deps install uninstall clean fuzz warnings tests bench torture verifier

all: $(BUILD)/phalad $(BUILD)/phalactl verifier

# The sanitizer build is chosen by this word being among the goals. With check, which builds it after deps, that is all.
asan: $(if $(filter check,$(MAKECMDGOALS)),,$(BUILD)/phalad $(BUILD)/phalactl)

$(BUILD)/phalad: $(BUILD)/user/main.o $(BUILD)/libphala.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/phalactl: $(CTL_OBJ) $(BUILD)/libphala.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/libphala.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/%.o: %.c | $(SKEL)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# BPF: object, then skeleton. The kernel's types come from BTF; CO-RE fits them to the kernel that loads.
$(BUILD_TOP)/bpf/vmlinux.h: /sys/kernel/btf/vmlinux
	@mkdir -p $(@D)
	$(BPFTOOL) btf dump file $< format c > $@

$(BUILD_TOP)/bpf/%.bpf.o: bpf/%.bpf.c | $(BUILD_TOP)/bpf/vmlinux.h
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c -o $@.tmp $<
	llvm-strip -g $@.tmp && mv $@.tmp $@

$(BUILD_TOP)/bpf/%.skel.h: $(BUILD_TOP)/bpf/%.bpf.o
	$(BPFTOOL) gen skeleton $< name ph_$(subst -,_,$*)_bpf > $@

# Loads every program and prints what the verifier made of it, against bpf/budget. Exit status 4: no privilege to load.
# That is no failure, and no stamp, so that a later make by root looks.
verifier: $(BUILD_TOP)/verifier.stamp
$(BUILD_TOP)/verifier.stamp: $(BPF_OBJ) $(BUILD)/tools/insns bpf/budget
	@$(BUILD)/tools/insns bpf/budget $(BPF_OBJ); status=$$?; \
		[ $$status -ne 4 ] || exit 0; [ $$status -eq 0 ] && touch $@

$(BUILD)/tools/%: $(BUILD)/tools/%.o
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Tests
tests: $(UNIT_BIN) $(FUZZ_BIN) $(STEER_BIN) $(TORTURE_BIN) $(BUILD)/tools/insns $(BUILD)/bench/flood

$(BUILD)/steer/stand: $(BUILD)/selftests/steer/stand.o $(BUILD)/libphala.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/steer/%.bpf.o: selftests/steer/%.bpf.c
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c -o $@ $<

$(BUILD)/unit/%: $(BUILD)/selftests/unit/%.o $(BUILD)/libphala.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Everything once more for libFuzzer, which wants coverage in each object.
$(BUILD)/fuzz/obj/%.o: %.c | $(SKEL)
	@mkdir -p $(@D)
	$(CLANG) $(CPPFLAGS) -std=gnu11 -O1 -g $(WARN) $(FUZZ_SANITIZE) -fsanitize=fuzzer-no-link -MMD -MP -c -o $@ $<

$(FUZZ_BIN): $(BUILD)/fuzz/%: $(BUILD)/fuzz/obj/selftests/fuzz/%.o $(FUZZ_LIB_OBJ)
	$(CLANG) $(FUZZ_SANITIZE) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

fuzz: $(FUZZ_BIN)
	selftests/fuzz/run $(BUILD)/fuzz $(FUZZ_SECONDS)

# Both compilers, no output but warnings, which are errors here.
warnings: $(SKEL)
	$(CLANG) $(CPPFLAGS) -std=gnu11 -O1 $(WARN) -Werror -fsyntax-only $(CHECKED_SRC)
	$(CC) $(CPPFLAGS) -std=gnu11 -O2 $(WARN) -Werror -fsyntax-only $(CHECKED_SRC)

deps:
	@tools/deps

check: deps
	@$(MAKE) --no-print-directory $(filter asan,$(MAKECMDGOALS)) $(if $(SANITIZE),,all) tests warnings
	@selftests/run $(CHECK_FLAGS) $(BUILD)

$(BUILD)/bench/load: $(addprefix $(BUILD)/selftests/bench/,load.o client.o trial.o wire.o stream.o)
$(BUILD)/bench/serve: $(addprefix $(BUILD)/selftests/bench/,serve.o stream.o)
$(BUILD)/bench/flood: $(addprefix $(BUILD)/selftests/bench/,flood.o stream.o)
$(BUILD)/bench/%:
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(TORTURE_BIN): $(BUILD)/torture/%: $(BUILD)/selftests/torture/%.o $(addprefix $(BUILD)/selftests/,torture/peers.o torture/peer.o torture/plan.o bench/stream.o)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^

# N connections in its largest row.
torture: deps
	@$(MAKE) --no-print-directory all $(STEER_BIN) $(TORTURE_BIN)
	@selftests/torture/run --full $(or $(N),100000) $(BUILD)

bench: deps
	@tools/deps bench
	@$(MAKE) --no-print-directory all $(addprefix $(BUILD)/bench/,load serve flood)
	@ONLY='$(ONLY)' QUICK='$(QUICK)' unshare --fork --pid --mount-proc --kill-child selftests/bench/run $(BUILD)

demo: deps
	@$(MAKE) --no-print-directory all
	@selftests/demo/run $(BUILD)

# phalad.conf and what is in /var/lib/phala are the operator's, and so are users: neither made nor removed here.
install: $(BUILD)/phalad $(BUILD)/phalactl
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSUSERSDIR) $(DESTDIR)/etc/phala
	install -m 755 $^ $(DESTDIR)$(PREFIX)/sbin/
	install -m 644 tools/phalad.conf.example $(DESTDIR)/etc/phala/
	install -m 644 tools/phalad.service tools/phalad.socket $(DESTDIR)$(UNITDIR)/
	install -m 644 tools/phala.sysusers $(DESTDIR)$(SYSUSERSDIR)/phala.conf
	sed -i 's|@PREFIX@|$(PREFIX)|' $(DESTDIR)$(UNITDIR)/phalad.service

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/sbin/,phalad phalactl) $(DESTDIR)/etc/phala/phalad.conf.example \
		$(DESTDIR)$(SYSUSERSDIR)/phala.conf \
		$(addprefix $(DESTDIR)$(UNITDIR)/,phalad.service phalad.socket)

clean:
	rm -rf $(BUILD_TOP)

-include $(USER_OBJ:.o=.d) $(CTL_OBJ:.o=.d) $(BPF_OBJ:.o=.d) $(UNIT_SRC:%.c=$(BUILD)/%.d) $(BENCH_SRC:%.c=$(BUILD)/%.d) $(TORTURE_SRC:%.c=$(BUILD)/%.d)
-include $(FUZZ_OBJ:.o=.d) $(STEER_SRC:%.c=$(BUILD)/%.d) $(BUILD)/steer/loss.bpf.d $(BUILD)/steer/deep.bpf.d $(BUILD)/tools/insns.d
