//! Pulling an image from a registry.
//!
//! Every layer flows from the network through its decompressor into its files while it is hashed; what has arrived is
//! also kept in a partial blob, so that a pull which breaks off goes on where it stopped. Whoever fetches a blob holds a
//! lock on its partial file; whoever pulls an image holds the one named after its configuration. Both count for every
//! process on this host, and nobody who holds a layer's waits for another, so pulls never wait for one another in a
//! circle.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use hyper::{
    Response, StatusCode,
    body::{Bytes, Incoming},
    header,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Catalogue, Credentials, Error, Image, ImageName, ImportOptions, PlainHttp, Platform, Reference, Result,
    blob::{BlobDigest, PartialBlob},
    catalogue::Origin,
    content::NewImage,
    layer::{self, Expected, HeldLayer},
    registry::{
        client::{Attempt, Patience, Registry},
        credentials::{self, Found},
        manifest::{Configuration, Descriptor, Document, Manifest},
    },
    root::Limits,
};

/// Layers of one image that are fetched at once.
const LAYERS_AT_ONCE: usize = 4;

/// Pieces of a layer that have arrived but are not unpacked yet.
const PIECES_MAX: usize = 64;

/// How long a registry may send nothing of a layer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether another process has finished with a blob.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// The kind of machine; absent: this one's.
    pub platform: Option<Platform>,
    /// Whether TLS may be missing.
    pub plain_http: PlainHttp,
    /// Who asks; absent: as Docker's configuration says, else nobody.
    pub credentials: Option<Credentials>,
    /// Take the name even from an image that was imported.
    pub replace: bool,
    /// Stops the pull, which then returns when all that it began has ended.
    pub interrupt: CancellationToken,
}

/// A layer as the registry announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSize {
    /// Its digest in the registry.
    pub digest: String,
    /// Bytes that are sent.
    pub size_bytes: u64,
}

/// How a pull goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullProgress {
    /// The image was found; these are its layers.
    Found {
        /// The digest of its manifest.
        manifest: String,
        /// Lowest first; further reports name them by their place here.
        layers: Vec<LayerSize>,
    },
    /// A layer has come further.
    Layer {
        /// Which.
        index: usize,
        /// How far.
        state: LayerState,
    },
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Another pull fetches it.
    Waiting,
    /// So many bytes have arrived. They are unpacked as they come.
    Fetching {
        /// Bytes.
        done_bytes: u64,
    },
    /// It is here.
    Done,
    /// It was here before.
    Present,
}

/// Hears how a pull goes on, from whatever thread.
pub type Progress = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// One pull under way.
struct Pull {
    catalogue: Catalogue,
    registry: Registry,
    reference: Reference,
    progress: Progress,
    /// Stops what is under way: somebody asked, or a part has failed.
    stop: CancellationToken,
}

impl Catalogue {
    /// Pulls an image and gives it a name. What is here already is not fetched, concurrent pulls of one image or layer
    /// happen once, and nothing is visible until it is whole. What has arrived of a pull that failed or was stopped stays
    /// for the next one. Needs a runtime of tokio.
    pub async fn pull(
        &self,
        name: &ImageName,
        reference: &Reference,
        options: &PullOptions,
        progress: Progress,
    ) -> Result<Image> {
        let naming = ImportOptions { replace: options.replace, platform: None };
        self.blocking({
            let (name, naming) = (name.clone(), naming.clone());
            move |catalogue| catalogue.refuse_pull_over(&name, &naming)
        })
        .await?;
        let found = match &options.credentials {
            Some(credentials) => Found { credentials: Some(credentials.clone()), helper: None },
            None => {
                let reference = reference.clone();
                self.blocking(move |_| credentials::find(&reference)).await?
            }
        };
        let stop = options.interrupt.child_token();
        let registry = stoppable(&stop, Registry::open(reference, options.plain_http, found)).await?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let pull = Pull { catalogue: self.clone(), registry, reference: reference.clone(), progress, stop };
        let (manifest, origin) = stoppable(&pull.stop, pull.manifest(&platform)).await?;
        let config = &manifest.config.digest;
        let _turn = stoppable(&pull.stop, pull.turn(config)).await?;
        let known = self
            .blocking({
                let (name, config, origin) = (name.clone(), config.clone(), origin.clone());
                let naming = naming.clone();
                move |catalogue| catalogue.name_known(&name, &config, &origin, &naming)
            })
            .await?;
        pull.tell_found(&manifest, &origin);
        if let Some(image) = known {
            for index in 0..manifest.layers.len() {
                pull.tell(index, LayerState::Present);
            }
            return Ok(image);
        }
        let image = pull.image(&manifest, &platform).await?;
        let name = name.clone();
        self.blocking(move |catalogue| catalogue.enter_pulled(&name, image, origin, &naming)).await
    }

