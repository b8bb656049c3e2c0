//! Snapshots: what is left of a sandbox at one moment, for others to begin from. A named one stays until it is removed; one
//! without a name stands behind a fork and goes with the last sandbox made of it.

mod catalogue;
mod share;
mod steps;

use serde::{Deserialize, Serialize};

pub use catalogue::images_of;
pub(crate) use catalogue::{Held, Snapshots, Sync, Use};
pub use share::share;
pub use steps::fault_points;
pub(crate) use steps::{CaptureStep, Step};

use crate::types::{EngineName, ImageName, SandboxId, SandboxSpec, SnapshotId, SnapshotName, Source};

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// A disk: sandboxes made of it start cold.
    Disk,
    /// A disk and the memory of its machine, of one moment: sandboxes made of it go on from there.
    Machine,
}

/// How a snapshot may disturb its sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureMode {
    /// It is frozen while it is captured, or its file systems are: nothing of them is half written, and all that was
    /// written before is there.
    #[default]
    Frozen,
    /// It runs on: the disk is as after a power cut. Only [`SnapshotKind::Disk`], only where the engine can.
    Live,
}

/// A snapshot of this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its own name.
    pub id: SnapshotId,
    /// Its owner's name for it; absent: it stands behind a fork.
    pub name: Option<SnapshotName>,
    /// What it holds.
    pub kind: SnapshotKind,
    /// The engine that wrote it, and can read it.
    pub engine: EngineName,
    /// Of which sandbox it is; absent: it came from a store.
    pub sandbox: Option<SandboxId>,
    /// The image that it lies over, where it does not stand alone.
    pub image: Option<(ImageName, String)>,
    /// What that sandbox was made of: what one made of the snapshot is, unless its request says otherwise.
    pub spec: SandboxSpec,
    /// The image's defaults at that time.
    pub config: sandhaus_images::ImageConfig,
    /// When, milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// Bytes on disk; what is shared with images or other snapshots counts for each.
    pub size_bytes: u64,
}

impl Snapshot {
    /// Where the root of a sandbox that is made of it comes from.
    pub(crate) fn source(&self) -> Source {
        let memory = self.kind == SnapshotKind::Machine;
        Source::Snapshot { id: self.id.clone(), memory, image: self.image.clone() }
    }
}

/// A request for a snapshot.
#[derive(Debug, Clone)]
pub struct CreateSnapshot {
    /// Of which sandbox.
    pub sandbox: SandboxId,
    /// What it is to be called.
    pub name: SnapshotName,
    /// What it is to hold.
    pub kind: SnapshotKind,
    /// How it may disturb the sandbox.
    pub mode: CaptureMode,
}

/// What is done about a snapshot that has the wanted name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clash {
    /// The new one is refused.
    Refuse,
    /// The new one takes its place as soon as it is whole; until then the name means the old one.
    Replace,
}

/// A snapshot as a store has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// What it holds.
    pub kind: SnapshotKind,
    /// Bytes in the store.
    pub size_bytes: u64,
    /// Where it lies beneath the store's own place.
    pub path: String,
}
