//! The host's key, and the public keys of clients: parsing and checking of signatures.

use base64::Engine as _;
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
    signature::{self, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};

use crate::wire::{Malformed, Reader, Writer};

/// Bytes from which a host key is made.
pub const SEED_BYTES: usize = 32;

/// Longest public key in bytes, as it is sent: RSA with 16384 bits and some room.
const KEY_BYTES_MAX: usize = 4096;

/// Fewest bits of an RSA key; ring checks no smaller ones.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

const ED25519: &str = "ssh-ed25519";
const RSA: &str = "ssh-rsa";
const P256: &str = "ecdsa-sha2-nistp256";
const P384: &str = "ecdsa-sha2-nistp384";
const TOKEN_ED25519: &str = "sk-ssh-ed25519@openssh.com";
const TOKEN_P256: &str = "sk-ecdsa-sha2-nistp256@openssh.com";

/// Algorithms of signatures that clients may use.
pub(crate) const SIGNATURES: [&str; 7] =
    [ED25519, TOKEN_ED25519, P256, P384, TOKEN_P256, "rsa-sha2-512", "rsa-sha2-256"];

/// A security key must have been touched (bit 0 of its flags).
const TOUCHED: u8 = 1;

/// Why a text is no key that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no key in it.
    #[error("not a public key in OpenSSH's form (TYPE BASE64 COMMENT)")]
    NotAKey,
    /// A key of a type that is not known.
    #[error(
        "of a type that is not known; ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384 and ssh-rsa are"
    )]
    UnknownType,
    /// An RSA key of an unusable size.
    #[error("an RSA key has {} to {} bits", RSA_BITS.start(), RSA_BITS.end())]
    Size,
    /// Options before the key would restrict what it may do, which nothing here observes.
    #[error("options before the key are not supported")]
    Options,
}

/// The key by which clients recognise the host.
pub struct HostKey {
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKey(…)")
    }
}

impl HostKey {
    /// Name of its type.
    pub(crate) const ALGORITHM: &str = ED25519;

    /// A new one.
    ///
    /// # Panics
    ///
    /// If the system has no random numbers, without which nothing is safe.
    pub fn random() -> Self {
        let mut seed = [0; SEED_BYTES];
        SystemRandom::new().fill(&mut seed).expect("the system has random numbers");
        Self::from_seed(&seed)
    }

    /// The one that belongs to these bytes, which nobody else may know.
    ///
    /// # Panics
    ///
    /// Never: any bytes are a key.
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Self {
        Self { pair: Ed25519KeyPair::from_seed_unchecked(seed).expect("every seed is a key") }
    }

    /// Its public half, as it is sent.
    pub(crate) fn public(&self) -> Vec<u8> {
        Writer::default().string(ED25519).string(self.pair.public_key().as_ref()).finish()
    }

