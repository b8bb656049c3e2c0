//! Commands in a session, in its shell or each in one of its own: what is asked, how their output is followed, and the answer in one piece.
//!
//! A command belongs to its session, not to the connection that asked for it: a client that hangs up, whether it waits
//! for the whole answer or follows a stream, leaves the command running until its end or its time limit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{Response, StatusCode},
};
use futures::future::BoxFuture;
use sandhaus_client::wire::{CMD_BYTES_MAX, ErrorBody, ExecRequest, ExecResult, TIMEOUT_MS_MAX};
use sandhaus_protocol::shell::{DEFAULT, ShellExec, ShellExit, ShellStarted};
use sandhaus_sandbox::{
    Error, Kind, SandboxId,
    service::MemoryKills,
    toolbox::{Event, Events, Toolbox},
};
use serde_json::json;

use super::{
    SessionPath,
    clean::{Collector, Terminal},
    json,
    json::Json,
    sessions::session_error,
    wire::go_duration,
};
use crate::{
    ExecMode,
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// How often in a row a lost stream of output is taken up again without anything new on it.
const RESUMES_MAX: u32 = 5;

/// Status of a command that was killed, as the memory limit does.
const STATUS_KILLED: i32 = 137;

/// A command that has ended by then was not struck by the memory limit: nobody looks, so that short commands cost no
/// reading of counters. Filling any sensible limit takes longer.
const OOM_UNLIKELY: Duration = Duration::from_millis(1);

/// Runs a command and answers when it has ended. A client that hangs up leaves the command running.
#[utoipa::path(post, path = "/v1/sessions/{id}/exec", tag = "exec", params(("id" = String, Path)), request_body = ExecRequest, responses(
    (status = 200, body = ExecResult),
    (status = 400, body = ErrorBody, description = "INVALID_REQUEST"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
    (status = 410, body = ErrorBody, description = "SESSION_EXPIRED"),
    (status = 504, body = ErrorBody, description = "COMMAND_TIMEOUT; details.output has what was printed"),
))]
pub(super) async fn exec(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    Json(request): Json<ExecRequest>,
) -> ApiResult<Response<Body>> {
    let started = Instant::now();
    let command = Command::check(&edge, request)?;
    let result = run(&edge, &id, &command).await;
    let outcome = match &result {
        Ok(result) if result.exit_code == 0 => "success",
        Ok(_) => "failure",
        Err(error) if error.status() == StatusCode::GATEWAY_TIMEOUT => "timeout",
        Err(_) => "error",
    };
    edge.metrics.executed(outcome, started.elapsed());
    Ok(json(StatusCode::OK, &result?))
}

async fn run(edge: &Arc<Edge>, id: &SandboxId, command: &Command) -> ApiResult<ExecResult> {
    let mut running = Running::start(Arc::clone(edge), id.clone(), command).await?;
    let mut collector = Collector::new(command.terminal, edge.v1.output_bytes_max);
    let exit = loop {
        match running.next().await? {
            Output::Bytes(bytes) => collector.push(&bytes),
            Output::Lost(_) => collector.lose_rest(),
            Output::Quiet => {}
            Output::Exit(exit) => break exit,
        }
    };
    let oom = running.finish(exit.exit_code).await;
    let (output, truncated) = collector.finish();
    if exit.timed_out {
        let details = json!({
            "output": output,
            "truncated": truncated,
            "exit_code": exit.exit_code,
            "cwd": exit.cwd,
            "duration_ms": exit.duration_ms,
            "oom": oom.is_some(),
        });
        return Err(command.timed_out().with_details(details));
    }
    let ShellExit { exit_code, cwd, duration_ms, .. } = exit;
    Ok(ExecResult { exit_code, cwd, output, truncated, duration_ms, oom: oom.is_some(), reason: oom })
}

/// A command that may run.
pub(super) struct Command {
    pub(super) terminal: Terminal,
    mode: ExecMode,
    exec: ShellExec,
}

impl Command {
    /// Checks what was asked for.
    pub(super) fn check(edge: &Edge, request: ExecRequest) -> ApiResult<Self> {
        let ExecRequest { cmd, timeout_ms, raw_output, mode } = request;
        let mode = match mode.as_str() {
            "" => edge.v1.exec_mode,
            "stateful" => ExecMode::Stateful,
            "stateless" => ExecMode::Stateless,
            _ => return Err(ApiError::invalid("mode must be \"stateful\" or \"stateless\"")),
        };
        if cmd.is_empty() {
            return Err(ApiError::invalid("cmd is required"));
        }
        if cmd.len() > CMD_BYTES_MAX {
            let bytes = cmd.len();
            let message = format!("cmd is too large ({bytes} bytes), max is {CMD_BYTES_MAX} bytes");
            return Err(ApiError::invalid(message).with_details(json!({
                "cmd_bytes": bytes,
                "max_cmd_bytes": CMD_BYTES_MAX,
                "recommendation": "write the script to a file with fs/write or fs/upload, then run that file",
            })));
        }
        let limit = edge.v1.exec_timeout_max_ms;
        let timeout_ms = match timeout_ms {
            ..0 => return Err(ApiError::invalid("timeout_ms must be non-negative")),
            0 => limit,
            1..=TIMEOUT_MS_MAX => timeout_ms.unsigned_abs().min(limit),
            _ => return Err(ApiError::invalid("timeout_ms must not exceed 600000 (10 minutes)")),
        };
        Ok(Self { terminal: terminal(raw_output), mode, exec: ShellExec { cmd, timeout_ms } })
    }

