//! The local catalogue: names, and what they stand for.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, HOST_IMAGE, ImageConfig, ImageName, ImportOptions, Result, Tree,
    blob::{BlobDigest, PartialBlob},
    content::{self, ContentRecord, NewImage, scaffold_directory},
    digest,
    export::{self, ExportFormat},
    host::HostView,
    import::{self, Contents},
    layer::{self, HeldLayer},
    layout,
    registry::manifest::Platform,
    root::Limits,
    store::{self, ChangeLock, Scratch, Store},
    vm::Manifest,
};

/// How long a layer is kept that no image has, so that a pull which was cut short need not fetch it again.
const LAYER_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// Pulled from a registry.
    Pulled,
    /// The disk of a virtual machine, built or imported.
    Disk,
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

/// Everything known of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// As the catalogue lists it.
    #[serde(flatten)]
    pub image: Image,
    /// What it says about how to run in it.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<LayerInfo>,
    /// Where it was pulled from, if it was.
    pub reference: Option<String>,
    /// The digest of the manifest it was pulled by.
    pub manifest: Option<String>,
    /// The kind of machine it is made for, where that is known.
    pub platform: Option<String>,
    /// Its configuration as its maker wrote it, if it came with one.
    pub configuration: Option<serde_json::Value>,
    /// What it was made of, if it is for virtual machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Manifest>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The digest of its archive, uncompressed, which is what layers are shared by.
    pub digest: String,
    /// Bytes of file content on disk.
    pub size_bytes: u64,
}

/// What to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// What no name leads to: contents, layers, parts of blobs that were never fetched whole.
    Nameless,
    /// Also images that nothing uses.
    Unused,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Names that are gone.
    pub names: Vec<ImageName>,
    /// Bytes of files that are gone.
    pub freed_bytes: u64,
}

/// Where an image was pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) reference: String,
    pub(crate) manifest: BlobDigest,
}

/// What a name stands for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) name: ImageName,
    pub(crate) digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    /// Its versions, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) versions: Option<Versions>,
}

/// What a name with versions knows of them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Versions {
    /// The one it stands for.
    pub(crate) current: u64,
    /// How many were ever made: no number is given twice.
    pub(crate) made: u64,
}

impl NameRecord {
    fn kind(&self) -> Kind {
        match &self.origin {
            _ if self.digest == HOST_DIGEST => Kind::Host,
            Some(_) => Kind::Pulled,
            None => Kind::Imported,
        }
    }
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
            match self.image(record) {
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
        self.image(self.name_record(name)?)
    }

    /// Everything known of one image.
    pub fn details(&self, name: &ImageName) -> Result<ImageDetails> {
        let record = self.name_record(name)?;
        let (origin, digest) = (record.origin.clone(), record.digest.clone());
        let image = self.image(record)?;
        if digest == HOST_DIGEST {
            let (config, layers) = (ImageConfig::default(), Vec::new());
            let platform = Some(Platform::host().to_string());
            return Ok(ImageDetails {
                image,
                config,
                layers,
                reference: None,
                manifest: None,
                platform,
                configuration: None,
                disk: None,
            });
        }
        let directory = self.content_directory(&digest)?;
        let gone = || Error::NotFound(name.to_string());
        let content = ContentRecord::read(&directory)?.ok_or_else(gone)?;
        let mut layers = Vec::new();
        for id in &content.layers {
            let size_bytes =
                layer::record(&self.inner.store.layer(id))?.map_or(0, |record| record.size_bytes);
            layers.push(LayerInfo { digest: id.to_string(), size_bytes });
        }
        Ok(ImageDetails {
            image,
            config: content.config,
            layers,
            reference: origin.as_ref().map(|origin| origin.reference.clone()),
            manifest: origin.map(|origin| origin.manifest.to_string()),
            platform: content.platform.map(|platform| platform.to_string()),
            configuration: content::configuration(&directory)?,
            disk: content.disk,
        })
    }

    /// Reads every file of an image and compares it with what was stored. The host's view has nothing to compare with.
    pub fn validate(&self, name: &ImageName) -> Result<()> {
        let digest = self.digest(name)?;
        if digest == HOST_DIGEST {
            return Ok(());
        }
        let damaged = |problem: String| Error::Damaged { image: name.to_string(), problem };
        // Held, so that nobody removes it meanwhile.
        self.tree(name)?;
        let directory = self.content_directory(&digest)?;
        let content = ContentRecord::read(&directory)?.ok_or_else(|| Error::NotFound(name.to_string()))?;
        if content.disk.is_some() {
            return self.validate_disk(name, &digest, &directory);
        }
        if content.layers.is_empty() {
            let found = digest::summarize(&directory.join("tree"))?.digest;
            return if found == digest {
                Ok(())
            } else {
                Err(damaged("its files are not what was imported".to_owned()))
            };
        }
        for id in &content.layers {
            let place = self.inner.store.layer(id);
            let record = layer::record(&place)?.ok_or_else(|| damaged(format!("its layer {id} is gone")))?;
            let found = digest::summarize(&layer::tree_of(&place)).map(|summary| summary.digest);
            if !found.is_ok_and(|found| found == record.tree_digest) {
                return Err(damaged(format!(
                    "the files of its layer {id} have changed; remove the image and get it again"
                )));
            }
        }
        Ok(())
    }

