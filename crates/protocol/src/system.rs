//! Wire types of the routes about the sandbox as a machine (docs: `daytona.md` sections 1.3 and 1.11): what it uses, what
//! its later processes find in their environment, which ports are open. Names are the contract's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most variables that one change of the environment names.
pub const VARIABLES_MAX: usize = 4096;

/// Most bytes of all names and values together that new processes are given: what the kernel takes at a start, with room for
/// arguments.
pub const ENVIRONMENT_BYTES_MAX: usize = 1 << 20;

/// Longest value of one variable: the kernel takes 128 KiB with its name.
pub const VALUE_BYTES_MAX: usize = 120 * 1024;

/// Ports that can be asked for one by one.
pub const ASKED_PORTS: std::ops::RangeInclusive<u16> = 3000..=9999;

/// What the sandbox uses of what it has. Bytes where nothing else is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Metrics {
    /// When, RFC 3339.
    pub timestamp: String,
    /// The same in seconds since 1970.
    pub timestamp_unix: i64,
    /// Processors it may use, in whole ones.
    pub cpu_count: u32,
    /// Part of them that was used over the last seconds, in percent of all of them.
    pub cpu_used_pct: f64,
    /// Memory in use that cannot be given back at once.
    pub mem_used: u64,
    /// Memory it may use.
    pub mem_total: u64,
    /// Contents of files kept in memory.
    pub mem_cache: u64,
    /// Used of the file system with the work directory.
    pub disk_used: u64,
    /// Its size.
    pub disk_total: u64,
    /// What the workload can still write to it.
    pub disk_free: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryStats {
    /// What the sandbox may use.
    pub total: u64,
    /// Used for nothing at all.
    pub free: u64,
    /// What new processes could get.
    pub available: u64,
    /// In use and not to be given back at once.
    pub used: u64,
    /// Contents of files.
    pub cached: u64,
    /// Memory that lies on a disk.
    pub swap: u64,
}

/// A change of what later processes find in their environment: first names go, then values, then new ones come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateEnv {
    /// New values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<BTreeMap<String, String>>,
    /// Names to remove.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unset: Option<Vec<String>>,
    /// Removes whatever has a value that begins so and is not set anew. Empty: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unset_value_prefix: Option<String>,
}

/// What a control plane says once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Initialize {
    /// The sandbox's key at the control plane. The agent reports to nobody and keeps it not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Directory {
    /// Its absolute path.
    pub dir: String,
}

/// Ports on which something listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortList {
    /// In ascending order.
    pub ports: Vec<u16>,
}

/// Whether something takes connections at a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortInUse {
    /// It did just now.
    pub is_in_use: bool,
}
