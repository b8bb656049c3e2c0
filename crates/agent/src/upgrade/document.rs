//! What one agent tells the next: a file in memory with the bytes of all logs and a JSON document, and descriptors that stay
//! open under their numbers.
//!
//! ```text
//!   magic · format · where the document is · its length │ bytes of logs … │ document
//! ```
//! Fields of the document are only ever added. An agent that finds a part in it that it does not know refuses it: what the
//! part tells of would be lost.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd, OwnedFd, RawFd},
    sync::Arc,
};

use sandhaus_protocol::{
    boot::{Limits, Workload},
    ssh::Access,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    process, pty,
    ring::Log,
    session,
    shell::{self, dialect::ShellChoice},
    ssh::Places,
    sys,
};

/// What the file begins with.
const MAGIC: &[u8; 8] = b"sandhand";

/// How the file is laid out; another one is refused.
const FORMAT: u64 = 1;

/// Bytes before the logs: magic, format, where the document is, its length.
const HEADER_BYTES: usize = 32;

/// Most bytes of all logs together. They are there twice for a moment, in the sandbox's own memory.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// Largest document.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

/// A descriptor by its number, which is the same in the next program.
pub(crate) type Descriptor = RawFd;

/// Everything that is carried over.
#[derive(Serialize, Deserialize)]
pub(crate) struct Document {
    /// Who wrote it, for whoever reads an error.
    pub(crate) writer: String,
    /// What kind of agent it is, and whom it serves.
    pub(crate) standing: StandingState,
    /// The listening socket.
    pub(crate) listener: Descriptor,
    /// The connection on which the upgrade was asked for, and where its answer goes.
    pub(crate) connection: Option<Descriptor>,
    /// Limits of open files that children get, soft and hard.
    pub(crate) open_files: (u64, u64),
    /// Variables of new processes, and whether a greeting has brought some.
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) greeted_with_variables: bool,
    pub(crate) workdir: String,
    pub(crate) workload: Workload,
    #[serde(default)]
    pub(crate) limits: Limits,
    pub(crate) shell: ShellChoice,
    /// What it has started.
    pub(crate) processes: process::Carried,
    pub(crate) shells: shell::Carried,
    pub(crate) sessions: session::Carried,
    pub(crate) terminals: pty::Carried,
    /// Who may come in beside the API, and where if not where a sandbox has these doors. Their sockets are made anew.
    #[serde(default)]
    pub(crate) access: Access,
    #[serde(default)]
    pub(crate) doors: Option<Places>,
    /// Every descriptor that is handed over.
    pub(crate) descriptors: Vec<Descriptor>,
    /// Parts that this build does not know.
    #[serde(flatten)]
    pub(crate) foreign: BTreeMap<String, serde_json::Value>,
}

/// What kind of agent it is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StandingState {
    /// PID 1 of a sandbox of namespaces.
    Init {
        /// The sandbox.
        sandbox_id: String,
        /// Its generation.
        generation: u64,
    },
    /// In a virtual machine.
    Guest {
        /// It is the first process of the machine.
        first: bool,
        /// Whom the last greeting named, and the token that it brought.
        sandbox_id: String,
        generation: u64,
        token: String,
    },
    /// By hand.
    ByHand,
}

/// A log: where its bytes are in the file, and the offset of the first one.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct LogState {
    start: u64,
    at: u64,
    length: u64,
    /// Who is reading it.
    #[serde(default)]
    readers: usize,
}

impl LogState {
    /// The offset of its first byte.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }
}

/// Whether logs are written with the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logs {
    /// They are.
    Written,
    /// It is only to be looked at.
    Omitted,
}

/// Collects what is carried over.
pub(crate) struct Outgoing {
    file: File,
    logs: Logs,
    at: u64,
    kept: Vec<RawFd>,
    children: HashSet<i32>,
}

impl Outgoing {
    /// An empty file.
    pub(crate) fn new(logs: Logs) -> io::Result<Self> {
        let mut file = sys::memory_file()?;
        file.write_all(&[0; HEADER_BYTES])?;
        Ok(Self { file, logs, at: HEADER_BYTES as u64, kept: Vec::new(), children: HashSet::new() })
    }

    /// Notes a descriptor that stays open.
    pub(crate) fn descriptor(&mut self, descriptor: impl AsFd) -> Descriptor {
        let number = sys::number(descriptor);
        self.kept.push(number);
        number
    }

    /// The same by its number.
    pub(crate) fn number(&mut self, number: RawFd) {
        self.kept.push(number);
    }

    /// Those that were noted.
    pub(crate) fn numbers(&self) -> &[RawFd] {
        &self.kept
    }

