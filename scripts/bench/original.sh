#!/usr/bin/env bash
# Ollana beside the program of the same name on crates.io (0.6.3, async, TLS between its two proxies),
# on the same cable, against the same stand-in for Ollama. Its ports are fixed, so each machine is a
# network namespace; its client sends to 255.255.255.255, for which it needs a default route.
#
#   load ──► client ──── cable ────► server ──► upstream       both programs at once, on other ports
#
# Needs root, ip and curl, and the other program:
#   cargo install ollana --locked --version 0.6.3 --root target/original
#
#   ORIGINAL     the other program (target/original/bin/ollana)
#   OLLANA_BIN   this one, a release; without it one is built
set -euo pipefail
cd "$(dirname "$0")/../.."

give_up() { echo "original.sh: $*" >&2 && exit 1; }
((EUID == 0)) || give_up "network namespaces need root"
original=$(realpath "${ORIGINAL:-target/original/bin/ollana}")
[ -x "$original" ] || give_up "no $original: cargo install ollana --locked --version 0.6.3 --root target/original"
if [ -z "${OLLANA_BIN:-}" ]; then
    cargo build --release
    OLLANA_BIN=${CARGO_TARGET_DIR:-target}/release/ollana
fi
ollana=$(realpath "$OLLANA_BIN")
bench=${BENCH_BIN:-$(cargo bench --bench bench --no-run 2>&1 | sed -n 's/.*(\(.*\/bench-[0-9a-f]*\))$/\1/p')}
bench=$(realpath "$bench")

work=$(mktemp -d)
name=ollana-original-$$
pids=()
clean_up() {
    local status=$? pid host
    trap - EXIT
    trap '' INT TERM
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for host in s t c; do ip netns delete "$name-$host" 2>/dev/null || true; done
    ip netns delete "$name" 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

on() {
    local at=$1
    shift
    ip netns exec "$name-$at" env -i PATH="$PATH" HOME="$work/$at" RUST_LOG="${RUST_LOG:-warn}" "$@"
}

# run HOST WHAT PROGRAM ARGUMENT ...: in the background; its number is $started.
run() {
    local at=$1 what=$2
    shift 2
    # The number is that of the program, which everything before it turns into.
    ip netns exec "$name-$at" env -i PATH="$PATH" HOME="$work/$at" RUST_LOG="${RUST_LOG:-warn}" "$@" \
        >"$work/$at-$what.log" 2>&1 </dev/null &
    started=$!
    pids+=("$started")
    disown
}

now_ms() { date +%s%3N; }

# within SECONDS COMMAND ...: until it succeeds; prints after how many milliseconds.
within() {
    local start deadline
    start=$(now_ms)
    deadline=$((start + $1 * 1000))
    shift
    until "$@" >/dev/null 2>&1; do
        (($(now_ms) < deadline)) || { echo "not in $(($(now_ms) - start)) ms" && return; }
        sleep 0.05
    done
    echo "$(($(now_ms) - start)) ms"
}

ip netns add "$name"
ip -n "$name" link add br0 type bridge
ip -n "$name" link set br0 up
for at in s t c; do
    ip netns add "$name-$at"
    ip link add eth0 netns "$name-$at" type veth peer name "p-$at" netns "$name"
    ip -n "$name" link set "p-$at" master br0 up
    ip -n "$name-$at" link set lo up
    mkdir -p "$work/$at/.local/share/ollana" "$work/$at/.config/ollana"
done
ip -n "$name-s" address add 10.83.0.1/24 broadcast + dev eth0
ip -n "$name-t" address add 10.83.0.2/24 broadcast + dev eth0
ip -n "$name-c" address add 10.83.0.3/24 broadcast + dev eth0
for at in s t c; do
    ip -n "$name-$at" link set eth0 up
    ip -n "$name-$at" route add default via 10.83.0.254
done

# Each of the other program knows the other two.
for at in s t c; do on "$at" "$original" device show; done | sed -n 's/^Device ID: *//p' >"$work/ids"
for at in s t c; do while read -r id; do on "$at" "$original" device allow "$id" >/dev/null; done <"$work/ids"; done

key=$work/key
(umask 077 && printf '5eed%.0s' {1..16} >"$key")
# The other program looks once whether there is an Ollama.
upstream() {
    run "$1" upstream "$bench" --bench --serve 0.0.0.0:11434
    within 10 on "$1" curl -s -m 2 --fail http://127.0.0.1:11434/api/version >/dev/null
}

upstream s
run s original "$original" serve
server=$started
run c original "$original" serve
client=$started
run s ollana "$ollana" --mode server --ollama http://127.0.0.1:11434 --listen 10.83.0.1:11445 --discovery-port 0 \
    --key-file "$key" --log-level warn --state-dir "$work/s/state"
own_server=$started
run c ollana "$ollana" --mode client --server 10.83.0.1:11445 --listen 127.0.0.1:11444 --discovery-port 0 \
    --key-file "$key" --log-level warn --state-dir "$work/c/state"
own_client=$started
asks() { on c curl -s -m 2 --fail "http://127.0.0.1:$1/api/version"; }
echo "Ollana: first answer after $(within 10 asks 11444); the other: after $(within 30 asks 11434)"

resident() { awk '/^VmRSS/ { printf "%.1f MiB", $2 / 1024 }' "/proc/$1/status"; }
echo "idle: Ollana $(resident "$own_server") and $(resident "$own_client")," \
    "the other $(resident "$server") and $(resident "$client")"
ip netns exec "$name-c" "$bench" --bench --quick --rounds "${ROUNDS:-3}" --only first-byte,requests,tokens \
    --direct 10.83.0.1:11434 --through "ollana=127.0.0.1:11444=$own_server,$own_client" \
    --through "original=127.0.0.1:11434=$server,$client"
echo "after that: Ollana $(resident "$own_server") and $(resident "$own_client")," \
    "the other $(resident "$server") and $(resident "$client")"

# Failover: a second server, and the first one ends or freezes.
upstream t
run t original "$original" serve
run t ollana "$ollana" --mode server --ollama http://127.0.0.1:11434 --listen 10.83.0.2:11445 --discovery-port 0 \
    --key-file "$key" --log-level warn --state-dir "$work/t/state"
kill -TERM "$own_client"
run c ollana2 "$ollana" --mode client --server 10.83.0.1:11445 --server 10.83.0.2:11445 --listen 127.0.0.1:11444 \
    --discovery-port 0 --key-file "$key" --log-level warn --state-dir "$work/c/state"
within 10 asks 11444 >/dev/null
sleep 12 # until both know of both
kill -STOP "$server" "$own_server"
echo "server frozen, until an answer: Ollana $(within 60 asks 11444), the other $(within 60 asks 11434)"
kill -CONT "$server" "$own_server"
sleep 12
kill -KILL "$server" "$own_server"
echo "server killed, until an answer: Ollana $(within 60 asks 11444), the other $(within 60 asks 11434)"
