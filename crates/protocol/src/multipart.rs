//! Forms with files (`multipart/form-data`) taken apart piece by piece, for whoever has their bytes. What is kept is bounded,
//! however large a part is: bytes are asked for only when those that are there mean nothing more.
//!
//! ```text
//!   before ── delimiter ──> after it ── end of line ──> head ── empty line ──> content ── delimiter ──> after it …
//!                              └── two dashes ──> the end: what follows means nothing
//! ```

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memmem::Finder;

/// Longest boundary; the standard's is 70.
const BOUNDARY_BYTES_MAX: usize = 200;

/// Most bytes before the first part.
const PREAMBLE_BYTES_MAX: usize = 16 * 1024;

/// Most blanks after a delimiter.
const PADDING_BYTES_MAX: usize = 256;

/// Longest head of a part.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// The boundary of a form, if this is a form's content type.
#[must_use]
pub fn boundary(content_type: &str) -> Option<String> {
    let (kind, rest) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(rest, "boundary")?;
    (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()).then_some(boundary)
}

/// The value of a parameter among `; name=value; name="value"`.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        text = text.trim_start_matches([';', ' ', '\t']);
        let (name, rest) = text.split_once('=')?;
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(';').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = after;
    }
}

/// A text up to its closing quote, and what follows that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            // Only quotes and backslashes are ever escaped; in a name of Windows a backslash means itself.
            '\\' => match text[at + 1..].chars().next()? {
                escaped @ ('"' | '\\') => {
                    characters.next();
                    value.push(escaped);
                }
                _ => value.push('\\'),
            },
            other => value.push(other),
        }
    }
    None
}

/// Why bytes are no form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// No part begins where one should.
    NoPart,
    /// A delimiter is followed by something else than it must be.
    Delimiter,
    /// A part's head is longer than any that means something.
    Head,
    /// The bytes are over before the form is. Only who has them knows that.
    Cut,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::NoPart => "it does not begin with its boundary",
            Self::Delimiter => "a boundary is followed by neither a part nor the end",
            Self::Head => "the head of a part is too long",
            Self::Cut => "it ends in the middle of a part",
        })
    }
}

impl std::error::Error for Malformed {}

/// What the head of a part says of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// The field's name, if it has one.
    pub name: Option<String>,
    /// What the file was called where it comes from, if it is a file.
    pub file_name: Option<String>,
}

/// What a form consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part begins.
    Part(Part),
    /// A piece of its content; without any bytes: its end.
    Content(Bytes),
    /// There are no more.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    AfterDelimiter,
    Head,
    Content,
    End,
}

/// Tells the parts of a form apart, whatever pieces it comes in.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    buffer: BytesMut,
    /// An end of line, two dashes and the boundary.
    delimiter: Finder<'static>,
    /// In so much of the buffer there is no beginning of what is looked for: pieces of a byte cost no more than large ones.
    searched: usize,
}

impl Decoder {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new(boundary: &str) -> Self {
        let delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        // The first delimiter may be the very first line; with this it looks as the others do.
        Self { state: State::Before, buffer: BytesMut::from(&b"\r\n"[..]), delimiter, searched: 0 }
    }

    /// Adds bytes. Only when [`Self::next_event`] wants more, or the buffer grows beyond what it needs.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.state != State::End {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next event; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no form; nothing more comes of them.
    pub fn next_event(&mut self) -> Result<Option<Event>, Malformed> {
        loop {
            let found = match self.state {
                State::Before => self.before()?,
                State::AfterDelimiter => self.after_delimiter()?,
                State::Head => return self.head(),
                State::Content => return Ok(self.content()),
                State::End => return Ok(Some(Event::End)),
            };
            if !found {
                return Ok(None);
            }
        }
    }

    fn before(&mut self) -> Result<bool, Malformed> {
        let most = PREAMBLE_BYTES_MAX + self.delimiter.needle().len();
        let looked_at = &self.buffer[..self.buffer.len().min(most)];
        match self.delimiter.find(&looked_at[self.searched..]) {
            Some(at) => {
                self.buffer.advance(self.searched + at + self.delimiter.needle().len());
                self.searched = 0;
                self.state = State::AfterDelimiter;
                Ok(true)
            }
            None if self.buffer.len() >= most => Err(Malformed::NoPart),
            None => {
                self.searched = (self.buffer.len() + 1).saturating_sub(self.delimiter.needle().len());
                Ok(false)
            }
        }
    }

