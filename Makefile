# The commands of the project. `make demo` shows it, `make test` proves it.

CARGO ?= cargo
# What `make test` and `make torture` build with: one profile, so that dependencies are compiled once.
PROFILE := verify

.PHONY: help demo test torture bench check book packages clean

help:
	@echo "make demo      three members replicate a real tree on this machine (no root needed)"
	@echo "make test      every test; names what it skips and why (installs packages when root)"
	@echo "make torture   hours: 100,000 histories, 1,000 kills, 1,000 power cuts, 10,000 installs"
	@echo "make bench     side by side with rsync, Syncthing and others (root; see bench/README.md)"
	@echo "make check     format, layers, lints: what to run before a commit"

demo:
	$(CARGO) run --quiet --release -p anabranch -- demo

test: packages
	$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- test

torture: packages
	$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- torture

bench:
	$(CARGO) build --release -p anabranch
	bench/run

check:
	$(CARGO) fmt --all --check
	$(CARGO) xtask check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

book:
	mdbook build docs

packages:
	@.ci/packages

clean:
	$(CARGO) clean
