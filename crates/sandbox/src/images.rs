//! The catalogue as the hot path needs it: its calls block, so what they answer is remembered. A tree never changes
//! under its digest; a name may move, by another process too, so a name is believed for a moment only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sandhaus_images::Catalogue;
use tokio::time::Instant;

use crate::{
    error::{Error, Kind, Result},
    service::images::Pulls,
    types::{ImageName, Tree},
};

/// How long a name is believed.
const NAME_AGE_MAX: Duration = Duration::from_secs(1);

/// Names and trees remembered; beyond it all are forgotten and looked up again.
const REMEMBERED_MAX: usize = 1024;

/// What a name stands for.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) digest: String,
    pub(crate) tree: Arc<Tree>,
}

/// The catalogue with a memory.
#[derive(Debug)]
pub(crate) struct Images {
    catalogue: Catalogue,
    remembered: Mutex<Remembered>,
    pub(crate) pulls: Mutex<Pulls>,
}

#[derive(Debug, Default)]
struct Remembered {
    names: HashMap<ImageName, (Instant, Resolved)>,
    trees: HashMap<String, Arc<Tree>>,
}

impl Images {
    pub(crate) fn new(catalogue: Catalogue) -> Self {
        Self { catalogue, remembered: Mutex::default(), pulls: Mutex::default() }
    }

    /// What `name` stands for now.
    pub(crate) async fn resolve(&self, name: &ImageName) -> Result<Resolved> {
        if let Some((at, resolved)) = self.remembered().names.get(name)
            && at.elapsed() < NAME_AGE_MAX
        {
            return Ok(resolved.clone());
        }
        let wanted = name.clone();
        let (digest, tree) = self
            .blocking(move |catalogue| {
                let digest = catalogue.get(&wanted)?.digest;
                let tree = catalogue.tree_by_digest(&digest)?;
                Ok((digest, tree))
            })
            .await?;
        let resolved = Resolved { digest, tree: Arc::new(tree) };
        let mut remembered = self.remembered();
        remembered.make_room();
        remembered.trees.insert(resolved.digest.clone(), resolved.tree.clone());
        remembered.names.insert(name.clone(), (Instant::now(), resolved.clone()));
        Ok(resolved)
    }

    /// The tree with this digest.
    pub(crate) async fn tree(&self, digest: &str) -> Result<Arc<Tree>> {
        if let Some(tree) = self.remembered().trees.get(digest) {
            return Ok(tree.clone());
        }
        let wanted = digest.to_owned();
        let tree = Arc::new(self.blocking(move |catalogue| catalogue.tree_by_digest(&wanted)).await?);
        let mut remembered = self.remembered();
        remembered.make_room();
        remembered.trees.insert(digest.to_owned(), tree.clone());
        Ok(tree)
    }

    /// The catalogue itself, for what does not block.
    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Any call of the catalogue, on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Catalogue) -> sandhaus_images::Result<T> + Send + 'static,
    ) -> Result<T> {
        let catalogue = self.catalogue.clone();
        match tokio::task::spawn_blocking(move || call(&catalogue)).await {
            Ok(result) => result.map_err(Error::from),
            Err(error) => Err(Error::internal("use the image catalogue", error)),
        }
    }

    /// Forgets what may have changed.
    pub(crate) fn changed(&self) {
        *self.remembered() = Remembered::default();
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        // Maps are whole between any two statements.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn make_room(&mut self) {
        if self.names.len() + self.trees.len() >= REMEMBERED_MAX {
            *self = Self::default();
        }
    }
}

impl From<sandhaus_images::Error> for Error {
    fn from(error: sandhaus_images::Error) -> Self {
        use sandhaus_images::Error as Image;
        let kind = match &error {
            Image::Name(_)
            | Image::Source(_)
            | Image::TooLarge { .. }
            | Image::Reference { .. }
            | Image::Platform { .. }
            | Image::Digest { .. }
            | Image::Form { .. } => Kind::Invalid,
            Image::NotFound(_) | Image::NotInRegistry(_) => Kind::NotFound,
            Image::Refused { .. } => Kind::Forbidden,
            Image::Registry { .. } | Image::Interrupted | Image::BuildInterrupted => Kind::Unavailable,
            Image::MissingTool { .. } => Kind::Unsupported,
            Image::NoRoom { .. } => Kind::Exhausted,
            Image::Exists(_) => Kind::Exists,
            Image::BuiltIn(_) | Image::NoVersionBefore(_) => Kind::Conflict,
            // Its message names a path of the host.
            Image::Io { .. } => return Self::internal("image storage failed", error),
            _ => Kind::Internal,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}
