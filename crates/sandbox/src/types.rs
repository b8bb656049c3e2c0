//! The nouns of the domain.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    digits,
    error::{Error, Kind},
};

pub use sandhaus_images::{DiskImage, ImageName, Tree, TreeBind, WORKLOAD_HOME, WORKLOAD_ID, WORKLOAD_NAME};

/// Names a sandbox: `^[0-9a-f]{8}-[0-9a-f]{3,4}$` or a whole UUID, lower case. Parsed once, never used as a path
/// before that; it is safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// Longest id in bytes.
    pub const BYTES_MAX: usize = 36;

    /// Checks an id; upper case is folded.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let shape = matches!(groups.as_slice(), [8, 3 | 4] | [8, 4, 4, 4, 12]);
        if shape && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(Error::new(Kind::Invalid, "invalid session id format"))
        }
    }

    /// A fresh id of the short form: the first 12 characters of a random UUID.
    pub fn random() -> Self {
        let digits = digits::random::<6>();
        Self(format!("{}-{}", &digits[..8], &digits[8..11]))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SandboxId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// Raised durably before each start of a machine; a machine or an image of an older one never counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a sandbox belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OwnerId(pub String);

/// An engine as registered by the binary: an opaque word here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EngineName(pub String);

/// Names a snapshot, and the directory it lies in: 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

impl SnapshotId {
    /// Length of an id in bytes.
    pub const BYTES: usize = 16;

    /// Checks an id.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == Self::BYTES && text.bytes().all(digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::new(Kind::Invalid, "invalid snapshot id"))
        }
    }

    /// A fresh id.
    pub fn random() -> Self {
        Self(digits::random::<{ Self::BYTES / 2 }>())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

/// What an owner calls a snapshot: 1 to 128 letters, digits, dots, hyphens and underscores, beginning with a letter or a
/// digit. Parsed once; safe as a file name and as a part of a key in a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks a name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let shape = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if first && text.len() <= Self::BYTES_MAX && text.bytes().all(shape) {
            return Ok(Self(text.to_owned()));
        }
        let most = Self::BYTES_MAX;
        Err(Error::new(
            Kind::Invalid,
            format!(
                "a snapshot's name must be 1 to {most} letters, digits, dots, hyphens and underscores, and begin with a \
                 letter or digit"
            ),
        ))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for SnapshotName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

/// Longest name of a sandbox, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Most marks on a sandbox.
pub const LABELS_MAX: usize = 64;

/// Longest key of a mark, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 128;

/// Longest value of a mark, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 1024;

/// Most environment variables of a sandbox.
pub const ENV_MAX: usize = 512;

/// Longest environment variable, name and value together, in bytes (the kernel's own limit is 128 KiB).
pub const ENV_BYTES_MAX: usize = 64 * 1024;

/// Longest environment altogether, in bytes.
pub const ENV_TOTAL_BYTES_MAX: usize = 256 * 1024;

/// Most host directories shown inside.
pub const MOUNTS_MAX: usize = 64;

/// Most words of an entry point.
pub const ENTRYPOINT_WORDS_MAX: usize = 1024;

/// Longest entry point altogether, in bytes.
pub const ENTRYPOINT_BYTES_MAX: usize = 64 * 1024;

/// Longest path inside, in bytes.
pub const PATH_BYTES_MAX: usize = sandhaus_protocol::files::PATH_BYTES_MAX;

/// Most networks of one allow list.
pub const ALLOWED_NETWORKS_MAX: usize = 64;

/// Most ports of a sandbox that are published.
pub const PUBLISHED_PORTS_MAX: usize = 32;

/// First id on disk of everything in a workspace. Id `n` inside is `WORKSPACE_ID_BASE + n` on disk, except that the
/// workload's user is always `WORKSPACE_ID_BASE + WORKLOAD_ID`, whatever its number inside: so sandboxes of both security
/// profiles share one workspace, and no user of the host owns anything in it. Just below the ids of sandboxes.
pub const WORKSPACE_ID_BASE: u32 = 0x3fff_0000;

/// Least memory a sandbox can live with.
pub const MEMORY_BYTES_MIN: u64 = 8 << 20;

/// Least number of processes and threads a sandbox can live with.
pub const PIDS_MIN: u32 = 8;

/// Longest time to live that can be asked for: a hundred years. Longer means for ever, and is said as zero.
pub const TTL_MS_MAX: u64 = 100 * 366 * 24 * 3600 * 1000;

/// Free key-value marks on a sandbox.
pub type Labels = BTreeMap<String, String>;

/// Environment variables.
pub type Env = BTreeMap<String, String>;

