#!/usr/bin/env bash
# Builds ollana for Windows and runs its tests under Wine; then Linux and Windows use each other over
# a LAN, in network namespaces.
#   scripts/windows.sh [NAME ...]     of test binaries: lib, answers, ..., lan; all if there is none
# What isn't tested, and why, is in scripts/windows/gaps.txt. What is missing is installed: Wine
# (Debian's wine64, which takes root) and zig (scripts/zig.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

target=x86_64-pc-windows-gnu
windows=$PWD/target/windows
gaps=scripts/windows/gaps.txt
# Test binaries of what Windows hasn't (Unix shells, /proc, systemd, namespaces, socket pairs) or that read
# the source.
without="awake completions docs faults fuzz netns service soak tidy"
mkdir -p "$windows"

fail() {
    echo "windows: $1" >&2
    exit 1
}
if [ ! -x /usr/lib/wine/wine64 ] && ! command -v wine64 >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "it takes Wine (Debian: wine64), and root installs it by itself"
    echo "installing Wine (Debian's wine64, 100 MB, once)"
    { apt-get update && apt-get install -y --no-install-recommends wine64; } >"$windows/apt.log" 2>&1 ||
        fail "wine64 can't be installed, see $windows/apt.log"
fi
[ -d "$(rustc --print target-libdir --target $target)" ] || rustup target add $target

# Wine's C:, with what Windows 10 has and Wine 8 hasn't.
export WINEPREFIX=$windows/prefix
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$PWD/scripts/windows/wine.sh
wine=$CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER
if [ ! -e "$WINEPREFIX/complete" ]; then
    echo "making a C: for Wine (700 MB, once)"
    { "$wine" wineboot --init && "$wine" winecfg -v win10; } >"$windows/wineboot.log" 2>&1 ||
        fail "Wine doesn't start, see $windows/wineboot.log"
    touch "$WINEPREFIX/complete"
fi
compile() { # compile SOURCE OUTPUT OPTION ...
    [ "$2" -nt "$1" ] ||
        scripts/zig.sh python -m ziglang cc -target x86_64-windows-gnu -o "$2" "$1" "${@:3}"
}
compile scripts/windows/bcryptprimitives.c \
    "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" -shared -ladvapi32
compile scripts/windows/console.c "$windows/console.exe"

names=("$@")
if [ $# = 0 ]; then
    names=(lib)
    for file in tests/*.rs; do
        name=$(basename "$file" .rs)
        [[ " $without " = *" $name "* ]] || names+=("$name")
    done
    names+=(lan)
fi
options=(--bin ollana)
for name in "${names[@]}"; do
    case $name in
        lan) ;;
        lib) options+=(--lib) ;;
        *) options+=(--test "$name") ;;
    esac
done
scripts/zig.sh cargo-zigbuild test --target $target --no-run "${options[@]}" 2>&1 |
    tee "$windows/build.log" || fail "it can't be built"

# Each binary, without the tests that can't work there.
passed=0 alone=0 failed=0 left_out=0
run() { # run NAME EXE
    local name=$1 exe=$2 log=$windows/$1.log skipped=() known test
    known=$("$wine" "$exe" --list --format terse 2>"$log" </dev/null | tr -d '\r' | sed 's/: test$//') ||
        fail "$exe doesn't run, see $log"
    while read -r _ test _; do
        grep -qx "$test" <<<"$known" || fail "$gaps names $name $test, which isn't there"
        skipped+=(--skip "$test")
    done < <(grep "^$name " "$gaps" || true)
    # All of a binary at once is what two cores can't bear under Wine, whose server may be ending just as
    # the next program starts.
    for _ in once again; do
        timeout 1800 "$wine" "$exe" --exact "${skipped[@]}" --test-threads 2 >"$log" 2>&1 </dev/null || true
        grep -q "^wine client error" "$log" || break
    done
    local result failures=() failure
    result=$(tr -d '\r' <"$log" | sed -n 's/^test result: [a-zA-Z]*\. \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' | tail -n 1)
    mapfile -t failures < <(tr -d '\r' <"$log" | sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p')
    if [ -z "$result" ] || [ ${#failures[@]} != "${result#* }" ]; then
        result="0 1" failures=()
        echo "    $name broke off, see $log"
    fi
    # What has to be fast gets a second chance by itself.
    for failure in "${failures[@]}"; do
        if timeout 300 "$wine" "$exe" --exact "$failure" >"$log.alone" 2>&1 </dev/null; then
            result="$((${result% *} + 1)) $((${result#* } - 1))"
            alone=$((alone + 1))
            echo "    passed only alone: $name $failure"
        else
            echo "    failed: $name $failure"
        fi
    done
    passed=$((passed + ${result% *})) failed=$((failed + ${result#* })) left_out=$((left_out + ${#skipped[@]} / 2))
    echo "$name: ${result% *} passed, ${result#* } failed, $((${#skipped[@]} / 2)) left out"
}
while read -r source exe; do
    case $source in
        src/lib.rs) run lib "$exe" ;;
        tests/*) run "$(basename "$source" .rs)" "$exe" ;;
    esac
done < <(sed -n 's/^ *Executable \(unittests \)\?\([^ ]*\) (\(.*\))$/\2 \3/p' "$windows/build.log")

if [[ " ${names[*]} " = *" lan "* ]]; then
    export OLLANA_WINDOWS_RUNNER=$wine OLLANA_WINDOWS_PREFIX=$WINEPREFIX
    OLLANA_WINDOWS_EXE=$(realpath "${CARGO_TARGET_DIR:-target}/$target/debug/ollana.exe")
    export OLLANA_WINDOWS_EXE
    cargo test --test netns windows -- --nocapture --test-threads 1 2>&1 | tee "$windows/lan.log" ||
        failed=$((failed + 1))
fi
echo "under Wine: $passed passed ($alone of them only alone), $failed failed, $left_out left out ($gaps says why)"
[ "$failed" = 0 ]
