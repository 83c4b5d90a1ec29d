#!/usr/bin/env bash
# Looks for what the tests need beside Rust and a C compiler: Java and Maven, for the real Kafka that they run against.
# Root on Debian or Ubuntu, as in CI, gets them installed; everybody else is told which commands install them.
set -euo pipefail
cd "$(dirname "$0")/.."

if compose/broker needs; then exit; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "or name a broker that may be used instead: EVENTD_TEST_KAFKA=localhost:9092 make test" >&2
    exit 1
fi
echo "installing Java and Maven with apt-get" >&2
install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2; }
apt-get update -qq >&2
# A release of Debian has one of the two.
install openjdk-17-jdk-headless maven || install openjdk-21-jdk-headless maven
compose/broker needs
