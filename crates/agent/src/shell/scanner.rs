//! Takes the markers out of a terminal's output. A marker is `\x01`, a nonce that only the agent and its shells know,
//! `:`, what it says, `\0`. Everything else passes through unchanged, whatever it looks like.

use serde::{Deserialize, Serialize};

/// Longest marker: a directory name of the longest path, and some room.
const MARKER_BYTES_MAX: usize = 16 * 1024;

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Marker {
    /// The agent: from here on the output belongs to this command.
    Begin(u64),
    /// The shell: the command has ended with this status in this directory.
    End {
        /// The command.
        exec_id: u64,
        /// Its status.
        status: i32,
        /// Where the shell is now; empty when it does not know.
        cwd: String,
    },
    /// The agent: the shell has ended, everything it wrote came before.
    Dead(u64),
}

/// A piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Plain bytes.
    Bytes(&'a [u8]),
    /// A marker.
    Marker(Marker),
}

/// Finds markers in a stream that arrives in arbitrary pieces. Holds back only what may be the start of one.
#[derive(Debug)]
pub(crate) struct Scanner {
    prefix: Vec<u8>,
    held: Vec<u8>,
}

impl Scanner {
    /// A scanner for the markers with this nonce.
    pub(crate) fn new(nonce: &str) -> Self {
        Self::holding(nonce, Vec::new())
    }

    /// One that goes on where another one holds these bytes back.
    pub(crate) fn holding(nonce: &str, held: Vec<u8>) -> Self {
        Self { prefix: format!("\x01{nonce}:").into_bytes(), held }
    }

    /// What it holds back.
    pub(crate) fn held(&self) -> &[u8] {
        &self.held
    }

    /// Text of the marker that begins a command.
    pub(crate) fn begin(nonce: &str, exec_id: u64) -> String {
        format!("\x01{nonce}:b{exec_id}\0")
    }

    /// Text of the marker that follows the last words of a dead shell.
    pub(crate) fn dead(nonce: &str, exec_id: u64) -> String {
        format!("\x01{nonce}:d{exec_id}\0")
    }

    /// Shell text that prints the end marker to descriptor `fd`; `status` and `cwd` are shell words.
    pub(crate) fn end_command(nonce: &str, exec_id: u64, fd: u8) -> String {
        format!("\\command printf '\\001{nonce}:e%s:%d:%s\\0' {exec_id} \"$?\" \"${{PWD-}}\" >&{fd}\n")
    }

    /// Passes `input` on to `sink`, piece by piece and in order.
    pub(crate) fn feed(&mut self, mut input: &[u8], mut sink: impl FnMut(Piece<'_>)) {
        while let Some(&byte) = input.first() {
            if self.held.is_empty() {
                let plain = input.iter().position(|b| *b == self.prefix[0]).unwrap_or(input.len());
                if plain > 0 {
                    sink(Piece::Bytes(&input[..plain]));
                }
                if plain < input.len() {
                    self.held.push(self.prefix[0]);
                }
                input = &input[(plain + 1).min(input.len())..];
            } else if self.held.len() < self.prefix.len() {
                if byte == self.prefix[self.held.len()] {
                    self.held.push(byte);
                    input = &input[1..];
                } else {
                    // The first byte of the prefix occurs nowhere else in it, so nothing held can start another.
                    sink(Piece::Bytes(&self.held));
                    self.held.clear();
                }
            } else {
                input = &input[1..];
                if byte != 0 {
                    self.held.push(byte);
                }
                if byte == 0 || self.held.len() > MARKER_BYTES_MAX {
                    match parse(&self.held[self.prefix.len()..]) {
                        Some(marker) if byte == 0 => sink(Piece::Marker(marker)),
                        _ => sink(Piece::Bytes(&self.held)),
                    }
                    self.held.clear();
                }
            }
        }
        if self.held.capacity() > 256 && self.held.is_empty() {
            self.held = Vec::new();
        }
    }
}

fn parse(text: &[u8]) -> Option<Marker> {
    let text = String::from_utf8_lossy(text);
    let (kind, rest) = text.split_at_checked(1)?;
    match kind {
        "b" => Some(Marker::Begin(rest.parse().ok()?)),
        "d" => Some(Marker::Dead(rest.parse().ok()?)),
        "e" => {
            let mut fields = rest.splitn(3, ':');
            let exec_id = fields.next()?.parse().ok()?;
            let status = fields.next()?.parse().ok()?;
            // The terminal has put a carriage return before each newline.
            let cwd = fields.next()?.replace("\r\n", "\n");
            Some(Marker::End { exec_id, status, cwd })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "0123456789abcdef";

    fn scan(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Marker>) {
        let mut scanner = Scanner::new(NONCE);
        let (mut bytes, mut markers) = (Vec::new(), Vec::new());
        for piece in pieces {
            scanner.feed(piece, |piece| match piece {
                Piece::Bytes(plain) => bytes.extend_from_slice(plain),
                Piece::Marker(marker) => markers.push(marker),
            });
        }
        (bytes, markers)
    }

    #[test]
    fn markers_are_found_at_any_cut() {
        let mut text = b"before\x01".to_vec();
        text.extend_from_slice(Scanner::begin(NONCE, 7).as_bytes());
        text.extend_from_slice(b"middle\x01012345");
        text.extend_from_slice(format!("\x01{NONCE}:e7:130:/a:b\r\nc\0").as_bytes());
        text.extend_from_slice(b"after");
        let end = Marker::End { exec_id: 7, status: 130, cwd: "/a:b\nc".to_owned() };
        for cut in 0..text.len() {
            let (bytes, markers) = scan(&[&text[..cut], &text[cut..]]);
            assert_eq!(bytes, b"before\x01middle\x01012345after");
            assert_eq!(markers, [Marker::Begin(7), end.clone()]);
        }
    }

    #[test]
    fn an_endless_marker_is_plain_output() {
        let mut text = format!("\x01{NONCE}:e1:0:").into_bytes();
        text.resize(MARKER_BYTES_MAX * 2, b'x');
        let (bytes, markers) = scan(&[&text, b"\0"]);
        assert!(markers.is_empty());
        assert_eq!(bytes.len(), text.len() + 1);
    }

    proptest! {
        #[test]
        fn other_bytes_pass_unchanged(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), Just(1_u8), Just(b'0'), Just(b'1'), Just(b'2'), Just(0_u8)], 0..400),
            cut in 0_usize..400)
        {
            let cut = cut.min(bytes.len());
            let (mut passed, markers) = scan(&[&bytes[..cut], &bytes[cut..], b"."]);
            prop_assert!(markers.is_empty());
            prop_assert_eq!(passed.pop(), Some(b'.'));
            prop_assert_eq!(passed, bytes);
        }
    }
}