    /// Runs what blocks on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let catalogue = self.clone();
        joined(tokio::task::spawn_blocking(move || work(&catalogue)).await)?
    }
}

impl Pull {
    /// The manifest for a kind of machine.
    async fn manifest(&self, platform: &Platform) -> Result<(Manifest, Origin)> {
        let (bytes, digest) = self.registry.document(&self.reference, &self.reference.manifest()).await?;
        let (manifest, digest) = match Document::parse(&bytes)? {
            Document::Manifest(manifest) => (manifest, digest),
            Document::Index(index) => {
                let chosen = index.choose(&self.reference, platform)?.digest.clone();
                let (bytes, digest) = self.registry.document(&self.reference, chosen.as_str()).await?;
                match Document::parse(&bytes)? {
                    Document::Manifest(manifest) => (manifest, digest),
                    Document::Index(_) => {
                        let problem = "its index leads to another index".to_owned();
                        return Err(Error::Source(problem));
                    }
                }
            }
        };
        if manifest.layers.iter().any(|layer| layer.digest == manifest.config.digest) {
            return Err(Error::Source("one of its layers is its configuration".to_owned()));
        }
        Ok((manifest, Origin { reference: self.reference.to_string(), manifest: digest }))
    }

    /// Waits until no other pull of the same image is under way, and keeps others waiting.
    async fn turn(&self, config: &BlobDigest) -> Result<Turn> {
        loop {
            let digest = config.clone();
            let partial = self
                .catalogue
                .blocking(move |catalogue| PartialBlob::try_open(&catalogue.store().partial(&digest)))
                .await?;
            match partial {
                Some(partial) => return Ok(Turn(Some(partial))),
                None => tokio::time::sleep(LOCK_POLL).await,
            }
        }
    }

