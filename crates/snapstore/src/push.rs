//! Pushing: files are read in chunks, hashed, encoded, gathered into parts, sent several at once, and made visible by the
//! manifest at the end.
//!
//! ```text
//! chunks ──encode──▶ in order ──gather──▶ parts ──plan: journal──▶ send ──done: journal──▶ complete ──▶ manifest
//! ```
//!
//! What replaces a snapshot of several files goes beside it, under the push's revision. When the manifest names the new
//! files the old ones are nobody's; the new ones are then copied to where they belong within the store, and the manifest
//! follows. So a reader finds the whole old snapshot or the whole new one, and whoever knows the layout finds the files.

use std::{
    collections::{BTreeSet, VecDeque},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Name, Observer, Progress, Result, Stage,
    backend::{Condition, Depth, Fault, Payload, Upload},
    content::{self, Encoded},
    journal::{Journal, PlannedPart, SourceFile, Subject},
    layout::{self, Form},
    manifest::{Chunk, Encoding, FILES_MAX, Manifest, StoredFile, chunk_count, extent},
    name::{DISK_SUFFIX, FileName, SIDECAR_SUFFIX},
    store::{Info, Present, Store},
};

/// Least bytes of a part but the last of a file; S3 takes no less than 5 MiB.
const PART_BYTES_MIN: u64 = 8 << 20;

/// Most parts of a file; S3 takes 10,000.
const PARTS_MAX: u64 = 9_999;

/// Most bytes of a part, which are in memory as a whole: so no file is larger than [`PARTS_MAX`] of them.
const PART_BYTES_MAX: u64 = 128 << 20;

/// Bytes that are on their way at once, and the parts they may be in.
const SENDING_BYTES_MAX: u64 = 128 << 20;
const SENDING_PARTS_MAX: u64 = 4;

/// Chunks that are read and encoded at once.
const ENCODERS: usize = 2;

/// Room left free where a store is a directory.
const SPARE_BYTES: u64 = 64 << 20;

/// A snapshot to push.
#[derive(Debug, Clone)]
pub struct Push {
    /// What it is called in the store.
    pub name: Name,
    /// Its files; nothing may change in it until the push is over.
    pub directory: PathBuf,
    /// A file outside of that directory which keeps what has been achieved. It is gone when the push has succeeded; the
    /// same push again goes on from there.
    pub journal: PathBuf,
    /// What is to be said of it; opaque here.
    pub metadata: serde_json::Value,
}

impl Store {
    /// Pushes a snapshot; one of the same name is replaced.
    pub async fn push(&self, push: &Push, observer: Observer, token: &CancellationToken) -> Result<Info> {
        tokio::select! {
            // Nothing is lost when it is dropped: the journal tells how far it was.
            pushed = self.push_all(push, observer) => pushed,
            () = token.cancelled() => Err(Error::Interrupted),
        }
    }

    async fn push_all(&self, push: &Push, observer: Observer) -> Result<Info> {
        let name = &push.name;
        let files = sources(name, &push.directory)?;
        let form = match files.as_slice() {
            [file] if file.name.as_str().ends_with(DISK_SUFFIX) => Form::Disk,
            _ => Form::Folder,
        };
        let present = self.present(name).await.or_else(|error| match error {
            // What cannot be used is replaced.
            Error::Damaged { .. } => Ok(None),
            error => Err(error),
        })?;
        let subject = Subject {
            store: self.name().to_owned(),
            name: name.to_string(),
            chunk_bytes: self.chunk_bytes,
            files: files.clone(),
        };
        let (journal, stale) = Journal::open(&push.journal, &subject)?;
        for upload in stale {
            // The store forgets it by itself, if only later.
            if let Err(fault) = self.backend.abort(&upload).await {
                tracing::info!(
                    ?fault,
                    key = upload.key,
                    "an upload that nobody goes on with cannot be given up"
                );
            }
        }
        self.check_room(&files, &push.directory).await?;
        let total_bytes = files.iter().map(|file| file.size_bytes).sum();
        let mut pushing =
            Pushing { store: self, push, files, form, journal, observer, done_bytes: 0, total_bytes };
        let manifest = pushing.run(present).await?;
        pushing.journal.remove()?;
        Ok(Info::of(name, form, manifest))
    }

