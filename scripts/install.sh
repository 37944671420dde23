#!/bin/sh
# Installs ollana and its service: from a release (SHA256SUMS or ollana beside this script), or from
# a built tree (target/release/ollana). Says what it will do, asks, then does it.
#
#   sudo scripts/install.sh                 install, start now and at every boot
#   sudo scripts/install.sh --uninstall     remove all of it but the state
#
# --from PLACE: a release's folder or address. --yes: don't ask. --no-service: only files.
# PREFIX=/usr/local, DESTDIR= (then only files).
set -eu

prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
action=install
ask=true
service=true
from=
passed_on=
fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --from)
        [ -n "${2:-}" ] || fail "--from needs a folder or an address"
        from=$2
        shift
        ;;
    --uninstall) action=uninstall ;;
    --yes) ask=false passed_on="$passed_on --yes" ;;
    --no-service) service=false passed_on="$passed_on --no-service" ;;
    --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "install.sh: unknown option $1; --help lists them" >&2; exit 2 ;;
    esac
    shift
done

here=$(cd "$(dirname "$0")" && pwd)
[ -n "$from" ] || [ ! -f "$here/SHA256SUMS" ] || from=$here
binary=
for place in "${OLLANA:-}" "$here/ollana" "$here/../target/release/ollana" "$here/../target/quick/ollana"; do
    if [ -n "$place" ] && [ -f "$place" ]; then
        binary=$place
        break
    fi
done

# What starts services here, as the first program knows it that can be run; nothing if none can.
init=
able=
find_init() { # find_init PROGRAM ...
    [ "$service" = true ] && [ -z "$root" ] || return 0
    for able in "$@"; do
        init=$("$able" service status 2>/dev/null | sed -n 's/^manager *//p')
        [ -z "$init" ] || break
    done
}
find_init "$binary" "$prefix/bin/ollana"

# Relative to the prefix.
program=bin/ollana
page=share/man/man1/ollana.1
bash=share/bash-completion/completions/ollana
zsh=share/zsh/site-functions/_ollana
fish=share/fish/vendor_completions.d/ollana.fish

confirm() {
    if [ "$ask" = true ]; then
        if [ ! -t 0 ]; then
            fail "nobody to ask here; --yes does it without asking"
        fi
        printf 'Go on? [y/N] '
        read -r answer
        case $answer in y | Y | yes) ;; *) fail "nothing was changed" ;; esac
    fi
}

# Puts a file in its place by a rename, which a running program doesn't mind.
put() { # put MODE FROM TO
    mkdir -p "$(dirname "$3")"
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
    mv -f "$3.new" "$3"
}

# Copies a file of the release to $new.
take() {
    case $from in
    https://*) secure="--proto =https" ;;
    *) secure= ;;
    esac
    case $from in
    http://* | https://*)
        if command -v curl >/dev/null; then
            # shellcheck disable=SC2086 # words
            curl -fsSL $secure -o "$new/$1" "$from/$1"
        else
            wget -q -O "$new/$1" "$from/$1"
        fi
        ;;
    *) cp "$from/$1" "$new/$1" ;;
    esac || fail "no $1 from $from"
}

# Takes the archive for this machine, compares its checksum, and runs the install.sh in it.
install_release() {
    case $(uname -s) in
    Linux) system=linux ;;
    Darwin) system=macos ;;
    *) fail "no release has a binary for $(uname -s)" ;;
    esac
    case $(uname -m) in
    x86_64 | amd64) machine=x86_64 ;;
    aarch64 | arm64) machine=aarch64 ;;
    armv7* | armv8l) machine=armv7 ;;
    *) fail "no release has a binary for $(uname -m)" ;;
    esac
    new=$(mktemp -d)
    trap 'rm -rf "$new"' EXIT
    take SHA256SUMS
    line=$(grep "^[0-9a-f]\{64\}  ollana-[^ /]*-$system-$machine\.tar\.gz\$" "$new/SHA256SUMS" | tail -n 1)
    [ -n "$line" ] || fail "there is no ollana for $system-$machine in $from"
    archive=${line#*  }
    take "$archive"
    if command -v sha256sum >/dev/null; then
        sum=$(sha256sum <"$new/$archive")
    else
        sum=$(shasum -a 256 <"$new/$archive")
    fi
    [ "${sum%% *}" = "${line%% *}" ] ||
        fail "$archive has another checksum than in SHA256SUMS: it is damaged, or not the one; nothing was installed"
    tar -xzf "$new/$archive" -C "$new"
    # shellcheck disable=SC2086 # words
    sh "$new"/ollana-*/install.sh $passed_on
}

install_all() {
    [ -n "$binary" ] || fail "no ollana here: run 'make build' first, or set OLLANA=FILE"
    echo "This will"
    echo "  install $root$prefix/$program, its man page and completions"
    if [ -n "$init" ]; then
        echo "  start ollana now and at every boot ($init): ollana service install"
    elif [ "$service" = true ] && [ -z "$root" ]; then
        # Where programs are unpacked, they may not be run.
        if "$binary" --version >/dev/null 2>&1; then
            echo "  start no service: no init system that it knows runs here"
        else
            echo "  start ollana now and at every boot, if it knows the init system; it is asked once installed"
        fi
    fi
    confirm
    put 755 "$binary" "$root$prefix/$program"
    new=$(mktemp -d)
    trap 'rm -rf "$new"' EXIT
    # A binary for another machine can't write its own pages.
    if "$root$prefix/$program" man >"$new/man" 2>/dev/null; then
        put 644 "$new/man" "$root$prefix/$page"
        for shell in bash zsh fish; do
            "$root$prefix/$program" completions $shell >"$new/$shell"
        done
        put 644 "$new/bash" "$root$prefix/$bash"
        put 644 "$new/zsh" "$root$prefix/$zsh"
        put 644 "$new/fish" "$root$prefix/$fish"
    else
        echo "install.sh: $binary doesn't run here, so there is no man page" >&2
    fi
    [ -n "$init" ] || find_init "$prefix/$program"
    if [ -n "$init" ]; then
        "$root$prefix/$program" service install
    else
        echo "installed; start it with: ollana"
    fi
}

uninstall_all() {
    echo "This will"
    [ -z "$init" ] || echo "  stop ollana ($init): ollana service remove"
    if [ -e "$root/etc/systemd/system/ollama.service.d/zz-ollana-takeover.conf" ]; then
        case $init in
        systemd) echo "  move Ollama back to its own port, as ollana takeover --undo does" ;;
        *) echo "  leave Ollama at port 11438; to move it back, run before this: sudo ollana takeover --undo" ;;
        esac
    fi
    echo "  remove $root$prefix/$program, its man page and completions"
    [ -z "$init" ] || echo "  leave the state, and variables in /etc/default/ollana that were changed"
    confirm
    [ -z "$init" ] || "$able" service remove
    for file in "$program" "$page" "$bash" "$zsh" "$fish"; do
        rm -f "$root$prefix/$file"
    done
    echo "removed"
}

if [ "$action" = install ] && [ -n "$from" ]; then
    install_release
    exit
fi
place=$root$prefix
while [ ! -e "$place" ]; do
    place=$(dirname "$place")
done
[ -w "$place" ] || fail "$place is root's: use sudo, or PREFIX=\$HOME/.local"
"${action}_all"
