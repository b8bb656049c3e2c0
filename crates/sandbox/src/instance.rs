//! An instance: one data directory, held by a lock. Everything made in the kernel carries its id, so that two servers,
//! `run` without a server, and parallel tests never touch each other's sandboxes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A held data directory. The lock is freed by the kernel when the process ends, however it ends.
#[derive(Debug)]
pub struct Instance {
    id: String,
    dir: PathBuf,
}

/// Who holds a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Where its API listens, once it does.
    pub url: Option<String>,
}

impl Instance {
    /// Makes the directory if needed (0700) and takes its lock. [`crate::Kind::Conflict`] if another process holds it.
    pub fn acquire(dir: &Path) -> Result<Self> {
        todo!("{}", dir.display())
    }

    /// The id: 12 hex digits, made once per directory and kept in it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes down where the API listens, for [`Self::holder`].
    pub fn announce(&self, url: &str) -> Result<()> {
        todo!("{url}")
    }

    /// Who holds `dir`, if anyone does.
    pub fn holder(dir: &Path) -> Result<Option<Holder>> {
        todo!("{}", dir.display())
    }

    /// Takes every instance directly under `parent` whose holder is dead, for sweeping. The caller ends what its
    /// engines find there and then calls [`Self::remove`].
    pub fn take_dead(parent: &Path) -> Result<Vec<Self>> {
        todo!("{}", parent.display())
    }

    /// Removes the directory of an instance of which nothing is left.
    pub fn remove(self) -> Result<()> {
        todo!()
    }
}
