//! Replacing the agent while it runs: `POST /sandhaus/upgrade`.
//!
//! ```text
//!   body ──> file in memory ── digest, kind of executable ──> checked by itself: does it take the state?
//!        ──> what is in the way ends, or is named (409) ──> state ──> exec ──> taken over, answered
//!                                                                       └── not: exec of the former one, answered
//! ```
//! The agent has one thread that changes anything, and every task keeps what it knows where it can be looked at. So between
//! two waits everything is consistent, whatever is under way: state is written and the next program begins in one go, and
//! no byte is anywhere else than in a pipe, in a log or in the state. What fails before that moment changes nothing.
//!
//! Files: [`self`] the request, [`document`] what is told, [`check`] whether it would be understood, [`succession`] how the
//! next agent begins, [`requests`] what is in the way.
//!
//! An area that has state to carry over adds a field to [`document::Document`] (with a serde default) and the two calls that
//! fill and take it, in [`describe`] and [`succession`]. What an area cannot carry over needs nothing: processes that nobody
//! describes and requests that are not answered yet are in the way by themselves. For anything else there is
//! [`Upgrades::hold`].

mod check;
mod document;
mod program;
mod requests;
mod succession;

use std::{
    fs::File,
    os::fd::{AsFd as _, RawFd},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Query, State},
    http::HeaderMap,
    routing::post,
};
use sandhaus_protocol::upgrade::{PATH, UpgradeReply};
use serde::Deserialize;
use tokio::time::Instant;

use self::document::Logs;
pub(crate) use self::{
    document::{Descriptor, Document, Incoming, LogState, Outgoing, StandingState},
    requests::{Hold, Open, passing},
    succession::{CHECK, RESUME, Taken, check_state, resume},
};
use crate::{
    agent::{Agent, Standing},
    error::{Error, Result},
    guest::Guest,
    sys,
};

/// How long what is in the way may take to end, and how often that is looked at. Longer than ending a command that took too
/// long takes.
const WAIT_MAX: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(20);

/// How long what has arrived and was not looked at yet may keep the agent from being replaced.
const ARRIVAL_MAX: Duration = Duration::from_secs(1);

/// Descriptors that a new agent opens beside those it takes over.
const DESCRIPTORS_SPARE: u64 = 128;

/// Most obstacles that a refusal names.
const NAMED_MAX: usize = 8;

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route(PATH, post(upgrade))
}

/// Whether an agent may be replaced by whoever reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replaceable {
    /// Only its host does.
    Yes,
    /// Anyone might.
    No,
}

/// What the agent knows about being replaced.
#[derive(Default)]
pub(crate) struct Upgrades {
    requests: requests::Requests,
    alone: tokio::sync::Mutex<()>,
    /// Known once it serves.
    place: OnceLock<Place>,
}

/// Where the agent serves.
pub(crate) struct Place {
    /// The listening socket, which stays open as long as the agent serves.
    pub(crate) listener: RawFd,
    /// Whether it may be replaced.
    pub(crate) replaceable: Replaceable,
    /// In a virtual machine, what greetings said, and whether the agent is the first process.
    pub(crate) guest: Option<(Weak<Guest>, bool)>,
}

impl Upgrades {
    /// Says where the agent serves.
    pub(crate) fn serve(&self, place: Place) {
        // Said once: an agent serves in one place.
        let _ = self.place.set(place);
    }

    /// Whether the agent may be replaced by whoever reaches it.
    pub(crate) fn is_offered(&self) -> bool {
        self.place.get().is_some_and(|place| place.replaceable == Replaceable::Yes)
    }

    /// Keeps the agent from being replaced (unless by force) as long as the hold lives; `what` is shown.
    #[expect(dead_code, reason = "for areas whose state is neither a request nor a process")]
    pub(crate) fn hold(&self, what: impl Into<String>) -> Hold {
        self.requests.hold(what.into())
    }

    /// Notes a connection as long as it is open.
    pub(crate) fn open(&self, connection: RawFd) -> Open {
        self.requests.open(connection)
    }

    /// Notes a request until its answer is on the way.
    pub(crate) fn request(&self, method: &axum::http::Method, path: &str) -> Hold {
        match path {
            PATH => Hold::none(),
            _ => self.requests.hold(format!("{method} {path}")),
        }
    }
}

/// The number of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection(pub(crate) RawFd);

/// Query of the request.
#[derive(Debug, Deserialize)]
struct UpgradeQuery {
    #[serde(default)]
    force: bool,
}

