#!/usr/bin/env bash
# Runs every test of every test binary, each in a process of its own, and says which ten took longest.
#
# libtest on stable Rust measures no single test. A process each gives the times, keeps a test that aborts from taking
# others with it, and shows that no test leans on another. Lines of a test's output that begin with "# " are what it
# counted, and are printed at the end. The whole output of a test is kept in target/tests/.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${CARGO_TARGET_DIR:-target}/tests"
rm -rf "$out"
mkdir -p "$out"

# Built first, so that a compiler's error is seen as cargo prints it.
cargo test --no-run
cargo test --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p' >"$out/binaries"
test -s "$out/binaries"

while read -r binary; do
    "$binary" --list --format terse | sed -n "s|^\(.*\): test\$|$binary \1|p"
done <"$out/binaries" >"$out/tests"

one() {
    local binary=$1 test=$2 begun=$EPOCHREALTIME file
    file="$3/$(basename "$binary" | sed 's/-[0-9a-f]*$//')::$test.log"
    local result=ok
    # Cargo would set the variable: some crates read it while tests run.
    CARGO_MANIFEST_DIR=$PWD "$binary" --exact "$test" --nocapture >"$file" 2>&1 || result=FAILED
    # Nothing is skipped: a test that did not run has failed, unless it is one that others run as their child.
    if grep -q "^test $test \.\.\. ignored, run by " "$file"; then
        result=child
    elif ! grep -q '^test result: ok. 1 passed' "$file"; then
        result=FAILED
    fi
    local ended=$EPOCHREALTIME
    echo "$(((${ended/./} - ${begun/./}) / 1000)) $result $(basename "$file" .log)"
}
export -f one

failed=0
xargs -P "$(nproc)" -L 1 bash -c 'one "$1" "$2" "$0"' "$out" <"$out/tests" | tee "$out/results" || failed=1
sed -n 's/^[0-9]* FAILED //p' "$out/results" | while read -r test; do
    printf '\n---- %s\n' "$test"
    cat "$out/$test.log"
done
cargo test --doc --quiet || failed=1

echo
echo "what the tests counted:"
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
