//! `sandhaus exec`: a command in a sandbox that is there.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use sandhaus_protocol::process::Spawn;
use sandhaus_sandbox::SandboxId;

use crate::{
    advice::print_failure,
    attach::{Ending, Input, attach},
    cli::ExecArguments,
    config::Config,
    interrupt::Signals,
    server::Server,
    terminal,
};

/// Runs the command.
pub(crate) async fn exec(arguments: &ExecArguments, config: &Config) -> Result<ExitCode> {
    let id = SandboxId::parse(&arguments.sandbox)?;
    let env = crate::commands::run::environment(&arguments.env)?;
    let input = Input::choose(arguments.interactive, arguments.tty);
    let spawn = spawn_request(
        &arguments.command,
        env,
        arguments.workdir.clone(),
        arguments.tty,
        input,
        arguments.timeout,
    )?;
    let mut signals = Signals::listen()?;
    let server = Server::find(&arguments.server, config)?;
    let toolbox = server.toolbox(id.as_str());
    let ending = attach(&toolbox, &spawn, input, &mut signals)
        .await
        .with_context(|| format!("run in sandbox {id}"))?;
    report_start_failure(&arguments.command, &ending);
    Ok(ExitCode::from(ending.status()))
}

/// The process that the flags of `run` and `exec` describe. It ends with whoever started it.
pub(crate) fn spawn_request(
    command: &[String],
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    tty: bool,
    input: Input,
    timeout: Option<Duration>,
) -> Result<Spawn> {
    let timeout_ms = match timeout {
        Some(limit) => u64::try_from(limit.as_millis()).context("the time limit is too long")?,
        None => 0,
    };
    Ok(Spawn {
        argv: command.to_vec(),
        env,
        cwd,
        tty: tty.then(terminal::size),
        stdin: input != Input::Empty,
        timeout_ms,
        kill_on_disconnect: true,
    })
}

/// Says why a command could not be started; its status alone (127, 126) would not.
pub(crate) fn report_start_failure(command: &[String], ending: &Ending) {
    if let Ending::Exited(exit) = ending
        && let Some(error) = &exit.error
    {
        let program = command.first().map_or("", String::as_str);
        print_failure(&format!("cannot run {program}: {error}"));
    }
}
