//! Names of images.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest image name.
pub const IMAGE_NAME_BYTES_MAX: usize = 128;

/// A checked image name: it begins with a letter or digit, goes on with these and `.`, `_`, `-`, `:`, and may have
/// components between slashes, none of them empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self> {
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        let valid = name.len() <= IMAGE_NAME_BYTES_MAX
            && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && name.bytes().all(letters)
            && name.split('/').all(|component| !matches!(component, "" | "." | ".."));
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            Err(Error::Name(name.chars().take(IMAGE_NAME_BYTES_MAX).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a file name. `%` is no letter of names, so no two names meet.
    pub(crate) fn file_name(&self) -> String {
        self.0.replace('/', "%2F")
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::parse(&name)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in
            ["a", "python", "python:3.12", "library/debian:bookworm", "a.b_c-d", "A1", &"x".repeat(128)]
        {
            assert_eq!(ImageName::parse(good).expect(good).as_str(), good);
        }
        let long = "x".repeat(129);
        for bad in [
            "", ".", "..", "-a", "/a", "a/", "a//b", "a/../b", "a/./b", "a b", "a\n", "a%2Fb", "ä", "a\0",
            &long,
        ] {
            assert!(matches!(ImageName::parse(bad), Err(Error::Name(_))), "{bad:?} was taken");
        }
    }

    #[test]
    fn file_names_differ_where_names_do() {
        let slash = ImageName::parse("a/b").unwrap().file_name();
        assert_eq!(slash, "a%2Fb");
        assert!(!slash.contains('/'));
    }
}
