//! Names of images in registries: `[REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST]`.

use std::{fmt, net::IpAddr};

use crate::{Error, ImageName, Result, blob::BlobDigest};

/// The registry of a reference that names none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Where that one really answers.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";

/// An older name of it.
const DEFAULT_REGISTRY_INDEX: &str = "index.docker.io";

/// What comes before the names of its own images.
const DEFAULT_NAMESPACE: &str = "library/";

/// The tag of a reference that names neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// Longest reference.
const REFERENCE_BYTES_MAX: usize = 512;

/// Longest repository.
const REPOSITORY_BYTES_MAX: usize = 255;

/// Longest tag.
const TAG_BYTES_MAX: usize = 128;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<BlobDigest>,
}

impl Reference {
    /// Takes a reference apart, as people write it.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |problem| Error::Reference {
            reference: text.chars().take(REFERENCE_BYTES_MAX).collect(),
            problem,
        };
        if text.is_empty() || text.len() > REFERENCE_BYTES_MAX {
            return Err(refuse("it must have 1 to 512 characters"));
        }
        let plain = text.strip_prefix("docker://").unwrap_or(text);
        let (plain, digest) = match plain.split_once('@') {
            Some((plain, digest)) => {
                let digest = BlobDigest::parse(digest)
                    .ok_or_else(|| refuse("its digest must be sha256: and 64 hexadecimal digits"))?;
                (plain, Some(digest))
            }
            None => (plain, None),
        };
        let (plain, tag) = match plain.rsplit_once(':') {
            // Before a slash it is the port of the registry.
            Some((before, tag)) if !tag.contains('/') => (before, Some(tag)),
            _ => (plain, None),
        };
        let (registry, repository) = match plain.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DEFAULT_REGISTRY, plain),
        };
        let registry = if registry == DEFAULT_REGISTRY_INDEX { DEFAULT_REGISTRY } else { registry };
        let mut repository = repository.to_owned();
        if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            repository.insert_str(0, DEFAULT_NAMESPACE);
        }
        if !is_authority(registry) {
            return Err(refuse("its registry must be a host name and perhaps a port"));
        }
        if repository.len() > REPOSITORY_BYTES_MAX || !repository.split('/').all(is_component) {
            return Err(refuse("its repository must be lower case words between slashes"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("its tag must be letters, digits, dots, hyphens and underscores"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Its registry, as people name it.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where the registry answers: host and perhaps port.
    pub(crate) fn authority(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { &self.registry }
    }

    /// What it is called there.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// What names its manifest in the registry: the digest, else the tag.
    pub(crate) fn manifest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The name it gets here unless another is asked for: the last part of the repository.
    pub fn default_name(&self) -> Result<ImageName> {
        ImageName::parse(self.repository.rsplit('/').next().unwrap_or_default())
    }

    /// Whether the registry is on this very machine, where plain HTTP is nobody else's business.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(host_of(&self.registry))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The host of `host[:port]`, brackets taken off.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// Whether a host is this machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_authority(text: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => return host.parse::<std::net::Ipv6Addr>().is_ok(),
            Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                return rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port_is_one = port.is_none_or(|port| port.parse::<u16>().is_ok());
    port_is_one && !host.is_empty() && host.bytes().all(letters) && !host.starts_with(['.', '-'])
}

/// Lower case letters and digits, with single separators between them.
fn is_component(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separator = |byte: u8| b"._-".contains(&byte);
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| plain(*byte) || separator(*byte))
        && bytes.first().is_some_and(|byte| plain(*byte))
        && bytes.last().is_some_and(|byte| plain(*byte))
        && !text.contains("..")
}

fn is_tag(text: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() <= TAG_BYTES_MAX
        && !text.starts_with(['.', '-'])
        && !text.is_empty()
        && text.bytes().all(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_what_people_mean() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = format!("sha256:{hex}");
        for (text, whole, name) in [
            ("python", "docker.io/library/python:latest".to_owned(), "python"),
            ("python:3.12-slim", "docker.io/library/python:3.12-slim".to_owned(), "python"),
            ("docker://alpine", "docker.io/library/alpine:latest".to_owned(), "alpine"),
            ("index.docker.io/library/alpine:3", "docker.io/library/alpine:3".to_owned(), "alpine"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest".to_owned(), "redis"),
            ("ghcr.io/org/sub/app:v1", "ghcr.io/org/sub/app:v1".to_owned(), "app"),
            ("localhost/x", "localhost/x:latest".to_owned(), "x"),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1".to_owned(), "b"),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned(), "a"),
            (&format!("a@{digest}"), format!("docker.io/library/a@{digest}"), "a"),
            (&format!("r.io/a:t@{digest}"), format!("r.io/a:t@{digest}"), "a"),
        ] {
            let reference = Reference::parse(text).expect(text);
            assert_eq!(reference.to_string(), whole);
            assert_eq!(reference.default_name().expect(text).as_str(), name);
            assert_eq!(Reference::parse(&whole).expect("canonical"), reference);
        }
        assert_eq!(Reference::parse("x").unwrap().authority(), "registry-1.docker.io");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:00",
            "a@md5:00",
            "A",
            "a b",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a:-x",
            "host.io:99999/a",
            "ho st.io/a",
            "a\n",
            "ä",
            "https://host.io/a",
            "a..b",
            &"a".repeat(600),
        ] {
            assert!(matches!(Reference::parse(bad), Err(Error::Reference { .. })), "{bad:?} was taken");
        }
    }

    #[test]
    fn loopback_is_known() {
        for (text, loopback) in [
            ("localhost/x", true),
            ("localhost:5000/x", true),
            ("127.8.9.1:5000/x", true),
            ("[::1]:5000/x", true),
            ("localhost.example.org/x", false),
            ("127.0.0.1.example.org/x", false),
            ("x", false),
        ] {
            assert_eq!(Reference::parse(text).expect(text).is_loopback(), loopback, "{text}");
        }
    }
}
