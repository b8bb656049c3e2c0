//! The network thread: everything that is said to the kernel about networks is said here, one thing after the other.
//! When nobody asks for anything it makes namespaces ahead.

use std::{
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender, TryRecvError},
    },
    thread::JoinHandle,
};

use std::net::Ipv4Addr;

use sandhaus_sandbox::engine::{EngineError, EngineResult};

use super::{Attachment, Namespace, NetworkConfig, Reach, Tenants, host::Host, memory::Memory};

/// A namespace with an address of its own.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The namespace.
    pub(crate) namespace: Namespace,
    /// Its place in the host's network, to be written down beside the machine.
    pub(crate) attachment: Attachment,
    /// The name servers it may ask.
    pub(crate) resolvers: Vec<Ipv4Addr>,
}

/// The networks of an instance. Its calls block, so they belong on a thread for such.
#[derive(Debug)]
pub(crate) struct Networks {
    pub(super) instance: String,
    requests: Sender<Request>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Reply<T> = SyncSender<EngineResult<T>>;

/// What the thread is asked for.
pub(super) enum Request {
    /// A namespace with nothing but loopback.
    Isolated(Reply<Namespace>),
    /// One with an address, for the machine of this name.
    Connected(String, Reach, Reply<Connected>),
    /// Another reach for a machine.
    Change(Attachment, Reply<()>),
    /// The machine on this interface is gone.
    Release(String),
    /// Somebody else changed our table.
    Mend,
    /// The end; machines stay.
    Close(Reply<()>),
    /// The end, with everything as it is: what a later server finds is what it would find after a crash.
    Abandon,
}

impl Networks {
    /// Starts the thread in the network namespace of the caller. What `known` names is used by machines of earlier
    /// servers, or was; everything else of the instance is removed. `memory` is a file for what is to be undone.
    pub(crate) fn open(
        instance: &str,
        config: NetworkConfig,
        memory: PathBuf,
        known: Vec<Attachment>,
    ) -> EngineResult<Self> {
        Self::open_for(Tenants::Processes, instance, config, memory, known)
    }

    /// The same for whoever lives in the machines' namespaces.
    pub(super) fn open_for(
        tenants: Tenants,
        instance: &str,
        config: NetworkConfig,
        memory: PathBuf,
        known: Vec<Attachment>,
    ) -> EngineResult<Self> {
        let (requests, received) = mpsc::channel();
        let (name, mender, instance) = (instance.to_owned(), requests.clone(), instance.to_owned());
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                let host = Host::new(&name, tenants, config, Memory::at(memory), mender);
                serve(host, &known, &received);
            })
            .map_err(|error| EngineError::host("start network thread", error))?;
        Ok(Self { instance, requests, thread: Mutex::new(Some(thread)) })
    }

    /// A namespace with nothing but loopback.
    pub(crate) fn isolated(&self) -> EngineResult<Namespace> {
        self.ask(Request::Isolated)
    }

    /// A namespace with an address, for a machine.
    pub(crate) fn connect(&self, machine: &str, reach: Reach) -> EngineResult<Connected> {
        self.ask(|reply| Request::Connected(machine.to_owned(), reach, reply))
    }

    /// Changes what a machine may reach.
    pub(crate) fn change(&self, attachment: Attachment) -> EngineResult<()> {
        self.ask(|reply| Request::Change(attachment, reply))
    }

    /// Lets go of a machine's place. Nobody waits: its namespace is gone with the machine.
    pub(crate) fn release(&self, interface: &str) {
        // Without the thread the next server removes what is not used any more.
        let _ = self.requests.send(Request::Release(interface.to_owned()));
    }

    /// Removes what no machine uses, and ends the thread.
    pub(crate) fn close(&self) -> EngineResult<()> {
        let Some(thread) = self.thread().take() else { return Ok(()) };
        let closed = self.ask(Request::Close);
        match thread.join() {
            Ok(()) => closed,
            Err(_) => Err(ended()),
        }
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> EngineResult<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.requests.send(request(reply)).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        // One value, always whole.
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Networks {
    /// The thread sends messages to itself, so it would never learn that nobody else does: it would go on making ahead,
    /// and writing filters anew that the next owner of the instance removes.
    fn drop(&mut self) {
        if let Some(thread) = self.thread().take() {
            let _ = self.requests.send(Request::Abandon);
            // If it panicked, that was told.
            let _ = thread.join();
        }
    }
}

fn ended() -> EngineError {
    EngineError::host("reach network thread", std::io::Error::from(std::io::ErrorKind::BrokenPipe))
}

/// The thread's life. It ends when it is told to.
fn serve(host: EngineResult<Host>, known: &[Attachment], requests: &Receiver<Request>) {
    let mut host = match host {
        Ok(host) => host,
        Err(error) => {
            tracing::error!(%error, source = ?std::error::Error::source(&error), "there are no networks");
            return;
        }
    };
    // The first machine of a `run` need not wait for what comes after.
    host.make_ahead();
    if let Err(error) = host.adopt(known) {
        tracing::error!(%error, source = ?std::error::Error::source(&error), "cannot take over networks");
    }
    loop {
        let request = match requests.try_recv() {
            Ok(request) => request,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                if host.make_ahead() {
                    continue;
                }
                match requests.recv() {
                    Ok(request) => request,
                    Err(_) => return,
                }
            }
        };
        // Whoever asked may be gone: what was made for them goes with the answer.
        match request {
            Request::Isolated(reply) => drop(reply.send(host.isolated())),
            Request::Connected(machine, reach, reply) => {
                let connected = host.connect(&machine, reach);
                if let Err(mpsc::SendError(Ok(unwanted))) = reply.send(connected) {
                    host.release(&unwanted.attachment.interface);
                }
            }
            Request::Change(attachment, reply) => drop(reply.send(host.change(attachment))),
            Request::Release(interface) => host.release(&interface),
            Request::Mend => host.mend(),
            Request::Close(reply) => {
                drop(reply.send(host.close()));
                return;
            }
            Request::Abandon => return,
        }
    }
}
