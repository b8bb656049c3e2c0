//! The launcher: a small process of one thread that makes the first process of each machine.
//!
//! It is apart from the server because a fork of a process with many threads is not safe and one with much memory is
//! slow. It has a mount namespace of its own: what it mounts on the way vanishes with it, while a machine's mounts
//! live in the machine's namespace. It keeps no state worth saving: when the server's socket closes it ends; when it
//! ends, half-made children notice and end; finished machines live on.
//!
//! It never waits for one child: it makes it, sends it its mounts, and goes back to its loop, where the child's socket
//! tells the rest.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::{CWD, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
    mount::{MountAttrFlags, MountPropagationFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
    process::{Pid, Signal, WaitIdOptions},
    thread::LinkNameSpaceType,
};

use sandhaus_sandbox::{
    fault,
    types::{WORKLOAD_ID, WORKSPACE_ID_BASE},
};

use super::{
    child::{self, Birth, Masked, Word},
    confinement,
    disk::IDS_PER_SANDBOX,
    mounting::{self, Attached, Parameter},
    place::Place,
    seccomp::Filters,
    steps::{self, ChildStep, LaunchStep, Moment, Step},
    sys::{self, Clone, MountChange, Reach},
    wire::{self, LaunchDescriptors, LaunchFailure, LaunchReply, LaunchRequest, LayerMapping},
};

/// The descriptor on which the launcher inherits the socket to the server.
const CONTROL_FD: i32 = 0;

/// Where `main` finds the directory for [`Stage`].
const STAGE_ARGUMENT: usize = 2;

/// Devices of every machine: name, major, minor.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in `/dev`.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Mount points in `/dev`.
const DEVICE_DIRECTORIES: &[&str] = &["pts", "shm", "mqueue"];

const NAMESPACES: libc::c_int =
    libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// The launcher's life, entered from `main` before any thread exists.
