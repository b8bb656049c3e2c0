//! `sandhaus screenshot`: what the display of a sandbox shows, as a PNG.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};
use rustix::{stdio, termios::isatty};
use sandhaus_sandbox::SandboxId;

use crate::{
    advice::print_note,
    cli::ScreenshotArguments,
    commands::run::Quiet,
    config::Config,
    server::{Server, explain},
};

/// Takes and saves it.
pub(crate) async fn screenshot(
    arguments: &ScreenshotArguments,
    config: &Config,
    quiet: Quiet,
) -> Result<ExitCode> {
    let id = SandboxId::parse(&arguments.sandbox)?;
    let to_stdout = arguments.output.as_deref() == Some(Path::new("-"));
    if to_stdout && isatty(stdio::stdout()) {
        bail!("a picture is nothing for a terminal: send standard output to a file or a program");
    }
    let server = Server::find(&arguments.server, config)?;
    let picture = server.client().screenshot(id.as_str()).await.map_err(explain)?;
    if to_stdout {
        let mut output = std::io::stdout().lock();
        output.write_all(&picture)?;
        output.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = arguments.output.clone().unwrap_or_else(|| PathBuf::from(format!("{id}.png")));
    fs_err::write(&file, picture)?;
    if quiet == Quiet::No {
        print_note(&format!("saved {}", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}
