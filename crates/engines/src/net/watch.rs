//! Notices that somebody else removed or changed our table of filters: a reload of the host's own rules often begins
//! by removing all there are.

use std::{io, os::fd::OwnedFd, sync::mpsc::Sender};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    pipe::PipeFlags,
};

use super::{
    filter::Filter,
    netlink::{Heard, Socket},
    thread::Request,
};

/// The watching thread. It ends when this is dropped.
pub(super) struct Watch {
    /// Closed, it wakes the thread for the last time.
    _life: OwnedFd,
}

impl Watch {
    /// Starts to watch in the calling thread's network namespace. What `filter` itself changes does not count.
    pub(super) fn start(instance: &str, filter: &Filter, mender: Sender<Request>) -> io::Result<Self> {
        let socket = Socket::listen_to_filters()?;
        let (table, own) = (Filter::table_of(instance), filter.port()?);
        let (end, life) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        std::thread::Builder::new()
            .name("network-watch".to_owned())
            .spawn(move || watch(&socket, &end, &table, own, &mender))?;
        Ok(Self { _life: life })
    }
}

fn watch(socket: &Socket, end: &OwnedFd, table: &str, own: u32, mender: &Sender<Request>) {
    loop {
        let mut polled = [PollFd::new(socket, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot watch the host's filters");
                return;
            }
        }
        if !polled[1].revents().is_empty() {
            return;
        }
        let changed = match socket.hear() {
            Ok(heard) => heard.iter().any(|heard: &Heard| heard.from != own && heard.names(table)),
            // More happened than fits: it may have been about us.
            Err(_) => true,
        };
        if changed && mender.send(Request::Mend).is_err() {
            return;
        }
    }
}
