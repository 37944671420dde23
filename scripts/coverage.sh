#!/bin/sh
# Which lines no test reaches: a table per file, and the lines themselves in target/uncovered.txt.
# Needs cargo-llvm-cov, and llvm-cov of the compiler's LLVM version: rustup's llvm-tools, or
# Debian's llvm with LLVM_COV=llvm-cov-22 LLVM_PROFDATA=llvm-profdata-22.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
if ! $cargo llvm-cov --version >/dev/null 2>&1; then
    echo "cargo-llvm-cov is not installed: cargo install cargo-llvm-cov --locked"
    exit 0
fi
$cargo llvm-cov --ignore-run-fail --no-report "$@"
# Binaries that the tests start, without this script's variables, write theirs where they are.
find . -maxdepth 1 -name 'default_*.profraw' -exec mv {} target/llvm-cov-target/ \;
$cargo llvm-cov report --summary-only
$cargo llvm-cov report --show-missing-lines 2>/dev/null |
    sed -n '/^Uncovered Lines/,$p' >target/uncovered.txt
echo "the lines: target/uncovered.txt"
