//! Sandboxes kept ready, so that whoever asks for one like them waits for one row and one greeting.
//!
//! ```text
//!   keeper ── warm ──► idle: row, final id, machine, agent ── claim: one update, then greeted ──► its owner's
//!      ▲                  │ ended, no longer wanted, evicted
//!      └───── told ◄──────┴──► discarded, without a trace in the history
//! ```
//!
//! What holds, and why:
//!
//! - *An idle sandbox has met no request, and serves only requests that want exactly what it is.* Its whole
//!   [`SandboxSpec`] must equal the request's but for what comes with the claim (the environment, which the greeting brings,
//!   and published ports, which are the host's affair), so a field that is added to the spec later is part of the key
//!   without anybody thinking of it.
//! - *The actor decides.* The list here says whom to ask; the actor gives its sandbox away once, in one update of the row
//!   that holds only while the row is idle, and before anything of the request reaches the machine. A server that dies
//!   before the update leaves an idle sandbox, one that dies after it a claimed one, which is greeted again.
//! - *Whoever is nobody's and does not run is discarded*, by its own actor: a member that ended, one that could not be
//!   greeted at its claim. So nothing dead is handed out, and a claim that fails falls back to a cold start.
//! - *Standby gives way.* Only owned sandboxes count against the limit; while all together are more, members go.
//! - *Nothing here is stored but the row's [`Tenancy`].* After a restart the idle rows are members again as soon as they
//!   run, if they are still what is wanted, and are discarded if not.

mod keeper;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    error::{Kind, Result},
    handle::{Handle, Message},
    publish::Bound,
    service::{PoolConfig, Shared, shutting_down},
    types::*,
};

pub(crate) use keeper::keep;

/// Owner of what is nobody's yet.
const NOBODY: &str = "pool";

/// Pause after the first failure to make a member; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest pause after a failure to make a member.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What a claim goes through, for fault points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The row becomes the owner's.
    Claim,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 1] = [Self::Claim];

    /// Its name, as in fault points.
    pub fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
        }
    }
}

/// The names at which the runner of the steps calls [`crate::fault::hit`].
pub fn fault_points() -> Vec<String> {
    Step::ALL
        .iter()
        .flat_map(|step| ["before", "after"].map(|side| format!("pool.{}.{side}", step.name())))
        .collect()
}

/// A sandbox that somebody asked for, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquired {
    /// The sandbox.
    pub view: SandboxView,
    /// Where it came from.
    pub source: Acquisition,
}

/// Where a sandbox came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquisition {
    /// It waited in the pool.
    Pool,
    /// It was started: no pool is kept of what was asked for.
    Cold,
    /// It was started: the pool of what was asked for was empty.
    PoolEmpty,
}

/// The pool as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    /// Whether members are made.
    pub keeping: Keeping,
    /// One entry per image of the configuration, by name.
    pub images: Vec<PoolImage>,
}

/// Whether members are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// The configuration says no.
    Off,
    /// As many as wanted are kept.
    Filled,
    /// Somebody asked for none until further notice.
    Drained,
}

/// The pool of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolImage {
    /// Its name.
    pub image: ImageName,
    /// What it stands for now; absent while there is no such image.
    pub digest: Option<String>,
    /// How many are to wait.
    pub wanted: usize,
    /// How many wait.
    pub idle: usize,
    /// How many are being made.
    pub warming: usize,
    /// Requests that were served from it since the server started.
    pub hits: u64,
    /// Requests that found it empty since the server started.
    pub misses: u64,
    /// Why there are fewer than wanted, if it is known.
    pub problem: Option<String>,
}

/// The members and what is wanted.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Told of every change.
    changes: watch::Sender<()>,
    /// Creates under way for their owners.
    creating: AtomicUsize,
}

#[derive(Debug)]
struct State {
    keeping: Keeping,
    targets: Vec<Target>,
    members: Vec<Member>,
    /// Images that are about to go; nothing is made of them.
    barred: Vec<String>,
}

/// Sandboxes of one kind that are wanted.
#[derive(Debug)]
struct Target {
    image: ImageName,
    wanted: usize,
    wish: Wish,
    hits: u64,
    misses: u64,
    failures: u32,
    retry_at: Option<Instant>,
    problem: Option<String>,
}

