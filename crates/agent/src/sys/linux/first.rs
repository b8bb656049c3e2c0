//! The first process of a virtual machine: what every program expects to be mounted, the console, and the way out of an
//! initramfs.

use std::{
    ffi::CStr,
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::MountFlags,
};

use super::initramfs;

/// Permissions of a folder in which everyone may make files and nobody may remove another's.
const SHARED: u32 = 0o1777;

/// A file system that programs expect.
struct Expected {
    kind: &'static str,
    path: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const BARE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What an initramfs needs, which goes along to the root.
const EARLY: [Expected; 3] = [
    Expected { kind: "proc", path: "/proc", flags: BARE, options: c"" },
    Expected { kind: "sysfs", path: "/sys", flags: BARE, options: c"" },
    Expected { kind: "devtmpfs", path: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
];

/// The rest, in this order.
const LATE: [Expected; 4] = [
    Expected {
        kind: "devpts",
        path: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=0620,ptmxmode=0666,gid=5",
    },
    Expected { kind: "tmpfs", path: "/dev/shm", flags: DATA, options: c"mode=1777" },
    Expected { kind: "tmpfs", path: "/run", flags: DATA, options: c"mode=0755" },
    Expected { kind: "cgroup2", path: "/sys/fs/cgroup", flags: BARE, options: c"" },
];

/// Names of a process's own descriptors that shells and scripts use.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Whether this is the first process of its kernel, or of its process namespace.
pub(crate) fn is_first_process() -> bool {
    rustix::process::getpid().is_init()
}

/// Makes the machine one that programs can live in. Where this is an initramfs that names a root, it goes on there: as
/// another program, so that this call does not return, or as the agent itself. Before any signal is blocked: the other
/// program inherits that.
pub(crate) fn begin_machine() -> io::Result<()> {
    if !is_first_process() {
        return Err(io::Error::other("--guest-init is for the first process of a virtual machine"));
    }
    mount_all(&EARLY);
    open_console();
    initramfs::leave()?;
    mount_all(&EARLY);
    mount_all(&LATE);
    for (target, link) in LINKS {
        // There already.
        let _ = symlink(target, link);
    }
    make_tmp();
    Ok(())
}

/// What is missing in the end is seen by whoever needs it; the console says why.
fn mount_all(expected: &[Expected]) {
    for Expected { kind, path, flags, options } in expected {
        if is_mount_point(Path::new(path)) {
            continue;
        }
        let made = fs::create_dir_all(path);
        let mounted =
            made.and_then(|()| Ok(rustix::mount::mount(*kind, *path, *kind, *flags, Some(*options))?));
        if let Err(error) = mounted {
            say(format_args!("cannot mount {path}: {error}"));
        }
    }
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    match (device(path), device(&path.join(".."))) {
        (Ok(own), Ok(parent)) => own != parent,
        _ => false,
    }
}

/// The kernel gives its first process no console if the initramfs has no device for it.
fn open_console() {
    if rustix::io::fcntl_getfd(rustix::stdio::stderr()).is_ok() {
        return;
    }
    let Ok(console) = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) else {
        return;
    };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
    if rustix::fd::AsRawFd::as_raw_fd(&console) <= 2 {
        // It is one of the three itself.
        std::mem::forget(console);
    }
}

/// The folder for everyone's files; in memory where the root cannot be written.
fn make_tmp() {
    let made = fs::create_dir_all("/tmp")
        .and_then(|()| fs::set_permissions("/tmp", fs::Permissions::from_mode(SHARED)));
    if made.is_err() && !is_mount_point(Path::new("/tmp")) {
        let _ = rustix::mount::mount("tmpfs", "/tmp", "tmpfs", DATA, Some(c"mode=1777"));
    }
}

/// Tells on the console.
pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "sandhaus-agent: {what}");
}
