#!/usr/bin/env bash
# End-to-end run: a real Ollama on host A, its own command line and the official
# Python, JavaScript and OpenAI clients on host B, and only ollana between them.
#
#   host B                                              host A
#   clients ──► ollana (client) 127.0.0.1:11434 ──LAN──► ollana (server) :11435 ──► Ollama 127.0.0.1:11434
#
# As root the hosts are two network namespaces, in which ollana gets no arguments
# and must find everything itself; otherwise they are two loopback addresses.
#
#   OLLANA_BIN        the binary to test; built with cargo when unset
#   OLLANA_E2E_DIR    where Ollama and the clients are kept between runs (target/e2e)
#   E2E_OLLAMA        an installed `ollama` to test against instead of the cached one
#   E2E_SERVER_FLAGS  more flags for the ollana on host A
#   E2E_HOSTS         `loopback` does without namespaces even as root
# shellcheck disable=SC1091,SC2034,SC2154  # variables shared with the files of e2e/
set -euo pipefail

cd "$(dirname "$0")/.."
servers=(a)
programs=(node npm)
model=tiny

. scripts/e2e/setup.sh
. scripts/e2e/checks.sh

set_up
install_clients
out_of_time=$((SECONDS + 300))
start_ollama a
make_model a "$model" "$gguf"
start_ollana a
start_ollana b
# Nothing below means anything until the two have found each other.
check "ollana on B finds Ollama on A" within 20 ask b /api/version --fail
(($(failures) == 0)) || exit 1
((${#namespaces[@]} == 0)) || check_refusals # on one machine, every caller may do everything
stop ollana-a || true
# shellcheck disable=SC2086  # the flags are words
start_ollana a --manage on ${E2E_SERVER_FLAGS:-}
check "ollana on B finds it again" within 20 ask b /api/version --fail
(($(failures) == 0)) || exit 1

check_curl
check_origins
check_cli
check_program python "$python" "$here/clients.py" "${url[b]}" "$model"
check_program node node "$node_dir/client.mjs" "${url[b]}" "$model"
check_hang_up
check_restart
check_roles
check_alias
check_token
check_stop
close
