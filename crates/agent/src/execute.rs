//! `POST /process/execute`: one command to its end, both streams in one text.

use std::{os::fd::AsFd as _, path::Path, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, routing::post};
use sandhaus_protocol::toolbox::{ExecuteReply, ExecuteRequest};

use crate::{
    agent::Agent,
    error::{Error, Result},
    process::kill_family,
    sys::{Channel, Command, Family, Script, Session, SpawnError, discard, output_pipe},
};

/// Most bytes of output kept for the answer; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Bytes read from the command at once.
const READ_BYTES: usize = 32 * 1024;

/// Longest command passed as an argument; the kernel takes 128 KiB.
pub(crate) const ARGUMENT_BYTES_MAX: usize = 100 * 1024;

/// Status of a command that could not be started.
const NOT_STARTED: i32 = -1;

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

/// Kills the command when its caller goes away before it has ended.
struct Kill {
    agent: Arc<Agent>,
    family: Option<Family>,
}

impl Drop for Kill {
    fn drop(&mut self) {
        if let Some(family) = self.family.take() {
            let agent = Arc::clone(&self.agent);
            tokio::spawn(async move { kill_family(&agent, &family).await });
        }
    }
}

/// `POST /process/execute`.
pub(crate) async fn execute(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ExecuteRequest>,
) -> Result<Json<ExecuteReply>> {
    if request.command.trim().is_empty() {
        return Err(Error::invalid("command is required"));
    }
    let timeout = match request.timeout.unwrap_or(0) {
        0 => None,
        seconds => match u64::try_from(seconds) {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => return Err(Error::invalid("timeout is negative")),
        },
    };
    for name in request.envs.iter().flat_map(|envs| envs.keys()) {
        check_variable(name)?;
    }
    let mark = Family::new_mark();
    let mut env = agent.environment();
    env.extend(request.envs.unwrap_or_default());
    env.insert(Family::MARK.to_owned(), mark.clone());
    let shell = login_shell(&agent);
    // A longer text is the shell's standard input, as it cannot be an argument.
    let (argv, stdin) = if request.command.len() <= ARGUMENT_BYTES_MAX {
        (vec![shell, "-c".to_owned(), request.command], discard()?)
    } else {
        (vec![shell], Script::new()?.into_readable(&[request.command.as_bytes()])?)
    };
    let (ours, theirs) = output_pipe()?;
    let output = Channel::reading(ours)?;
    let child = agent.children.spawn(&Command {
        argv: &argv,
        env: &env,
        cwd: request.cwd.as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or(&agent.workdir),
        descriptors: &[(stdin.as_fd(), 0), (theirs.as_fd(), 1), (theirs.as_fd(), 2)],
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
            return Ok(Json(ExecuteReply { exit_code: NOT_STARTED, result: error.to_string() }));
        }
    };
    let family = Family { root: child.pid, mark };
    let mut kill = Kill { agent: Arc::clone(&agent), family: Some(family.clone()) };
    let run = async {
        let collected = collect(&output).await;
        (collected, child.ended.await)
    };
    let ended = match timeout {
        None => Ok(run.await),
        Some(timeout) => tokio::time::timeout(timeout, run).await,
    };
    let Ok((collected, ending)) = ended else {
        kill_family(&agent, &family).await;
        kill.family = None;
        return Err(Error::execution_timeout());
    };
    kill.family = None;
    let exit_code = ending.map_or(NOT_STARTED, |ending| ending.code());
    Ok(Json(ExecuteReply { exit_code, result: String::from_utf8_lossy(&collected).into_owned() }))
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
