//! `sandhaus inspect`: everything known about a sandbox.

use std::process::ExitCode;

use anyhow::Result;
use sandhaus_client::wire::{SessionInfo, Stats};
use sandhaus_protocol::process::Process;
use sandhaus_sandbox::SandboxId;
use serde::Serialize;

use crate::{
    cli::{InspectArguments, Output},
    config::Config,
    output::{Table, human_bytes, print, print_json},
    server::{Server, explain},
    toolbox::processes,
};

/// Status of a sandbox whose agent answers.
const RUNNING: &str = "running";

/// What is printed.
#[derive(Serialize)]
struct Inspection {
    #[serde(flatten)]
    session: SessionInfo,
    /// Absent where it does not run.
    stats: Option<Stats>,
    /// Processes started through the server; absent where it does not run.
    processes: Option<Vec<Process>>,
}

/// Prints it.
pub(crate) async fn inspect(arguments: &InspectArguments, config: &Config) -> Result<ExitCode> {
    let id = SandboxId::parse(&arguments.sandbox)?;
    let server = Server::find(&arguments.server, config)?;
    let session = server.client().get(id.as_str()).await.map_err(explain)?;
    let runs = session.status == RUNNING;
    let stats = match runs {
        true => Some(server.client().stats(id.as_str()).await.map_err(explain)?),
        false => None,
    };
    let processes = match runs {
        true => Some(processes(&server.toolbox(id.as_str())).await?),
        false => None,
    };
    let inspection = Inspection { session, stats, processes };
    match arguments.output {
        Output::Json => print_json(&inspection)?,
        Output::Table => print(&table(&inspection))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(inspection: &Inspection) -> String {
    let session = &inspection.session;
    let mut table = Table::new(["FIELD", "VALUE"]);
    table.row(["id", &session.id]);
    table.row(["name", session.name.as_deref().unwrap_or_default()]);
    table.row(["image", &session.image]);
    table.row(["status", &session.status]);
    table.row(["engine", &session.engine]);
    table.row(["security", &session.security]);
    table.row(["network", &session.network]);
    table.row(["cwd", &session.cwd]);
    table.row(["created", &session.created_at]);
    table.row(["expires", &session.expires_at]);
    for (name, value) in &session.labels {
        table.row(["label", &format!("{name}={value}")]);
    }
    if let Some(failure) = &session.failure {
        table.row(["failure", &format!("{}: {}", failure.kind, failure.message)]);
    }
    table.row([
        "processor limit",
        &limit(session.limits.cpus > 0.0, format!("{} cores", session.limits.cpus)),
    ]);
    let bytes = |amount: u64| limit(amount > 0, human_bytes(amount));
    table.row(["memory limit", &bytes(session.limits.memory_bytes)]);
    table.row(["disk limit", &bytes(session.limits.disk_bytes)]);
    table.row(["process limit", &limit(session.limits.pids > 0, session.limits.pids.to_string())]);
    if let Some(stats) = &inspection.stats {
        table.row(["memory used", &human_bytes(stats.memory_bytes)]);
        table.row(["processor used", &format!("{} µs", stats.cpu_usage_usec)]);
        table.row(["processes now", &stats.pids.to_string()]);
    }
    for process in inspection.processes.iter().flatten() {
        let state = match &process.exit {
            Some(exit) => format!("ended with {}", exit.exit_code),
            None => format!("runs as {}", process.pid),
        };
        table.row(["process", &format!("{} {state}: {}", process.id, process.argv.join(" "))]);
    }
    table.render()
}

fn limit(is_limited: bool, text: String) -> String {
    if is_limited { text } else { "none".to_owned() }
}
