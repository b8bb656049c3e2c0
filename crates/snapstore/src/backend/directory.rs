//! A store in a directory. Objects are files; an upload is a file in `.uploads` that its parts are written into where
//! they belong, and that gets its name when it is whole. Nothing follows a symbolic link beneath the directory.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io::{self, Read as _},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};

use super::{Condition, Depth, Entry, FOLDER, Fault, Object, Part, Payload, Upload};
use crate::{Error, Result, content, content::Sha256, random_hex};

/// Where uploads lie until they are whole.
const UPLOADS: &str = ".uploads";

/// Held while an object is written on a condition.
const LOCK: &str = ".lock";

/// Permissions of directories and of objects, less the process's mask. Memory is in them: nothing for others.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o750);
const OBJECT_MODE: Mode = Mode::from_raw_mode(0o640);

/// Deepest folder that is listed.
const DEPTH_MAX: usize = 4;

/// A directory.
#[derive(Debug)]
pub(crate) struct Directory {
    name: String,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The folder of all objects.
    root: OwnedFd,
    uploads: OwnedFd,
}

impl Directory {
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let (path, name) = (path.to_owned(), path.display().to_string());
        let shown = name.clone();
        let inner = blocking(move || Inner::open(&path)).await.map_err(|source| {
            failed(&shown, "cannot be opened: make it a directory that this server may write", source)
        })?;
        Ok(Self { name, inner: Arc::new(inner) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        task: impl FnOnce(&Inner) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Fault> {
        let inner = self.inner.clone();
        let outcome = blocking(move || Ok(task(&inner))).await.and_then(|done| match done {
            Ok(value) => Ok(Ok(value)),
            Err(Trouble::Fault(fault)) => Ok(Err(fault)),
            Err(Trouble::Io(error)) => Err(error),
        });
        match outcome {
            Ok(done) => done,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::Absent),
            Err(error) => Err(failed(&self.name, what, error).into()),
        }
    }

    pub(super) async fn free_bytes(&self) -> Result<u64> {
        let inner = self.inner.clone();
        blocking(move || Ok(rustix::fs::fstatvfs(&inner.root)?))
            .await
            .map(|status| status.f_bavail.saturating_mul(status.f_frsize))
            .map_err(|source| failed(&self.name, "cannot be looked at", source))
    }

    pub(super) async fn head(&self, key: &str) -> Result<Object, Fault> {
        let key = key.to_owned();
        self.run("cannot be read", move |inner| {
            let metadata = inner.open_object(&key)?.metadata()?;
            Ok(Object { size_bytes: metadata.len(), etag: Some(version(&metadata)), revision: None })
        })
        .await
    }

    pub(super) async fn get(
        &self,
        key: &str,
        _etag: Option<&str>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Fault> {
        let key = key.to_owned();
        self.run("cannot be read", move |inner| {
            let file = inner.open_object(&key)?;
            let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            match file.read_exact_at(&mut bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Fault::Changed.into()),
                Err(error) => Err(error.into()),
                Ok(()) => Ok(bytes.into()),
            }
        })
        .await
    }

    pub(super) async fn document(&self, key: &str, bytes_max: u64) -> Result<(Bytes, Option<String>), Fault> {
        let key = key.to_owned();
        self.run("cannot be read", move |inner| {
            let bytes = inner.read(&key, bytes_max)?;
            let version = Sha256::of(&bytes).to_string();
            Ok((bytes.into(), Some(version)))
        })
        .await
    }

    pub(super) async fn put(
        &self,
        key: &str,
        payload: Payload,
        condition: &Condition,
        _revision: &str,
    ) -> Result<Option<String>, Fault> {
        let (key, condition) = (key.to_owned(), condition.clone());
        self.run("cannot be written", move |inner| {
            let id = random_hex();
            let file = inner.create_upload(&id)?;
            let written = (|| {
                let mut offset = 0;
                for piece in &payload.pieces {
                    file.write_all_at(piece, offset)?;
                    offset += piece.len() as u64;
                }
                file.sync_all()?;
                let _held = inner.lock()?;
                inner.check(&key, &condition)?;
                inner.publish(&id, &key)
            })();
            if written.is_err() {
                inner.discard(&id)?;
            }
            written?;
            Ok(Some(version(&inner.open_object(&key)?.metadata()?)))
        })
        .await
    }

    pub(super) async fn begin_upload(&self, key: &str, _revision: &str) -> Result<Upload, Fault> {
        let key = key.to_owned();
        self.run("cannot be written", move |inner| {
            let id = random_hex();
            inner.create_upload(&id)?;
            Ok(Upload { key, id })
        })
        .await
    }

    pub(super) async fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        offset: u64,
        payload: Payload,
    ) -> Result<String, Fault> {
        let id = upload.id.clone();
        self.run("cannot be written", move |inner| {
            let file = inner.open_upload(&id)?;
            let mut at = offset;
            for piece in &payload.pieces {
                content::write_sparse(&file, at, piece)?;
                at += piece.len() as u64;
            }
            // Whoever goes on later counts on it.
            file.sync_data()?;
            Ok(number.to_string())
        })
        .await
        .map_err(upload_gone)
    }

