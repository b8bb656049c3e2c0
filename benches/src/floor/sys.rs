//! The system calls that have no safe wrapper.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use libc::{c_int, c_long, sock_filter, sock_fprog};

/// `CLONE_INTO_CGROUP`, beyond the bits of the older calls.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// `MOUNT_ATTR_IDMAP`.
const MOUNT_ATTR_IDMAP: u64 = 1 << 20;

/// `struct clone_args` up to its cgroup.
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

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Who a clone returns to.
pub(super) enum Cloned {
    /// The new process.
    Child,
    /// The old one, with a handle on the new one.
    Parent {
        /// Its number.
        pid: u32,
        /// Its handle.
        handle: OwnedFd,
    },
}

fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Copies this process, which must have one thread, into new namespaces, and into a cgroup if one is given.
pub(super) fn clone_into(namespaces: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut handle: c_int = -1;
    let mut arguments = CloneArguments {
        flags: (namespaces | libc::CLONE_PIDFD) as u64,
        pidfd: ptr::from_mut(&mut handle) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of the memory; this process has one thread, so that no lock
    // is held by a thread that the copy lacks. `arguments` and `handle` live across the call.
    let pid =
        checked(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just opened it for this process, and nothing else knows it.
    let handle = unsafe { OwnedFd::from_raw_fd(handle) };
    Ok(Cloned::Parent { pid: u32::try_from(pid).expect("process numbers are positive"), handle })
}

/// Leaves the mount namespace of the caller for a copy of it.
pub(super) fn leave_mounts() -> io::Result<()> {
    // SAFETY: the process has one thread, and no reference to a mount can dangle.
    checked(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNS) }).map(drop)
}

/// Gives a detached mount the ids of a user namespace.
pub(super) fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        user_namespace: user_namespace.as_raw_fd() as u64,
    };
    // SAFETY: the path is a valid empty string and the structure lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    checked(result).map(drop)
}

/// Takes on ids inside the user namespace, all three of each.
pub(super) fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: plain numbers; the process has one thread, so that all of it changes.
    unsafe {
        checked(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        checked(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    Ok(())
}

/// Installs a seccomp filter.
pub(super) fn install_filter(program: &[sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).expect("filters are short");
    let program = sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives across the call, which only reads it.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

/// Sets the loopback interface up.
pub(super) fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all bytes zero is a valid value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("the flags are low bits");
    // SAFETY: the structure is an interface request, as the call expects, and lives across it.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
        .map(drop)
}

/// Moves a descriptor to a number, open across exec.
pub(super) fn place(descriptor: OwnedFd, number: c_int) -> io::Result<()> {
    // SAFETY: both numbers are descriptors of this process; whatever was open at `number` is closed by intent.
    checked(unsafe { libc::dup2(descriptor.as_raw_fd(), number) }.into())?;
    // The copy is what counts from here on; the original ends with `close_from`.
    std::mem::forget(descriptor);
    Ok(())
}

/// Closes every descriptor from a number on.
pub(super) fn close_from(number: u32) -> io::Result<()> {
    // SAFETY: the caller executes another program next and uses no descriptor after this.
    checked(unsafe { libc::syscall(libc::SYS_close_range, number, u32::MAX, 0) }).map(drop)
}

/// Executes a program with arguments and no environment. Only returns with an error.
pub(super) fn execute(program: &CStr, argument: &CStr) -> io::Error {
    let arguments = [program.as_ptr(), argument.as_ptr(), ptr::null()];
    let environment = [ptr::null()];
    // SAFETY: both lists end with a null pointer and their strings live across the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process without running anything more.
pub(super) fn exit_now(status: c_int) -> ! {
    // SAFETY: ends the process; nothing can go wrong after it.
    unsafe { libc::_exit(status) }
}

/// A user namespace that maps the ids of a sandbox, held by a process that has ended again.
pub(super) fn user_namespace(map: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::pipe::pipe()?;
    match clone_into(libc::CLONE_NEWUSER, None)? {
        Cloned::Child => {
            drop(theirs);
            let _ = rustix::io::read(ours.as_fd(), &mut [0_u8; 1][..]);
            exit_now(0)
        }
        Cloned::Parent { pid, handle } => {
            drop(ours);
            let opened = write_maps(pid, map).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
                Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
            });
            drop(theirs);
            reap(&handle)?;
            opened
        }
    }
}

/// Writes both id maps of a process.
pub(super) fn write_maps(pid: u32, map: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/uid_map"), map)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), map)
}

/// Waits for a child and takes its status.
pub(super) fn reap(handle: &OwnedFd) -> io::Result<()> {
    let id = rustix::process::WaitId::PidFd(handle.as_fd());
    rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED)?;
    Ok(())
}
