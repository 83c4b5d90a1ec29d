#!/usr/bin/env bash
# Shows that the simulation finds what it is for: applies each patch of this folder, one planted bug each, to a copy of
# the tree under target/planted, runs the seeds until one fails, and says how many that took. Fails where a bug gets by.
set -euo pipefail
cd "$(dirname "$0")/../../.."

seeds="${SEEDS:-2000}"
tree=target/planted/tree
mkdir -p "$tree"
missed=0
for patch in tests/simulation/planted/*.patch; do
    git ls-files -z -- Cargo.toml Cargo.lock src tests benches | xargs -0 tar -cf - | tar -xf - -C "$tree"
    # Without a repository of its own the patch would be held against ours.
    (cd "$tree" && patch --quiet -p1) <"$patch"
    log="target/planted/$(basename "$patch" .patch).log"
    CARGO_TARGET_DIR=target/planted/build EVENTD_SIM_SEEDS="$seeds" \
        cargo test --manifest-path "$tree/Cargo.toml" --test simulation thousands_of_seeds >"$log" 2>&1 || true
    # Two threads, each of which ends at its first failing seed.
    first=$(sed -n 's/.*replay: EVENTD_SIM_FIRST=\([0-9]*\) .*/\1/p' "$log" | sort -n | head -n 1)
    if [ -n "$first" ]; then
        echo "$(basename "$patch" .patch): caught by seed $first, the $((first + 1)). of them"
    else
        echo "$(basename "$patch" .patch): NOT caught in $seeds seeds, see $log"
        missed=1
    fi
done
exit $missed
