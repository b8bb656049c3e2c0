//! What travels over `/v1`. Absent fields mean the server's default; unknown ones are ignored by both sides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

/// Largest command text in bytes.
pub const CMD_BYTES_MAX: usize = sandhaus_protocol::shell::CMD_BYTES_MAX;

/// Longest time to live that may be asked for, in seconds.
pub const TTL_SECONDS_MAX: i64 = 86_400;

/// Longest command time that may be asked for, in milliseconds.
pub const TIMEOUT_MS_MAX: i64 = 600_000;

/// Bytes that one `fs/read` gives unless asked otherwise.
pub const READ_BYTES_DEFAULT: u64 = 10 << 20;

/// Most bytes that one `fs/read` gives.
pub const READ_BYTES_MAX: i64 = 100 << 20;

/// Largest JSON request body in bytes.
pub const JSON_BYTES_MAX: usize = 2 << 20;

/// Most files of one upload.
pub const UPLOAD_FILES_MAX: usize = 100;

/// The error body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ErrorBody {
    /// Machine-readable code, such as `SESSION_NOT_FOUND`.
    pub error_code: String,
    /// What happened, in words.
    pub message: String,
    /// The same words again, for clients that look here.
    #[serde(default)]
    pub error: String,
    /// More, as the code defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub details: Option<serde_json::Value>,
}

/// `POST /v1/sessions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct CreateSession {
    /// Image name; empty: the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Seconds to live after the last use, 0 to 86400; 0: the server's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub ttl_seconds: i64,
    /// Workspace to mount.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workspace_id: String,
    /// Engine; empty: the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub engine: String,
    /// Snapshot to start from, in place of an image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub snapshot: String,
    /// A name, unique among live sessions.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Free marks, to list by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Environment of every command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Processor limit in cores; 0: the server's default.
    #[serde(skip_serializing_if = "is_zero_cores")]
    pub cpus: f64,
    /// Memory limit in MiB; 0: the server's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_mb: i64,
    /// Limit of processes and threads; 0: the server's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub pids: i64,
    /// Limit of the writable layer in MiB; 0: the server's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_mb: i64,
    /// What the session may reach; absent: the server's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// TCP ports of the session to show on the server's loopback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Filter of system calls: `strict`, `mvp` or `off`; empty: the server's default. A request can only be stricter than
    /// the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub seccomp: String,
    /// Command started with the session.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Confinement: `strict` or `container`; empty: the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub security: String,
    /// Read-only root file system; absent: the server's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_root: Option<bool>,
    /// Directory in which commands start; empty: `/workspace`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workdir: String,
    /// Start the shell together with the session, so that the first command finds it waiting; absent: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_shell: Option<bool>,
}

/// What a session may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(untagged)]
pub enum Network {
    /// `none`: its own loopback; `bridge`: the internet through the host's address; empty: the server's default.
    Mode(String),
    /// These networks only.
    Allow {
        /// Networks as `ADDRESS/BITS`.
        allow: Vec<String>,
    },
}

/// A TCP port of a session on the server's loopback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Port {
    /// The port inside.
    pub port: u16,
    /// The port of the server's loopback; absent or 0 in a request: any that is free.
    #[serde(default)]
    pub host_port: u16,
}

/// The doors of a session beside the API. Whoever reads this may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Doors {
    /// SSH: shell, commands, files, forwards.
    pub ssh: Door,
    /// The terminal in a browser.
    pub terminal: Door,
    /// SSH of another process than the agent; absent unless the server's configuration opens it (`agent.rescue`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue: Option<Door>,
}

/// One door of a session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Door {
    /// The port inside.
    pub port: u16,
    /// The port of the server's loopback that leads there; absent unless the session publishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// The password. No user name matters.
    pub secret: String,
    /// The key that the door shows, as `known_hosts` has it behind the names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("port", &self.port).finish_non_exhaustive()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn is_zero_cores(value: &f64) -> bool {
    *value == 0.0
}

