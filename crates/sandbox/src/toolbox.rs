//! Speaking to the agent inside a sandbox: an HTTP client over whatever stream the engine dials, and the leases that
//! let the actor close the gate before it captures a machine.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::{Request, Response};
use sandhaus_protocol::{
    hello::{HelloReply, HelloRequest},
    process::{Exit, Process, Resize, Spawn},
    shell::{ShellExec, ShellExit, ShellInfo, ShellStarted},
};

use crate::{engine::GuestStream, error::Result};

/// A stream into a sandbox that the actor can cut: reads and writes fail once the gate closes.
pub struct Lease {
    stream: GuestStream,
}

/// Body of a toolbox request.
pub type Body = http_body_util::combinators::BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Opens streams to one agent: by an engine's `dial` under a lease, or by TCP to a server's toolbox route.
pub trait Connect: Send + Sync + 'static {
    /// A fresh connection.
    fn connect(&self) -> futures::future::BoxFuture<'_, Result<GuestStream>>;
}

/// A client of one agent. Cheap to clone; each call uses a pooled keep-alive connection or dials a new one. A request
/// on a pooled connection that the other side had closed already is sent again on a new one.
#[derive(Clone)]
pub struct Toolbox {}

/// Where a toolbox is reached beyond the stream itself.
#[derive(Debug, Clone, Default)]
pub struct Base {
    /// Put before every path (`/v1/sessions/ID/toolbox` behind a server, empty towards the agent itself).
    pub path_prefix: String,
    /// Value of the Authorization header, if any.
    pub authorization: Option<String>,
}

/// What a stream of the agent yields.
#[derive(Debug)]
pub enum Event<S, E> {
    /// First.
    Started(S),
    /// Terminal or standard output, with its offset.
    Stdout(u64, Bytes),
    /// Standard error, with its offset.
    Stderr(u64, Bytes),
    /// Bytes that the ring has dropped, up to this offset of standard output.
    Gap(u64),
    /// Nothing yet, but alive.
    Ping,
    /// Last.
    Exit(E),
}

/// Frames of a running command or process, decoded.
pub struct Events<S, E> {
    _marker: std::marker::PhantomData<(S, E)>,
}

impl<S: serde::de::DeserializeOwned, E: serde::de::DeserializeOwned> Events<S, E> {
    /// The next event; `None` after [`Event::Exit`]. A connection that breaks before is an error of kind Unavailable.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event<S, E>>> {
        todo!()
    }
}

impl Toolbox {
    /// A client that connects through `connect`.
    pub fn new(connect: std::sync::Arc<dyn Connect>, base: Base) -> Self {
        let _ = (connect, base);
        todo!()
    }

    /// Any request of the toolbox API, streamed both ways; the URI's path and query count. Answers with an error
    /// status are given back as they are.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<hyper::body::Incoming>> {
        let _ = request;
        todo!()
    }

    /// Greets.
    pub async fn hello(&self, hello: &HelloRequest) -> Result<HelloReply> {
        let _ = hello;
        todo!()
    }

    /// Runs a command in a persistent shell.
    pub async fn shell_exec(&self, shell: &str, exec: &ShellExec) -> Result<Events<ShellStarted, ShellExit>> {
        let _ = (shell, exec);
        todo!()
    }

    /// Resumes a command's stream.
    pub async fn shell_resume(&self, shell: &str, exec_id: u64, offset: u64) -> Result<Events<ShellStarted, ShellExit>> {
        let _ = (shell, exec_id, offset);
        todo!()
    }

    /// A shell as it stands.
    pub async fn shell_info(&self, shell: &str) -> Result<ShellInfo> {
        let _ = shell;
        todo!()
    }

    /// Starts a process and follows it.
    pub async fn spawn(&self, spawn: &Spawn) -> Result<Events<Process, Exit>> {
        let _ = spawn;
        todo!()
    }

    /// Resumes a process's streams.
    pub async fn process_output(&self, id: u64, stdout: u64, stderr: u64) -> Result<Events<Process, Exit>> {
        let _ = (id, stdout, stderr);
        todo!()
    }

    /// Sends standard input; the body may stream. `eof` closes it afterwards.
    pub async fn process_stdin(&self, id: u64, body: Body, eof: bool) -> Result<()> {
        let _ = (id, body, eof);
        todo!()
    }

    /// Sends a signal.
    pub async fn process_signal(&self, id: u64, signal: i32) -> Result<()> {
        let _ = (id, signal);
        todo!()
    }

    /// Resizes its terminal.
    pub async fn process_resize(&self, id: u64, size: Resize) -> Result<()> {
        let _ = (id, size);
        todo!()
    }

    /// Reads a file beneath `root`: up to `limit` bytes from `offset`, and the whole size.
    pub async fn read_file(&self, root: &str, path: &str, offset: u64, limit: u64) -> Result<(Bytes, u64)> {
        let _ = (root, path, offset, limit);
        todo!()
    }

    /// Writes a file beneath `root` atomically, making its parents.
    pub async fn write_file(&self, root: &str, path: &str, body: Body) -> Result<()> {
        let _ = (root, path, body);
        todo!()
    }

    /// Query parameters, percent-encoded; for callers of [`Self::send`].
    pub fn query(parameters: &BTreeMap<&str, &str>) -> String {
        let _ = parameters;
        todo!()
    }
}
