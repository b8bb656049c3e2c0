//! What travels over the runner's API. Field names are those of its callers; what may be absent may be `null` too. What
//! may hold a password cannot be printed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    pub(super) status: &'static str,
    /// The version of this server.
    pub(super) version: &'static str,
}

/// `GET /info`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunnerInfo {
    /// The version of this server.
    pub(super) app_version: &'static str,
    /// How its parts are.
    pub(super) service_health: Vec<ServiceHealth>,
    /// How busy it is.
    pub(super) metrics: RunnerMetrics,
}

/// How one part of a runner is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceHealth {
    /// Which.
    pub(super) service_name: &'static str,
    /// Whether it works.
    pub(super) healthy: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error_reason: Option<String>,
}

/// How busy a runner is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunnerMetrics {
    /// Load average of the last minute.
    pub(super) current_cpu_load_average: f64,
    /// Use of the processors.
    pub(super) current_cpu_usage_percentage: f64,
    /// Use of the memory.
    pub(super) current_memory_usage_percentage: f64,
    /// Use of the disk.
    pub(super) current_disk_usage_percentage: f64,
    /// Cores that sandboxes which run may use.
    pub(super) current_allocated_cpu: f64,
    /// Memory that sandboxes which run may use.
    #[serde(rename = "currentAllocatedMemoryGiB")]
    pub(super) current_allocated_memory: f64,
    /// Disk that sandboxes may use.
    #[serde(rename = "currentAllocatedDiskGiB")]
    pub(super) current_allocated_disk: f64,
    /// Images and snapshots that are here.
    pub(super) current_snapshot_count: usize,
    /// Sandboxes that run.
    pub(super) current_started_sandboxes: usize,
}

/// Where images come from, and who asks there.
#[derive(Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct Registry {
    /// Its address.
    pub(super) url: Option<String>,
    /// Who asks.
    pub(super) username: Option<String>,
    /// With which password.
    pub(super) password: Option<String>,
    /// A part of it.
    pub(super) project: Option<String>,
}

/// A volume to show inside.
#[derive(Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Volume {
    /// Which.
    pub(super) volume_id: Option<String>,
    /// Where.
    pub(super) mount_path: Option<String>,
    /// Only this part of it.
    pub(super) subpath: Option<String>,
}

/// `POST /sandboxes`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CreateSandboxDto {
    /// Its id: a UUID, or 1 to 64 letters, digits, dots, hyphens and underscores.
    #[schema(required)]
    pub(super) id: Option<String>,
    /// The image or snapshot it is made of, which must be here.
    #[schema(required)]
    pub(super) snapshot: Option<String>,
    /// Whose it is.
    pub(super) user_id: Option<String>,
    /// The user that its programs expect.
    pub(super) os_user: Option<String>,
    /// A name for people.
    pub(super) name: Option<String>,
    /// Processor cores.
    pub(super) cpu_quota: Option<i64>,
    /// Graphics processors; there are none.
    pub(super) gpu_quota: Option<i64>,
    /// Memory in GiB; from 256 on in MiB.
    pub(super) memory_quota: Option<i64>,
    /// Disk in GiB; from 256 on in MiB.
    pub(super) storage_quota: Option<i64>,
    /// Environment of its programs.
    pub(super) env: Option<BTreeMap<String, String>>,
    /// Not used: what is pulled is pulled before.
    pub(super) registry: Option<Registry>,
    /// Started with it.
    pub(super) entrypoint: Option<Vec<String>>,
    /// Not supported.
    pub(super) volumes: Option<Vec<Volume>>,
    /// It reaches nothing.
    pub(super) network_block_all: Option<bool>,
    /// It reaches only these networks: `ADDRESS/BITS,…`.
    pub(super) network_allow_list: Option<String>,
    /// Not supported.
    pub(super) domain_allow_list: Option<String>,
    /// Free marks.
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// Not used: the runner asks for its own key.
    pub(super) auth_token: Option<String>,
    /// Passed on to its programs.
    pub(super) otel_endpoint: Option<String>,
    /// Leave it stopped.
    pub(super) skip_start: Option<bool>,
    /// What runs it: `container`, `linux-vm` or `vm`.
    pub(super) sandbox_class: Option<String>,
    /// Passed on to its programs.
    pub(super) organization_id: Option<String>,
    /// Passed on to its programs.
    pub(super) region_id: Option<String>,
    /// Not supported.
    pub(super) linked_sandbox_id: Option<String>,
    /// Not supported.
    pub(super) from_volume_id: Option<String>,
}

/// A sandbox was started.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Started {
    /// The version of the agent inside.
    pub(super) daemon_version: String,
}

/// `GET /sandboxes/{sandboxId}`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxInfo {
    /// `creating`, `starting`, `started`, `pausing`, `paused`, `stopping`, `stopped`, `error`, `destroying` or `destroyed`.
    pub(super) state: &'static str,
    /// `NONE`, `IN_PROGRESS`, `COMPLETED` or `FAILED`.
    pub(super) backup_state: &'static str,
    /// What the last backup is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backup_snapshot: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backup_error: Option<String>,
    /// Whether `recover` may help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recoverable: Option<bool>,
    /// The version of the agent inside, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) daemon_version: Option<String>,
}

/// `POST /sandboxes/{sandboxId}/stop`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct StopSandboxDto {
    /// Without waiting for its programs. They never have more than a few seconds, so nothing is different.
    pub(super) force: Option<bool>,
}

