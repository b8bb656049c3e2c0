//! Sessions of the compatible contract: one long-lived shell per session on pipes, and a log per command in which
//! each piece of output carries a three-byte marker of its stream.
//!
//! ```text
//!   exec ──> queue ──> driver ── script pipe ──> shell ── two pipes ──> readers ──> log of the command
//! ```
//! Files: [`self`] the sessions and their commands, [`driver`] the task behind each, [`demux`] the markers, [`routes`].
//!
//! The end of a command travels through both pipes behind its output, so a command has an exit code only when its log
//! is complete. The reserved session `entrypoint` has one command, the sandbox's own, and takes no others.

mod demux;
mod driver;
mod hand_over;
mod routes;

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sandhaus_protocol::toolbox::{Command as CommandInfo, Session as SessionInfo};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use self::driver::Wiring;
pub(crate) use self::{hand_over::Carried, routes::routes};
use crate::{
    agent::Agent,
    error::{Error, Result},
    process::kill_family,
    ring::Log,
    shell::dialect::Input,
    sys::{
        Channel, Child, Command, Ended, Ending, Family, Session as ProcessSession, discard, output_pipe,
        random_hex, signal_pids,
    },
};

/// Name of the session of the sandbox's own command, and of that command.
pub(crate) const ENTRYPOINT: &str = "entrypoint";
const ENTRYPOINT_COMMAND: &str = "entrypoint_command";

/// Most sessions at once.
const SESSIONS_MAX: usize = 256;

/// Most commands that one session remembers; the oldest ended ones are forgotten.
const COMMANDS_KEPT: usize = 256;

/// Most commands that wait in one session.
const QUEUE_MAX: usize = 256;

/// Bytes of a command's log that are kept.
const LOG_BYTES: usize = 4 << 20;

/// Bytes read from a stream at once.
const READ_BYTES: usize = 16 * 1024;

/// How long a deleted session's processes may take to end by themselves, and how often that is looked at.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);
const TERMINATION_CHECK: Duration = Duration::from_millis(100);

/// Precede each piece of output in a log.
const STDOUT_MARKER: [u8; 3] = [1; 3];
const STDERR_MARKER: [u8; 3] = [2; 3];

/// The sessions by name.
#[derive(Default)]
pub(crate) struct Sessions {
    by_id: Mutex<BTreeMap<String, Arc<Session>>>,
}

/// A session.
pub(crate) struct Session {
    id: String,
    family: Family,
    queue: Option<mpsc::Sender<Arc<SessionCommand>>>,
    input: Option<Arc<Channel>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended: bool,
    next_marker: u64,
    commands: Vec<Arc<SessionCommand>>,
    /// How the agent and its shell are connected, as long as they are.
    wiring: Option<Arc<Wiring>>,
    /// The sandbox's own command, as long as it runs.
    plain: Option<Arc<Plain>>,
}

/// A command without a shell.
struct Plain {
    ended: Ended,
    /// Its output and its errors, each until its end.
    streams: [Mutex<Option<Arc<Channel>>>; 2],
}

/// A command of a session.
pub(crate) struct SessionCommand {
    /// Its name.
    pub(crate) id: String,
    text: String,
    echo: InputEcho,
    /// Its number towards its shell.
    marker: u64,
    /// Its output with markers.
    pub(crate) log: Arc<Log>,
    input: Option<Arc<Channel>>,
    exit_code: Mutex<Option<i32>>,
}

/// Whether what is sent to a command shows in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InputEcho {
    /// As standard output.
    Logged,
    /// Not.
    Suppressed,
}

