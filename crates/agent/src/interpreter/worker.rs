//! The process of a context: `python3` with our own program, which takes orders and says how each ended. Its standard
//! streams are pipes, so what the code's own children print is output as well.

use std::{
    os::fd::{AsFd as _, RawFd},
    sync::Arc,
};

use sandhaus_protocol::{code::Chart, interpreter::Frame};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Job, Said};
use crate::{
    agent::Agent,
    code_run::{CHARTS_PROGRAM, PROGRAM_FD, PROGRAM_PATH},
    error::{Error, Result},
    lines::Lines,
    process::kill_family,
    sys::{
        Channel, Child, Command, Ending, Family, Script, Session, SpawnError, discard, input_pipe,
        output_pipe, signal_group,
    },
};

const WORKER_PROGRAM: &str = include_str!("worker.py");

/// Descriptors of the worker's orders and of what it says.
const ORDERS_FD: RawFd = PROGRAM_FD - 1;
const EVENTS_FD: RawFd = PROGRAM_FD - 2;

/// Longest line of a worker: a figure.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// Bytes of output in one message. In JSON they can become six times as many, which the clients still take at once.
const READ_BYTES: usize = 8 * 1024;

/// Most bytes of a character.
const CHARACTER_BYTES_MAX: usize = 4;

/// A worker.
pub(super) struct Worker {
    family: Family,
    end: End,
    orders: Channel,
    events: Lines,
    streams: [Stream; 2],
    last_id: u64,
}

/// The end of its process.
struct End {
    child: Child,
    known: Option<Ending>,
}

impl End {
    /// How it ended, once it has; as often as one asks. Cancel-safe.
    async fn seen(&mut self) -> Ending {
        if let Some(known) = self.known {
            return known;
        }
        let ending = (&mut self.child.ended).await.unwrap_or(Ending::Exited(1));
        *self.known.insert(ending)
    }
}

/// What happened at a worker.
pub(super) enum Event {
    /// The code is done, with this exception if any.
    Done(Option<Exception>),
    /// It showed a figure.
    Chart(Box<Chart>),
    /// It printed something.
    Printed(Which, Vec<u8>),
    /// Its process has ended.
    Died(Ending),
}

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What code ended with.
#[derive(Debug, Deserialize)]
pub(super) struct Exception {
    name: String,
    value: String,
    traceback: String,
}

impl Exception {
    /// What the client is told of it.
    pub(super) fn frame(self) -> Frame {
        Frame::Error { name: self.name, value: self.value, traceback: self.traceback }
    }
}

/// A piece of code as the worker takes it.
#[derive(Serialize)]
struct Order<'a> {
    id: u64,
    code: &'a str,
    envs: &'a std::collections::BTreeMap<String, String>,
    charts: bool,
}

/// What a worker says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Ended { ended: u64, error: Option<Exception> },
    Chart(Box<Chart>),
}

/// One of its streams.
struct Stream {
    which: Which,
    /// Gone when the worker has closed it.
    channel: Option<Channel>,
    buffer: Vec<u8>,
}

impl Stream {
    fn new(which: Which, channel: Channel) -> Self {
        Self { which, channel: Some(channel), buffer: vec![0; READ_BYTES] }
    }

    /// The next output. Never when there can be none. Cancel-safe.
    async fn read(&mut self) -> (Which, Vec<u8>) {
        loop {
            let Some(channel) = &self.channel else { std::future::pending().await };
            match channel.read(&mut self.buffer).await {
                Ok(read @ 1..) => return (self.which, self.buffer[..read].to_vec()),
                Ok(_) | Err(_) => self.channel = None,
            }
        }
    }

    /// What it printed already.
    fn read_now(&mut self) -> Option<Vec<u8>> {
        let read = self.channel.as_ref()?.try_read(&mut self.buffer).ok().flatten()?;
        (read > 0).then(|| self.buffer[..read].to_vec())
    }
}

impl Worker {
    /// Starts one.
    pub(super) fn start(agent: &Arc<Agent>, cwd: &str) -> Result<Self> {
        let program = Script::new()?;
        program.replace(&[CHARTS_PROGRAM.as_bytes(), WORKER_PROGRAM.as_bytes()])?;
        let (orders, their_orders) = input_pipe()?;
        let (events, their_events) = output_pipe()?;
        let (stdout, their_stdout) = output_pipe()?;
        let (stderr, their_stderr) = output_pipe()?;
        let stdin = discard()?;
        let mark = Family::new_mark();
        let mut env = agent.environment();
        env.insert(Family::MARK.to_owned(), mark.clone());
        let child = agent.children.spawn(&Command {
            argv: &["python3".to_owned(), "-u".to_owned(), PROGRAM_PATH.to_owned()],
            env: &env,
            cwd,
            descriptors: &[
                (stdin.as_fd(), 0),
                (their_stdout.as_fd(), 1),
                (their_stderr.as_fd(), 2),
                (their_events.as_fd(), EVENTS_FD),
                (their_orders.as_fd(), ORDERS_FD),
                (program.descriptor(), PROGRAM_FD),
            ],
            session: Session::Own,
            workload: agent.spawn_identity(),
        });
        let child = child.map_err(|error| match error {
            SpawnError::NotFound => Error::unavailable(
                "no python3 on the PATH: install Python 3, for example with apt-get install python3",
            ),
            other => other.into(),
        })?;
        Ok(Self {
            family: Family { root: child.pid, mark },
            end: End { child, known: None },
            orders: Channel::writing(orders)?,
            events: Lines::new(Channel::reading(events)?, EVENT_BYTES_MAX),
            streams: [
                Stream::new(Which::Stdout, Channel::reading(stdout)?),
                Stream::new(Which::Stderr, Channel::reading(stderr)?),
            ],
            last_id: 0,
        })
    }

