// Makes a user and a mount namespace inside the sandbox's own, where it has every capability, and tries to take off what
// the sandbox hides and seals. Prints "blocked NAME errno" or "open NAME" for each attempt, as the other probe does.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void verdict(const char *name, long result) {
    if (result < 0) {
        printf("blocked %s %d\n", name, errno);
    } else {
        printf("open %s\n", name);
    }
    fflush(stdout);
}

static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    if (file < 0 || write(file, text, strlen(text)) != (ssize_t)strlen(text)) {
        perror(path);
        exit(2);
    }
    close(file);
}

// Whether a file gives anything when it is read.
static long reads(const char *path) {
    char byte;
    int file = open(path, O_RDONLY | O_NONBLOCK);
    if (file < 0) return -1;
    long got = read(file, &byte, 1);
    close(file);
    if (got == 0) errno = ENODATA;
    return got > 0 ? 0 : -1;
}

int main(void) {
    unsigned uid = getuid(), gid = getgid();
    char map[64];
    // One namespace of the network is too many.
    verdict("unshare-net", unshare(CLONE_NEWUSER | CLONE_NEWNET));
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) < 0) {
        verdict("unshare", -1);
        return 1;
    }
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    put("/proc/self/gid_map", map);
    puts("nested");
    fflush(stdout);
    pid_t child = fork();
    if (child > 0) {
        int status = 0;
        waitpid(child, &status, 0);
        return WEXITSTATUS(status);
    }
    // What a nested sandbox needs.
    mkdir("/tmp/n", 0755);
    if (mount("none", "/tmp/n", "tmpfs", 0, NULL) < 0) {
        perror("a tmpfs of its own");
        return 3;
    }
    mkdir("/tmp/n/proc", 0755);
    mkdir("/tmp/n/x", 0755);
    // What is hidden stays hidden.
    verdict("umount-mask", umount2("/proc/sysrq-trigger", MNT_DETACH));
    verdict("umount-kcore", umount2("/proc/kcore", MNT_DETACH));
    verdict("umount-proc-sys", umount2("/proc/sys", MNT_DETACH));
    verdict("umount-proc", umount2("/proc", MNT_DETACH));
    verdict("umount-sys", umount2("/sys", MNT_DETACH));
    verdict("fresh-proc", mount("proc", "/tmp/n/proc", "proc", 0, NULL));
    verdict("fresh-sys", mount("sysfs", "/tmp/n/x", "sysfs", 0, NULL));
    verdict("bind-without-masks", mount("/proc", "/tmp/n/proc", NULL, MS_BIND, NULL));
    verdict("read-kcore", reads("/proc/kcore"));
    verdict("read-keys", reads("/proc/keys"));
    // What is sealed stays sealed.
    verdict("remount-proc-sys", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    verdict("remount-sys", mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    verdict("remount-root-super", mount(NULL, "/", NULL, MS_REMOUNT, NULL));
    verdict("write-core-pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    verdict("write-drop-caches", open("/proc/sys/vm/drop_caches", O_WRONLY));
    // Capabilities of the nested namespace are none outside of it.
    verdict("mknod", mknod("/tmp/n/x/mem", S_IFCHR | 0666, 0x101));
    verdict("ptrace-init", syscall(SYS_ptrace, 0x4206, 1, 0, 0));
    verdict("read-init-memory", reads("/proc/1/mem"));
    verdict("socket-packet", socket(17, SOCK_RAW, 0));
    verdict("socket-netfilter", socket(16, SOCK_RAW, 12));
    verdict("fsopen", syscall(430, "tmpfs", 0));
    verdict("open-tree", syscall(428, AT_FDCWD, "/", 1));
    verdict("clone3", syscall(435, NULL, 0));
    verdict("bpf", syscall(SYS_bpf, 0, NULL, 0));
    verdict("io-uring", syscall(425, 8, NULL));
    mkdir("/tmp/n/cg", 0755);
    if (mount("cgroup2", "/tmp/n/cg", "cgroup2", 0, NULL) == 0) {
        verdict("write-own-cgroup", open("/tmp/n/cg/cgroup.freeze", O_WRONLY));
        verdict("make-cgroup", mkdir("/tmp/n/cg/made", 0755));
        verdict("leave-cgroup", open("/tmp/n/cg/cgroup.procs", O_WRONLY));
    }
    puts("end");
    return 0;
}
