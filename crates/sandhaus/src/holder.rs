//! The process that holds a data directory, found by its lock and by nothing else.
//!
//! A process number that is written down somewhere may have come to mean another process. So no number is trusted: the
//! process is opened first (a pidfd never means another one), then it is looked whether *it* has the lock on the
//! directory's lock file, and at last whether it still lives; what was seen in between was then its own.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    time::Timespec,
};
use sandhaus_sandbox::Instance;

/// A process that held the lock when it was looked at.
#[derive(Debug)]
pub(crate) struct HoldingProcess {
    pid: u32,
    process: OwnedFd,
}

impl HoldingProcess {
    /// The process that holds `data_dir`; `None` if none does, or none that this process may look at.
    pub(crate) fn find(data_dir: &Path) -> Result<Option<Self>> {
        let lock = Instance::lock_path(data_dir);
        let lock = match std::fs::metadata(&lock) {
            Ok(lock) => (lock.dev(), lock.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("look at {}", lock.display())),
        };
        // The number that the holder wrote down is only where to look first; it may be one of another namespace.
        let noted = Instance::holder(data_dir)?.map(|holder| holder.pid);
        let all = fs_err::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        Ok(noted.into_iter().chain(all).find_map(|pid| Self::open(pid, lock)))
    }

    /// The process of this number, if it has the lock on the file of this device and inode.
    fn open(pid: u32, lock: (u64, u64)) -> Option<Self> {
        let process = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        let found = Self { pid, process };
        let holds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.filter_map(Result::ok).any(|entry| {
            let is_lock = std::fs::metadata(entry.path()).is_ok_and(|file| (file.dev(), file.ino()) == lock);
            is_lock && has_lock(pid, &entry.file_name().to_string_lossy())
        });
        // Had it ended meanwhile, its number could have been another's while its descriptors were looked at.
        (holds && !found.ends_within(Duration::ZERO)).then_some(found)
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal; one that has ended gets none.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(io::Error::from(error)).context("signal the server"),
        }
    }

    /// Waits for its end; false if it still runs after `limit`.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.process, PollFlags::IN)], left.as_ref()) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Whether the lock belongs to this descriptor: the kernel lists it with the open file that took it.
fn has_lock(pid: u32, descriptor: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}"))
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:") && line.contains("OFDLCK")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_whoever_has_the_lock_not_whoever_opened_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(HoldingProcess::find(dir.path()).unwrap().is_none());
        let instance = Instance::acquire(dir.path()).unwrap();
        // A number that lies: somebody else's.
        fs_err::write(dir.path().join("holder"), r#"{"pid":1,"url":"http://127.0.0.1:1"}"#).unwrap();
        let found = HoldingProcess::find(dir.path()).unwrap().unwrap();
        assert_eq!(found.pid(), std::process::id());
        assert!(!found.ends_within(Duration::ZERO));
        drop(instance);
        let _opened = fs_err::File::open(dir.path().join("lock")).unwrap();
        assert!(HoldingProcess::find(dir.path()).unwrap().is_none());
    }
}
