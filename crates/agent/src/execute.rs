//! `POST /process/execute`: one command to its end, both streams in one text.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, RawFd},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::post};
use sandhaus_protocol::toolbox::{ExecuteReply, ExecuteRequest};

use crate::{
    agent::Agent,
    error::{Error, Result},
    process::Leash,
    sys::{Channel, Command, Family, Script, Session, SpawnError, discard, output_pipe},
};

/// Most bytes of output kept for the answer; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Bytes read from the command at once.
const READ_BYTES: usize = 32 * 1024;

/// Longest command passed as an argument; the kernel takes 128 KiB.
pub(crate) const ARGUMENT_BYTES_MAX: usize = 100 * 1024;

/// Status of a command that could not be started.
pub(crate) const NOT_STARTED: i32 = -1;

/// The shell for one-off commands and terminals: zsh or bash where the system lists one, else the environment's, else
/// sh. Copies under `/usr/bin` are preferred.
pub(crate) fn login_shell(agent: &Agent) -> String {
    let listed = std::fs::read_to_string("/etc/shells").unwrap_or_default();
    for name in ["zsh", "bash"] {
        let mut places: Vec<&str> =
            listed.lines().map(str::trim).filter(|line| line.ends_with(&format!("/{name}"))).collect();
        places.sort_by_key(|place| !place.starts_with("/usr/bin/"));
        if let Some(place) = places.into_iter().find(|place| Path::new(place).exists()) {
            return place.to_owned();
        }
    }
    agent.environment().remove("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "sh".to_owned())
}

/// Checks the names of variables as the contract has them.
pub(crate) fn check_variable(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if first && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(());
    }
    Err(Error::invalid(format_args!("invalid environment variable name {name:?}")))
}

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/process/execute", post(execute))
}

/// A command that runs to its end, both of whose streams are one text.
pub(crate) struct Shot<'a> {
    /// Program and arguments.
    pub(crate) argv: &'a [String],
    /// Added to the environment.
    pub(crate) envs: Option<BTreeMap<String, String>>,
    /// Where it starts.
    pub(crate) cwd: &'a str,
    /// What it reads.
    pub(crate) stdin: BorrowedFd<'a>,
    /// What else it gets, and under which numbers.
    pub(crate) descriptors: &'a [(BorrowedFd<'a>, RawFd)],
    /// How long it may take.
    pub(crate) limit: Option<Duration>,
}

/// How a [`Shot`] went.
pub(crate) enum Outcome {
    /// It ran.
    Ended {
        /// Its status.
        exit_code: i32,
        /// What it printed.
        output: String,
    },
    /// There is no such program, or none that can be executed, or no such directory.
    NotStarted(SpawnError),
}

impl Shot<'_> {
    /// Runs it, and `beside` as long as it runs. A caller that goes away takes the command along.
    pub(crate) async fn run(self, agent: &Arc<Agent>, beside: impl Future<Output = ()>) -> Result<Outcome> {
        let mark = Family::new_mark();
        let mut env = agent.environment();
        env.extend(self.envs.unwrap_or_default());
        env.insert(Family::MARK.to_owned(), mark.clone());
        let (ours, theirs) = output_pipe()?;
        let output = Channel::reading(ours)?;
        let mut descriptors = vec![(self.stdin, 0), (theirs.as_fd(), 1), (theirs.as_fd(), 2)];
        descriptors.extend(self.descriptors);
        let child = agent.children.spawn(&Command {
            argv: self.argv,
            env: &env,
            cwd: self.cwd,
            descriptors: &descriptors,
            session: Session::Own,
            workload: agent.spawn_identity(),
        });
        drop(theirs);
        let child = match child {
            Ok(child) => child,
            Err(error @ (SpawnError::Exhausted(_) | SpawnError::Failed(..) | SpawnError::Invalid(_))) => {
                return Err(error.into());
            }
            Err(error @ (SpawnError::NotFound | SpawnError::NotExecutable(_) | SpawnError::Directory(_))) => {
                return Ok(Outcome::NotStarted(error));
            }
        };
        let leash = Leash::new(agent, Family { root: child.pid, mark });
        let run = async {
            let run = async {
                let collected = collect(&output).await;
                (collected, child.ended.await)
            };
            let mut run = pin!(run);
            tokio::select! {
                // What is beside may be dropped half-way: the command has ended.
                ended = &mut run => ended,
                () = beside => run.await,
            }
        };
        let ended = match self.limit {
            None => Ok(run.await),
            Some(limit) => tokio::time::timeout(limit, run).await,
        };
        let Ok((collected, ending)) = ended else {
            leash.pull().await;
            return Err(Error::execution_timeout());
        };
        leash.release();
        let exit_code = ending.map_or(NOT_STARTED, |ending| ending.code());
        Ok(Outcome::Ended { exit_code, output: text(collected) })
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A time limit in seconds as the contract has it: none where it is absent or zero.
pub(crate) fn time_limit(seconds: Option<i64>) -> Result<Option<Duration>> {
    match u64::try_from(seconds.unwrap_or(0)) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(Error::invalid("timeout is negative")),
    }
}

/// Checks the variables of a request.
pub(crate) fn check_variables(envs: Option<&BTreeMap<String, String>>) -> Result<()> {
    envs.into_iter().flat_map(BTreeMap::keys).try_for_each(|name| check_variable(name))
}

/// `POST /process/execute`.
pub(crate) async fn execute(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ExecuteRequest>,
) -> Result<Json<ExecuteReply>> {
    if request.command.trim().is_empty() {
        return Err(Error::invalid("command is required"));
    }
    let limit = time_limit(request.timeout)?;
    check_variables(request.envs.as_ref())?;
    let shell = login_shell(&agent);
    // A longer text is the shell's standard input, as it cannot be an argument.
    let (argv, stdin) = if request.command.len() <= ARGUMENT_BYTES_MAX {
        (vec![shell, "-c".to_owned(), request.command], discard()?)
    } else {
        (vec![shell], Script::new()?.into_readable(&[request.command.as_bytes()])?)
    };
    let shot = Shot {
        argv: &argv,
        envs: request.envs,
        cwd: &agent.directory(request.cwd.as_deref()),
        stdin: stdin.as_fd(),
        descriptors: &[],
        limit,
    };
    Ok(Json(match shot.run(&agent, std::future::pending()).await? {
        Outcome::Ended { exit_code, output } => ExecuteReply { exit_code, result: output },
        Outcome::NotStarted(error) => ExecuteReply { exit_code: NOT_STARTED, result: error.to_string() },
    }))
}

/// Everything written until the last writer is gone, up to the limit.
async fn collect(output: &Channel) -> Vec<u8> {
    let mut collected = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX - collected.len();
        collected.extend_from_slice(&buffer[..read.min(room)]);
        tokio::task::yield_now().await;
    }
    collected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_names() {
        for right in ["A", "_a1", "PATH"] {
            assert!(check_variable(right).is_ok(), "{right}");
        }
        for wrong in ["", "1A", "A-B", "A=B", "ä"] {
            assert!(check_variable(wrong).is_err(), "{wrong}");
        }
    }
}
