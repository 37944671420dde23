# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with e2e.sh
# The checks that need no client library. One line for each: `ok   what` or `FAIL what: why`.

results=$work/results
: >"$results"

report() { echo "$1" | tee -a "$results"; }
failures() { grep -c '^FAIL ' "$results" || true; }

# check WHAT COMMAND…: passes when the command does; the last line it prints says how or why.
check() {
    local said status=0
    ((SECONDS < out_of_time)) || { report "FAIL $1: out of time" && return; }
    set +e # errexit works in the subshell only where its status is not tested
    said=$(set -e && "${@:2}" 2>&1)
    status=$?
    set -e
    said=$(tail -n 1 <<<"$said" | tr -cd '[:print:]' | cut -c1-300)
    if ((status == 0)); then
        report "ok   $1${said:+ ($said)}"
    else
        report "FAIL $1: ${said:-exit status $status}"
    fi
}

# expect WHAT PATTERN COMMAND…: the command must pass and print a line that matches.
expect() { check "$1" prints "${@:2}"; }
prints() {
    local text
    text=$("${@:2}") || { echo "$text" && return 1; }
    grep -Eq -- "$1" <<<"$text" || { echo "no /$1/ in: ${text//$'\n'/ }" && return 1; }
}

# check_program NAME COMMAND…: a program on B that prints such lines itself.
check_program() {
    local line status=0
    on b timeout 90 "${@:2}" 2>&1 | while IFS= read -r line; do
        case $line in
            "ok   "* | "FAIL "*) report "$line" ;;
            *) echo "$line" >>"$work/$1.log" ;;
        esac
    done || status=$?
    ((status == 0)) || report "FAIL $1: ended with status $status"
}

check_cli() {
    expect "ollama list" "^$model:latest " cli list
    expect "ollama show" 'parameters +134' cli show "$model"
    expect "ollama run" '[^ ]' cli run "$model" hi
    expect "ollama ps" "^$model:latest " cli ps
    # Without parameters, since Ollama describes these in random order.
    echo "FROM $gguf" >"$work/Modelfile"
    # The command line uploads the file each time, and Ollama, which has it already, answers
    # without reading it: that answer must get through although its connection is closed.
    check "ollama create, five times" five_times cli create plain -f "$work/Modelfile"
    check "curl: /api/show has Ollama's own bytes" same /api/show -d '{"model":"plain"}'
    expect "ollama rm" "^deleted 'plain'" cli rm plain
}
cli() {
    on b env "${cli_env[@]}" timeout 30 "$ollama" "$@" 2>>"$work/cli.log" ||
        { tail -n 1 "$work/cli.log" | grep -o 'Error.*' && return 1; }
}
five_times() { for _ in 1 2 3 4 5; do "$@"; done; }

