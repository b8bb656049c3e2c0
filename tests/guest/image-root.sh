#!/usr/bin/env bash
# Makes the root file system that an image of a virtual machine is built of, in an empty folder: image-root.sh CACHE ROOT
# It is the tree of tree.sh in the folder CACHE, with what its packages would have set up.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=$1
root=$2
PATH="$PATH:/usr/sbin:/sbin"

unwanted=('./usr/share/doc/*' './usr/share/man/*' './usr/share/locale/*' './usr/lib/cni/*' './dev/*')
# The containers of another test.
unwanted+=('./usr/bin/podman' './usr/bin/crun' './usr/bin/conmon' './usr/libexec/podman/*' './var/cache/*' './var/lib/apt/*')

"$here/tree.sh" "$cache"
tar --extract --file "$cache/tree.tar" --directory "$root" "${unwanted[@]/#/--exclude=}"
mkdir -p "$root"/{dev,root,etc,tmp,usr/local/bin,var/lib}
cp /bin/busybox "$root/usr/bin/busybox"
printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
printf 'root:x:0:\ntty:x:5:\n' >"$root/etc/group"
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
ldconfig -r "$root"
# One that is another each time.
rm -rf "$root/var/cache"

# Nobody logs in, and what is there at once needs no waiting for.
units=$root/etc/systemd/system
mkdir -p "$units"
for unit in getty@tty1 getty-static console-getty serial-getty@ttyS0 systemd-{logind,networkd,resolved,timesyncd,pstore,udevd,udev-trigger,update-utmp,update-utmp-runlevel,remount-fs,binfmt,hwdb-update,journal-flush}; do
    ln -sf /dev/null "$units/$unit.service"
done
ln -sf /lib/systemd/system/multi-user.target "$units/default.target"
