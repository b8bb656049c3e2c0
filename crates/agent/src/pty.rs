//! Terminals of the compatible contract: an interactive login shell each, any number of clients attached over
//! WebSockets, and a frame that says how it ended. The latest output is kept: the first client gets what was printed
//! before it came, a later one gets all that is kept if it asks (`scrollback=true`), and one that comes back goes on behind
//! what it has (`offset=N`).
//!
//! ```text
//!   shell <── terminal ──> reader ──> queue of each client ──> socket
//!                 └──────── writer <── any client's messages
//! ```

mod hand_over;

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        Path, Query, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, post},
};
use base64::Engine as _;
use sandhaus_protocol::{
    process::Resize,
    toolbox::{PtyCreateReply, PtyCreateRequest, PtyListReply, PtyResizeRequest, PtySessionInfo},
};
use serde::Deserialize;
use tokio::sync::{broadcast, watch};

pub(crate) use self::hand_over::Carried;

use crate::{
    agent::Agent,
    clock,
    error::{Error, Result},
    execute::{check_variable, login_shell},
    process::kill_family,
    sys::{Channel, Child, Command, Ended, Ending, Family, Session, Terminal},
    websocket::{self, EXIT_CONTROL},
};

/// Most terminals at once.
const TERMINALS_MAX: usize = 256;

/// Size of a terminal that asks for none, and the largest.
const COLS: u16 = 80;
const ROWS: u16 = 24;
const SIDE_MAX: u16 = 1000;

/// Largest message of a client.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Chunks that wait for one client; one that falls further behind is dropped.
const CHUNKS_MAX: usize = 256;

/// How long a client may take for one chunk.
const SEND_WAIT: Duration = Duration::from_secs(30);

/// Bytes read from the terminal at once; the kernel gives no more.
const READ_BYTES: usize = 4096;

/// Bytes of output kept for clients to come.
const HISTORY_BYTES_MAX: usize = 64 * 1024;

/// How long the terminal may stay quiet after its shell has ended before its output counts as complete.
const QUIET: Duration = Duration::from_millis(100);

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/process/pty", get(list).post(create))
        .route("/process/pty/create-connect", get(create_connect))
        .route("/process/pty/{id}", get(info).delete(delete))
        .route("/process/pty/{id}/connect", get(connect))
        .route("/process/pty/{id}/resize", post(resize))
}

/// The terminals by name.
#[derive(Default)]
pub(crate) struct Terminals {
    by_id: Mutex<BTreeMap<String, Arc<Pty>>>,
}

/// A terminal.
struct Pty {
    id: String,
    cwd: String,
    envs: BTreeMap<String, String>,
    created_at: String,
    start: Start,
    state: Mutex<PtyState>,
    output: broadcast::Sender<Bytes>,
    ended: watch::Sender<Option<Ending>>,
}

/// When a terminal's shell starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With the terminal.
    Now,
    /// With the first client.
    Lazily,
}

struct PtyState {
    size: Resize,
    running: Option<Running>,
    history: History,
}

/// The latest output.
#[derive(Default)]
struct History {
    bytes: VecDeque<u8>,
    /// How many bytes before them were dropped.
    start: u64,
    /// A client was there.
    seen: bool,
}

impl History {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(HISTORY_BYTES_MAX);
        self.bytes.drain(..excess);
        self.start += excess as u64;
    }

    /// What is kept from this offset on, and the offset of its first byte.
    fn from(&self, offset: u64) -> (u64, Vec<u8>) {
        let skipped = offset.saturating_sub(self.start).min(self.bytes.len() as u64);
        let bytes = self.bytes.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
        (self.start + skipped, bytes.copied().collect())
    }

    /// What is kept; from the beginning of a line where the beginning is missing, so that no character and no
    /// sequence is cut in two.
    fn whole(&self) -> (u64, Vec<u8>) {
        let line = if self.start > 0 { self.bytes.iter().position(|byte| *byte == b'\n') } else { None };
        self.from(self.start + line.map_or(0, |at| at as u64 + 1))
    }
}

#[derive(Clone)]
struct Running {
    master: Arc<Channel>,
    family: Family,
    ended: Ended,
}

