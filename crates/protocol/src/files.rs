//! Our additions to the file routes: every compatible `/files…` call also takes `root`, an absolute directory that
//! the path is resolved beneath. Nothing outside of it can be named, neither by `..` nor through symbolic links,
//! and `/proc` magic links never resolve. An absolute `path` must then lie under `root`; a relative one starts there.
//!
//! `GET /files/download` takes `offset` and `limit` in bytes beside the standard Range header, and answers
//! [`SIZE_HEADER`]. `POST /files/upload-v2` replaces atomically: readers see the old content or the new, never a mix.
//!
//! Symbolic links, for copies of whole directories: an entry of `GET /files` that is one carries its text in
//! [`LINK_TARGET_FIELD`], and `POST /sandhaus/files/link` [`Link`] makes one (204), replacing a file or link of that
//! name atomically (409 for a directory). The text is never followed by either.

use serde::{Deserialize, Serialize};

/// Header with the whole file's size in bytes, also on a partial answer.
pub const SIZE_HEADER: &str = "x-file-size";

/// Longest path in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

/// Most entries in one listing; one more is refused (413).
pub const LIST_ENTRIES_MAX: usize = 200_000;

/// Path of the call that makes a symbolic link.
pub const LINK_PATH: &str = "/sandhaus/files/link";

/// Field of a listing's entry with the text of a symbolic link; absent for everything else.
pub const LINK_TARGET_FIELD: &str = "linkTarget";

/// A symbolic link to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Link {
    /// Directory that `path` is resolved beneath; absent: as the workload sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Where the link goes; its parent exists.
    pub path: String,
    /// What it says.
    pub target: String,
}
