//! Looking into files: `find` (contents), `search` (names), `replace`.

use std::{fs::File, io, io::Read as _, sync::Arc};

use axum::{
    Json,
    extract::{Query, State},
};
use sandhaus_protocol::{
    files::LIST_ENTRIES_MAX,
    toolbox::{Match, ReplaceRequest, ReplaceResult, SearchReply},
};
use serde::Deserialize;

use super::{Target, join, work};
use crate::{
    agent::Agent,
    error::{Error, Result},
    sys::{EntryKind, Place, Upload, open_directory, open_regular_below},
};

/// Most matches of one content search.
const MATCHES_MAX: usize = 100_000;

/// Bytes at the start of a file that tell whether it is binary.
const PROBE_BYTES: usize = 512;

/// Largest file that is searched or changed.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Longest line given back in full.
const LINE_BYTES_MAX: usize = 64 * 1024;

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
) -> Result<Json<Vec<Match>>> {
    if query.pattern.is_empty() {
        return Err(Error::invalid("the pattern is empty"));
    }
    let top = query.target.path.trim_end_matches('/').to_owned();
    let found = work(&agent, query.target, move |place| find_in(&place, &top, &query.pattern)).await?;
    Ok(Json(found))
}

fn find_in(place: &Place, top: &str, pattern: &str) -> io::Result<Vec<Match>> {
    let mut matches = Vec::new();
    if place.describe()?.kind == EntryKind::File {
        let (file, entry) = place.open_regular()?;
        find_in_file(file, entry.size, top, pattern, &mut matches)?;
        return Ok(matches);
    }
    let folder = open_directory(place)?;
    for entry in listing(place)? {
        if entry.kind != EntryKind::File || matches.len() >= MATCHES_MAX {
            continue;
        }
        // What cannot be read is passed over.
        if let Ok((file, opened)) = open_regular_below(&folder, &entry.path) {
            let _ = find_in_file(file, opened.size, &join(top, &entry.path), pattern, &mut matches);
        }
    }
    Ok(matches)
}

fn listing(place: &Place) -> io::Result<Vec<crate::sys::Entry>> {
    let too_many = || io::Error::other(format!("more than {LIST_ENTRIES_MAX} entries"));
    place.list(DEPTH_MAX, LIST_ENTRIES_MAX)?.ok_or_else(too_many)
}

fn find_in_file(
    file: File,
    size: u64,
    name: &str,
    pattern: &str,
    matches: &mut Vec<Match>,
) -> io::Result<()> {
    if size > FILE_BYTES_MAX {
        return Ok(());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    if bytes[..bytes.len().min(PROBE_BYTES)].contains(&0) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&bytes);
    for (index, line) in text.lines().enumerate() {
        if line.contains(pattern) && matches.len() < MATCHES_MAX {
            let mut end = line.len().min(LINE_BYTES_MAX);
            while !line.is_char_boundary(end) {
                end -= 1;
            }
            matches.push(Match {
                file: name.to_owned(),
                line: index as u64 + 1,
                content: line[..end].to_owned(),
            });
        }
    }
    Ok(())
}

/// `GET /files/search`.
pub(crate) async fn search(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<SearchQuery>,
) -> Result<Json<SearchReply>> {
    let glob = Glob::parse(&query.pattern).ok_or_else(|| Error::invalid("syntax error in pattern"))?;
    let top = query.target.path.trim_end_matches('/').to_owned();
    let files = work(&agent, query.target, move |place| {
        let found = listing(&place)?.into_iter().filter(|entry| glob.matches(&entry.name));
        Ok(found.map(|entry| join(&top, &entry.path)).collect())
    })
    .await?;
    Ok(Json(SearchReply { files }))
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
        let done = work(&agent, target, move |place| {
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
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let changed = replace_all(&bytes, pattern, new_value);
    if changed == bytes {
        return Ok(());
    }
    let mut upload = Upload::start(again)?;
    upload.write(&changed)?;
    upload.commit().map(drop)
}

fn replace_all(bytes: &[u8], pattern: &[u8], new_value: &[u8]) -> Vec<u8> {
    let mut changed = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        if let Some(after) = rest.strip_prefix(pattern) {
            changed.extend_from_slice(new_value);
            rest = after;
        } else {
            changed.push(*first);
            rest = &rest[1..];
        }
    }
    changed
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
        assert_eq!(replace_all(b"a.b.c", b".", b"::"), b"a::b::c");
        assert_eq!(replace_all(b"aaa", b"aa", b"b"), b"ba");
        assert_eq!(replace_all(b"abc", b"abcd", b""), b"abc");
    }
}