pub fn launcher_main() -> ExitCode {
    let stage = std::env::args_os().nth(STAGE_ARGUMENT);
    let (Some(control), Some(stage)) = (sys::inherited(CONTROL_FD), stage) else {
        return ExitCode::from(2);
    };
    let life = Launcher::new(control, Path::new(&stage)).and_then(|mut launcher| launcher.serve());
    match life {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // It has no log of its own; where the server's goes, this may be read.
            let _ = writeln!(io::stderr(), "sandhaus launcher: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Launcher {
    control: OwnedFd,
    /// The network namespace that this process lives in.
    home: OwnedFd,
    /// Held as long as this launcher or a child that is not yet the agent lives; see [`super::launcher_client`].
    _lock: OwnedFd,
    stage: Stage,
    filters: Filters,
    masked: Vec<Masked>,
    read_only: Vec<&'static str>,
    building: Vec<Building>,
}

/// A child that is not yet the agent.
struct Building {
    tag: u64,
    pidfd: OwnedFd,
    socket: OwnedFd,
    executing: bool,
    failure: Option<LaunchFailure>,
    bind_targets: Vec<String>,
    mount_targets: Vec<String>,
}

/// What a step is about when it fails.
struct Trouble {
    step: LaunchStep,
    subject: Option<String>,
    cause: io::Error,
}

impl Trouble {
    fn failure(self) -> LaunchFailure {
        LaunchFailure {
            area: LaunchStep::AREA.to_owned(),
            step: self.step.name().to_owned(),
            errno: self.cause.raw_os_error().unwrap_or(libc::EPROTO),
            subject: self.subject,
        }
    }
}

fn pass<T>(step: LaunchStep, act: impl FnOnce() -> io::Result<T>) -> Result<T, Trouble> {
    steps::pass(step, act).map_err(|cause| about(step, None, cause))
}

fn about(step: LaunchStep, subject: Option<&Path>, cause: io::Error) -> Trouble {
    Trouble { step, subject: subject.map(|path| path.to_string_lossy().into_owned()), cause }
}

impl Launcher {
    fn new(control: OwnedFd, stage: &Path) -> io::Result<Self> {
        sys::reset_signals();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(stage, flags, Mode::empty())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        sys::raise_limit(rustix::process::Resource::Nofile, confinement::OPEN_FILES_MAX)?;
        sys::unshare(libc::CLONE_NEWNS)?;
        // What the host mounts and unmounts from now on is seen here; what happens here stays here.
        let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", downstream)?;
        let masked = confinement::MASKED
            .iter()
            .filter_map(|&path| {
                let status = rustix::fs::lstat(Path::new("/").join(path)).ok()?;
                Some(Masked { path, directory: FileType::from_raw_mode(status.st_mode).is_dir() })
            })
            .collect();
        let exists = |path: &&&str| Path::new("/").join(path).is_dir();
        let read_only = confinement::READ_ONLY.iter().filter(exists).copied().collect();
        let home = rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            control,
            home,
            _lock: lock,
            stage: Stage::new(stage)?,
            filters: Filters::compile(),
            masked,
            read_only,
            building: Vec::new(),
        })
    }

    /// Until the server's socket closes.
    fn serve(&mut self) -> io::Result<()> {
        let mut packet = vec![0; wire::PACKET_BYTES_MAX];
        loop {
            let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(1 + self.building.len());
            polled.push(PollFd::new(&self.control, PollFlags::IN));
            polled.extend(self.building.iter().map(|child| PollFd::new(&child.socket, PollFlags::IN)));
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            for index in (0..self.building.len()).rev() {
                if ready[index + 1] {
                    self.hear(index)?;
                }
            }
            if ready[0] && !self.accept(&mut packet)? {
                return Ok(());
            }
        }
    }

    /// Takes one request; false when the server is gone.
    fn accept(&mut self, packet: &mut [u8]) -> io::Result<bool> {
        let (bytes, descriptors) = match wire::receive(&self.control, packet, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(false),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        };
        let request: LaunchRequest = serde_json::from_slice(&packet[..bytes])?;
        let descriptors = request.descriptors(descriptors)?;
        let tag = request.tag;
        match self.launch(request, descriptors) {
            Ok(building) => self.building.push(building),
            Err(trouble) => self.reply(tag, Err(trouble.failure()), None)?,
        }
        Ok(true)
    }

    fn reply(
        &self,
        tag: u64,
        outcome: Result<(), LaunchFailure>,
        pidfd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let packet = serde_json::to_vec(&LaunchReply { tag, outcome })?;
        steps::pass(LaunchStep::Reply, || {
            wire::send(&self.control, &packet, pidfd.as_slice(), SendFlags::empty())
        })
    }

    /// Listens to one child.
    fn hear(&mut self, index: usize) -> io::Result<()> {
        let child = &mut self.building[index];
        let mut word = [0; 16];
        let bytes = match rustix::net::recv(&child.socket, &mut word[..], RecvFlags::DONTWAIT) {
            Ok((bytes, _)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        if bytes > 0 {
            match Word::decode(&word[..bytes]) {
                Some(Word::At(step, moment)) => {
                    steps::hit(step, moment);
                    // A child that is gone already shows at the next turn.
                    let _ = rustix::net::send(&child.socket, &[0], SendFlags::NOSIGNAL);
                }
                Some(Word::Executing) => child.executing = true,
                Some(Word::Failed { step, subject, errno }) => child.fail(step, subject, errno),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
            return Ok(());
        }
        let child = self.building.swap_remove(index);
        let outcome = match child.failure {
            Some(failure) => Err(failure),
            None if child.executing => {
                steps::hit(ChildStep::Execute, Moment::After);
                Ok(())
            }
            // It was killed before it got there: by the memory limit of its cgroup, or from outside.
            None => Err(LaunchFailure {
                area: ChildStep::AREA.to_owned(),
                step: "life".to_owned(),
                errno: libc::ECHILD,
                subject: None,
            }),
        };
        let pidfd = outcome.is_ok().then(|| child.pidfd.as_fd());
        self.reply(child.tag, outcome, pidfd)
    }

    /// Makes a child and gives it all it needs.
    fn launch(
        &self,
        request: LaunchRequest,
        mut descriptors: LaunchDescriptors,
    ) -> Result<Building, Trouble> {
        let workspace = descriptors.workspace.take();
        let disk = pass(LaunchStep::Disk, || Place::open(&request, &self.stage.directory))?;
        let (pid, pidfd, socket) = pass(LaunchStep::Clone, || self.clone_child(&request, descriptors))?;
        let gifts = self.prepare(&request, &disk, workspace, pid).and_then(|gifts| {
            let gifts: Vec<BorrowedFd<'_>> = gifts.iter().map(AsFd::as_fd).collect();
            if fault::is_armed() {
                accompany(&socket).map_err(|cause| about(LaunchStep::Send, None, cause))?;
            }
            pass(LaunchStep::Send, || wire::send(&socket, &[0], &gifts, SendFlags::empty()))
        });
        if let Err(trouble) = gifts {
            // It may be gone already.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            return Err(trouble);
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(Building {
            tag: request.tag,
            pidfd,
            socket,
            executing: false,
            failure: None,
            bind_targets: request.binds.iter().map(|bind| text(&bind.target)).collect(),
            mount_targets: request.mounts.iter().map(|mount| text(&mount.target)).collect(),
        })
    }

    fn clone_child(
        &self,
        request: &LaunchRequest,
        descriptors: LaunchDescriptors,
    ) -> io::Result<(Pid, OwnedFd, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let unified = descriptors.unified.as_ref().map(AsFd::as_fd);
        // Children are born where their parent is. The namespace stays the host's: its owner is not who lives in it.
        let _away = descriptors.network.as_ref().map(|network| Away::to(network, &self.home)).transpose()?;
        match sys::clone3(NAMESPACES, unified)? {
            Clone::Parent(pid, pidfd) => Ok((pid, pidfd, ours)),
            Clone::Child => {
                drop(ours);
                child::live(Birth {
                    request,
                    descriptors,
                    socket: theirs,
                    filters: &self.filters,
                    masked: &self.masked,
                    read_only: &self.read_only,
                })
            }
        }
    }

    /// Everything the child attaches, in the order it expects.
    fn prepare(
        &self,
        request: &LaunchRequest,
        disk: &Place,
        workspace: Option<OwnedFd>,
        pid: Pid,
    ) -> Result<Vec<OwnedFd>, Trouble> {
        let user_namespace = pass(LaunchStep::Map, || {
            let map = [(0, request.base, IDS_PER_SANDBOX)];
            map_ids(pid, &map, &map)
        })?;
        let layers = pass(LaunchStep::Layers, || open_layers(request, &user_namespace))?;
        let root = pass(LaunchStep::Overlay, || self.stage.overlay(request, &layers, disk))?;
        drop(layers);
        let workspace = pass(LaunchStep::Workspace, || match workspace {
            Some(mount) => show_workspace(mount, request),
            None => disk.workspace_mount(),
        })?;
        let mut gifts = vec![root];
        steps::pass(LaunchStep::Binds, || {
            let stage = &self.stage.directory;
            let fixed = [
                mounting::copy_mount(stage, "dev", Reach::One),
                mounting::copy_mount(stage, "void", Reach::One),
            ];
            for mount in fixed {
                gifts.push(mount.map_err(|cause| about(LaunchStep::Binds, None, cause))?);
            }
            gifts.push(workspace);
            for bind in &request.binds {
                let mount = open_bind(&bind.source);
                gifts.push(mount.map_err(|cause| about(LaunchStep::Binds, Some(&bind.target), cause))?);
            }
            Ok(())
        })?;
        steps::pass(LaunchStep::Mounts, || {
            let owner = request.base + request.workload;
            for mount in &request.mounts {
                let source = open_mount(&mount.source, owner);
                gifts.push(source.map_err(|cause| about(LaunchStep::Mounts, Some(&mount.target), cause))?);
            }
            Ok(())
        })?;
        Ok(gifts)
    }
}

impl Building {
    fn fail(&mut self, step: ChildStep, subject: Option<u16>, errno: i32) {
        let targets = match step {
            ChildStep::Binds => &self.bind_targets,
            _ => &self.mount_targets,
        };
        self.failure = Some(LaunchFailure {
            area: ChildStep::AREA.to_owned(),
            step: step.name().to_owned(),
            errno,
            subject: subject.and_then(|index| targets.get(usize::from(index)).cloned()),
        });
    }
}

/// Passes the fault points of a child until it waits for what it is given: a child takes whatever comes while it stands at
/// a point for the word to go on.
fn accompany(socket: &OwnedFd) -> io::Result<()> {
    loop {
        let mut word = [0; 16];
        let (bytes, _) = rustix::net::recv(socket, &mut word[..], RecvFlags::empty())?;
        let Some(Word::At(step, moment)) = Word::decode(&word[..bytes]) else {
            // It has come to its end, by itself or because it was made to.
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        steps::hit(step, moment);
        rustix::net::send(socket, &[0], SendFlags::NOSIGNAL)?;
        if (step, moment) == (ChildStep::Receive, Moment::Before) {
            return Ok(());
        }
    }
}

/// A stay in another network namespace.
struct Away<'a>(&'a OwnedFd);

impl<'a> Away<'a> {
    fn to(network: &OwnedFd, home: &'a OwnedFd) -> io::Result<Self> {
        rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(Self(home))
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let back =
            rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network));
        // The next machine would be born in a network that is not its own.
        back.expect("the launcher can always come home");
    }
}

/// First id inside, first id outside, how many.
type IdRange = (u32, u32, u32);

/// Writes the id maps of a process in a fresh user namespace and opens that namespace.
fn map_ids(pid: Pid, users: &[IdRange], groups: &[IdRange]) -> io::Result<OwnedFd> {
    let path = format!("/proc/{}", pid.as_raw_nonzero());
    let process = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (name, map) in [("uid_map", users), ("gid_map", groups)] {
        let lines: String =
            map.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect();
        let file = rustix::fs::openat(&process, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, lines.as_bytes())?;
    }
    Ok(rustix::fs::openat(&process, "ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A user namespace in which nobody lives, for its id maps.
pub(super) fn empty_namespace(users: &[IdRange], groups: &[IdRange]) -> io::Result<OwnedFd> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match sys::clone3(libc::CLONE_NEWUSER, None)? {
        Clone::Child => {
            drop(ours);
            // Lives until its maker has what it wanted, or is gone. It touches nothing that another thread of a
            // larger process could have locked.
            let _ = rustix::net::recv(&theirs, &mut [0_u8; 1][..], RecvFlags::empty());
            sys::exit_now(0)
        }
        Clone::Parent(pid, pidfd) => {
            drop(theirs);
            let namespace = map_ids(pid, users, groups);
            drop(ours);
            // Already reaped by the kernel in the launcher; elsewhere it would linger.
            let _ =
                rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            namespace
        }
    }
}

/// The layers of a root as descriptors, carrying the machine's ids.
fn open_layers(request: &LaunchRequest, user_namespace: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    request
        .layers
        .iter()
        .map(|layer| match request.mapping {
            LayerMapping::Copied => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                Ok(rustix::fs::open(layer, flags, Mode::empty())?)
            }
            LayerMapping::Detached | LayerMapping::Attached => {
                let mount = mounting::copy_mount(CWD, layer, Reach::One)?;
                let change = MountChange::Map(MountAttrFlags::empty(), user_namespace.as_fd());
                sys::change_mount(mount.as_fd(), change, Reach::One)?;
                Ok(mount)
            }
        })
        .collect()
}

/// A workspace with its ids as those of the machine.
fn show_workspace(mount: OwnedFd, request: &LaunchRequest) -> io::Result<OwnedFd> {
    let map = workspace_ids(request.base, request.workload);
    let namespace = empty_namespace(&map, &map)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    sys::change_mount(mount.as_fd(), MountChange::MapPrivate(flags, namespace.as_fd()), Reach::One)?;
    Ok(mount)
}

/// From ids on disk to those of a machine whose range starts at `base`: in order, but that the workload of whatever
/// number owns what a workload of any other machine owns.
fn workspace_ids(base: u32, workload: u32) -> Vec<IdRange> {
    let range = |disk: u32, inside: u32, count: u32| (WORKSPACE_ID_BASE + disk, base + inside, count);
    if workload == WORKLOAD_ID {
        return vec![range(0, 0, IDS_PER_SANDBOX)];
    }
    let (low, high) = (workload.min(WORKLOAD_ID), workload.max(WORKLOAD_ID));
    let ranges = [
        range(0, 0, low),
        range(low, high, 1),
        range(low + 1, low + 1, high - low - 1),
        range(high, low, 1),
        range(high + 1, high + 1, IDS_PER_SANDBOX - high - 1),
    ];
    ranges.into_iter().filter(|(_, _, count)| *count > 0).collect()
}

/// A part of the host as it is, but powerless.
fn open_bind(source: &Path) -> io::Result<OwnedFd> {
    let mount = mounting::copy_mount(CWD, source, Reach::Tree)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    sys::change_mount(mount.as_fd(), MountChange::Flags(flags), Reach::Tree)?;
    Ok(mount)
}

/// A directory or file of the host whose owner shows as `owner`; everybody else shows as nobody. Mounts below it that
/// cannot map ids are left out.
fn open_mount(source: &Path, owner: u32) -> io::Result<OwnedFd> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = mounting::copy_mount(CWD, source, Reach::Tree)?;
    let status = rustix::fs::statat(&mount, "", rustix::fs::AtFlags::EMPTY_PATH)?;
    let namespace = empty_namespace(&[(status.st_uid, owner, 1)], &[(status.st_gid, owner, 1)])?;
    let change = MountChange::Map(flags, namespace.as_fd());
    match sys::change_mount(mount.as_fd(), change, Reach::Tree) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let mount = mounting::copy_mount(CWD, source, Reach::One)?;
            sys::change_mount(mount.as_fd(), change, Reach::One)?;
            Ok(mount)
        }
        changed => changed.map(|()| mount),
    }
}

