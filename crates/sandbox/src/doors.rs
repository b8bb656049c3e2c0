//! The secrets of sandboxes' doors (SSH, the terminal in a browser, the rescue door): what each agent is told with its
//! greetings, and what somebody who leads users there must know.
//!
//! All of them are made of one key that the data directory holds, and the sandbox's id: nobody can tell them from random
//! ones, none tells anything of another, a copy has its own since it has an id of its own, and they are the same after a
//! restart of anything. An instance that ends with its process keeps the key in memory.

use std::{
    fmt,
    io::{self, Write as _},
    path::Path,
};

use ring::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use sandhaus_protocol::ssh::Access;

use crate::{
    Instance, digits,
    error::{Error, Result},
    instance::Span,
    types::SandboxId,
};

const KEY_FILE: &str = "doors";
const KEY_BYTES: usize = 32;

/// Bytes of a secret, each two digits of it.
const SECRET_BYTES: usize = 24;

/// Whether sandboxes have a rescue door.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RescueDoor {
    /// They have none.
    #[default]
    Closed,
    /// Another process beside the agent serves SSH on a port of its own, with a secret of its own.
    Open,
}

/// What somebody must know who leads users to a sandbox's doors.
#[derive(Clone, PartialEq, Eq)]
pub struct DoorKeys {
    /// Password of SSH, for any user name, and of the terminal in a browser.
    pub secret: String,
    /// Public half of the Ed25519 key by which SSH and the rescue door show that they are this sandbox's.
    pub host_key: [u8; KEY_BYTES],
    /// Password of the rescue door, if there is one.
    pub rescue_secret: Option<String>,
}

impl fmt::Debug for DoorKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DoorKeys(…)")
    }
}

/// Makes the secrets of an instance's sandboxes.
pub(crate) struct Secrets {
    key: hmac::Key,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Secrets {
    /// With the key of the data directory, which is made if there is none.
    pub(crate) fn open(instance: &Instance) -> Result<Self> {
        let key = match instance.span() {
            Span::Process => random(),
            Span::Lasting => {
                kept(instance.dir()).map_err(|error| Error::internal("read the key of the doors", error))?
            }
        };
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// Who may come into a sandbox.
    pub(crate) fn access(&self, id: &SandboxId, rescue: RescueDoor) -> Access {
        Access {
            secret: Some(self.secret("secret", id)),
            authorized_keys: Vec::new(),
            host_key: Some(digits::of(&self.derive("host key", id))),
            rescue_secret: self.rescue_secret(id, rescue),
        }
    }

    /// The same for whoever leads users there: what is private of the host's key stays out.
    pub(crate) fn keys(&self, id: &SandboxId, rescue: RescueDoor) -> DoorKeys {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.derive("host key", id));
        let pair = pair.expect("every seed is a key");
        DoorKeys {
            secret: self.secret("secret", id),
            host_key: pair.public_key().as_ref().try_into().expect("public keys have that length"),
            rescue_secret: self.rescue_secret(id, rescue),
        }
    }

    fn rescue_secret(&self, id: &SandboxId, rescue: RescueDoor) -> Option<String> {
        match rescue {
            RescueDoor::Closed => None,
            RescueDoor::Open => Some(self.secret("rescue secret", id)),
        }
    }

    fn secret(&self, purpose: &str, id: &SandboxId) -> String {
        digits::of(&self.derive(purpose, id)[..SECRET_BYTES])
    }

    fn derive(&self, purpose: &str, id: &SandboxId) -> [u8; KEY_BYTES] {
        let mut context = hmac::Context::with_key(&self.key);
        // No purpose holds a NUL byte, so no two of them and their ids look the same.
        context.update(purpose.as_bytes());
        context.update(&[0]);
        context.update(id.as_str().as_bytes());
        context.sign().as_ref().try_into().expect("as long as a key")
    }
}

fn random() -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).expect("the kernel has random bytes");
    key
}

/// The key in the data directory. Written aside, so that one under its name is whole.
fn kept(dir: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let (path, aside) = (dir.join(KEY_FILE), dir.join(format!("{KEY_FILE}.new")));
    match fs_err::read(&path) {
        Ok(key) => {
            return key.try_into().map_err(|_| io::Error::other(format!("{} is no key", path.display())));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let key = random();
    match fs_err::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs_err::OpenOptions::new();
    fs_err::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let mut file = options.open(&aside)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs_err::rename(&aside, &path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn id(text: &str) -> SandboxId {
        SandboxId::try_from(text.to_owned()).expect("an id")
    }

    #[test]
    fn secrets_are_a_sandboxs_own_and_stay() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("data");
        let one = id("0123abcd-456");
        let open = || Secrets::open(&Instance::acquire(&dir).expect("the lock")).expect("a key");
        let first = open().access(&one, RescueDoor::Open);
        assert_eq!(open().access(&one, RescueDoor::Open), first, "after a restart");
        let other = open().access(&id("0123abcd-457"), RescueDoor::Open);
        let all = |access: &Access| {
            [access.secret.clone(), access.host_key.clone(), access.rescue_secret.clone()].map(Option::unwrap)
        };
        let (first, other) = (all(&first), all(&other));
        assert!(first.iter().all(|secret| !other.contains(secret)));
        assert_ne!(first[0], first[2]);
        assert_eq!(first.each_ref().map(|secret| secret.len()), [48, 64, 48]);
        assert_eq!(fs_err::metadata(dir.join(KEY_FILE)).expect("a file").mode() & 0o777, 0o600);
        assert_eq!(open().access(&one, RescueDoor::Closed).rescue_secret, None);
        let keys = open().keys(&one, RescueDoor::Open);
        assert_eq!([Some(keys.secret), keys.rescue_secret], [Some(first[0].clone()), Some(first[2].clone())]);
        assert_ne!(digits::of(&keys.host_key), first[1], "only its public half");
        assert_eq!(open().keys(&one, RescueDoor::Closed).rescue_secret, None);
    }

    #[test]
    fn a_key_that_is_cut_short_is_told_and_not_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let instance = Instance::acquire(folder.path()).expect("the lock");
        fs_err::write(folder.path().join(KEY_FILE), "short").expect("write");
        assert!(Secrets::open(&instance).is_err());
        assert_eq!(fs_err::read(folder.path().join(KEY_FILE)).expect("read"), b"short");
    }
}
