//! What the edges call. A call validates, writes what is wanted, wakes the actor and waits; it never changes a
//! sandbox itself. Dropping a call drops only the wait.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use sandhaus_images::{Catalogue, Image};

use crate::{
    engine::{Engine, GuestPort},
    error::Result,
    instance::Instance,
    toolbox::{Lease, Toolbox},
    types::*,
};

/// Where a service keeps itself and what bounds it.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// What a request that does not say gets.
    pub defaults: Defaults,
    /// Most live sandboxes; one more is refused ([`crate::Kind::Exhausted`]).
    pub sandboxes_max: usize,
    /// How long create and delete wait before they answer with what is.
    pub settle_timeout: Duration,
    /// How long ended sandboxes stay in the history.
    pub history_keep: Duration,
}

/// What a request that does not say gets.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Image.
    pub image: ImageName,
    /// Names that stand for the default image.
    pub image_aliases: Vec<ImageName>,
    /// Images that may be used; empty: all.
    pub allowed_images: Vec<ImageName>,
    /// Engine.
    pub engine: EngineName,
    /// Limits.
    pub resources: Resources,
    /// Network.
    pub network: NetworkPolicy,
    /// Time to live; none: for ever.
    pub ttl: Option<Duration>,
}

/// A request for a sandbox. What is absent comes from [`Defaults`].
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// Who asks.
    pub owner: OwnerId,
    /// A name, unique among the owner's live sandboxes.
    pub name: Option<String>,
    /// Image.
    pub image: Option<ImageName>,
    /// Engine.
    pub engine: Option<EngineName>,
    /// Limits, each zero meaning the default.
    pub resources: Resources,
    /// Network.
    pub network: Option<NetworkPolicy>,
    /// Confinement.
    pub security: SecurityProfile,
    /// Read-only root.
    pub readonly_root: bool,
    /// Environment, over the image's.
    pub env: Env,
    /// Directory to start in.
    pub workdir: Option<String>,
    /// Host directories; only from the local command line.
    pub mounts: Vec<Mount>,
    /// Started beside the agent.
    pub entrypoint: Vec<String>,
    /// Time to live; absent: the default; zero: for ever.
    pub ttl: Option<Duration>,
    /// Free marks.
    pub labels: Labels,
    /// Shell of the persistent sessions.
    pub shell: sandhaus_protocol::boot::ShellPreference,
    /// Start the default shell with the machine.
    pub warm_shell: bool,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Also those that have ended.
    pub with_ended: bool,
    /// Only those with all of these marks.
    pub labels: Labels,
    /// Only those made before this id's row, for paging.
    pub after: Option<SandboxId>,
    /// At most so many; zero: no limit.
    pub limit: usize,
}

/// The domain, as the edges hold it. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {}

impl Service {
    /// Opens the store of an instance, surveys every engine, adopts what matches, ends what does not, and starts the
    /// actors.
    pub async fn open(
        instance: Instance,
        config: ServiceConfig,
        engines: BTreeMap<EngineName, Arc<dyn Engine>>,
        images: Catalogue,
    ) -> Result<Self> {
        let _ = (instance, config, engines, images);
        todo!()
    }

    /// Makes a sandbox and waits until it runs. On failure nothing of it is left.
    pub async fn create(&self, request: CreateSandbox) -> Result<SandboxView> {
        let _ = request;
        todo!()
    }

    /// Sandboxes, newest first.
    pub async fn list(&self, filter: ListFilter) -> Result<Vec<SandboxView>> {
        let _ = filter;
        todo!()
    }

    /// One sandbox, live or from the history.
    pub async fn get(&self, id: &SandboxId) -> Result<SandboxView> {
        todo!("{id}")
    }

    /// Deletes a sandbox from whatever state and waits until nothing of it is left. One that has ended already is
    /// success; one that never was is [`crate::Kind::NotFound`].
    pub async fn delete(&self, id: &SandboxId) -> Result<()> {
        todo!("{id}")
    }

    /// Changes what is wanted and waits until it is so. Refused by name if the engine cannot.
    pub async fn set_goal(&self, id: &SandboxId, goal: Goal) -> Result<SandboxView> {
        todo!("{id} {goal:?}")
    }

    /// Marks a use: the deadline moves to at least now + the sandbox's own time to live, never back.
    pub async fn touch(&self, id: &SandboxId) -> Result<()> {
        todo!("{id}")
    }

    /// Use of resources.
    pub async fn stats(&self, id: &SandboxId) -> Result<Stats> {
        todo!("{id}")
    }

    /// A client of the agent inside, under a lease. [`crate::Kind::Gone`] past the deadline, [`crate::Kind::Conflict`]
    /// if it does not run.
    pub async fn toolbox(&self, id: &SandboxId) -> Result<Toolbox> {
        todo!("{id}")
    }

    /// A raw stream to a port inside, under a lease.
    pub async fn dial(&self, id: &SandboxId, port: GuestPort) -> Result<Lease> {
        todo!("{id} {port:?}")
    }

    /// Images.
    pub async fn images(&self) -> Result<Vec<Image>> {
        todo!()
    }

    /// Imports an archive or directory of the host; only from the local command line.
    pub async fn import_image(&self, name: ImageName, source: PathBuf, replace: bool) -> Result<Image> {
        todo!("{name} {source:?} {replace}")
    }

    /// Gives an image another name.
    pub async fn tag_image(&self, existing: ImageName, new: ImageName) -> Result<Image> {
        todo!("{existing} {new}")
    }

    /// Removes an image name; refused while a sandbox needs the content and no other name holds it.
    pub async fn remove_image(&self, name: ImageName) -> Result<()> {
        todo!("{name}")
    }

    /// Stops the actors and engines' helpers and closes the store. Sandboxes go on.
    pub async fn shutdown(&self) {
        todo!()
    }
}
