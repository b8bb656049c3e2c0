//! How engines carry out what they are asked: to its end, whether or not anybody waits, and what blocks on threads for such.

use std::sync::Arc;

use sandhaus_sandbox::engine::{EngineError, EngineResult, Res};
use tokio::sync::Semaphore;

/// Calls of one engine that may do blocking work at one time.
const BLOCKING_MAX: usize = 64;

/// Runs `work` to its end; dropping what comes back drops only the wait.
pub(crate) fn detached<T: Send + 'static>(
    work: impl Future<Output = EngineResult<T>> + Send + 'static,
) -> Res<'static, T> {
    let work = tokio::spawn(work);
    Box::pin(async move { work.await.map_err(|error| EngineError::host("finish engine call", error))? })
}

/// Turns at blocking work.
#[derive(Debug)]
pub(crate) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(BLOCKING_MAX))
    }
}

impl Turns {
    /// Does blocking work of `engine` on a thread for such, once it is its turn.
    pub(crate) async fn block<E: Send + Sync + 'static, T: Send + 'static>(
        &self,
        engine: &Arc<E>,
        work: impl FnOnce(&Arc<E>) -> EngineResult<T> + Send + 'static,
    ) -> EngineResult<T> {
        let _permit = self.0.acquire().await.map_err(|error| EngineError::host("wait for a turn", error))?;
        let engine = Arc::clone(engine);
        tokio::task::spawn_blocking(move || work(&engine))
            .await
            .map_err(|error| EngineError::host("finish engine call", error))?
    }
}
