#!/usr/bin/env bash
# Puts a stock Debian 6.1 kernel and an initramfs with its modules into a folder: kernel.sh FOLDER
# What is there already stays, so only the first run needs the network. Beside them come the modules by themselves, with
# their order, for whoever makes an initramfs of another kind.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
folder=$1
PATH="$PATH:/usr/sbin:/sbin"

# In the order in which they are wanted; what they need comes before them by itself.
modules=(virtio_pci virtio_blk virtio_net virtio_rng overlay loop veth bridge tun)

# The newest of the series, as the package lists have it.
newest() {
    apt-cache --names-only search '^linux-image-6\.1\.0-[0-9]+-cloud-amd64$' | cut -d' ' -f1 | sort -V | tail -n1
}

download() {
    local package
    package=$(newest)
    if [[ -z $package ]] || ! apt-get download -qq "$package" 2>/dev/null; then
        # The lists of a fresh machine are empty or old.
        apt-get update -qq
        package=$(newest)
        [[ -n $package ]] || { echo "no 6.1 kernel package is on offer" >&2; exit 1; }
        apt-get download -qq "$package"
    fi
}

# Tests of two programs may want it at the same time.
exec 9>"$folder.lock"
flock 9
if [[ -e $folder ]]; then exit 0; fi

# Removed by the next run if this one is cut short, since it is not yet under its name.
work=$folder.part
rm -rf "$work"
mkdir -p "$work/package" "$work/initramfs/"{bin,dev,proc,modules,newroot}
cd "$work"
download
dpkg-deb --extract ./*.deb package
release=$(basename package/lib/modules/*)
depmod -b package "$release"

for module in "${modules[@]}"; do
    modprobe --dirname package --set-version "$release" --show-depends "$module"
done | while read -r kind path _; do
    if [[ $kind != insmod ]]; then continue; fi
    name=$(basename "$path")
    if [[ -e initramfs/modules/$name ]]; then continue; fi
    cp "$path" "initramfs/modules/$name"
    echo "$name" >>initramfs/modules/order
done
cp /bin/busybox initramfs/bin/busybox
cp "$here/initramfs-init" initramfs/init
chmod 755 initramfs/init
# Not compressed: the guest's processor is emulated, its disk is not.
(cd initramfs && find . | cpio --quiet -o -H newc) >initramfs.cpio
cp "package/boot/vmlinuz-$release" vmlinuz
echo "$release" >release
mv initramfs/modules modules
# Whole, for those who build images.
mv ./*.deb linux-image.deb
rm -rf package initramfs
rm -rf "$folder"
mv "$work" "$folder"
