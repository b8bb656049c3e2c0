#!/usr/bin/env bash
# Makes the root file system of a guest with systemd, the shipped units and the binary under test in it:
#   service-root.sh CACHE BINARY IMAGE
# Debian's packages are fetched into the folder CACHE by the first run; later ones need no network.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
checkout=$(readlink -f "$here/../..")
cache=$1
binary=$2
image=$3
PATH="$PATH:/usr/sbin:/sbin"

unwanted=('./usr/share/doc/*' './usr/share/man/*' './usr/share/locale/*' './usr/lib/cni/*' './dev/*')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/tree.sh" "$cache"

root=$work/root
mkdir "$root"
tar --extract --file "$cache/tree.tar" --directory "$root" "${unwanted[@]/#/--exclude=}"
mkdir -p "$root"/{dev,root,etc/sandhaus,usr/local/bin,var/lib}
cp "$binary" "$root/usr/local/bin/sandhaus"
strip --strip-debug "$root/usr/local/bin/sandhaus"
cp /bin/busybox "$root/usr/bin/busybox"
printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
printf 'root:x:0:\ntty:x:5:\n' >"$root/etc/group"
printf 'hosts: files\npasswd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
echo guest >"$root/etc/hostname"
# With an id it is no first boot, on which systemd would set itself up.
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
ldconfig -r "$root"

# The container's image, with the layout of the Dockerfile; its files are those of the guest, kept once.
image_root=$root/srv/image
mkdir -p "$image_root"/{dev,etc,proc,root,run,sys,tmp,var/lib/sandhaus}
cp -al "$root/usr" "$image_root/usr"
for name in bin sbin lib lib64; do
    ln -s "usr/$name" "$image_root/$name"
done
cp "$root"/etc/{passwd,group,nsswitch.conf,hosts} "$image_root/etc/"
install -D -m 755 -t "$image_root/usr/local/lib/sandhaus" "$checkout"/packaging/docker/{entrypoint,healthcheck}

# KEY: the items of one of the lists in the compose file's service.
compose() {
    awk -v key="    $1:" '$0 == key { inside = 1; next } /^    [a-z]/ { inside = 0 } inside && $1 == "-" { print $2 }' \
        "$checkout/packaging/docker/compose.yaml"
}
{
    compose cap_drop | sed 's/^/--cap-drop=/'
    compose cap_add | sed 's/^/--cap-add=/'
    compose tmpfs | sed 's/^/--tmpfs=/'
    # What podman calls the same. The guest's kernel has no AppArmor.
    compose security_opt | sed -n 's,^systempaths=unconfined$,--security-opt=unmask=/proc/*:/sys/firmware:/sys/dev/block,p'
    sed -n 's/^    cgroup: /--cgroupns=/p; s/^    pids_limit: /--pids-limit=/p' "$checkout/packaging/docker/compose.yaml"
} >"$root/usr/share/container-options"

units=$root/etc/systemd/system
cp "$checkout"/packaging/systemd/*.service "$units/"
cp "$here/sandhaus.yaml" "$root/etc/sandhaus/sandhaus.yaml"
cp "$here/asking.sh" "$root/usr/bin/guest-asking"
cp "$here/service-checks.sh" "$root/usr/bin/guest-checks"
chmod 755 "$root/usr/bin/guest-checks"
# Nobody logs in, and what is there at once needs no waiting for.
for unit in getty@tty1 getty-static console-getty serial-getty@ttyS0 systemd-{logind,networkd,resolved,timesyncd,pstore,udevd,udev-trigger,update-utmp,update-utmp-runlevel,remount-fs,binfmt,hwdb-update}; do
    ln -sf /dev/null "$units/$unit.service"
done
cat >"$units/guest-checks.service" <<'UNIT'
[Unit]
Description=Checks
[Service]
Type=oneshot
Environment=HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin
# Through a pipe, so that programs do not take the console for somebody's terminal.
ExecStart=/bin/bash -c '{ guest-checks; echo "GUEST-END $?"; } </dev/null 2>&1 | cat >/dev/ttyS0'
ExecStopPost=/bin/systemctl poweroff --force --force
UNIT
cat >"$units/guest.target" <<'UNIT'
[Unit]
Description=Nothing but the checks
Requires=basic.target
Wants=guest-checks.service
After=basic.target
AllowIsolate=yes
UNIT
ln -sf guest.target "$units/default.target"

truncate -s 2G "$image"
mke2fs -q -F -t ext4 -O '^has_journal' -E nodiscard -d "$root" "$image"
