//! Connections to the agent inside a machine, for the tests of every engine.

use std::sync::Arc;

use futures::future::BoxFuture;
use sandhaus_sandbox::{
    engine::{Engine, GuestPort, GuestStream},
    error::Error,
    toolbox::Connect,
    types::SandboxId,
};

/// The agent of a sandbox, by its engine.
pub(crate) struct Dialled {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) id: SandboxId,
}

impl Connect for Dialled {
    fn connect(&self) -> BoxFuture<'_, sandhaus_sandbox::error::Result<GuestStream>> {
        Box::pin(async move {
            let dialled = self.engine.dial(&self.id, GuestPort::Agent).await;
            dialled.map_err(|error| Error::internal("dial agent", error))
        })
    }
}
