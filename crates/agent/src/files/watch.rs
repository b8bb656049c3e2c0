//! `GET /files/watch`: changes of files as they happen, as server-sent events. Whoever reads slowly is waited for by the
//! kernel's own queue, which says when it has lost something; nothing is gathered here.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderValue, header},
    response::Response,
};
use sandhaus_protocol::watch::{Change, STREAMS_MAX};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Target, join, long_work};
use crate::{
    agent::Agent,
    error::{Error, Result},
    sys::{Channel, Extent, Told, Watches},
};

/// A quiet stream says something this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Bytes of messages read at once: one with the longest name is far smaller.
const READ_BYTES: usize = 16 * 1024;

/// Who may watch.
pub(crate) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// Query of a watch.
#[derive(Debug, Deserialize)]
pub(crate) struct WatchQuery {
    path: String,
    root: Option<String>,
    #[serde(default)]
    recursive: bool,
}

/// One stream.
struct Stream {
    agent: Arc<Agent>,
    /// Away while a thread for files has it.
    watches: Option<Watches>,
    messages: Channel,
    /// The path as it was asked for.
    top: String,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

/// `GET /files/watch`.
pub(crate) async fn watch(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<WatchQuery>,
) -> Result<Response> {
    let place = Arc::clone(&agent.watches.0)
        .try_acquire_owned()
        .map_err(|_| Error::too_many(format_args!("{STREAMS_MAX} streams are watching already")))?;
    let extent = if query.recursive { Extent::Tree } else { Extent::Single };
    let top = query.path.trim_end_matches('/').to_owned();
    let target = Target { path: query.path, root: query.root };
    let (watches, lost) = long_work(&agent, target, move |place| Watches::start(place, extent)).await?;
    let messages = Channel::reading(watches.messages()?)?;
    let mut stream = Stream { agent, watches: Some(watches), messages, top, has_ended: false, _place: place };
    let mut first = event("ready", "{}");
    first.push_str(&stream.say(lost));
    let first = futures::stream::once(std::future::ready(Ok::<_, Infallible>(Bytes::from(first))));
    let rest = futures::stream::unfold(stream, |mut stream| async move {
        let said = stream.next().await?;
        Some((Ok(Bytes::from(said)), stream))
    });
    let mut response = Response::new(Body::from_stream(futures::StreamExt::chain(first, rest)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl Stream {
    /// What happens next, or that nothing has; `None` after the last.
    async fn next(&mut self) -> Option<String> {
        let mut buffer = vec![0; READ_BYTES];
        while !self.has_ended {
            let read = match tokio::time::timeout(KEEP_ALIVE, self.messages.read(&mut buffer)).await {
                Err(_quiet) => return Some(": quiet\n\n".to_owned()),
                Ok(Ok(read @ 1..)) => read,
                // The kernel's side does not end; whatever this is, the reader is to look for itself.
                Ok(Ok(0) | Err(_)) => return None,
            };
            let told = self.digest(buffer[..read].to_vec()).await?;
            let said = self.say(told);
            if !said.is_empty() {
                return Some(said);
            }
        }
        None
    }

    /// Looking into new folders is work on files.
    async fn digest(&mut self, bytes: Vec<u8>) -> Option<Vec<Told>> {
        let mut watches = self.watches.take()?;
        let digested = self.agent.on_file_thread(move || {
            let told = watches.digest(&bytes);
            (watches, told)
        });
        let (watches, told) = digested.await;
        self.watches = Some(watches);
        Some(told)
    }

    fn say(&mut self, told: Vec<Told>) -> String {
        let mut said = String::new();
        for told in told {
            match told {
                Told::Change { kind, path, is_folder, from } => {
                    let path = self.path(&path);
                    let from = from.map(|from| self.path(&from));
                    let change = Change { kind, path, is_dir: is_folder, from };
                    said.push_str(&event("change", &serde_json::to_string(&change).unwrap_or_default()));
                }
                Told::Overflow => said.push_str(&event("overflow", "{}")),
                Told::Gone => {
                    said.push_str(&event("gone", "{}"));
                    self.has_ended = true;
                }
            }
        }
        said
    }

    fn path(&self, below: &str) -> String {
        if below.is_empty() { self.top.clone() } else { join(&self.top, below) }
    }
}

/// JSON has no end of line in it.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