/// What is wanted of a sandbox, and nothing that is only observed. This is the stored row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its name towards everyone.
    pub id: SandboxId,
    /// A name its owner gave it.
    pub name: Option<String>,
    /// Who it belongs to.
    pub owner: OwnerId,
    /// What it is made of.
    pub spec: SandboxSpec,
    /// What is wanted.
    pub goal: Goal,
    /// The newest generation a machine of it may carry.
    pub generation: Generation,
    /// What of it lies on disk.
    pub holdings: Holdings,
    /// Whether its machine is believed up.
    pub life: Life,
    /// When the clock changes the goal.
    pub deadlines: Deadlines,
    /// Free marks.
    pub labels: Labels,
    /// Why it is not as first wanted.
    pub failure: Option<Failure>,
    /// When the row was made, milliseconds since the Unix epoch; for one from a pool, when its owner got it.
    pub created_at_ms: i64,
    /// Whether it belongs to somebody.
    #[serde(default)]
    pub tenancy: Tenancy,
}

/// Whether a sandbox belongs to somebody, or is kept ready for whoever asks for one like it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenancy {
    /// Made for its owner.
    #[default]
    Own,
    /// Nobody's: it waits in the pool. Nothing of a request has ever reached it.
    Idle,
    /// It came from the pool. The machine of this generation was started before its owner was known, so its agent is told
    /// the owner's environment with each greeting.
    Claimed(Generation),
}

/// What a sandbox is made of. Fixed at creation, but for limits and network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Where its root comes from.
    pub source: Source,
    /// Which engine runs it.
    pub engine: EngineName,
    /// What runs inside.
    pub os: GuestOs,
    /// Its limits.
    pub resources: Resources,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// How the workload is confined.
    pub security: SecurityProfile,
    /// The root file system is read-only; `/workspace`, `/tmp`, `/run`, the home and `/dev/shm` stay writable.
    pub readonly_root: bool,
    /// Environment of every process.
    pub env: Env,
    /// Directory to start in; absent: the image's, else `/workspace`.
    pub workdir: Option<String>,
    /// Host directories shown inside. Never filled from a request over the network.
    pub mounts: Vec<Mount>,
    /// Started beside the agent.
    pub entrypoint: Vec<String>,
    /// Shell of the persistent sessions.
    #[serde(default)]
    pub shell: sandhaus_protocol::boot::ShellPreference,
    /// Start the default shell with the machine.
    #[serde(default)]
    pub warm_shell: bool,
    /// How system calls are filtered.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// The workspace shown at `/workspace`; absent: a directory that goes with the sandbox.
    #[serde(default)]
    pub workspace: Option<WorkspaceId>,
    /// Ports of it that the host's loopback shows.
    #[serde(default)]
    pub publish: Vec<PublishedPort>,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A local image, by name and by the digest it had at creation.
    Image {
        /// The name that was asked for.
        name: ImageName,
        /// What it stood for then: a later move of the name changes nothing here.
        digest: String,
    },
    /// A snapshot of this server.
    Snapshot {
        /// Which.
        id: SnapshotId,
        /// It has the memory of a machine too.
        memory: bool,
        /// The image that it lies over, where it does not stand alone.
        image: Option<(ImageName, String)>,
    },
}

impl Source {
    /// The image's digest.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Image { digest, .. } => Some(digest),
            Self::Snapshot { image, .. } => image.as_ref().map(|(_, digest)| digest.as_str()),
        }
    }

    /// The snapshot.
    pub fn snapshot(&self) -> Option<&SnapshotId> {
        match self {
            Self::Image { .. } => None,
            Self::Snapshot { id, .. } => Some(id),
        }
    }

    /// It is the image with this digest.
    pub fn is(&self, wanted: &str) -> bool {
        self.digest() == Some(wanted)
    }
}

/// What runs inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestOs {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
}

/// Limits. Zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in bytes; swap does not stretch it.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes the writable layer may hold.
    pub disk_bytes: u64,
}

/// What a sandbox may reach. Never the host's own services, other sandboxes, link-local or metadata addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPolicy {
    /// Its own loopback only.
    #[default]
    None,
    /// An address of its own behind NAT: the internet, and of private networks what the server's owner allows.
    Bridge,
    /// The same, but these networks only; at most [`ALLOWED_NETWORKS_MAX`].
    Allow(Vec<IpNet>),
    /// The host's own network, without any isolation. Only the server's owner can choose it, never a request.
    Host,
}

/// A TCP port of a sandbox that the host's loopback shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The port inside.
    pub port: u16,
    /// The port of the host's loopback; zero in a request: any that is free.
    pub host_port: u16,
}

/// How system calls are filtered. The names are those of the older tool's configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// Not at all.
    Off,
    /// What acts on the kernel itself is refused; namespaces and tracing inside are allowed.
    Mvp,
    /// All that a usual workload does not need is refused.
    #[default]
    Strict,
}

/// Names a workspace: `^[a-z0-9][a-z0-9-]*[a-z0-9]$`, 2 to 64 bytes. Parsed once; safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceId(String);

