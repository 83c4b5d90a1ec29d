# `make test` runs every test. CI runs it through .ci/run. It needs Rust, a C compiler and bash, and for a real Kafka Java 17
# and Maven. (tests/needs.sh installs them if it may.) `make bench` and `make compare` need both too.

# The number of seeds of `make simulate`.
SEEDS ?= 100000
# How many times more rounds `make torture` plays than `make test`.
TIMES ?= 10
# The destination of `make run`.
DEST ?= file-1
# The files that `make mutants` changes.
FILE ?= src/core/**/*.rs
# How long `make mutants` may take. One change takes some seconds.
MUTANTS_TIME ?= 2h
# A part of the names of the cases that `make bench` and `make compare` measure, and more of their options, such as --quick.
ONLY ?=
BENCH ?=

.PHONY: run test torture check simulate planted mutants bench compare

# The first command of README.md.
run:
	cargo run --release -- up --dest $(DEST)

# Runs every test in a process of its own, with a Kafka that compose/broker starts or the one at EVENTD_TEST_KAFKA. Prints
# the ten slowest tests, and what tests have counted.
test:
	bash tests/run.sh

# Runs the tests that kill, pause and restart with more rounds: make torture TIMES=10
torture:
	EVENTD_TEST_TORTURE=$(TIMES) bash tests/run.sh '(crash|faults)::'

# Every change must pass this before its tests are run.
check:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

# Runs more seeds of the simulations than `make test` does: make simulate SEEDS=100000
simulate:
	EVENTD_SIM_SEEDS=$(SEEDS) cargo test --release --test simulation
	EVENTD_SIM_SEEDS=$(SEEDS) cargo test --release --lib membership::simulation

# Shows that the simulations find bugs of the protocol, which are planted into a copy of the tree with one patch each.
planted:
	bash tests/simulation/planted/run.sh

# Changes the pure code of src/core/ in small steps, and shows which changes its unit tests do not notice. The results are
# in mutants.out/. One file only: make mutants FILE=src/core/window.rs
mutants:
	@cargo mutants --version >/dev/null 2>&1 || \
		{ echo "cargo-mutants is missing. Install it with: cargo install cargo-mutants --locked" >&2; exit 1; }
	timeout $(MUTANTS_TIME) cargo mutants --file '$(FILE)'

# Prints the tables of docs/performance.md and those of the cases of isolation. Some of them: make bench ONLY=isolation
bench:
	cargo bench --bench delivery -- $(if $(ONLY),--only $(ONLY)) $(BENCH)

# Runs a peer, which Maven fetches, next to eventd on one broker, and prints their tables.
compare:
	cargo bench --bench delivery -- compare $(if $(ONLY),--only $(ONLY)) $(BENCH)
