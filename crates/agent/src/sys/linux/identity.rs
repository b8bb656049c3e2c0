//! Whose rights the agent uses: its own on the main thread, the workload's on the threads that touch files.

#![expect(unsafe_code, reason = "the kernel's per-thread identity calls have no safe wrapper")]

use sandhaus_protocol::boot::Workload;

/// Makes this thread open, create and delete files as the workload, for the rest of its life. Only this thread: the
/// raw calls are used because the C library's would change every thread.
pub(crate) fn enter_workload_thread(workload: &Workload) {
    set_file_ids(workload.uid, workload.gid);
}

/// Runs `action` with the workload's file identity on this thread.
pub(crate) fn as_workload<T>(workload: &Workload, action: impl FnOnce() -> T) -> T {
    let (uid, gid) = own_ids();
    if (uid, gid) == (workload.uid, workload.gid) {
        return action();
    }
    set_file_ids(workload.uid, workload.gid);
    let result = action();
    set_file_ids(uid, gid);
    result
}

/// The agent's own user and group id.
pub(crate) fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Changes the ids used for file access. A lack of privilege leaves them as they are, which by hand is the user's own.
fn set_file_ids(uid: u32, gid: u32) {
    // SAFETY: both calls take plain numbers and touch only this thread's credentials.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}
