//! An agent that does what a command tells it, word by word.
//!
//! A command is words separated by blanks: `print:TEXT` (with `\n`, `\r`, `\e`, `\u` for a euro sign), `break` (the
//! connection ends there, the first time), `lose:N` (N bytes of output are lost), `park` (waits for a release),
//! `timeout` and `exit:N` (the end). `refuse:STATUS` refuses the command.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sandhaus_protocol::{
    frame,
    guest::{SYNC_PATH, SyncReply},
    hello::{HelloReply, HelloRequest, PATH},
    shell::{ShellExec, ShellExit, ShellInfo, ShellStarted},
};
use sandhaus_sandbox::testing::{Agent, AgentIdentity};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::watch,
};

type Body = BoxBody<Bytes, std::io::Error>;

/// What the agents of a test share, and what the test sees of them.
pub(crate) struct Script {
    /// Commands so far.
    commands: Mutex<Vec<String>>,
    /// Those of them that had a shell of their own.
    alone: Mutex<Vec<u64>>,
    released: watch::Sender<bool>,
    /// Requests whose body was dropped before its end.
    pub(crate) dropped: watch::Sender<usize>,
    connections: AtomicUsize,
}

impl Script {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            commands: Mutex::default(),
            alone: Mutex::default(),
            released: watch::Sender::new(false),
            dropped: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        })
    }

    /// Lets parked commands go on.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Numbers of the commands that had a shell of their own.
    pub(crate) fn alone(&self) -> Vec<u64> {
        self.alone.lock().unwrap().clone()
    }

    /// How many commands were run.
    pub(crate) fn commands(&self) -> usize {
        self.commands.lock().unwrap().len()
    }

    /// The agent.
    pub(crate) fn agent(self: &Arc<Self>) -> Agent {
        let script = Arc::clone(self);
        Arc::new(move |stream, identity| serve(Arc::clone(&script), stream, identity).boxed())
    }
}

async fn serve(script: Arc<Script>, stream: DuplexStream, identity: AgentIdentity) {
    script.connections.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(move |request| {
        answer(Arc::clone(&script), identity.clone(), request).map(Ok::<_, Infallible>)
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that a script breaks ends with an error, as it should.
    let _ = connection.with_upgrades().await;
}

async fn answer(
    script: Arc<Script>,
    identity: AgentIdentity,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == PATH {
        let hello: HelloRequest = read(request).await;
        assert_eq!(hello.sandbox_id, identity.id.as_str());
        return json(&HelloReply {
            protocol: hello.protocol,
            version: "test".into(),
            build: None,
            sandbox_id: hello.sandbox_id,
            generation: identity.generation.0,
            features: Vec::new(),
            cwd: "/workspace".into(),
            clock_skew_ns: None,
        });
    }
    if path == "/sandhaus/shell/default/exec" || path == "/sandhaus/script" {
        let exec: ShellExec = read(request).await;
        if let Some(status) = exec.cmd.strip_prefix("refuse:") {
            return refuse(status.parse().unwrap(), "refused inside /var/lib/secret");
        }
        let exec_id = {
            let mut commands = script.commands.lock().unwrap();
            commands.push(exec.cmd.clone());
            commands.len() as u64
        };
        script.alone.lock().unwrap().extend((path == "/sandhaus/script").then_some(exec_id));
        return follow(&script, exec_id, 0, First::Yes);
    }
    let taken_up = path.strip_prefix("/sandhaus/shell/default/exec/");
    if let Some(exec_id) = taken_up.or_else(|| path.strip_prefix("/sandhaus/script/")) {
        let offset = request.uri().query().unwrap().strip_prefix("offset=").unwrap().parse().unwrap();
        let exec_id: u64 = exec_id.parse().unwrap();
        let alone = script.alone.lock().unwrap().contains(&exec_id);
        if exec_id > script.commands() as u64 || alone != taken_up.is_none() {
            return refuse(404, "no such command");
        }
        return follow(&script, exec_id, offset, First::No);
    }
    if path == "/sandhaus/shell/default" {
        let info = ShellInfo { name: "default".into(), cwd: "/where".into(), running: None, output_bytes: 0 };
        return json(&info);
    }
    if path == SYNC_PATH {
        return json(&SyncReply { frozen: false });
    }
    if path == "/version" {
        return json(&serde_json::json!({ "version": "1.2.3" }));
    }
    if path == "/files/download" {
        return download(request.uri().query().unwrap());
    }
    match path.as_str() {
        "/upgrade" => reverse(&mut request),
        "/endless" => endless(&script),
        _ => echo(request).await,
    }
}

/// Changes protocol: five bytes come back in reverse.
fn reverse(request: &mut Request<Incoming>) -> Response<Body> {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        word.reverse();
        stream.write_all(&word).await.unwrap();
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    response.headers_mut().insert(header::UPGRADE, "reverse".parse().unwrap());
    response
}

/// A body that never ends, and tells when nobody wants it any more.
fn endless(script: &Arc<Script>) -> Response<Body> {
    struct Dropped(Arc<Script>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.dropped.send_modify(|count| *count += 1);
        }
    }
    let dropped = Dropped(Arc::clone(script));
    let first = stream::once(async { Ok(Frame::data(Bytes::from_static(b"first"))) });
    let body = first.chain(stream::pending()).map(move |frame| {
        let _ = &dropped;
        frame
    });
    Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(body.boxed())))))
}

