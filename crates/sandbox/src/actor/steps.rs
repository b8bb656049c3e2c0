//! What each step does. Every one may be repeated after a crash at any point of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sandhaus_protocol::{
    PROTOCOL_VERSION,
    guest::SyncRequest,
    hello::{Feature, Guest, HelloRequest},
};

use super::{Actor, Ask};
use crate::{
    digits,
    engine::{Boot, Capture, EngineResult, ImageForm, RunState, StopMode},
    error::{Error, Kind, Result},
    machine::machine_spec,
    plan::{self, Host, Step, Wanted},
    renewal,
    store::Durability,
    types::*,
};

/// How long requests under way may take to end before they are cut.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How long one call of an engine may take. What it does goes on or ends by itself; the host is looked at again.
const ENGINE_CALL_MAX: Duration = Duration::from_secs(60);

/// How long the capture of memory or a disk may take.
pub(super) const CAPTURE_MAX: Duration = Duration::from_secs(900);

/// Random bytes that a virtual machine gets with each greeting.
const ENTROPY_BYTES: usize = 64;

/// Length of the secret that an agent wants from everyone but the host, in bytes.
const TOKEN_BYTES: usize = 32;

/// Directory of the memory images in the data directory.
const MEMORY_DIR: &str = "memory";

impl Actor {
    /// Does what the step says, then makes its durable change.
    pub(super) async fn carry_out(&mut self, step: Step, wanted: &Wanted) -> Result<()> {
        self.act(step, wanted).await?;
        if let Some(new) = plan::record(step, wanted, &self.seen) {
            self.write(step, wanted, new).await?;
        }
        Ok(())
    }

    pub(super) async fn act(&mut self, step: Step, wanted: &Wanted) -> Result<()> {
        let id = &self.handle.id;
        let engine = &self.handle.engine;
        match step {
            // Durable changes alone: `record` says which.
            Step::Resolve
            | Step::Raise
            | Step::Commit
            | Step::RecordMemory
            | Step::RetireMemory
            | Step::RecordArchive
            | Step::Lower
            | Step::Lose => Ok(()),
            Step::Enroll => self.shared.store.insert(&self.sandbox).await,
            Step::Observe => self.observe().await,
            Step::Materialize => self.materialize(wanted).await,
            Step::Start => self.start(wanted, Boot::Cold).await,
            Step::Restore => {
                let image = self.memory_image(wanted)?;
                self.start(wanted, Boot::Restore(image)).await
            }
            Step::Thaw => within(ENGINE_CALL_MAX, "thaw machine", engine.thaw(id)).await,
            Step::OpenGate => {
                self.handle.toolbox.open();
                self.handle.gate.open();
                Ok(())
            }
            Step::Greet => self.greet(wanted).await,
            Step::CloseGate => {
                self.hang_up(wanted).await;
                Ok(())
            }
            Step::Freeze => within(ENGINE_CALL_MAX, "freeze machine", engine.freeze(id)).await,
            Step::CaptureMemory => self.capture_memory(wanted).await,
            Step::DropMemory => remove_dir(self.memory_dir()).await,
            Step::Stop => {
                within(ENGINE_CALL_MAX, "stop machine", engine.stop(id, self.stop_mode(wanted))).await
            }
            Step::DropDisk | Step::Destroy => {
                within(ENGINE_CALL_MAX, "remove machine and disk", engine.destroy(id)).await
            }
            // Refused at admission while no snapshot store is configured, which there is none of yet.
            Step::Fetch | Step::Archive | Step::DropArchive => Err(Error::new(
                Kind::Unsupported,
                "archiving is not supported: no snapshot store is configured",
            )),
            Step::Forget => self.forget().await,
        }
    }

