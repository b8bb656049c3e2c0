//! How an agent begins where another one was: it takes the state, or gives it back by executing the former program again.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
};

use sandhaus_protocol::upgrade::{NOT_TAKEN, UpgradeReply};

use super::{
    check::Verdict,
    document::{Document, Incoming, StandingState},
};
use crate::{
    agent::{Agent, Standing},
    boot, guest,
    http::Listener,
    sys,
};

/// The name that every agent has in lists of processes.
const NAME: &str = "sandhaus-agent";

/// Words of the command line.
pub(crate) const RESUME: &str = "--resume";
pub(crate) const CHECK: &str = "--check-state";

/// Longest reason that is passed back, in characters.
const REASON_CHARS_MAX: usize = 300;

/// Makes a debug build refuse the state after it has taken the process, as a defect would.
const FAULT: &str = "SANDHAUS_AGENT_FAULT";

/// The command line of an agent that takes over; `returned` is why another one gave it back.
pub(super) fn arguments(state: RawFd, program: RawFd, returned: Option<&str>) -> Vec<String> {
    let mut arguments = vec![NAME.to_owned(), RESUME.to_owned(), state.to_string(), program.to_string()];
    arguments.extend(
        returned.map(|reason| {
            reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect::<String>()
        }),
    );
    arguments
}

/// The command line of an agent that only looks.
pub(super) fn check_arguments(state: RawFd) -> Vec<String> {
    vec![NAME.to_owned(), CHECK.to_owned(), state.to_string()]
}

/// Says on standard output whether this agent would take the state behind a descriptor.
pub(crate) fn check_state(state: RawFd) -> io::Result<()> {
    sys::hide()?;
    let verdict = match sys::duplicate(state).and_then(|state| Incoming::read(File::from(state))) {
        Ok(_) => Verdict { takes: true, reason: String::new() },
        Err(error) => Verdict { takes: false, reason: error.to_string() },
    };
    io::stdout().write_all(serde_json::to_string(&verdict).map_err(io::Error::other)?.as_bytes())
}

/// The way back to the program before.
#[derive(Clone)]
struct WayBack {
    state: RawFd,
    program: RawFd,
    kept: Vec<RawFd>,
}

impl WayBack {
    /// Takes it. Returns only if that cannot be.
    fn take(&self, reason: &str) -> io::Error {
        let program = match sys::duplicate(self.program) {
            Ok(program) => program,
            Err(error) => return error,
        };
        let mut kept = self.kept.clone();
        kept.extend([self.state, self.program]);
        let arguments = arguments(self.state, self.program, Some(reason));
        sys::become_program(std::os::fd::AsFd::as_fd(&program), &arguments, &kept)
    }
}

/// Serves where another agent did: its state and its program are behind these descriptors. `returned` is why an agent that
/// was to take the place of this one did not.
pub(crate) fn resume(state: RawFd, program: RawFd, returned: Option<String>) -> io::Result<()> {
    let mut back = WayBack { state, program, kept: Vec::new() };
    let read = sys::duplicate(state).and_then(|state| Incoming::read(File::from(state)));
    let (document, incoming) = match (read, &returned) {
        (Ok(read), _) => read,
        (Err(error), None) => return Err(back.take(&error.to_string())),
        (Err(error), Some(_)) => return Err(error),
    };
    back.kept.clone_from(&document.descriptors);
    if returned.is_none() {
        let back = back.clone();
        std::panic::set_hook(Box::new(move |panic| {
            // The panic goes on where even this is not to be.
            let _ = back.take(&format!("it panicked: {panic}"));
        }));
    }
    let taken = Taken { back, incoming, returned };
    match document.standing {
        StandingState::Guest { .. } => guest::resume(document, taken),
        StandingState::Init { .. } | StandingState::ByHand => boot::resume(document, taken),
    }
}

/// What an agent that begins needs of the one before, beside the document.
pub(crate) struct Taken {
    back: WayBack,
    incoming: Incoming,
    returned: Option<String>,
}

