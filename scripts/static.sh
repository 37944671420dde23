#!/usr/bin/env bash
# Builds for another system: scripts/static.sh x86_64-unknown-linux-musl (static), or Windows, macOS.
#
# The target's standard library comes from rustup; where rustup has none, Debian's rustc-web, cargo-web
# and rust-web-src build it. zig compiles the C code, and links where Rust can't. No folder of this
# machine gets into the binary: the same commit and compiler make the same bytes anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: scripts/static.sh TARGET}

is_here() {
    [ -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)" ]
}
if ! is_here && command -v rustup >/dev/null; then
    rustup --quiet target add "$target" || echo "rustup has no standard library for $target" >&2
fi
options=()
flags=("--remap-path-prefix=$PWD=.")
case $target in
*-linux-musl*)
    # Rust's own linker and its musl; zig would compile one first. Equal functions are there once, and
    # what is to be relocated is a bitmap: 3 % of the binary.
    if is_here; then
        declare -x "CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$target")_LINKER=rust-lld"
        flags+=(-Clink-arg=--icf=all -Clink-arg=-zpack-relative-relocs)
    fi
    ;;
esac
if ! is_here; then
    if [ ! -x /usr/bin/cargo ] || [ ! -d /usr/lib/rustlib/src ]; then
        echo "no standard library for $target here; one of" >&2
        echo "  rustup target add $target" >&2
        echo "  apt-get install rustc-web cargo-web rust-web-src" >&2
        exit 1
    fi
    export PATH=/usr/bin:/bin RUSTC_BOOTSTRAP=1
    options+=("-Zbuild-std=std,panic_unwind")
    flags+=(-Clink-self-contained=no)
fi
cargo fetch --quiet --locked
sources=$(rustc --print sysroot)/lib/rustlib/src/rust
flags+=("--remap-path-prefix=$sources=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')")
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags+=("--remap-path-prefix=$sources=crates")
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
scripts/zig.sh cargo zigbuild --release --locked "${options[@]}" --target "$target"
