#!/usr/bin/env bash
# README, "Try it": its two commands in the files of a clean machine, with the packages that it names, as
# any user: unshare --mount scripts/boot/commands.sh IMAGE FOLDER
#
# Rust's toolchain and the crates are those of this machine, so that it needs Debian's mirror only.
set -euo pipefail

image=$1
folder=$2
root=$folder/root
# shellcheck disable=SC2317 # called by the trap
clean_up() {
    umount -l "$root" "$folder/image" || true
    rm -rf "$folder"
}
mkdir -p "$folder"/{image,upper,overlay,root}
trap clean_up EXIT
mount -o loop,ro "$image" "$folder/image"
mount -t overlay -o "lowerdir=$folder/image,upperdir=$folder/upper,workdir=$folder/overlay" overlay "$root"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# shellcheck disable=SC2016 # a backtick
packages=$(sed -n 's/.*`apt install \(gcc [a-z ]*\)`.*/\1/p' README.md)
# shellcheck disable=SC2086 # words
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -qy $packages >"$folder/apt.log" 2>&1 ||
    { tail "$folder/apt.log"; exit 1; }
mkdir -p "$root/opt/rust" "$root/opt/cargo"
mount --bind "$(rustc --print sysroot)" "$root/opt/rust"
cargo fetch --quiet --locked
cp -r "${CARGO_HOME:-$HOME/.cargo}/registry" "$root/opt/cargo"
git clone -q . "$root/home/me/source"
chroot "$root" chown -R me: /home/me/source /opt/cargo
for command in "make run" "make test"; do
    echo "$(basename "$image" .img): $command"
    begun=$SECONDS
    # shellcheck disable=SC2016 # for the shell inside
    unshare --net sh -c 'ip link set lo up; exec chroot "$0" su me -c "$1"' "$root" \
        "cd ~/source; export PATH=/opt/rust/bin:\$PATH CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true; $command" \
        >"$folder/log" 2>&1 || {
        grep -E '^test .* FAILED$|panicked at' -A 3 "$folder/log" || tail -n 60 "$folder/log"
        echo "FAIL $command"
        exit 1
    }
    echo "ok   $command ($((SECONDS - begun)) s)"
done
