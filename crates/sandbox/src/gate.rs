//! The gate of a sandbox: every stream into it is a lease, and the actor can close the gate and cut the leases before
//! it captures, freezes or ends the machine. *Hang up before you photograph.*

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::engine::GuestStream;

/// Open while the machine may be spoken to.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Told whenever the last lease goes.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    next: u64,
    leases: HashMap<u64, Arc<Cut>>,
}

/// What a lease and the gate share.
#[derive(Debug, Default)]
struct Cut {
    done: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// Leave to dial, taken before the dialling: a gate that closes meanwhile cuts it too.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    number: u64,
    cut: Arc<Cut>,
}

impl Gate {
    /// Leave to dial; none while the gate is closed.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Ticket> {
        let mut state = self.state();
        if !state.open {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let cut = Arc::new(Cut::default());
        state.leases.insert(number, cut.clone());
        drop(state);
        Some(Ticket { gate: self.clone(), number, cut })
    }

    pub(crate) fn open(&self) {
        self.state().open = true;
    }

    /// Lets nobody in any more; those inside stay.
    pub(crate) fn close(&self) {
        self.state().open = false;
    }

    /// Ends every lease now.
    pub(crate) fn cut(&self) {
        let leases = std::mem::take(&mut self.state().leases);
        for cut in leases.into_values() {
            cut.done.store(true, Ordering::Release);
            cut.reader.wake();
            cut.writer.wake();
        }
        self.emptied.notify_waiters();
    }

    /// How many leases there are.
    pub(crate) fn leases(&self) -> usize {
        self.state().leases.len()
    }

    /// Waits until nobody is inside. Cancel-safe.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Registered before looking, so that an end in between is not missed.
            emptied.as_mut().enable();
            if self.leases() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The map is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Binds the stream that was dialled.
    pub(crate) fn bind(self, stream: GuestStream) -> Lease {
        Lease { stream, ticket: self }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if state.leases.remove(&self.number).is_some() && state.leases.is_empty() {
            drop(state);
            self.gate.emptied.notify_waiters();
        }
    }
}

/// A stream into a sandbox that the actor can cut: reads and writes fail once the gate closes.
#[derive(Debug)]
pub struct Lease {
    stream: GuestStream,
    ticket: Ticket,
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Read,
    Write,
}

impl Lease {
    fn guard<T>(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        poll: impl FnOnce(Pin<&mut GuestStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let cut = &self.ticket.cut;
        let ended =
            || Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox hung up")));
        if cut.done.load(Ordering::Acquire) {
            return ended();
        }
        let result = poll(Pin::new(&mut self.stream), cx);
        if result.is_pending() {
            match side {
                Side::Read => cut.reader.register(cx.waker()),
                Side::Write => cut.writer.register(cx.waker()),
            }
            // A cut between the first look and the registration found no waker: look again.
            if cut.done.load(Ordering::Acquire) {
                return ended();
            }
        }
        result
    }
}

impl AsyncRead for Lease {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.guard(cx, Side::Read, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Lease {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.guard(cx, Side::Write, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guard(cx, Side::Write, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guard(cx, Side::Write, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_cut_wakes_readers_and_writers_and_empties_the_gate() {
        let gate = Arc::new(Gate::default());
        assert!(gate.enter().is_none(), "closed at first");
        gate.open();
        let (near, _far) = tokio::io::duplex(1);
        let lease = gate.enter().expect("open").bind(GuestStream::new(near));
        let (mut reader, mut writer) = tokio::io::split(lease);
        let read = tokio::spawn(async move { reader.read_u8().await });
        let write = tokio::spawn(async move { writer.write_all(b"more than one byte").await });
        tokio::task::yield_now().await;

        gate.close();
        assert!(gate.enter().is_none());
        assert_eq!(gate.leases(), 1, "closing leaves those inside");
        gate.cut();
        gate.empty().await;
        assert_eq!(read.await.expect("joined").expect_err("cut").kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(write.await.expect("joined").expect_err("cut").kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn the_gate_is_empty_when_the_last_lease_drops() {
        let gate = Arc::new(Gate::default());
        gate.open();
        let (one, two) = (gate.enter().expect("open"), gate.enter().expect("open"));
        gate.close();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.empty().await }
        });
        tokio::task::yield_now().await;
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        waiting.await.expect("joined");
    }
}
