//! The one task that makes and lets go members: it looks up what is wanted, compares, and acts a little at a time.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Keeping, Member, Readiness, State, Target, Wish, standby};
use crate::{
    admission,
    error::{Error, Kind, Result},
    handle::{Handle, Message},
    publish::Bound,
    service::{CreateSandbox, Enrolled, Shared, enroll},
    types::*,
};

/// How often the keeper looks when nobody tells it anything: a name may move through another process.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long the keeper waits before it looks: what wakes it is mostly a create, whose first command is to have the machine
/// to itself, and many changes are then one look.
const BREATHER: Duration = Duration::from_millis(10);

/// Members made at once while nobody waits for a create.
const WARMING_MAX: usize = 2;

/// Members made at once while somebody does: the pool fills, and takes little from those who wait.
const WARMING_WHILE_BUSY_MAX: usize = 1;

/// What is to be done now.
#[derive(Default)]
struct Decision {
    discard: Vec<Arc<Handle>>,
    warm: Vec<Arc<Sandbox>>,
}

/// Keeps the pool as wanted until the service ends.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut changes = shared.pool.changes.subscribe();
    loop {
        changes.mark_unchanged();
        look_up(&shared).await;
        let now = Instant::now();
        act(&shared, now);
        if shared.pool.is_idle_for_good() {
            return;
        }
        let next = shared.pool.state().next_look(now);
        // All three are cancel-safe: a watch keeps its value, a sleep and a token hold nothing.
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => tokio::time::sleep(BREATHER).await,
                Err(_) => return,
            },
            () = tokio::time::sleep(next) => {}
            () = shared.token.cancelled() => return,
        }
    }
}

/// Looks up what each target stands for, as admission would for a request that says nothing but the image.
async fn look_up(shared: &Arc<Shared>) {
    let images: Vec<ImageName> =
        shared.pool.state().targets.iter().map(|target| target.image.clone()).collect();
    for image in images {
        let request = CreateSandbox { image: Some(image.clone()), ..shared.config.plain_request.clone() };
        let looked_up = admission::admit(shared, request).await;
        let mut state = shared.pool.state();
        let Some(index) = state.targets.iter().position(|target| target.image == image) else { continue };
        let (before, from_here) = state.targets.split_at_mut(index);
        let Some(target) = from_here.first_mut() else { continue };
        let before_that = (target.wish.spec().cloned(), target.problem.clone());
        match looked_up {
            Ok(like) => target.wishes(like, before),
            Err(error) => match error.kind() {
                Kind::Invalid | Kind::Forbidden | Kind::NotFound | Kind::Unsupported => {
                    target.wishes_nothing(error.message().to_owned());
                }
                _ => target.failed(error.message().to_owned()),
            },
        }
        let news = before_that != (target.wish.spec().cloned(), target.problem.clone());
        drop(state);
        if news {
            shared.pool.changed();
        }
    }
}

impl Target {
    /// Members are to be like this one, unless they cannot be kept ready or another target has them.
    fn wishes(&mut self, like: Sandbox, others: &[Self]) {
        let like = standby(like);
        if like.spec.workspace.is_some() {
            let problem = "every sandbox gets a workspace of its own, so none can be kept ready";
            self.wishes_nothing(problem.to_owned());
        } else if let Some(other) = others.iter().find(|other| other.wish.spec() == Some(&like.spec)) {
            self.wishes_nothing(format!("it is the same as {}", other.image));
        } else if self.wish.spec() != Some(&like.spec) {
            tracing::debug!(image = %self.image, "the pool's image stands for something new");
            self.wish = Wish::Like(Arc::new(like));
            (self.failures, self.retry_at, self.problem) = (0, None, None);
        }
    }

    fn wishes_nothing(&mut self, problem: String) {
        self.wish = Wish::Nothing;
        self.problem = Some(problem);
    }
}

/// Lets go what is not wanted and begins what is.
fn act(shared: &Arc<Shared>, now: Instant) {
    let all = shared.handles().len();
    let busy = shared.pool.creating.load(std::sync::atomic::Ordering::Acquire) > 0;
    let warming_max = if busy { WARMING_WHILE_BUSY_MAX } else { WARMING_MAX };
    let decision = {
        let mut state = shared.pool.state();
        let owned = all.saturating_sub(state.members.len());
        let room = shared.config.sandboxes_max.saturating_sub(owned);
        state.decide(room, warming_max, now)
    };
    for handle in decision.discard {
        // Before it is told: it may be gone at once.
        let before = shared.pool.state().mark(&handle.id, Readiness::Leaving);
        if let (Err(_), Some(before)) = (handle.tell(Message::Discard), before) {
            // Whose mailbox is full is asked again at the next look.
            shared.pool.state().mark(&handle.id, before);
        }
    }
    for like in decision.warm {
        if let Err(error) = warm(shared, &like) {
            failed(shared, &like, &error);
        }
    }
}

