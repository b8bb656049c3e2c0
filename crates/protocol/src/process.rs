//! One-shot processes with separate streams: `/sandhaus/process`.
//!
//! | call | answer |
//! |---|---|
//! | `POST /sandhaus/process` [`Spawn`] | frames: `Started` ([`Process`]), `Stdout`/`Stderr`, `Exit` ([`Exit`]) |
//! | `GET /sandhaus/process/{id}/output?stdout=N&stderr=M` | the same frames from those offsets; a `Started` first |
//! | `POST /sandhaus/process/{id}/stdin?eof=BOOL` raw body | 204 when the process has taken it all; `eof` then closes |
//! | `POST /sandhaus/process/{id}/signal` [`Signal`] | 204; to the whole process group, or the terminal's foreground one |
//! | `POST /sandhaus/process/{id}/resize` [`Resize`] | 204; 409 without a terminal |
//! | `GET /sandhaus/process`, `GET /sandhaus/process/{id}` | [`Process`] |
//! | `DELETE /sandhaus/process/{id}` | 204; kills the whole tree, forgets it |
//!
//! A reader that goes away does not end the process unless [`Spawn::kill_on_disconnect`]. A finished process and the
//! tail of its output stay readable for [`KEEP_FINISHED`] newer ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most processes started through the agent and alive at once; one more is refused (429).
pub const PROCESSES_MAX: usize = 512;

/// How many finished processes stay readable.
pub const KEEP_FINISHED: usize = 64;

/// Most arguments of one process.
pub const ARGS_MAX: usize = 4096;

/// Bytes of output kept per stream for readers that come later.
pub const RING_BYTES: usize = 256 * 1024;

/// A process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Spawn {
    /// Program and arguments; the program is searched in the environment's PATH.
    pub argv: Vec<String>,
    /// Added to the sandbox's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Directory to start in; absent: the sandbox's work directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Give it a controlling terminal of this size; both streams then arrive as stdout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Resize>,
    /// Keep standard input open for `stdin` calls; otherwise it reads end of file at once.
    #[serde(default)]
    pub stdin: bool,
    /// After so long the whole tree is killed. Zero: none.
    #[serde(default)]
    pub timeout_ms: u64,
    /// Kill the whole tree when the reader of this very call goes away.
    #[serde(default)]
    pub kill_on_disconnect: bool,
}

/// A terminal's size in characters, each 1 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// A process as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Process {
    /// Its name towards the agent; never reused.
    pub id: u64,
    /// Process id inside the sandbox.
    pub pid: u32,
    /// What was started.
    pub argv: Vec<String>,
    /// It has a terminal.
    pub tty: bool,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// Bytes of standard output so far.
    pub stdout_bytes: u64,
    /// Bytes of standard error so far.
    pub stderr_bytes: u64,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exit {
    /// Exit status, or 128 + N for death by signal N; 127 not found, 126 not executable.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The time limit struck.
    pub timed_out: bool,
    /// Why it could not be started, in words.
    pub error: Option<String>,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
}

/// A signal to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Signal {
    /// Number, 1 to 64.
    pub signal: i32,
}
