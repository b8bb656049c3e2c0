//! What this process inherited from whoever started it, put right.
#![expect(unsafe_code, reason = "signal dispositions have no safe wrapper")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Signals that a parent's choice must not change for us: a parent may have had them ignored, and that survives exec.
/// With SIGCHLD ignored nobody could wait for a child. What `nohup` and shells without job control ignore for their
/// background commands (SIGHUP, SIGINT, SIGQUIT) is their good right and stays.
const RESET: &[libc::c_int] = &[libc::SIGCHLD, libc::SIGTERM, libc::SIGWINCH];

/// Brings signal dispositions and the signal mask back to what a program starts with. Called before any thread exists.
pub(crate) fn reset_signals() {
    for &signal in RESET {
        // SAFETY: the numbers are signals, SIG_DFL is a disposition for each, and no handler of ours is replaced yet.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before sigprocmask reads it; the old mask is not asked for.
    unsafe {
        let mut none = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Ignores every signal that asks a process to end. Called before any thread exists.
pub(crate) fn ignore_requests_to_end() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: the numbers are signals, SIG_IGN is a disposition for each, and no handler of ours is replaced.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Whether whoever started this process had the signal ignored. Asked before we listen to it ourselves.
pub(crate) fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one to memory that is valid for it.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: a call that succeeded has written the record.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Gives new files the modes that are asked for. Everything of ours lies in directories that only root may enter, while
/// what is shown inside of sandboxes must be readable there, however cautious the caller's own mask is.
pub(crate) fn reset_file_mask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// Raises the limit of open files to the most that is allowed: every sandbox and every connection takes some.
pub(crate) fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
