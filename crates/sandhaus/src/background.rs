//! A server in the background: it leaves the terminal before it makes any thread, and whoever started it waits until
//! it answers.
//!
//! The process forks twice and executes nothing, so no spelling of a flag can make it start itself again and again.
//! The starter and the server share one pipe: the server says through it where it listens; if it ends before, the pipe
//! does too, and the starter shows what it logged. If the starter is gone, so that nobody waits for the answer, the
//! server ends as well.
#![expect(unsafe_code, reason = "fork has no safe wrapper")]

use std::{
    io::{self, PipeReader, PipeWriter, Read, Seek, SeekFrom, Write},
    os::{
        fd::IntoRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::process::{WaitOptions, setsid, waitpid};
use serde::{Deserialize, Serialize};

use crate::{
    advice::{Advice, print_note},
    config::Config,
    domain,
    output::print,
    spelling::CalledAs,
};

/// What a server in the background writes, in the folder of runs.
const LOG_FILE: &str = "sandhaus.log";

/// The log before the present one.
const OLD_LOG_FILE: &str = "sandhaus.log.1";

/// Number of the server's process: for people and scripts only, nothing of ours reads it.
const PID_FILE: &str = "sandhaus.pid";

/// Size of the log in bytes above which it becomes the old one.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Most bytes of what the server says to its starter.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Most lines of the log that are shown when a server ends before it answers.
const LINES_SHOWN_MAX: usize = 20;

/// Most bytes of the log that are looked at for that.
const BYTES_SHOWN_MAX: u64 = 64 << 10;

/// The log of the server in the background.
pub(crate) fn log_path(config: &Config) -> PathBuf {
    domain::run_dir(config).join(LOG_FILE)
}

/// What a server says once it answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    pid: u32,
    url: String,
}

/// Who one is after the fork.
pub(crate) enum Side {
    /// The process that a person started; it has nothing left to do but wait.
    Starter(Starter),
    /// The server.
    Server(Server),
}

/// The process that waits for the server.
pub(crate) struct Starter {
    answer: PipeReader,
    log: PathBuf,
    log_start: u64,
}

/// The server's side of it: says when it answers, and where its log goes.
pub(crate) struct Server {
    answer: Option<PipeWriter>,
    log: Log,
    pid_file: PathBuf,
}

/// Leaves the terminal. To be called before any thread exists: a fork takes only the calling one along.
pub(crate) fn enter(config: &Config) -> Result<Side> {
    let dir = domain::run_dir(config);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("make {}", dir.display()))?;
    let log = Log::open(&dir)?;
    let (reader, writer) = io::pipe().context("make a pipe")?;
    // SAFETY: no thread but this one exists, so the child may do whatever this process may.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()).context("fork"),
        0 => {
            drop(reader);
            leave_terminal(&log)?;
            let server = Server { answer: Some(writer), log, pid_file: dir.join(PID_FILE) };
            Ok(Side::Server(server))
        }
        _ => {
            drop(writer);
            let child = rustix::process::Pid::from_raw(child).context("a process has a number")?;
            waitpid(Some(child), WaitOptions::empty()).context("wait for the intermediate process")?;
            let log_start = log.start;
            Ok(Side::Starter(Starter { answer: reader, log: dir.join(LOG_FILE), log_start }))
        }
    }
}

/// A session of its own, without a terminal and with no way to get one; the log instead of output.
fn leave_terminal(log: &Log) -> Result<()> {
    setsid().context("make a session")?;
    // SAFETY: as above; the intermediate process ends at once, without running what this process has set up for its
    // end.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()).context("fork"),
        0 => {}
        // SAFETY: ends the process and touches nothing of it.
        _ => unsafe { libc::_exit(0) },
    }
    rustix::process::chdir("/").context("change to /")?;
    let nothing = fs_err::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing).context("close standard input")?;
    log.become_output()
}

