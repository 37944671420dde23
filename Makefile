# make run    a demo of the whole thing on this machine
# make test   the tests
CARGO  ?= cargo
PREFIX ?= /usr/local
TARGET ?= $(shell uname -m)-unknown-linux-musl

.PHONY: help run build test check lint doc netns e2e desync page boot faults soak coverage bench static deb install uninstall clean

help:
	@echo "make run      build and show it: a fake Ollama, a server, a client, one chat"
	@echo "make test     all tests (those in network namespaces need root)"
	@echo "make check    formatting, lints, documentation, tests: what CI runs"
	@echo "make netns    only the tests on several hosts in network namespaces (root)"
	@echo "make e2e      a real Ollama with a real model and the official clients"
	@echo "make desync   request smuggling vectors against both proxies"
	@echo "make faults   the fault matrix: injected, seen, within what time (root)"
	@echo "make soak     a million requests and failures mixed in; SOAK=1h for longer"
	@echo "make coverage lines that no test reaches"
	@echo "make page     the page at /ollana/ in headless Chromium, with screenshots"
	@echo "make boot     clean Debian machines in qemu: install, boot, break, reboot (root)"
	@echo "make bench    beside nginx and HAProxy (some minutes)"
	@echo "make build    target/release/ollana"
	@echo "make static   a static binary for TARGET=$(TARGET)"
	@echo "make deb      a Debian package of that"
	@echo "make install  into DESTDIR=$(DESTDIR) PREFIX=$(PREFIX); make uninstall"

run: build
	@$(CARGO) build --release --quiet --example demo
	@target/release/examples/demo target/release/ollana

build:
	@$(CARGO) build --release

test:
	$(CARGO) test --no-fail-fast

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh scripts/service/ollana.init scripts/service/ollana.openrc; \
	else echo "shellcheck is not installed, scripts not linted"; fi

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items --quiet

check: lint doc test

netns:
	$(CARGO) test --test netns -- --nocapture

e2e:
	scripts/e2e.sh
	scripts/e2e-two.sh

desync: build
	OLLANA_BIN=target/release/ollana scripts/desync.sh

faults:
	@scripts/faults.sh

# How long: make soak SOAK=2h
soak:
	SOAK="$(SOAK)" $(CARGO) test --release --test soak -- --ignored --nocapture

coverage:
	@scripts/coverage.sh

page:
	scripts/page.sh

# One of them: scripts/boot.sh systemd
boot:
	@scripts/boot.sh

bench:
	$(CARGO) bench --bench bench

# With the target's standard library from rustup, plain cargo; else see scripts/static.sh.
static:
	scripts/static.sh $(TARGET)

# A Debian package of it.
DEB_x86_64 = amd64
DEB_aarch64 = arm64
DEB_armv7 = armhf
deb: build static
	scripts/deb.sh target/$(TARGET)/release/ollana $(DEB_$(firstword $(subst -, ,$(TARGET))))

# Files only. scripts/install.sh also starts the service, whichever init system is there.
TO = $(DESTDIR)$(PREFIX)
SHARE = $(TO)/share
OLLANA = target/release/ollana
UNIT = $(TO)/lib/systemd/system/ollana.service

install: build
	install -D -m 755 $(OLLANA) $(TO)/bin/ollana
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(dir $(UNIT)) \
	    $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(OLLANA) man > $(SHARE)/man/man1/ollana.1
	$(OLLANA) completions bash > $(SHARE)/bash-completion/completions/ollana
	$(OLLANA) completions zsh > $(SHARE)/zsh/site-functions/_ollana
	$(OLLANA) completions fish > $(SHARE)/fish/vendor_completions.d/ollana.fish
	sed 's|@PREFIX@|$(PREFIX)|g' scripts/service/ollana.service > $(UNIT)
	@[ -n "$(DESTDIR)" ] || echo "at every boot: systemctl daemon-reload && systemctl enable --now ollana"

uninstall:
	rm -f $(TO)/bin/ollana $(SHARE)/man/man1/ollana.1 $(UNIT) \
	    $(SHARE)/bash-completion/completions/ollana \
	    $(SHARE)/zsh/site-functions/_ollana $(SHARE)/fish/vendor_completions.d/ollana.fish

clean:
	$(CARGO) clean