impl Pty {
    fn state(&self) -> MutexGuard<'_, PtyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> PtySessionInfo {
        let state = self.state();
        PtySessionInfo {
            id: self.id.clone(),
            cwd: self.cwd.clone(),
            envs: self.envs.clone(),
            cols: state.size.cols,
            rows: state.size.rows,
            created_at: self.created_at.clone(),
            active: state.running.is_some(),
            lazy_start: self.start == Start::Lazily,
        }
    }

    /// Starts the shell unless it runs already.
    fn ensure_started(self: &Arc<Self>, agent: &Arc<Agent>) -> Result<Running> {
        let mut state = self.state();
        if let Some(running) = &state.running {
            return Ok(running.clone());
        }
        let terminal = Terminal::open(state.size, &agent.workload)?;
        let mark = Family::new_mark();
        let mut env = agent.environment();
        env.insert("TERM".to_owned(), "xterm-256color".to_owned());
        env.extend(self.envs.clone());
        env.insert(Family::MARK.to_owned(), mark.clone());
        let slave = terminal.slave.as_fd();
        let child = agent.children.spawn(&Command {
            argv: &[login_shell(agent), "-i".to_owned(), "-l".to_owned()],
            env: &env,
            cwd: &self.cwd,
            descriptors: &[(slave, 0), (slave, 1), (slave, 2)],
            session: Session::Terminal(terminal.slave.as_raw_fd()),
            workload: agent.spawn_identity(),
        })?;
        let family = Family { root: child.pid, mark };
        let reading = Channel::reading(terminal.master.try_clone()?)?;
        let master = Arc::new(Channel::writing(terminal.master)?);
        let running = Running { master, family, ended: child.ended.clone() };
        state.running = Some(running.clone());
        tokio::spawn(follow(Arc::clone(agent), Arc::clone(self), reading, child));
        Ok(running)
    }

    fn publish(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.history.add(bytes);
        // Nobody is attached: fine.
        let _ = self.output.send(Bytes::copy_from_slice(bytes));
    }
}

/// Passes the terminal's output on until its shell has ended, then says how.
async fn follow(agent: Arc<Agent>, pty: Arc<Pty>, master: Channel, mut child: Child) {
    let mut buffer = vec![0; READ_BYTES];
    let ending = loop {
        tokio::select! {
            // Both arms are cancel-safe.
            read = master.read(&mut buffer) => match read {
                Ok(read @ 1..) => pty.publish(&buffer[..read]),
                Ok(_) | Err(_) => break (&mut child.ended).await,
            },
            ending = &mut child.ended => {
                while let Ok(Ok(read @ 1..)) = tokio::time::timeout(QUIET, master.read(&mut buffer)).await {
                    pty.publish(&buffer[..read]);
                }
                break ending;
            }
        }
        tokio::task::yield_now().await;
    };
    agent.terminals.remove(&pty.id);
    pty.ended.send_replace(Some(ending.unwrap_or(Ending::Exited(1))));
}

impl Terminals {
    fn by_id(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Pty>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Pty>> {
        self.by_id()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::no_process(format_args!("PTY session not found: {id}")))
    }

    fn remove(&self, id: &str) {
        self.by_id().remove(id);
    }

    /// Makes a terminal; its shell starts when asked to.
    fn create(&self, agent: &Arc<Agent>, request: PtyCreateRequest, start: Start) -> Result<Arc<Pty>> {
        if request.id.is_empty() {
            return Err(Error::invalid("session ID is required"));
        }
        let side = |side: Option<u16>, default| match side {
            None | Some(0) => Ok(default),
            Some(side) if side <= SIDE_MAX => Ok(side),
            Some(side) => {
                Err(Error::invalid(format_args!("a terminal's side of {side}: at most {SIDE_MAX}")))
            }
        };
        let size = Resize { cols: side(request.cols, COLS)?, rows: side(request.rows, ROWS)? };
        let envs = request.envs.unwrap_or_default();
        for name in envs.keys() {
            check_variable(name)?;
        }
        let mut by_id = self.by_id();
        if by_id.contains_key(&request.id) {
            return Err(Error::conflict(format_args!("PTY session already exists: {}", request.id)));
        }
        if by_id.len() >= TERMINALS_MAX {
            return Err(Error::too_many(format_args!("there are {TERMINALS_MAX} terminals already")));
        }
        let pty = Arc::new(Pty {
            id: request.id.clone(),
            cwd: agent.directory(request.cwd.as_deref()),
            envs,
            created_at: clock::now_rfc3339(),
            start,
            state: Mutex::new(PtyState { size, running: None, history: History::default() }),
            output: broadcast::Sender::new(CHUNKS_MAX),
            ended: watch::Sender::new(None),
        });
        by_id.insert(request.id, Arc::clone(&pty));
        Ok(pty)
    }
}

