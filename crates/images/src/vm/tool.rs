//! Running the programs that a build needs: by argument list, in a clean environment, within the build's scratch folder.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};
use tokio_util::sync::CancellationToken;

use super::BUILD_TIME_S;
use crate::{Error, Result, root::escaped, store::Scratch};

/// Where programs are looked for, and what they look in themselves.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the caller that programs which fetch something are left with.
const KEPT_VARIABLES: &[&str] =
    &["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// How often a running program is looked at for a wish to stop.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// How often it is looked at whether a program that was asked to end has ended, before it is killed.
const LOOKS_BEFORE_KILL: u32 = 25;

/// Bytes read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Most bytes kept of what a program prints on its standard output.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Most bytes kept of its errors: the last ones.
const ERRORS_BYTES_MAX: usize = 64 << 10;

/// Last lines of a program's errors that a message shows.
const ERROR_LINES_SHOWN: usize = 6;

/// A program, and the package of Debian that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    package: &'static str,
}

pub(crate) const APT_CACHE: Program = Program { name: "apt-cache", package: "apt" };
pub(crate) const APT_GET: Program = Program { name: "apt-get", package: "apt" };
pub(crate) const DEBUGFS: Program = Program { name: "debugfs", package: "e2fsprogs" };
pub(crate) const DEPMOD: Program = Program { name: "depmod", package: "kmod" };
pub(crate) const DPKG_DEB: Program = Program { name: "dpkg-deb", package: "dpkg" };
pub(crate) const E2FSCK: Program = Program { name: "e2fsck", package: "e2fsprogs" };
pub(crate) const MKE2FS: Program = Program { name: "mke2fs", package: "e2fsprogs" };
pub(crate) const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };
pub(crate) const QEMU_IMG: Program = Program { name: "qemu-img", package: "qemu-utils" };
pub(crate) const XZ: Program = Program { name: "xz", package: "xz-utils" };

impl Program {
    /// Where it lies on this host.
    pub(crate) fn find(self) -> Option<PathBuf> {
        PATH.split(':').map(|folder| Path::new(folder).join(self.name)).find(|path| path.is_file())
    }

    fn missing(self) -> Error {
        Error::MissingTool { tool: self.name, package: self.package }
    }
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: Vec<u8>,
    pub(crate) errors: Vec<u8>,
}

/// Runs programs for one build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tools<'a> {
    scratch: &'a Scratch,
    interrupt: &'a CancellationToken,
}

impl<'a> Tools<'a> {
    pub(crate) fn new(scratch: &'a Scratch, interrupt: &'a CancellationToken) -> Self {
        Self { scratch, interrupt }
    }

