//! The first process of a machine, from its birth as a copy of the launcher until it becomes the agent.
//!
//! It has one thread, its own copy of the launcher's memory and, from birth, all namespaces but the cgroup one. It
//! resolves no path of the host: whatever it mounts comes as a descriptor, and it has changed its root before it looks
//! up the first target. While the launcher prepares those mounts, it does what needs none of them.
//!
//! ```text
//! launcher                         child
//!   clone3 ───────────────────────▶ cgroups, host name, proc
//!   id maps, overlay, binds
//!   packet with mounts ───────────▶ becomes root inside, pivots, mounts, confines itself
//!   ◀────────────────── "executing"
//!   ◀────────────── end of file      exec agent
//! ```
//!
//! The socket to the launcher closes on exec. If the launcher is gone before that, the child notices at its next word
//! and ends.

use std::{
    convert::Infallible,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path},
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
    mount::{MountAttrFlags, UnmountFlags},
    net::{RecvFlags, SendFlags},
    process::Resource,
    thread::{CapabilitySet, CapabilitySets},
};
use sandhaus_sandbox::{
    fault,
    types::{Access, SecurityProfile, WORKLOAD_HOME, WORKLOAD_ID},
};

use super::{
    confinement::{self, Scratch},
    mounting::{self, Parameter},
    seccomp::{Filters, Instruction},
    steps::{ChildStep, Moment},
    sys::{self, MountChange, Reach},
    wire::{self, LaunchDescriptors, LaunchRequest},
};

/// The agent's name for itself.
pub(super) const AGENT_NAME: &std::ffi::CStr = c"sandhaus-agent";

/// Its only argument: it is the first process.
const AGENT_ARGUMENT: &std::ffi::CStr = c"--init";

/// How often and after what pause an agent is tried again that somebody has open for writing.
const BUSY_ATTEMPTS_MAX: u32 = 5000;
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// Bytes of a [`Word`].
const WORD_BYTES: usize = 8;

/// What a child says to the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It stands at a fault point and waits for a byte. Said only while a point is armed.
    At(ChildStep, Moment),
    /// It executes the agent now: if nothing follows but the end, that went well.
    Executing,
    /// A step failed; the number names the bind or mount it was about, if any.
    Failed {
        /// The step.
        step: ChildStep,
        /// Index of the bind or mount.
        subject: Option<u16>,
        /// What the kernel said.
        errno: i32,
    },
}

/// Stands for "no subject" on the wire.
const NO_SUBJECT: u16 = u16::MAX;

impl Word {
    fn encode(self) -> [u8; WORD_BYTES] {
        let (kind, step, subject, errno) = match self {
            Self::At(step, Moment::Before) => (0, step as u8, NO_SUBJECT, 0),
            Self::At(step, Moment::After) => (1, step as u8, NO_SUBJECT, 0),
            Self::Executing => (2, 0, NO_SUBJECT, 0),
            Self::Failed { step, subject, errno } => (3, step as u8, subject.unwrap_or(NO_SUBJECT), errno),
        };
        let mut bytes = [kind, step, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&subject.to_ne_bytes());
        bytes[4..8].copy_from_slice(&errno.to_ne_bytes());
        bytes
    }

    /// Reads a word; `None` if it is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let &[kind, step, s0, s1, e0, e1, e2, e3] = bytes else { return None };
        let step = *ChildStep::ALL.get(usize::from(step))?;
        let subject = u16::from_ne_bytes([s0, s1]);
        match kind {
            0 => Some(Self::At(step, Moment::Before)),
            1 => Some(Self::At(step, Moment::After)),
            2 => Some(Self::Executing),
            3 => Some(Self::Failed {
                step,
                subject: (subject != NO_SUBJECT).then_some(subject),
                errno: i32::from_ne_bytes([e0, e1, e2, e3]),
            }),
            _ => None,
        }
    }
}

/// What a child is born with, beside the request.
pub(super) struct Birth<'a> {
    /// The request it is made for.
    pub(super) request: &'a LaunchRequest,
    /// Its descriptors.
    pub(super) descriptors: LaunchDescriptors,
    /// To the launcher.
    pub(super) socket: OwnedFd,
    /// The filters over system calls.
    pub(super) filters: &'a Filters,
    /// Those of [`confinement::MASKED`] that this host has.
    pub(super) masked: &'a [Masked],
    /// Those of [`confinement::READ_ONLY`] that this host has.
    pub(super) read_only: &'a [&'static str],
}

