# make run   shows ollana on this machine
# make test  runs the tests
CARGO  ?= cargo
PREFIX ?= /usr/local
MACHINE := $(shell uname -m)
TARGET ?= $(if $(filter armv7%,$(MACHINE)),armv7-unknown-linux-musleabihf,$(MACHINE)-unknown-linux-musl)

.PHONY: help run build test check lint cross doc messages netns e2e desync page boot windows faults days soak coverage bench bench-page bench-arm static deb dist install uninstall clean

help:
	@echo "make run       builds ollana and shows a chat through a client and a server"
	@echo "make test      runs all tests; those in network namespaces need root"
	@echo "make check     runs what CI runs: lint, doc and test"
	@echo "make lint      checks the formatting, clippy's lints and the scripts"
	@echo "make cross     checks that it compiles for Windows, macOS and FreeBSD"
	@echo "make doc       builds the documentation of the code"
	@echo "make messages  lists every sentence of the program, to read aloud"
	@echo "make netns     runs the tests on several hosts in network namespaces (root)"
	@echo "make e2e       tests with a real Ollama, a real model and the official clients"
	@echo "make desync    sends request smuggling vectors through both proxies"
	@echo "make faults    injects each fault of a list and measures the reaction (root)"
	@echo "make days      lives through weeks of a house in simulated time; DAYS=5000"
	@echo "make soak      sends a million requests, some of which fail; SOAK=1h is longer"
	@echo "make coverage  lists the lines that no test reaches"
	@echo "make page      tests the page at /ollana/ in headless Chromium"
	@echo "make boot      installs ollana on clean Debian machines in qemu (root)"
	@echo "make windows   runs the tests of the program for Windows, under Wine"
	@echo "make bench     measures ollana beside nginx and HAProxy, in some minutes"
	@echo "make bench-page measures everything and writes the page of results anew"
	@echo "make bench-arm counts ollana's instructions on ARM, under qemu-user"
	@echo "make build     builds target/release/ollana"
	@echo "make static    builds a static binary for TARGET=$(TARGET)"
	@echo "make deb       builds a Debian package of the static binary"
	@echo "make dist      builds everything that a release has, in target/dist"
	@echo "make install   installs files below DESTDIR=$(DESTDIR) PREFIX=$(PREFIX)"
	@echo "make uninstall removes the files that make install installs"
	@echo "make clean     removes everything that was built"

# In the profile "quick", which compiles in less than half of the time of a release.
run:
	@echo "Building ollana to show it; the first time, that takes about two minutes."
	@$(CARGO) build --profile quick --bin ollana --example demo
	@target/quick/examples/demo target/quick/ollana

build:
	@$(CARGO) build --release

# Most tests wait for something most of the time, so more of them run at once than there are cores. Those
# of crowds have hundreds of connections, and many systems start a shell with 1,024 descriptors.
test: export RUST_TEST_THREADS ?= $(shell expr 4 '*' "$$(getconf _NPROCESSORS_ONLN)")
test:
	@ulimit -n "$$(ulimit -Hn)" 2>/dev/null; $(CARGO) test --no-fail-fast

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh scripts/bench/*.sh scripts/boot/*.sh scripts/service/ollana.init scripts/service/ollana.openrc; \
	else echo "shellcheck is not installed, scripts not linted"; fi
	@if command -v hadolint >/dev/null; then hadolint scripts/service/Dockerfile; \
	else echo "hadolint is not installed, Dockerfile not linted"; fi

cross:
	@scripts/cross.sh

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items --quiet

check: lint doc test

messages:
	@$(CARGO) test --quiet --test tidy list_of_messages -- --ignored --nocapture

# Without what a busy machine is allowed elsewhere.
netns:
	OLLANA_STRICT=1 $(CARGO) test --test netns -- --nocapture

e2e:
	scripts/e2e.sh
	scripts/e2e-two.sh
	scripts/e2e-share.sh

desync: build
	OLLANA_BIN=target/release/ollana scripts/desync.sh

faults:
	@scripts/faults.sh

# How many weeks: make days DAYS=5000
days:
	DAYS="$(or $(DAYS),1000)" $(CARGO) test --release --test days every_week -- --nocapture

# How long: make soak SOAK=2h. Of the static binary, which is what other people get.
soak: static
	OLLANA_BIN=$(CURDIR)/target/$(TARGET)/release/ollana SOAK="$(SOAK)" $(CARGO) test --release --test soak -- --ignored --nocapture --test-threads 1

coverage:
	@scripts/coverage.sh

page:
	scripts/page.sh

# One of them: scripts/boot.sh systemd
boot:
	@scripts/boot.sh

# One of them: scripts/windows.sh stop
windows:
	@scripts/windows.sh

bench:
	$(CARGO) bench --bench bench

# On a machine that does nothing else. The static build is for its idle memory alone.
bench-page: static
	OLLANA_BENCH_STATIC=$(CURDIR)/target/$(TARGET)/release/ollana $(CARGO) bench --bench bench -- --page

bench-arm:
	scripts/bench/arm.sh

# What it needs it gets by itself, from rustup and PyPI: see scripts/static.sh.
static:
	scripts/static.sh $(TARGET)

# A Debian package of it. One for another machine needs a binary that runs here and writes the manual.
DEB_x86_64 = amd64
DEB_aarch64 = arm64
DEB_armv7 = armhf
deb: static $(if $(filter $(MACHINE)-%,$(TARGET)),,build)
	scripts/deb.sh target/$(TARGET)/release/ollana $(DEB_$(firstword $(subst -, ,$(TARGET))))

# For some targets only: scripts/dist.sh TARGET ...
dist:
	scripts/dist.sh

# Files only. scripts/install.sh also starts the service, whichever init system is there.
TO = $(DESTDIR)$(PREFIX)
SHARE = $(TO)/share
OLLANA = target/release/ollana
UNIT = $(TO)/lib/systemd/system/ollana.service
GENERATOR = $(TO)/lib/systemd/system-generators/ollana
RULES = $(SHARE)/polkit-1/rules.d/ollana.rules

install: build
	install -D -m 755 $(OLLANA) $(TO)/bin/ollana
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(dir $(UNIT)) \
	    $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(OLLANA) man > $(SHARE)/man/man1/ollana.1
	$(OLLANA) completions bash > $(SHARE)/bash-completion/completions/ollana
	$(OLLANA) completions zsh > $(SHARE)/zsh/site-functions/_ollana
	$(OLLANA) completions fish > $(SHARE)/fish/vendor_completions.d/ollana.fish
	sed 's|@PREFIX@|$(PREFIX)|g' scripts/service/ollana.service > $(UNIT)
	install -D -m 755 scripts/service/ollana.generator $(GENERATOR)
	install -D -m 644 scripts/service/ollana.rules $(RULES)
	@[ -n "$(DESTDIR)" ] || echo "at every boot: systemctl daemon-reload && systemctl enable --now ollana"

uninstall:
	rm -f $(TO)/bin/ollana $(SHARE)/man/man1/ollana.1 $(UNIT) $(GENERATOR) $(RULES) \
	    $(SHARE)/bash-completion/completions/ollana \
	    $(SHARE)/zsh/site-functions/_ollana $(SHARE)/fish/vendor_completions.d/ollana.fish

clean:
	$(CARGO) clean
