#!/usr/bin/env bash
# Makes the initramfs of a guest that lives in it, with the agent as its first process: machine.sh KERNEL_FOLDER AGENT FILE
# KERNEL_FOLDER is what kernel.sh made. Inside there is busybox and nothing else.
set -euo pipefail
kernel=$1 agent=$2 file=$3

exec 9>"$file.lock"
flock 9
if [[ -e $file && ! $agent -nt $file ]]; then exit 0; fi

work=$file.part
rm -rf "$work"
mkdir -p "$work"/{bin,dev,etc,home/sandbox,modules,proc,root,run,sys,tmp,workspace}
# A development build is mostly what only a debugger reads.
strip -o "$work/init" "$agent"
cp /bin/busybox "$work/bin/busybox"
for applet in $(/bin/busybox --list); do
    if [[ $applet != busybox ]]; then ln -s busybox "$work/bin/$applet"; fi
done
chown 1000:1000 "$work/home/sandbox" "$work/workspace"
chmod 1777 "$work/tmp"
printf '%s\n' root:x:0:0::/root:/bin/sh sandbox:x:1000:1000::/home/sandbox:/bin/sh >"$work/etc/passwd"
printf '%s\n' root:x:0: sandbox:x:1000: >"$work/etc/group"

paths=
while read -r module; do
    cp "$kernel/modules/$module" "$work/modules/"
    paths+="${paths:+,}\"/modules/$module\""
done < <(grep --extended-regexp '^(virtio|failover|net_failover|rng)' "$kernel/modules/order")
printf '{"modules":[%s]}' "$paths" >"$work/sandhaus-initramfs"

# Not compressed: the guest's processor is emulated, its disk is not.
(cd "$work" && find . | cpio --quiet -o -H newc) >"$file.new"
mv "$file.new" "$file"
rm -rf "$work"