/// A path to hide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Masked {
    /// From the root, without the slash.
    pub(super) path: &'static str,
    /// Whether it is a directory.
    pub(super) directory: bool,
}

/// The mounts that the launcher sends, in this order: root, devices, void, workspace, binds, mounts.
struct Gifts {
    root: OwnedFd,
    devices: OwnedFd,
    void: OwnedFd,
    workspace: OwnedFd,
    binds: Vec<OwnedFd>,
    mounts: Vec<OwnedFd>,
}

/// What a step is about when it fails.
struct Trouble {
    subject: Option<u16>,
    cause: io::Error,
}

impl From<io::Error> for Trouble {
    fn from(cause: io::Error) -> Self {
        Self { subject: None, cause }
    }
}

impl From<Errno> for Trouble {
    fn from(cause: Errno) -> Self {
        io::Error::from(cause).into()
    }
}

/// The child's whole life before the agent. Never returns into the launcher's frames, not even by a panic.
pub(super) fn live(birth: Birth<'_>) -> ! {
    struct NeverBack;
    impl Drop for NeverBack {
        fn drop(&mut self) {
            sys::exit_now(1);
        }
    }
    let _guard = NeverBack;
    let mut child = Child { socket: birth.socket, armed: fault::is_armed(), at: ChildStep::Cgroups };
    let Err(trouble) = child.become_agent(
        birth.request,
        birth.descriptors,
        &Surroundings { filters: birth.filters, masked: birth.masked, read_only: birth.read_only },
    );
    let errno = trouble.cause.raw_os_error().unwrap_or(libc::EPROTO);
    // If nobody listens any more, nobody has to know.
    let _ = child.say(Word::Failed { step: child.at, subject: trouble.subject, errno });
    sys::exit_now(1)
}

struct Surroundings<'a> {
    filters: &'a Filters,
    masked: &'a [Masked],
    read_only: &'a [&'static str],
}

struct Child {
    socket: OwnedFd,
    armed: bool,
    at: ChildStep,
}

