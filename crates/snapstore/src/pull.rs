//! Pulling: chunks are fetched several at once, checked, and written where they belong, into a directory beside the one
//! that is wanted, which gets its name when it is whole and on disk.
//!
//! What is there already is not fetched again: chunks of an interrupted pull, and chunks of a broken copy, there or elsewhere, that are whole.
//! Both are known by their digests, so nothing has to be believed that a crash may have torn.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rustix::fs::{Gid, RenameFlags, Uid};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Name, Observer, Progress, Result, Stage,
    content::{self, Found, Sha256},
    manifest::{Chunk, Manifest, StoredFile},
    store::{Info, Store},
};

/// What the disk of a snapshot is called that another tool put into the store.
pub const DISK_FILE: &str = "disk.qcow2";

/// Chunks that are fetched at once; each is in memory as a whole, encoded and decoded.
const FETCHES_IN_FLIGHT_MAX: usize = 4;

/// Chunks that are examined at once.
const EXAMINERS: usize = 2;

/// How often a chunk is fetched whose content is not what it should be.
const CHUNK_FETCHES_MAX: usize = 3;

/// How often a pull begins anew because the snapshot was replaced meanwhile.
const CHANGES_MAX: usize = 3;

/// Room left free on the disk.
const SPARE_BYTES: u64 = 64 << 20;

/// What the directory of a pull under way is called, around the name of the one that is wanted.
const PARTIAL: (&str, &str) = (".", ".pull");

/// The digests of chunks that nobody else vouches for, in that directory.
const NOTES: &str = ".chunks";

/// A snapshot to pull.
#[derive(Debug, Clone)]
pub struct Pull {
    /// What it is called in the store.
    pub name: Name,
    /// The directory it becomes. One that is there already is made whole.
    pub into: PathBuf,
    /// A directory with another copy, perhaps a broken one: what is whole in it is not fetched.
    pub copy: Option<PathBuf>,
    /// Who gets the files.
    pub landing: Landing,
}

/// Owner and permissions of what is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Landing {
    /// User and group; absent: those of this process.
    pub owner: Option<(u32, u32)>,
    /// Permissions of files; absent: as they were where it was pushed.
    pub mode: Option<u32>,
}

impl Store {
    /// Pulls a snapshot. A directory that is there already and whole is left as it is.
    pub async fn pull(&self, pull: &Pull, observer: Observer, token: &CancellationToken) -> Result<Info> {
        tokio::select! {
            // Nothing is lost when it is dropped: what has arrived lies in the partial directory.
            pulled = self.pull_all(pull, observer) => pulled,
            () = token.cancelled() => Err(Error::Interrupted),
        }
    }

    async fn pull_all(&self, pull: &Pull, observer: Observer) -> Result<Info> {
        let mut changes = 0;
        loop {
            let present = self.present(&pull.name).await?;
            let present = present.ok_or_else(|| Error::NotFound(pull.name.to_string()))?;
            let pulling = Pulling::new(self, pull, &present.manifest, &observer)?;
            match pulling.run().await {
                Err(Error::Changed(_)) if changes < CHANGES_MAX => changes += 1,
                Err(Error::Damaged { .. })
                    if changes < CHANGES_MAX && self.moved_on(pull, &present.manifest).await =>
                {
                    changes += 1;
                }
                outcome => return outcome.map(|()| Info::of(&pull.name, present.form, present.manifest)),
            }
        }
    }

    /// Whether the store has something else under the name by now.
    async fn moved_on(&self, pull: &Pull, seen: &Manifest) -> bool {
        let now = self.present(&pull.name).await;
        now.is_ok_and(|now| now.is_none_or(|now| now.manifest.revision != seen.revision))
    }
}

/// The directory in which a pull into `into` gathers what it has: whoever gives up the pull may remove it.
pub(crate) fn partial(into: &Path) -> Option<PathBuf> {
    let name = into.file_name()?.to_str()?;
    Some(into.with_file_name(format!("{}{name}{}", PARTIAL.0, PARTIAL.1)))
}

impl Pull {
    /// The directory in which it gathers what it has; to be removed by whoever gives it up.
    pub fn partial(&self) -> Option<PathBuf> {
        partial(&self.into)
    }
}

/// A pull under way.
struct Pulling<'a> {
    store: &'a Store,
    pull: &'a Pull,
    manifest: &'a Manifest,
    observer: &'a Observer,
    partial: PathBuf,
    /// Whether the wanted directory is there.
    replaces: bool,
    done: Mutex<u64>,
    total_bytes: u64,
}

/// A chunk to fetch.
struct Wanted {
    /// Of which file.
    file: usize,
    target: Arc<std::fs::File>,
    index: usize,
}