    /// Everything of the image, layers unpacked.
    async fn image(&self, manifest: &Manifest, platform: &Platform) -> Result<NewImage> {
        let bytes =
            self.registry.small_blob("the configuration of an image", &manifest.config.digest).await?;
        let configuration = Configuration::parse(&bytes)?;
        configuration.check_platform(&self.reference, platform)?;
        let diffs = configuration.rootfs.diff_ids.clone();
        if diffs.len() != manifest.layers.len() {
            let problem = "its configuration and its manifest do not have the same number of layers";
            return Err(Error::Source(problem.to_owned()));
        }
        let config = configuration.image_config()?;
        let wanted = manifest.layers.iter().cloned().zip(diffs).enumerate();
        // All of them are waited for, also after one has failed: each has a thread that writes.
        let outcomes: Vec<Result<(usize, HeldLayer)>> = stream::iter(wanted)
            .map(|(index, (descriptor, diff))| async move {
                let layer = self.layer(index, &descriptor, diff).await;
                if layer.is_err() {
                    self.stop.cancel();
                }
                layer.map(|layer| (index, layer))
            })
            .buffer_unordered(LAYERS_AT_ONCE)
            .collect()
            .await;
        // The first failure is the cause; the others stopped because of it.
        let failed = |outcome: &Result<(usize, HeldLayer)>| matches!(outcome, Err(error) if !matches!(error, Error::Interrupted));
        let mut layers = Vec::new();
        let (causes, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(failed);
        for outcome in causes.into_iter().chain(others) {
            layers.push(outcome?);
        }
        layers.sort_by_key(|(index, _)| *index);
        Ok(NewImage {
            id: manifest.config.digest.clone(),
            layers: layers.into_iter().map(|(_, layer)| layer).collect(),
            config,
            platform: Some(configuration.platform),
            configuration: Some(bytes.to_vec()),
        })
    }

    /// One layer: the one that is here, or fetched.
    async fn layer(&self, index: usize, descriptor: &Descriptor, diff: BlobDigest) -> Result<HeldLayer> {
        let expected = Expected { blob: descriptor.digest.clone(), diff };
        let mut partial = loop {
            if self.stop.is_cancelled() {
                return Err(Error::Interrupted);
            }
            match self.look(expected.clone()).await? {
                Look::Present(layer) => {
                    self.tell(index, LayerState::Present);
                    return Ok(layer);
                }
                Look::Ours(partial) => break partial,
                Look::Taken => {
                    self.tell(index, LayerState::Waiting);
                    stoppable(&self.stop, async {
                        tokio::time::sleep(LOCK_POLL).await;
                        Ok(())
                    })
                    .await?;
                }
            }
        };
        if partial.length() > descriptor.size {
            partial.clear()?;
        }
        let went_on = partial.length() > 0;
        match self.fetch(index, descriptor, &expected, partial).await {
            Ok(layer) => Ok(layer),
            // What was here may have been damaged: only what comes now counts.
            Err(Fetch { error, blob: Some(mut partial) }) if went_on => {
                tracing::info!(%error, "what was here of a layer is of no use; fetching it all");
                partial.clear()?;
                self.fetch(index, descriptor, &expected, partial).await.map_err(|failed| failed.error)
            }
            Err(failed) => Err(failed.error),
        }
    }

    async fn look(&self, expected: Expected) -> Result<Look> {
        self.catalogue
            .blocking(move |catalogue| {
                let store = catalogue.store();
                if let Some(layer) = layer::hold(store, &expected.diff)? {
                    return Ok(Look::Present(layer));
                }
                let Some(partial) = PartialBlob::try_open(&store.partial(&expected.blob))? else {
                    return Ok(Look::Taken);
                };
                // Whoever had it may have finished between the two looks.
                match layer::hold(store, &expected.diff)? {
                    Some(layer) => partial.remove().map(|()| Look::Present(layer)),
                    None => Ok(Look::Ours(partial)),
                }
            })
            .await
    }

    /// Fetches what is missing of a blob and unpacks it all.
    async fn fetch(
        &self,
        index: usize,
        descriptor: &Descriptor,
        expected: &Expected,
        partial: PartialBlob,
    ) -> std::result::Result<HeldLayer, Fetch> {
        let mut offset = partial.length();
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let worker = {
            let (catalogue, expected, size) = (self.catalogue.clone(), expected.clone(), descriptor.size);
            let origin = self.reference.to_string();
            tokio::task::spawn_blocking(move || {
                let mut arriving = Arriving { partial, at: 0, size, receiver, piece: Bytes::new() };
                let made = layer::make(
                    catalogue.store(),
                    &mut arriving,
                    Path::new(&origin),
                    &expected,
                    &Limits::default(),
                );
                settle(made, arriving)
            })
        };
        let receiving = self.receive_all(index, descriptor, &mut offset, &sender);
        let fetched = stoppable(&self.stop, receiving).await;
        drop(sender);
        // Always waited for: its lock on the blob must be free again when this returns.
        let made = joined(worker.await).unwrap_or_else(|error| Err(Fetch { error, blob: None }));
        match (fetched, made) {
            (_, Ok(layer)) => {
                self.tell(index, LayerState::Done);
                Ok(layer)
            }
            (Err(error), Err(_)) => Err(Fetch { error, blob: None }),
            (Ok(()), Err(failed)) => Err(failed),
        }
    }

    /// Passes on what is missing of a blob, however many tries it takes. Ends early if nobody takes it.
    async fn receive_all(
        &self,
        index: usize,
        descriptor: &Descriptor,
        offset: &mut u64,
        sender: &mpsc::Sender<Bytes>,
    ) -> Result<()> {
        let mut patience = Patience::default();
        self.tell(index, LayerState::Fetching { done_bytes: *offset });
        while *offset < descriptor.size && !sender.is_closed() {
            let before = *offset;
            let attempt = match self.registry.blob(&descriptor.digest, *offset).await {
                Ok(response) => self.receive(response, index, descriptor, offset, sender).await,
                Err(attempt) => Err(attempt),
            };
            if *offset > before {
                patience.renew();
            }
            if let Err(attempt) = attempt {
                patience.wait(attempt).await?;
            }
        }
        Ok(())
    }

    /// Passes on one answer.
    async fn receive(
        &self,
        response: Response<Incoming>,
        index: usize,
        descriptor: &Descriptor,
        offset: &mut u64,
        sender: &mpsc::Sender<Bytes>,
    ) -> std::result::Result<(), Attempt> {
        let wrong = |problem: &str| Attempt::Lasting(self.registry.error(problem, None));
        // Not every registry can begin in the middle.
        let mut skipped = match response.status() {
            StatusCode::OK => *offset,
            StatusCode::PARTIAL_CONTENT if begins_at(&response) == Some(*offset) => 0,
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(wrong("has less of a layer than it announces")),
            _ => return Err(wrong("answers with another part of a layer than was asked for")),
        };
        let mut body = response.into_body();
        while *offset < descriptor.size {
            let frame = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    let error = self.registry.error("broke off in the middle of a layer", Some(error.into()));
                    return Err(Attempt::Passing(error, None));
                }
                Ok(None) => {
                    let error = self.registry.error("ended in the middle of a layer", None);
                    return Err(Attempt::Passing(error, None));
                }
                Err(_) => {
                    let error = self.registry.error("fell silent in the middle of a layer", None);
                    return Err(Attempt::Passing(error, None));
                }
            };
            let Ok(mut data) = frame.into_data() else { continue };
            let skip = usize::try_from(skipped).unwrap_or(usize::MAX).min(data.len());
            skipped -= skip as u64;
            drop(data.split_to(skip));
            if data.is_empty() {
                continue;
            }
            if *offset + data.len() as u64 > descriptor.size {
                return Err(wrong("sends more of a layer than it announces"));
            }
            *offset += data.len() as u64;
            if sender.send(data).await.is_err() {
                return Ok(());
            }
            self.tell(index, LayerState::Fetching { done_bytes: *offset });
        }
        Ok(())
    }

    fn tell(&self, index: usize, state: LayerState) {
        (self.progress)(PullProgress::Layer { index, state });
    }

    fn tell_found(&self, manifest: &Manifest, origin: &Origin) {
        let layers = manifest.layers.iter();
        let layers = layers
            .map(|layer| LayerSize { digest: layer.digest.to_string(), size_bytes: layer.size })
            .collect();
        (self.progress)(PullProgress::Found { manifest: origin.manifest.to_string(), layers });
    }
}