check_curl() {
    expect "curl: HEAD /" '^HTTP/1.1 200 ' ask b / --head
    expect "curl: GET /" '^Ollama is running$' ask b /
    ((${#namespaces[@]} == 0)) ||
        expect "curl: GET / at [::1]" '^Ollama is running$' on b curl -sS --max-time 20 'http://[::1]:11434/'
    check "curl: /api/tags has Ollama's own bytes" same /api/tags
    check "curl: unknown model gets Ollama's own bytes" same /api/show -d '{"model":"nosuch"}'
    expect "curl: unknown model is a 404" '^404$' code /api/show -d '{"model":"nosuch"}'
    expect "curl: foreign Host is refused" '^403$' code /api/tags -H 'Host: evil.example'
    expect "curl: foreign Origin is refused" '^403$' code /api/tags -H 'Origin: http://evil.example'
    check "curl: generate streams NDJSON" ndjson
    expect "curl: upload after 100 Continue" '^201$' upload 'Expect: 100-continue'
    expect "curl: upload in chunks" '^201$' upload 'Transfer-Encoding: chunked'
}

code() { ask b "$1" -o /dev/null -w '%{http_code}\n' "${@:2}"; }

# same PATH [CURL-ARGUMENT…]: through ollana and from Ollama directly.
same() {
    ask a "$@" -D "$work/direct.head" >"$work/direct"
    ask b "$@" -D "$work/chain.head" >"$work/chain"
    [ -s "$work/direct" ]
    cmp "$work/direct" "$work/chain"
    diff <(end_to_end "$work/direct.head") <(end_to_end "$work/chain.head")
    echo "$(wc -c <"$work/chain") bytes"
}
end_to_end() { head -n 1 "$1" && grep -iE '^content-(type|encoding):' "$1" | tr '[:upper:]' '[:lower:]'; }

ndjson() {
    ask b /api/generate -N -d "{\"model\":\"$model\",\"prompt\":\"hi\"}" >"$work/stream"
    awk '!/^\{.*\}$/ { broken = 1 } { last = $0 }
        END { print NR " lines"; exit broken || NR < 4 || last !~ /"done":true/ }' "$work/stream"
}

upload() {
    head -c 3000000 /dev/urandom >"$work/blob"
    code "/api/blobs/sha256:$(sha256sum "$work/blob" | cut -d' ' -f1)" -H "$1" --data-binary "@$work/blob"
}

# Ollama writes a request into its log when it is done with it: after a hang-up that
# line must follow at once, although the answer would have gone on for half a minute.
check_hang_up() {
    local endless="{\"model\":\"$model\",\"prompt\":\"hi\",\"options\":{\"num_predict\":-1,\"seed\":1}"
    check "hang-up while streaming reaches Ollama" \
        hang_up 'POST +"/api/generate"' streams /api/generate -d "$endless}"
    ask a /api/generate -d "{\"model\":\"$model\",\"keep_alive\":0}" >/dev/null
    within 10 not loaded >/dev/null || true
    check "hang-up before the first byte reaches Ollama" \
        hang_up 'POST +"/api/generate"' loaded /api/generate -d "$endless,\"stream\":false}"
    check "hang-up while uploading reaches Ollama" \
        hang_up 'POST +"/api/blobs/' uploads "/api/blobs/sha256:$(printf '0%.0s' {1..64})" \
        -X POST -H 'Transfer-Encoding: chunked' -T "$gguf" --limit-rate 1M
    # Ollama runs one request at a time here, so this one is answered only if it is idle.
    expect "a new request is served at once" '"done":true' \
        ask b /api/generate --max-time 5 -d "{\"model\":\"$model\",\"prompt\":\"hi\",\"stream\":false}"
}

# hang_up REQUEST UNDER-WAY PATH [CURL-ARGUMENT…]
hang_up() {
    local before under_way=
    before=$(logged "$1")
    start curl b curl -sSN --max-time 60 "${@:4}" "${url[b]}$3"
    if within 10 "$2" && [ "$(logged "$1")" = "$before" ]; then under_way=yes; fi
    stop curl KILL
    [ "$under_way" ] || { echo "it was not under way at Ollama when it should have been" && return 1; }
    within 2 logged_since "$1" "$before"
}
logged() { grep -cE "\[GIN\].* $1" "$work/ollama.log" || true; }
logged_since() { [ "$(logged "$1")" -gt "$2" ]; }

# Proofs that the request has reached Ollama.
streams() { grep -q '"done":false' "$work/curl.log"; }
loaded() { ask a /api/ps | grep -q "\"$model:latest\""; }
uploads() { find "$work/models/blobs" -regex '.*/sha256-[0-9]+' -size +64k | grep -q .; }

check_restart() {
    stop ollama || true
    expect "Ollama stopped: /api answers an error" '^\{"error":"[^"]+.*\} 5[0-9]{2}$' flat /api/tags
    expect "Ollama stopped: /v1 answers an OpenAI error" '^\{"error":\{.*"message":"[^"]+.*\} 5[0-9]{2}$' flat /v1/models
    start_ollama
    check "Ollama restarted: back by itself" within 5 ask b /api/tags --fail
    expect "Ollama restarted: generates" '"done":true' \
        ask b /api/generate -d "{\"model\":\"$model\",\"prompt\":\"hi\",\"stream\":false}"
}
flat() { ask b "$1" -w ' %{http_code}' | tr -d '\n'; }

# `stop` must run in this shell, whose children they are.
check_stop() {
    local name
    for name in client server; do
        if stop "$name" >/dev/null; then
            report "ok   SIGTERM ends the $name"
        else
            report "FAIL SIGTERM ends the $name: still running after 10 s"
        fi
    done
}
