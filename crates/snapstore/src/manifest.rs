//! What a snapshot in the store consists of, chunk by chunk. The manifest is written last: a snapshot is there when its
//! manifest is.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    content::Sha256,
    name::{FileName, Name},
};

/// The layout of manifests that this build writes and reads.
const VERSION: u32 = 1;

/// Most files of a snapshot.
pub(crate) const FILES_MAX: usize = 256;

/// Largest file.
pub(crate) const FILE_BYTES_MAX: u64 = 16 << 40;

/// Most chunks of a file.
const CHUNKS_MAX: u64 = 1 << 20;

/// Smallest and largest chunk that is read.
const CHUNK_BYTES_MIN: u64 = 64 << 10;
const CHUNK_BYTES_MAX: u64 = 64 << 20;

/// Largest manifest.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Bytes by which a chunk may grow when it is encoded: what zstd adds to bytes that it cannot make fewer.
const ENCODING_BYTES_MAX: u64 = 1 << 20;

/// A snapshot in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) name: String,
    pub(crate) created_at_ms: i64,
    /// Which push made it.
    pub(crate) revision: String,
    /// What whoever pushed it says of it; opaque here.
    pub(crate) metadata: serde_json::Value,
    pub(crate) files: Vec<StoredFile>,
}

/// One file of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredFile {
    pub(crate) name: FileName,
    /// The object with its content, beneath `snapshots/`.
    pub(crate) key: String,
    /// That object's version, where the store tells versions apart.
    pub(crate) etag: Option<String>,
    pub(crate) stored_bytes: u64,
    pub(crate) size_bytes: u64,
    /// Permissions.
    pub(crate) mode: u32,
    pub(crate) encoding: Encoding,
    pub(crate) chunk_bytes: u64,
    /// One of each stretch of `chunk_bytes`, the last one shorter.
    pub(crate) chunks: Vec<Chunk>,
}

/// How a file's content is written in its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// As it is: the object is the file.
    None,
    /// Each chunk is a zstd frame; chunks of zeros are left out.
    Zstd,
}

/// One stretch of a file. In JSON: `null`, or offset, length and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Zeros: a hole.
    Zero,
    /// Content.
    Data {
        /// Where it begins in the object.
        offset: u64,
        /// How long it is there.
        length: u64,
        /// Of the content.
        digest: Sha256,
    },
    /// Content that nobody has vouched for: of an object that another tool made.
    Unknown {
        /// Where it begins in the object.
        offset: u64,
        /// How long it is there.
        length: u64,
    },
}

impl Serialize for Chunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Zero => serializer.serialize_none(),
            Self::Data { offset, length, digest } => (offset, length, digest).serialize(serializer),
            Self::Unknown { .. } => Err(serde::ser::Error::custom("a chunk without a digest")),
        }
    }
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let known = Option::<(u64, u64, Sha256)>::deserialize(deserializer)?;
        Ok(known.map_or(Self::Zero, |(offset, length, digest)| Self::Data { offset, length, digest }))
    }
}

impl StoredFile {
    /// Where chunk `index` begins in the file, and how long it is there.
    pub(crate) fn extent(&self, index: usize) -> (u64, u64) {
        extent(self.size_bytes, self.chunk_bytes, index)
    }

    /// Bytes of the file that are not in holes as large as a chunk.
    pub(crate) fn data_bytes(&self) -> u64 {
        let data = self.chunks.iter().enumerate().filter(|(_, chunk)| **chunk != Chunk::Zero);
        data.map(|(index, _)| self.extent(index).1).sum()
    }
}

/// Where chunk `index` of a file begins, and how long it is.
pub(crate) fn extent(size_bytes: u64, chunk_bytes: u64, index: usize) -> (u64, u64) {
    let start = index as u64 * chunk_bytes;
    (start, chunk_bytes.min(size_bytes.saturating_sub(start)))
}

/// How many chunks a file has.
pub(crate) fn chunk_count(size_bytes: u64, chunk_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(chunk_bytes)).unwrap_or(usize::MAX)
}

impl Manifest {
    pub(crate) fn new(
        name: &Name,
        revision: &str,
        metadata: serde_json::Value,
        files: Vec<StoredFile>,
    ) -> Self {
        let (name, revision) = (name.to_string(), revision.to_owned());
        let created_at_ms = jiff::Timestamp::now().as_millisecond();
        Self { version: VERSION, name, created_at_ms, revision, metadata, files }
    }

    /// An object that another tool put there: a disk, and nothing else is known of it.
    pub(crate) fn foreign(
        name: &Name,
        file: FileName,
        key: String,
        etag: Option<String>,
        size: u64,
        chunk_bytes: u64,
    ) -> Self {
        let chunks = (0..chunk_count(size, chunk_bytes))
            .map(|index| {
                let (offset, length) = extent(size, chunk_bytes, index);
                Chunk::Unknown { offset, length }
            })
            .collect();
        let file = StoredFile {
            name: file,
            key,
            etag,
            stored_bytes: size,
            size_bytes: size,
            mode: FOREIGN_MODE,
            encoding: Encoding::None,
            chunk_bytes,
            chunks,
        };
        Self { created_at_ms: 0, ..Self::new(name, "", serde_json::Value::Null, vec![file]) }
    }

