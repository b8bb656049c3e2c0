//! What the service and the actor of one sandbox share: the mailbox, what the actor last published, the gate, the
//! client of the agent, the deadline. Nothing here changes a sandbox.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::{
    engine::{Change, Engine, GuestPort, GuestStream, MachineExit},
    error::{Error, Kind, Result},
    gate::Gate,
    publish::Bound,
    renewal::Turn,
    snapshot::{CaptureMode, SnapshotKind},
    toolbox::{Base, Connect, Toolbox},
    types::*,
};

/// Messages an actor may have waiting; one more is refused ([`Kind::Exhausted`]).
pub(crate) const MAILBOX_MAX: usize = 64;

/// A deadline is written down this much later than it is, so that not every use of a sandbox is a write. After a crash
/// a sandbox may so live a little longer, never shorter.
const DEADLINE_GRAIN_MS: i64 = 1_000;

/// A deadline that never comes.
const NEVER: i64 = i64::MAX;

/// What an actor is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Another goal is wanted.
    SetGoal {
        /// Which.
        goal: Goal,
        /// Told once it is reached, or cannot be.
        reply: oneshot::Sender<Result<SandboxView>>,
    },
    /// The deadline may have passed.
    Expire,
    /// The deadline moved and is to be written down.
    Touched,
    /// If it is nobody's, it becomes the owner's that `asked` names.
    Claim {
        /// The row as admission made it of the request.
        asked: Box<Sandbox>,
        /// The ports of the host that are to lead into it.
        bound: Bound,
        /// Told once the owner can use it, or cannot.
        reply: oneshot::Sender<Result<SandboxView>>,
    },
    /// It is to have other limits, or another reach.
    Change {
        /// Which.
        change: Change,
        /// Told once it has, or cannot.
        reply: oneshot::Sender<Result<SandboxView>>,
    },
    /// It is to be captured.
    Capture(Box<Capturing>),
    /// If it is nobody's, nothing of it is to be left.
    Discard,
}

/// Somebody who wants what a sandbox is at one moment.
#[derive(Debug)]
pub(crate) struct Capturing {
    /// What of it.
    pub(crate) kind: SnapshotKind,
    /// How it may be disturbed.
    pub(crate) mode: CaptureMode,
    /// The empty directory to write it into.
    pub(crate) into: PathBuf,
    /// Told once it is written, or cannot be.
    pub(crate) reply: oneshot::Sender<Result<Captured>>,
}

/// What was captured.
#[derive(Debug)]
pub(crate) struct Captured {
    /// The row at that moment.
    pub(crate) sandbox: Arc<Sandbox>,
    /// The defaults of its image.
    pub(crate) config: sandhaus_images::ImageConfig,
}

/// What an actor last made known.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// The row.
    pub(crate) sandbox: Arc<Sandbox>,
    /// What it is doing.
    pub(crate) phase: Phase,
}

/// One live sandbox, as everyone but its actor sees it.
pub(crate) struct Handle {
    pub(crate) id: SandboxId,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) inbox: mpsc::Sender<Message>,
    pub(crate) published: watch::Sender<Published>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) toolbox: Toolbox,
    pub(crate) deadline: Deadline,
    pub(crate) exits: Arc<Exits>,
    pub(crate) renewal: Turn,
    /// How often the memory limit had struck at the last look; [`UNKNOWN`] before the first one at a sandbox that was
    /// there already when this process came.
    memory_kills: AtomicU64,
}

/// Whether a sandbox has a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// It has.
    Already,
    /// It may not have one yet.
    NotYet,
}

/// Stands for a count that nobody has looked at.
const UNKNOWN: u64 = u64::MAX;

