//! Named points at which a test makes the process die, compiled into the shipped binary.
//!
//! `SANDHAUS_FAULT=<point>=<victim>` arms one point for one process tree; the first pass through it kills the victim
//! with SIGKILL, as a power cut or an out-of-memory kill would. Points are never listed by hand: each sequence of steps
//! (the planner's, an engine's) is an enum whose `ALL` is its list, and the runner of the sequence calls [`hit`] before
//! and after each. `sandhaus __fault-points` prints them all, and the sweeps in tests/ walk that list.
//!
//! `SANDHAUS_FAULT=@<file>` leaves it to a file, which is read at each point, so that a server that runs can be armed for
//! what it does next. Where the file says `*` nobody dies, and the names of the points that are passed are added to
//! `<file>` with `.passed` for its ending. As long as there is no such file, nothing is armed.

use std::{io::Write as _, path::PathBuf, sync::OnceLock};

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

/// One armed point.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    point: String,
    victim: Victim,
}

impl Fault {
    fn parse(value: &str) -> Self {
        let (point, victim) = value.split_once('=').unwrap_or((value, "self"));
        let victim = match victim {
            "parent" => Victim::Parent,
            "both" => Victim::Both,
            _ => Victim::Itself,
        };
        Self { point: point.to_owned(), victim }
    }
}

/// What decides who dies where.
#[derive(Debug)]
enum Armed {
    Once(Fault),
    /// The content of this file, at any time.
    File(PathBuf),
}

/// In a file: every point is noted, and none is armed.
const NOTE_ALL: &str = "*";

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED
        .get_or_init(|| {
            let value = std::env::var("SANDHAUS_FAULT").ok()?;
            Some(match value.strip_prefix('@') {
                Some(file) => Armed::File(file.into()),
                None => Armed::Once(Fault::parse(&value)),
            })
        })
        .as_ref()
}

/// True when some point is armed in this process, or may be: callers may skip building names otherwise.
pub fn is_armed() -> bool {
    armed().is_some()
}

/// Dies here if `point` is armed.
pub fn hit(point: &str) {
    match armed() {
        None => {}
        Some(Armed::Once(fault)) => strike(fault, point),
        Some(Armed::File(file)) => match fs_err::read_to_string(file) {
            Ok(text) if text == NOTE_ALL => note(file.with_extension("passed"), point),
            Ok(text) => strike(&Fault::parse(&text), point),
            // Nothing is armed.
            Err(_) => {}
        },
    }
}

fn note(file: PathBuf, point: &str) {
    let noted = fs_err::OpenOptions::new().create(true).append(true).open(file);
    let noted = noted.and_then(|mut file| file.write_all(format!("{point}\n").as_bytes()));
    if let Err(error) = noted {
        tracing::warn!(%error, point, "cannot note a fault point");
    }
}

fn strike(fault: &Fault, point: &str) {
    if fault.point != point {
        return;
    }
    let kill = |pid: Option<rustix::process::Pid>| {
        if let Some(pid) = pid {
            // A victim that is gone already is as dead as one that is killed.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    };
    match fault.victim {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victim_is_the_process_itself_unless_it_is_said() {
        let fault = |point: &str, victim| Fault { point: point.to_owned(), victim };
        assert_eq!(Fault::parse("a.b.before"), fault("a.b.before", Victim::Itself));
        assert_eq!(Fault::parse("a.b.before=self"), fault("a.b.before", Victim::Itself));
        assert_eq!(Fault::parse("a.b.after=parent"), fault("a.b.after", Victim::Parent));
        assert_eq!(Fault::parse("a.b.after=both"), fault("a.b.after", Victim::Both));
    }

    #[test]
    fn points_are_noted_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("fault.passed");
        note(file.clone(), "one");
        note(file.clone(), "two");
        assert_eq!(fs_err::read_to_string(file).expect("noted"), "one\ntwo\n");
    }
}
