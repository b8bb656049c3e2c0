//! From the domain's nouns to this dialect's words.

use std::time::Duration;

use jiff::Timestamp;
use sandhaus_client::wire::{FailureInfo, Limits, Port, SessionInfo};
use sandhaus_sandbox::{
    EndReason, Failure, FailureKind, NetworkPolicy, Phase, SandboxView, Seccomp, SecurityProfile, Source,
};

/// What `expires_at` says of a session that never expires: clients need a time.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// Where commands start unless the session says otherwise.
pub(crate) const WORKSPACE: &str = "/workspace";

/// A session as this dialect shows it.
pub(crate) fn session_info(view: &SandboxView) -> SessionInfo {
    let sandbox = &view.sandbox;
    let spec = &sandbox.spec;
    SessionInfo {
        id: sandbox.id.to_string(),
        image: match &spec.source {
            Source::Image { name, .. } => name.to_string(),
            Source::Snapshot { id, image, .. } => {
                image.as_ref().map_or_else(|| id.to_string(), |(name, _)| name.to_string())
            }
        },
        status: status(view).to_owned(),
        cwd: spec.workdir.clone().unwrap_or_else(|| WORKSPACE.to_owned()),
        created_at: time(sandbox.created_at_ms),
        expires_at: sandbox.deadlines.expires_at_ms.map_or_else(|| NEVER.to_owned(), time),
        workspace_id: spec.workspace.as_ref().map(ToString::to_string),
        acquire_source: None,
        acquire_detail: None,
        name: sandbox.name.clone(),
        labels: sandbox.labels.clone(),
        engine: spec.engine.0.clone(),
        snapshot: spec.source.snapshot().map(ToString::to_string),
        generation: sandbox.generation.0,
        limits: Limits {
            cpus: f64::from(spec.resources.cpu_millis) / 1000.0,
            memory_bytes: spec.resources.memory_bytes,
            pids: spec.resources.pids,
            disk_bytes: spec.resources.disk_bytes,
        },
        network: match spec.network {
            NetworkPolicy::None => "none",
            NetworkPolicy::Bridge => "bridge",
            NetworkPolicy::Allow(_) => "allow",
            NetworkPolicy::Host => "host",
        }
        .to_owned(),
        network_allow: match &spec.network {
            NetworkPolicy::Allow(networks) => networks.iter().map(ToString::to_string).collect(),
            NetworkPolicy::None | NetworkPolicy::Bridge | NetworkPolicy::Host => Vec::new(),
        },
        ports: spec
            .publish
            .iter()
            .map(|published| Port { port: published.port, host_port: published.host_port })
            .collect(),
        seccomp: match spec.seccomp {
            Seccomp::Off => "off",
            Seccomp::Mvp => "mvp",
            Seccomp::Strict => "strict",
        }
        .to_owned(),
        security: match spec.security {
            SecurityProfile::Strict => "strict".to_owned(),
            SecurityProfile::Container => "container".to_owned(),
        },
        failure: view.status.failure.as_ref().or(sandbox.failure.as_ref()).map(failure_info),
        ended_at: view.ended.map(|ended| time(ended.at_ms)),
    }
}

/// Why a session is not as first wanted, as this dialect shows it.
pub(crate) fn failure_info(failure: &Failure) -> FailureInfo {
    FailureInfo {
        kind: failure_kind(failure.kind).to_owned(),
        message: failure.message.clone(),
        at: time(failure.at_ms),
    }
}

/// A session's state in this dialect's words.
pub(crate) fn status(view: &SandboxView) -> &'static str {
    if let Some(ended) = view.ended {
        return match ended.reason {
            EndReason::Deleted => "destroyed",
            EndReason::Expired => "expired",
        };
    }
    match view.status.phase {
        Phase::Starting | Phase::Running if view.is_idle() => "pool_idle",
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Suspended => "suspended",
        Phase::Stopping => "stopping",
        Phase::Stopped if view.status.failure.is_some() => "crashed",
        Phase::Stopped => "stopped",
        Phase::Archived => "archived",
        Phase::Deleting => "destroying",
        Phase::Deleted => "destroyed",
        Phase::Failed => "crashed",
    }
}

fn failure_kind(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Crashed => "crashed",
        FailureKind::OutOfMemory => "out_of_memory",
        FailureKind::StartFailed => "start_failed",
        FailureKind::DataLost => "data_lost",
    }
}

/// RFC 3339 in UTC, with the fraction that there is.
pub(crate) fn time(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

/// A duration as Go prints it: `1s`, `1.5s`, `250ms`, `1m30s`, `1h0m0s`. Clients match on it.
pub(crate) fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, fraction) = (millis / 1000 % 60, millis % 1000);
    let seconds = if fraction == 0 {
        format!("{seconds}s")
    } else {
        format!("{}s", format!("{seconds}.{fraction:03}").trim_end_matches('0'))
    };
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_prints_them() {
        for (millis, text) in [
            (0, "0s"),
            (1, "1ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (1050, "1.05s"),
            (60_000, "1m0s"),
            (90_250, "1m30.25s"),
            (3_600_000, "1h0m0s"),
            (3_661_001, "1h1m1.001s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(i64::MAX), NEVER);
    }
}
