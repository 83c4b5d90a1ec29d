#!/usr/bin/env bash
# Runs every test of every test binary in a process of its own, and prints the ten slowest.
#
# libtest on stable Rust does not measure single tests. With one process for each test there are times, a test that aborts
# does not end others, and no test can depend on another. Output lines of a test that begin with "# " are its counts, and
# are printed at the end. The complete output of each test is in target/tests/.
#
# A real Kafka starts while cargo builds. Tests find it at EVENTD_TEST_KAFKA. If that is set already, the tests use that
# broker instead. Tests that kill or pause brokers start their own in a folder under EVENTD_TEST_BROKERS. They are in
# modules named `faults`, and run one at a time after the others. No broker outlives the run.
#
# run.sh PATTERN only runs the tests whose names match the pattern of grep -E.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -n "${EVENTD_TEST_KAFKA:-}" ] || tests/needs.sh

only=${1:-}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out="$target/tests"
export EVENTD_TEST_BROKERS="$target/tests-brokers"

# stop_brokers FLAGS…: stops all brokers, including those of tests that were killed.
stop_brokers() {
    local folder
    for folder in "$EVENTD_TEST_BROKERS"/*/; do
        [ ! -e "$folder/nodes" ] || compose/broker stop --now --dir "$folder" "$@"
    done
}

# in_front COMMAND…: runs it in a process group of its own, so that a signal ends all of it at once.
group=
in_front() {
    set -m
    "$@" &
    group=$!
    set +m
    local result=0
    wait "$group" || result=$?
    group=
    return $result
}

starting=
leave() {
    local failed=$?
    trap '' INT TERM HUP
    [ -z "$group" ] || kill -TERM -- "-$group" 2>/dev/null || true
    [ -z "$starting" ] || { kill "$starting" && wait "$starting"; } 2>/dev/null || true
    # After a failure, the brokers' logs may explain it.
    if [ $failed = 0 ]; then stop_brokers --delete; else stop_brokers; fi
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Remove what a killed run has left.
stop_brokers --delete
rm -rf "$out" "$EVENTD_TEST_BROKERS"
mkdir -p "$out"

if [ -z "${EVENTD_TEST_KAFKA:-}" ]; then
    # Some tests write records with old times. Retention would remove them at an unknown moment.
    compose/broker start --port 0 --no-topic --set log.retention.ms=-1 --dir "$EVENTD_TEST_BROKERS/shared" \
        >"$out/kafka" 2>"$out/kafka.log" &
    starting=$!
fi

# Build first, so that errors of the compiler appear as cargo prints them.
in_front cargo test --no-run
cargo test --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p' >"$out/binaries"
test -s "$out/binaries"

while read -r binary; do
    "$binary" --list --format terse | sed -n 's|^\(.*\): test$|\1|p' | { grep -E -e "$only" || true; } | sed "s|^|$binary |"
done <"$out/binaries" >"$out/tests"
test -s "$out/tests" || { echo "no test has a name that matches ${only@Q}" >&2; exit 1; }

if [ -n "$starting" ]; then
    wait "$starting" || {
        starting=
        cat "$out/kafka.log"
        echo "no Kafka to test against: it did not start, see above"
        exit 1
    }
    starting=
    EVENTD_TEST_KAFKA=$(cat "$out/kafka")
    tail -n 1 "$out/kafka.log"
fi
export EVENTD_TEST_KAFKA

one() {
    local binary=$1 test=$2 begun=$EPOCHREALTIME file
    file="$3/$(basename "$binary" | sed 's/-[0-9a-f]*$//')::$test.log"
    local result=ok
    # Some crates read this variable while tests run. Cargo would set it.
    CARGO_MANIFEST_DIR=$PWD "$binary" --exact "$test" --nocapture >"$file" 2>&1 || result=FAILED
    # No test is skipped: a test that did not run has failed, unless another test runs it as its child.
    if grep -q "^test $test \.\.\. ignored, run by " "$file"; then
        result=child
    elif ! grep -q '^test result: ok. 1 passed' "$file"; then
        result=FAILED
    fi
    local ended=$EPOCHREALTIME
    echo "$(((${ended/./} - ${begun/./}) / 1000)) $result $(basename "$file" .log)"
}
export -f one

# all PROCESSES: runs the tests that it reads from standard input.
all() {
    xargs -r -P "$1" -L 1 bash -c 'one "$1" "$2" "$0"' "$out" | tee -a "$out/results"
}
everything() {
    local failed=0
    { grep -v '[ :]faults::' "$out/tests" || true; } | all "$(nproc)" || failed=1
    { grep '[ :]faults::' "$out/tests" || true; } | all 1 || failed=1
    return $failed
}

failed=0
in_front everything || failed=1
sed -n 's/^[0-9]* FAILED //p' "$out/results" | while read -r test; do
    printf '\n---- %s\n' "$test"
    cat "$out/$test.log"
done
stop_brokers
[ -n "$only" ] || in_front cargo test --doc --quiet || failed=1

echo
echo "counts of the tests:"
grep -h '^# ' "$out"/*.log | sort -u || true
echo
echo "the ten slowest, in ms:"
grep -E '^[0-9]+ ok ' "$out/results" | sort -rn | sed -n 1,10p || true
echo
children=$(grep -cE '^[0-9]+ child ' "$out/results" || true)
passed=$(grep -cE '^[0-9]+ ok ' "$out/results" || true)
total=$(($(wc -l <"$out/tests") - children))
echo "$passed passed, $((total - passed)) failed"
[ "$passed" = "$total" ] && [ $failed = 0 ]