    /// Its public half as a line of `known_hosts` has it, without names.
    pub fn to_openssh(&self) -> String {
        format!("{ED25519} {}", base64::engine::general_purpose::STANDARD.encode(self.public()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        Writer::default().string(ED25519).string(self.pair.sign(message).as_ref()).finish()
    }
}

/// A client's public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    blob: Vec<u8>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Ed25519([u8; 32]),
    Rsa { exponent: Vec<u8>, modulus: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    TokenEd25519 { key: [u8; 32], application: Vec<u8> },
    TokenP256 { point: Vec<u8>, application: Vec<u8> },
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", self.type_name())
    }
}

impl PublicKey {
    /// Reads a line of an `authorized_keys` file.
    pub fn from_openssh(line: &str) -> Result<Self, KeyError> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().ok_or(KeyError::NotAKey)?;
        let encoded = words.next().ok_or(KeyError::NotAKey)?;
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text);
        let Ok(blob) = decode(encoded) else {
            let later =
                line.split_ascii_whitespace().skip(1).any(|word| decode(word).is_ok_and(|b| b.len() > 32));
            return Err(if later { KeyError::Options } else { KeyError::NotAKey });
        };
        let key = Self::from_blob(&blob)?;
        if key.type_name() == name { Ok(key) } else { Err(KeyError::NotAKey) }
    }

    /// Reads the keys of an `authorized_keys` file: empty lines and comments are left out. The number is the line's of what
    /// is no key.
    pub fn all_from_openssh(text: &str) -> Result<Vec<Self>, (usize, KeyError)> {
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| Self::from_openssh(line).map_err(|error| (number, error)))
            .collect()
    }

    /// Reads a key as it is sent.
    pub fn from_blob(blob: &[u8]) -> Result<Self, KeyError> {
        if blob.len() > KEY_BYTES_MAX {
            return Err(KeyError::Size);
        }
        let mut reader = Reader::new(blob);
        let name = reader.text().map_err(|Malformed| KeyError::NotAKey)?;
        let kind = Kind::read(name, &mut reader)?;
        if !reader.is_empty() {
            return Err(KeyError::NotAKey);
        }
        Ok(Self { blob: blob.to_owned(), kind })
    }

    /// Name of its type.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Ed25519(_) => ED25519,
            Kind::Rsa { .. } => RSA,
            Kind::P256(_) => P256,
            Kind::P384(_) => P384,
            Kind::TokenEd25519 { .. } => TOKEN_ED25519,
            Kind::TokenP256 { .. } => TOKEN_P256,
        }
    }

    /// Whether a signature with this algorithm can be this key's.
    pub(crate) fn signs_with(&self, algorithm: &str) -> bool {
        match self.kind {
            Kind::Rsa { .. } => matches!(algorithm, "rsa-sha2-256" | "rsa-sha2-512"),
            Kind::Ed25519(_)
            | Kind::P256(_)
            | Kind::P384(_)
            | Kind::TokenEd25519 { .. }
            | Kind::TokenP256 { .. } => self.type_name() == algorithm,
        }
    }

    /// Whether the holder of the key has signed this message; the signature is as it is sent.
    pub(crate) fn has_signed(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        self.check(algorithm, message, signature).unwrap_or(false)
    }

    fn check(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> Result<bool, Malformed> {
        let mut reader = Reader::new(signature);
        if reader.text()? != algorithm || !self.signs_with(algorithm) {
            return Ok(false);
        }
        let signature = reader.string()?;
        match &self.kind {
            Kind::Ed25519(key) => whole(reader, verify(&signature::ED25519, key, message, signature)),
            Kind::Rsa { exponent, modulus } => {
                let parameters = match algorithm {
                    "rsa-sha2-512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA256,
                };
                let key = signature::RsaPublicKeyComponents { n: modulus, e: exponent };
                // A signature may be sent without its leading zeros.
                let missing = modulus.len().saturating_sub(signature.len());
                let signature = [&vec![0; missing], signature].concat();
                whole(reader, key.verify(parameters, message, &signature).is_ok())
            }
            Kind::P256(point) => {
                let fixed = fixed::<32>(signature)?;
                whole(reader, verify(&signature::ECDSA_P256_SHA256_FIXED, point, message, &fixed))
            }
            Kind::P384(point) => {
                let fixed = fixed::<48>(signature)?;
                whole(reader, verify(&signature::ECDSA_P384_SHA384_FIXED, point, message, &fixed))
            }
            Kind::TokenEd25519 { key, application } => {
                let (message, touched) = token_message(application, message, &mut reader)?;
                whole(reader, touched && verify(&signature::ED25519, key, &message, signature))
            }
            Kind::TokenP256 { point, application } => {
                let (message, touched) = token_message(application, message, &mut reader)?;
                let fixed = fixed::<32>(signature)?;
                let valid = verify(&signature::ECDSA_P256_SHA256_FIXED, point, &message, &fixed);
                whole(reader, touched && valid)
            }
        }
    }
}

/// The verdict, unless something follows the signature.
fn whole(reader: Reader<'_>, valid: bool) -> Result<bool, Malformed> {
    if reader.is_empty() { Ok(valid) } else { Err(Malformed) }
}

impl Kind {
    fn read(name: &str, reader: &mut Reader<'_>) -> Result<Self, KeyError> {
        let no_key = |Malformed| KeyError::NotAKey;
        let mut string = || reader.string().map_err(no_key);
        let flat = |key: &[u8]| key.try_into().map_err(|_| KeyError::NotAKey);
        let point = |curve: &[u8], wanted: &str, point: &[u8]| {
            // Only points that are written in full: a mark and both coordinates.
            let bytes = if wanted == "nistp256" { 65 } else { 97 };
            let right = curve == wanted.as_bytes() && point.len() == bytes && point[0] == 4;
            if right { Ok(point.to_owned()) } else { Err(KeyError::NotAKey) }
        };
        Ok(match name {
            ED25519 => Self::Ed25519(flat(string()?)?),
            P256 => Self::P256(point(string()?, "nistp256", string()?)?),
            P384 => Self::P384(point(string()?, "nistp384", string()?)?),
            TOKEN_ED25519 => Self::TokenEd25519 { key: flat(string()?)?, application: string()?.to_owned() },
            TOKEN_P256 => Self::TokenP256 {
                point: point(string()?, "nistp256", string()?)?,
                application: string()?.to_owned(),
            },
            RSA => {
                let exponent = reader.big().map_err(no_key)?.to_owned();
                let modulus = reader.big().map_err(no_key)?.to_owned();
                if !RSA_BITS.contains(&(modulus.len() * 8)) {
                    return Err(KeyError::Size);
                }
                Self::Rsa { exponent, modulus }
            }
            _ => return Err(KeyError::UnknownType),
        })
    }
}

