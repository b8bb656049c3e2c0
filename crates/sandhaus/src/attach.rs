//! A process inside a sandbox, attached to this one: its streams, its terminal, its signals and its end.

use std::{cell::Cell, io, time::Duration};

use anyhow::{Context, Result};
use sandhaus_protocol::process::{Exit, Process, Spawn};
use sandhaus_sandbox::toolbox::{Event, Toolbox};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

use crate::{
    interrupt::{Request, Signals, received},
    terminal::{self, RawMode},
};

/// How much longer than its limit a command may take to be reported as over.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// Exit status of a command that ran out of time.
const STATUS_TIMED_OUT: u8 = 124;

/// Added to a signal's number, as shells do.
const STATUS_SIGNAL_BASE: i32 = 128;

/// How an attached process ended, from this side.
#[derive(Debug)]
pub(crate) enum Ending {
    /// By itself, or by its time limit.
    Exited(Exit),
    /// This process was asked to end by the signal with this number; the command may still run.
    Interrupted(i32),
    /// Nobody reads our output any more; the command may still run.
    OutputClosed,
    /// The time limit passed and no end was reported; the command may still run.
    Overdue,
}

impl Ending {
    /// The status of this process that tells of it.
    pub(crate) fn status(&self) -> u8 {
        let by_signal = |signal: i32| u8::try_from(STATUS_SIGNAL_BASE + signal).unwrap_or(u8::MAX);
        match self {
            Self::Exited(exit) if exit.timed_out => STATUS_TIMED_OUT,
            // A status beyond a byte cannot come from a process; its lowest byte is what a parent would see.
            Self::Exited(exit) => (exit.exit_code & 0xff).try_into().unwrap_or(u8::MAX),
            Self::Interrupted(signal) => by_signal(*signal),
            Self::OutputClosed => by_signal(libc::SIGPIPE),
            Self::Overdue => STATUS_TIMED_OUT,
        }
    }
}

/// Where the process's standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// From nowhere: it reads end of file.
    Empty,
    /// From our standard input, as it is.
    Stream,
    /// From the terminal that our standard input is, in raw mode.
    Terminal,
}

impl Input {
    /// What the flags ask for. A terminal that could not be typed into would be of no use, so `-t` passes the input of
    /// a terminal on without `-i`.
    pub(crate) fn choose(interactive: bool, tty: bool) -> Self {
        match (interactive, tty && terminal::stdin_is_terminal()) {
            (_, true) => Self::Terminal,
            (true, false) => Self::Stream,
            (false, false) => Self::Empty,
        }
    }
}

/// Starts `spawn` and stays with it until its end or ours.
pub(crate) async fn attach(
    toolbox: &Toolbox,
    spawn: &Spawn,
    input: Input,
    signals: &mut Signals,
) -> Result<Ending> {
    let _raw = (input == Input::Terminal).then(RawMode::enter).transpose()?;
    let process = Cell::new(None);
    let pump = pump(toolbox, spawn, input, &process);
    tokio::pin!(pump);
    let overdue = overdue(spawn);
    tokio::pin!(overdue);
    // Registering costs a system call, so only what has a terminal does.
    let mut window = spawn.tty.map(|_| signal(SignalKind::window_change())).transpose()?;
    loop {
        tokio::select! {
            // `pump` is pinned outside of the loop: it goes on where it was whenever another arm wins.
            ending = &mut pump => return ending,
            request = signals.next() => match (request, process.get()) {
                (Request::Forward(signal), Some(id)) => forward(toolbox, id, signal),
                (request, _) => return Ok(Ending::Interrupted(request.signal())),
            },
            () = received(&mut window) => if let Some(id) = process.get() {
                resize(toolbox, id);
            },
            () = &mut overdue => return Ok(Ending::Overdue),
        }
    }
}

/// Carries output out and input in until the process ends.
async fn pump(toolbox: &Toolbox, spawn: &Spawn, input: Input, process: &Cell<Option<u64>>) -> Result<Ending> {
    let mut events = toolbox.spawn(spawn).await?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut exit = None;
    while let Some(event) = events.next().await? {
        let written = match event {
            Event::Started(Process { id, .. }) => {
                process.set(Some(id));
                match input {
                    Input::Empty => {}
                    Input::Stream | Input::Terminal => feed(toolbox, id)?,
                }
                Ok(())
            }
            Event::Stdout(_, bytes) => write(&mut stdout, &bytes).await,
            Event::Stderr(_, bytes) => write(&mut stderr, &bytes).await,
            Event::Gap(_) => {
                crate::advice::print_warning("some output was lost: it came faster than it was read");
                Ok(())
            }
            Event::Ping => Ok(()),
            Event::Exit(ended) => {
                exit = Some(ended);
                Ok(())
            }
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ending::OutputClosed),
            Err(error) => return Err(error).context("write output"),
        }
    }
    exit.map(Ending::Exited).context("the sandbox did not tell how the command ended")
}

/// Writes and makes sure that it is out: this process may end right after.
async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Passes standard input on, in the background. Its end closes the process's.
fn feed(toolbox: &Toolbox, process: u64) -> Result<()> {
    let body = crate::body::stream(io::stdin())?;
    let toolbox = toolbox.clone();
    tokio::spawn(async move {
        // A process that ends without having read everything is no failure of ours.
        if let Err(error) = toolbox.process_stdin(process, body, true).await {
            tracing::debug!(%error, "standard input was not taken to its end");
        }
    });
    Ok(())
}

/// Passes a signal on, in the background: the streams go on meanwhile.
fn forward(toolbox: &Toolbox, process: u64, signal: i32) {
    let toolbox = toolbox.clone();
    tokio::spawn(async move {
        if let Err(error) = toolbox.process_signal(process, signal).await {
            tracing::debug!(%error, signal, "signal was not passed on");
        }
    });
}

/// Passes our terminal's size on, in the background.
fn resize(toolbox: &Toolbox, process: u64) {
    let toolbox = toolbox.clone();
    tokio::spawn(async move {
        if let Err(error) = toolbox.process_resize(process, terminal::size()).await {
            tracing::debug!(%error, "terminal size was not passed on");
        }
    });
}

/// The moment at which a command with a time limit must long be over.
async fn overdue(spawn: &Spawn) {
    match spawn.timeout_ms {
        0 => std::future::pending().await,
        limit => tokio::time::sleep(Duration::from_millis(limit) + TIMEOUT_GRACE).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let exit =
            |exit_code, timed_out| Exit { exit_code, signal: None, timed_out, error: None, duration_ms: 0 };
        let cases = [
            (Ending::Exited(exit(0, false)), 0),
            (Ending::Exited(exit(7, false)), 7),
            (Ending::Exited(exit(137, false)), 137),
            (Ending::Exited(exit(-1, false)), 255),
            (Ending::Exited(exit(137, true)), 124),
            (Ending::Interrupted(libc::SIGINT), 130),
            (Ending::Interrupted(libc::SIGTERM), 143),
            (Ending::OutputClosed, 141),
            (Ending::Overdue, 124),
        ];
        for (ending, status) in cases {
            assert_eq!(ending.status(), status, "{ending:?}");
        }
    }
}