    /// The error of a command that ran into its time limit.
    pub(super) fn timed_out(&self) -> ApiError {
        timed_out(Duration::from_millis(self.exec.timeout_ms))
    }
}

/// What `raw_output` means for the terminal's bytes.
pub(super) fn terminal(raw_output: bool) -> Terminal {
    if raw_output { Terminal::Keep } else { Terminal::Strip }
}

fn timed_out(limit: Duration) -> ApiError {
    let message = format!("command timeout: timeout: command exceeded {}", go_duration(limit));
    ApiError::new(Kind::Timeout, Subject::Command, message)
}

/// Names a command that runs or has run in a session: by its number in the session's shell, or, with an `s` before it,
/// among the commands with a shell of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExecName {
    /// In the session's shell.
    Shell(u64),
    /// In a shell of its own.
    Script(u64),
}

impl ExecName {
    fn of(mode: ExecMode, exec_id: u64) -> Self {
        match mode {
            ExecMode::Stateful => Self::Shell(exec_id),
            ExecMode::Stateless => Self::Script(exec_id),
        }
    }

    /// Reads a name; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix('s') {
            Some(number) => number.parse().ok().map(Self::Script),
            None => text.parse().ok().map(Self::Shell),
        }
    }

    /// The rest of its output.
    async fn follow(
        self,
        toolbox: &Toolbox,
        offset: u64,
    ) -> sandhaus_sandbox::Result<Events<ShellStarted, ShellExit>> {
        match self {
            Self::Shell(exec_id) => toolbox.shell_resume(DEFAULT, exec_id, offset).await,
            Self::Script(exec_id) => toolbox.script_resume(exec_id, offset).await,
        }
    }
}

impl std::fmt::Display for ExecName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shell(exec_id) => write!(f, "{exec_id}"),
            Self::Script(exec_id) => write!(f, "s{exec_id}"),
        }
    }
}

/// What a running command yields.
pub(super) enum Output {
    /// Bytes of the terminal.
    Bytes(Bytes),
    /// Output up to this offset was lost.
    Lost(u64),
    /// Nothing new, but it lives.
    Quiet,
    /// It ended.
    Exit(ShellExit),
}

/// A running command, followed. If the stream breaks while the session goes on, it is taken up where it broke.
pub(super) struct Running {
    edge: Arc<Edge>,
    id: SandboxId,
    events: Events<ShellStarted, ShellExit>,
    mode: ExecMode,
    name: Option<ExecName>,
    offset: u64,
    broken: Option<Error>,
    resumes: u32,
    /// Reads the count before the memory limit can have struck, once the command has run for a moment.
    counting: Option<BoxFuture<'static, Option<MemoryKills>>>,
    kills: Option<MemoryKills>,
}

impl Running {
    /// Starts a command.
    pub(super) async fn start(edge: Arc<Edge>, id: SandboxId, command: &Command) -> ApiResult<Self> {
        let toolbox = match edge.service.toolbox(&id).await {
            Ok(toolbox) => toolbox,
            Err(error) => return Err(session_error(&edge, &id, error).await),
        };
        note_use(&edge, &id).await;
        let events = match command.mode {
            ExecMode::Stateful => toolbox.shell_exec(DEFAULT, &command.exec).await,
            ExecMode::Stateless => toolbox.script_exec(&command.exec).await,
        };
        let events = begun(&edge, &id, events).await?;
        let (service, counted) = (edge.service.clone(), id.clone());
        let mut running = Self::following(edge, id, events, command.mode);
        running.counting = Some(Box::pin(async move {
            tokio::time::sleep(OOM_UNLIKELY).await;
            service.memory_kills(&counted).await.ok()
        }));
        Ok(running)
    }

    /// Takes up the stream of a command that runs already, or ran lately, from `offset`.
    pub(super) async fn resume(
        edge: Arc<Edge>,
        id: SandboxId,
        name: ExecName,
        offset: u64,
    ) -> ApiResult<Self> {
        let toolbox = match edge.service.toolbox(&id).await {
            Ok(toolbox) => toolbox,
            Err(error) => return Err(session_error(&edge, &id, error).await),
        };
        let events = begun(&edge, &id, name.follow(&toolbox, offset).await).await?;
        let mode = match name {
            ExecName::Shell(_) => ExecMode::Stateful,
            ExecName::Script(_) => ExecMode::Stateless,
        };
        let mut running = Self::following(edge, id, events, mode);
        running.name = Some(name);
        running.offset = offset;
        Ok(running)
    }