impl Handle {
    pub(crate) fn new(
        sandbox: &Arc<Sandbox>,
        engine: Arc<dyn Engine>,
    ) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (inbox, messages) = mpsc::channel(MAILBOX_MAX);
        let gate = Arc::new(Gate::default());
        let exits = Arc::new(Exits::default());
        let dialer = Dialer {
            id: sandbox.id.clone(),
            engine: engine.clone(),
            gate: gate.clone(),
            exits: exits.clone(),
        };
        let handle = Self {
            id: sandbox.id.clone(),
            engine,
            inbox,
            published: watch::Sender::new(Published { sandbox: sandbox.clone(), phase: Phase::Starting }),
            gate,
            toolbox: Toolbox::new(Arc::new(dialer), Base::default()),
            deadline: Deadline::new(sandbox.deadlines),
            exits,
            renewal: Turn::default(),
            memory_kills: AtomicU64::new(if sandbox.life == Life::New { 0 } else { UNKNOWN }),
        };
        (Arc::new(handle), messages)
    }

    pub(crate) fn view(&self) -> SandboxView {
        let published = self.published.borrow();
        let mut sandbox = Sandbox::clone(&published.sandbox);
        sandbox.deadlines.expires_at_ms = self.deadline.expires_at_ms();
        let status = Status {
            phase: published.phase,
            generation: sandbox.generation,
            failure: sandbox.failure.clone(),
        };
        SandboxView { sandbox, status, ended: None }
    }

    /// The workspace it shows.
    pub(crate) fn workspace(&self) -> Option<WorkspaceId> {
        self.published.borrow().sandbox.spec.workspace.clone()
    }

    pub(crate) fn uses_image(&self, digest: &str) -> bool {
        self.published.borrow().sandbox.spec.source.is(digest)
    }

    /// Whether it is made of this snapshot, and if so whether its own disk has been made of it.
    pub(crate) fn made_of(&self, snapshot: &SnapshotId) -> Option<Made> {
        let sandbox = &self.published.borrow().sandbox;
        let made = if sandbox.holdings.disk.is_some() { Made::Already } else { Made::NotYet };
        (sandbox.spec.source.snapshot() == Some(snapshot)).then_some(made)
    }

    pub(crate) fn is_named(&self, owner: &OwnerId, name: &str) -> bool {
        let sandbox = &self.published.borrow().sandbox;
        sandbox.owner == *owner && sandbox.name.as_deref() == Some(name)
    }

    pub(crate) fn runs_on(&self, engine: &EngineName) -> bool {
        self.published.borrow().sandbox.spec.engine == *engine
    }

    pub(crate) fn phase(&self) -> Phase {
        self.published.borrow().phase
    }

    /// What it is to become, or has.
    pub(crate) fn goal(&self) -> Goal {
        self.published.borrow().sandbox.goal
    }

    /// Nobody's, and waiting for an owner.
    pub(crate) fn is_idle(&self) -> bool {
        self.published.borrow().sandbox.tenancy == Tenancy::Idle
    }

    /// It runs, as far as anybody has heard.
    pub(crate) fn is_ready(&self) -> bool {
        self.phase() == Phase::Running && !self.exits.pending()
    }

    /// Requests or streams are under way; idle connections do not count.
    pub(crate) fn in_use(&self) -> bool {
        self.gate.leases() > self.toolbox.idle()
    }

    /// Its deadline has passed and nothing holds it open.
    pub(crate) fn expired(&self, now_ms: i64) -> bool {
        self.deadline.expires_at_ms().is_some_and(|at| at <= now_ms) && !self.in_use()
    }

    /// Notes a look at the count of processes that the memory limit ended, and gives that of the look before.
    pub(crate) fn look_at_memory_kills(&self, now: u64) -> Option<u64> {
        Some(self.memory_kills.swap(now, Ordering::AcqRel)).filter(|known| *known != UNKNOWN)
    }

    /// Moves the deadline to at least now + the time to live.
    pub(crate) fn touch(&self, now_ms: i64) {
        self.extend(now_ms, self.deadline.ttl_ms.load(Ordering::Acquire));
    }

    /// Moves the deadline to at least now + `ttl_ms`.
    pub(crate) fn extend(&self, now_ms: i64, ttl_ms: i64) {
        if self.deadline.extend(now_ms, ttl_ms) && self.inbox.try_send(Message::Touched).is_err() {
            // A full mailbox belongs to a busy actor: the next use tries again.
            self.deadline.unwritten();
        }
    }

    pub(crate) fn expire(&self) {
        // A full mailbox belongs to a busy actor; the clock tries again.
        let _ = self.inbox.try_send(Message::Expire);
    }

    /// Hands a message over.
    pub(crate) fn tell(&self, message: Message) -> Result<()> {
        self.inbox.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(Kind::Exhausted, format!("sandbox {} has too many requests waiting", self.id))
            }
            mpsc::error::TrySendError::Closed(_) => gone(&self.id),
        })
    }
}

pub(crate) fn gone(id: &SandboxId) -> Error {
    Error::new(Kind::Gone, format!("sandbox {id} has ended"))
}

/// Dials the agent under a lease.
struct Dialer {
    id: SandboxId,
    engine: Arc<dyn Engine>,
    gate: Arc<Gate>,
    exits: Arc<Exits>,
}

impl Connect for Dialer {
    fn forgotten(&self) {
        self.exits.tell_forgotten();
    }

    fn connect(&self) -> BoxFuture<'_, Result<GuestStream>> {
        Box::pin(async {
            let ticket = self.gate.enter().ok_or_else(|| not_running(&self.id))?;
            let stream = self.engine.dial(&self.id, GuestPort::Agent).await?;
            Ok(GuestStream::new(ticket.bind(stream)))
        })
    }
}

