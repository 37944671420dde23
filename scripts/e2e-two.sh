#!/usr/bin/env bash
# End-to-end run with two servers: a real Ollama on host A and on host C, each with models of its
# own, and Ollama's programs on host B, for which the two are one.
#
#   host B                              ┌─► host A: ollana ──► Ollama: alpha, both
#   programs ──► ollana (client) ──LAN──┤
#                                       └─► host C: ollana ──► Ollama: gamma, both
#
# Hosts and variables as in e2e.sh.
# shellcheck disable=SC1091,SC2034,SC2154  # variables shared with the files of e2e/
set -euo pipefail

cd "$(dirname "$0")/.."
servers=(a c)
programs=()

. scripts/e2e/setup.sh
. scripts/e2e/two.sh

set_up
out_of_time=$((SECONDS + 180))
start_ollama a
make_model a both "$(variant 3)"
mkdir "$work/c/models"
cp -al "$work/a/models/." "$work/c/models/" # as if both had pulled it
start_ollama c
make_model a alpha "$gguf"
make_model c gamma "$gguf"
# shellcheck disable=SC2086  # the flags are words
for host in "${servers[@]}"; do start_ollana "$host" --manage on ${E2E_SERVER_FLAGS:-}; done
start_ollana b
# Nothing below means anything until the three have found each other.
check "B lists the models of A and C" within 20 has b alpha gamma both
(($(failures) == 0)) || exit 1

check_lists
check_use
check_conversations
check_choice
check_unload
check_changes
check_parallel
check_away ollama-c "C's Ollama killed"
check_away ollana-c "C's ollana killed"
((${#namespaces[@]} == 0)) || check_away cable "C unplugged"
close
