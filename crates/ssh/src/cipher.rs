//! Packets: encryption and authentication of each, and where one ends. Nothing of a packet is used before it proved to be
//! of this connection, but for its length, which is bounded.

use std::ops::Range;

use bytes::BytesMut;
use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm as Aead, LessSafeKey, Nonce, UnboundKey,
    chacha20_poly1305_openssh,
};

use crate::error::{Error, Result};

/// Bytes of a packet's length.
const LENGTH_BYTES: usize = 4;

/// Longest packet without its length and tag. What OpenSSH takes; a command line can be as long.
const PACKET_BYTES_MAX: usize = 256 * 1024;

/// Fewest bytes of padding.
const PADDING_MIN: usize = 4;

/// Bytes of the mark that authenticates a packet; the same for all ciphers.
const TAG_BYTES: usize = 16;

/// A cipher that client and server can agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    ChaCha,
    Aes256,
    Aes128,
}

impl Algorithm {
    /// In order of preference.
    pub(crate) const ALL: [Self; 3] = [Self::ChaCha, Self::Aes256, Self::Aes128];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ChaCha => "chacha20-poly1305@openssh.com",
            Self::Aes256 => "aes256-gcm@openssh.com",
            Self::Aes128 => "aes128-gcm@openssh.com",
        }
    }

    /// Bytes of its key.
    pub(crate) fn key_bytes(self) -> usize {
        match self {
            Self::ChaCha => chacha20_poly1305_openssh::KEY_LEN,
            Self::Aes256 => 32,
            Self::Aes128 => 16,
        }
    }

    fn aead(self) -> &'static Aead {
        match self {
            Self::Aes128 => &AES_128_GCM,
            Self::Aes256 | Self::ChaCha => &AES_256_GCM,
        }
    }
}

/// Bytes from which the first nonce of AES is made.
pub(crate) const NONCE_BYTES: usize = 12;

/// The nonce of AES: counts packets in its last eight bytes.
struct Counter([u8; NONCE_BYTES]);

impl Counter {
    fn next(&mut self) -> Nonce {
        let nonce = Nonce::assume_unique_for_key(self.0);
        let (_, count) = self.0.split_at_mut(NONCE_BYTES - 8);
        for byte in count.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        nonce
    }
}

fn aes(algorithm: Algorithm, key: &[u8], nonce: &[u8]) -> (Box<LessSafeKey>, Counter) {
    let key = UnboundKey::new(algorithm.aead(), key).expect("the key is as long as its algorithm wants");
    (Box::new(LessSafeKey::new(key)), Counter(nonce.try_into().expect("the nonce is as long as asked for")))
}

/// Protects packets that are sent.
pub(crate) enum Sealer {
    /// Before the first exchange of keys.
    Clear,
    ChaCha(Box<chacha20_poly1305_openssh::SealingKey>),
    Aes(Box<LessSafeKey>, [u8; NONCE_BYTES]),
}

/// Opens packets that were received.
pub(crate) enum Opener {
    /// Before the first exchange of keys.
    Clear,
    ChaCha(Box<chacha20_poly1305_openssh::OpeningKey>),
    Aes(Box<LessSafeKey>, [u8; NONCE_BYTES]),
}

impl Sealer {
    pub(crate) fn new(algorithm: Algorithm, key: &[u8], nonce: &[u8]) -> Self {
        match algorithm {
            Algorithm::ChaCha => {
                let key = key.try_into().expect("the key is as long as its algorithm wants");
                Self::ChaCha(Box::new(chacha20_poly1305_openssh::SealingKey::new(key)))
            }
            Algorithm::Aes256 | Algorithm::Aes128 => {
                let (key, Counter(nonce)) = aes(algorithm, key, nonce);
                Self::Aes(key, nonce)
            }
        }
    }

    /// Appends a packet with this payload.
    pub(crate) fn seal(&mut self, sequence: u32, payload: &[u8], out: &mut BytesMut) {
        // What is encrypted is a multiple of the block; the length is part of it only in the clear.
        let (block, counted) = match self {
            Self::Clear => (8, LENGTH_BYTES),
            Self::ChaCha(_) => (8, 0),
            Self::Aes(..) => (16, 0),
        };
        let unpadded = counted + 1 + payload.len() + PADDING_MIN;
        let padding = PADDING_MIN + (block - unpadded % block) % block;
        let length = 1 + payload.len() + padding;
        let start = out.len();
        out.extend_from_slice(&u32::try_from(length).expect("payloads are far below 4 GiB").to_be_bytes());
        out.extend_from_slice(&[u8::try_from(padding).expect("padding is short")]);
        out.extend_from_slice(payload);
        // Whatever it holds looks random once it is encrypted.
        out.resize(start + LENGTH_BYTES + length, 0);
        let packet = &mut out[start..];
        match self {
            Self::Clear => {}
            Self::ChaCha(key) => {
                let mut tag = [0; TAG_BYTES];
                key.seal_in_place(sequence, packet, &mut tag);
                out.extend_from_slice(&tag);
            }
            Self::Aes(key, nonce) => {
                let mut counter = Counter(*nonce);
                let (length, sealed) = packet.split_at_mut(LENGTH_BYTES);
                let tag = key.seal_in_place_separate_tag(counter.next(), Aad::from(length), sealed);
                *nonce = counter.0;
                out.extend_from_slice(tag.expect("packets are far below the cipher's limit").as_ref());
            }
        }
    }
}

