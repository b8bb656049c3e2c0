//! Signals that people and supervisors send to this process, and what each asks for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::is_ignored;

/// A second interrupt within this time ends everything at once.
const INSIST_WITHIN: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Pass the signal with this number on to the command.
    Forward(i32),
    /// Kill the command, clean up and end, as death by the signal with this number.
    End(i32),
}

impl Request {
    /// Number of the signal.
    pub(crate) fn signal(self) -> i32 {
        match self {
            Self::Forward(signal) | Self::End(signal) => signal,
        }
    }
}

/// The signals of this process. From its making on, none of them ends the process by itself.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    quit: Option<Signal>,
    hangup: Option<Signal>,
    insistence: Insistence,
}

impl Signals {
    /// Takes the signals over.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind: SignalKind| match is_ignored(kind.as_raw_value()) {
            // `nohup` and the like: what they chose to ignore stays ignored.
            true => Ok(None),
            false => signal(kind).map(Some).context("listen to signals"),
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            hangup: listen(SignalKind::hangup())?,
            insistence: Insistence::default(),
        })
    }

    /// The next request. Cancel-safe: a signal is taken only when this returns.
    pub(crate) async fn next(&mut self) -> Request {
        tokio::select! {
            // `received` is cancel-safe, as `Signal::recv` is.
            () = received(&mut self.terminate) => Request::End(libc::SIGTERM),
            () = received(&mut self.hangup) => Request::End(libc::SIGHUP),
            () = received(&mut self.interrupt) => self.insistence.interrupted(Instant::now()),
            () = received(&mut self.quit) => Request::Forward(libc::SIGQUIT),
        }
    }

    /// The next signal, for what has no command to pass it on to. Cancel-safe.
    pub(crate) async fn end(&mut self) -> i32 {
        self.next().await.signal()
    }
}

/// The next arrival of a signal; never, of one that is not listened to. Cancel-safe.
pub(crate) async fn received(signal: &mut Option<Signal>) {
    match signal {
        // `None` cannot come while the runtime lives.
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Tells a first interrupt from a repeated one.
#[derive(Debug, Default)]
struct Insistence {
    last: Option<Instant>,
}

impl Insistence {
    fn interrupted(&mut self, now: Instant) -> Request {
        match self.last.replace(now) {
            Some(last) if now.duration_since(last) < INSIST_WITHIN => Request::End(libc::SIGINT),
            _ => Request::Forward(libc::SIGINT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quick_second_interrupt_ends() {
        let mut insistence = Insistence::default();
        let start = Instant::now();
        assert_eq!(insistence.interrupted(start), Request::Forward(libc::SIGINT));
        let later = start + INSIST_WITHIN;
        assert_eq!(insistence.interrupted(later), Request::Forward(libc::SIGINT));
        assert_eq!(insistence.interrupted(later + INSIST_WITHIN / 2), Request::End(libc::SIGINT));
    }
}
