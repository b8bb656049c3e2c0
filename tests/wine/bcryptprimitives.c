/* The library from which Rust programs take random numbers, for Wine of Debian 12, which lacks it. Tests only: Windows has
   its own. */
#include <stddef.h>

/* Of advapi32, by its only name. */
__declspec(dllimport) unsigned char __stdcall SystemFunction036(void *buffer, unsigned long length);

__declspec(dllexport) int ProcessPrng(unsigned char *buffer, size_t length)
{
    const size_t step_max = 1 << 20;
    for (size_t done = 0; done < length;) {
        size_t step = length - done < step_max ? length - done : step_max;
        if (!SystemFunction036(buffer + done, (unsigned long)step)) {
            return 0;
        }
        done += step;
    }
    return 1;
}
