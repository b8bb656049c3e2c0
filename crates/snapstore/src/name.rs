//! Names of snapshots and of their files: what becomes part of a key or of a path is checked once, here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a snapshot of one disk is called in the store after its name.
pub(crate) const DISK_SUFFIX: &str = ".qcow2";

/// What its manifest is called after that.
pub(crate) const SIDECAR_SUFFIX: &str = ".json";

/// Name of a snapshot in a store: 1 to 128 letters, digits, dots, hyphens and underscores, beginning with a letter or a
/// digit, and not ending as the key of another snapshot's disk does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks a name.
    pub fn parse(text: &str) -> Result<Self> {
        let fault = |problem| Error::Name { name: text.to_owned(), problem };
        if !is_plain(text, Self::BYTES_MAX) || !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(fault(
                "it must be 1 to 128 letters, digits, dots, hyphens and underscores, and begin with a letter or digit",
            ));
        }
        if text.ends_with(DISK_SUFFIX) || text.ends_with(&format!("{DISK_SUFFIX}{SIDECAR_SUFFIX}")) {
            return Err(fault("it ends in .qcow2, as the disk of another snapshot does there"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a file of a snapshot: one component of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct FileName(String);

impl FileName {
    /// Longest name in bytes.
    const BYTES_MAX: usize = 128;

    /// Checks a name; nothing that begins with a dot is one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let plain = is_plain(text, Self::BYTES_MAX) && !text.starts_with('.');
        plain.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FileName {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no name of a file"))
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain(text: &str, bytes_max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= bytes_max && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "9", "warm-1.2_x", "Foo.qcow", &"x".repeat(128)] {
            assert_eq!(Name::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "ä", "a\n", "x.qcow2", "x.qcow2.json", &"x".repeat(129)] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_are_one_component() {
        for good in ["disk.qcow2", "0.qcow2", "memory-ranges", "_x"] {
            assert_eq!(FileName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", ".hidden", "a\0"] {
            assert!(FileName::parse(bad).is_none(), "{bad:?}");
        }
    }
}
