//! Snapshots to push, and looking at what was pulled.

use std::{
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use sandhaus_snapstore::{Info, Landing, Name, Observer, Progress, Pull, Push, Result, Store};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::server::CHUNK_BYTES;

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// A folder for one test.
#[derive(Debug)]
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new directory of that name.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs_err::create_dir(&path).expect("a new folder");
        path
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// Bytes that nothing compresses, always the same for a seed.
pub(crate) fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(usize::try_from(length).expect("fits"));
    while (bytes.len() as u64) < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(usize::try_from(length).expect("fits"));
    bytes
}

/// Writes a file: so long, with content at these places, and holes between.
pub(crate) fn write(path: &Path, length: u64, content: &[(u64, Vec<u8>)]) {
    let file = fs_err::File::create(path).expect("a new file");
    file.set_len(length).expect("its length");
    for (offset, bytes) in content {
        file.file().write_all_at(bytes, *offset).expect("its content");
    }
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o640)).expect("its permissions");
}

/// A disk of four pieces and a bit, one of them a hole.
pub(crate) fn disk(folder: &Path, seed: u64) {
    let last = 4 * CHUNK_BYTES;
    let content = [
        (0, noise(seed, 2 * CHUNK_BYTES)),
        (3 * CHUNK_BYTES, noise(seed + 1, CHUNK_BYTES)),
        (last, noise(seed, 5000)),
    ];
    write(&folder.join("disk.qcow2"), last + 5000, &content);
}

/// A disk, a memory with much that compresses and more that is not there, and what goes with them.
pub(crate) fn machine(folder: &Path, seed: u64) {
    disk(folder, seed);
    let text = "a machine's memory ".repeat(200_000).into_bytes();
    let content = [(MIB, text), (20 * MIB, noise(seed, 20 * MIB)), (60 * MIB, noise(seed, 4096))];
    write(&folder.join("memory"), 100 * MIB, &content);
    write(&folder.join("state"), 70_000, &[(0, noise(seed + 2, 70_000))]);
    write(&folder.join("config.json"), 2, &[(0, b"{}".to_vec())]);
}

/// Small files, quickly sent.
pub(crate) fn small(folder: &Path, seed: u64) {
    for file in ["disk.qcow2", "memory", "state"] {
        write(&folder.join(file), 50_000, &[(0, noise(seed, 50_000))]);
    }
}

pub(crate) fn quiet() -> Observer {
    Arc::new(|_: Progress| {})
}

pub(crate) fn to_push(directory: &Path, text: &str) -> Push {
    Push {
        name: name(text),
        directory: directory.to_owned(),
        journal: directory.with_extension("journal"),
        metadata: json!({"kind": "machine"}),
    }
}

pub(crate) async fn push(store: &Store, directory: &Path, text: &str) -> Result<Info> {
    store.push(&to_push(directory, text), quiet(), &CancellationToken::new()).await
}

pub(crate) fn to_pull(into: &Path, text: &str) -> Pull {
    Pull { name: name(text), into: into.to_owned(), copy: None, landing: Landing::default() }
}

pub(crate) async fn pull(store: &Store, text: &str, into: &Path) -> Result<Info> {
    store.pull(&to_pull(into, text), quiet(), &CancellationToken::new()).await
}

/// Two directories have the same files with the same content and permissions, and holes are holes.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let listed = |path: &Path| {
        let mut names: Vec<_> = fs_err::read_dir(path)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(listed(one), listed(other));
    for file in listed(one) {
        let metadata = |path: &Path| fs_err::metadata(path.join(&file)).expect("there");
        let (first, second) = (metadata(one), metadata(other));
        assert_eq!((first.len(), first.mode()), (second.len(), second.mode()), "{file:?}");
        assert!(
            second.blocks() <= first.blocks() + 64,
            "{file:?} has its holes: {} {}",
            first.blocks(),
            second.blocks()
        );
        let content = |path: &Path| fs_err::read(path.join(&file)).expect("readable");
        assert!(content(one) == content(other), "{file:?} has the same content");
    }
}

fn holds_files(path: &Path) -> bool {
    match fs_err::read_dir(path) {
        Ok(mut within) => within.any(|entry| holds_files(&entry.expect("readable").path())),
        Err(_) => true,
    }
}

/// Nothing but these lies in a directory; the server leaves empty folders behind, which are no objects.
pub(crate) fn assert_only(folder: &Path, expected: &[&str]) {
    let mut names: Vec<String> = fs_err::read_dir(folder)
        .expect("readable")
        .map(|entry| entry.expect("readable"))
        .filter(|entry| holds_files(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    assert_eq!(names, expected);
}