/// A session as it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct SessionInfo {
    /// Its id.
    pub id: String,
    /// The image it was made from.
    pub image: String,
    /// `starting`, `running`, `paused`, `suspended`, `stopping`, `stopped`, `archived`, `pool_idle`, `destroying`,
    /// `destroyed`, `expired` or `crashed`.
    pub status: String,
    /// Directory in which its commands start.
    pub cwd: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When it ends unless it is used, RFC 3339; the year 9999 stands for never.
    pub expires_at: String,
    /// The workspace mounted in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// Only in the answer to create: `cold` or `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquire_source: Option<String>,
    /// Only in the answer to create: why not from the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquire_detail: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its marks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which engine runs it.
    #[serde(default)]
    pub engine: String,
    /// The snapshot it was made from: its name, or its id once it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Raised with each start of its machine.
    #[serde(default)]
    pub generation: u64,
    /// Its limits.
    #[serde(default)]
    pub limits: Limits,
    /// Its network policy: `none`, `bridge`, `allow` or `host`.
    #[serde(default)]
    pub network: String,
    /// The networks it may reach, where its policy is `allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_allow: Vec<String>,
    /// Its published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Its filter of system calls.
    #[serde(default)]
    pub seccomp: String,
    /// Its confinement.
    #[serde(default)]
    pub security: String,
    /// Why it is not as first wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureInfo>,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}

/// A session's limits; zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct Limits {
    /// Processor cores.
    pub cpus: f64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes of the writable layer.
    pub disk_bytes: u64,
}

/// Why a session is not as first wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct FailureInfo {
    /// `crashed`, `out_of_memory`, `start_failed` or `data_lost`.
    pub kind: String,
    /// In words.
    pub message: String,
    /// When, RFC 3339.
    pub at: String,
}

/// `GET /v1/sessions` query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListSessions {
    /// Also those that have ended.
    pub all: bool,
    /// Only those with these marks.
    pub labels: BTreeMap<String, String>,
    /// Only those older than this session.
    pub cursor: Option<String>,
    /// At most so many; 0: no limit.
    pub limit: usize,
}

/// `POST /v1/sessions/{id}/exec` and `/exec/stream`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct ExecRequest {
    /// Shell text, 1 byte to 1 MiB.
    pub cmd: String,
    /// Milliseconds it may run, 0 to 600000; 0, or more than the server's limit: the server's limit.
    pub timeout_ms: i64,
    /// Give the terminal's bytes as they came, with escapes and carriage returns.
    pub raw_output: bool,
    /// `stateful`: in the session's shell, after the commands before it; `stateless`: in a fresh shell in the session's
    /// directory, beside whatever else runs; empty: the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
}

/// `POST /v1/sessions/{id}/fork`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct ForkSession {
    /// A name for the copy, unique among live sessions.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Variables over those of the original.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Free marks of the copy.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `POST /v1/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct CreateSnapshot {
    /// The session to take it of.
    pub session: String,
    /// What it is to be called: 1 to 128 letters, digits, dots, hyphens and underscores.
    pub name: String,
    /// `disk`: sessions made of it start afresh on its disk; `machine`: they go on with its memory too; empty: `disk`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Leave the session running meanwhile: the disk is then as after a power cut. Only for `disk`.
    #[serde(skip_serializing_if = "is_false")]
    pub live: bool,
}

/// A snapshot of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `disk` or `machine`.
    pub kind: String,
    /// The engine that can read it.
    pub engine: String,
    /// The session it was taken of; absent: it came from a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The image that it lies over, where it does not stand alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When it was taken, RFC 3339.
    pub created_at: String,
    /// Bytes on disk; what is shared with images or other snapshots counts for each.
    pub size_bytes: u64,
}

/// `GET /v1/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct SnapshotList {
    /// By name.
    pub snapshots: Vec<SnapshotInfo>,
}

/// A snapshot in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct StoredSnapshotInfo {
    /// Its name.
    pub name: String,
    /// `disk` or `machine`.
    pub kind: String,
    /// Bytes in the store.
    pub size_bytes: u64,
}

/// `GET /v1/store/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct StoredSnapshotList {
    /// By name.
    pub snapshots: Vec<StoredSnapshotInfo>,
}

