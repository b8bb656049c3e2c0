//! What a store has, apart from the ways there and back.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    Error, Name, Result,
    backend::{Backend, Depth, Fault},
    config::StoreConfig,
    layout::{self, Form},
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    name::FileName,
    pull::DISK_FILE,
};

/// Manifests that are fetched at once for a list.
const LOOKS_IN_FLIGHT_MAX: usize = 8;

/// A store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) backend: Arc<Backend>,
    pub(crate) chunk_bytes: u64,
}

/// A snapshot in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// Its name.
    pub name: Name,
    /// Its files.
    pub files: Vec<String>,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// Bytes of its files, holes and all.
    pub size_bytes: u64,
    /// What whoever pushed it said of it; null where another tool put it there.
    pub metadata: serde_json::Value,
    /// When it was pushed, milliseconds since the Unix epoch; zero where that is not known.
    pub created_at_ms: i64,
    /// Where it lies, beneath the store's own place: `snapshots/NAME.qcow2`, or the folder `snapshots/NAME`.
    pub path: String,
}

/// A snapshot in a list of a store.
#[derive(Debug, Clone, PartialEq)]
pub enum Listed {
    /// As it is there.
    Whole(Info),
    /// What is there cannot be used; why.
    Unusable(Name, String),
}

impl Listed {
    /// Its name.
    pub fn name(&self) -> &Name {
        match self {
            Self::Whole(info) => &info.name,
            Self::Unusable(name, _) => name,
        }
    }
}

/// What is found under a name.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) form: Form,
    pub(crate) manifest: Manifest,
    /// Of the manifest's own object, for a conditional write; absent where there is none.
    pub(crate) version: Option<String>,
}

impl Present {
    fn info(&self, name: &Name) -> Info {
        let files = &self.manifest.files;
        Info {
            name: name.clone(),
            files: files.iter().map(|file| file.name.to_string()).collect(),
            stored_bytes: files.iter().map(|file| file.stored_bytes).sum(),
            size_bytes: files.iter().map(|file| file.size_bytes).sum(),
            metadata: self.manifest.metadata.clone(),
            created_at_ms: self.manifest.created_at_ms,
            path: match self.form {
                Form::Disk => format!("snapshots/{}", layout::disk(name)),
                Form::Folder => format!("snapshots/{name}"),
            },
        }
    }
}

impl Store {
    /// Opens a store. A bucket is not asked anything yet.
    pub async fn open(config: &StoreConfig) -> Result<Self> {
        let backend = Arc::new(Backend::open(config).await?);
        Ok(Self { backend, chunk_bytes: config.chunk_bytes })
    }

    /// The store, as messages name it.
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// Whether the store has a snapshot of this name.
    pub async fn exists(&self, name: &Name) -> Result<bool> {
        for key in [layout::manifest(name), layout::disk(name)] {
            match self.backend.head(&key).await {
                Ok(_) => return Ok(true),
                Err(Fault::Absent) => {}
                Err(fault) => return Err(self.error(name, fault)),
            }
        }
        Ok(false)
    }

    /// What the store has under this name.
    pub async fn info(&self, name: &Name) -> Result<Info> {
        Ok(self.present(name).await?.ok_or_else(|| Error::NotFound(name.to_string()))?.info(name))
    }

    /// Everything in the store, by name.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let entries = self.backend.list("", Depth::Level).await.map_err(|fault| match fault {
            Fault::Failed(error) => error,
            Fault::Absent | Fault::Changed | Fault::NoUpload => Error::Store {
                store: self.name().to_owned(),
                problem: "cannot be listed".to_owned(),
                source: None,
            },
        })?;
        let mut names: Vec<Name> =
            entries.iter().filter_map(|entry| layout::owner(&entry.key)).map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        stream::iter(names)
            .map(|name| async move {
                match self.present(&name).await {
                    // Remains of a push, or gone since.
                    Ok(None) => Ok(None),
                    Ok(Some(present)) => Ok(Some(Listed::Whole(present.info(&name)))),
                    Err(Error::Damaged { problem, .. }) => Ok(Some(Listed::Unusable(name, problem))),
                    Err(error) => Err(error),
                }
            })
            .buffered(LOOKS_IN_FLIGHT_MAX)
            .try_filter_map(|listed| async move { Ok(listed) })
            .try_collect()
            .await
    }

    /// Removes a snapshot. It is gone for others as soon as the first object is; a crash leaves remains that the next
    /// push or removal of the name clears.
    pub async fn remove(&self, name: &Name) -> Result<()> {
        let failed = |fault| self.error(name, fault);
        let keys = self.backend.list(&layout::folder(name), Depth::All).await.map_err(failed)?;
        let mut there = !keys.is_empty();
        match self.backend.head(&layout::disk(name)).await {
            Ok(_) => there = true,
            Err(Fault::Absent) => {}
            Err(fault) => return Err(failed(fault)),
        }
        if !there {
            return Err(Error::NotFound(name.to_string()));
        }
        let first = [layout::manifest(name), layout::disk(name), layout::sidecar(name)];
        for key in first.into_iter().chain(keys.into_iter().map(|entry| entry.key)) {
            self.backend.remove(&key).await.map_err(failed)?;
        }
        Ok(())
    }

    /// What is there under a name: of several files, else one disk.
    pub(crate) async fn present(&self, name: &Name) -> Result<Option<Present>> {
        if let Some((manifest, version)) = self.manifest(name, &layout::manifest(name)).await? {
            return Ok(Some(Present { form: Form::Folder, manifest, version }));
        }
        let key = layout::disk(name);
        let object = match self.backend.head(&key).await {
            Ok(object) => object,
            Err(Fault::Absent) => return Ok(None),
            Err(fault) => return Err(self.error(name, fault)),
        };
        let beside = self.manifest(name, &layout::sidecar(name)).await?;
        // A manifest of another disk is none: another tool has replaced the disk since, or a push is under way.
        let of_it = beside.filter(|(manifest, _)| {
            let [file] = manifest.files.as_slice() else { return false };
            file.key == key && file.stored_bytes == object.size_bytes && file.etag == object.etag
        });
        let (manifest, version) = of_it.unwrap_or_else(|| {
            let file = FileName::parse(DISK_FILE).expect("a valid name");
            (Manifest::foreign(name, file, key, object.etag, object.size_bytes, self.chunk_bytes), None)
        });
        Ok(Some(Present { form: Form::Disk, manifest, version }))
    }

    async fn manifest(&self, name: &Name, key: &str) -> Result<Option<(Manifest, Option<String>)>> {
        let (bytes, version) = match self.backend.document(key, MANIFEST_BYTES_MAX).await {
            Ok(document) => document,
            Err(Fault::Absent) => return Ok(None),
            Err(fault) => return Err(self.error(name, fault)),
        };
        let damaged = |problem| Error::Damaged { name: name.to_string(), problem };
        Ok(Some((Manifest::parse(name, &bytes).map_err(damaged)?, version)))
    }

    /// What a fault means while a snapshot is worked on.
    pub(crate) fn error(&self, name: &Name, fault: Fault) -> Error {
        match fault {
            Fault::Failed(error) => error,
            Fault::Absent | Fault::Changed => Error::Changed(name.to_string()),
            Fault::NoUpload => Error::Store {
                store: self.name().to_owned(),
                problem: format!("has given up the upload of {name}: push again"),
                source: None,
            },
        }
    }
}

impl Info {
    /// What is known of a manifest that was just written.
    pub(crate) fn of(name: &Name, form: Form, manifest: Manifest) -> Self {
        Present { form, manifest, version: None }.info(name)
    }
}
