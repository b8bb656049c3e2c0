//! Cgroups of machines, `<hierarchy>/sandhaus/<instance>/<id>.<generation>`, on hosts with version 2, version 1 or both.
//!
//! Each controller has a home: the unified hierarchy where it offers the controller, else the hierarchy of version 1
//! that does. A unified hierarchy without controllers still is where machines are born, frozen, killed and watched.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
    process::{Pid, Signal},
};
use sandhaus_sandbox::{
    engine::{EngineError, EngineResult},
    types::{Resources, Stats},
};

use crate::cgroup_probe::{self, SERVER_LEAF, Unified};

/// The directory of all instances in each hierarchy.
const TOP: &str = "sandhaus";

/// File in the instance's data directory with the cgroup beneath which its machines are.
const RECORD: &str = "cgroup";

/// Period of the processor limit in microseconds, the kernel's own default.
const PERIOD_USEC: u64 = 100_000;

/// Smallest processor quota the kernel takes, in microseconds.
const QUOTA_USEC_MIN: u64 = 1000;

/// Largest control file read.
const FILE_BYTES_MAX: usize = 1 << 20;

/// How long a cgroup may take to freeze, or to be empty once everything in it is killed.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// Pause between two looks where the kernel offers nothing to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How often the directory of all instances may vanish under us, removed by an instance that ends.
const ENTER_ATTEMPTS_MAX: usize = 16;

/// One hierarchy, at this instance's directory in it.
#[derive(Debug)]
struct Hierarchy {
    directory: OwnedFd,
    path: PathBuf,
}

/// Where a controller lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// In the unified hierarchy.
    Unified,
    /// In a hierarchy of version 1, by index.
    Legacy(usize),
}

/// The cgroups of an instance.
#[derive(Debug)]
pub(super) struct Cgroups {
    unified: Option<Hierarchy>,
    legacy: Vec<Hierarchy>,
    cpu: Home,
    memory: Home,
    pids: Home,
    /// Version 1 only: the unified hierarchy freezes by itself.
    freezer: Option<Home>,
    /// Version 1 only: the unified hierarchy counts by itself.
    cpuacct: Option<Home>,
}

/// A machine's cgroups, ready to be entered.
#[derive(Debug)]
pub(super) struct Entrance {
    /// The directory in the unified hierarchy.
    pub(super) unified: Option<OwnedFd>,
    /// `tasks` in the others.
    pub(super) tasks: Vec<OwnedFd>,
}

impl Cgroups {
    /// Finds the host's hierarchies and makes the instance's directory in each. Machines that an earlier server made
    /// beneath another cgroup stay there, and new ones go beside them.
    pub(super) fn open(instance: &str, wanted: Option<&Path>, data_dir: &Path) -> EngineResult<Self> {
        let mut found = cgroup_probe::find(wanted)?;
        if let Some(unified) = &mut found.unified {
            keep_to_record(unified, instance, &data_dir.join(RECORD))
                .map_err(|error| EngineError::host("find earlier cgroups", error))?;
        }
        let mut legacy: Vec<(PathBuf, Hierarchy)> = Vec::new();
        let mut home = |controller: &str| -> EngineResult<Home> {
            if found.unified.as_ref().is_some_and(|unified| unified.controllers.contains(&controller)) {
                return Ok(Home::Unified);
            }
            let Some(mount) = found.legacy_of(controller) else {
                return Err(EngineError::Unsupported(format!(
                    "a host without the cgroup controller {controller}"
                )));
            };
            if let Some(index) = legacy.iter().position(|(path, _)| path == mount) {
                return Ok(Home::Legacy(index));
            }
            let hierarchy =
                enter(mount, instance, &[]).map_err(|error| EngineError::host("make cgroups", error))?;
            legacy.push((mount.to_owned(), hierarchy));
            Ok(Home::Legacy(legacy.len() - 1))
        };
        let (cpu, memory, pids) = (home("cpu")?, home("memory")?, home("pids")?);
        let (freezer, cpuacct) = match &found.unified {
            Some(_) => (None, None),
            None => (Some(home("freezer")?), Some(home("cpuacct")?)),
        };
        let unified = match &found.unified {
            Some(unified) => Some(
                enter_unified(unified, instance).map_err(|error| EngineError::host("make cgroups", error))?,
            ),
            None => None,
        };
        let legacy = legacy.into_iter().map(|(_, hierarchy)| hierarchy).collect();
        Ok(Self { unified, legacy, cpu, memory, pids, freezer, cpuacct })
    }

    fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.unified.iter().chain(&self.legacy)
    }

    fn hierarchy(&self, home: Home) -> &Hierarchy {
        match home {
            Home::Unified => self.unified.as_ref().expect("a controller lives there"),
            Home::Legacy(index) => &self.legacy[index],
        }
    }

    /// Names of all machines that have a cgroup anywhere.
    pub(super) fn list(&self) -> EngineResult<BTreeSet<String>> {
        let host = |error: io::Error| EngineError::host("list cgroups", error);
        let mut names = BTreeSet::new();
        for hierarchy in self.all() {
            for entry in fs_err::read_dir(&hierarchy.path).map_err(host)? {
                let entry = entry.map_err(host)?;
                if entry.file_type().map_err(host)?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
        }
        Ok(names)
    }

    /// Makes a machine's cgroups with their limits.
    pub(super) fn make(&self, name: &str, resources: &Resources) -> EngineResult<Entrance> {
        let host = |error: io::Error| crate::namespace::disk::failure("make cgroups", error);
        for hierarchy in self.all() {
            match rustix::fs::mkdirat(&hierarchy.directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(host(error.into())),
            }
        }
        self.limit_fresh(name, resources).map_err(|error| EngineError::host("set limits", error))?;
        let open = |hierarchy: &Hierarchy, file: &str, flags: OFlags| {
            rustix::fs::openat(&hierarchy.directory, file, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| host(error.into()))
        };
        let unified = match &self.unified {
            Some(hierarchy) => Some(open(hierarchy, name, OFlags::PATH | OFlags::DIRECTORY)?),
            None => None,
        };
        let tasks = format!("{name}/tasks");
        let tasks = self
            .legacy
            .iter()
            .map(|hierarchy| open(hierarchy, &tasks, OFlags::WRONLY))
            .collect::<Result<_, _>>();
        Ok(Entrance { unified, tasks: tasks? })
    }

    /// Sets all limits of a machine; zero lifts one.
    pub(super) fn limit(&self, name: &str, resources: &Resources) -> EngineResult<()> {
        self.limit_cpu(name, resources.cpu_millis)
            .and_then(|()| self.limit_memory(name, resources.memory_bytes))
            .and_then(|()| self.limit_pids(name, resources.pids))
            .map_err(|error| {
                if is_gone(&error) { EngineError::NotFound } else { EngineError::host("set limits", error) }
            })
    }

    /// Sets the limits of a fresh cgroup, which has none yet.
    fn limit_fresh(&self, name: &str, resources: &Resources) -> io::Result<()> {
        if resources.cpu_millis != 0 {
            self.limit_cpu(name, resources.cpu_millis)?;
        }
        if resources.memory_bytes != 0 {
            self.limit_memory(name, resources.memory_bytes)?;
        }
        if resources.pids != 0 {
            self.limit_pids(name, resources.pids)?;
        }
        Ok(())
    }

    fn limit_pids(&self, name: &str, pids: u32) -> io::Result<()> {
        let text = if pids == 0 { "max".to_owned() } else { pids.to_string() };
        self.write(self.pids, name, "pids.max", &text)
    }

    fn limit_cpu(&self, name: &str, millis: u32) -> io::Result<()> {
        let quota = (u64::from(millis) * PERIOD_USEC / 1000).max(QUOTA_USEC_MIN);
        match (self.cpu, millis) {
            (Home::Unified, 0) => self.write(self.cpu, name, "cpu.max", "max"),
            (Home::Unified, _) => self.write(self.cpu, name, "cpu.max", &format!("{quota} {PERIOD_USEC}")),
            (Home::Legacy(_), 0) => self.write(self.cpu, name, "cpu.cfs_quota_us", "-1"),
            (Home::Legacy(_), _) => self.write(self.cpu, name, "cpu.cfs_quota_us", &quota.to_string()),
        }
    }

    /// Swap must not stretch the limit: none is given where it can be counted, and none is wanted where it cannot.
    fn limit_memory(&self, name: &str, bytes: u64) -> io::Result<()> {
        let home = self.memory;
        if home == Home::Unified {
            let (limit, swap) = if bytes == 0 { ("max".to_owned(), "max") } else { (bytes.to_string(), "0") };
            self.write(home, name, "memory.max", &limit)?;
            // A kernel without swap accounting has no such file, and then nothing of ours is swapped uncounted.
            return ignore_missing(self.write(home, name, "memory.swap.max", swap));
        }
        let limit = if bytes == 0 { "-1".to_owned() } else { bytes.to_string() };
        let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let has_both = rustix::fs::accessat(
            &self.hierarchy(home).directory,
            format!("{name}/{both}"),
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok();
        if !has_both {
            self.write(home, name, memory, &limit)?;
            return self.write(home, name, "memory.swappiness", "0");
        }
        // The sum may never be below the part: down goes the part first, up the sum.
        if self.write(home, name, memory, &limit).is_ok() {
            return self.write(home, name, both, &limit);
        }
        self.write(home, name, both, &limit)?;
        self.write(home, name, memory, &limit)
    }

    /// Freezes everything in a machine's cgroup and waits until it stands.
    pub(super) fn freeze(&self, name: &str) -> EngineResult<()> {
        self.set_frozen(name, Frozen::Yes).map_err(|error| EngineError::host("freeze machine", error))
    }

    /// Lets it run again.
    pub(super) fn thaw(&self, name: &str) -> EngineResult<()> {
        self.set_frozen(name, Frozen::No).map_err(|error| EngineError::host("thaw machine", error))
    }

    fn set_frozen(&self, name: &str, frozen: Frozen) -> io::Result<()> {
        if let Some(freezer) = self.freezer {
            let state = if frozen == Frozen::Yes { "FROZEN" } else { "THAWED" };
            self.write(freezer, name, "freezer.state", state)?;
            return look_until(|| Ok(self.read(freezer, name, "freezer.state")?.trim() == state));
        }
        self.write(Home::Unified, name, "cgroup.freeze", if frozen == Frozen::Yes { "1" } else { "0" })?;
        self.await_event(name, "frozen", if frozen == Frozen::Yes { "1" } else { "0" })
    }

    /// Whether it was asked to stand still.
    pub(super) fn is_frozen(&self, name: &str) -> bool {
        match self.freezer {
            Some(freezer) => {
                self.read(freezer, name, "freezer.state").is_ok_and(|state| state.trim() != "THAWED")
            }
            None => self.read(Home::Unified, name, "cgroup.freeze").is_ok_and(|text| text.trim() == "1"),
        }
    }

    /// Kills everything in a machine's cgroups and waits until they are empty. Absent is success.
    ///
    /// `first` is the machine's first process where it is known: its end comes after that of all others, and is told
    /// at once, while the kernel tells of a cgroup that becomes empty only so often.
    pub(super) fn kill(&self, name: &str, first: Option<&OwnedFd>) -> EngineResult<()> {
        self.kill_all(name, first).map_err(|error| EngineError::host("kill machine", error))
    }

    fn kill_all(&self, name: &str, first: Option<&OwnedFd>) -> io::Result<()> {
        if self.unified.is_some() {
            match self.write(Home::Unified, name, "cgroup.kill", "1") {
                Ok(()) => {
                    if let Some(first) = first {
                        await_end(first)?;
                    }
                    self.await_event(name, "populated", "0").or_else(ignore_absent)?;
                }
                // Before Linux 5.14, or the cgroup is gone.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // Whatever is left: kernels that cannot kill a cgroup, and processes caught between their first cgroup and
        // the others. Frozen processes cannot fork away from the signal.
        for home in self.homes() {
            if self.processes_in(home, name)?.is_empty() {
                continue;
            }
            ignore_missing(self.write_frozen(name, Frozen::Yes))?;
            for pid in self.processes_in(home, name)? {
                match rustix::process::kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ignore_missing(self.write_frozen(name, Frozen::No))?;
            look_until(|| Ok(self.processes_in(home, name)?.is_empty()))?;
        }
        Ok(())
    }

    /// Asks for it without waiting: processes in the middle of a kill may never stand still.
    fn write_frozen(&self, name: &str, frozen: Frozen) -> io::Result<()> {
        match (self.freezer, frozen) {
            (Some(freezer), Frozen::Yes) => self.write(freezer, name, "freezer.state", "FROZEN"),
            (Some(freezer), Frozen::No) => self.write(freezer, name, "freezer.state", "THAWED"),
            (None, Frozen::Yes) => self.write(Home::Unified, name, "cgroup.freeze", "1"),
            (None, Frozen::No) => self.write(Home::Unified, name, "cgroup.freeze", "0"),
        }
    }

    fn homes(&self) -> impl Iterator<Item = Home> {
        let unified = self.unified.iter().map(|_| Home::Unified);
        unified.chain((0..self.legacy.len()).map(Home::Legacy))
    }

    /// Removes a machine's cgroups once they are empty. Absent is success.
    pub(super) fn remove(&self, name: &str) -> EngineResult<()> {
        let remove = |hierarchy: &Hierarchy| {
            look_until(|| match rustix::fs::unlinkat(&hierarchy.directory, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(true),
                // The last process is on its way out.
                Err(Errno::BUSY) => Ok(false),
                Err(error) => Err(error.into()),
            })
        };
        self.all().try_for_each(remove).map_err(|error| EngineError::host("remove cgroups", error))
    }

    /// Removes the instance's own directories, if no machine is left in them.
    pub(super) fn close(&self) {
        for hierarchy in self.all() {
            // Machines live on in the one that stays, and other instances beside the other.
            if rustix::fs::rmdir(&*hierarchy.path).is_ok()
                && let Some(top) = hierarchy.path.parent()
            {
                let _ = rustix::fs::rmdir(top);
            }
        }
    }

    /// All processes of a machine, wherever they got to. None if it has no cgroup.
    pub(super) fn processes(&self, name: &str) -> EngineResult<Vec<Pid>> {
        let mut all = Vec::new();
        for home in self.homes() {
            let found =
                self.processes_in(home, name).map_err(|error| EngineError::host("list processes", error))?;
            all.extend(found.into_iter().filter(|pid| !all.contains(pid)).collect::<Vec<_>>());
            if home == Home::Unified && !all.is_empty() {
                break;
            }
        }
        Ok(all)
    }

    fn processes_in(&self, home: Home, name: &str) -> io::Result<Vec<Pid>> {
        match self.read(home, name, "cgroup.procs") {
            Ok(text) => Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()),
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Use of resources now.
    pub(super) fn stats(&self, name: &str) -> EngineResult<Stats> {
        self.read_stats(name).map_err(|error| {
            if is_gone(&error) { EngineError::NotFound } else { EngineError::host("read statistics", error) }
        })
    }

    fn read_stats(&self, name: &str) -> io::Result<Stats> {
        let number = |home: Home, file: &str| -> io::Result<u64> {
            self.read(home, name, file)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
        };
        let memory = self.read(self.memory, name, "memory.stat")?;
        let (usage, limit, inactive) = match self.memory {
            Home::Unified => (
                number(self.memory, "memory.current")?,
                self.read(self.memory, name, "memory.max")?.trim().parse().ok(),
                field(&memory, "inactive_file"),
            ),
            Home::Legacy(_) => {
                // "No limit" is the largest number of whole pages.
                const UNLIMITED: u64 = i64::MAX as u64 / 4096 * 4096;
                let limit = number(self.memory, "memory.limit_in_bytes")?;
                let limit = (limit < UNLIMITED).then_some(limit);
                (number(self.memory, "memory.usage_in_bytes")?, limit, field(&memory, "total_inactive_file"))
            }
        };
        let cpu_usage_usec = match self.cpuacct {
            Some(cpuacct) => number(cpuacct, "cpuacct.usage")? / 1000,
            None => field(&self.read(Home::Unified, name, "cpu.stat")?, "usage_usec").unwrap_or(0),
        };
        Ok(Stats {
            // Pages that would be dropped first are no need of the machine's.
            memory_bytes: usage.saturating_sub(inactive.unwrap_or(0)),
            memory_limit_bytes: limit,
            cpu_usage_usec,
            pids: number(self.pids, "pids.current")?,
            oom_kills: self.oom_kills(name),
        })
    }

    /// How often the memory limit ended a process; zero where the cgroup is gone.
    pub(super) fn oom_kills(&self, name: &str) -> u64 {
        let file = match self.memory {
            Home::Unified => "memory.events",
            Home::Legacy(_) => "memory.oom_control",
        };
        self.read(self.memory, name, file).ok().and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    }

    fn open_file(&self, home: Home, name: &str, file: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let directory = &self.hierarchy(home).directory;
        Ok(rustix::fs::openat(directory, format!("{name}/{file}"), flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn write(&self, home: Home, name: &str, file: &str, text: &str) -> io::Result<()> {
        rustix::io::write(self.open_file(home, name, file, OFlags::WRONLY)?, text.as_bytes())?;
        Ok(())
    }

    fn read(&self, home: Home, name: &str, file: &str) -> io::Result<String> {
        read_all(&self.open_file(home, name, file, OFlags::RDONLY)?)
    }

    /// Waits until `key` in the machine's events has `value`.
    fn await_event(&self, name: &str, key: &str, value: &str) -> io::Result<()> {
        let file = self.open_file(Home::Unified, name, "cgroup.events", OFlags::RDONLY)?;
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let text = read_all(&file)?;
            if text.lines().any(|line| line.split_once(' ') == Some((key, value))) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = Timespec::try_from(left).ok();
            match rustix::event::poll(&mut [PollFd::new(&file, PollFlags::PRI)], timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    Yes,
    No,
}

/// Makes the instance's directory in a hierarchy and hands the controllers down to it.
fn enter(base: &Path, instance: &str, controllers: &[&str]) -> io::Result<Hierarchy> {
    let top = base.join(TOP);
    let path = top.join(instance);
    let make = |path: &Path| match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    };
    for attempt in 1.. {
        make(&top)?;
        match make(&path) {
            Ok(()) => break,
            Err(Errno::NOENT) if attempt < ENTER_ATTEMPTS_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !controllers.is_empty() {
        let all: String = controllers.iter().map(|name| format!("+{name} ")).collect();
        for directory in [base, &top, &path] {
            fs_err::write(directory.join("cgroup.subtree_control"), &all)?;
        }
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path, flags, Mode::empty())?;
    Ok(Hierarchy { directory, path })
}

/// Goes on beneath the cgroup where an earlier server has left machines, and writes down where this one makes its own.
fn keep_to_record(unified: &mut Unified, instance: &str, record: &Path) -> io::Result<()> {
    let recorded = match fs_err::read_to_string(record) {
        Ok(text) => Some(PathBuf::from(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if recorded.as_ref() == Some(&unified.base) {
        return Ok(());
    }
    if let Some(earlier) = recorded.filter(|earlier| has_children(&earlier.join(TOP).join(instance))) {
        let (earlier_name, base) = (earlier.display(), unified.base.display());
        tracing::info!(
            "sandboxes of an earlier server are beneath {earlier_name}: staying there, not {base}"
        );
        unified.base = earlier;
        unified.inhabited = false;
        return Ok(());
    }
    let text = unified.base.to_str().ok_or(io::ErrorKind::InvalidData)?;
    // Whole or not at all: half a path would hide the machines from the next server.
    let fresh = record.with_extension("new");
    fs_err::write(&fresh, text)?;
    fs_err::rename(&fresh, record)
}

fn has_children(cgroup: &Path) -> bool {
    fs_err::read_dir(cgroup).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())))
    })
}

/// The same in the unified hierarchy. A cgroup must be free of processes before it can hand controllers down, so a
/// server that lives in the one that was given to it goes to a leaf of it first.
fn enter_unified(unified: &Unified, instance: &str) -> io::Result<Hierarchy> {
    make_room(unified)?;
    enter(&unified.base, instance, &unified.controllers)
}

/// Moves the processes of a cgroup that is our own to a leaf of it.
fn make_room(unified: &Unified) -> io::Result<()> {
    if !unified.inhabited || unified.controllers.is_empty() {
        return Ok(());
    }
    let leaf = unified.base.join(SERVER_LEAF);
    match rustix::fs::mkdir(&leaf, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let processes = fs_err::read_to_string(unified.base.join("cgroup.procs"))?;
    for process in processes.lines() {
        match fs_err::write(leaf.join("cgroup.procs"), process) {
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Moves this process to a leaf of the cgroup that was delegated to it, so that sandboxes can be put beside it. Nothing
/// happens where nothing was delegated.
pub fn retire_to_leaf() -> EngineResult<()> {
    match cgroup_probe::find(None)?.unified {
        Some(unified) => make_room(&unified).map_err(|error| EngineError::host("move to a leaf", error)),
        None => Ok(()),
    }
}

/// Waits for the end of a process, at most [`SETTLE_MAX`].
fn await_end(process: &OwnedFd) -> io::Result<()> {
    let timeout = Timespec::try_from(SETTLE_MAX).ok();
    match rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()) {
        // What did not end in time is looked at again by the caller.
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The number behind a key in a flat file.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)?.1.trim().parse().ok())
}

fn read_all(file: &OwnedFd) -> io::Result<String> {
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        match rustix::io::read(file.as_fd(), &mut bytes[length..])? {
            0 => break,
            count => length += count,
        }
        if length == FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if length == bytes.len() {
            bytes.resize((length * 2).min(FILE_BYTES_MAX), 0);
        }
    }
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Looks until it is so, at most [`SETTLE_MAX`].
fn look_until(mut so: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + SETTLE_MAX;
    while !so()? {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The cgroup is not there, or goes while it is looked at.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn ignore_absent(error: io::Error) -> io::Result<()> {
    if is_gone(&error) { Ok(()) } else { Err(error) }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(ignore_absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_an_earlier_server_stay_where_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let record = directory.path().join(RECORD);
        let keep = |base: &Path| {
            let mut unified =
                Unified { base: base.to_owned(), controllers: vec!["cpu"], delegated: true, inhabited: true };
            keep_to_record(&mut unified, "one", &record).expect("a writable record");
            unified.base
        };
        assert_eq!(keep(&old), old);
        // Nothing is there, so a change of place counts at once.
        assert_eq!(keep(&new), new);
        assert_eq!(keep(&old), old);
        let machine = old.join(TOP).join("one").join("machine.1");
        fs_err::create_dir_all(&machine).expect("writable");
        assert_eq!(keep(&new), old);
        // Still not forgotten.
        assert_eq!(keep(&new), old);
        fs_err::remove_dir(&machine).expect("removable");
        assert_eq!(keep(&new), new);
    }

    #[test]
    fn fields_are_found_whole() {
        let text = "inactive_file 5\ntotal_inactive_file 7\nfile 9\n";
        assert_eq!(field(text, "inactive_file"), Some(5));
        assert_eq!(field(text, "total_inactive_file"), Some(7));
        assert_eq!(field(text, "anon"), None);
    }
}