/// `POST /process/pty`.
pub(crate) async fn create(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<PtyCreateRequest>,
) -> Result<(StatusCode, Json<PtyCreateReply>)> {
    let start = if request.lazy_start { Start::Lazily } else { Start::Now };
    let pty = agent.terminals.create(&agent, request, start)?;
    if start == Start::Now
        && let Err(error) = pty.ensure_started(&agent)
    {
        agent.terminals.remove(&pty.id);
        return Err(error);
    }
    Ok((StatusCode::CREATED, Json(PtyCreateReply { session_id: pty.id.clone() })))
}

/// `GET /process/pty`.
pub(crate) async fn list(State(agent): State<Arc<Agent>>) -> Json<PtyListReply> {
    let all: Vec<_> = agent.terminals.by_id().values().cloned().collect();
    Json(PtyListReply { sessions: all.iter().map(|pty| pty.describe()).collect() })
}

/// `GET /process/pty/{id}`.
pub(crate) async fn info(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<PtySessionInfo>> {
    Ok(Json(agent.terminals.find(&id)?.describe()))
}

/// `DELETE /process/pty/{id}`.
pub(crate) async fn delete(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>> {
    let pty = agent.terminals.find(&id)?;
    let running = pty.state().running.clone();
    if let Some(running) = running {
        kill_family(&agent, &running.family).await;
    }
    agent.terminals.remove(&id);
    Ok(Json(serde_json::json!({ "message": "PTY session deleted" })))
}

/// `POST /process/pty/{id}/resize`.
pub(crate) async fn resize(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    Json(request): Json<PtyResizeRequest>,
) -> Result<Json<PtySessionInfo>> {
    let sides = 1..=SIDE_MAX;
    if !sides.contains(&request.cols) || !sides.contains(&request.rows) {
        return Err(Error::invalid(format_args!("a terminal's sides are 1 to {SIDE_MAX}")));
    }
    let gone = || Error::gone("SESSION_ENDED", format_args!("PTY session is not running: {id}"));
    let pty = agent.terminals.find(&id).map_err(|_| gone())?;
    let size = Resize { cols: request.cols, rows: request.rows };
    {
        let mut state = pty.state();
        let running = state.running.as_ref().ok_or_else(gone)?;
        Terminal::resize(running.master.descriptor(), size)?;
        state.size = size;
    }
    Ok(Json(pty.describe()))
}

/// Query of a terminal that is created and attached to in one call.
#[derive(Debug, Deserialize)]
pub(crate) struct CreateConnectQuery {
    #[serde(default)]
    id: String,
    cwd: Option<String>,
    cols: Option<u16>,
    rows: Option<u16>,
}

/// `GET /process/pty/create-connect`. What is wrong with the terminal is said before the upgrade.
pub(crate) async fn create_connect(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<CreateConnectQuery>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response> {
    let envs = websocket::offered_envs(&headers).map(decode_envs).transpose()?;
    let CreateConnectQuery { id, cwd, cols, rows } = query;
    let request = PtyCreateRequest { id, cwd, envs, cols, rows, lazy_start: false };
    let pty = agent.terminals.create(&agent, request, Start::Now)?;
    let client = Client::attach(&agent, &pty, &headers, ConnectQuery::default());
    if let Err(error) = pty.ensure_started(&agent) {
        agent.terminals.remove(&pty.id);
        return Err(error);
    }
    Ok(serve(upgrade, client))
}

/// Query of a connection to a terminal.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(crate) struct ConnectQuery {
    /// Begin with the output that is kept, also if other clients had it.
    #[serde(default)]
    scrollback: bool,
    /// Begin behind so many bytes of all output, or with the first one after them that is kept.
    offset: Option<u64>,
}

/// `GET /process/pty/{id}/connect`.
pub(crate) async fn connect(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    Query(query): Query<ConnectQuery>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let attached = agent.terminals.find(&id).and_then(|pty| {
        let client = Client::attach(&agent, &pty, &headers, query);
        pty.ensure_started(&agent)?;
        Ok(client)
    });
    match attached {
        Ok(client) => serve(upgrade, client),
        Err(error) => {
            let mut upgrade = upgrade;
            websocket::select_protocol(&mut upgrade);
            upgrade.on_upgrade(move |mut socket| async move {
                let text =
                    serde_json::json!({ "type": "control", "status": "error", "error": error.message });
                if socket.send(Message::Text(text.to_string().into())).await.is_ok() {
                    let reason = "".into();
                    websocket::close(socket, CloseFrame { code: close_code::ERROR, reason }).await;
                }
            })
        }
    }
}

fn decode_envs(text: &str) -> Result<BTreeMap<String, String>> {
    let wrong = || Error::invalid("the offered environment is not base64url of a JSON object of texts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|_| wrong())?;
    serde_json::from_slice(&bytes).map_err(|_| wrong())
}

fn serve(upgrade: WebSocketUpgrade, client: Client) -> Response {
    let mut upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX);
    websocket::select_protocol(&mut upgrade);
    upgrade.on_upgrade(move |socket| client.run(socket))
}

/// An attached client. Its queue exists before the shell may print, so it misses nothing.
struct Client {
    agent: Arc<Agent>,
    pty: Arc<Pty>,
    output: broadcast::Receiver<Bytes>,
    ended: watch::Receiver<Option<Ending>>,
    early: Vec<u8>,
    /// How much of it other clients had before; told to those who ask for it.
    scrollback: Option<usize>,
    /// The offset of the first byte to come; told to those who ask for an offset or for what was before.
    offset: Option<u64>,
    exit_control: bool,
}

impl Client {
    fn attach(agent: &Arc<Agent>, pty: &Arc<Pty>, headers: &HeaderMap, query: ConnectQuery) -> Self {
        // Under the lock that publishing takes, too: what is early is not in the queue, and the other way round.
        let mut state = pty.state();
        let first = !std::mem::replace(&mut state.history.seen, true);
        let (offset, early) = match query.offset {
            Some(offset) => state.history.from(offset),
            None if first || query.scrollback => state.history.whole(),
            None => state.history.from(u64::MAX),
        };
        let scrollback = query.scrollback.then_some(if first { 0 } else { early.len() });
        Self {
            agent: Arc::clone(agent),
            pty: Arc::clone(pty),
            output: pty.output.subscribe(),
            ended: pty.ended.subscribe(),
            early,
            scrollback,
            offset: (query.scrollback || query.offset.is_some()).then_some(offset),
            exit_control: websocket::offered(headers).any(|protocol| protocol == EXIT_CONTROL),
        }
    }

    async fn run(mut self, mut socket: WebSocket) {
        let mut connected = serde_json::json!({ "type": "control", "status": "connected" });
        if let Some(scrollback) = self.scrollback {
            connected["scrollback"] = scrollback.into();
        }
        if let Some(offset) = self.offset {
            connected["offset"] = offset.into();
        }
        if socket.send(Message::Text(connected.to_string().into())).await.is_err() {
            return;
        }
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() && socket.send(Message::Binary(early.into())).await.is_err() {
            return;
        }
        let ending = loop {
            match self.next(&mut socket).await {
                Event::Output(chunk) => {
                    let sent = tokio::time::timeout(SEND_WAIT, socket.send(Message::Binary(chunk)));
                    match sent.await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return,
                        Err(_stuck) => return too_slow(socket).await,
                    }
                }
                Event::Input(bytes) => self.type_in(&bytes).await,
                Event::TooSlow => return too_slow(socket).await,
                Event::Gone => return,
                Event::Ended(ending) => break ending,
            }
        };
        self.say_end(socket, ending).await;
    }

    /// What happens next. Cancel-safe in every arm. Input first, so that a flood can be stopped; the end last, so that it
    /// comes after all output.
    async fn next(&mut self, socket: &mut WebSocket) -> Event {
        tokio::select! {
            biased;
            message = websocket::receive(socket) => message.map_or(Event::Gone, Event::Input),
            chunk = self.output.recv() => match chunk {
                Ok(chunk) => Event::Output(chunk),
                Err(broadcast::error::RecvError::Lagged(_)) => Event::TooSlow,
                Err(broadcast::error::RecvError::Closed) => Event::Gone,
            },
            ending = ended(&mut self.ended) => Event::Ended(ending),
        }
    }

    /// Types what the client sent, unless the shell ends before there is room.
    async fn type_in(&mut self, bytes: &[u8]) {
        let Ok(running) = self.pty.ensure_started(&self.agent) else { return };
        tokio::select! {
            // A terminal that fails has ended: the end is on the way.
            _ = running.master.write_all(bytes) => {}
            _ = ended(&mut self.ended) => {}
        }
    }

    async fn say_end(self, mut socket: WebSocket, ending: Ending) {
        let code = ending.code();
        let mut said = serde_json::json!({ "exitCode": code });
        if let Some(reason) = exit_reason(ending) {
            said["exitReason"] = reason.into();
        }
        if self.exit_control {
            let mut control = said.clone();
            control["type"] = "control".into();
            control["status"] = "exited".into();
            if socket.send(Message::Text(control.to_string().into())).await.is_err() {
                return;
            }
        }
        let close = if code == 0 { close_code::NORMAL } else { close_code::ERROR };
        websocket::close(socket, CloseFrame { code: close, reason: said.to_string().into() }).await;
    }
}

/// Drops a client that cannot keep up.
async fn too_slow(socket: WebSocket) {
    let frame = CloseFrame { code: close_code::POLICY, reason: "client is too slow".into() };
    websocket::close(socket, frame).await;
}

/// What a client's task deals with.
enum Event {
    Output(Bytes),
    Input(Bytes),
    TooSlow,
    Gone,
    Ended(Ending),
}

/// How the shell ended, once it has.
async fn ended(watch: &mut watch::Receiver<Option<Ending>>) -> Ending {
    match watch.wait_for(Option::is_some).await {
        Ok(ending) => ending.unwrap_or(Ending::Exited(1)),
        // The terminal itself is gone.
        Err(_) => Ending::Exited(1),
    }
}

/// Why a shell ended, in the contract's words.
fn exit_reason(ending: Ending) -> Option<String> {
    match ending.code() {
        0 => None,
        130 => Some("Ctrl+C".to_owned()),
        137 => Some("SIGKILL".to_owned()),
        143 => Some("SIGTERM".to_owned()),
        _ => Some(
            ending.signal().map_or_else(|| "non-zero exit".to_owned(), |signal| format!("signal {signal}")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_are_decoded() {
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"A":"b"}"#);
        assert_eq!(decode_envs(&text).ok(), Some(BTreeMap::from([("A".to_owned(), "b".to_owned())])));
        assert!(decode_envs("!").is_err());
    }

    #[test]
    fn the_latest_output_is_kept_from_the_beginning_of_a_line() {
        let mut history = History::default();
        history.add(b"first\n");
        assert_eq!(history.whole(), (0, b"first\n".to_vec()));
        assert_eq!(history.from(4), (4, b"t\n".to_vec()));
        assert_eq!(history.from(9), (6, Vec::new()));
        history.add(&[b'x'; HISTORY_BYTES_MAX - 4]);
        history.add(b"\nlast");
        let end = (6 + HISTORY_BYTES_MAX + 1) as u64;
        let last = (end - 4, b"last".to_vec());
        assert_eq!(history.whole(), last, "the rest of a line whose beginning is gone is no line");
        assert_eq!(history.from(0).0, end - HISTORY_BYTES_MAX as u64);
        assert_eq!(history.bytes.len(), HISTORY_BYTES_MAX);
    }

    #[test]
    fn reasons() {
        assert_eq!(exit_reason(Ending::Exited(0)), None);
        assert_eq!(exit_reason(Ending::Signalled(9)).as_deref(), Some("SIGKILL"));
        assert_eq!(exit_reason(Ending::Signalled(11)).as_deref(), Some("signal 11"));
        assert_eq!(exit_reason(Ending::Exited(3)).as_deref(), Some("non-zero exit"));
    }
}
