#!/usr/bin/env bash
# Discovery at scale: so many clients start at the same moment on one LAN, beside two servers. Counts
# what crosses the LAN and compares it with what src/discovery/schedule.rs makes of it.
#
#   client 1 … client N ── bridge, which counts ── server 1, server 2      a network namespace each
#
# Needs root, ip, nft, curl and nginx, which stands in for Ollama. Prints a row of the table in
# README.md. Variables:
#
#   CLIENTS      how many (100)
#   WATCH        for how many seconds the LAN is watched after the start (30)
#   OPTIONS      further options of the two servers
#   OLLANA_BIN   the ollana to try; without it a release is built
set -euo pipefail
cd "$(dirname "$0")/../.."

clients=${CLIENTS:-100}
watch=${WATCH:-30}
burst=5    # rounds of probes after a start, the last after 1 s
interval=5 # seconds between two rounds after that
servers=2

give_up() { echo "discovery.sh: $*" >&2 && exit 1; }
((EUID == 0)) || give_up "network namespaces need root"
for tool in ip nft curl nginx; do command -v "$tool" >/dev/null || give_up "$tool is not installed"; done
((clients >= 1 && clients <= 1000)) || give_up "CLIENTS is 1 to 1000: a bridge has 1,024 ports"
if [ -n "${OLLANA_BIN:-}" ]; then
    ollana=$(realpath "$OLLANA_BIN")
else
    cargo build --release
    ollana=$(realpath "${CARGO_TARGET_DIR:-target}/release/ollana")
fi

work=$(mktemp -d)
name=ollana-scale-$$
pids=()
made=()
neighbours=$(sysctl -n net.ipv4.neigh.default.gc_thresh3)

