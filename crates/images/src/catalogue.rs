//! The local catalogue: names, and what they stand for.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, HOST_IMAGE, ImageConfig, ImageName, ImportOptions, Result, Tree, digest,
    host::{HostView, now},
    import,
    root::Limits,
    scaffold::{self, SCAFFOLD_VERSION},
    store::{self, ChangeLock, Scratch, Store},
};

/// What the host's view is identified by. It is live: whatever the host has now is its content, so the number names
/// the view, not one state of it: it is the digest of `sandhaus: view of the host, 1`.
const HOST_DIGEST: &str = "sha256:f02ca4d74ebeaebbc8d6d7a7e6e12c38f8045ab8bd74f92480a88dbef8b5e718";

/// How an image came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The read-only view of this host.
    Host,
    /// Imported from an archive or a directory.
    Imported,
}

/// An image as the catalogue lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// The content's identity: `sha256:…` of the tree; two names of one image share it.
    pub digest: String,
    /// How it came to be.
    pub kind: Kind,
    /// When, RFC 3339 in UTC.
    pub created_at: String,
    /// Bytes of file content on disk; zero for the host view.
    pub size_bytes: u64,
}

/// What a name stands for.
#[derive(Debug, Serialize, Deserialize)]
struct NameRecord {
    name: ImageName,
    digest: String,
}

/// What is known of a content.
#[derive(Debug, Serialize, Deserialize)]
struct ContentRecord {
    created_at: String,
    size_bytes: u64,
    config: ImageConfig,
}

/// The images of one data directory. Cheap to clone; every method is blocking and safe to call from many threads.
#[derive(Debug, Clone)]
pub struct Catalogue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    /// Locked before the store's own lock, never after it.
    host: Mutex<HostView>,
    host_created_at: String,
    /// Contents this process uses, by digest. Once used, a content is held until this process removes it or ends.
    held: Mutex<HashMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    tree: Tree,
    directory: PathBuf,
    _lock: OwnedFd,
}

