//! One language server: its process, what is said to it and what it says.
//!
//! ```text
//!   request ──> queue ──> writer ──> server ──> reader ──> the request that waits, or a reply to the server's own
//! ```
//! It ends when its process does, when what it says is no protocol, or when it is stopped; then nothing of its family is
//! left, and whoever waits is told why.

use std::{
    collections::HashMap,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Language,
    documents::{Documents, server_uri},
    framing::{Decoder, encode},
};
use crate::{
    agent::Agent,
    error::{Error, Result},
    process::kill_family,
    sys::{Channel, Child, Command, Family, Session, SpawnError, input_pipe, output_pipe},
};

/// How long a server may take until it can be asked, and for an answer.
const START_LIMIT: Duration = Duration::from_secs(120);
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// How long the last words of a server that has ended are waited for.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(10);

/// Most messages that wait to be taken by a server, and most requests that wait for its answers.
const QUEUE_MAX: usize = 8;
const REQUESTS_MAX: usize = 64;

/// Bytes read at once, and bytes kept of what it says about itself: the last ones.
const READ_BYTES: usize = 32 * 1024;
const WORDS_BYTES_MAX: usize = 2048;

/// Code of a refusal because the server has ended.
const ENDED: &str = "LSP_SERVER_ENDED";

/// The protocol's numbers for what went wrong.
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID: std::ops::RangeInclusive<i64> = -32602..=-32600;

/// A language server.
pub(super) struct Server {
    language: Language,
    project: String,
    family: Family,
    queue: mpsc::Sender<Vec<u8>>,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    state: watch::Sender<State>,
    documents: Mutex<Documents>,
    /// Held while the server is told of an opened or closed document, so that it hears in the order of the notes.
    pub(super) changes: tokio::sync::Mutex<()>,
    /// The last it said on its standard error.
    words: Mutex<Vec<u8>>,
}

/// How far a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    /// Why, in words.
    Ended(String),
}

