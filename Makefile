# These commands do everything on a fresh Debian or Ubuntu machine that has Rust:
#
#   make demo   compare the paper's socket server with the AF_XDP engine, on this machine
#   make test   formatting, clippy, and all tests
#   make audit  licences, sources and known holes of what is built in (takes a network)
#
# make fuzz feeds the parsers and the worker with mutated input for SECONDS (60) each; make soak does to servers what may happen to
# them for MINUTES (60). And one more puts the program, its manual and its completions where others find them:
#
#   make install   into PREFIX, /usr/local by default
#
# Each installs the system packages that are missing, and says which. Root is got by sudo where it is not there already,
# and only for what needs it: installing packages, and running on network namespaces.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test audit bench fuzz soak install packages

CARGO ?= cargo
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# To build: clang for the XDP program, the others for libbpf. To run: ip, which is also what the lab is checked with.
PACKAGES := clang gcc make pkg-config libelf-dev zlib1g-dev linux-libc-dev iproute2
TOOLS := clang cc pkg-config ip
# ifconfig is one of the ways of binding that are tested; kmod and xz find and unpack the modules of a guest's kernel; faketime sets
# a server's clock; ethtool does to an interface what its owner may.
test: PACKAGES += net-tools kmod xz-utils faketime ethtool
test: TOOLS += ifconfig modprobe xz faketime ethtool

help:
	@sed -n 's/^#   //p' Makefile

packages:
	@command -v $(CARGO) >/dev/null || { echo "cargo not found: install Rust 1.85 or newer (rustup.rs)" >&2; exit 1; }
	@if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then \
	  missing=; \
	  for package in $(PACKAGES); do \
	    [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null || true)" = installed ] || missing="$$missing $$package"; \
	  done; \
	  if [ -n "$$missing" ]; then \
	    echo "installing:$$missing"; \
	    $(SUDO) apt-get update -qq; \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  fi; \
	else \
	  missing=; \
	  for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	  for library in libelf zlib; do pkg-config --exists $$library 2>/dev/null || missing="$$missing $$library"; done; \
	  if [ -n "$$missing" ]; then \
	    echo "missing:$$missing. On Debian the packages are: $(PACKAGES). Install what your distribution calls them." >&2; \
	    exit 1; \
	  fi; \
	fi

demo: packages
	$(CARGO) build --release --locked
	$(SUDO) target/release/sixhop compare --addresses 2000

# Test programs run as root, so that none is skipped; cargo itself does not.
test: packages
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	host=$$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_'); \
	  env "CARGO_TARGET_$${host}_RUNNER=$(if $(SUDO),sudo -E,env)" $(CARGO) test --locked

# The database of advisories comes from the network, and cargo-deny is built where it is not there: that is no part of the tests.
audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check

bench: packages
	$(CARGO) bench --locked

# Each fuzz target for so many seconds, from the corpus in the repository; RUNS=N instead has each take so many inputs. What a
# target finds fault with is in fuzz/artifacts. libFuzzer needs a C++ compiler, and of rustc only what a stable one has.
SECONDS ?= 60
TARGETS ?= request ndp worker results profile
fuzz: PACKAGES += g++
fuzz: TOOLS += c++
fuzz: packages
	host=$$(rustc -vV | sed -n 's/^host: //p'); cd fuzz; \
	  RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	    -Cllvm-args=-sanitizer-coverage-trace-compares" \
	    $(CARGO) build --release --locked --target $$host; \
	  for target in $(TARGETS); do \
	    mkdir -p target/corpus/$$target artifacts/$$target; \
	    target/$$host/release/$$target -artifact_prefix=artifacts/$$target/ -max_len=8192 -print_final_stats=1 \
	      $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(SECONDS)) target/corpus/$$target corpus/$$target; \
	  done

# As root, on network namespaces: everything that may happen to a server, for so many minutes, and a table in the end.
MINUTES ?= 60
soak: packages
	host=$$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_'); \
	  env "CARGO_TARGET_$${host}_RUNNER=$(if $(SUDO),sudo -E,env)" SIXHOP_SOAK_SECONDS=$$((60 * $(MINUTES))) \
	    $(CARGO) test --release --locked --test soak

PREFIX ?= /usr/local
SHARE := $(DESTDIR)$(PREFIX)/share
install: packages
	$(CARGO) build --release --locked
	$(SUDO) install -D target/release/sixhop $(DESTDIR)$(PREFIX)/bin/sixhop
	sed 's|/usr/local/bin|$(PREFIX)/bin|' dist/sixhop@.service | $(SUDO) install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/sixhop@.service
	$(SUDO) install -d $(DESTDIR)/etc/sixhop
	$(SUDO) target/release/sixhop man --out $(SHARE)/man/man1
	$(SUDO) install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	target/release/sixhop completions bash | $(SUDO) tee $(SHARE)/bash-completion/completions/sixhop >/dev/null
	target/release/sixhop completions zsh | $(SUDO) tee $(SHARE)/zsh/site-functions/_sixhop >/dev/null
	target/release/sixhop completions fish | $(SUDO) tee $(SHARE)/fish/vendor_completions.d/sixhop.fish >/dev/null
