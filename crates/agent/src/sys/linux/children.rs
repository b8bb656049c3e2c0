//! Every child's end, by number. As PID 1 (or subreaper) the agent also gets orphans it never started: their ends are
//! collected and dropped, so no zombie stays.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{WaitOptions, WaitStatus};
use tokio::sync::oneshot;

use super::spawn::{self, Command, SpawnError};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

impl Ending {
    /// The status as a shell reports it.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
        }
    }

    /// The signal, if one ended it.
    pub(crate) fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signalled(signal) => Some(signal),
        }
    }
}

/// A started process.
pub(crate) struct Child {
    /// Its number.
    pub(crate) pid: i32,
    /// Resolves when it has ended and was reaped. An error means the agent itself is ending.
    pub(crate) ended: oneshot::Receiver<Ending>,
}

/// The processes the agent waits for.
#[derive(Default)]
pub(crate) struct Children {
    waiting: Mutex<HashMap<i32, oneshot::Sender<Ending>>>,
}

impl Children {
    /// Starts a process. The lock is held from before it exists until it is known, so its end cannot be missed.
    pub(crate) fn spawn(&self, command: &Command<'_>) -> Result<Child, SpawnError> {
        let mut waiting = self.waiting();
        let pid = spawn::start(command)?;
        let (sender, ended) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Child { pid, ended })
    }

    /// Collects every end there is now. Call after each [`super::Interest::Child`].
    pub(crate) fn reap(&self) {
        let mut waiting = self.waiting();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(ending) = ending(status) else { continue };
            if let Some(sender) = waiting.remove(&pid.as_raw_nonzero().get()) {
                // Nobody waits any more: fine.
                let _ = sender.send(ending);
            }
        }
    }

    /// Hangs up on every process that the agent started: interactive shells ignore a plain request to end.
    pub(crate) fn hang_up(&self) {
        let pids: Vec<i32> = self.waiting().keys().copied().collect();
        super::signals::signal_pids(&pids, libc::SIGHUP);
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Ending>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ending(status: WaitStatus) -> Option<Ending> {
    status.exit_status().map(Ending::Exited).or_else(|| status.terminating_signal().map(Ending::Signalled))
}
