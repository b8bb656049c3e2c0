//! One-shot processes with separate streams: the table of them, their supervision, and the routes of
//! [`sandhaus_protocol::process`].
//!
//! ```text
//!   spawn ──> process ── pipes or terminal ──> pumps ──> logs ──> feeds
//!                └── end, time limit, kill ──> supervisor ──> pumps told to finish ──> exit record
//! ```
//! A process has ended when it has, whatever it left running in the background: what its streams held at that moment
//! is still delivered, then the exit record. What is left running can go on printing, to nobody. A time limit, by
//! contrast, ends the whole family.
//!
//! What is known of a process is in the table, and its tasks hold nothing else: [`hand_over`] tells it to the agent's
//! successor at any moment.

mod hand_over;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use sandhaus_protocol::process::{
    ARGS_MAX, Exit, KEEP_FINISHED, PROCESSES_MAX, Process, RING_BYTES, Resize, Signal, Spawn,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

pub(crate) use self::hand_over::Carried;

use crate::{
    agent::Agent,
    error::{Error, Result},
    frames::{Feed, Guard, Look, Subject, Track, json},
    http,
    ring::Log,
    sys::{
        Channel, Child, Command, Ended, Ending, Family, Session, SpawnError, Terminal, discard, input_pipe,
        output_pipe, signal_group, signal_pids,
    },
};

/// Bytes read from a stream at once.
const READ_BYTES: usize = 32 * 1024;

/// The same where nobody wants them: kept small, as it is held as long as a background job lives.
const DRAIN_BYTES: usize = 1024;

/// How long a terminal may stay quiet after its process has ended before its output counts as complete. Usually the
/// terminal says so itself at once.
const TERMINAL_QUIET: Duration = Duration::from_millis(100);

/// Rounds of looking for and killing the members of a family, and the pause between two.
const KILL_ROUNDS: u32 = 100;
const KILL_POLL: Duration = Duration::from_millis(10);

/// Statuses that shells give to what cannot be started.
const STATUS_NOT_FOUND: i32 = 127;
const STATUS_NOT_EXECUTABLE: i32 = 126;

/// Largest side of a terminal.
const TERMINAL_SIDE_MAX: u16 = 1000;

/// Largest signal number.
const SIGNAL_MAX: i32 = 64;

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/sandhaus/process", get(list).post(spawn))
        .route("/sandhaus/process/{id}", get(info).delete(delete))
        .route("/sandhaus/process/{id}/output", get(output))
        .route("/sandhaus/process/{id}/stdin", post(stdin))
        .route("/sandhaus/process/{id}/signal", post(signal))
        .route("/sandhaus/process/{id}/resize", post(resize))
}

/// The processes by id.
#[derive(Default)]
pub(crate) struct Processes {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    by_id: BTreeMap<u64, Arc<Tracked>>,
    /// Streams of ended processes into which background jobs still print.
    drains: Vec<Arc<Channel>>,
}

/// A process and what is known of it.
pub(crate) struct Tracked {
    pub(crate) id: u64,
    argv: Vec<String>,
    family: Family,
    changed: Arc<Notify>,
    logs: [Arc<Log>; 2],
    /// Where each log comes from, until its end.
    outputs: Mutex<[Option<Arc<Channel>>; 2]>,
    /// Whose turn it is to write into the input.
    turn: tokio::sync::Mutex<()>,
    input: Mutex<Option<Arc<Channel>>>,
    terminal: Option<Arc<Channel>>,
    kill: Notify,
    started: Instant,
    limit: Option<Duration>,
    ended: Option<Ended>,
    fate: Mutex<Fate>,
    exit: Mutex<Option<Exit>>,
}

/// What is to become of a process before it ends by itself.
#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    /// It is being killed.
    doomed: bool,
    /// Its time was over.
    timed_out: bool,
    /// It is killed when the reader of its first stream leaves.
    tethered: bool,
    /// It was so, and that stream was cut by the agent's own replacement.
    loose: bool,
}

impl Tracked {
    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outputs(&self) -> MutexGuard<'_, [Option<Arc<Channel>>; 2]> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its standard output; where both streams are one, both.
    pub(crate) fn output(&self) -> &Arc<Log> {
        &self.logs[0]
    }

