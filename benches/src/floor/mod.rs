//! The floor: what a sandbox of this shape costs when nothing but the system calls is there.
//!
//! A small process with one thread makes a sandbox with all namespaces, an overlay with an id-mapped lower layer,
//! cgroups with limits, a loopback, no capabilities and a filter, executes a first process of a few kilobytes and takes
//! its first result; then it removes everything. No server, no database, no HTTP, no agent: nothing can be faster
//! without doing less.

#![expect(unsafe_code, reason = "clone3, id maps of mounts and filters have no safe wrapper")]

mod filter;
mod sys;

use std::{
    io::{self, BufRead as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags,
    },
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
    thread::{CapabilitySet, CapabilitySets},
};
use serde::{Deserialize, Serialize};
use sys::Cloned;

/// First argument with which the benchmark executes itself as the probe.
pub(crate) const ARGUMENT: &str = "__floor";

/// Where the runner lies in the root file system.
pub(crate) const RUNNER: &str = "floor-runner";

/// Ids outside that stand for those inside.
const MAP: &str = "0 1900000000 65536";

/// The user that the first process becomes.
const WORKLOAD: u32 = 1000;

/// Hierarchies of version 1 that have limits worth setting, with the file and the value.
const LIMITS: &[(&str, &str, &str)] = &[
    ("cpu", "cpu.cfs_quota_us", "100000"),
    ("memory", "memory.limit_in_bytes", "536870912"),
    ("pids", "pids.max", "256"),
    ("freezer", "", ""),
];

/// The same in version 2.
const UNIFIED_LIMITS: &[(&str, &str)] =
    &[("cpu.max", "100000 100000"), ("memory.max", "536870912"), ("pids.max", "256")];

/// What the first command of a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// `/bin/true`, started by the first process.
    Program,
    /// A builtin of a shell in a terminal, started with the sandbox.
    Builtin,
}

/// Times of one sandbox, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// From nothing to the first process's first word.
    pub(crate) ready: f64,
    /// From nothing to the first command's result.
    pub(crate) first: f64,
    /// From the kill to nothing.
    pub(crate) destroy: f64,
}

/// The probe's side: answers each line with a sample.
pub(crate) fn serve(root: &Path, scratch: &Path) -> anyhow::Result<()> {
    let mut probe = Probe::new(root, scratch)?;
    for line in io::stdin().lock().lines() {
        let first = if line? == "builtin" { First::Builtin } else { First::Program };
        let sample = probe.sample(first).map_err(|error| format!("{error:#}"));
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &sample)?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
    }
    probe.cgroups.remove_parent();
    Ok(())
}

struct Probe {
    scratch: PathBuf,
    count: u64,
    lower: OwnedFd,
    devices: PathBuf,
    cgroups: Cgroups,
    filter: Vec<libc::sock_filter>,
}

impl Probe {
    fn new(root: &Path, scratch: &Path) -> anyhow::Result<Self> {
        sys::leave_mounts().context("leave the host's mounts")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("make mounts private")?;
        let lower = clone_tree(root).context("copy the root's mount")?;
        let ids = sys::user_namespace(MAP).context("make a user namespace")?;
        sys::map_ids(lower.as_fd(), ids.as_fd()).context("map the root's ids")?;
        let scratch = scratch.join(format!("floor-{}", std::process::id()));
        fs_err::create_dir_all(&scratch)?;
        let devices = make_devices(&scratch).context("make devices")?;
        Ok(Self { scratch, count: 0, lower, devices, cgroups: Cgroups::find()?, filter: filter::program() })
    }