    /// Has it execute a job's code.
    pub(super) async fn order(&mut self, job: &Job) {
        self.last_id += 1;
        let order = Order { id: self.last_id, code: &job.code, envs: &job.envs, charts: job.charts };
        let text = serde_json::to_string(&order).expect("texts and numbers alone");
        let text = format!("{}\n{text}", text.len());
        tokio::select! {
            // A worker that cannot take it has ended, or is about to be killed for not answering.
            _ = self.orders.write_all(text.as_bytes()) => {}
            _ = self.end.seen() => {}
        }
    }

    /// What happens next. Output only once `frames` has room for it, or nobody wants any. Cancel-safe.
    pub(super) async fn next(&mut self, frames: &mpsc::Sender<Said>) -> Event {
        loop {
            let [stdout, stderr] = &mut self.streams;
            let printed = async {
                // Closed: what is printed is taken and dropped.
                let _room = frames.reserve().await;
                tokio::select! {
                    read = stdout.read() => read,
                    read = stderr.read() => read,
                }
            };
            tokio::select! {
                line = self.events.next() => match line.as_deref().map(serde_json::from_slice) {
                    Some(Ok(Line::Ended { ended, error })) if ended == self.last_id => return Event::Done(error),
                    Some(Ok(Line::Chart(chart))) => return Event::Chart(chart),
                    // Not from our program, which shares its descriptors with the user's code.
                    Some(_) => {}
                    // It cannot say anything any more, so it is of no use.
                    None => {
                        signal_group(self.family.root, libc::SIGKILL);
                        return Event::Died(self.end.seen().await);
                    }
                },
                (which, bytes) = printed => return Event::Printed(which, bytes),
                ending = self.end.seen() => return Event::Died(ending),
            }
        }
    }

    /// Takes what nobody wants, while no code runs, until the worker has ended. Cancel-safe.
    pub(super) async fn idle(&mut self) {
        let [stdout, stderr] = &mut self.streams;
        loop {
            tokio::select! {
                _ = stdout.read() => {}
                _ = stderr.read() => {}
                line = self.events.next() => if line.is_none() { return },
                _ = self.end.seen() => return,
            }
        }
    }

    /// What was printed and not taken yet, once the code is done.
    pub(super) fn rest(&mut self) -> Vec<(Which, Vec<u8>)> {
        let mut all = Vec::new();
        for stream in &mut self.streams {
            // What a background job prints from now on is not this code's.
            let mut left = stream.channel.as_ref().map_or(0, Channel::available);
            while left > 0
                && let Some(bytes) = stream.read_now()
            {
                left = left.saturating_sub(bytes.len());
                all.push((stream.which, bytes));
            }
        }
        all
    }

    /// Interrupts the code and what it waits for, as Ctrl+C would.
    pub(super) fn interrupt(&self) {
        signal_group(self.family.root, libc::SIGINT);
    }

    /// Ends it with everything that it has started.
    pub(super) async fn kill(self, agent: &Agent) {
        kill_family(agent, &self.family).await;
    }
}

/// Puts characters together that were cut in two.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// The text so far; the beginning of a character is held back.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let cut = incomplete(&self.held);
        let rest = self.held.split_off(self.held.len() - cut);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// How many bytes at the end are the beginning of a character.
fn incomplete(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(CHARACTER_BYTES_MAX - 1)..];
    let Some(start) = tail.iter().rposition(|byte| *byte & 0xc0 != 0x80) else { return 0 };
    match std::str::from_utf8(&tail[start..]) {
        Err(error) if error.error_len().is_none() => tail.len() - start,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_put_together() {
        let text = "aä€😀z".as_bytes();
        for cut in 0..=text.len() {
            for second in cut..=text.len() {
                let mut decoder = Decoder::default();
                let mut all = decoder.decode(&text[..cut]);
                all += &decoder.decode(&text[cut..second]);
                all += &decoder.decode(&text[second..]);
                assert_eq!(all + &decoder.finish(), "aä€😀z");
            }
        }
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"a\xff\xf0\x9f"), "a\u{fffd}");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }
}
