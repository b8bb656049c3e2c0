//! Who we are towards registries: what the caller says, else what Docker's configuration file has.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::header::HeaderValue;
use serde::Deserialize;

use super::reference::Reference;
use crate::{Error, Result};

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Under what Docker keeps the credentials of its own registry.
const DOCKER_HUB_KEYS: &[&str] = &["https://index.docker.io/v1/", "index.docker.io", "docker.io"];

/// Environment variable with the folder of Docker's configuration.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";

/// A name and its password, or a token that stands for both. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// For every request, or for a token server.
    Password {
        /// Who.
        username: String,
        /// The proof.
        password: String,
    },
    /// A token from an earlier login, which a token server exchanges for one of use.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// As a header has it. A token cannot be sent so.
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { username, password } = self else { return None };
        let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
        let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// What was found for a registry.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) credentials: Option<Credentials>,
    /// Docker's configuration names a helper program for the registry. Those are not run.
    pub(crate) helper: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: std::collections::HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: std::collections::HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry(…)")
    }
}

/// Looks into `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
pub(crate) fn find(reference: &Reference) -> Result<Found> {
    let Some(path) = config_path() else { return Ok(Found::default()) };
    find_in(&path, reference)
}

fn config_path() -> Option<PathBuf> {
    let folder = match std::env::var_os(DOCKER_CONFIG) {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json"))
}

fn find_in(path: &Path, reference: &Reference) -> Result<Found> {
    use std::io::Read as _;
    let mut text = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(Error::at(path))?,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(Found::default());
        }
        Err(error) => return Err(Error::at(path)(error)),
    };
    let config: DockerConfig = serde_json::from_slice(&text).map_err(|error| {
        // The parser's own words may hold a piece of the file, and so of a password.
        let (line, column) = (error.line(), error.column());
        Error::Source(format!("Docker's configuration {} is not valid at {line}:{column}", path.display()))
    })?;
    Ok(choose(config, reference.registry()))
}

fn choose(mut config: DockerConfig, registry: &str) -> Found {
    let is_hub = DOCKER_HUB_KEYS.contains(&registry);
    let matches = |key: &str| {
        let plain = key.trim_start_matches("https://").trim_start_matches("http://");
        (is_hub && DOCKER_HUB_KEYS.contains(&key)) || plain.split('/').next() == Some(registry)
    };
    let mut keys: Vec<String> = config.auths.keys().filter(|key| matches(key)).cloned().collect();
    keys.sort();
    let credentials = keys.iter().find_map(|key| config.auths.remove(key).and_then(Entry::credentials));
    let helper = config.cred_helpers.into_iter().find(|(key, _)| matches(key)).map(|(_, helper)| helper);
    let helper = helper.or(config.creds_store).filter(|_| credentials.is_none());
    Found { credentials, helper }
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        if !self.identitytoken.is_empty() {
            return Some(Credentials::IdentityToken(self.identitytoken));
        }
        if !self.username.is_empty() {
            return Some(Credentials::Password { username: self.username, password: self.password });
        }
        let decoded = BASE64_STANDARD.decode(self.auth.trim()).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, password) = decoded.split_once(':')?;
        let password = password.trim_end_matches('\0');
        Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, registry: &str) -> Found {
        choose(serde_json::from_str(config).unwrap(), registry)
    }

    fn password(found: &Found) -> String {
        match &found.credentials {
            Some(Credentials::Password { username, password }) => format!("{username}:{password}"),
            Some(Credentials::IdentityToken(token)) => format!("token {token}"),
            None => String::new(),
        }
    }

    #[test]
    fn entries_are_found_by_registry() {
        let config = r#"{"auths": {"r.io:5000": {"auth": "YTpiOmM="}, "https://s.io/v2/": {"username": "u", "password": "p"},
            "https://index.docker.io/v1/": {"auth": "aHViOng="}, "t.io": {"auth": "", "identitytoken": "secret"}, "e.io": {}},
            "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}}"#;
        assert_eq!(password(&found(config, "r.io:5000")), "a:b:c");
        assert_eq!(password(&found(config, "s.io")), "u:p");
        assert_eq!(password(&found(config, "docker.io")), "hub:x");
        assert_eq!(password(&found(config, "t.io")), "token secret");
        assert_eq!(found(config, "e.io").helper.as_deref(), Some("desktop"));
        assert_eq!(found(config, "gcr.io").helper.as_deref(), Some("gcloud"));
        assert_eq!(found(config, "r.io:5000").helper, None);
        assert_eq!(password(&found("{}", "r.io")), "");
    }

    #[test]
    fn nothing_of_a_secret_is_shown() {
        let credentials = Credentials::Password { username: "me".into(), password: "hidden".into() };
        let shown = format!("{credentials:?} {:?}", credentials.basic());
        assert!(!shown.contains("hidden") && !shown.contains("bWU6"), "{shown}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"r.io": {"auth": hidden}}}"#).unwrap();
        let refused = find_in(&path, &Reference::parse("r.io/x").unwrap()).unwrap_err();
        assert!(!refused.to_string().contains("hidden"), "{refused}");
    }
}