    /// Fails if somebody asked to stop.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.interrupt.is_cancelled() { Err(Error::BuildInterrupted) } else { Ok(()) }
    }

    /// The folder in which programs run; names in it go to them as they are.
    pub(crate) fn folder(&self) -> &'a Path {
        self.scratch.path()
    }

    /// Makes a folder in it.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        self.scratch.directory(name)
    }

    /// Runs a program; anything but success is an error with the last it said. Returns what it printed.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, program: Program, arguments: &[S]) -> Result<Vec<u8>> {
        self.run_watched(program, arguments, &mut |_| {})
    }

    /// The same; `watch` sees what it prints as it comes.
    pub(crate) fn run_watched<S: AsRef<OsStr>>(
        &self,
        program: Program,
        arguments: &[S],
        watch: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<u8>> {
        let ended = self.end_of(program, arguments, watch)?;
        if ended.status.success() { Ok(ended.output) } else { Err(failure(program, &ended)) }
    }

    /// Runs a program whose failure says something.
    pub(crate) fn end_of<S: AsRef<OsStr>>(
        &self,
        program: Program,
        arguments: &[S],
        watch: &mut dyn FnMut(&[u8]),
    ) -> Result<Ended> {
        self.go_on()?;
        let path = program.find().ok_or_else(|| program.missing())?;
        let mut command = Command::new(&path);
        command
            .args(arguments)
            .current_dir(self.folder())
            .env_clear()
            .envs(environment(self.folder()))
            // A lock on the scratch folder: as long as the program lives nobody sweeps the folder, even if this
            // process is killed. There is nothing to be read.
            .stdin(Stdio::from(self.scratch.lock_handle()?))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // The terminal's signals are for this process, which then decides.
            .process_group(0);
        let mut running = command.spawn().map_err(Error::at(&path))?;
        let outcome = self.watch(&mut running, watch);
        if outcome.is_err() {
            end_group(&mut running);
        }
        let (output, errors) = outcome.map_err(|problem| match problem {
            Problem::Interrupted => Error::BuildInterrupted,
            Problem::System(error) => Error::at(&path)(error),
        })?;
        let status = running.wait().map_err(Error::at(&path))?;
        Ok(Ended { status, output, errors })
    }

    /// Collects what a program prints until it has ended. What a descendant of it prints later is not waited for.
    fn watch(
        &self,
        running: &mut Child,
        watch: &mut dyn FnMut(&[u8]),
    ) -> std::result::Result<(Vec<u8>, Vec<u8>), Problem> {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let ended = rustix::process::pidfd_open(Pid::from_child(running), PidfdFlags::empty())?;
        let mut printed = running.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let mut complaints = running.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        loop {
            if self.interrupt.is_cancelled() {
                return Err(Problem::Interrupted);
            }
            let mut polled = vec![PollFd::new(&ended, PollFlags::IN)];
            polled.extend(
                [&printed, &complaints].into_iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)),
            );
            match rustix::event::poll(&mut polled, Some(&LOOK_AGAIN)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let is_over = is_ready(&ended)?;
            let mut quiet = true;
            for (pipe, kept) in [(&mut printed, &mut output), (&mut complaints, &mut errors)] {
                let Some(open) = pipe else { continue };
                if !is_ready(&*open)? {
                    continue;
                }
                let mut piece = [0; PIECE_BYTES];
                let count = open.read(&mut piece)?;
                kept.extend_from_slice(&piece[..count]);
                quiet = false;
                if count == 0 {
                    *pipe = None;
                }
            }
            watch(&output);
            shorten(&mut errors);
            if output.len() > OUTPUT_BYTES_MAX {
                return Err(Problem::System(io::Error::other("it prints without end")));
            }
            if is_over && quiet {
                return Ok((output, errors));
            }
        }
    }
}

/// Why watching a program ended before the program did.
enum Problem {
    Interrupted,
    System(io::Error),
}

impl<E: Into<io::Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::System(error.into())
    }
}

/// Whether something can be read, be it the end.
fn is_ready(descriptor: impl AsFd) -> rustix::io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)))?;
    Ok(!polled[0].revents().is_empty())
}

/// Asks a program and what it started to end, then ends them.
fn end_group(running: &mut Child) {
    let group = Pid::from_child(running);
    // Gone already is as good.
    let _ = rustix::process::kill_process_group(group, Signal::TERM);
    if let Ok(ended) = rustix::process::pidfd_open(group, PidfdFlags::empty()) {
        for _ in 0..LOOKS_BEFORE_KILL {
            let mut polled = [PollFd::new(&ended, PollFlags::IN)];
            if matches!(rustix::event::poll(&mut polled, Some(&LOOK_AGAIN)), Ok(1..)) {
                break;
            }
        }
    }
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let _ = running.wait();
}

fn environment(scratch: &Path) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), PATH.into()),
        ("HOME".into(), "/nonexistent".into()),
        ("LC_ALL".into(), "C.UTF-8".into()),
        ("TZ".into(), "UTC".into()),
        ("TMPDIR".into(), scratch.into()),
        ("DEBIAN_FRONTEND".into(), "noninteractive".into()),
        // What the tools take for now, as far as they ask.
        ("SOURCE_DATE_EPOCH".into(), BUILD_TIME_S.to_string().into()),
        ("E2FSPROGS_FAKE_TIME".into(), BUILD_TIME_S.to_string().into()),
        ("E2FSCK_TIME".into(), BUILD_TIME_S.to_string().into()),
        ("MKE2FS_CONFIG".into(), scratch.join(super::filesystem::CONFIGURATION).into()),
    ];
    for name in KEPT_VARIABLES {
        variables.extend(std::env::var_os(name).map(|value| (name.into(), value)));
    }
    variables
}

