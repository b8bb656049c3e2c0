//! Stateless commands: each in a fresh shell, as many at once as come. A command is a process of the table in
//! [`crate::process`] whose two streams are one pipe, told in the words of [`sandhaus_protocol::shell`].

use std::{path::Path as FilePath, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State},
    response::Response,
};
use sandhaus_protocol::{
    process::Spawn,
    shell::{ShellExec, ShellExit, ShellStarted},
};
use tokio::sync::Notify;

use crate::{
    agent::Agent,
    error::Result,
    execute::ARGUMENT_BYTES_MAX,
    frames::{Feed, Look, Subject, Track, json},
    process::{Streams, Tracked, launch},
    shell::{StreamQuery, check_command, dialect::Dialect},
    sys::Script,
};

/// Number of the descriptor from which a shell reads a text that is too long for an argument.
const SCRIPT_FD: i32 = 9;

/// Where the shell finds it.
const SCRIPT_PATH: &str = "/proc/self/fd/9";

/// Where a command starts whose directory is gone.
const ROOT: &str = "/";

/// Most characters of a command's text in the list of processes.
const SHOWN_CHARS_MAX: usize = 200;

/// A stateless command as the subject of a feed.
struct Command {
    process: Arc<Tracked>,
    cwd: String,
}

impl Subject for Command {
    fn changed(&self) -> &Notify {
        self.process.changed()
    }

    fn look(&self) -> Look {
        let ended = self.process.exit().as_ref().map(|exit| {
            json(&ShellExit {
                exit_code: exit.exit_code,
                cwd: self.cwd.clone(),
                duration_ms: exit.duration_ms,
                timed_out: exit.timed_out,
                shell_replaced: false,
            })
        });
        Look { base: Some(0), ended: ended.map(|exit| ([self.process.output().end(); 2], exit)) }
    }
}

fn feed(agent: &Agent, process: Arc<Tracked>, offset: u64) -> Feed {
    let track = Track::stdout(process.output(), offset);
    let started = json(&ShellStarted { exec_id: process.id });
    Feed::new(Arc::new(Command { process, cwd: directory(agent) }), vec![track], started)
}

/// Where commands start.
fn directory(agent: &Agent) -> String {
    if FilePath::new(&agent.workdir).is_dir() { agent.workdir.clone() } else { ROOT.to_owned() }
}

/// `POST /sandhaus/script`.
pub(crate) async fn exec(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ShellExec>,
) -> Result<Response> {
    check_command(&request.cmd)?;
    let shell = Dialect::choose(&agent.shell).program().to_owned();
    let shown: String = request.cmd.chars().take(SHOWN_CHARS_MAX).collect();
    let shown = vec![shell.clone(), "-c".to_owned(), shown];
    let (argv, script) = if request.cmd.len() <= ARGUMENT_BYTES_MAX {
        (vec![shell, "-c".to_owned(), request.cmd], None)
    } else {
        let script = Script::new()?;
        script.replace(&[request.cmd.as_bytes(), b"\n"])?;
        (vec![shell, SCRIPT_PATH.to_owned()], Some(script))
    };
    let spawn =
        Spawn { argv, cwd: Some(directory(&agent)), timeout_ms: request.timeout_ms, ..Spawn::default() };
    let descriptor = script.as_ref().map(|script| (script.descriptor(), SCRIPT_FD));
    let process = launch(&agent, &spawn, Streams::joined()?, shown, descriptor)?;
    // Said where whoever asked looks for it.
    let trouble = process.exit().as_ref().and_then(|exit| exit.error.clone());
    if let Some(trouble) = trouble {
        process.output().append(format!("cannot start a shell: {trouble}\n").as_bytes());
    }
    Ok(feed(&agent, process, 0).respond().await)
}

/// `GET /sandhaus/script/{exec_id}`.
pub(crate) async fn resume(
    State(agent): State<Arc<Agent>>,
    Path(exec_id): Path<u64>,
    Query(query): Query<StreamQuery>,
) -> Result<Response> {
    let process = agent.processes.find(exec_id)?;
    Ok(feed(&agent, process, query.offset()).respond().await)
}
