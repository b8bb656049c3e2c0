//! Copies of image layers that carry a sandbox's own ids, for kernels and file systems that cannot map them.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Copies all layers into `into`, once; what is there whole already is used again.
pub(super) fn copy_all(layers: &[PathBuf], into: &Path, base: u32) -> io::Result<Vec<PathBuf>> {
    let _ = (layers, into, base);
    Err(io::ErrorKind::Unsupported.into())
}