/// What a target stands for.
#[derive(Debug, Clone)]
enum Wish {
    /// Not looked up yet: what its members are cannot be judged.
    Unknown,
    /// Nothing, as the target's problem says.
    Nothing,
    /// Sandboxes like this one.
    Like(Arc<Sandbox>),
}

impl Wish {
    fn spec(&self) -> Option<&SandboxSpec> {
        match self {
            Self::Like(sandbox) => Some(&sandbox.spec),
            Self::Unknown | Self::Nothing => None,
        }
    }
}

struct Member {
    handle: Arc<Handle>,
    sandbox: Arc<Sandbox>,
    readiness: Readiness,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Member").field(&self.handle.id).field(&self.readiness).finish()
    }
}

/// How far a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// On its way.
    Warming,
    /// It can be claimed.
    Ready,
    /// It was told to go.
    Leaving,
}

/// What was found for a request.
enum Found {
    Member(Arc<Handle>),
    /// A pool of what it wants is kept and has nobody ready.
    Empty,
    /// No pool of what it wants is kept.
    Unknown,
}

/// What became of a request.
pub(crate) enum Claimed {
    Granted(Box<SandboxView>),
    Missed(Acquisition),
}

/// Says that a create is under way, until it is dropped.
pub(crate) struct Busy<'a>(&'a Pool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.0.creating.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed();
        }
    }
}

/// Keeps the pool away from an image, until it is dropped.
pub(crate) struct Barred {
    shared: Arc<Shared>,
    digest: String,
}

impl Drop for Barred {
    fn drop(&mut self) {
        let mut state = self.shared.pool.state();
        if let Some(index) = state.barred.iter().position(|barred| *barred == self.digest) {
            state.barred.swap_remove(index);
        }
        drop(state);
        self.shared.pool.changed();
    }
}

impl Pool {
    pub(crate) fn new(config: &PoolConfig) -> Self {
        let targets = config.images.iter().filter(|(_, wanted)| config.enabled && **wanted > 0);
        let targets = targets.map(|(image, wanted)| Target {
            image: image.clone(),
            wanted: *wanted,
            wish: Wish::Unknown,
            hits: 0,
            misses: 0,
            failures: 0,
            retry_at: None,
            problem: None,
        });
        let state = State {
            keeping: if config.enabled { Keeping::Filled } else { Keeping::Off },
            targets: targets.collect(),
            members: Vec::new(),
            barred: Vec::new(),
        };
        Self { state: Mutex::new(state), changes: watch::Sender::new(()), creating: AtomicUsize::new(0) }
    }