impl Catalogue {
    /// Opens (or makes) the catalogue in `dir`, clears what a crash left half done, refreshes the built-in images.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_on(dir, Path::new("/"))
    }

    /// As [`Self::open`], on a host whose root is elsewhere.
    pub(crate) fn open_on(dir: &Path, host: &Path) -> Result<Self> {
        let store = Store::open(dir)?;
        let leftovers = store.leftovers(&store.lock()?)?;
        drop(leftovers);
        let host = HostView::open(&store, host)?;
        let host_created_at = host.created_at().to_owned();
        let (host, held) = (Mutex::new(host), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { store, host, host_created_at, held }) })
    }

    /// Every image, by name.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = vec![self.get(&host_name()?)?];
        for record in self.name_records()? {
            match self.image(record.name, record.digest) {
                Ok(image) => images.push(image),
                // Removed while we were reading.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(images)
    }

    /// One image.
    pub fn get(&self, name: &ImageName) -> Result<Image> {
        self.image(name.clone(), self.digest(name)?)
    }

    /// The tree that `name` stands for now.
    pub fn tree(&self, name: &ImageName) -> Result<Tree> {
        self.tree_by_digest(&self.digest(name)?).map_err(|error| match error {
            Error::NotFound(_) => Error::NotFound(name.to_string()),
            error => error,
        })
    }

    /// The tree with this digest, also after its last name was moved elsewhere.
    pub fn tree_by_digest(&self, digest: &str) -> Result<Tree> {
        if digest == HOST_DIGEST {
            return Ok(guard(&self.inner.host).tree(&self.inner.store));
        }
        if let Some(held) = guard(&self.inner.held).get(digest)
            && store::exists(&held.directory)?
        {
            return Ok(held.tree.clone());
        }
        self.hold(digest)
    }

    /// Imports an archive (tar, tar.gz, tar.zst) or a directory under `name`. Nothing is visible until it is whole.
    /// `progress` is called with bytes read so far and the total where it is known.
    pub fn import(
        &self,
        name: &ImageName,
        source: &Path,
        options: &ImportOptions,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Image> {
        self.import_within(name, source, options, Limits::default(), progress)
    }

    /// As [`Self::import`], with other limits.
    pub(crate) fn import_within(
        &self,
        name: &ImageName,
        source: &Path,
        options: &ImportOptions,
        limits: Limits,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Image> {
        refuse_built_in(name)?;
        self.refuse_taken(name, options)?;
        let store = &self.inner.store;
        let scratch = store.scratch(&store.lock()?)?;
        let whole = scratch.directory("image")?;
        let tree = scratch.directory("image/tree")?;
        import::fill(source, &tree, store.root(), limits, progress)?;
        let summary = digest::summarize(&tree)?;
        let above = scratch.directory(&format!("image/{}", scaffold_directory()))?;
        scaffold::build(&tree, &above)?;
        let record = ContentRecord {
            created_at: now(),
            size_bytes: summary.stored_bytes,
            config: ImageConfig::default(),
        };
        store::write_new(&whole.join("image.json"), &record)?;
        scratch.sync()?;

        let lock = store.lock()?;
        self.refuse_taken(name, options)?;
        let place = self.content_directory(&summary.digest)?;
        if !store::exists(&place)? {
            store::publish(&whole, &place)?;
        }
        // Read before others may remove it again.
        let image = self.image(name.clone(), summary.digest)?;
        self.write_name(name, &image.digest, &lock)?;
        drop(lock);
        tracing::info!(%name, digest = image.digest, files = summary.entries, "image imported");
        Ok(image)
    }

    /// Gives an image another name, moving that name if it stood for another image.
    pub fn tag(&self, existing: &ImageName, new: &ImageName) -> Result<Image> {
        refuse_built_in(new)?;
        let lock = self.inner.store.lock()?;
        let digest = self.digest(existing)?;
        let image = self.image(new.clone(), digest.clone())?;
        self.write_name(new, &digest, &lock)?;
        Ok(image)
    }

    /// Removes a name; the content goes when no name is left and `in_use` does not hold its digest.
    pub fn remove(&self, name: &ImageName, in_use: &dyn Fn(&str) -> bool) -> Result<()> {
        refuse_built_in(name)?;
        let lock = self.inner.store.lock()?;
        let record = self.name_record_path(name);
        if !store::exists(&record)? {
            return Err(Error::NotFound(name.to_string()));
        }
        store::remove_record(&record)?;
        let removed = self.take_nameless(in_use, &lock)?;
        drop(lock);
        // Deleting many files takes long; nobody waits for it but the caller.
        drop(removed);
        Ok(())
    }

    /// Removes every content that has no name and that `in_use` does not hold: what a moved name, a removed image that
    /// was in use then, or a crash left.
    pub fn collect(&self, in_use: &dyn Fn(&str) -> bool) -> Result<()> {
        let lock = self.inner.store.lock()?;
        let removed = self.take_nameless(in_use, &lock)?;
        drop(lock);
        drop(removed);
        Ok(())
    }

    fn take_nameless(&self, in_use: &dyn Fn(&str) -> bool, lock: &ChangeLock) -> Result<Vec<Scratch>> {
        let named: HashSet<String> = self.name_records()?.into_iter().map(|record| record.digest).collect();
        let mut removed = Vec::new();
        for name in store::entries(&self.inner.store.contents())? {
            let digest = format!("sha256:{}", name.display());
            if named.contains(&digest) || in_use(&digest) {
                continue;
            }
            // Our own hold would be in the way; others keep the content by theirs.
            guard(&self.inner.held).remove(&digest);
            removed.extend(self.inner.store.take_away(&self.inner.store.contents().join(name), lock)?);
        }
        Ok(removed)
    }

    /// Reads a content and keeps it from being removed by other processes.
    fn hold(&self, digest: &str) -> Result<Tree> {
        let directory = self.content_directory(digest)?;
        let missing = || Error::NotFound(digest.to_owned());
        let lock = store::hold(&directory)?.ok_or_else(missing)?;
        let record: ContentRecord = store::read_record(&directory.join("image.json"))?.ok_or_else(missing)?;
        let above = directory.join(scaffold_directory());
        if !store::exists(&above)? {
            self.renew_scaffold(&directory, &above)?;
        }
        let tree =
            Tree { layers: vec![above, directory.join("tree")], binds: Vec::new(), config: record.config };
        let held = Held { tree: tree.clone(), directory, _lock: lock };
        guard(&self.inner.held).insert(digest.to_owned(), held);
        Ok(tree)
    }

    /// Makes the scaffold of an image that was imported when scaffolds were others.
    fn renew_scaffold(&self, content: &Path, above: &Path) -> Result<()> {
        let store = &self.inner.store;
        let scratch = store.scratch(&store.lock()?)?;
        let built = scratch.directory("scaffold")?;
        scaffold::build(&content.join("tree"), &built)?;
        scratch.sync()?;
        let _lock = store.lock()?;
        if store::exists(above)? { Ok(()) } else { store::publish(&built, above) }
    }

    fn digest(&self, name: &ImageName) -> Result<String> {
        if name.as_str() == HOST_IMAGE {
            return Ok(HOST_DIGEST.to_owned());
        }
        match store::read_record::<NameRecord>(&self.name_record_path(name))? {
            Some(record) => Ok(record.digest),
            None => Err(Error::NotFound(name.to_string())),
        }
    }

    fn image(&self, name: ImageName, digest: String) -> Result<Image> {
        if digest == HOST_DIGEST {
            let created_at = self.inner.host_created_at.clone();
            return Ok(Image { name, digest, kind: Kind::Host, created_at, size_bytes: 0 });
        }
        let record = self.content_directory(&digest)?.join("image.json");
        match store::read_record::<ContentRecord>(&record)? {
            Some(ContentRecord { created_at, size_bytes, config: _ }) => {
                Ok(Image { name, digest, kind: Kind::Imported, created_at, size_bytes })
            }
            None => Err(Error::NotFound(name.to_string())),
        }
    }

    fn refuse_taken(&self, name: &ImageName, options: &ImportOptions) -> Result<()> {
        if !options.replace && store::exists(&self.name_record_path(name))? {
            return Err(Error::Exists(name.to_string()));
        }
        Ok(())
    }

    fn write_name(&self, name: &ImageName, digest: &str, lock: &ChangeLock) -> Result<()> {
        let record = NameRecord { name: name.clone(), digest: digest.to_owned() };
        self.inner.store.write_record(&self.name_record_path(name), &record, lock)
    }

    fn name_records(&self) -> Result<Vec<NameRecord>> {
        let names = self.inner.store.names();
        let mut records = Vec::new();
        for file in store::entries(&names)? {
            records.extend(store::read_record::<NameRecord>(&names.join(file))?);
        }
        Ok(records)
    }

    fn name_record_path(&self, name: &ImageName) -> PathBuf {
        self.inner.store.names().join(format!("{}.json", name.file_name()))
    }

    /// Where a content lies. A digest from outside is only ever a path component if it is one of ours.
    fn content_directory(&self, digest: &str) -> Result<PathBuf> {
        match digest.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) =>
            {
                Ok(self.inner.store.contents().join(OsStr::new(hex)))
            }
            _ => Err(Error::NotFound(digest.chars().take(80).collect())),
        }
    }
}

fn refuse_built_in(name: &ImageName) -> Result<()> {
    if name.as_str() == HOST_IMAGE { Err(Error::BuiltIn(name.to_string())) } else { Ok(()) }
}

fn host_name() -> Result<ImageName> {
    ImageName::parse(HOST_IMAGE)
}

fn scaffold_directory() -> String {
    format!("scaffold-{SCAFFOLD_VERSION}")
}

/// The data behind a lock. A thread that panicked left it whole: every change to it is one assignment.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
