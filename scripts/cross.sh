#!/usr/bin/env bash
# Checks that ollana compiles for every system that it is for, without a warning: scripts/cross.sh [TARGET]...
# Needs rustup, and python3-venv for zig (scripts/zig.sh), which compiles the C code of ring; with --prepare
# it gets them only.
set -euo pipefail
cd "$(dirname "$0")/.."

prepare=
[ "${1-}" != --prepare ] || { prepare=1 && shift; }
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(x86_64-pc-windows-gnu aarch64-apple-darwin
    x86_64-apple-darwin x86_64-unknown-freebsd)
rustup --quiet target add "${targets[@]}"
if [ -n "$prepare" ]; then
    exec scripts/zig.sh true
fi
for target in "${targets[@]}"; do
    echo "checking for $target"
    scripts/zig.sh cargo-zigbuild clippy --quiet --lib --bins --target "$target" -- -D warnings
done