    /// Writes an image out: its files, or an OCI image with all of them in one layer.
    pub fn export(&self, name: &ImageName, format: ExportFormat, output: &mut dyn Write) -> Result<()> {
        refuse_built_in(name)?;
        let details = self.details(name)?;
        let digest = &details.image.digest;
        // Held, so that nobody removes it meanwhile.
        self.tree_by_digest(digest)?;
        let directory = self.content_directory(digest)?;
        let content = ContentRecord::read(&directory)?.ok_or_else(|| Error::NotFound(name.to_string()))?;
        if content.disk.is_some() {
            let problem = "is the disk of a virtual machine, which no archive of files holds: export it to a .qcow2 or .img file";
            return Err(Error::Form { image: name.to_string(), problem });
        }
        let files = export::Files::new(content::merged(&self.inner.store, &directory, &content)?);
        if format != ExportFormat::Oci {
            return export::files(&files, format, output);
        }
        let platform = details.platform.as_deref().map(str::parse).transpose()?;
        let description = export::Description {
            name: name.as_str(),
            created_at: &details.image.created_at,
            config: &details.config,
            platform: platform.unwrap_or_else(Platform::host),
            configuration: details.configuration,
        };
        let store = &self.inner.store;
        let scratch = store.scratch(&store.lock()?)?;
        export::oci(&files, description, &scratch, output)
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
        let layered = layout::is_layout(source)?;
        let image = if layered {
            layout::read(store, source, options, &limits, progress)?
        } else {
            let whole = scratch.directory("layer")?;
            let tree = scratch.directory("layer/tree")?;
            match import::fill(source, &tree, store.root(), limits.clone(), progress)? {
                Contents::Layered => layout::read(store, &tree, options, &limits, &mut |_, _| {})?,
                Contents::Root => {
                    let layer = layer::publish(store, &whole, None, Vec::new())?;
                    let id = layer.id.clone();
                    let config = ImageConfig::default();
                    NewImage { id, layers: vec![layer], config, platform: None, configuration: None }
                }
            }
        };
        drop(scratch);
        let image = self.enter(name, image, None, &|there| match options.replace {
            true => Ok(()),
            false => Err(Error::Exists(there.name.to_string())),
        })?;
        tracing::info!(%name, digest = image.digest, "image imported");
        Ok(image)
    }

    /// Stores an image and gives it its name. `may_move` says whether the name may be taken from what it stands for.
    fn enter(
        &self,
        name: &ImageName,
        mut image: NewImage,
        origin: Option<Origin>,
        may_move: &dyn Fn(&Image) -> Result<()>,
    ) -> Result<Image> {
        let store = &self.inner.store;
        let scratch = store.scratch(&store.lock()?)?;
        let whole = content::make(store, &scratch, &image)?;
        // The files of the layers too: all of them lie on this file system.
        scratch.sync()?;
        let lock = store.lock()?;
        for layer in &mut image.layers {
            layer.mark_synced(store, &lock)?;
        }
        if let Some(there) = store::read_record::<NameRecord>(&self.name_record_path(name))?
            && let Ok(there) = self.image(there)
        {
            may_move(&there)?;
        }
        let place = self.content_directory(image.id.as_str())?;
        if !store::exists(&place)? {
            store::publish(&whole, &place)?;
        }
        let record = NameRecord { name: name.clone(), digest: image.id.to_string(), origin, versions: None };
        self.write_name(&record, &lock)?;
        // Read before others may remove it again.
        let image = self.image(record)?;
        drop(lock);
        Ok(image)
    }

    /// As [`Self::enter`], for a pull.
    pub(crate) fn enter_pulled(
        &self,
        name: &ImageName,
        image: NewImage,
        origin: Origin,
        options: &ImportOptions,
    ) -> Result<Image> {
        let image = self.enter(name, image, Some(origin), &|there| may_pull_over(there, options))?;
        tracing::info!(%name, digest = image.digest, "image pulled");
        Ok(image)
    }

