//! Persistent shells: the shells by name, their commands, and the routes of [`sandhaus_protocol::shell`].
//!
//! Each shell has one terminal and one log; a command's output is a range of that log, so nothing is kept twice and
//! what background jobs print between two commands belongs to none of them.

pub(crate) mod dialect;
mod driver;
mod hand_over;
pub(crate) mod inbox;
pub(crate) mod scanner;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    response::Response,
    routing::{get, post},
};
use sandhaus_protocol::{
    process::RING_BYTES,
    shell::{CMD_BYTES_MAX, DEFAULT, QUEUE_MAX, SHELLS_MAX, ShellExec, ShellExit, ShellInfo, ShellStarted},
};
use tokio::sync::{Notify, mpsc};

use self::driver::{Driver, Wiring};
pub(crate) use self::hand_over::Carried;
use crate::{
    agent::Agent,
    error::{Error, Result},
    frames::{Feed, Look, Subject, Track, json},
    ring::Log,
    script,
};

/// How many ended commands of a shell can still be asked for.
const KEEP_ENDED: usize = 64;

/// Longest name of a shell in bytes.
const NAME_BYTES_MAX: usize = 128;

/// A command whose text is at least so long is not kept in the shell's memory file.
const LARGE_BYTES: usize = 16 * 1024;

/// Number of a shell's first command.
const FIRST_EXEC: u64 = 1;

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/sandhaus/script", post(script::exec))
        .route("/sandhaus/script/{exec_id}", get(script::resume))
        .route("/sandhaus/shell/{name}", get(info))
        .route("/sandhaus/shell/{name}/exec", post(exec))
        .route("/sandhaus/shell/{name}/exec/{exec_id}", get(resume))
        .route("/sandhaus/shell/{name}/log", get(log))
}

/// The shells by name.
#[derive(Default)]
pub(crate) struct Shells {
    by_name: Mutex<HashMap<String, Arc<Shell>>>,
}

/// One persistent shell.
pub(crate) struct Shell {
    name: String,
    log: Arc<Log>,
    queue: mpsc::Sender<Order>,
    state: Mutex<ShellState>,
    /// How the agent and the shell are connected.
    wiring: Wiring,
}

struct ShellState {
    cwd: String,
    next_exec: u64,
    running: Option<u64>,
    execs: VecDeque<Arc<Exec>>,
    /// A fresh shell is ordered and has not taken the place of the present one yet.
    renewing: bool,
}

/// A command of a shell, as long as it can be asked for.
struct Exec {
    id: u64,
    /// Its text, until it has ended.
    cmd: Mutex<String>,
    timeout: Option<Duration>,
    progress: Mutex<Progress>,
}

/// What the driver of a shell is told.
enum Order {
    /// Run a command.
    Run(Arc<Exec>),
    /// Start a fresh shell in place of the present one.
    Renew,
}

/// How far a command is.
#[derive(Debug, Clone, Default)]
struct Progress {
    begin: Option<u64>,
    ended: Option<(u64, ShellExit)>,
}

