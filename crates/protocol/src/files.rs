//! Our additions to the file routes: every compatible `/files…` call also takes `root`, an absolute directory that
//! the path is resolved beneath. Nothing outside of it can be named, neither by `..` nor through symbolic links,
//! and `/proc` magic links never resolve. An absolute `path` must then lie under `root`; a relative one starts there.
//!
//! `GET /files/download` takes `offset` and `limit` in bytes beside the standard Range header, and answers
//! [`SIZE_HEADER`]. `POST /files/upload-v2` replaces atomically: readers see the old content or the new, never a mix.

/// Header with the whole file's size in bytes, also on a partial answer.
pub const SIZE_HEADER: &str = "x-file-size";

/// Longest path in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

/// Most entries in one listing; one more is refused (413).
pub const LIST_ENTRIES_MAX: usize = 200_000;
