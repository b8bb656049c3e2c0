//! `sandhaus create` and `sandhaus fork`: sandboxes that stay on a server.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, Result, bail};
use sandhaus_client::wire::{CreateSession, ForkSession, SessionInfo};
use sandhaus_sandbox::SandboxId;

use crate::{
    cli::{CreateArguments, ForkArguments, Output},
    commands::run::{Quiet, described, environment},
    config::Config,
    output::{print, print_json},
    progress::Progress,
    server::{Server, explain},
    values::EnvironmentEntry,
};

/// Makes a sandbox and prints its id.
pub(crate) async fn create(arguments: &CreateArguments, config: &Config, quiet: Quiet) -> Result<ExitCode> {
    let ttl_seconds = match arguments.ttl {
        Some(ttl) => i64::try_from(ttl.as_secs().max(1)).context("the time is too long")?,
        None => 0,
    };
    let request = CreateSession {
        ttl_seconds,
        labels: labels(&arguments.labels)?,
        entrypoint: arguments.entrypoint.clone(),
        ..described(&arguments.sandbox)?
    };
    let server = Server::find(&arguments.server, config)?;
    let progress = Progress::after_a_second("starting sandbox", quiet);
    let session = server.client().create(&request).await.map_err(explain)?;
    drop(progress);
    for port in &session.ports {
        if quiet == Quiet::No {
            crate::advice::print_note(&format!("port {} is on 127.0.0.1:{}", port.port, port.host_port));
        }
    }
    show(&session, arguments.output)
}

/// Copies a sandbox and prints the copy's id.
pub(crate) async fn fork(arguments: &ForkArguments, config: &Config, quiet: Quiet) -> Result<ExitCode> {
    let id = SandboxId::parse(&arguments.sandbox)?;
    let request = ForkSession {
        name: arguments.name.clone().unwrap_or_default(),
        env: environment(&arguments.env)?,
        labels: labels(&arguments.labels)?,
    };
    let server = Server::find(&arguments.server, config)?;
    let progress = Progress::after_a_second("copying sandbox", quiet);
    let session = server.client().fork(id.as_str(), &request).await.map_err(explain)?;
    drop(progress);
    show(&session, arguments.output)
}

fn show(session: &SessionInfo, output: Output) -> Result<ExitCode> {
    match output {
        Output::Json => print_json(session)?,
        Output::Table => print(&format!("{}\n", session.id))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn labels(entries: &[EnvironmentEntry]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for entry in entries {
        let Some(value) = &entry.value else { bail!("label {:?} needs the form K=V", entry.name) };
        labels.insert(entry.name.clone(), value.clone());
    }
    Ok(labels)
}
