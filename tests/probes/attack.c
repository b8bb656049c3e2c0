// Tries, from inside a sandbox, what no sandbox may allow, and prints one line for each attempt:
// "blocked NAME errno" or "open NAME". What is open is a finding; the test knows which exceptions a profile has.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void verdict(const char *name, long result) {
    if (result < 0) {
        printf("blocked %s %d\n", name, errno);
    } else {
        printf("open %s\n", name);
    }
}

// Runs one system call in a child, so that one that succeeds, or kills, spoils nothing after it.
static void attempt(const char *name, long number, long a, long b, long c, long d, long e) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        errno = 0;
        long result = syscall(number, a, b, c, d, e, 0);
        _exit(result < 0 ? (errno ? errno : 255) : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) {
        printf("blocked %s signal%d\n", name, WTERMSIG(status));
    } else {
        errno = WEXITSTATUS(status);
        verdict(name, errno ? -1 : 0);
    }
}

#define ATTEMPT(name, number, a, b, c, d, e) \
    attempt(name, number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

static void namespaces(void) {
    static const struct { const char *name; unsigned long flag; } flags[] = {
        {"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS},   {"pid", CLONE_NEWPID},       {"net", CLONE_NEWNET},
        {"ipc", CLONE_NEWIPC},   {"uts", CLONE_NEWUTS},    {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
    };
    char name[64];
    for (size_t at = 0; at < sizeof flags / sizeof *flags; at++) {
        snprintf(name, sizeof name, "unshare-%s", flags[at].name);
        ATTEMPT(name, SYS_unshare, flags[at].flag, 0, 0, 0, 0);
        if (flags[at].flag == 0x80) continue;  // In clone this bit is part of the exit signal.
        snprintf(name, sizeof name, "clone-%s", flags[at].name);
        errno = 0;
        fflush(stdout);
        long child = syscall(SYS_clone, flags[at].flag | SIGCHLD, 0, 0, 0, 0);
        if (child == 0) _exit(0);
        verdict(name, child);
        if (child > 0) waitpid((pid_t)child, NULL, __WALL);
        struct clone_args arguments = {.flags = flags[at].flag, .exit_signal = SIGCHLD};
        snprintf(name, sizeof name, "clone3-%s", flags[at].name);
        errno = 0;
        child = syscall(SYS_clone3, &arguments, sizeof arguments);
        if (child == 0) _exit(0);
        verdict(name, child);
        if (child > 0) waitpid((pid_t)child, NULL, __WALL);
    }
    int own = open("/proc/self/ns/mnt", O_RDONLY);
    ATTEMPT("setns-own-mount", SYS_setns, own, 0, 0, 0, 0);
    int init = open("/proc/1/ns/user", O_RDONLY);
    verdict("open-init-namespace", init);
    if (own >= 0) close(own);
    if (init >= 0) close(init);
}

static void mounts(void) {
    ATTEMPT("mount-tmpfs", SYS_mount, "none", "/tmp", "tmpfs", 0, 0);
    ATTEMPT("mount-proc", SYS_mount, "proc", "/proc", "proc", 0, 0);
    ATTEMPT("mount-bind", SYS_mount, "/usr", "/tmp", 0, 4096, 0);
    ATTEMPT("mount-remount", SYS_mount, 0, "/", 0, 32, 0);
    ATTEMPT("umount-proc", SYS_umount2, "/proc", 2, 0, 0, 0);
    ATTEMPT("umount-mask", SYS_umount2, "/proc/kcore", 2, 0, 0, 0);
    ATTEMPT("pivot-root", SYS_pivot_root, "/tmp", "/tmp", 0, 0, 0);
    ATTEMPT("fsopen", 430, "tmpfs", 0, 0, 0, 0);
    ATTEMPT("fspick", 433, AT_FDCWD, "/", 0, 0, 0);
    ATTEMPT("open-tree", 428, AT_FDCWD, "/", 1, 0, 0);
    ATTEMPT("move-mount", 429, AT_FDCWD, "/tmp", AT_FDCWD, "/mnt", 0);
    ATTEMPT("mount-setattr", 442, AT_FDCWD, "/", 0, "", 32);
}

static void kernel_surface(void) {
    static char page[4096];
    ATTEMPT("io-uring", 425, 8, page, 0, 0, 0);
    ATTEMPT("bpf", SYS_bpf, 0, page, 120, 0, 0);
    ATTEMPT("userfaultfd", SYS_userfaultfd, 1, 0, 0, 0, 0);
    ATTEMPT("perf-event-open", SYS_perf_event_open, page, 0, -1, -1, 0);
    ATTEMPT("open-by-handle-at", SYS_open_by_handle_at, AT_FDCWD, page, 0, 0, 0);
    ATTEMPT("kexec-load", SYS_kexec_load, 0, 0, 0, 0, 0);
    ATTEMPT("init-module", SYS_init_module, page, 1, "", 0, 0);
    ATTEMPT("finit-module", SYS_finit_module, 0, "", 0, 0, 0);
    ATTEMPT("delete-module", SYS_delete_module, "none", 0, 0, 0, 0);
    ATTEMPT("syslog", SYS_syslog, 3, page, 10, 0, 0);
    ATTEMPT("keyctl", SYS_keyctl, 0, -3, 1, 0, 0);
    ATTEMPT("add-key", SYS_add_key, "user", "k", "v", 1, -3);
    ATTEMPT("request-key", SYS_request_key, "user", "k", 0, -3, 0);
    ATTEMPT("reboot", SYS_reboot, 0xfee1dead, 672274793, 0, 0, 0);
    ATTEMPT("swapon", SYS_swapon, "/tmp/x", 0, 0, 0, 0);
    ATTEMPT("acct", SYS_acct, "/tmp/x", 0, 0, 0, 0);
    ATTEMPT("quotactl", SYS_quotactl, 0x800007, "/dev/vda", 0, page, 0);
    ATTEMPT("settimeofday", SYS_settimeofday, page, 0, 0, 0, 0);
    ATTEMPT("clock-settime", SYS_clock_settime, 0, page, 0, 0, 0);
    ATTEMPT("sethostname", SYS_sethostname, "x", 1, 0, 0, 0);
    ATTEMPT("setdomainname", SYS_setdomainname, "x", 1, 0, 0, 0);
    ATTEMPT("iopl", SYS_iopl, 3, 0, 0, 0, 0);
    ATTEMPT("ptrace-init", SYS_ptrace, PTRACE_SEIZE, 1, 0, 0, 0);
    int init = (int)syscall(SYS_pidfd_open, 1, 0);
    ATTEMPT("pidfd-getfd-init", SYS_pidfd_getfd, init, 0, 0, 0, 0);
    if (init >= 0) close(init);
    struct iovec here = {page, 16}, there = {page, 16};
    ATTEMPT("process-vm-readv-init", SYS_process_vm_readv, 1, &here, 1, &there, 1);
    ATTEMPT("process-vm-writev-init", SYS_process_vm_writev, 1, &here, 1, &there, 1);
    static const struct { const char *name; int family, type, protocol; } sockets[] = {
        {"socket-vsock", 40, SOCK_STREAM, 0},
        {"socket-packet", AF_PACKET, SOCK_RAW, 0},
        {"socket-netfilter", AF_NETLINK, SOCK_RAW, 12},
        {"socket-audit", AF_NETLINK, SOCK_RAW, 9},
    };
    for (size_t at = 0; at < sizeof sockets / sizeof *sockets; at++) {
        ATTEMPT(sockets[at].name, SYS_socket, sockets[at].family, sockets[at].type, sockets[at].protocol, 0, 0);
    }
    ATTEMPT("socketpair-vsock", SYS_socketpair, 40, SOCK_STREAM, 0, page, 0);
}

static void other_abis(void) {
#ifdef __x86_64__
    ATTEMPT("x32-getpid", 39 | 0x40000000, 0, 0, 0, 0, 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
        _exit(result < 0 ? 1 : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    errno = WIFSIGNALED(status) ? WTERMSIG(status) : EPERM;
    verdict("i386-getpid", WIFSIGNALED(status) || WEXITSTATUS(status) ? -1 : 0);
#endif
}

static void devices(void) {
    mkdir("/tmp/nodes", 0700);
    ATTEMPT("mknod-block", SYS_mknod, "/tmp/nodes/block", S_IFBLK | 0666, 0xfe00, 0, 0);
    ATTEMPT("mknod-memory", SYS_mknod, "/tmp/nodes/mem", S_IFCHR | 0666, 0x101, 0, 0);
    ATTEMPT("mknod-loop", SYS_mknod, "/tmp/nodes/loop", S_IFBLK | 0666, 0x700, 0, 0);
    char character = 'x';
    int terminal = open("/dev/tty", O_RDWR);
    verdict("inject-into-terminal", terminal < 0 ? -1 : ioctl(terminal, TIOCSTI, &character));
    if (terminal >= 0) close(terminal);
}

static void files(void) {
    static const struct { const char *path; int flags; } targets[] = {
        {"/proc/sysrq-trigger", O_WRONLY},          {"/proc/sys/kernel/core_pattern", O_WRONLY},
        {"/proc/sys/kernel/modprobe", O_WRONLY},    {"/proc/sys/vm/drop_caches", O_WRONLY},
        {"/proc/sys/fs/binfmt_misc/register", O_WRONLY}, {"/proc/sys/kernel/ns_last_pid", O_WRONLY},
        {"/proc/kcore", O_RDONLY},                  {"/proc/kmsg", O_RDONLY},
        {"/proc/1/mem", O_RDONLY},                  {"/proc/1/mem", O_RDWR},
        {"/proc/1/environ", O_RDONLY},              {"/proc/1/maps", O_RDONLY},
        {"/proc/1/root", O_RDONLY | O_DIRECTORY},   {"/proc/1/cwd", O_RDONLY | O_DIRECTORY},
        {"/proc/1/fd", O_RDONLY | O_DIRECTORY},     {"/proc/1/exe", O_RDONLY},
        {"/proc/1/fd/3", O_RDWR},                   {"/proc/1/oom_score_adj", O_WRONLY},
        {"/dev/kmsg", O_WRONLY},                    {"/dev/kvm", O_RDWR},
        {"/dev/vda", O_RDONLY},                     {"/dev/sda", O_RDONLY},
        {"/dev/fuse", O_RDWR},                      {"/dev/mem", O_RDONLY},
        {"/dev/loop-control", O_RDWR},              {"/dev/vhost-vsock", O_RDWR},
        {"/sys/kernel/uevent_helper", O_WRONLY},    {"/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY},
        {"/sys/power/state", O_WRONLY},             {"/sys/fs/cgroup/release_agent", O_WRONLY},
        {"/sys/fs/cgroup/memory/release_agent", O_WRONLY}, {"/sys/fs/cgroup/cgroup.procs", O_WRONLY},
        {"/sys/fs/cgroup/memory/cgroup.procs", O_WRONLY},  {"/sys/fs/cgroup/memory.max", O_WRONLY},
        {"/sys/fs/cgroup/pids/tasks", O_WRONLY},    {"/sys/fs/cgroup/unified/cgroup.procs", O_WRONLY},
    };
    for (size_t at = 0; at < sizeof targets / sizeof *targets; at++) {
        errno = 0;
        int file = open(targets[at].path, targets[at].flags | O_NONBLOCK);
        long result = file;
        // A file that opens but hides its content or ignores writes is as good as closed.
        char byte[16] = "0";
        if (file >= 0 && (targets[at].flags & O_ACCMODE) == O_RDONLY && !(targets[at].flags & O_DIRECTORY)) {
            result = read(file, byte, sizeof byte) > 0 ? 0 : (errno = ENODATA, -1);
        }
        char name[128];
        snprintf(name, sizeof name, "%s:%s", (targets[at].flags & O_ACCMODE) == O_RDONLY ? "read" : "write", targets[at].path);
        verdict(name, result);
        if (file >= 0) close(file);
    }
}

// Everything that a visible process holds open, as far as it shows.
static void descriptors(void) {
    DIR *processes = opendir("/proc");
    for (struct dirent *process; processes && (process = readdir(processes));) {
        if (process->d_name[0] < '0' || process->d_name[0] > '9') continue;
        char folder[300];
        snprintf(folder, sizeof folder, "/proc/%s/fd", process->d_name);
        DIR *held = opendir(folder);
        for (struct dirent *entry; held && (entry = readdir(held));) {
            char path[600], target[512];
            snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
            ssize_t length = readlink(path, target, sizeof target - 1);
            if (length <= 0) continue;
            target[length] = 0;
            printf("holds %s %s %s\n", process->d_name, entry->d_name, target);
        }
        if (held) closedir(held);
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    namespaces();
    mounts();
    kernel_surface();
    other_abis();
    devices();
    files();
    descriptors();
    puts("end");
    return 0;
}
