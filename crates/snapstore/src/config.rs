//! Where a store is and how it is spoken to.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{Error, Result};

/// Bucket of those who name none.
pub const DEFAULT_BUCKET: &str = "daytona";

/// Region of those who name none: what stores that know no regions take for theirs.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Longest prefix within a bucket, in bytes.
const PREFIX_BYTES_MAX: usize = 512;

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where it is.
    pub location: Location,
    /// How long it may keep one waiting.
    pub patience: Patience,
    /// Size of the pieces that files are sent, checked and fetched in: [`Self::CHUNK_BYTES`], but for tests.
    pub chunk_bytes: u64,
}

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory, which may be shared between hosts.
    Directory(PathBuf),
    /// A bucket of an S3-compatible service.
    Bucket(Bucket),
}

/// A bucket of an S3-compatible service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What all keys in it begin with, without a slash at its end; empty: nothing.
    pub prefix: String,
    /// The service's address, `http://…` or `https://…`; absent: Amazon's own.
    pub endpoint: Option<String>,
    /// Region.
    pub region: String,
    /// Who asks.
    pub credentials: Option<Credentials>,
    /// Whether it may be spoken to without TLS.
    pub plain_http: PlainHttp,
}

/// Whether a store may be spoken to without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Only on this very machine.
    #[default]
    Loopback,
    /// Anywhere; others may then read what is sent.
    Anywhere,
}

/// Keys to a store.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Names who asks.
    pub access_key_id: String,
    /// Proves it.
    pub secret_access_key: String,
    /// Goes with keys that are valid for a while only.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// How long a store may keep one waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// How often a request that failed for a reason that may pass is made again.
    pub retries_max: u32,
    /// How long to wait before the first of them, about; each further one waits twice as long.
    pub delay: Duration,
    /// Longest wait between two tries, also where the store asks for a longer one.
    pub delay_max: Duration,
    /// How long a connection may take to come up.
    pub connect: Duration,
    /// How long nothing may move on a connection in either direction.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            retries_max: 7,
            delay: Duration::from_millis(200),
            delay_max: Duration::from_secs(20),
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(60),
        }
    }
}

/// What a configuration's `s3://bucket/prefix` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// A bucket, where it is named, and the prefix in it.
    Bucket(Option<String>, String),
}

impl std::str::FromStr for Place {
    type Err = Error;

    /// `s3://[bucket][/prefix]`, or an absolute path.
    fn from_str(text: &str) -> Result<Self> {
        let fault = |problem: &str| Error::Configuration(format!("{text:?} {problem}"));
        let Some(rest) = text.strip_prefix("s3://") else {
            if text.starts_with('/') && !text.contains('\0') {
                return Ok(Self::Directory(PathBuf::from(text)));
            }
            return Err(fault("must be s3://BUCKET, s3://BUCKET/PREFIX or an absolute path"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let component = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain);
        if !prefix.is_empty() && (prefix.len() > PREFIX_BYTES_MAX || !prefix.split('/').all(component)) {
            return Err(fault(
                "has a prefix that cannot be used: letters, digits, dots, hyphens, underscores, slashes",
            ));
        }
        let bucket = (!bucket.is_empty()).then(|| bucket.to_owned());
        if bucket.as_deref().is_some_and(|bucket| !is_bucket(bucket)) {
            return Err(fault("names no bucket: 3 to 63 lower-case letters, digits, dots and hyphens"));
        }
        Ok(Self::Bucket(bucket, prefix.to_owned()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Bucket(bucket, prefix) => {
                write!(f, "s3://{}", bucket.as_deref().unwrap_or_default())?;
                if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
            }
        }
    }
}

/// Whether a bucket can be called that.
pub fn is_bucket(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    (3..=63).contains(&name.len())
        && name.bytes().all(plain)
        && edge(name.bytes().next())
        && edge(name.bytes().last())
        && !name.contains("..")
}

impl StoreConfig {
    /// Usual size of a piece.
    pub const CHUNK_BYTES: u64 = 16 << 20;

    /// A store at this place, spoken to as usual.
    pub fn at(location: Location) -> Self {
        Self { location, patience: Patience::default(), chunk_bytes: Self::CHUNK_BYTES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        let bucket = |name: &str, prefix: &str| Place::Bucket(Some(name.to_owned()), prefix.to_owned());
        for (text, place) in [
            ("/srv/snapshots", Place::Directory("/srv/snapshots".into())),
            ("s3://images", bucket("images", "")),
            ("s3://images/", bucket("images", "")),
            ("s3://images/team/a.b/", bucket("images", "team/a.b")),
            ("s3://", Place::Bucket(None, String::new())),
            ("s3:///team", Place::Bucket(None, "team".to_owned())),
        ] {
            assert_eq!(text.parse::<Place>().unwrap(), place, "{text}");
        }
        for text in
            ["", "images", "./x", "http://x", "s3://UP", "s3://ab", "s3://abc/..", "s3://abc//x", "s3://a..b"]
        {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
        assert_eq!(bucket("images", "x").to_string(), "s3://images/x");
    }

    #[test]
    fn keys_are_not_shown() {
        let credentials = Credentials {
            access_key_id: "id-1".into(),
            secret_access_key: "secret-1".into(),
            session_token: Some("token-1".into()),
        };
        let shown = format!("{credentials:?}");
        assert!(["id-1", "secret-1", "token-1"].iter().all(|text| !shown.contains(text)), "{shown}");
    }
}
