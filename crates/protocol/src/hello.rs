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
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HelloReply {
    /// The protocol both will speak: the lower of the two sides' newest.
    pub protocol: u32,
    /// The agent's own version.
    pub version: String,
    /// The sandbox it serves.
    pub sandbox_id: String,
    /// The generation it serves.
    pub generation: u64,
    /// What this agent can do, by name; what is missing is refused by the host by that name.
    pub features: Vec<Feature>,
    /// Working directory of the default shell, or where it would start.
    pub cwd: String,
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
    /// Variables in the greeting.
    Env,
    /// Anything a newer agent announces that this build does not know.
    #[serde(other)]
    Unknown,
}
