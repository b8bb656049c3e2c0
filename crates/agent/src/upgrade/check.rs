//! Asking the next agent, as a process of its own, whether it would take the state as it is now.

use std::{collections::BTreeMap, fs::File, os::fd::AsFd as _, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    describe,
    document::{Logs, Outgoing},
    succession,
};
use crate::{
    agent::Agent,
    error::{Error, Result, reason},
    sys::{Channel, Command, Session, discard, output_pipe, signal_pids},
};

/// How long it may take to say so.
const CHECK_MAX: Duration = Duration::from_secs(10);

/// Longest verdict.
const VERDICT_BYTES_MAX: usize = 4096;

/// Longest reason that is passed on, in characters: it comes from a program that is not trusted yet.
const REASON_CHARS_MAX: usize = 300;

/// Number of the state's descriptor in the process that looks at it.
const STATE: i32 = 3;

/// What the next agent says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Verdict {
    /// It would take the state.
    pub(super) takes: bool,
    /// Why not.
    #[serde(default)]
    pub(super) reason: String,
}

/// Ends the process when nobody waits for it any more.
struct Kill(i32);

impl Drop for Kill {
    fn drop(&mut self) {
        signal_pids(&[self.0], libc::SIGKILL);
    }
}

/// Refuses an executable that does not say that it would take the state.
pub(super) async fn check(agent: &Arc<Agent>, program: &File) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::unavailable(format_args!("cannot write the state: {}", reason(&error)))
    };
    let mut out = Outgoing::new(Logs::Omitted).map_err(failed)?;
    let document = describe(agent, &mut out, None).map_err(failed)?;
    let state = out.finish(&document).map_err(failed)?;
    let (verdict, their_verdict) = output_pipe()?;
    let verdict = Channel::reading(verdict)?;
    let nowhere = discard()?;
    let child = agent.children.spawn_executable(
        program.as_fd(),
        &Command {
            argv: &succession::check_arguments(STATE),
            env: &BTreeMap::new(),
            cwd: "/",
            descriptors: &[
                (nowhere.as_fd(), 0),
                (their_verdict.as_fd(), 1),
                (nowhere.as_fd(), 2),
                (state.as_fd(), STATE),
            ],
            session: Session::Own,
            workload: None,
        },
    );
    drop(their_verdict);
    let child =
        child.map_err(|error| Error::not_taken(format_args!("the new agent does not start: {error}")))?;
    let kill = Kill(child.pid);
    let said = async {
        let text = read(&verdict).await;
        (text, child.ended.await)
    };
    let said = tokio::time::timeout(CHECK_MAX, said).await;
    let Ok((text, ending)) = said else {
        return Err(Error::not_taken(format_args!(
            "the new agent did not say within {} s whether it takes the state",
            CHECK_MAX.as_secs()
        )));
    };
    // Reaped: the number may be another process's soon.
    std::mem::forget(kill);
    match serde_json::from_slice::<Verdict>(&text) {
        Ok(Verdict { takes: true, .. }) => Ok(()),
        Ok(Verdict { reason, .. }) => {
            let shown: String = reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
            Err(Error::not_taken(format_args!("the new agent does not take the state: {shown}")))
        }
        Err(_) => {
            let code = ending.map_or(-1, |ending| ending.code());
            Err(Error::not_taken(format_args!(
                "the new agent does not say whether it takes the state, and ended with {code}"
            )))
        }
    }
}

async fn read(verdict: &Channel) -> Vec<u8> {
    let mut text = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(read @ 1..) = verdict.read(&mut buffer).await {
        let room = VERDICT_BYTES_MAX - text.len();
        text.extend_from_slice(&buffer[..read.min(room)]);
        tokio::task::yield_now().await;
    }
    text
}
