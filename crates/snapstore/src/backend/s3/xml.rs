//! The few documents that S3 answers with.

use quick_xml::{Reader, events::Event};

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 16;

/// Most elements of one document.
const ELEMENTS_MAX: usize = 100_000;

/// The elements of a document in their order, each as the names from the outermost in, such as
/// `ListBucketResult/Contents/Key`, with its text.
pub(super) fn elements(document: &[u8]) -> Result<Vec<(String, String)>, String> {
    let mut reader = Reader::from_reader(document);
    let mut found: Vec<(String, String)> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let problem = |error: &dyn std::fmt::Display| format!("the answer is no XML: {error}");
    loop {
        let event = reader.read_event().map_err(|error| problem(&error))?;
        if let Event::Start(tag) | Event::Empty(tag) = &event {
            let name = String::from_utf8_lossy(tag.local_name().as_ref()).into_owned();
            let path = open.last().map_or(name.clone(), |at| format!("{}/{name}", found[*at].0));
            found.push((path, String::new()));
        }
        let piece = match &event {
            Event::Text(piece) => piece.xml10_content().map_err(|error| problem(&error))?.into_owned(),
            Event::CData(piece) => String::from_utf8_lossy(piece).into_owned(),
            Event::GeneralRef(reference) => {
                resolve(reference).ok_or_else(|| problem(&"it has a reference of its own"))?.to_string()
            }
            // Nothing that S3 says is in the others, and a document type could only do harm.
            _ => String::new(),
        };
        if let Some(at) = open.last() {
            found[*at].1.push_str(&piece);
        }
        match event {
            Event::Start(_) => open.push(found.len() - 1),
            Event::End(_) => drop(open.pop()),
            Event::Eof if open.is_empty() => return Ok(found),
            Event::Eof => return Err(problem(&"it ends early")),
            _ => {}
        }
        if open.len() > DEPTH_MAX || found.len() > ELEMENTS_MAX {
            return Err(problem(&"it is too large"));
        }
    }
}

fn resolve(reference: &quick_xml::events::BytesRef<'_>) -> Option<char> {
    if let Ok(Some(character)) = reference.resolve_char_ref() {
        return Some(character);
    }
    match &reference[..] {
        b"amp" => Some('&'),
        b"lt" => Some('<'),
        b"gt" => Some('>'),
        b"quot" => Some('"'),
        b"apos" => Some('\''),
        _ => None,
    }
}

/// The text of the first element with this path.
pub(super) fn text<'a>(elements: &'a [(String, String)], path: &str) -> Option<&'a str> {
    elements.iter().find(|(at, _)| at == path).map(|(_, text)| text.as_str())
}

/// The texts of the children `names` of each element `path`, as far as they are there.
pub(super) fn records<'a, const N: usize>(
    elements: &'a [(String, String)],
    path: &str,
    names: [&str; N],
) -> Vec<[Option<&'a str>; N]> {
    let mut records: Vec<[Option<&str>; N]> = Vec::new();
    for (at, text) in elements {
        if at == path {
            records.push([None; N]);
        }
        let Some(name) = at.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let column = names.iter().position(|known| *known == name);
        if let (Some(record), Some(column)) = (records.last_mut(), column) {
            record[column] = Some(text);
        }
    }
    records
}

/// Text as it stands in a document.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
        <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix/>
        <Contents><Key>a&amp;b&#47;c</Key><Size>5</Size></Contents>
        <Contents><ETag>&quot;x&quot;</ETag><Key>d</Key></Contents>
        <CommonPrefixes><Prefix>e/</Prefix></CommonPrefixes><IsTruncated>false</IsTruncated></ListBucketResult>"#;

    #[test]
    fn a_listing_is_read() {
        let elements = elements(LISTING.as_bytes()).unwrap();
        assert_eq!(text(&elements, "ListBucketResult/IsTruncated"), Some("false"));
        assert_eq!(text(&elements, "ListBucketResult/Prefix"), Some(""));
        assert_eq!(
            records(&elements, "ListBucketResult/Contents", ["Key", "Size", "ETag"]),
            [[Some("a&b/c"), Some("5"), None], [Some("d"), None, Some("\"x\"")]]
        );
        assert_eq!(records(&elements, "ListBucketResult/CommonPrefixes", ["Prefix"]), [[Some("e/")]]);
    }

    #[test]
    fn what_is_no_such_document_is_an_error() {
        for bad in ["<a>", "<a></b>", "<a>&unknown;</a>", &"<a>".repeat(50)] {
            assert!(elements(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(elements(b"plain").unwrap(), []);
    }
}