    fn sample(&mut self, first: First) -> anyhow::Result<Sample> {
        self.count += 1;
        let name = format!("{}-{}", std::process::id(), self.count);
        let folder = self.scratch.join(&name);
        let start = Instant::now();
        let overlay = self.overlay(&folder).context("make the overlay")?;
        let devices = clone_tree(&self.devices).context("copy the devices")?;
        let cgroups = self.cgroups.make(&name).context("make cgroups")?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let namespaces = libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC;
        let (pid, handle) = match sys::clone_into(namespaces, cgroups.unified.as_ref().map(OwnedFd::as_fd))? {
            Cloned::Parent { pid, handle } => (pid, handle),
            Cloned::Child => {
                drop(ours);
                let error = self.become_runner(first, theirs, [&overlay, &devices], &cgroups);
                let _ = writeln!(io::stderr(), "floor: {error:#}");
                sys::exit_now(1)
            }
        };
        drop(theirs);
        sys::write_maps(pid, MAP).context("write id maps")?;
        rustix::net::send(&ours, b"g", SendFlags::NOSIGNAL)?;
        expect(&ours, b"R")?;
        let ready = start.elapsed();
        let request: &[u8] = if first == First::Builtin { b"b" } else { b"x" };
        rustix::net::send(&ours, request, SendFlags::NOSIGNAL)?;
        expect(&ours, b"k")?;
        let result = start.elapsed();

        let end = Instant::now();
        rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL)?;
        sys::reap(&handle)?;
        drop(overlay);
        self.cgroups.remove(&name)?;
        fs_err::remove_dir_all(&folder)?;
        let microseconds = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        Ok(Sample {
            ready: microseconds(ready),
            first: microseconds(result),
            destroy: microseconds(end.elapsed()),
        })
    }

    fn overlay(&self, folder: &Path) -> anyhow::Result<OwnedFd> {
        let (upper, work) = (folder.join("upper"), folder.join("work"));
        for directory in [folder, &upper, &work] {
            rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755))?;
        }
        let root = Some(rustix::fs::Uid::from_raw(1_900_000_000));
        let group = Some(rustix::fs::Gid::from_raw(1_900_000_000));
        rustix::fs::chown(&upper, root, group)?;
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_fd(&context, "lowerdir+", self.lower.as_fd())?;
        rustix::mount::fsconfig_set_string(&context, "upperdir", &upper)?;
        rustix::mount::fsconfig_set_string(&context, "workdir", &work)?;
        rustix::mount::fsconfig_set_flag(&context, "volatile")?;
        rustix::mount::fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NODEV;
        Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
    }

    /// The child's life up to the runner; only returns with an error.
    fn become_runner(
        &self,
        first: First,
        socket: OwnedFd,
        mounts: [&OwnedFd; 2],
        cgroups: &Made,
    ) -> anyhow::Error {
        match self.confine(first, socket, mounts, cgroups) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn confine(
        &self,
        first: First,
        socket: OwnedFd,
        [overlay, devices]: [&OwnedFd; 2],
        cgroups: &Made,
    ) -> anyhow::Result<std::convert::Infallible> {
        for tasks in &cgroups.tasks {
            rustix::io::write(tasks, b"0").context("join a cgroup")?;
        }
        rustix::system::sethostname(b"floor")?;
        sys::raise_loopback().context("raise the loopback")?;
        expect(&socket, b"g")?;
        sys::become_user(0).context("become root inside")?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        attach(overlay, "/mnt").context("attach the overlay")?;
        attach(devices, "/mnt/dev").context("attach devices")?;
        let safe = MountFlags::NOSUID | MountFlags::NODEV;
        for (kind, path, options) in [
            ("devpts", c"/mnt/dev/pts", c"newinstance,ptmxmode=0666,mode=0620"),
            ("tmpfs", c"/mnt/dev/shm", c"size=64m"),
            ("tmpfs", c"/mnt/tmp", c"size=64m,mode=1777"),
            ("proc", c"/mnt/proc", c""),
        ] {
            let flags = if kind == "devpts" { MountFlags::NOSUID | MountFlags::NOEXEC } else { safe };
            rustix::mount::mount(kind, path, kind, flags, options)
                .with_context(|| format!("mount {path:?}"))?;
        }
        rustix::process::chdir("/mnt")?;
        rustix::process::pivot_root(".", ".").context("pivot")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        sys::place(socket, 3)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        for number in 0..3 {
            sys::place(null.try_clone()?, number)?;
        }
        for capability in CapabilitySet::all().iter() {
            // Those that this kernel does not know cannot be dropped and need not be.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
        rustix::thread::set_thread_groups(&[])?;
        sys::become_user(WORKLOAD)?;
        let none = CapabilitySet::empty();
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )?;
        rustix::thread::set_no_new_privs(true)?;
        sys::install_filter(&self.filter).context("install the filter")?;
        sys::close_from(4)?;
        let argument = if first == First::Builtin { c"shell" } else { c"plain" };
        Err(sys::execute(c"/floor-runner", argument)).context("execute the runner")
    }
}

