//! Wire types of the compatible toolbox routes (docs: `daytona.md` sections 1.2 to 1.7). Names and spelling are the
//! contract's, not ours; fields may be added, never removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What every refusal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Refusal {
    /// The status.
    pub status_code: u16,
    /// What is wrong, for people.
    pub message: String,
    /// The same, for older clients.
    pub error: String,
    /// What is wrong, for programs.
    pub code: String,
    /// Always `DAYTONA_DAEMON`.
    pub source: String,
    /// When, RFC 3339.
    pub timestamp: String,
    /// What was asked for.
    pub path: String,
    /// How.
    pub method: String,
}

/// A file as the file routes describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileInfo {
    /// Last part of its path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Kind and permissions in letters, such as `-rw-r--r--`.
    pub mode: String,
    /// Last change of the content, RFC 3339.
    pub mod_time: String,
    /// The same, under its newer name.
    pub modified_at: String,
    /// It is a directory.
    pub is_dir: bool,
    /// Owner's number.
    pub owner: String,
    /// Group's number.
    pub group: String,
    /// Permission bits, four octal digits.
    pub permissions: String,
    /// Path; only in listings of more than one level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Text of a symbolic link, in listings: the other fields tell of what it leads to, where that can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

/// Answer of a single upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UploadReply {
    /// Last part of the path.
    pub name: String,
    /// The path as it was given.
    pub path: String,
    /// Always `file`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Answer of a bulk upload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BulkUploadReply {
    /// What was stored.
    pub files: Vec<UploadedFile>,
    /// What was not, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// A stored file of a bulk upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UploadedFile {
    /// The path as it was given.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// Which files to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BulkDownloadRequest {
    /// Paths, in the order of the parts.
    pub paths: Vec<String>,
}

/// A line with the text that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Match {
    /// Path of the file.
    pub file: String,
    /// Number of the line, from 1.
    pub line: u64,
    /// The line.
    pub content: String,
}

/// Names that matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SearchReply {
    /// Paths.
    pub files: Vec<String>,
}

/// A literal replacement in several files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplaceRequest {
    /// Paths.
    pub files: Vec<String>,
    /// What to look for.
    pub pattern: String,
    /// What to put in its place.
    pub new_value: String,
}

/// How the replacement in one file went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplaceResult {
    /// Path.
    pub file: String,
    /// It worked.
    pub success: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Header of a command's log: the offset of its first byte in the log with its markers. A request with `?offset=`
/// gets what comes from there on, or from the first byte after it that is kept.
pub const OFFSET_HEADER: &str = "x-sandhaus-offset";

/// Header of a log that is not followed: the offset behind its last byte, from where a later request goes on.
pub const END_HEADER: &str = "x-sandhaus-end-offset";

/// A command to run to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecuteRequest {
    /// Shell text.
    pub command: String,
    /// Where to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Seconds; zero or absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecuteReply {
    /// Its status; -1 when it could not be started.
    pub exit_code: i32,
    /// Both streams as they came.
    pub result: String,
}

/// A session to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSessionRequest {
    /// Its name.
    pub session_id: String,
}

/// A session and its commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Session {
    /// Its name.
    pub session_id: String,
    /// Its commands, oldest first.
    pub commands: Vec<Command>,
}

/// A command of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Command {
    /// Its name.
    pub id: String,
    /// Its text.
    pub command: String,
    /// Its status once it has ended and all its output is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// A command for a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionExecuteRequest {
    /// Shell text.
    pub command: String,
    /// Answer at once.
    #[serde(default)]
    pub run_async: bool,
    /// The older name of the same.
    #[serde(default, rename = "async")]
    pub is_async: bool,
    /// Keep what is sent to its input out of its log.
    #[serde(default)]
    pub suppress_input_echo: bool,
}

/// Answer to a command for a session; only the name when it runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionExecuteReply {
    /// The command's name.
    pub cmd_id: String,
    /// Both streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// Its status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// A command's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionLogs {
    /// Both streams with their markers.
    pub output: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Input for a running command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionInputRequest {
    /// Text; a newline is added where it lacks one.
    pub data: String,
}

/// A terminal to create.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PtyCreateRequest {
    /// Its name.
    pub id: String,
    /// Where its shell starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Columns; absent or zero: 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    /// Rows; absent or zero: 24.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Start its shell when the first client attaches.
    #[serde(default)]
    pub lazy_start: bool,
}

/// Answer to a created terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PtyCreateReply {
    /// Its name.
    pub session_id: String,
}

/// A terminal as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PtySessionInfo {
    /// Its name.
    pub id: String,
    /// Where its shell started.
    pub cwd: String,
    /// What was added to its environment.
    pub envs: BTreeMap<String, String>,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// RFC 3339.
    pub created_at: String,
    /// Its shell runs.
    pub active: bool,
    /// Its shell starts with the first client.
    pub lazy_start: bool,
}

/// The terminals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PtyListReply {
    /// Each of them.
    pub sessions: Vec<PtySessionInfo>,
}

/// A terminal's new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PtyResizeRequest {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}
