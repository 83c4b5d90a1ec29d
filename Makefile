# `make test` is every test; CI runs it through .ci/run. Nothing here needs more than Rust, a C compiler and bash.

# Seeds of `make simulate`.
SEEDS ?= 100000
# What `make run` delivers to.
DEST ?= file-1

.PHONY: run test check simulate planted bench

# The first command of README.md.
run:
	cargo run --release -- up --dest $(DEST)

# Every test, each in a process of its own; prints the ten slowest and what tests counted.
test:
	bash tests/run.sh

# What a change has to pass before its tests are looked at.
check:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

# More seeds of the simulation than `make test` runs: make simulate SEEDS=100000
simulate:
	EVENTD_SIM_SEEDS=$(SEEDS) cargo test --release --test simulation

# Shows that the simulation finds what it is for: bugs planted into a copy, one patch each.
planted:
	bash tests/simulation/planted/run.sh

# The table of docs/performance.md.
bench:
	cargo bench --bench delivery
