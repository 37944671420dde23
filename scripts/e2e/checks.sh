# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with e2e.sh
# The checks of e2e.sh that need no client library.

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
five_times() { for _ in 1 2 3 4 5; do "$@"; done; }

# Nobody said --manage on A: its owner decides what is on its disk, and B's programs say so.
check_refusals() {
    local name opens
    name=$(name_of_a)
    opens="Error.* $name .*--manage on"
    echo "FROM $gguf" >"$work/Modelfile"
    expect "without --manage: ollama rm is refused" "$opens" refused rm "$model"
    expect "without --manage: ollama cp is refused" "$opens" refused cp "$model" copied
    expect "without --manage: ollama create is refused" "$opens" refused create plain -f "$work/Modelfile"
    expect "without --manage: ollama pull is refused" "$opens" refused pull llama3.2
    expect "without --manage: ollama run of a missing model says why" "$opens" refused run nosuch hi
    expect "without --manage: ollama run works" '[^ ]' cli run "$model" hi
    expect "without --manage: ollama stop works" '' cli stop "$model"
    expect "without --manage: the model is still there" "^$model:latest " cli list
}
refused() {
    local said
    said=$(cli "$@" 2>&1) && { echo "it was done" && return 1; }
    echo "$said"
}
name_of_a() { if ((${#naming[@]})); then echo ollana-a; else uname -n; fi; }

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

# Whatever a page's browser sends, it hears from B what Ollama itself would tell it.
check_origins() {
    local origin
    for origin in http://localhost https://localhost:3000 http://127.0.0.1:8080 https://0.0.0.0 http://[::1] \
        app://obsidian.md file:// file:///x.html tauri://localhost http://evil.example null http://localhost.evil.example \
        http://LOCALHOST http://a.good.example http://good.example http://a.good.example.evil.example \
        https://exact.example https://exact.example:1 http://exact.example chrome-extension://abc; do
        check "origin $origin is judged as by Ollama" same_cors "$origin"
    done
}
same_cors() {
    local method
    for method in GET OPTIONS; do
        cors_of a "$method" "$1" >"$work/cors.direct"
        cors_of b "$method" "$1" >"$work/cors.chain"
        diff "$work/cors.direct" "$work/cors.chain" || return 1
    done
    head -n 1 "$work/cors.chain"
}
# The list of fields that a page may send depends on Ollama's version.
cors_of() {
    ask "$1" /api/tags -X "$2" -H "Origin: $3" -H 'Access-Control-Request-Method: POST' -o /dev/null -D - |
        tr -d '\r' | sed -n '1p; /^access-control-allow-headers/Id; /^access-control-/Ip; /^vary/Ip' |
        sed 's/^\([A-Za-z-]*\):/\L\1:/' | sort
}

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
    before=$(logged a "$1")
    start curl b curl -sSN --max-time 60 "${@:4}" "${url[b]}$3"
    if within 10 "$2" && [ "$(logged a "$1")" = "$before" ]; then under_way=yes; fi
    stop curl KILL
    [ "$under_way" ] || { echo "it was not under way at Ollama when it should have been" && return 1; }
    within 2 logged_since a "$1" "$before"
}

# Proofs that the request has reached Ollama.
streams() { grep -q '"done":false' "$work/curl.log"; }
loaded() { ask a /api/ps | grep -q "\"$model:latest\""; }
uploads() { find "$work/a/models/blobs" -regex '.*/sha256-[0-9]+' -size +64k | grep -q .; }

check_restart() {
    stop ollama-a || true
    expect "Ollama stopped: /api answers an error" '^\{"error":"[^"]+.*\} 5[0-9]{2}$' flat /api/tags
    expect "Ollama stopped: /v1 answers an OpenAI error" '^\{"error":\{.*"message":"[^"]+.*\} 5[0-9]{2}$' flat /v1/models
    start_ollama a
    check "Ollama restarted: back by itself" within 5 ask b /api/tags --fail
    expect "Ollama restarted: generates" '"done":true' \
        ask b /api/generate -d "{\"model\":\"$model\",\"prompt\":\"hi\",\"stream\":false}"
}

# An Ollama that is started on B while ollana has its port there, and stopped again. `start` and
# `stop` must run in this shell.
check_roles() {
    ((${#namespaces[@]})) || return 0
    start_ollama b
    check "Ollama started on B: it gets its port at the first try" within 10 ollama_itself
    check "Ollama started on B: ollana shares it" \
        within 10 grep -q 'ready mode=server why="Ollama answers' "$work/ollana-b.log"
    expect "Ollama started on B: its own models" '^{"models":\[\]}' ask b /api/tags
    stop ollama-b >/dev/null || true
    check "Ollama stopped on B: A's models again" within 25 models_of_a
}
ollama_itself() {
    kill -0 "${pids[ollama-b]}" && ask b /api/version --fail -D "$work/head" && not grep -qi x-ollana "$work/head"
}
models_of_a() { ask b /api/tags --fail | grep -q "$model"; }

# Programs that insist on a model's name: B has another one behind it.
check_alias() {
    stop ollana-b || true
    start_ollana b --alias "gpt-4o=nobodys,$model" --alias text-embedding-3-small="$model"
    check "alias: ollana on B finds Ollama on A" within 20 ask b /api/version --fail
    expect "alias: ollama list has it" '^gpt-4o:latest ' cli list
    expect "alias: ollama run answers" '.' cli run gpt-4o hi
    expect "alias: ollama show tells of the model" 'llama' cli show gpt-4o
    check_program python env E2E_COPIED="$model" "$python" "$here/clients.py" "${url[b]}" gpt-4o
    check_program node node "$node_dir/client.mjs" "${url[b]}" gpt-4o
}

# A house whose machines have a key, and a device of the LAN that can't have one: the official clients
# go to A themselves, with a token.
check_token() {
    ((${#namespaces[@]})) || return 0
    local key=$work/key device=http://${place[a]} token
    od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$key"
    chmod 600 "$key"
    stop ollana-b || true
    stop ollana-a || true
    start_ollana a --key-file "$key"
    start_ollana b --key-file "$key"
    check "paired: ollana on B finds Ollama on A" within 20 ask b /api/version --fail
    expect "paired: without a token, it's refused" '^403$' code_of_device ""
    token=$(on a "$ollana" token add phone 2>/dev/null) || true
    expect "token: it is printed" '^ollana-[0-9a-f]{32}$' echo "$token"
    check "token: A takes it up" within 5 on b curl -sf -H "Authorization: Bearer $token" "$device/api/version"
    check_program python "$python" "$here/clients.py" "$device" "$model" "$token"
    check_program node node "$node_dir/client.mjs" "$device" "$model" "$token"
    expect "token: it is counted" '^phone +.* [1-9][0-9]* ' on a "$ollana" token list
    check "token: it is removed" on a "$ollana" token remove phone
    check "token: then it's refused" within 5 refuses_device "$token"
}
code_of_device() {
    on b curl -s -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $1" "http://${place[a]}/api/tags"
}
refuses_device() { [[ $(code_of_device "$1") = 40[13] ]]; }

# `stop` must run in this shell, whose children they are.
check_stop() {
    local host
    for host in b a; do
        if stop "ollana-$host" >/dev/null; then
            report "ok   SIGTERM ends the ollana on ${host^}"
        else
            report "FAIL SIGTERM ends the ollana on ${host^}: still running after 10 s"
        fi
    done
}
