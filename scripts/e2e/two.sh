# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with e2e-two.sh
# The checks of e2e-two.sh.

# has HOST MODEL…: all of them are in its list. lacks HOST MODEL: it has a list without it.
has() {
    local list model
    list=$(ask "$1" /api/tags --fail) || return 1
    for model in "${@:2}"; do [[ $list == *"\"name\":\"$model:latest\""* ]] || return 1; done
}
lacks() {
    local list
    list=$(ask "$1" /api/tags --fail) && [[ $list != *"\"name\":\"$2:latest\""* ]]
}

# Bodies of requests.
generate() { echo "{\"model\":\"$1\",\"prompt\":\"hi\",\"stream\":false${2:+,$2}}"; }
chat() { echo "{\"model\":\"$1\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":false,\"max_tokens\":16}"; }

# by HOST PATH [CURL-ARGUMENT…]: that host answers, by the answer's header and its Ollama's log.
by() {
    local before status started
    before=$(logged "$1" "\"$2\"")
    started=$(now_ms)
    status=$(ask b "$2" -D "$work/head" -o "$work/answer" -w '%{http_code}' "${@:3}")
    echo "$(($(now_ms) - started)) ms"
    [ "$status" = 200 ] || { echo "$status $(cat "$work/answer")" && return 1; }
    within 1 logged_since "$1" "\"$2\"" "$before" >/dev/null || { echo "another server did it" && return 1; }
    [ "$(header_name)" = "$(name_of "$1")" ] || { echo "the header says $(header_name)" && return 1; }
}
header_name() { sed -n 's/^x-ollana-server: \(.*\)\r$/\1/Ip' "$work/head"; }
name_of() { if ((${#naming[@]})); then echo "ollana-$1"; else uname -n; fi; }

check_lists() {
    expect "ollama list has each model once" '^alpha:latest both:latest gamma:latest $' names cli list
    expect "/v1/models has each model once" '^alpha:latest both:latest gamma:latest $' ids
    expect "/api/version answers" '^\{"version":"[0-9.]+"\}$' ask b /api/version --fail
}
names() { "$@" | sed -n 's/^\([^ ]*:latest\) .*/\1/p' | sort | tr '\n' ' '; }
ids() { ask b /v1/models --fail | grep -o '"id":"[^"]*"' | cut -d'"' -f4 | sort | tr '\n' ' '; }

check_use() {
    local model host
    for model in alpha gamma; do
        host=${model:0:1}
        [ "$host" = a ] || host=c
        check "$model generates on ${host^}" by "$host" /api/generate -d "$(generate "$model")"
        check "$model chats on ${host^}" by "$host" /api/chat -d "$(chat "$model")"
        check "$model answers OpenAI's programs" by "$host" /v1/chat/completions -d "$(chat "$model")"
        check "/api/show knows $model" by "$host" /api/show -d "{\"model\":\"$model\"}"
        check "/v1/models/$model" by "$host" "/v1/models/$model"
        expect "ollama run $model" '[^ ]' cli run "$model" hi
    done
    check "ollama ps shows both soon" within 6 prints '^alpha:latest gamma:latest $' names cli ps
    check "an unknown model gets Ollama's own bytes" same /api/show -d '{"model":"nosuch"}'
    expect "an unknown model is a 404" '^404$' code /api/generate -d "$(generate nosuch)"
}

# The first turn is sent to one server: the next ones must follow it, to either.
check_conversations() {
    local host
    for host in c a; do check "a conversation stays on ${host^}" stays "$host"; done
}
stays() {
    local number
    turn "$1" "$1" 1 -H "X-Ollana-Server: ${place[$1]}"
    for number in 2 3 4; do turn "$1" "$1" "$number"; done
}

# turn HOST NAME NUMBER [CURL-ARGUMENT…]: that turn of the conversation with that name, on HOST.
turn() {
    local i text
    text="{\"role\":\"user\",\"content\":\"conversation $2\"}"
    for ((i = 1; i < $3; i++)); do
        text+=",{\"role\":\"assistant\",\"content\":\"$i\"},{\"role\":\"user\",\"content\":\"and now?\"}"
    done
    by "$1" /api/chat "${@:4}" -d "{\"model\":\"both\",\"messages\":[$text],\"stream\":false}"
}

check_choice() {
    local host header headers
    for host in "${servers[@]}"; do
        headers=("${place[$host]}" "${place[$host]%:*}")
        ((${#naming[@]} == 0)) || headers+=("$(name_of "$host")")
        for header in "${headers[@]}"; do
            check "X-Ollana-Server: $header chooses ${host^}" \
                by "$host" /api/generate -H "X-Ollana-Server: $header" -d "$(generate both)"
        done
    done
    expect "an unknown server is an error" '^\{"error":".*nosuch.*\} 503$' \
        flat /api/generate -H 'X-Ollana-Server: nosuch' -d "$(generate both)"
}

check_unload() {
    local host
    ask b /api/generate -d "$(generate alpha)" >/dev/null
    ask b /api/generate -d '{"model":"alpha","keep_alive":0}' >/dev/null
    check "keep_alive 0 unloads alpha" within 2 unloaded a alpha
    check "ollama ps shows that soon" within 2 unloaded b alpha
    for host in "${servers[@]}"; do ask "$host" /api/generate -d '{"model":"both","keep_alive":0}' >/dev/null; done
    within 6 unloaded b both >/dev/null || true
    for host in "${servers[@]}"; do
        ask b /api/generate -H "X-Ollana-Server: ${place[$host]}" -d "$(generate both)" >/dev/null
        ask b /api/generate -d '{"model":"both","keep_alive":0}' >/dev/null
        check "keep_alive 0 finds its way to ${host^}" within 2 unloaded "$host" both
    done
}
unloaded() {
    local list
    list=$(ask "$1" /api/ps --fail) && [[ $list != *"\"$2:latest\""* ]]
}

# Each change must be on one server, and in B's list soon.
check_changes() {
    printf '%s\n' "FROM $(variant 4)" 'PARAMETER num_thread 1' 'PARAMETER num_ctx 512' >"$work/Modelfile"
    check "ollama create uploads" cli create new -f "$work/Modelfile"
    check "a new model can be used at once" generates new
    check "a new model is listed soon" within 2 has b new
    check "a new model is on one server" is_on_one new
    check "ollama cp" cli cp gamma copied
    check "a copy can be used at once" generates copied
    expect "a copy can be used in the same breath" '"done":true' breath POST /api/copy \
        '{"source":"gamma","destination":"breath"}' /api/generate -d "$(generate breath '"options":{"num_predict":8}')"
    expect "a deleted model is not in the list in the same breath" '"models":\[' \
        not_breath breath DELETE /api/delete '{"model":"breath"}' /api/tags
    check "a copy is listed soon" within 2 has b copied
    check "a copy is where its source is" has c copied
    local model
    for model in alpha gamma; do
        printf '%s\n' "FROM $model" 'SYSTEM Be brief.' >"$work/Modelfile"
        check "ollama create from $model" cli create "brief-$model" -f "$work/Modelfile"
        check "the model from $model can be used at once" generates "brief-$model"
    done
    for model in new copied brief-alpha brief-gamma; do
        expect "ollama rm $model" "^deleted '$model'" cli rm "$model"
        check "$model is gone soon" within 2 lacks b "$model"
    done
}
generates() { prints '"done":true' ask b /api/generate -d "$(generate "$1" '"options":{"num_predict":8}')"; }
# breath METHOD PATH BODY PATH [CURL-ARGUMENT…]: two requests on one connection, without a pause.
breath() {
    on b curl -sS --max-time 20 -o "$work/first" -X "$1" -d "$3" "${url[b]}$2" \
        --next -sS --max-time 20 "${@:5}" "${url[b]}$4"
}
not_breath() { "$@" | grep -v '"breath:latest"'; }
is_on_one() { if has a "$1"; then not has c "$1"; else has c "$1"; fi; }

check_parallel() {
    local a c
    a=$(logged a '"/api/generate"') c=$(logged c '"/api/generate"')
    check "six at once are all answered" six
    a=$(($(logged a '"/api/generate"') - a)) c=$(($(logged c '"/api/generate"') - c))
    expect "six at once use both servers" '^[1-5] \+ [1-5]$' echo "$a + $c"
}
six() {
    local i pids=()
    for i in 1 2 3 4 5 6; do
        ask b /api/generate -d "$(generate both "\"options\":{\"num_predict\":64,\"seed\":$i}")" >"$work/six-$i" &
        pids+=($!)
    done
    wait "${pids[@]}"
    for i in 1 2 3 4 5 6; do prints '"response":"[^"].*"done":true' cat "$work/six-$i"; done
}

# check_away WHAT HOW: C is without it, twice, and gets it back. WHAT is a process or the cable.
check_away() {
    local talk="until $2"
    turn c "$talk" 1 -H "X-Ollana-Server: ${place[c]}" >/dev/null || true
    take "$1"
    check "$2: its conversation goes on at A" turn a "$talk" 2
    give "$1"
    within 10 by c /api/generate -d "$(generate gamma)" >/dev/null || true
    take "$1"
    expect "$2: gamma at once is an error that isn't a 404" '^\{"error":"[^"]+.*\} 50[23]$' \
        flat /api/generate -d "$(generate gamma)"
    check "$2: alpha at once" by a /api/generate -d "$(generate alpha)"
    check "$2: gamma leaves the list" within 5 lacks b gamma
    away="model .{2}gamma:latest.{2} is on server .*, which is away"
    expect "$2: a request for gamma says who is away" "^\{\"error\":\"$away.*\} 503$" \
        flat /api/generate -d "$(generate gamma)"
    expect "$2: in OpenAI's shape too" "^\{\"error\":\{.*\"message\":\"$away.*\} 503$" \
        flat /v1/chat/completions -d "$(chat gamma)"
    give "$1"
    check "$2, and back: gamma works again" within 5 by c /api/generate -d "$(generate gamma)"
}
take() { if [ "$1" = cable ]; then plug c down; else stop "$1" KILL; fi; }
give() { if [ "$1" = cable ]; then plug c up; else "start_${1%-c}" c; fi; }
