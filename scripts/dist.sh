#!/usr/bin/env bash
# Makes what a release has, in target/dist: scripts/dist.sh [TARGET ...]
#
#   ollana-VERSION-linux-x86_64.tar.gz …   the binary, install.sh, the files of services
#   ollana-VERSION-windows-x86_64.zip
#   ollana_VERSION_amd64.deb …
#   install.sh, install.ps1                install from this folder, or from the address of a copy of it
#   ollana-VERSION.cdx.json                the crates in it (CycloneDX)
#   SHA256SUMS
#
# The same commit and compiler make the same bytes in any folder. It fails if a binary is larger than
# its budget, or needs more memory.
set -euo pipefail
cd "$(dirname "$0")/.."

# target, its name in an archive's, Debian's name of the architecture, the most bytes of the binary
table="
x86_64-unknown-linux-musl linux-x86_64 amd64 4000000
aarch64-unknown-linux-musl linux-aarch64 arm64 3700000
armv7-unknown-linux-musleabihf linux-armv7 armhf 3700000
x86_64-pc-windows-gnu windows-x86_64 - 4000000
aarch64-apple-darwin macos-aarch64 - 4000000
x86_64-apple-darwin macos-x86_64 - 4000000
"
# The most KB of memory that the static binary has idle, and at rest after a load. Of both, 3,200 are
# the binary itself.
idle=4500
loaded=6000

wanted=("$@")
[ $# -gt 0 ] || read -ra wanted <<<"$(awk '{printf "%s ", $1}' <<<"$table")"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
umask 022
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
dist=target/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf $dist
mkdir -p $dist

faults=()
# Debian packages have a manual, which a binary that runs here writes.
own=target/$(uname -m)-unknown-linux-musl/release/ollana
for target in "${wanted[@]}"; do
    read -r _ name architecture budget < <(grep "^$target " <<<"$table")
    echo "--- $target"
    if ! scripts/static.sh "$target"; then
        faults+=("$target is not built")
        continue
    fi
    binary=target/$target/release/ollana
    folder=$work/$name/ollana-$version
    mkdir -p "$folder"
    case $target in
    *-windows-*)
        binary=$binary.exe
        cp "$binary" README.md LICENSE "$folder"
        python3 -B scripts/dist/zip.py "$dist/ollana-$version-$name.zip" "$folder"
        ;;
    *)
        cp -r "$binary" scripts/install.sh scripts/service README.md LICENSE "$folder"
        chmod -R u=rwX,go=rX "$folder"
        tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@"$SOURCE_DATE_EPOCH" \
            -C "$work/$name" -cf - "ollana-$version" | gzip -9n >"$dist/ollana-$version-$name.tar.gz"
        ;;
    esac
    if [ "$architecture" != - ]; then
        OLLANA=$own scripts/deb.sh "$binary" "$architecture" $dist
        if command -v lintian >/dev/null; then
            lintian --fail-on error,warning,info "$dist/ollana_${version}_$architecture.deb" ||
                faults+=("lintian finds something in the package for $architecture")
        fi
    fi
    size=$(wc -c <"$binary")
    echo "$binary: $size bytes of $budget"
    [ "$size" -le "$budget" ] || faults+=("$binary has $size bytes, more than $budget")
done

# The container, where an engine is at hand.
image=$work/linux-$(uname -m)/ollana-$version
for engine in docker podman; do
    if [ -d "$image" ] && $engine info >/dev/null 2>&1; then
        $engine build -q -t ollana -f scripts/service/Dockerfile "$image" &&
            [ "$($engine run --rm ollana --version)" = "ollana $version" ] ||
            faults+=("the container is not built, or does not run")
        break
    fi
done
if [ -x "$own" ]; then
    python3 -B scripts/dist/memory.py "$own" $idle $loaded || faults+=("$own needs too much memory")
fi
cp scripts/install.sh scripts/install.ps1 $dist
python3 -B scripts/dist/sbom.py "${wanted[@]}" >"$dist/ollana-$version.cdx.json"
(cd $dist && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
cat $dist/SHA256SUMS
for fault in "${faults[@]}"; do
    echo "dist: $fault" >&2
done
[ ${#faults[@]} = 0 ]
