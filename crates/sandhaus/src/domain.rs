//! Putting the domain together: instance, engines, images and service. The only place that knows an engine by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use sandhaus_engines::{
    namespace::{NamespaceConfig, NamespaceEngine},
    qemu::{AcceleratorChoice, QemuConfig, QemuEngine},
};
use sandhaus_gateway::V1Config;
use sandhaus_images::{Catalogue, ImageName};
use sandhaus_sandbox::{
    EngineName, Instance, Kind, Service,
    engine::Engine,
    service::{Defaults, PoolConfig, ServiceConfig, WorkspaceConfig},
    snapshot,
    store::Store,
};

use crate::{
    advice::Advice,
    agent::Agent,
    config::{Acceleration, Config},
    kvm::{self, Verdict},
};

/// Name of the namespace engine.
pub(crate) const NAMESPACE: &str = "namespace";

/// Name of the engine of virtual machines.
pub(crate) const QEMU: &str = "qemu";

/// How long create and delete wait before they answer with what is.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long ended sandboxes stay in the history.
const HISTORY_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Name that stands for the default image beside its own: clients of the older tool ask for it.
const BASE_ALIAS: &str = "base";

/// Folders of a data directory.
const IMAGES_DIR: &str = "images";
const RUN_DIR: &str = "run";
const AGENT_DIR: &str = "agent";
const WORKSPACES_DIR: &str = "workspaces";

/// What is known of the QEMU at hand lies there, for all instances.
const QEMU_DIR: &str = "vm";

/// The program that runs virtual machines.
const QEMU_PROGRAM: &str = "qemu-system-x86_64";

/// The store of an instance.
const STORE_FILE: &str = "sandhaus.db";

/// This very binary, even after its file was replaced.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// How long sandboxes live that do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// The configured time to live.
    Configured,
    /// As long as their instance.
    Instance,
}

/// The catalogue of images that a server and every `run` beside it share.
pub(crate) fn open_catalogue(config: &Config) -> Result<Catalogue> {
    Catalogue::open(&config.data_dir.join(IMAGES_DIR)).context("open image catalogue")
}

/// Where instances of `run` lie.
pub(crate) fn run_dir(config: &Config) -> PathBuf {
    config.data_dir.join(RUN_DIR)
}

/// Why a data directory cannot be taken, with what to do about it.
pub(crate) fn explain_refusal(error: sandhaus_sandbox::Error, data_dir: &Path) -> anyhow::Error {
    let shown = data_dir.display();
    match error.kind() {
        Kind::Conflict => Advice::new(
            format!("data directory {shown} is in use"),
            "another server holds it: stop that one, or give this one another --data-dir",
        )
        .with_source(error)
        .into(),
        Kind::Forbidden => Advice::new(
            format!("data directory {shown} cannot be used"),
            "run as root, or give a --data-dir that you own",
        )
        .with_source(error)
        .into(),
        _ => anyhow::Error::from(error).context("take the data directory"),
    }
}

/// Opens the service of an instance that this process holds.
pub(crate) async fn open_service(instance: Instance, config: &Config, lifetime: Lifetime) -> Result<Service> {
    let catalogue = tokio::task::spawn_blocking({
        let config = config.clone();
        move || open_catalogue(&config)
    });
    // The launcher comes up while the catalogue is looked at.
    let agent = Agent::of(&config.agent)?;
    let namespace = open_namespace(&instance, config, agent).await?;
    let catalogue = catalogue.await.context("open image catalogue")??;
    let mut engines: BTreeMap<EngineName, Arc<dyn Engine>> =
        BTreeMap::from([(EngineName(NAMESPACE.to_owned()), namespace as Arc<dyn Engine>)]);
    if let Some(qemu) = open_qemu(&instance, config).await? {
        engines.insert(EngineName(QEMU.to_owned()), qemu);
    }
    let base = ImageName::parse(BASE_ALIAS).expect("a valid name");
    let service = ServiceConfig {
        defaults: Defaults {
            image: config.default_image.clone(),
            image_aliases: vec![base],
            allowed_images: config.allowed_images.clone(),
            engine: EngineName(config.default_engine.clone()),
            resources: config.resources,
            network: config.network.clone(),
            ttl: match lifetime {
                Lifetime::Configured => Some(config.session_ttl),
                Lifetime::Instance => None,
            },
        },
        sandboxes_max: config.sandboxes_max,
        settle_timeout: SETTLE_TIMEOUT,
        history_keep: HISTORY_KEEP,
        pool: match lifetime {
            Lifetime::Configured => config.pool.clone(),
            Lifetime::Instance => PoolConfig::default(),
        },
        insecure_registries: config.insecure_registries.clone(),
        agent: agent.successor(&config.agent).map(Arc::new),
        snapshot_store: config.snapshots.resolve(|name| std::env::var(name).ok())?,
        rescue_door: config.agent.rescue,
        plain_request: sandhaus_gateway::plain_request(&v1_config(config)),
        workspaces: WorkspaceConfig {
            directory: config.data_dir.join(WORKSPACES_DIR),
            // What a sandbox of `run` leaves behind should be what was asked for.
            persist_by_default: config.workspaces.persist_by_default && lifetime == Lifetime::Configured,
            ..config.workspaces.clone()
        },
    };
    Service::open(instance, service, engines, catalogue).await.context("open the instance")
}

