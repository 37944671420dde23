#!/bin/sh
# Tests the page at /ollana/ in headless Chromium, and takes screenshots.
#   scripts/page.sh [FOLDER FOR THE SCREENSHOTS]
# Needs node and chromium (apt-get install chromium); playwright-core comes from npm. Where one of
# them is missing, it says so and is skipped.
set -eu
cd "$(dirname "$0")/.."

skip() {
    echo "the page was not tested: $1"
    exit 0
}
command -v node >/dev/null || skip "node is not installed"
CHROMIUM=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
    skip "chromium is not installed (apt-get install chromium)"
modules=${PAGE_MODULES:-target/page}
mkdir -p "$modules"
if [ ! -d "$modules/node_modules/playwright-core" ]; then
    npm install --silent --no-audit --no-fund --prefix "$modules" playwright-core@1 >/dev/null 2>&1 ||
        skip "playwright-core can't be had from npm"
fi
if [ -z "${OLLANA_BIN:-}" ]; then
    cargo build --quiet
    OLLANA_BIN=target/debug/ollana
fi
PAGE_MODULES=$(cd "$modules" && pwd)
PAGE_SHOTS=${1:-target/page/shots}
export CHROMIUM OLLANA_BIN PAGE_MODULES PAGE_SHOTS
exec node scripts/page/run.mjs
