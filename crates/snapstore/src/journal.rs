//! What a push has achieved, on disk beside the snapshot, so that it goes on after an interruption: which uploads there
//! are, which parts were planned, and which of them the store has taken. One line of JSON each, only ever appended; a line
//! that was torn by a crash is as good as none.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, backend::Upload, content::Sha256};

/// Largest journal that is read.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

/// What a journal is about. One that is about something else is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) store: String,
    pub(crate) name: String,
    pub(crate) chunk_bytes: u64,
    pub(crate) files: Vec<SourceFile>,
}

/// A file that is pushed, and what tells it from another of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceFile {
    pub(crate) name: crate::name::FileName,
    pub(crate) size_bytes: u64,
    pub(crate) modified_ns: i128,
    pub(crate) mode: u32,
}

/// A chunk within a part: its length there and the digest of its content; without a digest it is zeros.
pub(crate) type PlannedChunk = (u64, Option<Sha256>);

/// A part that was or is to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedPart {
    /// Its first chunk.
    pub(crate) first: usize,
    /// Where it begins in the object.
    pub(crate) offset: u64,
    pub(crate) chunks: Vec<PlannedChunk>,
    /// What the store called it, once it had it.
    #[serde(skip)]
    pub(crate) etag: Option<String>,
}

impl PlannedPart {
    pub(crate) fn length(&self) -> u64 {
        self.chunks.iter().map(|(length, _)| length).sum()
    }

    /// Whether there is nothing to send of it: zeros at the end of a file, where the encoding leaves them out.
    pub(crate) fn is_nothing(&self, number: u32) -> bool {
        number > 1 && self.length() == 0
    }

    /// The chunk after its last.
    pub(crate) fn end(&self) -> usize {
        self.first + self.chunks.len()
    }
}

/// How far one file is.
#[derive(Debug, Default)]
pub(crate) struct FileState {
    pub(crate) upload: Option<Upload>,
    pub(crate) parts: BTreeMap<u32, PlannedPart>,
    /// The object is whole, under this key and in this version.
    pub(crate) whole: Option<(String, Option<String>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin { subject: Subject, revision: String },
    Upload { file: usize, key: String, id: String },
    Plan { file: usize, number: u32, part: PlannedPart },
    Done { file: usize, number: u32, etag: String },
    Whole { file: usize, key: String, etag: Option<String> },
    Forget { file: usize },
}

/// The journal of one push.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: fs_err::File,
    pub(crate) revision: String,
    pub(crate) files: Vec<FileState>,
}

impl Journal {
    /// Opens the journal of a push, or begins one. Uploads of another push that it tells of are given back: nobody will
    /// go on with them.
    pub(crate) fn open(path: &Path, subject: &Subject) -> Result<(Self, Vec<Upload>)> {
        let failed = || Error::io("open the journal of the push");
        let mut text = String::new();
        match fs_err::File::open(path) {
            Ok(file) => {
                // What is no text was torn.
                let mut bytes = Vec::new();
                file.take(JOURNAL_BYTES_MAX).read_to_end(&mut bytes).map_err(failed())?;
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed()(error)),
        }
        let (begun, files) = replay(&text);
        if let Some((about, revision)) = &begun
            && about == subject
        {
            let mut file = fs_err::OpenOptions::new().append(true).open(path).map_err(failed())?;
            // After a torn line the next one begins anew.
            file.write_all(b"\n").map_err(failed())?;
            return Ok((Self { path: path.to_owned(), file, revision: revision.clone(), files }, Vec::new()));
        }
        let stale = files.into_iter().filter_map(|state| state.upload).collect();
        let file = fs_err::File::create(path).map_err(failed())?;
        let files = subject.files.iter().map(|_| FileState::default()).collect();
        let mut journal = Self { path: path.to_owned(), file, revision: crate::random_hex(), files };
        let revision = journal.revision.clone();
        journal.append(&Line::Begin { subject: subject.clone(), revision })?;
        Ok((journal, stale))
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line).expect("a line is JSON");
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io("write the journal of the push"))
    }

    /// An upload has begun.
    pub(crate) fn begun(&mut self, file: usize, upload: &Upload) -> Result<()> {
        self.append(&Line::Upload { file, key: upload.key.clone(), id: upload.id.clone() })?;
        self.files[file].upload = Some(upload.clone());
        Ok(())
    }

    /// A part is about to be sent.
    pub(crate) fn planned(&mut self, file: usize, number: u32, part: PlannedPart) -> Result<()> {
        self.append(&Line::Plan { file, number, part: part.clone() })?;
        self.files[file].parts.insert(number, part);
        Ok(())
    }

    /// The store has a part.
    pub(crate) fn done(&mut self, file: usize, number: u32, etag: String) -> Result<()> {
        self.append(&Line::Done { file, number, etag: etag.clone() })?;
        if let Some(part) = self.files[file].parts.get_mut(&number) {
            part.etag = Some(etag);
        }
        Ok(())
    }

    /// The store has a whole file.
    pub(crate) fn whole(&mut self, file: usize, key: String, etag: Option<String>) -> Result<()> {
        self.append(&Line::Whole { file, key: key.clone(), etag: etag.clone() })?;
        self.files[file].whole = Some((key, etag));
        Ok(())
    }

    /// What was known of a file does not hold any more.
    pub(crate) fn forget(&mut self, file: usize) -> Result<()> {
        self.append(&Line::Forget { file })?;
        self.files[file] = FileState::default();
        Ok(())
    }

    /// The push is over.
    pub(crate) fn remove(self) -> Result<()> {
        fs_err::remove_file(&self.path).map_err(Error::io("remove the journal of the push"))
    }
}

