//! `run` on a terminal, and under signals: what passes through, and that the terminal comes back as it was.
#![expect(unsafe_code, reason = "a child takes its controlling terminal between fork and exec")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one that cannot run says so"
)]

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
    time::Timespec,
};

/// How long anything may take before the test counts it as never.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sandboxes need root; without it the test says so and passes.
fn runnable(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: sandboxes need root");
    }
    root
}

fn sandhaus(data_dir: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandhaus"));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.arg("--data-dir").arg(data_dir.path()).arg("run");
    command
}

fn assert_nothing_left(data_dir: &tempfile::TempDir) {
    let left: Vec<_> = data_dir.path().join("run").read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A terminal of the test's own, and what was read from it.
struct Terminal {
    master: File,
    slave: OwnedFd,
    seen: String,
}

impl Terminal {
    fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(
            name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let terminal = Self { master: File::from(master), slave, seen: String::new() };
        terminal.resize(33, 99);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.slave, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
    }

    /// Starts the command as the leader of a session that this terminal controls.
    fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: both calls are safe between fork and exec: they allocate nothing and take no lock.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `text` has come.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap();
            let ready = poll(&mut [PollFd::new(&self.master.as_fd(), PollFlags::IN)], Some(&left)).unwrap();
            assert!(ready > 0, "{text:?} does not come; so far: {:?}", self.seen);
            let mut bytes = [0; 4096];
            let count = self.master.read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    /// Whether it echoes and edits lines, as a shell leaves it.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

#[test]
fn a_terminal_passes_through_and_comes_back() {
    if !runnable("a_terminal_passes_through_and_comes_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::new();
    assert!(terminal.is_cooked());
    let script = "stty size; tty; printf 'name? '; read name; echo \"hello $name\"; exit 9";
    let mut child = terminal.spawn(sandhaus(&dir).args(["-i", "-t", "--", "sh", "-c", script]));
    terminal.expect("name? ");
    assert!(!terminal.is_cooked(), "the terminal is raw while the command has it");
    terminal.write("world\r");
    terminal.expect("hello world");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert!(terminal.seen.contains("33 99\r\n/dev/pts/"), "{:?}", terminal.seen);
    assert!(terminal.is_cooked());
    assert_nothing_left(&dir);
}

#[test]
fn keys_that_signal_and_new_sizes_reach_the_command() {
    if !runnable("keys_that_signal_and_new_sizes_reach_the_command") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::new();
    let script = "trap 'echo size $(stty size)' WINCH; trap 'echo interrupted; exit 7' INT; echo ready; \
                  while :; do sleep 1000 & wait; done";
    let mut child = terminal.spawn(sandhaus(&dir).args(["-t", "--", "sh", "-c", script]));
    terminal.expect("ready");
    terminal.resize(40, 120);
    terminal.expect("size 40 120");
    terminal.write("\u{3}");
    terminal.expect("interrupted");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(terminal.is_cooked());
    assert_nothing_left(&dir);
}

#[test]
fn a_terminal_comes_back_when_we_are_ended() {
    if !runnable("a_terminal_comes_back_when_we_are_ended") {
        return;
    }
    for (ending, status) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let dir = tempfile::tempdir().unwrap();
        let mut terminal = Terminal::new();
        let mut child =
            terminal.spawn(sandhaus(&dir).args(["-it", "--", "sh", "-c", "echo ready; sleep 1000"]));
        terminal.expect("ready");
        assert!(!terminal.is_cooked());
        signal(&child, ending);
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert!(terminal.is_cooked(), "{ending:?}");
        assert_nothing_left(&dir);
    }
}

/// Starts a command with pipes and waits until it says that it is ready.
fn start_ready(command: &mut Command) -> Child {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    child
}

#[test]
fn an_interrupt_is_passed_on_and_a_second_one_ends() {
    if !runnable("an_interrupt_is_passed_on_and_a_second_one_ends") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let polite = "trap 'echo caught; exit 7' INT; echo ready; sleep 1000 & wait";
    let child = start_ready(sandhaus(&dir).args(["--", "sh", "-c", polite]));
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), b"caught\n".as_slice()));

    let deaf = "trap 'echo again' INT; echo ready; while :; do sleep 1000 & wait; done";
    let mut child = start_ready(sandhaus(&dir).args(["--", "sh", "-c", deaf]));
    signal(&child, Signal::INT);
    let mut again = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut again).unwrap();
    assert_eq!(&again, b"again\n");
    // However slow this machine is, some two of these arrive within a second of each other.
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "two interrupts do not end it");
        signal(&child, Signal::INT);
        // Two arrivals, not one: a signal that is still pending would swallow the next.
        let mut pollable = [PollFd::new(child.stdout.as_ref().unwrap(), PollFlags::HUP)];
        poll(&mut pollable, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).unwrap();
    };
    assert_eq!(status.code(), Some(130));
    assert_nothing_left(&dir);
}

#[test]
fn a_reader_that_goes_ends_the_command() {
    if !runnable("a_reader_that_goes_ends_the_command") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = start_ready(sandhaus(&dir).args(["--", "sh", "-c", "echo ready; yes"]));
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_nothing_left(&dir);
}

#[test]
fn what_nohup_ignores_stays_ignored() {
    if !runnable("what_nohup_ignores_stays_ignored") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let inner = sandhaus(&dir);
    let mut nohup = Command::new("nohup");
    nohup.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").stderr(Stdio::null());
    nohup.arg(inner.get_program()).args(inner.get_args());
    nohup.args(["-i", "--", "sh", "-c", "echo ready; read line; echo got $line"]);
    let mut child = nohup.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    signal(&child, Signal::HUP);
    child.stdin.take().unwrap().write_all(b"it\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"got it\n".as_slice()));
    assert_nothing_left(&dir);
}
