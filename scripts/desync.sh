#!/usr/bin/env bash
# Request smuggling: raw bytes → ollana (client) → ollana (server) → a strict upstream, which must
# see exactly the requests that a strict reader of those bytes sees before the first doubtful one.
#
#   OLLANA_BIN       the binary to test; built with cargo when unset
#   DESYNC_GUARDIAN  a checkout of aws/http-desync-guardian (or --guardian DIR)
#   DESYNC_LLHTTP    a checkout of nodejs/llhttp            (or --llhttp DIR)
#   DESYNC_SMUGGLER  a checkout of defparam/smuggler        (or --smuggler DIR)
#
# More in desync.sh --help. Only loopback is used; it takes about a minute.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ -z "${OLLANA_BIN:-}" ]; then
    cargo build --release
    OLLANA_BIN=${CARGO_TARGET_DIR:-target}/release/ollana
fi
OLLANA_BIN=$(realpath "$OLLANA_BIN")
export OLLANA_BIN PYTHONDONTWRITEBYTECODE=1
exec python3 scripts/desync/run.py "$@"