impl Exec {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cmd(&self) -> MutexGuard<'_, String> {
        self.cmd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shells {
    /// The shell of this name, made on first use.
    pub(crate) fn open(&self, agent: &Arc<Agent>, name: &str) -> Result<Arc<Shell>> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format_args!("a shell's name has 1 to {NAME_BYTES_MAX} bytes")));
        }
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shell) = by_name.get(name) {
            return Ok(Arc::clone(shell));
        }
        if by_name.len() >= SHELLS_MAX {
            return Err(Error::too_many(format_args!("there are {SHELLS_MAX} shells already")));
        }
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let state = ShellState {
            cwd: agent.workdir.clone(),
            next_exec: FIRST_EXEC,
            running: None,
            execs: VecDeque::new(),
            renewing: false,
        };
        let log = Log::new(RING_BYTES, Arc::new(Notify::new()));
        let wiring = Wiring::new(&agent.workload)?;
        let shell = Arc::new(Shell { name: name.to_owned(), log, queue, state: Mutex::new(state), wiring });
        Driver::start(agent, &shell, receiver);
        by_name.insert(name.to_owned(), Arc::clone(&shell));
        Ok(shell)
    }

    /// Has the default shell, if there is one, started anew with the environment of now.
    pub(crate) fn renew_default(&self) -> Result<()> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shell) = by_name.get(DEFAULT) else { return Ok(()) };
        shell.queue.try_send(Order::Renew).map_err(|_| Error::too_many("the default shell is busy"))?;
        shell.state().renewing = true;
        Ok(())
    }

    /// The same, unless a command was given to it already.
    pub(crate) fn renew_unused_default(&self) -> Result<()> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let used = by_name.get(DEFAULT).is_none_or(|shell| shell.state().next_exec > FIRST_EXEC);
        drop(by_name);
        if used { Ok(()) } else { self.renew_default() }
    }

    /// Where the default shell is.
    pub(crate) fn default_cwd(&self) -> Option<String> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.get(DEFAULT).map(|shell| shell.cwd())
    }

    fn all(&self) -> Vec<Arc<Shell>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn insert(&self, shell: Arc<Shell>) {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.insert(shell.name.clone(), shell);
    }

    fn find(&self, name: &str) -> Result<Arc<Shell>> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).cloned().ok_or_else(|| Error::no_process(format_args!("no shell named {name}")))
    }
}

impl Shell {
    fn state(&self) -> MutexGuard<'_, ShellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cwd(&self) -> String {
        self.state().cwd.clone()
    }

    fn set_cwd(&self, cwd: &str) {
        let mut state = self.state();
        if state.cwd != cwd {
            cwd.clone_into(&mut state.cwd);
        }
    }

    /// Puts a command into the queue.
    fn submit(&self, request: ShellExec) -> Result<Arc<Exec>> {
        let Ok(place) = self.queue.try_reserve() else {
            return Err(Error::too_many(format_args!("{QUEUE_MAX} commands wait in this shell already")));
        };
        let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
        let mut state = self.state();
        let exec = Arc::new(Exec {
            id: state.next_exec,
            cmd: Mutex::new(request.cmd),
            timeout,
            progress: Mutex::new(Progress::default()),
        });
        state.next_exec += 1;
        state.execs.push_back(Arc::clone(&exec));
        while state.execs.len() > KEEP_ENDED
            && state.execs.front().is_some_and(|e| e.progress().ended.is_some())
        {
            state.execs.pop_front();
        }
        drop(state);
        place.send(Order::Run(Arc::clone(&exec)));
        Ok(exec)
    }

    fn exec(&self, id: u64) -> Result<Arc<Exec>> {
        let state = self.state();
        let exec = state.execs.iter().find(|e| e.id == id).cloned();
        exec.ok_or_else(|| Error::no_process(format_args!("no command {id} in shell {}", self.name)))
    }

    /// The reader saw the begin marker of a command.
    fn begin(&self, exec_id: u64, at: u64) {
        let mut state = self.state();
        if let Some(exec) = state.execs.iter().rev().find(|e| e.id == exec_id) {
            exec.progress().begin.get_or_insert(at);
        }
        state.running = Some(exec_id);
        drop(state);
        self.log.changed().notify_waiters();
    }

    /// The command has ended.
    fn finish(&self, exec: &Exec, end: u64, exit: ShellExit) {
        *exec.cmd() = String::new();
        let mut progress = exec.progress();
        let begin = *progress.begin.get_or_insert(end);
        progress.ended = Some((end.max(begin), exit));
        drop(progress);
        self.state().running = None;
        self.log.changed().notify_waiters();
    }

    /// Prints what the agent itself has to say as the command's output.
    fn report(&self, exec: &Exec, message: &str) -> u64 {
        exec.progress().begin.get_or_insert(self.log.end());
        self.log.append(message.as_bytes());
        self.log.append(b"\r\n");
        self.log.end()
    }

    fn info(&self) -> ShellInfo {
        let state = self.state();
        ShellInfo {
            name: self.name.clone(),
            cwd: state.cwd.clone(),
            running: state.running,
            output_bytes: self.log.end(),
        }
    }
}

