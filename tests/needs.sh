#!/usr/bin/env bash
# Checks for what the tests need in addition to Rust and a C compiler: Java and Maven, for a real Kafka. For root on
# Debian or Ubuntu, as in CI, it installs them. Otherwise it prints the commands that install them.
set -euo pipefail
cd "$(dirname "$0")/.."

if compose/broker needs; then exit; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "or use another broker: EVENTD_TEST_KAFKA=localhost:9092 make test" >&2
    exit 1
fi
echo "installing Java and Maven with apt-get" >&2
install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2; }
apt-get update -qq >&2
# Each release of Debian has one of these two.
install openjdk-17-jdk-headless maven || install openjdk-21-jdk-headless maven
compose/broker needs
