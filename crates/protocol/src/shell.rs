//! Persistent shells: `/sandhaus/shell/{name}`. One long-lived shell per name in a terminal; directory, variables,
//! functions, options and background jobs persist between commands.
//!
//! | call | answer |
//! |---|---|
//! | `POST /sandhaus/shell/{name}/exec` [`ShellExec`] | frames: `Started` ([`ShellStarted`]), `Stdout` (terminal bytes), `Exit` ([`ShellExit`]) |
//! | `GET /sandhaus/shell/{name}/exec/{exec_id}?offset=N` | the same frames of a command already started, from byte N |
//! | `GET /sandhaus/shell/{name}` | [`ShellInfo`] |
//! | `GET /sandhaus/shell/{name}/log?offset=N&follow=BOOL` | frames of the whole terminal, every command's and background jobs' output; `Exit` when it ends |
//!
//! Commands without state have routes of their own, with the same bodies and frames; each runs in a fresh shell in the
//! sandbox's work directory, both its streams in one pipe, as many at once as come:
//!
//! | call | answer |
//! |---|---|
//! | `POST /sandhaus/script` [`ShellExec`] | frames: `Started` ([`ShellStarted`]), `Stdout` (both streams), `Exit` ([`ShellExit`]) |
//! | `GET /sandhaus/script/{exec_id}?offset=N` | the same frames of a command already started, from byte N |
//!
//! Such a command is also a process of [`crate::process`], under the same number.
//!
//! Commands of one shell run one after another, in the order they came. The shell named [`DEFAULT`] always exists;
//! others are made on first use, at most [`SHELLS_MAX`].

use serde::{Deserialize, Serialize};

/// Name of the shell that `/v1` sessions use.
pub const DEFAULT: &str = "default";

/// Most shells in one sandbox.
pub const SHELLS_MAX: usize = 64;

/// Largest command text in bytes.
pub const CMD_BYTES_MAX: usize = 1 << 20;

/// Most commands waiting in one shell's queue; one more is refused (429).
pub const QUEUE_MAX: usize = 256;

/// Terminal size of a persistent shell.
pub const ROWS: u16 = 40;
/// Terminal size of a persistent shell.
pub const COLS: u16 = 120;

/// A command for a persistent shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShellExec {
    /// Shell text, at most [`CMD_BYTES_MAX`] bytes, any number of lines.
    pub cmd: String,
    /// After so long the command's whole tree is interrupted, then killed; the shell and its state stay. Zero: none.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// First frame of a command's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShellStarted {
    /// Names the command in this shell, for resuming its stream.
    pub exec_id: u64,
}

/// Last frame of a command's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShellExit {
    /// Status as a shell reports it: 128 + N for death by signal N.
    pub exit_code: i32,
    /// Working directory afterwards.
    pub cwd: String,
    /// Wall time from the command's start, waiting in the queue not counted.
    pub duration_ms: u64,
    /// The time limit struck.
    pub timed_out: bool,
    /// The shell itself ended (`exit`, `exec`, killed) and a fresh one took its place: variables are gone.
    pub shell_replaced: bool,
}

/// A persistent shell as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShellInfo {
    /// Its name.
    pub name: String,
    /// Working directory after the last command.
    pub cwd: String,
    /// The command that runs now.
    pub running: Option<u64>,
    /// Bytes its terminal has printed so far.
    pub output_bytes: u64,
}
