//! The sequences over snapshots, step by step, and the fault points that follow from them.

/// A step of a sequence: its name carries the sequence's.
pub(crate) trait Step: Copy {
    /// The point's name, but for the moment.
    fn name(self) -> &'static str;
}

/// Making a snapshot appear.
#[derive(Debug, Clone, Copy)]
pub(super) enum MakeStep {
    /// The directory aside.
    Directory,
    /// What it is.
    Record,
    /// All of it to the disk.
    Sync,
    /// Its place in the catalogue.
    Publish,
}

impl MakeStep {
    const ALL: &[Self] = &[Self::Directory, Self::Record, Self::Sync, Self::Publish];
}

impl Step for MakeStep {
    fn name(self) -> &'static str {
        match self {
            Self::Directory => "snapshot_make.directory",
            Self::Record => "snapshot_make.record",
            Self::Sync => "snapshot_make.sync",
            Self::Publish => "snapshot_make.publish",
        }
    }
}

/// Removing a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) enum RemoveStep {
    /// Its name.
    Name,
    /// Its place in the catalogue.
    Withdraw,
    /// Its files.
    Files,
}

impl RemoveStep {
    const ALL: &[Self] = &[Self::Name, Self::Withdraw, Self::Files];
}

impl Step for RemoveStep {
    fn name(self) -> &'static str {
        match self {
            Self::Name => "snapshot_remove.name",
            Self::Withdraw => "snapshot_remove.withdraw",
            Self::Files => "snapshot_remove.files",
        }
    }
}

/// Capturing a sandbox, as its actor does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CaptureStep {
    /// Its machine stands still.
    Freeze,
    /// The engine writes what there is.
    Write,
}

impl CaptureStep {
    const ALL: &[Self] = &[Self::Freeze, Self::Write];
}

impl Step for CaptureStep {
    fn name(self) -> &'static str {
        match self {
            Self::Freeze => "capture.freeze",
            Self::Write => "capture.write",
        }
    }
}

/// The names at which the runner of the steps calls [`crate::fault::hit`].
pub fn fault_points() -> Vec<String> {
    let make = MakeStep::ALL.iter().map(|step| step.name());
    let remove = RemoveStep::ALL.iter().map(|step| step.name());
    let capture = CaptureStep::ALL.iter().map(|step| step.name());
    make.chain(remove)
        .chain(capture)
        .flat_map(|name| ["before", "after"].map(|side| format!("{name}.{side}")))
        .collect()
}
