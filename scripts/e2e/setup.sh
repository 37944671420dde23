# shellcheck shell=bash disable=SC1091,SC2034,SC2154  # variables shared with the other files
# What an end-to-end run begins and ends with. Runs in the repository's folder.
# The script sets $servers, the hosts that have an Ollama, and $programs, further ones it needs.

shopt -s inherit_errexit
here=$PWD/scripts/e2e
mkdir -p "${OLLANA_E2E_DIR:-target/e2e}"
cache=$(cd "${OLLANA_E2E_DIR:-target/e2e}" && pwd)
work=$(mktemp -d)

. "$here/tools.sh"
. "$here/hosts.sh"
. "$here/report.sh"

clean_up() {
    local status=$? log
    trap - EXIT
    trap '' PIPE # whoever read our output may have gone
    stop_all
    if ((status)); then
        for log in "$work"/*.log; do
            [ ! -s "$log" ] || { echo "--- last lines of ${log##*/}" && tail -n 25 "$log" | tr -cd '[:print:]\n' | cut -c1-300; }
        done
    fi
    umount "$work"/*/models 2>/dev/null || true # where a check was interrupted that gave it a disk
    rm -rf "$work"
    exit "$status"
}

# Everything up to the hosts.
set_up() {
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    install_tools
    if [ -n "${OLLANA_BIN:-}" ]; then
        ollana=$(realpath "$OLLANA_BIN")
    else
        cargo build --release
        ollana=$(realpath "${CARGO_TARGET_DIR:-target}/release/ollana")
    fi
    make_hosts
}

# The closing line, and the script's exit status.
close() {
    echo "$(grep -c '^ok ' "$results" || true) passed, $(failures) failed"
    (($(failures) == 0))
}
