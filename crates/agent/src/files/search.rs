//! Looking into files: `find` (contents), `search` (names), `replace`.

use std::{fs::File, io, io::Read as _, sync::Arc};

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use memchr::memmem::Finder;
use sandhaus_protocol::{
    files::LIST_ENTRIES_MAX,
    toolbox::{Match, ReplaceRequest, ReplaceResult, SearchReply},
};
use serde::Deserialize;

use super::{Target, join, json, long_work};
use crate::{
    agent::Agent,
    error::{Error, Result},
    sys::{Entry, EntryKind, Place, Upload, open_directory, open_regular_below},
};

/// Most matches of one content search.
const MATCHES_MAX: usize = 100_000;

/// Most bytes of all lines found.
const MATCHES_BYTES_MAX: usize = 32 << 20;

/// Bytes at the start of a file that tell whether it is binary.
const PROBE_BYTES: usize = 512;

/// Largest file that is changed.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Longest line given back in full.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes read from a file at once.
const READ_BYTES: usize = 64 * 1024;

/// Longest text that is looked for.
const PATTERN_BYTES_MAX: usize = 16 * 1024;

/// Deepest level that is searched.
const DEPTH_MAX: u32 = 256;

/// Most files of one replacement.
const REPLACE_FILES_MAX: usize = 10_000;

/// Query of both searches.
#[derive(Debug, Deserialize)]
pub(crate) struct SearchQuery {
    #[serde(flatten)]
    target: Target,
    pattern: String,
}

/// `GET /files/find`.
pub(crate) async fn find(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<SearchQuery>,
) -> Result<Response> {
    if query.pattern.is_empty() || query.pattern.len() > PATTERN_BYTES_MAX {
        return Err(Error::invalid(format_args!("a pattern has 1 to {PATTERN_BYTES_MAX} bytes")));
    }
    let top = query.target.path.trim_end_matches('/').to_owned();
    long_work(&agent, query.target, move |place| Ok(json(&find_in(&place, &top, &query.pattern)?))).await
}

fn find_in(place: &Place, top: &str, pattern: &str) -> io::Result<Vec<Match>> {
    let mut matches = Matches { found: Vec::new(), bytes: 0, pattern: Finder::new(pattern) };
    if place.describe()?.kind == EntryKind::File {
        let (file, _) = place.open_regular()?;
        matches.look_into(file, top)?;
        return Ok(matches.found);
    }
    let folder = open_directory(place)?;
    for entry in listing(place)? {
        if matches.are_enough() {
            break;
        }
        // What cannot be read is passed over.
        if entry.kind == EntryKind::File
            && let Ok((file, _)) = open_regular_below(&folder, &entry.path)
        {
            let _ = matches.look_into(file, &join(top, &entry.path));
        }
    }
    Ok(matches.found)
}

fn listing(place: &Place) -> io::Result<Vec<Entry>> {
    place.list(DEPTH_MAX, LIST_ENTRIES_MAX)?.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

/// Lines that hold a text, as far as there is room for them.
struct Matches<'a> {
    found: Vec<Match>,
    bytes: usize,
    pattern: Finder<'a>,
}

/// A line of which not all may have been read.
#[derive(Default)]
struct Line {
    /// What is shown of it.
    head: Vec<u8>,
    /// The end of what was read, in which the text may begin.
    tail: Vec<u8>,
    has_it: bool,
}

impl Line {
    fn add(&mut self, piece: &[u8], pattern: &Finder<'_>) {
        let room = LINE_BYTES_MAX.saturating_sub(self.head.len());
        self.head.extend_from_slice(&piece[..piece.len().min(room)]);
        if self.has_it {
            return;
        }
        let before = pattern.needle().len() - 1;
        self.tail.extend_from_slice(&piece[..piece.len().min(before)]);
        self.has_it = pattern.find(&self.tail).is_some() || pattern.find(piece).is_some();
        if piece.len() >= before {
            self.tail.clear();
        }
        self.tail.extend_from_slice(if piece.len() >= before { &piece[piece.len() - before..] } else { &[] });
        let excess = self.tail.len().saturating_sub(before);
        self.tail.drain(..excess);
    }
}

