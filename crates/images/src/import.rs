//! Import of archives and directories.

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Replace the name if it is taken.
    pub replace: bool,
}
