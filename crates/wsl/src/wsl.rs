//! Running `wsl.exe`.

use std::{
    io::{self, Read},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::text::decode;

/// How long one call may take; the first one after a start of Windows boots the virtual machine.
const CALL_MAX: Duration = Duration::from_secs(180);

/// How long the rest of the output may take once the program has ended: what it left in the background may hold on.
const REST_MAX: Duration = Duration::from_secs(1);

/// Pause between two looks whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Most bytes read of each stream.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) succeeded: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Output {
    /// What there is to read if it failed: `wsl.exe` tells its own failures on standard output.
    pub(crate) fn message(&self) -> &str {
        if self.err.trim().is_empty() { &self.out } else { &self.err }
    }
}

/// Calls `wsl.exe` with a list of arguments.
pub(crate) trait Wsl {
    fn call(&self, arguments: &[&str]) -> io::Result<Output>;
}

/// That of Windows.
#[derive(Debug)]
pub(crate) struct System {
    program: PathBuf,
    directory: Option<PathBuf>,
}

impl System {
    /// The one that Windows itself has; never one that lies about in the current directory.
    pub(crate) fn new() -> Self {
        let root = std::env::var_os("SystemRoot").map(PathBuf::from).filter(|root| root.is_absolute());
        let program = match &root {
            Some(root) => root.join("System32").join("wsl.exe"),
            None => PathBuf::from("wsl.exe"),
        };
        // A directory that every distribution can translate, whatever share or drive the caller is on.
        Self { program, directory: root }
    }
}

impl Wsl for System {
    fn call(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let mut child = command.spawn()?;
        let out = read(child.stdout.take());
        let err = read(child.stderr.take());
        let deadline = Instant::now() + CALL_MAX;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        let rest = |stream: mpsc::Receiver<Vec<u8>>| {
            let mut bytes = Vec::new();
            let deadline = Instant::now() + REST_MAX;
            while let Ok(part) = stream.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                bytes.extend(part);
            }
            decode(&bytes)
        };
        Ok(Output { succeeded: status.success(), out: rest(out), err: rest(err) })
    }
}

/// Reads a stream on a thread of its own, which nobody waits for.
fn read(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stream) = stream {
        std::thread::spawn(move || {
            let mut stream = stream.take(OUTPUT_BYTES_MAX);
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell() -> System {
        System { program: PathBuf::from("/bin/sh"), directory: None }
    }

    #[test]
    fn streams_and_status_come_back() {
        let output = shell().call(&["-c", "echo out; echo err >&2; exit 3"]).expect("it runs");
        assert_eq!(output, Output { succeeded: false, out: "out\n".into(), err: "err\n".into() });
        assert_eq!(output.message(), "err\n");
        let output = shell().call(&["-c", "printf %s \"$1\"", "sh", "a \"b\" $c"]).expect("it runs");
        assert_eq!((output.succeeded, output.message()), (true, "a \"b\" $c"));
    }

    #[test]
    fn what_stays_in_the_background_is_not_waited_for() {
        let output = shell().call(&["-c", "echo started; sleep 1000 & echo $! >&2"]).expect("it runs");
        assert_eq!((output.succeeded, output.out.as_str()), (true, "started\n"));
        shell().call(&["-c", "kill $0", output.err.trim()]).expect("it runs");
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let missing = System { program: PathBuf::from("/no/such/wsl.exe"), directory: None };
        assert_eq!(missing.call(&[]).expect_err("missing").kind(), io::ErrorKind::NotFound);
    }
}
