#!/usr/bin/env bash
# End-to-end run of pulls that get their bytes from the LAN: real Ollamas on hosts A, C and D, and a
# registry on host B that is Ollama's own to them, slow as the internet is, with faults as wanted.
#
#   host B: registry.ollama.ai ◄────────── host D: Ollama ◄─ POST /api/blobs ─ ollana ◄─ POST /api/pull
#                                                                                │
#   host A: ollana, Ollama's models on disk ◄── GET /ollana/blobs/sha256:… ──────┤
#   host C: the same ◄───────────────────────────────────────────────────────────┘
#
# Needs root, for network namespaces. Variables as in e2e.sh.
# shellcheck disable=SC1091,SC2034,SC2154  # variables shared with the files of e2e/
set -euo pipefail

cd "$(dirname "$0")/.."
servers=(a c d)
programs=(openssl python3 tc)

. scripts/e2e/setup.sh
. scripts/e2e/share.sh

set_up
((${#namespaces[@]})) || give_up "needs network namespaces: run it as root"
out_of_time=$((SECONDS + 400))
start_registry
for host in "${servers[@]}"; do start_ollama "$host" && start_ollana "$host"; done
for host in "${servers[@]}"; do
    check "ollana on ${host^} answers" within 20 local_api "$host" /api/version --fail
done
(($(failures) == 0)) || exit 1

for case in ${E2E_CASES:-donated dies two_donors wrong_bytes rogue full_disk leaves at_once copies unreadable encrypted}; do
    between_cases
    "check_$case"
done
close