fn expect(socket: &OwnedFd, word: &[u8]) -> anyhow::Result<()> {
    let mut said = [0_u8; 8];
    let (count, _) = rustix::net::recv(socket, &mut said[..], RecvFlags::empty())?;
    if said[..count] != *word {
        bail!(
            "expected {:?}, heard {:?}",
            String::from_utf8_lossy(word),
            String::from_utf8_lossy(&said[..count])
        );
    }
    Ok(())
}

fn clone_tree(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags)
}

fn attach(mount: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A `/dev` made once and copied for every sandbox.
fn make_devices(scratch: &Path) -> anyhow::Result<PathBuf> {
    let place = scratch.join("dev");
    fs_err::create_dir_all(&place)?;
    rustix::mount::mount("tmpfs", &place, "tmpfs", MountFlags::NOSUID, c"mode=755,size=64k")?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        fs_err::write(place.join(name), "")?;
        rustix::mount::mount_bind(Path::new("/dev").join(name), place.join(name))?;
    }
    for (target, link) in [("/proc/self/fd", "fd"), ("pts/ptmx", "ptmx")] {
        std::os::unix::fs::symlink(target, place.join(link))?;
    }
    for directory in ["pts", "shm"] {
        fs_err::create_dir(place.join(directory))?;
    }
    Ok(place)
}

/// The host's cgroup hierarchies.
struct Cgroups {
    /// Folders of version 1, in the order of [`LIMITS`].
    first: Vec<PathBuf>,
    /// The unified one, and whether it has controllers.
    unified: Option<(PathBuf, bool)>,
}

/// The cgroups of one sandbox, ready to be joined.
struct Made {
    tasks: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Cgroups {
    const PARENT: &str = "sandhaus-floor";

    fn find() -> anyhow::Result<Self> {
        let base = Path::new("/sys/fs/cgroup");
        let found = if base.join("cgroup.controllers").exists() {
            Self { first: Vec::new(), unified: Some((base.join(Self::PARENT), true)) }
        } else {
            let first = LIMITS.iter().map(|(name, ..)| base.join(name).join(Self::PARENT));
            let unified = Some((base.join("unified").join(Self::PARENT), false));
            Self { first: first.collect(), unified: unified.filter(|_| base.join("unified").exists()) }
        };
        for folder in found.first.iter().chain(found.unified.iter().map(|(folder, _)| folder)) {
            fs_err::create_dir_all(folder)?;
        }
        if let Some((folder, true)) = &found.unified {
            for place in [base, folder] {
                fs_err::write(place.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
            }
        }
        Ok(found)
    }

    fn make(&self, name: &str) -> anyhow::Result<Made> {
        let mut made = Made { tasks: Vec::new(), unified: None };
        for (folder, (_, file, value)) in self.first.iter().zip(LIMITS) {
            let folder = folder.join(name);
            rustix::fs::mkdir(&folder, Mode::from_raw_mode(0o755))?;
            if !file.is_empty() {
                fs_err::write(folder.join(file), value)?;
            }
            let tasks = folder.join("tasks");
            made.tasks.push(rustix::fs::open(tasks, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?);
        }
        if let Some((folder, controllers)) = &self.unified {
            let folder = folder.join(name);
            rustix::fs::mkdir(&folder, Mode::from_raw_mode(0o755))?;
            for (file, value) in UNIFIED_LIMITS.iter().filter(|_| *controllers) {
                fs_err::write(folder.join(file), value)?;
            }
            made.unified = Some(rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
        }
        Ok(made)
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        for folder in self.first.iter().chain(self.unified.iter().map(|(folder, _)| folder)) {
            // The last member leaves a little after its parent has seen it end.
            while let Err(error) = rustix::fs::rmdir(folder.join(name)) {
                if error != rustix::io::Errno::BUSY {
                    return Err(error).context("remove a cgroup");
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn remove_parent(&self) {
        for folder in self.first.iter().chain(self.unified.iter().map(|(folder, _)| folder)) {
            // Another probe may still use it.
            let _ = fs_err::remove_dir(folder);
        }
    }
}
