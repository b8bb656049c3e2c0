// Fills shared memory that belongs to no process, in small steps, until the memory limit ends it: what it leaves is freed
// by the end of no other process but the first.
#define _GNU_SOURCE
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#define STEP (32 * 1024)

int main(void) {
    for (;;) {
        int segment = shmget(IPC_PRIVATE, STEP, IPC_CREAT | 0600);
        if (segment < 0) return 1;
        char *memory = shmat(segment, NULL, 0);
        if (memory == (char *)-1) return 2;
        memset(memory, 1, STEP);
        shmdt(memory);
    }
}
