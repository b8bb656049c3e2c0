// Exchanges two names in the current directory for as long as nobody asks it to stop, at least so often as told:
// swap NAME OTHER COUNT. Prints how often it did. A file named "stop" asks it to.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count != 4) return 2;
    long least = atol(arguments[3]), done = 0;
    while (done < least || access("stop", F_OK) != 0) {
        for (int burst = 0; burst < 100; burst++, done++) {
            if (renameat2(AT_FDCWD, arguments[1], AT_FDCWD, arguments[2], RENAME_EXCHANGE) != 0) {
                perror("exchange");
                return 1;
            }
        }
    }
    printf("%ld\n", done);
    return 0;
}