/// A command as the subject of a feed.
struct ExecSubject {
    shell: Arc<Shell>,
    exec: Arc<Exec>,
}

impl Subject for ExecSubject {
    fn changed(&self) -> &Notify {
        self.shell.log.changed()
    }

    fn look(&self) -> Look {
        let progress = self.exec.progress();
        let ended = progress.ended.as_ref().map(|(end, exit)| ([*end; 2], json(exit)));
        Look { base: progress.begin, ended }
    }
}

/// A shell's whole terminal as the subject of a feed.
struct TerminalSubject {
    shell: Arc<Shell>,
    until: Option<u64>,
}

impl Subject for TerminalSubject {
    fn changed(&self) -> &Notify {
        self.shell.log.changed()
    }

    fn look(&self) -> Look {
        Look { base: Some(0), ended: self.until.map(|end| ([end; 2], json(&self.shell.info()))) }
    }
}

fn exec_feed(shell: Arc<Shell>, exec: Arc<Exec>, offset: u64) -> Feed {
    let track = Track::stdout(&shell.log, offset);
    let started = json(&ShellStarted { exec_id: exec.id });
    Feed::new(Arc::new(ExecSubject { shell, exec }), vec![track], started)
}

/// Refuses what no shell can be told.
pub(crate) fn check_command(cmd: &str) -> Result<()> {
    if cmd.len() > CMD_BYTES_MAX {
        return Err(Error::too_large(format_args!("a command has at most {CMD_BYTES_MAX} bytes")));
    }
    if cmd.contains('\0') {
        return Err(Error::invalid("the command holds a NUL byte"));
    }
    Ok(())
}

/// `POST /sandhaus/shell/{name}/exec`.
pub(crate) async fn exec(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    Json(request): Json<ShellExec>,
) -> Result<Response> {
    check_command(&request.cmd)?;
    let shell = agent.shells.open(&agent, &name)?;
    let exec = shell.submit(request)?;
    Ok(exec_feed(shell, exec, 0).respond().await)
}

/// Query of a stream.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct StreamQuery {
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    follow: bool,
}

impl StreamQuery {
    /// Where the reader stands.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

/// `GET /sandhaus/shell/{name}/exec/{exec_id}`.
pub(crate) async fn resume(
    State(agent): State<Arc<Agent>>,
    Path((name, exec_id)): Path<(String, u64)>,
    Query(query): Query<StreamQuery>,
) -> Result<Response> {
    let shell = agent.shells.find(&name)?;
    let exec = shell.exec(exec_id)?;
    Ok(exec_feed(shell, exec, query.offset).respond().await)
}

/// `GET /sandhaus/shell/{name}`.
pub(crate) async fn info(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
) -> Result<Json<ShellInfo>> {
    let shell = if name == DEFAULT { agent.shells.open(&agent, &name)? } else { agent.shells.find(&name)? };
    Ok(Json(shell.info()))
}

/// `GET /sandhaus/shell/{name}/log`.
pub(crate) async fn log(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    Query(query): Query<StreamQuery>,
) -> Result<Response> {
    let shell = if name == DEFAULT { agent.shells.open(&agent, &name)? } else { agent.shells.find(&name)? };
    let until = (!query.follow).then(|| shell.log.end());
    let track = Track::stdout(&shell.log, query.offset);
    let started = json(&shell.info());
    Ok(Feed::new(Arc::new(TerminalSubject { shell, until }), vec![track], started).respond().await)
}