impl<'a> Pulling<'a> {
    fn new(store: &'a Store, pull: &'a Pull, manifest: &'a Manifest, observer: &'a Observer) -> Result<Self> {
        let partial = partial(&pull.into).ok_or_else(|| Error::Io {
            what: "name the directory of the pull",
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        let replaces = pull.into.try_exists().map_err(Error::io("look at the snapshot's directory"))?;
        let total_bytes = manifest.files.iter().map(StoredFile::data_bytes).sum();
        Ok(Self { store, pull, manifest, observer, partial, replaces, done: Mutex::new(0), total_bytes })
    }

    fn report(&self, stage: Stage, more_bytes: u64) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += more_bytes;
        (self.observer)(Progress { stage, done_bytes: *done, total_bytes: self.total_bytes });
    }

    fn damaged(&self, problem: String) -> Error {
        Error::Damaged { name: self.pull.name.to_string(), problem }
    }

    async fn run(&self) -> Result<()> {
        self.report(Stage::Checking, 0);
        if self.replaces && !self.manifest.is_foreign() && self.is_whole().await? {
            return Ok(());
        }
        let notes = Arc::new(Mutex::new(self.prepare()?));
        let mut wanted = Vec::new();
        for (at, file) in self.manifest.files.iter().enumerate() {
            let target = Arc::new(self.open_target(file)?);
            for index in self.missing(file, &target, &notes).await? {
                wanted.push(Wanted { file: at, target: target.clone(), index });
            }
        }
        self.check_room(&wanted)?;
        self.report(Stage::Receiving, 0);
        let mut fetched = stream::iter(wanted)
            .map(|wanted| self.fetch(wanted, notes.clone()))
            .buffer_unordered(FETCHES_IN_FLIGHT_MAX);
        let mut damage = None;
        while let Some(outcome) = fetched.next().await {
            match outcome {
                // The rest is fetched all the same: the next pull, of a store that was mended, needs only this.
                Err(error @ Error::Damaged { .. }) => damage = damage.or(Some(error)),
                outcome => outcome?,
            }
        }
        damage.map_or(Ok(()), Err)?;
        self.report(Stage::Finishing, 0);
        self.finish().await
    }

    /// Whether the wanted directory has what the store has, and nothing is missing.
    async fn is_whole(&self) -> Result<bool> {
        for file in &self.manifest.files {
            let Ok(local) = fs_err::File::open(self.pull.into.join(file.name.as_str())) else {
                return Ok(false);
            };
            let length = local.metadata().map_err(Error::io("look at the snapshot"))?.len();
            let local = Arc::new(local.into_file());
            if length != file.size_bytes {
                return Ok(false);
            }
            let mut looks = stream::iter(0..file.chunks.len())
                .map(|index| examine(local.clone(), file, index))
                .buffered(EXAMINERS)
                .enumerate();
            while let Some((index, found)) = looks.next().await {
                if !is_expected(file.chunks[index], &found?) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Makes the partial directory, or clears one of what is of no use. Gives the digests noted in it.
    fn prepare(&self) -> Result<Notes> {
        let failed = || Error::io("make the directory of the pull");
        fs_err::create_dir_all(&self.partial).map_err(failed())?;
        fs_err::set_permissions(&self.partial, std::fs::Permissions::from_mode(PRIVATE_MODE))
            .map_err(failed())?;
        let known: BTreeSet<&str> = self.manifest.files.iter().map(|file| file.name.as_str()).collect();
        let notes = Notes::open(&self.partial.join(NOTES), self.manifest)?;
        for entry in fs_err::read_dir(&self.partial).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            if name.to_str().is_none_or(|name| name != NOTES && !known.contains(name)) {
                fs_err::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(notes)
    }

    fn open_target(&self, file: &StoredFile) -> Result<std::fs::File> {
        let failed = || Error::io("make a file of the snapshot");
        let target = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.partial.join(file.name.as_str()))
            .map_err(failed())?;
        target.set_len(file.size_bytes).map_err(failed())?;
        Ok(target.into_file())
    }

    /// The chunks of a file that have to be fetched. Those that an interrupted pull or a broken copy has are taken.
    async fn missing(
        &self,
        file: &'a StoredFile,
        target: &Arc<std::fs::File>,
        notes: &Arc<Mutex<Notes>>,
    ) -> Result<Vec<usize>> {
        let replaced = self.replaces.then_some(&self.pull.into);
        let copies: Arc<[Arc<std::fs::File>]> = replaced
            .into_iter()
            .chain(&self.pull.copy)
            .filter_map(|copy| fs_err::File::open(copy.join(file.name.as_str())).ok())
            .map(|copy| Arc::new(copy.into_file()))
            .collect();
        let take = |index: usize| {
            let (target, copies) = (target.clone(), copies.clone());
            let expected = match file.chunks[index] {
                Chunk::Unknown { .. } => notes.lock().unwrap_or_else(PoisonError::into_inner).expected(index),
                chunk => Some(chunk),
            };
            async move {
                let Some(expected) = expected else { return Ok::<_, Error>((index, false)) };
                if is_expected(expected, &examine(target.clone(), file, index).await?) {
                    return Ok((index, true));
                }
                if expected == Chunk::Zero {
                    let (offset, length) = file.extent(index);
                    blocking("write a file of the snapshot", move || {
                        content::clear(&target, offset, to_length(length)?)
                    })
                    .await?;
                    return Ok((index, true));
                }
                for copy in copies.iter() {
                    if is_expected(expected, &examine(copy.clone(), file, index).await?) {
                        let (copy, (offset, length)) = (copy.clone(), file.extent(index));
                        let work = move || copy_chunk(&copy, &target, offset, to_length(length)?);
                        blocking("copy a part of the snapshot", work).await?;
                        return Ok((index, true));
                    }
                }
                Ok((index, false))
            }
        };
        let mut missing = Vec::new();
        let mut taken = stream::iter(0..file.chunks.len()).map(take).buffered(EXAMINERS);
        while let Some((index, there)) = taken.try_next().await? {
            if !there {
                missing.push(index);
            } else if file.chunks[index] != Chunk::Zero {
                self.report(Stage::Checking, file.extent(index).1);
            }
        }
        Ok(missing)
    }

    fn check_room(&self, wanted: &[Wanted]) -> Result<()> {
        let needed: u64 =
            wanted.iter().map(|wanted| self.manifest.files[wanted.file].extent(wanted.index).1).sum();
        let status = rustix::fs::statvfs(&self.partial).map_err(Error::io("look at the disk"))?;
        let (needed_bytes, free_bytes) =
            (needed + SPARE_BYTES, status.f_bavail.saturating_mul(status.f_frsize));
        if free_bytes < needed_bytes {
            return Err(Error::Space { place: "the disk of the snapshots", needed_bytes, free_bytes });
        }
        Ok(())
    }

    async fn fetch(&self, wanted: Wanted, notes: Arc<Mutex<Notes>>) -> Result<()> {
        let Wanted { file, target, index } = wanted;
        let file = &self.manifest.files[file];
        let (start, length) = file.extent(index);
        let content = self.content(file, index).await?;
        let unvouched = matches!(file.chunks[index], Chunk::Unknown { .. });
        let write = move || {
            content::write_sparse(&target, start, &content)?;
            if unvouched {
                let zero = content.iter().all(|byte| *byte == 0);
                let digest = (!zero).then(|| Sha256::of(&content));
                notes.lock().unwrap_or_else(PoisonError::into_inner).note(index, digest)?;
            }
            Ok(())
        };
        blocking("write a file of the snapshot", write).await?;
        self.report(Stage::Receiving, length);
        Ok(())
    }

    /// Fetches a chunk until it is what it should be.
    async fn content(&self, file: &StoredFile, index: usize) -> Result<Bytes> {
        let length = to_length(file.extent(index).1).map_err(Error::io("hold a part of the snapshot"))?;
        for attempt in 1..=CHUNK_FETCHES_MAX {
            let (offset, stored, expected) = match file.chunks[index] {
                Chunk::Zero => return Ok(vec![0; length].into()),
                Chunk::Unknown { offset, length } => (offset, length, None),
                Chunk::Data { offset, length, digest } => (offset, length, Some(digest)),
            };
            let bytes = self.store.backend.get(&file.key, file.etag.as_deref(), offset, stored).await;
            let bytes = bytes.map_err(|fault| self.store.error(&self.pull.name, fault))?;
            let encoding = file.encoding;
            let check = move || {
                let content = content::decode(bytes, length, encoding);
                Ok(content.filter(|content| expected.is_none_or(|expected| Sha256::of(content) == expected)))
            };
            if let Some(content) = blocking("check a part of the snapshot", check).await? {
                return Ok(content);
            }
            tracing::warn!(snapshot = %self.pull.name, file = %file.name, index, attempt, "a part is not what was pushed");
        }
        let start = file.extent(index).0;
        Err(self.damaged(format!("{} has other content at byte {start} than its digest says", file.name)))
    }

    /// Puts everything on disk and makes it visible.
    async fn finish(&self) -> Result<()> {
        let (partial, into, landing) = (self.partial.clone(), self.pull.into.clone(), self.pull.landing);
        let files: Vec<(String, u32)> =
            self.manifest.files.iter().map(|file| (file.name.to_string(), file.mode)).collect();
        let replaces = self.replaces;
        let finish = move || {
            for (name, mode) in files {
                let file = fs_err::File::open(partial.join(name))?;
                let mode = landing.mode.unwrap_or(mode) & MODE_MASK;
                file.set_permissions(std::fs::Permissions::from_mode(mode))?;
                if let Some((user, group)) = landing.owner {
                    rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
                }
                file.sync_all()?;
            }
            match fs_err::remove_file(partial.join(NOTES)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs_err::File::open(&partial)?.sync_all()?;
            let flags = if replaces { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
            rustix::fs::renameat_with(rustix::fs::CWD, &partial, rustix::fs::CWD, &into, flags)?;
            if let Some(parent) = into.parent() {
                fs_err::File::open(parent)?.sync_all()?;
            }
            if replaces { fs_err::remove_dir_all(&partial) } else { Ok(()) }
        };
        blocking("finish the snapshot", finish).await
    }
}

/// Permissions of the partial directory.
const PRIVATE_MODE: u32 = 0o700;

/// Permissions that are kept: nothing that changes who a program runs as.
const MODE_MASK: u32 = 0o777;

fn is_expected(chunk: Chunk, found: &Found) -> bool {
    match (chunk, found) {
        (Chunk::Zero, Found::Zero) => true,
        (Chunk::Data { digest, .. }, Found::Data(found)) => digest == *found,
        (
            Chunk::Zero | Chunk::Data { .. } | Chunk::Unknown { .. },
            Found::Zero | Found::Data(_) | Found::Short,
        ) => false,
    }
}

fn copy_chunk(from: &std::fs::File, to: &std::fs::File, offset: u64, length: usize) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut content = vec![0; length];
    from.read_exact_at(&mut content, offset)?;
    content::write_sparse(to, offset, &content)
}

async fn examine(file: Arc<std::fs::File>, stored: &StoredFile, index: usize) -> Result<Found> {
    let (offset, length) = stored.extent(index);
    blocking("read a file of the snapshot", move || content::examine(&file, offset, to_length(length)?)).await
}

fn to_length(length: u64) -> std::io::Result<usize> {
    usize::try_from(length).map_err(std::io::Error::other)
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    task: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(task).await.map_err(std::io::Error::other).and_then(|done| done);
    done.map_err(Error::io(what))
}

/// The digests that chunks had when they were fetched, of an object without a manifest: so an interrupted pull knows what
/// of it is whole.
struct Notes {
    file: Option<fs_err::File>,
    known: BTreeMap<usize, Option<Sha256>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Note {
    /// Of which object they are.
    Object(Option<String>, u64),
    Chunk(usize, Option<Sha256>),
}

impl Notes {
    fn open(path: &Path, manifest: &Manifest) -> Result<Self> {
        let failed = || Error::io("note what has arrived");
        let (true, Some(object)) = (manifest.is_foreign(), manifest.files.first()) else {
            return Ok(Self { file: None, known: BTreeMap::new() });
        };
        let text = match fs_err::read(path) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed()(error)),
        };
        let mut notes = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let mut known = BTreeMap::new();
        let same = matches!(notes.next(), Some(Note::Object(etag, size))
            if etag.is_some() && etag == object.etag && size == object.stored_bytes);
        if same {
            known.extend(notes.filter_map(|note| match note {
                Note::Chunk(index, digest) => Some((index, digest)),
                Note::Object(..) => None,
            }));
        }
        let mut file = fs_err::File::create(path).map_err(failed())?;
        write_note(&mut file, &Note::Object(object.etag.clone(), object.stored_bytes)).map_err(failed())?;
        for (index, digest) in &known {
            write_note(&mut file, &Note::Chunk(*index, *digest)).map_err(failed())?;
        }
        Ok(Self { file: Some(file), known })
    }

    /// What a chunk should be, as far as it has arrived.
    fn expected(&self, index: usize) -> Option<Chunk> {
        let digest = self.known.get(&index)?;
        Some(digest.map_or(Chunk::Zero, |digest| Chunk::Data { offset: 0, length: 0, digest }))
    }

    fn note(&mut self, index: usize, digest: Option<Sha256>) -> std::io::Result<()> {
        self.known.insert(index, digest);
        match &mut self.file {
            Some(file) => write_note(file, &Note::Chunk(index, digest)),
            None => Ok(()),
        }
    }
}

fn write_note(file: &mut fs_err::File, note: &Note) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(note).expect("a note is JSON");
    text.push(b'\n');
    file.write_all(&text)
}
