#!/usr/bin/env bash
# Packs an initramfs whose first process is the agent: agent-machine.sh KERNEL AGENT ROOT INITRAMFS [DISK]
# KERNEL is the folder that kernel.sh made, ROOT what the agent's document says of the root, in JSON. With DISK, an ext4
# file system with the label "machine" is made too, which has busybox's init and the agent as its service.
set -euo pipefail
kernel=$1 agent=$2 root=$3 initramfs=$4 disk=${5-}
PATH="$PATH:/usr/sbin:/sbin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Programs of a root: busybox under the names that are used.
programs() {
    mkdir -p "$1/bin"
    cp /bin/busybox "$1/bin/busybox"
    for name in cat cut date grep ls mount ping poweroff sh sleep touch uname wget; do
        ln -s busybox "$1/bin/$name"
    done
}

mkdir "$work/initramfs"
cd "$work/initramfs"
programs .
mkdir etc modules
modules=
while read -r module; do
    cp "$kernel/modules/$module" modules/
    modules+="\"/modules/$module\","
done <"$kernel/modules/order"
printf '{"modules":[%s],"root":%s}\n' "${modules%,}" "$root" >sandhaus-initramfs
cp "$agent" init
chmod 755 init
find . | cpio --quiet -o -H newc >"$initramfs"

if [[ -z $disk ]]; then exit; fi
tree=$work/disk
mkdir -p "$tree"/{dev,etc,proc,root,run,sbin,sys,tmp,var}
programs "$tree"
ln -s ../bin/busybox "$tree/sbin/init"
ln -s ../bin/busybox "$tree/sbin/poweroff"
cp "$agent" "$tree/bin/sandhaus-agent"
chmod 755 "$tree/bin/sandhaus-agent"
cat >"$tree/etc/inittab" <<'TABLE'
::sysinit:/bin/mount -t tmpfs tmpfs /run
::respawn:/bin/sandhaus-agent --guest --network
TABLE
truncate -s 64M "$disk"
mkfs.ext4 -q -F -L machine -d "$tree" "$disk"
