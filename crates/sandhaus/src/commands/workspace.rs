//! `sandhaus workspace`: the workspaces of a server.

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use sandhaus_client::{Client, wire::WorkspaceInfo};

use crate::{
    advice::{Advice, print_error},
    cli::{Output, Place, WorkspaceArguments, WorkspaceCommand, WorkspaceFile},
    config::Config,
    output::{Table, human_bytes, print, print_json, visible},
    server::{Server, explain},
};

/// Does what was asked for.
pub(crate) async fn workspace(arguments: &WorkspaceArguments, config: &Config) -> Result<ExitCode> {
    let server = Server::find(&arguments.server, config)?;
    let client = server.client();
    match &arguments.command {
        WorkspaceCommand::List { output, directory: None } => list(client, *output).await,
        WorkspaceCommand::List { output, directory: Some(directory) } => {
            list_files(client, directory, *output).await
        }
        WorkspaceCommand::Rm { force, workspaces } => {
            let mut status = ExitCode::SUCCESS;
            for workspace in workspaces {
                let name = workspace.as_str();
                let removed = if *force {
                    client.remove_workspace_by_force(name).await
                } else {
                    client.remove_workspace(name).await
                };
                match removed {
                    Ok(()) => print(&format!("{name}\n"))?,
                    Err(error) => {
                        print_error(&explain(error).context(format!("cannot remove workspace {name}")));
                        status = ExitCode::FAILURE;
                    }
                }
            }
            Ok(status)
        }
        WorkspaceCommand::Cp { source, destination } => copy(client, source, destination).await,
        WorkspaceCommand::Cat { file } => {
            let mut stdout = std::io::stdout().lock();
            read(client, file, &mut stdout).await?;
            stdout.flush()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(client: &Client, output: Output) -> Result<ExitCode> {
    let workspaces = client.workspaces().await.map_err(explain)?;
    match output {
        Output::Json => print_json(&workspaces)?,
        Output::Table => {
            let mut table = Table::new(["WORKSPACE", "SIZE", "LIMIT", "SANDBOXES", "CREATED"]);
            for workspace in &workspaces {
                let WorkspaceInfo { id, created_at, used_bytes, quota_bytes, session_count, .. } = workspace;
                let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human_bytes);
                table.row([
                    id,
                    &bytes(*used_bytes),
                    &bytes(*quota_bytes),
                    &session_count.to_string(),
                    created_at,
                ]);
            }
            print(&table.render())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list_files(client: &Client, directory: &WorkspaceFile, output: Output) -> Result<ExitCode> {
    let WorkspaceFile { workspace, path } = directory;
    let entries = client.list_workspace_files(workspace.as_str(), path).await.map_err(explain)?;
    match output {
        Output::Json => print_json(&entries)?,
        Output::Table => {
            let mut table = Table::new(["MODE", "SIZE", "MODIFIED", "NAME"]);
            for entry in &entries {
                table.row([
                    &*entry.mode,
                    &human_bytes(entry.size),
                    &entry.modified_at,
                    &visible(&entry.name),
                ]);
            }
            print(&table.render())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn copy(client: &Client, source: &Place, destination: &Place) -> Result<ExitCode> {
    match (source, destination) {
        (Place::Host(source), Place::Workspace(destination)) => {
            let WorkspaceFile { workspace, path } = destination;
            let path = named(path, source.file_name().and_then(|name| name.to_str()))?;
            let body = crate::body::stream(fs_err::File::open(source)?)?;
            let written = client.write_workspace_file(workspace.as_str(), &path, body).await;
            written.map_err(explain).with_context(|| format!("write {path} in workspace {workspace}"))?;
        }
        (Place::Workspace(source), Place::Host(destination)) => {
            let name = Path::new(&source.path).file_name().context("name a file in the workspace")?;
            let target = if destination.is_dir() { destination.join(name) } else { destination.clone() };
            // Aside first: a copy that breaks off must not pass for the file.
            let mut aside = target.clone().into_os_string();
            aside.push(".part");
            let mut file = fs_err::File::create(&aside)?;
            let copied = match read(client, source, &mut file).await {
                Ok(()) => fs_err::rename(&aside, &target).map_err(Into::into),
                Err(error) => Err(error),
            };
            if copied.is_err() {
                // The first error counts.
                let _ = fs_err::remove_file(&aside);
            }
            copied?;
        }
        (Place::Host(_), Place::Host(_)) | (Place::Workspace(_), Place::Workspace(_)) => {
            let remedy = "write the one in a workspace as WORKSPACE:PATH, the other as a path of this host";
            return Err(Advice::new("exactly one of both must be in a workspace", remedy).into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a file of this name goes: into what ends with a slash, or is the workspace itself.
fn named(path: &str, name: Option<&str>) -> Result<String> {
    if path.is_empty() || path.ends_with('/') {
        return Ok(format!("{path}{}", name.context("the source has no name to keep")?));
    }
    Ok(path.to_owned())
}

async fn read(client: &Client, file: &WorkspaceFile, into: &mut impl std::io::Write) -> Result<()> {
    let WorkspaceFile { workspace, path } = file;
    let mut content = client
        .read_workspace_file(workspace.as_str(), path)
        .await
        .map_err(explain)
        .with_context(|| format!("read {path} in workspace {workspace}"))?;
    while let Some(piece) = content.next().await.map_err(explain)? {
        into.write_all(&piece)?;
    }
    Ok(())
}