impl Server {
    /// Starts one for a project. It can be asked once it is [`Self::ready`].
    pub(super) fn start(agent: &Arc<Agent>, language: Language, project: &str) -> Result<Arc<Self>> {
        let (our_input, their_input) = input_pipe()?;
        let (our_output, their_output) = output_pipe()?;
        let (our_errors, their_errors) = output_pipe()?;
        let (input, output, errors) =
            (Channel::writing(our_input)?, Channel::reading(our_output)?, Channel::reading(our_errors)?);
        let mark = Family::new_mark();
        let mut env = agent.environment();
        env.insert(Family::MARK.to_owned(), mark.clone());
        let argv: Vec<String> = language.command().iter().map(|word| (*word).to_owned()).collect();
        let child = agent
            .children
            .spawn(&Command {
                argv: &argv,
                env: &env,
                cwd: project,
                descriptors: &[
                    (their_input.as_fd(), 0),
                    (their_output.as_fd(), 1),
                    (their_errors.as_fd(), 2),
                ],
                session: Session::Own,
                workload: agent.spawn_identity(),
            })
            .map_err(|error| not_started(language, error))?;
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let server = Arc::new(Self {
            language,
            project: project.to_owned(),
            family: Family { root: child.pid, mark },
            queue,
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
            state: watch::channel(State::Starting).0,
            documents: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            words: Mutex::default(),
        });
        let writer = tokio::spawn(write(input, queued));
        let listener = tokio::spawn(listen(errors, Arc::clone(&server)));
        let supervised = Arc::clone(&server);
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            let ended = child.ended.clone();
            let reason = tokio::select! {
                reason = supervised.read(output) => reason,
                reason = supervised.begin() => reason,
                // What it has started may hold its streams open.
                _ = ended => None,
            };
            kill_family(&agent, &supervised.family).await;
            writer.abort();
            supervised.conclude(child, listener, reason).await;
        });
        Ok(server)
    }

    /// Says that it has ended, and why.
    async fn conclude(&self, child: Child, listener: tokio::task::JoinHandle<()>, reason: Option<String>) {
        let ending =
            child.ended.await.map_or_else(|_| "unknown".to_owned(), |ending| ending.code().to_string());
        // All its writers are gone unless one has hidden; it does not panic.
        let _ = tokio::time::timeout(LAST_WORDS_LIMIT, listener).await;
        let words = String::from_utf8_lossy(&self.words()).trim().to_owned();
        let mut text = reason.clone().unwrap_or_else(|| format!("it ended with status {ending}"));
        if reason.is_none() && !words.is_empty() {
            text = format!("{text}: {words}");
        }
        self.state.send_if_modified(|state| match state {
            State::Ended(_) => false,
            State::Starting | State::Ready => {
                *state = State::Ended(text);
                true
            }
        });
        self.waiting().clear();
    }

    /// Introduces the agent, then waits for ever. What it answers is why that failed.
    async fn begin(&self) -> Option<String> {
        let root = server_uri(&self.project);
        let name = self.project.rsplit('/').next().unwrap_or_default();
        let params = json!({
            // A server that watches its parent by number could be in another namespace of processes.
            "processId": null,
            "clientInfo": { "name": "sandhaus-agent", "version": env!("CARGO_PKG_VERSION") },
            "rootPath": self.project,
            "rootUri": root,
            "workspaceFolders": [{ "uri": root, "name": name }],
            "capabilities": {
                "workspace": { "configuration": true, "workspaceFolders": true, "symbol": {} },
                "textDocument": {
                    "synchronization": {},
                    "documentSymbol": { "hierarchicalDocumentSymbolSupport": true },
                    "completion": {
                        "contextSupport": true,
                        "completionItem": { "documentationFormat": ["markdown", "plaintext"] },
                    },
                },
                "general": { "positionEncodings": ["utf-16"] },
            },
        });
        match self.ask_within("initialize", params, START_LIMIT).await {
            Ok(_) => {}
            Err(error) if error.status == StatusCode::REQUEST_TIMEOUT => {
                return Some("it did not say in time that it is ready".to_owned());
            }
            // Its end has a reason of its own.
            Err(error) if error.code == ENDED => return None,
            Err(error) => return Some(error.message.into_owned()),
        }
        if self.tell("initialized", json!({})).await.is_err() {
            return None;
        }
        self.state.send_if_modified(|state| {
            let starting = *state == State::Starting;
            if starting {
                *state = State::Ready;
            }
            starting
        });
        std::future::pending().await
    }

    /// Takes what it says until it has ended, or until that is no protocol.
    async fn read(&self, output: Channel) -> Option<String> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(read @ 1..) = output.read(&mut buffer).await {
            decoder.push(&buffer[..read]);
            loop {
                let message = match decoder.next_message() {
                    Ok(Some(message)) => serde_json::from_slice::<Value>(message),
                    Ok(None) => break,
                    Err(error) => return Some(format!("what it said is no protocol: {error}")),
                };
                let Ok(message) = message else { return Some("a message of it is no JSON".to_owned()) };
                if let Some(reply) = self.react(message)
                    && self.queue.try_send(encode(&bytes(&reply))).is_err()
                {
                    return Some("it does not read what it is told".to_owned());
                }
            }
            tokio::task::yield_now().await;
        }
        None
    }

    /// Gives an answer to whoever waits for it. A request of the server's own has a reply.
    fn react(&self, mut message: Value) -> Option<Value> {
        if message.get("method").is_some() {
            return reply(&message, &self.project);
        }
        let id = message["id"].as_u64()?;
        let waiting = self.waiting().remove(&id)?;
        let answer = match message["error"].is_null() {
            true => json!({ "result": message["result"].take() }),
            false => json!({ "error": message["error"].take() }),
        };
        // Whoever asked may have gone away.
        let _ = waiting.send(answer);
        None
    }

    /// Waits until it can be asked.
    pub(super) async fn ready(&self) -> Result<()> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| *state != State::Starting).await;
        match settled.as_deref() {
            Ok(State::Ready) => Ok(()),
            Ok(State::Starting | State::Ended(_)) | Err(_) => {
                drop(settled);
                Err(self.ended())
            }
        }
    }

    /// Whether it is of no more use.
    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    /// 503: it has ended, and why.
    fn ended(&self) -> Error {
        let reason = match &*self.state.borrow() {
            State::Ended(reason) => reason.clone(),
            State::Starting | State::Ready => "it is ending".to_owned(),
        };
        let message = format!(
            "the language server {} of {} has ended ({reason}): start it again",
            self.language.command()[0],
            self.project
        );
        Error::coded(StatusCode::SERVICE_UNAVAILABLE, ENDED, message)
    }

    /// Ends it with everything that it has started.
    pub(super) async fn stop(&self, agent: &Agent) {
        self.state.send_replace(State::Ended("it was stopped".to_owned()));
        kill_family(agent, &self.family).await;
        self.waiting().clear();
    }

    /// Asks it something.
    pub(super) async fn ask(&self, method: &str, params: Value) -> Result<Value> {
        self.ask_within(method, params, REQUEST_LIMIT).await
    }

    async fn ask_within(&self, method: &str, params: Value, limit: Duration) -> Result<Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= REQUESTS_MAX {
                return Err(Error::too_many(format_args!(
                    "{REQUESTS_MAX} requests wait for this language server"
                )));
            }
            waiting.insert(id, sender);
        }
        let _question = Question { server: self, id };
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let answer = tokio::time::timeout(limit, async {
            self.send(&request).await?;
            receiver.await.map_err(|_| self.ended())
        });
        let mut answer = answer.await.map_err(|_| {
            let seconds = limit.as_secs();
            Error::timeout(format_args!("the language server did not answer {method} in {seconds} seconds"))
        })??;
        match &answer["error"] {
            Value::Null => Ok(answer["result"].take()),
            error => Err(refused(method, error)),
        }
    }

    /// Tells it something.
    pub(super) async fn tell(&self, method: &str, params: Value) -> Result<()> {
        let notice = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        let sent = tokio::time::timeout(REQUEST_LIMIT, self.send(&notice)).await;
        sent.map_err(|_| Error::timeout("the language server does not read what it is told"))?
    }

    async fn send(&self, message: &Value) -> Result<()> {
        if self.has_ended() {
            return Err(self.ended());
        }
        self.queue.send(encode(&bytes(message))).await.map_err(|_| self.ended())
    }

    /// What it has open.
    pub(super) fn documents(&self) -> MutexGuard<'_, Documents> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Value>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn words(&self) -> MutexGuard<'_, Vec<u8>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits for its answer. When nobody waits any more, the server is told.