    fn following(
        edge: Arc<Edge>,
        id: SandboxId,
        events: Events<ShellStarted, ShellExit>,
        mode: ExecMode,
    ) -> Self {
        Self {
            edge,
            id,
            events,
            mode,
            name: None,
            offset: 0,
            broken: None,
            resumes: 0,
            counting: None,
            kills: None,
        }
    }

    /// Names the command in its session, once it has started.
    pub(super) fn name(&self) -> Option<ExecName> {
        self.name
    }

    /// What comes next; nothing after [`Output::Exit`]. Cancel-safe: a broken stream is noted before it is repaired.
    pub(super) async fn next(&mut self) -> ApiResult<Output> {
        loop {
            if let Some(error) = self.broken.take() {
                self.repair(error).await?;
            }
            let event = match self.next_event().await {
                Ok(Some(event)) => event,
                Ok(None) => {
                    return Err(ApiError::new(
                        Kind::Unavailable,
                        Subject::Machine,
                        "the command's output broke off",
                    ));
                }
                Err(error) => {
                    self.broken = Some(error);
                    continue;
                }
            };
            self.resumes = 0;
            match event {
                Event::Started(started) => self.name = Some(ExecName::of(self.mode, started.exec_id)),
                Event::Stdout(offset, bytes) | Event::Stderr(offset, bytes) => {
                    self.offset = offset + bytes.len() as u64;
                    return Ok(Output::Bytes(bytes));
                }
                Event::Gap(offset) => {
                    self.offset = self.offset.max(offset);
                    return Ok(Output::Lost(offset));
                }
                Event::Ping => return Ok(Output::Quiet),
                Event::Exit(exit) => return Ok(Output::Exit(exit)),
            }
        }
    }

    async fn next_event(&mut self) -> sandhaus_sandbox::Result<Option<Event<ShellStarted, ShellExit>>> {
        if let Some(counting) = &mut self.counting {
            // Cancel-safe: the events are so by themselves, and the counting stays where it is.
            tokio::select! {
                biased;
                event = self.events.next() => return event,
                kills = counting => self.kills = kills,
            }
            self.counting = None;
        }
        self.events.next().await
    }

    async fn repair(&mut self, error: Error) -> ApiResult<()> {
        let (Kind::Unavailable, Some(name), true) = (error.kind(), self.name, self.resumes < RESUMES_MAX)
        else {
            return Err(session_error(&self.edge, &self.id, error).await);
        };
        self.resumes += 1;
        // Put back first: a wait that is dropped here goes on with the repair next time.
        self.broken = Some(error);
        let resumed = match self.edge.service.toolbox(&self.id).await {
            Ok(toolbox) => name.follow(&toolbox, self.offset).await,
            Err(error) => Err(error),
        };
        match resumed {
            Ok(events) => {
                self.events = events;
                self.broken = None;
                Ok(())
            }
            Err(error) => Err(session_error(&self.edge, &self.id, error).await),
        }
    }

    /// Marks the use of the session at the command's end, and says in words whether the memory limit struck meanwhile.
    pub(super) async fn finish(self, exit_code: i32) -> Option<String> {
        let Self { edge, id, kills, .. } = self;
        note_use(&edge, &id).await;
        if kills.is_none() && exit_code != STATUS_KILLED {
            return None;
        }
        let last = edge.service.memory_kills(&id).await.ok()?;
        // A command that was killed before the first look is compared with the look of an earlier command.
        let early = kills.map_or(last.before, |first| first.before).filter(|_| exit_code == STATUS_KILLED);
        let since = early.or(kills.map(|first| first.now))?;
        (last.now > since).then(|| match last.limit_bytes {
            Some(bytes) => {
                let mebibytes = bytes.div_ceil(1 << 20);
                format!("the memory limit of {mebibytes} MiB ended a process of the session")
            }
            None => "the host ran out of memory and ended a process of the session".to_owned(),
        })
    }
}

/// The command that has begun, or why it has not.
async fn begun(
    edge: &Edge,
    id: &SandboxId,
    events: sandhaus_sandbox::Result<Events<ShellStarted, ShellExit>>,
) -> ApiResult<Events<ShellStarted, ShellExit>> {
    match events {
        Ok(events) => Ok(events),
        // Its machine ended a moment ago, which shows a moment later.
        Err(error) if error.is_of_lost_machine() => Err(session_error(edge, id, error).await),
        Err(error) => Err(ApiError::of(Subject::Command, error)),
    }
}

/// Moves the session's deadline. A session may end while it is used; whoever uses it learns that from the use itself.
pub(super) async fn note_use(edge: &Edge, id: &SandboxId) {
    if let Err(error) = edge.service.touch(id).await {
        tracing::debug!(sandbox = %id, error = %error, "use of a session was not noted");
    }
}
