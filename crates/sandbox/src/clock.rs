//! Time: the wall clock as the domain reads it, and the one task that turns passed deadlines into goals.

use std::{sync::Arc, time::Duration};

use crate::{error::Error, instance::Span, service::Shared};

/// How long ended sandboxes may wait to be swept out of the history, and images without a name to be removed.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Longest sleep of the clock; a step of the wall clock is noticed within it.
pub(crate) const TICK_MAX: Duration = Duration::from_secs(30);

/// Shortest sleep: a deadline that is held open by use is looked at again after it.
const TICK_MIN: Duration = Duration::from_millis(500);

/// Where the time comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    /// The host's.
    Wall,
    /// The runtime's, which tests can pause; begins at the time given.
    #[cfg(any(test, feature = "testing"))]
    Runtime {
        /// When it began, by the runtime.
        start: tokio::time::Instant,
        /// What it showed then.
        start_ms: i64,
    },
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    pub(crate) fn now_ms(self) -> i64 {
        match self {
            Self::Wall => jiff::Timestamp::now().as_millisecond(),
            #[cfg(any(test, feature = "testing"))]
            Self::Runtime { start, start_ms } => {
                start_ms + i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX / 2)
            }
        }
    }
}

/// Asks the actors of sandboxes past their deadline to end them. Only ever sets goals.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut prune_at = tokio::time::Instant::now();
    loop {
        let now_ms = shared.clock.now_ms();
        let mut next = TICK_MAX;
        for handle in shared.handles() {
            let Some(expires_at_ms) = handle.deadline.expires_at_ms() else { continue };
            if handle.expired(now_ms) {
                handle.expire();
                next = next.min(TICK_MIN);
            } else if expires_at_ms <= now_ms {
                // In use: it holds on, and lives on for its whole time from here.
                handle.touch(now_ms);
                next = next.min(TICK_MIN);
            } else {
                let left = u64::try_from(expires_at_ms - now_ms).unwrap_or(0);
                next = next.min(Duration::from_millis(left));
            }
        }
        if tokio::time::Instant::now() >= prune_at {
            prune_at += PRUNE_EVERY;
            let keep_ms = i64::try_from(shared.config.history_keep.as_millis()).unwrap_or(i64::MAX);
            if let Err(error) = shared.store.prune(now_ms.saturating_sub(keep_ms)).await {
                warn("cannot bound the history", &error);
            }
            // One that ends with its process knows nothing of the sandboxes that others have made of these images.
            let lasts = shared.instance.span() == Span::Lasting;
            if lasts && let Err(error) = shared.collect_images().await {
                warn("cannot remove images that nobody needs", &error);
            }
        }
        // All three are cancel-safe: a sleep, a notification that keeps its permit, a token.
        tokio::select! {
            () = tokio::time::sleep(next.max(Duration::from_millis(1))) => {}
            () = shared.deadline_added.notified() => {}
            () = shared.token.cancelled() => return,
        }
    }
}

fn warn(what: &str, error: &Error) {
    tracing::warn!(%error, source = ?std::error::Error::source(error), "{what}");
}
