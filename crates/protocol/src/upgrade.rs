//! Replacing the agent inside a running sandbox by another build of it. Only the host may ask for that.
//!
//! | call | answer |
//! |---|---|
//! | `POST /sandhaus/upgrade?force=BOOL` the executable, its SHA-256 in [`DIGEST_HEADER`] | 200 [`UpgradeReply`] of the new agent, or of the old one why it goes on |
//!
//! The new agent takes the old one's place in the same process, with its listening socket, terminals, processes, shells,
//! sessions and their logs. Every other connection is cut; streams are resumed by offset. What cannot be carried over is
//! waited for a while; what is in the way then is named in a refusal (409, [`IN_THE_WAY`]) unless `force` gives it up. A refusal of any kind
//! leaves the old agent at work. An answer that does not come says nothing: a greeting tells who is there.

use serde::{Deserialize, Serialize};

/// Path of the request.
pub const PATH: &str = "/sandhaus/upgrade";

/// Header with the SHA-256 of the body, in lower-case hexadecimal.
pub const DIGEST_HEADER: &str = "sandhaus-digest";

/// Largest executable in bytes.
pub const EXECUTABLE_BYTES_MAX: u64 = 64 << 20;

/// Code of the refusal that names what cannot be carried over at present.
pub const IN_THE_WAY: &str = "UPGRADE_IN_THE_WAY";

/// Code of the refusal of an executable that is not what it should be, or that does not take the state.
pub const NOT_TAKEN: &str = "UPGRADE_NOT_TAKEN";

/// What a new agent says when it has taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpgradeReply {
    /// Its version.
    pub version: String,
    /// Its build, as in its greetings.
    pub build: String,
}

/// Largest part of an executable's headers and notes that is looked at.
const HEADERS_MAX: usize = 1 << 16;

/// Kind of a program header that leads to notes, and of the note that the linker leaves.
const NOTES: u32 = 4;
const BUILD_NOTE: u32 = 3;

/// What tells one build of an executable (64 bits, little endian) from every other, in hexadecimal: the note that its linker
/// left; `None` if it left none.
pub fn build_of(executable: &[u8]) -> Option<String> {
    if !executable.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*executable.get(at..)?.first_chunk()?)));
    let long = |at: usize| usize::try_from(u64::from_le_bytes(*executable.get(at..)?.first_chunk()?)).ok();
    let (table, size, count) = (long(32)?, half(54)?, half(56)?);
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(*executable.get(header..)?.first_chunk()?);
        if kind != NOTES {
            continue;
        }
        let (start, length) = (long(header.checked_add(8)?)?, long(header.checked_add(32)?)?);
        let notes = executable.get(start..start.checked_add(length.min(HEADERS_MAX))?)?;
        if let Some(build) = build_in_notes(notes) {
            return Some(build);
        }
    }
    None
}

/// The same in the notes alone.
pub fn build_in_notes(mut notes: &[u8]) -> Option<String> {
    loop {
        let word = |at: usize| usize::try_from(u32::from_le_bytes(*notes.get(at..)?.first_chunk()?)).ok();
        let (name, content, kind) = (word(0)?, word(4)?, word(8)?);
        let padded = |length: usize| length.checked_next_multiple_of(4);
        let content_at = 12_usize.checked_add(padded(name)?)?;
        let end = content_at.checked_add(content)?;
        let (name, content) = (notes.get(12..12 + name)?, notes.get(content_at..end)?);
        if kind == BUILD_NOTE as usize && name == b"GNU\0" && !content.is_empty() {
            return Some(content.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(content_at.checked_add(padded(content.len())?)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [name.len(), content.len()] {
            note.extend(u32::try_from(number).expect("short").to_le_bytes());
        }
        note.extend(kind.to_le_bytes());
        for part in [name, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_is_found_among_notes() {
        let build = note(b"GNU\0", 3, &[0xab, 0xcd, 0x01]);
        let other = note(b"GNU\0", 1, b"x");
        assert_eq!(build_in_notes(&build), Some("abcd01".to_owned()));
        assert_eq!(build_in_notes(&[other.clone(), build.clone()].concat()), Some("abcd01".to_owned()));
        assert_eq!(build_in_notes(&note(b"else", 3, b"abc")), None);
        for cut in 0..build.len() {
            let cut_short = [other.as_slice(), &build[..cut]].concat();
            assert!(cut + 1 >= build.len() || build_in_notes(&cut_short).is_none());
        }
        assert_eq!(build_in_notes(&[0xff; 64]), None);
    }

    #[test]
    fn the_build_is_found_in_an_executable() {
        let build = note(b"GNU\0", 3, &[1, 2, 3, 4]);
        let mut file = vec![0_u8; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 4;
        file[72] = 120;
        file[96] = u8::try_from(build.len()).expect("short");
        file.extend(&build);
        assert_eq!(build_of(&file), Some("01020304".to_owned()));
        for cut in 0..file.len() {
            assert_eq!(build_of(&file[..cut]), None);
        }
        file[32..40].fill(0xff);
        assert_eq!(build_of(&file), None);
        assert_eq!(build_of(b"#!/bin/sh"), None);
    }
}