impl SessionCommand {
    fn new(id: &str, text: &str, marker: u64, echo: InputEcho, input: Option<Arc<Channel>>) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            text: text.to_owned(),
            echo,
            marker,
            log: Log::new(LOG_BYTES, Arc::new(Notify::new())),
            input,
            exit_code: Mutex::new(None),
        })
    }

    /// Its status, once it has ended and its log is complete.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        *self.exit_code.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it reads.
    fn reads(&self) -> Input {
        if self.input.is_some() { Input::Open } else { Input::Empty }
    }

    fn finish(&self, code: i32) {
        self.exit_code.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(code);
        self.log.changed().notify_waiters();
    }

    fn write(&self, marker: [u8; 3], bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut piece = Vec::with_capacity(bytes.len() + marker.len());
        piece.extend_from_slice(&marker);
        piece.extend_from_slice(bytes);
        self.log.append(&piece);
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> i32 {
        loop {
            let changed = self.log.changed().notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(code) = self.exit_code() {
                return code;
            }
            changed.await;
        }
    }

    /// How it stands.
    pub(crate) fn describe(&self) -> CommandInfo {
        CommandInfo { id: self.id.clone(), command: self.text.clone(), exit_code: self.exit_code() }
    }

    /// Everything kept of its output, with markers.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.log.copy(0, u64::MAX)
    }

    /// Sends text to its input.
    pub(crate) async fn send(&self, data: &str) -> Result<()> {
        if self.exit_code().is_some() {
            return Err(Error::gone("COMMAND_ALREADY_COMPLETED", "the command has already completed"));
        }
        let input = self.input.as_ref().ok_or_else(|| Error::invalid("the command takes no input"))?;
        let mut line = data.to_owned();
        if !line.ends_with('\n') {
            line.push('\n');
        }
        let ended = || Error::gone("SESSION_ENDED", "the session has ended");
        tokio::select! {
            written = input.write_all(line.as_bytes()) => written.map_err(|_| ended())?,
            // Nobody will read the part that may be missing.
            _ = self.ended() => {
                return Err(Error::gone("COMMAND_ALREADY_COMPLETED", "the command has already completed"));
            }
        }
        if self.echo == InputEcho::Logged {
            self.write(STDOUT_MARKER, line.as_bytes());
        }
        Ok(())
    }
}

impl Sessions {
    fn by_id(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Session>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of this name.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Session>> {
        self.by_id()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::no_process(format_args!("session not found: {id}")))
    }

    /// All but the entrypoint's.
    pub(crate) fn list(&self) -> Vec<SessionInfo> {
        self.by_id().values().filter(|s| s.id != ENTRYPOINT).map(|s| s.describe()).collect()
    }

    /// Creates a session and starts its shell.
    pub(crate) fn create(&self, agent: &Arc<Agent>, id: &str) -> Result<()> {
        if id.is_empty() {
            return Err(Error::invalid("sessionId is required"));
        }
        if id == ENTRYPOINT {
            return Err(Error::invalid("this session id is reserved"));
        }
        let mut by_id = self.by_id();
        if by_id.contains_key(id) {
            return Err(Error::conflict(format_args!("session already exists: {id}")));
        }
        if by_id.len() >= SESSIONS_MAX {
            return Err(Error::too_many(format_args!("there are {SESSIONS_MAX} sessions already")));
        }
        by_id.insert(id.to_owned(), driver::start(agent, id)?);
        Ok(())
    }

    /// Starts the sandbox's own command.
    pub(crate) fn start_entrypoint(&self, agent: &Arc<Agent>, argv: &[String]) {
        let command =
            SessionCommand::new(ENTRYPOINT_COMMAND, &argv.join(" "), 0, InputEcho::Suppressed, None);
        let mark = Family::new_mark();
        let started = start_plain(agent, argv, &mark);
        let root = started.as_ref().map_or(0, |(child, _)| child.pid);
        let session = Arc::new(Session {
            id: ENTRYPOINT.to_owned(),
            family: Family { root, mark },
            queue: None,
            input: None,
            state: Mutex::new(State { commands: vec![Arc::clone(&command)], ..State::default() }),
        });
        self.by_id().insert(ENTRYPOINT.to_owned(), Arc::clone(&session));
        match started {
            Err(error) => {
                command.write(STDERR_MARKER, format!("{}\n", error.message).as_bytes());
                command.finish(127);
            }
            Ok((child, streams)) => {
                let streams = streams.map(|stream| Mutex::new(Some(Arc::new(stream))));
                follow_plain(&session, &command, Plain { ended: child.ended, streams });
            }
        }
    }

    /// Ends a session with everything that it has started.
    pub(crate) async fn delete(&self, agent: &Arc<Agent>, id: &str) -> Result<()> {
        if id == ENTRYPOINT {
            return Err(Error::invalid("the entrypoint session cannot be deleted"));
        }
        let session = self.find(id)?;
        let deadline = tokio::time::Instant::now() + TERMINATION_GRACE;
        // The shell itself is interactive and ignores a plain request to end.
        signal_pids(&[session.family.root], libc::SIGHUP);
        loop {
            let family = session.family.clone();
            let members = agent.on_file_thread(move || family.members()).await;
            if members.is_empty() || tokio::time::Instant::now() >= deadline {
                break;
            }
            signal_pids(&members, libc::SIGTERM);
            tokio::time::sleep(TERMINATION_CHECK).await;
        }
        kill_family(agent, &session.family).await;
        self.by_id().remove(id);
        Ok(())
    }
}

