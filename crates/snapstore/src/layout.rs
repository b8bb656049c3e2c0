//! Where things lie in a store, beneath `snapshots/`:
//!
//! ```text
//! NAME.qcow2                one disk and nothing else: the object is the file
//! NAME.qcow2.json           its manifest; without one the disk can be pulled all the same, as another tool left it
//! NAME/FILE                 several files
//! NAME/REVISION/FILE        the same while a push replaces them
//! NAME/snapshot.json        their manifest: the snapshot is there when this is
//! ```
//!
//! A push never writes to an object that the present manifest names, but for the disk of the first form, which is replaced
//! as a whole.

use crate::name::{DISK_SUFFIX, FileName, Name, SIDECAR_SUFFIX};

/// The manifest's name among the files of a snapshot.
pub(crate) const MANIFEST: &str = "snapshot.json";

/// The disk of the first form.
pub(crate) fn disk(name: &Name) -> String {
    format!("{name}{DISK_SUFFIX}")
}

/// Its manifest.
pub(crate) fn sidecar(name: &Name) -> String {
    format!("{name}{DISK_SUFFIX}{SIDECAR_SUFFIX}")
}

/// What all keys of the second form begin with.
pub(crate) fn folder(name: &Name) -> String {
    format!("{name}/")
}

/// Its manifest.
pub(crate) fn manifest(name: &Name) -> String {
    format!("{name}/{MANIFEST}")
}

/// One of its files.
pub(crate) fn file(name: &Name, file: &FileName) -> String {
    format!("{name}/{file}")
}

/// The same while what is at [`file`] is still needed.
pub(crate) fn revised_file(name: &Name, revision: &str, file: &FileName) -> String {
    format!("{name}/{revision}/{file}")
}

/// The snapshot that an object or folder right beneath `snapshots/` belongs to, by the end of its key.
pub(crate) fn owner(entry: &str) -> Option<(Name, Form)> {
    let (text, form) = match (entry.strip_suffix('/'), entry.strip_suffix(DISK_SUFFIX)) {
        (Some(folder), _) => (folder, Form::Folder),
        (None, Some(disk)) => (disk, Form::Disk),
        (None, None) => return None,
    };
    Name::parse(text).ok().map(|name| (name, form))
}

/// The two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One disk.
    Disk,
    /// Several files.
    Folder,
}
