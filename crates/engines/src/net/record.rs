//! What is written down of a machine's network, beside the machine: one line, as a link that leads nowhere, so it is there
//! whole or not at all.

use std::{io, path::Path};

use rustix::{fs::CWD, io::Errno};

/// The record in a machine's directory.
const RECORD: &str = "network";

/// A new one, before it takes the place of the old.
const FRESH_RECORD: &str = "network.new";

/// The line; `None` if there is none.
pub(crate) fn read(directory: &Path) -> Option<String> {
    let text = rustix::fs::readlink(directory.join(RECORD), Vec::new()).ok()?;
    text.into_string().ok()
}

/// Replaces the line.
pub(crate) fn write(directory: &Path, text: &str) -> io::Result<()> {
    let (fresh, record) = (directory.join(FRESH_RECORD), directory.join(RECORD));
    match rustix::fs::unlink(&fresh) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::symlinkat(text, CWD, &fresh)?;
    Ok(rustix::fs::rename(fresh, record)?)
}
