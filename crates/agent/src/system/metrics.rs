//! What the sandbox uses. Nothing is measured while nobody asks: processor time is a difference between two looks, and the
//! earlier one is that of an earlier question, if it is of the last seconds, else one taken a moment before.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State};
use sandhaus_protocol::{
    boot::Limits,
    system::{MemoryStats, Metrics},
};

use crate::{
    agent::Agent,
    clock,
    error::{Error, Result},
    sys::{self, Gauge, Scope},
};

/// The time over which use of the processors is counted.
const WINDOW: Duration = Duration::from_secs(5);

/// A look older than this tells of another time.
const AGE_MAX: Duration = Duration::from_secs(10);

/// The shortest time that tells anything: the kernel counts in hundredths of a second in places.
const SPAN_MIN: Duration = Duration::from_millis(200);

/// Looks that are kept.
const LOOKS_MAX: usize = 64;

/// How far apart those are at least.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What is remembered between two questions.
pub(crate) struct Usage {
    scope: Scope,
    limits: Limits,
    gauge: OnceLock<Gauge>,
    looks: Mutex<VecDeque<Look>>,
}

/// Processor time at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    at: Instant,
    used: Duration,
}

impl Usage {
    /// Nothing is looked at yet.
    pub(crate) fn new(scope: Scope, limits: Limits) -> Self {
        Self { scope, limits, gauge: OnceLock::new(), looks: Mutex::default() }
    }

    fn gauge(&self) -> &Gauge {
        self.gauge.get_or_init(|| Gauge::find(self.scope, self.limits))
    }

    /// Looks, and gives the look to compare with, if one of the last seconds is far enough back. Blocking.
    fn look(&self) -> (Look, Option<Look>) {
        let now = Look { at: Instant::now(), used: self.gauge().processor_time() };
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = earlier(&looks, now.at);
        if looks.back().is_none_or(|last| now.at.saturating_duration_since(last.at) >= LOOK_INTERVAL) {
            if looks.len() == LOOKS_MAX {
                looks.pop_front();
            }
            looks.push_back(now);
        }
        (now, earlier)
    }
}

/// The latest look that lies a whole window back, else the oldest that is far enough back.
fn earlier(looks: &VecDeque<Look>, now: Instant) -> Option<Look> {
    let age = |look: &Look| now.saturating_duration_since(look.at);
    let usable = || looks.iter().filter(|look| (SPAN_MIN..=AGE_MAX).contains(&age(look)));
    usable().rfind(|look| age(look) >= WINDOW).or_else(|| usable().next()).copied()
}

/// Percent of `processors` that were used between two looks.
fn percent(from: Look, to: Look, processors: f64) -> f64 {
    let span = to.at.saturating_duration_since(from.at).as_secs_f64();
    if span <= 0.0 || processors <= 0.0 {
        return 0.0;
    }
    let used = to.used.saturating_sub(from.used).as_secs_f64();
    (used / (span * processors) * 100.0).clamp(0.0, 100.0)
}

/// `GET /system/metrics`.
pub(crate) async fn metrics(State(agent): State<Arc<Agent>>) -> Result<Json<Metrics>> {
    let look = |agent: &Arc<Agent>| {
        let agent = Arc::clone(agent);
        move || agent.usage.look()
    };
    let (mut now, mut before) = agent.on_file_thread(look(&agent)).await;
    if before.is_none() {
        tokio::time::sleep(SPAN_MIN).await;
        let first = now;
        (now, before) = agent.on_file_thread(look(&agent)).await;
        before = before.or(Some(first));
    }
    let asked = Arc::clone(&agent);
    let (processors, memory, disk) = agent
        .on_file_thread(move || {
            let gauge = asked.usage.gauge();
            (gauge.processors(), gauge.memory(), sys::space(&asked.workdir))
        })
        .await;
    let disk = disk.map_err(|error| Error::file(&agent.workdir, &error))?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Json(Metrics {
        timestamp: clock::now_rfc3339(),
        timestamp_unix: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        cpu_count: whole(processors),
        cpu_used_pct: before.map_or(0.0, |before| percent(before, now, processors)),
        mem_used: memory.used,
        mem_total: memory.total,
        mem_cache: memory.cached,
        disk_used: disk.used,
        disk_total: disk.total,
        disk_free: disk.free,
    }))
}

/// Parts of a processor count as one.
fn whole(processors: f64) -> u32 {
    (1..u32::from(u16::MAX)).find(|count| f64::from(*count) >= processors).unwrap_or(u32::from(u16::MAX))
}

/// `GET /memory-stats`.
pub(crate) async fn memory(State(agent): State<Arc<Agent>>) -> Json<MemoryStats> {
    let asked = Arc::clone(&agent);
    Json(agent.on_file_thread(move || asked.usage.gauge().memory()).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_the_last_seconds() {
        let start = Instant::now();
        let look = |milliseconds: u64| Look {
            at: start + Duration::from_millis(milliseconds),
            used: Duration::from_millis(milliseconds / 2),
        };
        let looks: VecDeque<Look> = [0, 4000, 6000, 9900].map(look).into();
        let at = |milliseconds: u64| earlier(&looks, look(milliseconds).at);
        assert_eq!(at(9950), Some(look(4000)), "the latest that is a window back");
        assert_eq!(at(13_000), Some(look(6000)));
        assert_eq!(at(19_000), Some(look(9900)));
        assert_eq!(at(60_000), None, "too old to tell");
        assert_eq!(
            earlier(&[look(0), look(4000)].into(), look(4100).at),
            Some(look(0)),
            "the oldest there is"
        );
        assert_eq!(earlier(&[look(0)].into(), look(100).at), None, "too short");
        assert!((percent(look(0), look(4000), 2.0) - 25.0).abs() < 1e-9);
        assert!(percent(look(10), look(10), 1.0).abs() < 1e-9);
        assert_eq!([0.25, 1.0, 1.5, 8.0].map(whole), [1, 1, 2, 8]);
    }
}
