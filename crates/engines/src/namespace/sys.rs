//! The system calls that no safe binding offers, each behind a safe function of its own.

#![expect(
    unsafe_code,
    reason = "clone3, execveat, mount_setattr, seccomp and their kind have no safe binding"
)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{fs::AtFlags, mount::MountAttrFlags, process::Pid};

use super::seccomp::Instruction;

/// Which side of a [`clone3`] this is.
pub(super) enum Clone {
    /// The new process.
    Child,
    /// The caller: the new process and a descriptor of it.
    Parent(Pid, OwnedFd),
}

/// Argument block of clone3, version 2 (88 bytes, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks into new namespaces and, where given, straight into a cgroup of the unified hierarchy. Only for a process
/// of one thread: the child goes on in a copy of everything.
pub(super) fn clone3(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Clone> {
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArguments {
        flags: CLONE_PIDFD | u64::from(namespaces.cast_unsigned()),
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the block lives through the call, `pidfd` is writable, no stack and no CLONE_VM are asked for, so the
    // child has its own copy of this stack; the process has one thread, so no lock is held by another.
    let pid =
        checked(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) })?;
    if pid == 0 {
        return Ok(Clone::Child);
    }
    // SAFETY: CLONE_PIDFD made this descriptor for us alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid =
        i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the kernel hands out positive process ids");
    Ok(Clone::Parent(pid, pidfd))
}

/// Replaces this process by the executable behind `file`; returns only the error.
pub(super) fn execute(file: BorrowedFd<'_>, arguments: &[&CStr]) -> io::Error {
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(std::ptr::null());
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: both vectors end with a null pointer and their strings live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Argument block of mount_setattr.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// What to change of a mount.
#[derive(Clone, Copy)]
pub(super) enum MountChange<'fd> {
    /// Set flags.
    Flags(MountAttrFlags),
    /// Set flags and map ids as the user namespace does.
    Map(MountAttrFlags, BorrowedFd<'fd>),
    /// The same, and what is mounted below stays here, as what is mounted elsewhere stays there.
    MapPrivate(MountAttrFlags, BorrowedFd<'fd>),
}

/// Whether a change reaches the mounts below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Only this mount.
    One,
    /// It and all below.
    Tree,
}

/// Changes the mount whose root `mount` is.
pub(super) fn change_mount(mount: BorrowedFd<'_>, change: MountChange<'_>, reach: Reach) -> io::Result<()> {
    let attributes = match change {
        MountChange::Flags(flags) => {
            MountAttributes { set: u64::from(flags.bits()), clear: 0, propagation: 0, user_namespace: 0 }
        }
        MountChange::Map(flags, user_namespace) | MountChange::MapPrivate(flags, user_namespace) => {
            let private = matches!(change, MountChange::MapPrivate(..));
            MountAttributes {
                set: u64::from((flags | MountAttrFlags::MOUNT_ATTR_IDMAP).bits()),
                clear: 0,
                propagation: if private { libc::MS_PRIVATE } else { 0 },
                user_namespace: user_namespace.as_raw_fd() as u64,
            }
        }
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if reach == Reach::Tree {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the block lives through the call and its size is told.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })?;
    Ok(())
}

/// Moves this process into new namespaces.
pub(super) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointer; the file table is not unshared.
    checked(libc::c_long::from(unsafe { libc::unshare(namespaces) }))?;
    Ok(())
}

/// Arranges the descriptors for an exec: `inherited` become 0, 1, 2 and so on, `first` and `second` follow and close
/// on exec, every other is closed. Gives back the two under their new numbers.
///
/// Whatever owned a descriptor before must be forgotten, not dropped.
pub(super) fn arrange<const COUNT: usize>(
    inherited: [BorrowedFd<'_>; COUNT],
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
) -> io::Result<(OwnedFd, OwnedFd)> {
    /// Above every number given out here.
    const ASIDE: RawFd = 32;
    const { assert!(COUNT + 2 < ASIDE as usize) }
    let aside = |descriptor: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(descriptor, ASIDE);
    let mut numbers = 0..;
    let mut place = |descriptor: BorrowedFd<'_>, flags: libc::c_int| {
        let number: RawFd = numbers.next().expect("the range has no end");
        // SAFETY: takes no pointer; whatever had the number is copied aside or not used again.
        checked(unsafe { libc::syscall(libc::SYS_dup3, descriptor.as_raw_fd(), number, flags) })
            .map(|_| number)
    };
    let mut copies = Vec::with_capacity(COUNT);
    for descriptor in inherited {
        copies.push(aside(descriptor)?);
    }
    let own = [aside(first)?, aside(second)?];
    for copy in &copies {
        place(copy.as_fd(), 0)?;
    }
    let first = place(own[0].as_fd(), libc::O_CLOEXEC)?;
    let second = place(own[1].as_fd(), libc::O_CLOEXEC)?;
    drop((copies, own));
    // SAFETY: takes no pointer; the caller forgets all other owners.
    checked(unsafe { libc::syscall(libc::SYS_close_range, second + 1, u32::MAX, 0) })?;
    // SAFETY: both were made above and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(first), OwnedFd::from_raw_fd(second)) })
}

/// Installs a filter over system calls for this thread and all it makes. Needs CAP_SYS_ADMIN in the user namespace
/// or no_new_privs.
pub(super) fn install_filter(program: &[Instruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        instructions: *const Instruction,
    }
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: `Instruction` has the layout of sock_filter and the array lives through the call.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) })?;
    Ok(())
}

/// Signals of this process as a fresh one has them: default dispositions, nothing blocked; and children that end
/// leave no zombie. An exec clears the latter, so a child needs nothing undone.
pub(super) fn reset_signals() {
    const SIGNAL_MAX: libc::c_int = 64;
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: a zeroed sigaction is SIG_DFL without flags; SIGKILL and SIGSTOP are refused harmlessly.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if signal == libc::SIGCHLD {
                action.sa_flags = libc::SA_NOCLDWAIT;
            }
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Ends this process at once: no destructor, no exit handler of the copied parent runs.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Takes over a descriptor that the parent promised under this number.
///
/// Returns `None` if it is not open.
pub(super) fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: takes no pointer.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and the caller is `main` before anything else could own it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Raises the soft limit of `resource` to its hard limit, at most `soft_max`.
pub(super) fn raise_limit(resource: rustix::process::Resource, soft_max: u64) -> io::Result<()> {
    let mut limit = rustix::process::getrlimit(resource);
    let wanted = limit.maximum.map_or(soft_max, |maximum| maximum.min(soft_max));
    if limit.current != Some(wanted) {
        limit.current = Some(wanted);
        rustix::process::setrlimit(resource, limit)?;
    }
    Ok(())
}

/// Opens what `path` names beneath `root` without following any link.
pub(super) fn open_beneath(
    root: BorrowedFd<'_>,
    path: &std::path::Path,
    flags: rustix::fs::OFlags,
) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        root,
        path,
        flags | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
        rustix::fs::ResolveFlags::BENEATH
            | rustix::fs::ResolveFlags::NO_SYMLINKS
            | rustix::fs::ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Gives `path` under `directory` to a user and a group without following a link.
pub(super) fn give(directory: BorrowedFd<'_>, path: &str, user: u32, group: u32) -> io::Result<()> {
    Ok(rustix::fs::chownat(
        directory,
        path,
        Some(rustix::process::Uid::from_raw(user)),
        Some(rustix::process::Gid::from_raw(group)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Hands a descriptor to the runtime, to be waited on.
pub(crate) fn watched(descriptor: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open number for as long as it lives, and nothing else closes it.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(descriptor) }?)
}
