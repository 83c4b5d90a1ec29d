# `make test` is every test; CI runs it through .ci/run. It needs Rust, a C compiler and bash, and for the real Kafka that
# it tests against Java 17 and Maven (tests/needs.sh installs them where it may). The rest needs neither.

# Seeds of `make simulate`.
SEEDS ?= 100000
# How many times the rounds of `make test` are played by `make torture`.
TIMES ?= 10
# What `make run` delivers to.
DEST ?= file-1

.PHONY: run test torture check simulate planted bench

# The first command of README.md.
run:
	cargo run --release -- up --dest $(DEST)

# Every test, each in a process of its own, against a Kafka of its own (compose/broker) or the one at EVENTD_TEST_KAFKA;
# prints the ten slowest and what tests counted.
test:
	bash tests/run.sh

# The tests that kill, pause and restart, with more rounds: make torture TIMES=10
torture:
	EVENTD_TEST_TORTURE=$(TIMES) bash tests/run.sh '(crash|faults)::'

# What a change has to pass before its tests are looked at.
check:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

# More seeds of the simulations than `make test` runs: make simulate SEEDS=100000
simulate:
	EVENTD_SIM_SEEDS=$(SEEDS) cargo test --release --test simulation
	EVENTD_SIM_SEEDS=$(SEEDS) cargo test --release --lib membership::simulation

# Shows that the simulations find what they are for: bugs planted into a copy, one patch each.
planted:
	bash tests/simulation/planted/run.sh

# The table of docs/performance.md.
bench:
	cargo bench --bench delivery