    /// Whether another tool made it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.files.iter().flat_map(|file| &file.chunks).any(|chunk| matches!(chunk, Chunk::Unknown { .. }))
    }

    /// Reads one, and believes nothing of it that could do harm: its keys are its own snapshot's, its names are names,
    /// its numbers are within bounds and fit each other.
    pub(crate) fn parse(name: &Name, bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let read = |error: serde_json::Error| format!("its manifest cannot be read: {error}");
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(read)?;
        if versioned.version != VERSION {
            return Err(format!(
                "its manifest has version {}, this build reads {VERSION}: use the build that pushed it",
                versioned.version
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(read)?;
        if manifest.name != name.as_str() {
            return Err(format!("its manifest is that of {:?}", manifest.name));
        }
        if manifest.files.is_empty() || manifest.files.len() > FILES_MAX {
            return Err(format!("it has {} files; 1 to {FILES_MAX} are possible", manifest.files.len()));
        }
        let names: BTreeSet<&FileName> = manifest.files.iter().map(|file| &file.name).collect();
        if names.len() != manifest.files.len() {
            return Err("two of its files have one name".to_owned());
        }
        for file in &manifest.files {
            file.check(name).map_err(|problem| format!("{} {problem}", file.name))?;
        }
        Ok(manifest)
    }
}

/// Permissions of what another tool made.
const FOREIGN_MODE: u32 = 0o600;

impl StoredFile {
    fn check(&self, name: &Name) -> Result<(), &'static str> {
        if !is_key_of(name, &self.key) {
            return Err("lies outside of its snapshot");
        }
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return Err("has chunks of an impossible size");
        }
        if self.size_bytes > FILE_BYTES_MAX || self.size_bytes.div_ceil(self.chunk_bytes) > CHUNKS_MAX {
            return Err("is too large");
        }
        if self.chunks.len() != chunk_count(self.size_bytes, self.chunk_bytes) {
            return Err("has another number of chunks than its size says");
        }
        for (index, chunk) in self.chunks.iter().enumerate() {
            let Chunk::Data { offset, length, .. } = *chunk else { continue };
            let (start, content) = self.extent(index);
            let fits = match self.encoding {
                Encoding::None => offset == start && length == content,
                Encoding::Zstd => length > 0 && length <= content + ENCODING_BYTES_MAX,
            };
            if !fits || offset.checked_add(length).is_none_or(|end| end > self.stored_bytes) {
                return Err("has a chunk that does not fit");
            }
        }
        Ok(())
    }
}

/// A file of a snapshot lies at `NAME.qcow2`, `NAME/FILE` or `NAME/REVISION/FILE`, and nowhere else.
fn is_key_of(name: &Name, key: &str) -> bool {
    if key == crate::layout::disk(name) {
        return true;
    }
    let Some(rest) = key.strip_prefix(&crate::layout::folder(name)) else { return false };
    let parts: Vec<&str> = rest.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| FileName::parse(part).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> serde_json::Value {
        let digest = "0".repeat(64);
        serde_json::json!({
            "version": 1, "name": "a", "created_at_ms": 5, "revision": "r", "metadata": {"x": 1},
            "files": [
                {"name": "disk.qcow2", "key": "a/disk.qcow2", "etag": "\"1\"", "stored_bytes": 70_000,
                 "size_bytes": 70_000, "mode": 384, "encoding": "none", "chunk_bytes": 65_536,
                 "chunks": [[0, 65_536, digest], [65_536, 4_464, digest]]},
                {"name": "memory", "key": "a/0123456789abcdef/memory", "etag": null, "stored_bytes": 10,
                 "size_bytes": 140_000, "mode": 384, "encoding": "zstd", "chunk_bytes": 65_536,
                 "chunks": [null, [0, 10, digest], null]},
            ],
        })
    }

    fn parse(value: &serde_json::Value) -> Result<Manifest, String> {
        Manifest::parse(&Name::parse("a").unwrap(), value.to_string().as_bytes())
    }

    #[test]
    fn a_sound_manifest_is_read_and_written_alike() {
        let manifest = parse(&sound()).unwrap();
        assert_eq!(serde_json::to_value(&manifest).unwrap(), sound());
        assert_eq!(manifest.files[1].data_bytes(), 65_536);
        assert_eq!(manifest.files[1].extent(2), (131_072, 8_928));
    }

    #[test]
    fn what_could_do_harm_is_refused() {
        let changes: &[(&str, serde_json::Value)] = &[
            ("/version", 2.into()),
            ("/name", "b".into()),
            ("/files", serde_json::json!([])),
            ("/files/0/name", "../x".into()),
            ("/files/0/name", "memory".into()),
            ("/files/0/key", "b/disk.qcow2".into()),
            ("/files/0/key", "a/../b/disk.qcow2".into()),
            ("/files/0/key", "a/b/c/d".into()),
            ("/files/0/key", "a/".into()),
            ("/files/0/chunk_bytes", 1.into()),
            ("/files/0/chunk_bytes", (1_u64 << 40).into()),
            ("/files/0/size_bytes", u64::MAX.into()),
            ("/files/0/size_bytes", 140_000.into()),
            ("/files/0/stored_bytes", 69_999.into()),
            ("/files/0/chunks/1/0", 0.into()),
            ("/files/0/chunks/0/1", 65_535.into()),
            ("/files/0/chunks/0/2", "00".into()),
            ("/files/1/chunks/1/1", (64 << 20).into()),
            ("/files/1/chunks/1/1", 0.into()),
            ("/files/1/chunks/1/0", u64::MAX.into()),
            ("/files/1/encoding", "gzip".into()),
        ];
        for (path, value) in changes {
            let mut changed = sound();
            *changed.pointer_mut(path).unwrap() = value.clone();
            assert!(parse(&changed).is_err(), "{path} = {value}");
        }
    }
}
