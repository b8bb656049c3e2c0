//! What the agent's allocator keeps for itself: little, since every sandbox has an agent that is idle most of the time.

#![expect(unsafe_code, reason = "the allocator's own calls have no safe wrapper")]

/// Allocations from this size on are the kernel's, and go back to it when they are freed.
#[cfg(target_env = "gnu")]
const OWN_BYTES_MAX: libc::c_int = 1 << 20;

/// So much freed memory may be kept for the next time.
#[cfg(target_env = "gnu")]
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Sets the allocator up. Before any thread exists.
pub(super) fn prepare() {
    // One heap for all threads: the file threads allocate little, and each further heap costs resident pages. With a size
    // that is set it no longer grows with what was allocated.
    // SAFETY: these set parameters of the allocator before any thread exists.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_BYTES_MAX);
    }
}

/// Gives back what was needed for once. Cheap where there is little of it.
pub(crate) fn return_memory() {
    // SAFETY: both calls are made for any thread at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        if libc::mallinfo2().fordblks > SPARE_BYTES_MAX {
            libc::malloc_trim(0);
        }
    }
}
