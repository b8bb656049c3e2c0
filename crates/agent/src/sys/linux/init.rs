//! The first moments: as PID 1 of a container, in a virtual machine, or by hand.

#![expect(unsafe_code, reason = "inherited descriptors are known by number only")]

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
};

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, Resource},
};
use sandhaus_protocol::boot::{BootConfig, CONFIG_BYTES_MAX, CONFIG_FD, LISTEN_FD};

use super::signals;

/// Descriptors the agent may use at most; its children get the limits it was started with.
const OPEN_FILES_MAX: u64 = 65_536;

/// How unwilling the kernel of a virtual machine is to end the agent when memory runs out.
const OOM_SCORE: &str = "-900";

/// What PID 1 inherits.
pub(crate) struct InheritedStart {
    /// The listening socket.
    pub(crate) listener: UnixListener,
    /// The start-up document.
    pub(crate) config: BootConfig,
}

/// Takes the listener and the boot document from the descriptors that the launcher left, and closes the way for
/// everything else that may have been inherited. Call once, before any thread.
pub(crate) fn take_inherited() -> io::Result<InheritedStart> {
    signals::reset();
    // Neither /proc/1/mem nor /proc/1/fd nor a core file may show the workload what the agent knows.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for fd in [LISTEN_FD, CONFIG_FD] {
        // SAFETY: F_GETFD only asks; a number that is no descriptor answers an error.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(io::Error::other(format!("descriptor {fd} was not inherited")));
        }
    }
    // SAFETY: both are open, as just seen, and only this function takes them, once.
    let (listener, document) = unsafe { (OwnedFd::from_raw_fd(LISTEN_FD), OwnedFd::from_raw_fd(CONFIG_FD)) };
    let mut text = Vec::new();
    File::from(document).take(CONFIG_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
    if text.len() > CONFIG_BYTES_MAX {
        return Err(io::Error::other(format!("the boot document is longer than {CONFIG_BYTES_MAX} bytes")));
    }
    let config = serde_json::from_slice(&text)
        .map_err(|error| io::Error::other(format!("the boot document is not valid: {error}")))?;
    close_on_exec_from(3);
    // An agent that is root of its namespace must not carry the launcher's groups into its file threads.
    // SAFETY: an empty list; a refusal leaves the groups as they are.
    unsafe { libc::setgroups(0, std::ptr::null()) };
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    common();
    Ok(InheritedStart { listener, config })
}

/// Takes a descriptor that whoever started this process left under this number. Call once for each, before any thread.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks; a number that is no descriptor answers an error.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::other(format!("descriptor {number} was not inherited")));
    }
    // SAFETY: it is open, as just seen, and nobody else takes it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// How widely what this process knows may be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not by what it starts.
    Guarded,
    /// By its own user, as whom everything runs.
    Open,
}

/// Start-up in the place of an agent that ran in this process before: `open_files` are the limits that it had remembered for
/// its children. Call once, before any thread.
pub(crate) fn prepare_heir(standing: Standing, open_files: (u64, u64)) -> io::Result<()> {
    signals::reset();
    rustix::process::set_dumpable_behavior(match standing {
        Standing::Guarded => DumpableBehavior::NotDumpable,
        Standing::Open => DumpableBehavior::Dumpable,
    })?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    super::succession::take_name(c"sandhaus-agent");
    close_on_exec_from(3);
    common();
    super::spawn::remember_open_files(open_files.0, open_files.1);
    Ok(())
}

/// Start-up by hand: as the current user, orphans of its processes come to it as to PID 1.
pub(crate) fn prepare_by_hand() -> io::Result<()> {
    signals::reset();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    close_on_exec_from(3);
    common();
    Ok(())
}

/// Start-up in a virtual machine, as root. Its processes' orphans come to it, as do their ends.
pub(crate) fn prepare_guest() -> io::Result<()> {
    signals::reset();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // Its own children get a score that makes them go first.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    close_on_exec_from(3);
    common();
    Ok(())
}

fn common() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    super::spawn::remember_open_files(
        limit.current.unwrap_or(OPEN_FILES_MAX),
        limit.maximum.unwrap_or(OPEN_FILES_MAX),
    );
    limit.current = Some(limit.maximum.map_or(OPEN_FILES_MAX, |maximum| maximum.min(OPEN_FILES_MAX)));
    // Keeping the old limit only means fewer connections.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    super::heap::prepare();
    // The standard streams may be closed; nothing else may take their numbers.
    if rustix::io::fcntl_getfd(rustix::stdio::stdin().as_fd()).is_err() {
        let _ = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, Mode::empty()).map(std::mem::forget);
    }
}

/// Marks every descriptor from `first` on to close on exec. Kernels before 5.11 cannot; there every descriptor the
/// agent opens itself carries the mark already.
fn close_on_exec_from(first: u32) {
    // SAFETY: changes flags of descriptors only.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
