//! The exchange of keys: which algorithms, a secret that only both sides know (curve25519), and the keys made of it.

use ring::{
    agreement::{self, EphemeralPrivateKey, UnparsedPublicKey, X25519},
    digest::{Context, Digest, SHA256},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{
    cipher::{Algorithm, NONCE_BYTES, Opener, Sealer},
    error::{Error, Result},
    keys::HostKey,
    message,
    wire::{Reader, Writer},
};

/// The exchange, by both of its names.
const EXCHANGES: [&str; 2] = ["curve25519-sha256", "curve25519-sha256@libssh.org"];

/// Marks that are sent among the exchanges: both sides keep to an order in which nothing can be slipped in or cut out.
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";

/// The client wants to hear what else the server can do.
const EXTENSIONS_CLIENT: &str = "ext-info-c";

/// What some clients insist on agreeing about, although no cipher of ours has any use for it.
const UNUSED_MAC: &str = "hmac-sha2-256";
const NO_COMPRESSION: &str = "none";

const COOKIE_BYTES: usize = 16;

/// What the two greetings of an exchange say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Cipher of what the client sends.
    pub(crate) from_client: Algorithm,
    /// Cipher of what it is sent.
    pub(crate) to_client: Algorithm,
    /// The client guessed wrong: its next message is not for us.
    pub(crate) skip_guess: bool,
    /// Both keep to the strict order.
    pub(crate) strict: bool,
    /// The client wants to hear what else the server can do.
    pub(crate) extensions: bool,
}

/// The server's greeting.
pub(crate) fn greeting() -> Vec<u8> {
    let mut cookie = [0; COOKIE_BYTES];
    SystemRandom::new().fill(&mut cookie).expect("the system has random numbers");
    let ciphers = Algorithm::ALL.map(Algorithm::name).join(",");
    let exchanges = format!("{},{STRICT_SERVER}", EXCHANGES.join(","));
    Writer::message(message::KEXINIT)
        .raw(&cookie)
        .string(exchanges)
        .string(HostKey::ALGORITHM)
        .string(&ciphers)
        .string(&ciphers)
        .string(UNUSED_MAC)
        .string(UNUSED_MAC)
        .string(NO_COMPRESSION)
        .string(NO_COMPRESSION)
        .string("")
        .string("")
        .boolean(false)
        .number(0)
        .finish()
}

/// What client and server agree on, by the client's greeting.
pub(crate) fn agree(greeting: &[u8]) -> Result<Agreement> {
    let mut reader = Reader::new(greeting);
    if reader.byte()? != message::KEXINIT {
        return Err(Error::Protocol("no exchange of keys where there must be one"));
    }
    reader.bytes(COOKIE_BYTES)?;
    let (exchanges, host_keys) = (reader.names()?, reader.names()?);
    let (from_client, to_client) = (reader.names()?, reader.names()?);
    // Codes that authenticate, which our ciphers do themselves.
    let (_, _) = (reader.names()?, reader.names()?);
    let compressions = [reader.names()?, reader.names()?];
    // Languages.
    let (_, _) = (reader.names()?, reader.names()?);
    let guessed = reader.boolean()?;
    reader.number()?;
    if !exchanges.iter().any(|name| EXCHANGES.contains(name)) {
        return Err(Error::NothingInCommon("key exchange"));
    }
    if !host_keys.contains(&HostKey::ALGORITHM) {
        return Err(Error::NothingInCommon("type of host key"));
    }
    if !compressions.iter().all(|names| names.contains(&NO_COMPRESSION)) {
        return Err(Error::NothingInCommon("compression"));
    }
    let cipher = |names: &[&str]| {
        let known = |name: &&str| Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == *name);
        names.iter().find_map(known).ok_or(Error::NothingInCommon("cipher"))
    };
    let right_guess =
        exchanges.first() == EXCHANGES.first() && host_keys.first() == Some(&HostKey::ALGORITHM);
    Ok(Agreement {
        from_client: cipher(&from_client)?,
        to_client: cipher(&to_client)?,
        skip_guess: guessed && !right_guess,
        strict: exchanges.contains(&STRICT_CLIENT),
        extensions: exchanges.contains(&EXTENSIONS_CLIENT),
    })
}

/// What both sides have said so far, which goes into the exchange's hash.
pub(crate) struct Transcript<'a> {
    pub(crate) client_version: &'a [u8],
    pub(crate) server_version: &'a [u8],
    pub(crate) client_greeting: &'a [u8],
    pub(crate) server_greeting: &'a [u8],
}

/// The keys that an exchange left, from which others are made.
pub(crate) struct Secret {
    shared: Vec<u8>,
    hash: Digest,
}

