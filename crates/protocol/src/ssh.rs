//! Who may come in by the doors that a sandbox has beside its API: SSH, the terminal in a browser, and the rescue door. The
//! greeting brings it, or later [`PATH`].

use serde::{Deserialize, Serialize};

/// `POST` of an [`Access`]: it takes the place of the one before. Only for the host.
pub const PATH: &str = "/sandhaus/ssh";

/// TCP port of SSH.
pub const PORT: u16 = 22220;

/// TCP port of the terminal in a browser.
pub const TERMINAL_PORT: u16 = 22222;

/// TCP port of the rescue door: SSH that another process serves.
pub const RESCUE_PORT: u16 = 2222;

/// Bytes of a secret. Shorter ones could be guessed.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=512;

/// Most keys.
pub const KEYS_MAX: usize = 128;

/// Who may come in. Of what is not given nobody can make use: with neither secret nor keys the ports are closed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Password of SSH for any user name, and of the terminal in a browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Public keys, as lines of an `authorized_keys` file without options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys: Vec<String>,
    /// What the host's key is made of: 64 hexadecimal digits that nobody else may know. Without them each start of the agent
    /// has a key of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Password of the rescue door. Without one there is no rescue door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue_secret: Option<String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("secret", &self.secret.as_ref().map(|_| "…"))
            .field("authorized_keys", &self.authorized_keys.len())
            .field("host_key", &self.host_key.as_ref().map(|_| "…"))
            .field("rescue_secret", &self.rescue_secret.as_ref().map(|_| "…"))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let secret = || Some("0123456789abcdef".to_owned());
        let access = Access {
            secret: secret(),
            authorized_keys: vec!["ssh-ed25519 AAAA".to_owned()],
            host_key: secret(),
            rescue_secret: secret(),
        };
        let printed = format!("{access:?}");
        assert!(!printed.contains("0123") && !printed.contains("AAAA"), "{printed}");
        assert_eq!(serde_json::from_str::<Access>("{}").expect("all is optional"), Access::default());
    }
}