/// Gives up on work when it is to stop.
async fn stoppable<T>(stop: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    // Both are cancel-safe: whoever drops the work takes what it has done so far.
    tokio::select! {
        outcome = work => outcome,
        () = stop.cancelled() => Err(Error::Interrupted),
    }
}

/// What is there of a layer.
enum Look {
    Present(HeldLayer),
    Ours(PartialBlob),
    Taken,
}

/// Why a layer was not made, and its blob if that came whole and was no good.
struct Fetch {
    error: Error,
    blob: Option<PartialBlob>,
}

/// The right to pull one image. The file is only a lock, and goes with it.
struct Turn(Option<PartialBlob>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(partial) = self.0.take()
            && let Err(error) = partial.remove()
        {
            tracing::debug!(%error, "the lock of a pull stays until the next pull of the image");
        }
    }
}

/// Decides what becomes of the partial blob.
fn settle(made: Result<HeldLayer>, arriving: Arriving) -> std::result::Result<HeldLayer, Fetch> {
    let whole = arriving.at == arriving.size;
    match made {
        Ok(layer) => match arriving.partial.remove() {
            Ok(()) => Ok(layer),
            Err(error) => Err(Fetch { error, blob: None }),
        },
        // A full disk says nothing about the blob: it stays.
        Err(error @ Error::Io { .. }) => Err(Fetch { error, blob: None }),
        Err(error) if whole => {
            let mut partial = arriving.partial;
            // Emptied, not removed: whoever tries again keeps the lock.
            let blob = partial.clear().is_ok().then_some(partial);
            Err(Fetch { error, blob })
        }
        Err(error) => Err(Fetch { error, blob: None }),
    }
}

/// A blob as it arrives: first what was here, then what comes, which is kept.
struct Arriving {
    partial: PartialBlob,
    at: u64,
    size: u64,
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at < self.partial.length() && self.piece.is_empty() {
            let count = self.partial.read_at(buffer, self.at)?;
            self.at += count as u64;
            return Ok(count);
        }
        if self.piece.is_empty() {
            if self.at == self.size {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(piece) => {
                    self.partial.append(&piece)?;
                    self.piece = piece;
                }
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the blob broke off")),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        self.at += count as u64;
        Ok(count)
    }
}

/// Where the part of a blob begins that an answer has.
fn begins_at(response: &Response<Incoming>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// What a thread gave; its panic goes on here.
fn joined<T>(outcome: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Source("the pull was cancelled".to_owned()),
    })
}