impl Child {
    fn say(&self, word: Word) -> io::Result<()> {
        rustix::net::send(&self.socket, &word.encode(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Lets the launcher pass a fault point on behalf of this process, which cannot name its parent.
    fn at(&self, step: ChildStep, moment: Moment) -> io::Result<()> {
        if self.armed {
            self.say(Word::At(step, moment))?;
            if rustix::net::recv(&self.socket, &mut [0_u8; 1][..], RecvFlags::empty())?.0 == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    fn step<T>(
        &mut self,
        step: ChildStep,
        act: impl FnOnce(&Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        self.at = step;
        self.at(step, Moment::Before)?;
        let done = act(self)?;
        self.at(step, Moment::After)?;
        Ok(done)
    }

    fn become_agent(
        &mut self,
        request: &LaunchRequest,
        descriptors: LaunchDescriptors,
        surroundings: &Surroundings<'_>,
    ) -> Result<Infallible, Trouble> {
        // The launcher has the workspace; it comes with the other mounts.
        let LaunchDescriptors { boot, listener, agent, network, sys, workspace: _, unified, tasks } =
            descriptors;
        drop((network, unified));
        rustix::process::umask(Mode::empty());
        self.step(ChildStep::Cgroups, |_| join_cgroups(tasks))?;
        self.step(ChildStep::CgroupNamespace, |_| Ok(sys::unshare(libc::CLONE_NEWCGROUP)?))?;
        self.step(ChildStep::Hostname, |_| Ok(rustix::system::sethostname(request.hostname.as_bytes())?))?;
        let proc =
            self.step(ChildStep::Proc, |_| Ok(mounting::new_file_system("proc", &[], kernel_flags())?))?;
        let gifts = self.step(ChildStep::Receive, |child| child.receive(request))?;
        self.step(ChildStep::Identity, |_| become_root())?;
        self.step(ChildStep::Root, |_| {
            enter_root(&gifts.root)?;
            match &request.home {
                Some(home) if request.readonly_root => except_home(&gifts.root, home, request.workload),
                _ => Ok(()),
            }
        })?;
        self.step(ChildStep::Binds, |_| attach_binds(request, gifts.binds))?;
        self.step(ChildStep::Devices, |_| mount_devices(gifts.devices))?;
        self.step(ChildStep::Scratch, |_| {
            let memory = request.memory_bytes;
            if request.readonly_root {
                mount_scratch(Scratch::of_root(memory))
            } else {
                mount_shared_memory(Scratch::of_shared_memory(memory))
            }
        })?;
        self.step(ChildStep::Workspace, |_| Ok(mounting::attach(gifts.workspace, "/workspace")?))?;
        self.step(ChildStep::Masks, |_| mount_kernel(proc, sys, gifts.void, surroundings))?;
        self.step(ChildStep::Mounts, |_| attach_mounts(request, gifts.mounts))?;
        self.step(
            ChildStep::ReadOnly,
            |_| if request.readonly_root { seal_root(&gifts.root) } else { Ok(()) },
        )?;
        drop(gifts.root);
        let agent = self.arrange_descriptors(listener, boot, agent)?;
        self.step(ChildStep::Limits, |_| set_limits())?;
        self.step(ChildStep::Filter, |_| {
            install_filter(request.security, surroundings.filters.of(request.seccomp))
        })?;
        self.step(ChildStep::Capabilities, |_| drop_capabilities(request.security))?;
        self.at = ChildStep::Execute;
        self.at(ChildStep::Execute, Moment::Before)?;
        self.say(Word::Executing)?;
        Err(execute(agent.as_fd()).into())
    }

    /// Puts the descriptors where the agent expects them and closes all others. The socket itself moves, so this is no
    /// plain step.
    fn arrange_descriptors(
        &mut self,
        listener: OwnedFd,
        boot: OwnedFd,
        agent: OwnedFd,
    ) -> Result<OwnedFd, Trouble> {
        self.at = ChildStep::Descriptors;
        self.at(ChildStep::Descriptors, Moment::Before)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // The numbers of these may stand for others afterwards: nobody may close them.
        let [null, listener, boot, agent] = [null, listener, boot, agent].map(ManuallyDrop::new);
        let inherited = [null.as_fd(), null.as_fd(), null.as_fd(), listener.as_fd(), boot.as_fd()];
        let (socket, agent) = sys::arrange(inherited, self.socket.as_fd(), agent.as_fd())?;
        std::mem::forget(std::mem::replace(&mut self.socket, socket));
        self.at(ChildStep::Descriptors, Moment::After)?;
        Ok(agent)
    }

    /// Waits for the launcher's mounts.
    fn receive(&self, request: &LaunchRequest) -> Result<Gifts, Trouble> {
        let (bytes, gifts) = wire::receive(&self.socket, &mut [0; 1], RecvFlags::empty())?;
        let expected = 4 + request.binds.len() + request.mounts.len();
        if bytes == 0 || gifts.len() != expected {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        let mut gifts = gifts.into_iter();
        let mut next = || gifts.next().expect("the count was compared");
        Ok(Gifts {
            root: next(),
            devices: next(),
            void: next(),
            workspace: next(),
            binds: (0..request.binds.len()).map(|_| next()).collect(),
            mounts: (0..request.mounts.len()).map(|_| next()).collect(),
        })
    }
}

/// Flags of file systems that only show the kernel.
fn kernel_flags() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Joins the cgroups of version 1: a process of one thread writes itself into `tasks`, which unlike a write to
/// `cgroup.procs` waits for nobody.
fn join_cgroups(tasks: Vec<OwnedFd>) -> Result<(), Trouble> {
    for tasks in tasks {
        rustix::io::write(tasks, b"0")?;
    }
    Ok(())
}

/// Until here the process had the launcher's ids, which mean nothing inside.
fn become_root() -> Result<(), Trouble> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// Makes the machine's root the root and lets go of the host's.
fn enter_root(root: &OwnedFd) -> Result<(), Trouble> {
    mounting::attach(root, "/")?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Keeps the home that the image gives the workload's user writable when the root is sealed, with what the image has in
/// it: it becomes a mount of its own before anything is mounted beneath it. A path that leads elsewhere by links, and a
/// directory of somebody else, stay what they are.
fn except_home(root: &OwnedFd, home: &Path, workload: u32) -> Result<(), Trouble> {
    let relative = home.strip_prefix("/").unwrap_or(home);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if relative.as_os_str().is_empty() || !plain || home == Path::new(WORKLOAD_HOME) {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    // Whatever is wrong with it, it is wrong with the image, which has run without such a home so far.
    let Ok(opened) = rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve) else {
        return Ok(());
    };
    if rustix::fs::fstat(&opened)?.st_uid != workload {
        return Ok(());
    }
    let itself = mounting::copy_mount(&opened, "", Reach::One)?;
    Ok(mounting::attach_on(itself, opened)?)
}

fn attach_binds(request: &LaunchRequest, binds: Vec<OwnedFd>) -> Result<(), Trouble> {
    for (index, (mount, bind)) in binds.into_iter().zip(&request.binds).enumerate() {
        mounting::attach(mount, &*bind.target)
            .map_err(|cause| Trouble { subject: u16::try_from(index).ok(), cause })?;
    }
    Ok(())
}

fn mount_devices(devices: OwnedFd) -> Result<(), Trouble> {
    mounting::attach(devices, "/dev")?;
    let gid = confinement::TTY_GROUP.to_string();
    let terminals = mounting::new_file_system(
        "devpts",
        &[
            Parameter::Flag("newinstance"),
            Parameter::Text("ptmxmode", "0666"),
            Parameter::Text("mode", "0620"),
            Parameter::Text("gid", &gid),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    mounting::attach(terminals, "/dev/pts")?;
    // A kernel without message queues has no such file system; nothing else misses it.
    if let Ok(queues) = mounting::new_file_system("mqueue", &[], kernel_flags()) {
        mounting::attach(queues, "/dev/mqueue")?;
    }
    Ok(())
}

fn new_tmpfs(size: Scratch, mode: &str) -> io::Result<OwnedFd> {
    mounting::new_file_system(
        "tmpfs",
        &[
            Parameter::Text("size", &size.bytes.to_string()),
            Parameter::Text("nr_inodes", &size.inodes.to_string()),
            Parameter::Text("mode", mode),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

/// `/dev/shm`, all that lives in memory under a writable root.
fn mount_shared_memory(size: Scratch) -> Result<(), Trouble> {
    let shared = new_tmpfs(size, "1777")?;
    Ok(mounting::attach(shared, "/dev/shm")?)
}

/// The writable places of a read-only root. They are parts of one file system, which costs less to make and to keep than
/// one each.
fn mount_scratch(size: Scratch) -> Result<(), Trouble> {
    const PLACES: &[(&str, &str, u32, u32)] = &[
        ("tmp", "/tmp", 0o1777, 0),
        ("run", "/run", 0o755, 0),
        ("root", "/root", 0o700, 0),
        ("home", "/home/sandbox", 0o755, WORKLOAD_ID),
        ("shm", "/dev/shm", 0o1777, 0),
    ];
    let whole = new_tmpfs(size, "700")?;
    // Before Linux 6.15 only an attached mount can be copied.
    mounting::attach(&whole, "/run")?;
    let mut parts = Vec::with_capacity(PLACES.len());
    for &(name, target, mode, owner) in PLACES {
        rustix::fs::mkdirat(&whole, name, Mode::from_raw_mode(mode))?;
        if owner != 0 {
            sys::give(whole.as_fd(), name, owner, owner)?;
        }
        parts.push((mounting::copy_mount(&whole, name, Reach::One)?, target));
    }
    rustix::mount::unmount("/run", UnmountFlags::DETACH)?;
    for (part, target) in parts {
        mounting::attach(part, target)?;
    }
    Ok(())
}

/// `/proc` and `/sys`, with what tells about the host or acts on it hidden or read-only.
fn mount_kernel(
    proc: OwnedFd,
    sys: Option<OwnedFd>,
    void: OwnedFd,
    surroundings: &Surroundings<'_>,
) -> Result<(), Trouble> {
    mounting::attach(proc, "/proc")?;
    let has_sys = sys.is_some();
    // The first hidden directory (or /sys itself) takes the void; the others take copies of that.
    let mut void_at = None;
    match sys {
        Some(sys) => mounting::attach(sys, "/sys")?,
        None => {
            mounting::attach(&void, "/sys")?;
            void_at = Some("sys");
        }
    }
    for masked in surroundings.masked {
        if masked.path.starts_with("sys/") && !has_sys {
            continue;
        }
        if !masked.directory {
            mounting::attach(mounting::copy_mount(CWD, "dev/null", Reach::One)?, masked.path)?;
        } else if let Some(void_at) = void_at {
            mounting::attach(mounting::copy_mount(CWD, void_at, Reach::One)?, masked.path)?;
        } else {
            mounting::attach(&void, masked.path)?;
            void_at = Some(masked.path);
        }
    }
    for &path in surroundings.read_only {
        let copy = mounting::copy_mount(CWD, path, Reach::One)?;
        let flags = kernel_flags() | MountAttrFlags::MOUNT_ATTR_RDONLY;
        sys::change_mount(copy.as_fd(), MountChange::Flags(flags), Reach::One)?;
        mounting::attach(copy, path)?;
    }
    Ok(())
}

/// Attaches what the user asked to see of the host, on targets made as needed, wherever links inside lead to.
fn attach_mounts(request: &LaunchRequest, mounts: Vec<OwnedFd>) -> Result<(), Trouble> {
    for (index, (mount, wanted)) in mounts.into_iter().zip(&request.mounts).enumerate() {
        attach_mount(&mount, &wanted.target, wanted.access)
            .map_err(|cause| Trouble { subject: u16::try_from(index).ok(), cause })?;
    }
    Ok(())
}

fn attach_mount(mount: &OwnedFd, target: &Path, access: Access) -> io::Result<()> {
    if access == Access::ReadOnly {
        sys::change_mount(mount.as_fd(), MountChange::Flags(MountAttrFlags::MOUNT_ATTR_RDONLY), Reach::Tree)?;
    }
    let target = make_target(target, mounting::kind_of(mount)?)?;
    mounting::attach_on(mount, target)
}

/// Opens a mount target inside, making directories (and at the end a file, for a file) that are missing.
fn make_target(target: &Path, kind: FileType) -> io::Result<OwnedFd> {
    const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
    const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
    let open = |path: &Path| {
        rustix::fs::openat2(
            CWD,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let relative = target.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut opened = open(Path::new("."))?;
    let mut path = std::path::PathBuf::new();
    let names: Vec<_> = relative.components().collect();
    for (index, name) in names.iter().enumerate() {
        path.push(name);
        opened = match open(&path) {
            Err(Errno::NOENT) => {
                if kind.is_dir() || index + 1 < names.len() {
                    rustix::fs::mkdirat(&opened, name.as_os_str(), DIRECTORY_MODE)?;
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(&opened, name.as_os_str(), flags, FILE_MODE)?;
                }
                open(&path)?
            }
            other => other?,
        };
    }
    Ok(opened)
}

/// Makes the root read-only once everything stands on it; mounts on it keep their own say.
fn seal_root(root: &OwnedFd) -> Result<(), Trouble> {
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
    Ok(sys::change_mount(root.as_fd(), MountChange::Flags(flags), Reach::One)?)
}

/// Becomes the agent; returns only the error. What was forked off the server while it wrote the agent's file has that open
/// for writing until it executes something itself: that is waited for.
fn execute(agent: BorrowedFd<'_>) -> io::Error {
    let mut refused = sys::execute(agent, &[AGENT_NAME, AGENT_ARGUMENT]);
    for _ in 0..BUSY_ATTEMPTS_MAX {
        if Errno::from_io_error(&refused) != Some(Errno::TXTBSY) {
            break;
        }
        std::thread::sleep(BUSY_PAUSE);
        refused = sys::execute(agent, &[AGENT_NAME, AGENT_ARGUMENT]);
    }
    refused
}

fn set_limits() -> Result<(), Trouble> {
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::raise_limit(Resource::Nofile, confinement::OPEN_FILES_MAX)?;
    // Processes are counted by the cgroup; the kernel's own count is per user and would only surprise.
    sys::raise_limit(Resource::Nproc, u64::MAX)?;
    rustix::process::setrlimit(
        Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    )?;
    Ok(())
}

/// Under `container` the process still has CAP_SYS_ADMIN inside, which the filter needs; setuid keeps working. Under
/// `strict` nothing executed from here on gains anything.
fn install_filter(security: SecurityProfile, filter: Option<&[Instruction]>) -> Result<(), Trouble> {
    if security == SecurityProfile::Strict {
        rustix::thread::set_no_new_privs(true)?;
    }
    match filter {
        Some(filter) => Ok(sys::install_filter(filter)?),
        None => Ok(()),
    }
}

fn drop_capabilities(security: SecurityProfile) -> Result<(), Trouble> {
    let kept = confinement::bounding_set(security);
    for number in 0..=confinement::CAPABILITY_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no capability of this number or above.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
