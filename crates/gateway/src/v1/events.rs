//! Streams of server-sent events about long work.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, Response, header},
};
use http_body_util::StreamBody;
use hyper::body::Frame;
use sandhaus_client::wire::PullFailed;
use sandhaus_sandbox::Kind;
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use crate::error::{ApiError, Subject};

/// How often progress is told at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Silence after which a comment is sent.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// What is told of long work at one moment.
pub(super) enum News {
    /// It goes on: this event.
    Progress(Vec<u8>),
    /// It is over: this event is the last.
    End(Vec<u8>),
}

/// An answer that follows `status` to its end: an event at once, then as it changes.
pub(super) fn follow<T: Clone + Send + Sync + 'static>(
    status: watch::Receiver<T>,
    subject: Subject,
    tell: fn(T) -> News,
) -> Response<Body> {
    let events = Events { status, subject, tell, told: None, ended: false };
    let stream = futures::stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), events))
    });
    let mut response = Response::new(Body::new(StreamBody::new(stream)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Events<T> {
    status: watch::Receiver<T>,
    subject: Subject,
    tell: fn(T) -> News,
    told: Option<Instant>,
    ended: bool,
}

impl<T: Clone> Events<T> {
    /// The next event; `None` after the last.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        let mut alone = false;
        if let Some(told) = self.told {
            // All three are cancel-safe; nothing is lost by looking later, the watch keeps the newest.
            match tokio::time::timeout(PING_INTERVAL, self.status.changed()).await {
                Err(_) => return Some(b": ping\n\n".to_vec()),
                Ok(changed) => alone = changed.is_err(),
            }
            if matches!(self.look(), News::Progress(_)) && !alone {
                tokio::time::sleep_until(told + PROGRESS_INTERVAL).await;
            }
        }
        self.told = Some(Instant::now());
        match self.look() {
            // Whoever worked is gone without a word: the server is shutting down.
            News::Progress(_) if alone => {
                self.ended = true;
                Some(failed(self.subject, Kind::Unavailable, "the server is shutting down".to_owned()))
            }
            News::Progress(event) => Some(event),
            News::End(event) => {
                self.ended = true;
                Some(event)
            }
        }
    }

    fn look(&mut self) -> News {
        (self.tell)(self.status.borrow_and_update().clone())
    }
}

/// The last event of what failed.
pub(super) fn failed(subject: Subject, kind: Kind, message: String) -> Vec<u8> {
    let error = ApiError::new(kind, subject, message);
    let words = if kind == Kind::Internal { "internal error".to_owned() } else { error.public_message("") };
    event("error", &PullFailed { error_code: error.code().to_owned(), error: words })
}

/// An event whose data is one line of ASCII, as some parsers need it.
pub(super) fn event(name: &str, data: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(data).expect("wire types serialise");
    let mut text = format!("event: {name}\ndata: ");
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text.push_str("\n\n");
    text.into_bytes()
}
