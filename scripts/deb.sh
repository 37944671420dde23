#!/usr/bin/env bash
# Makes a Debian package of a built binary: scripts/deb.sh BINARY amd64|arm64|armhf [FOLDER]
#
# The binary should be static (make static). Man page and completions come from a binary that runs
# here: OLLANA, target/release/ollana, or BINARY itself.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:?usage: scripts/deb.sh BINARY ARCHITECTURE [FOLDER]}
architecture=${2:?usage: scripts/deb.sh BINARY ARCHITECTURE [FOLDER]}
folder=${3:-target}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=${DEBEMAIL:-$(git log -1 --format='%an <%ae>' 2>/dev/null || echo 'root <root@localhost>')}
# The same commit makes the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
umask 022

own=
for place in "${OLLANA:-}" target/release/ollana "$binary"; do
    if [ -n "$place" ] && "$place" --version >/dev/null 2>&1; then
        own=$place
        break
    fi
done
[ -n "$own" ] || { echo "deb.sh: no ollana that runs here; build one first" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
share=$root/usr/share
mkdir -p "$root/DEBIAN" "$share/doc/ollana" "$share/man/man1" "$share/lintian/overrides"
install -D -m 755 "$binary" "$root/usr/bin/ollana"
install -D -m 644 scripts/service/ollana.default "$root/etc/default/ollana"
install -d "$root/lib/systemd/system" "$share/bash-completion/completions" \
    "$share/zsh/vendor-completions" "$share/fish/vendor_completions.d"
sed 's|@PREFIX@|/usr|g' scripts/service/ollana.service >"$root/lib/systemd/system/ollana.service"
install -D -m 755 scripts/service/ollana.generator "$root/lib/systemd/system-generators/ollana"
install -D -m 644 scripts/service/ollana.rules "$share/polkit-1/rules.d/ollana.rules"
"$own" completions bash >"$share/bash-completion/completions/ollana"
"$own" completions zsh >"$share/zsh/vendor-completions/_ollana"
"$own" completions fish >"$share/fish/vendor_completions.d/ollana.fish"
"$own" man | gzip -9n >"$share/man/man1/ollana.1.gz"

{
    echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
    echo "Upstream-Name: ollana"
    echo
    echo "Files: *"
    grep -i '^copyright' LICENSE | sed 's/^Copyright (c)/Copyright:/I'
    echo "License: Expat"
    sed '1,/^copyright/Id' LICENSE | sed '/./,$!d; s/^$/./; s/^/ /'
} >"$share/doc/ollana/copyright"
printf 'ollana (%s) unstable; urgency=medium\n\n  * Version %s.\n\n -- %s  %s\n' \
    "$version" "$version" "$maintainer" "$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S +0000')" |
    gzip -9n >"$share/doc/ollana/changelog.gz"
cat >"$share/lintian/overrides/ollana" <<END
# One file for every distribution.
ollana: statically-linked-binary [usr/bin/ollana]
# It can be loaded anywhere, as libraries can, and needs none.
ollana: shared-library-lacks-prerequisites [usr/bin/ollana]
# Not made for Debian's archive.
ollana: initial-upload-closes-no-bugs [usr/share/doc/ollana/changelog.gz:1]
END

# As dpkg-gencontrol counts: whole KiB of each file, one of everything else; du depends on the disk.
size=$(find "$root" -path "$root/DEBIAN" -prune -o -printf '%y %s\n' |
    awk '{ kib += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print kib }')
cat >"$root/DEBIAN/control" <<END
Package: ollana
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $size
Section: net
Priority: optional
Pre-Depends: init-system-helpers (>= 1.54~)
Enhances: ollama
Description: Ollama over LAN
 Every unmodified Ollama program on this machine uses the Ollama servers of
 the local network. Servers are found by UDP broadcast; a local proxy answers
 on Ollama's own port, and answers stream back token by token.
 .
 On a machine with Ollama it shares that; elsewhere it uses the others'.
END
echo /etc/default/ollana >"$root/DEBIAN/conffiles"
# What debhelper makes of a service: without systemd, nothing is started.
cat >"$root/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    deb-systemd-helper unmask ollana.service >/dev/null || true
    if deb-systemd-helper --quiet was-enabled ollana.service; then
        deb-systemd-helper enable ollana.service >/dev/null || true
    else
        deb-systemd-helper update-state ollana.service >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        # A taken port is no reason to fail an installation; ollana doctor says whose it is.
        deb-systemd-invoke restart ollana.service >/dev/null || true
    fi
fi
END
cat >"$root/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    # Without ollana, nothing here can move Ollama back to its own port.
    if [ -e /etc/systemd/system/ollama.service.d/zz-ollana-takeover.conf ]; then
        ollana takeover --undo --yes || true
    fi
    deb-systemd-invoke stop ollana.service >/dev/null || true
fi
END
cat >"$root/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = purge ]; then
    if command -v deb-systemd-helper >/dev/null; then
        deb-systemd-helper purge ollana.service >/dev/null || true
    fi
    # A mark in /etc/ollana says that there are keys. Without these, a new ollana would not start.
    rm -rf /var/lib/ollana /var/lib/private/ollana /var/log/ollana /var/log/private/ollana /etc/ollana
fi
END
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
package=$folder/ollana_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
echo "$package: $(wc -c <"$package") bytes"
