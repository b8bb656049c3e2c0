//! Which processes belong to a command: its descendants, the rest of its session, and whatever inherited its mark in
//! the environment after leaving both. `/proc` is read only when something is to be killed.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read,
};

use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

/// Clock ticks per second in `/proc/<pid>/stat`; the kernel's user-visible value on every architecture we build for.
const TICKS_PER_SECOND: u64 = 100;

/// Most bytes of an environment that are searched for the mark.
const ENVIRONMENT_BYTES_MAX: u64 = 1 << 20;

/// A moment, precise enough to tell the processes born after it from those born before.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Birth {
    ticks: u64,
    last_pid: Option<i32>,
}

impl Birth {
    /// Now.
    pub(crate) fn now() -> Self {
        let time = rustix::time::clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let part = u64::try_from(time.tv_nsec).unwrap_or(0) * TICKS_PER_SECOND / 1_000_000_000;
        let last_pid =
            fs::read_to_string("/proc/sys/kernel/ns_last_pid").ok().and_then(|t| t.trim().parse().ok());
        Self { ticks: seconds * TICKS_PER_SECOND + part, last_pid }
    }

    /// Whether `entry` was born later. Within the same tick the process number decides: numbers are given in order.
    fn precedes(&self, entry: &Entry) -> bool {
        match entry.start_ticks.cmp(&self.ticks) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => self.last_pid.is_none_or(|last| entry.pid > last),
        }
    }
}

/// The processes of one command or shell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Family {
    /// The process the agent started.
    pub(crate) root: i32,
    /// Value of [`Family::MARK`] in its environment.
    pub(crate) mark: String,
}

impl Family {
    /// Name of the environment variable that marks a family.
    pub(crate) const MARK: &str = "SANDHAUS_FAMILY";

    /// A mark that no other family has.
    pub(crate) fn new_mark() -> String {
        super::random_hex(8)
    }

    /// Every living member including the root.
    pub(crate) fn members(&self) -> Vec<i32> {
        let entries = snapshot();
        let family = self.find(&entries);
        entries.iter().filter(|e| family.contains(&e.pid) && !e.zombie).map(|e| e.pid).collect()
    }

    /// Every living member but the root that was born after `birth` and does not descend from an older one: what one
    /// command of a shell started, without the background jobs of earlier commands and *their* children.
    pub(crate) fn members_since(&self, birth: &Birth) -> Vec<i32> {
        let entries = snapshot();
        let family = self.find(&entries);
        let by_pid: HashMap<i32, &Entry> = entries.iter().map(|e| (e.pid, e)).collect();
        let descends_from_older = |entry: &Entry| {
            let mut parent = entry.parent;
            let mut steps = 0;
            while let Some(ancestor) = by_pid.get(&parent) {
                if ancestor.pid == self.root || !family.contains(&ancestor.pid) || steps > entries.len() {
                    return false;
                }
                if !birth.precedes(ancestor) {
                    return true;
                }
                parent = ancestor.parent;
                steps += 1;
            }
            false
        };
        let young = |e: &&Entry| {
            e.pid != self.root
                && !e.zombie
                && family.contains(&e.pid)
                && birth.precedes(e)
                && !descends_from_older(e)
        };
        entries.iter().filter(young).map(|e| e.pid).collect()
    }

    fn find(&self, entries: &[Entry]) -> HashSet<i32> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let session = entries.iter().find(|e| e.pid == self.root).map(|e| e.session);
        let wanted = format!("{}={}", Self::MARK, self.mark);
        let belongs = |e: &&Entry| {
            e.pid != me
                && (e.pid == self.root
                    || e.session == self.root
                    || Some(e.session) == session
                    || environment_has(e.pid, wanted.as_bytes()))
        };
        let mut family: HashSet<i32> = entries.iter().filter(belongs).map(|e| e.pid).collect();
        loop {
            let before = family.len();
            for entry in entries {
                if entry.pid != me && entry.parent != me && family.contains(&entry.parent) {
                    family.insert(entry.pid);
                }
            }
            if family.len() == before {
                return family;
            }
        }
    }
}

/// Whether any process but PID 1 lives. Threads of the kernel, which the first process of a machine sees, never end.
pub(super) fn others_alive() -> bool {
    snapshot().iter().any(|e| e.pid != 1 && !e.zombie && !e.is_of_kernel())
}

/// Direct children of a process.
pub(super) fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Whether a process stands still, or is gone.
pub(super) fn has_stopped(pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = text.get(text.rfind(')').map_or(0, |at| at + 2)..).and_then(|rest| rest.chars().next());
    matches!(state, None | Some('T' | 't' | 'Z' | 'X'))
}

#[derive(Debug)]
struct Entry {
    pid: i32,
    parent: i32,
    session: i32,
    start_ticks: u64,
    zombie: bool,
}

/// Number of the process from which the kernel makes all its threads.
const KERNEL_THREADS: i32 = 2;

impl Entry {
    /// Everything else has a session by the time it is of interest, whatever its number.
    fn is_of_kernel(&self) -> bool {
        self.session == 0 && (self.pid == KERNEL_THREADS || self.parent == KERNEL_THREADS)
    }
}

fn snapshot() -> Vec<Entry> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = folder.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    numbers
        .filter_map(|pid| parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// Reads the fields after the name, which is in parentheses and may hold anything.
fn parse_stat(pid: i32, text: &str) -> Option<Entry> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(15)?.parse().ok()?;
    Some(Entry { pid, parent, session, start_ticks, zombie: matches!(state, "Z" | "X") })
}

fn environment_has(pid: i32, wanted: &[u8]) -> bool {
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else { return false };
    let mut text = Vec::new();
    // A process that goes away while it is read has no say any more.
    let _ = file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut text);
    text.split(|byte| *byte == 0).any(|variable| variable == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_hostile_names_are_read() {
        let line = "42 (a) R 1 (b) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let entry = parse_stat(42, line).expect("a valid line");
        assert_eq!((entry.parent, entry.session, entry.start_ticks, entry.zombie), (7, 41, 987_654, false));
        assert!(parse_stat(42, "42 (cut").is_none());
    }

    #[test]
    fn births_within_one_tick_are_told_apart_by_number() {
        let birth = Birth { ticks: 100, last_pid: Some(50) };
        let entry = |pid, start_ticks| Entry { pid, parent: 1, session: 1, start_ticks, zombie: false };
        assert!(birth.precedes(&entry(51, 100)));
        assert!(!birth.precedes(&entry(50, 100)));
        assert!(!birth.precedes(&entry(900, 99)));
        assert!(birth.precedes(&entry(3, 101)));
    }
}