/// Takes the output of a command without a shell, then says how it ended.
fn follow_plain(session: &Arc<Session>, command: &Arc<SessionCommand>, plain: Plain) {
    let plain = Arc::new(plain);
    session.state().plain = Some(Arc::clone(&plain));
    let copies = [STDOUT_MARKER, STDERR_MARKER].into_iter().enumerate().map(|(index, marker)| {
        tokio::spawn(copy_stream(Arc::clone(&plain), index, Arc::clone(command), marker))
    });
    let copies: Vec<_> = copies.collect();
    let (session, command) = (Arc::clone(session), Arc::clone(command));
    tokio::spawn(async move {
        let ending = plain.ended.clone().await.unwrap_or(Ending::Exited(127));
        for copy in copies {
            // A copy neither panics nor is aborted.
            let _ = copy.await;
        }
        session.state().plain = None;
        command.finish(ending.code());
    });
}

async fn copy_stream(plain: Arc<Plain>, index: usize, command: Arc<SessionCommand>, marker: [u8; 3]) {
    let channel = plain.stream(index).clone();
    let Some(channel) = channel else { return };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        command.log.wait_for_room().await;
        let Ok(read @ 1..) = channel.read(&mut buffer).await else { break };
        command.write(marker, &buffer[..read]);
        tokio::task::yield_now().await;
    }
    *plain.stream(index) = None;
}

impl Plain {
    fn stream(&self, index: usize) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.streams[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start_plain(agent: &Arc<Agent>, argv: &[String], mark: &str) -> Result<(Child, [Channel; 2])> {
    let mut env = agent.environment();
    env.insert(Family::MARK.to_owned(), mark.to_owned());
    let (stdout, their_stdout) = output_pipe()?;
    let (stderr, their_stderr) = output_pipe()?;
    let stdin = discard()?;
    let child = agent.children.spawn(&Command {
        argv,
        env: &env,
        cwd: &agent.workdir,
        descriptors: &[(stdin.as_fd(), 0), (their_stdout.as_fd(), 1), (their_stderr.as_fd(), 2)],
        session: ProcessSession::Own,
        workload: agent.spawn_identity(),
    })?;
    Ok((child, [Channel::reading(stdout)?, Channel::reading(stderr)?]))
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands.
    pub(crate) fn describe(&self) -> SessionInfo {
        let commands = self.state().commands.iter().map(|command| command.describe()).collect();
        SessionInfo { session_id: self.id.clone(), commands }
    }

    /// The command of this name.
    pub(crate) fn command(&self, id: &str) -> Result<Arc<SessionCommand>> {
        let found = self.state().commands.iter().find(|command| command.id == id).cloned();
        found.ok_or_else(|| Error::no_process(format_args!("command not found: {id}")))
    }

    /// The command of the entrypoint session.
    pub(crate) fn entrypoint_command(&self) -> Result<Arc<SessionCommand>> {
        self.command(ENTRYPOINT_COMMAND)
    }

    /// Whether its shell is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Puts a command into the queue.
    pub(crate) fn submit(&self, text: &str, input: Input, echo: InputEcho) -> Result<Arc<SessionCommand>> {
        let ended = || Error::gone("SESSION_ENDED", format_args!("session {} has ended", self.id));
        let queue = self.queue.as_ref().ok_or_else(|| Error::invalid("this session takes no commands"))?;
        if text.trim().is_empty() {
            return Err(Error::invalid("command is required"));
        }
        if text.contains('\0') {
            return Err(Error::invalid("the command holds a NUL byte"));
        }
        let mut state = self.state();
        if state.ended {
            return Err(ended());
        }
        let place = queue.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => {
                Error::too_many(format_args!("{QUEUE_MAX} commands wait in this session already"))
            }
            mpsc::error::TrySendError::Closed(()) => ended(),
        })?;
        let channel = match input {
            Input::Open => self.input.clone(),
            Input::Empty => None,
        };
        state.next_marker += 1;
        let command = SessionCommand::new(&random_hex(16), text, state.next_marker, echo, channel);
        while state.commands.len() >= COMMANDS_KEPT
            && let Some(oldest) = state.commands.iter().position(|command| command.exit_code().is_some())
        {
            state.commands.remove(oldest);
        }
        state.commands.push(Arc::clone(&command));
        place.send(Arc::clone(&command));
        Ok(command)
    }
}
