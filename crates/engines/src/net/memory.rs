//! What an instance must undo on the host when its last machine is gone: interfaces that forward only for it. The table
//! of filters says so too, but a reload of the host's own rules takes that away; this file stays. It counts until the
//! host restarts, as the switches do.

use std::{collections::BTreeSet, io, path::PathBuf};

use rustix::{fs::CWD, io::Errno};

/// Different after every start of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A link that leads nowhere: there whole or not at all.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
}

impl Memory {
    /// In this file.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The interfaces by number; none if the host has restarted since.
    pub(super) fn read(&self) -> BTreeSet<u32> {
        let Ok(text) = rustix::fs::readlink(&self.path, Vec::new()) else { return BTreeSet::new() };
        let Ok(text) = text.into_string() else { return BTreeSet::new() };
        let mut words = text.split(' ');
        if words.next() != Some(&boot_id()) {
            return BTreeSet::new();
        }
        words.filter_map(|word| word.parse().ok()).collect()
    }

    /// Replaces what is written.
    pub(super) fn write(&self, interfaces: &BTreeSet<u32>) -> io::Result<()> {
        let text = interfaces.iter().fold(boot_id(), |text, index| format!("{text} {index}"));
        let fresh = self.path.with_extension("new");
        ignore_absent(rustix::fs::unlink(&fresh))?;
        rustix::fs::symlinkat(text, CWD, &fresh)?;
        Ok(rustix::fs::rename(fresh, &self.path)?)
    }

    /// There is nothing to undo any more.
    pub(super) fn clear(&self) -> io::Result<()> {
        ignore_absent(rustix::fs::unlink(&self.path))
    }
}

fn boot_id() -> String {
    // Without it, what was written before counts for nothing new and nothing wrong.
    fs_err::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

fn ignore_absent(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_until_the_host_restarts() {
        let scratch = tempfile::tempdir().expect("a directory");
        let memory = Memory::at(scratch.path().join("forwarding"));
        assert_eq!(memory.read(), BTreeSet::new());
        memory.clear().expect("absent is success");
        for interfaces in [BTreeSet::from([3]), BTreeSet::from([3, 5])] {
            memory.write(&interfaces).expect("written");
            assert_eq!(memory.read(), interfaces);
        }
        memory.clear().expect("cleared");
        assert_eq!(memory.read(), BTreeSet::new());
        rustix::fs::symlinkat("another-boot 3", CWD, &memory.path).expect("written");
        assert_eq!(memory.read(), BTreeSet::new());
    }
}
