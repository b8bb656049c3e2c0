//! Import of archives and directories.

use std::path::Path;

use crate::{Error, Result, root::Limits};

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Replace the name if it is taken.
    pub replace: bool,
}

/// Fills the empty directory `tree` from an archive or directory.
pub(crate) fn fill(
    source: &Path,
    tree: &Path,
    catalogue: &Path,
    limits: Limits,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let _ = (tree, catalogue, limits, progress);
    Err(Error::Source(source.display().to_string()))
}