/// Begins one member.
fn warm(shared: &Arc<Shared>, like: &Arc<Sandbox>) -> Result<()> {
    let sandbox = Sandbox { created_at_ms: shared.clock.now_ms(), ..Sandbox::clone(like) };
    match enroll(shared, &sandbox, SandboxId::random(), Bound::default())? {
        // Its actor tells the pool how it ends.
        Enrolled::Spawned(..) => Ok(()),
        Enrolled::IdTaken => Err(Error::new(Kind::Unavailable, "no free id was found")),
    }
}

fn failed(shared: &Arc<Shared>, like: &Sandbox, error: &Error) {
    tracing::warn!(%error, source = ?std::error::Error::source(error), "a member of the pool was not made");
    if let Some(target) = shared.pool.state().target_of(&like.spec) {
        target.failed(error.message().to_owned());
    }
}

impl super::Pool {
    /// Nothing is kept and nothing is left.
    fn is_idle_for_good(&self) -> bool {
        let state = self.state();
        state.targets.is_empty() && state.members.is_empty()
    }
}

impl State {
    fn next_look(&self, now: Instant) -> Duration {
        // What was due at the last look has been seen to then.
        let retries = self.targets.iter().filter_map(|target| target.retry_at).filter(|at| *at > now);
        retries.map(|at| at.saturating_duration_since(now)).fold(LOOK_EVERY, Duration::min)
    }

    /// How far a member is from now on; the answer is how far it was.
    fn mark(&mut self, id: &SandboxId, readiness: Readiness) -> Option<Readiness> {
        let member = self.members.iter_mut().find(|member| member.handle.id == *id)?;
        Some(std::mem::replace(&mut member.readiness, readiness))
    }

    /// Who has to go and what is to be made: at most `room` members in all, at most `warming_max` in the making.
    fn decide(&mut self, room: usize, warming_max: usize, now: Instant) -> Decision {
        let mut decision = Decision::default();
        let all_known = self.targets.iter().all(|target| !matches!(target.wish, Wish::Unknown));
        let mut kept = vec![0_usize; self.targets.len()];
        let (mut total, mut warming) = (0_usize, 0_usize);
        for member in self.members.iter().filter(|member| member.readiness != Readiness::Leaving) {
            let index = self.wanted_by(member);
            let keep = match index {
                Some(index) => kept[index] < self.targets[index].wanted,
                // What it is for is not known yet.
                None => !all_known && self.keeping == Keeping::Filled,
            };
            if !keep || total >= room {
                decision.discard.push(member.handle.clone());
                continue;
            }
            total += 1;
            warming += usize::from(member.readiness == Readiness::Warming);
            if let Some(index) = index {
                kept[index] += 1;
            }
        }
        let leaving = self.members.len() - total;
        while warming < warming_max && total + leaving < room {
            let short = |(index, kept): (usize, &usize)| {
                let target = &self.targets[index];
                let Wish::Like(like) = &target.wish else { return None };
                let due = target.retry_at.is_none_or(|at| at <= now);
                let missing = target.wanted.saturating_sub(*kept);
                (due && missing > 0 && self.makes(&like.spec)).then(|| (missing, index, like.clone()))
            };
            let shortest = kept.iter().enumerate().filter_map(short).max_by_key(|(missing, ..)| *missing);
            let Some((_, index, like)) = shortest else { break };
            decision.warm.push(like);
            kept[index] += 1;
            total += 1;
            warming += 1;
        }
        decision
    }

    /// Whether members of this kind may be made now.
    fn makes(&self, spec: &SandboxSpec) -> bool {
        self.keeping == Keeping::Filled && !self.is_barred(spec)
    }

    /// The target that a member is for.
    fn wanted_by(&self, member: &Member) -> Option<usize> {
        if !self.makes(&member.sandbox.spec) {
            return None;
        }
        self.targets.iter().position(|target| target.wish.spec() == Some(&member.sandbox.spec))
    }
}