/// A small read-only file system that only the launcher sees: the devices of all machines, an empty
/// directory for them, and one to attach mounts on.
struct Stage {
    directory: OwnedFd,
}

impl Stage {
    fn new(path: &Path) -> io::Result<Self> {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let directory = mounting::new_file_system(
            "tmpfs",
            &[Parameter::Text("size", "64k"), Parameter::Text("mode", "755")],
            flags,
        )?;
        mounting::attach(&directory, path)?;
        let old_mask = rustix::process::umask(Mode::empty());
        for name in ["dev", "void", mounting::ATTACH] {
            rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
        }
        let device_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let devices = rustix::fs::openat(&directory, "dev", device_flags, Mode::empty())?;
        for &(name, major, minor) in DEVICES {
            let number = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(
                &devices,
                name,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                number,
            )?;
        }
        for &(target, name) in DEVICE_LINKS {
            rustix::fs::symlinkat(target, &devices, name)?;
        }
        for &name in DEVICE_DIRECTORIES {
            rustix::fs::mkdirat(&devices, name, Mode::from_raw_mode(0o755))?;
        }
        rustix::process::umask(old_mask);
        let sealed = MountChange::Flags(MountAttrFlags::MOUNT_ATTR_RDONLY);
        sys::change_mount(directory.as_fd(), sealed, Reach::One)?;
        Ok(Self { directory })
    }