    /// Pulsed when it ends, and with each output.
    pub(crate) fn changed(&self) -> &Notify {
        &self.changed
    }

    fn describe(&self) -> Process {
        Process {
            id: self.id,
            pid: self.family.root.unsigned_abs(),
            argv: self.argv.clone(),
            tty: self.terminal.is_some(),
            exit: self.exit().clone(),
            stdout_bytes: self.logs[0].end(),
            stderr_bytes: self.logs[1].end(),
        }
    }

    fn feed(self: &Arc<Self>, stdout: u64, stderr: u64) -> Feed {
        let tracks = vec![Track::stdout(&self.logs[0], stdout), Track::stderr(&self.logs[1], stderr)];
        Feed::new(Arc::clone(self) as Arc<dyn Subject>, tracks, json(&self.describe()))
    }
}

impl Subject for Tracked {
    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn look(&self) -> Look {
        let ended = self.exit().as_ref().map(json);
        Look { base: Some(0), ended: ended.map(|exit| ([self.logs[0].end(), self.logs[1].end()], exit)) }
    }
}

impl Processes {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, id: u64) -> Result<Arc<Tracked>> {
        let found = self.table().by_id.get(&id).cloned();
        found.ok_or_else(|| Error::no_process(format_args!("no process {id}")))
    }

    /// Refuses one more when there are too many alive; forgets the oldest ended ones beyond what is kept.
    fn make_room(&self) -> Result<()> {
        let mut table = self.table();
        let ended: Vec<u64> = table.by_id.values().filter(|p| p.exit().is_some()).map(|p| p.id).collect();
        if table.by_id.len() - ended.len() >= PROCESSES_MAX {
            return Err(Error::too_many(format_args!("{PROCESSES_MAX} processes are running already")));
        }
        for id in ended.iter().take(ended.len().saturating_sub(KEEP_FINISHED - 1)) {
            table.by_id.remove(id);
        }
        Ok(())
    }

    /// Has what is printed into a stream thrown away.
    fn drain(&self, agent: &Arc<Agent>, channel: Arc<Channel>) {
        self.table().drains.push(Arc::clone(&channel));
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            drain(&channel).await;
            agent.processes.table().drains.retain(|other| !Arc::ptr_eq(other, &channel));
        });
    }

    fn insert(&self, make: impl FnOnce(u64) -> Tracked) -> Arc<Tracked> {
        let mut table = self.table();
        table.next_id += 1;
        let tracked = Arc::new(make(table.next_id));
        table.by_id.insert(tracked.id, Arc::clone(&tracked));
        tracked
    }
}

/// Kills every member of a family until none is left: descendants that were born meanwhile, too.
pub(crate) async fn kill_family(agent: &Agent, family: &Family) {
    for _ in 0..KILL_ROUNDS {
        let looked_at = family.clone();
        let members = agent.on_file_thread(move || looked_at.members()).await;
        if members.is_empty() {
            return;
        }
        signal_pids(&members, libc::SIGKILL);
        tokio::time::sleep(KILL_POLL).await;
    }
}

/// Kills a family when its caller goes away before it has ended.
pub(crate) struct Leash {
    agent: Arc<Agent>,
    family: Option<Family>,
}

impl Leash {
    pub(crate) fn new(agent: &Arc<Agent>, family: Family) -> Self {
        Self { agent: Arc::clone(agent), family: Some(family) }
    }

    /// The family has ended.
    pub(crate) fn release(mut self) {
        self.family = None;
    }

    /// Kills the family now, to the end also when the caller goes away meanwhile.
    pub(crate) async fn pull(mut self) {
        if let Some(family) = &self.family {
            kill_family(&self.agent, family).await;
        }
        self.family = None;
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(family) = self.family.take() {
            let agent = Arc::clone(&self.agent);
            tokio::spawn(async move { kill_family(&agent, &family).await });
        }
    }
}

fn validate(spawn: &Spawn) -> Result<()> {
    if spawn.argv.is_empty() || spawn.argv[0].is_empty() {
        return Err(Error::invalid("argv names no program"));
    }
    if spawn.argv.len() > ARGS_MAX {
        return Err(Error::invalid(format_args!("at most {ARGS_MAX} arguments")));
    }
    if let Some(name) = spawn.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(Error::invalid(format_args!("{name:?} is not a name of a variable")));
    }
    spawn.tty.map_or(Ok(()), check_size)
}

