//! What `/metrics` tells, in Prometheus' text form. The recorder belongs to this edge, not to the process, so that
//! two edges in one process count apart.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use sandhaus_sandbox::{Phase, SandboxView, pool::PoolStatus};

/// Upper bounds of the duration histograms, in seconds.
const BUCKETS: &[f64] = &[
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
    600.0,
];

/// How often samples are folded into their buckets when nobody asks for them.
pub(crate) const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Every phase that a live sandbox can be in.
const PHASES: [Phase; 9] = [
    Phase::Starting,
    Phase::Running,
    Phase::Paused,
    Phase::Suspended,
    Phase::Stopped,
    Phase::Stopping,
    Phase::Archived,
    Phase::Deleting,
    Phase::Failed,
];

/// Counts and durations of one edge.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets(BUCKETS)
            .expect("the bucket list is not empty")
            .build_recorder();
        let handle = recorder.handle();
        Self { recorder, handle }
    }

    /// A request was answered. For streams the time ends with the answer's head.
    pub(crate) fn request(&self, method: &Method, route: &str, status: StatusCode, taken: Duration) {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            Method::PATCH => "PATCH",
            Method::OPTIONS => "OPTIONS",
            _ => "OTHER",
        };
        let status = status.as_str().to_owned();
        with_local_recorder(&self.recorder, || {
            counter!("sandhaus_http_requests_total", "method" => method, "route" => route.to_owned(), "status" => status)
                .increment(1);
            histogram!("sandhaus_http_request_duration_seconds", "route" => route.to_owned())
                .record(taken.as_secs_f64());
        });
    }

    /// A session was made.
    pub(crate) fn created(&self, taken: Duration) {
        with_local_recorder(&self.recorder, || {
            counter!("sandhaus_sessions_created_total").increment(1);
            histogram!("sandhaus_session_create_duration_seconds").record(taken.as_secs_f64());
        });
    }

    /// A command ended, or its wait did.
    pub(crate) fn executed(&self, outcome: &'static str, taken: Duration) {
        with_local_recorder(&self.recorder, || {
            counter!("sandhaus_execs_total", "outcome" => outcome).increment(1);
            histogram!("sandhaus_exec_duration_seconds").record(taken.as_secs_f64());
        });
    }

    /// A runner's operation on a sandbox or snapshot ended.
    pub(crate) fn operation<T, E>(&self, operation: &'static str, outcome: &Result<T, E>, taken: Duration) {
        let status = if outcome.is_ok() { "success" } else { "failure" };
        with_local_recorder(&self.recorder, || {
            counter!("container_operation_total", "operation" => operation, "status" => status).increment(1);
            histogram!("container_operation_duration_seconds", "operation" => operation)
                .record(taken.as_secs_f64());
        });
    }

    /// Folds samples into their buckets.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Everything, with the sandboxes that live now and those that wait in the pool.
    pub(crate) fn render(&self, live: &[SandboxView], pool: &PoolStatus) -> String {
        with_local_recorder(&self.recorder, || {
            for phase in PHASES {
                let owned = live.iter().filter(|view| view.status.phase == phase && !view.is_idle());
                gauge!("sandhaus_sandboxes", "phase" => phase_name(phase)).set(number(owned.count()));
            }
            for image in &pool.images {
                let name = image.image.to_string();
                let states = [("idle", image.idle), ("warming", image.warming), ("wanted", image.wanted)];
                for (state, count) in states {
                    gauge!("sandhaus_pool_sandboxes", "image" => name.clone(), "state" => state)
                        .set(number(count));
                }
                for (outcome, count) in [("hit", image.hits), ("miss", image.misses)] {
                    counter!("sandhaus_pool_requests_total", "image" => name.clone(), "outcome" => outcome)
                        .absolute(count);
                }
            }
        });
        self.handle.render()
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Suspended => "suspended",
        Phase::Stopped => "stopped",
        Phase::Stopping => "stopping",
        Phase::Archived => "archived",
        Phase::Deleting => "deleting",
        Phase::Deleted => "deleted",
        Phase::Failed => "failed",
    }
}