fn verify(
    algorithm: &'static dyn signature::VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

/// Both numbers of an ECDSA signature in their full length.
fn fixed<const BYTES: usize>(signature: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(signature);
    let (r, s) = (reader.big()?, reader.big()?);
    if !reader.is_empty() || r.len() > BYTES || s.len() > BYTES {
        return Err(Malformed);
    }
    let mut fixed = vec![0; 2 * BYTES];
    fixed[BYTES - r.len()..BYTES].copy_from_slice(r);
    fixed[2 * BYTES - s.len()..].copy_from_slice(s);
    Ok(fixed)
}

/// What a security key signs, and whether somebody touched it.
fn token_message(
    application: &[u8],
    message: &[u8],
    reader: &mut Reader<'_>,
) -> Result<(Vec<u8>, bool), Malformed> {
    let (flags, counter) = (reader.byte()?, reader.number()?);
    let digest = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
    let signed = Writer::default()
        .raw(digest(application).as_ref())
        .byte(flags)
        .number(counter)
        .raw(digest(message).as_ref())
        .finish();
    Ok((signed, flags & TOUCHED != 0))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn line_of(pair: &HostKey) -> String {
        format!("{} someone@somewhere", pair.to_openssh())
    }

    #[test]
    fn lines_are_read() {
        let host = HostKey::from_seed(&[7; SEED_BYTES]);
        let key = PublicKey::from_openssh(&line_of(&host)).expect("a key");
        assert_eq!(key.type_name(), "ssh-ed25519");
        assert_eq!(key.blob, host.public());
        let line = line_of(&host);
        let encoded = line.split(' ').nth(1).expect("three words");
        for (text, error) in [
            (String::new(), KeyError::NotAKey),
            ("ssh-ed25519".to_owned(), KeyError::NotAKey),
            ("ssh-ed25519 !".to_owned(), KeyError::NotAKey),
            (format!("ssh-rsa {encoded}"), KeyError::NotAKey),
            (format!("command=\"x y\" {line}"), KeyError::Options),
            (format!("no-pty {line}"), KeyError::Options),
        ] {
            assert_eq!(PublicKey::from_openssh(&text), Err(error), "{text}");
        }
        let text = format!("# mine\n\n{line}\n");
        assert_eq!(PublicKey::all_from_openssh(&text), Ok(vec![key]));
        assert_eq!(PublicKey::all_from_openssh("\nx"), Err((2, KeyError::NotAKey)));
    }

    #[test]
    fn signatures_of_ed25519() {
        let host = HostKey::from_seed(&[7; SEED_BYTES]);
        let key = PublicKey::from_openssh(&line_of(&host)).expect("a key");
        let signature = host.sign(b"message");
        assert!(key.has_signed("ssh-ed25519", b"message", &signature));
        assert!(!key.has_signed("ssh-ed25519", b"another", &signature));
        assert!(!key.has_signed("rsa-sha2-256", b"message", &signature));
        assert!(!key.has_signed("ssh-ed25519", b"message", &[&signature[..], b"x"].concat()));
        let other = PublicKey::from_openssh(&line_of(&HostKey::from_seed(&[8; SEED_BYTES]))).expect("a key");
        assert!(!other.has_signed("ssh-ed25519", b"message", &signature));
    }

    #[test]
    fn keys_of_every_type_that_openssh_makes() {
        if Command::new("ssh").arg("-V").status().is_err() {
            eprintln!("SKIPPED: this machine has no ssh-keygen");
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, bits, expected) in [
            ("ed25519", "256", Ok("ssh-ed25519")),
            ("rsa", "2048", Ok("ssh-rsa")),
            ("ecdsa", "256", Ok("ecdsa-sha2-nistp256")),
            ("ecdsa", "384", Ok("ecdsa-sha2-nistp384")),
            ("ecdsa", "521", Err(KeyError::UnknownType)),
            ("rsa", "1024", Err(KeyError::Size)),
        ] {
            let file = folder.path().join(format!("{name}{bits}"));
            let made = Command::new("ssh-keygen")
                .args(["-q", "-N", "", "-t", name, "-b", bits, "-f"])
                .arg(&file)
                .status()
                .expect("run ssh-keygen");
            assert!(made.success());
            let line = std::fs::read_to_string(file.with_extension("pub")).expect("read the key");
            let key = PublicKey::from_openssh(&line);
            assert_eq!(key.map(|key| key.type_name()), expected, "{name} {bits}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(blob in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(key) = PublicKey::from_blob(&blob) {
                for algorithm in SIGNATURES {
                    prop_assert!(!key.has_signed(algorithm, b"message", &blob));
                }
            }
        }

        #[test]
        fn any_signature_of_any_key_is_refused(name in 0_usize..6, rest in prop::collection::vec(any::<u8>(), 0..200), signature in prop::collection::vec(any::<u8>(), 0..100)) {
            let names = [ED25519, RSA, P256, P384, TOKEN_ED25519, TOKEN_P256];
            let blob = Writer::default().string(names[name]).raw(&rest).finish();
            if let Ok(key) = PublicKey::from_blob(&blob) {
                let signature = Writer::default().string(names[name]).raw(&signature).finish();
                prop_assert!(!key.has_signed(names[name], b"message", &signature));
            }
        }
    }
}