impl Opener {
    pub(crate) fn new(algorithm: Algorithm, key: &[u8], nonce: &[u8]) -> Self {
        match algorithm {
            Algorithm::ChaCha => {
                let key = key.try_into().expect("the key is as long as its algorithm wants");
                Self::ChaCha(Box::new(chacha20_poly1305_openssh::OpeningKey::new(key)))
            }
            Algorithm::Aes256 | Algorithm::Aes128 => {
                let (key, Counter(nonce)) = aes(algorithm, key, nonce);
                Self::Aes(key, nonce)
            }
        }
    }

    /// How long the packet is that starts here, all of it; `None` before that can be told.
    pub(crate) fn packet_bytes(&self, sequence: u32, start: &[u8]) -> Result<Option<usize>> {
        let Some(length) = start.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let (length, block, counted, tag) = match self {
            Self::Clear => (*length, 8, LENGTH_BYTES, 0),
            Self::ChaCha(key) => (key.decrypt_packet_length(sequence, *length), 8, 0, TAG_BYTES),
            Self::Aes(..) => (*length, 16, 0, TAG_BYTES),
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let lengths = 1 + PADDING_MIN..=PACKET_BYTES_MAX;
        if !lengths.contains(&length) || (counted + length) % block != 0 {
            return Err(Error::Tampered);
        }
        Ok(Some(LENGTH_BYTES + length + tag))
    }

    /// Where in a whole packet its payload is, which is readable afterwards.
    pub(crate) fn open(&mut self, sequence: u32, packet: &mut [u8]) -> Result<Range<usize>> {
        let opened: &[u8] = match self {
            Self::Clear => &packet[LENGTH_BYTES..],
            Self::ChaCha(key) => {
                let (packet, tag) = packet.split_last_chunk_mut::<TAG_BYTES>().ok_or(Error::Tampered)?;
                key.open_in_place(sequence, packet, tag).map_err(|_| Error::Tampered)?
            }
            Self::Aes(key, nonce) => {
                let mut counter = Counter(*nonce);
                let (length, sealed) = packet.split_at_mut(LENGTH_BYTES);
                let opened = key.open_in_place(counter.next(), Aad::from(length), sealed);
                *nonce = counter.0;
                opened.map_err(|_| Error::Tampered)?
            }
        };
        let (padding, rest) = opened.split_first().ok_or(Error::Tampered)?;
        let payload =
            rest.len().checked_sub(usize::from(*padding)).filter(|_| usize::from(*padding) >= PADDING_MIN);
        let start = LENGTH_BYTES + 1;
        payload.map(|bytes| start..start + bytes).ok_or(Error::Tampered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(algorithm: Option<Algorithm>) -> (Sealer, Opener) {
        let Some(algorithm) = algorithm else { return (Sealer::Clear, Opener::Clear) };
        let (key, nonce) = (vec![3; algorithm.key_bytes()], [0xff; NONCE_BYTES]);
        (Sealer::new(algorithm, &key, &nonce), Opener::new(algorithm, &key, &nonce))
    }

    fn any_algorithm() -> impl Strategy<Value = Option<Algorithm>> {
        prop::option::of(prop::sample::select(&Algorithm::ALL[..]))
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(algorithm in any_algorithm(), payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5)) {
            let (mut sealer, mut opener) = pair(algorithm);
            for (payload, sequence) in payloads.iter().zip(0_u32..) {
                let mut packet = BytesMut::new();
                sealer.seal(sequence, payload, &mut packet);
                prop_assert_eq!(opener.packet_bytes(sequence, &packet[..4]).expect("a length"), Some(packet.len()));
                let place = opener.open(sequence, &mut packet).expect("opens");
                prop_assert_eq!(&packet[place], &payload[..]);
            }
        }

        #[test]
        fn a_changed_packet_is_refused(algorithm in prop::sample::select(&Algorithm::ALL[..]), payload in prop::collection::vec(any::<u8>(), 0..100), at: prop::sample::Index, bit in 0_u8..8) {
            let (mut sealer, mut opener) = pair(Some(algorithm));
            let mut packet = BytesMut::new();
            sealer.seal(0, &payload, &mut packet);
            let at = at.index(packet.len());
            packet[at] ^= 1 << bit;
            prop_assert!(opener.open(0, &mut packet).is_err());
        }

        #[test]
        fn any_bytes_are_refused(algorithm in any_algorithm(), mut bytes in prop::collection::vec(any::<u8>(), 4..100)) {
            let (_, mut opener) = pair(algorithm);
            if let Ok(Some(length)) = opener.packet_bytes(0, &bytes) {
                prop_assert!(length <= PACKET_BYTES_MAX + LENGTH_BYTES + TAG_BYTES);
                if length == bytes.len() {
                    let opened = opener.open(0, &mut bytes);
                    prop_assert!(algorithm.is_none() || opened.is_err());
                }
            }
        }
    }

    #[test]
    fn a_packet_of_another_place_in_the_stream_is_refused() {
        for algorithm in Algorithm::ALL {
            let (mut sealer, mut opener) = pair(Some(algorithm));
            let (mut first, mut second) = (BytesMut::new(), BytesMut::new());
            sealer.seal(0, b"first", &mut first);
            sealer.seal(1, b"second", &mut second);
            assert!(opener.open(0, &mut second).is_err(), "{algorithm:?}");
        }
    }
}
