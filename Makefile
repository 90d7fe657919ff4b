# These commands work on a fresh Debian or Ubuntu machine:
#
#   make demo        compare the paper's socket server with the AF_XDP engine, on this machine
#   make test        formatting, clippy, and all tests except those in guests
#   make test-guest  tests in virtual machines with emulated network cards
#   make loom        the rings and the timed table in every order of two threads
#   make audit       licences, sources and advisories of all dependencies (needs a network)
#
# make fuzz feeds mutated input to the parsers and the worker, for SECONDS (60) each. make soak
# disturbs running servers for MINUTES (60). One more installs the program, its manual, its
# completions and its systemd unit:
#
#   make install     into PREFIX, /usr/local by default
#
# Each command installs missing system packages and names them. It also installs Rust if there is
# none, or only an old one, and the distribution has a newer. It uses sudo only where root is
# needed: to install, and to run on network namespaces.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-guest loom audit bench fuzz soak install rust packages

CARGO ?= cargo
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
comma := ,
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
# Cargo itself runs unprivileged. The test programs run as root, so that no test is skipped.
AS_ROOT = env "CARGO_TARGET_$$(rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)_RUNNER=$(if $(SUDO),sudo -E,env)"

# To build: clang for the XDP program, the others for libbpf. To run: ip, which also checks the lab.
PACKAGES := clang gcc make pkg-config libelf-dev zlib1g-dev linux-libc-dev iproute2
TOOLS := clang cc pkg-config ip
# ifconfig is one of the tested binders. kmod and xz find and unpack the modules of a guest's
# kernel. faketime sets a server's clock. ethtool changes interfaces under a running server.
test test-guest: PACKAGES += net-tools kmod xz-utils faketime ethtool
test test-guest: TOOLS += ifconfig modprobe xz faketime ethtool
# dig and kxdpgun query examples/dns.rs.
test: PACKAGES += bind9-dnsutils knot-dnsutils
test: TOOLS += dig kxdpgun
# Rust components that only the tests need: cargo's names, then Debian 13's and 12's.
test loom: COMPONENTS := fmt clippy
test loom: RUST_13 := rustfmt rust-clippy
test loom: RUST_12 := rustfmt-web rust-web-clippy

help:
	@sed -n 's/^#   //p' Makefile

# Installs the distribution's cargo if it is new enough (Debian 13), else the one that it builds
# browsers with (Debian 12), else its rustup (Ubuntu 24.04). If rustup is installed already, its
# owner decides.
RUST := 1.85
RUSTUP := curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
rust:
	@enough() { [ "$$(printf '%s\n' $(RUST) "$$1" | sort -V | head -n 1)" = $(RUST) ]; }; \
	found() { $(CARGO) --version 2>/dev/null | cut -d ' ' -f 2 || true; }; \
	lacks() { \
	  for part in $(COMPONENTS); do $(CARGO) $$part --version >/dev/null 2>&1 || return 0; done; \
	  false; \
	}; \
	candidate() { apt-cache policy "$$1" | sed -n 's/^ *Candidate: //p' | grep -v none || true; }; \
	install() { echo "installing: $$*"; $(APT) install -y -qq --no-install-recommends "$$@" >/dev/null; }; \
	if enough "$$(found)" && ! lacks; then exit; fi; \
	help="$(RUSTUP)"; \
	if command -v rustup >/dev/null; then \
	  help="rustup update stable && rustup default stable && rustup component add rustfmt clippy"; \
	elif command -v apt-get >/dev/null; then \
	  $(APT) update -qq; \
	  if enough "$$(candidate cargo)"; then \
	    install cargo ca-certificates $(RUST_13); \
	  elif enough "$$(candidate cargo-web)"; then \
	    install cargo-web ca-certificates $(RUST_12); \
	  elif [ -n "$$(candidate rustup)" ]; then \
	    install rustup ca-certificates; \
	    rustup toolchain install stable --profile minimal --component rustfmt --component clippy; \
	    rustup default stable; \
	  fi; \
	  hash -r; \
	fi; \
	if ! enough "$$(found)" || lacks; then \
	  echo "Rust $(RUST) or newer is needed$(if $(COMPONENTS),$(comma) with rustfmt and clippy): $$help" >&2; \
	  exit 1; \
	fi

packages: rust
	@if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then \
	  missing=; \
	  for package in $(PACKAGES); do \
	    [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null || true)" = installed ] || missing="$$missing $$package"; \
	  done; \
	  if [ -n "$$missing" ]; then \
	    echo "installing:$$missing"; \
	    $(APT) update -qq; \
	    $(APT) install -y -qq --no-install-recommends $$missing >/dev/null; \
	  fi; \
	else \
	  missing=; \
	  for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	  for library in libelf zlib; do pkg-config --exists $$library 2>/dev/null || missing="$$missing $$library"; done; \
	  if [ -n "$$missing" ]; then \
	    echo "missing:$$missing. Debian has them in: $(PACKAGES). Install the packages of your distribution." >&2; \
	    exit 1; \
	  fi; \
	fi

demo: packages
	$(CARGO) build --release --locked
	$(SUDO) target/release/sixhop compare --addresses 2000

test: packages
	# Files by name: rustfmt finds no module that a macro declares.
	$(CARGO) fmt --check -- src/engine/*.rs src/engine/*/*.rs
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --lib -- -D warnings
	$(CARGO) clippy --locked --test vm -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	$(MAKE) loom
	$(AS_ROOT) $(CARGO) test --locked

# A package of its own: it builds in seconds.
loom: packages
	cd loom; $(CARGO) clippy --locked --lib --test orderings -- -D warnings
	cd loom; $(CARGO) test --locked

# Fetches a kernel and QEMU from Debian's packages if the machine has none that are recent enough.
test-guest: packages
	$(AS_ROOT) $(CARGO) test --locked --test vm

# Not part of the tests: it gets the advisories from the network, and builds cargo-deny if missing.
audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check

bench: packages
	$(CARGO) bench --locked

# Runs each fuzz target for SECONDS, or for RUNS inputs, starting from the corpus in the repository.
# Inputs that fail go to fuzz/artifacts. libFuzzer needs a C++ compiler; stable rustc is enough.
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

# Disturbs running servers for MINUTES, as root, on network namespaces; then prints a table.
MINUTES ?= 60
soak: packages
	SIXHOP_SOAK_SECONDS=$$((60 * $(MINUTES))) \
	  $(AS_ROOT) $(CARGO) test --release --locked --test all -- soak::

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
