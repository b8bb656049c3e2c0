//! `sandhaus rm`: removes sandboxes.

use std::process::ExitCode;

use anyhow::Result;
use sandhaus_sandbox::SandboxId;

use crate::{
    advice::{print_error, print_note},
    cli::RmArguments,
    config::Config,
    output::print,
    server::{Server, explain},
    spelling::CalledAs,
};

/// Answer status for a sandbox that never was.
const STATUS_NOT_FOUND: u16 = 404;

/// Removes each; one that fails does not keep the others.
pub(crate) async fn rm(arguments: &RmArguments, config: &Config, called_as: CalledAs) -> Result<ExitCode> {
    let server = Server::find(&arguments.server, config)?;
    let mut status = ExitCode::SUCCESS;
    for sandbox in &arguments.sandboxes {
        match remove(&server, sandbox, arguments).await {
            Ok(()) if called_as == CalledAs::Sandkasten => print_note(sandbox),
            Ok(()) => print(&format!("{}\n", crate::output::visible(sandbox)))?,
            Err(error) if called_as == CalledAs::Sandkasten && is_absent(&error) => {
                print_note(&format!("rm: {sandbox}: session not found or invalid"));
                status = ExitCode::FAILURE;
            }
            Err(error) => {
                print_error(&error.context(format!("cannot remove {sandbox}")));
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

/// Whether there is no such sandbox, or its id is none.
fn is_absent(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<sandhaus_client::Error>().and_then(sandhaus_client::Error::status);
    refused == Some(STATUS_NOT_FOUND) || error.is::<sandhaus_sandbox::Error>()
}

async fn remove(server: &Server, sandbox: &str, arguments: &RmArguments) -> Result<()> {
    let id = SandboxId::parse(sandbox)?;
    match server.client().delete(id.as_str()).await {
        Err(error) if error.status() == Some(STATUS_NOT_FOUND) && arguments.force => Ok(()),
        other => other.map_err(explain),
    }
}
