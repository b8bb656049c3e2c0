//! An instance of this process alone: what `run` uses where no server is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sandhaus_sandbox::{Instance, Kind, Service, SnapshotName, service::ListFilter, snapshot};

use crate::{
    advice::Advice,
    config::Config,
    domain::{self, Lifetime},
};

/// A private instance. [`Self::close`] removes all of it; if this process is killed before, the next `run` or `serve`
/// does.
pub(crate) struct PrivateInstance {
    service: Service,
    parent: PathBuf,
    id: String,
}

impl PrivateInstance {
    /// Makes one under the data directory, after sweeping dead ones. It has the images of the data directory, and of its
    /// snapshots this one.
    pub(crate) async fn open(config: &Config, snapshot: Option<&SnapshotName>) -> Result<Self> {
        domain::sweep_dead_runs(config).await;
        let (parent, id) = (domain::run_dir(config), Instance::random_id());
        let instance = Instance::acquire_for_process(&parent, &id)
            .map_err(|error| domain::explain_refusal(error, &config.data_dir))?;
        let shared = match snapshot {
            Some(name) => share(config, &instance, name).await,
            None => Ok(()),
        };
        let opened = match shared {
            Ok(()) => domain::open_service(instance, config, Lifetime::Instance).await,
            Err(error) => {
                drop(instance);
                Err(error)
            }
        };
        let service = match opened {
            Ok(service) => service,
            Err(error) => {
                remove(&parent, &id)?;
                return Err(error);
            }
        };
        Ok(Self { service, parent, id })
    }

    /// Its service.
    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    /// Removes every sandbox in it, then all of it.
    pub(crate) async fn close(self) -> Result<()> {
        for view in self.service.list(ListFilter::default()).await? {
            let id = &view.sandbox.id;
            self.service.delete(id).await.with_context(|| format!("remove sandbox {id}"))?;
        }
        self.service.shutdown().await;
        drop(self.service);
        remove(&self.parent, &self.id)
    }
}

/// Gives an instance a snapshot of the data directory.
async fn share(config: &Config, instance: &Instance, name: &SnapshotName) -> Result<()> {
    let (from, into, name) = (config.data_dir.clone(), instance.dir().to_owned(), name.clone());
    let shared = tokio::task::spawn_blocking(move || snapshot::share(&from, &into, &name)).await;
    shared.context("share snapshot")?.map_err(|error| match error.kind() {
        Kind::NotFound => Advice::new(
            error.message(),
            "`sandhaus snapshot list` tells which a server has, `sandhaus snapshot pull` gets one from the store",
        )
        .into(),
        _ => error.into(),
    })
}

/// Removes the directory of an instance that this process has let go of.
fn remove(parent: &Path, id: &str) -> Result<()> {
    Instance::acquire_for_process(parent, id)
        .and_then(Instance::remove)
        .context("remove the private instance")
}