/// Answers the client's half of the exchange: the server's half, signed, and the secret.
pub(crate) fn answer(
    transcript: &Transcript<'_>,
    host: &HostKey,
    message: &[u8],
) -> Result<(Vec<u8>, Secret)> {
    let mut reader = Reader::new(message);
    if reader.byte()? != message::KEX_ECDH_INIT {
        return Err(Error::Protocol("not the message that continues an exchange of keys"));
    }
    let theirs = reader.string()?;
    let own =
        EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).expect("the system has random numbers");
    let ours = own.compute_public_key().expect("a fresh key has a public half");
    // It refuses points that leave no secret.
    let shared = agreement::agree_ephemeral(own, &UnparsedPublicKey::new(&X25519, theirs), |secret| {
        Writer::default().big(secret).finish()
    });
    let shared = shared.map_err(|_| Error::Protocol("an unusable half of an exchange of keys"))?;
    let hashed = Writer::default()
        .string(transcript.client_version)
        .string(transcript.server_version)
        .string(transcript.client_greeting)
        .string(transcript.server_greeting)
        .string(host.public())
        .string(theirs)
        .string(ours.as_ref())
        .raw(&shared)
        .finish();
    let hash = ring::digest::digest(&SHA256, &hashed);
    let reply = Writer::message(message::KEX_ECDH_REPLY)
        .string(host.public())
        .string(ours.as_ref())
        .string(host.sign(hash.as_ref()))
        .finish();
    Ok((reply, Secret { shared, hash }))
}

impl Secret {
    /// The hash of the exchange; that of the first is the connection's name.
    pub(crate) fn hash(&self) -> &[u8] {
        self.hash.as_ref()
    }

    fn derive(&self, session: &[u8], letter: u8, bytes: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(bytes + SHA256.output_len());
        while key.len() < bytes {
            let mut context = Context::new(&SHA256);
            context.update(&self.shared);
            context.update(self.hash());
            if key.is_empty() {
                context.update(&[letter]);
                context.update(session);
            } else {
                context.update(&key);
            }
            key.extend_from_slice(context.finish().as_ref());
        }
        key.truncate(bytes);
        key
    }

    /// Opens what the client sends from now on.
    pub(crate) fn opener(&self, session: &[u8], algorithm: Algorithm) -> Opener {
        let key = self.derive(session, b'C', algorithm.key_bytes());
        Opener::new(algorithm, &key, &self.derive(session, b'A', NONCE_BYTES))
    }

    /// Seals what it is sent from now on.
    pub(crate) fn sealer(&self, session: &[u8], algorithm: Algorithm) -> Sealer {
        let key = self.derive(session, b'D', algorithm.key_bytes());
        Sealer::new(algorithm, &key, &self.derive(session, b'B', NONCE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn greeting_of(exchanges: &str, host_keys: &str, ciphers: &str, guessed: bool) -> Vec<u8> {
        let mut writer =
            Writer::message(message::KEXINIT).raw(&[0; COOKIE_BYTES]).string(exchanges).string(host_keys);
        for list in [ciphers, ciphers, "x", "y", "none,zlib", "none", "", ""] {
            writer = writer.string(list);
        }
        writer.boolean(guessed).number(0).finish()
    }

    #[test]
    fn the_client_chooses() {
        let ours = "curve25519-sha256";
        let agreement = agree(&greeting_of(
            ours,
            "ssh-ed25519",
            "aes128-gcm@openssh.com,chacha20-poly1305@openssh.com",
            true,
        ));
        let agreement = agreement.expect("much in common");
        assert_eq!(agreement.to_client, Algorithm::Aes128);
        assert!(!agreement.skip_guess && !agreement.strict && !agreement.extensions);
        let offer = format!("other,{ours},ext-info-c,{STRICT_CLIENT}");
        let agreement = agree(&greeting_of(&offer, "ssh-rsa,ssh-ed25519", "aes256-gcm@openssh.com", true))
            .expect("enough");
        assert!(agreement.skip_guess && agreement.strict && agreement.extensions);
        for (exchanges, host_keys, ciphers) in [
            ("x", "ssh-ed25519", "aes128-gcm@openssh.com"),
            (ours, "ssh-rsa", "aes128-gcm@openssh.com"),
            (ours, "ssh-ed25519", "aes128-ctr"),
        ] {
            let refused = agree(&greeting_of(exchanges, host_keys, ciphers, false));
            assert!(matches!(refused, Err(Error::NothingInCommon(_))));
        }
    }

    #[test]
    fn we_agree_with_ourselves() {
        assert!(agree(&greeting()).is_ok());
    }

    proptest! {
        #[test]
        fn any_greeting_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = agree(&bytes);
        }
    }

    #[test]
    fn a_point_without_a_secret_is_refused() {
        let transcript = Transcript {
            client_version: b"",
            server_version: b"",
            client_greeting: b"",
            server_greeting: b"",
        };
        let message = Writer::message(message::KEX_ECDH_INIT).string([0; 32]).finish();
        assert!(answer(&transcript, &HostKey::from_seed(&[1; 32]), &message).is_err());
    }
}
