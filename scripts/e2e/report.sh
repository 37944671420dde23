# shellcheck shell=bash disable=SC2154  # variables shared with the other files
# How checks are run and reported: one line for each, `ok   what` or `FAIL what: why`.

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

# What a program on B gets: the status; the whole answer in one line; Ollama's own bytes.
code() { ask b "$1" -o /dev/null -w '%{http_code}\n' "${@:2}"; }
flat() { ask b "$1" -w ' %{http_code}' "${@:2}" | tr -d '\n'; }

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