impl Taken {
    /// The first moments of the process, before any thread.
    pub(crate) fn prepare(&self, document: &Document) -> io::Result<()> {
        let standing = match document.standing {
            StandingState::Init { .. } | StandingState::Guest { .. } => sys::Standing::Guarded,
            StandingState::ByHand => sys::Standing::Open,
        };
        self.or_back(sys::prepare_heir(standing, document.open_files))
    }

    /// What went well; else the way back, which does not return if there is one.
    pub(crate) fn or_back<T>(&self, result: io::Result<T>) -> io::Result<T> {
        match (result, &self.returned) {
            (Err(error), None) => Err(self.back.take(&error.to_string())),
            (result, _) => result,
        }
    }

    /// Makes the agent and its listening socket, or goes back. Within the runtime; waits for nothing, so that no task has run
    /// before everything is there.
    pub(crate) fn take_over(self, document: Document) -> io::Result<(Arc<Agent>, Listener)> {
        let Self { back, mut incoming, returned } = self;
        let connection = document.connection;
        let (access, doors) = (document.access.clone(), document.doors);
        let made = match returned.is_none() && is_faulty() {
            true => Err(io::Error::other("a fault was asked for")),
            false => make(document, &mut incoming),
        };
        let (agent, listener, connection) = match (made, &returned) {
            (Ok((agent, listener)), _) => {
                let connection = connection.and_then(|number| incoming.descriptor(number).ok());
                (agent, listener, connection)
            }
            (Err(error), None) => return Err(back.take(&error.to_string())),
            (Err(error), Some(_)) => return Err(error),
        };
        drop(std::panic::take_hook());
        incoming.commit();
        sys::close_numbers(&[back.state, back.program]);
        if let Some(places) = doors {
            agent.doors.place(places);
        }
        // Checked when it was told first; a port that is taken meanwhile is said, and waits for the next greeting.
        let _ = agent.doors.tell(&agent, access);
        if let Some(connection) = connection {
            // Whoever asked may be gone, and then finds out by a greeting.
            let _ = answer(connection, returned.as_deref());
        }
        Ok((agent, listener))
    }
}

fn is_faulty() -> bool {
    cfg!(debug_assertions) && std::env::var_os(FAULT).is_some()
}

fn make(document: Document, from: &mut Incoming) -> io::Result<(Arc<Agent>, Listener)> {
    let standing = match document.standing {
        StandingState::Init { sandbox_id, generation } => Standing::Init { sandbox_id, generation },
        StandingState::Guest { .. } => Standing::Guest,
        StandingState::ByHand => Standing::ByHand,
    };
    let listener = Listener::inherited(from.descriptor(document.listener)?)?;
    let agent = Agent::restored(
        standing,
        (document.variables, document.greeted_with_variables),
        document.workdir,
        document.workload,
        document.shell,
        document.limits,
    );
    agent.processes.restore(&agent, document.processes, from)?;
    agent.shells.restore(&agent, document.shells, from)?;
    agent.sessions.restore(&agent, document.sessions, from)?;
    agent.terminals.restore(&agent, document.terminals, from)?;
    Ok((agent, listener))
}

/// Answers the request for this very upgrade, which was read to its end by the agent before.
fn answer(connection: OwnedFd, returned: Option<&str>) -> io::Result<()> {
    let (status, body) = match returned {
        None => {
            let reply =
                UpgradeReply { version: env!("CARGO_PKG_VERSION").to_owned(), build: sys::own_build() };
            ("200 OK", serde_json::to_value(reply).map_err(io::Error::other)?)
        }
        Some(reason) => {
            let message = format!("the new agent did not take over: {reason}");
            let body = serde_json::json!({
                "statusCode": 409, "message": message, "error": message, "code": NOT_TAKEN,
                "source": "DAYTONA_DAEMON", "timestamp": crate::clock::now_rfc3339(),
                "path": sandhaus_protocol::upgrade::PATH, "method": "POST",
            });
            ("409 Conflict", body)
        }
    };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // It fits: nothing was answered on this connection that the other side had not read.
    File::from(connection).write_all(answer.as_bytes())
}