/// What arrived of a request.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let content = body.collect().await.unwrap().to_bytes();
    let mut names: Vec<String> =
        parts.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    names.sort();
    let content = String::from_utf8_lossy(&content);
    let text = format!("{} {}\n{}\n\n{content}", parts.method, parts.uri, names.join("\n"));
    let mut response = Response::new(full(if parts.method == Method::HEAD { String::new() } else { text }));
    *response.status_mut() = StatusCode::IM_A_TEAPOT;
    response.headers_mut().insert("x-inside", "kept".parse().unwrap());
    response.headers_mut().insert(header::CONNECTION, "x-hop".parse().unwrap());
    response.headers_mut().insert("x-hop", "gone".parse().unwrap());
    response
}

/// Yields between two pieces, so that each is flushed before the next, which may be a break.
struct Flushing<S>(S, bool);

impl<S: futures::Stream + Unpin> futures::Stream for Flushing<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        if std::mem::take(&mut self.1) {
            cx.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        let polled = self.0.poll_next_unpin(cx);
        self.1 = polled.is_ready();
        polled
    }
}

struct SyncStream<S>(Mutex<S>);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.get_mut().unwrap().poll_next_unpin(cx)
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    Response::new(full(serde_json::to_vec(value).unwrap()))
}

fn refuse(status: u16, message: &str) -> Response<Body> {
    let mut response = json(&serde_json::json!({ "statusCode": status, "message": message }));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

async fn read<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> T {
    serde_json::from_slice(&request.collect().await.unwrap().to_bytes()).unwrap()
}

/// Files by name: `size-N` has N bytes, `short-N` says so and breaks off, `status-N` is refused.
fn download(query: &str) -> Response<Body> {
    let (_, name) = query.split_once("path=%2Fworkspace%2F").unwrap();
    let (kind, number) = name.split('&').next().unwrap().split_once('-').unwrap();
    let number: usize = number.parse().unwrap();
    let limit: usize = query.split_once("limit=").unwrap().1.split('&').next().unwrap().parse().unwrap();
    if kind == "status" {
        return refuse(u16::try_from(number).unwrap(), "refused: no such file");
    }
    let sent = number.min(limit);
    let content: Vec<u8> = (0..sent).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let mut pieces: Vec<Result<Frame<Bytes>, std::io::Error>> =
        content.chunks(1000).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    if kind == "short" {
        pieces.pop();
        pieces.push(Err(std::io::Error::other("broke off")));
    }
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(Flushing(stream::iter(pieces), false))));
    response.headers_mut().insert(header::CONTENT_LENGTH, sent.into());
    response.headers_mut().insert(sandhaus_protocol::files::SIZE_HEADER, number.into());
    response
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Yes,
    No,
}

fn follow(script: &Arc<Script>, exec_id: u64, offset: u64, first: First) -> Response<Body> {
    let command = script.commands.lock().unwrap()[usize::try_from(exec_id).unwrap() - 1].clone();
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(4);
    let mut released = script.released.subscribe();
    tokio::spawn(async move {
        let mut at = 0;
        let mut frames = Vec::new();
        let started = serde_json::to_vec(&ShellStarted { exec_id }).unwrap();
        frame::encode(frame::Kind::Started, 0, &started, &mut frames);
        let mut exit = ShellExit {
            exit_code: 0,
            cwd: "/workspace".into(),
            duration_ms: 5,
            timed_out: false,
            shell_replaced: false,
        };
        for word in words {
            match word.split_once(':').unwrap_or((word.as_str(), "")) {
                ("print", text) => {
                    let text = text
                        .replace("\\n", "\n")
                        .replace("\\r", "\r")
                        .replace("\\e", "\x1b")
                        .replace("\\u", "€");
                    let skipped = usize::try_from(offset.saturating_sub(at)).unwrap().min(text.len());
                    let begin = at + skipped as u64;
                    // In two pieces, so that characters and sequences are cut.
                    let rest = &text.as_bytes()[skipped..];
                    let (head, tail) = rest.split_at(rest.len() / 2);
                    frame::encode(frame::Kind::Stdout, begin, head, &mut frames);
                    frame::encode(frame::Kind::Stdout, begin + head.len() as u64, tail, &mut frames);
                    at += text.len() as u64;
                }
                ("lose", bytes) => {
                    frame::encode(frame::Kind::GapStdout, at, b"", &mut frames);
                    at += bytes.parse::<u64>().unwrap();
                }
                ("break", _) if first == First::Yes => {
                    let _ = sender.send(Ok(Frame::data(std::mem::take(&mut frames).into()))).await;
                    let _ = sender.send(Err(std::io::Error::other("broken by the script"))).await;
                    return;
                }
                ("park", _) => {
                    let _ = sender.send(Ok(Frame::data(std::mem::take(&mut frames).into()))).await;
                    released.wait_for(|released| *released).await.unwrap();
                }
                ("timeout", _) => (exit.timed_out, exit.exit_code) = (true, 130),
                ("exit", code) => exit.exit_code = code.parse().unwrap(),
                _ => {}
            }
        }
        frame::encode(frame::Kind::Exit, 0, &serde_json::to_vec(&exit).unwrap(), &mut frames);
        let _ = sender.send(Ok(Frame::data(frames.into()))).await;
    });
    let stream = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Flushing(stream.boxed(), false))))))
}
