// The smallest first process that a sandbox of the floor probe can have. Descriptor 3 is a packet socket to the probe.
// It says "R" when it is there; with the argument "shell" it has started a shell in a terminal before.
// Asked with "x" it runs /bin/true and answers when that has ended; asked with "b" it lets the shell run a builtin.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pty.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

static char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "PS1=", "PS2=", "TERM=dumb", NULL};

static int start_shell(void) {
    int primary, secondary;
    if (openpty(&primary, &secondary, NULL, NULL, NULL) != 0) return -1;
    struct termios terminal;
    tcgetattr(secondary, &terminal);
    terminal.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(secondary, TCSANOW, &terminal);
    if (fork() == 0) {
        login_tty(secondary);
        char *const arguments[] = {"bash", "--norc", "--noprofile", "--noediting", "-s", NULL};
        execve("/bin/bash", arguments, environment);
        char *const plain[] = {"sh", NULL};
        execve("/bin/sh", plain, environment);
        _exit(127);
    }
    close(secondary);
    return primary;
}

static int run_builtin(int shell) {
    static const char command[] = "printf '\\036'\n";
    if (write(shell, command, sizeof command - 1) < 0) return -1;
    char said[4096];
    for (;;) {
        ssize_t count = read(shell, said, sizeof said);
        if (count <= 0) return -1;
        if (memchr(said, 036, (size_t)count)) return 0;
    }
}

static int run_true(void) {
    char *const arguments[] = {"true", NULL};
    pid_t child;
    int status = 0;
    if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environment) != 0) return -1;
    return waitpid(child, &status, 0) == child && status == 0 ? 0 : -1;
}

int main(int count, char **arguments) {
    int shell = count > 1 && strcmp(arguments[1], "shell") == 0 ? start_shell() : -1;
    send(3, "R", 1, 0);
    for (;;) {
        char request[16];
        if (recv(3, request, sizeof request, 0) <= 0) return 0;
        int failed = request[0] == 'b' ? run_builtin(shell) : run_true();
        send(3, failed ? "E" : "k", 1, 0);
    }
}