struct Question<'a> {
    server: &'a Server,
    id: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if self.server.waiting().remove(&self.id).is_some() {
            let notice =
                json!({ "jsonrpc": "2.0", "method": "$/cancelRequest", "params": { "id": self.id } });
            // A server that reads nothing cannot be told.
            let _ = self.server.queue.try_send(encode(&bytes(&notice)));
        }
    }
}

/// Moves messages to the server. One that has ended takes no more.
async fn write(input: Channel, mut queued: mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = queued.recv().await {
        if input.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// Keeps the last of what it says about itself.
async fn listen(errors: Channel, server: Arc<Server>) {
    let mut buffer = vec![0; WORDS_BYTES_MAX];
    while let Ok(read @ 1..) = errors.read(&mut buffer).await {
        {
            let mut words = server.words();
            words.extend_from_slice(&buffer[..read]);
            let over = words.len().saturating_sub(WORDS_BYTES_MAX);
            words.drain(..over);
        }
        tokio::task::yield_now().await;
    }
}

fn bytes(message: &Value) -> Vec<u8> {
    message.to_string().into_bytes()
}

/// The reply to a request of a server; nothing for what it only tells.
fn reply(message: &Value, project: &str) -> Option<Value> {
    let id = message.get("id").filter(|id| !id.is_null())?;
    let result = match message["method"].as_str().unwrap_or_default() {
        // No section of the settings has anything in it.
        "workspace/configuration" => {
            let sections = message["params"]["items"].as_array().map_or(0, Vec::len);
            Value::from(vec![Value::Null; sections])
        }
        "workspace/workspaceFolders" => {
            let name = project.rsplit('/').next().unwrap_or_default();
            json!([{ "uri": server_uri(project), "name": name }])
        }
        "workspace/applyEdit" => json!({ "applied": false, "failureReason": "this client edits nothing" }),
        "window/showDocument" => json!({ "success": false }),
        "client/registerCapability"
        | "client/unregisterCapability"
        | "window/showMessageRequest"
        | "window/workDoneProgress/create"
        | "workspace/codeLens/refresh"
        | "workspace/diagnostic/refresh"
        | "workspace/foldingRange/refresh"
        | "workspace/inlayHint/refresh"
        | "workspace/inlineValue/refresh"
        | "workspace/semanticTokens/refresh" => Value::Null,
        other => {
            let error = json!({ "code": METHOD_NOT_FOUND, "message": format!("this client has no {other}") });
            return Some(json!({ "jsonrpc": "2.0", "id": id, "error": error }));
        }
    };
    Some(json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

/// What a server's refusal of a request is here.
fn refused(method: &str, error: &Value) -> Error {
    const MESSAGE_CHARS_MAX: usize = 1000;
    let words: String =
        error["message"].as_str().unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect();
    match error["code"].as_i64() {
        Some(METHOD_NOT_FOUND) => Error::invalid(format_args!("this language server has no {method}")),
        Some(code) if INVALID.contains(&code) => {
            Error::invalid(format_args!("the language server refused {method}: {words}"))
        }
        _ => Error::coded(
            StatusCode::UNPROCESSABLE_ENTITY,
            "LSP_REQUEST_FAILED",
            format!("the language server failed at {method}: {words}"),
        ),
    }
}

fn not_started(language: Language, error: SpawnError) -> Error {
    match error {
        SpawnError::NotFound | SpawnError::NotExecutable(_) => {
            let message = format!(
                "cannot run {}: {error}; install it in the sandbox ({}) or use an image that has it",
                language.command()[0],
                language.remedy()
            );
            Error::coded(StatusCode::SERVICE_UNAVAILABLE, "LSP_SERVER_NOT_INSTALLED", message)
        }
        SpawnError::Invalid(_)
        | SpawnError::Directory(_)
        | SpawnError::Exhausted(_)
        | SpawnError::Failed(..) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_servers_are_answered() {
        let of = |message: Value| reply(&message, "/w/my project");
        let configuration =
            json!({ "id": "x", "method": "workspace/configuration", "params": { "items": [{}, {}] } });
        assert_eq!(of(configuration), Some(json!({ "jsonrpc": "2.0", "id": "x", "result": [null, null] })));
        let folders = of(json!({ "id": 1, "method": "workspace/workspaceFolders" })).expect("a reply");
        assert_eq!(folders["result"], json!([{ "uri": "file:///w/my%20project", "name": "my project" }]));
        let unknown = of(json!({ "id": 2, "method": "no/such" })).expect("a reply");
        assert_eq!(unknown["error"]["code"], METHOD_NOT_FOUND);
        assert_eq!(of(json!({ "method": "textDocument/publishDiagnostics" })), None);
        assert_eq!(of(json!({ "id": null, "method": "x" })), None);
    }

    #[test]
    fn refusals_of_servers_are_told_apart() {
        let of = |code: i64| refused("m", &json!({ "code": code, "message": "why" }));
        assert_eq!(of(METHOD_NOT_FOUND).status.as_u16(), 400);
        assert_eq!(of(-32602).status.as_u16(), 400);
        assert_eq!((of(-32603).status.as_u16(), of(-32603).code), (422, "LSP_REQUEST_FAILED"));
    }
}