/// Goes through a journal up to what cannot be read.
fn replay(text: &str) -> (Option<(Subject, String)>, Vec<FileState>) {
    let mut begun = None;
    let mut files: Vec<FileState> = Vec::new();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        let at = |file: usize, files: &mut Vec<FileState>| (file < files.len()).then_some(file);
        match line {
            Line::Begin { subject, revision } => {
                files = subject.files.iter().map(|_| FileState::default()).collect();
                begun = Some((subject, revision));
            }
            Line::Upload { file, key, id } => {
                if let Some(file) = at(file, &mut files) {
                    files[file].upload = Some(Upload { key, id });
                }
            }
            Line::Plan { file, number, part } => {
                if let Some(file) = at(file, &mut files) {
                    files[file].parts.insert(number, part);
                }
            }
            Line::Done { file, number, etag } => {
                if let Some(part) = at(file, &mut files).and_then(|file| files[file].parts.get_mut(&number)) {
                    part.etag = Some(etag);
                }
            }
            Line::Whole { file, key, etag } => {
                if let Some(file) = at(file, &mut files) {
                    files[file].whole = Some((key, etag));
                }
            }
            Line::Forget { file } => {
                if let Some(file) = at(file, &mut files) {
                    files[file] = FileState::default();
                }
            }
        }
    }
    (begun, files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::FileName;

    fn subject(modified_ns: i128) -> Subject {
        let name = FileName::parse("disk.qcow2").unwrap();
        let file = SourceFile { name, size_bytes: 10, modified_ns, mode: 0o600 };
        Subject { store: "s".into(), name: "n".into(), chunk_bytes: 5, files: vec![file] }
    }

    fn part(first: usize) -> PlannedPart {
        let chunks = vec![(5, Some(Sha256::of(b"x"))), (3, None)];
        PlannedPart { first, offset: 0, chunks, etag: None }
    }

    #[test]
    fn it_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let upload = Upload { key: "k".into(), id: "u".into() };
        let (mut journal, _) = Journal::open(&path, &subject(1)).unwrap();
        let revision = journal.revision.clone();
        journal.begun(0, &upload).unwrap();
        journal.planned(0, 1, part(0)).unwrap();
        journal.planned(0, 2, part(2)).unwrap();
        journal.done(0, 1, "e1".into()).unwrap();
        drop(journal);
        let mut bytes = fs_err::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"done\":{\"file\":0,\"num\xff");
        fs_err::write(&path, bytes).unwrap();

        let (mut journal, stale) = Journal::open(&path, &subject(1)).unwrap();
        assert_eq!((stale, &journal.revision), (Vec::new(), &revision));
        journal.done(0, 2, "e2".into()).unwrap();
        drop(journal);
        let (journal, _) = Journal::open(&path, &subject(1)).unwrap();
        let state = &journal.files[0];
        assert_eq!(state.upload.as_ref(), Some(&upload));
        assert_eq!(state.parts[&1], PlannedPart { etag: Some("e1".into()), ..part(0) });
        assert_eq!(state.parts[&2].etag.as_deref(), Some("e2"));
        assert_eq!((state.parts[&2].length(), state.parts[&2].end()), (8, 4));
    }

    #[test]
    fn one_of_other_content_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let upload = Upload { key: "k".into(), id: "u".into() };
        let (mut journal, _) = Journal::open(&path, &subject(1)).unwrap();
        let revision = journal.revision.clone();
        journal.begun(0, &upload).unwrap();
        let (journal, stale) = Journal::open(&path, &subject(2)).unwrap();
        assert_eq!(stale, [upload]);
        assert_ne!(journal.revision, revision);
        assert!(journal.files[0].upload.is_none());
        journal.remove().unwrap();
        assert!(!path.exists());
    }
}
