//! Request bodies: on their way to an agent, and whether they were read at all.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use sandhaus_sandbox::toolbox;
use tokio::time::{Instant, Sleep};

/// How long a client may send nothing in the middle of a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A client's body, streamed on as it arrives; it fails if the client falls silent.
pub(crate) fn forward(body: Body) -> toolbox::Body {
    Forward { body: Mutex::new(body), stall: None }.boxed()
}

/// The lock is never contended: it only makes of an exclusively used body one that may be shared, which the type of
/// a toolbox body asks for.
struct Forward {
    body: Mutex<Body>,
    stall: Option<Pin<Box<Sleep>>>,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl hyper::body::Body for Forward {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        let this = self.get_mut();
        let body = this.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.stall = None;
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                let stall = this.stall.get_or_insert_with(|| {
                    Box::pin(tokio::time::sleep_until(Instant::now() + STALL_TIMEOUT))
                });
                match stall.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

/// Whether a request's body was read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// Watches the body of a request; `None` if it has none.
    pub(crate) fn watch(body: &mut Body) -> Option<Self> {
        if body.is_end_stream() {
            return None;
        }
        let unread = Self(Arc::new(AtomicBool::new(true)));
        let watched = Watched { body: std::mem::take(body), unread: unread.clone() };
        *body = Body::new(watched);
        Some(unread)
    }

    /// Something of it was left.
    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Watched {
    body: Body,
    unread: Unread,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread.0.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
