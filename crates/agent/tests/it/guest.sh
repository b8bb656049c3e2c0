# What stands for a virtual machine: a root of its own in memory, with the host's programs, its own names and network.
# guest.sh FOLDER AGENT; each line of standard input starts the agent once more.
set -eu
root=$1/root
mkdir "$root"
mount -t tmpfs -o mode=0755 tmpfs "$root"
cd "$root"
mkdir usr etc proc sys dev tmp run var home old
mount --rbind /usr usr
mount -o remount,bind,ro usr
for folder in bin sbin lib lib64; do
    if [ -L "/$folder" ]; then
        cp -a "/$folder" "$folder"
    elif [ -d "/$folder" ]; then
        mkdir "$folder"
        mount --rbind "/$folder" "$folder"
    fi
done
chmod 1777 tmp
printf 'root:x:0:0:root:/root:/bin/sh\n' >etc/passwd
printf 'root:x:0:\n' >etc/group
printf 'before\n' >etc/hostname
printf '127.0.0.1 localhost\n' >etc/hosts
printf '00000000000000000000000000000000\n' >etc/machine-id
mkdir -p var/lib/dbus
cp etc/machine-id var/lib/dbus/machine-id
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount -t sysfs sysfs sys
cp "$2" agent
pivot_root . old
umount -l old
hostname before
while read -r _; do
    # Its clock is the host's: it must not be able to set it.
    setpriv --bounding-set -sys_time --inh-caps -sys_time /agent --guest --network &
    wait $! || true
done