/// Long work as it stands; also the data of the `progress` and `done` events of a push and a pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct JobInfo {
    /// Its id.
    pub id: String,
    /// What it does: `import_image`, `pull_image`, `build_image`, `create_snapshot`, `push_snapshot` or `pull_snapshot`.
    pub kind: String,
    /// The name of what it works on.
    pub subject: String,
    /// `running`, `succeeded` or `failed`.
    pub state: String,
    /// What it is at, in words.
    #[serde(default)]
    pub stage: String,
    /// Bytes of this stage that are done.
    #[serde(default)]
    pub done_bytes: u64,
    /// Of so many, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it began, RFC 3339.
    pub created_at: String,
}

/// `GET /v1/jobs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct JobList {
    /// Newest first.
    pub jobs: Vec<JobInfo>,
}

/// `POST /v1/sessions/{id}/extend`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct ExtendSession {
    /// Seconds that the session is to live from now on at least, 0 to 86400; 0: its own time to live.
    pub ttl_seconds: i64,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ExecResult {
    /// Status as a shell reports it: 128 + N for death by signal N.
    pub exit_code: i32,
    /// Working directory afterwards.
    pub cwd: String,
    /// What it printed, both streams in order.
    pub output: String,
    /// The output was longer than the server keeps; this is its beginning.
    #[serde(default)]
    pub truncated: bool,
    /// Wall time in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// The memory limit ended a process of the session while the command ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Data of a stream's `chunk` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ExecChunk {
    /// Output since the last one.
    pub chunk: String,
    /// When it was read, milliseconds since the Unix epoch.
    pub timestamp: i64,
}

/// Data of a stream's `done` event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ExecDone {
    /// Status as a shell reports it.
    pub exit_code: i32,
    /// Working directory afterwards.
    pub cwd: String,
    /// Wall time in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// Output was lost because the reader was too slow.
    #[serde(default)]
    pub truncated: bool,
    /// The memory limit ended a process of the session while the command ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Data of a stream's `error` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ExecFailed {
    /// What happened, in words.
    pub error: String,
    /// Machine-readable code.
    #[serde(default)]
    pub error_code: String,
}

/// `GET /v1/sessions/{id}/stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Stats {
    /// Memory charged, in bytes.
    pub memory_bytes: u64,
    /// The memory limit; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Processor time since the start, in microseconds.
    pub cpu_usage_usec: u64,
    /// Processes and threads.
    #[serde(default)]
    pub pids: u64,
    /// Times the memory limit ended a process.
    #[serde(default)]
    pub oom_kills: u64,
}

/// `GET /v1/stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct AllStats {
    /// Use of resources by session id; only of those whose machine is there.
    pub sessions: BTreeMap<String, Stats>,
}

/// `POST /v1/sessions/{id}/fs/write`: exactly one of the two contents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct FsWrite {
    /// Where, under `/workspace`.
    pub path: String,
    /// The content as text; may be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The content in base64; may be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
}

/// `GET /v1/sessions/{id}/fs/read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct FsRead {
    /// The path as it was asked for.
    pub path: String,
    /// The content in base64.
    pub content_base64: String,
    /// The file goes on beyond what was asked for.
    #[serde(default)]
    pub truncated: bool,
}

/// `POST /v1/sessions/{id}/fs/upload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Uploaded {
    /// Always true.
    pub ok: bool,
    /// Where the files are, in the order they came.
    pub paths: Vec<String>,
}

/// `GET /v1/sessions/{id}/fs/list` and `GET /v1/workspaces/{id}/fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct FsList {
    /// Entries by name.
    pub entries: Vec<FsEntry>,
}

/// A file or directory: an entry of [`FsList`], and the answer of `GET /v1/sessions/{id}/fs/stat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct FsEntry {
    /// Its name in its directory.
    pub name: String,
    /// It is a directory.
    pub is_dir: bool,
    /// Size in bytes.
    #[serde(default)]
    pub size: u64,
    /// Kind and permissions as `ls` prints them.
    #[serde(default)]
    pub mode: String,
    /// Last change of the content, RFC 3339.
    #[serde(default)]
    pub modified_at: String,
}

/// `{"ok":true}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Okay {
    /// Always true.
    pub ok: bool,
}

/// `GET /v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ImageList {
    /// Images by name.
    pub images: Vec<ImageInfo>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// Its content's identity; two names of one image share it.
    pub digest: String,
    /// `host`, `imported` or `pulled`.
    pub kind: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Bytes of file content on disk.
    #[serde(default)]
    pub size_bytes: u64,
}

