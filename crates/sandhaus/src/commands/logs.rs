//! `sandhaus logs`: what a sandbox has printed, as far as it is kept.

use std::process::ExitCode;

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use sandhaus_protocol::{
    frame::{Decoder, Kind},
    process::Process,
    shell,
};
use sandhaus_sandbox::{
    SandboxId,
    toolbox::{Event, Toolbox},
};
use tokio::io::AsyncWriteExt;

use crate::{
    attach::Ending,
    cli::LogsArguments,
    commands::run::{ORIGIN_LABEL, ORIGIN_RUN},
    config::Config,
    interrupt::Signals,
    server::{Server, explain},
    toolbox::{get, percent_encoded, processes, whole},
};

/// What is shown.
enum Source {
    Shell(String),
    Process(u64),
}

/// Prints it.
pub(crate) async fn logs(arguments: &LogsArguments, config: &Config) -> Result<ExitCode> {
    let id = SandboxId::parse(&arguments.sandbox)?;
    let server = Server::find(&arguments.server, config)?;
    let toolbox = server.toolbox(id.as_str());
    let source = choose(arguments, &server, &toolbox, &id).await?;
    let mut signals = Signals::listen()?;
    tokio::select! {
        shown = show(&toolbox, &source, arguments) => shown.map(|()| ExitCode::SUCCESS),
        // Dropping the stream harms nothing: it only reads.
        signal = signals.end() => Ok(ExitCode::from(Ending::Interrupted(signal).status())),
    }
}

/// What was asked for; else the command of `run`; else the default shell.
async fn choose(
    arguments: &LogsArguments,
    server: &Server,
    toolbox: &Toolbox,
    id: &SandboxId,
) -> Result<Source> {
    if let Some(process) = arguments.process {
        return Ok(Source::Process(process));
    }
    if let Some(name) = &arguments.shell {
        return Ok(Source::Shell(name.clone()));
    }
    let session = server.client().get(id.as_str()).await.map_err(explain)?;
    if session.labels.get(ORIGIN_LABEL).is_some_and(|origin| origin == ORIGIN_RUN) {
        let first = processes(toolbox).await?.into_iter().map(|process| process.id).min();
        if let Some(first) = first {
            return Ok(Source::Process(first));
        }
    }
    Ok(Source::Shell(shell::DEFAULT.to_owned()))
}

async fn show(toolbox: &Toolbox, source: &Source, arguments: &LogsArguments) -> Result<()> {
    match source {
        Source::Shell(name) => show_shell(toolbox, name, arguments).await,
        Source::Process(id) => show_process(toolbox, *id, arguments).await,
    }
}

async fn show_shell(toolbox: &Toolbox, name: &str, arguments: &LogsArguments) -> Result<()> {
    let name = percent_encoded(name);
    let path = format!("{}/shell/{name}/log?offset=0&follow={}", sandhaus_protocol::PREFIX, arguments.follow);
    let mut body = get(toolbox, &path).await?;
    let mut decoder = Decoder::default();
    let mut stdout = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.context("the connection broke")?.into_data() else { continue };
        decoder.push(&bytes);
        while let Some(frame) = decoder.next_frame().map_err(|error| anyhow::anyhow!("{error}"))? {
            if frame.kind == Kind::Stdout {
                stdout.write_all(&frame.payload).await?;
            }
        }
        stdout.flush().await?;
    }
    Ok(())
}

async fn show_process(toolbox: &Toolbox, id: u64, arguments: &LogsArguments) -> Result<()> {
    // Without following, only what had been printed when we asked is shown.
    let until = match arguments.follow {
        true => None,
        false => {
            let path = format!("{}/process/{id}", sandhaus_protocol::PREFIX);
            Some(serde_json::from_slice::<Process>(&whole(get(toolbox, &path).await?).await?)?)
        }
    };
    let mut events = toolbox.process_output(id, 0, 0).await?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut stdout_end, mut stderr_end) = (0, 0);
    loop {
        if let Some(until) = &until
            && stdout_end >= until.stdout_bytes
            && stderr_end >= until.stderr_bytes
        {
            return Ok(());
        }
        match events.next().await? {
            Some(Event::Stdout(offset, bytes)) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
                stdout_end = offset + bytes.len() as u64;
            }
            Some(Event::Stderr(offset, bytes)) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
                stderr_end = offset + bytes.len() as u64;
            }
            Some(Event::Started(_) | Event::Gap(_) | Event::Ping | Event::Exit(_)) => {}
            None => return Ok(()),
        }
    }
}
