//! The server's side of the launcher: starts it, sends it requests, hands out its answers.
//!
//! A launcher whose server was killed finishes what it is at before it notices. It holds a lock on its directory, and so
//! do its half-made children, so that nobody looks at what is there, or starts anew, before they are all gone.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};
use sandhaus_sandbox::engine::{EngineError, EngineResult};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{oneshot, watch},
};

use super::{
    LAUNCHER_ARGUMENT, sys,
    wire::{self, LaunchDescriptors, LaunchFailure, LaunchReply, LaunchRequest},
};

/// Largest answer in bytes.
const REPLY_BYTES_MAX: usize = 16 * 1024;

/// The only environment the launcher gets beside its log level: which fault point is armed.
const PASSED_VARIABLES: &[&str] = &["SANDHAUS_FAULT", "RUST_LOG"];

/// How long an orphaned launcher may take to notice that it is one.
const ORPHAN_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks at its lock.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Waits until no launcher of an earlier server is left.
pub(super) fn await_orphan(stage: &Path) -> EngineResult<()> {
    let host = |error: io::Error| EngineError::host("wait for an earlier launcher", error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(stage, flags, Mode::empty()).map_err(|error| host(error.into()))?;
    let deadline = Instant::now() + ORPHAN_MAX;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            Err(error) => return Err(host(error.into())),
        }
    }
}

/// Why a launch failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    /// The machine could not be made.
    #[error(transparent)]
    Failed(#[from] LaunchFailure),
    /// The launcher is gone; the machine may or may not have come up.
    #[error("launcher ended")]
    Ended,
    /// The request does not fit a packet.
    #[error("launch request is too long")]
    TooLarge,
    /// The request did not get through.
    #[error("cannot reach the launcher")]
    Unreachable(#[source] io::Error),
}

type Answer = (Result<(), LaunchFailure>, Option<OwnedFd>);

/// Requests that wait for an answer; `None` once the launcher is gone.
type Pending = Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A running launcher. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct LauncherClient {
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Arc<Pending>,
    tags: AtomicU64,
    ended: watch::Receiver<bool>,
}

impl LauncherClient {
    /// Starts a launcher.
    pub(super) fn spawn(binary: &Path, stage: &Path) -> EngineResult<Self> {
        let host = |error: io::Error| EngineError::host("start launcher", error);
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| host(error.into()))?;
        // Only our side: the launcher's own waits in poll.
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| host(error.into()))?;
        let mut command = Command::new(binary);
        command.arg(LAUNCHER_ARGUMENT).arg(stage).current_dir("/").env_clear();
        for name in PASSED_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn().map_err(host)?;
        drop(command);
        let socket = Arc::new(sys::watched(ours).map_err(host)?);
        let pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let (end, ended) = watch::channel(false);
        let reader = read_answers(Arc::clone(&socket), Arc::clone(&pending));
        tokio::spawn(async move {
            reader.await;
            reap(child).await;
            end.send_replace(true);
        });
        Ok(Self { socket, pending, tags: AtomicU64::new(0), ended })
    }

    /// False once it is gone.
    pub(super) fn is_alive(&self) -> bool {
        self.pending.lock().expect("no holder panics").is_some()
    }

    /// Has a machine made; gives its first process.
    pub(super) async fn launch(
        &self,
        mut request: LaunchRequest,
        descriptors: &LaunchDescriptors,
    ) -> Result<OwnedFd, LaunchError> {
        let tag = self.tags.fetch_add(1, Ordering::Relaxed);
        request.tag = tag;
        let packet = serde_json::to_vec(&request)
            .map_err(|error| LaunchError::Unreachable(io::Error::other(error)))?;
        if packet.len() > wire::PACKET_BYTES_MAX {
            return Err(LaunchError::TooLarge);
        }
        let (sender, receiver) = oneshot::channel();
        match self.pending.lock().expect("no holder panics").as_mut() {
            Some(pending) => pending.insert(tag, sender),
            None => return Err(LaunchError::Ended),
        };
        let all = descriptors.all();
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, |socket| wire::send(socket, &packet, &all, SendFlags::DONTWAIT))
            .await;
        if let Err(error) = sent {
            if let Some(pending) = self.pending.lock().expect("no holder panics").as_mut() {
                pending.remove(&tag);
            }
            return Err(LaunchError::Unreachable(error));
        }
        match receiver.await {
            Ok((Ok(()), Some(pidfd))) => Ok(pidfd),
            Ok((Ok(()), None)) => Err(LaunchError::Unreachable(io::ErrorKind::InvalidData.into())),
            Ok((Err(failure), _)) => Err(failure.into()),
            Err(_) => Err(LaunchError::Ended),
        }
    }

    /// Hangs up and waits until it has ended.
    pub(super) async fn end(&self) {
        self.hang_up();
        self.ended.clone().wait_for(|ended| *ended).await.ok();
    }

    fn hang_up(&self) {
        // It may be gone already. The reader holds the socket too, so closing ours would not be enough.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// Hands out answers until the launcher is gone.
async fn read_answers(socket: Arc<AsyncFd<OwnedFd>>, pending: Arc<Pending>) {
    let mut buffer = vec![0; REPLY_BYTES_MAX];
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| {
                wire::receive(socket.as_fd(), &mut buffer, RecvFlags::DONTWAIT)
            })
            .await;
        let (bytes, descriptors) = match received {
            Ok((0, _)) => break,
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => {
                tracing::error!(%error, "cannot read the launcher's answer");
                break;
            }
        };
        let reply: LaunchReply = match serde_json::from_slice(&buffer[..bytes]) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "launcher answered nonsense");
                break;
            }
        };
        let waiting =
            pending.lock().expect("no holder panics").as_mut().and_then(|all| all.remove(&reply.tag));
        if let Some(waiting) = waiting {
            // Whoever asked may have given up; the machine is found by the next survey then.
            let _ = waiting.send((reply.outcome, descriptors.into_iter().next()));
        }
    }
    // Dropping the senders tells everyone who waits.
    pending.lock().expect("no holder panics").take();
}

async fn reap(mut child: Child) {
    let reaped = tokio::task::spawn_blocking(move || {
        // Whatever made us stop reading, it must not linger.
        let _ = child.kill();
        child.wait()
    })
    .await;
    match reaped {
        Ok(Ok(status)) => tracing::debug!(%status, "launcher ended"),
        Ok(Err(error)) => tracing::warn!(%error, "cannot reap the launcher"),
        Err(error) => tracing::warn!(%error, "cannot wait for the launcher"),
    }
}

impl Drop for LauncherClient {
    fn drop(&mut self) {
        self.hang_up();
    }
}