    async fn check_room(&self, files: &[SourceFile], directory: &Path) -> Result<()> {
        let Some(free_bytes) = self.backend.free_bytes().await? else { return Ok(()) };
        let mut needed_bytes = SPARE_BYTES;
        for file in files {
            let metadata = fs_err::metadata(directory.join(file.name.as_str()))
                .map_err(Error::io("look at the snapshot"))?;
            needed_bytes += (metadata.blocks() * BLOCK_BYTES).min(file.size_bytes);
        }
        if free_bytes < needed_bytes {
            return Err(Error::Space { place: "the snapshot store", needed_bytes, free_bytes });
        }
        Ok(())
    }
}

/// Unit in which the kernel tells how much of a file is on disk.
const BLOCK_BYTES: u64 = 512;

/// The files of a directory, by name.
fn sources(name: &Name, directory: &Path) -> Result<Vec<SourceFile>> {
    let failed = || Error::io("look at the snapshot");
    let unfit = |problem: String| Error::Unfit { name: name.to_string(), problem };
    let mut files = Vec::new();
    for entry in fs_err::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let shown = entry.file_name().to_string_lossy().into_owned();
        let metadata = entry.metadata().map_err(failed())?;
        if !metadata.is_file() {
            return Err(unfit(format!("{shown:?} is no file")));
        }
        let file = FileName::parse(&shown).filter(|file| file.as_str() != layout::MANIFEST);
        let Some(file) = file else {
            return Err(unfit(format!("{shown:?} cannot be a file's name in a store")));
        };
        if metadata.len() > PARTS_MAX * PART_BYTES_MAX {
            let most = PARTS_MAX * PART_BYTES_MAX;
            return Err(unfit(format!("{shown:?} has {} bytes, the most is {most}", metadata.len())));
        }
        files.push(SourceFile {
            name: file,
            size_bytes: metadata.len(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            mode: metadata.mode() & MODE_MASK,
        });
    }
    if files.is_empty() || files.len() > FILES_MAX {
        return Err(unfit(format!("it has {} files; 1 to {FILES_MAX} are possible", files.len())));
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// Permissions that are kept: nothing that changes who a program runs as.
const MODE_MASK: u32 = 0o777;

/// How a file is written in its object: what others read there stays as it is.
fn encoding(name: &FileName) -> Encoding {
    if [DISK_SUFFIX, SIDECAR_SUFFIX].iter().any(|suffix| name.as_str().ends_with(suffix)) {
        Encoding::None
    } else {
        Encoding::Zstd
    }
}

/// A push under way.
struct Pushing<'a> {
    store: &'a Store,
    push: &'a Push,
    files: Vec<SourceFile>,
    form: Form,
    journal: Journal,
    observer: Observer,
    done_bytes: u64,
    total_bytes: u64,
}

/// A part on its way.
struct Parcel {
    number: u32,
    part: PlannedPart,
    payload: Payload,
    /// The journal has it already.
    planned: bool,
}

/// Why a file was not sent.
enum Setback {
    /// What the journal knows of it is of no use: from the start, then.
    Restart,
    /// The store did not take a part.
    Rejected(Fault),
    Failed(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Pushing<'_> {
    fn name(&self) -> &Name {
        &self.push.name
    }

    fn error(&self, fault: Fault) -> Error {
        self.store.error(self.name(), fault)
    }

    fn report(&self, stage: Stage) {
        let done_bytes = self.done_bytes.min(self.total_bytes);
        (self.observer)(Progress { stage, done_bytes, total_bytes: self.total_bytes });
    }

    async fn run(&mut self, present: Option<Present>) -> Result<Manifest> {
        self.report(Stage::Sending);
        let ours = present.as_ref().is_some_and(|present| present.manifest.revision == self.journal.revision);
        let manifest = match present {
            // It was interrupted after it had become visible.
            Some(present) if ours => present.manifest,
            present => {
                let mut stored = Vec::new();
                for index in 0..self.files.len() {
                    stored.push(self.send(index, present.as_ref()).await?);
                }
                self.report(Stage::Finishing);
                self.publish(stored, present.as_ref()).await?
            }
        };
        let manifest = self.settle(manifest).await?;
        self.clean(&manifest).await?;
        Ok(manifest)
    }

    /// Where a file goes: to its own place, unless what is there is still needed.
    fn key(&self, file: &FileName, present: Option<&Present>) -> String {
        if self.form == Form::Disk {
            return layout::disk(self.name());
        }
        let own = layout::file(self.name(), file);
        let needed = present.is_some_and(|present| present.manifest.files.iter().any(|file| file.key == own));
        if needed { layout::revised_file(self.name(), &self.journal.revision, file) } else { own }
    }

    async fn send(&mut self, index: usize, present: Option<&Present>) -> Result<StoredFile> {
        let key = self.key(&self.files[index].name, present);
        let before = self.done_bytes;
        for _ in 0..RESTARTS_MAX {
            self.done_bytes = before;
            match self.send_once(index, &key).await {
                Ok(()) => return Ok(self.stored(index)),
                Err(Setback::Restart) => self.restart(index).await?,
                Err(Setback::Rejected(fault)) => return Err(self.error(fault)),
                Err(Setback::Failed(error)) => return Err(error),
            }
        }
        Err(self.error(Fault::NoUpload))
    }

    async fn restart(&mut self, index: usize) -> Result<()> {
        if let Some(upload) = self.journal.files[index].upload.clone() {
            let given_up = self.store.backend.abort(&upload).await;
            tracing::info!(key = upload.key, ?given_up, "an upload begins anew");
        }
        self.journal.forget(index)
    }

    async fn send_once(&mut self, index: usize, key: &str) -> Result<(), Setback> {
        if let Some((at, _)) = &self.journal.files[index].whole {
            if at != key {
                return Err(Setback::Restart);
            }
            self.done_bytes += self.files[index].size_bytes;
            return Ok(());
        }
        let upload = match self.journal.files[index].upload.clone() {
            Some(upload) if upload.key != key => return Err(Setback::Restart),
            Some(upload) => {
                if self.take_up(index, &upload).await? {
                    self.done_bytes += self.files[index].size_bytes;
                    return Ok(());
                }
                Some(upload)
            }
            None => None,
        };
        let reader = Reader::open(self.push, &self.files[index], self.store.chunk_bytes)?;
        match upload {
            // What fits in one request needs no upload of parts.
            None if self.files[index].size_bytes <= PART_BYTES_MIN => {
                self.send_small(index, key, &reader).await
            }
            upload => self.send_parts(index, key, &reader, upload).await,
        }
    }

    async fn send_small(&mut self, index: usize, key: &str, reader: &Reader) -> Result<(), Setback> {
        let mut gathering = Gathering::new(1, 0, 0);
        for chunk in 0..reader.count {
            gathering.add(reader.encode(chunk).await?);
        }
        let parcel = gathering.close();
        self.journal.planned(index, parcel.number, parcel.part)?;
        self.before_visible().await?;
        let revision = self.journal.revision.clone();
        let put = self.store.backend.put(key, parcel.payload, &Condition::Always, &revision).await;
        let etag = put.map_err(|fault| self.error(fault))?;
        self.journal.whole(index, key.to_owned(), etag)?;
        self.done_bytes += self.files[index].size_bytes;
        self.report(Stage::Sending);
        Ok(())
    }

    async fn send_parts(
        &mut self,
        index: usize,
        key: &str,
        reader: &Reader,
        upload: Option<Upload>,
    ) -> Result<(), Setback> {
        let upload = match upload {
            Some(upload) => upload,
            None => {
                let begun = self.store.backend.begin_upload(key, &self.journal.revision).await;
                let upload = begun.map_err(|fault| self.error(fault))?;
                self.journal.begun(index, &upload)?;
                upload
            }
        };
        let plan = Plan::of(&self.journal.files[index].parts);
        let (give, mut take) = mpsc::channel(1);
        let producing = produce(reader, plan, give);
        let (this, to) = (&mut *self, &upload);
        // It owns its end of the channel: when it fails, the producer learns that nobody takes its parcels.
        let sending = async move {
            let at_once = (SENDING_BYTES_MAX / reader.part_bytes).clamp(1, SENDING_PARTS_MAX);
            let mut under_way = stream::FuturesUnordered::new();
            let mut outcome = Ok(());
            while outcome.is_ok() {
                tokio::select! {
                    // Both arms lose nothing when the other one is taken.
                    parcel = take.recv(), if (under_way.len() as u64) < at_once => {
                        let Some(parcel) = parcel else { break };
                        under_way.push(this.dispatch(index, to, parcel)?);
                    }
                    Some(sent) = under_way.next() => outcome = this.arrived(index, reader, sent),
                }
            }
            // Those that are on their way need not be sent again when the push goes on, whatever became of another.
            while let Some(sent) = under_way.next().await {
                outcome = outcome.and(this.arrived(index, reader, sent));
            }
            outcome
        };
        let (produced, sent) = tokio::join!(producing, sending);
        match sent.and(produced) {
            // A request to complete it that was interrupted may have reached the store all the same.
            Err(Setback::Rejected(fault)) => self.was_completed(index, &upload, fault).await.map(drop),
            Err(setback) => Err(setback),
            Ok(()) => self.complete(index, &upload).await,
        }
    }

    /// Begins to send a part.
    fn dispatch(
        &mut self,
        index: usize,
        upload: &Upload,
        parcel: Parcel,
    ) -> Result<impl Future<Output = (u32, Result<String, Fault>)> + use<>> {
        let Parcel { number, part, payload, planned } = parcel;
        let offset = part.offset;
        if !planned {
            self.journal.planned(index, number, part)?;
        }
        let (backend, upload) = (self.store.backend.clone(), upload.clone());
        let nothing = payload.length() == 0 && number > 1;
        Ok(async move {
            // Zeros at the end of a file, which its encoding leaves out.
            let sent = if nothing {
                Ok(String::new())
            } else {
                backend.put_part(&upload, number, offset, payload).await
            };
            (number, sent)
        })
    }

    /// Notes how a part fared.
    fn arrived(
        &mut self,
        index: usize,
        reader: &Reader,
        (number, sent): (u32, Result<String, Fault>),
    ) -> Result<(), Setback> {
        let etag = match sent {
            Ok(etag) => etag,
            Err(fault) => return Err(Setback::Rejected(fault)),
        };
        self.journal.done(index, number, etag)?;
        self.done_bytes += reader.content_bytes(&self.journal.files[index].parts[&number]);
        self.report(Stage::Sending);
        Ok(())
    }

    /// Compares what the journal knows of an upload with what the store has. True: the object is whole.
    async fn take_up(&mut self, index: usize, upload: &Upload) -> Result<bool, Setback> {
        let listed = match self.store.backend.parts(upload).await {
            Ok(listed) => listed,
            Err(fault) => return self.was_completed(index, upload, fault).await,
        };
        let reader = Reader::open(self.push, &self.files[index], self.store.chunk_bytes)?;
        let state = &mut self.journal.files[index];
        for (number, part) in &mut state.parts {
            let there = part.is_nothing(*number)
                || listed.as_ref().is_none_or(|listed| {
                    listed.iter().any(|found| {
                        let same = found.etag.is_none() || found.etag == part.etag;
                        found.number == *number && found.size_bytes == part.length() && same
                    })
                });
            if !there {
                part.etag = None;
            }
        }
        let done = state.parts.values().filter(|part| part.etag.is_some());
        self.done_bytes += done.map(|part| reader.content_bytes(part)).sum::<u64>();
        self.report(Stage::Sending);
        Ok(false)
    }

    /// An upload that is gone may have become an object just before the interruption.
    async fn was_completed(&mut self, index: usize, upload: &Upload, fault: Fault) -> Result<bool, Setback> {
        // Some stores say of an upload that they do not know only that nobody may use it.
        if !matches!(fault, Fault::NoUpload | Fault::Failed(Error::Refused { .. })) {
            return Err(self.error(fault).into());
        }
        let size: u64 = self.journal.files[index].parts.values().map(PlannedPart::length).sum();
        let ours = match self.store.backend.head(&upload.key).await {
            Ok(object) => {
                let ours = object.revision.as_deref() == Some(&self.journal.revision);
                (ours && object.size_bytes == size).then_some(object)
            }
            Err(Fault::Absent) => None,
            Err(other) => return Err(self.error(other).into()),
        };
        let Some(object) = ours else {
            return Err(match fault {
                Fault::NoUpload => Setback::Restart,
                fault => self.error(fault).into(),
            });
        };
        self.journal.whole(index, upload.key.clone(), object.etag)?;
        Ok(true)
    }

    async fn complete(&mut self, index: usize, upload: &Upload) -> Result<(), Setback> {
        self.before_visible().await?;
        let state = &self.journal.files[index];
        let parts: Vec<(u32, String)> = state
            .parts
            .iter()
            .filter(|(number, part)| !part.is_nothing(**number))
            .filter_map(|(number, part)| part.etag.clone().map(|etag| (*number, etag)))
            .collect();
        let size = state.parts.values().map(PlannedPart::length).sum();
        match self.store.backend.complete(upload, &parts, size).await {
            Ok(etag) => Ok(self.journal.whole(index, upload.key.clone(), etag)?),
            // An answer that was lost, or an upload that the store has forgotten.
            Err(fault) => self.was_completed(index, upload, fault).await.map(|_| ()),
        }
    }

    /// The disk that is about to be replaced takes its manifest's word with it.
    async fn before_visible(&self) -> Result<()> {
        if self.form == Form::Folder {
            return Ok(());
        }
        let removed = self.store.backend.remove(&layout::sidecar(self.name())).await;
        removed.map_err(|fault| self.error(fault))
    }

    /// What the store has of a file, for the manifest.
    fn stored(&self, index: usize) -> StoredFile {
        let (file, state) = (&self.files[index], &self.journal.files[index]);
        let mut chunks = Vec::new();
        for part in state.parts.values() {
            let mut offset = part.offset;
            for (length, digest) in &part.chunks {
                chunks.push(digest.map_or(Chunk::Zero, |digest| Chunk::Data {
                    offset,
                    length: *length,
                    digest,
                }));
                offset += length;
            }
        }
        let (key, etag) = state.whole.clone().expect("only what is whole gets into a manifest");
        StoredFile {
            name: file.name.clone(),
            key,
            etag,
            stored_bytes: state.parts.values().map(PlannedPart::length).sum(),
            size_bytes: file.size_bytes,
            mode: file.mode,
            encoding: encoding(&file.name),
            chunk_bytes: self.store.chunk_bytes,
            chunks,
        }
    }

    /// Writes the manifest: from now on the snapshot is there.
    async fn publish(&self, stored: Vec<StoredFile>, present: Option<&Present>) -> Result<Manifest> {
        let manifest = Manifest::new(self.name(), &self.journal.revision, self.push.metadata.clone(), stored);
        let condition = match (self.form, present) {
            (Form::Disk, _) => Condition::Always,
            (Form::Folder, Some(Present { form: Form::Folder, version: Some(version), .. })) => {
                Condition::Replaces(version.clone())
            }
            // One that cannot be read was passed over, and is replaced.
            (Form::Folder, _) if self.unreadable().await? => Condition::Always,
            (Form::Folder, _) => Condition::Absent,
        };
        self.write(&manifest, &condition).await?;
        Ok(manifest)
    }

    async fn unreadable(&self) -> Result<bool> {
        match self.store.present(self.name()).await {
            Ok(_) => Ok(false),
            Err(Error::Damaged { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, manifest: &Manifest, condition: &Condition) -> Result<()> {
        let key = match self.form {
            Form::Disk => layout::sidecar(self.name()),
            Form::Folder => layout::manifest(self.name()),
        };
        let text = serde_json::to_vec(manifest).expect("a manifest is JSON");
        let payload = Payload::new(vec![Bytes::from(text)]);
        match self.store.backend.put(&key, payload, condition, &manifest.revision).await {
            Ok(_) => Ok(()),
            Err(Fault::Changed) => Err(Error::Conflict(self.name().to_string())),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Brings files that lie beside a snapshot that was replaced to where they belong.
    async fn settle(&self, manifest: Manifest) -> Result<Manifest> {
        let beside = |file: &StoredFile| {
            self.form == Form::Folder && file.key != layout::file(self.name(), &file.name)
        };
        if !manifest.files.iter().any(beside) {
            return Ok(manifest);
        }
        let mut settled = manifest;
        let revision = settled.revision.clone();
        for file in settled.files.iter_mut().filter(|file| beside(file)) {
            let to = layout::file(self.name(), &file.name);
            let copied = self.store.backend.copy(&file.key, &to, file.stored_bytes, &revision).await;
            file.etag = copied.map_err(|fault| self.error(fault))?;
            file.key = to;
        }
        let present = self.store.present(self.name()).await?;
        let ours = present.filter(|present| present.manifest.revision == revision);
        let version = ours.and_then(|present| present.version);
        let Some(version) = version else { return Err(Error::Conflict(self.name().to_string())) };
        self.write(&settled, &Condition::Replaces(version)).await?;
        Ok(settled)
    }

    /// Removes what the snapshot does not consist of: of the one that it replaced, and of pushes that were given up.
    async fn clean(&self, manifest: &Manifest) -> Result<()> {
        let name = self.name();
        let mut needed: BTreeSet<String> = manifest.files.iter().map(|file| file.key.clone()).collect();
        needed.insert(match self.form {
            Form::Disk => layout::sidecar(name),
            Form::Folder => layout::manifest(name),
        });
        let listed = self.store.backend.list(&layout::folder(name), Depth::All).await;
        let listed = listed.map_err(|fault| self.error(fault))?;
        // The manifest of the other form first, so that nobody reads what is going away.
        let first = [layout::manifest(name), layout::sidecar(name), layout::disk(name)];
        for key in first.into_iter().chain(listed.into_iter().map(|entry| entry.key)) {
            if !needed.contains(&key) {
                self.store.backend.remove(&key).await.map_err(|fault| self.error(fault))?;
            }
        }
        Ok(())
    }
}

/// How often a file is begun anew within one push.
const RESTARTS_MAX: usize = 3;

/// Reads chunks of one file.
struct Reader {
    file: Arc<std::fs::File>,
    size_bytes: u64,
    chunk_bytes: u64,
    encoding: Encoding,
    count: usize,
    /// How large its parts are, about.
    part_bytes: u64,
}

impl Reader {
    fn open(push: &Push, source: &SourceFile, chunk_bytes: u64) -> Result<Self> {
        let file = fs_err::File::open(push.directory.join(source.name.as_str()))
            .map_err(Error::io("open a file of the snapshot"))?;
        Ok(Self {
            file: Arc::new(file.into_file()),
            size_bytes: source.size_bytes,
            chunk_bytes,
            encoding: encoding(&source.name),
            count: chunk_count(source.size_bytes, chunk_bytes),
            part_bytes: PART_BYTES_MIN.max(source.size_bytes.div_ceil(PARTS_MAX)),
        })
    }

    async fn encode(&self, index: usize) -> Result<Encoded> {
        let (offset, length) = extent(self.size_bytes, self.chunk_bytes, index);
        let (file, encoding) = (self.file.clone(), self.encoding);
        let task = move || {
            let length = usize::try_from(length).map_err(std::io::Error::other)?;
            content::encode(&file, offset, length, encoding)
        };
        let encoded =
            tokio::task::spawn_blocking(task).await.map_err(std::io::Error::other).and_then(|done| done);
        encoded.map_err(Error::io("read a file of the snapshot"))
    }

    /// Bytes of the file that a part has.
    fn content_bytes(&self, part: &PlannedPart) -> u64 {
        (part.first..part.end()).map(|index| extent(self.size_bytes, self.chunk_bytes, index).1).sum()
    }
}

/// What is to be sent: parts that were planned and have not arrived, then the rest.
struct Plan {
    open: VecDeque<(u32, PlannedPart)>,
    next_number: u32,
    next_chunk: usize,
    next_offset: u64,
}

impl Plan {
    fn of(parts: &std::collections::BTreeMap<u32, PlannedPart>) -> Self {
        let open = parts.iter().filter(|(_, part)| part.etag.is_none());
        let open = open.map(|(number, part)| (*number, part.clone())).collect();
        let last = parts.last_key_value();
        Self {
            open,
            next_number: last.map_or(1, |(number, _)| number + 1),
            next_chunk: last.map_or(0, |(_, part)| part.end()),
            next_offset: last.map_or(0, |(_, part)| part.offset + part.length()),
        }
    }
}

/// Chunks on their way into a part.
struct Gathering {
    number: u32,
    part: PlannedPart,
    pieces: Vec<Bytes>,
}

impl Gathering {
    fn new(number: u32, first: usize, offset: u64) -> Self {
        Self {
            number,
            part: PlannedPart { first, offset, chunks: Vec::new(), etag: None },
            pieces: Vec::new(),
        }
    }

    fn add(&mut self, encoded: Encoded) {
        self.part.chunks.push((encoded.bytes.len() as u64, encoded.digest));
        if !encoded.bytes.is_empty() {
            self.pieces.push(encoded.bytes);
        }
    }

    fn close(self) -> Parcel {
        let payload = Payload::new(self.pieces);
        Parcel { number: self.number, part: self.part, payload, planned: false }
    }

    /// What comes after this part.
    fn next(&self) -> Self {
        Self::new(self.number + 1, self.part.end(), self.part.offset + self.part.length())
    }
}

/// Makes parts. Ends early, and well, when nobody takes them any more.
async fn produce(reader: &Reader, plan: Plan, give: mpsc::Sender<Parcel>) -> Result<(), Setback> {
    for (number, part) in plan.open {
        let mut gathering = Gathering::new(number, part.first, part.offset);
        for index in part.first..part.end() {
            gathering.add(reader.encode(index).await?);
        }
        // Another release of the compressor may make other bytes of the same content.
        if gathering.part.chunks != part.chunks {
            return Err(Setback::Restart);
        }
        let parcel = Parcel { planned: true, ..seal(gathering).await? };
        if give.send(parcel).await.is_err() {
            return Ok(());
        }
    }
    let mut gathering = Gathering::new(plan.next_number, plan.next_chunk, plan.next_offset);
    let mut encoded =
        stream::iter(plan.next_chunk..reader.count).map(|index| reader.encode(index)).buffered(ENCODERS);
    while let Some(chunk) = encoded.try_next().await? {
        gathering.add(chunk);
        if gathering.part.length() >= reader.part_bytes {
            let next = gathering.next();
            let parcel = seal(std::mem::replace(&mut gathering, next)).await?;
            if give.send(parcel).await.is_err() {
                return Ok(());
            }
        }
    }
    // An object has at least one part, if only an empty one.
    if gathering.part.length() > 0 || gathering.number == 1 || !gathering.part.chunks.is_empty() {
        let parcel = seal(gathering).await?;
        // Who is gone has failed, and says why.
        let _ = give.send(parcel).await;
    }
    Ok(())
}

/// Hashes a part, away from the runtime.
async fn seal(gathering: Gathering) -> Result<Parcel> {
    let sealed = tokio::task::spawn_blocking(move || gathering.close()).await;
    sealed.map_err(std::io::Error::other).map_err(Error::io("hash a part of the snapshot"))
}