    /// The root of a machine, attached nowhere: its disk over its layers.
    fn overlay(&self, request: &LaunchRequest, layers: &[OwnedFd], disk: &Place) -> io::Result<OwnedFd> {
        let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV;
        if request.security == sandhaus_sandbox::types::SecurityProfile::Strict {
            flags |= MountAttrFlags::MOUNT_ATTR_NOSUID;
        }
        // Nothing on a machine's disk outlives a power cut by promise, so syncing it all at unmount and at every
        // fsync would only cost.
        let common = [Parameter::Flag("volatile"), Parameter::Text("index", "off")];
        if request.mapping == LayerMapping::Detached {
            let mut parameters: Vec<Parameter<'_>> =
                layers.iter().map(|layer| Parameter::Descriptor("lowerdir+", layer.as_fd())).collect();
            parameters.push(Parameter::Descriptor("upperdir", disk.upper.as_fd()));
            parameters.push(Parameter::Descriptor("workdir", disk.work.as_fd()));
            parameters.extend(common);
            return mounting::new_file_system("overlay", &parameters, flags);
        }
        let mut attached = Vec::new();
        if request.mapping == LayerMapping::Attached {
            for layer in layers {
                attached.push(Attached::new(&self.directory, layer)?);
            }
        }
        let lower = layers.iter().map(mounting::magic_link).collect::<Vec<_>>().join(":");
        let (upper, work) = (mounting::magic_link(&disk.upper), mounting::magic_link(&disk.work));
        let mut parameters = vec![
            Parameter::Text("lowerdir", &lower),
            Parameter::Text("upperdir", &upper),
            Parameter::Text("workdir", &work),
        ];
        parameters.extend(common);
        let overlay = mounting::new_file_system("overlay", &parameters, flags);
        // In this order: each lies on the one before.
        attached.into_iter().rev().for_each(drop);
        overlay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_machines_own_the_same_in_a_workspace() {
        let on_disk = WORKSPACE_ID_BASE + WORKLOAD_ID;
        for workload in [WORKLOAD_ID, 0] {
            let map = workspace_ids(0x4000_0000, workload);
            let shown = |disk: u32| {
                let range = map.iter().find(|(first, _, count)| (*first..first + count).contains(&disk));
                range.map(|(first, inside, _)| disk - first + inside - 0x4000_0000)
            };
            assert_eq!(shown(on_disk), Some(workload));
            assert_eq!(shown(WORKSPACE_ID_BASE + IDS_PER_SANDBOX), None);
            assert_eq!(shown(0), None, "nobody inside is the host's root");
            let mut all: Vec<u32> =
                (0..IDS_PER_SANDBOX).filter_map(|id| shown(WORKSPACE_ID_BASE + id)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..IDS_PER_SANDBOX).collect::<Vec<_>>(), "each id is somebody's, once");
        }
    }
}
