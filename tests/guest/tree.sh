#!/usr/bin/env bash
# Puts a tree of Debian with systemd into a folder, as tree.tar: tree.sh FOLDER
# What is there already stays, so only the first run needs the network.
set -euo pipefail
cache=$1

# Unpacked only: nothing of theirs is set up, what a guest needs is written by whoever takes the tree.
packages=(systemd-sysv bash coreutils util-linux mount e2fsprogs iproute2 libc-bin grep sed findutils base-files)
packages+=(podman crun conmon)

# Tests of two programs may want it at the same time.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [[ -e $cache/tree.tar ]]; then exit 0; fi
mmdebstrap --quiet --mode=root --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --include="$(IFS=,; echo "${packages[*]}")" bookworm "$cache/new.tar"
# Under its name only once it is whole.
mv "$cache/new.tar" "$cache/tree.tar"
