#!/usr/bin/env bash
# Boots clean Debian machines in qemu and does in them what a new user does: install, first answer,
# reboot, pairing, takeover, a broken network. Debian 12 and 13 under systemd, and 12 under SysV scripts
# and OpenRC. Then README's two commands, in the files of a clean 12 and 13 (not in qemu, which would
# compile for hours).
#   scripts/boot.sh [systemd|debian13|sysv|openrc|commands ...]
#
#   the machine 10.77.0.2                     a network namespace, 10.77.0.1
#   ollana, a service ◄──── lan0 (a tap) ────► ollana ──► a stand-in for Ollama
#
#   OLLANA_BIN       the binary to install; built with cargo when unset
#   OLLANA_BOOT_DIR  where the images are kept between runs, 3 GB (target/boot)
#   MIRROR           Debian's mirror
# Needs root, for the images and the tap. Where something is missing, it says so and is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "no machine was booted: $1"
    exit 0
}
[ "$(id -u)" = 0 ] || skip "it takes root"
[ "$(uname -sm)" = "Linux x86_64" ] || skip "it takes Linux on x86_64"
[ -c /dev/net/tun ] || skip "there is no /dev/net/tun"
missing=()
for pair in debootstrap:debootstrap qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs ip:iproute2 python3:python3; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if ((${#missing[@]})); then
    command -v apt-get >/dev/null || skip "${missing[*]} are not installed"
    { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null ||
        skip "${missing[*]} can't be installed"
fi

mkdir -p "${OLLANA_BOOT_DIR:-target/boot}"
cache=$(cd "${OLLANA_BOOT_DIR:-target/boot}" && pwd)
work=$(mktemp -d)
lan=ollana-boot-$$
# shellcheck disable=SC2317 # called by the trap
clean_up() {
    ip netns pids "$lan" 2>/dev/null | xargs -r kill 2>/dev/null || true
    ip netns del "$lan" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Installs in a root that isn't running.
add() { # add ROOT PACKAGE ...
    local root=$1
    shift
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y --no-install-recommends "$@"
    rm -f "$root/usr/sbin/policy-rc.d" "$root/etc/resolv.conf"
}

# A root shell on the second serial port; the first one has what the kernel says.
login="/sbin/agetty -L -a root ttyS1 115200 dumb"

make_systemd() { # make_systemd SUITE ROOT IMAGE
    local root=$2 unit=$2/etc/systemd/system
    debootstrap --variant=minbase --include=linux-image-amd64,systemd-sysv,udev,dbus,iproute2,procps,sudo,curl,python3,ufw \
        "$1" "$root" "${MIRROR:-http://deb.debian.org/debian}"
    cp "$root"/boot/vmlinuz-* "$cache/$1.kernel"
    cp "$root"/boot/initrd.img-* "$cache/$1.initrd"
    echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
    echo clean >"$root/etc/hostname"
    echo '127.0.0.1 localhost clean' >"$root/etc/hosts"
    chroot "$root" useradd -m -s /bin/bash me
    echo 'me ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/me"
    rm -rf "$root"/var/cache/apt/archives/*.deb
    [ "$1" != bookworm ] || cp -a "$root" "$work/sysv"
    mkdir -p "$unit/serial-getty@ttyS1.service.d" "$unit/getty.target.wants"
    printf '[Service]\nExecStart=\nExecStart=-%s\n' "$login" >"$unit/serial-getty@ttyS1.service.d/login.conf"
    ln -s /lib/systemd/system/serial-getty@.service "$unit/getty.target.wants/serial-getty@ttyS1.service"
    printf '[Match]\nName=eth0\n[Network]\nAddress=10.77.0.2/24\n' >"$root/etc/systemd/network/lan.network"
    chroot "$root" systemctl enable systemd-networkd
    mke2fs -q -F -t ext4 -d "$root" "$cache/$3.img" 3G
}

make_images() {
    local root=$work/sysv
    make_systemd trixie "$work/trixie" debian13
    make_systemd bookworm "$work/bookworm" systemd
    add "$root" sysvinit-core ifupdown
    printf 'auto lo eth0\niface lo inet loopback\niface eth0 inet static\n  address 10.77.0.2/24\n' \
        >"$root/etc/network/interfaces"
    echo "S1:2345:respawn:$login" >>"$root/etc/inittab"
    mke2fs -q -F -t ext4 -d "$root" "$cache/sysv.img" 3G
    add "$root" openrc
    mke2fs -q -F -t ext4 -d "$root" "$cache/openrc.img" 3G
    touch "$cache/complete-2"
}

if [ ! -e "$cache/complete-2" ]; then
    echo "making clean machines in $cache (some minutes, once)"
    make_images >"$cache/images.log" 2>&1 ||
        skip "no images: $(grep -v '^I:' "$cache/images.log" | tail -n 1); see $cache/images.log"
    rm -rf "$work/trixie" "$work/bookworm" "$work/sysv"
fi

kinds=("$@")
[ $# -gt 0 ] || kinds=(systemd debian13 sysv openrc commands)
machines=()
status=0
for kind in "${kinds[@]}"; do
    if [ "$kind" != commands ]; then
        machines+=("$kind")
        continue
    fi
    for name in systemd debian13; do
        unshare --mount scripts/boot/commands.sh "$cache/$name.img" "$work/commands" || status=1
    done
done
((${#machines[@]})) || exit "$status"

if [ -n "${OLLANA_BIN:-}" ]; then
    binary=$(realpath "$OLLANA_BIN")
else
    cargo build --release --quiet
    binary=$(realpath "${CARGO_TARGET_DIR:-target}/release/ollana")
fi
# What the user has downloaded: a release folder, and the package.
mkdir -p "$work/release/ollana"
cp -r scripts/install.sh scripts/service scripts/boot/ollama.py "$work/release/ollana"
cp "$binary" "$work/release/ollana/ollana"
OLLANA=$binary scripts/deb.sh "$binary" amd64 "$work/release" >/dev/null
tar -cf "$work/files.tar" -C "$work/release" .

ip netns add "$lan"
ip -n "$lan" link set lo up
ip -n "$lan" tuntap add lan0 mode tap
ip -n "$lan" address add 10.77.0.1/24 broadcast + dev lan0
ip -n "$lan" link set lan0 up
ip netns exec "$lan" python3 -B scripts/boot/checks.py "$cache" "$work" "$binary" "${machines[@]}" || status=1
exit "$status"