    fn after_delimiter(&mut self) -> Result<bool, Malformed> {
        let blanks = self.buffer.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if blanks > PADDING_BYTES_MAX {
            return Err(Malformed::Delimiter);
        }
        let (state, taken) = match &self.buffer[blanks..] {
            [b'\r', b'\n', ..] => (State::Head, blanks + 2),
            // Blanks come after the dashes only.
            [b'-', b'-', ..] if blanks == 0 => (State::End, self.buffer.len()),
            [] | [b'\r'] => return Ok(false),
            [b'-'] if blanks == 0 => return Ok(false),
            _ => return Err(Malformed::Delimiter),
        };
        self.buffer.advance(taken);
        self.state = state;
        Ok(true)
    }

    fn head(&mut self) -> Result<Option<Event>, Malformed> {
        let looked_at = &self.buffer[..self.buffer.len().min(HEAD_BYTES_MAX)];
        // A head without any line ends with the first empty line, as every other does.
        let end = match looked_at {
            [b'\r', b'\n', ..] => Some((0, 2)),
            _ => memchr::memmem::find(&looked_at[self.searched..], b"\r\n\r\n")
                .map(|at| (self.searched + at, self.searched + at + 4)),
        };
        let Some((end, taken)) = end else {
            self.searched = self.buffer.len().saturating_sub(3);
            return if self.buffer.len() >= HEAD_BYTES_MAX { Err(Malformed::Head) } else { Ok(None) };
        };
        self.searched = 0;
        let part = part(&String::from_utf8_lossy(&self.buffer[..end]));
        self.buffer.advance(taken);
        self.state = State::Content;
        Ok(Some(Event::Part(part)))
    }

    /// A piece of content, or the end of it as no piece at all.
    fn content(&mut self) -> Option<Event> {
        let delimiter = self.delimiter.needle();
        let end = match self.delimiter.find(&self.buffer) {
            Some(0) => {
                self.buffer.advance(delimiter.len());
                self.state = State::AfterDelimiter;
                return Some(Event::Content(Bytes::new()));
            }
            Some(at) => at,
            None => {
                // What may be the beginning of a delimiter waits for the rest.
                let tail = self.buffer.len().saturating_sub(delimiter.len() - 1);
                let begins = |at: &usize| delimiter.starts_with(&self.buffer[*at..]);
                (tail..self.buffer.len()).find(begins).unwrap_or(self.buffer.len())
            }
        };
        (end > 0).then(|| Event::Content(self.buffer.split_to(end).freeze()))
    }
}

