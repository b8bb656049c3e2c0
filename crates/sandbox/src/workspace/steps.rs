//! The sequences over workspaces, step by step, and the fault points that follow from them.

use crate::fault;

/// A step of a sequence: its name carries the sequence's.
pub(super) trait Step: Copy {
    /// The point's name, but for the moment.
    fn name(self) -> &'static str;
}

/// Making a workspace.
#[derive(Debug, Clone, Copy)]
pub(super) enum MakeStep {
    /// The directory aside.
    Directory,
    /// What holds its files.
    Files,
    /// When it was made.
    Record,
    /// All of it to the disk.
    Sync,
    /// Its name.
    Name,
}

impl MakeStep {
    const ALL: &[Self] = &[Self::Directory, Self::Files, Self::Record, Self::Sync, Self::Name];
}

impl Step for MakeStep {
    fn name(self) -> &'static str {
        match self {
            Self::Directory => "workspace_make.directory",
            Self::Files => "workspace_make.files",
            Self::Record => "workspace_make.record",
            Self::Sync => "workspace_make.sync",
            Self::Name => "workspace_make.name",
        }
    }
}

/// Removing a workspace.
#[derive(Debug, Clone, Copy)]
pub(super) enum RemoveStep {
    /// Its name.
    Name,
    /// Its files.
    Files,
    /// The rest.
    Directory,
}

impl RemoveStep {
    const ALL: &[Self] = &[Self::Name, Self::Files, Self::Directory];
}

impl Step for RemoveStep {
    fn name(self) -> &'static str {
        match self {
            Self::Name => "workspace_remove.name",
            Self::Files => "workspace_remove.files",
            Self::Directory => "workspace_remove.directory",
        }
    }
}

/// Does a step between its fault points.
pub(super) fn pass<T, E>(step: impl Step, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let hit = |moment| {
        if fault::is_armed() {
            fault::hit(&format!("{}.{moment}", step.name()));
        }
    };
    hit("before");
    let done = act()?;
    hit("after");
    Ok(done)
}

/// All fault points of workspaces.
pub fn fault_points() -> Vec<String> {
    let make = MakeStep::ALL.iter().map(|step| step.name());
    let remove = RemoveStep::ALL.iter().map(|step| step.name());
    make.chain(remove).flat_map(|name| [format!("{name}.before"), format!("{name}.after")]).collect()
}
