//! The greeting: `POST /sandhaus/hello`, sent by the host after every start, adoption and restore.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Path of the greeting.
pub const PATH: &str = "/sandhaus/hello";

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HelloRequest {
    /// The newest protocol the host speaks ([`crate::PROTOCOL_VERSION`]).
    pub protocol: u32,
    /// The sandbox the host believes it is talking to. The agent refuses another (409).
    pub sandbox_id: String,
    /// The generation the host believes is running. The agent refuses another (409).
    pub generation: u64,
    /// Variables that were not known when the machine started, over those of its boot document. Accepted once by an agent
    /// that announces [`Feature::Env`], and again with the same content; other variables are refused then (409).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// For the agent of a virtual machine, which has no boot document: who and where it is. Such an agent serves nothing but
    /// greetings, and those only from the host's own address, until it was greeted; a greeting of another sandbox or a
    /// newer generation says that its machine is a copy, or went on from a memory image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub guest: Option<Box<Guest>>,
    /// Who may come in by SSH and the terminal in a browser; it takes the place of what an earlier greeting said. Without it
    /// nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub ssh: Option<Box<crate::ssh::Access>>,
}

/// What the agent of a virtual machine is told with each greeting. The first one is its boot document; later ones change
/// what a copy must not share with its original: the clock, the random numbers, the names, the token, the variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// What a sandbox of namespaces is told at its start. Its ids equal those of the greeting.
    pub boot: crate::boot::BootConfig,
    /// Host name.
    pub hostname: String,
    /// The time, in nanoseconds since the Unix epoch: the clock is set before the greeting is answered.
    pub unix_time_ns: i64,
    /// Bytes for the kernel's pool of random numbers, in hexadecimal digits: 64 bytes that nobody else is told.
    pub entropy: String,
    /// What everyone but the host must show as `Authorization: Bearer …` from now on.
    pub token: String,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HelloReply {
    /// The protocol both will speak: the lower of the two sides' newest.
    pub protocol: u32,
    /// The agent's own version.
    pub version: String,
    /// What tells its build from every other ([`crate::upgrade::build_of`] its executable); absent where it cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// The sandbox it serves.
    pub sandbox_id: String,
    /// The generation it serves.
    pub generation: u64,
    /// What this agent can do, by name; what is missing is refused by the host by that name.
    pub features: Vec<Feature>,
    /// Working directory of the default shell, or where it would start.
    pub cwd: String,
    /// How far its clock was off before this greeting, in nanoseconds; positive: it was behind. Only in answer to
    /// [`Guest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_ns: Option<i64>,
}

/// A part of the toolbox that an agent may or may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Persistent shells (`/sandhaus/shell`).
    Shell,
    /// Process streams (`/sandhaus/process`).
    Process,
    /// One-shot execution (`/process/execute`).
    Execute,
    /// Sessions (`/process/session`).
    Session,
    /// Terminals (`/process/pty`).
    Pty,
    /// Files (`/files`).
    Files,
    /// Changes of files as they happen ([`crate::watch`]).
    Watch,
    /// What the sandbox uses, its environment, its ports ([`crate::system`]).
    System,
    /// The way to a port (`/proxy`).
    Proxy,
    /// Variables in the greeting.
    Env,
    /// It takes [`Guest`].
    Guest,
    /// Running code (`/process/code-run`).
    CodeRun,
    /// Interpreter contexts (`/process/interpreter`).
    Interpreter,
    /// Replacing it while it runs ([`crate::upgrade`]).
    Upgrade,
    /// Git (`/git`).
    Git,
    /// Language servers (`/lsp`).
    Lsp,
    /// SSH, the terminal in a browser and the rescue door, told in the greeting.
    Ssh,
    /// Anything a newer agent announces that this build does not know.
    #[serde(other)]
    Unknown,
}