fn check_size(size: Resize) -> Result<()> {
    let range = 1..=TERMINAL_SIDE_MAX;
    if range.contains(&size.cols) && range.contains(&size.rows) {
        return Ok(());
    }
    Err(Error::invalid(format_args!("a terminal's sides are 1 to {TERMINAL_SIDE_MAX}")))
}

/// Descriptors of a process about to start, and the agent's ends of them.
pub(crate) struct Streams {
    terminal: Option<(Terminal, Arc<Channel>)>,
    /// The process's own ends, for 0, 1 and 2; closed here once it has them.
    theirs: [std::os::fd::OwnedFd; 3],
    input: Option<Arc<Channel>>,
    outputs: Vec<Channel>,
}

impl Streams {
    /// Nothing to read, and one pipe for all output, so that it arrives in the order in which it was written.
    pub(crate) fn joined() -> Result<Self> {
        let (output, theirs) = output_pipe()?;
        let theirs = [discard()?, theirs.try_clone()?, theirs];
        Ok(Self { terminal: None, theirs, input: None, outputs: vec![Channel::reading(output)?] })
    }

    fn open(agent: &Agent, spawn: &Spawn) -> Result<Self> {
        if let Some(size) = spawn.tty {
            let terminal = Terminal::open(size, &agent.workload)?;
            let stdin = if spawn.stdin { terminal.slave.try_clone()? } else { discard()? };
            let theirs = [stdin, terminal.slave.try_clone()?, terminal.slave.try_clone()?];
            let master = Arc::new(Channel::writing(terminal.master.try_clone()?)?);
            let outputs = vec![Channel::reading(terminal.master.try_clone()?)?];
            let input = spawn.stdin.then(|| Arc::clone(&master));
            return Ok(Self { terminal: Some((terminal, master)), theirs, input, outputs });
        }
        let (input, stdin) = if spawn.stdin {
            let (ours, theirs) = input_pipe()?;
            (Some(Arc::new(Channel::writing(ours)?)), theirs)
        } else {
            (None, discard()?)
        };
        let (stdout, their_stdout) = output_pipe()?;
        let (stderr, their_stderr) = output_pipe()?;
        let outputs = vec![Channel::reading(stdout)?, Channel::reading(stderr)?];
        Ok(Self { terminal: None, theirs: [stdin, their_stdout, their_stderr], input, outputs })
    }
}

/// Starts a process as asked. What cannot be executed becomes a process that has ended with 126 or 127.
fn start(agent: &Arc<Agent>, spawn: &Spawn) -> Result<Arc<Tracked>> {
    validate(spawn)?;
    let streams = Streams::open(agent, spawn)?;
    launch(agent, spawn, streams, spawn.argv.clone(), None)
}

