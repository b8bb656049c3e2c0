//! What a service finds when it opens: rows, disks and machines of those before it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};

use super::Shared;
use crate::{
    actor::Actor,
    engine::{ExitLog, Observed},
    error::Result,
    handle::{Handle, News},
    plan::{Host, Seen},
    publish::Publication,
    types::*,
};

/// How long the removal of one orphan may hold up the start.
const ORPHAN_MAX: Duration = Duration::from_secs(60);

/// Orphans ended at once at start-up.
const ORPHANS_IN_FLIGHT_MAX: usize = 16;

/// Pairs what is wanted with what is there. The planner does the rest: a machine of the row's generation is greeted,
/// an older one is ended, and what nobody knows is removed here.
pub(super) async fn adopt(shared: &Arc<Shared>, rows: Vec<Sandbox>) -> Result<()> {
    let mut found: HashMap<(EngineName, SandboxId), Observed> = HashMap::new();
    for (name, engine) in &shared.engines {
        // Before the survey: an end between the two is then told twice, never missed.
        let exits = engine.watch();
        let told = exits.borrow().count;
        let observed = engine.survey().await?;
        found.extend(observed.into_iter().map(|observed| ((name.clone(), observed.id.clone()), observed)));
        shared.spawn(follow_exits(shared.clone(), name.clone(), exits, told));
    }
    for digest in shared.snapshots.images() {
        if let Err(error) = shared.images.tree(&digest).await {
            tracing::error!(digest, %error, "the image that a snapshot lies over is not there");
        }
    }
    let mut set_aside = Vec::new();
    for row in rows {
        // Held from here on, so that no other process takes away what a sandbox stands on.
        if let Some(digest) = row.spec.source.digest()
            && let Err(error) = shared.images.tree(digest).await
        {
            tracing::error!(sandbox = %row.id, digest, %error, "the image of a sandbox is not there");
        }
        let Some(engine) = shared.engines.get(&row.spec.engine).cloned() else {
            // Kept as it is: with its engine back it is found again.
            tracing::error!(sandbox = %row.id, engine = %row.spec.engine.0, "the engine of a sandbox is not there");
            set_aside.push(row.spec.source);
            continue;
        };
        let observed = found.remove(&(row.spec.engine.clone(), row.id.clone()));
        let mut seen = Seen::unknown();
        if !engine.capabilities().memory_snapshot {
            seen.host = Some(Host::seen_by_engine(observed.as_ref()));
        }
        let row = Arc::new(row);
        let (handle, inbox) = Handle::new(&row, engine);
        shared
            .sandboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(row.id.clone(), handle.clone());
        if row.tenancy == Tenancy::Idle {
            shared.pool.enter(&handle, &row);
        }
        let publication = Publication::resume(shared, &row.id, &row.spec.publish);
        let actor = Actor::new(shared.clone(), handle, inbox, row, seen).with_publication(publication);
        shared.spawn(actor.run());
    }
    // Set once: a service adopts once.
    let _ = shared.set_aside.set(set_aside);
    let orphans = stream::iter(found.into_keys()).for_each_concurrent(ORPHANS_IN_FLIGHT_MAX, async |(name, id)| {
        tracing::warn!(sandbox = %id, engine = %name.0, "removing a machine or disk that belongs to no sandbox");
        let Some(engine) = shared.engines.get(&name) else { return };
        match tokio::time::timeout(ORPHAN_MAX, engine.destroy(&id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error);
                tracing::error!(sandbox = %id, %error, ?source, "it cannot be removed");
            }
            Err(_) => tracing::error!(sandbox = %id, "its removal takes too long"),
        }
    });
    orphans.await;
    Ok(())
}

/// Passes the ends of machines on to their actors.
async fn follow_exits(
    shared: Arc<Shared>,
    name: EngineName,
    mut exits: tokio::sync::watch::Receiver<ExitLog>,
    mut told: u64,
) {
    loop {
        let ExitLog { count, recent } = exits.borrow_and_update().clone();
        let news = usize::try_from(count.saturating_sub(told)).unwrap_or(usize::MAX);
        told = count;
        match recent.len().checked_sub(news) {
            Some(known) => {
                for exit in &recent[known..] {
                    let handle = shared.sandboxes().get(&exit.id).cloned();
                    if let Some(handle) = handle {
                        handle.exits.tell(News::Exit(exit.clone()));
                    }
                }
            }
            // Too many to be told one by one: everyone looks.
            None => {
                for handle in shared.handles().iter().filter(|handle| handle.runs_on(&name)) {
                    handle.exits.tell(News::Unsure);
                }
            }
        }
        // Both are cancel-safe: the watch keeps its value, the token its state.
        tokio::select! {
            changed = exits.changed() => if changed.is_err() { return },
            () = shared.token.cancelled() => return,
        }
    }
}