    pub(super) async fn parts(&self, upload: &Upload) -> Result<Option<Vec<Part>>, Fault> {
        let id = upload.id.clone();
        // What is in the file is not known part by part, only that it is there.
        self.run("cannot be read", move |inner| Ok(inner.open_upload(&id).map(|_| None)?))
            .await
            .map_err(upload_gone)
    }

    pub(super) async fn complete(
        &self,
        upload: &Upload,
        _parts: &[(u32, String)],
        size_bytes: u64,
    ) -> Result<Option<String>, Fault> {
        let upload = upload.clone();
        self.run("cannot be written", move |inner| {
            let file = inner.open_upload(&upload.id)?;
            // Holes at the end, and what an earlier try may have left beyond it.
            file.set_len(size_bytes)?;
            file.sync_all()?;
            inner.publish(&upload.id, &upload.key)?;
            Ok(Some(version(&file.metadata()?)))
        })
        .await
        .map_err(upload_gone)
    }

    pub(super) async fn abort(&self, upload: &Upload) -> Result<(), Fault> {
        let id = upload.id.clone();
        self.run("cannot be written", move |inner| Ok(inner.discard(&id)?)).await
    }

    pub(super) async fn list(&self, prefix: &str, depth: Depth) -> Result<Vec<Entry>, Fault> {
        let folder = prefix.trim_end_matches('/').to_owned();
        let listed = self
            .run("cannot be read", move |inner| {
                let mut entries = Vec::new();
                inner.list(&folder, depth, &mut entries)?;
                Ok(entries)
            })
            .await;
        match listed {
            Err(Fault::Absent) => Ok(Vec::new()),
            listed => listed,
        }
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), Fault> {
        let key = key.to_owned();
        match self.run("cannot be written", move |inner| Ok(inner.remove(&key)?)).await {
            Err(Fault::Absent) => Ok(()),
            removed => removed,
        }
    }

    pub(super) async fn copy(
        &self,
        from: &str,
        to: &str,
        _size_bytes: u64,
        _revision: &str,
    ) -> Result<Option<String>, Fault> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run("cannot be written", move |inner| {
            // Objects do not change, so two names for one file are as good as two files.
            let id = random_hex();
            let (parent, name) = inner.parent(&from, Parents::Existing)?;
            rustix::fs::linkat(&parent, name, &inner.uploads, &id, AtFlags::empty())?;
            inner.publish(&id, &to)?;
            Ok(Some(version(&inner.open_object(&to)?.metadata()?)))
        })
        .await
    }
}

/// What can go wrong within a task.
enum Trouble {
    Fault(Fault),
    Io(io::Error),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl<E: Into<io::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

/// Whether folders on the way to an object are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parents {
    Existing,
    Made,
}

impl Inner {
    fn open(path: &Path) -> io::Result<Self> {
        let top = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let root = make_folder(&top, FOLDER)?;
        let uploads = make_folder(&root, UPLOADS)?;
        Ok(Self { root, uploads })
    }

    fn beneath(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        open_beneath(&self.root, path, flags)
    }