pub(crate) fn not_running(id: &SandboxId) -> Error {
    Error::new(Kind::Conflict, format!("sandbox {id} is not running"))
}

/// The deadline of one sandbox. It only ever moves away, but for the one time that an idle sandbox gets its owner's.
#[derive(Debug)]
pub(crate) struct Deadline {
    ttl_ms: AtomicI64,
    expires_at_ms: AtomicI64,
    /// What the row says, or is about to.
    written_ms: AtomicI64,
}

impl Deadline {
    fn new(deadlines: Deadlines) -> Self {
        let deadline = Self {
            ttl_ms: AtomicI64::new(0),
            expires_at_ms: AtomicI64::new(NEVER),
            written_ms: AtomicI64::new(NEVER),
        };
        deadline.begin(deadlines);
        deadline
    }

    /// Takes over what the row says, which nobody else knows of yet.
    pub(crate) fn begin(&self, deadlines: Deadlines) {
        let at = deadlines.expires_at_ms.unwrap_or(NEVER);
        self.ttl_ms.store(i64::try_from(deadlines.ttl_ms).unwrap_or(NEVER), Ordering::Release);
        self.expires_at_ms.store(at, Ordering::Release);
        self.written_ms.store(at, Ordering::Release);
    }

    pub(crate) fn expires_at_ms(&self) -> Option<i64> {
        Some(self.expires_at_ms.load(Ordering::Acquire)).filter(|at| *at != NEVER)
    }

    /// Moves to at least now + `ttl_ms`; true if the row has to follow.
    fn extend(&self, now_ms: i64, ttl_ms: i64) -> bool {
        let at = now_ms.saturating_add(ttl_ms);
        self.expires_at_ms.fetch_max(at, Ordering::AcqRel);
        // Only the one that moves this past `at` has it written.
        let due = at.saturating_add(DEADLINE_GRAIN_MS);
        self.written_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, |w| (w < at).then_some(due)).is_ok()
    }

    fn unwritten(&self) {
        if self.expires_at_ms().is_some() {
            self.written_ms.store(0, Ordering::Release);
        }
    }

    /// What to write down.
    pub(crate) fn to_write(&self) -> Option<i64> {
        Some(self.written_ms.load(Ordering::Acquire)).filter(|at| *at != NEVER)
    }
}

/// Ends of the sandbox's machines as the engine tells them; never lost, whatever the mailbox holds.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    last: Mutex<Option<News>>,
    pub(crate) arrived: Notify,
}

/// What the engine told, or the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// A machine ended.
    Exit(MachineExit),
    /// Something may have ended; look.
    Unsure,
    /// Its agent knows nobody: it was started anew.
    Forgotten,
}

impl Exits {
    pub(crate) fn tell(&self, news: News) {
        *self.last() = Some(news);
        self.arrived.notify_one();
    }

    /// The agent says so. What the engine told says more.
    fn tell_forgotten(&self) {
        self.last().get_or_insert(News::Forgotten);
        self.arrived.notify_one();
    }

    pub(crate) fn take(&self) -> Option<News> {
        self.last().take()
    }

    /// Something was told that the actor has not taken yet.
    fn pending(&self) -> bool {
        self.last().is_some()
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<News>> {
        // One value, always whole.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_only_moves_away_and_is_seldom_written() {
        let deadline = Deadline::new(Deadlines { ttl_ms: 10_000, expires_at_ms: Some(10_000) });
        let touch = |now_ms| deadline.extend(now_ms, 10_000);
        assert!(!touch(0), "nothing moved");
        assert!(touch(1), "moved past what is written");
        assert_eq!(deadline.to_write(), Some(11_001), "written a grain later than it is");
        assert!(!touch(2), "one write is under way");
        assert!(!touch(900), "within the grain");
        assert_eq!(deadline.expires_at_ms(), Some(10_900));
        assert!(!touch(500), "never back");
        assert_eq!(deadline.expires_at_ms(), Some(10_900));
        assert!(touch(2_000));
        assert!(!deadline.extend(2_000, 1_000), "a shorter time than the one left changes nothing");
        assert!(deadline.extend(2_000, 60_000), "a longer one does");
        assert_eq!((deadline.expires_at_ms(), deadline.to_write()), (Some(62_000), Some(63_000)));
        assert!(!touch(3_000), "and stays");
        assert_eq!(deadline.expires_at_ms(), Some(62_000));
    }

    #[test]
    fn for_ever_stays_for_ever() {
        let deadline = Deadline::new(Deadlines { ttl_ms: 0, expires_at_ms: None });
        assert!(!deadline.extend(5, 0) && !deadline.extend(5, 1000));
        assert_eq!((deadline.expires_at_ms(), deadline.to_write()), (None, None));
    }
}