clean_up() {
    local status=$? pid host
    trap - EXIT
    trap '' INT TERM
    # No farewells: what is measured is over.
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for host in "${made[@]}"; do ip netns delete "$host" 2>/dev/null || true; done
    sysctl -q -w net.ipv4.neigh.default.gc_thresh3="$neighbours"
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# All namespaces of a machine share one table of neighbours. On a LAN each machine has its own.
((neighbours > clients * 8)) || sysctl -q -w net.ipv4.neigh.default.gc_thresh3=$((clients * 8))

# host NAME ADDRESS: a machine on the bridge.
host() {
    ip netns add "$name-$1"
    made+=("$name-$1")
    ip link add eth0 netns "$name-$1" type veth peer name "p$1" netns "$name"
    ip -n "$name" link set "p$1" master br0 up
    ip -n "$name-$1" -batch - <<-END
	link set lo up
	address add $2/22 broadcast + dev eth0
	link set eth0 up
	END
}

address() { echo "10.81.$(($1 / 250)).$(($1 % 250 + 1))"; } # of the nth machine

ip netns add "$name"
made+=("$name")
ip -n "$name" link add br0 type bridge
ip -n "$name" link set br0 up
ip netns exec "$name" nft -f - <<-END
	table bridge count {
	    counter probes { }
	    counter answers { }
	    counter resolving { }
	    counter checks { }
	    chain pre {
	        type filter hook prerouting priority 0
	        ether type arp counter name resolving
	        udp dport 11436 counter name probes
	        udp sport 11436 udp dport != 11436 counter name answers
	        meta l4proto tcp counter name checks
	    }
	}
END

cat >"$work/nginx.conf" <<-END
	worker_processes 1;
	daemon off;
	error_log /dev/null;
	events { worker_connections 4096; }
	http {
	    access_log off;
	    client_body_temp_path $work; proxy_temp_path $work; fastcgi_temp_path $work;
	    uwsgi_temp_path $work; scgi_temp_path $work;
	    keepalive_requests 100000000;
	    server {
	        listen 127.0.0.1:11434;
	        location = /api/version { return 200 '{"version":"0.13.1"}'; }
	        location = /v1/models { return 200 '{"object":"list","data":[]}'; }
	        location / { return 200 '{"models":[]}'; }
	    }
	}
END

# run HOST PROGRAM ARGUMENT ...: in the background, with a name and an environment of its own.
run() {
    local at=$1
    shift
    mkdir -p "$work/$at"
    # shellcheck disable=SC2016  # it is for the other shell
    ip netns exec "$name-$at" env -i PATH="$PATH" HOME="$work/$at" \
        unshare --uts sh -c 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"' "$at" "$@" \
        >"$work/$at.log" 2>&1 </dev/null &
    pids+=($!)
    disown # so that nothing is said when it is killed
}

for ((n = 0; n < servers; n++)); do
    host "s$n" "$(address "$n")"
    run "s$n" nginx -p "$work/s$n" -c "$work/nginx.conf" -g "pid $work/s$n/pid;"
    # shellcheck disable=SC2086  # they are words
    run "s$n" "$ollana" --mode server --log-level warn --state-dir "$work/s$n" ${OPTIONS:-}
    served[n]=${pids[-1]}
done
mkfifo "$work/go"
for ((n = 0; n < clients; n++)); do
    host "c$n" "$(address $((n + servers)))"
    # shellcheck disable=SC2016  # it is for the other shell
    run "c$n" sh -c 'read -r line <"$0"; exec "$@"' "$work/go" \
        "$ollana" --mode client --log-level warn --listen 127.0.0.1:11434 --state-dir "$work/c$n"
done
sleep 3

# counters: packets of probes, answers, ARP and TCP so far.
counters() {
    ip netns exec "$name" nft list counters table bridge count |
        awk '/counter/ { which = $2 } /packets/ { n[which] = $2 }
             END { print n["probes"], n["answers"], n["resolving"], n["checks"] }'
}
cpu_ms() { awk '{ print ($14 + $15) * 10 }' "/proc/$1/stat"; }
now_ms() { date +%s%3N; }

read -r -a zero <<<"$(counters)"
start=$(now_ms)
: >"$work/go" # all of them at once
rows=()
for ((step = 1; step <= watch * 2; step++)); do
    pause=$((start + step * 500 - $(now_ms)))
    ((pause <= 0)) || sleep "$(printf '0.%03d' "$pause")"
    rows+=("$(now_ms) $(counters)")
    if ((step == watch)); then half_cpu=$(cpu_ms "${served[0]}") half_at=$(now_ms); fi
done
end_cpu=$(cpu_ms "${served[0]}") end_at=$(now_ms)

found=0
for ((n = 0; n < clients; n++)); do
    state=$(ip netns exec "$name-c$n" curl -s -m 2 http://127.0.0.1:11434/ollana/status || true)
    (($(grep -o '"health":"ready"' <<<"$state" | wc -l) < servers)) || found=$((found + 1))
done
dropped=$(ip netns exec "$name-s0" cat /proc/net/snmp | awk '/^Udp:/ && $2 + 0 { print $6 }')
threads=$(awk '/^Threads/ { print $2 }' "/proc/${served[0]}/status")
resident=$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/${served[0]}/status")
one=$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/${pids[-1]}/status")

printf '%s\n' "${rows[@]}" | awk -v start="$start" -v zero="${zero[*]}" -v n="$clients" -v burst="$burst" \
    -v interval="$interval" -v servers="$servers" -v found="$found" -v dropped="$dropped" -v threads="$threads" \
    -v resident="$resident" -v one="$one" -v watch="$watch" -v cpu=$((end_cpu - half_cpu)) \
    -v cpu_ms=$((end_at - half_at)) '
    BEGIN { split(zero, before) ; at[0] = start; for (k = 1; k <= 4; k++) count[0, k] = before[k] }
    {
        at[NR] = $1
        for (k = 1; k <= 4; k++) count[NR, k] = $(k + 1)
        # Per second, over two steps.
        if (NR > 1) for (k = 1; k <= 4; k++) {
            rate = (count[NR, k] - count[NR - 2, k]) * 1000 / (at[NR] - at[NR - 2])
            if (rate > peak[k]) peak[k] = rate
        }
    }
    END {
        half = int(NR / 2); seconds = (at[NR] - at[half]) / 1000
        for (k = 1; k <= 4; k++) steady[k] = (count[NR, k] - count[half, k]) / seconds
        printf "%d clients, %d servers: %d clients found all of them\n", n, servers, found
        printf "probes: %d until second %d (computed %d), peak %.0f/s (at most %d/s), then %.1f/s (computed %.1f)\n",
            count[half, 1] - before[1], watch / 2, n * (burst + int((watch / 2 - 1) / interval)),
            peak[1], n * burst, steady[1], n / interval
        printf "answers: peak %.0f/s, then %.1f/s (computed %.1f); server 1 dropped %d datagrams\n",
            peak[2], steady[2], n * servers / interval, dropped
        printf "ARP: peak %.0f/s, then %.1f/s\n", peak[3], steady[3]
        printf "TCP, which is health checks: peak %.0f/s, then %.0f/s, %.1f for each client, server and second\n",
            peak[4], steady[4], steady[4] / n / servers
        printf "server 1: %.1f %% of a core, %d threads, %.1f MiB; a client %.1f MiB\n",
            cpu * 100 / cpu_ms, threads, resident, one
    }'
