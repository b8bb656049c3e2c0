//! What connects the server with a QEMU: the monitor and the serial port, both Unix sockets in the machine's directory. Each
//! serves one client, so a server holds both as long as it knows the machine; the next server finds them free.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use sandhaus_sandbox::engine::{EngineError, EngineResult, GuestStream};
use tokio::net::UnixStream;

use super::{
    console::Console,
    qmp::{Qmp, QmpError, QmpResult},
};

/// The monitor's socket.
pub(super) const MONITOR_SOCKET: &str = "monitor.sock";

/// The serial port's socket.
pub(super) const CONSOLE_SOCKET: &str = "console.sock";

/// How long a QEMU may take from its start to its greeting, on a host that is busy.
const GREETING_MAX: Duration = Duration::from_secs(30);

/// The server is its only client.
const BACKLOG: i32 = 8;

/// A machine's sockets as this server uses them.
#[derive(Debug)]
pub(super) struct Channel {
    directory: PathBuf,
    monitor: tokio::sync::Mutex<Option<Arc<Qmp>>>,
    console: OnceLock<Arc<Console>>,
}

impl Channel {
    /// That of the machine in `directory`. Nothing is connected yet.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, monitor: tokio::sync::Mutex::default(), console: OnceLock::new() }
    }

    /// The monitor.
    pub(super) async fn monitor(&self) -> QmpResult<Arc<Qmp>> {
        let mut held = self.monitor.lock().await;
        if let Some(monitor) = held.as_ref().filter(|monitor| monitor.is_open()) {
            return Ok(Arc::clone(monitor));
        }
        // A connection that is of no use any more keeps QEMU from taking another.
        *held = None;
        let connected = async {
            let stream = connect(&self.directory, MONITOR_SOCKET).await.map_err(QmpError::Connection)?;
            Qmp::begin(stream).await
        };
        let monitor = tokio::time::timeout(GREETING_MAX, connected)
            .await
            .unwrap_or_else(|_| Err(QmpError::Timeout { command: "the greeting".to_owned() }))?;
        Ok(Arc::clone(held.insert(Arc::new(monitor))))
    }

    /// Begins to listen to the serial port, so that what it says is remembered.
    pub(super) async fn listen_to_console(&self) -> io::Result<Arc<Console>> {
        if let Some(console) = self.console.get().filter(|console| console.is_open()) {
            return Ok(Arc::clone(console));
        }
        let fresh = Console::new(connect(&self.directory, CONSOLE_SOCKET).await?);
        Ok(Arc::clone(self.console.get_or_init(|| Arc::new(fresh))))
    }

    /// A connection to the serial port.
    pub(super) async fn dial_console(&self) -> EngineResult<GuestStream> {
        let console =
            self.listen_to_console().await.map_err(|error| EngineError::host("open console", error))?;
        Ok(console.dial())
    }

    /// A connection to the display.
    pub(super) async fn dial_display(&self) -> EngineResult<GuestStream> {
        let host = |error: QmpError| EngineError::host("open display", error);
        let monitor = self.monitor().await.map_err(host)?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| EngineError::host("open display", error))?;
        monitor.add_display_client(&theirs).await.map_err(host)?;
        Ok(GuestStream::new(ours))
    }
}

/// Makes a listening socket in `directory`, for QEMU to inherit: it can be connected to before QEMU is there.
pub(super) fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = open_directory(directory)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // By descriptor: a data directory of any depth fits, and the program learns nothing of where it lies.
    rustix::net::bind(&socket, &SocketAddrUnix::new(short_path(&directory, name))?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let directory = open_directory(directory)?;
    UnixStream::connect(short_path(&directory, name)).await
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn short_path(directory: &OwnedFd, name: &str) -> String {
    format!("{}/{name}", crate::namespace::magic_link(directory))
}
