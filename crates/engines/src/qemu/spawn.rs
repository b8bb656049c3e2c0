//! Making a QEMU: a process that outlives the server, in a cgroup and a network namespace that are there already, as a user
//! of its own without any right.

#![expect(unsafe_code, reason = "what a child does between fork and exec")]

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid},
    io::FdFlags,
    process::{PidfdFlags, Resource, Rlimit, WaitId, WaitIdOptions},
    thread::LinkNameSpaceType,
};

use super::arguments::NAME_ARGUMENT;
use crate::{cgroup::Entrance, machine::read_process, namespace::sys};

/// What is kept of what a QEMU says, from its beginning.
const LOG_BYTES: u64 = 64 * 1024;

/// Longest line of that which goes into an error.
const LINE_BYTES_MAX: usize = 500;

/// What a QEMU is to be.
pub(super) struct Launch<'a> {
    /// The machine's name.
    pub(super) name: &'a str,
    /// The program.
    pub(super) binary: &'a Path,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// Descriptors that it inherits under the numbers that they have here.
    pub(super) inherited: Vec<BorrowedFd<'a>>,
    /// The network namespace that it lives in.
    pub(super) network: BorrowedFd<'a>,
    /// The cgroups that it lives in.
    pub(super) cgroups: &'a Entrance,
    /// Its user and group.
    pub(super) user: u32,
    /// A group beside, of those who may use the processor's virtualisation.
    pub(super) group: Option<u32>,
}

/// What a QEMU says: a file without a name that does not grow, so that a guest that makes it talk fills nothing.
#[derive(Debug)]
pub(super) struct Log(OwnedFd);

impl Log {
    fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("sandhaus-log", flags)?;
        rustix::fs::ftruncate(&file, LOG_BYTES)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(file))
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The last line, if there is any.
    pub(super) fn last_line(&self) -> Option<String> {
        let mut bytes = vec![0; usize::try_from(LOG_BYTES).expect("it fits")];
        let read = rustix::io::pread(&self.0, &mut bytes[..], 0).ok()?;
        let text = String::from_utf8_lossy(&bytes[..read]);
        let line = text.trim_matches(['\0', '\n', '\r', ' ']).lines().last()?.trim();
        let end = line.floor_char_boundary(LINE_BYTES_MAX);
        (!line.is_empty()).then(|| line[..end].to_owned())
    }
}

/// Starts a QEMU and gives a descriptor of its process.
pub(super) fn spawn(launch: &Launch<'_>) -> io::Result<(OwnedFd, Log)> {
    let log = Log::new()?;
    let entrances = entrances(launch.cgroups)?;
    let inherited: Vec<_> = launch.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let (network, user, group) = (launch.network.as_raw_fd(), launch.user, launch.group);
    let mut command = Command::new(launch.binary);
    command.args(&launch.arguments).env_clear().current_dir("/").stdin(Stdio::null());
    command.stdout(log.0.try_clone()?).stderr(log.0.try_clone()?);
    let prepare = move || {
        for entrance in &entrances {
            rustix::io::write(entrance, b"0")?;
        }
        // SAFETY: the caller of `spawn` holds it until that is over.
        let network = unsafe { BorrowedFd::borrow_raw(network) };
        rustix::thread::move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        rustix::process::setsid()?;
        // The memory of guests belongs into no file.
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        for &number in &inherited {
            // SAFETY: the caller of `spawn` holds it until that is over.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        become_nobody(user, group)
    };
    // SAFETY: it makes system calls alone; it allocates nothing, takes no lock and touches nothing of other threads.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    // Nobody has waited for it yet, so the number is still its own.
    let pid = rustix::process::Pid::from_child(&child);
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    reap(launch.name.to_owned(), &process, log.try_clone()?)?;
    Ok((process, log))
}

/// Gives up every right. In a child, before it becomes another program.
fn become_nobody(user: u32, group: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    match group {
        Some(group) => rustix::thread::set_thread_groups(&[Gid::from_raw(group)])?,
        None => rustix::thread::set_thread_groups(&[])?,
    }
    // The calls for a single thread: there is no other in a child, whatever the library remembers.
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// The files that take a process into cgroups.
fn entrances(cgroups: &Entrance) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    if let Some(unified) = &cgroups.unified {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        files.push(rustix::fs::openat(unified, "cgroup.procs", flags, Mode::empty())?);
    }
    for tasks in &cgroups.tasks {
        files.push(tasks.try_clone()?);
    }
    Ok(files)
}

/// Takes notice of the end of a child, whenever that is, and tells what it said.
fn reap(name: String, process: &OwnedFd, log: Log) -> io::Result<()> {
    let process = sys::watched(process.try_clone()?)?;
    tokio::spawn(async move {
        if let Err(error) = process.readable().await {
            tracing::error!(%error, machine = name, "cannot watch a process");
            return;
        }
        let ended = rustix::process::waitid(WaitId::PidFd(process.get_ref().as_fd()), WaitIdOptions::EXITED);
        let status = ended.ok().flatten().and_then(|status| status.exit_status());
        let said = log.last_line();
        if status.is_some_and(|status| status != 0) || said.is_some() {
            tracing::info!(machine = name, status, said, "what QEMU said before it ended");
        }
    });
    Ok(())
}

/// Whether a process is the QEMU of the machine of this name: until it has become that, it carries the server's own
/// arguments.
pub(super) fn is_machine(pid: rustix::process::Pid, name: &str) -> bool {
    let line = read_process(pid, "cmdline");
    let mut words = line.split(|byte| *byte == 0).skip(1);
    words.next() == Some(NAME_ARGUMENT.as_bytes()) && words.next() == Some(name.as_bytes())
}
