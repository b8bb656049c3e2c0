//! Named points at which a test makes the process die, compiled into the shipped binary.
//!
//! `SANDHAUS_FAULT=<point>=<victim>` arms one point for one process tree; the first pass through it kills the victim
//! with SIGKILL, as a power cut or an out-of-memory kill would. Points are never listed by hand: each sequence of steps
//! (the planner's, an engine's) is an enum whose `ALL` is its list, and the runner of the sequence calls [`hit`] before
//! and after each. `sandhaus __fault-points` prints them all, and the sweep in tests/ walks that list.

use std::sync::OnceLock;

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The process that passes the point.
    Itself,
    /// Its parent.
    Parent,
    /// Both, the parent first.
    Both,
}

struct Armed {
    point: String,
    victim: Victim,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED
        .get_or_init(|| {
            let value = std::env::var("SANDHAUS_FAULT").ok()?;
            let (point, victim) = value.split_once('=').unwrap_or((&value, "self"));
            let victim = match victim {
                "parent" => Victim::Parent,
                "both" => Victim::Both,
                _ => Victim::Itself,
            };
            Some(Armed { point: point.to_owned(), victim })
        })
        .as_ref()
}

/// True when some point is armed in this process: callers may skip building names otherwise.
pub fn is_armed() -> bool {
    armed().is_some()
}

/// Dies here if `point` is armed.
pub fn hit(point: &str) {
    let Some(armed) = armed() else { return };
    if armed.point != point {
        return;
    }
    let kill = |pid: Option<rustix::process::Pid>| {
        if let Some(pid) = pid {
            // A victim that is gone already is as dead as one that is killed.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    };
    match armed.victim {
        Victim::Itself => kill(Some(rustix::process::getpid())),
        Victim::Parent => kill(rustix::process::getppid()),
        Victim::Both => {
            kill(rustix::process::getppid());
            kill(Some(rustix::process::getpid()));
        }
    }
}

/// Does something between the two points of a name.
pub(crate) fn pass<T, E>(name: &str, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    hit_side(name, "before");
    let done = act()?;
    hit_side(name, "after");
    Ok(done)
}

/// The same for what is waited for.
pub(crate) async fn pass_async<T, E>(name: &str, act: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    hit_side(name, "before");
    let done = act.await?;
    hit_side(name, "after");
    Ok(done)
}

fn hit_side(name: &str, side: &str) {
    if is_armed() {
        hit(&format!("{name}.{side}"));
    }
}
