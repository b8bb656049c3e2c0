//! Turns logs into framed response bodies: the first frame, output as it comes, gaps, pings while it is quiet, the
//! last frame. One [`Feed`] serves one reader of one subject (a process, a shell command, a shell's whole terminal).

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use sandhaus_protocol::frame::{self, Kind, PAYLOAD_BYTES_MAX};
use tokio::{sync::Notify, time::timeout};

use crate::ring::{Found, Log, Reader};

/// A quiet stream carries a ping this often, so that neither side mistakes it for a dead one.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How long an answer waits for its first output or its end before the headers go out alone. A short command's whole
/// stream then is one write on the socket.
const COMBINE: Duration = Duration::from_millis(2);

/// Most payload bytes put into one chunk of the body.
const CHUNK_BYTES: usize = PAYLOAD_BYTES_MAX;

/// What a feed reads from.
pub(crate) trait Subject: Send + Sync + 'static {
    /// Pulsed whenever [`Self::look`] or a log may say something new.
    fn changed(&self) -> &Notify;
    /// How it stands.
    fn look(&self) -> Look;
}

/// How a subject stands.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Where its output starts in its logs; `None` before it has begun.
    pub(crate) base: Option<u64>,
    /// When it has ended: where its output ends in each log, and the payload of the last frame.
    pub(crate) ended: Option<([u64; 2], Vec<u8>)>,
}

/// One log of a subject and the kinds of frames it becomes.
pub(crate) struct Track {
    log: Arc<Log>,
    bytes: Kind,
    gap: Kind,
    offset: u64,
    reader: Option<Reader>,
}

impl Track {
    /// Standard output, or the terminal, from the reader's `offset`.
    pub(crate) fn stdout(log: &Arc<Log>, offset: u64) -> Self {
        Self { log: Arc::clone(log), bytes: Kind::Stdout, gap: Kind::GapStdout, offset, reader: None }
    }

    /// Standard error from the reader's `offset`.
    pub(crate) fn stderr(log: &Arc<Log>, offset: u64) -> Self {
        Self { log: Arc::clone(log), bytes: Kind::Stderr, gap: Kind::GapStderr, offset, reader: None }
    }

    /// Moves what there is below `limit` into `out`. True when the limit is reached.
    fn drain(&mut self, base: u64, limit: Option<u64>, out: &mut Vec<u8>) -> bool {
        let reader = self.reader.get_or_insert_with(|| self.log.attach(base.saturating_add(self.offset)));
        let end = out.len() + CHUNK_BYTES;
        loop {
            match reader.take(end.saturating_sub(out.len()), limit) {
                Found::Nothing => break,
                Found::Gap(from) => frame::encode(self.gap, from.saturating_sub(base), &[], out),
                Found::Bytes(from, bytes) => {
                    frame::encode(self.bytes, from.saturating_sub(base), &bytes, out);
                    if out.len() >= end {
                        break;
                    }
                }
            }
        }
        limit.is_some_and(|limit| reader.offset() >= limit)
    }
}

/// What happens when a reader leaves before the end.
pub(crate) trait Guard: Send + 'static {
    /// Called once, unless the last frame was taken.
    fn abandoned(&mut self);
}

/// The frames of one subject for one reader.
pub(crate) struct Feed {
    subject: Arc<dyn Subject>,
    tracks: Vec<Track>,
    first: Option<Vec<u8>>,
    guard: Option<Box<dyn Guard>>,
    done: bool,
}

impl Feed {
    /// A feed that starts with a `Started` frame of this payload.
    pub(crate) fn new(subject: Arc<dyn Subject>, tracks: Vec<Track>, started: Vec<u8>) -> Self {
        Self { subject, tracks, first: Some(started), guard: None, done: false }
    }

    /// Calls `guard` if the reader leaves early.
    pub(crate) fn guarded(mut self, guard: Box<dyn Guard>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// The response that carries the frames.
    pub(crate) async fn respond(mut self) -> Response {
        let mut head = Vec::new();
        if let Some(started) = self.first.take() {
            frame::encode(Kind::Started, 0, &started, &mut head);
        }
        if let Ok(Some(more)) = timeout(COMBINE, self.next()).await {
            head.extend_from_slice(&more);
        }
        let body = if self.done {
            Body::from(head)
        } else {
            let first = futures::stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(
                Bytes::from(head),
            )));
            let rest = futures::stream::unfold(self, |mut feed| async move {
                let chunk = feed.next().await?;
                Some((Ok(Bytes::from(chunk)), feed))
            });
            Body::from_stream(futures::StreamExt::chain(first, rest))
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(frame::CONTENT_TYPE));
        response
    }

    /// The next frames; `None` after the last. Cancel-safe: bytes are taken only in the step that returns them.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.done {
            return None;
        }
        let subject = Arc::clone(&self.subject);
        loop {
            let changed = subject.changed().notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let mut out = Vec::new();
            let look = subject.look();
            if let Some(base) = look.base {
                let ends = look.ended.as_ref().map(|(ends, _)| *ends);
                let mut complete = true;
                for (index, track) in self.tracks.iter_mut().enumerate() {
                    complete &= track.drain(base, ends.map(|ends| ends[index.min(1)]), &mut out);
                }
                if complete && let Some((_, exit)) = look.ended {
                    frame::encode(Kind::Exit, 0, &exit, &mut out);
                    self.done = true;
                    self.guard = None;
                }
            } else if let Some((_, exit)) = look.ended {
                frame::encode(Kind::Exit, 0, &exit, &mut out);
                self.done = true;
                self.guard = None;
            }
            if !out.is_empty() {
                return Some(out);
            }
            if timeout(PING_INTERVAL, changed).await.is_err() {
                frame::encode(Kind::Ping, 0, &[], &mut out);
                return Some(out);
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.abandoned();
        }
    }
}

/// JSON of a frame's payload.
pub(crate) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("wire types have string keys and no failing serializers")
}
