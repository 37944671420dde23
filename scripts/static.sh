#!/usr/bin/env bash
# Builds a static musl binary: scripts/static.sh x86_64-unknown-linux-musl
#
# With the target's standard library (rustup target add TARGET) and a C compiler for the target
# (Debian's musl-tools for x86_64), plain cargo does it. Without rustup, Debian's rustc-web, cargo-web
# and rust-web-src build the standard library too, and ziglang with cargo-zigbuild (from PyPI)
# compile the C code and link.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: scripts/static.sh TARGET}
budget=4194304 # bytes; a Raspberry Pi's SD card doesn't care, a reader of the README does
out=target/$target/release/ollana

if [ -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)" ]; then
    # rust-lld links every musl target; only the C code of ring needs the target's compiler.
    linker=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$target")_LINKER
    env "$linker=rust-lld" cargo build --release --target "$target"
elif [ -x /usr/bin/cargo ] && [ -d /usr/lib/rustlib/src ]; then
    tools=target/zigbuild
    [ -x $tools/bin/cargo-zigbuild ] || {
        python3 -m venv $tools
        $tools/bin/pip install --quiet ziglang==0.17.1 cargo-zigbuild==0.24.0
    }
    env PATH="$PWD/$tools/bin:/usr/bin:/bin" RUSTC_BOOTSTRAP=1 \
        RUSTFLAGS=-Clink-self-contained=no \
        cargo zigbuild --release -Zbuild-std=std,panic_unwind --target "$target"
else
    echo "no standard library for $target here; one of" >&2
    echo "  rustup target add $target" >&2
    echo "  apt-get install rustc-web cargo-web rust-web-src python3-venv" >&2
    exit 1
fi

size=$(wc -c <"$out")
echo "$out: $size bytes (budget $budget)"
[ "$size" -le "$budget" ]
