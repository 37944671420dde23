# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with the other files
# The hosts, and the processes on them: $servers (a, c) have an Ollama, b has the clients.
# Sets, for each host, ${url[HOST]}: where its clients expect Ollama; ${place[HOST]}: what others
# reach its ollana by. Its name is ollana-HOST.

declare -A url place
declare -A pids     # process name → its id, which is also its process group
namespaces=()       # those that we made; the last is the switch between the others
naming=()           # words that give the command after them, and a name, that host name
cli_env=()          # what Ollama's own command line needs on host b: nothing, when ollana has Ollama's port
ollama_env=()       # more of every Ollama's environment
net=ollana-e2e-$$
origins="http://*.good.example,https://exact.example" # OLLAMA_ORIGINS of every Ollama and every ollana

make_hosts() {
    local host way
    hosts=("${servers[@]}" b)
    if [ "${E2E_HOSTS:-}" != loopback ] && [ "$(id -u)" = 0 ] && make_namespaces; then
        echo "hosts: network namespaces ${namespaces[*]}, ollana finds everything itself"
    else
        use_loopback
    fi
    for host in "${hosts[@]}"; do mkdir -p "$work/$host"; done
    # shellcheck disable=SC2016  # for the inner shell
    local rename=(sh -c 'hostname "$0" && exec "$@"')
    for way in "unshare --uts" "unshare --user --map-root-user --uts"; do
        # shellcheck disable=SC2206  # it is words
        naming=($way "${rename[@]}")
        ! "${naming[@]}" ollana-test true 2>/dev/null || return 0
    done
    naming=() # then all are called as this machine is
}

# A namespace for each host and one for the switch. No default route: a limited broadcast has
# nowhere to go.
make_namespaces() {
    local host number=0 subnet=10.83.$(($$ % 254 + 1)) switch=$net-switch
    for host in "${hosts[@]}" switch; do
        ip netns add "$net-$host" && namespaces+=("$net-$host") || return 1
    done
    ip -n "$switch" link add switch0 type bridge && ip -n "$switch" link set switch0 up || return 1
    for host in "${hosts[@]}"; do
        number=$((number + 1))
        url[$host]=http://127.0.0.1:11434
        place[$host]=$subnet.$number:11435
        ip link add lan0 netns "$net-$host" type veth peer name "to-$host" netns "$switch" &&
            ip -n "$switch" link set "to-$host" master switch0 up &&
            ip -n "$net-$host" address add "$subnet.$number/24" broadcast + dev lan0 &&
            ip -n "$net-$host" link set lo up && ip -n "$net-$host" link set lan0 up || return 1
    done
}

# plug HOST up|down: its cable at the switch.
plug() { ip -n "$net-switch" link set "to-$1" "$2"; }

# One machine, an address for each host, and no port that a real Ollama or ollana uses.
use_loopback() {
    local host number=0 net=127.83.$(($$ % 254 + 1))
    remove_namespaces
    for host in "${hosts[@]}"; do
        number=$((number + 1))
        url[$host]=http://$net.$number:21434
        place[$host]=$net.$number:21435
    done
    cli_env=(OLLAMA_HOST="${url[b]}")
    echo "hosts: loopback addresses $net.1 to $net.$number, everything is given to ollana by flags"
}

remove_namespaces() {
    local name
    for name in "${namespaces[@]}"; do
        ip netns pids "$name" | xargs -r kill -KILL || true # such as a client, when we were interrupted
        ip netns delete "$name"
        rm -rf "/etc/netns/${name:?}"
    done
    namespaces=()
}

# enter HOST: sets $entry, the words before a command that run it there, as a user of its own.
enter() {
    entry=()
    ((${#namespaces[@]} == 0)) || entry=(ip netns exec "$net-$1")
    entry+=(env -i PATH="${ollama:+${ollama%/*}:}$PATH" LANG=C.UTF-8 HOME="$work/$1" XDG_STATE_HOME="$work/$1/state")
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
    disown # its end is no news
}

# stop NAME [SIGNAL]: fails when the process has to be killed after 10 seconds.
stop() {
    local pid=${pids[$1]} status=0
    kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
    within 10 not kill -0 "$pid" >/dev/null || status=1
    kill -KILL -- "-$pid" 2>/dev/null || true # the rest of its group, such as Ollama's runner
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

# cli ARGUMENT…: Ollama's own command line on host b.
cli() {
    on b env "${cli_env[@]}" timeout 30 "$ollama" "$@" 2>>"$work/cli.log" ||
        { tail -n 1 "$work/cli.log" | grep -o 'Error.*' && return 1; }
}

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

# start_ollana HOST [FLAG…]: without flags in namespaces, but for the log.
start_ollana() {
    local host=$1 server flags=(--log-level debug)
    if ((${#namespaces[@]} == 0)); then
        flags+=(--discovery-port "$((20000 + $$ % 10000 + $(printf %d "'$host")))")
        if [ "$host" = b ]; then
            flags+=(--mode client --listen "${url[b]#http://}")
            for server in "${servers[@]}"; do flags+=(--server "${place[$server]}"); done
        else
            flags+=(--mode server --listen "${place[$host]}" --ollama "${url[$host]}")
        fi
    fi
    start "ollana-$host" "$host" env OLLAMA_ORIGINS="$origins" OLLAMA_MODELS="${readable:-$work/$host/models}" "${naming[@]}" ${naming:+"ollana-$host"} "$ollana" "${flags[@]}" "${@:2}"
}

start_ollama() {
    start "ollama-$1" "$1" env OLLAMA_HOST="${url[$1]}" OLLAMA_MODELS="$work/$1/models" OLLAMA_NUM_PARALLEL=1 \
        OLLAMA_ORIGINS="$origins" "${ollama_env[@]}" \
        "$ollama" serve
    within 20 ask "$1" /api/version --fail >/dev/null ||
        give_up "Ollama does not start: $(tail -n 3 "$work/ollama-$1.log")"
}

# logged HOST REQUEST: how often its Ollama was done with such a request, by its own log.
logged() { grep -cE "\[GIN\].* $2" "$work/ollama-$1.log" || true; }
logged_since() { [ "$(logged "$1" "$2")" -gt "$3" ]; }

# variant DIGIT: a model with another digest, and thus another model to Ollama. Prints its file.
variant() {
    LC_ALL=C sed "1,20s/Mix1 Ep2/Mix1 Ep$1/" "$gguf" >"$work/variant-$1.gguf"
    echo "$work/variant-$1.gguf"
}

# make_model HOST NAME GGUF
make_model() {
    printf '%s\n' "FROM $3" 'PARAMETER num_thread 1' 'PARAMETER num_predict 32' 'PARAMETER num_ctx 512' \
        >"$work/$1/Modelfile"
    on "$1" env OLLAMA_HOST="${url[$1]}" timeout 60 "$ollama" create "$2" -f "$work/$1/Modelfile" \
        >"$work/create-$1.log" 2>&1
}
