//! What keeps the agent from being replaced: requests without an answer yet, answers that cannot be taken up again, and
//! whatever else says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::RawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::{Body, HttpBody as _},
    http::header::CONTENT_TYPE,
    response::Response,
};
use futures::StreamExt as _;

use crate::sys;

/// An answer of at most so many bytes is in the connection's buffer, and with that on its way, as soon as it is there.
const AT_ONCE_BYTES_MAX: u64 = 16 * 1024;

/// Everything that is in the way.
#[derive(Default)]
pub(super) struct Requests {
    table: Arc<Mutex<Table>>,
    connections: Arc<Mutex<BTreeSet<RawFd>>>,
}

/// An open connection.
pub(crate) struct Open {
    all: Arc<Mutex<BTreeSet<RawFd>>>,
    number: RawFd,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    held: BTreeMap<u64, String>,
}

/// Something in the way, as long as it lives.
pub(crate) struct Hold(Option<(Arc<Mutex<Table>>, u64)>);

impl Requests {
    pub(super) fn hold(&self, what: String) -> Hold {
        let mut table = lock(&self.table);
        let number = table.next;
        table.next += 1;
        table.held.insert(number, what);
        Hold(Some((Arc::clone(&self.table), number)))
    }

    /// Notes a connection by its number. To be dropped with it.
    pub(super) fn open(&self, number: RawFd) -> Open {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        Open { all: Arc::clone(&self.connections), number }
    }

    /// Whether something came on a connection that nobody has read yet: perhaps a request.
    pub(super) fn are_arriving(&self) -> bool {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().any(|number| sys::has_unread(*number))
    }

    pub(super) fn list(&self) -> Vec<String> {
        lock(&self.table).held.values().cloned().collect()
    }
}

impl Hold {
    /// Nothing.
    pub(crate) fn none() -> Self {
        Self(None)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((table, number)) = self.0.take() {
            lock(&table).held.remove(&number);
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // The map is whole between any two statements.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer whose request is in the way until all of it was taken. Streams that their readers take up again where they
/// stood, or that never end, are not.
pub(crate) fn passing(response: Response, hold: Hold) -> Response {
    let exact = response.body().size_hint().exact();
    let is_file = || {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| {
            kind.starts_with("application/octet-stream") || kind.starts_with("multipart/")
        })
    };
    let whole = match exact {
        Some(length) => length > AT_ONCE_BYTES_MAX,
        None => is_file(),
    };
    if !whole {
        return response;
    }
    response.map(|body| {
        let kept = body.into_data_stream().map(move |piece| {
            let _hold = &hold;
            piece
        });
        Body::from_stream(kept)
    })
}