    fn open_object(&self, key: &str) -> io::Result<File> {
        let file = File::from(self.beneath(key, OFlags::RDONLY | OFlags::NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file)
    }

    fn read(&self, key: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let file = self.open_object(key)?;
        if file.metadata()?.len() > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create_upload(&self, id: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.uploads, id, flags, OBJECT_MODE)?.into())
    }

    fn open_upload(&self, id: &str) -> io::Result<File> {
        Ok(open_beneath(&self.uploads, id, OFlags::RDWR)?.into())
    }

    fn discard(&self, id: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.uploads, id, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The folder that an object is in, and its name there.
    fn parent<'a>(&self, key: &'a str, parents: Parents) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (folder, name) = key.rsplit_once('/').unwrap_or((".", key));
        if parents == Parents::Made {
            let mut at = self.beneath(".", OFlags::DIRECTORY)?;
            for part in folder.split('/').filter(|part| *part != ".") {
                at = make_folder(&at, part)?;
            }
        }
        Ok((self.beneath(folder, OFlags::DIRECTORY)?, OsStr::new(name)))
    }

    /// Gives a file that is whole and on disk its name, in place of whatever had it.
    fn publish(&self, id: &str, key: &str) -> Result<(), Trouble> {
        let (parent, name) = self.parent(key, Parents::Made)?;
        rustix::fs::renameat_with(&self.uploads, id, &parent, name, RenameFlags::empty())?;
        rustix::fs::fsync(&parent)?;
        Ok(())
    }

    fn lock(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.root, LOCK, flags, OBJECT_MODE)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file.into())
    }

    fn check(&self, key: &str, condition: &Condition) -> Result<(), Trouble> {
        let holds = match condition {
            Condition::Always => true,
            Condition::Absent => match self.open_object(key) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                found => found.map(|_| false)?,
            },
            Condition::Replaces(version) => match self.read(key, crate::manifest::MANIFEST_BYTES_MAX) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                found => Sha256::of(&found?).to_string() == *version,
            },
        };
        if holds { Ok(()) } else { Err(Fault::Changed.into()) }
    }

    fn list(&self, folder: &str, depth: Depth, entries: &mut Vec<Entry>) -> io::Result<()> {
        let path = if folder.is_empty() { "." } else { folder };
        let at = self.beneath(path, OFlags::DIRECTORY | OFlags::RDONLY)?;
        for entry in Dir::read_from(&at)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let key = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let status = match rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => status,
                // It has gone since.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            match FileType::from_raw_mode(status.st_mode) {
                FileType::RegularFile => {
                    entries.push(Entry { key, size_bytes: status.st_size.unsigned_abs() });
                }
                FileType::Directory if depth == Depth::Level => {
                    entries.push(Entry { key: format!("{key}/"), size_bytes: 0 });
                }
                FileType::Directory if key.split('/').count() < DEPTH_MAX => {
                    self.list(&key, depth, entries)?
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn remove(&self, key: &str) -> io::Result<()> {
        let (parent, name) = self.parent(key, Parents::Existing)?;
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
        // Folders are there for their objects only; one with others in it stays.
        let mut folder = key;
        while let Some((above, _)) = folder.rsplit_once('/') {
            folder = above;
            let (parent, name) = self.parent(folder, Parents::Existing)?;
            if rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn make_folder(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open_beneath(parent, name, OFlags::DIRECTORY | OFlags::RDONLY)
}

fn open_beneath(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// What tells one content of a file from another: what tools that copy directories keep.
fn version(metadata: &Metadata) -> String {
    format!("{}-{}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

fn upload_gone(fault: Fault) -> Fault {
    match fault {
        Fault::Absent => Fault::NoUpload,
        fault => fault,
    }
}

fn failed(store: &str, problem: &str, source: io::Error) -> Error {
    let problem = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "is full: make room in it".to_owned(),
        _ => problem.to_owned(),
    };
    Error::Store { store: store.to_owned(), problem, source: Some(source.into()) }
}

async fn blocking<T: Send + 'static>(task: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(task).await.map_err(io::Error::other)?
}