impl WorkspaceId {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Shortest name in bytes.
    pub const BYTES_MIN: usize = 2;

    /// What older clients put before a name; it never counts.
    pub const LEGACY_PREFIX: &str = "sandkasten-ws-";

    /// Checks a name. The legacy prefix is taken off first, wherever the name comes from.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let name = text.strip_prefix(Self::LEGACY_PREFIX).unwrap_or(text);
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let problem = if name.len() < Self::BYTES_MIN {
            "must be at least 2 characters"
        } else if name.len() > Self::BYTES_MAX {
            "must not exceed 64 characters"
        } else if !name.bytes().all(inner) || name.starts_with('-') || name.ends_with('-') {
            "must contain only lowercase letters, numbers, and hyphens, and cannot start or end with a hyphen"
        } else {
            return Ok(Self(name.to_owned()));
        };
        Err(Error::new(Kind::Invalid, format!("workspace_id {problem}")))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for WorkspaceId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl TryFrom<String> for WorkspaceId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<WorkspaceId> for String {
    fn from(id: WorkspaceId) -> Self {
        id.0
    }
}

/// How the workload is confined inside; outside it is the same unprivileged uid range for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityProfile {
    /// An unprivileged user, no capabilities, no_new_privs.
    Strict,
    /// Root of its own user namespace with a container's usual capabilities inside it only; setuid works.
    Container,
}

/// A host directory shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: String,
    /// Whether writes reach the host.
    pub access: Access,
}

/// Whether writes are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What is wanted of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Its machine runs and the agent answers.
    Running,
    /// Its machine is frozen, memory in RAM.
    Paused,
    /// No machine; memory on disk.
    Suspended,
    /// No machine, disk kept.
    Stopped,
    /// Only in the snapshot store.
    Archived,
    /// Nothing of it is left.
    Absent,
}

/// Whether a machine is believed up. It decides what a missing machine means: one that is [`Life::Up`] ended by itself,
/// any other has yet to be started. Written without waiting for it: a lost write costs a start, never data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// No machine of it ever answered and nobody asked for another goal: if it cannot start, nothing of it is kept.
    #[default]
    New,
    /// The machine of this generation answered.
    Up(Generation),
    /// No machine is wanted, or a new one has not answered yet.
    Down,
}

/// What of a sandbox lies outside its machine, durably recorded; the planner never drops data that this names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holdings {
    /// The generation of its disk; absent until it was made once. A recorded disk that is missing is a failure,
    /// never a reason to make an empty one.
    pub disk: Option<Generation>,
    /// The generation of its memory image; it counts only if it equals the disk's.
    pub memory: Option<Generation>,
    /// The generation of its archive in the snapshot store; it counts only if it equals the disk's.
    pub archive: Option<Generation>,
}

/// When the clock changes the goal; milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// The time to live asked for, in milliseconds; each use extends `expires_at_ms` to at least now + this.
    pub ttl_ms: u64,
    /// Then the goal becomes [`Goal::Absent`]. Absent: never.
    pub expires_at_ms: Option<i64>,
}

/// Why a sandbox is not as first wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened.
    pub kind: FailureKind,
    /// In words that are safe to show.
    pub message: String,
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// What happened to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Its machine ended by itself.
    Crashed,
    /// The memory limit ended it.
    OutOfMemory,
    /// It could not be started.
    StartFailed,
    /// Its disk is gone.
    DataLost,
}

/// What a sandbox is doing: computed from the row and from what is seen, never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// In one word.
    pub phase: Phase,
    /// Of the row.
    pub generation: Generation,
    /// Why it is not as first wanted.
    pub failure: Option<Failure>,
}

/// A sandbox's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// On its way to running.
    Starting,
    /// Its machine runs and the agent answered.
    Running,
    /// Frozen.
    Paused,
    /// Memory on disk.
    Suspended,
    /// No machine.
    Stopped,
    /// On its way to no machine.
    Stopping,
    /// Only in the store.
    Archived,
    /// On its way out.
    Deleting,
    /// Gone; known from the history only.
    Deleted,
    /// It ended by itself or could not be started.
    Failed,
}

/// A sandbox as the edges see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxView {
    /// The row.
    pub sandbox: Sandbox,
    /// What it is doing.
    pub status: Status,
    /// How it ended, for the rows of the history.
    pub ended: Option<Ended>,
}

impl SandboxView {
    /// It waits in the pool, or is on its way there or out of it.
    pub fn is_idle(&self) -> bool {
        self.sandbox.tenancy == Tenancy::Idle
    }
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Somebody deleted it.
    Deleted,
    /// Its time to live ran out.
    Expired,
}

/// Use of resources at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory charged, in bytes.
    pub memory_bytes: u64,
    /// The memory limit; absent where there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Processor time since the start, in microseconds.
    pub cpu_usage_usec: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Times the memory limit ended a process.
    pub oom_kills: u64,
}