    async fn write(&mut self, step: Step, wanted: &Wanted, new: Wanted) -> Result<()> {
        let mut sandbox = Sandbox::clone(&self.sandbox);
        sandbox.goal = new.goal;
        sandbox.generation = new.generation;
        sandbox.holdings = new.holdings;
        sandbox.life = new.life;
        match step {
            Step::Resolve => {
                sandbox.failure = match &self.ask {
                    Ask::Wish => None,
                    Ask::FallBack(failure) => Some(failure.clone()),
                };
            }
            Step::Greet => sandbox.failure = None,
            Step::Lower => sandbox.failure = self.crash(wanted).or(sandbox.failure),
            Step::Lose => {
                let message = "its data is missing on the host".to_owned();
                sandbox.failure = Some(self.failure(FailureKind::DataLost, message));
            }
            _ => {}
        }
        match step {
            // A lost write costs a start, never data; and the reply to a create need not wait for it.
            Step::Greet => self.shared.store.save_unawaited(&sandbox),
            // They describe files that a power cut does not take away.
            Step::RecordMemory | Step::RetireMemory | Step::RecordArchive | Step::DropArchive => {
                self.shared.store.save(&sandbox, Durability::Power).await?;
            }
            Step::Commit if wanted.holdings.memory.is_some() => {
                self.shared.store.save(&sandbox, Durability::Power).await?;
            }
            _ => self.shared.store.save(&sandbox, Durability::Process).await?,
        }
        match step {
            Step::Resolve => tracing::info!(sandbox = %sandbox.id, goal = ?sandbox.goal, "goal set"),
            Step::Greet => tracing::info!(sandbox = %sandbox.id, generation = %sandbox.generation, "running"),
            Step::Lower | Step::Lose => {
                let failure = sandbox.failure.as_ref().map(|failure| failure.message.as_str());
                tracing::warn!(sandbox = %sandbox.id, goal = ?sandbox.goal, failure, "goal lowered");
            }
            _ => {}
        }
        self.sandbox = Arc::new(sandbox);
        Ok(())
    }

    fn crash(&self, wanted: &Wanted) -> Option<Failure> {
        let Life::Up(generation) = wanted.life else { return None };
        Some(if self.out_of_memory == Some(generation) {
            self.failure(FailureKind::OutOfMemory, "its memory limit ended it".to_owned())
        } else {
            self.failure(FailureKind::Crashed, "it ended by itself".to_owned())
        })
    }

    fn failure(&self, kind: FailureKind, message: String) -> Failure {
        Failure { kind, message, at_ms: self.shared.clock.now_ms() }
    }

    async fn observe(&mut self) -> Result<()> {
        let engine = &self.handle.engine;
        let observed = within(ENGINE_CALL_MAX, "look at machine", engine.observe(&self.handle.id)).await?;
        let image = engine.capabilities().memory_snapshot && exists(self.memory_dir()).await?;
        // There is no snapshot store yet, so no archive either.
        self.seen.host = Some(Host { image, ..Host::seen_by_engine(observed.as_ref()) });
        Ok(())
    }

    async fn start(&self, wanted: &Wanted, boot: Boot) -> Result<()> {
        let tree = self.tree().await?;
        let mut spec = machine_spec(&self.sandbox, wanted.generation, &tree);
        spec.snapshot = self.snapshot()?;
        spec.workspace = self.workspace().await?;
        let engine = &self.handle.engine;
        let limit = engine.capabilities().start_max.max(ENGINE_CALL_MAX);
        within(limit, "start machine", engine.start(&spec, boot)).await
    }