    /// Notes a child that the next agent waits for, if it is alive.
    pub(crate) fn child(&mut self, pid: i32) {
        self.children.insert(pid);
    }

    /// Whether a child was noted.
    pub(crate) fn knows(&self, pid: i32) -> bool {
        self.children.contains(&pid)
    }

    /// Writes what a log keeps.
    pub(crate) fn log(&mut self, log: &Log) -> io::Result<LogState> {
        let readers = log.readers();
        log.show(|start, pieces| Ok(LogState { readers, ..self.bytes(start, pieces)? }))
    }

    /// Writes bytes of which the first one is at offset `start`.
    pub(crate) fn bytes(&mut self, start: u64, pieces: [&[u8]; 2]) -> io::Result<LogState> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let state = LogState { start, at: self.at, length, readers: 0 };
        if self.logs == Logs::Omitted {
            return Ok(LogState { length: 0, ..state });
        }
        if self.at + length > LOG_BYTES_MAX {
            let message = format!("more than {} MiB of output are kept", LOG_BYTES_MAX >> 20);
            return Err(io::Error::other(message));
        }
        for piece in pieces {
            self.file.write_all(piece)?;
        }
        self.at += length;
        Ok(state)
    }

    /// Writes text that is on its way somewhere.
    pub(crate) fn text(&mut self, text: &[u8]) -> io::Result<LogState> {
        self.bytes(0, [text, &[]])
    }

    /// Completes the file.
    pub(crate) fn finish(mut self, document: &Document) -> io::Result<File> {
        let document = serde_json::to_vec(document).map_err(io::Error::other)?;
        self.file.write_all(&document)?;
        let mut header = MAGIC.to_vec();
        for number in [FORMAT, self.at, document.len() as u64] {
            header.extend(number.to_le_bytes());
        }
        self.file.rewind()?;
        self.file.write_all(&header)?;
        self.file.rewind()?;
        Ok(self.file)
    }
}

/// Gives back what was carried over. Descriptors are copied, so that the originals are still there for the agent before if
/// this one fails.
pub(crate) struct Incoming {
    file: File,
    taken: Vec<RawFd>,
}

impl Incoming {
    /// Reads the document of a file that the agent before left.
    pub(crate) fn read(mut file: File) -> io::Result<(Document, Self)> {
        let wrong = |what: &str| io::Error::other(format!("the state is not usable: {what}"));
        let mut header = [0; HEADER_BYTES];
        file.rewind()?;
        file.read_exact(&mut header)?;
        let number = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[index * 8..(index + 1) * 8]);
            u64::from_le_bytes(bytes)
        };
        if !header.starts_with(MAGIC) || number(1) != FORMAT {
            return Err(wrong("another format"));
        }
        if number(3) > DOCUMENT_BYTES_MAX {
            return Err(wrong("too long"));
        }
        file.seek(SeekFrom::Start(number(2)))?;
        let mut text = Vec::new();
        (&file).take(number(3)).read_to_end(&mut text)?;
        let document: Document = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
        if let Some(part) = document.foreign.keys().next() {
            return Err(wrong(&format!("this agent knows nothing of {part:?}")));
        }
        Ok((document, Self { file, taken: Vec::new() }))
    }

    /// A descriptor that was handed over.
    pub(crate) fn descriptor(&mut self, number: Descriptor) -> io::Result<OwnedFd> {
        let copy = sys::duplicate(number)?;
        self.taken.push(number);
        Ok(copy)
    }

    /// A log as it was.
    pub(crate) fn log(
        &mut self,
        state: LogState,
        capacity: usize,
        changed: Arc<Notify>,
    ) -> io::Result<Arc<Log>> {
        let bytes = self.bytes(state, capacity)?;
        Ok(Log::restored(capacity, changed, state.start, bytes, state.readers))
    }

    /// Bytes as they were, at most so many.
    pub(crate) fn bytes(&mut self, state: LogState, most: usize) -> io::Result<Vec<u8>> {
        let wrong = |what| io::Error::other(format!("the state is not usable: {what}"));
        let length = usize::try_from(state.length).unwrap_or(usize::MAX);
        if length > most {
            return Err(wrong("a log is longer than it may be"));
        }
        let mut bytes = vec![0; length];
        self.file.seek(SeekFrom::Start(state.at))?;
        self.file.read_exact(&mut bytes).map_err(|_| wrong("a log is cut short"))?;
        Ok(bytes)
    }

    /// Nothing can go wrong any more: the originals are closed.
    pub(crate) fn commit(self) {
        sys::close_numbers(&self.taken);
    }
}
