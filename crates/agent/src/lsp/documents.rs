//! Documents and projects by path and by URI. Clients say `file://` and a path, which may be relative and is not escaped;
//! servers want absolute and escaped ones, and answer with them.

use std::{collections::BTreeMap, fs, io::Read as _, path::Path};

use sandhaus_protocol::files::PATH_BYTES_MAX;

use crate::{
    error::{Error, Result},
    sys::Place,
};

/// Largest document that is opened.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// Most documents that one server has open.
const DOCUMENTS_MAX: usize = 1024;

/// What a document's URI starts with.
const SCHEME: &str = "file://";

/// The documents that a server has open: path by the URI that the client gave.
#[derive(Default)]
pub(super) struct Documents {
    paths: BTreeMap<String, String>,
}

impl Documents {
    /// The path of an open document.
    pub(super) fn path(&self, uri: &str) -> Option<String> {
        self.paths.get(uri).cloned()
    }

    /// Notes a document as open; whether it was already.
    pub(super) fn open(&mut self, uri: &str, path: &str) -> Result<bool> {
        let before = self.paths.values().any(|open| open == path);
        if !self.paths.contains_key(uri) && self.paths.len() >= DOCUMENTS_MAX {
            return Err(Error::too_many(format_args!(
                "{DOCUMENTS_MAX} documents are open already: close some"
            )));
        }
        self.paths.insert(uri.to_owned(), path.to_owned());
        Ok(before)
    }

    /// Forgets a document, whatever it was called; whether it was open.
    pub(super) fn close(&mut self, path: &str) -> bool {
        let before = self.paths.len();
        self.paths.retain(|_, open| open != path);
        self.paths.len() != before
    }

    /// How the client calls the document that a server calls this.
    pub(super) fn name_of(&self, server_uri: &str) -> String {
        let path = server_uri.strip_prefix(SCHEME).map(decoded);
        let found = self.paths.iter().find(|(_, open)| path.as_deref() == Some(open.as_str()));
        found.map_or_else(|| server_uri.to_owned(), |(uri, _)| uri.clone())
    }
}

/// The absolute path of a project, as the key of its servers.
pub(super) fn project_path(workdir: &str, path: &str) -> Result<String> {
    check(path)?;
    Ok(joined(workdir, path))
}

fn check(path: &str) -> Result<()> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(Error::invalid_path(format_args!(
            "a path has 1 to {PATH_BYTES_MAX} bytes, none of them NUL"
        )));
    }
    Ok(())
}

/// A path from a directory on, each part once.
fn joined(directory: &str, path: &str) -> String {
    let joined = Path::new(directory).join(path.strip_prefix(SCHEME).unwrap_or(path));
    joined.components().collect::<std::path::PathBuf>().to_string_lossy().into_owned()
}

/// The path that a client's URI means: from the work directory, or else from the project, as it stands or unescaped; the
/// first that is there. Call on a thread for files.
pub(super) fn document_path(workdir: &str, project: &str, uri: &str) -> Result<String> {
    let path = uri.strip_prefix(SCHEME).unwrap_or(uri);
    check(path)?;
    let unescaped = decoded(path);
    let candidates = [path, &unescaped].map(|path| [workdir, project].map(|from| joined(from, path)));
    let mut candidates = candidates.into_iter().flatten();
    let first = candidates.next().unwrap_or_default();
    if fs::metadata(&first).is_ok() {
        return Ok(first);
    }
    Ok(candidates.find(|path| fs::metadata(path).is_ok()).unwrap_or(first))
}

/// What a server calls a path.
pub(super) fn server_uri(path: &str) -> String {
    use std::fmt::Write as _;
    let mut uri = SCHEME.to_owned();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing into a text does not fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

/// A text with its escapes undone, where they are some; a text that is none then stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|two| *first == b'%' && two.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// The text of a document. Call on a thread for files.
pub(super) fn read(path: &str) -> Result<String> {
    let failed = |error| Error::file(path, &error);
    let (file, entry) = Place::new(None, "/", path).and_then(|place| place.open_regular()).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, for a file that grows.
    file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if entry.size > DOCUMENT_BYTES_MAX || bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::too_large(format_args!("{path} has more than {DOCUMENT_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid(format_args!("{path} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_mapped_both_ways() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let work = folder.path().canonicalize().expect("resolve");
        fs::create_dir_all(work.join("project/a b")).expect("create");
        for file in ["top.py", "project/in.py", "project/a b/ü.py", "per%20cent.py"] {
            fs::write(work.join(file), "").expect("write");
        }
        let work = work.to_str().expect("UTF-8");
        let project = project_path(work, "./project/").expect("a path");
        assert_eq!(project, format!("{work}/project"));
        let path = |uri: &str| document_path(work, &project, uri).expect("a path");
        assert_eq!(path("file://top.py"), format!("{work}/top.py"));
        assert_eq!(path("file://project/in.py"), format!("{work}/project/in.py"));
        assert_eq!(path("file://in.py"), format!("{work}/project/in.py"));
        assert_eq!(path("file://a%20b/%C3%BC.py"), format!("{work}/project/a b/ü.py"));
        assert_eq!(path("file://per%20cent.py"), format!("{work}/per%20cent.py"));
        assert_eq!(path("file:///usr"), "/usr");
        assert_eq!(path("file://none.py"), format!("{work}/none.py"));
        assert!(document_path(work, &project, "file://").is_err());

        let mut documents = Documents::default();
        let open = path("file://a%20b/%C3%BC.py");
        assert!(documents.open("file://a%20b/%C3%BC.py", &open).is_ok_and(|before| !before));
        assert!(documents.open("file://other-name", &open).is_ok_and(|before| before));
        assert_eq!(documents.name_of(&server_uri(&open)), "file://a%20b/%C3%BC.py");
        assert_eq!(documents.name_of("file:///else.py"), "file:///else.py");
        assert!(documents.close(&open));
        assert!(!documents.close(&open));
        assert_eq!(documents.name_of(&server_uri(&open)), server_uri(&open));
    }

    #[test]
    fn only_texts_of_bounded_size_are_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("right"), "ü").expect("write");
        fs::write(path("bytes"), b"\xff").expect("write");
        fs::File::create(path("huge")).and_then(|file| file.set_len(DOCUMENT_BYTES_MAX + 1)).expect("make");
        assert_eq!(read(&path("right")).ok().as_deref(), Some("ü"));
        let status = |name: &str| read(&path(name)).expect_err(name).status.as_u16();
        assert_eq!([status("bytes"), status("huge"), status("none")], [400, 413, 404]);
        assert_eq!(read(&folder.path().display().to_string()).expect_err("a folder").status.as_u16(), 400);
    }
}