/// What `/v1` gives to requests that do not say.
pub(crate) fn v1_config(config: &Config) -> V1Config {
    V1Config {
        security: config.security,
        readonly_root: config.readonly_root,
        shell: config.shell,
        seccomp: config.seccomp,
        exec_mode: config.exec_mode,
        exec_timeout_max_ms: config.exec_timeout_max_ms,
        ..V1Config::default()
    }
}

async fn open_namespace(instance: &Instance, config: &Config, agent: Agent) -> Result<Arc<NamespaceEngine>> {
    let engine = NamespaceEngine::open(NamespaceConfig {
        data_dir: instance.dir().to_owned(),
        instance: instance.id().to_owned(),
        launcher: PathBuf::from(OWN_EXECUTABLE),
        agent: agent.executable,
        agent_digest: agent.digest,
        agent_dir: config.data_dir.join(AGENT_DIR),
        network: config.net.clone(),
        cgroup: config.cgroup.clone(),
    })
    .await
    .context("start the namespace engine")?;
    Ok(Arc::new(engine))
}

/// Virtual machines, where there is a QEMU; and where there was one, so that what it left can be seen and ended.
async fn open_qemu(instance: &Instance, config: &Config) -> Result<Option<Arc<dyn Engine>>> {
    let found = find_qemu(config).filter(|_| config.qemu.enabled);
    let binary = match found {
        Some(binary) => binary,
        None if QemuEngine::is_in_use(instance.dir()) => PathBuf::from(QEMU_PROGRAM),
        None => return Ok(None),
    };
    let engine = QemuEngine::open(QemuConfig {
        data_dir: instance.dir().to_owned(),
        instance: instance.id().to_owned(),
        binary,
        accelerator: accelerator(config),
        probe_dir: config.data_dir.join(QEMU_DIR),
        network: config.net.clone(),
        cgroup: config.cgroup.clone(),
    })
    .await
    .context("open the engine of virtual machines")?;
    Ok(Some(Arc::new(engine)))
}

/// Who runs virtual machines, as it is configured.
pub(crate) fn accelerator(config: &Config) -> AcceleratorChoice {
    match config.qemu.accelerator {
        Acceleration::Auto => AcceleratorChoice::Auto(try_kvm),
        Acceleration::Kvm => AcceleratorChoice::Kvm,
        Acceleration::Tcg => AcceleratorChoice::Tcg,
    }
}

/// Whether the processor runs a guest, and why not.
fn try_kvm() -> Result<(), String> {
    match kvm::verdict() {
        Verdict::Works => Ok(()),
        Verdict::Absent(why) | Verdict::Broken(why) => Err(why.clone()),
    }
}

/// The QEMU that runs virtual machines, if there is one. Guests are of this host's own kind: their agent is.
pub(crate) fn find_qemu(config: &Config) -> Option<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        return None;
    }
    if let Some(binary) = &config.qemu.binary {
        return Some(binary.clone());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(QEMU_PROGRAM))
        .find(|path| path.is_file())
}

/// Digests of the images that sandboxes and snapshots of an instance need, without opening its service.
pub(crate) fn needed_images(instance: &Instance) -> Result<BTreeSet<String>> {
    let mut needed = snapshot::images_of(instance.dir())?;
    let path = instance.dir().join(STORE_FILE);
    if path.exists() {
        let rows = Store::open(&path)?.load()?;
        needed.extend(rows.iter().filter_map(|sandbox| sandbox.spec.source.digest()).map(str::to_owned));
    }
    Ok(needed)
}

/// Ends whatever instances of `run` left behind whose process was killed. What cannot be swept now stays for whoever
/// starts next.
pub(crate) async fn sweep_dead_runs(config: &Config) {
    let dead = match Instance::take_dead(&run_dir(config)) {
        Ok(dead) => dead,
        Err(error) => {
            tracing::warn!(%error, "cannot look for dead instances");
            return;
        }
    };
    for instance in dead {
        let dir = instance.dir().to_owned();
        match sweep(instance, config).await {
            Ok(()) => tracing::info!(dir = %dir.display(), "swept a dead instance"),
            Err(error) => tracing::warn!(dir = %dir.display(), error = format!("{error:#}"), "cannot sweep"),
        }
    }
}

async fn sweep(instance: Instance, config: &Config) -> Result<()> {
    let agent = Agent::of(&config.agent)?;
    let namespace = open_namespace(&instance, config, agent).await? as Arc<dyn Engine>;
    let qemu = open_qemu(&instance, config).await?;
    let mut result = Ok(());
    for engine in [Some(namespace), qemu].into_iter().flatten() {
        for left in engine.survey().await? {
            if let Err(error) = engine.destroy(&left.id).await {
                result = Err(error).with_context(|| format!("destroy {}", left.id));
            }
        }
        engine.shutdown().await?;
    }
    result?;
    instance.remove()?;
    Ok(())
}
