//! The content of files: chunks read, hashed, encoded; decoded, checked, written. All of it blocks.

use std::{fmt, io, os::unix::fs::FileExt as _};

use bytes::Bytes;
use ring::digest;
use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::manifest::Encoding;

/// How hard zstd tries. The lowest level is as fast as most networks and saves most of what there is to save in memory.
const ZSTD_LEVEL: i32 = 1;

/// Zeros of this length stay holes when a chunk is written.
const BLOCK_BYTES: usize = 4096;

/// A SHA-256 digest; hexadecimal in text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Sha256([u8; 32]);

impl Sha256 {
    /// Of bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::of_pieces([bytes])
    }

    /// Of pieces as if they were one.
    pub(crate) fn of_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for piece in pieces {
            context.update(piece);
        }
        Self(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Sha256 {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const PROBLEM: &str = "a digest has 64 hexadecimal digits";
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.is_ascii() {
            return Err(PROBLEM);
        }
        for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| PROBLEM)?;
        }
        Ok(Self(bytes))
    }
}

/// A chunk as it goes to the store.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Of its content; absent: it is all zeros.
    pub(crate) digest: Option<Sha256>,
    /// What the store gets of it; empty for zeros, where the encoding leaves them out.
    pub(crate) bytes: Bytes,
}

/// Reads a chunk and makes of it what the store gets.
pub(crate) fn encode(
    file: &std::fs::File,
    offset: u64,
    length: usize,
    encoding: Encoding,
) -> io::Result<Encoded> {
    let Some(content) = read(file, offset, length)? else {
        let bytes = match encoding {
            Encoding::None => vec![0; length].into(),
            Encoding::Zstd => Bytes::new(),
        };
        return Ok(Encoded { digest: None, bytes });
    };
    let digest = Some(Sha256::of(&content));
    let bytes = match encoding {
        Encoding::None => content,
        Encoding::Zstd => zstd::bulk::compress(&content, ZSTD_LEVEL)?,
    };
    Ok(Encoded { digest, bytes: bytes.into() })
}

/// The content of a chunk; `None` if it is all zeros. Holes are not read.
fn read(file: &std::fs::File, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
    if is_hole(file, offset, length as u64)? {
        return Ok(None);
    }
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, offset)?;
    Ok((!is_zero(&content)).then_some(content))
}

/// Whether nothing of a file's stretch is on disk.
fn is_hole(file: &std::fs::File, offset: u64, length: u64) -> io::Result<bool> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data >= offset + length),
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => Ok(true),
        // This file system does not tell.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    // Compared with zeros block by block: that is one call of the C library each, whatever the build.
    bytes.chunks(BLOCK_BYTES).all(|block| *block == ZEROS[..block.len()])
}

/// Makes content of what the store gave; `None` if it is none of that length.
pub(crate) fn decode(stored: Bytes, length: usize, encoding: Encoding) -> Option<Bytes> {
    let content = match encoding {
        Encoding::None => stored,
        Encoding::Zstd => zstd::bulk::decompress(&stored, length).ok()?.into(),
    };
    (content.len() == length).then_some(content)
}

/// What a file has in a stretch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Zeros, or nothing.
    Zero,
    /// Content.
    Data(Sha256),
    /// The file ends before.
    Short,
}

/// Looks at what a file has in a stretch.
pub(crate) fn examine(file: &std::fs::File, offset: u64, length: usize) -> io::Result<Found> {
    match read(file, offset, length) {
        Ok(None) => {
            Ok(if file.metadata()?.len() < offset + length as u64 { Found::Short } else { Found::Zero })
        }
        Ok(Some(content)) => Ok(Found::Data(Sha256::of(&content))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Found::Short),
        Err(error) => Err(error),
    }
}

/// Writes content; zeros in it become holes, whatever was there before.
pub(crate) fn write_sparse(file: &std::fs::File, offset: u64, content: &[u8]) -> io::Result<()> {
    clear(file, offset, content.len())?;
    let mut at = 0;
    while at < content.len() {
        let rest = &content[at..];
        let zeros: usize = rest.chunks(BLOCK_BYTES).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        let data: usize =
            rest[zeros..].chunks(BLOCK_BYTES).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        file.write_all_at(&rest[zeros..zeros + data], offset + (at + zeros) as u64)?;
        at += zeros + data;
    }
    Ok(())
}

/// Makes a stretch of a file zeros, as a hole where the file system can.
pub(crate) fn clear(file: &std::fs::File, offset: u64, length: usize) -> io::Result<()> {
    if is_hole(file, offset, length as u64)? {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, length as u64) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(&vec![0; length], offset),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const LENGTH: usize = 256 << 10;

    fn patterned() -> Vec<u8> {
        let mut content = vec![0; LENGTH];
        content[100_000..140_000].fill(7);
        content[LENGTH - 1] = 1;
        content
    }

    #[test]
    fn content_comes_back_and_stays_sparse() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * LENGTH as u64).unwrap();
        // What was there before does not shine through.
        file.write_all_at(&vec![9; LENGTH], LENGTH as u64).unwrap();
        let content = patterned();
        write_sparse(&file, LENGTH as u64, &content).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 100_000, "holes are kept");
        for encoding in [Encoding::None, Encoding::Zstd] {
            let encoded = encode(&file, LENGTH as u64, LENGTH, encoding).unwrap();
            assert_eq!(encoded.digest, Some(Sha256::of(&content)));
            assert_eq!(decode(encoded.bytes.clone(), LENGTH, encoding).unwrap(), content);
            assert!(decode(encoded.bytes.slice(1..), LENGTH, encoding).is_none());
            assert!(decode(encoded.bytes, LENGTH - 1, encoding).is_none());
        }
        assert_eq!(examine(&file, LENGTH as u64, LENGTH).unwrap(), Found::Data(Sha256::of(&content)));
        assert_eq!(examine(&file, 0, LENGTH).unwrap(), Found::Zero);
        assert_eq!(examine(&file, 4 * LENGTH as u64, LENGTH).unwrap(), Found::Short);
        clear(&file, LENGTH as u64, LENGTH).unwrap();
        assert_eq!(examine(&file, LENGTH as u64, LENGTH).unwrap(), Found::Zero);
    }

    #[test]
    fn zeros_are_sent_only_where_the_object_is_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * LENGTH as u64).unwrap();
        file.write_all_at(&vec![0; LENGTH], 0).unwrap();
        for offset in [0, LENGTH as u64] {
            let plain = encode(&file, offset, LENGTH, Encoding::None).unwrap();
            assert_eq!((plain.digest, plain.bytes.len()), (None, LENGTH));
            let compressed = encode(&file, offset, LENGTH, Encoding::Zstd).unwrap();
            assert_eq!((compressed.digest, compressed.bytes.len()), (None, 0));
        }
    }

    #[test]
    fn digests_are_the_known_ones_and_parse() {
        let digest = Sha256::of_pieces([b"a".as_slice(), b"bc"]);
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(Sha256::try_from(text.to_owned()), Ok(digest));
        for bad in ["", &text[1..], &text.replace('b', "g"), &"é".repeat(32)] {
            assert!(Sha256::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
