//! `sandhaus start`, `stop ID`, `pause`, `resume` and `suspend`: another state for sandboxes that are there.

use std::process::ExitCode;

use anyhow::Result;
use sandhaus_client::wire::SessionInfo;
use sandhaus_sandbox::SandboxId;

use crate::{
    advice::print_error,
    cli::ServerArguments,
    config::Config,
    output::print,
    server::{Server, explain},
};

/// What is done to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    Stop,
    Pause,
    Resume,
    Suspend,
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Suspend => "suspend",
        }
    }
}

/// Changes each and prints its id; one that fails does not keep the others.
pub(crate) async fn each(
    server: &ServerArguments,
    sandboxes: &[String],
    config: &Config,
    change: Change,
) -> Result<ExitCode> {
    let server = Server::find(server, config)?;
    let mut status = ExitCode::SUCCESS;
    for sandbox in sandboxes {
        match one(&server, sandbox, change).await {
            Ok(session) => print(&format!("{}\n", session.id))?,
            Err(error) => {
                print_error(&error.context(format!("cannot {} {sandbox}", change.verb())));
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

async fn one(server: &Server, sandbox: &str, change: Change) -> Result<SessionInfo> {
    let id = SandboxId::parse(sandbox)?;
    let (client, id) = (server.client(), id.as_str());
    let changed = match change {
        Change::Start => client.start(id).await,
        Change::Stop => client.stop(id).await,
        Change::Pause => client.pause(id).await,
        Change::Resume => client.resume(id).await,
        Change::Suspend => client.suspend(id).await,
    };
    changed.map_err(explain)
}
