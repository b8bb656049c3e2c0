//! `sandhaus version`.

use std::process::ExitCode;

use anyhow::Result;

/// Prints the version.
pub(crate) fn version() -> Result<ExitCode> {
    crate::output::print(&format!("sandhaus {} ({})\n", env!("CARGO_PKG_VERSION"), env!("SANDHAUS_TARGET")))?;
    Ok(ExitCode::SUCCESS)
}
