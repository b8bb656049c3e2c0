// Makes a process with the number given, says so, and ends it when standard input ends.
#define _GNU_SOURCE
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **words) {
    pid_t number = count == 2 ? atoi(words[1]) : 0;
    struct clone_args arguments = {
        .exit_signal = SIGCHLD, .set_tid = (unsigned long)&number, .set_tid_size = 1};
    long child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    if (child < 0) {
        perror("clone3");
        return 1;
    }
    printf("%ld\n", child);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
    kill((pid_t)child, SIGKILL);
    waitpid((pid_t)child, NULL, 0);
    return 0;
}