impl Matches<'_> {
    fn are_enough(&self) -> bool {
        self.found.len() >= MATCHES_MAX || self.bytes >= MATCHES_BYTES_MAX
    }

    fn look_into(&mut self, mut file: File, name: &str) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let (mut number, mut line, mut is_first) = (1, Line::default(), true);
        loop {
            let read = file.read(&mut buffer)?;
            let mut rest = &buffer[..read];
            if is_first && rest[..read.min(PROBE_BYTES)].contains(&0) {
                return Ok(());
            }
            is_first = false;
            while let Some(end) = memchr::memchr(b'\n', rest) {
                line.add(&rest[..end], &self.pattern);
                self.note(std::mem::take(&mut line), number, name);
                number += 1;
                rest = &rest[end + 1..];
            }
            line.add(rest, &self.pattern);
            if read == 0 {
                self.note(line, number, name);
                return Ok(());
            }
            if self.are_enough() {
                return Ok(());
            }
        }
    }

    fn note(&mut self, line: Line, number: u64, name: &str) {
        if !line.has_it || self.are_enough() {
            return;
        }
        let shown = line.head.strip_suffix(b"\r").unwrap_or(&line.head);
        let content = String::from_utf8_lossy(shown).into_owned();
        self.bytes += content.len() + name.len();
        self.found.push(Match { file: name.to_owned(), line: number, content });
    }
}

/// `GET /files/search`.
pub(crate) async fn search(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<SearchQuery>,
) -> Result<Response> {
    if query.pattern.len() > PATTERN_BYTES_MAX {
        return Err(Error::invalid(format_args!("a pattern has at most {PATTERN_BYTES_MAX} bytes")));
    }
    let glob = Glob::parse(&query.pattern).ok_or_else(|| Error::invalid("syntax error in pattern"))?;
    let top = query.target.path.trim_end_matches('/').to_owned();
    long_work(&agent, query.target, move |place| {
        let found = listing(&place)?.into_iter().filter(|entry| glob.matches(&entry.name));
        Ok(json(&SearchReply { files: found.map(|entry| join(&top, &entry.path)).collect() }))
    })
    .await
}

/// `POST /files/replace`.
pub(crate) async fn replace(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ReplaceRequest>,
) -> Result<Json<Vec<ReplaceResult>>> {
    if request.files.len() > REPLACE_FILES_MAX {
        return Err(Error::invalid(format_args!("at most {REPLACE_FILES_MAX} files")));
    }
    if request.pattern.is_empty() {
        return Err(Error::invalid("the pattern is empty"));
    }
    let mut results = Vec::with_capacity(request.files.len());
    for file in request.files {
        let (pattern, new_value) = (request.pattern.clone(), request.new_value.clone());
        let target = Target { path: file.clone(), root: None };
        let again = target.clone();
        let workdir = agent.workdir.clone();
        let done = long_work(&agent, target, move |place| {
            let again = again.place(&workdir).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
            replace_in(&place, again, pattern.as_bytes(), new_value.as_bytes())
        })
        .await;
        let error = done.err().map(|error| error.message.into_owned());
        results.push(ReplaceResult { file, success: error.is_none(), error });
    }
    Ok(Json(results))
}

fn replace_in(place: &Place, again: Place, pattern: &[u8], new_value: &[u8]) -> io::Result<()> {
    let (file, entry) = place.open_regular()?;
    if entry.size > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let changed = replace_all(&bytes, pattern, new_value)?;
    if changed == bytes {
        return Ok(());
    }
    let mut upload = Upload::start(again)?;
    upload.write(&changed)?;
    upload.commit().map(drop)
}

fn replace_all(bytes: &[u8], pattern: &[u8], new_value: &[u8]) -> io::Result<Vec<u8>> {
    let mut changed = Vec::with_capacity(bytes.len());
    let mut done = 0;
    for at in memchr::memmem::find_iter(bytes, pattern) {
        changed.extend_from_slice(&bytes[done..at]);
        changed.extend_from_slice(new_value);
        done = at + pattern.len();
        if changed.len() as u64 > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    changed.extend_from_slice(&bytes[done..]);
    Ok(changed)
}

/// A shell pattern for one name: `*`, `?`, `[a-z]`, `[^a-z]`, `\x`.
#[derive(Debug, PartialEq, Eq)]
struct Glob(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Any,
    One,
    Literal(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    fn parse(pattern: &str) -> Option<Self> {
        let mut pieces = Vec::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            let piece = match c {
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Literal(rest.next()?),
                '[' => parse_class(&mut rest)?,
                other => Piece::Literal(other),
            };
            // Stars in a row mean the same as one.
            if piece != Piece::Any || pieces.last() != Some(&Piece::Any) {
                pieces.push(piece);
            }
        }
        Some(Self(pieces))
    }

    /// Steps back to the last star only, so time is bounded by the product of both lengths.
    fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut piece, mut star) = (0, 0, None);
        while at < name.len() {
            match self.0.get(piece) {
                Some(Piece::Any) => {
                    star = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(other) if other.takes(name[at]) => {
                    at += 1;
                    piece += 1;
                    continue;
                }
                Some(_) | None => {}
            }
            let Some((starred, from)) = star else { return false };
            star = Some((starred, from + 1));
            piece = starred + 1;
            at = from + 1;
        }
        self.0[piece..].iter().all(|piece| *piece == Piece::Any)
    }
}

