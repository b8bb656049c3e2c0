//! Images, as the edges ask for them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use sandhaus_images::{Catalogue, ImportOptions, PlainHttp, PullOptions, PullProgress};
pub use sandhaus_images::{
    Credentials, Error as ImageError, Image, ImageDetails, LayerState, Platform, Prune, Pruned, Reference,
};
use tokio::sync::watch;

use super::{Service, Shared};
use crate::{
    error::{Error, Kind, Result},
    job::{JobHandle, JobKind},
    types::ImageName,
};

/// Most pulls under way at once.
const PULLS_MAX: usize = 16;

/// A request to pull an image.
#[derive(Debug, Clone)]
pub struct PullImage {
    /// What it is called here; absent: as the last part of the reference.
    pub name: Option<ImageName>,
    /// What it is called in its registry.
    pub reference: Reference,
    /// The kind of machine; absent: this one's.
    pub platform: Option<Platform>,
    /// Who asks; absent: as the server's own configuration of Docker says.
    pub credentials: Option<Credentials>,
    /// Take the name even from an image that was imported.
    pub replace: bool,
}

/// How far a pull is.
#[derive(Debug, Clone, Default)]
pub struct PullStatus {
    /// The layers, lowest first; empty until the image is found.
    pub layers: Vec<PulledLayer>,
    /// How it ended; absent while it is under way.
    pub outcome: Option<std::result::Result<Image, PullFailure>>,
}

/// Why a pull failed.
#[derive(Debug, Clone)]
pub struct PullFailure {
    /// What kind of failure it is.
    pub kind: Kind,
    /// In words that are safe to show.
    pub message: String,
}

/// A layer of an image that is pulled.
#[derive(Debug, Clone)]
pub struct PulledLayer {
    /// Its digest in the registry.
    pub digest: String,
    /// Bytes that the registry sends.
    pub size_bytes: u64,
    /// How far it is.
    pub state: LayerState,
}

/// What one pull is for: a second one of the same joins it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PullKey {
    name: ImageName,
    reference: String,
    platform: Option<String>,
    replace: bool,
}

/// Pulls under way.
pub(crate) type Pulls = HashMap<PullKey, watch::Receiver<PullStatus>>;

impl Service {
    /// Images.
    pub async fn images(&self) -> Result<Vec<Image>> {
        self.shared.images.blocking(Catalogue::list).await
    }

    /// Everything known of an image.
    pub async fn image(&self, name: ImageName) -> Result<ImageDetails> {
        self.shared.images.blocking(move |catalogue| catalogue.details(&name)).await
    }

    /// Imports an archive or directory of the host; only from the local command line.
    pub async fn import_image(&self, name: ImageName, source: PathBuf, replace: bool) -> Result<Image> {
        let shared = self.shared.clone();
        let now_ms = shared.clock.now_ms();
        let job = JobHandle::begin(&shared.store, JobKind::ImportImage, name.to_string(), now_ms).await?;
        // Goes on when the caller goes away: the record tells how it ended.
        let import = self.shared.tracker.spawn(async move {
            let job = Arc::new(job);
            let reporter = job.clone();
            let outcome = shared
                .images
                .blocking(move |catalogue| {
                    let mut report = |done, total| reporter.progress("import", done, total);
                    catalogue.import(&name, &source, &ImportOptions { replace, platform: None }, &mut report)
                })
                .await;
            shared.images.changed();
            let ended = job.end(&shared.store, &outcome).await;
            outcome.and_then(|image| ended.map(|()| image))
        });
        import.await.map_err(|error| Error::internal("import image", error))?
    }

    /// Gives an image another name.
    pub async fn tag_image(&self, existing: ImageName, new: ImageName) -> Result<Image> {
        let image = self.shared.images.blocking(move |catalogue| catalogue.tag(&existing, &new)).await;
        self.shared.images.changed();
        image
    }

    /// Removes an image name; refused while a sandbox needs the content and no other name holds it.
    pub async fn remove_image(&self, name: ImageName) -> Result<()> {
        let shared = self.shared.clone();
        let wanted = name.clone();
        let known = shared.images.blocking(move |catalogue| Ok(catalogue.get(&wanted)?.digest)).await;
        // What only the pool needs is not in the way.
        let _freed = match known {
            Ok(digest) => shared.free_from_pool(digest).await,
            // The removal says what is wrong.
            Err(_) => None,
        };
        let remove =
            move |catalogue: &Catalogue| catalogue.remove(&name, &|digest: &str| shared.uses_image(digest));
        let removed = self.shared.images.blocking(remove).await;
        self.shared.images.changed();
        removed
    }

