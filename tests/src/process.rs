//! Processes by file descriptor: a handle never names another process, and its end is an event.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    time::Timespec,
};

/// A process that exists, or has existed.
#[derive(Debug)]
pub struct Handle {
    pid: u32,
    descriptor: OwnedFd,
}

impl Handle {
    /// Takes hold of a process; `None` if there is none.
    pub fn open(pid: u32) -> Option<Self> {
        let descriptor = pidfd_open(as_pid(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, descriptor })
    }

    /// Its number on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; nothing happens to a process that has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.descriptor, signal);
    }

    /// True if it has ended by now.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for its end; false if it still runs after `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        any_ends_within(&[self], limit)
    }

    /// Waits for its end.
    pub fn wait(&self) {
        assert!(self.ends_within(crate::PATIENCE), "process {} does not end", self.pid);
    }
}

/// Waits until one of some processes ends; false if none has after `limit`.
pub fn any_ends_within(handles: &[&Handle], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let mut polled: Vec<_> =
            handles.iter().map(|handle| PollFd::new(&handle.descriptor, PollFlags::IN)).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a bounded wait fits");
        match poll(&mut polled, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll processes: {error}"),
        }
    }
}

/// Numbers of all processes of the host.
pub fn all() -> Vec<u32> {
    let entries = fs_err::read_dir("/proc").expect("read /proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Children of a process, by any of its threads.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Arguments of a process; empty when it is gone.
pub fn arguments(pid: u32) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// A value of `/proc/PID/status`.
pub fn status(pid: u32, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
}

/// Inode of a namespace of a process.
pub fn namespace(pid: u32, kind: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    let text = link.to_str()?;
    text.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// Executable of a process.
pub fn executable(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn as_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}