/// `POST /sandhaus/upgrade`. Answers only if it comes to nothing. Dropping it is harmless until the last step, which does not
/// wait.
async fn upgrade(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<UpgradeQuery>,
    connection: Option<Extension<Connection>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<UpgradeReply>> {
    if !agent.upgrades.is_offered() {
        return Err(Error::forbidden(
            "this agent may not be replaced: it listens where anyone might ask; start it with --replaceable",
        ));
    }
    // Another request may be over that nobody waits for any more.
    let Ok(_alone) = tokio::time::timeout(WAIT_MAX, agent.upgrades.alone.lock()).await else {
        return Err(Error::conflict("the agent is being replaced already"));
    };
    let program = program::receive(&headers, body).await?;
    check::check(&agent, &program).await?;
    let in_the_way = wait_for_others(&agent).await;
    if !in_the_way.is_empty() && !query.force {
        return Err(Error::in_the_way(named(&in_the_way)));
    }
    Err(replace(&agent, &program, connection.map(|Extension(Connection(number))| number)))
}

/// What is still in the way when the time is over.
async fn wait_for_others(agent: &Arc<Agent>) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let in_the_way = obstacles(agent);
        // What is typed into a terminal that nobody reads stays where it is.
        let arriving = agent.upgrades.requests.are_arriving() && begun.elapsed() < ARRIVAL_MAX;
        if (in_the_way.is_empty() && !arriving) || begun.elapsed() >= WAIT_MAX {
            return in_the_way;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What cannot be carried over at this moment.
fn obstacles(agent: &Agent) -> Vec<String> {
    let mut obstacles = agent.upgrades.requests.list();
    obstacles.extend(agent.shells.obstacles());
    let strangers = strangers(agent).into_iter().filter(|(pid, _)| !agent.doors.is_rescue(*pid));
    obstacles.extend(strangers.map(|(pid, program)| format!("process {pid} ({program})")));
    obstacles
}

/// Processes that no area describes.
fn strangers(agent: &Agent) -> Vec<(i32, String)> {
    let described = Outgoing::new(Logs::Omitted).and_then(|mut out| {
        describe(agent, &mut out, None)?;
        Ok(out)
    });
    let mut alive = agent.children.alive();
    alive.retain(|(pid, _)| !described.as_ref().is_ok_and(|out| out.knows(*pid)));
    alive
}

fn named(obstacles: &[String]) -> String {
    let mut text = obstacles.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if obstacles.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", obstacles.len() - NAMED_MAX));
    }
    text
}

/// Everything that a successor is told. Does not wait.
fn describe(agent: &Agent, out: &mut Outgoing, connection: Option<RawFd>) -> std::io::Result<Document> {
    let wrong = || std::io::Error::other("the agent does not serve yet");
    let place = agent.upgrades.place.get().ok_or_else(wrong)?;
    let standing = match &agent.standing {
        Standing::Init { sandbox_id, generation } => {
            StandingState::Init { sandbox_id: sandbox_id.clone(), generation: *generation }
        }
        Standing::Guest => {
            let guest = place.guest.as_ref().and_then(|(guest, first)| Some((guest.upgrade()?, *first)));
            let (guest, first) = guest.ok_or_else(wrong)?;
            let (sandbox_id, generation, token) = guest.told().ok_or_else(wrong)?;
            StandingState::Guest { first, sandbox_id, generation, token }
        }
        Standing::ByHand => StandingState::ByHand,
    };
    let (variables, greeted_with_variables) = agent.told_variables();
    let (access, doors) = agent.doors.told();
    for number in [Some(place.listener), connection].into_iter().flatten() {
        out.number(number);
    }
    Ok(Document {
        writer: format!("{} {}", env!("CARGO_PKG_VERSION"), sys::own_build()),
        standing,
        listener: place.listener,
        connection,
        open_files: sys::open_files(),
        variables,
        greeted_with_variables,
        workdir: agent.workdir.clone(),
        workload: agent.workload.clone(),
        limits: agent.limits,
        shell: agent.shell.clone(),
        processes: agent.processes.describe(out)?,
        shells: agent.shells.describe(out)?,
        sessions: agent.sessions.describe(out)?,
        terminals: agent.terminals.describe(out)?,
        access,
        doors,
        descriptors: out.numbers().to_vec(),
        foreign: std::collections::BTreeMap::new(),
    })
}

/// Becomes the next agent. Returns only why that did not happen; then everything is as before.
fn replace(agent: &Arc<Agent>, program: &File, connection: Option<RawFd>) -> Error {
    let tried = || -> std::io::Result<std::io::Error> {
        let own = sys::own_program()?;
        let mut out = Outgoing::new(Logs::Written)?;
        let document = describe(agent, &mut out, connection)?;
        if !sys::has_room_for_descriptors(document.descriptors.len() as u64 * 2 + DESCRIPTORS_SPARE) {
            return Err(std::io::Error::other("too many descriptors are open"));
        }
        let state = out.finish(&document)?;
        let strangers: Vec<i32> = strangers(agent).into_iter().map(|(pid, _)| pid).collect();
        let mut kept = document.descriptors;
        kept.extend([sys::number(&state), sys::number(&own)]);
        let arguments = succession::arguments(sys::number(&state), sys::number(&own), None);
        // Given up by force, or started anew by the next agent: nobody would listen to them any more.
        sys::signal_pids(&strangers, libc::SIGKILL);
        Ok(sys::become_program(program.as_fd(), &arguments, &kept))
    };
    let error = tried().unwrap_or_else(|error| error);
    Error::not_taken(format_args!("the new agent cannot be started: {}", crate::error::reason(&error)))
}
