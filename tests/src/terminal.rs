//! A terminal of a test's own, as a person has one in front of a command.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
    time::Timespec,
};

use crate::PATIENCE;

/// The terminal, and what was read from it.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    seen: String,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// Opens one.
    pub fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("open a terminal");
        grantpt(&master).expect("take the terminal");
        unlockpt(&master).expect("unlock the terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        Self { master: File::from(master), slave: slave.expect("open the terminal"), seen: String::new() }
    }

    /// Starts a command in it.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().expect("another descriptor"));
        command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("start the command")
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    /// Reads until `text` has come, after what was waited for before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("a bounded wait fits");
            let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
            let ready = poll(&mut polled, Some(&left)).expect("wait for the terminal");
            assert!(ready > 0, "{text:?} does not come; so far: {:?}", self.seen);
            let mut bytes = [0; 4096];
            let count = self.master.read(&mut bytes).expect("read the terminal");
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    /// Whether it echoes and edits lines, as a shell leaves it.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("ask the terminal").local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }
}