    /// A create for somebody begins: the keeper holds back.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.creating.fetch_add(1, Ordering::AcqRel);
        Busy(self)
    }

    /// How many sandboxes are nobody's.
    pub(crate) fn len(&self) -> usize {
        self.state().members.len()
    }

    /// An idle sandbox has an actor now.
    pub(crate) fn enter(&self, handle: &Arc<Handle>, sandbox: &Arc<Sandbox>) {
        let member =
            Member { handle: handle.clone(), sandbox: sandbox.clone(), readiness: Readiness::Warming };
        self.state().members.push(member);
        self.changed();
    }

    /// It runs.
    pub(crate) fn ready(&self, id: &SandboxId) {
        let mut state = self.state();
        let Some(member) = state.members.iter_mut().find(|member| member.handle.id == *id) else { return };
        if member.readiness != Readiness::Warming {
            return;
        }
        member.readiness = Readiness::Ready;
        let sandbox = member.sandbox.clone();
        if let Some(target) = state.target_of(&sandbox.spec) {
            target.failures = 0;
            target.retry_at = None;
            target.problem = None;
        }
        drop(state);
        self.changed();
    }

    /// Nothing of it is left. One that was not told to go may be the first of many: the keeper pauses.
    pub(crate) fn left(&self, id: &SandboxId) {
        let mut state = self.state();
        let Some(index) = state.members.iter().position(|member| member.handle.id == *id) else { return };
        let member = state.members.remove(index);
        if member.readiness != Readiness::Leaving
            && let Some(target) = state.target_of(&member.sandbox.spec)
        {
            let failure = member.handle.published.borrow().sandbox.failure.clone();
            target.failed(failure.map_or_else(|| "a member ended".to_owned(), |failure| failure.message));
        }
        drop(state);
        self.changed();
    }

    /// Someone ready that is what `asked` wants. It is a member no longer, whatever becomes of the claim.
    fn take(&self, asked: &SandboxSpec) -> Found {
        let key = key(asked);
        let mut state = self.state();
        let barred = state.is_barred(&key);
        let Some(target) = state.target_of(&key).filter(|_| !barred) else {
            let Source::Image { name, .. } = &key.source else { return Found::Unknown };
            if state.targets.iter().any(|target| target.image == *name) {
                // The name may stand for something else by now.
                drop(state);
                self.changed();
            }
            return Found::Unknown;
        };
        // What the target's name stands for is what is asked for, so only the members are to be compared.
        let image = target.image.clone();
        let fit = |member: &Member| {
            member.readiness == Readiness::Ready && member.handle.is_ready() && member.sandbox.spec == key
        };
        // The newest: its connection and its memory are the warmest.
        let found = state.members.iter().rposition(fit).map(|index| state.members.remove(index).handle);
        for target in state.targets.iter_mut().filter(|target| target.image == image) {
            match found {
                Some(_) => target.hits += 1,
                None => target.misses += 1,
            }
        }
        drop(state);
        self.changed();
        found.map_or(Found::Empty, Found::Member)
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let state = self.state();
        let images = state.targets.iter().map(|target| {
            let spec = target.wish.spec();
            let count = |readiness| {
                let fits =
                    |member: &&Member| member.readiness == readiness && spec == Some(&member.sandbox.spec);
                state.members.iter().filter(fits).count()
            };
            PoolImage {
                image: target.image.clone(),
                digest: spec.and_then(|spec| spec.source.digest()).map(str::to_owned),
                wanted: target.wanted,
                idle: count(Readiness::Ready),
                warming: count(Readiness::Warming),
                hits: target.hits,
                misses: target.misses,
                problem: target.problem.clone(),
            }
        });
        PoolStatus { keeping: state.keeping, images: images.collect() }
    }

    /// Lets all members go and makes none, until [`Self::fill`]; answers when they are gone, or after `patience`.
    pub(crate) async fn drain(&self, patience: Duration) {
        self.keep_if_on(Keeping::Drained);
        self.until(patience, |state| state.members.is_empty()).await;
    }

    /// Makes members again; answers when there are as many as wanted or it is known why not, or after `patience`.
    pub(crate) async fn fill(&self, patience: Duration) {
        self.keep_if_on(Keeping::Filled);
        self.until(patience, |state| {
            state.targets.iter().all(|target| {
                let ready = state.members.iter().filter(|member| {
                    member.readiness == Readiness::Ready && target.wish.spec() == Some(&member.sandbox.spec)
                });
                target.problem.is_some() || ready.count() >= target.wanted
            })
        })
        .await;
    }

    fn keep_if_on(&self, keeping: Keeping) {
        let mut state = self.state();
        if state.keeping != Keeping::Off {
            state.keeping = keeping;
        }
        drop(state);
        self.changed();
    }

    /// Waits for a state of this kind, at most so long.
    async fn until(&self, patience: Duration, reached: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while !reached(&self.state()) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // What was not reached shows in the status.
        let _ = tokio::time::timeout(patience, wait).await;
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn target_of(&mut self, spec: &SandboxSpec) -> Option<&mut Target> {
        self.targets.iter_mut().find(|target| target.wish.spec() == Some(spec))
    }

    fn is_barred(&self, spec: &SandboxSpec) -> bool {
        self.barred.iter().any(|digest| spec.source.is(digest))
    }
}

impl Target {
    fn failed(&mut self, problem: String) {
        let pause = RETRY_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(Instant::now() + pause);
        self.problem = Some(problem);
    }
}

/// What a member must be to serve a request for `asked`: the same, but for what comes with the claim.
pub(crate) fn key(asked: &SandboxSpec) -> SandboxSpec {
    SandboxSpec { env: Env::new(), publish: Vec::new(), ..asked.clone() }
}

