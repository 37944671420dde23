#!/bin/bash
# Runs a Windows program under Wine, where nothing else of this user's is: wine.sh PROGRAM ARGUMENT ...
# cargo's runner for x86_64-pc-windows-gnu; scripts/windows.sh makes the prefix.
set -euo pipefail
PATH=/usr/bin:/bin:$PATH
windows=$(cd "$(dirname "$0")/../.." && pwd)/target/windows
export WINEPREFIX=${WINEPREFIX:-$windows/prefix} WINEDEBUG=${WINEDEBUG:--all} HOME=$windows
export OLLANA_TEST_CONSOLE=$windows/console.exe
unset DISPLAY
wine=$(command -v wine64 /usr/lib/wine/wine64 | head -n 1)
exec "$wine" "$@"