    /// Names an image that is there already, whole. `None` if it is not.
    pub(crate) fn name_known(
        &self,
        name: &ImageName,
        id: &BlobDigest,
        origin: &Origin,
        options: &ImportOptions,
    ) -> Result<Option<Image>> {
        let directory = self.content_directory(id.as_str())?;
        let Some(_held) = store::hold(&directory)? else { return Ok(None) };
        let Some(content) = ContentRecord::read(&directory)? else { return Ok(None) };
        let mut layers: Vec<HeldLayer> = Vec::new();
        for id in &content.layers {
            let Some(held) = layer::hold(&self.inner.store, id)? else { return Ok(None) };
            layers.push(held);
        }
        let lock = self.inner.store.lock()?;
        if let Some(there) = store::read_record::<NameRecord>(&self.name_record_path(name))?
            && let Ok(there) = self.image(there)
        {
            may_pull_over(&there, options)?;
        }
        let digest = id.to_string();
        let record = NameRecord { name: name.clone(), digest, origin: Some(origin.clone()), versions: None };
        self.write_name(&record, &lock)?;
        self.image(record).map(Some)
    }

    /// Fails if a pull may not take this name.
    pub(crate) fn refuse_pull_over(&self, name: &ImageName, options: &ImportOptions) -> Result<()> {
        refuse_built_in(name)?;
        match self.get(name) {
            Ok(there) => may_pull_over(&there, options),
            Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where this catalogue keeps things.
    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Gives an image another name, moving that name if it stood for another image.
    pub fn tag(&self, existing: &ImageName, new: &ImageName) -> Result<Image> {
        refuse_built_in(new)?;
        let lock = self.inner.store.lock()?;
        let record = NameRecord { name: new.clone(), versions: None, ..self.name_record(existing)? };
        self.write_name(&record, &lock)?;
        self.image(record)
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
        let removed = self.take_nameless(in_use, Keep::Recent, &lock)?;
        drop(lock);
        // Deleting many files takes long; nobody waits for it but the caller.
        drop(removed);
        Ok(())
    }

    /// Removes every content that has no name and that `in_use` does not hold: what a moved name, a removed image that
    /// was in use then, or a crash left.
    pub fn collect(&self, in_use: &dyn Fn(&str) -> bool) -> Result<()> {
        let lock = self.inner.store.lock()?;
        let removed = self.take_nameless(in_use, Keep::Recent, &lock)?;
        drop(lock);
        drop(removed);
        Ok(())
    }

    /// Removes what is not needed, at once.
    pub fn prune(&self, what: Prune, in_use: &dyn Fn(&str) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let lock = self.inner.store.lock()?;
        if what == Prune::Unused {
            for record in self.name_records()?.into_iter().filter(|record| !in_use(&record.digest)) {
                store::remove_record(&self.name_record_path(&record.name))?;
                pruned.names.push(record.name);
            }
            pruned.names.sort();
        }
        let removed = self.take_nameless(in_use, Keep::None, &lock)?;
        drop(lock);
        pruned.freed_bytes = removed.freed_bytes;
        drop(removed);
        for name in store::entries(&self.inner.store.partials())? {
            let path = self.inner.store.partials().join(name);
            // Those that are being filled are held.
            if let Some(partial) = PartialBlob::try_open(&path)? {
                pruned.freed_bytes += partial.length();
                partial.remove()?;
            }
        }
        Ok(pruned)
    }

    fn take_nameless(&self, in_use: &dyn Fn(&str) -> bool, keep: Keep, lock: &ChangeLock) -> Result<Removed> {
        let store = &self.inner.store;
        let named: HashSet<String> = self.name_records()?.into_iter().map(|record| record.digest).collect();
        let mut removed = Removed::default();
        let (mut needed, mut orphaned) = (BTreeSet::new(), BTreeSet::new());
        for name in store::entries(&store.contents())? {
            let digest = format!("sha256:{}", name.display());
            let directory = store.contents().join(name);
            let record = ContentRecord::read(&directory)?;
            let layers = record.as_ref().map(|record| record.layers.clone()).unwrap_or_default();
            if named.contains(&digest) || in_use(&digest) {
                needed.extend(layers);
                continue;
            }
            // Our own hold would be in the way; others keep the content by theirs.
            guard(&self.inner.held).remove(&digest);
            match store.take_away(&directory, lock)? {
                Some(scratch) => {
                    let own = record.filter(|record| record.layers.is_empty());
                    removed.freed_bytes += own.map_or(0, |record| record.size_bytes);
                    removed.scratches.push(scratch);
                    orphaned.extend(layers);
                }
                None => needed.extend(layers),
            }
        }
        for name in store::entries(&store.layers())? {
            let Some(id) = BlobDigest::parse(&format!("sha256:{}", name.display())) else { continue };
            let place = store.layer(&id);
            if needed.contains(&id) || (keep == Keep::Recent && !orphaned.contains(&id) && is_recent(&place))
            {
                continue;
            }
            let size = layer::record(&place)?.map_or(0, |record| record.size_bytes);
            if let Some(scratch) = store.take_away(&place, lock)? {
                removed.freed_bytes += size;
                removed.scratches.push(scratch);
            }
        }
        Ok(removed)
    }

    /// Reads a content and keeps it from being removed by other processes.
    fn hold(&self, digest: &str) -> Result<Tree> {
        let directory = self.content_directory(digest)?;
        let missing = || Error::NotFound(digest.to_owned());
        let lock = store::hold(&directory)?.ok_or_else(missing)?;
        let record = ContentRecord::read(&directory)?.ok_or_else(missing)?;
        if record.disk.is_none() && !store::exists(&directory.join(scaffold_directory()))? {
            content::renew_scaffold(&self.inner.store, &directory, &record)?;
        }
        let tree = record.tree(&self.inner.store, &directory);
        let held = Held { tree: tree.clone(), directory, _lock: lock };
        guard(&self.inner.held).insert(digest.to_owned(), held);
        Ok(tree)
    }

    fn digest(&self, name: &ImageName) -> Result<String> {
        self.name_record(name).map(|record| record.digest)
    }

    pub(crate) fn name_record(&self, name: &ImageName) -> Result<NameRecord> {
        if name.as_str() == HOST_IMAGE {
            let digest = HOST_DIGEST.to_owned();
            return Ok(NameRecord { name: name.clone(), digest, origin: None, versions: None });
        }
        store::read_record(&self.name_record_path(name))?.ok_or_else(|| Error::NotFound(name.to_string()))
    }

    pub(crate) fn image(&self, record: NameRecord) -> Result<Image> {
        let kind = record.kind();
        let NameRecord { name, digest, origin: _, versions: _ } = record;
        if kind == Kind::Host {
            let created_at = self.inner.host_created_at.clone();
            return Ok(Image { name, digest, kind, created_at, size_bytes: 0 });
        }
        match ContentRecord::read(&self.content_directory(&digest)?)? {
            Some(ContentRecord { created_at, size_bytes, disk, .. }) => {
                let kind = if disk.is_some() { Kind::Disk } else { kind };
                Ok(Image { name, digest, kind, created_at, size_bytes })
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

    pub(crate) fn write_name(&self, record: &NameRecord, lock: &ChangeLock) -> Result<()> {
        self.inner.store.write_record(&self.name_record_path(&record.name), record, lock)
    }

    pub(crate) fn name_records(&self) -> Result<Vec<NameRecord>> {
        let names = self.inner.store.names();
        let mut records = Vec::new();
        for file in store::entries(&names)? {
            records.extend(store::read_record::<NameRecord>(&names.join(file))?);
        }
        Ok(records)
    }

    pub(crate) fn name_record_path(&self, name: &ImageName) -> PathBuf {
        self.inner.store.names().join(format!("{}.json", name.file_name()))
    }

    /// Where a content lies. A digest from outside is only ever a path component if it is one of ours.
    pub(crate) fn content_directory(&self, digest: &str) -> Result<PathBuf> {
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

pub(crate) fn refuse_built_in(name: &ImageName) -> Result<()> {
    if name.as_str() == HOST_IMAGE { Err(Error::BuiltIn(name.to_string())) } else { Ok(()) }
}

fn host_name() -> Result<ImageName> {
    ImageName::parse(HOST_IMAGE)
}

/// A pull moves a name that an earlier pull gave; what was made here by hand is only replaced if that is asked for.
fn may_pull_over(there: &Image, options: &ImportOptions) -> Result<()> {
    match there.kind {
        Kind::Pulled => Ok(()),
        Kind::Imported | Kind::Host | Kind::Disk if options.replace => Ok(()),
        Kind::Imported | Kind::Host | Kind::Disk => Err(Error::Exists(there.name.to_string())),
    }
}

/// Whether layers that no image has stay for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// For [`LAYER_KEEP`].
    Recent,
    /// None do.
    None,
}

/// What was moved out of sight; it goes for good when this is dropped.
#[derive(Debug, Default)]
struct Removed {
    scratches: Vec<Scratch>,
    freed_bytes: u64,
}

fn is_recent(place: &Path) -> bool {
    let made = std::fs::symlink_metadata(place).and_then(|metadata| metadata.modified());
    made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age < LAYER_KEEP))
}

/// The data behind a lock. A thread that panicked left it whole: every change to it is one assignment.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
