//! `sandhaus version`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{output::print, spelling::CalledAs};

/// Prints the version.
pub(crate) fn version(called_as: CalledAs) -> Result<ExitCode> {
    let (version, target) = (env!("CARGO_PKG_VERSION"), env!("SANDHAUS_TARGET"));
    match called_as {
        CalledAs::Sandhaus => print(&format!("sandhaus {version} ({target})\n"))?,
        CalledAs::Sandkasten => print(&format!("sandkasten version {version} (sandhaus)\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}
