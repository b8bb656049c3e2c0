#!/usr/bin/env bash
# Makes the guest's root file system with the binary under test in it: root.sh BINARY IMAGE
# Everything comes from this machine's own packages; nothing is downloaded.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
binary=$1
image=$2
PATH="$PATH:/usr/sbin:/sbin"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{dev,etc/sandhaus,proc,root,run,sys,tmp,usr/bin,usr/lib,usr/lib64,var/lib}
chmod 1777 "$root/tmp"
ln -s usr/bin "$root/bin"
ln -s usr/bin "$root/sbin"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
ln -s bin "$root/usr/sbin"

cp /bin/busybox "$root/usr/bin/busybox"
for applet in $(/bin/busybox --list); do
    [[ $applet == busybox ]] || ln -s busybox "$root/usr/bin/$applet"
done

# A program with the shared libraries it is linked with, at the places where its loader looks.
program() {
    local from=$1 to=$2 library
    rm -f "$root/usr/bin/$to"
    cp --dereference "$from" "$root/usr/bin/$to"
    # A static program has none; ldd says so with an error.
    { ldd "$from" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
        local place=$library
        [[ $place == /usr/* ]] || place=/usr$place
        mkdir -p "$root$(dirname "$place")"
        cp --dereference "$library" "$root$place"
    done
}
program "$(command -v bash)" bash
program "$(command -v mkfs.ext4)" mkfs.ext4
program "$binary" sandhaus
# Names and addresses are looked up by what glibc loads by itself.
strip --strip-debug "$root/usr/bin/sandhaus"
ldconfig -r "$root"

printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf 'hosts: files\npasswd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
cp "$here/sandhaus.yaml" "$root/etc/sandhaus/sandhaus.yaml"
cp "$here/init" "$root/usr/bin/init.new"
mv "$root/usr/bin/init.new" "$root/usr/bin/init"
cp "$here/checks.sh" "$root/usr/bin/guest-checks"
cp "$here/asking.sh" "$root/usr/bin/guest-asking"
chmod 755 "$root/usr/bin/init" "$root/usr/bin/guest-checks"

truncate -s 1G "$image"
mke2fs -q -F -t ext4 -O '^has_journal' -E nodiscard -d "$root" "$image"
