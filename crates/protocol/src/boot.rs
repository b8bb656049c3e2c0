//! What the launcher hands to the agent when it starts as PID 1 of a container: one JSON document on an inherited
//! file descriptor, so that nothing of it shows in argv or in the environment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// File descriptor of the listening Unix socket that the agent inherits as PID 1.
pub const LISTEN_FD: i32 = 3;

/// File descriptor from which the agent reads [`BootConfig`] as JSON until end of file, then closes it.
pub const CONFIG_FD: i32 = 4;

/// Largest boot document in bytes.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The agent's start-up document as PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// The sandbox this agent belongs to; hello must name the same.
    pub sandbox_id: String,
    /// The generation of the machine; hello must name the same.
    pub generation: u64,
    /// Who the workload runs as.
    pub user: Workload,
    /// Environment of every process the agent starts (PATH, HOME, LANG, TERM and the sandbox's own).
    pub env: BTreeMap<String, String>,
    /// Absolute directory in which shells and processes start.
    pub workdir: String,
    /// Which shell the persistent sessions prefer.
    #[serde(default)]
    pub shell: ShellPreference,
    /// Command started beside the agent, in the reserved session `entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Start the default shell at boot, so that the first command finds it waiting.
    #[serde(default)]
    pub warm_shell: bool,
    /// What the machine may use, which it cannot always see from the inside.
    #[serde(default)]
    pub limits: Limits,
}

/// What a machine may use at most; what is not said is what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// The identity and confinement of everything the agent starts on the user's behalf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// User id inside the sandbox.
    pub uid: u32,
    /// Primary group id inside the sandbox.
    pub gid: u32,
    /// Login name, for USER and LOGNAME.
    pub name: String,
    /// Home directory, absolute.
    pub home: String,
    /// Drop every capability (also from the bounding set) and set no_new_privs before exec.
    pub unprivileged: bool,
}

/// Shell of the persistent sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShellPreference {
    /// bash where the image has one, else sh.
    #[default]
    Bash,
    /// sh.
    Sh,
}
