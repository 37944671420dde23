# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with e2e.sh
# The two hosts, a and b, and the processes on them.
# Sets ${url[HOST]}: Ollama itself on host a, ollana's stand-in for it on host b.

declare -A url      # host → where its clients expect Ollama
declare -A pids     # process name → its id, which is also its process group
namespaces=()       # those that we made
cli_env=()          # what Ollama's own command line needs on host b: nothing, when ollana has Ollama's port
net=ollana-e2e-$$

make_hosts() {
    if [ "${E2E_HOSTS:-}" != loopback ] && [ "$(id -u)" = 0 ] && join_namespaces; then
        echo "hosts: network namespaces $net-a and $net-b, ollana finds everything itself"
        url[a]=http://127.0.0.1:11434
        url[b]=http://127.0.0.1:11434
        server_args=(--log-level debug)
        client_args=(--log-level debug)
    else
        use_loopback
    fi
    # shellcheck disable=SC2206  # the flags are words
    server_args+=(${E2E_SERVER_FLAGS:-})
    mkdir -p "$work/a" "$work/b"
}

# Two namespaces and one cable. No default route: a limited broadcast has nowhere to go.
join_namespaces() {
    local host subnet=10.83.$(($$ % 254 + 1))
    for host in a b; do
        ip netns add "$net-$host" && namespaces+=("$net-$host") || return 1
    done
    ip link add lan0 netns "$net-a" type veth peer name lan0 netns "$net-b" || return 1
    ip -n "$net-a" address add "$subnet.1/24" broadcast + dev lan0 || return 1
    ip -n "$net-b" address add "$subnet.2/24" broadcast + dev lan0 || return 1
    for host in a b; do
        ip -n "$net-$host" link set lo up && ip -n "$net-$host" link set lan0 up || return 1
    done
}

# One machine, an address for each host, and no port that a real Ollama or Ollana uses.
use_loopback() {
    local net=127.83.$(($$ % 254 + 1)) discovery=$((20000 + $$ % 10000))
    echo "hosts: loopback addresses $net.1 and $net.2, everything is given to ollana by flags"
    remove_namespaces
    url[a]=http://$net.1:21434
    url[b]=http://$net.2:21434
    cli_env=(OLLAMA_HOST="${url[b]}")
    server_args=(--log-level debug --mode server --listen "$net.1:21435" --ollama "$net.1:21434"
        --discovery-port "$discovery")
    client_args=(--log-level debug --mode client --listen "$net.2:21434" --server "$net.1:21435"
        --discovery-port "$discovery")
}

remove_namespaces() {
    local name
    for name in "${namespaces[@]}"; do
        ip netns pids "$name" | xargs -r kill -KILL || true # such as a client, when we were interrupted
        ip netns delete "$name"
    done
    namespaces=()
}

# enter HOST: sets $entry, the words before a command that run it there, as a user of its own.
enter() {
    entry=()
    ((${#namespaces[@]} == 0)) || entry=(ip netns exec "$net-$1")
    entry+=(env -i PATH="$PATH" LANG=C.UTF-8 HOME="$work/$1" XDG_STATE_HOME="$work/$1/state")
}

# on HOST COMMAND…
on() {
    local entry
    enter "$1"
    "${entry[@]}" "${@:2}" </dev/null
}

# start NAME HOST COMMAND…: in the background, in a process group of its own, into NAME.log.
start() {
    local entry
    enter "$2"
    setsid "${entry[@]}" "${@:3}" </dev/null >>"$work/$1.log" 2>&1 &
    pids[$1]=$!
}

# stop NAME [SIGNAL]: fails when the process has to be killed after 10 seconds.
stop() {
    local pid=${pids[$1]} status=0
    kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
    within 10 not kill -0 "$pid" >/dev/null || status=1
    kill -KILL -- "-$pid" 2>/dev/null || true # the rest of its group, such as Ollama's runner
    wait "$pid" 2>/dev/null || true
    unset "pids[$1]"
    return "$status"
}

stop_all() {
    local name
    for name in "${!pids[@]}"; do stop "$name" || true; done
    remove_namespaces
}

# ask HOST PATH [CURL-ARGUMENT…]
ask() { on "$1" curl -sS --max-time 20 "${@:3}" "${url[$1]}$2"; }

not() { ! "$@"; }

now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# within SECONDS COMMAND…: repeats it until it succeeds, and tells how long that took.
within() {
    local start now limit=$(($1 * 1000))
    start=$(now_ms)
    until "${@:2}" >/dev/null 2>&1; do
        now=$(now_ms)
        ((now - start < limit)) || { echo "not within $1 s: ${*:2}" && return 1; }
        sleep 0.02
    done
    echo "$(($(now_ms) - start)) ms"
}

start_ollama() {
    start ollama a env OLLAMA_HOST="${url[a]}" OLLAMA_MODELS="$work/models" OLLAMA_NUM_PARALLEL=1 "$ollama" serve
    within 20 ask a /api/version --fail >/dev/null || give_up "Ollama does not start: $(tail -n 3 "$work/ollama.log")"
}

make_model() {
    printf '%s\n' "FROM $gguf" 'PARAMETER num_thread 1' 'PARAMETER num_predict 32' 'PARAMETER num_ctx 512' \
        >"$work/Modelfile"
    on a env OLLAMA_HOST="${url[a]}" timeout 60 "$ollama" create "$model" -f "$work/Modelfile" >"$work/create.log" 2>&1
}
