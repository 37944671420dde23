#!/usr/bin/env bash
# Runs a command with zig and cargo-zigbuild in its PATH: scripts/zig.sh cargo zigbuild --target TARGET
#
# zig compiles the C code of ring and links, for every target, so that no cross compiler has to be
# installed by hand. Both come from PyPI, into target/zig.
set -euo pipefail

tools=$(dirname "$0")/../target/zig
packages="ziglang==0.17.1 cargo-zigbuild==0.24.0"
# Written last: what was interrupted, or is older, is installed anew.
if [ "$(cat "$tools/installed" 2>/dev/null)" != "$packages" ]; then
    echo "getting $packages (100 MB, once)" >&2
    python3 -m venv --clear "$tools"
    # shellcheck disable=SC2086 # two words
    "$tools/bin/pip" install --quiet $packages
    echo "$packages" >"$tools/installed"
fi
PATH="$(cd "$tools/bin" && pwd):$PATH" exec "$@"