    /// Makes the disk, and for one that goes on where a snapshot's machine was the memory image too.
    async fn materialize(&self, wanted: &Wanted) -> Result<()> {
        let generation = wanted.generation.next();
        let tree = self.tree().await?;
        let mut spec = machine_spec(&self.sandbox, generation, &tree);
        spec.snapshot = self.snapshot()?;
        // It may have to copy what the snapshot has.
        let limit = if spec.snapshot.is_some() { CAPTURE_MAX } else { ENGINE_CALL_MAX };
        within(limit, "make disk", self.handle.engine.materialize(&spec)).await?;
        match spec.snapshot {
            Some(snapshot) if wanted.warm => self.link_memory(snapshot, generation).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Makes the memory image that it begins with: another name for what the snapshot has.
    async fn link_memory(&self, snapshot: PathBuf, generation: Generation) -> Result<()> {
        let dir = self.memory_dir();
        remove_dir(dir.clone()).await?;
        blocking("make memory image", move || {
            let (aside, image) = (dir.join("new"), dir.join(generation.to_string()));
            fs_err::create_dir_all(&aside)?;
            for entry in fs_err::read_dir(&snapshot)? {
                let entry = entry?;
                // What else there is belongs to the disk, which the engine has made.
                if entry.file_type()?.is_file() {
                    fs_err::hard_link(entry.path(), aside.join(entry.file_name()))?;
                }
            }
            fs_err::rename(&aside, &image)
        })
        .await
    }

    /// Where the snapshot lies that it is made of. One that all of its sandboxes have what they need of is not there any
    /// more, and no engine that leaves it at that asks for it.
    fn snapshot(&self) -> Result<Option<PathBuf>> {
        let Some(id) = self.sandbox.spec.source.snapshot() else { return Ok(None) };
        let dir = self.shared.snapshots.machine(id);
        let standalone = self.handle.engine.capabilities().image_form == ImageForm::Disk;
        let made = self.sandbox.holdings.disk.is_some();
        match dir {
            None if !standalone || !made => {
                Err(Error::new(Kind::NotFound, "the snapshot that it is made of is missing on the host"))
            }
            dir => Ok(dir),
        }
    }

    /// Where the workspace is that it shows, made if need be.
    async fn workspace(&self) -> Result<Option<PathBuf>> {
        let Some(id) = self.sandbox.spec.workspace.clone() else { return Ok(None) };
        let shared = self.shared.clone();
        let taken = tokio::task::spawn_blocking(move || shared.workspaces.take(&id)).await;
        taken.map_err(|error| Error::internal("take workspace", error))?.map(Some)
    }

    pub(super) async fn tree(&self) -> Result<Arc<Tree>> {
        match &self.sandbox.spec.source {
            Source::Image { digest, .. } | Source::Snapshot { image: Some((_, digest)), .. } => {
                self.shared.images.tree(digest).await
            }
            Source::Snapshot { id, image: None, .. } => {
                let snapshot = self.shared.snapshots.get(id);
                let config = snapshot.map(|snapshot| snapshot.config.clone()).ok_or_else(|| {
                    Error::new(Kind::NotFound, "the snapshot that it is made of is missing on the host")
                })?;
                Ok(Arc::new(Tree { layers: Vec::new(), binds: Vec::new(), config, disk: None }))
            }
        }
    }

    async fn greet(&self, wanted: &Wanted) -> Result<()> {
        // A machine that was started for the pool knows nothing of its owner.
        let env = match self.sandbox.tenancy {
            Tenancy::Claimed(generation) if generation == wanted.generation => self.sandbox.spec.env.clone(),
            Tenancy::Claimed(_) | Tenancy::Own | Tenancy::Idle => Env::new(),
        };
        let brings_env = !env.is_empty();
        let guest = match self.handle.engine.capabilities().boots_by_greeting {
            true => {
                // It is told the time.
                self.handle.toolbox.connect().await?;
                Some(Box::new(self.guest(wanted).await?))
            }
            false => None,
        };
        let hello = HelloRequest {
            protocol: PROTOCOL_VERSION,
            sandbox_id: self.handle.id.to_string(),
            generation: wanted.generation.0,
            env,
            guest,
            ssh: self.shared.access(&self.sandbox.spec, &self.handle.id).map(Box::new),
        };
        let reply = self.handle.toolbox.hello(&hello).await?;
        if reply.sandbox_id != hello.sandbox_id || reply.generation != hello.generation {
            return Err(Error::new(Kind::Internal, "another sandbox's agent answered"));
        }
        if brings_env && !reply.features.contains(&Feature::Env) {
            return Err(Error::new(Kind::Unsupported, "its agent takes no variables"));
        }
        if hello.guest.is_some() && !reply.features.contains(&Feature::Guest) {
            return Err(Error::new(Kind::Unsupported, "its agent cannot be told who it is"));
        }
        if let Some(skew) = reply.clock_skew_ns {
            tracing::debug!(sandbox = %self.handle.id, skew_ns = skew, "its clock was set");
        }
        if hello.guest.is_some() && self.sandbox.spec.resources.disk_bytes > 0 {
            // Its image's may be smaller. Whoever finds too little room wants to get in all the same.
            if let Err(error) = self.handle.toolbox.sync(&SyncRequest::Grow).await {
                tracing::warn!(sandbox = %self.handle.id, %error, "its root file system does not take all of its disk");
            }
        }
        renewal::consider(&self.shared, &self.handle, wanted.generation, &reply);
        Ok(())
    }

    /// What an agent that has no boot document is told.
    async fn guest(&self, wanted: &Wanted) -> Result<Guest> {
        let mut random = [0_u8; ENTROPY_BYTES + TOKEN_BYTES];
        getrandom::fill(&mut random).map_err(|error| Error::internal("draw random numbers", error))?;
        let spec = machine_spec(&self.sandbox, wanted.generation, &*self.tree().await?);
        let now = jiff::Timestamp::now().as_nanosecond();
        Ok(Guest {
            boot: spec.boot_config(),
            hostname: spec.hostname,
            unix_time_ns: i64::try_from(now).unwrap_or(i64::MAX),
            entropy: digits::of(&random[..ENTROPY_BYTES]),
            token: digits::of(&random[ENTROPY_BYTES..]),
        })
    }

    /// Lets nobody in, lets those inside end for a while unless there is nothing left to talk to, then cuts.
    async fn hang_up(&self, wanted: &Wanted) {
        let (gate, toolbox) = (&self.handle.gate, &self.handle.toolbox);
        gate.close();
        toolbox.close();
        let alive = self.seen.host.and_then(|host| host.machine).is_some_and(|machine| {
            machine.run == RunState::Running && machine.generation == wanted.generation
        });
        if alive && wanted.goal != Goal::Absent {
            // What did not end in time is cut below.
            let _ = tokio::time::timeout(DRAIN_MAX, gate.empty()).await;
        }
        gate.cut();
    }

    fn stop_mode(&self, wanted: &Wanted) -> StopMode {
        let machine = self.seen.host.and_then(|host| host.machine);
        let ours = machine.is_some_and(|machine| {
            machine.generation == wanted.generation && machine.run == RunState::Running
        });
        if ours && wanted.goal == Goal::Stopped { StopMode::Graceful } else { StopMode::Kill }
    }

    async fn forget(&self) -> Result<()> {
        // Whoever hears that it is gone can have its ports.
        self.publication.close().await;
        let failed_to_start = self.sandbox.life == Life::New
            && self.sandbox.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::StartFailed);
        if failed_to_start || self.is_unknown_to_all() {
            // Its creator, if it had one, was told; it never came to be.
            return self.shared.store.forget(&self.handle.id).await;
        }
        let now_ms = self.shared.clock.now_ms();
        let by_deadline = || match self.handle.deadline.expires_at_ms() {
            Some(at) if at <= now_ms => EndReason::Expired,
            _ => EndReason::Deleted,
        };
        // Not known any more after a restart in between; the deadline tells.
        let reason = self.end_reason.unwrap_or_else(by_deadline);
        self.shared.store.end(&self.sandbox, Ended { reason, at_ms: now_ms }).await?;
        tracing::info!(sandbox = %self.handle.id, ?reason, "ended");
        Ok(())
    }

    fn memory_dir(&self) -> PathBuf {
        self.shared.instance.dir().join(MEMORY_DIR).join(self.handle.id.as_str())
    }

    pub(super) fn memory_image(&self, wanted: &Wanted) -> Result<PathBuf> {
        let generation =
            wanted.holdings.memory.ok_or_else(|| Error::new(Kind::Internal, "there is no memory image"))?;
        Ok(self.memory_dir().join(generation.to_string()))
    }

    /// Writes aside and renames, so that a file under its name is whole.
    async fn capture_memory(&self, wanted: &Wanted) -> Result<()> {
        let generation =
            wanted.holdings.disk.ok_or_else(|| Error::new(Kind::Internal, "capture without a disk"))?;
        let dir = self.memory_dir();
        let (aside, image) = (dir.join("new"), dir.join(generation.to_string()));
        remove_dir(dir.clone()).await?;
        let made = aside.clone();
        blocking("make directory of memory image", move || fs_err::create_dir_all(made)).await?;
        let capture = self.handle.engine.capture(&self.handle.id, Capture::Memory, aside.clone());
        within(CAPTURE_MAX, "capture memory", capture).await?;
        blocking("keep memory image", move || {
            fs_err::rename(&aside, &image)?;
            sync_dir(&dir)
        })
        .await
    }
}

pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = EngineResult<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Error::from),
        Err(_) => Err(Error::new(Kind::Timeout, format!("{what} took too long"))),
    }
}

async fn exists(path: PathBuf) -> Result<bool> {
    blocking("look at memory image", move || path.try_exists()).await
}

async fn remove_dir(path: PathBuf) -> Result<()> {
    blocking("remove memory image", move || match fs_err::remove_dir_all(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    })
    .await
}

fn sync_dir(path: &Path) -> std::io::Result<()> {
    fs_err::File::open(path)?.sync_all()
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| Error::internal(what, error)),
        Err(error) => Err(Error::internal(what, error)),
    }
}
