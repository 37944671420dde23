#!/usr/bin/env bash
# Counts what Ollana for ARM executes per token, small request and MB, plain and encrypted.
#   scripts/bench/arm.sh          builds static binaries for aarch64 and armv7, runs them under qemu-user
# Nothing here depends on time: counts are instructions, and a second run says which have changed. What is
# missing is installed: qemu-user (Debian's, which takes root) and zig (scripts/zig.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$target/arm"

fail() {
    echo "bench-arm: $1" >&2
    exit 1
}
if [ ! -x /usr/bin/qemu-aarch64 ] || [ ! -x /usr/bin/qemu-arm ]; then
    [ "$(id -u)" = 0 ] || fail "it takes qemu-user (Debian's), and root installs it by itself"
    echo "installing qemu-user (Debian's, 250 MB, once)"
    { apt-get update && apt-get install -y --no-install-recommends qemu-user; } >"$target/arm/apt.log" 2>&1 ||
        fail "qemu-user can't be installed, see $target/arm/apt.log"
fi
qemu-aarch64 -help | grep -q -- -plugin || fail "this qemu-user is built without plugins"
# Since 8.2, QEMU refuses plugins made for the first version of its API.
version=$(qemu-aarch64 --version | sed -n '1s/.*version \([0-9]*\.[0-9]*\).*/\1/p')
api=1
[ "$(printf '%s\n' 8.2 "$version" | sort -V | head -n 1)" = "$version" ] && [ "$version" != 8.2 ] || api=2

programs=()
for triple in aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf; do
    if scripts/static.sh $triple; then
        programs+=("$target/$triple/release/ollana")
    else
        [ "${#programs[@]}" = 1 ] || fail "there is no binary for $triple"
        echo "bench-arm: there is no binary for armv7, so neither armv7 nor ChaCha20 is measured" >&2
    fi
done
scripts/zig.sh python -m ziglang cc -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden -DAPI_VERSION=$api \
    -o "$target/arm/count.so" scripts/bench/count.c
echo "$(date -u +%F), $(qemu-aarch64 --version | head -n 1)"
# Without --release: only what runs under qemu is counted.
cargo test --quiet --bench bench -- --bench --arm "$target/arm/count.so" "${programs[@]}"
