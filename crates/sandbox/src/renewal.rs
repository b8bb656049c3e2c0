//! Agents that are older than the server's own are replaced where they run: in a sandbox that an older server made, in a machine
//! whose image or memory holds one. A greeting tells which agent is there ([`Handle::toolbox`] speaks to whichever it is); what
//! then happens is nobody's wish and nobody waits for it. Whatever goes wrong, the sandbox goes on with the agent that it
//! has.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use sandhaus_protocol::{
    hello::{Feature, HelloReply},
    upgrade::build_of,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    error::{Error, Result},
    fault,
    handle::Handle,
    service::Shared,
    snapshot::Step,
    toolbox::Replacement,
    types::{Generation, Phase},
};

/// Agents that are replaced at once: after a new server has come, all may be old.
const AT_ONCE: usize = 2;

/// When it is tried: something that cannot be carried over may be in the way for a while.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

/// How long to wait for a moment in which nobody speaks to the sandbox, and how often that is looked at: replacing an agent
/// cuts connections.
const QUIET_MAX: Duration = Duration::from_secs(30);
const QUIET_LOOK: Duration = Duration::from_millis(250);

/// The new agent and the former one lie in the sandbox's memory for a moment, and what it keeps of output twice. With less
/// than so many times an agent's size left, a program of the sandbox might be ended for it.
const ROOM_FACTOR: u64 = 4;

/// An agent that sandboxes are to have.
#[derive(Clone)]
pub struct AgentProgram {
    executable: Bytes,
    digest: String,
    build: String,
    version: (u64, u64, u64),
}

impl fmt::Debug for AgentProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentProgram").field("build", &self.build).finish_non_exhaustive()
    }
}

impl AgentProgram {
    /// An executable with its SHA-256 in hexadecimal, of this version; none if it does not say which build it is.
    pub fn new(executable: Bytes, digest: String, version: &str) -> Option<Self> {
        let build = build_of(&executable)?;
        Some(Self { build, digest, version: numbers(version)?, executable })
    }

    /// Its bytes.
    pub fn executable(&self) -> &Bytes {
        &self.executable
    }

    /// Their SHA-256 in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether an agent that says this of itself is to give way to this one: it is another build, and not of a later version.
    fn replaces(&self, reply: &HelloReply) -> bool {
        let other = reply.build.as_ref().is_some_and(|build| *build != self.build);
        let later = numbers(&reply.version).is_none_or(|version| version > self.version);
        reply.features.contains(&Feature::Upgrade) && other && !later
    }
}

fn numbers(version: &str) -> Option<(u64, u64, u64)> {
    let release = version.split(['-', '+']).next()?;
    let mut parts = release.split('.').map(|part| part.parse::<u64>().ok());
    let numbers = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(numbers)
}

/// Replacing an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RenewalStep {
    /// The new one is sent, and takes over.
    Send,
}

impl RenewalStep {
    const ALL: &[Self] = &[Self::Send];
}

impl Step for RenewalStep {
    fn name(self) -> &'static str {
        match self {
            Self::Send => "renew_agent.send",
        }
    }
}

/// The names at which the runner of the steps calls [`crate::fault::hit`].
pub fn fault_points() -> Vec<String> {
    let names = RenewalStep::ALL.iter().map(|step| step.name());
    names.flat_map(|name| ["before", "after"].map(|side| format!("{name}.{side}"))).collect()
}

/// What all sandboxes have in common here.
#[derive(Debug)]
pub(crate) struct Renewals {
    places: Semaphore,
}

impl Default for Renewals {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_ONCE) }
    }
}

/// The one renewal of a sandbox, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    taken: Mutex<Option<Generation>>,
}

impl Turn {
    fn taken(&self) -> MutexGuard<'_, Option<Generation>> {
        // Replaced as a whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it for a generation; false if that has it.
    fn take(&self, generation: Generation) -> bool {
        self.taken().replace(generation) != Some(generation)
    }

    fn leave(&self, generation: Generation) {
        self.taken().take_if(|taken| *taken == generation);
    }
}

/// Has an agent replaced that says this of itself, if it is to be.
pub(crate) fn consider(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    generation: Generation,
    reply: &HelloReply,
) {
    let Some(program) = shared.config.agent.clone().filter(|program| program.replaces(reply)) else { return };
    if !handle.renewal.take(generation) {
        return;
    }
    let (shared, handle) = (Arc::clone(shared), Arc::downgrade(handle));
    let token = shared.token.clone();
    let renewal = Renewal { shared: Arc::clone(&shared), handle, generation, program };
    shared.spawn(async move {
        tokio::select! {
            () = renewal.run() => {}
            // What was sent by then takes over by itself, or does not.
            () = token.cancelled() => {}
        }
        if let Some(handle) = renewal.handle.upgrade() {
            handle.renewal.leave(generation);
        }
    });
}