impl Starter {
    /// Waits until the server answers or has ended.
    pub(crate) fn wait(mut self, called_as: CalledAs) -> Result<ExitCode> {
        let mut said = Vec::new();
        self.answer.by_ref().take(ANSWER_BYTES_MAX).read_to_end(&mut said).context("wait for the server")?;
        let log = self.log.display();
        let Ok(answer) = serde_json::from_slice::<Answer>(&said) else {
            for line in self.last_lines() {
                print_note(&line);
            }
            let problem = "the server ended before it answered";
            return Err(Advice::new(problem, format!("the lines above are from its log, {log}")).into());
        };
        // A script of the older tool's waits for nothing on standard output.
        if called_as == CalledAs::Sandhaus {
            print(&format!("{}\n", answer.url))?;
        }
        print_note(&format!("serving on {} as process {}; log: {log}", answer.url, answer.pid));
        Ok(ExitCode::SUCCESS)
    }

    /// The end of what the server has logged.
    fn last_lines(&self) -> Vec<String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut log = fs_err::File::open(&self.log)?;
            let length = log.metadata()?.len();
            let start = self.log_start.min(length).max(length.saturating_sub(BYTES_SHOWN_MAX));
            log.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            log.take(BYTES_SHOWN_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(LINES_SHOWN_MAX)..].to_vec()
    }
}

impl Server {
    /// Where log lines go.
    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }

    /// Says that the server answers, and writes its number down. An error if nobody waits for it any more.
    pub(crate) fn answers(&mut self, url: &str) -> Result<()> {
        let Some(mut pipe) = self.answer.take() else { return Ok(()) };
        let answer = Answer { pid: std::process::id(), url: url.to_owned() };
        pipe.write_all(&serde_json::to_vec(&answer)?).context("whoever started this server has gone")?;
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.pid_file)?;
        writeln!(file, "{}", answer.pid)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The starter takes the pipe's end for the server's, and then looks at the log. So it is left to the kernel,
        // after the reason of a failure was printed.
        if let Some(pipe) = self.answer.take() {
            let _ = pipe.into_raw_fd();
        }
        // Informative only: a left one misleads people, nothing of ours.
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

/// The log of a server in the background. It is also its standard output and error, so that nothing is lost.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    dir: PathBuf,
    start: u64,
    file: Arc<Mutex<Written>>,
}

#[derive(Debug)]
struct Written {
    file: fs_err::File,
    bytes: u64,
}

impl Log {
    fn open(dir: &Path) -> Result<Self> {
        let mut written = Written::open(dir)?;
        if written.bytes > LOG_BYTES_MAX {
            written = Written::replace(dir)?;
        }
        Ok(Self { dir: dir.to_owned(), start: written.bytes, file: Arc::new(Mutex::new(written)) })
    }

    fn become_output(&self) -> Result<()> {
        let written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        written.become_output()
    }
}

impl Written {
    fn open(dir: &Path) -> Result<Self> {
        let file = fs_err::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join(LOG_FILE))?;
        // It may be from a time when it was open to others; what is logged may not be theirs to read.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        let bytes = file.metadata()?.size();
        Ok(Self { file, bytes })
    }

    /// The log becomes the old one, and an empty one takes its place.
    fn replace(dir: &Path) -> Result<Self> {
        fs_err::rename(dir.join(LOG_FILE), dir.join(OLD_LOG_FILE))?;
        Self::open(dir)
    }

    fn become_output(&self) -> Result<()> {
        rustix::stdio::dup2_stdout(&self.file).context("log standard output")?;
        rustix::stdio::dup2_stderr(&self.file).context("log standard error")?;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be replaced goes on: too long is better than silent.
        if written.bytes > LOG_BYTES_MAX
            && let Ok(fresh) = Written::replace(&self.dir)
        {
            *written = fresh;
            written.become_output().map_err(io::Error::other)?;
        }
        let bytes = written.file.write(line)?;
        written.bytes += bytes as u64;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_becomes_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        fs_err::File::create(&path).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        let log = Log::open(dir.path()).unwrap();
        assert_eq!(log.start, 0);
        assert_eq!(fs_err::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs_err::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs_err::metadata(dir.path().join(OLD_LOG_FILE)).unwrap().len(), LOG_BYTES_MAX + 1);
    }
}