/// Starts a process on these streams, listed with the words `shown`; `extra` is one more descriptor of it and the
/// number that it gets.
pub(crate) fn launch(
    agent: &Arc<Agent>,
    spawn: &Spawn,
    streams: Streams,
    shown: Vec<String>,
    extra: Option<(BorrowedFd<'_>, RawFd)>,
) -> Result<Arc<Tracked>> {
    agent.processes.make_room()?;
    let started = Instant::now();
    let mut env = agent.environment();
    if spawn.tty.is_some() {
        env.insert("TERM".to_owned(), "xterm-256color".to_owned());
    }
    env.extend(spawn.env.clone());
    let mark = Family::new_mark();
    env.insert(Family::MARK.to_owned(), mark.clone());
    let [stdin, stdout, stderr] = &streams.theirs;
    let mut descriptors = vec![(stdin.as_fd(), 0), (stdout.as_fd(), 1), (stderr.as_fd(), 2)];
    descriptors.extend(extra);
    let session = match &streams.terminal {
        Some((terminal, _)) => Session::Terminal(std::os::fd::AsRawFd::as_raw_fd(&terminal.slave)),
        None => Session::Own,
    };
    let child = agent.children.spawn(&Command {
        argv: &spawn.argv,
        env: &env,
        cwd: spawn.cwd.as_deref().unwrap_or(&agent.workdir),
        descriptors: &descriptors,
        session,
        workload: agent.spawn_identity(),
    });
    let (child, exit) = match child {
        Ok(child) => (Some(child), None),
        Err(error) => (None, Some(not_started(error)?)),
    };
    let Streams { terminal, theirs, input, outputs } = streams;
    drop(theirs);
    let terminal = terminal.map(|(_, master)| master);
    let changed = Arc::new(Notify::new());
    let mut outputs = outputs.into_iter().map(Arc::new);
    let tracked = agent.processes.insert(|id| Tracked {
        id,
        argv: shown,
        family: Family { root: child.as_ref().map_or(0, |child| child.pid), mark },
        changed: Arc::clone(&changed),
        logs: [Log::new(RING_BYTES, Arc::clone(&changed)), Log::new(RING_BYTES, changed)],
        outputs: Mutex::new([outputs.next(), outputs.next()]),
        turn: tokio::sync::Mutex::default(),
        input: Mutex::new(input.filter(|_| child.is_some())),
        terminal,
        kill: Notify::new(),
        started,
        limit: (spawn.timeout_ms > 0).then(|| Duration::from_millis(spawn.timeout_ms)),
        ended: child.as_ref().map(|child| child.ended.clone()),
        fate: Mutex::default(),
        exit: Mutex::new(exit),
    });
    if let Some(child) = child {
        supervise(agent, &tracked, child);
    }
    Ok(tracked)
}

/// Starts the tasks of a process.
fn supervise(agent: &Arc<Agent>, tracked: &Arc<Tracked>, child: Child) {
    let ending = if tracked.terminal.is_some() { LastWords::UntilQuiet } else { LastWords::WhatIsThere };
    let (finish, _) = watch::channel(());
    let outputs = tracked.outputs().clone();
    let pumps = outputs
        .into_iter()
        .enumerate()
        .filter_map(|(index, channel)| {
            let log = Arc::clone(&tracked.logs[index]);
            let pumped = pump(channel?, log, finish.subscribe(), ending);
            let tracked = Arc::clone(tracked);
            Some(tokio::spawn(async move {
                if pumped.await == Stream::Ended {
                    tracked.outputs()[index] = None;
                }
            }))
        })
        .collect();
    let supervision = Supervision { agent: Arc::clone(agent), tracked: Arc::clone(tracked) };
    tokio::spawn(supervision.run(child, finish, pumps));
}

/// The exit record of what did not start; an error where it may start later or was asked for wrongly.
fn not_started(error: SpawnError) -> Result<Exit> {
    let exit_code = match error {
        SpawnError::NotFound => STATUS_NOT_FOUND,
        SpawnError::NotExecutable(_) | SpawnError::Directory(_) => STATUS_NOT_EXECUTABLE,
        SpawnError::Invalid(_) | SpawnError::Exhausted(_) | SpawnError::Failed(..) => {
            return Err(error.into());
        }
    };
    Ok(Exit { exit_code, signal: None, timed_out: false, error: Some(error.to_string()), duration_ms: 0 })
}

/// The task that sees one process to its end.
struct Supervision {
    agent: Arc<Agent>,
    tracked: Arc<Tracked>,
}

impl Supervision {
    async fn run(self, mut child: Child, finish: watch::Sender<()>, pumps: Vec<JoinHandle<()>>) {
        let ending = self.wait(&mut child.ended).await;
        // Nobody listens when both streams have ended already.
        let _ = finish.send(());
        for pump in pumps {
            // A pump does not panic, and is not aborted.
            let _ = pump.await;
        }
        for channel in std::mem::take(&mut *self.tracked.outputs()).into_iter().flatten() {
            self.agent.processes.drain(&self.agent, channel);
        }
        *self.tracked.exit() = Some(Exit {
            exit_code: ending.code(),
            signal: ending.signal(),
            timed_out: self.tracked.fate().timed_out,
            error: None,
            duration_ms: u64::try_from(self.tracked.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        self.tracked.changed.notify_waiters();
        // After the notice, which is what an input call in progress waits for while it has its turn.
        let _turn = self.tracked.turn.lock().await;
        *self.tracked.input() = None;
    }

    async fn wait(&self, ended: &mut Ended) -> Ending {
        let limit = async {
            match self.tracked.limit {
                Some(limit) => tokio::time::sleep(limit.saturating_sub(self.tracked.started.elapsed())).await,
                None => std::future::pending().await,
            }
        };
        if self.tracked.fate().doomed {
            self.tracked.kill.notify_one();
        }
        // The sender lives in the agent's table until the end was reaped.
        let unknown = Ending::Exited(STATUS_NOT_EXECUTABLE);
        tokio::select! {
            // Its end first: a process that ended in time was not too slow. All arms are cancel-safe.
            biased;
            ending = &mut *ended => return ending.unwrap_or(unknown),
            () = self.tracked.kill.notified() => {}
            () = limit => self.tracked.fate().timed_out = true,
        }
        self.tracked.fate().doomed = true;
        kill_family(&self.agent, &self.tracked.family).await;
        ended.await.unwrap_or(unknown)
    }
}

/// What still counts as output once the process has ended.
#[derive(Debug, Clone, Copy)]
enum LastWords {
    /// A pipe holds everything that was written before.
    WhatIsThere,
    /// A terminal delivers a moment later.
    UntilQuiet,
}

/// What is left of a stream whose process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Nothing.
    Ended,
    /// Somebody may still write to it.
    Open,
}

/// Moves a stream into its log until its end, or until the process has ended and its last words are taken.
async fn pump(
    channel: Arc<Channel>,
    log: Arc<Log>,
    mut finish: watch::Receiver<()>,
    last_words: LastWords,
) -> Stream {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let room = log.wait_for_room().await.min(READ_BYTES);
        tokio::select! {
            // Cancel-safe: nothing is consumed unless this arm wins.
            read = channel.read(&mut buffer[..room]) => match read {
                Ok(read @ 1..) => log.append(&buffer[..read]),
                Ok(_) | Err(_) => return Stream::Ended,
            },
            _ = finish.changed() => break,
        }
        // Let the readers take what they have been given before there is more.
        tokio::task::yield_now().await;
    }
    let mut rest = match last_words {
        LastWords::WhatIsThere => channel.available(),
        LastWords::UntilQuiet => usize::MAX,
    };
    while rest > 0 {
        let room = log.wait_for_room().await.min(READ_BYTES).min(rest);
        let read = match last_words {
            LastWords::WhatIsThere => channel.try_read(&mut buffer[..room]).ok().flatten(),
            LastWords::UntilQuiet => tokio::time::timeout(TERMINAL_QUIET, channel.read(&mut buffer[..room]))
                .await
                .ok()
                .and_then(std::result::Result::ok),
        };
        let Some(read @ 1..) = read else { break };
        log.append(&buffer[..read]);
        rest -= read;
        tokio::task::yield_now().await;
    }
    match last_words {
        LastWords::WhatIsThere => Stream::Open,
        LastWords::UntilQuiet => Stream::Ended,
    }
}

/// Takes what the background jobs of an ended process print, so that none dies of a closed pipe, until the last of
/// them has ended.
async fn drain(channel: &Channel) {
    let mut buffer = [0; DRAIN_BYTES];
    while let Ok(1..) = channel.read(&mut buffer).await {
        tokio::task::yield_now().await;
    }
}

/// Kills the process when its first reader leaves.
struct KillOnDisconnect(Arc<Tracked>);

impl Guard for KillOnDisconnect {
    fn abandoned(&mut self) {
        self.0.kill.notify_one();
    }
}

impl KillOnDisconnect {
    fn tie(tracked: Arc<Tracked>) -> Box<Self> {
        tracked.fate().tethered = true;
        Box::new(Self(tracked))
    }
}

/// `POST /sandhaus/process`.
pub(crate) async fn spawn(State(agent): State<Arc<Agent>>, Json(spawn): Json<Spawn>) -> Result<Response> {
    let tracked = start(&agent, &spawn)?;
    let mut feed = tracked.feed(0, 0);
    if spawn.kill_on_disconnect {
        feed = feed.guarded(KillOnDisconnect::tie(tracked));
    }
    Ok(feed.respond().await)
}

/// `GET /sandhaus/process`.
pub(crate) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<Process>> {
    let all: Vec<_> = agent.processes.table().by_id.values().cloned().collect();
    Json(all.iter().map(|p| p.describe()).collect())
}

/// `GET /sandhaus/process/{id}`.
pub(crate) async fn info(State(agent): State<Arc<Agent>>, Path(id): Path<u64>) -> Result<Json<Process>> {
    Ok(Json(agent.processes.find(id)?.describe()))
}

/// Query of an output stream.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct OutputQuery {
    #[serde(default)]
    stdout: u64,
    #[serde(default)]
    stderr: u64,
}

/// `GET /sandhaus/process/{id}/output`.
pub(crate) async fn output(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<u64>,
    Query(query): Query<OutputQuery>,
) -> Result<Response> {
    let tracked = agent.processes.find(id)?;
    let feed = tracked.feed(query.stdout, query.stderr);
    // The stream that it was tied to was cut when the agent was replaced: this one takes its place.
    let loose = std::mem::take(&mut tracked.fate().loose);
    match loose {
        true => Ok(feed.guarded(KillOnDisconnect::tie(tracked)).respond().await),
        false => Ok(feed.respond().await),
    }
}

/// Query of an input call.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct InputQuery {
    #[serde(default)]
    eof: bool,
}

