//! `sandhaus snapshot`: snapshots of a server, and those in its store.

use std::process::ExitCode;

use anyhow::{Context, Result};
use sandhaus_client::{
    Client, JobStream,
    wire::{CreateSnapshot, JobInfo, SnapshotInfo, StoredSnapshotInfo},
};
use sandhaus_sandbox::{SandboxId, SnapshotName};

use crate::{
    advice::{print_error, print_note},
    cli::{Output, SnapshotArguments, SnapshotCommand, Whence},
    commands::run::Quiet,
    config::Config,
    output::{Table, human_bytes, print, print_json},
    progress::{JobBar, Progress},
    server::{Server, explain},
};

/// Does what was asked for.
pub(crate) async fn snapshot(
    arguments: &SnapshotArguments,
    config: &Config,
    quiet: Quiet,
) -> Result<ExitCode> {
    let server = Server::find(&arguments.server, config)?;
    let (client, output) = (server.client(), arguments.output);
    match &arguments.command {
        SnapshotCommand::Create { memory, live, sandbox, name } => {
            let request = CreateSnapshot {
                session: SandboxId::parse(sandbox)?.to_string(),
                name: name.to_string(),
                kind: if *memory { "machine" } else { "disk" }.to_owned(),
                live: *live,
            };
            create(client, &request, output, quiet).await
        }
        SnapshotCommand::List { whence } => list(client, *whence, output).await,
        SnapshotCommand::Inspect { whence, names } => inspect(client, *whence, names, output).await,
        SnapshotCommand::Push { names } => {
            for name in names {
                let job = client.push_snapshot(name.as_str()).await.map_err(explain);
                transfer(job, name, Way::Push, output, quiet).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Pull { names } => {
            for name in names {
                let job = client.pull_snapshot(name.as_str()).await.map_err(explain);
                transfer(job, name, Way::Pull, output, quiet).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Rm { whence, names } => remove(client, *whence, names).await,
    }
}

async fn create(client: &Client, request: &CreateSnapshot, output: Output, quiet: Quiet) -> Result<ExitCode> {
    let progress = Progress::after_a_second("taking snapshot", quiet);
    let snapshot = client.create_snapshot(request).await.map_err(explain)?;
    drop(progress);
    match output {
        Output::Json => print_json(&snapshot)?,
        Output::Table => print(&format!("{}\n", snapshot.name))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, whence: Whence, output: Output) -> Result<ExitCode> {
    if whence.in_store {
        let stored = client.stored_snapshots().await.map_err(explain)?;
        match output {
            Output::Json => print_json(&stored)?,
            Output::Table => print(&stored_table(&stored))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let snapshots = client.snapshots().await.map_err(explain)?;
    match output {
        Output::Json => print_json(&snapshots)?,
        Output::Table => print(&table(&snapshots))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn inspect(
    client: &Client,
    whence: Whence,
    names: &[SnapshotName],
    output: Output,
) -> Result<ExitCode> {
    if whence.in_store {
        let mut found = Vec::new();
        for name in names {
            found.push(client.stored_snapshot(name.as_str()).await.map_err(explain)?);
        }
        match output {
            Output::Json => print_json(&found)?,
            Output::Table => print(&stored_table(&found))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut found = Vec::new();
    for name in names {
        found.push(client.snapshot(name.as_str()).await.map_err(explain)?);
    }
    match output {
        Output::Json => print_json(&found)?,
        Output::Table => print(&table(&found))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes each; one that fails does not keep the others.
async fn remove(client: &Client, whence: Whence, names: &[SnapshotName]) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in names {
        let removed = match whence.in_store {
            true => client.remove_stored_snapshot(name.as_str()).await,
            false => client.remove_snapshot(name.as_str()).await,
        };
        match removed.map_err(explain) {
            Ok(()) => print(&format!("{name}\n"))?,
            Err(error) => {
                print_error(&error.context(format!("cannot remove {name}")));
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

/// Which way a snapshot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the store.
    Push,
    /// From it.
    Pull,
}

impl Way {
    fn verb(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Push => "pushed",
            Self::Pull => "pulled",
        }
    }
}

/// Follows a transfer to its end. It goes on without us, too.
async fn transfer(
    job: Result<JobStream>,
    name: &SnapshotName,
    way: Way,
    output: Output,
    quiet: Quiet,
) -> Result<()> {
    let mut bar = JobBar::new(quiet);
    let mut last = JobInfo::default();
    let followed = async {
        let mut job = job?;
        while let Some(state) = job.next().await.map_err(explain)? {
            bar.show(&state.stage, state.done_bytes, state.total_bytes);
            last = state;
        }
        Ok::<_, anyhow::Error>(())
    }
    .await;
    bar.finish();
    followed.with_context(|| format!("{} {name}", way.verb()))?;
    match output {
        Output::Json => print_json(&last)?,
        Output::Table if quiet == Quiet::No => print_note(&format!("{} {name}", way.done())),
        Output::Table => {}
    }
    Ok(())
}

fn table(snapshots: &[SnapshotInfo]) -> String {
    let mut table = Table::new(["NAME", "KIND", "ENGINE", "SIZE", "CREATED", "SANDBOX", "IMAGE"]);
    for snapshot in snapshots {
        table.row([
            snapshot.name.as_str(),
            &snapshot.kind,
            &snapshot.engine,
            &human_bytes(snapshot.size_bytes),
            &snapshot.created_at,
            snapshot.session.as_deref().unwrap_or_default(),
            snapshot.image.as_deref().unwrap_or_default(),
        ]);
    }
    table.render()
}

fn stored_table(snapshots: &[StoredSnapshotInfo]) -> String {
    let mut table = Table::new(["NAME", "KIND", "SIZE"]);
    for snapshot in snapshots {
        table.row([snapshot.name.as_str(), &snapshot.kind, &human_bytes(snapshot.size_bytes)]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_tables() {
        let snapshot = SnapshotInfo {
            id: "0123456789abcdef".to_owned(),
            name: "ready".to_owned(),
            kind: "machine".to_owned(),
            engine: "qemu".to_owned(),
            session: Some("0123abcd-012".to_owned()),
            image: None,
            created_at: "2026-01-02T03:04:05Z".to_owned(),
            size_bytes: 5 << 20,
        };
        insta::assert_snapshot!(table(&[snapshot]), @r"
        NAME   KIND     ENGINE  SIZE   CREATED               SANDBOX       IMAGE
        ready  machine  qemu    5 MiB  2026-01-02T03:04:05Z  0123abcd-012  -
        ");
        let stored =
            StoredSnapshotInfo { name: "ready".to_owned(), kind: "disk".to_owned(), size_bytes: 1 << 30 };
        insta::assert_snapshot!(stored_table(&[stored]), @r"
        NAME   KIND  SIZE
        ready  disk  1 GiB
        ");
    }
}