    /// Begins to pull an image, or joins the pull that is under way. It goes on when nobody watches any more; a failure
    /// leaves what has arrived for the next one.
    pub async fn pull_image(&self, request: PullImage) -> Result<watch::Receiver<PullStatus>> {
        let name = match request.name {
            Some(name) => name,
            None => request.reference.default_name()?,
        };
        let key = PullKey {
            name: name.clone(),
            reference: request.reference.to_string(),
            platform: request.platform.as_ref().map(ToString::to_string),
            replace: request.replace,
        };
        // Who brings credentials is told what those may see, not what others may.
        let joinable = request.credentials.is_none();
        let (report, status) = watch::channel(PullStatus::default());
        {
            let mut pulls = self.shared.images.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.retain(|_, status| status.borrow().outcome.is_none() && status.has_changed().is_ok());
            if let Some(under_way) = pulls.get(&key).filter(|_| joinable) {
                return Ok(under_way.clone());
            }
            if pulls.len() >= PULLS_MAX {
                let message = format!("{PULLS_MAX} pulls are under way, the most allowed");
                return Err(Error::new(Kind::Exhausted, message));
            }
            if joinable {
                pulls.insert(key, status.clone());
            }
        }
        let options = PullOptions {
            platform: request.platform,
            plain_http: plain_http(&self.shared, &request.reference),
            credentials: request.credentials,
            replace: request.replace,
            interrupt: self.shared.token.child_token(),
        };
        let shared = self.shared.clone();
        let reference = request.reference;
        self.shared.spawn(async move {
            let outcome = run(&shared, &name, &reference, &options, &report).await;
            let failure =
                |error: Error| PullFailure { kind: error.kind(), message: error.message().to_owned() };
            report.send_modify(|status| status.outcome = Some(outcome.map_err(failure)));
        });
        Ok(status)
    }

    /// Removes images that nothing needs: with [`Prune::Unused`] also those that only their names hold.
    pub async fn prune_images(&self, what: Prune) -> Result<Pruned> {
        let shared = self.shared.clone();
        let needed = shared.config.defaults.image.clone();
        let prune = move |catalogue: &Catalogue| {
            // What a request that names no image gets is always in use.
            let default = catalogue.get(&needed).map(|image| image.digest).ok();
            let in_use = |digest: &str| shared.uses_image(digest) || default.as_deref() == Some(digest);
            catalogue.prune(what, &in_use)
        };
        let pruned = self.shared.images.blocking(prune).await;
        self.shared.images.changed();
        pruned
    }
}

async fn run(
    shared: &Arc<Shared>,
    name: &ImageName,
    reference: &Reference,
    options: &PullOptions,
    report: &watch::Sender<PullStatus>,
) -> Result<Image> {
    let now_ms = shared.clock.now_ms();
    let job = JobHandle::begin(&shared.store, JobKind::PullImage, name.to_string(), now_ms).await?;
    let job = Arc::new(job);
    let progress = {
        let (job, report) = (job.clone(), report.clone());
        Arc::new(move |event: PullProgress| {
            report.send_modify(|status| status.note(event));
            let status = report.borrow();
            job.progress("pull", status.done_bytes(), Some(status.total_bytes()));
        })
    };
    let outcome = shared.images.catalogue().pull(name, reference, options, progress).await;
    let outcome = outcome.map_err(Error::from);
    shared.images.changed();
    job.end(&shared.store, &outcome).await?;
    outcome
}

/// Whether the server's owner lets a registry be spoken to without TLS.
fn plain_http(shared: &Shared, reference: &Reference) -> PlainHttp {
    let listed = shared.config.insecure_registries.iter().any(|registry| registry == reference.registry());
    if listed { PlainHttp::Anywhere } else { PlainHttp::Loopback }
}

impl PullStatus {
    fn note(&mut self, event: PullProgress) {
        match event {
            PullProgress::Found { manifest: _, layers } => {
                let begun = |layer: sandhaus_images::LayerSize| PulledLayer {
                    digest: layer.digest,
                    size_bytes: layer.size_bytes,
                    state: LayerState::Waiting,
                };
                self.layers = layers.into_iter().map(begun).collect();
            }
            PullProgress::Layer { index, state } => {
                if let Some(layer) = self.layers.get_mut(index) {
                    layer.state = state;
                }
            }
        }
    }

    /// Bytes that have arrived or were here.
    fn done_bytes(&self) -> u64 {
        self.layers.iter().map(PulledLayer::done_bytes).sum()
    }

    /// Bytes of all layers.
    fn total_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size_bytes).sum()
    }
}

impl PulledLayer {
    /// Bytes that have arrived or were here.
    pub fn done_bytes(&self) -> u64 {
        match self.state {
            LayerState::Waiting => 0,
            LayerState::Fetching { done_bytes } => done_bytes,
            LayerState::Done | LayerState::Present => self.size_bytes,
        }
    }
}