/// `POST /sandhaus/process/{id}/stdin`.
pub(crate) async fn stdin(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<u64>,
    Query(query): Query<InputQuery>,
    mut body: Body,
) -> Result<StatusCode> {
    const END_OF_TRANSMISSION: &[u8] = b"\x04";
    let tracked = agent.processes.find(id)?;
    // Calls for one process wait for each other, so their bytes do not mix.
    let _turn = tracked.turn.lock().await;
    let closed = || Error::gone("PROCESS_INPUT_CLOSED", format_args!("process {id} takes no more input"));
    let channel = tracked.input().clone().ok_or_else(closed)?;
    while let Some(chunk) = http::next_chunk(&mut body).await? {
        tokio::select! {
            written = channel.write_all(&chunk) => written.map_err(|_| closed())?,
            // Half a chunk may be written: the process is gone, nobody will read it.
            () = wait_for_exit(&tracked) => return Err(closed()),
        }
    }
    if query.eof {
        if tracked.terminal.is_some() {
            channel.write_all(END_OF_TRANSMISSION).await.map_err(|_| closed())?;
        }
        *tracked.input() = None;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn wait_for_exit(tracked: &Tracked) {
    loop {
        let changed = tracked.changed.notified();
        let mut changed = std::pin::pin!(changed);
        changed.as_mut().enable();
        if tracked.exit().is_some() {
            return;
        }
        changed.await;
    }
}

/// `POST /sandhaus/process/{id}/signal`.
pub(crate) async fn signal(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<u64>,
    Json(request): Json<Signal>,
) -> Result<StatusCode> {
    if !(1..=SIGNAL_MAX).contains(&request.signal) {
        return Err(Error::invalid(format_args!("a signal's number is 1 to {SIGNAL_MAX}")));
    }
    let tracked = agent.processes.find(id)?;
    if tracked.exit().is_some() {
        return Err(Error::gone("PROCESS_ENDED", format_args!("process {id} has ended")));
    }
    let foreground = tracked.terminal.as_ref().and_then(|master| Terminal::foreground(master.descriptor()));
    let group = foreground.unwrap_or(tracked.family.root);
    // A group that is gone meanwhile has ended, which is what most signals are sent for.
    let _ = signal_group(group, request.signal);
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sandhaus/process/{id}/resize`.
pub(crate) async fn resize(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<u64>,
    Json(size): Json<Resize>,
) -> Result<StatusCode> {
    check_size(size)?;
    let tracked = agent.processes.find(id)?;
    let master = tracked
        .terminal
        .as_ref()
        .ok_or_else(|| Error::conflict(format_args!("process {id} has no terminal")))?;
    Terminal::resize(master.descriptor(), size)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /sandhaus/process/{id}`.
pub(crate) async fn delete(State(agent): State<Arc<Agent>>, Path(id): Path<u64>) -> Result<StatusCode> {
    let tracked = agent.processes.find(id)?;
    if tracked.family.root > 0 {
        kill_family(&agent, &tracked.family).await;
    }
    agent.processes.table().by_id.remove(&id);
    Ok(StatusCode::NO_CONTENT)
}
