# tidemark: `make help` lists what can be made.
#
# Each purpose has one profile, so that nothing is built twice: `demo` uses release, `test` and
# `check` use dev, `bench` uses bench.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# A shell that was open while rustup ran does not have cargo on its path yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

GUESTS := --manifest-path guest-images/Cargo.toml
# Of the demo: DEMO_FLAGS="--for 10s --json" for instance.
DEMO_FLAGS ?= --for 60s

# Of the soak: as long as this, as in 30m or 1h.
SOAK ?= 10m

# Of the fuzzers together, or of one of them, by its name.
FUZZ ?= 10m
FUZZ_TARGET ?=

.PHONY: help demo linux-guest test soak fuzz check bench lab-balloon clean tools kvm fmt-check

help: ## list these
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: kvm tools ## four guests of 256 MiB in a budget of 512 MiB, for a minute
	cargo build --release --locked
	"$${CARGO_TARGET_DIR:-target}/release/tidemark" run examples/demo.toml $(DEMO_FLAGS)

linux-guest: ## the Debian guest of examples/linux.toml, from packages
	guest-images/linux/setup.sh

test: tools fmt-check ## all tests; TIDEMARK_REQUIRE=1 turns skipped ones into failures
	cargo test --locked
	cargo test --locked $(GUESTS)

soak: kvm tools ## trouble for SOAK=10m; SOAK_TAKE=move or copy, TIDEMARK_SEED=N repeat a round
	cargo test --locked --no-run --test soak --test pager_oracle
	@# In a mount namespace of its own, where it may have one: what an interrupted round leaves
	@# mounted goes with it.
	own=$$(unshare -m true 2> /dev/null && echo "unshare -m" || true); \
	SOAK="$(SOAK)" $$own cargo test --locked --test soak -- --exact soak

fuzz: tools ## hostile input for FUZZ=10m, guided by coverage; FUZZ_TARGET=balloon for one target
	FUZZ="$(FUZZ)" FUZZ_TARGET="$(FUZZ_TARGET)" fuzz/run.sh

check: tools fmt-check ## formatting, lints, documentation, dependencies; CI runs it after the tests
	@cargo clippy --version > /dev/null 2>&1 || rustup component add clippy
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked $(GUESTS) --all-targets -- -D warnings
	@# tests/fuzz.rs compiles the bodies of the fuzz targets; this is about their own lock file.
	cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml > /dev/null
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps $(GUESTS) --workspace --exclude tidemark-guests
	@if cargo deny --version > /dev/null 2>&1; then \
		cargo deny --locked check bans licenses sources; \
	else \
		echo "NOT CHECKED: licences and sources of dependencies;" \
		     "cargo-deny is missing (cargo install --locked cargo-deny)"; \
	fi

bench: tools ## benchmarks
	cargo bench --locked

lab-balloon: tools ## ballooning a Linux guest beside QEMU's balloon, on an emulated host; FLAGS="--runs 5"
	tests/lab/setup.sh
	tests/lab/lab.sh --bench 6.12 --json $(FLAGS)

clean: ## remove everything that was built
	cargo clean
	cargo clean $(GUESTS)
	cargo clean --manifest-path fuzz/Cargo.toml

fmt-check:
	@cargo fmt --version > /dev/null 2>&1 || rustup component add rustfmt
	cargo fmt --check
	cargo fmt --all --check $(GUESTS)
	cargo fmt --check --manifest-path fuzz/Cargo.toml

# Beside Rust only a linker is needed.
tools:
	@if ! command -v cargo > /dev/null; then \
		echo "cargo is missing: install Rust from https://rustup.rs and try again" >&2; \
		exit 1; \
	fi
	@if ! command -v cc > /dev/null; then \
		echo "cc is missing: installing build-essential"; \
		if ! command -v apt-get > /dev/null; then \
			echo "there is no apt-get: install a C compiler (gcc or clang) and try again" >&2; \
			exit 1; \
		elif [ "$$(id -u)" = 0 ]; then as_root=""; \
		elif command -v sudo > /dev/null; then as_root=sudo; \
		else \
			echo "run this as root: apt-get install build-essential" >&2; \
			exit 1; \
		fi; \
		$$as_root apt-get update -q; \
		$$as_root apt-get install -y -q --no-install-recommends build-essential; \
	fi

# Said before anything is built; `tidemark check` says the same and more.
kvm:
	@if ! [ -e /dev/kvm ]; then \
		echo "/dev/kvm is missing: load kvm_intel or kvm_amd (sudo modprobe kvm_intel)," \
		     "or enable virtualization in the firmware or the outer hypervisor" >&2; \
		exit 1; \
	elif ! [ -r /dev/kvm -a -w /dev/kvm ]; then \
		echo "/dev/kvm: permission denied; sudo usermod -aG kvm $$(id -un), and log in again" >&2; \
		exit 1; \
	fi
	@if ! [ -r /dev/userfaultfd -a -w /dev/userfaultfd ] && [ "$$(id -u)" != 0 ] \
	    && [ "$$(cat /proc/sys/vm/unprivileged_userfaultfd 2> /dev/null)" != 1 ]; then \
		echo "userfaultfd: permission denied; sudo setfacl -m u:$$(id -un):rw /dev/userfaultfd," \
		     "or sudo sysctl -w vm.unprivileged_userfaultfd=1" >&2; \
		exit 1; \
	fi
