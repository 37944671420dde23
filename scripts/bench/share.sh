#!/usr/bin/env bash
# Benchmark of a donated layer: 2 GB from A's disk into D's Ollama, over a cable between two network
# namespaces, by a pull that ollana takes from A, and by curl from nginx into the same
# POST /api/blobs. In turns, with the real Ollama.
#
#   pull:  Ollama's registry (1 MB/s) ◄─ D's Ollama ◄─ ollana ◄─ GET /ollana/blobs ─ A's ollana
#   curl:  curl http://A/sha256-… | curl -T - http://D's Ollama/api/blobs/sha256:…    (A's nginx)
#
# Needs root and nginx. TMPDIR=/dev/shm leaves the disk out of it. Variables as in e2e.sh, and
#
#   ROUNDS   how often each is measured (3)
#   SIZE     of the layer, in MiB (2048)
# shellcheck disable=SC1091,SC2034,SC2154  # variables shared with the files of e2e/
set -euo pipefail

cd "$(dirname "$0")/../.."
servers=(a d)
programs=(openssl python3 tc nginx)
size=${SIZE:-2048}

. scripts/e2e/setup.sh
. scripts/e2e/share.sh

start_nginx() {
    mkdir -p "$work/nginx"
    cat >"$work/nginx.conf" <<-END
	worker_processes 1;
	pid $work/nginx/pid;
	error_log $work/nginx/error.log;
	events {}
	http {
	    access_log off;
	    sendfile on;
	    tcp_nopush on;
	    client_body_temp_path $work/nginx; proxy_temp_path $work/nginx; fastcgi_temp_path $work/nginx;
	    uwsgi_temp_path $work/nginx; scgi_temp_path $work/nginx;
	    server { listen 8080; root $work/a/models/blobs; }
	}
	END
    chmod 755 "$work" "$work/a" # its worker has a user of its own
    start nginx a nginx -c "$work/nginx.conf" -g 'daemon off;'
    within 10 on d curl -sS --fail -I "http://${place[a]%:*}:8080/$blob" >/dev/null
}

# cpu NAME: milliseconds that the processes of its group have used.
cpu() {
    local pid ticks=0 fields
    for pid in $(pgrep -g "${pids[$1]}"); do
        fields=$(sed 's/.*) //' "/proc/$pid/stat")
        # shellcheck disable=SC2086  # it is words
        set -- $fields
        ticks=$((ticks + ${12} + ${13}))
    done
    echo $((ticks * 1000 / $(getconf CLK_TCK)))
}

forget() { ask d /api/delete -X DELETE -d '{"model":"layer"}' >/dev/null; rm -f "$work/d/models/blobs/$blob"; }

# Each prints the milliseconds that the layer took, and those of CPU at A.
by_pull() {
    local before
    forget
    before=$(cpu ollana-a)
    pull d layer || return 1
    before=$(($(cpu ollana-a) - before))
    awk -v of="${blob/-/:}" -v cpu="$before" 'index($0, of) { last = $1 } index($0, of) && !first { first = $1 }
        END { print last - first, cpu }' "$work/pull-d"
}
by_curl() {
    local before start
    forget
    before=$(cpu nginx) start=$(now_ms)
    # shellcheck disable=SC2016  # for the inner shell
    on d sh -c 'curl -sS --fail "$0" | curl -sS --fail -X POST -T - "$1"' \
        "http://${place[a]%:*}:8080/$blob" "${url[d]}/api/blobs/${blob/-/:}" || return 1
    echo "$(($(now_ms) - start)) $(($(cpu nginx) - before))"
}

set_up
((${#namespaces[@]})) || give_up "needs network namespaces: run it as root"
start_registry
fresh layer "$size"
have a layer
blob=$(largest layer)
sync # a donor's layers have long been on its disk: nobody pays for writing them
for host in "${servers[@]}"; do start_ollama "$host" && start_ollana "$host" --log-level info; done
for host in "${servers[@]}"; do within 20 local_api "$host" /api/version --fail >/dev/null; done
start_nginx
internet '{"rate":1000000}'
for ((round = 1; round <= ${ROUNDS:-3}; round++)); do
    read -r curl_ms curl_cpu <<<"$(by_curl)"
    read -r pull_ms pull_cpu <<<"$(by_pull)"
    awk -v size="$size" -v c="$curl_ms" -v cc="$curl_cpu" -v p="$pull_ms" -v pc="$pull_cpu" -v n="$round" \
        -v given="$(given layer)" 'BEGIN {
        printf "round %d: pull %.0f MB/s, curl %.0f MB/s: %.2f (0.90 and more is wanted); ", n, size * 1048.576 / p, size * 1048.576 / c, c / p
        printf "CPU at A %d ms, nginx %d ms: %.2f (1.30 and less); registry gave %.0f MB so far\n", pc, cc, pc / cc, given / 1048576 }'
done
