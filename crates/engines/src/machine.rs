//! Machines as they are seen, of every engine: names, first processes, ends.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};
use sandhaus_sandbox::{
    engine::{EngineError, EngineResult, ExitLog, MachineExit},
    types::{Generation, SandboxId},
};
use tokio::{io::unix::AsyncFd, sync::watch};

use crate::{cgroup::Cgroups, namespace::sys};

/// Ends that a reader may be behind before it has to survey.
const EXITS_KEPT: usize = 256;

/// Most that is read of a file of a process.
const PROCESS_BYTES_MAX: u64 = 16 * 1024;

/// A machine's name: that of its cgroups and of its directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MachineName {
    /// Whose.
    pub(crate) id: SandboxId,
    /// Which.
    pub(crate) generation: Generation,
}

impl MachineName {
    /// Reads a name; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, generation) = text.rsplit_once('.')?;
        let canonical = !generation.starts_with('+') && (generation == "0" || !generation.starts_with('0'));
        let generation = Generation(generation.parse().ok().filter(|_| canonical)?);
        Some(Self { id: SandboxId::parse(id).ok()?, generation })
    }
}

impl std::fmt::Display for MachineName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id, self.generation)
    }
}

/// What is known of the machines of one sandbox.
#[derive(Debug, Default)]
struct Known {
    /// Every generation of which something may be there.
    generations: BTreeSet<Generation>,
    /// The one whose first process is held.
    running: Option<(Generation, Arc<AsyncFd<OwnedFd>>)>,
}

/// The machines of an instance. Only this process makes any, so a name that is not known here does not exist.
#[derive(Debug)]
pub(crate) struct Machines {
    path: PathBuf,
    known: Mutex<HashMap<SandboxId, Known>>,
    exits: watch::Sender<ExitLog>,
}

impl Machines {
    /// Opens `machines/` of a directory of the engine's and notes what earlier servers left there and in the cgroups.
    /// Ends are told to `exits`.
    pub(crate) fn open(
        data_dir: &Path,
        cgroups: &Cgroups,
        exits: watch::Sender<ExitLog>,
    ) -> EngineResult<Self> {
        let path = data_dir.join("machines");
        crate::namespace::disk::make_private(&path)
            .map_err(|error| EngineError::host("open machines", error))?;
        let machines = Self { path, known: Mutex::default(), exits };
        for name in machines.found(cgroups)? {
            machines.note(&name);
        }
        Ok(machines)
    }

    /// Names of which something is there: a directory or a cgroup.
    fn found(&self, cgroups: &Cgroups) -> EngineResult<BTreeSet<MachineName>> {
        let host = |error: io::Error| EngineError::host("list machines", error);
        let mut names = cgroups.list()?;
        for entry in fs_err::read_dir(&self.path).map_err(host)? {
            names.extend(entry.map_err(host)?.file_name().into_string());
        }
        Ok(names.iter().filter_map(|name| MachineName::parse(name)).collect())
    }

    /// Where a machine's socket lies.
    pub(crate) fn directory(&self, name: &MachineName) -> PathBuf {
        self.path.join(name.to_string())
    }

    /// Notes a name before anything of it is made.
    pub(crate) fn note(&self, name: &MachineName) {
        self.known
            .lock()
            .expect("no holder panics")
            .entry(name.id.clone())
            .or_default()
            .generations
            .insert(name.generation);
    }

    /// Forgets a name once nothing of it is left.
    pub(crate) fn forget(&self, name: &MachineName) {
        let mut all = self.known.lock().expect("no holder panics");
        let Some(known) = all.get_mut(&name.id) else { return };
        known.generations.remove(&name.generation);
        known.running.take_if(|(generation, _)| *generation == name.generation);
        if known.generations.is_empty() {
            all.remove(&name.id);
        }
    }

    /// All names of one sandbox of which something may be there, oldest first.
    pub(crate) fn names_of(&self, id: &SandboxId) -> Vec<MachineName> {
        let all = self.known.lock().expect("no holder panics");
        let generations = all.get(id).map(|known| known.generations.clone()).unwrap_or_default();
        generations.into_iter().map(|generation| MachineName { id: id.clone(), generation }).collect()
    }