/// What a head says.
fn part(head: &str) -> Part {
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let parameters =
        disposition.and_then(|text| text.split_once(';')).map_or("", |(_, parameters)| parameters);
    Part { name: parameter(parameters, "name"), file_name: parameter(parameters, "filename") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Parts = Vec<(Option<String>, Vec<u8>)>;

    /// Everything that bytes mean, in pieces of these lengths; content joined.
    fn decode(bytes: &[u8], boundary: &str, lengths: &[usize]) -> (Parts, String) {
        let mut decoder = Decoder::new(boundary);
        let mut parts = Parts::new();
        let (mut rest, mut lengths) = (bytes, lengths.iter().copied().cycle());
        loop {
            match decoder.next_event() {
                Ok(Some(Event::Part(part))) => parts.push((part.name, Vec::new())),
                Ok(Some(Event::Content(content))) => {
                    parts.last_mut().expect("content is that of a part").1.extend_from_slice(&content);
                }
                Ok(Some(Event::End)) => return (parts, "whole".to_owned()),
                Ok(None) if rest.is_empty() => return (parts, "cut".to_owned()),
                Ok(None) => {
                    let length = lengths.next().unwrap_or(usize::MAX).clamp(1, rest.len());
                    decoder.push(&rest[..length]);
                    rest = &rest[length..];
                    assert!(decoder.buffer.len() < HEAD_BYTES_MAX + PREAMBLE_BYTES_MAX + length + 1024);
                }
                Err(error) => return (parts, error.to_string()),
            }
        }
    }

    fn encode(parts: &[(String, Vec<u8>)], boundary: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in parts {
            let name = name.replace('\\', "\\\\").replace('"', "\\\"");
            let head = format!(
                "--{boundary}\r\nContent-Type: x/y\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n"
            );
            bytes.extend_from_slice(head.as_bytes());
            bytes.extend_from_slice(content);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        bytes
    }

    #[test]
    fn content_types_with_boundaries() {
        let of = boundary;
        assert_eq!(of("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(of("Multipart/Form-Data;charset=utf-8; Boundary=\"a; b\"").as_deref(), Some("a; b"));
        for wrong in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/mixed; boundary=a",
            "text/plain",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(of(&format!("multipart/form-data; boundary={}", "x".repeat(201))), None);
    }

    #[test]
    fn names_of_fields() {
        let of =
            |disposition: &str| part(&format!("X: y\r\nContent-Disposition: {disposition}\r\nZ: w")).name;
        assert_eq!(of("form-data; name=\"files[0].path\"").as_deref(), Some("files[0].path"));
        assert_eq!(of("form-data; filename=\"a\\\"; name=b.txt\"; name=\"c\"").as_deref(), Some("c"));
        assert_eq!(of("form-data; name=plain; filename=x").as_deref(), Some("plain"));
        assert_eq!(of("form-data; filename=\"C:\\dir\\x\"; name=\"c\"").as_deref(), Some("c"));
        assert_eq!(of("form-data"), None);
        assert_eq!(of("form-data; name=\"open"), None);
    }

    #[test]
    fn names_of_files() {
        let of = |disposition: &str| part(&format!("content-disposition: {disposition}")).file_name;
        assert_eq!(of("form-data; name=\"a\"; filename=\"ü \\\"b\\\".txt\"").as_deref(), Some("ü \"b\".txt"));
        assert_eq!(of("form-data; name=\"filename=x\"; FileName=plain").as_deref(), Some("plain"));
        assert_eq!(of("form-data; name=\"a\"; filename=\"\"").as_deref(), Some(""));
        assert_eq!(of("form-data; name=\"a\""), None);
    }

    #[test]
    fn what_is_around_and_between_parts() {
        let read = |text: &str| decode(text.as_bytes(), "B", &[usize::MAX]);
        let (parts, end) = read("preamble\r\n--B \t\r\n\r\nno head\r\n--B--epilogue\r\n--B");
        assert_eq!((parts.as_slice(), &*end), ([(None, b"no head".to_vec())].as_slice(), "whole"));
        assert_eq!(read("--B--").1, "whole");
        assert_eq!(read("--B\r\nA: b\r\n\r\n\r\n--B\r\nA: b\r\n\r\n\r\n--B--").0.len(), 2, "empty contents");
        assert_eq!(read("--Bx").1, Malformed::Delimiter.to_string());
        assert_eq!(read("--B\r\nA: b\r\n\r\ncontent\r\n-").1, "cut");
        assert_eq!(read(&"x".repeat(100_000)).1, Malformed::NoPart.to_string());
        assert_eq!(read(&format!("--B\r\n{}", "x: y\r\n".repeat(20_000))).1, Malformed::Head.to_string());
        assert_eq!(read(&format!("--B{}", " ".repeat(1000))).1, Malformed::Delimiter.to_string());
    }

    proptest! {
        #[test]
        fn parts_come_out_as_they_went_in_whatever_the_pieces(
            parts in prop::collection::vec(("[a-z\"\\\\ü]{0,12}", prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'B'), any::<u8>()], 0..400)), 0..5),
            lengths in prop::collection::vec(1_usize..50, 1..8),
        ) {
            let boundary = "B-B";
            prop_assume!(parts.iter().all(|(_, content)| {
                memchr::memmem::find(&[b"\r\n", content.as_slice()].concat(), b"\r\n--B-B").is_none()
            }));
            let (decoded, end) = decode(&encode(&parts, boundary), boundary, &lengths);
            prop_assert_eq!(end, "whole");
            let expected: Vec<_> = parts.into_iter().map(|(name, content)| (Some(name), content)).collect();
            prop_assert_eq!(decoded, expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_mean_the_same_in_any_pieces(
            bytes in prop::collection::vec(prop_oneof![
                Just(b"\r\n--B".to_vec()), Just(b"--B".to_vec()), Just(b"\r\n".to_vec()), Just(b"--".to_vec()),
                Just(b"Content-Disposition: form-data; name=\"a\"".to_vec()), Just(b"\r\n\r\n".to_vec()), Just(vec![b' '; 300]),
                Just(vec![b'x'; 20_000]), prop::collection::vec(any::<u8>(), 0..40),
            ], 0..24).prop_map(|pieces| pieces.concat()),
            lengths in prop::collection::vec(1_usize..3000, 1..8),
        ) {
            prop_assert_eq!(decode(&bytes, "B", &lengths), decode(&bytes, "B", &[usize::MAX]));
        }
    }
}
