#!/usr/bin/env bash
# Shows that the simulations find bugs. Each patch of this folder plants one bug. The script applies it to a copy of the
# tree under target/planted, runs seeds until one fails, and prints which one. It fails if a bug is not found. Lost wake-ups
# that no seed is likely to show have tests of their own, in dispatch/wake_ups.rs.
#
# The patches here are bugs of the protocol, and of the code around the pure core. For bugs in a single function of
# src/core/ use `make mutants`: its changes are made on demand, so no patch has to follow lines that move.
#
# The patches in membership/ are for the simulation of group members, which is one of the library's tests. With names of
# patches as arguments, only these are run.
set -euo pipefail
cd "$(dirname "$0")/../../.."

seeds="${SEEDS:-2000}"
# How long the build and the seeds of one patch may take.
within="${WITHIN:-20m}"
tree=target/planted/tree
mkdir -p "$tree"
missed=0
if [ $# -eq 0 ]; then
    set -- tests/simulation/planted/*.patch tests/simulation/planted/membership/*.patch
fi
for patch in "$@"; do
    case "$patch" in
        */membership/*) simulation=(--lib -- membership::simulation::thousands_of_seeds) ;;
        *) simulation=(--test simulation -- thousands_of_seeds wake_ups) ;;
    esac
    git ls-files -z -- Cargo.toml Cargo.lock src tests benches | xargs -0 tar -cf - | tar -xf - -C "$tree"
    # `patch` and not `git apply`, which would use the repository around the copy.
    # Without fuzz: a patch whose context has changed may land in the wrong place, and its bug would not be the one it names.
    (cd "$tree" && patch --quiet -F0 -p1) <"$patch"
    log="target/planted/$(basename "$patch" .patch).log"
    result=0
    CARGO_TARGET_DIR=target/planted/build EVENTD_SIM_SEEDS="$seeds" \
        timeout "$within" cargo test --manifest-path "$tree/Cargo.toml" "${simulation[@]}" --nocapture >"$log" 2>&1 || result=$?
    # There are two threads, and each ends at its first failing seed. Without `--nocapture` the line of one would be lost if
    # the other one runs for ever.
    first=$(sed -n 's/.*replay: EVENTD_SIM_FIRST=\([0-9]*\) .*/\1/p' "$log" | sort -n | head -n 1)
    if [ -n "$first" ]; then
        echo "$(basename "$patch" .patch): caught by seed $first"
    elif test=$(sed -n 's/^test .*wake_ups::\(.*\) \.\.\. FAILED$/\1/p' "$log" | head -n 1) && [ -n "$test" ]; then
        echo "$(basename "$patch" .patch): caught by the test $test"
    elif [ $result = 124 ]; then
        # The bug may let a simulation run for ever. So it shows, but no seed is known.
        echo "$(basename "$patch" .patch): does not end within $within, see $log"
        missed=1
    elif ! grep -q '^running [1-9][0-9]* test' "$log"; then
        # No test ran, so the log is full of the compiler's errors.
        echo "$(basename "$patch" .patch): does not compile, see $log"
        missed=1
    else
        echo "$(basename "$patch" .patch): NOT caught in $seeds seeds, see $log"
        missed=1
    fi
done
exit $missed