    /// Every machine that may be there.
    pub(crate) fn all(&self) -> Vec<MachineName> {
        let all = self.known.lock().expect("no holder panics");
        let names = all.iter().flat_map(|(id, known)| {
            known.generations.iter().map(|&generation| MachineName { id: id.clone(), generation })
        });
        names.collect()
    }

    /// Every sandbox of which some machine may be there.
    pub(crate) fn list(&self) -> Vec<SandboxId> {
        self.known.lock().expect("no holder panics").keys().cloned().collect()
    }

    /// The machine whose first process is held, if it still runs.
    pub(crate) fn running(&self, id: &SandboxId) -> Option<(MachineName, Arc<AsyncFd<OwnedFd>>)> {
        let all = self.known.lock().expect("no holder panics");
        let (generation, process) = all.get(id)?.running.as_ref()?;
        is_alive(process.get_ref())
            .then(|| (MachineName { id: id.clone(), generation: *generation }, Arc::clone(process)))
    }

    /// Ends of machines as they happen.
    pub(crate) fn watch(&self) -> watch::Receiver<ExitLog> {
        self.exits.subscribe()
    }

    /// Holds a machine's first process and publishes its end.
    pub(crate) fn hold(
        self: &Arc<Self>,
        name: &MachineName,
        process: OwnedFd,
        cgroups: &Arc<Cgroups>,
    ) -> EngineResult<Arc<AsyncFd<OwnedFd>>> {
        let process = sys::watched(process).map_err(|error| EngineError::host("watch machine", error))?;
        let process = Arc::new(process);
        {
            let mut all = self.known.lock().expect("no holder panics");
            let known = all.entry(name.id.clone()).or_default();
            if let Some((generation, held)) = &known.running
                && *generation == name.generation
                && is_alive(held.get_ref())
            {
                return Ok(Arc::clone(held));
            }
            known.generations.insert(name.generation);
            known.running = Some((name.generation, Arc::clone(&process)));
        }
        let (machines, cgroups) = (Arc::clone(self), Arc::clone(cgroups));
        let (name, watched) = (name.clone(), Arc::clone(&process));
        tokio::spawn(async move {
            if let Err(error) = watched.readable().await {
                tracing::error!(%error, machine = %name, "cannot watch a machine");
                return;
            }
            let out_of_memory = cgroups.oom_kills(&name.to_string()) > 0;
            machines.publish(MachineExit { id: name.id, generation: name.generation, out_of_memory });
        });
        Ok(process)
    }

    fn publish(&self, exit: MachineExit) {
        tracing::info!(sandbox = %exit.id, generation = %exit.generation, oom = exit.out_of_memory, "machine ended");
        self.exits.send_modify(|log| {
            log.count += 1;
            let recent = Arc::make_mut(&mut log.recent);
            if recent.len() == EXITS_KEPT {
                recent.remove(0);
            }
            recent.push(exit);
        });
    }
}

/// Whether a held process still runs.
pub(crate) fn is_alive(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)), Ok(0))
}

/// The first process of a machine: the one of its cgroup that `is_first` knows by what it is, never by a number that was
/// written down.
pub(crate) fn find_first_process(
    cgroups: &Cgroups,
    name: &MachineName,
    is_first: impl Fn(Pid) -> bool,
) -> EngineResult<Option<OwnedFd>> {
    for pid in cgroups.processes(&name.to_string())? {
        if !is_first(pid) {
            continue;
        }
        let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => continue,
            Err(error) => return Err(EngineError::host("open machine's process", error)),
        };
        // The number may have gone to another process in between; this one is held now.
        if is_first(pid) && is_alive(&process) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// What `/proc` says of a process, at most so much of it.
pub(crate) fn read_process(pid: Pid, file: &str) -> Vec<u8> {
    use std::io::Read;
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PROCESS_BYTES_MAX).read_to_end(&mut bytes))
        .map(|_| bytes)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let name =
            MachineName { id: SandboxId::parse("0123abcd-4ef").expect("an id"), generation: Generation(12) };
        assert_eq!(MachineName::parse(&name.to_string()), Some(name));
        for text in [
            "",
            "0123abcd-4ef",
            "0123abcd-4ef.",
            "0123abcd-4ef.01",
            "0123abcd-4ef.+1",
            "x.1",
            ".stage",
            "../x.1",
        ] {
            assert_eq!(MachineName::parse(text), None, "{text:?}");
        }
    }
}
