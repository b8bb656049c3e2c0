//! What `GET /files/watch?path=&recursive=` streams: server-sent events about a file, a folder, or a folder with all that
//! is in it. Ours beside the compatible routes.
//!
//! Each event has a name and JSON: first `ready` (everything that happens from now on is told), then [`Change`]s named
//! `change`; `overflow` says that some were lost, so that whoever wants to be sure looks again; `gone` is the last, when
//! what was watched is no longer there. A comment keeps a quiet stream alive. A thing may be told twice, never not at all.

use serde::{Deserialize, Serialize};

/// Path of the route.
pub const PATH: &str = "/files/watch";

/// Most streams at once; one more is refused (429).
pub const STREAMS_MAX: usize = 16;

/// Most folders that one stream watches; changes in others are lost, which it says.
pub const FOLDERS_MAX: usize = 8192;

/// Something that happened to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    /// What.
    #[serde(rename = "type")]
    pub kind: ChangeKind,
    /// To which, beneath the path as it was asked for.
    pub path: String,
    /// It is a folder.
    pub is_dir: bool,
    /// Where it was before it was moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ChangeKind {
    /// It is new here.
    Created,
    /// Its content changed.
    Modified,
    /// Whoever wrote to it is done.
    Closed,
    /// It is no longer here.
    Deleted,
    /// It has another name, and both names are watched.
    Moved,
    /// Its permissions, owner or times changed.
    Attributes,
}
