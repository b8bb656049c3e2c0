//! Every child's end, by number. As PID 1 (or subreaper) the agent also gets orphans it never started: their ends are
//! collected and dropped, so no zombie stays.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::Shared};
use rustix::process::{WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot::{self, error::RecvError};

use super::spawn::{self, Command, SpawnError};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    pub(crate) ended: Ended,
}

/// The end of one process, for as many as wait for it.
#[derive(Clone)]
pub(crate) struct Ended(Shared<oneshot::Receiver<Ending>>);

impl Ended {
    /// How it ended, if it was reaped.
    pub(crate) fn known(&self) -> Option<Ending> {
        self.0.clone().now_or_never()?.ok()
    }
}

impl Future for Ended {
    type Output = Result<Ending, RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_unpin(context)
    }
}

impl Child {
    /// A process that an agent before this one started, and whose end it saw already if it did.
    fn known(pid: i32, ended: Option<Ending>) -> (Self, Option<oneshot::Sender<Ending>>) {
        let (sender, receiver) = oneshot::channel();
        let sender = match ended {
            Some(ending) => {
                // Its other half is right here.
                let _ = sender.send(ending);
                None
            }
            None => Some(sender),
        };
        (Self { pid, ended: Ended(receiver.shared()) }, sender)
    }
}

/// A process that is waited for.
struct Waiting {
    program: String,
    sender: oneshot::Sender<Ending>,
}

/// The processes the agent waits for.
#[derive(Default)]
pub(crate) struct Children {
    waiting: Mutex<HashMap<i32, Waiting>>,
}

impl Children {
    /// Starts a process. The lock is held from before it exists until it is known, so its end cannot be missed.
    pub(crate) fn spawn(&self, command: &Command<'_>) -> Result<Child, SpawnError> {
        let mut waiting = self.waiting();
        let pid = spawn::start(command)?;
        Ok(Self::wait_for(&mut waiting, pid, command.argv.first().cloned().unwrap_or_default()))
    }

    /// The same with the program behind a descriptor, whatever its first argument says.
    pub(crate) fn spawn_executable(
        &self,
        executable: BorrowedFd<'_>,
        command: &Command<'_>,
    ) -> Result<Child, SpawnError> {
        let mut waiting = self.waiting();
        let pid = spawn::start_executable(executable, command)?;
        Ok(Self::wait_for(&mut waiting, pid, command.argv.first().cloned().unwrap_or_default()))
    }

    fn wait_for(waiting: &mut HashMap<i32, Waiting>, pid: i32, program: String) -> Child {
        let (child, sender) = Child::known(pid, None);
        if let Some(sender) = sender {
            waiting.insert(pid, Waiting { program, sender });
        }
        child
    }

    /// Takes over a process that the program before this one started in the same place: still a child, or reaped by it
    /// with this ending. Call before the first [`Self::reap`].
    pub(crate) fn adopt(&self, pid: i32, ended: Option<Ending>) -> Child {
        let (child, sender) = Child::known(pid, ended);
        if let Some(sender) = sender {
            self.waiting().insert(pid, Waiting { program: String::new(), sender });
        }
        child
    }

    /// Those that are alive, or not reaped yet, with the names of their programs.
    pub(crate) fn alive(&self) -> Vec<(i32, String)> {
        self.waiting().iter().map(|(pid, waiting)| (*pid, waiting.program.clone())).collect()
    }

    /// Collects every end there is now. Call after each [`super::Interest::Child`].
    pub(crate) fn reap(&self) {
        let mut waiting = self.waiting();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(ending) = ending(status) else { continue };
            if let Some(Waiting { sender, .. }) = waiting.remove(&pid.as_raw_nonzero().get()) {
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

    fn waiting(&self) -> MutexGuard<'_, HashMap<i32, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ending(status: WaitStatus) -> Option<Ending> {
    status.exit_status().map(Ending::Exited).or_else(|| status.terminating_signal().map(Ending::Signalled))
}
