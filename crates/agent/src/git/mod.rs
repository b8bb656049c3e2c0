//! The git routes: everything is done by the git program, as the workload.
//!
//! ```text
//!   route ([`local`], [`remote`], [`settings`]) ──> checked names, addresses ──> [`program`] ──> git ──> [`refusal`]
//! ```
//! Files: [`names`] what may be an argument, [`address`] where remotes are and who one is for them, [`program`] one call of
//! git, [`refusal`] what its failures mean, [`status`] its report on a working tree, then the routes.
//!
//! A name or password for a remote is known to the git process that talks to that remote, to the helper that this process
//! asks, and to nobody else. Whatever may run a program of the repository or of its user (filters, merge drivers) is a call
//! of its own, without them. Hooks never run.

mod address;
mod local;
mod names;
mod program;
mod refusal;
mod remote;
mod settings;
mod status;

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    routing::{get, post},
};
use sandhaus_protocol::files::PATH_BYTES_MAX;
use tokio::sync::Semaphore;

use crate::{
    agent::Agent,
    error::{Error, Result},
};

/// Most git processes at once.
const PROCESSES_MAX: usize = 32;

/// What the git routes remember.
pub(crate) struct Git {
    /// Room for further processes.
    places: Semaphore,
    /// Where clones are being made.
    destinations: Mutex<BTreeSet<String>>,
}

impl Default for Git {
    fn default() -> Self {
        Self { places: Semaphore::new(PROCESSES_MAX), destinations: Mutex::default() }
    }
}

impl Git {
    fn destinations(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/git/branches", get(local::branches).post(local::create_branch).delete(local::delete_branch))
        .route("/git/checkout", post(local::checkout))
        .route("/git/add", post(local::add))
        .route("/git/commit", post(local::commit))
        .route("/git/history", get(local::history))
        .route("/git/status", get(local::status))
        .route("/git/init", post(local::init))
        .route("/git/reset", post(local::reset))
        .route("/git/restore", post(local::restore))
        .route("/git/clone", post(remote::clone))
        .route("/git/pull", post(remote::pull))
        .route("/git/push", post(remote::push))
        .route("/git/remotes", get(remote::list).post(remote::add))
        .route("/git/config", get(settings::get).post(settings::set))
        .route("/git/config/user", post(settings::set_user))
        .route("/git/credentials", post(settings::store_credentials))
}

/// The absolute path that a request's path means.
fn absolute(agent: &Agent, path: &str) -> Result<String> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(Error::invalid_path(format_args!(
            "a path has 1 to {PATH_BYTES_MAX} bytes, none of them NUL"
        )));
    }
    let path = Path::new(&agent.workdir).join(path);
    let text = path.to_str().map(|path| path.trim_end_matches('/')).unwrap_or_default();
    Ok(if text.is_empty() { "/".to_owned() } else { text.to_owned() })
}

/// The directory of a repository, without links on its way, so that git looks for a repository there and not above it.
async fn repository(agent: &Agent, path: &str) -> Result<String> {
    let wanted = absolute(agent, path)?;
    let found = agent
        .on_file_thread(move || {
            let directory = fs::canonicalize(&wanted)?;
            match fs::metadata(&directory)?.is_dir() {
                true => Ok(directory),
                false => Err(io::ErrorKind::NotADirectory.into()),
            }
        })
        .await;
    let directory = found.map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => refusal::no_repository(path),
        _ => Error::file(path, &error),
    })?;
    directory
        .into_os_string()
        .into_string()
        .map_err(|_| Error::invalid_path(format_args!("{path} leads to a directory whose name is not UTF-8")))
}