impl Piece {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Literal(literal) => *literal == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated
            }
        }
    }
}

fn parse_class(rest: &mut std::str::Chars<'_>) -> Option<Piece> {
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        let from = match rest.next()? {
            ']' if !ranges.is_empty() => return Some(Piece::Class { negated, ranges }),
            ']' | '-' => return None,
            '\\' => rest.next()?,
            other => other,
        };
        let to = if rest.as_str().starts_with('-') {
            rest.next();
            match rest.next()? {
                ']' | '-' => return None,
                '\\' => rest.next()?,
                other => other,
            }
        } else {
            from
        };
        ranges.push((from, to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let matches = |pattern, name| Glob::parse(pattern).is_some_and(|glob| glob.matches(name));
        for (pattern, name) in [
            ("*.txt", "a.txt"),
            ("a*b*c", "axxbyyc"),
            ("?", "ä"),
            ("[a-c]x", "bx"),
            ("[^a]", "b"),
            ("\\*", "*"),
            ("*", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.txt", "a.txt.gz"), ("?", ""), ("[a-c]x", "dx"), ("a", "ab"), ("", "a")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        for wrong in ["[", "[]", "[a", "[a-]", "\\", "[-a]"] {
            assert_eq!(Glob::parse(wrong), None, "{wrong}");
        }
        assert!(!matches(&"*a".repeat(60), &"a".repeat(59)));
    }

    #[test]
    fn replacement_is_literal() {
        let replaced =
            |text: &[u8], pattern: &[u8], new: &[u8]| replace_all(text, pattern, new).expect("is small");
        assert_eq!(replaced(b"a.b.c", b".", b"::"), b"a::b::c");
        assert_eq!(replaced(b"aaa", b"aa", b"b"), b"ba");
        assert_eq!(replaced(b"abc", b"abcd", b""), b"abc");
        assert!(replace_all(&[b'a'; 2048], b"a", &[b'b'; 1 << 16]).is_err(), "grows without an end");
    }

    /// What is found in a file with this content.
    fn found(content: &[u8], pattern: &str) -> Vec<(u64, String)> {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(path.path(), content).expect("write");
        let mut matches = Matches { found: Vec::new(), bytes: 0, pattern: Finder::new(pattern) };
        matches.look_into(File::open(path.path()).expect("open"), "f").expect("reads");
        matches.found.into_iter().map(|found| (found.line, found.content)).collect()
    }

    #[test]
    fn lines_are_found_however_long_and_wherever_they_are_cut() {
        assert_eq!(found(b"a\nb x\r\n\nx", "x"), [(2, "b x".to_owned()), (4, "x".to_owned())]);
        assert_eq!(found(b"", "x"), []);
        assert_eq!(found(b"x\0", "x"), []);
        for at in READ_BYTES - 7..READ_BYTES + 2 {
            let mut content = vec![b'.'; 3 * READ_BYTES];
            content[at..at + 6].copy_from_slice(b"needle");
            content.extend_from_slice(b"\nneedle");
            let found = found(&content, "needle");
            assert_eq!((found.len(), found[0].0, found[1].0), (2, 1, 2), "{at}");
            assert_eq!(found[0].1.len(), LINE_BYTES_MAX);
        }
    }

    #[test]
    fn a_text_in_many_pieces_of_a_line_is_found() {
        let pattern = Finder::new("needle");
        for size in 1..9 {
            let mut line = Line::default();
            for piece in b"..needneedle..".chunks(size) {
                line.add(piece, &pattern);
            }
            assert!(line.has_it, "{size}");
        }
        let mut line = Line::default();
        for piece in b"nedleneedl e".chunks(1) {
            line.add(piece, &pattern);
        }
        assert!(!line.has_it);
    }
}