/// One agent that is to be replaced.
struct Renewal {
    shared: Arc<Shared>,
    handle: Weak<Handle>,
    generation: Generation,
    program: Arc<AgentProgram>,
}

/// A moment for it.
enum Moment {
    /// Now, and if possible nobody is disturbed.
    Now(Arc<Handle>),
    /// It does not run at present.
    Later,
    /// The sandbox is gone, or its machine is another one.
    Never,
}

impl Renewal {
    async fn run(&self) {
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            let Ok(_place) = self.shared.renewals.places.acquire().await else { return };
            let handle = match self.find_moment().await {
                Moment::Now(handle) => handle,
                Moment::Later => continue,
                Moment::Never => return,
            };
            match self.replace(&handle).await {
                Ok(Replacement::Done(reply)) => {
                    let (version, build) = (reply.version, reply.build);
                    tracing::info!(sandbox = %handle.id, version, build, "its agent was replaced");
                    return;
                }
                Ok(Replacement::NotNow(why)) => {
                    tracing::info!(sandbox = %handle.id, why, "its older agent stays for now");
                }
                Err(error) => {
                    let source = std::error::Error::source(&error);
                    tracing::warn!(sandbox = %handle.id, %error, ?source, "its older agent was not replaced");
                    return;
                }
            }
        }
    }

    async fn find_moment(&self) -> Moment {
        let deadline = Instant::now() + QUIET_MAX;
        loop {
            let Some(handle) = self.handle.upgrade() else { return Moment::Never };
            let (generation, phase) = {
                let published = handle.published.borrow();
                (published.sandbox.generation, published.phase)
            };
            if generation != self.generation {
                return Moment::Never;
            }
            let late = Instant::now() >= deadline;
            match phase {
                Phase::Running if late || handle.gate.leases() <= handle.toolbox.idle() => {
                    return Moment::Now(handle);
                }
                Phase::Starting | Phase::Running | Phase::Paused if late => return Moment::Later,
                Phase::Starting | Phase::Running | Phase::Paused => {}
                Phase::Suspended
                | Phase::Stopped
                | Phase::Stopping
                | Phase::Archived
                | Phase::Deleting
                | Phase::Deleted
                | Phase::Failed => return Moment::Never,
            }
            drop(handle);
            tokio::time::sleep(QUIET_LOOK).await;
        }
    }

    async fn replace(&self, handle: &Handle) -> Result<Replacement> {
        // A machine's own kernel finds room, by giving up what it can read again.
        if !handle.engine.capabilities().boots_by_greeting {
            let stats = handle.engine.stats(&handle.id).await.map_err(Error::from)?;
            let needed = ROOM_FACTOR * self.program.executable.len() as u64;
            let left = stats.memory_limit_bytes.map(|limit| limit.saturating_sub(stats.memory_bytes));
            if left.is_some_and(|left| left < needed) {
                return Ok(Replacement::NotNow("it has too little memory left".to_owned()));
            }
        }
        fault::pass_async(RenewalStep::Send.name(), handle.toolbox.replace_agent(&self.program)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(version: &str, build: Option<&str>, features: Vec<Feature>) -> HelloReply {
        HelloReply {
            protocol: 1,
            version: version.to_owned(),
            build: build.map(str::to_owned),
            sandbox_id: "0123abcd-456".to_owned(),
            generation: 1,
            features,
            cwd: "/".to_owned(),
            clock_skew_ns: None,
        }
    }

    #[test]
    fn only_another_build_that_is_not_newer_gives_way() {
        let program = AgentProgram {
            executable: Bytes::new(),
            digest: String::new(),
            build: "ours".to_owned(),
            version: (1, 2, 3),
        };
        let gives_way = |version, build, features| program.replaces(&reply(version, build, features));
        let upgrade = || vec![Feature::Shell, Feature::Upgrade];
        for older in ["1.2.3", "1.2.2", "0.9.9", "1.2.3-dev"] {
            assert!(gives_way(older, Some("theirs"), upgrade()), "{older}");
        }
        for newer in ["1.2.4", "1.10.0", "2.0.0", "what"] {
            assert!(!gives_way(newer, Some("theirs"), upgrade()), "{newer}");
        }
        assert!(!gives_way("1.2.2", Some("ours"), upgrade()));
        assert!(!gives_way("1.2.2", None, upgrade()));
        assert!(!gives_way("1.2.2", Some("theirs"), vec![Feature::Shell]));
    }

    #[test]
    fn a_generation_has_one_renewal() {
        let turn = Turn::default();
        assert!(turn.take(Generation(1)));
        assert!(!turn.take(Generation(1)));
        assert!(turn.take(Generation(2)));
        turn.leave(Generation(1));
        assert!(!turn.take(Generation(2)));
        turn.leave(Generation(2));
        assert!(turn.take(Generation(2)));
    }
}