/// `POST /sandboxes/{sandboxId}/resize`. What is absent or 0 stays.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct ResizeSandboxDto {
    /// Processor cores.
    pub(super) cpu: Option<i64>,
    /// Memory in GiB; from 256 on in MiB.
    pub(super) memory: Option<i64>,
    /// Disk in GiB; from 256 on in MiB.
    pub(super) disk: Option<i64>,
    /// Graphics processors; there are none.
    pub(super) gpu: Option<i64>,
    /// Not used.
    pub(super) registry: Option<Registry>,
}

/// `POST /sandboxes/{sandboxId}/backup`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct CreateBackupDto {
    /// Not used: backups go to the store of snapshots.
    pub(super) registry: Option<Registry>,
    /// What it is to be called.
    #[schema(required)]
    pub(super) snapshot: Option<String>,
}

/// `POST /sandboxes/{sandboxId}/recover`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RecoverSandboxDto {
    /// What was wrong.
    pub(super) error_reason: Option<String>,
    /// What was wrong with its backup.
    pub(super) backup_error_reason: Option<String>,
    /// Whose it is.
    pub(super) user_id: Option<String>,
    /// The user that its programs expect.
    pub(super) os_user: Option<String>,
    /// Its disk as it was first asked for, in GiB; from 256 on in MiB.
    pub(super) storage_quota: Option<i64>,
}

/// `POST /sandboxes/{sandboxId}/is-recoverable`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct IsRecoverableDto {
    /// What was wrong.
    #[schema(required)]
    pub(super) error_reason: Option<String>,
}

/// Whether it helps to recover a sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IsRecoverable {
    /// It does.
    pub(super) recoverable: bool,
}

/// What a sandbox may reach. In a request, what is absent stays.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NetworkSettings {
    /// It reaches nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network_block_all: Option<bool>,
    /// It reaches only these networks: `ADDRESS/BITS,…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network_allow_list: Option<String>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) domain_allow_list: Option<String>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network_limit_egress: Option<bool>,
}

/// `POST /sandboxes/{sandboxId}/snapshot-from-sandbox`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SnapshotFromSandboxDto {
    /// What it is to be called.
    #[schema(required)]
    pub(super) name: Option<String>,
    /// Whose it is.
    pub(super) organization_id: Option<String>,
    /// Not used: snapshots go to the store.
    pub(super) registry: Option<Registry>,
}

/// A snapshot that is here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotInfo {
    /// Its name.
    pub(super) name: String,
    /// Its size.
    #[serde(rename = "sizeGB")]
    pub(super) size_gb: f64,
    /// What runs in it.
    pub(super) entrypoint: Vec<String>,
    /// With which arguments.
    pub(super) cmd: Vec<String>,
    /// What it is, by content or id.
    pub(super) hash: String,
}

/// A snapshot that is elsewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotDigest {
    /// What it is, as far as that is known.
    pub(super) hash: String,
    /// Its size.
    #[serde(rename = "sizeGB")]
    pub(super) size_gb: f64,
}

/// `GET /snapshots/exists`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotExists {
    /// It is here.
    pub(super) exists: bool,
}

/// `POST /snapshots/pull`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PullSnapshotDto {
    /// A snapshot of the store, or an image of a registry.
    #[schema(required)]
    pub(super) snapshot: Option<String>,
    /// Who asks the registry.
    pub(super) registry: Option<Registry>,
    /// Not supported.
    pub(super) destination_registry: Option<Registry>,
    /// Not supported.
    pub(super) destination_ref: Option<String>,
    /// A further name for it here.
    pub(super) new_tag: Option<String>,
    /// `container` pulls from a registry, `linux-vm` and `vm` from the store.
    pub(super) sandbox_class: Option<String>,
}

/// `POST /snapshots/build`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct BuildSnapshotDto {
    /// What it is to be called.
    pub(super) snapshot: Option<String>,
    /// How it is made.
    #[schema(required)]
    pub(super) dockerfile: Option<String>,
    /// Whose it is.
    #[schema(required)]
    pub(super) organization_id: Option<String>,
}

/// `POST /snapshots/tag`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TagImageDto {
    /// What it is called.
    #[schema(required)]
    pub(super) source_image: Option<String>,
    /// What it is to be called too.
    #[schema(required)]
    pub(super) target_image: Option<String>,
}

/// `POST /snapshots/inspect`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct InspectSnapshotDto {
    /// Which.
    #[schema(required)]
    pub(super) snapshot: Option<String>,
    /// Who asks.
    pub(super) registry: Option<Registry>,
}

/// `POST /snapshots/create`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CreateSnapshotDto {
    /// Of which sandbox.
    #[schema(required)]
    pub(super) sandbox_id: Option<String>,
    /// What it is to be called.
    #[schema(required)]
    pub(super) name: Option<String>,
    /// Leave the sandbox running meanwhile.
    pub(super) live: Option<bool>,
}

/// A snapshot was taken.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreatedSnapshot {
    /// Its name.
    pub(super) name: String,
    /// Its place in a store: `snapshots/NAME.qcow2`, or `snapshots/NAME` with its disk and what starts it.
    pub(super) snapshot_path: String,
    /// Its size.
    pub(super) size_bytes: u64,
    /// The sandbox ran meanwhile.
    pub(super) live_mode: bool,
}

/// `POST /snapshots/push`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PushSnapshotDto {
    /// Of which sandbox, stopped or paused.
    #[schema(required)]
    pub(super) sandbox_id: Option<String>,
    /// What it is to be called.
    #[schema(required)]
    pub(super) snapshot_name: Option<String>,
}

/// A snapshot was pushed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PushedSnapshot {
    /// Its name.
    pub(super) snapshot_name: String,
    /// Its place in the store: `snapshots/NAME.qcow2`, or `snapshots/NAME` with its disk and what starts it.
    pub(super) snapshot_path: String,
    /// Its size.
    pub(super) size_bytes: u64,
}