/// The row of a member like `like`.
fn standby(like: Sandbox) -> Sandbox {
    Sandbox {
        name: None,
        owner: OwnerId(NOBODY.to_owned()),
        deadlines: Deadlines::default(),
        labels: Labels::new(),
        tenancy: Tenancy::Idle,
        ..like
    }
}

/// The row of a member once it is the owner's that `asked` names.
pub(crate) fn claimed(member: &Sandbox, asked: &Sandbox) -> Sandbox {
    Sandbox {
        id: member.id.clone(),
        name: asked.name.clone(),
        owner: asked.owner.clone(),
        spec: asked.spec.clone(),
        goal: member.goal,
        generation: member.generation,
        holdings: member.holdings,
        life: member.life,
        deadlines: asked.deadlines,
        labels: asked.labels.clone(),
        failure: None,
        created_at_ms: asked.created_at_ms,
        tenancy: Tenancy::Claimed(member.generation),
    }
}

/// Gives somebody a sandbox like `asked` out of the pool, if there is one. A member that turns out to be of no use goes,
/// and the next is tried.
pub(crate) async fn claim(shared: &Arc<Shared>, asked: &Sandbox) -> Result<Claimed> {
    loop {
        let bound = Bound::bind(&asked.spec.publish)?;
        // From the taking to the message nothing waits, so a caller that goes away leaves nobody without an owner.
        let handle = match shared.take_for(asked)? {
            Found::Member(handle) => handle,
            Found::Empty => return Ok(Claimed::Missed(Acquisition::PoolEmpty)),
            Found::Unknown => return Ok(Claimed::Missed(Acquisition::Cold)),
        };
        let (reply, answer) = oneshot::channel();
        if handle.tell(Message::Claim { asked: Box::new(asked.clone()), bound, reply }).is_err() {
            discard_for_sure(shared, handle);
            continue;
        }
        match tokio::time::timeout(shared.config.settle_timeout, answer).await {
            Ok(Ok(Ok(view))) => return Ok(Claimed::Granted(Box::new(view))),
            Ok(Ok(Err(error))) if error.kind() == Kind::Exists => return Err(error),
            Ok(Ok(Err(error))) => {
                tracing::info!(sandbox = %handle.id, %error, "a pooled sandbox was of no use");
            }
            Ok(Err(_)) => return Err(shutting_down()),
            Err(_) => return Ok(Claimed::Granted(Box::new(handle.view()))),
        }
    }
}

/// Discards one that is in no list any more.
fn discard_for_sure(shared: &Arc<Shared>, handle: Arc<Handle>) {
    shared.spawn(async move {
        // An error means that its actor has ended, and with it the sandbox or this service.
        let _ = handle.inbox.send(Message::Discard).await;
    });
}

impl Shared {
    /// If only the pool uses this image, lets go what is made of it, and keeps the pool away until the answer is dropped.
    pub(crate) async fn free_from_pool(self: &Arc<Self>, digest: String) -> Option<Barred> {
        if !self.pool_alone_uses(&digest) {
            return None;
        }
        self.pool.state().barred.push(digest.clone());
        let barred = Barred { shared: self.clone(), digest };
        self.pool.changed();
        let made_of = |member: &Member| member.sandbox.spec.source.is(&barred.digest);
        self.pool.until(self.config.settle_timeout, |state| !state.members.iter().any(made_of)).await;
        Some(barred)
    }

    fn pool_alone_uses(&self, digest: &str) -> bool {
        let handles = self.handles();
        let mut users = handles.iter().filter(|handle| handle.uses_image(digest)).peekable();
        users.peek().is_some() && users.all(|handle| handle.is_idle())
    }

    /// A member for `asked`, if there is room for another owned sandbox and the name is free.
    fn take_for(&self, asked: &Sandbox) -> Result<Found> {
        let sandboxes = self.sandboxes();
        if self.token.is_cancelled() {
            return Err(shutting_down());
        }
        // The list of sandboxes is held so long that nobody else takes the last place.
        self.check_room(&sandboxes, asked)?;
        Ok(self.pool.take(&asked.spec))
    }
}

#[cfg(test)]
mod tests;