/// `GET /v1/images/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ImageDetails {
    /// What lists have.
    #[serde(flatten)]
    pub image: ImageInfo,
    /// Where it was pulled from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The digest of the manifest it was pulled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// The kind of machine it is made for, `OS/ARCHITECTURE`, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Directory to start in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User, as the image names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Program that is to be run, with its first arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Its further arguments, or the whole command where there is no entry point.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Its layers, lowest first.
    #[serde(default)]
    pub layers: Vec<ImageLayer>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct ImageLayer {
    /// The digest of its archive, uncompressed.
    pub digest: String,
    /// Bytes of file content on disk.
    pub size_bytes: u64,
}

/// `POST /v1/images/pull`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct PullImage {
    /// The image in its registry, `[REGISTRY/]NAME[:TAG][@sha256:…]`.
    pub reference: String,
    /// Its name here; empty: the last part of the reference.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The kind of machine, `OS/ARCHITECTURE`; empty: the server's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Take the name even from an image that was imported.
    #[serde(skip_serializing_if = "is_false")]
    pub replace: bool,
    /// Who asks, where the registry wants to know; empty: as the server is configured.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password or token of that user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
}

impl std::fmt::Debug for PullImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullImage").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// Event `progress` of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PullProgress {
    /// Bytes that have arrived or were here.
    pub done_bytes: u64,
    /// Bytes of all layers.
    pub total_bytes: u64,
    /// Layers that are here.
    pub layers_done: u64,
    /// All layers.
    pub layers: u64,
}

/// Event `error` of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PullFailed {
    /// As in error answers.
    pub error_code: String,
    /// In words.
    pub error: String,
}

/// `POST /v1/images/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct PruneImages {
    /// Also images that no session uses.
    pub all: bool,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PrunedImages {
    /// Names that are gone.
    pub names: Vec<String>,
    /// Bytes of files that are gone.
    pub freed_bytes: u64,
}

/// `POST /v1/images/{name}/tag`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(default)]
pub struct TagImage {
    /// The further name; if it stands for another image it moves.
    pub tag: String,
}

/// `GET /v1/pool`: the sandboxes that are kept ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PoolInfo {
    /// `off`: none is kept; `filled`: as many as wanted are; `drained`: none until somebody asks for it.
    pub state: String,
    /// One entry per image of the configuration, by name.
    pub images: Vec<PoolImageInfo>,
}

/// The pool of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PoolImageInfo {
    /// Its name.
    pub image: String,
    /// What it stands for now; empty while there is no such image.
    #[serde(default)]
    pub digest: String,
    /// How many are to wait.
    pub wanted: usize,
    /// How many wait.
    pub idle: usize,
    /// How many are being made.
    #[serde(default)]
    pub warming: usize,
    /// Requests that were served from it since the server started.
    #[serde(default)]
    pub hits: u64,
    /// Requests that found it empty since the server started.
    #[serde(default)]
    pub misses: u64,
    /// Why there are fewer than wanted, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `GET /v1/workspaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct WorkspaceList {
    /// Workspaces by id.
    pub workspaces: Vec<WorkspaceInfo>,
}

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct WorkspaceInfo {
    /// Its id.
    pub id: String,
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created_at: String,
    /// Bytes that it takes of the server's disk; absent where that would take too long to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Bytes that it may hold; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Live sessions that show it.
    #[serde(default)]
    pub session_count: usize,
    /// Those of them that run.
    #[serde(default)]
    pub active_session_count: usize,
}

/// `POST /dashboard/login`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PageLogin {
    /// The server's key.
    pub api_key: String,
}

impl std::fmt::Debug for PageLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageLogin { … }")
    }
}

/// `GET /dashboard/session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct PageSession {
    /// The caller may use the API: it is logged in, or needs no key.
    pub authenticated: bool,
    /// The server has a key; without one there is nothing to log in to.
    pub needs_key: bool,
    /// What this server can do beyond the least, for those who may use it: `bridge`, `workspaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The server's version, for those who may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// `GET /healthz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Health {
    /// Always `ok`.
    pub status: String,
}