/// Keeps the end of what a program complained about.
fn shorten(errors: &mut Vec<u8>) {
    if errors.len() > ERRORS_BYTES_MAX {
        errors.drain(..errors.len() - ERRORS_BYTES_MAX / 2);
    }
}

/// A program's failure, in its own last words.
pub(crate) fn failure(program: Program, ended: &Ended) -> Error {
    let said = if ended.errors.iter().any(|byte| !byte.is_ascii_whitespace()) {
        &ended.errors
    } else {
        &ended.output
    };
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(ERROR_LINES_SHOWN)..].join("; ");
    Error::Tool { tool: program.name, problem: format!("{}: {}", ended.status, escaped(last.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const SH: Program = Program { name: "sh", package: "dash" };

    fn scratch() -> (tempfile::TempDir, Scratch) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let scratch = store.scratch(&store.lock().unwrap()).unwrap();
        (folder, scratch)
    }

    #[test]
    fn a_program_is_run_clean_and_its_last_words_are_told() {
        let (_folder, scratch) = scratch();
        let token = CancellationToken::new();
        let tools = Tools::new(&scratch, &token);
        let output = tools.run(SH, &["-c", "echo $HOME $SOURCE_DATE_EPOCH; pwd"]).unwrap();
        let expected = format!("/nonexistent {BUILD_TIME_S}\n{}\n", scratch.path().display());
        assert_eq!(String::from_utf8(output).unwrap(), expected);

        let script = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; exit 3";
        let error = tools.run(SH, &["-c", script]).unwrap_err().to_string();
        assert!(
            error.contains("sh failed") && error.contains("line 9") && !error.contains("line 2"),
            "{error}"
        );

        let missing = Program { name: "no-such-program", package: "nothing" };
        assert!(matches!(tools.run(missing, &[""; 0]), Err(Error::MissingTool { package: "nothing", .. })));
    }

    #[test]
    fn much_output_on_both_sides_does_not_block() {
        let (_folder, scratch) = scratch();
        let token = CancellationToken::new();
        let script = "yes 0123456789 | head -n 100000; yes 9876543210 | head -n 100000 >&2";
        let ended = Tools::new(&scratch, &token).end_of(SH, &["-c", script], &mut |_| {}).unwrap();
        assert_eq!(ended.output.len(), 1_100_000);
        assert!(ended.errors.len() <= ERRORS_BYTES_MAX && ended.errors.ends_with(b"9876543210\n"));
    }

    #[test]
    fn an_interrupt_ends_a_program_with_what_it_started() {
        let (_folder, scratch) = scratch();
        let token = CancellationToken::new();
        let tools = Tools::new(&scratch, &token);
        let mut stop = |output: &[u8]| {
            if output.contains(&b'\n') {
                token.cancel();
            }
        };
        // The shell's own child must go too.
        let ended = tools.run_watched(SH, &["-c", "sleep 1000 & echo $! >child; echo; wait"], &mut stop);
        assert!(matches!(ended, Err(Error::BuildInterrupted)), "{ended:?}");
        let child = std::fs::read_to_string(scratch.path().join("child")).unwrap();
        let child = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
        // Gone already, or about to be.
        if let Ok(ended) = rustix::process::pidfd_open(child, PidfdFlags::empty()) {
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            let mut polled = [PollFd::new(&ended, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut polled, Some(&patience)), Ok(1), "the shell's child lives");
        }
        assert!(matches!(tools.run(SH, &["-c", ":"]), Err(Error::BuildInterrupted)));
    }

    #[test]
    fn programs_find_nothing_to_read() {
        let (_folder, scratch) = scratch();
        let interrupt = CancellationToken::new();
        let tools = Tools::new(&scratch, &interrupt);
        assert_eq!(tools.run(SH, &["-c", "cat && echo read"]).unwrap(), b"read\n");
    }
}
